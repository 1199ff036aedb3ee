//! The product's end-to-end tests, one binary. Golden files are in `golden/`, made by `golden/generate.py`.
#![cfg(test)]

mod cli;
mod convert;
#[allow(dead_code)]
#[path = "../crates/resnet-hub/tests/hub/fake_hub.rs"]
mod fakehub;
mod golden;
mod inspect;
mod manners;
mod predict;
mod serve;
mod tidy;
mod train;
mod verify;
mod weights;
mod workers;
mod zoo;
