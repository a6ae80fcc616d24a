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
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            self.0.entry(path[..at].to_vec()).or_insert(RootNode {
                kind: RootNodeKind::Directory,
                mode: 0o755,
                uid: 0,
                gid: 0,
            });
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

    /// The node at `path`.
    pub fn get(&self, path: &[u8]) -> Option<&RootNode> {
        self.0.get(path)
    }

    /// Both trees as one, this one over the other.
    pub fn over(self, mut below: Self) -> Self {
        below.0.extend(self.0);
        below
    }

    /// Every node with its path, parents first.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &RootNode)> {
        self.0.iter().map(|(path, node)| (path.as_slice(), node))
    }
}
