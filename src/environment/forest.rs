//! The forest of links that several packages make together, as nixpkgs' `buildEnv` and flox's builder plant it.
//!
//! - A directory that one package alone has becomes one link to it; one that several have is merged.
//! - Of two files at one place, the package with the lower priority number wins; two different ones at the same
//!   priority are an error; of several such places the one that is least deep is named. A file against a directory is
//!   decided the same way.
//! - Whatever leads to the same place in the end is the same thing, and no conflict.
//! - Links to directories count as directories. A directory that contains itself by way of a link is not entered
//!   again: it becomes a link.
//! - What only disturbs in a merged tree is left out (see `is_left_out`).
//! - Packages that a package propagates (`nix-support/propagated-*`) follow after all others, each at a priority of
//!   its own: they never conflict.
//!
//! The order in which packages are given plays no part.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::rc::Rc;

use super::store_view::{Location, Resolved, StoreView, join};
use crate::nix::{EntryKind, StorePath, WalkError};

/// flox writes priorities as whole numbers and sorts by thousandths, so that the outputs of one package can be told
/// apart (flox: `buildenv/builder.pl`).
pub const PRIORITY_SCALE: u64 = 1000;

/// A store path whose files are wanted in an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// What the user calls it: the install ID in the manifest.
    pub name: String,
    /// Where its files are.
    pub path: StorePath,
    /// The lower number wins. In thousandths ([`PRIORITY_SCALE`]): the manifest's `priority = 5` is 5000.
    pub priority: u64,
}

/// Which propagated packages come along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Propagation {
    /// `nix-support/propagated-user-env-packages` only: environments for running software.
    UserEnvironment,
    /// `nix-support/propagated-build-inputs` too: environments for work on software (flox: mode `dev`).
    BuildInputs,
}

/// What stands at a path of the forest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ForestNode {
    /// A directory that several packages share.
    Directory,
    /// A link to this absolute path.
    Link(Vec<u8>),
}

/// A tree of links, by relative path; the root itself is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Forest(BTreeMap<Vec<u8>, ForestNode>);

/// A forest that cannot be planted.
#[derive(Debug, thiserror::Error)]
pub enum ForestError {
    /// Two packages want different things at one place.
    #[error("{0}")]
    Conflict(Box<Conflict>),
    /// A store path that is a file or leads nowhere: it has nothing to link to.
    #[error("'{path}' ('{name}') is not a directory: it cannot be part of an environment")]
    NotADirectory {
        /// The install ID.
        name: String,
        /// The store path.
        path: StorePath,
    },
    /// A package names something that is no store path among the packages that it propagates.
    #[error("'{path}' propagates '{text}', which is not a store path")]
    Propagated {
        /// The package.
        path: StorePath,
        /// What it names.
        text: String,
    },
    /// A store path could not be read.
    #[error(transparent)]
    Walk(#[from] WalkError),
}

/// Two different things for one place, neither of them to be preferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The place, relative to the environment.
    pub path: String,
    /// The priority that both have, in thousandths ([`PRIORITY_SCALE`]).
    pub priority: u64,
    /// The install IDs.
    pub names: [String; 2],
    /// What each would link to: absolute paths.
    pub places: [String; 2],
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, priority, names: [one, other], places: [here, there] } = self;
        let priority = priority / PRIORITY_SCALE;
        write!(
            f,
            "'{one}' conflicts with '{other}': both have '{path}' at priority {priority} ('{here}' and '{there}')"
        )
    }
}

impl Conflict {
    fn hint(&self) -> String {
        let [one, other] = &self.names;
        if one == other {
            return format!("choose fewer of its outputs: flox edit, then in [install]: {one}.outputs = [\"out\"]");
        }
        // The number goes to the side that can have one: nothing is lower than 0.
        let (name, number) = match (self.priority / PRIORITY_SCALE).checked_sub(1) {
            Some(lower) => (one, lower),
            None => (other, 1),
        };
        format!(
            "prefer '{one}' with flox edit, then in [install]: {name}.priority = {number}; \
             or remove one of them: flox uninstall {other}"
        )
    }
}

impl ForestError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Conflict(conflict) => Some(conflict.hint()),
            Self::NotADirectory { name, .. } => Some(format!("remove it: flox uninstall {name}")),
            Self::Propagated { .. } | Self::Walk(_) => None,
        }
    }
}

