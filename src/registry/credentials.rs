//! Who asks a registry: what `docker login` and `podman login` have left (containers-auth.json(5); Docker's `config.json`).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// What a registry is shown, or its token service.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Login {
    Basic {
        user: String,
        password: String,
    },
    /// A token of the registry's own kind.
    Bearer(String),
    /// What a token service gives tokens for instead of a password: nobody else is shown it.
    Identity(String),
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

/// What was found of logins in a run. A repository's files are read once, and no credential helper is run twice for the
/// same: it may ask the user, or a cloud's service.
#[derive(Default)]
pub(crate) struct Logins {
    /// By registry and repository.
    found: Mutex<BTreeMap<(String, String), Option<Login>>>,
    /// By the helper and what it was asked for.
    helped: Mutex<BTreeMap<(String, String), Said>>,
}

/// What a helper said; or what it did instead.
type Said = Result<Option<Login>, String>;

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logins").finish_non_exhaustive()
    }
}

impl Logins {
    /// What there is to show `registry` for this repository; `None` where nobody has logged in.
    pub(super) fn find(
        &self,
        credentials: &Credentials,
        registry: &str,
        repository: &str,
        observer: &dyn Observer,
    ) -> Result<Option<Login>, CredentialsError> {
        let key = (registry.to_owned(), repository.to_owned());
        if let Some(known) = lock(&self.found).get(&key) {
            return Ok(known.clone());
        }
        let search = Search { path: credentials.path.as_deref(), registry, repository, logins: self, observer };
        let login = credentials.files.iter().find_map(|file| search.look_into(file).transpose()).transpose()?;
        lock(&self.found).insert(key, login.clone());
        Ok(login)
    }

    /// Whether something was found for this repository.
    pub(super) fn has(&self, registry: &str, repository: &str) -> bool {
        lock(&self.found).get(&(registry.to_owned(), repository.to_owned())).is_some_and(Option::is_some)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who is to be shown to a registry for a repository?
struct Search<'s> {
    path: Option<&'s OsStr>,
    registry: &'s str,
    repository: &'s str,
    logins: &'s Logins,
    observer: &'s dyn Observer,
}

impl Search<'_> {
    fn look_into(&self, file: &Path) -> Result<Option<Login>, CredentialsError> {
        let Some(found) = File::read(file)? else { return Ok(None) };
        let hosts = hosts(self.registry);
        // The one that is named for this registry, before the one for all.
        let helper = found.cred_helpers.iter().find(|(key, _)| hosts.contains(&host_of(key))).map(|(_, helper)| helper);
        if let Some(helper) = helper {
            return self.ask(helper, file);
        }
        let namespaces = self.repository.match_indices('/').map(|(at, _)| &self.repository[..at]);
        let namespaces = namespaces.chain([self.repository]);
        // The longest name first: a part of a registry may have a login of its own.
        let mut names: Vec<String> =
            namespaces.flat_map(|part| hosts.iter().map(move |host| format!("{host}/{part}"))).collect();
        names.reverse();
        let auth = names.iter().find_map(|name| found.auths.get(name));
        let auth =
            auth.or_else(|| found.auths.iter().find(|(key, _)| hosts.contains(&host_of(key))).map(|(_, auth)| auth));
        match auth.map(|auth| auth.login(file, self.registry)).transpose()?.flatten() {
            Some(login) => Ok(Some(login)),
            // Docker leaves an empty entry behind where a helper keeps what belongs there.
            None => match &found.creds_store {
                Some(helper) => self.ask(helper, file),
                None => Ok(None),
            },
        }
    }

    /// What a helper says, now or before.
    fn ask(&self, helper: &str, file: &Path) -> Result<Option<Login>, CredentialsError> {
        let helper = format!("docker-credential-{helper}");
        let server = if DOCKER_HUB_HOSTS.contains(&self.registry) { DOCKER_HUB } else { self.registry };
        // Held until it has ended: whoever wants the same meanwhile waits for it.
        let mut helped = lock(&self.logins.helped);
        let key = (helper.clone(), server.to_owned());
        let said = helped.get(&key).cloned().unwrap_or_else(|| self.run(&helper, server));
        // One that was interrupted has said nothing: who is in less of a hurry asks again.
        if !self.observer.cancelled() {
            helped.insert(key, said.clone());
        }
        drop(helped);
        said.map_err(|reason| {
            let file = file.to_owned();
            CredentialsError::Helper { helper, file, reason }
        })
    }

    fn run(&self, helper: &str, server: &str) -> Said {
        let program = find_program(helper, self.path).ok_or("was not found in PATH")?;
        let mut child = Child::spawn(Command::new(program).arg("get"), true).map_err(|_| "cannot be started")?;
        // One that ends without reading is judged by its end.
        let _ = child.write_all(server.as_bytes(), self.observer);
        let ended = match child.wait_at_most(PATIENCE, self.observer).map_err(|_| "cannot be waited for")? {
            Ok(ended) => ended,
            Err(Abandoned::Interrupted) => return Err("was interrupted".to_owned()),
            Err(Abandoned::TooSlow) => return Err("takes too long".to_owned()),
        };
        if !ended.status.success() {
            // The protocol's own words for somebody who has not logged in.
            return match ended.stdout.starts_with(b"credentials not found") {
                true => Ok(None),
                false => Err(ended.status_words()),
            };
        }
        let Helped { username, secret } =
            serde_json::from_slice(&ended.stdout).map_err(|_| "says what no helper does")?;
        Ok(Some(match username.as_str() {
            TOKEN_USER => Login::Identity(secret),
            _ => Login::Basic { user: username, password: secret },
        }))
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
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Login::Identity(token)));
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
