//! A Flox environment: found on disk, read, and turned into what the image's root needs.

mod container_config;
mod forest;
mod manifest;
mod rendered;
mod store_view;
mod system;
mod vars;

pub use container_config::{ContainerConfig, UserSpec};
pub use forest::{Forest, ForestError, ForestNode, PRIORITY_SCALE, Package, Propagation};
pub use manifest::{ActivateMode, Manifest};
pub use system::{System, UnknownSystem};
