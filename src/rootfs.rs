//! The vocabulary for files that this tool makes itself: a small tree in memory, with owners and modes.
//!
//! Store paths have neither; only the image's own thin layers do (`/etc/passwd`, `/tmp`, the links in `/bin`).

use std::collections::BTreeMap;

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootNodeKind {
    /// A directory.
    Directory,
    /// A regular file with these bytes.
    File(Vec<u8>),
    /// A symbolic link with this target.
    Symlink(Vec<u8>),
}

/// A node of the image's own files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootNode {
    /// What it is.
    pub kind: RootNodeKind,
    /// Permission bits, with the sticky bit where it has one.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
}

/// A tree of such nodes, by path from the image's root without a leading slash. Byte order puts parents first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootFs(BTreeMap<Vec<u8>, RootNode>);

impl RootFs {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a node at `path`, over what was there; missing parents become directories of root, mode 0755.
    pub fn insert(&mut self, path: impl Into<Vec<u8>>, node: RootNode) {
        let path = path.into();
        let above = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
        // What is there has all of its parents.
        for parent in above {
            if self.0.contains_key(parent) {
                break;
            }
            let directory = RootNode { kind: RootNodeKind::Directory, mode: 0o755, uid: 0, gid: 0 };
            self.0.insert(parent.to_vec(), directory);
        }
        self.0.insert(path, node);
    }

    /// A directory of root's.
    pub fn directory(&mut self, path: impl Into<Vec<u8>>, mode: u32) {
        self.insert(path, RootNode { kind: RootNodeKind::Directory, mode, uid: 0, gid: 0 });
    }

    /// A file of root's.
    pub fn file(&mut self, path: impl Into<Vec<u8>>, mode: u32, contents: impl Into<Vec<u8>>) {
        self.insert(path, RootNode { kind: RootNodeKind::File(contents.into()), mode, uid: 0, gid: 0 });
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: impl Into<Vec<u8>>, target: impl Into<Vec<u8>>) {
        self.insert(path, RootNode { kind: RootNodeKind::Symlink(target.into()), mode: 0o777, uid: 0, gid: 0 });
    }

    /// Hides what layers below have at `path` (OCI image specification, layer.md, "Whiteouts").
    pub fn whiteout(&mut self, path: &[u8]) {
        let name = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        self.file([&path[..name], b".wh.", &path[name..]].concat(), 0o644, []);
    }

    /// The names in the directory `path` that this hides.
    pub fn hidden_in(&self, path: &[u8]) -> impl Iterator<Item = &[u8]> {
        let in_it = self.0.keys().filter_map(move |file| file.strip_prefix(path)?.strip_prefix(b"/.wh."));
        in_it.filter(|name| !name.contains(&b'/'))
    }

    /// The node at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&RootNode> {
        self.0.get(path)
    }

    /// Both trees as one, this one over the other.
    pub fn over(self, mut below: Self) -> Self {
        below.0.extend(self.0);
        below
    }

    /// What has to lie over `below` so that both together are this tree: the nodes that it has otherwise or not at all,
    /// with the directories that they are in, and whiteouts for what this tree has not. `None` where a directory is
    /// something else in the other one: not all readers agree on a whiteout beside what takes its place.
    pub fn changes_from(&self, below: &Self) -> Option<Self> {
        let is_directory = |node: &RootNode| node.kind == RootNodeKind::Directory;
        let mut changes = Self::new();
        let mut with_parents = |path: &[u8], change: &mut dyn FnMut(&mut Self)| {
            for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                if let Some(parent) = self.get(&path[..at]) {
                    changes.insert(&path[..at], parent.clone());
                }
            }
            change(&mut changes);
        };
        for (path, node) in self.iter() {
            match below.get(path) {
                Some(other) if is_directory(other) != is_directory(node) => return None,
                Some(other) if other == node => {}
                _ => with_parents(path, &mut |changes| changes.insert(path, node.clone())),
            }
        }
        for (path, _) in below.iter().filter(|(path, _)| self.get(path).is_none()) {
            let parent = path.iter().rposition(|&byte| byte == b'/').map(|slash| &path[..slash]);
            if parent.is_none_or(|parent| self.get(parent).is_some()) {
                with_parents(path, &mut |changes| changes.whiteout(path));
            }
        }
        Some(changes)
    }

    /// How many nodes it has.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Every node with its path, parents first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &RootNode)> {
        self.0.iter().map(|(path, node)| (path.as_slice(), node))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Some of a few paths, links and directories.
    fn tree() -> impl Strategy<Value = RootFs> {
        let nodes = prop::collection::btree_map("[ab](/[ab]){0,3}", 0u8..4, 0..12);
        nodes.prop_map(|nodes| {
            let mut tree = RootFs::new();
            for (path, kind) in nodes {
                let mut above = path.match_indices('/').map(|(at, _)| &path[..at]);
                if above
                    .any(|above| tree.get(above.as_bytes()).is_some_and(|node| node.kind != RootNodeKind::Directory))
                {
                    continue;
                }
                match kind {
                    0 => tree.directory(path, 0o755),
                    1 => tree.directory(path, 0o700),
                    other => tree.symlink(path, [other]),
                }
            }
            tree
        })
    }

    /// What readers make of two layers.
    fn shown(below: &RootFs, above: &RootFs) -> RootFs {
        let name = |path: &[u8]| path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let mut shown = below.clone();
        for (path, _) in above.iter() {
            let (parent, file) = path.split_at(name(path));
            if let Some(hidden) = file.strip_prefix(b".wh.") {
                let hidden = [parent, hidden].concat();
                let is_hidden =
                    |path: &[u8]| path.strip_prefix(&*hidden).is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
                shown.0.retain(|path, _| !is_hidden(path));
            }
        }
        let nodes = above.iter().filter(|(path, _)| !path[name(path)..].starts_with(b".wh."));
        shown.0.extend(nodes.map(|(path, node)| (path.to_vec(), node.clone())));
        shown
    }

    proptest! {
        #[test]
        fn a_tree_is_another_and_its_changes_from_that(before in tree(), after in tree()) {
            match after.changes_from(&before) {
                Some(changes) => prop_assert_eq!(shown(&before, &changes), after),
                None => {
                    let is_directory = |tree: &RootFs, path: &[u8]| Some(tree.get(path)?.kind == RootNodeKind::Directory);
                    let is_other = |(path, _): (&[u8], &RootNode)| {
                        is_directory(&before, path).is_some_and(|was| is_directory(&after, path) != Some(was))
                    };
                    prop_assert!(after.iter().any(is_other));
                }
            }
        }
    }

    #[test]
    fn changes_are_what_is_different_and_what_is_gone() {
        let (mut before, mut after) = (RootFs::new(), RootFs::new());
        for (tree, names) in [(&mut before, ["bin/a", "bin/b", "share/x/y"]), (&mut after, ["bin/a", "bin/c", "lib/z"])]
        {
            names.into_iter().for_each(|name| tree.symlink(name, "target"));
        }
        let changes = after.changes_from(&before).unwrap();
        let paths: Vec<_> = changes.iter().map(|(path, _)| String::from_utf8_lossy(path)).collect();
        assert_eq!(paths, [".wh.share", "bin", "bin/.wh.b", "bin/c", "lib", "lib/z"]);
        assert_eq!(before.changes_from(&before), Some(RootFs::new()));
    }
}
