//! Who asks a registry: what `docker login` and `podman login` have left (containers-auth.json(5); Docker's `config.json`).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::child::{Abandoned, Child, find_program};
use crate::event::Observer;

/// How long a credential helper may take: it may ask a cloud's service.
const PATIENCE: Duration = Duration::from_secs(30);
/// What Docker calls its hub in these files (docker: cli/config/configfile).
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// Under which names the hub is found.
const DOCKER_HUB_HOSTS: [&str; 3] = ["index.docker.io", "docker.io", "registry-1.docker.io"];
/// The user's name that stands for a token instead of a password (docker-credential-helpers).
const TOKEN_USER: &str = "<token>";

/// Where logins are kept. Nothing is read before a registry is asked.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// Files of Docker's or Podman's form, the first that knows a registry counts; they need not be there.
    pub files: Vec<PathBuf>,
    /// The value of `PATH`, on which credential helpers are looked for.
    pub path: Option<OsString>,
}

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Basic { user: String, password: String },
    Bearer(String),
}

/// What there is to log in with cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file that is there cannot be read.
    #[error("the logins in '{}' cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not as Docker and Podman write it. What it says is not repeated.
    #[error("the logins in '{}' cannot be read: {reason}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A credential helper did not help. What it said is not repeated.
    #[error("the credential helper '{helper}', named in '{}', {reason}", file.display())]
    Helper {
        /// The program.
        helper: String,
        /// The file that names it.
        file: PathBuf,
        /// What it did.
        reason: String,
    },
    /// A login of a kind that registries' token services alone understand.
    #[error("the login for '{registry}' in '{}' is an identity token, which this tool cannot use", file.display())]
    IdentityToken {
        /// The registry.
        registry: String,
        /// The file.
        file: PathBuf,
    },
}

impl CredentialsError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => None,
            Self::Invalid { .. } => Some("write it anew: docker login HOST, or podman login HOST".to_owned()),
            Self::Helper { helper, .. } => {
                Some(format!("try it: echo HOST | {helper} get; or log in without it: podman login HOST"))
            }
            Self::IdentityToken { registry, .. } => {
                Some(format!("log in with a user and a password or an access token: podman login {registry}"))
            }
        }
    }
}

