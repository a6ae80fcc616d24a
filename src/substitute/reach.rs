//! All store paths within reach: those of the local store, and those of binary caches.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use super::caches::Caches;
use crate::http::Patience;
use crate::nix::{
    Glimpse, LocalStore, PathInfo, Skeleton, Source, SourceError, StorePath, TreeState, Visitor, WalkError,
};

/// The local store first, as far as it has a path and vouches for it; then the caches.
pub struct Reach<'a> {
    /// The store on this machine, where there is one.
    local: Option<LocalStore<'a>>,
    /// Binary caches, where some are to be asked.
    caches: Option<Caches<'a>>,
    /// The paths that the caches were asked for.
    far: RwLock<HashSet<StorePath>>,
}

impl<'a> Reach<'a> {
    /// What can be reached.
    pub fn new(local: Option<LocalStore<'a>>, caches: Option<Caches<'a>>) -> Self {
        Self { local, caches, far: RwLock::default() }
    }

    /// Whether nothing has to be read to know what the local store's paths contain.
    pub fn is_vouched_for(&self) -> bool {
        self.local.as_ref().is_none_or(LocalStore::has_database)
    }

    /// The store path that a link on this machine names ([`LocalStore::resolve`]).
    pub fn resolve(&self, link: &Path) -> io::Result<Option<StorePath>> {
        self.local.as_ref().map_or(Ok(None), |local| local.resolve(link))
    }

    /// The bytes of a small file in a path of the local store ([`LocalStore::read_file`]).
    pub fn read_file(&self, path: &StorePath, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.local.as_ref().map_or(Ok(None), |local| local.read_file(path, name))
    }

    /// The paths of the local store whose names `wanted` wants ([`LocalStore::named`]).
    pub fn local_paths(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<StorePath>, SourceError> {
        self.local.as_ref().map_or(Ok(Vec::new()), |local| local.named(wanted))
    }

    /// What the local store says of a path that it has and vouches for.
    pub fn local_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        self.local.as_ref().map_or(Ok(None), |local| local.path_info(path))
    }

    /// Asks the caches for paths that a run can go without, and not for what those refer to; a cache that does not answer
    /// soon is done without.
    pub fn prepare_briefly(&self, paths: &[StorePath]) {
        if let Some(caches) = self.caches.as_ref().filter(|_| !paths.is_empty()) {
            caches.resolve(paths, &|_| true, Patience { attempts: 2, ..Patience::brief() });
        }
    }

    /// The local store has it in a way, but cannot vouch for it.
    fn is_half_here(error: &SourceError) -> bool {
        matches!(error, SourceError::Unregistered { .. } | SourceError::Vanished { .. })
    }

    /// Whether the caches need not be asked; of what is only half here they are asked when that turns out.
    pub fn is_here(&self, path: &StorePath) -> bool {
        self.local.as_ref().is_some_and(|local| local.has_on_disk(path))
    }
}

impl Source for Reach<'_> {
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        let local = self.local_info(path);
        let Some(caches) = &self.caches else { return local };
        match local {
            Ok(Some(info)) => Ok(Some(info)),
            Err(error) if !Self::is_half_here(&error) => Err(error),
            missing => {
                let found = match (caches.path_info(path), missing) {
                    (Ok(None) | Err(_), Err(half_here)) => return Err(half_here),
                    (found, _) => found?,
                };
                if found.is_some() {
                    self.far.write().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
                }
                Ok(found)
            }
        }
    }

    fn walk(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError> {
        self.walk_in_state(path, visitor).map(drop)
    }

    fn walk_in_state(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<Option<TreeState>, WalkError> {
        match (&self.local, &self.caches) {
            (_, Some(caches)) if self.is_far(path) => caches.walk_in_state(path, visitor),
            (Some(local), _) => local.walk_in_state(path, visitor),
            (None, _) => Err(WalkError::Absent { path: path.to_absolute() }),
        }
    }

    fn glimpse(&self, path: &StorePath, at: &[u8]) -> Result<Glimpse, WalkError> {
        match (&self.local, &self.caches) {
            (_, Some(caches)) if self.is_far(path) => caches.glimpse(path, at),
            (Some(local), _) => local.glimpse(path, at),
            (None, _) => Err(WalkError::Absent { path: path.to_absolute() }),
        }
    }

    fn read(&self, path: &StorePath, at: &[u8]) -> Result<Vec<u8>, WalkError> {
        match (&self.local, &self.caches) {
            (_, Some(caches)) if self.is_far(path) => caches.read(path, at),
            (Some(local), _) => local.read(path, at),
            (None, _) => Err(WalkError::Absent { path: path.to_absolute() }),
        }
    }

    fn prepare(&self, paths: &[StorePath]) {
        let Some(caches) = &self.caches else { return };
        let missing: Vec<StorePath> = paths.iter().filter(|path| !self.is_here(path)).cloned().collect();
        if !missing.is_empty() {
            caches.resolve(&missing, &|path| self.is_here(path), caches.patience());
        }
    }

    fn asks(&self) -> Vec<String> {
        self.caches.as_ref().map(Caches::asks).unwrap_or_default()
    }

    fn is_far(&self, path: &StorePath) -> bool {
        self.far.read().unwrap_or_else(PoisonError::into_inner).contains(path)
    }

    fn skeleton(&self, path: &StorePath) -> Result<Option<Arc<Skeleton>>, WalkError> {
        match &self.caches {
            Some(caches) if self.is_far(path) => caches.skeleton(path),
            _ => Ok(None),
        }
    }

    fn learn(&self, path: &StorePath, skeleton: &Skeleton) {
        if let Some(caches) = self.caches.as_ref().filter(|_| self.is_far(path)) {
            caches.learn(path, skeleton);
        }
    }
}
