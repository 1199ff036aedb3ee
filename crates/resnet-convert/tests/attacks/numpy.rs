use super::{check, check_each, read};
use crate::build::f32s;
use crate::build::npy::{header, npy, npz, raw};
use crate::build::pickle::evil;
use crate::build::zip::{Entry, archive};

const DATA: [u8; 16] = [0; 16];

fn array(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    raw([1, 0], &header(descr, fortran, shape), data)
}

fn f4(shape: &str) -> Vec<u8> {
    array("'<f4'", false, shape, &DATA)
}

/// Returns a file with this header, unpadded.
fn text(header: &str) -> Vec<u8> {
    raw([1, 0], header, &DATA)
}

#[test]
fn n01_n02_types() {
    check("N01", &[array("'|O'", false, "(1,)", &evil())], &["dtype"]);
    for descr in ["[('a','<f4'),('b','|O')]", "[]", "'<U4'", "'<M8[s]'", "'|V16'", "''", "'<f4\u{1b}[2J'"] {
        check("N02", &[array(descr, false, "(1,)", &DATA)], &["dtype"]);
    }
    let (_, tensors) = read(&array("'>f4'", false, "(4,)", &DATA.map(|_| 0x3f))).unwrap();
    assert_eq!(tensors[0].2, [0x3f; 16], "N02");
    let swapped = [1.5f32, -2.0].map(f32::to_be_bytes).concat();
    assert_eq!(read(&array("'>f4'", false, "(2,)", &swapped)).unwrap().1[0].2, f32s(&[1.5, -2.0]), "N02");
}

#[test]
fn n03_headers() {
    let bad = &["npy-header"];
    check("N03", &[text("__import__('os').system('touch CANARY')"), text("("), text(""), text("\n")], bad);
    check("N03", &[text(&format!("{{{}}}\n", " ".repeat(60_000))), text(&"(".repeat(9_000))], bad);
    check("N03", &[text(&format!("{{'descr': {}", "[".repeat(9_000)))], bad);
    let long = crate::build::overwrite(&raw([2, 0], "{}\n", &DATA), 8, &[0xff; 4]);
    check("N03", &[long], bad);
    let good = header("'<f4'", false, "(4,)");
    check("N03", &[text(good.trim_end())], bad);
    check("N03", &[text(&good.replace('\n', "\n\n")), text(&good.replace("{", "{'x': 1, "))], bad);
    check("N03", &[text(&good.replace("False", "0")), text(&good.replace("'<f4'", "'<f4"))], bad);
    check("N03", &[text(&good.replace("'<f4'", "u'<f4'")), text(&good.replace("'<f4'", "'\\x3cf4'"))], bad);
    check("N03", &[text(&good.replace("'fortran_order': False, ", ""))], bad);
    let (state, _) = read(&text(&good.replace("(4,)", "(4L,)"))).unwrap();
    assert_eq!((state.tensors[0].0.as_str(), state.tensors[0].1.shape()), ("arr_0", &[4][..]), "Python 2");
}

#[test]
fn n04_n05_shapes() {
    let size = &["tensor-size"];
    check(
        "N04",
        &["(4294967296, 4294967296)", "(5,)", "(1000000000000,)", "(4611686018427387904, 4)"].map(f4),
        size,
    );
    check(
        "N04",
        &["(-4,)", "(10**12,)", "(99999999999999999999,)", "(1e3,)", "(04,)", "('4',)"].map(f4),
        &["npy-header"],
    );
    check("N05", &["(4)", "4", "[4]", "(2 2)", "(,)", "(4,,)"].map(f4), &["npy-header"]);
    check("N05", &[f4(&format!("({})", "1, ".repeat(17)))], &["npy-header"]);
    check("N05", &[f4("(4,), 'shape': (2, 2)"), f4("(4,), 'x': 'y'")], &["npy-header"]);
    check(
        "N05",
        &[f4("(4,)"), f4("(2, 2)"), f4("( 2 ,2 , )"), f4(&format!("({})", "1, ".repeat(15) + "4"))],
        &["ok"],
    );
    let columns = array("'<f4'", true, "(2, 3)", &f32s(&[1., 4., 2., 5., 3., 6.]));
    let (_, tensors) = read(&columns).unwrap();
    assert_eq!((&tensors[0].1[..], &tensors[0].2), (&[2, 3][..], &f32s(&[1., 2., 3., 4., 5., 6.])), "N05");
    assert_eq!(read(&array("'<f8'", false, "()", &[7; 8])).unwrap().1[0].2, [7; 8], "a scalar");
    assert_eq!(read(&array("'<f8'", false, "(0, 3)", &[])).unwrap().1[0].1, [0, 3], "no element");
}