/// What these files may hold; the rest is Docker's and Podman's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What a helper prints.
#[derive(Deserialize)]
struct Helped {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

impl Credentials {
    /// What there is to show `registry` for this repository; `None` where nobody has logged in.
    pub(super) fn find(
        &self,
        registry: &str,
        repository: &str,
        observer: &dyn Observer,
    ) -> Result<Option<Login>, CredentialsError> {
        for file in &self.files {
            let Some(found) = File::read(file)? else { continue };
            if let Some(login) = self.find_in(&found, file, registry, repository, observer)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    }

    fn find_in(
        &self,
        found: &File,
        file: &Path,
        registry: &str,
        repository: &str,
        observer: &dyn Observer,
    ) -> Result<Option<Login>, CredentialsError> {
        let hosts = hosts(registry);
        // The one that is named for this registry, before the one for all.
        let helper = found.cred_helpers.iter().find(|(key, _)| hosts.contains(&host_of(key))).map(|(_, helper)| helper);
        if let Some(helper) = helper {
            return self.ask(helper, file, registry, observer);
        }
        let namespaces = repository.match_indices('/').map(|(at, _)| &repository[..at]).chain([repository]);
        // The longest name first: a part of a registry may have a login of its own.
        let mut names: Vec<String> =
            namespaces.flat_map(|part| hosts.iter().map(move |host| format!("{host}/{part}"))).collect();
        names.reverse();
        let auth = names.iter().find_map(|name| found.auths.get(name));
        let auth =
            auth.or_else(|| found.auths.iter().find(|(key, _)| hosts.contains(&host_of(key))).map(|(_, auth)| auth));
        match auth.map(|auth| auth.login(file, registry)).transpose()?.flatten() {
            Some(login) => Ok(Some(login)),
            // Docker leaves an empty entry behind where a helper keeps what belongs there.
            None => match &found.creds_store {
                Some(helper) => self.ask(helper, file, registry, observer),
                None => Ok(None),
            },
        }
    }

    fn ask(
        &self,
        helper: &str,
        file: &Path,
        registry: &str,
        observer: &dyn Observer,
    ) -> Result<Option<Login>, CredentialsError> {
        let helper = format!("docker-credential-{helper}");
        let failed = |reason: &str| CredentialsError::Helper {
            helper: helper.clone(),
            file: file.to_owned(),
            reason: reason.to_owned(),
        };
        let program = find_program(&helper, self.path.as_deref()).ok_or_else(|| failed("was not found in PATH"))?;
        let server = if DOCKER_HUB_HOSTS.contains(&registry) { DOCKER_HUB } else { registry };
        let mut child =
            Child::spawn(Command::new(program).arg("get"), true).map_err(|_| failed("cannot be started"))?;
        // One that ends without reading is judged by its end.
        let _ = child.write_all(server.as_bytes());
        let ended = match child.wait_at_most(PATIENCE, observer).map_err(|_| failed("cannot be waited for"))? {
            Ok(ended) => ended,
            Err(Abandoned::Interrupted) => return Err(failed("was interrupted")),
            Err(Abandoned::TooSlow) => return Err(failed("takes too long")),
        };
        if !ended.status.success() {
            // The protocol's own words for somebody who has not logged in.
            return match ended.stdout.starts_with(b"credentials not found") {
                true => Ok(None),
                false => Err(failed(&ended.status_words())),
            };
        }
        let Helped { username, secret } =
            serde_json::from_slice(&ended.stdout).map_err(|_| failed("says what no helper does"))?;
        if username == TOKEN_USER {
            return Err(CredentialsError::IdentityToken { registry: registry.to_owned(), file: file.to_owned() });
        }
        Ok(Some(Login::Basic { user: username, password: secret }))
    }
}

impl File {
    fn read(file: &Path) -> Result<Option<Self>, CredentialsError> {
        let bytes = match std::fs::read(file) {
            Ok(bytes) => bytes,
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
                return Ok(None);
            }
            Err(source) => return Err(CredentialsError::Read { file: file.to_owned(), source }),
        };
        // The library's own words may have a part of the file in them.
        let invalid = |error: serde_json::Error| CredentialsError::Invalid {
            file: file.to_owned(),
            reason: format!("line {} is not as it should be", error.line()),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(invalid)
    }
}

impl Auth {
    /// `None` where it says nothing.
    fn login(&self, file: &Path, registry: &str) -> Result<Option<Login>, CredentialsError> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Login::Bearer(token)));
        }
        if given(&self.identitytoken).is_some() {
            return Err(CredentialsError::IdentityToken { registry: registry.to_owned(), file: file.to_owned() });
        }
        if let Some(auth) = given(&self.auth) {
            let text = STANDARD.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            // Docker has written a zero at the end.
            let parts = text.as_deref().map(|text| text.trim_end_matches('\0')).and_then(|text| text.split_once(':'));
            let Some((user, password)) = parts else {
                let reason = format!("the one for '{registry}' is not USER:PASSWORD in base-64");
                return Err(CredentialsError::Invalid { file: file.to_owned(), reason });
            };
            return Ok(Some(Login::Basic { user: user.to_owned(), password: password.to_owned() }));
        }
        let (user, password) = (given(&self.username), given(&self.password));
        Ok(user.zip(password).map(|(user, password)| Login::Basic { user, password }))
    }
}

/// Names under which a registry's login may be kept.
fn hosts(registry: &str) -> Vec<&str> {
    if DOCKER_HUB_HOSTS.contains(&registry) { DOCKER_HUB_HOSTS.to_vec() } else { vec![registry] }
}

/// The host of a key, which Docker may have written as an address: `https://index.docker.io/v1/`.
fn host_of(key: &str) -> &str {
    let without_scheme = key.split_once("://").map_or(key, |(_, rest)| rest);
    match without_scheme.trim_end_matches('/').split_once('/') {
        Some((host, "v1" | "v2")) => host,
        // A part of a registry, which is not the registry.
        Some(_) => "",
        None => without_scheme.trim_end_matches('/'),
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
