//! Store paths seen as one tree: each directory listed once, when first looked at, and links followed from one to another.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::rc::Rc;

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

    /// The directory in this one that leads to the file at `rel` of the same store path, if any does.
    pub(super) fn next_towards(&self, rel: &[u8]) -> Option<Self> {
        let below = match self.rel.as_slice() {
            [] => rel,
            here => rel.strip_prefix(here)?.strip_prefix(b"/")?,
        };
        let slash = below.iter().position(|&byte| byte == b'/')?;
        Some(self.child(&below[..slash]))
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

/// What a directory holds: names in byte order, and what has them.
pub(super) type Level = Rc<[(Vec<u8>, EntryKind)]>;

/// The store paths of a source, of which each directory is listed when it is first looked at.
pub(super) struct StoreView<'a> {
    source: &'a dyn Source,
    known: RefCell<HashMap<StorePath, Option<Known>>>,
}

/// What is known of a store path.
#[derive(Default)]
struct Known {
    /// What the store path itself is, once that has been looked at.
    root: Option<EntryKind>,
    /// The directories that were listed.
    levels: HashMap<Vec<u8>, Level>,
    /// Whether there are no others.
    is_whole: bool,
}

impl Known {
    fn of(listing: TreeListing) -> Self {
        let mut known = Self { is_whole: true, ..Self::default() };
        let mut levels: HashMap<Vec<u8>, Vec<_>> = HashMap::new();
        for (path, kind) in listing {
            if kind == EntryKind::Directory {
                levels.entry(path.clone()).or_default();
            }
            match path.is_empty() {
                true => known.root = Some(kind),
                // Parents come before what is in them, and siblings in byte order.
                false => {
                    let (above, name) = split(&path);
                    levels.entry(above.to_vec()).or_default().push((name.to_vec(), kind));
                }
            }
        }
        known.levels = levels.into_iter().map(|(path, level)| (path, level.into())).collect();
        known
    }

    /// Adds what a look at `rel` alone has shown.
    fn extend(&mut self, rel: &[u8], listing: TreeListing) {
        let mut is_directory = false;
        let mut level = Vec::new();
        for (path, kind) in listing {
            if path != rel {
                level.push((split(&path).1.to_vec(), kind));
                continue;
            }
            is_directory = kind == EntryKind::Directory;
            if rel.is_empty() {
                self.root = Some(kind);
            }
        }
        if is_directory {
            self.levels.insert(rel.to_vec(), level.into());
        }
    }

    fn entry(&self, rel: &[u8]) -> Option<&EntryKind> {
        if rel.is_empty() {
            return self.root.as_ref();
        }
        let (above, name) = split(rel);
        let level = self.levels.get(above)?;
        let at = level.binary_search_by(|(other, _)| other.as_slice().cmp(name)).ok()?;
        Some(&level[at].1)
    }

    /// Whether another look at `rel` would show nothing new.
    fn has_seen(&self, rel: &[u8]) -> bool {
        self.is_whole || self.levels.contains_key(rel) || (rel.is_empty() && self.root.is_some())
    }
}

/// The directory that a path below a store path lies in, and its name there.
fn split(rel: &[u8]) -> (&[u8], &[u8]) {
    match rel.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&rel[..slash], &rel[slash + 1..]),
        None => (&[], rel),
    }
}