impl Forest {
    /// Plants the forest of `packages`. The paths in `real` become directories of links wherever a package has a
    /// directory there, even where only one has: room for files of the caller's own.
    pub(super) fn plant(
        view: &StoreView<'_>,
        packages: &[Package],
        propagation: Propagation,
        real: &BTreeSet<Vec<u8>>,
    ) -> Result<Self, ForestError> {
        view.read_ahead(packages.iter().map(|package| Location::root(&package.path)).collect::<Vec<_>>().iter())?;
        let packages = with_propagated(view, packages, propagation)?;
        let mut roots = Vec::new();
        for package in &packages {
            let written = Location::root(&package.path);
            match view.resolve(&written)? {
                Resolved::Directory(resolved) => roots.push(Dir { package, written, resolved, above: None }),
                Resolved::Nowhere(_) if view.entry(&written)?.is_none() => {
                    return Err(WalkError::Absent { path: package.path.to_absolute() }.into());
                }
                Resolved::File(_) | Resolved::Nowhere(_) => {
                    return Err(ForestError::NotADirectory { name: package.name.clone(), path: package.path.clone() });
                }
            }
        }
        let mut planter = Planter { view, real, nodes: BTreeMap::new(), next: vec![(Vec::new(), roots)] };
        while !planter.next.is_empty() {
            // Directories of one depth are listed together, whichever packages have them.
            let merged = mem::take(&mut planter.next);
            view.read_ahead(merged.iter().flat_map(|(_, dirs)| dirs).map(|dir| &dir.resolved))?;
            for (path, dirs) in merged {
                planter.merge(&path, &dirs)?;
            }
        }
        Ok(Self(planter.nodes))
    }

    /// Every node with its path, parents first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &ForestNode)> {
        self.0.iter().map(|(path, node)| (path.as_slice(), node))
    }
}

/// The packages by priority and then by store path, each store path once, and after them what they propagate.
fn with_propagated(
    view: &StoreView<'_>,
    packages: &[Package],
    propagation: Propagation,
) -> Result<Vec<Package>, ForestError> {
    let mut packages = packages.to_vec();
    packages.sort_by(|a, b| (a.priority, &a.path, &a.name).cmp(&(b.priority, &b.path, &b.name)));
    let mut seen = BTreeSet::new();
    packages.retain(|package| seen.insert(package.path.clone()));
    let mut priority = packages.last().map_or(0, |worst| worst.priority).saturating_add(PRIORITY_SCALE);
    let mut asked = 0;
    while asked < packages.len() {
        // One generation after the other, each ordered by store path.
        let mut generation = BTreeSet::new();
        for package in &packages[asked..] {
            let files: &[&str] = match propagation {
                Propagation::UserEnvironment => &["propagated-user-env-packages"],
                Propagation::BuildInputs => &["propagated-user-env-packages", "propagated-build-inputs"],
            };
            for file in files {
                let at = Location::root(&package.path).child(b"nix-support").child(file.as_bytes());
                let text = view.read_file(&at)?.unwrap_or_default();
                for word in String::from_utf8_lossy(&text).split_ascii_whitespace() {
                    let invalid = |_| ForestError::Propagated { path: package.path.clone(), text: word.to_owned() };
                    generation.insert((word.parse::<StorePath>().map_err(invalid)?, package.name.clone()));
                }
            }
        }
        asked = packages.len();
        for (path, name) in generation {
            if seen.insert(path.clone()) {
                packages.push(Package { name, path, priority });
                priority = priority.saturating_add(1);
            }
        }
    }
    Ok(packages)
}

/// Whether `buildEnv` leaves a path out: bookkeeping of Nix, indexes that each package has of its own and that a
/// merged tree would have to make anew, and build logs.
fn is_left_out(path: &[u8], name: &[u8]) -> bool {
    let mime = path.strip_prefix(b"share/mime/");
    path == b"propagated-build-inputs"
        || path == b"nix-support"
        || path == b"info/dir"
        || path.ends_with(b"/info/dir")
        || mime.is_some_and(|below| !below.starts_with(b"packages"))
        || name == b"perllocal.pod"
        || name == b"log"
}

/// A directory of one package, somewhere in its tree.
#[derive(Clone)]
struct Dir<'a> {
    package: &'a Package,
    /// The path as the forest's links have it.
    written: Location,
    /// Where it really is.
    resolved: Location,
    /// The real directories that were entered on the way here.
    above: Option<Rc<Above>>,
}

struct Above {
    directory: Location,
    above: Option<Rc<Above>>,
}

impl Dir<'_> {
    fn is_inside_itself(&self) -> bool {
        std::iter::successors(self.above.as_deref(), |above| above.above.as_deref())
            .any(|above| above.directory == self.resolved)
    }
}

