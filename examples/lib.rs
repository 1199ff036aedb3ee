//! An empty library: cargo requires a target in addition to the examples.