#[test]
fn n06_n07_archives() {
    // 20 MB of zeros from 20 kB; small constant arrays are ordinary.
    let zeros = |n: usize| npy("<f4", &[n], &vec![0; 4 * n]);
    check("N06", &[npz(&[("w".into(), zeros(5_000_000))], 8)], &["zip-ratio"]);
    let many: Vec<_> = (0..50).map(|n| (format!("w{n}"), zeros(100_000))).collect();
    check("N06", &[npz(&many, 8)], &["tensor-bytes"]);
    check("N06", &[npz(&[("bias".into(), zeros(2048))], 8)], &["ok"]);
    let a = npy("<f4", &[4], &DATA);
    check("N07", &[npz(&[("a".into(), a.clone()), ("a".into(), a.clone())], 0)], &["zip-duplicate"]);
    let mixed = archive(&[Entry::new("a.npy", &a), Entry::new("x.pkl", evil()), Entry::new("../x.npy", &a)]);
    let (state, tensors) = read(&mixed).unwrap();
    assert_eq!(tensors.iter().map(|t| t.0.as_str()).collect::<Vec<_>>(), ["a", "../x"], "N07");
    assert!(state.notes[0].contains("1 entries that are not arrays were ignored"), "N07: {:?}", state.notes);
    let objects =
        archive(&[Entry::new("a.npy", &a), Entry::new("o.npy", array("'|O'", false, "(1,)", &evil()))]);
    check("N07", &[objects], &["unsupported"]);
    check_each(
        "N07",
        &[
            (archive(&[Entry::new("a.npy", b"\x93NUMPX\x01\0\0\0")]), "format"),
            (archive(&[Entry::new(".npy", &a)]), "name"),
            (archive(&[Entry::new("a\0.npy", &a)]), "name"),
            (archive(&[Entry { method: 8, ..Entry::new("a.npy", &a[..60]) }]), "eof"),
            (archive(&[Entry { method: 8, ..Entry::new("a.npy", &a[..130]) }]), "tensor-size"),
            (archive(&[Entry::new("a.pkl", &a)]), "zip-layout"),
        ],
    );
    // Checksums and deflated data are checked when the array is read.
    let broken =
        crate::build::patch(&npz(&[("a".into(), npy("<f4", &[4], &[7; 16]))], 0), &[7; 16], &[8; 16]);
    check("N07", &[broken], &["crc"]);
}

#[test]
fn n08_n09_versions_and_ends() {
    let version = |v| raw(v, &header("'<f4'", false, "(4,)"), &DATA);
    check("N08", &[version([1, 0]), version([2, 0]), version([3, 0])], &["ok"]);
    check("N08", &[version([4, 0]), version([255, 0]), version([1, 1]), version([0, 0])], &["version"]);
    let good = f4("(4,)");
    check("N08", &[b"\x93NUM".to_vec()], &["format"]);
    for n in 6..good.len() {
        assert!(read(&good[..n]).is_err(), "N08, cut at {n}");
    }
    check("N09", &[[&good[..], &[0; 4]].concat()], &["trailing-data"]);
    let inside = npz(&[("a".into(), [&good[..], &[0; 4]].concat())], 8);
    check("N09", &[inside], &["trailing-data"]);
}
