//! One file per family: the function that turns an architecture into its graph.

pub(crate) mod clip;
mod head;
pub(crate) mod inception;
mod parts;
pub(crate) mod resnet;
pub(crate) mod resnet_v2;
pub(crate) mod vgg;
