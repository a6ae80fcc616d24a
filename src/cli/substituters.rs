//! Which binary caches are asked: arguments, the tool's own settings, Nix's, and what there is to log in with.

use std::fs;
use std::path::{Path, PathBuf};

use super::args::EnvironmentArgs;
use super::config::{self, Config, SubstitutersConfig};
use super::failure::Failure;
use super::surroundings::{absolute, config_home, variable};
use crate::event::{Event, Observer};
use crate::substitute::{
    AwsCredentials, CacheAddress, Credentials, InvalidAddress, Login, NixConf, PublicKey, Settings,
};

/// Nix's own default, and the key that its paths are signed with.
const DEFAULT_CACHE: &str = "https://cache.nixos.org";
const DEFAULT_KEY: &str = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=";
/// Questions that are under way at once.
const CONNECTIONS: usize = 48;
/// How long an answer is remembered, in seconds: that a cache has a path, for it hardly ever loses one; that it has not,
/// for it may be given one at any time.
const REMEMBER_FOUND: u64 = 30 * 24 * 3600;
const REMEMBER_ABSENT: u64 = 60;

/// The settings of this run; `handed` are the logins that it was given instead of its own surroundings'.
pub(super) fn settings(
    args: &EnvironmentArgs,
    handed: Option<Credentials>,
    observer: &dyn Observer,
) -> Result<Settings, Failure> {
    let nix = nix_conf()?;
    let (file, own) = Config::read()?.map_or_else(Default::default, |(file, config)| (file, config.substituters));

    let addresses = if !args.substituters.is_empty() {
        args.substituters.iter().map(|text| address(text)).collect::<Result<_, _>>()?
    } else if let Some(urls) = &own.urls {
        let parse =
            |text: &String| text.parse().map_err(|error: InvalidAddress| config::invalid(&file, &error.to_string()));
        urls.iter().map(parse).collect::<Result<_, _>>()?
    } else if nix.substitute == Some(false) {
        Vec::new()
    } else {
        addresses_of(&nix, observer)
    };

    let keys = keys(&nix, &own, args).iter().map(|text| key(text)).collect::<Result<_, _>>()?;

    Ok(Settings {
        addresses,
        keys,
        require_signatures: nix.require_signatures.unwrap_or(true),
        credentials: match handed {
            Some(handed) => handed,
            None => credentials(own.netrc_file.or(nix.netrc_file), &own.tokens)?,
        },
        certificates: variable("NIX_SSL_CERT_FILE").map(|file| read(&file)).transpose()?.unwrap_or_default(),
        // To Nix, 0 is as many as there are.
        connections: nix.connections.map_or(CONNECTIONS, |most| if most == 0 { 128 } else { most.min(128) }),
        remember_found: nix.remember_found.unwrap_or(REMEMBER_FOUND),
        remember_absent: nix.remember_absent.unwrap_or(REMEMBER_ABSENT),
        offline: args.offline,
    })
}

/// The same settings for another run of this tool, as far as they hold elsewhere: a text for `NIX_CONFIG`. What there is
/// to log in with is handed on by itself.
pub(super) fn as_nix_config(args: &EnvironmentArgs) -> Result<String, Failure> {
    let nix = nix_conf()?;
    let own = Config::read()?.map_or_else(Default::default, |(_, config)| config.substituters);
    let urls = match &own.urls {
        _ if !args.substituters.is_empty() => args.substituters.clone(),
        Some(urls) => urls.clone(),
        None if nix.substitute == Some(false) => Vec::new(),
        None => named(&nix),
    };
    let keys = keys(&nix, &own, args).join(" ");
    let require = nix.require_signatures.unwrap_or(true);
    Ok(format!("substituters = {}\ntrusted-public-keys = {keys}\nrequire-sigs = {require}\n", urls.join(" ")))
}

fn keys(nix: &NixConf, own: &SubstitutersConfig, args: &EnvironmentArgs) -> Vec<String> {
    let of_nix = nix.keys.clone().unwrap_or_else(|| vec![DEFAULT_KEY.to_owned()]);
    of_nix.iter().chain(&nix.more_keys).chain(&own.trusted_public_keys).chain(&args.keys).cloned().collect()
}

