use crate::error::Error;
use crate::layout::{Blocked, View};

/// What happens to every output after the sum, the bias and the residual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
}

/// A tensor of the output's `[N, C, H, W]` that is added before the activation.
#[derive(Clone, Copy, Debug, Default)]
pub enum Residual<'a> {
    /// Nothing is added.
    #[default]
    None,
    /// This tensor, whose halo may differ from the output's.
    Add(View<'a>),
    /// What the output holds: `output = activation(output + convolution)`.
    InPlace,
}

impl Residual<'_> {
    pub(crate) fn check(&self, output: &Blocked) -> Result<(), Error> {
        match self {
            Residual::Add(view) => view.check("residual", output.dims()),
            Residual::None | Residual::InPlace => Ok(()),
        }
    }
}
