//! Rows O: ONNX.

use std::path::Path;

use resnet_convert::{ConvertOptions, Error, source};

use super::{check, check_each, outcome, read};
use crate::build::Random;
use crate::build::onnx::{Tensor, bytes, end, model, node, number, tensors, varint};

fn external<'a>(entries: &[(&'a str, &'a str)]) -> Vec<u8> {
    tensors(&[Tensor { raw: None, external: entries.to_vec(), ..Tensor::default() }])
}

/// Returns the outcome of a model in `folder`.
fn in_folder(folder: &Path, model: &[u8]) -> String {
    let path = folder.join("model.onnx");
    std::fs::write(&path, model).unwrap();
    match source::read(&path) {
        Ok(state) => match state.tensors.iter().try_for_each(|(_, t)| t.read().map(drop)) {
            Ok(()) => "ok".into(),
            Err(e) => e.to_string(),
        },
        Err(Error::Fault { fault, .. }) => fault.code.to_string(),
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn o01_external_files_are_in_the_models_folder() {
    let dir = tempfile::tempdir().unwrap();
    let long = "a/".repeat(4000) + "x";
    let paths = [
        "../../etc/passwd",
        "a/../../x",
        "/etc/passwd",
        "C:\\x",
        "\\\\host\\x",
        "",
        ".",
        "a\0b",
        "..",
        "./",
        &long,
    ];
    for path in paths {
        let found = in_folder(dir.path(), &external(&[("location", path)]));
        assert!(["external-path", "limit", "read"].contains(&found.as_str()), "{path:.20}: {found}");
        assert!(found != "read" || path == long, "{path:.20}");
        // Without a folder there is no file.
        assert!(["external-path", "limit"].contains(&outcome(&external(&[("location", path)])).as_str()));
    }
}

#[cfg(unix)]
#[test]
fn o02_links_do_not_leave_the_folder() {
    use std::os::unix::fs::symlink;
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("w.bin"), [0; 16]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    symlink(outside.path().join("w.bin"), at("link.bin")).unwrap();
    symlink(outside.path(), at("folder")).unwrap();
    std::fs::write(at("twice.bin"), [0; 16]).unwrap();
    std::fs::hard_link(at("twice.bin"), at("hard.bin")).unwrap();
    std::fs::create_dir(at("sub")).unwrap();
    std::fs::write(at("sub/w.bin"), [0; 16]).unwrap();
    symlink("sub/w.bin", at("inner.bin")).unwrap();
    for (location, expected) in [
        ("link.bin", "external-path"),
        ("folder/w.bin", "external-path"),
        ("hard.bin", "external-path"),
        ("sub", "external-path"),
        ("missing.bin", "read"),
        ("sub/w.bin", "ok"),
        ("inner.bin", "ok"),
    ] {
        let model = external(&[("location", location), ("length", "16")]);
        assert_eq!(in_folder(dir.path(), &model), expected, "{location}");
    }
    // Hugging Face cache: the model and its external files are links into `blobs`.
    let (blobs, names) = (at("blobs"), at("snapshot"));
    std::fs::create_dir(&blobs).unwrap();
    std::fs::create_dir(&names).unwrap();
    std::fs::write(blobs.join("1"), external(&[("location", "w.bin")])).unwrap();
    std::fs::write(blobs.join("2"), [0; 16]).unwrap();
    symlink("../blobs/1", names.join("model.onnx")).unwrap();
    symlink("../blobs/2", names.join("w.bin")).unwrap();
    assert_eq!(source::read(&names.join("model.onnx")).unwrap().tensors.len(), 1);
}

#[test]
fn o03_o04_offsets_of_external_data_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("w.bin"), [7; 40]).unwrap();
    let huge = (1u64 << 63).to_string();
    for (offset, len, expected) in [
        ("-1", "16", "external-bounds"),
        ("0", "-1", "external-bounds"),
        ("x", "16", "external-bounds"),
        ("+1", "16", "external-bounds"),
        (&huge, "16", "external-bounds"),
        ("18446744073709551615", "16", "external-bounds"),
        ("0", "1125899906842624", "external-bounds"),
        ("0", "15", "external-bounds"),
        ("25", "16", "external-bounds"),
        ("", "", "external-bounds"),
        ("24", "16", "ok"),
    ] {
        let model = external(&[("location", "w.bin"), ("offset", offset), ("length", len)]);
        assert_eq!(in_folder(dir.path(), &model), expected, "{offset} {len}");
    }
    for (entries, expected) in [
        (vec![("location", "w.bin")], "ok"),
        (vec![("location", "w.bin"), ("__class__", "x")], "ok"),
        (vec![("location", "w.bin"), ("location", "../x")], "external-key"),
        (vec![("offset", "0")], "external-path"),
    ] {
        assert_eq!(in_folder(dir.path(), &external(&entries)), expected, "{entries:?}");
    }
    // Many tensors that share the same bytes are rejected.
    let names: Vec<String> = (0..20).map(|i| format!("w{i}")).collect();
    let many = names.iter().map(|name| Tensor {
        name,
        raw: None,
        external: vec![("location", "w.bin")],
        ..Tensor::default()
    });
    assert_eq!(in_folder(dir.path(), &tensors(&many.collect::<Vec<_>>())), "tensor-bytes");
}

