//! The library of the package `fuzz`: what its targets share with the tests of this crate, which replay their corpora.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code, unreachable_pub, missing_docs)]

mod build;
pub mod fuzz;
