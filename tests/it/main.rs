//! Integration tests, one binary: the built `layerhold` against real stores, real runtimes and real readers of images.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod archive;
mod flox_fixture;
mod nix_fixture;
mod peers;
mod sandbox;
mod terminal;

mod activation;
mod containerize;
mod failures;
mod house;
mod runtimes;
