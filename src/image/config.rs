//! What is wanted of an image, and the OCI image configuration that says so.

use std::collections::BTreeMap;

use oci_spec::image::{Arch, Config, ImageConfiguration, Os, RootFs};

use super::{ImageName, Layer, Timestamp, history};
use crate::nix::StorePath;

/// What an image shall be, its layers left out. Fields are OCI's (image specification, config.md, "Properties").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// What it is called. It does not show in the image's identity.
    pub name: ImageName,
    /// Store paths that a layer holds and the top one hides: nothing in the image needs them. Not in the identity either.
    pub hidden: Vec<StorePath>,
    /// `architecture`, Go's name: `amd64`, `arm64`.
    pub architecture: String,
    /// `created`, of the image and of every entry of its history.
    pub created: Timestamp,
    /// `config.Entrypoint`; empty for none.
    pub entrypoint: Vec<String>,
    /// `config.Cmd`.
    pub cmd: Option<Vec<String>>,
    /// `config.Env`, each `NAME=VALUE`; the order is kept.
    pub env: Vec<String>,
    /// `config.User`.
    pub user: Option<String>,
    /// `config.ExposedPorts`, each `PORT/PROTOCOL`.
    pub exposed_ports: Vec<String>,
    /// `config.Volumes`.
    pub volumes: Vec<String>,
    /// `config.WorkingDir`.
    pub working_dir: Option<String>,
    /// `config.Labels`.
    pub labels: BTreeMap<String, String>,
    /// `config.StopSignal`.
    pub stop_signal: Option<String>,
}

impl ImageSpec {
    /// An image of that name for that architecture, everything else empty.
    pub fn new(name: ImageName, architecture: &str) -> Self {
        Self {
            name,
            hidden: Vec::new(),
            architecture: architecture.to_owned(),
            created: Timestamp::default(),
            entrypoint: Vec::new(),
            cmd: None,
            env: Vec::new(),
            user: None,
            exposed_ports: Vec::new(),
            volumes: Vec::new(),
            working_dir: None,
            labels: BTreeMap::new(),
            stop_signal: None,
        }
    }

    /// The OCI image configuration of this image made of these layers.
    pub(super) fn configuration(&self, layers: &[Layer]) -> ImageConfiguration {
        let some = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
        let mut config = Config::default();
        config
            .set_entrypoint(some(&self.entrypoint))
            .set_cmd(self.cmd.clone())
            .set_env(some(&self.env))
            .set_user(self.user.clone())
            .set_exposed_ports(some(&self.exposed_ports))
            .set_volumes(some(&self.volumes))
            .set_working_dir(self.working_dir.clone())
            .set_labels(Some(self.labels.clone().into_iter().collect()).filter(|_| !self.labels.is_empty()))
            .set_stop_signal(self.stop_signal.clone());
        let created = self.created.to_string();
        let mut rootfs = RootFs::default();
        rootfs.set_diff_ids(layers.iter().map(|layer| layer.diff_id.to_string()).collect());
        let mut configuration = ImageConfiguration::default();
        configuration
            .set_created(Some(created.clone()))
            .set_architecture(Arch::from(self.architecture.as_str()))
            .set_os(Os::Linux)
            .set_config(Some(config))
            .set_history(Some(history::of(layers, &created)))
            .set_rootfs(rootfs);
        configuration
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_specification_has_no_empty_fields() {
        let spec = ImageSpec::new(ImageName::new("hello", "latest").unwrap(), "arm64");
        let json = serde_json::to_value(spec.configuration(&[])).unwrap();
        insta::assert_snapshot!(json, @r#"{"architecture":"arm64","config":{},"created":"1970-01-01T00:00:01Z","history":[],"os":"linux","rootfs":{"diff_ids":[],"type":"layers"}}"#);
    }
}
