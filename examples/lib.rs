//! Compiles the programs in the README of the repository as documentation tests.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
