use crate::error::Error;
use crate::layout::{Blocked, View};

/// Activation applied to every output after bias and residual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Identity.
    #[default]
    None,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
}

/// Residual add before the activation, with a tensor of the output's shape `[N, C, H, W]`.
#[derive(Clone, Copy, Debug, Default)]
pub enum Residual<'a> {
    /// No residual add.
    #[default]
    None,
    /// Adds this tensor, whose halo may differ from the output's.
    Add(View<'a>),
    /// Adds the previous content of the output: `output = activation(output + convolution)`.
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
