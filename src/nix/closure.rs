//! Store paths with all that they refer to.

use std::collections::{BTreeMap, BTreeSet};

use super::{PathInfo, Source, SourceError, StorePath};

/// Some roots and every store path that they reach through references.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closure {
    paths: BTreeMap<StorePath, PathInfo>,
    roots: BTreeSet<StorePath>,
}

/// A closure that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// A path is in no source.
    #[error("'{path}' is not in the Nix store{}", referrers(.chain))]
    Missing {
        /// The missing path.
        path: StorePath,
        /// How it is reached: a root first, the path that refers to it last; empty where it is a root itself.
        chain: Vec<StorePath>,
    },
    /// A source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
}

fn referrers(chain: &[StorePath]) -> String {
    match chain {
        [] => String::new(),
        [only] => format!(", but '{only}' refers to it"),
        [root, .., last] => format!(", but '{last}' refers to it (needed by '{root}')"),
    }
}

/// The way from a root to `path` (left out itself) along the referrers that were met first.
fn chain_to(
    path: &StorePath,
    roots: &BTreeSet<StorePath>,
    referrer: &BTreeMap<StorePath, StorePath>,
) -> Vec<StorePath> {
    let mut chain = Vec::new();
    let mut at = path;
    while !roots.contains(at) {
        let Some(next) = referrer.get(at) else { break };
        chain.push(next.clone());
        at = next;
    }
    chain.reverse();
    chain
}

impl ClosureError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { path, .. } => Some(format!("fetch it: nix-store --realise {path}")),
            Self::Source(_) => None,
        }
    }
}

impl Closure {
    /// Follows references from `roots` through `source` until nothing new appears.
    pub fn compute(source: &dyn Source, roots: impl IntoIterator<Item = StorePath>) -> Result<Self, ClosureError> {
        let roots: BTreeSet<_> = roots.into_iter().collect();
        let mut paths = BTreeMap::new();
        // Who first led to each path, so that a missing one can say who wants it.
        let mut referrer: BTreeMap<StorePath, StorePath> = BTreeMap::new();
        let mut pending: Vec<StorePath> = roots.iter().rev().cloned().collect();
        while let Some(path) = pending.pop() {
            if paths.contains_key(&path) {
                continue;
            }
            let Some(info) = source.path_info(&path)? else {
                return Err(ClosureError::Missing { chain: chain_to(&path, &roots, &referrer), path });
            };
            for reference in info.references.iter().rev().filter(|reference| !paths.contains_key(*reference)) {
                referrer.entry(reference.clone()).or_insert_with(|| path.clone());
                pending.push(reference.clone());
            }
            paths.insert(path, info);
        }
        Ok(Self { paths, roots })
    }

    /// Every path of the closure, ordered by name.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &PathInfo> {
        self.paths.values()
    }

    /// What is known of one path of the closure.
    pub fn get(&self, path: &StorePath) -> Option<&PathInfo> {
        self.paths.get(path)
    }

    /// The paths that the closure was computed from.
    pub fn roots(&self) -> &BTreeSet<StorePath> {
        &self.roots
    }
}
