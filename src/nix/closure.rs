//! Store paths with all that they refer to.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::{PathInfo, Source, SourceError, StorePath};

/// How many paths are asked for at once; each may hold the structure of its tree in memory meanwhile.
const AT_ONCE: usize = 64;

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
    #[error("'{path}' is {}{}", nowhere(.asked), referrers(.chain))]
    Missing {
        /// The missing path.
        path: StorePath,
        /// How it is reached: a root first, the path that refers to it last; empty where it is a root itself.
        chain: Vec<StorePath>,
        /// The binary caches that were asked.
        asked: Vec<String>,
    },
    /// A path is there in a way, but a source could not say what it is.
    #[error("'{path}' cannot be used{}", referrers(.chain))]
    Unusable {
        /// The path.
        path: StorePath,
        /// How it is reached, as for a missing path.
        chain: Vec<StorePath>,
        /// What is wrong with it.
        #[source]
        source: Box<SourceError>,
    },
}

fn nowhere(asked: &[String]) -> String {
    match asked {
        [] => "not in the Nix store".to_owned(),
        caches => format!("neither in the Nix store nor in {}", caches.join(", ")),
    }
}

fn referrers(chain: &[StorePath]) -> String {
    match chain {
        [] => String::new(),
        [only] => format!(", but '{only}' refers to it"),
        [root, .., last] => format!(", but '{last}' refers to it (needed by '{root}')"),
    }
}

impl ClosureError {
    /// What mends it where the path is for `system`, which this machine is not: nothing for it is built here.
    pub fn hint_elsewhere(&self, system: &str) -> Option<String> {
        match self {
            Self::Missing { path, asked, .. } if asked.is_empty() => Some(format!(
                "fetch it: nix-store --realise {path}; where no substituter has it, build it on {system} and copy it \
                 from there: nix-copy-closure --from HOST {path}; in another store: --store ROOT"
            )),
            Self::Missing { .. } | Self::Unusable { .. } => self.hint(),
        }
    }

    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { path, chain, asked } => {
                // A derivation is made, not fetched; and whoever lacks a root has rather named the wrong store.
                let again = match (chain.is_empty(), path.name().ends_with(".drv")) {
                    (_, true) => "nothing builds it but the evaluation that made it: evaluate the environment again",
                    (true, _) => "where no substituter has it, build the environment again (flox activate, nix build)",
                    (false, _) => "where no substituter has it, build what refers to it again",
                };
                if asked.is_empty() {
                    return Some(format!(
                        "fetch it: nix-store --realise {path}; {again}; in another store: --store ROOT"
                    ));
                }
                let again = again.trim_start_matches("where no substituter has it, ");
                Some(format!(
                    "in another binary cache: --substituter URL; in none: {again}, and put it there: nix copy --to URL {path}"
                ))
            }
            Self::Unusable { source, .. } => source.hint(),
        }
    }
}

