//! Convolution with weights packed once.

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

/// What a convolution reads.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// `[N, C, H, W]` without a halo, for [`Algorithm::Planar`].
    Planar {
        /// `[N, C, H, W]`.
        dims: [usize; 4],
        /// N × C × H × W elements.
        data: &'a [f32],
    },
    /// Blocked, for all other algorithms. Direct ones read the padding from the halo, which must be at least as wide and
    /// hold zeros; Winograd needs none.
    Blocked(View<'a>),
}

/// What follows the sum of products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epilogue {
    /// Applied after bias and residual.
    pub activation: Activation,
    /// A max-pooling fused behind the activation, for [`Algorithm::Planar`] without residual: its input never
    /// reaches memory.
    pub max_pool: Option<PoolSpec>,
}

/// A convolution, ready to run on any batch and image size, from any number of threads at once.
///
/// Infinities and NaN reach every output that depends on them, as in a direct sum, with two differences. Winograd may turn
/// an infinity into NaN and spread either over its tile of up to 4 × 4 outputs. And channels that share a block of 16 with
/// those of other groups, or with padding, are multiplied by zero weights, which turns non-finite inputs into NaN there.
#[derive(Clone, Debug)]
pub struct PackedConv {
    shape: ConvShape,
    plan: Plan,
    epilogue: Epilogue,
    panels: Panels,
    /// Whether long sums are added up in parts.
    chunked_sums: bool,
}

/// A checked call.
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
    /// Errors: a bad shape, slices of the wrong length, an algorithm that cannot compute the shape or the epilogue.
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
        let panels = plan.isa.dispatch(Pack { shape: &shape, algorithm: plan.algorithm, weights });
        Ok(Self { shape, plan, epilogue, panels, chunked_sums: false })
    }

    /// The same, with long direct sums added up in parts of about a hundred products (fewer over a planar input), which
    /// halves their rounding errors and costs a few percent of the time. Winograd's sums stay as they are.
    pub fn with_chunked_sums(self) -> Self {
        Self { chunked_sums: true, ..self }
    }

    /// A convolution of panels that were filled for `plan` elsewhere.
    pub(crate) fn from_panels(shape: ConvShape, plan: Plan, panels: Panels) -> Self {
        Self { shape, plan, epilogue: Epilogue::default(), panels, chunked_sums: false }
    }

    /// The memory of the packed weights.
    pub(crate) fn into_weights(self) -> AlignedVec {
        self.panels.weights
    }

    /// The shape it was made from.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// The plan it was packed for.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// `{algorithm}-f32-{channels}x{pixels}-{isa}` of the register tile, such as `winograd4-f32-64x6-avx512`.
    pub fn kernel_name(&self) -> String {
        let blocks = self.panels.list.first().map_or(1, |panel| panel.blocks);
        let pixels = self.plan.isa.dispatch(TilePixels(blocks));
        format!("{}-f32-{}x{pixels}-{}", self.plan.algorithm.name(), blocks * 16, self.plan.isa.name())
    }

    /// Bytes held: packed weights and bias.
    pub fn bytes(&self) -> usize {
        (self.panels.weights.len() + self.panels.bias.len()) * size_of::<f32>()
    }

    /// The halo that the input needs, `[vertical, horizontal]` pixels.
    pub fn input_halo(&self) -> [usize; 2] {
        match self.plan.algorithm {
            Algorithm::Direct | Algorithm::Pointwise => self.shape.padding,
            _ => [0, 0],
        }
    }

    /// `[N, C, H, W]` of the output, after a fused pooling. Errors: wrong channels, an input too small for the kernel.
    pub fn output_dims(&self, input: [usize; 4]) -> Result<[usize; 4], Error> {
        let [n, c, mut h, mut w] = self.shape.output_dims(input)?;
        if let Some(spec) = &self.epilogue.max_pool {
            [h, w] = spec.output_hw([h, w])?;
        }
        Ok([n, c, h, w])
    }

    /// Elements of scratch memory that [`PackedConv::run`] needs for an input `[N, C, H, W]` on `threads` threads.
    pub fn scratch_len(&self, input: [usize; 4], threads: usize) -> Result<usize, Error> {
        let output = self.output_dims(input)?;
        product("activation length", &input)?;
        product("activation length", &output)?;
        self.plan.isa.dispatch(ScratchLen { conv: self, input, output, threads })
    }

    /// `output = activation(convolution(input) + bias + residual)`. Allocates nothing.
    ///
    /// `scratch` is at least [`PackedConv::scratch_len`] long and may hold anything. The result does not depend on the
    /// number of threads. Errors: shapes, halo or lengths that do not fit.
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
    type Output = Panels;

    fn run<S: Simd>(self, _: S) -> Panels {
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

/// Blocked layout without halo of an output known to be checked.
fn dense(dims: [usize; 4]) -> Blocked {
    let [n, c, h, w] = dims;
    Blocked { n, c, h, w, halo: [0, 0] }
}

#[cfg(test)]
mod tests;
