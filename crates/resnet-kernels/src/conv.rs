//! Convolution with prepacked weights.

use crate::epilogue::{Activation, Residual};
use crate::error::{Error, check_at_least, check_len, product};
use crate::layout::{Blocked, View, ViewMut};
use crate::pool::PoolSpec;
use crate::shape::{ConvShape, ConvWeights};
use crate::simd::{AlignedVec, Dispatch, Simd};
use crate::threads::ThreadPool;

mod direct;
mod pack;
mod plan;
mod planar;
mod winograd;

pub use plan::{Algorithm, InputHint, Plan, Precision};

pub(crate) use pack::Panels;
use winograd::{Extent, F2, S2};
pub(crate) use winograd::{F4, Points};

/// Input of a convolution.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// `[N, C, H, W]` without halo, for [`Algorithm::Planar`].
    Planar {
        /// Shape `[N, C, H, W]`.
        dims: [usize; 4],
        /// `N × C × H × W` elements.
        data: &'a [f32],
    },
    /// Blocked tensor, for all other algorithms. Direct convolutions read the padding from the halo, which must be zero
    /// and at least as wide; Winograd convolutions need no halo.
    Blocked(View<'a>),
}

/// Operations fused after the convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epilogue {
    /// Activation after bias and residual add.
    pub activation: Activation,
    /// Max pool after the activation, for [`Algorithm::Planar`] without residual add. The unpooled tensor is not
    /// written to memory.
    pub max_pool: Option<PoolSpec>,
}

/// Convolution with prepacked weights for any batch size and image size; can be run from several threads at once.
///
/// Infinities and NaN propagate to every output that depends on them, with two differences to a direct sum: Winograd
/// may turn an infinity into NaN and spread either over its tile of up to 4 × 4 outputs; and padding channels and
/// channels of other groups in the same block of 16 are multiplied by zero weights, which turns non-finite values into
/// NaN.
#[derive(Clone, Debug)]
pub struct PackedConv {
    shape: ConvShape,
    plan: Plan,
    epilogue: Epilogue,
    panels: Panels,
    /// If `true`, splits long direct sums into partial sums.
    chunked_sums: bool,
}

/// Validated arguments of a call.
struct Call<'a> {
    conv: &'a PackedConv,
    residual: Residual<'a>,
    output: ViewMut<'a>,
    scratch: &'a mut [f32],
    pool: &'a ThreadPool,
}

impl PackedConv {
    /// Packs weights `[c_out, c_in / groups, kernel height, kernel width]` for `plan`.
    ///
    /// # Errors
    ///
    /// Invalid shape, slices of the wrong length, an algorithm that does not support the shape or the epilogue, or not
    /// enough memory.
    pub fn new(
        shape: ConvShape,
        plan: Plan,
        weights: ConvWeights,
        epilogue: Epilogue,
    ) -> Result<Self, Error> {
        check_len("weights", weights.weights.len(), shape.weight_len()?)?;
        check_len("bias", weights.bias.map_or(shape.c_out, <[f32]>::len), shape.c_out)?;
        plan.algorithm.supports(&shape)?;
        if let Some(spec) = &epilogue.max_pool {
            spec.check()?;
            if plan.algorithm != Algorithm::Planar {
                return Err(Error::Algorithm { algorithm: plan.algorithm.name(), what: "fused max pooling" });
            }
        }
        let panels = plan.isa.dispatch(Pack { shape: &shape, algorithm: plan.algorithm, weights })?;
        Ok(Self { shape, plan, epilogue, panels, chunked_sums: false })
    }

    /// Splits long direct sums into partial sums of about a hundred products (fewer for planar inputs), which halves
    /// the rounding error and costs a few percent of speed. Does not affect Winograd.
    pub fn with_chunked_sums(self) -> Self {
        Self { chunked_sums: true, ..self }
    }

    /// Creates a convolution from panels that were packed for `plan`.
    pub(crate) fn from_panels(shape: ConvShape, plan: Plan, panels: Panels) -> Self {
        Self { shape, plan, epilogue: Epilogue::default(), panels, chunked_sums: false }
    }

