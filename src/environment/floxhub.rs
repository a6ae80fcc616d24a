//! FloxHub as this user reaches it: its address, that of its git repositories, and the token.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::document::{Cursor, Document};
use super::invalid_file::InvalidFile;

/// FloxHub's address unless somebody says otherwise.
const DEFAULT_URL: &str = "https://hub.flox.dev";

/// The variable with FloxHub's address.
pub const FLOXHUB_URL: &str = "FLOX_FLOXHUB_URL";

/// The variable with the address of FloxHub's git repositories, where that does not follow from FloxHub's own.
pub const FLOXHUB_GIT_URL: &str = "_FLOX_FLOXHUB_GIT_URL";

/// The variable with the address of Flox's services, where that does not follow from FloxHub's own.
pub const CATALOG_URL: &str = "FLOX_CATALOG_URL";

/// The variable with the token.
pub const FLOXHUB_TOKEN: &str = "FLOX_FLOXHUB_TOKEN";

/// What the user has said about FloxHub. Not looked at before an environment there is meant.
#[derive(Clone, Debug, Default)]
pub struct FloxHubSettings {
    /// The value of `FLOX_FLOXHUB_URL`.
    pub url: Option<String>,
    /// The value of `_FLOX_FLOXHUB_GIT_URL`.
    pub git_url: Option<String>,
    /// The value of `FLOX_CATALOG_URL`.
    pub catalog_url: Option<String>,
    /// The value of `FLOX_FLOXHUB_TOKEN`.
    pub token: Option<Secret>,
    /// Flox's own configuration files; of two that say something the first holds.
    pub config_files: Vec<PathBuf>,
}

/// A text that nothing prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes charge of a text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// FloxHub, reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FloxHub {
    /// Its own address, without a slash at the end.
    pub(super) url: String,
    /// What the addresses of its git repositories begin with, without a slash at the end.
    pub(super) git_url: String,
    /// What the addresses of its services begin with, without a slash at the end.
    pub(super) services_url: String,
    /// What it lets this user in by.
    pub(super) token: Option<Secret>,
}

/// FloxHub cannot be reached by what the user has said.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FloxHubError {
    /// A configuration file of Flox's that is there cannot be read.
    #[error("'{}' cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A configuration file of Flox's is broken.
    #[error(transparent)]
    Invalid(#[from] InvalidFile),
    /// An address that is none. It is not shown: somebody may have written a password into it.
    #[error("{setting} is not an address of FloxHub")]
    Url {
        /// What it is from: a variable or a file.
        setting: String,
    },
    /// A token with characters that no token has.
    #[error("{setting} is not a token of FloxHub's: it has spaces or control characters in it")]
    Token {
        /// What it is from: a variable or a file.
        setting: String,
    },
}

impl FloxHubSettings {
    /// The variables that tell another run of this tool the same, whose configuration files are others; `url` is the
    /// address of the FloxHub that is meant, where it is not the user's own.
    pub fn as_variables(&self, url: Option<&str>) -> Result<Vec<(&'static str, String)>, FloxHubError> {
        let hub = FloxHub::reach(self, url)?;
        let token = hub.token.map(|token| (FLOXHUB_TOKEN, token.reveal().to_owned()));
        let addresses = [(FLOXHUB_URL, hub.url), (FLOXHUB_GIT_URL, hub.git_url), (CATALOG_URL, hub.services_url)];
        Ok(addresses.into_iter().chain(token).collect())
    }

    /// The address of Flox's services without a slash at the end, and the token that they are shown.
    pub fn services(&self) -> Result<(String, Option<Secret>), FloxHubError> {
        let hub = FloxHub::reach(self, None)?;
        Ok((hub.services_url, hub.token))
    }
}

impl FloxHubError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Url { setting } => {
                Some(format!("{setting} may be like {DEFAULT_URL}: no user, no query, nothing but the address"))
            }
            Self::Token { .. } => Some(format!("get a new one: flox auth login; or set {FLOXHUB_TOKEN}")),
            Self::Read { .. } | Self::Invalid(_) => None,
        }
    }
}