impl Closure {
    /// Follows references from `roots` through `source` until nothing new appears.
    ///
    /// The nearest paths come first, many at once, so that a source which has to read them has work for every core; of
    /// several errors it is always the same one that is returned.
    pub fn compute(source: &dyn Source, roots: impl IntoIterator<Item = StorePath>) -> Result<Self, ClosureError> {
        let roots: BTreeSet<StorePath> = roots.into_iter().collect();
        let mut paths = BTreeMap::new();
        // Every path met so far, with who first led to it (nobody to a root), so that a missing one can say who wants it.
        let mut met: BTreeMap<StorePath, Option<StorePath>> = roots.iter().map(|root| (root.clone(), None)).collect();
        let mut frontier: Vec<StorePath> = roots.iter().cloned().collect();
        while !frontier.is_empty() {
            let mut next = Vec::new();
            source.prepare(&frontier);
            for some in frontier.chunks(AT_ONCE) {
                let infos: Vec<_> = some.par_iter().map(|path| source.path_info(path)).collect();
                for (path, info) in some.iter().zip(infos) {
                    let chain = || chain_to(path, &met);
                    let info = match info {
                        Ok(Some(info)) => info,
                        Ok(None) => {
                            let (path, asked) = (path.clone(), source.asks());
                            return Err(ClosureError::Missing { path, chain: chain(), asked });
                        }
                        Err(source) => {
                            return Err(ClosureError::Unusable {
                                path: path.clone(),
                                chain: chain(),
                                source: Box::new(source),
                            });
                        }
                    };
                    for reference in &info.references {
                        if !met.contains_key(reference) {
                            met.insert(reference.clone(), Some(path.clone()));
                            next.push(reference.clone());
                        }
                    }
                    paths.insert(path.clone(), info);
                }
            }
            frontier = next;
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

/// The way from a root to `path` (left out itself) along those who led there first: a shortest way.
fn chain_to(path: &StorePath, met: &BTreeMap<StorePath, Option<StorePath>>) -> Vec<StorePath> {
    let referrer = |path: &StorePath| met.get(path).and_then(Option::as_ref);
    let mut chain: Vec<StorePath> = std::iter::successors(referrer(path), |at| referrer(at)).cloned().collect();
    chain.reverse();
    chain
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FORGETFUL, TestStore, register, store_path};
    use super::super::{LocalStore, MemoryTree};
    use super::*;

    /// A registered store: `top` refers to `left` and `right`, both to `base` and to themselves; `base` to `leaf`.
    fn store() -> (TestStore, [StorePath; 5]) {
        let store = TestStore::new();
        let paths @ [top, left, right, base, leaf] =
            &[('1', "top"), ('2', "left"), ('3', "right"), ('4', "base"), ('5', "leaf")]
                .map(|(digit, name)| store_path(digit, name));
        let database = store.database();
        register(&database, leaf, Some(96), &[]);
        register(&database, base, Some(96), &[leaf]);
        register(&database, left, Some(96), &[base, left]);
        register(&database, right, Some(96), &[base, right]);
        register(&database, top, Some(96), &[left, right]);
        for path in paths {
            store.write(path, &MemoryTree::new());
        }
        let paths = paths.clone();
        (store, paths)
    }

    #[test]
    fn every_path_is_there_once_ordered_by_name() {
        let (store, [top, left, ..]) = store();
        let closure = Closure::compute(&store.open(), [top.clone(), left.clone(), top.clone()]).unwrap();
        let names: Vec<_> = closure.paths().map(|info| info.path.name()).collect();
        assert_eq!(names, ["base", "leaf", "left", "right", "top"]);
        assert_eq!(Vec::from_iter(closure.roots()), [&left, &top]);
        assert!(closure.get(&left).is_some());
    }

    #[test]
    fn a_missing_path_is_named_with_who_refers_to_it_and_what_needs_it() {
        let [top, left, gone] =
            [('1', "top"), ('2', "left"), ('5', "gone")].map(|(digit, name)| store_path(digit, name));
        let source = Chain(vec![top.clone(), left.clone(), gone.clone()]);
        let error = Closure::compute(&source, [top.clone()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("'{gone}' is not in the Nix store, but '{left}' refers to it (needed by '{top}')")
        );
        let hint = error.hint().unwrap();
        assert!(
            hint.starts_with(&format!("fetch it: nix-store --realise {gone}; where no substituter has it")),
            "{hint}"
        );
        let error = Closure::compute(&source, [left.clone()]).unwrap_err();
        assert_eq!(error.to_string(), format!("'{gone}' is not in the Nix store, but '{left}' refers to it"));
        let error = Closure::compute(&source, [gone.clone()]).unwrap_err();
        assert_eq!(error.to_string(), format!("'{gone}' is not in the Nix store"));
        assert!(error.hint().unwrap().ends_with("in another store: --store ROOT"));
    }

    /// Each path refers to the next; the last is missing.
    struct Chain(Vec<StorePath>);

    impl Source for Chain {
        fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
            let at = self.0.iter().position(|known| known == path);
            let Some(next) = at.and_then(|at| self.0.get(at + 1)) else { return Ok(None) };
            Ok(Some(PathInfo {
                path: path.clone(),
                content: super::super::testing::REGISTERED,
                nar_size: 96,
                references: BTreeSet::from([next.clone()]),
            }))
        }

        fn walk(&self, _: &StorePath, _: &mut dyn super::super::Visitor) -> Result<(), super::super::WalkError> {
            Ok(())
        }
    }

    #[test]
    fn a_store_that_is_not_there_says_so() {
        let store = TestStore::new();
        let nowhere = store.root().join("nowhere");
        let error = LocalStore::open(&nowhere, FORGETFUL).err().unwrap();
        assert_eq!(error.to_string(), format!("there is no Nix store at '{}/nix/store'", nowhere.display()));
        assert!(error.hint().unwrap().contains("--store ROOT"));
    }
}
