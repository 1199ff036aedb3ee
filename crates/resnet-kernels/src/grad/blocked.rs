//! Training convolutions of blocked tensors: forward and both gradients.

use super::buffer_pool::BufferPool;
use super::pack::{self, Direction, WeightSource};
use super::phase::{self, Phase};
use super::{WINOGRAD_PIXELS, outer};
use crate::conv::{Algorithm, Epilogue, Input, PackedConv, Plan, Precision};
use crate::epilogue::Residual;
use crate::error::{Error, check_at_least, check_len, product};
use crate::layout::{Blocked, LANES, View, ViewMut};
use crate::shape::{ConvShape, ConvWeights};
use crate::simd::{AlignedVec, Isa};
use crate::threads::ThreadPool;

/// Training convolution of blocked tensors without halo, with weights `[c_out, c_in / groups, kernel height, kernel
/// width]`.
///
/// Buffers come from a [`BufferPool`], so results may be longer than their layout. Results do not depend on the number
/// of threads.
#[derive(Clone, Copy, Debug)]
pub struct BlockedConv<'a> {
    /// Shape of the convolution.
    pub shape: ConvShape,
    /// Input shape `[N, C, H, W]`.
    pub input: [usize; 4],
    /// Instruction set.
    pub isa: Isa,
    /// Thread pool.
    pub pool: &'a ThreadPool,
}

