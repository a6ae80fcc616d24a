//! A Flox environment: found on disk, read, and turned into what the image's root needs.

use std::path::Path;

mod accounts;
mod activation;
mod base;
mod built;
mod built_entry;
mod container_config;
mod document;
mod find;
mod forest;
mod freshness;
mod image_root;
mod install;
mod invalid_file;
mod lockfile;
mod manifest;
mod open;
mod realise;
mod rendered;
mod schema;
mod signal;
mod store_view;
mod system;
mod user;
mod vars;

pub use built::{Built, Unusable};
pub use container_config::{ContainerConfig, InvalidConfig, parse_label};
pub use find::{
    ACTIVE_ENVIRONMENTS, Candidate, CandidatePlace, Choice, Choose, FindError, Selection, Surroundings, find,
};
pub use forest::{Conflict, Forest, ForestError, ForestNode, PRIORITY_SCALE, Package, Propagation};
pub use install::{InstallEntry, InvalidPriority, PackageSource, SelectedOutputs};
pub use invalid_file::{InvalidFile, Place, Position, Problem};
pub use lockfile::{InstallError, Installed, Lockfile};
pub use manifest::{ActivateMode, Manifest};
pub use open::{Environment, Hub, OpenError};
pub use realise::{RealiseError, RealiseRequest, Realised, realise};
pub use schema::{Schema, UnknownSchema};
pub use system::{System, UnknownPlatform};
pub use user::UserSpec;
pub use vars::VarError;

/// The directory that makes another one an environment.
pub const DOT_FLOX: &str = ".flox";

/// The command that writes a lockfile which belongs to its manifest.
///
/// Of those that do, `flox list` needs no terminal, runs no hook (unlike `flox activate`) and lets the versions of
/// packages that are locked already be (unlike `flox upgrade`).
fn relock_hint(environment: &Path) -> String {
    format!("lock it: flox list -d {}", quoted(environment))
}

/// A path as a POSIX shell reads it back.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_can_be_pasted_into_a_shell() {
        assert_eq!(relock_hint(Path::new("/home/me/proj")), "lock it: flox list -d /home/me/proj");
        assert_eq!(relock_hint(Path::new("/home/o'me/a b")), r"lock it: flox list -d '/home/o'\''me/a b'");
    }
}
