//! Files larger than 32 bits count, and files that change while they are open.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use resnet_convert::{StateDict, source};

use crate::build::f32s;
use crate::build::legacy::{self, Legacy};
use crate::build::network::{self, small, tensors};
use crate::build::npy;
use crate::build::onnx::{Tensor as OnnxTensor, bytes, model, number, varint};
use crate::build::pickle::{Storage, Tensor, sd};
use crate::build::safetensors::{st, tensor as described};
use crate::build::sparse::{Sparse, Wide, archive64};
use crate::build::zip::Entry;

/// Elements of a tensor of five gibibytes.
const MANY: i64 = 5 << 28;

fn last() -> Vec<u8> {
    f32s(&[1.0, -2.0, 3.5, 1e-40])
}

/// The tensor `big` of this many f32 is told, and `w` behind it is read exactly.
#[track_caller]
fn check(what: &str, file: Sparse, many: i64) {
    let state = source::read_bytes(Arc::new(file)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let find = |name: &str| &state.tensors.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(find("big").elements(), many as usize, "{what}");
    assert_eq!(find("w").read().unwrap(), last(), "{what}");
}

fn object(legacy: bool) -> Vec<u8> {
    let view = || legacy.then(|| b"N".to_vec());
    let code = |key: &str, n: i64| {
        Tensor::whole(Storage { view: view(), ..Storage::of("FloatStorage", key, n) }, &[n]).code()
    };
    sd(&[("big", code("0", MANY)), ("w", code("1", 4))])
}

#[test]
fn zip_of_64_bits() {
    let whole = |name: &str, data: Vec<u8>| {
        let len = data.len() as u64;
        (Entry::new(name, data), len, len)
    };
    let big = 4 * MANY as u64;
    check(
        "zip",
        archive64(&[
            whole("archive/data.pkl", object(false)),
            (Entry::new("archive/data/0", []), big, big),
            whole("archive/data/1", last()),
        ]),
        MANY,
    );
}

/// A deflated array of more than 2 GiB: nothing but its header is inflated before somebody asks for it.
#[test]
fn deflated_arrays_of_more_than_2_gib() {
    let many = 600_000_000;
    let header = npy::raw([1, 0], &npy::header("'<f4'", false, &npy::shape(&[many])), &[0; 4096]);
    let start = {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&header).unwrap();
        encoder.finish().unwrap()
    };
    let size = 4 * many as u64 + header.len() as u64 - 4096;
    let big: Wide = (Entry { method: 8, ..Entry::new("big.npy", start) }, 700_000_000, size);
    let w = npy::npy("<f4", &[4], &last());
    let len = w.len() as u64;
    check("npz", archive64(&[big, (Entry::new("w.npy", w), len, len)]), many as i64);
}