fn address(text: &str) -> Result<CacheAddress, Failure> {
    let hint =
        "--substituter takes the address of a binary cache: https://cache.nixos.org, file:///directory".to_owned();
    text.parse().map_err(|error: InvalidAddress| Failure::usage(error, Some(hint)))
}

fn key(text: &str) -> Result<PublicKey, Failure> {
    let hint =
        "a key of Nix's is NAME:KEY, as nix key convert-secret-to-public and the documentation of caches give it";
    text.parse().map_err(|error: crate::substitute::InvalidPublicKey| Failure::new(error, Some(hint.to_owned())))
}

/// Nix's settings may name stores of other kinds too, which are none of ours.
fn addresses_of(nix: &NixConf, observer: &dyn Observer) -> Vec<CacheAddress> {
    let parse = |text: &String| match text.parse() {
        Ok(address) => Some(address),
        Err(error) => {
            observer.event(Event::Detail { message: format!("a substituter of Nix's is left out: {error}") });
            None
        }
    };
    named(nix).iter().filter_map(parse).collect()
}

fn named(nix: &NixConf) -> Vec<String> {
    let named = nix.substituters.clone().unwrap_or_else(|| vec![DEFAULT_CACHE.to_owned()]);
    named.into_iter().chain(nix.more_substituters.iter().cloned()).collect()
}

/// Nix's files in Nix's order (Nix manual, "nix.conf"), and `NIX_CONFIG` over them.
fn nix_conf() -> Result<NixConf, Failure> {
    let system = variable("NIX_CONF_DIR").unwrap_or_else(|| PathBuf::from("/etc/nix")).join("nix.conf");
    let of_user = match std::env::var("NIX_USER_CONF_FILES") {
        Ok(files) => files.split(':').filter(|file| !file.is_empty()).map(PathBuf::from).collect(),
        Err(_) => user_conf_files(),
    };
    let mut conf = NixConf::default();
    let wrong = |error: crate::substitute::InvalidNixConf| {
        Failure::new(error, Some("mend Nix's settings, or name the binary caches to ask: --substituter URL".to_owned()))
    };
    conf.read_file(&system).map_err(wrong)?;
    // The first of them is the nearest: it has the last word.
    for file in of_user.iter().rev() {
        conf.read_file(file).map_err(wrong)?;
    }
    if let Ok(text) = std::env::var("NIX_CONFIG") {
        conf.read_text(&text, "NIX_CONFIG").map_err(wrong)?;
    }
    Ok(conf)
}

fn user_conf_files() -> Vec<PathBuf> {
    let shared = std::env::var("XDG_CONFIG_DIRS").unwrap_or_else(|_| "/etc/xdg".to_owned());
    let shared = shared.split(':').filter(|directory| !directory.is_empty()).map(PathBuf::from);
    config_home().into_iter().chain(shared).map(|directory| directory.join("nix/nix.conf")).collect()
}

fn credentials(
    netrc_file: Option<PathBuf>,
    token_files: &std::collections::BTreeMap<String, PathBuf>,
) -> Result<Credentials, Failure> {
    // One that was named must be there; the usual one may be.
    let netrc = match netrc_file.or_else(|| variable("NETRC")) {
        Some(file) => text_if_there(&file)?,
        None => match absolute("HOME") {
            Some(home) => text_if_there(&home.join(".netrc"))?,
            None => None,
        },
    };
    let token = |(address, file): (&String, &PathBuf)| {
        let token = String::from_utf8_lossy(&read(file)?).trim().to_owned();
        Ok::<_, Failure>((address.clone(), Login::Bearer(token)))
    };
    Ok(Credentials { netrc, logins: token_files.iter().map(token).collect::<Result<_, _>>()?, aws: aws()? })
}

/// What there is to show buckets of Amazon's protocol.
pub(super) fn aws() -> Result<AwsCredentials, Failure> {
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let file =
        variable("AWS_SHARED_CREDENTIALS_FILE").or_else(|| absolute("HOME").map(|home| home.join(".aws/credentials")));
    Ok(AwsCredentials {
        variables: variables.filter(|(name, _)| name.starts_with("AWS_")).collect(),
        file: file.map(|file| text_if_there(&file)).transpose()?.flatten(),
    })
}

fn text_if_there(file: &Path) -> Result<Option<String>, Failure> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::unreadable(file, &error)),
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(file).map_err(|error| Failure::unreadable(file, &error))
}
