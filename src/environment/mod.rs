//! A Flox environment: found on disk or on FloxHub, read, and turned into what the image's root needs.

mod accounts;
mod activation;
mod base;
mod basics;
mod built;
mod built_entry;
mod container_config;
mod document;
mod fetched;
mod find;
mod floxhub;
mod floxmeta;
mod forest;
mod freshness;
mod generations;
mod git;
mod image_root;
mod install;
mod invalid_file;
mod languages;
mod location;
mod lockfile;
mod manifest;
mod open;
mod realise;
mod remote;
mod remote_name;
mod rendered;
mod schema;
mod services;
mod signal;
mod store_view;
mod supervision;
mod system;
mod user;
mod vars;

pub use basics::Basic;
pub use built::{Built, Unusable};
pub use container_config::{ContainerConfig, InvalidConfig, parse_label};
pub use find::{
    ACTIVE_ENVIRONMENTS, Candidate, CandidatePlace, Choice, Choose, FindError, Selection, Surroundings, find,
};
pub use floxhub::{CATALOG_URL, FLOXHUB_GIT_URL, FLOXHUB_TOKEN, FLOXHUB_URL, FloxHubError, FloxHubSettings, Secret};
pub use forest::{Conflict, ForestError, PRIORITY_SCALE, Package};
pub use git::GitError;
pub use install::{InstallEntry, InvalidPriority, PackageSource, SelectedOutputs};
pub use invalid_file::{InvalidFile, Place, Position, Problem};
pub use location::Location;
pub use lockfile::{FromNixpkgs, InstallError, Installed, Lockfile};
pub use manifest::{ActivateMode, Manifest};
pub use open::{Environment, Hub, OpenError};
pub use realise::{RealiseError, RealiseRequest, Realised, realise};
pub use remote::{Remote, RemoteAccess, RemoteError};
pub use remote_name::{InvalidRemoteName, RemoteName};
pub use schema::{Schema, UnknownSchema};
pub use services::{Service, Services, ServicesError, StartServices};
pub use system::{System, UnknownPlatform};
pub use user::UserSpec;
pub use vars::VarError;

/// The directory that makes another one an environment.
pub const DOT_FLOX: &str = ".flox";