#[test]
fn safetensors_of_64_bits() {
    let (big, end) = ((4 * MANY).to_string(), (4 * MANY + 16).to_string());
    let mut file = Sparse::default();
    let tensors = [described("F32", &format!("[{MANY}]"), "0", &big), described("F32", "[2,2]", &big, &end)];
    file.put(st(&format!(r#"{{"big":{},"w":{}}}"#, tensors[0], tensors[1]), &[]));
    file.skip(4 * MANY as u64);
    file.put(last());
    check("safetensors", file, MANY);
}

#[test]
fn legacy_stream_of_64_bits() {
    let start = Legacy {
        object: object(true),
        keys: legacy::keys(&["0", "1"]),
        storages: vec![],
        ..Legacy::default()
    };
    let mut file = Sparse::default();
    file.put(start.bytes());
    file.put(MANY.to_le_bytes());
    file.skip(4 * MANY as u64);
    file.put(4i64.to_le_bytes());
    file.put(last());
    check("legacy", file, MANY);
}

/// O15: protobuf itself ends at 2 GiB; lengths are counted in 64 bits, so that nothing happens there.
#[test]
fn o15_onnx_of_more_than_2_gib() {
    let raw = 4 * MANY as u64;
    let head = [number(1, MANY), number(2, 1), bytes(8, "big"), varint(9 << 3 | 2), varint(raw)].concat();
    let inner = head.len() as u64 + raw;
    let w = bytes(5, OnnxTensor { dims: vec![2, 2], raw: Some(last()), ..OnnxTensor::default() }.bytes());
    let outer = [varint(5 << 3 | 2), varint(inner), head].concat();
    let graph = outer.len() as u64 + raw + w.len() as u64;
    let mut file = Sparse::default();
    let prefix = model(&[]);
    // Without the empty graph at its end.
    file.put(&prefix[..prefix.len() - 2]);
    file.put([varint(7 << 3 | 2), varint(graph), outer].concat());
    file.skip(raw);
    file.put(w);
    check("ONNX", file, MANY);
}

/// A file of which only the end is on the disk.
#[test]
fn o15_external_data_behind_4_gib() {
    let dir = tempfile::tempdir().unwrap();
    let offset = 4 * MANY as u64;
    let mut file = std::fs::File::create(dir.path().join("w.bin")).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&last()).unwrap();
    let place = offset.to_string();
    let external = vec![("location", "w.bin"), ("offset", place.as_str()), ("length", "16")];
    let w = OnnxTensor { raw: None, external, ..OnnxTensor::default() };
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, model(&bytes(5, w.bytes()))).unwrap();
    assert_eq!(source::read(&path).unwrap().tensors[0].1.read().unwrap(), last());
}

/// Reads what is at `path`, cuts the file `cut` to `len` bytes, and reads the tensors then.
fn cut_while_open(path: &Path, cut: &Path, len: u64) -> Vec<Option<Vec<u8>>> {
    let state: StateDict = source::read(path).unwrap();
    std::fs::OpenOptions::new().write(true).open(cut).unwrap().set_len(len).unwrap();
    state.tensors.iter().map(|(_, t)| t.read().ok()).collect()
}

/// F14, O15: a mapped file that is cut ends the program with a bus error; here it is an error like any other.
#[test]
fn f14_o15_files_that_are_cut_while_they_are_open() {
    let all = tensors(&small(resnet_model::arch::Block::Basic, 3));
    let w = |raw| OnnxTensor { raw, ..OnnxTensor::default() };
    let forms = [
        ("safetensors", network::safetensors(&all)),
        ("zip", network::zip(&all, &[])),
        ("legacy", network::legacy(&all, &[])),
        ("tar", network::tar(&all)),
        ("pickle", network::arrays(&all, &[])),
        ("npz", network::npz(&all, 0)),
        ("deflated npz", network::npz(&all, 8)),
        ("ONNX", model(&bytes(5, w(Some(last())).bytes()))),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (what, file) in forms {
        let path = dir.path().join("file");
        let len = file.len() as u64;
        std::fs::write(&path, &file).unwrap();
        let whole = cut_while_open(&path, &path, len);
        assert!(whole.iter().all(Option::is_some), "{what}, whole");
        let read = cut_while_open(&path, &path, 0);
        assert!(read.iter().any(Option::is_none), "{what}");
        // The smallest arrays of a pickle are kept.
        let kept = read.iter().zip(&whole).filter(|(read, _)| read.is_some());
        assert!(kept.clone().all(|(read, whole)| read == whole), "{what}");
        assert!(kept.count() == 0 || what == "pickle", "{what}");
    }
    let external = OnnxTensor { raw: None, external: vec![("location", "w.bin")], ..OnnxTensor::default() };
    let (path, data) = (dir.path().join("model.onnx"), dir.path().join("w.bin"));
    std::fs::write(&path, model(&bytes(5, external.bytes()))).unwrap();
    std::fs::write(&data, last()).unwrap();
    assert_eq!(cut_while_open(&path, &data, 8), [None]);
}
