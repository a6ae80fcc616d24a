//! A store path's structure without its files' contents: names, kinds, link targets.

use std::collections::BTreeMap;

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

    /// Adds what another look at the same tree has shown.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The entry at a relative path.
    pub fn get(&self, path: &[u8]) -> Option<&EntryKind> {
        self.0.get(path)
    }

    /// Every entry, parents first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &EntryKind)> {
        self.0.iter().map(|(path, kind)| (path.as_slice(), kind))
    }

    /// The names in the directory at `path`, in byte order.
    pub fn children<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a EntryKind)> {
        let from = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        let skip = from.len();
        self.0
            .range(from.clone()..)
            .take_while(move |(entry, _)| entry.starts_with(&from))
            .filter(move |(entry, _)| entry.len() > skip && !entry[skip..].contains(&b'/'))
            .map(move |(entry, kind)| (&entry[skip..], kind))
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