/// What a package has at one place of the forest.
struct Offer<'a> {
    dir: Dir<'a>,
    leads_to: Resolved,
    is_link: bool,
}

struct Planter<'a> {
    view: &'a StoreView<'a>,
    real: &'a BTreeSet<Vec<u8>>,
    nodes: BTreeMap<Vec<u8>, ForestNode>,
    /// The directories that packages are merged in and that nothing was planted in yet.
    next: Vec<(Vec<u8>, Vec<Dir<'a>>)>,
}

impl<'a> Planter<'a> {
    /// Plants what `dirs`, best priority first, hold together at `path`.
    fn merge(&mut self, path: &[u8], dirs: &[Dir<'a>]) -> Result<(), ForestError> {
        let levels = dirs.iter().map(|dir| self.view.children(&dir.resolved)).collect::<Result<Vec<_>, _>>()?;
        let mut names: BTreeMap<&[u8], Vec<(&Dir<'a>, &EntryKind)>> = BTreeMap::new();
        for (dir, level) in dirs.iter().zip(&levels) {
            for (name, kind) in level.iter() {
                names.entry(name).or_default().push((dir, kind));
            }
        }
        for (name, sources) in names {
            let here = join(path, name);
            if is_left_out(&here, name) {
                continue;
            }
            if let [(dir, _)] = sources.as_slice()
                && !self.real.contains(&here)
            {
                self.nodes.insert(here, ForestNode::Link(dir.written.child(name).to_absolute()));
                continue;
            }
            let mut offers = Vec::with_capacity(sources.len());
            for (dir, kind) in sources {
                offers.push(self.offer(dir, name, kind)?);
            }
            self.decide(here, offers)?;
        }
        Ok(())
    }

    fn offer(&self, parent: &Dir<'a>, name: &[u8], kind: &EntryKind) -> Result<Offer<'a>, ForestError> {
        let at = parent.resolved.child(name);
        let leads_to = match kind {
            EntryKind::Directory => Resolved::Directory(at.clone()),
            EntryKind::Regular => Resolved::File(at.clone()),
            EntryKind::Symlink(_) => self.view.resolve(&at)?,
        };
        let resolved = match &leads_to {
            Resolved::Directory(directory) => directory.clone(),
            Resolved::File(_) | Resolved::Nowhere(_) => at,
        };
        let above = Above { directory: parent.resolved.clone(), above: parent.above.clone() };
        let dir =
            Dir { package: parent.package, written: parent.written.child(name), resolved, above: Some(Rc::new(above)) };
        Ok(Offer { dir, leads_to, is_link: matches!(kind, EntryKind::Symlink(_)) })
    }

    /// Decides between the offers for one place, best priority first.
    fn decide(&mut self, here: Vec<u8>, offers: Vec<Offer<'a>>) -> Result<(), ForestError> {
        // The winner and, where it is a directory, those that are merged with it.
        let mut kept: Vec<Offer<'a>> = Vec::new();
        for offer in offers {
            if let Some(same) = kept.iter_mut().find(|kept| kept.leads_to == offer.leads_to) {
                // A link to the thing itself is better than one to another link.
                if same.is_link && !offer.is_link {
                    same.dir.written = offer.dir.written;
                    same.is_link = false;
                }
                continue;
            }
            let Some(winner) = kept.first() else {
                kept.push(offer);
                continue;
            };
            let is_directory = |offer: &Offer<'_>| matches!(offer.leads_to, Resolved::Directory(_));
            if is_directory(winner) && is_directory(&offer) {
                kept.push(offer);
            } else if winner.dir.package.priority == offer.dir.package.priority {
                return Err(ForestError::Conflict(Box::new(Conflict {
                    path: String::from_utf8_lossy(&here).into_owned(),
                    priority: winner.dir.package.priority,
                    names: [winner.dir.package.name.clone(), offer.dir.package.name.clone()],
                    places: [winner.dir.written.to_string(), offer.dir.written.to_string()],
                })));
            }
        }
        let Some(winner) = kept.first() else { return Ok(()) };
        let link = ForestNode::Link(winner.dir.written.to_absolute());
        let enters = matches!(winner.leads_to, Resolved::Directory(_)) && !winner.dir.is_inside_itself();
        let dirs: Vec<_> = kept.into_iter().map(|offer| offer.dir).filter(|dir| !dir.is_inside_itself()).collect();
        if enters && (dirs.len() > 1 || self.real.contains(&here)) {
            self.nodes.insert(here.clone(), ForestNode::Directory);
            self.next.push((here, dirs));
        } else {
            self.nodes.insert(here, link);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "forest_tests.rs"]
mod tests;
