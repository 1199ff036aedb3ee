//! The engine on the CPU, and candle on other devices, behind one type.

use candle_core::{DType, Device, Tensor};

use crate::engine::{Engine, EngineOptions};
use crate::graph::Graph;
use crate::{Checkpoint, Network, Result};

/// A network for inference on any device.
#[derive(Debug)]
pub enum Runtime {
    /// On the CPU.
    Engine(Box<Engine>),
    /// On any other device.
    Network(Box<Network>),
}

impl Runtime {
    /// Builds the network of `checkpoint` on `device`; `options` apply to the engine, on the CPU only.
    pub fn new(checkpoint: &Checkpoint, device: &Device, options: EngineOptions) -> Result<Runtime> {
        Ok(match device {
            Device::Cpu => Runtime::Engine(Box::new(Engine::new(checkpoint, options)?)),
            _ => Runtime::Network(Box::new(Network::load_folded(checkpoint, DType::F32, device)?)),
        })
    }

    /// Returns the graph with batch norms folded.
    pub fn graph(&self) -> &Graph {
        match self {
            Runtime::Engine(engine) => engine.graph(),
            Runtime::Network(network) => network.graph(),
        }
    }

    /// Returns the results named `taps` of normalized images `x` `[N, C, H, W]`, in the given order.
    pub fn features(&self, x: &Tensor, taps: &[&str]) -> Result<Vec<Tensor>> {
        match self {
            Runtime::Engine(engine) => engine.features(x, taps),
            Runtime::Network(network) => network.features(&x.to_device(network.device())?, taps),
        }
    }

    /// Returns the output of the network `[N, K]`, one row per image, for normalized images `x` of shape `dims` `[N, C, H, W]`.
    pub fn rows(&self, x: Vec<f32>, dims: [usize; 4]) -> Result<Vec<Vec<f32>>> {
        match self {
            Runtime::Engine(engine) => {
                let outputs = engine.output(&x, dims)?;
                let columns = outputs.values.len() / dims[0].max(1);
                Ok(outputs.values.chunks(columns.max(1)).map(<[f32]>::to_vec).collect())
            }
            Runtime::Network(network) => {
                let x = Tensor::from_vec(x, &dims, network.device())?;
                Ok(network.forward(&x)?.to_dtype(DType::F32)?.to_vec2()?)
            }
        }
    }
}
