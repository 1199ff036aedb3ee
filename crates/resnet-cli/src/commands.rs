//! One command, one file.

pub mod bench;
pub mod diff;
pub mod eval;
pub mod info;
pub mod inspect;
pub mod list;
pub mod predict;
pub mod summary;
pub mod train;
pub mod verify;
