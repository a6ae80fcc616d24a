//! What is wanted of an image, and the OCI image configuration that says so.

use std::collections::BTreeMap;

use oci_spec::image::{Arch, Config, History, ImageConfiguration, Os, RootFs};

use super::{ImageName, Layer, Timestamp};
use crate::nix::StorePath;

/// What an image shall be, its layers left out. Fields are OCI's (image specification, config.md, "Properties").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// What it is called. It does not show in the image's identity.
    pub name: ImageName,
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

/// What an entry of the history says made its layer.
const CREATED_BY: &str = "layerhold containerize";

/// How long the comment of one history entry may be, in bytes.
///
/// Readers refuse configurations beyond 4 MiB (containers/image) or 8 MiB (containerd); 127 layers of this length
/// make 2 MiB.
const COMMENT_LIMIT: usize = 16 * 1024;

impl ImageSpec {
    /// An image of that name for that architecture, everything else empty.
    pub fn new(name: ImageName, architecture: &str) -> Self {
        Self {
            name,
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
        let history = layers.iter().map(|layer| {
            let mut entry = History::default();
            entry
                .set_created(Some(created.clone()))
                .set_created_by(Some(CREATED_BY.to_owned()))
                .set_comment(Some(comment(&layer.store_paths)));
            entry
        });
        let mut configuration = ImageConfiguration::default();
        configuration
            .set_created(Some(created.clone()))
            .set_architecture(Arch::from(self.architecture.as_str()))
            .set_os(Os::Linux)
            .set_config(Some(config))
            .set_history(Some(history.collect()))
            .set_rootfs(rootfs);
        configuration
    }
}

/// The base names of a layer's store paths, as many as fit.
fn comment(store_paths: &[StorePath]) -> String {
    if store_paths.is_empty() {
        return "the image's own files".to_owned();
    }
    let mut comment = String::new();
    for (shown, path) in store_paths.iter().enumerate() {
        // Room is left for the closing words.
        if comment.len() + path.base_name().len() + 32 > COMMENT_LIMIT {
            comment.push_str(&format!(" and {} more", store_paths.len() - shown));
            break;
        }
        if shown > 0 {
            comment.push(' ');
        }
        comment.push_str(path.base_name());
    }
    comment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(count: usize) -> Vec<StorePath> {
        (0..count)
            .map(|n| StorePath::from_base_name(&format!("nm7p8wxflggcwxfzayhysq4z6a1wg373-package-{n}")).unwrap())
            .collect()
    }

    #[test]
    fn a_comment_names_the_store_paths() {
        assert_eq!(
            comment(&paths(2)),
            "nm7p8wxflggcwxfzayhysq4z6a1wg373-package-0 nm7p8wxflggcwxfzayhysq4z6a1wg373-package-1"
        );
        assert_eq!(comment(&[]), "the image's own files");
    }

    #[test]
    fn a_long_comment_says_how_many_it_leaves_out() {
        let comment = comment(&paths(5000));
        assert!(comment.len() <= COMMENT_LIMIT);
        let shown = comment.matches("-package-").count();
        assert!(comment.ends_with(&format!(" and {} more", 5000 - shown)), "{comment}");
    }

    #[test]
    fn an_empty_specification_has_no_empty_fields() {
        let spec = ImageSpec::new(ImageName::new("hello", "latest").unwrap(), "arm64");
        let json = serde_json::to_value(spec.configuration(&[])).unwrap();
        insta::assert_snapshot!(json, @r#"{"architecture":"arm64","config":{},"created":"1970-01-01T00:00:01Z","history":[],"os":"linux","rootfs":{"diff_ids":[],"type":"layers"}}"#);
    }
}
