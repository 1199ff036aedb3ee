use super::{check, read};
use crate::build::f32s;
use crate::build::pickle::*;
use crate::build::zip::{Pth, pth};

/// Returns a zip whose pickle is `body` after the header of protocol 2.
fn p2(body: &[&[u8]]) -> Vec<u8> {
    pth([b"\x80\x02", &body.concat()[..]].concat())
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    pth(bytes.to_vec())
}

fn rebuild() -> Vec<u8> {
    g("torch._utils", "_rebuild_tensor_v2")
}

/// Returns a call of a global with one string.
fn call(module: &str, name: &str) -> Vec<u8> {
    p2(&[&g(module, name), &s("x"), b"\x85R."])
}

fn storages(numels: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let storage = |n: &Vec<u8>| Storage { numel: n.clone(), ..Storage::default() };
    numels.iter().map(|n| pth(sd(&[("w", tensor_of(storage(n)))]))).collect()
}

#[test]
fn p01_to_p04_system_calls() {
    for version in [0u8, 2, 4] {
        check("P01", &[raw(&[&[0x80, version][..], &evil(), b"."].concat())], &["unsafe-global"]);
    }
    let text = read(&p2(&[&evil(), b"."])).unwrap_err().to_string();
    assert_eq!(text, "archive/data.pkl, byte 2: unsafe global `posix.system` [unsafe-global]");
    check("P02", &[p2(&[&evil(), b"0", &ok()[2..]])], &["unsafe-global"]);
    let shuffled = b"\x80\x04Vos\np2\n0Vsystem\np3\n0Vtorch\np0\n0VLongStorage\np1\n0g2\ng3\n\x93(Vx\ntR.";
    check("P03", &[raw(shuffled)], &["unsafe-global"]);
    check("P04", &[raw(b"S'os'\nS'system'\n\x93S'x'\n\x85R.")], &["unsafe-global"]);
}

