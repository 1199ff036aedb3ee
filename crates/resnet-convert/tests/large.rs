//! Files larger than 4 GiB, and files that change while they are open.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use resnet_convert::{StateDict, source};

use crate::build::legacy::{self, Legacy};
use crate::build::network::{self, small, tensors};
use crate::build::npy;
use crate::build::onnx::{Tensor as OnnxTensor, bytes, model, number, varint};
use crate::build::pickle::{Storage, Tensor, sd};
use crate::build::safetensors::{st, tensor as described};
use crate::build::sparse::{Sparse, Wide, archive64};
use crate::build::zip::Entry;
use crate::build::{Random, f32s};

/// Elements of a tensor of five gibibytes.
const MANY: i64 = 5 << 28;

fn last() -> Vec<u8> {
    f32s(&[1.0, -2.0, 3.5, 1e-40])
}

/// Checks that the tensor `big` has `many` elements, and that `w` after it is read exactly.
#[track_caller]
fn check(what: &str, file: Sparse, many: i64) {
    let state = source::read_bytes(Arc::new(file)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let find = |name: &str| &state.tensors.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(find("big").elements(), many as usize, "{what}");
    assert_eq!(find("w").read().unwrap(), last(), "{what}");
}

fn object(legacy: bool, many: i64) -> Vec<u8> {
    let view = || legacy.then(|| b"N".to_vec());
    let code = |key: &str, n: i64| {
        Tensor::whole(Storage { view: view(), ..Storage::of("FloatStorage", key, n) }, &[n]).code()
    };
    sd(&[("big", code("0", many)), ("w", code("1", 4))])
}

#[test]
fn zip_of_64_bits() {
    let big = 4 * MANY as u64;
    check(
        "zip",
        archive64(&[
            Wide::stored("archive/data.pkl", object(false, MANY)),
            Wide::new(Entry::new("archive/data/0", []), big, big),
            Wide::stored("archive/data/1", last()),
        ]),
        MANY,
    );
}

const PATTERN: usize = 1 << 16;

/// Returns a pattern with `noise` random bytes out of 64: a higher compression ratio is rejected as a zip bomb.
fn pattern(noise: usize) -> Vec<u8> {
    let mut random = Random(1);
    (0..PATTERN).map(|i| if i % 64 < noise { random.next() as u8 } else { 0 }).collect()
}

/// Returns an archive whose first storage is the deflated pattern, repeated; the directory declares `size` bytes.
fn patterned(pattern: &[u8], times: u64, size: u64, pickle: Vec<u8>) -> Sparse {
    // Independent pieces that end at byte boundaries.
    let data = deflated(pattern, flate2::FlushCompress::Sync);
    let tail = deflated(&[], flate2::FlushCompress::Finish);
    let packed = data.len() as u64 * times + tail.len() as u64;
    let entry = Entry { method: 8, ..Entry::new("archive/data/0", data) };
    archive64(&[
        Wide::stored("archive/data.pkl", pickle),
        Wide { entry, times, tail, packed, size },
        Wide::stored("archive/data/1", last()),
    ])
}

/// A deflated storage of more than 2 GiB is streamed in chunks.
#[test]
fn deflated_storages_of_more_than_2_gib() {
    let times = (2 << 30) / PATTERN as u64 + 1;
    let pattern = pattern(20);
    let many = times as i64 * (PATTERN / 4) as i64;
    let file = |size| Arc::new(patterned(&pattern, times, size, object(false, many)));
    let state = source::read_bytes(file(4 * many as u64)).unwrap();
    let (mut pieces, mut wrong) = (0, 0);
    let (name, big) = &state.tensors[0];
    let read = big.for_each_chunk(|bytes| {
        pieces += bytes.len() / PATTERN;
        wrong += usize::from(bytes.chunks(PATTERN).any(|piece| piece != pattern));
        Ok(())
    });
    read.unwrap();
    assert_eq!((name.as_str(), pieces as u64, wrong), ("big", times, 0));
    // The sizes in the directory and the pickle must agree.
    let short = source::read_bytes(file(4 * many as u64 - 4)).unwrap_err();
    assert_eq!(short.code.to_string(), "storage-size");
}

/// A view into a deflated storage requires the whole storage in memory, up to a limit.
#[test]
fn parts_of_deflated_storages() {
    let parts = |times: u64| {
        let pattern = pattern(1);
        let many = times as i64 * (PATTERN / 4) as i64;
        let part = |offset, size: &[i64], stride: &[i64]| {
            let whole = Tensor::whole(Storage::of("FloatStorage", "0", many), size);
            Tensor { offset, stride: stride.to_vec(), ..whole }.code()
        };
        let object = sd(&[("row", part(16, &[2], &[1])), ("column", part(1, &[2, 2], &[1, 16]))]);
        let state = source::read_bytes(Arc::new(patterned(&pattern, times, 4 * many as u64, object)))?;
        let read = state.tensors.iter().map(|(_, t)| t.read().unwrap()).collect::<Vec<_>>();
        let at = |i: usize| &pattern[4 * i..4 * i + 4];
        assert_eq!(read, [[at(16), at(17)].concat(), [at(1), at(17), at(2), at(18)].concat()]);
        Ok::<_, resnet_convert::Fault>(())
    };
    parts(16).unwrap();
    assert_eq!(parts((64 << 20) / PATTERN as u64 + 1).unwrap_err().code.to_string(), "zip-ratio");
}

fn deflated(bytes: &[u8], flush: flate2::FlushCompress) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 * bytes.len() + 64);
    let mut deflate = flate2::Compress::new(flate2::Compression::default(), false);
    deflate.compress_vec(bytes, &mut out, flush).unwrap();
    assert_eq!(deflate.total_in(), bytes.len() as u64);
    out
}

/// Of a deflated array of more than 2 GiB, only the header is inflated before it is read.
#[test]
fn deflated_arrays_of_more_than_2_gib() {
    let many = 600_000_000;
    let header = npy::raw([1, 0], &npy::header("'<f4'", false, &npy::shape(&[many])), &[0; 4096]);
    let start = deflated(&header, flate2::FlushCompress::Finish);
    let size = 4 * many as u64 + header.len() as u64 - 4096;
    let big = Wide::new(Entry { method: 8, ..Entry::new("big.npy", start) }, 700_000_000, size);
    let w = Wide::stored("w.npy", npy::npy("<f4", &[4], &last()));
    check("npz", archive64(&[big, w]), many as i64);
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
        object: object(true, MANY),
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

/// O15: protobuf is limited to 2 GiB, but the reader uses 64-bit lengths.
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
    // Without the empty graph at the end.
    file.put(&prefix[..prefix.len() - 2]);
    file.put([varint(7 << 3 | 2), varint(graph), outer].concat());
    file.skip(raw);
    file.put(w);
    check("ONNX", file, MANY);
}

/// Uses a sparse file.
#[test]
fn o15_external_data_beyond_4_gib() {
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

/// Opens `path`, truncates the file `cut` to `len` bytes, and then reads the tensors.
fn cut_while_open(path: &Path, cut: &Path, len: u64) -> Vec<Option<Vec<u8>>> {
    let state: StateDict = source::read(path).unwrap();
    std::fs::OpenOptions::new().write(true).open(cut).unwrap().set_len(len).unwrap();
    state.tensors.iter().map(|(_, t)| t.read().ok()).collect()
}

/// F14, O15: truncating an open file is an error; with memory mapping it would be a bus error.
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
