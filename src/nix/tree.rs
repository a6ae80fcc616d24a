//! A store path's structure without its files' contents: names, kinds, link targets.

use std::collections::{BTreeMap, btree_map};

use super::{Node, Visitor, WalkError};

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
}

impl EntryKind {
    /// What a node is.
    pub(super) fn of(node: &Node<'_>) -> Self {
        match node {
            Node::Directory => Self::Directory,
            Node::Regular { .. } => Self::Regular,
            Node::Symlink { target } => Self::Symlink(target.to_vec()),
        }
    }
}

/// The structure of one store path, by relative path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeListing(BTreeMap<Vec<u8>, EntryKind>);

impl TreeListing {
    /// The structure that a walk shows.
    pub(super) fn of_walk(walk: impl FnOnce(&mut dyn Visitor) -> Result<(), WalkError>) -> Result<Self, WalkError> {
        let mut listing = Self::default();
        walk(&mut |path: &[u8], node: Node<'_>| {
            listing.insert(path.to_vec(), EntryKind::of(&node));
            Ok(())
        })?;
        Ok(listing)
    }

    /// Adds an entry, or puts it in the place of what was there.
    pub fn insert(&mut self, path: Vec<u8>, kind: EntryKind) {
        self.0.insert(path, kind);
    }

    /// The entry at a relative path.
    #[cfg(test)]
    pub(super) fn get(&self, path: &[u8]) -> Option<&EntryKind> {
        self.0.get(path)
    }

    /// Every entry, parents first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &EntryKind)> {
        self.0.iter().map(|(path, kind)| (path.as_slice(), kind))
    }

    /// The names in the directory at `path`, in byte order.
    #[cfg(test)]
    pub(super) fn children<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a EntryKind)> {
        let from = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        let below = self.iter().filter_map(move |(entry, kind)| Some((entry.strip_prefix(from.as_slice())?, kind)));
        below.filter(|(name, _)| !name.is_empty() && !name.contains(&b'/'))
    }
}

/// Every entry, parents first, and siblings in byte order of their names.
impl IntoIterator for TreeListing {
    type Item = (Vec<u8>, EntryKind);
    type IntoIter = btree_map::IntoIter<Vec<u8>, EntryKind>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FromIterator<(Vec<u8>, EntryKind)> for TreeListing {
    fn from_iter<I: IntoIterator<Item = (Vec<u8>, EntryKind)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

/// As much of a store path's structure as a source had to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Glimpse {
    /// All of it.
    Whole(TreeListing),
    /// What stands at one place, and, where that is a directory, what is in it.
    Level(TreeListing),
}
