//! Store paths seen as one tree: each directory listed once, when first looked at, and links followed from one to another.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use rayon::prelude::*;

use crate::nix::{EntryKind, Glimpse, STORE_DIR, Source, StorePath, TreeListing, WalkError};

/// How many links one path may lead through, as on Linux (`path_resolution(7)`: 40).
const MAX_LINKS: usize = 40;

/// So many directories of this machine are listed by one thread: to wake another takes as long.
const FEW: usize = 8;

/// A place in a store path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Location {
    /// The store path.
    pub(super) store_path: StorePath,
    /// The path below it without a leading slash; the store path itself is `""`.
    pub(super) rel: Vec<u8>,
}

impl Location {
    pub(super) fn root(store_path: &StorePath) -> Self {
        Self { store_path: store_path.clone(), rel: Vec::new() }
    }

    pub(super) fn child(&self, name: &[u8]) -> Self {
        Self { store_path: self.store_path.clone(), rel: join(&self.rel, name) }
    }

    /// The absolute path, as a link's target has it.
    pub(super) fn to_absolute(&self) -> Vec<u8> {
        join(self.store_path.to_string().as_bytes(), &self.rel)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.to_absolute()))
    }
}

/// `directory/name`, where neither part makes a slash of its own when it is empty.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory, name) {
        ([], _) => name.to_vec(),
        (_, []) => directory.to_vec(),
        _ => [directory, b"/", name].concat(),
    }
}

/// Where a path leads after every link is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// A directory.
    Directory(Location),
    /// A regular file.
    File(Location),
    /// Nothing in any store path that the source has: missing, outside the store, or links in a circle. The path at
    /// which the search ended is the only identity that such a link has.
    Nowhere(Vec<u8>),
}

/// The store paths of a source, of which each directory is listed when it is first looked at.
pub(super) struct StoreView<'a> {
    source: &'a dyn Source,
    known: RefCell<HashMap<StorePath, Option<Known>>>,
}

/// What is known of a store path.
struct Known {
    listing: TreeListing,
    /// The directories that were listed; `None` where all were.
    listed: Option<HashSet<Vec<u8>>>,
}

impl Known {
    /// Whether all is known of the directory at `rel`, if it is one.
    fn has_listed(&self, rel: &[u8]) -> bool {
        self.listed.as_ref().is_none_or(|listed| listed.contains(rel))
    }
}

