//! A Flox environment: found on disk, read, and turned into what the image's root needs.

mod container_config;
mod manifest;
mod system;

pub use container_config::{ContainerConfig, UserSpec};
pub use manifest::{ActivateMode, Manifest};
pub use system::{System, UnknownSystem};
