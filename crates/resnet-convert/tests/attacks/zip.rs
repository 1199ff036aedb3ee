use super::{check, check_each, read};
use crate::build::pickle::{evil, g, ok, program, s, t, tensor};
use crate::build::zip::{self, Entry, Pth, archive, header_of, pth, set_central, set_end, set_local};
use crate::build::{f32s, patch};

fn plain() -> Vec<u8> {
    Pth::default().bytes()
}

fn ones() -> Pth {
    Pth { storages: vec![("0", vec![1; 16])], ..Pth::default() }
}

#[test]
fn z01_z02_checksums() {
    check("Z01", &[patch(&ones().bytes(), &[1; 16], &[2; 16])], &["crc"]);
    check("Z01", &[patch(&plain(), b"cpu", b"gpu")], &["crc"]);
    let mut entries = ones().entries();
    entries.iter_mut().for_each(|e| e.unchecked = true);
    let (state, tensors) = read(&archive(&entries)).unwrap();
    assert_eq!(tensors[0].2, [1; 16], "Z02");
    assert!(state.notes.iter().any(|n| n.contains("without a checksum")), "Z02: {:?}", state.notes);
}

#[test]
fn z03_to_z08_headers_and_directory() {
    let flagged = |bits: u16| {
        let bytes = set_local(&plain(), "archive/data.pkl", 6, &bits.to_le_bytes());
        set_central(&bytes, "archive/data.pkl", 8, &bits.to_le_bytes())
    };
    check_each(
        "Z03",
        &[(flagged(1), "zip-encrypted"), (flagged(0x20), "zip-flags"), (flagged(0x40), "zip-encrypted")],
    );
    check("Z04", &[patch(&plain(), b"data.pkl", b"datap.kl")], &["zip-mismatch"]);
    let fields: [(usize, &[u8]); 4] =
        [(18, &[8, 0, 0, 0]), (22, &[99, 0, 0, 0]), (14, b"abcd"), (8, &[8, 0])];
    check(
        "Z05",
        &fields.map(|(at, value)| set_local(&plain(), "archive/data/0", at, value)),
        &["zip-mismatch"],
    );
    check("Z06", &[Pth::with(&[("archive/data/0", vec![1; 16])])], &["zip-duplicate"]);
    let evil = program(&[evil()]);
    let several = [Pth::with(&[("evil/data.pkl", ok())]), Pth::with(&[("archive/x/data.pkl", evil)])];
    check("Z07", &several, &["zip-layout"]);
    check("Z07", &[Pth { top: "a/b", ..Pth::default() }.bytes()], &["zip-layout"]);
    check("Z07", &[archive(&[Entry::new("data.pkl", ok()), Entry::new("data/0", [0; 16])])], &["ok"]);
    check(
        "Z08",
        &[set_end(&plain(), 8, &[2, 0, 2, 0]), set_end(&plain(), 8, &[9, 0, 9, 0])],
        &["zip-mismatch", "zip-bounds"],
    );
}

#[test]
fn z09_to_z13_unreferenced_bytes_and_bounds() {
    let plain = plain();
    let commented = [set_end(&plain, 20, &(plain.len() as u16).to_le_bytes()), plain.clone()].concat();
    check_each(
        "Z09",
        &[
            ([b"MZ".to_vec(), vec![0; 62], plain.clone()].concat(), "zip-prefix"),
            ([plain.clone(), b"tail".to_vec()].concat(), "zip-trailing"),
            (commented, "zip-trailing"),
            ([&plain[..], &plain[plain.len() - 22..]].concat(), "zip-trailing"),
        ],
    );
    // A bomb with correct sizes, and a pickle of zeros.
    let bomb = |data: Vec<u8>| Pth { storages: vec![("0", data)], method: 8, ..Pth::default() }.bytes();
    check("Z10", &[bomb(vec![0; 20_000_000])], &["storage-size", "zip-ratio"]);
    check("Z10", &[Pth { pickle: vec![0; 10_000_000], method: 8, ..Pth::default() }.bytes()], &["zip-ratio"]);
    let honest = Pth { storages: vec![("0", f32s(&[1., 2., 3., 4.]))], method: 8, ..Pth::default() }.bytes();
    assert_eq!(read(&honest).unwrap().1[0].2, f32s(&[1., 2., 3., 4.]), "deflated entries are read");
    let two = Pth { storages: vec![("0", vec![0; 16]), ("1", vec![0; 16])], ..Pth::default() }.bytes();
    let first = header_of(&two, "archive/data/0").to_le_bytes();
    check("Z11", &[set_central(&two, "archive/data/1", 42, &first)], &["zip-overlap"]);
    let fields: [(usize, &[u8]); 3] = [(42, b"\xff\xff\xff\x7f"), (20, &[0xff; 8]), (42, &[0xff; 4])];
    check(
        "Z12",
        &fields.map(|(at, value)| set_central(&plain, "archive/data/0", at, value)),
        &["zip-bounds"],
    );
    let short = Entry { extra: vec![1, 0, 4, 0, 1, 2, 3, 4], ..Entry::new("archive/z", "") };
    let short = Pth { extra: vec![short], ..Pth::default() }.bytes();
    check("Z12", &[set_central(&short, "archive/z", 20, &[0xff; 8])], &["zip-bounds"]);
    check(
        "Z13",
        &[set_end(&plain, 8, &[0xff; 4]), set_end(&plain, 12, &[0xff; 4]), set_end(&plain, 16, &[0xfe; 4])],
        &["zip-bounds"],
    );
}