impl BlockedConv<'_> {
    /// Returns the layout of the output `[N, c_out, H', W']`.
    ///
    /// # Errors
    ///
    /// Invalid shape, wrong number of channels, or an input smaller than the kernel.
    pub fn output(&self) -> Result<Blocked, Error> {
        Blocked::new(self.shape.output_dims(self.input)?)
    }

    /// Returns the output.
    ///
    /// # Errors
    ///
    /// A shape or length does not match, or the input is planar and the convolution has groups.
    pub fn forward(
        &self,
        input: Input,
        weights: &[f32],
        buffers: &mut BufferPool,
    ) -> Result<AlignedVec, Error> {
        let to = self.output()?;
        check_len("weights", weights.len(), self.shape.weight_len()?)?;
        let mut output = buffers.take(to.len());
        let target = ViewMut { layout: to, data: &mut output[..to.len()] };
        match input {
            Input::Planar { .. } => {
                let plan = Plan { algorithm: Algorithm::Planar, isa: self.isa };
                let conv_weights = ConvWeights { weights, bias: None };
                let conv = PackedConv::new(self.shape, plan, conv_weights, Epilogue::default())?;
                self.run(&conv, self.input, input, Residual::None, target, buffers)?;
            }
            Input::Blocked(view) => {
                let source = WeightSource { shape: &self.shape, weights, direction: Direction::Forward };
                let conv = self.packed(self.shape, self.input, source, buffers)?;
                self.run_blocked(&conv, view, Residual::None, target, buffers)?;
                buffers.put(conv.into_weights());
            }
        }
        Ok(output)
    }

    /// Returns the input gradient for an output gradient, added to `before` if given.
    ///
    /// With a stride, the input pixels are divided into phases (pixel modulo stride), each of which is a convolution
    /// with a subset of the taps.
    ///
    /// # Errors
    ///
    /// A shape or length does not match.
    pub fn grad_input(
        &self,
        grad: &[f32],
        weights: &[f32],
        before: Option<AlignedVec>,
        buffers: &mut BufferPool,
    ) -> Result<AlignedVec, Error> {
        let output = self.output()?;
        let grad = view(output, "gradient", grad)?;
        check_len("weights", weights.len(), self.shape.weight_len()?)?;
        let to = Blocked::new(self.input)?;
        let rows = Phase::list(&self.shape, 0, to.h, output.h);
        let columns = Phase::list(&self.shape, 1, to.w, output.w);
        if let Some(before) = &before {
            check_at_least("gradient before", before.len(), to.len())?;
        }
        let whole = rows.len() == 1 && columns.len() == 1 && rows[0].is_whole() && columns[0].is_whole();
        if whole {
            let shape = phase::shape(&self.shape, &rows[0], &columns[0]);
            if shape.output_hw([output.h, output.w])? == [to.h, to.w] {
                let residual = if before.is_some() { Residual::InPlace } else { Residual::None };
                let mut result = before.unwrap_or_else(|| buffers.take(to.len()));
                let conv =
                    self.packed_backward(shape, output.dims(), weights, (&rows[0], &columns[0]), buffers)?;
                let target = ViewMut { layout: to, data: &mut result[..to.len()] };
                self.run_blocked(&conv, grad, residual, target, buffers)?;
                buffers.put(conv.into_weights());
                return Ok(result);
            }
        }
        let mut result = before.unwrap_or_else(|| buffers.zeroed(to.len()));
        for row in &rows {
            for column in &columns {
                let shape = phase::shape(&self.shape, row, column);
                let conv = self.packed_backward(shape, output.dims(), weights, (row, column), buffers)?;
                let from = Blocked::new(conv.output_dims(output.dims())?)?;
                let mut part = buffers.take(from.len());
                let target = ViewMut { layout: from, data: &mut part[..from.len()] };
                self.run_blocked(&conv, grad, Residual::None, target, buffers)?;
                buffers.put(conv.into_weights());
                self.pool.for_each_chunk(&mut result[..to.len()], to.plane_len(), |index, plane| {
                    let part = &part[index * from.plane_len()..][..from.plane_len()];
                    for y in 0..from.h {
                        let Some(target) = row.target(y, to.h) else { continue };
                        let line = &mut plane[target * to.row_len()..][..to.row_len()];
                        let pixels = part[y * from.row_len()..][..from.row_len()].as_chunks::<LANES>().0;
                        column.add(pixels, line.as_chunks_mut::<LANES>().0);
                    }
                });
                buffers.put(part);
            }
        }
        Ok(result)
    }

    /// Returns the weight gradient, in the order of the weights, for an input and an output gradient.
    ///
    /// # Errors
    ///
    /// A shape or length does not match.
    pub fn grad_weights(
        &self,
        input: Input,
        grad: &[f32],
        buffers: &mut BufferPool,
    ) -> Result<Vec<f32>, Error> {
        let output = self.output()?;
        let grad = view(output, "gradient", grad)?;
        let planar = super::PlanarConv {
            shape: self.shape,
            input: self.input,
            isa: self.isa,
            precision: Precision::F32,
            pool: self.pool,
        };
        let from = Blocked::new(self.input)?;
        match input {
            Input::Planar { dims, data } => {
                check_len("input", data.len(), product("input length", &dims)?)?;
                super::weights::gradient(
                    &planar,
                    output.dims(),
                    data,
                    super::weights::OutputGrad::Blocked(grad),
                )
            }
            Input::Blocked(view) if self.shape.groups == 1 => {
                view.check("input", self.input)?;
                outer::gradient(self, view, grad, buffers)
            }
            Input::Blocked(view) => {
                view.check("input", self.input)?;
                let mut data = vec![0.0; self.input.iter().product()];
                from.unpack(view.data, &mut data, self.pool)?;
                super::weights::gradient(
                    &planar,
                    output.dims(),
                    &data,
                    super::weights::OutputGrad::Blocked(grad),
                )
            }
        }
    }

    /// Returns the plan for `shape`, restricted to algorithms whose weights are quick to pack.
    fn plan(&self, shape: &ConvShape, input: [usize; 4]) -> Result<Plan, Error> {
        let [oh, ow] = shape.output_hw([input[2], input[3]])?;
        let many =
            input[0].saturating_mul(oh * ow) >= WINOGRAD_PIXELS && shape.c_in.min(shape.c_out) >= LANES;
        let algorithm = match many && Algorithm::Winograd4.supports(shape).is_ok() {
            true => Algorithm::Winograd4,
            false => Algorithm::Direct,
        };
        Ok(Plan { algorithm, isa: self.isa })
    }

    fn packed(
        &self,
        shape: ConvShape,
        input: [usize; 4],
        source: WeightSource,
        buffers: &mut BufferPool,
    ) -> Result<PackedConv, Error> {
        let plan = self.plan(&shape, input)?;
        match shape.groups {
            1 => Ok(pack::pack(shape, plan, source, buffers, self.pool)),
            _ => {
                let flipped = match source.direction {
                    Direction::Forward => source.weights.to_vec(),
                    Direction::Backward(row, column) => {
                        phase::weights(source.shape, source.weights, row, column)
                    }
                };
                PackedConv::new(
                    shape,
                    plan,
                    ConvWeights { weights: &flipped, bias: None },
                    Epilogue::default(),
                )
            }
        }
    }

    fn packed_backward(
        &self,
        shape: ConvShape,
        output: [usize; 4],
        weights: &[f32],
        (row, column): (&Phase, &Phase),
        buffers: &mut BufferPool,
    ) -> Result<PackedConv, Error> {
        let source =
            WeightSource { shape: &self.shape, weights, direction: Direction::Backward(row, column) };
        self.packed(shape, output, source, buffers)
    }

    /// Runs `conv` on a tensor without halo; copies it into one with halo if the algorithm needs that.
    fn run_blocked(
        &self,
        conv: &PackedConv,
        from: View,
        residual: Residual,
        to: ViewMut,
        buffers: &mut BufferPool,
    ) -> Result<(), Error> {
        let halo = conv.input_halo();
        let dims = from.layout.dims();
        if halo == [0, 0] {
            return self.run(conv, dims, Input::Blocked(from), residual, to, buffers);
        }
        let layout = Blocked::new(dims)?.with_halo(halo)?;
        let mut padded = buffers.take(layout.len());
        let (line, side) = (from.layout.row_len(), halo[1] * LANES);
        self.pool.for_each_chunk(&mut padded[..layout.len()], layout.plane_len(), |index, plane| {
            let source = &from.data[index * from.layout.plane_len()..][..from.layout.plane_len()];
            let (above, rest) = plane.split_at_mut(halo[0] * layout.row_len());
            let (inner, below) = rest.split_at_mut(layout.h * layout.row_len());
            above.fill(0.0);
            below.fill(0.0);
            for (to, from) in inner.chunks_exact_mut(layout.row_len()).zip(source.chunks_exact(line)) {
                to[..side].fill(0.0);
                to[side..side + line].copy_from_slice(from);
                to[side + line..].fill(0.0);
            }
        });
        let view = View { layout, data: &padded[..layout.len()] };
        self.run(conv, dims, Input::Blocked(view), residual, to, buffers)?;
        buffers.put(padded);
        Ok(())
    }

    fn run(
        &self,
        conv: &PackedConv,
        dims: [usize; 4],
        input: Input,
        residual: Residual,
        to: ViewMut,
        buffers: &mut BufferPool,
    ) -> Result<(), Error> {
        let mut scratch = buffers.take(conv.scratch_len(dims, self.pool.threads())?);
        conv.run(input, residual, to, &mut scratch, self.pool)?;
        buffers.put(scratch);
        Ok(())
    }
}

/// Returns the first elements of `data` as a tensor without halo.
fn view<'a>(layout: Blocked, what: &'static str, data: &'a [f32]) -> Result<View<'a>, Error> {
    check_at_least(what, data.len(), layout.len())?;
    Ok(View { layout, data: &data[..layout.len()] })
}
