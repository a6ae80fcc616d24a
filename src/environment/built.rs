//! The environment as Flox itself built it, if that is there and belongs to the lockfile.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::DOT_FLOX;
use super::manifest::ActivateMode;
use super::open::Environment;
use super::system::System;
use crate::nix::StorePath;

/// How many links may follow one another; Flox makes one or two.
const MOST_LINKS: usize = 8;

/// What there is of a built environment.
#[derive(Debug)]
pub enum Built {
    /// It can be used as it is.
    Usable(StorePath),
    /// There is no link to one.
    Missing,
    /// There is a link to one that cannot be used.
    Unusable {
        /// The link.
        link: PathBuf,
        /// Why not.
        reason: Unusable,
    },
}

/// Why a built environment is not used.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unusable {
    /// The link leads elsewhere than to a store path.
    NotAStorePath,
    /// The store path is not in the store, or has no `manifest.lock`.
    Dangling(StorePath),
    /// It was built from another lockfile.
    Stale(StorePath),
    /// The link or the store could not be read.
    Unreadable(io::Error),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAStorePath => f.write_str("it does not lead to a store path"),
            Self::Dangling(path) => write!(f, "{path} is not in the store, or is no environment"),
            Self::Stale(path) => write!(f, "{path} was built from another lockfile"),
            Self::Unreadable(error) => write!(f, "it could not be read: {error}"),
        }
    }
}

impl fmt::Display for Built {
    /// One line for people, for `-v`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable(path) => write!(f, "the environment that Flox built is used: {path}"),
            Self::Missing => f.write_str("Flox has not built the environment here"),
            Self::Unusable { link, reason } => {
                write!(f, "the built environment '{}' is not used: {reason}", link.display())
            }
        }
    }
}

impl Environment {
    /// Looks for the built environment behind `.flox/run/<system>.<name>-<mode>`, or `.<mode>` as older versions of Flox
    /// have it.
    ///
    /// `read_lock` reads the file `manifest.lock` in a store path, `None` where either is missing. What was built from
    /// another lockfile, or cannot be checked because there is none, is not used.
    pub fn built(
        &self,
        system: System,
        mode: ActivateMode,
        read_lock: &dyn Fn(&StorePath) -> io::Result<Option<Vec<u8>>>,
    ) -> Built {
        let Some(dir) = self.location.dir() else { return Built::Missing };
        let run = dir.join(DOT_FLOX).join("run");
        let mut first = None;
        for separator in ["-", "."] {
            let link = run.join(format!("{system}.{}{separator}{}", self.name, mode.as_str()));
            match self.built_behind(&link, read_lock) {
                Ok(Some(path)) => return Built::Usable(path),
                Ok(None) => {}
                Err(reason) => first = first.or(Some(Built::Unusable { link, reason })),
            }
        }
        first.unwrap_or(Built::Missing)
    }

    fn built_behind(
        &self,
        link: &Path,
        read_lock: &dyn Fn(&StorePath) -> io::Result<Option<Vec<u8>>>,
    ) -> Result<Option<StorePath>, Unusable> {
        let Some(path) = follow(link)? else { return Ok(None) };
        match read_lock(&path).map_err(Unusable::Unreadable)? {
            None => Err(Unusable::Dangling(path)),
            Some(text) if self.lockfile.as_ref().is_some_and(|lockfile| lockfile.equals(&text)) => Ok(Some(path)),
            Some(_) => Err(Unusable::Stale(path)),
        }
    }
}

/// The store path that a link names. The links are read and not resolved: the store may be rooted elsewhere.
fn follow(link: &Path) -> Result<Option<StorePath>, Unusable> {
    let mut at = link.to_owned();
    for step in 0..MOST_LINKS {
        let target = match std::fs::read_link(&at) {
            Ok(target) => target,
            Err(error) if step == 0 && error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // Not a link: nothing that Flox made.
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::InvalidInput].contains(&error.kind()) => {
                return Err(Unusable::NotAStorePath);
            }
            Err(error) => return Err(Unusable::Unreadable(error)),
        };
        if let Some(path) = target.to_str().and_then(|target| target.parse().ok()) {
            return Ok(Some(path));
        }
        at = at.parent().unwrap_or(Path::new("/")).join(target);
    }
    Err(Unusable::NotAStorePath)
}

#[cfg(test)]
#[path = "built_tests.rs"]
mod tests;
