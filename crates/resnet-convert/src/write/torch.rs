//! Writer of `torch.save` state dicts, for `torch.load(weights_only=True)` and `load_state_dict`.
//!
//! The `OrderedDict` has no `_metadata`, so PyTorch treats it as older than version 2 of batch norm and supplies a missing
//! `num_batches_tracked`. The checkpoint's metadata is in a separate entry that PyTorch ignores, so reading the file
//! returns the same checkpoint.

use std::collections::HashMap;
use std::io::{Seek, Write};
use std::path::Path;

use resnet_model::file::{Existing, write_atomically};
use resnet_model::raw::Dtype;
use resnet_model::{Checkpoint, Error, RawTensor, Result};

use super::zip::ZipWriter;
use crate::source::META_ENTRY;

const ROOT: &str = "archive";

/// Writes a checkpoint to `path` atomically. `progress` receives the number of bytes written since the last call.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    path: &Path,
    existing: Existing,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let named = checkpoint.graph().param_specs();
    let named = named.iter().filter_map(|p| Some((p.name.as_str(), checkpoint.tensors().get(&p.name)?)));
    let tensors: Vec<(&str, &RawTensor)> = named.collect();
    let pickle = pickle(&tensors)?;
    let meta = checkpoint.meta().to_json()?;
    write_atomically(path, existing, |out| {
        let mut archive = ZipWriter::new(out);
        text(&mut archive, "data.pkl", &pickle)?;
        text(&mut archive, "byteorder", b"little")?;
        for (key, (_, tensor)) in tensors.iter().enumerate() {
            archive.entry(&format!("{ROOT}/data/{key}"), tensor.byte_len(), |put| {
                tensor.for_each_chunk(|bytes| {
                    put(bytes)?;
                    progress(bytes.len() as u64);
                    Ok(())
                })
            })?;
        }
        text(&mut archive, "version", b"3\n")?;
        text(&mut archive, META_ENTRY, meta.as_bytes())?;
        archive.finish()
    })
}

fn text<W: Write + Seek>(archive: &mut ZipWriter<W>, name: &str, bytes: &[u8]) -> Result<()> {
    archive.entry(&format!("{ROOT}/{name}"), bytes.len() as u64, |put| put(bytes))
}

/// Returns PyTorch's storage class for a dtype.
fn storage_class(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::BF16 => "BFloat16Storage",
        Dtype::I64 => "LongStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I16 => "ShortStorage",
        Dtype::I8 => "CharStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::BOOL => "BoolStorage",
        _ => return None,
    })
}

/// Writer of pickle protocol 2 opcodes. Recurring values are memoized.
#[derive(Default)]
struct Pickle {
    out: Vec<u8>,
    memo: HashMap<Vec<u8>, u8>,
}

impl Pickle {
    fn code(&mut self, code: &[u8]) {
        self.out.extend(code);
    }

    /// Emits `code`, or a memo reference if it was emitted before.
    fn shared(&mut self, code: Vec<u8>) {
        if let Some(&id) = self.memo.get(&code) {
            return self.code(&[b'h', id]);
        }
        self.code(&code);
        // The memo index is one byte; further values are emitted again.
        if let Ok(id) = u8::try_from(self.memo.len()) {
            self.code(&[b'q', id]);
            self.memo.insert(code, id);
        }
    }

    fn global(&mut self, module: &str, name: &str) {
        self.shared(format!("c{module}\n{name}\n").into_bytes());
    }

    fn text(text: &str) -> Vec<u8> {
        [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn integer(&mut self, n: usize) {
        match (u8::try_from(n), i32::try_from(n)) {
            (Ok(n), _) => self.code(&[b'K', n]),
            (_, Ok(n)) => self.code(&[b"J", &n.to_le_bytes()[..]].concat()),
            // LONG1 with nine bytes: the ninth keeps the sign positive.
            _ => self.code(&[b"\x8a\x09", &(n as u64).to_le_bytes()[..], &[0]].concat()),
        }
    }

    fn integers(&mut self, numbers: &[usize]) {
        self.code(b"(");
        numbers.iter().for_each(|&n| self.integer(n));
        self.code(b"t");
    }

    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.code(b")R");
    }
}

/// Pickles an `OrderedDict` from names to tensors, each with a separate storage.
fn pickle(tensors: &[(&str, &RawTensor)]) -> Result<Vec<u8>> {
    let mut p = Pickle::default();
    p.code(b"\x80\x02");
    p.ordered_dict();
    p.code(b"(");
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        let class = storage_class(tensor.dtype()).ok_or_else(|| Error::Dtype {
            name: (*name).to_owned(),
            dtype: format!("{:?}", tensor.dtype()),
            expected: "a PyTorch dtype",
        })?;
        p.code(&Pickle::text(name));
        p.global("torch._utils", "_rebuild_tensor_v2");
        p.code(b"((");
        p.shared(Pickle::text("storage"));
        p.global("torch", class);
        p.code(&Pickle::text(&key.to_string()));
        p.shared(Pickle::text("cpu"));
        p.integer(tensor.elements());
        p.code(b"tQ");
        p.integer(0);
        p.integers(tensor.shape());
        p.integers(&strides(tensor.shape()));
        p.code(b"\x89");
        p.ordered_dict();
        p.code(b"tR");
    }
    p.code(b"u.");
    Ok(p.out)
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut next = 1usize;
    let mut strides = Vec::with_capacity(shape.len());
    for &d in shape.iter().rev() {
        strides.push(next);
        next = next.saturating_mul(d.max(1));
    }
    strides.reverse();
    strides
}
