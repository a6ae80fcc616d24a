//! The tool's own settings: `config.toml` in the configuration directory, and the variables that go before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::args::LayerArgs;
use super::failure::Failure;
use super::surroundings::{config_home, variable};
use super::{secrets, size};
use crate::containerize::Previous;

/// Most bytes that the layer store takes unless somebody says otherwise.
const DEFAULT_CACHE_SIZE: u64 = 20 << 30;

/// What the file may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct Config {
    pub(super) cache: CacheConfig,
    pub(super) layers: LayersConfig,
    pub(super) substituters: SubstitutersConfig,
    pub(super) shared_cache: SharedCacheConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct CacheConfig {
    pub(super) max_size: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct LayersConfig {
    /// Whether they are laid out on those of the image that has had the name until now.
    pub(super) previous: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct SharedCacheConfig {
    pub(super) from: Vec<String>,
    pub(super) to: Vec<String>,
    pub(super) trust: Vec<String>,
    pub(super) key_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct SubstitutersConfig {
    /// Instead of those in nix.conf.
    pub(super) urls: Option<Vec<String>>,
    /// Beside those in nix.conf.
    pub(super) trusted_public_keys: Vec<String>,
    pub(super) netrc_file: Option<PathBuf>,
    /// Files that hold bearer tokens, by the addresses that they are for.
    pub(super) tokens: BTreeMap<String, PathBuf>,
}

impl Config {
    /// The file and what it holds; `None` where there is none.
    pub(super) fn read() -> Result<Option<(PathBuf, Self)>, Failure> {
        let Some(file) = config_home().map(|directory| directory.join("layerhold/config.toml")) else {
            return Ok(None);
        };
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::unreadable(&file, &error)),
        };
        match toml::from_str(&text) {
            Ok(config) => Ok(Some((file, config))),
            Err(error) => {
                // The line that is wrong is shown, and what it has.
                let said = error.to_string();
                let said: String = said.split_inclusive(char::is_whitespace).map(secrets::without).collect();
                Err(invalid(&file, said.trim_end()))
            }
        }
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
        return size::parse(&value).map_err(|error| invalid(&file, &format!("cache.max-size: {error}")));
    }
    let disk = rustix::fs::statvfs(cache).map_or(u64::MAX, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
    Ok(DEFAULT_CACHE_SIZE.min(disk / 10))
}

/// The image to lay layers out on: that of the option, else of `LAYERHOLD_PREVIOUS`, else by `layers.previous` in the
/// config file.
pub(super) fn previous(args: &LayerArgs) -> Result<Option<Previous>, Failure> {
    if args.no_previous || args.previous.is_some() {
        return Ok(args.previous.clone().filter(|_| !args.no_previous));
    }
    if let Some(value) = variable("LAYERHOLD_PREVIOUS") {
        let hint = "name an image, or the one that has the name: LAYERHOLD_PREVIOUS=. layerhold ...".to_owned();
        let named = value.to_string_lossy().parse().map(Some);
        return named.map_err(|error| Failure::usage(format!("LAYERHOLD_PREVIOUS: {error}"), Some(hint)));
    }
    let is_set = Config::read()?.is_some_and(|(_, config)| config.layers.previous);
    Ok(is_set.then_some(Previous::SameName))
}

/// The file holds something that it should not.
pub(super) fn invalid(file: &Path, why: &str) -> Failure {
    let hint = "what it may hold: [cache], and below that max-size = \"50GiB\"; [layers], and below that \
                previous = true; [substituters], and below that urls, trusted-public-keys, netrc-file, and \
                [substituters.tokens]; [shared-cache], and below that from, to, trust, key-file";
    Failure::new(format!("{}: {why}", file.display()), Some(hint.to_owned()))
}
