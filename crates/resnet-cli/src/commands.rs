//! One command, one file.

pub mod bench;
pub mod eval;
pub mod info;
pub mod list;
pub mod predict;
pub mod summary;
pub mod train;
pub mod verify;
