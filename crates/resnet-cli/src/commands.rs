//! One command, one file.

pub mod bench;
pub mod predict;
pub mod verify;