impl<'a> StoreView<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Self {
        Self { source, known: RefCell::default() }
    }

    /// Lists directories that will be looked at anyway, on all cores: store paths themselves, or what an earlier look
    /// has shown. What cannot be listed now fails when it is wanted.
    pub(super) fn read_ahead<'l>(&self, directories: impl Iterator<Item = &'l Location>) {
        let is_known = |at: &Location| {
            let known = self.known.borrow();
            known.get(&at.store_path).is_some_and(|known| known.as_ref().is_none_or(|known| known.has_listed(&at.rel)))
        };
        let unknown: BTreeSet<&Location> = directories.filter(|at| !is_known(at)).collect();
        let unknown: Vec<&Location> = unknown.into_iter().collect();
        let source = self.source;
        let is_any_far = unknown.iter().any(|at| source.is_far(&at.store_path));
        let few = if is_any_far { 1 } else { FEW };
        let glimpses: Vec<_> =
            unknown.par_iter().with_min_len(few).map(|at| source.glimpse(&at.store_path, &at.rel)).collect();
        for (at, glimpse) in unknown.into_iter().zip(glimpses) {
            if let Ok(glimpse) = glimpse {
                self.learn(&at.store_path, &at.rel, glimpse);
            }
        }
    }

    fn learn(&self, path: &StorePath, rel: &[u8], glimpse: Glimpse) {
        let mut known = self.known.borrow_mut();
        let known = known.entry(path.clone()).or_default();
        match glimpse {
            Glimpse::Whole(listing) => *known = Some(Known { listing, listed: None }),
            Glimpse::Level(listing) => {
                let known = known
                    .get_or_insert_with(|| Known { listing: TreeListing::default(), listed: Some(HashSet::new()) });
                known.listing.extend(listing);
                if let Some(listed) = &mut known.listed {
                    listed.insert(rel.to_vec());
                }
            }
        }
    }

    /// Has the directory at `rel` listed, if it is one, and those that lead to it.
    fn list(&self, path: &StorePath, rel: &[u8]) -> Result<(), WalkError> {
        enum State {
            Listed,
            Unlisted,
            NoDirectory,
        }
        let state = |rel: &[u8]| match self.known.borrow().get(path) {
            None if rel.is_empty() => State::Unlisted,
            Some(Some(known)) if known.has_listed(rel) => State::Listed,
            Some(Some(known)) if rel.is_empty() && known.listing.get(rel).is_none() => State::Unlisted,
            Some(Some(known)) if known.listing.get(rel) == Some(&EntryKind::Directory) => State::Unlisted,
            _ => State::NoDirectory,
        };
        if matches!(state(rel), State::Listed) {
            return Ok(());
        }
        let slashes = rel.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in std::iter::once(0).chain(slashes).chain([rel.len()]) {
            let above = &rel[..end];
            match state(above) {
                State::Listed => {}
                State::NoDirectory => return Ok(()),
                State::Unlisted => match self.source.glimpse(path, above) {
                    Ok(glimpse) => self.learn(path, above, glimpse),
                    Err(WalkError::Absent { .. }) if above.is_empty() => {
                        self.known.borrow_mut().insert(path.clone(), None);
                        return Ok(());
                    }
                    Err(error) => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// What stands at a place, links not followed; `None` also where the source does not have the store path.
    pub(super) fn entry(&self, at: &Location) -> Result<Option<EntryKind>, WalkError> {
        let above = at.rel.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        self.list(&at.store_path, &at.rel[..above])?;
        let known = self.known.borrow();
        Ok(known.get(&at.store_path).and_then(|known| known.as_ref()?.listing.get(&at.rel).cloned()))
    }

    /// The names in a directory, in byte order, and what they are; none where there is no directory.
    pub(super) fn children(&self, at: &Location) -> Result<Vec<(Vec<u8>, EntryKind)>, WalkError> {
        self.list(&at.store_path, &at.rel)?;
        let known = self.known.borrow();
        let listing = known.get(&at.store_path).and_then(|known| Some(&known.as_ref()?.listing));
        let children = listing.into_iter().flat_map(|listing| listing.children(&at.rel));
        Ok(children.map(|(name, kind)| (name.to_vec(), kind.clone())).collect())
    }

    /// Follows every link on the way to `at` and at its end.
    pub(super) fn resolve(&self, at: &Location) -> Result<Resolved, WalkError> {
        let store: Vec<&[u8]> = STORE_DIR.as_bytes()[1..].split(|&byte| byte == b'/').collect();
        // Components still to walk, the next one last; and those walked, from the root of the file system.
        let mut pending = Vec::new();
        push_components(&mut pending, &at.to_absolute());
        let mut walked: Vec<Vec<u8>> = Vec::new();
        let mut found = None;
        let mut links = 0;
        while let Some(component) = pending.pop() {
            match component.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    walked.pop();
                    found = None;
                    continue;
                }
                _ => walked.push(component),
            }
            if walked.len() <= store.len() {
                match walked.iter().zip(&store).all(|(have, want)| have == want) {
                    true => continue,
                    false => return Ok(nowhere(walked, pending)),
                }
            }
            let Some(here) = location(&walked, store.len()) else { return Ok(nowhere(walked, pending)) };
            match self.entry(&here)? {
                None => return Ok(nowhere(walked, pending)),
                Some(EntryKind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(nowhere(walked, pending));
                    }
                    walked.pop();
                    if target.first() == Some(&b'/') {
                        walked.clear();
                    }
                    push_components(&mut pending, &target);
                    found = None;
                }
                Some(EntryKind::Regular) if !pending.is_empty() => return Ok(nowhere(walked, pending)),
                Some(EntryKind::Regular) => found = Some(Resolved::File(here)),
                Some(EntryKind::Directory) => found = Some(Resolved::Directory(here)),
            }
        }
        // The last component may have been `..`: what it led back to is a directory, or the store itself.
        Ok(found.unwrap_or_else(|| match location(&walked, store.len()) {
            Some(here) => Resolved::Directory(here),
            None => nowhere(walked, Vec::new()),
        }))
    }

    /// The contents of a regular file, links followed; `None` where there is none.
    pub(super) fn read_file(&self, at: &Location) -> Result<Option<Vec<u8>>, WalkError> {
        if self.entry(at)?.is_none() {
            return Ok(None);
        }
        let Resolved::File(file) = self.resolve(at)? else { return Ok(None) };
        self.source.read(&file.store_path, &file.rel).map(Some)
    }
}

fn push_components(pending: &mut Vec<Vec<u8>>, path: &[u8]) {
    pending.extend(path.split(|&byte| byte == b'/').rev().map(<[u8]>::to_vec));
}

/// The place in a store path that absolute components name, if the store path's name is a valid one.
fn location(components: &[Vec<u8>], store_depth: usize) -> Option<Location> {
    let (base, rel) = components.get(store_depth..)?.split_first()?;
    let store_path = StorePath::from_base_name(std::str::from_utf8(base).ok()?).ok()?;
    Some(Location { store_path, rel: rel.join(&b'/') })
}

