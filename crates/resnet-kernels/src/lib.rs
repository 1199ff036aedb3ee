//! Convolution, pooling and fully connected layers on `f32` slices, as fast as the CPU allows.
//!
//! The crate knows shapes and memory, not networks. Activations lie in blocks of 16 channels ([`Blocked`]); weights are
//! packed once ([`PackedConv`], [`PackedLinear`]); running allocates nothing and gives the same bits for any number of
//! threads. Every kernel exists for every instruction set ([`Isa`]), and [`reference`](mod@reference) says what it
//! computes.
//!
//! ```
//! use resnet_kernels::*;
//!
//! # fn main() -> Result<(), Error> {
//! // Once per layer: choose a plan and pack the weights.
//! let shape = ConvShape { kernel: [3, 3], padding: [1, 1], ..ConvShape::pointwise(64, 128) };
//! let plan = Plan::choose(&shape, InputHint { batch: 1, input: [56, 56] }, Isa::best(), Precision::F32);
//! let weights = vec![0.01; shape.weight_len()?];
//! let epilogue = Epilogue { activation: Activation::Relu, max_pool: None };
//! let conv = PackedConv::new(shape, plan, ConvWeights { weights: &weights, bias: None }, epilogue)?;
//!
//! // Once per input size: lay out memory. The input's halo is what `conv` reads as padding.
//! let input = Blocked::new([1, 64, 56, 56])?.with_halo(conv.input_halo())?;
//! let output = Blocked::new(conv.output_dims(input.dims())?)?;
//! let pool = ThreadPool::new(2)?;
//! let (mut x, mut y) = (AlignedVec::zeroed(input.len()), AlignedVec::zeroed(output.len()));
//! let mut scratch = AlignedVec::zeroed(conv.scratch_len(input.dims(), pool.threads())?);
//!
//! // As often as needed.
//! input.pack(&vec![1.0; 64 * 56 * 56], &mut x, &pool)?;
//! let from = Input::Blocked(View { layout: input, data: &x });
//! let to = ViewMut { layout: output, data: &mut y };
//! conv.run(from, Residual::None, to, &mut scratch, &pool)?;
//! assert!((y[output.pixel(1, 1)] - 64.0 * 9.0 * 0.01).abs() < 1e-4);
//! # Ok(())
//! # }
//! ```

mod conv;
mod epilogue;
mod error;
mod grad;
mod layout;
mod linear;
mod peak;
mod pool;
pub mod reference;
mod shape;
mod simd;
#[cfg(test)]
mod testing;
mod threads;

pub use conv::{Algorithm, Epilogue, Input, InputHint, PackedConv, Plan, Precision};
pub use epilogue::{Activation, Residual};
pub use error::Error;
pub use grad::{
    BatchNorm, BatchNormGrad, BlockedConv, BufferPool, PlanarConv, add_to, grad_avg_pool, grad_gate,
    grad_global_avg_pool, grad_max_pool, scale_channels,
};
pub use layout::{Blocked, LANES, View, ViewMut};
pub use linear::PackedLinear;
pub use peak::fma_peak;
pub use pool::{AvgPoolSpec, PoolSpec, avg_pool, global_avg_pool, max_pool};
pub use shape::{ConvShape, ConvWeights};
pub use simd::{AlignedVec, Isa};
pub use threads::{MAX_THREADS, ThreadPool};