impl<'a> StoreView<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Self {
        Self { source, known: RefCell::default() }
    }

    /// Adds a store path that the source does not have. Its files cannot be read here.
    pub(super) fn add(&self, path: &StorePath, listing: TreeListing) {
        self.known.borrow_mut().insert(path.clone(), Some(Known::of(listing)));
    }

    /// Lists directories that will be looked at anyway, on all cores: store paths themselves, or what an earlier look
    /// has shown.
    pub(super) fn read_ahead<'l>(&self, directories: impl Iterator<Item = &'l Location>) -> Result<(), WalkError> {
        let has_seen = |at: &Location| {
            let known = self.known.borrow();
            known.get(&at.store_path).is_some_and(|known| known.as_ref().is_none_or(|known| known.has_seen(&at.rel)))
        };
        let unknown: BTreeSet<&Location> = directories.filter(|at| !has_seen(at)).collect();
        let unknown: Vec<&Location> = unknown.into_iter().collect();
        let source = self.source;
        let is_any_far = unknown.iter().any(|at| source.is_far(&at.store_path));
        let few = if is_any_far { 1 } else { FEW };
        let glimpse = |at: &&Location| match source.glimpse(&at.store_path, &at.rel) {
            Ok(glimpse) => Ok(Some(glimpse)),
            Err(WalkError::Absent { .. }) if at.rel.is_empty() => Ok(None),
            Err(error) => Err(error),
        };
        let glimpses: Vec<_> = unknown.par_iter().with_min_len(few).map(glimpse).collect();
        for (at, glimpse) in unknown.into_iter().zip(glimpses) {
            // Of several that fail always the same one is named.
            match glimpse? {
                Some(glimpse) => self.learn(&at.store_path, &at.rel, glimpse),
                None => drop(self.known.borrow_mut().insert(at.store_path.clone(), None)),
            }
        }
        Ok(())
    }

    fn learn(&self, path: &StorePath, rel: &[u8], glimpse: Glimpse) {
        let mut known = self.known.borrow_mut();
        let known = known.entry(path.clone()).or_default();
        match glimpse {
            Glimpse::Whole(listing) => *known = Some(Known::of(listing)),
            Glimpse::Level(listing) => known.get_or_insert_default().extend(rel, listing),
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
            Some(Some(known)) if known.levels.contains_key(rel) => State::Listed,
            Some(Some(known)) if rel.is_empty() && !known.has_seen(rel) => State::Unlisted,
            Some(Some(known)) if known.entry(rel) == Some(&EntryKind::Directory) => State::Unlisted,
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
        if let Some(Some(known)) = self.known.borrow().get(&at.store_path)
            && let Some(kind) = known.entry(&at.rel)
        {
            return Ok(Some(kind.clone()));
        }
        self.list(&at.store_path, split(&at.rel).0)?;
        let known = self.known.borrow();
        Ok(known.get(&at.store_path).and_then(|known| known.as_ref()?.entry(&at.rel).cloned()))
    }

    /// What is in a directory; nothing where there is none.
    pub(super) fn children(&self, at: &Location) -> Result<Level, WalkError> {
        self.list(&at.store_path, &at.rel)?;
        let known = self.known.borrow();
        let level = known.get(&at.store_path).and_then(|known| known.as_ref()?.levels.get(&at.rel));
        Ok(level.cloned().unwrap_or_else(|| Rc::from([])))
    }

    /// Follows every link on the way to `at` and at its end.
    pub(super) fn resolve(&self, at: &Location) -> Result<Resolved, WalkError> {
        let mut here = Walked::Into(Location::root(&at.store_path));
        let mut pending = Pending::default();
        if !at.rel.is_empty() {
            pending.push(at.rel.clone());
        }
        // Whether nobody has looked yet at what stands here.
        let mut is_new = true;
        let mut links = 0;
        let mut found = None;
        loop {
            if let (true, Walked::Into(place)) = (is_new, &here) {
                match self.entry(place)? {
                    None => return Ok(nowhere(here.path(), &pending)),
                    Some(EntryKind::Symlink(target)) => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Ok(nowhere(here.path(), &pending));
                        }
                        here = if target.first() == Some(&b'/') { Walked::Towards(0) } else { here.parent() };
                        pending.push(target);
                    }
                    Some(EntryKind::Regular) if !pending.is_empty() => return Ok(nowhere(here.path(), &pending)),
                    Some(EntryKind::Regular) => found = Some(Resolved::File(place.clone())),
                    Some(EntryKind::Directory) => found = Some(Resolved::Directory(place.clone())),
                }
            }
            if !pending.advance() {
                break;
            }
            is_new = false;
            match pending.name() {
                b"" | b"." => {}
                b".." => {
                    here = here.parent();
                    found = None;
                }
                name => {
                    let Some(child) = here.child(name) else {
                        return Ok(nowhere([&here.path(), b"/".as_slice(), name].concat(), &pending));
                    };
                    here = child;
                    is_new = true;
                    found = None;
                }
            }
        }
        // The last component may have been `..`: what it led back to is a directory, or the store itself.
        Ok(found.unwrap_or_else(|| match here {
            Walked::Into(place) => Resolved::Directory(place),
            Walked::Towards(_) => nowhere(here.path(), &pending),
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

/// How far a path was walked from the root of the file system.
enum Walked {
    /// So many of the directories that lead to the store.
    Towards(usize),
    /// Into a store path.
    Into(Location),
}

impl Walked {
    fn to_store() -> impl Iterator<Item = &'static [u8]> {
        STORE_DIR.as_bytes()[1..].split(|&byte| byte == b'/')
    }

    fn parent(self) -> Self {
        match self {
            Self::Towards(depth) => Self::Towards(depth.saturating_sub(1)),
            Self::Into(Location { rel, .. }) if rel.is_empty() => Self::Towards(Self::to_store().count()),
            Self::Into(Location { store_path, mut rel }) => {
                rel.truncate(split(&rel).0.len());
                Self::Into(Location { store_path, rel })
            }
        }
    }

    /// A name further; `None` where that neither leads to the store nor is in it.
    fn child(&self, name: &[u8]) -> Option<Self> {
        match self {
            Self::Into(place) => Some(Self::Into(place.child(name))),
            Self::Towards(depth) => match Self::to_store().nth(*depth) {
                Some(expected) => (expected == name).then_some(Self::Towards(depth + 1)),
                None => {
                    let store_path = StorePath::from_base_name(std::str::from_utf8(name).ok()?).ok()?;
                    Some(Self::Into(Location { store_path, rel: Vec::new() }))
                }
            },
        }
    }

    /// The absolute path; that of the root is empty.
    fn path(&self) -> Vec<u8> {
        match self {
            Self::Towards(depth) => {
                Self::to_store().take(*depth).flat_map(|name| [b"/", name]).flatten().copied().collect()
            }
            Self::Into(place) => place.to_absolute(),
        }
    }
}

/// What of a path is still to walk: its own components, and before them those of the links that were met.
#[derive(Default)]
struct Pending(Vec<Part>);

struct Part {
    path: Vec<u8>,
    /// Where the last component begins, and where the next one does: past the path's end if there is none.
    last: usize,
    next: usize,
}

impl Part {
    fn has_more(&self) -> bool {
        self.next <= self.path.len()
    }
}

impl Pending {
    fn push(&mut self, path: Vec<u8>) {
        self.0.push(Part { path, last: 0, next: 0 });
    }

    fn is_empty(&self) -> bool {
        !self.0.iter().any(Part::has_more)
    }

    /// Goes on to the next component, if there is one.
    fn advance(&mut self) -> bool {
        while self.0.pop_if(|part| !part.has_more()).is_some() {}
        let Some(part) = self.0.last_mut() else { return false };
        let length = part.path[part.next..].iter().position(|&byte| byte == b'/');
        part.last = part.next;
        part.next = length.map_or(part.path.len(), |length| part.next + length) + 1;
        true
    }

    /// The component that was come to last.
    fn name(&self) -> &[u8] {
        self.0.last().map_or(&[], |part| &part.path[part.last..part.next - 1])
    }
}

fn nowhere(mut path: Vec<u8>, pending: &Pending) -> Resolved {
    for part in pending.0.iter().rev().filter(|part| part.has_more()) {
        path.push(b'/');
        path.extend_from_slice(&part.path[part.next..]);
    }
    Resolved::Nowhere(if path.is_empty() { b"/".to_vec() } else { path })
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
        let nowhere = |path: &str| Resolved::Nowhere(path.into());
        trees.link("a", "root", "/..").link("a", "store", "/nix//./store").link("a", "odd", "/nix/store/x//y/");
        assert_eq!(resolve(&trees, "a", "root"), nowhere("/"));
        assert_eq!(resolve(&trees, "a", "root/etc"), nowhere("/etc"));
        assert_eq!(resolve(&trees, "a", "store"), nowhere("/nix/store"));
        assert_eq!(resolve(&trees, "a", "odd/z"), nowhere("/nix/store/x//y//z"));
        assert_eq!(resolve(&trees, "a", "file/"), inside("file/"));
        trees.link("a", "round", &format!("/nix/../nix/store/{}/./file", store_path("a").base_name()));
        assert_eq!(resolve(&trees, "a", "round"), Resolved::File(at("a", "file")));
    }

    #[test]
    fn a_path_leads_through_as_many_links_as_on_linux() {
        let mut trees = Trees::default();
        trees.file("a", "0", "");
        for n in 1..=MAX_LINKS + 1 {
            trees.link("a", &n.to_string(), &(n - 1).to_string());
        }
        assert_eq!(resolve(&trees, "a", &MAX_LINKS.to_string()), Resolved::File(at("a", "0")));
        assert!(matches!(resolve(&trees, "a", &(MAX_LINKS + 1).to_string()), Resolved::Nowhere(_)));
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
            ahead in prop::collection::vec("[abz]", 0..3),
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
            by_directory.read_ahead(ahead.iter().map(|name| at(name, "")).collect::<Vec<_>>().iter()).unwrap();
            for (name, rel) in &asked {
                let at = at(name, rel);
                prop_assert_eq!(by_directory.entry(&at).unwrap(), whole.entry(&at).unwrap());
                prop_assert_eq!(by_directory.resolve(&at).unwrap(), whole.resolve(&at).unwrap());
                prop_assert_eq!(by_directory.children(&at).unwrap(), whole.children(&at).unwrap());
            }
        }
    }
}
