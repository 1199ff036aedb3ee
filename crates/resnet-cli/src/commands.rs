//! One command, one file.

pub mod bench;
pub mod eval;
pub mod predict;
pub mod train;
pub mod verify;
