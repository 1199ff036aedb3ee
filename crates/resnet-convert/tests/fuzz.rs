//! Fuzz targets of `fuzz/`, and the replay of their corpora and findings. Each function panics if the contract is
//! broken; an error for invalid input is fine.

mod checkpoint;
#[cfg(test)]
mod replay;

use std::sync::Arc;
use std::time::{Duration, Instant};

use resnet_convert::{Fault, StateDict, source};

use crate::build::legacy::MAGIC;
use crate::build::npy::npz;
use crate::build::safetensors::st;
use crate::build::zip::Pth;

type Target = (&'static str, fn(&[u8]));

/// All targets by name.
pub const TARGETS: &[Target] = &[
    ("pickle", pickle),
    ("torch_zip", torch_zip),
    ("torch_legacy", torch_legacy),
    ("torch_tar", torch_tar),
    ("safetensors", safetensors),
    ("npy_npz", npy_npz),
    ("onnx", onnx),
    ("image", image),
    ("arb_checkpoint", checkpoint::valid),
    ("arb_mutate", checkpoint::mutated),
];

/// Runs the target of this name.
pub fn run(target: &str, data: &[u8]) {
    let (_, entry) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    entry(data);
}

type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;

/// Reads names, shapes and bytes of all tensors in a file. Panics if reading takes more than a second (the fastest of
/// three runs counts), is not deterministic, or returns an untyped error or one that is not printable.
fn read(bytes: &[u8]) -> Result<(StateDict, Tensors), Fault> {
    let bytes = Arc::new(bytes.to_vec());
    let once = || {
        let start = Instant::now();
        let result = source::read_bytes(bytes.clone()).and_then(|state| {
            let tensors = state.tensors.iter().map(|(name, tensor)| {
                let bytes = tensor.read().map_err(|e| e.downcast::<Fault>().expect("an untyped error"))?;
                Ok((name.clone(), tensor.shape().to_vec(), bytes))
            });
            let tensors = tensors.collect::<Result<Tensors, Fault>>()?;
            Ok((state, tensors))
        });
        (result, start.elapsed())
    };
    let (result, took) = once();
    quick(took, || once().1);
    let printable = |text: &str| {
        assert!(!text.chars().any(char::is_control) && text.len() < 1000, "unfit for a terminal: {text:?}");
    };
    match &result {
        Ok((state, tensors)) => {
            let (again, _) = once();
            let again = again.expect("error only the second time");
            assert!(*tensors == again.1, "other tensors the second time");
            state.notes.iter().for_each(|note| printable(note));
            let total: usize = tensors.iter().map(|(_, _, bytes)| bytes.len()).sum();
            assert!(total <= (4 * bytes.len()).max(1 << 20), "{total} bytes from {}", bytes.len());
        }
        Err(fault) => printable(&fault.to_string()),
    }
    result
}

fn quick(took: Duration, again: impl Fn() -> Duration) {
    const LIMIT: Duration = Duration::from_secs(1);
    assert!(took < LIMIT || (0..2).any(|_| again() < LIMIT), "slower than a second: {took:?}");
}

/// A pickle by itself, and as the pickle of an archive with three storages.
fn pickle(data: &[u8]) {
    if data.first() != Some(&b'P') {
        drop(read(data));
    }
    let storages = vec![("0", vec![0; 16]), ("1", (0..64).collect()), ("2", vec![1; 8])];
    drop(read(&Pth { pickle: data.to_vec(), storages, ..Pth::default() }.bytes()));
}

fn torch_zip(data: &[u8]) {
    drop(read(data));
}

/// A stream after the magic number.
fn torch_legacy(data: &[u8]) {
    drop(read(&[MAGIC, data].concat()));
}

/// An archive with corrected header checksums.
fn torch_tar(data: &[u8]) {
    let mut file = data.to_vec();
    let end = file.len().next_multiple_of(512);
    file.resize(end, 0);
    for block in file.chunks_exact_mut(512).filter(|b| &b[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    drop(read(&file));
}

/// The file, or header and data divided at the first line feed. The reader may reject more than the reference
/// implementation, never less, and tensors read by both are equal.
fn safetensors(data: &[u8]) {
    let framed = data.iter().position(|&b| b == b'\n').and_then(|at| {
        let header = std::str::from_utf8(&data[..at]).ok()?;
        Some(st(header, &data[at + 1..]))
    });
    let file = framed.as_deref().unwrap_or(data);
    let Ok((state, tensors)) = read(file) else { return };
    if state.container != resnet_convert::Format::Safetensors {
        return;
    }
    let theirs = safetensors::SafeTensors::deserialize(file)
        .expect("the safetensors crate rejects a file that we read");
    assert_eq!(theirs.len(), tensors.len());
    for ((name, shape, bytes), (_, tensor)) in tensors.iter().zip(&state.tensors) {
        let their = theirs.tensor(name).unwrap();
        assert_eq!((their.dtype(), their.shape(), their.data()), (tensor.dtype(), &shape[..], &bytes[..]));
    }
}

/// The first byte decides: an array, an archive, or the array of an archive.
fn npy_npz(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    match kind {
        b'd' => drop(read(&npz(&[("a".into(), data.to_vec())], 8))),
        b's' => drop(read(&npz(&[("a".into(), data.to_vec()), ("b".into(), data.to_vec())], 0))),
        b'z' => drop(read(data)),
        _ => drop(read(&[b"\x93NUMPY", data].concat())),
    }
}

/// A model and the network of its graph: deterministic and within the time limit.
fn onnx(data: &[u8]) {
    let Ok((state, _)) = read(data) else { return };
    if state.container != resnet_convert::Format::Onnx {
        return;
    }
    let understand = |state: StateDict| {
        let start = Instant::now();
        let result = resnet_convert::build_checkpoint(
            state,
            "model.onnx".as_ref(),
            &resnet_convert::ConvertOptions::default(),
        );
        let result = result.map(|(checkpoint, report)| {
            let tensors = checkpoint.tensors().iter();
            let tensors =
                tensors.map(|(name, t)| (name.clone(), t.shape().to_vec(), t.read().expect("a tensor")));
            (tensors.collect::<Tensors>(), report.to_string())
        });
        (result.map_err(|e| e.to_string()), start.elapsed())
    };
    let again =
        || understand(source::read_bytes(Arc::new(data.to_vec())).expect("error only the second time"));
    let (result, took) = understand(state);
    quick(took, || again().1);
    if let Err(e) = &result {
        assert!(
            !e.chars().any(|c| c.is_control() && c != '\n') && e.len() < 4000,
            "unfit for a terminal: {e:?}"
        );
    }
    // Most graphs match no network, and comparing the whole zoo takes time.
    if result.is_ok() {
        assert!(again().0 == result, "another network the second time");
    }
}

/// An image, decoded and preprocessed.
fn image(data: &[u8]) {
    let preprocess = resnet_image::Preprocess::torchvision(40, 32);
    let once = || {
        let start = Instant::now();
        let result = resnet_image::decode::decode(data).and_then(|image| {
            let tensor = preprocess.apply(&image)?;
            assert_eq!(tensor.len(), 3 * 32 * 32);
            assert!(tensor.iter().all(|v| v.is_finite()));
            Ok(image)
        });
        (result, start.elapsed())
    };
    let (result, took) = once();
    match result {
        // A file of one kilobyte may contain a hundred megapixels of one color, which take time to decode.
        Ok(image) if image.len() > 30_000_000 => {}
        Ok(_) => quick(took, || once().1),
        Err(e) => {
            let text = e.to_string();
            assert!(
                !text.chars().any(char::is_control) && text.len() < 1000,
                "unfit for a terminal: {text:?}"
            );
            quick(took, || once().1);
        }
    }
}
