//! Where store paths come from: the Nix store on this machine, binary caches; and what names more of them.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Request;
use crate::catalog;
use crate::error::Error;
use crate::event::Observer;
use crate::memo::Memo;
use crate::nix::{Hashing, LocalStore, SourceError};
use crate::substitute::{self, Caches, Reach};

impl Request<'_> {
    /// The Nix store and the binary caches. None of these is asked before a path is wanted that the store does not have.
    pub(super) fn reach<'r>(&self, memo: &'r Memo<'r>, observer: &'r dyn Observer) -> Result<Reach<'r>, Error> {
        reach(self.store.as_deref(), &self.substituters, memo, observer, self.now)
    }

    /// Flox's catalog. It is not asked before something is wanted of it.
    pub(super) fn catalog<'r>(&'r self, memo: &'r Memo<'r>, observer: &'r dyn Observer) -> catalog::Access<'r> {
        catalog::Access {
            hub: &self.surroundings.remote.settings,
            certificates: &self.substituters.certificates,
            offline: self.substituters.offline,
            memory: memo,
            observer,
        }
    }
}

/// The store at `store`, else the one at `/` if there is one; and the binary caches.
pub(super) fn reach<'r>(
    store: Option<&Path>,
    substituters: &substitute::Settings,
    memo: &'r Memo<'r>,
    observer: &'r dyn Observer,
    now: SystemTime,
) -> Result<Reach<'r>, Error> {
    let hashing = Hashing { memo, observer, now };
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let caches = match substituters.addresses.is_empty() {
        true => None,
        false => Some(Caches::new(substituters.clone(), memo, observer, now)?),
    };
    let root = store.unwrap_or(Path::new("/"));
    let local = match LocalStore::open(root, hashing) {
        Err(SourceError::NoStore { .. }) if store.is_none() && caches.is_some() => None,
        opened => Some(opened?),
    };
    Ok(Reach::new(local, caches))
}