#[test]
fn p05_to_p11_names_and_objects() {
    check("P05", &[raw(b"\x80\x04\x8c\x02os\x94h\x03h\x00\x93K\x42.")], &["memo-missing"]);
    check("P06", &[raw(b"\x80\x04J*\0\0\0\x94\x8c\x02os\x94h\x00h\x01\x93K\x42.")], &["type"]);
    let dotted =
        [("builtins", "eval.__call__"), ("pathlib", "os.system"), ("torch.serialization", "os.system")];
    check("P07", &dotted.map(|(m, n)| call(m, n)), &["unsafe-global"]);
    check(
        "P08",
        &[raw(b"(S'x'\ni__builtin__\nexec\n."), raw(b"(imodule\nName\n.")],
        &["unsafe-global", "opcode"],
    );
    check("P09", &[raw(b"\x80\x04(\x8c\x07smtplib\x8c\x04SMTP\x93\x8c\x01ho0N.")], &["unsafe-global"]);
    check("P09", &[raw(b"\x80\x04(\x8c\x01a\x8c\x01b\x93\x8c\x01ho0N.")], &["opcode"]);
    let popen = [
        p2(&[&g("subprocess", "Popen"), b")\x81."]),
        raw(b"\x80\x04\x8c\nsubprocess\x8c\x05Popen\x93)}\x92."),
    ];
    check("P10", &popen, &["unsafe-global"]);
    let extensions: [&[u8]; 3] = [b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\0\0\0."];
    check("P11", &extensions.map(|e| p2(&[e])), &["opcode"]);
}

#[test]
fn p12_to_p18_calls_and_ids() {
    let ids =
        [s("x"), t(&[s("module"), g("m", "Net"), s("a"), s("b")]), b")".to_vec(), t(&[t(&[s("storage")])])];
    check("P12", &ids.map(|id| p2(&[&id, b"Q."])), &["persid"]);
    check("P12", &[p2(&[&s("storage"), b"\x85Q."])], &["args"]);
    check("P12", &[raw(b"Pstorage\n.")], &["persid"]);
    let namespace =
        p2(&[&g("argparse", "Namespace"), b")\x81}", &s("__class__"), &g("os", "system"), b"sb."]);
    check("P13", &[namespace], &["unsafe-global"]);
    let state = [b"}".to_vec(), s("__reduce_ex__"), b"Nsb".to_vec()].concat();
    let dict = [&ok()[..ok().len() - 1], &state, b"."].concat();
    check("P13", &[pth(dict)], &["ok"]);
    let nested =
        [g("_pickle", "loads"), b"B".to_vec(), (ok().len() as u32).to_le_bytes().to_vec(), ok()].concat();
    check("P14", &[p2(&[&nested, b"\x85R."])], &["unsafe-global"]);
    let partial = [g("functools", "partial"), g("torch.serialization", "load")].concat();
    check("P14", &[p2(&[&partial, b"\x85R."])], &["unsafe-global"]);
    let tricks = [
        ("_operator", "methodcaller"),
        ("operator", "attrgetter"),
        ("pkgutil", "resolve_name"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("fickling.hook", "remove_hook"),
    ];
    check("P15, P16", &tricks.map(|(m, n)| call(m, n)), &["unsafe-global"]);
    check("P17", &[pth([ok(), b"\x80\x02".to_vec(), evil(), b".".to_vec()].concat())], &["trailing-data"]);
    check("P18", &[p2(&[&evil(), b"\xff"])], &["unsafe-global"]);
    check("P18", &[p2(&[b"cmod\n\xf8\n."])], &["text"]);
}

/// Covers all samples of blocklist bypasses: globals that are not on the allowlist are opaque.
#[test]
fn unknown_names_are_opaque_and_listed() {
    let unknown =
        ["torch.utils.model_zoo load_url", "a.b C.D", "numpy.core.multiarray nothing", "evil FloatStorage"];
    for name in unknown {
        let (module, attribute) = name.split_once(' ').unwrap();
        let object = [g(module, attribute), s("x"), b"\x85R".to_vec()].concat();
        let (state, tensors) = read(&pth(sd(&[("e", object), ("w", tensor())]))).unwrap();
        assert_eq!(state.opaque, [format!("{module}.{attribute}")]);
        assert_eq!(tensors.len(), 1);
    }
}

#[test]
fn p19_p20_cuts_and_single_instructions() {
    for n in 0..ok().len() {
        check("P19", &[raw(&ok()[..n])], &["eof", "length"]);
    }
    let kinds = ["stack", "opcode", "integer", "persid", "text", "memo-missing", "no-tensors", "eof"];
    for opcode in 0..=255u8 {
        for mark in [&b""[..], b"("] {
            let body = [&b"\x80\x02"[..], mark, &[opcode], &[0; 9], b"\n\n."].concat();
            check("P20", &[pth(body)], &kinds);
        }
    }
}

#[test]
fn p21_to_p24_protocols_frames_lengths_and_numbers() {
    check("P21", &[raw(&[b"\x80\xff", &ok()[2..]].concat())], &["protocol"]);
    check("P21", &[raw(&[b"\x80\x02", &ok()[..]].concat())], &["ok"]);
    check("P21", &[pth(sd(&[("w", [b"\x80\x02".to_vec(), tensor()].concat())]))], &["ok"]);
    let framed = |n: u64, body: &[u8]| raw(&[b"\x80\x04\x95", &n.to_le_bytes()[..], body].concat());
    let nested = [&b"N\x95"[..], &2u64.to_le_bytes(), b"N."].concat();
    let straddling = [&b"B\x07\x01\0\0"[..], &[0; 263], b"."].concat();
    check("P22", &[framed(1 << 63, b"N."), framed(9999, b"N.")], &["frame"]);
    check("P22", &[framed(2, &straddling), framed(30, &nested)], &["frame"]);
    check("P22", &[framed(11, &nested), framed(3, b"N..")], &["frame"]);
    check("P23", &[raw(b"\x80\x05X\xff\xff\xff\xffa")], &["length"]);
    let long = (1u64 << 40).to_le_bytes();
    check("P23", &[0x8d, 0x8e, 0x96].map(|op| raw(&[&[0x80, 5, op], &long[..], b"a"].concat())), &["length"]);
    check("P23", &[raw(b"\x80\x02\x8b\xff\xff\xff\xff"), raw(b"\x80\x02\x8b\xff\xff\xff\x7f")], &["length"]);
    let number = |k: u8| [vec![0x8a, k], vec![0x7f; usize::from(k)]].concat();
    check("P24", &storages(&[number(0)]), &["bounds", "storage-size"]);
    check("P24", &storages(&[number(8)]), &["storage-size"]);
    check("P24", &storages(&[number(9), number(255)]), &["integer"]);
    check("P24", &storages(&[b"\x8a\x01\xff".to_vec()]), &["storage-size"]);
    check("P24", &storages(&[b"\x8a\x01\x04".to_vec(), b"\x8a\x03\x04\0\0".to_vec()]), &["ok"]);
}

#[test]
fn p25_to_p29_sharing_nesting_and_cycles() {
    for early in [true, false] {
        let mut laughs = b"\x80\x02".to_vec();
        for i in 0..10u8 {
            laughs.push(b']');
            laughs.extend(if early { vec![b'q', i] } else { vec![] });
            laughs.push(b'(');
            laughs.extend(if i == 0 { s("x").repeat(10) } else { [b'h', i - 1].repeat(10) });
            laughs.push(b'e');
            laughs.extend(if early { vec![] } else { vec![b'q', i] });
        }
        check("P25", &[pth([&laughs[..], b"."].concat())], &["stack"]);
    }
    let mut tree = [b"\x80\x02]q\x00".to_vec(), tensor(), b"a0".to_vec()].concat();
    for i in 1..12u8 {
        tree.extend([b"]q", &[i][..], b"(", &[b'h', i - 1].repeat(10), b"e0"].concat());
    }
    tree.extend(b"h\x0b.");
    check("P25", &[pth(tree)], &["expansion", "tensor-bytes"]);
    check("P26", &[p2(&[b"(((", &s("x"), b"222l222l222l."])], &["no-tensors"]);
    check("P27", &[p2(&[b")", &b"\x85".repeat(1_000_000), b"."])], &["depth"]);
    check("P28", &[p2(&[b"]q\0h\0a."]), p2(&[b"}q\0", &s("s"), b"h\0s."])], &["cycle"]);

    let shared = [
        b"}(".to_vec(),
        s("a"),
        b"}q\x05".to_vec(),
        s("w"),
        tensor(),
        b"s".to_vec(),
        s("b"),
        b"h\x05u".to_vec(),
    ];
    let names = read(&pth(program(&shared))).unwrap().1.into_iter().map(|(n, _, _)| n);
    assert_eq!(names.collect::<Vec<_>>(), ["a.w", "b.w"], "P29");
}

#[test]
fn p30_to_p35_targets_keys_memo_and_text() {
    let on_tensor: [Vec<u8>; 4] = [
        [i(0), i(9), b"s.".to_vec()].concat(),
        [b"(".to_vec(), i(0), i(9), b"u.".to_vec()].concat(),
        [i(9), b"a.".to_vec()].concat(),
        [t(&[i(1)]), b"b.".to_vec()].concat(),
    ];
    check("P30", &on_tensor.map(|rest| p2(&[&tensor(), &rest])), &["type"]);
    check("P30", &[p2(&[&Storage::default().id(), &i(9), b"a."])], &["type"]);
    check("P31", &[p2(&[b"}(", &s("a"), b"u."])], &["arity"]);
    let keyed = |key: &[u8]| pth(program(&[dict(&[(key.to_vec(), tensor())])]));
    let nan = [&b"G\x7f\xf8"[..], &[0; 6]].concat();
    check("P31", &[b"}".to_vec(), b"]".to_vec(), tensor(), b"N".to_vec(), nan].map(|k| keyed(&k)), &["type"]);
    assert_eq!(read(&keyed(&i(3))).unwrap().1[0].0, "3", "P31");
    let twice = sd(&[("w", tensor()), ("w", Tensor::view(1, &[2], &[1]).code())]);
    check("P31", &[pth(twice)], &["duplicate-name"]);
    check(
        "P31",
        &[pth(program(&[dict(&[(s("a"), dict(&[(s("b"), tensor())])), (s("a.b"), tensor())])]))],
        &["duplicate-name"],
    );
    let far = [b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff0".to_vec(), ok()[2..].to_vec()].concat();
    check("P32", &[p2(&[&far])], &["ok"]);
    for index in ["1000000000000000000000000000000", "-1", ""] {
        check("P32", &[p2(&[b"Np", index.as_bytes(), b"\n."])], &["integer"]);
    }
    check(
        "P33",
        &[raw(&[b"I".to_vec(), b"9".repeat(1_000_000), b"\n.".to_vec()].concat())],
        &["line-length"],
    );
    check("P33", &[&b"Ix\n."[..], b"I\n.", b"Lx\n.", b"Fz\n."].map(raw), &["integer"]);
    check("P33", &[&b"I01\n."[..], b"I00\n.", b"Fnan\n.", b"F1e999\n."].map(raw), &["no-tensors"]);
    let endless = [&b"c"[..], b"S'", b"V", b"i"].map(|op| raw(&[op, &b"a".repeat(4 << 20)].concat()));
    check("P34", &endless, &["line-length"]);
    let named = |name: &[u8]| pth(program(&[dict(&[(s(name), tensor())])]));
    check(
        "P35",
        &[named(b""), named(b"a\0b"), named(&b"a".repeat(1 << 20)), named(&b"a".repeat(4097))],
        &["name"],
    );
    check("P35", &[named(b"\xed\xa0\x80")], &["text"]);
    check("P35", &[named(b"../../x"), named(b"\x1b[2J\x1b]0;x\x07"), named("\u{202e}".as_bytes())], &["ok"]);
}

#[test]
fn p36_to_p41_tensors() {
    let strings = t(&[s("a"), s("b"), s("c"), s("d"), b"N".to_vec(), b"N".to_vec()]);
    let args = [
        b")".to_vec(),
        b"N\x85".to_vec(),
        b"NN\x86".to_vec(),
        b"NNN\x87".to_vec(),
        s("x"),
        b"N".to_vec(),
        strings,
    ];
    let call = |args: Vec<u8>| p2(&[b"}", &s("w"), &rebuild(), &args, b"Rs."]);
    check("P36", &args.map(call), &["args"]);
    let ids = [
        t(&[s("storage")]),
        t(&[s("storage"), g("torch", "FloatStorage")]),
        t(&[s("storage"), s("FloatStorage"), s("0"), s("cpu"), i(4)]),
        t(&[s("storage"), g("torch", "FloatStorage"), i(0), s("cpu"), i(4)]),
        t(&[s("storage"), g("torch", "FloatStorage"), s("0"), b"N".to_vec(), i(4)]),
        t(&vec![s("storage"); 9]),
    ];
    let with = |id: Vec<u8>| Tensor { storage: [id, b"Q".to_vec()].concat(), ..Tensor::default() };
    check("P37", &ids.map(|id| pth(sd(&[("w", with(id).code())]))), &["args"]);
    check("P38", &storages(&[i(5), i(-1), i(1 << 62)]), &["storage-size"]);
    check("P38", &storages(&[i(3), i(0)]), &["bounds"]);
    let wild: &[(i64, &[i64], &[i64])] = &[
        (-1, &[4], &[1]),
        (4, &[1], &[1]),
        (1 << 62, &[4], &[1]),
        (0, &[-4], &[1]),
        (0, &[4], &[-1]),
        (0, &[1 << 32, 1 << 32], &[1, 1]),
        (0, &[i64::MAX, i64::MAX, 0], &[i64::MAX, i64::MAX, 1]),
        (0, &[2, 2], &[1]),
        (0, &vec![1; 100_000], &vec![1; 100_000]),
        (0, &[2, 3], &[3, 1]),
    ];
    for &(offset, size, stride) in wild {
        check("P39", &[pth(sd(&[("w", Tensor::view(offset, size, stride).code())]))], &["bounds"]);
    }
    check(
        "P40",
        &[pth(sd(&[("w", Tensor::view(0, &[1 << 21, 1 << 21], &[0, 0]).code())]))],
        &["tensor-bytes"],
    );
    let pair = sd(&[
        ("w", Tensor::view(0, &[2, 2], &[1, 2]).code()),
        ("v", Tensor::view(0, &[3, 2], &[1, 1]).code()),
    ]);
    let file = Pth { pickle: pair, storages: vec![("0", f32s(&[1., 2., 3., 4.]))], ..Pth::default() };
    let tensors = read(&file.bytes()).unwrap().1;
    assert_eq!(tensors[0].2, f32s(&[1., 3., 2., 4.]), "P41");
    assert_eq!(tensors[1].2, f32s(&[1., 2., 2., 3., 3., 4.]), "P41");
}

#[test]
fn p42_to_p50_kinds_of_tensors_and_limits() {
    let quantized = Storage { class: "QUInt8Storage", ..Storage::of("QUInt8Storage", "0", 16) };
    let scheme = t(&[g("torch", "per_tensor_affine"), [&b"G"[..], &[0; 8]].concat(), i(0)]);
    let args = t(&[
        quantized.id(),
        i(0),
        t(&[i(2), i(2)]),
        t(&[i(1 << 20), i(1)]),
        scheme,
        b"\x89".to_vec(),
        ordered_dict(),
    ]);
    let quantized = [g("torch._utils", "_rebuild_qtensor"), args, b"R".to_vec()].concat();
    check("P42", &[pth(sd(&[("w", quantized)]))], &["unsupported"]);
    let sparse =
        [g("torch._utils", "_rebuild_sparse_tensor"), t(&[b"N".to_vec(), b"N".to_vec()]), b"R".to_vec()]
            .concat();
    check("P42", &[pth(sd(&[("w", sparse)]))], &["unsupported"]);
    let from_type = g("torch._tensor", "_rebuild_from_type_v2");
    check("P43", &[pth(sd(&[("w", [from_type.repeat(10_000), b"N".to_vec()].concat())]))], &["no-tensors"]);
    let foreign = t(&[g("os", "system"), g("torch", "Tensor"), t(&[s("x")]), b"}".to_vec()]);
    check(
        "P43",
        &[pth(sd(&[("w", [from_type.clone(), foreign, b"R".to_vec()].concat())]))],
        &["unsafe-global"],
    );
    let mut deep = t(&[]);
    for _ in 0..100 {
        deep = t(&[from_type.clone(), g("torch", "Tensor"), deep, b"}".to_vec()]);
    }
    check("P43", &[pth(sd(&[("w", [from_type.clone(), deep, b"R".to_vec()].concat())]))], &["depth"]);
    for (module, class, expected) in [
        ("torch", "FooStorage", "dtype"),
        ("evil", "FloatStorage", "dtype"),
        ("torch", "ComplexFloatStorage", "storage-size"),
        ("torch.storage", "UntypedStorage", "storage-size"),
    ] {
        let storage = Storage { module, class, ..Storage::default() };
        check("P44", &[pth(sd(&[("w", tensor_of(storage))]))], &[expected]);
    }
    let two =
        Tensor { size: vec![2], storage: Storage::of("DoubleStorage", "0", 2).id(), ..Tensor::default() };
    check("P45", &[pth(sd(&[("a", tensor()), ("b", two.code())]))], &["ok"]);
    let three = tensor_of(Storage::of("FloatStorage", "0", 3));
    check("P45", &[pth(sd(&[("a", tensor()), ("c", three)]))], &["storage-conflict"]);
    let keys = ["../version", "/etc/passwd", "", "0/../1", "\0", &"k".repeat(1 << 20)];
    check(
        "P46",
        &keys.map(|k| pth(sd(&[("w", tensor_of(Storage::of("FloatStorage", k, 4)))]))),
        &["storage-missing"],
    );
    let array = [
        g("numpy.core.multiarray", "_reconstruct"),
        t(&[g("numpy", "ndarray"), t(&[i(0)]), s("b")]),
        b"R".to_vec(),
    ]
    .concat();
    let encoded = [g("_codecs", "encode"), t(&[s("\u{ff}"), s("latin1")]), b"R".to_vec()].concat();
    check("P47", &[pth(sd(&[("w", array), ("e", encoded)]))], &["unsupported"]);
    let joblib =
        [g("joblib.numpy_pickle", "NumpyArrayWrapper"), b")\x81}b".to_vec(), vec![0; 64], b".".to_vec()]
            .concat();
    check("P48", &[raw(&[&b"\x80\x04"[..], &joblib].concat())], &["not-a-torch-file"]);
    check("P49", &[raw(b"\x80\x05\x97."), raw(b"\x80\x05N\x98.")], &["opcode"]);
    check("P49", &[raw(b"\x80\x04(\x91."), raw(b"\x80\x04\x8f(K\x01\x90.")], &["no-tensors"]);
    check("P50", &[p2(&[&b"N0".repeat(5_000_000), b"N."])], &["opcode-count"]);
}
