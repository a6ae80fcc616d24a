//! `manifest.toml`: what the user wrote.

use std::collections::BTreeMap;

use super::ContainerConfig;

/// How an environment is activated (flox: `options.activate.mode`, `--mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivateMode {
    /// For work on software: also the variables that compilers look at.
    #[default]
    Dev,
    /// For running software: only the search paths of programs.
    Run,
}

/// The parts of a manifest that shape the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// `[vars]`: exported at activation, values as written (bash expands them between double quotes).
    pub vars: BTreeMap<String, String>,
    /// `hook.on-activate`.
    pub on_activate: Option<String>,
    /// `profile.common`.
    pub profile_common: Option<String>,
    /// `profile.bash`.
    pub profile_bash: Option<String>,
    /// `options.activate.mode`.
    pub activate_mode: Option<ActivateMode>,
    /// The names in `[services]`.
    pub services: Vec<String>,
    /// `[containerize.config]`, validated.
    pub containerize: ContainerConfig,
}