    /// Returns the buffer of the packed weights for reuse.
    pub(crate) fn into_weights(self) -> AlignedVec {
        self.panels.weights
    }

    /// Returns the shape.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// Returns the plan.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Returns the name of the micro-kernel, `{algorithm}-f32-{channels}x{pixels}-{isa}`: `winograd4-f32-64x6-avx512`.
    pub fn kernel_name(&self) -> String {
        let blocks = self.panels.list.first().map_or(1, |panel| panel.blocks);
        let pixels = self.plan.isa.dispatch(TilePixels(blocks));
        format!("{}-f32-{}x{pixels}-{}", self.plan.algorithm.name(), blocks * 16, self.plan.isa.name())
    }

    /// Returns the size of packed weights and bias in bytes.
    pub fn bytes(&self) -> usize {
        (self.panels.weights.len() + self.panels.bias.len()) * size_of::<f32>()
    }

    /// Returns the halo that the input needs, `[vertical, horizontal]` in pixels.
    pub fn input_halo(&self) -> [usize; 2] {
        match self.plan.algorithm {
            Algorithm::Direct | Algorithm::Pointwise => self.shape.padding,
            _ => [0, 0],
        }
    }

    /// Returns the output shape `[N, C, H, W]`, after fused pooling.
    ///
    /// # Errors
    ///
    /// The number of channels differs, or the input is smaller than the kernel.
    pub fn output_dims(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        let [n, c, mut h, mut w] = self.shape.output_dims(input)?;
        if let Some(spec) = &self.epilogue.max_pool {
            [h, w] = spec.output_hw([h, w])?;
        }
        Ok([n, c, h, w])
    }

    /// Returns the number of scratch elements that [`PackedConv::run`] needs for an input `[N, C, H, W]` on `threads`
    /// threads.
    ///
    /// # Errors
    ///
    /// As for [`PackedConv::output_dims`]; also if a length overflows.
    pub fn scratch_len(&self, input: [usize; 4], threads: usize) -> Result<usize, Error> {
        let output = self.output_dims(input)?;
        product("activation length", &input)?;
        product("activation length", &output)?;
        self.plan.isa.dispatch(ScratchLen { conv: self, input, output, threads })
    }

    /// Computes `output = activation(convolution(input) + bias + residual)` without allocating.
    ///
    /// `scratch` has at least [`PackedConv::scratch_len`] elements with any content. The result does not depend on the
    /// number of threads.
    ///
    /// # Errors
    ///
    /// A shape, halo or length does not match.
    pub fn run(
        &self,
        input: Input,
        residual: Residual,
        output: ViewMut,
        scratch: &mut [f32],
        pool: &ThreadPool,
    ) -> Result<(), Error> {
        let dims = match &input {
            Input::Planar { dims, .. } => *dims,
            Input::Blocked(view) => view.layout.dims(),
        };
        output.check("output", self.output_dims(dims)?)?;
        residual.check(&output.layout)?;
        check_at_least("scratch", scratch.len(), self.scratch_len(dims, pool.threads())?)?;
        let call = Call { conv: self, residual, output, scratch, pool };
        let planar = self.plan.algorithm == Algorithm::Planar;
        let algorithm = self.plan.algorithm.name();
        match input {
            Input::Planar { dims, data } if planar => {
                check_len("input", data.len(), product("input length", &dims)?)?;
                if !matches!(call.residual, Residual::None) && self.epilogue.max_pool.is_some() {
                    return Err(Error::Algorithm {
                        algorithm: "planar",
                        what: "a residual add with fused max pooling",
                    });
                }
                self.plan.isa.dispatch(RunPlanar { call, dims, data });
            }
            Input::Blocked(view) if !planar => {
                view.check("input", dims)?;
                let (found, expected) = (view.layout.halo, self.input_halo());
                if found[0] < expected[0] || found[1] < expected[1] {
                    return Err(Error::Halo { found, expected });
                }
                self.plan.isa.dispatch(RunBlocked { call, view });
            }
            Input::Planar { .. } => {
                return Err(Error::InputLayout { algorithm, found: "planar", expected: "blocked" });
            }
            Input::Blocked(_) => {
                return Err(Error::InputLayout { algorithm, found: "blocked", expected: "planar" });
            }
        }
        Ok(())
    }
}

