//! Malicious and malformed files. The rows follow a public collection of attacks on model readers:
//! P pickle, Z zip, L legacy stream, T tar, S TorchScript, F safetensors, O ONNX, N numpy. Every row has an
//! expected outcome: a fault code, or the tensors.

mod legacy_tar;
mod mutate;
mod numpy;
mod onnx;
mod pickle;
mod safetensors;
mod zip;

use std::sync::Arc;
use std::time::{Duration, Instant};

use resnet_convert::{Fault, StateDict, source};

/// Tensors read from a file: name, shape and bytes.
pub(crate) type Tensors = Vec<(String, Vec<usize>, Vec<u8>)>;

/// Reads a file and all its tensors, and measures the time.
pub(crate) fn timed(bytes: &[u8]) -> (Result<(StateDict, Tensors), Fault>, Duration) {
    let bytes = Arc::new(bytes.to_vec());
    let start = Instant::now();
    let result = source::read_bytes(bytes).and_then(|state| {
        let tensors = state.tensors.iter().map(|(name, tensor)| {
            let bytes = tensor.read().map_err(|e| e.downcast::<Fault>().expect("an untyped error"))?;
            Ok((name.clone(), tensor.shape().to_vec(), bytes))
        });
        let tensors = tensors.collect::<Result<_, Fault>>()?;
        Ok((state, tensors))
    });
    (result, start.elapsed())
}

/// Reads a file and all its tensors, and checks the time limit.
pub(crate) fn read(bytes: &[u8]) -> Result<(StateDict, Tensors), Fault> {
    let limit = Duration::from_secs(2) + Duration::from_nanos(50) * bytes.len() as u32;
    let (result, took) = timed(bytes);
    // The machine may be busy.
    let quick = took < limit || (0..2).any(|_| timed(bytes).1 < limit);
    assert!(quick, "{} bytes took {took:?}", bytes.len());
    if let Err(fault) = &result {
        let text = fault.to_string();
        assert!(text.chars().all(|c| !c.is_control()) && text.len() < 1000, "not printable: {text:?}");
    }
    result
}

/// Returns `ok`, `unsupported` if the file has an unsupported tensor, or the fault code.
pub(crate) fn outcome(bytes: &[u8]) -> String {
    match read(bytes) {
        Ok((state, _)) if !state.unsupported.is_empty() => "unsupported".into(),
        Ok(_) => "ok".into(),
        Err(fault) => fault.code.to_string(),
    }
}

/// Checks that every file of a row has one of these outcomes.
#[track_caller]
pub(crate) fn check(row: &str, files: &[Vec<u8>], expected: &[&str]) {
    for (n, file) in files.iter().enumerate() {
        let found = outcome(file);
        assert!(expected.contains(&found.as_str()), "{row}, file {n}: {found}, expected {expected:?}");
    }
}

/// Checks the outcome of every file of a row.
#[track_caller]
pub(crate) fn check_each(row: &str, files: &[(Vec<u8>, &str)]) {
    for (n, (file, expected)) in files.iter().enumerate() {
        assert_eq!(outcome(file), *expected, "{row}, file {n}");
    }
}
