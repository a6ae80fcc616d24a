//! What the process was started in: directories, limits and settings from environment variables and the config file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::config::{self, Config};
use super::failure::Failure;
use super::size;
use crate::environment::{
    CATALOG_URL, FLOXHUB_GIT_URL, FLOXHUB_TOKEN, FLOXHUB_URL, FloxHubSettings, RemoteAccess, Secret,
};
use crate::event::{Event, Observer};
use crate::store::LayerStore;

/// Most bytes that the layer store takes unless somebody says otherwise.
const DEFAULT_CACHE_SIZE: u64 = 20 << 30;

/// A variable's value; one that is set to nothing counts as not set, as the XDG specification wants it.
pub(super) fn variable(name: &str) -> Option<PathBuf> {
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
    Ok(LayerStore::open(&directory)?)
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
        Some(directory) => LayerStore::open_to_write(&directory).map_err(Failure::from),
        None => Err(no_cache_directory()),
    };
    opened
        .map_err(|failure| {
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
    let text = |name| variable(name).map(|value| value.to_string_lossy().into_owned());
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

/// The most bytes that the layer store may take: `LAYERHOLD_CACHE_MAX_SIZE`, else `cache.max-size` in the config file,
/// else 20 GiB or a tenth of the disk, whichever is less.
pub(super) fn cache_max_size(cache: &Path) -> Result<u64, Failure> {
    if let Some(value) = variable("LAYERHOLD_CACHE_MAX_SIZE") {
        let hint = "name a size: LAYERHOLD_CACHE_MAX_SIZE=50GiB layerhold ...".to_owned();
        return size::parse(&value.to_string_lossy())
            .map_err(|error| Failure::usage(format!("LAYERHOLD_CACHE_MAX_SIZE: {error}"), Some(hint)));
    }
    if let Some((file, config)) = Config::read()?
        && let Some(value) = config.cache.max_size
    {
        return size::parse(&value).map_err(|error| config::invalid(&file, &format!("cache.max-size: {error}")));
    }
    let disk = rustix::fs::statvfs(cache).map_or(u64::MAX, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
    Ok(DEFAULT_CACHE_SIZE.min(disk / 10))
}

/// The XDG specification's directory for configuration.
pub(super) fn config_home() -> Option<PathBuf> {
    absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")))
}
