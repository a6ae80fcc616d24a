//! `[containerize.config]`: what the user wants in the image's configuration, validated.

use std::collections::BTreeMap;

/// The user that the container runs as, with the entries that `/etc/passwd` and `/etc/group` need for it.
///
/// A missing name is `flox`, a missing number 10000 (`root` and 0 stand for each other).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSpec {
    /// `config.User` of the image, as the manifest has it.
    pub text: String,
    /// Name of the user.
    pub name: String,
    /// Number of the user.
    pub uid: u32,
    /// Name of the group.
    pub group: String,
    /// Number of the group.
    pub gid: u32,
}

/// The table's keys, each in the form that the image configuration wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerConfig {
    /// `user`.
    pub user: Option<UserSpec>,
    /// `exposed-ports`: always `PORT/tcp` or `PORT/udp`.
    pub exposed_ports: Vec<String>,
    /// `cmd`.
    pub cmd: Option<Vec<String>>,
    /// `volumes`: absolute paths.
    pub volumes: Vec<String>,
    /// `working-dir`: an absolute path.
    pub working_dir: Option<String>,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `stop-signal`: `SIGNAME` or a number.
    pub stop_signal: Option<String>,
}