#[test]
fn z14_to_z17_names_numbers_and_methods() {
    let names = ["archive/../../x", "/etc/cron.d/x", "..\\x", "archive/a\u{1}b"];
    check("Z14", &[Pth::with(&names.map(|n| (n, b"x".to_vec())))], &["ok"]);
    let unicode_path = [b"\x75\x70\x15\0\x01".to_vec(), vec![0; 4], b"archive/data.pkl".to_vec()].concat();
    let renamed = Entry { extra: unicode_path, ..Entry::new("archive/data/9", program(&[evil()])) };
    check("Z15", &[Pth { extra: vec![renamed], ..Pth::default() }.bytes()], &["ok"]);
    let many = (0..100_000).map(|i| Entry::new(&format!("archive/x{i}"), "")).collect();
    check("Z16", &[Pth { extra: many, ..Pth::default() }.bytes()], &["zip-entries"]);
    let many = (0..70_000).map(|i| Entry::new(&format!("archive/x{i}"), "")).collect();
    check("Z16", &[Pth { extra: many, ..Pth::default() }.bytes()], &["ok"]);
    check(
        "Z17",
        &[12u16, 14, 93, 99].map(|method| Pth { method, ..Pth::default() }.bytes()),
        &["zip-method"],
    );
}

#[test]
fn z18_to_z20_storages_byte_order_and_version() {
    let with = |storages: Vec<(&'static str, Vec<u8>)>| Pth { storages, ..Pth::default() }.bytes();
    check_each(
        "Z18",
        &[
            (with(vec![]), "storage-missing"),
            (with(vec![("0", vec![0; 15])]), "storage-size"),
            (with(vec![("0", vec![0; 17])]), "storage-size"),
        ],
    );
    let (state, _) = read(&with(vec![("0", vec![0; 16]), ("9", vec![0; 9])])).unwrap();
    assert!(state.notes.iter().any(|n| n.contains("unused storages")), "Z18: {:?}", state.notes);
    let order = |order: &str| {
        let big: Vec<u8> = [1f32, 2., 3., 4.].iter().flat_map(|v| v.to_be_bytes()).collect();
        Pth { order: Some(order.into()), storages: vec![("0", big)], ..Pth::default() }.bytes()
    };
    assert_eq!(read(&order("big")).unwrap().1[0].2, f32s(&[1., 2., 3., 4.]), "Z19");
    check("Z19", &[order("evil"), order(&"x".repeat(1 << 20)), order("")], &["byteorder"]);
    check("Z19", &[Pth { order: None, ..Pth::default() }.bytes()], &["ok"]);
    let version = |text: &str| {
        let mut entries = Pth::default().entries();
        entries.iter_mut().filter(|e| e.name.ends_with(b"version")).for_each(|e| e.data = text.into());
        archive(&entries)
    };
    check("Z20", &["99999999999999999999", "-1", "11", "x"].map(version), &["version"]);
    check("Z20", &["2", "10\n"].map(version), &["ok"]);
    let hidden = [("archive/.storage_alignment", b"0".to_vec()), ("archive/.format_version", b"x".to_vec())];
    check("Z20", &[Pth::with(&hidden)], &["ok"]);
}

#[test]
fn z23_z24_other_formats() {
    let files: [&[u8]; 9] = [
        b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\x89PNG\r\n\x1a\n",
        b"",
        b"P",
        b"<!DOCTYPE html><html>404",
        b"{\"a\": 1}",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x1f\x8b\x08\0\0\0\0\0",
        b"hello, this is a text file\n",
    ];
    check("Z24", &files.map(<[u8]>::to_vec), &["format"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    std::fs::write(&path, plain()).unwrap();
    assert_eq!(resnet_convert::source::read(&path).unwrap().tensors.len(), 1, "Z23: the name does not count");
    for path in [dir.path(), "/dev/zero".as_ref(), "/nowhere/at/all".as_ref()] {
        let error = resnet_convert::source::read(path).unwrap_err();
        assert!(matches!(error, resnet_convert::Error::Io { .. }), "{}: {error}", path.display());
    }
}

#[test]
fn any_root_folder_name() {
    for top in ["archive", "resnet50-0676ba61", "ä ö", "x.pth", "data", ".", "data.pkl"] {
        let file = Pth { top, storages: vec![("0", f32s(&[1., 2., 3., 4.]))], ..Pth::default() }.bytes();
        let (state, tensors) = read(&file).unwrap_or_else(|e| panic!("{top}: {e}"));
        assert_eq!(tensors[0].2, f32s(&[1., 2., 3., 4.]), "{top}");
        assert!(state.notes.is_empty(), "{top}: {:?}", state.notes);
    }
}

/// PyTorch writes data descriptors after the data.
#[test]
fn descriptors_are_compared() {
    let mut entries = ones().entries();
    entries.iter_mut().for_each(|e| e.descriptor = true);
    let good = archive(&entries);
    assert_eq!(read(&good).unwrap().1[0].2, [1; 16]);
    let crc = crc32fast::hash(&[1; 16]).to_le_bytes();
    check(
        "descriptor",
        &[patch(&good, &[b"PK\x07\x08", &crc[..]].concat(), b"PK\x07\x08abcd")],
        &["zip-mismatch"],
    );
    check("descriptor", &[patch(&good, b"PK\x07\x08", b"PK\x07\x09")], &["zip-mismatch"]);
}

#[test]
fn s01_to_s05_torchscript() {
    let constants = ("archive/constants.pkl", b"\x80\x02).".to_vec());
    let code = ("archive/code/__torch__.py", b"op_version_set = 1\n".to_vec());
    let (state, _) = read(&Pth::with(&[constants.clone(), code])).unwrap();
    assert_eq!(state.container, resnet_convert::Format::TorchScript, "S01");
    assert!(state.notes.iter().any(|n| n.contains("code was ignored")), "S01");
    let script = |body: &[Vec<u8>], constants: &[u8]| {
        let extra = vec![Entry::new("archive/constants.pkl", constants)];
        Pth { pickle: program(body), extra, ..Pth::default() }.bytes()
    };
    let module = [g("__torch__", "Net"), b")\x81}".to_vec(), s("w"), tensor(), b"sb".to_vec()];
    assert_eq!(read(&script(&module, b"\x80\x02).")).unwrap().1[0].0, "w", "S02");
    let bad = [b"\x80\x02".to_vec(), g("torch._tensor", "_rebuild_from_type_v2"), b")R.".to_vec()].concat();
    check("S03", &[script(&module, &bad)], &["ok"]);
    let tag =
        [g("torch.jit._pickle", "restore_type_tag"), t(&[b"]".to_vec(), s("List[int]")]), b"R".to_vec()];
    check("S04", &[script(&tag, b"\x80\x02).")], &["no-tensors"]);
    let v1 = [Entry::new("m/model.json", b"[".repeat(1_000_000)), Entry::new("m/constants.pkl", "")];
    check("S05", &[zip::archive(&v1)], &["torchscript-v1"]);
    check("no checkpoint", &[archive(&[Entry::new("readme.txt", "x")])], &["zip-layout"]);
    check("empty", &[pth(program(&[b"}".to_vec()]))], &["no-tensors"]);
}
