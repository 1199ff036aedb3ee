//! A candle `VarBuilder` over the tensors of a checkpoint.

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::into_candle;
use crate::fold::Folded;
use crate::graph::Op;
use crate::{Checkpoint, Error, Result};

/// Returns a builder over the tensors of a checkpoint; `folded` replaces those of convolutions.
pub(crate) fn var_builder(
    checkpoint: &Checkpoint,
    folded: Option<Folded>,
    dtype: DType,
    device: &Device,
) -> VarBuilder<'static> {
    let backend = CheckpointBackend { checkpoint: checkpoint.clone(), folded };
    VarBuilder::from_backend(Box::new(backend), dtype, device.clone())
}

/// The backend of the builder.
struct CheckpointBackend {
    checkpoint: Checkpoint,
    folded: Option<Folded>,
}

impl CheckpointBackend {
    fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let folded = self.folded.as_ref().and_then(|folded| {
            let (module, suffix) = name.rsplit_once('.')?;
            let node = folded.graph().nodes().iter().find(|n| n.name == module)?;
            let Op::Conv(conv) = node.op else { return None };
            Some((folded, node, conv, suffix))
        });
        let Some((folded, node, conv, suffix)) = folded else {
            let tensor = self.checkpoint.tensor(name)?;
            if dtype == DType::I64 && tensor.dtype() == crate::raw::Dtype::I64 && tensor.shape().is_empty() {
                return Ok(Tensor::new(tensor.scalar().unwrap_or(0), device)?);
            }
            return self.checkpoint.to_tensor(name, dtype, device);
        };
        let tensor = match suffix {
            "bias" => Tensor::from_vec(folded.bias(node, &self.checkpoint)?, conv.out_channels, device)?,
            _ => {
                let weight = folded.conv(node, &self.checkpoint, Vec::new())?.weight;
                Tensor::from_vec(weight, &conv.weight_shape(), device)?
            }
        };
        Ok(tensor.to_dtype(dtype)?)
    }
}

impl SimpleBackend for CheckpointBackend {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, dev)?;
        if tensor.shape() != &s {
            let error = Error::Shape {
                name: name.to_owned(),
                found: tensor.dims().to_vec(),
                expected: s.dims().to_vec(),
            };
            return Err(into_candle(error));
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, dtype, dev).map_err(into_candle)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.checkpoint.tensors().contains_key(name)
    }
}
