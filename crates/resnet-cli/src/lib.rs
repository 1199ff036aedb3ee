//! The parts of the `resnet-cli` program, for the program and its tests.

pub mod cli;
pub mod commands;
pub mod device;
pub mod hub;
pub mod output;
pub mod weights;