#[test]
fn o05_nested_graphs_are_never_entered() {
    for depth in [10, 60, 5000] {
        let mut graph = bytes(2, "g");
        for _ in 0..depth {
            let attribute = [bytes(1, "then_branch"), number(20, 5), bytes(6, &graph)].concat();
            graph = bytes(1, [bytes(4, "If"), bytes(2, "y"), bytes(5, attribute)].concat());
        }
        let file = model(&[graph, end(11, "x"), end(12, "y")].concat());
        check("O05", std::slice::from_ref(&file), &["ok"]);
        assert!(conversion_error(&file).contains("If"), "{}", conversion_error(&file));
    }
}

/// Returns the error of converting a model.
fn conversion_error(model: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, model).unwrap();
    resnet_convert::open(&path, &ConvertOptions::default()).unwrap_err().to_string()
}

#[test]
fn o06_o14_malformed_protobuf_is_an_error() {
    let head = number(1, 9);
    let with = |tail: Vec<u8>| [head.clone(), tail].concat();
    let opset = bytes(8, number(2, 17));
    let after = |tail: Vec<u8>| [head.clone(), opset.clone(), tail].concat();
    check("O06", &[vec![0xff; 11], vec![0x0b; 1000], vec![0x0e], vec![0, 0]], &["format", "text"]);
    let bad = [
        after(vec![0xff; 11]),
        after(vec![0x0b; 1000]),
        after(vec![0x0e]),
        after(vec![0, 0]),
        with([vec![0x3a], varint(1 << 40), b"x".to_vec()].concat()),
        with([vec![0x3a], vec![0xff; 9], vec![0x7f]].concat()),
        tensors(&[Tensor { raw: None, more: bytes(4, [0; 7]), ..Tensor::default() }]),
        tensors(&[Tensor {
            raw: None,
            more: [varint(4 << 3 | 2), varint(1 << 30)].concat(),
            ..Tensor::default()
        }]),
        // A tensor that exceeds its graph.
        after([vec![0x3a, 2], vec![0x2a, 40], vec![0; 60]].concat()),
    ];
    check("O06, O14", &bad, &["protobuf"]);
}

