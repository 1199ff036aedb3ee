//! The product's end-to-end tests, one binary. Golden files are in `golden/`, made by `golden/generate.py`.
#![cfg(test)]

mod cli;
mod fakehub;
mod golden;
mod hub;
mod inspect;
mod manifest;
mod manners;
mod predict;
mod tidy;
mod train;
mod verify;
mod workers;
mod zoo;