fn nowhere(mut walked: Vec<Vec<u8>>, pending: Vec<Vec<u8>>) -> Resolved {
    walked.extend(pending.into_iter().rev());
    Resolved::Nowhere([b"/", walked.join(&b'/').as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rendered::tests::{Levels, Trees, store_path};
    use super::*;

    fn resolve(trees: &Trees, name: &str, rel: &str) -> Resolved {
        let at = at(name, rel);
        let resolved = StoreView::new(trees).resolve(&at).unwrap();
        assert_eq!(StoreView::new(&Levels::of(trees)).resolve(&at).unwrap(), resolved);
        resolved
    }

    fn at(name: &str, rel: &str) -> Location {
        Location { store_path: store_path(name), rel: rel.into() }
    }

    #[test]
    fn links_lead_from_one_store_path_into_another() {
        let mut trees = Trees::default();
        trees.file("a", "lib/real/x", "").link("a", "lib/alias", "real");
        trees.link("b", "lib", &format!("{}/lib/alias", store_path("a")));
        trees.link("c", "sub/up", &format!("../../{}/lib", store_path("b").base_name()));
        assert_eq!(resolve(&trees, "b", "lib/x"), Resolved::File(at("a", "lib/real/x")));
        assert_eq!(resolve(&trees, "b", "lib"), Resolved::Directory(at("a", "lib/real")));
        assert_eq!(resolve(&trees, "a", "lib/alias/.."), Resolved::Directory(at("a", "lib")));
        assert_eq!(resolve(&trees, "c", "sub/up"), Resolved::Directory(at("a", "lib/real")));
    }

    #[test]
    fn a_store_path_may_be_a_link_itself() {
        let mut trees = Trees::default();
        trees.file("a", "bin/x", "").link("b", "", &store_path("a").to_string());
        assert_eq!(resolve(&trees, "b", "bin/x"), Resolved::File(at("a", "bin/x")));
    }

    #[test]
    fn links_that_lead_nowhere_are_told_apart_by_where_they_end() {
        let mut trees = Trees::default();
        trees.link("a", "out", "/etc/passwd").link("a", "gone", "missing/x").link("a", "loop", "loop");
        trees.file("a", "file", "").link("a", "through", "file/x");
        assert_eq!(resolve(&trees, "a", "out"), Resolved::Nowhere(b"/etc/passwd".to_vec()));
        let inside = |rel: &str| Resolved::Nowhere(format!("{}/{rel}", store_path("a")).into_bytes());
        assert_eq!(resolve(&trees, "a", "gone"), inside("missing/x"));
        assert_eq!(resolve(&trees, "a", "loop"), inside("loop"));
        assert_eq!(resolve(&trees, "a", "through"), inside("file/x"));
        assert_eq!(resolve(&trees, "a", "file/.."), inside("file/.."), "a file has no parent to go to");
    }

    #[test]
    fn a_file_is_read_through_links_and_a_missing_one_is_none() {
        let mut trees = Trees::default();
        trees.file("a", "x", "text").link("b", "y", &format!("{}/x", store_path("a")));
        let view = StoreView::new(&trees);
        assert_eq!(view.read_file(&at("b", "y")).unwrap(), Some(b"text".to_vec()));
        assert_eq!(view.read_file(&at("b", "z")).unwrap(), None);
        assert_eq!(view.read_file(&at("absent", "z")).unwrap(), None);
    }

    proptest! {
        /// Whatever is asked for in whatever order, and although no directory is listed twice.
        #[test]
        fn directories_that_are_seen_one_by_one_say_what_whole_trees_say(
            files in prop::collection::btree_set(("[ab]", "([cd]/){0,2}[ef]"), 0..12),
            links in prop::collection::btree_set(("[ab]", "([cd]/){0,2}[gh]", "([ab]:)?(\\.\\./)?[cdeg]"), 0..4),
            asked in prop::collection::vec(("[abz]", "(([cdegy]/){0,2}[cdefghy])?"), 1..12),
            ahead in prop::collection::vec("[ab]", 0..3),
        ) {
            let mut trees = Trees::default();
            trees.directory("a", "").directory("b", "");
            for (name, rel) in &files {
                trees.file(name, rel, "");
            }
            for (name, rel, target) in &links {
                let target = match target.split_once(':') {
                    Some((name, rel)) => format!("{}/{rel}", store_path(name)),
                    None => target.clone(),
                };
                trees.link(name, rel, &target);
            }
            let source = Levels::of(&trees);
            let (whole, by_directory) = (StoreView::new(&trees), StoreView::new(&source));
            by_directory.read_ahead(ahead.iter().map(|name| at(name, "")).collect::<Vec<_>>().iter());
            for (name, rel) in &asked {
                let at = at(name, rel);
                prop_assert_eq!(by_directory.entry(&at).unwrap(), whole.entry(&at).unwrap());
                prop_assert_eq!(by_directory.resolve(&at).unwrap(), whole.resolve(&at).unwrap());
                prop_assert_eq!(by_directory.children(&at).unwrap(), whole.children(&at).unwrap());
            }
        }
    }
}