#[test]
fn o07_o09_sizes_match_shapes() {
    let shaped = |dims: &[i64]| tensors(&[Tensor { dims: dims.to_vec(), ..Tensor::default() }]);
    let bad = [
        shaped(&[5]),
        shaped(&[3]),
        shaped(&[-4]),
        shaped(&[1 << 32, 1 << 32]),
        shaped(&[1 << 62, 4]),
        shaped(&[0, i64::MIN]),
        shaped(&[0]),
    ];
    check("O07", &bad, &["tensor-size"]);
    let listed = |n: usize| Tensor { raw: None, more: bytes(4, vec![0; n]), ..Tensor::default() };
    check_each(
        "O09",
        &[
            (tensors(&[listed(12)]), "tensor-size"),
            (tensors(&[listed(20)]), "tensor-size"),
            (tensors(&[listed(15)]), "protobuf"),
            (tensors(&[listed(16)]), "ok"),
            (tensors(&[Tensor { dims: vec![1; 17], ..Tensor::default() }]), "limit"),
        ],
    );
    // f16 in `int32_data`: 65535 is valid, 65536 is not.
    let half = |value: i64| Tensor {
        dims: vec![1],
        data_type: 10,
        raw: None,
        more: number(5, value),
        ..Tensor::default()
    };
    check_each("O09", &[(tensors(&[half(0xffff)]), "ok"), (tensors(&[half(0x10000)]), "integer")]);
    assert_eq!(read(&tensors(&[half(0x3c00)])).unwrap().1[0].2, [0, 0x3c]);
}

#[test]
fn o08_o10_dtypes_are_supported_or_rejected() {
    let typed = |data_type| tensors(&[Tensor { data_type, ..Tensor::default() }]);
    check("O08", &[typed(0), typed(8), typed(999), typed(-1)], &["dtype"]);
    let twice = Tensor { more: bytes(4, [0; 16]), ..Tensor::default() };
    check("O08", &[tensors(&[twice])], &["ambiguous"]);
    let nibbles = |data_type| {
        tensors(&[Tensor { data_type, dims: vec![3], raw: Some(vec![0x12, 3]), ..Tensor::default() }])
    };
    check("O10", &[nibbles(21), nibbles(22), nibbles(23), nibbles(17)], &["unsupported"]);
}

#[test]
fn o11_names_are_unique() {
    let named = |name| Tensor { name, ..Tensor::default() };
    check_each(
        "O11",
        &[
            (tensors(&[named("w"), named("w")]), "duplicate-name"),
            (tensors(&[named("")]), "name"),
            (tensors(&[named("a\0b")]), "name"),
            (tensors(&[named(&"n".repeat(1 << 20))]), "name"),
        ],
    );
    // Old files list initializers as inputs, too.
    let both = [bytes(5, Tensor::default().bytes()), end(11, "w")].concat();
    check("O11", &[model(&both)], &["ok"]);
}

#[test]
fn o12_many_small_items_are_fast() {
    let names: Vec<String> = (0..20_000).map(|i| format!("w{i}")).collect();
    let many: Vec<Tensor> = names
        .iter()
        .map(|name| Tensor { name, dims: vec![1], raw: Some(vec![0; 4]), ..Tensor::default() })
        .collect();
    check("O12", &[tensors(&many)], &["ok"]);
    // Empty messages are two bytes each.
    let empty = |tag| model(&bytes(tag, []).repeat(100_001));
    check("O12", &[empty(1), empty(5)], &["limit"]);
    let attributes = bytes(1, bytes(5, []).repeat(100_000));
    let inputs = bytes(1, bytes(1, []).repeat(100_000));
    let types = bytes(11, bytes(2, bytes(1, bytes(2, bytes(1, []).repeat(20_000)))));
    let dims = bytes(5, number(1, 1).repeat(100_000));
    check("O12", &[model(&attributes), model(&inputs), model(&types), model(&dims)], &["limit"]);
}

