//! Who asks a binary cache: netrc files, bearer tokens, keys of object stores.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use url::Url;

use super::netrc::entry_for;
use crate::http::BucketKeys;

/// What a server is told of who asks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Login {
    /// A name and a password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A bearer token.
    Bearer(String),
}

/// All that is known of who asks, for any cache.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The text of a netrc file.
    pub netrc: Option<String>,
    /// What caches are told whose addresses begin so.
    pub logins: BTreeMap<String, Login>,
    /// Environment variables that begin with `AWS_`, and the shared credentials file's text.
    pub aws: AwsCredentials,
}

/// What there is for object stores.
#[derive(Clone, Default)]
pub struct AwsCredentials {
    /// Environment variables that begin with `AWS_`.
    pub variables: BTreeMap<String, String>,
    /// The text of the shared credentials file.
    pub file: Option<String>,
}

/// Secrets stay where they are.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl fmt::Debug for AwsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsCredentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// What the server of a cache is told: what stands in its address, else what is for addresses like it, else what the
    /// netrc file has.
    pub(super) fn login(&self, cache: &Url) -> Option<Login> {
        if let Some(password) = cache.password() {
            let decode = |text: &str| percent_decode(text);
            return Some(Login::Basic { user: decode(cache.username()), password: decode(password) });
        }
        let own = self.logins.iter().filter(|(address, _)| covers(address, cache));
        if let Some((_, login)) = own.max_by_key(|(address, _)| address.len()) {
            return Some(login.clone());
        }
        let entry = entry_for(self.netrc.as_deref()?, cache.host_str()?)?;
        Some(Login::Basic { user: entry.login, password: entry.password })
    }
}

/// Whether a login for `address` is for this cache: the same server, and a path at or above the cache's.
fn covers(address: &str, cache: &Url) -> bool {
    let Ok(address) = Url::parse(address) else { return false };
    let path = address.path().trim_end_matches('/');
    let below = cache.path().strip_prefix(path);
    address.origin() == cache.origin() && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn percent_decode(text: &str) -> String {
    // What means something in a form, and nothing here.
    let form = text.replace('+', "%2B").replace('&', "%26");
    let decoded =
        url::form_urlencoded::parse(format!("x={form}").as_bytes()).next().map(|(_, value)| value.into_owned());
    decoded.unwrap_or_default()
}

impl AwsCredentials {
    /// The key, its secret and the session's token: of `profile` in the shared credentials file where one is named,
    /// else of the environment, else of the file's `default`.
    pub(crate) fn keys(&self, profile: Option<&str>) -> Option<BucketKeys> {
        let variable = |name: &str| self.variables.get(name).filter(|value| !value.is_empty()).cloned();
        let of_environment = || {
            Some(BucketKeys {
                id: variable("AWS_ACCESS_KEY_ID")?,
                secret: variable("AWS_SECRET_ACCESS_KEY")?,
                token: variable("AWS_SESSION_TOKEN"),
            })
        };
        match profile {
            Some(profile) => self.of_file(profile),
            None => of_environment()
                .or_else(|| self.of_file(&variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned()))),
        }
    }

    fn of_file(&self, profile: &str) -> Option<BucketKeys> {
        let mut section = "";
        let mut found = BTreeMap::new();
        for line in self.file.as_deref()?.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.trim();
            } else if let (true, Some((key, value))) = (section == profile, line.split_once('=')) {
                found.insert(key.trim(), value.trim().to_owned());
            }
        }
        Some(BucketKeys {
            id: found.remove("aws_access_key_id")?,
            secret: found.remove("aws_secret_access_key")?,
            token: found.remove("aws_session_token"),
        })
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
