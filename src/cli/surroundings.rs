//! What the process was started in: the time, directories and settings from environment variables.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::failure::Failure;
use super::interrupt;
use crate::environment::{
    CATALOG_URL, FLOXHUB_GIT_URL, FLOXHUB_TOKEN, FLOXHUB_URL, FloxHubSettings, RemoteAccess, Secret,
};
use crate::event::{Event, Observer};
use crate::store::LayerStore;

/// A variable's value; one that is set to nothing counts as not set, as the XDG specification wants it.
pub(super) fn variable(name: impl AsRef<OsStr>) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The layer store's directory: `LAYERHOLD_CACHE`, else `layerhold` in `XDG_CACHE_HOME`, else in `~/.cache`.
pub(super) fn cache_directory() -> Option<PathBuf> {
    variable("LAYERHOLD_CACHE")
        .or_else(|| absolute("XDG_CACHE_HOME").map(|cache| cache.join("layerhold")))
        .or_else(|| absolute("HOME").map(|home| home.join(".cache/layerhold")))
}

/// XDG's rule: a relative path is no answer.
pub(super) fn absolute(name: &str) -> Option<PathBuf> {
    variable(name).filter(|path| path.is_absolute())
}

/// Opens the layer store for a command that is about it.
pub(super) fn open_cache() -> Result<LayerStore, Failure> {
    let directory = cache_directory().ok_or_else(no_cache_directory)?;
    Ok(LayerStore::open_until(&directory, interrupt::flag())?)
}

/// Nobody says where the layer store is.
pub(super) fn no_cache_directory() -> Failure {
    Failure::new(
        "there is no directory for the layer cache: neither LAYERHOLD_CACHE, XDG_CACHE_HOME nor HOME is set",
        Some("name one: LAYERHOLD_CACHE=/path layerhold ...".to_owned()),
    )
}

/// Opens the layer store for a build, which can do without: that is said.
pub(super) fn open_cache_if_possible(observer: &dyn Observer) -> Option<LayerStore> {
    let opened = match cache_directory() {
        Some(directory) => {
            let opened = LayerStore::open_until(&directory, interrupt::flag());
            opened.and_then(LayerStore::to_write).map_err(Failure::from)
        }
        None => Err(no_cache_directory()),
    };
    opened
        .map_err(|failure| {
            if observer.cancelled() {
                return;
            }
            let message = format!("going on without the layer cache: {}", failure.as_warning());
            observer.event(Event::Warning { message });
        })
        .ok()
}

/// What git may see of this process's variables: where its own parts are, who is between here and FloxHub, and whom
/// to trust. What would change what git does, or write down what it sends, is not among them.
const GIT_VARIABLES: &[&str] = &[
    "PATH",
    "TMPDIR",
    "GIT_EXEC_PATH",
    "LD_LIBRARY_PATH",
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NIX_SSL_CERT_FILE",
];

/// How environments on FloxHub are had: by Flox's variables and configuration, and with what was fetched beside the
/// layers.
pub(super) fn remote_access(cache: Option<&LayerStore>, offline: bool) -> RemoteAccess {
    let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
    let directory = variable("FLOX_CONFIG_DIR").or_else(|| config_home().map(|directory| directory.join("flox")));
    let settings = FloxHubSettings {
        url: text(FLOXHUB_URL),
        git_url: text(FLOXHUB_GIT_URL),
        catalog_url: text(CATALOG_URL),
        token: text(FLOXHUB_TOKEN).map(Secret::new),
        config_files: directory
            .map(|directory| directory.join("flox.toml"))
            .into_iter()
            .chain([PathBuf::from("/etc/flox.toml")])
            .collect(),
    };
    let seen = |name: &&str| Some((OsString::from(name), std::env::var_os(name)?));
    RemoteAccess {
        settings,
        path: std::env::var_os("PATH"),
        offline,
        git_environment: GIT_VARIABLES.iter().filter_map(seen).collect(),
        kept: cache.map(|cache| cache.fetched().join("floxmeta")),
    }
}

/// Seconds since the epoch.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The XDG specification's directory for configuration.
pub(super) fn config_home() -> Option<PathBuf> {
    absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))
}