#[test]
fn o13_broken_links_name_their_node() {
    let graph = |nodes: Vec<Vec<u8>>| {
        model(&[bytes(5, Tensor::default().bytes()), nodes.concat(), end(11, "x"), end(12, "y")].concat())
    };
    let cycle = graph(vec![node("Relu", &["z"], "y"), node("Relu", &["y"], "z")]);
    assert!(
        conversion_error(&cycle).contains("z (Relu)") || conversion_error(&cycle).contains("y (Relu)"),
        "{}",
        conversion_error(&cycle)
    );
    assert!(conversion_error(&cycle).ends_with("[cycle]"));
    let own = graph(vec![node("Add", &["x", "y"], "y")]);
    assert!(conversion_error(&own).ends_with("[cycle]"), "{}", conversion_error(&own));
    let lost = graph(vec![node("Relu", &["nowhere"], "y")]);
    assert!(
        conversion_error(&lost).contains("y (Relu): undefined input `nowhere`"),
        "{}",
        conversion_error(&lost)
    );
    let twice = graph(vec![node("Relu", &["x"], "y"), node("Relu", &["x"], "y")]);
    assert!(conversion_error(&twice).ends_with("[duplicate-name]"));
    let idle = graph(vec![]);
    assert!(conversion_error(&idle).contains("does not depend on the input"), "{}", conversion_error(&idle));
    // The longest allowed chain does not overflow the stack.
    let names: Vec<String> = (0..90_000).map(|i| format!("v{i}")).collect();
    let mut chain: Vec<Vec<u8>> = names.windows(2).map(|w| node("Relu", &[&w[0]], &w[1])).collect();
    chain.push(node("Relu", &["x"], "v0"));
    chain.push(node("Relu", &["v89999"], "y"));
    assert!(conversion_error(&graph(chain)).contains("no network of the zoo"));
}

#[test]
fn o16_cut_and_changed_models_are_errors_or_harmless() {
    let file =
        tensors(&[Tensor::default(), Tensor { name: "v", data_type: 7, dims: vec![2], ..Tensor::default() }]);
    for cut in 0..file.len() {
        let found = outcome(&file[..cut]);
        assert!(["protobuf", "format", "no-tensors"].contains(&found.as_str()), "{cut}: {found}");
    }
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut file = file.clone();
            file[at] ^= 1 << bit;
            let _ = read(&file);
        }
    }
}

#[test]
fn whole_models_survive_random_edits() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/onnx");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    let mut random = Random(16);
    let mut errors = 0;
    for name in ["torchscript-17.onnx", "tensorflow.onnx", "caffe2.onnx", "dynamo-norms.onnx"] {
        let original = std::fs::read(folder.join(name)).unwrap();
        for _ in 0..60 {
            let mut file = original.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(file.len());
                match random.below(3) {
                    0 => file[at] = random.next() as u8,
                    1 => file[at] ^= 1 << random.below(8),
                    _ => drop(file.drain(at..(at + 1 + random.below(8)).min(original.len() / 2).max(at))),
                }
            }
            std::fs::write(&path, &file).unwrap();
            errors += usize::from(resnet_convert::open(&path, &ConvertOptions::default()).is_err());
        }
    }
    assert!(errors > 60, "{errors}");
}

#[test]
fn constants_are_limited_in_size() {
    // One element expanded to 2⁴⁰, and a product of two such constants.
    let shape = Tensor {
        name: "shape",
        dims: vec![1],
        data_type: 7,
        raw: Some((1u64 << 40).to_le_bytes().to_vec()),
        ..Tensor::default()
    };
    let graph = [
        bytes(5, shape.bytes()),
        node("ConstantOfShape", &["shape"], "w"),
        node("Mul", &["w", "w"], "v"),
        node("Add", &["x", "v"], "y"),
        end(11, "x"),
        end(12, "y"),
    ];
    assert!(conversion_error(&model(&graph.concat())).ends_with("[tensor-bytes]"));
    let shape = Tensor {
        name: "shape",
        dims: vec![1],
        data_type: 7,
        raw: Some((1u64 << 28).to_le_bytes().to_vec()),
        ..Tensor::default()
    };
    let graph = [bytes(5, shape.bytes()), graph[1..].concat()];
    assert!(conversion_error(&model(&graph.concat())).ends_with("[tensor-bytes]"));
}
