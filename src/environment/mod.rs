//! A Flox environment: found on disk, read, and turned into what the image's root needs.

mod accounts;
mod activation;
mod base;
mod built;
mod container_config;
mod forest;
mod image_root;
mod manifest;
mod realise;
mod rendered;
mod store_view;
mod system;
mod vars;

pub use container_config::{ContainerConfig, UserSpec};
pub use forest::{Conflict, Forest, ForestError, ForestNode, PRIORITY_SCALE, Package, Propagation};
pub use manifest::{ActivateMode, Manifest};
pub use realise::{RealiseError, Realised, Request, realise};
pub use system::{System, UnknownSystem};
pub use vars::VarError;
