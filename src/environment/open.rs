//! An environment on disk, read: its name, its manifest, its lockfile.

use std::io;
use std::path::{Path, PathBuf};

use super::DOT_FLOX;
use super::document::{Cursor, Document, parse_json};
use super::freshness::Written;
use super::invalid_file::{InvalidFile, Problem};
use super::location::Location;
use super::lockfile::{InstallError, Installed, Lockfile};
use super::manifest::Manifest;
use super::system::System;

/// An environment.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Its name: `name` in `.flox/env.json`, or the one that it has on FloxHub.
    pub name: String,
    /// Where it is.
    pub location: Location,
    /// Where it lives on FloxHub, if it does.
    pub hub: Option<Hub>,
    /// The manifest that holds: the lockfile's where there is a lockfile, because Flox merges included environments
    /// there; else that of `manifest.toml`.
    pub manifest: Manifest,
    /// The lockfile; `None` where none is needed and none that belongs to the manifest is there.
    pub lockfile: Option<Lockfile>,
}

/// An environment's place on FloxHub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Whose it is: `owner` in `.flox/env.json`.
    pub owner: String,
    /// FloxHub's own address: `floxhub_url` in `.flox/env.json`.
    pub url: Option<String>,
    /// The generation that was asked for, of an environment that is nowhere but there.
    pub generation: Option<u64>,
    /// The commit of the environment's repository that its files are from: `rev` in `.flox/env.lock`.
    pub revision: Option<String>,
    /// `local_rev` in `.flox/env.lock`: a commit that was not pushed yet.
    pub local_revision: Option<String>,
}

/// A file's text, and its path for errors.
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) text: Vec<u8>,
}

/// An environment that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file that is there cannot be read.
    #[error("'{}' cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file says what Flox's formats do not allow.
    #[error(transparent)]
    Invalid(#[from] InvalidFile),
    /// `.flox` lacks a file that every environment has.
    #[error("'{}' is missing", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// Where the environment is.
        environment: Location,
    },
    /// Packages that only a lockfile resolves, and no lockfile.
    #[error("the environment {environment} has no lockfile")]
    NoLockfile {
        /// Where the environment is.
        environment: Location,
    },
    /// The manifest was changed since it was locked.
    #[error("the lockfile of the environment {environment} is older than its manifest")]
    StaleLockfile {
        /// Where the environment is.
        environment: Location,
    },
}

impl OpenError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => None,
            Self::Invalid(error) => error.hint(),
            Self::Incomplete { path, environment } if path.ends_with("env.json") => {
                Some(format!("make an environment there: {}", environment.flox("init")))
            }
            Self::Incomplete { environment, .. } => {
                // Flox checks an environment of FloxHub out when it is first looked at.
                Some(format!("let Flox restore it: {}", environment.flox("list")))
            }
            Self::NoLockfile { environment } | Self::StaleLockfile { environment } => Some(environment.relock_hint()),
        }
    }
}

impl Environment {
    /// Reads the environment in `path`/.flox.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let dot_flox = path.join(DOT_FLOX);
        let location = Location::Dir(path.to_owned());
        let need = |file: PathBuf| match read(&file)? {
            Some(text) => Ok(File { path: file, text }),
            None => Err(OpenError::Incomplete { path: file, environment: location.clone() }),
        };
        let pointer = need(dot_flox.join("env.json"))?;
        let (name, mut hub) = read_pointer(&pointer.path, &pointer.text)?;
        let file = dot_flox.join("env.lock");
        if let (Some(hub), Some(text)) = (&mut hub, read(&file)?) {
            (hub.revision, hub.local_revision) = read_revision(&file, &text)?;
        }
        let manifest = need(dot_flox.join("env").join("manifest.toml"))?;
        let path = dot_flox.join("env").join("manifest.lock");
        let lockfile = read(&path)?.map(|text| File { path, text });
        Self::of_files(name, location, hub, &manifest, lockfile.as_ref())
    }

    /// Reads an environment's two files, wherever they are from.
    pub(super) fn of_files(
        name: String,
        location: Location,
        hub: Option<Hub>,
        manifest: &File,
        lockfile: Option<&File>,
    ) -> Result<Self, OpenError> {
        let document = Document::toml(&manifest.path, &manifest.text)?;
        let manifest = Manifest::read(&document.root())?;
        let written = Written::new(&document.root(), manifest.schema);
        let lockfile = lockfile.map(|file| Lockfile::parse(&file.path, &file.text)).transpose()?;
        match lockfile {
            Some(lockfile) if lockfile.belongs_to(&written) => {
                Ok(Self { name, location, hub, manifest: lockfile.manifest.clone(), lockfile: Some(lockfile) })
            }
            _ if manifest.needs_no_lockfile() => Ok(Self { name, location, hub, manifest, lockfile: None }),
            Some(_) => Err(OpenError::StaleLockfile { environment: location }),
            None => Err(OpenError::NoLockfile { environment: location }),
        }
    }

    /// The store paths of the environment's packages on `system`.
    pub fn installed(&self, system: System) -> Result<Vec<Installed>, InstallError> {
        match &self.lockfile {
            Some(lockfile) => lockfile.installed(system, &self.location),
            None => self.manifest.installed_store_paths(system, &self.location),
        }
    }
}

/// The name in `.flox/env.json`, if that is there.
pub(super) fn read_name(path: &Path) -> Result<Option<String>, OpenError> {
    let file = path.join(DOT_FLOX).join("env.json");
    Ok(match read(&file)? {
        Some(text) => Some(read_pointer(&file, &text)?.0),
        None => None,
    })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, OpenError> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenError::Read { path: path.to_owned(), source }),
    }
}

/// Reads `env.json`. Newer versions of Flox may keep more in it; that is not looked at.
fn read_pointer(file: &Path, text: &[u8]) -> Result<(String, Option<Hub>), InvalidFile> {
    let document = Document::json(file, &parse_json(file, text)?);
    let pointer = document.root();
    check_version(&pointer)?;
    let name = pointer.need("name")?.parsed(|name| {
        // It becomes a part of the names of links and of the archive.
        let valid = !name.is_empty() && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
        if valid { Ok(name.to_owned()) } else { Err(Problem::EnvironmentName(name.to_owned())) }
    })?;
    let url = pointer.optional("floxhub_url", Cursor::string)?;
    let hub = pointer.optional("owner", Cursor::string)?.map(|owner| Hub {
        owner,
        url,
        generation: None,
        revision: None,
        local_revision: None,
    });
    Ok((name, hub))
}

/// Reads `env.lock`: `rev` and `local_rev`.
fn read_revision(file: &Path, text: &[u8]) -> Result<(Option<String>, Option<String>), InvalidFile> {
    let document = Document::json(file, &parse_json(file, text)?);
    let lock = document.root();
    check_version(&lock)?;
    Ok((Some(lock.need("rev")?.string()?), lock.optional("local_rev", Cursor::string)?))
}

fn check_version(file: &Cursor<'_>) -> Result<(), InvalidFile> {
    let version = file.need("version")?;
    match version.integer()? {
        1 => Ok(()),
        found => Err(version.fail(Problem::UnknownVersion { found: found.to_string(), known: &[1] })),
    }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
