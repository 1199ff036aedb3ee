#![doc = include_str!("../README.md")]

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
