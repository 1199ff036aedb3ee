//! Modules of the `resnet-cli` program, for the program and its tests.

pub mod cli;
pub mod commands;
pub mod device;
pub mod draw;
pub mod exit;
mod images;
pub mod models;
pub mod output;
mod page;
mod scatter;
pub mod terminal;
pub mod weights;
pub mod workers;
