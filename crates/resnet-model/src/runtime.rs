//! Inference with the engine on the CPU and with candle on other devices.

use candle_core::{DType, Device, Tensor};

use crate::engine::{Engine, EngineOptions};
use crate::graph::Graph;
use crate::{Checkpoint, Network, Result};

/// A network for inference.
#[derive(Debug)]
pub enum Runtime {
    /// On the CPU.
    Engine(Box<Engine>),
    /// On another device.
    Network(Box<Network>),
}

impl Runtime {
    /// Loads the network of `checkpoint` on `device`. `options` apply to the CPU only.
    ///
    /// # Errors
    ///
    /// An error if the weights cannot be read or the engine does not support the options.
    pub fn new(checkpoint: &Checkpoint, device: &Device, options: EngineOptions) -> Result<Runtime> {
        Ok(match device {
            Device::Cpu => Runtime::Engine(Box::new(Engine::new(checkpoint, options)?)),
            _ => Runtime::Network(Box::new(Network::load_folded(checkpoint, DType::F32, device)?)),
        })
    }

    /// Returns the graph that is run, with batch norms folded.
    pub fn graph(&self) -> &Graph {
        match self {
            Runtime::Engine(engine) => engine.graph(),
            Runtime::Network(network) => network.graph(),
        }
    }

    /// Returns the outputs of `taps` for preprocessed images `x` `[N, C, H, W]` of any dtype, in the order of `taps`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTap`](crate::Error::UnknownTap), or an error of the network.
    pub fn features(&self, x: &Tensor, taps: &[&str]) -> Result<Vec<Tensor>> {
        match self {
            Runtime::Engine(engine) => engine.features(x, taps),
            Runtime::Network(network) => {
                let x = x.to_device(network.device())?.to_dtype(network.dtype())?;
                network.features(&x, taps)
            }
        }
    }

    /// Returns the output `[N, K]`, one row per image, for preprocessed images `x` of shape `dims` `[N, C, H, W]`.
    ///
    /// # Errors
    ///
    /// [`Error::Input`](crate::Error::Input) for an unexpected shape, or another error of the network.
    pub fn rows(&self, x: Vec<f32>, dims: [usize; 4]) -> Result<Vec<Vec<f32>>> {
        match self {
            Runtime::Engine(engine) => {
                let outputs = engine.output(&x, dims)?;
                let columns = outputs.values.len() / dims[0].max(1);
                Ok(outputs.values.chunks(columns.max(1)).map(<[f32]>::to_vec).collect())
            }
            Runtime::Network(network) => {
                let x = Tensor::from_vec(x, &dims, network.device())?.to_dtype(network.dtype())?;
                Ok(network.forward(&x)?.to_dtype(DType::F32)?.to_vec2()?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{synthetic, zoo};

    #[test]
    fn inputs_of_any_dtype_are_converted() {
        let checkpoint = synthetic::checkpoint(&zoo::arch("resnet20_cifar").unwrap()).unwrap();
        let network = Network::load(&checkpoint, DType::F32, &Device::Cpu).unwrap();
        let x = Tensor::from_vec(synthetic::input(3 * 256), (1, 3, 16, 16), &Device::Cpu).unwrap();
        let x = x.to_dtype(DType::F64).unwrap();
        let engine = Runtime::new(&checkpoint, &Device::Cpu, EngineOptions::default()).unwrap();
        for runtime in [engine, Runtime::Network(Box::new(network))] {
            let features = runtime.features(&x, &["layer3"]).unwrap();
            assert_eq!((features[0].dtype(), features[0].dims()), (DType::F32, &[1, 64, 4, 4][..]));
        }
    }
}
