//! Reader of pickled numpy arrays, as in Detectron's model zoo.

use std::sync::Arc;

use resnet_model::raw::Bytes;

use super::input::Input;
use super::pickle::specs::Specs;
use super::pickle::{self, PersistentIds};
use super::pickled_tensors::{self, Storages};
use super::tensors::TensorBuilder;
use super::{Format, StateDict};
use crate::error::{Code, Fault};

pub(super) fn read(bytes: Arc<dyn Bytes>) -> Result<StateDict, Fault> {
    let mut maker = TensorBuilder::new(bytes.len());
    let mut into = StateDict::new(Format::Pickle);
    let mut input = Input::new(bytes.clone(), 0);
    let pickle = pickle::read(&mut input, &PersistentIds::None, Specs::default())?;
    if input.left() > 0 {
        let detail = format!("{} bytes after the end of the pickle", input.left());
        return Err(Fault::new(Code::Trailing, detail).at(input.pos()));
    }
    let none = Storages { blobs: vec![], big_endian: false };
    pickled_tensors::collect(&pickle, &bytes, &none, &mut maker, &mut into)?;
    Ok(into)
}

/// Returns `true` if the first bytes look like a pickle of protocol 0 or 1, which has no magic bytes.
pub(super) fn is_text_pickle(head: &[u8]) -> bool {
    let is_name = |line: &[u8]| {
        !line.is_empty() && line.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
    };
    match head {
        [b'c', rest @ ..] => {
            let mut lines = rest.split(|&b| b == b'\n');
            lines.next().is_some_and(is_name) && lines.next().is_some_and(is_name) && lines.next().is_some()
        }
        [b'(', b'd' | b'l' | b'i' | b'c' | b't', ..] => true,
        [b'}' | b']', b'q' | b'(', ..] => true,
        _ => false,
    }
}