impl FloxHub {
    /// FloxHub by the user's settings; or the one at `url`, from which an active environment is.
    ///
    /// The token is for the FloxHub of the settings: no other one is shown it.
    pub(super) fn reach(settings: &FloxHubSettings, url: Option<&str>) -> Result<Self, FloxHubError> {
        let configs = settings.config_files.iter().map(|file| Config::read(file)).collect::<Result<Vec<_>, _>>()?;
        let from_variable = |value: &Option<String>, name: &str| value.clone().map(|value| (value, name.to_owned()));
        let in_configs = |value: fn(&Config) -> &Option<String>| {
            configs.iter().find_map(|config| Some((value(config).clone()?, config.file.display().to_string())))
        };
        let (own, setting) = from_variable(&settings.url, FLOXHUB_URL)
            .or_else(|| in_configs(|config| &config.url))
            .unwrap_or_else(|| (DEFAULT_URL.to_owned(), String::new()));
        let own = Address::parse(&own, setting)?;
        let wanted = match url {
            Some(url) => Address::parse(url, "the active environment's floxhub_url".to_owned())?,
            None => own.clone(),
        };
        let git_url = match from_variable(&settings.git_url, FLOXHUB_GIT_URL) {
            Some((url, setting)) => Address::parse(&url, setting)?.0,
            None => wanted.git_url(),
        };
        let services_url = match from_variable(&settings.catalog_url, CATALOG_URL) {
            Some((url, setting)) => Address::parse(&url, setting)?.0,
            None => wanted.services_url(),
        };
        let token = settings.token.as_ref().map(|token| (token.reveal().to_owned(), FLOXHUB_TOKEN.to_owned()));
        let token = match token.or_else(|| in_configs(|config| &config.token)).filter(|_| wanted == own) {
            Some((token, setting)) => Some(check_token(&token, setting)?),
            None => None,
        };
        Ok(Self { url: wanted.0, git_url, services_url, token })
    }
}

fn check_token(text: &str, setting: String) -> Result<Secret, FloxHubError> {
    let text = text.trim();
    // It becomes one line of what git is told.
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(FloxHubError::Token { setting });
    }
    Ok(Secret::new(text.to_owned()))
}

/// `https://host/path`, without a slash at the end.
#[derive(Clone, PartialEq, Eq)]
struct Address(String);

impl Address {
    fn parse(text: &str, setting: String) -> Result<Self, FloxHubError> {
        let text = text.trim_end_matches('/');
        // A user in it would be seen on git's command line; an equals sign would end the name of git's setting.
        let usual = |rest: &str| !rest.is_empty() && !rest.contains(|c: char| "@?#=\\\"'".contains(c) || c <= ' ');
        match text.split_once("://") {
            Some(("https" | "http" | "file", rest)) if usual(rest) && rest.is_ascii() => Ok(Self(text.to_owned())),
            _ => Err(FloxHubError::Url { setting }),
        }
    }

    /// Its git repositories.
    fn git_url(&self) -> String {
        format!("{}/git", self.services_url())
    }

    /// The services of the FloxHub at `hub[.x].flox.dev` are at `api[.x].flox.dev`, those of any other at its own address
    /// (flox: floxhub.rs, `Floxhub::resolve_effective_url`).
    fn services_url(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("https", &self.0));
        let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) =
            authority.split_once(':').map_or((authority, ""), |(host, _)| (host, &authority[host.len()..]));
        match host.strip_prefix("hub.").filter(|behind| *behind == "flox.dev" || behind.ends_with(".flox.dev")) {
            Some(behind) => format!("{scheme}://api.{behind}{port}"),
            None => self.0.clone(),
        }
    }
}

/// What a `flox.toml` says of FloxHub; its other keys are Flox's.
struct Config {
    file: PathBuf,
    url: Option<String>,
    token: Option<String>,
}

impl Config {
    fn read(file: &Path) -> Result<Self, FloxHubError> {
        let text = match std::fs::read(file) {
            Ok(text) => text,
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => Vec::new(),
            Err(source) => return Err(FloxHubError::Read { path: file.to_owned(), source }),
        };
        let document = Document::toml(file, &text)?;
        let root = document.root();
        let text = |name| root.optional(name, Cursor::string);
        Ok(Self { file: file.to_owned(), url: text("floxhub_url")?, token: text("floxhub_token")? })
    }
}

#[cfg(test)]
#[path = "floxhub_tests.rs"]
mod tests;
