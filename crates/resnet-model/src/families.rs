//! The graph of each architecture, one file per family.

mod blocks;
pub(crate) mod clip;
mod head;
pub(crate) mod inception;
pub(crate) mod resnet;
pub(crate) mod resnet_v2;
pub(crate) mod vgg;