struct Pack<'a> {
    shape: &'a ConvShape,
    algorithm: Algorithm,
    weights: ConvWeights<'a>,
}

impl Dispatch for Pack<'_> {
    type Output = Result<Panels, Error>;

    fn run<S: Simd>(self, _: S) -> Result<Panels, Error> {
        match self.algorithm {
            Algorithm::Planar => Panels::planar::<S>(self.shape, self.weights),
            Algorithm::Pointwise | Algorithm::Direct => Panels::direct::<S>(self.shape, self.weights),
            Algorithm::Winograd2 => winograd::pack::<S, F2, F2, 4, 2, 4, 2>(self.shape, self.weights),
            Algorithm::Winograd2x4 => winograd::pack::<S, F2, F4, 4, 2, 6, 4>(self.shape, self.weights),
            Algorithm::Winograd4 => winograd::pack::<S, F4, F4, 6, 4, 6, 4>(self.shape, self.weights),
            Algorithm::WinogradStrided => winograd::pack::<S, S2, S2, 5, 2, 5, 2>(self.shape, self.weights),
        }
    }
}

struct TilePixels(usize);

impl Dispatch for TilePixels {
    type Output = usize;

    fn run<S: Simd>(self, _: S) -> usize {
        S::PIXELS[self.0 - 1]
    }
}

struct ScratchLen<'a> {
    conv: &'a PackedConv,
    input: [usize; 4],
    output: [usize; 4],
    threads: usize,
}

impl Dispatch for ScratchLen<'_> {
    type Output = Result<usize, Error>;

    fn run<S: Simd>(self, _: S) -> Result<usize, Error> {
        let Self { conv, input, output, threads } = self;
        match conv.plan.algorithm {
            Algorithm::Pointwise | Algorithm::Direct => Ok(0),
            Algorithm::Planar => planar::scratch_len(conv, input, output, threads),
            Algorithm::Winograd2 => {
                winograd::scratch_len(Extent::new::<F2, F2, 4, 2, 4, 2>(), conv, output, threads)
            }
            Algorithm::Winograd2x4 => {
                winograd::scratch_len(Extent::new::<F2, F4, 4, 2, 6, 4>(), conv, output, threads)
            }
            Algorithm::Winograd4 => {
                winograd::scratch_len(Extent::new::<F4, F4, 6, 4, 6, 4>(), conv, output, threads)
            }
            Algorithm::WinogradStrided => {
                winograd::scratch_len(Extent::new::<S2, S2, 5, 2, 5, 2>(), conv, output, threads)
            }
        }
    }
}

struct RunPlanar<'a> {
    call: Call<'a>,
    dims: [usize; 4],
    data: &'a [f32],
}

impl Dispatch for RunPlanar<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        planar::run(simd, self.call, self.dims, self.data);
    }
}

struct RunBlocked<'a> {
    call: Call<'a>,
    view: View<'a>,
}

impl Dispatch for RunBlocked<'_> {
    type Output = ();

    fn run<S: Simd>(self, simd: S) {
        match self.call.conv.plan.algorithm {
            Algorithm::Planar | Algorithm::Pointwise | Algorithm::Direct => {
                direct::run(simd, self.call, self.view)
            }
            Algorithm::Winograd2 => winograd::run::<S, F2, F2, 4, 2, 4, 2>(simd, self.call, self.view),
            Algorithm::Winograd2x4 => winograd::run::<S, F2, F4, 4, 2, 6, 4>(simd, self.call, self.view),
            Algorithm::Winograd4 => winograd::run::<S, F4, F4, 6, 4, 6, 4>(simd, self.call, self.view),
            Algorithm::WinogradStrided => winograd::run::<S, S2, S2, 5, 2, 5, 2>(simd, self.call, self.view),
        }
    }
}

/// Returns the blocked layout without halo for a validated shape.
fn dense(dims: [usize; 4]) -> Blocked {
    let [n, c, h, w] = dims;
    Blocked { n, c, h, w, halo: [0, 0] }
}

#[cfg(test)]
mod tests;
