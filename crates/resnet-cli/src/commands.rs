//! The commands, one file each.

pub mod bench;
pub mod cache;
pub mod convert;
pub mod diff;
pub mod doctor;
pub mod download;
pub mod eval;
pub mod generate;
pub mod info;
pub mod inspect;
pub mod list;
pub mod predict;
pub mod serve;
pub mod summary;
pub mod train;
pub mod verify;

use std::path::Path;

use crate::exit::UsageError;

/// Returns an error if `path` does not end in `extension`, the only format that `flag` writes.
fn require_extension(flag: &str, path: &Path, extension: &str) -> Result<(), UsageError> {
    match path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension)) {
        true => Ok(()),
        false => Err(UsageError(format!("{flag} {}: expected a file name in .{extension}", path.display()))),
    }
}
