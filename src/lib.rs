//! Exports a Flox or Nix environment as an OCI container image, layer by layer out of a content-addressed store.
//!
//! The way through, in the order of the modules:
//!
//! ```text
//! environment -> closure -> layer plan -> packing -> layer store -> image -> delivery
//! ```

pub mod blob;
mod child;
pub mod crash;
pub mod event;
mod host;
mod http;
pub mod outlet;
pub mod parallel;
pub mod registry;
pub mod rootfs;
pub mod sha256;

pub mod nix;

pub mod substitute;

pub mod environment;

pub mod catalog;

pub mod plan;

pub mod pack;

pub mod store;

pub mod share;

pub mod image;

pub mod delivery;

pub mod proxy;

pub mod layers;
pub mod memo;

pub mod containerize;
pub mod error;

pub mod cli;
