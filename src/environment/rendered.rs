//! A store path that this tool makes itself: its tree in memory, its name from the tree's hash.

use std::collections::BTreeMap;

use crate::nix::{EntryKind, InvalidStorePath, StorePath, TreeListing};
use crate::rootfs::RootFs;

/// What the hash of a rendered tree is for (blake3 key derivation: one context per use, with a version).
const HASH_CONTEXT: &str = "layerhold 2026-11 rendered store path v1";

/// One node of a rendered tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RenderedNode {
    Directory,
    File { executable: bool, contents: Vec<u8> },
    Symlink(Vec<u8>),
}

impl RenderedNode {
    fn kind(&self) -> EntryKind {
        match self {
            Self::Directory => EntryKind::Directory,
            Self::File { .. } => EntryKind::Regular,
            Self::Symlink(target) => EntryKind::Symlink(target.clone()),
        }
    }
}

/// A tree with its store path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) path: StorePath,
    nodes: Nodes,
}

/// By relative path, the root as `""`.
pub(super) type Nodes = BTreeMap<Vec<u8>, RenderedNode>;

/// The store path that a tree has as long as its hash is not known.
pub(super) fn stand_in(name: &str) -> Result<StorePath, InvalidStorePath> {
    StorePath::synthetic(&[0; 32], name)
}

/// Puts nodes over others: below a file there is nothing.
fn put_over(nodes: &mut Nodes, others: Nodes) {
    for (path, node) in others {
        if node != RenderedNode::Directory {
            let below = [path.as_slice(), b"/"].concat();
            let inside = nodes.range(below.clone()..).map(|(other, _)| other);
            let inside: Vec<_> = inside.take_while(|other| other.starts_with(&below)).cloned().collect();
            inside.iter().for_each(|other| drop(nodes.remove(other)));
        }
        nodes.insert(path, node);
    }
}

/// A tree without its files' contents.
pub(super) fn listing(nodes: &Nodes) -> TreeListing {
    nodes.iter().map(|(path, node)| (path.clone(), node.kind())).collect()
}

impl Rendered {
    /// Makes a tree of `nodes` and of those that name its own store path, over them. These are asked for twice, the same
    /// paths each time: first for a store path whose hash is all zeros, which the tree's hash is taken of, then for the
    /// real one.
    pub(super) fn new<E: From<InvalidStorePath>>(
        name: &str,
        mut nodes: Nodes,
        naming: impl Fn(&StorePath) -> Result<Nodes, E>,
    ) -> Result<Self, E> {
        put_over(&mut nodes, naming(&stand_in(name)?)?);
        let path = StorePath::synthetic(&hash(&nodes), name)?;
        let count = nodes.len();
        put_over(&mut nodes, naming(&path)?);
        debug_assert_eq!(nodes.len(), count, "other paths than before");
        Ok(Self { path, nodes })
    }

    /// The tree without its files' contents.
    pub(super) fn listing(&self) -> TreeListing {
        listing(&self.nodes)
    }

    /// Puts the tree into the image, as root's and read-only, like every store path.
    pub(super) fn put(&self, rootfs: &mut RootFs) {
        let base = self.path.to_string().into_bytes().split_off(1);
        for (path, node) in &self.nodes {
            let path = super::store_view::join(&base, path);
            match node {
                RenderedNode::Directory => rootfs.directory(path, 0o555),
                RenderedNode::File { executable: true, contents } => rootfs.file(path, 0o555, contents.clone()),
                RenderedNode::File { executable: false, contents } => rootfs.file(path, 0o444, contents.clone()),
                RenderedNode::Symlink(target) => rootfs.symlink(path, target.clone()),
            }
        }
    }
}

/// blake3 over every node, each field with its length before it, so that no two trees are written the same.
fn hash(nodes: &Nodes) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(HASH_CONTEXT);
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (path, node) in nodes {
        field(path);
        match node {
            RenderedNode::Directory => field(b"directory"),
            RenderedNode::File { executable, contents } => {
                field(if *executable { b"executable" } else { b"regular" });
                field(contents);
            }
            RenderedNode::Symlink(target) => {
                field(b"symlink");
                field(target);
            }
        }
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use super::*;
    use crate::nix::{Glimpse, Node, PathInfo, Source, SourceError, Visitor, WalkError};

    /// A valid store path for a short name, the same each time.
    pub(in super::super) fn store_path(name: &str) -> StorePath {
        StorePath::synthetic(blake3::hash(name.as_bytes()).as_bytes(), name).unwrap()
    }

    /// Several trees in memory.
    #[derive(Clone, Default)]
    pub(in super::super) struct Trees(BTreeMap<StorePath, BTreeMap<Vec<u8>, RenderedNode>>);

    impl Trees {
        fn put(&mut self, name: &str, rel: &str, node: RenderedNode) -> &mut Self {
            let nodes = self.0.entry(store_path(name)).or_default();
            for (at, _) in rel.match_indices('/') {
                nodes.entry(rel.as_bytes()[..at].to_vec()).or_insert(RenderedNode::Directory);
            }
            if !rel.is_empty() {
                nodes.entry(Vec::new()).or_insert(RenderedNode::Directory);
            }
            nodes.insert(rel.as_bytes().to_vec(), node);
            self
        }

        pub(in super::super) fn file(&mut self, name: &str, rel: &str, contents: &str) -> &mut Self {
            self.put(name, rel, RenderedNode::File { executable: false, contents: contents.into() })
        }

        pub(in super::super) fn program(&mut self, name: &str, rel: &str) -> &mut Self {
            self.put(name, rel, RenderedNode::File { executable: true, contents: Vec::new() })
        }

        pub(in super::super) fn link(&mut self, name: &str, rel: &str, target: &str) -> &mut Self {
            self.put(name, rel, RenderedNode::Symlink(target.into()))
        }

        pub(in super::super) fn directory(&mut self, name: &str, rel: &str) -> &mut Self {
            self.put(name, rel, RenderedNode::Directory)
        }

        pub(in super::super) fn paths(&self) -> impl Iterator<Item = &StorePath> {
            self.0.keys()
        }
    }

    impl Source for Trees {
        fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
            Ok(self.0.get(path).map(|nodes| PathInfo {
                path: path.clone(),
                content: crate::nix::ContentHash::Tree(hash(nodes)),
                nar_size: 0,
                references: Default::default(),
            }))
        }

        fn walk(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError> {
            let nodes = self.0.get(path).ok_or_else(|| WalkError::Absent { path: path.to_absolute() })?;
            let mut nodes: Vec<_> = nodes.iter().collect();
            // NAR order: `a.b` sorts before `a/b` as a string, yet `a` with all below it comes before `a.b`.
            nodes.sort_by(|(a, _), (b, _)| a.split(|&byte| byte == b'/').cmp(b.split(|&byte| byte == b'/')));
            for (path, node) in nodes {
                let shown = match node {
                    RenderedNode::Directory => visitor.node(path, Node::Directory),
                    RenderedNode::File { executable, contents } => {
                        let (executable, size) = (*executable, contents.len() as u64);
                        visitor.node(path, Node::Regular { executable, size, contents: &mut contents.as_slice() })
                    }
                    RenderedNode::Symlink(target) => visitor.node(path, Node::Symlink { target }),
                };
                shown.map_err(WalkError::Visitor)?;
            }
            Ok(())
        }
    }

    /// The same trees as a store on disk has them: one directory a look, and no directory twice.
    pub(in super::super) struct Levels<'t>(&'t Trees, Mutex<BTreeSet<(StorePath, Vec<u8>)>>);

    impl<'t> Levels<'t> {
        pub(in super::super) fn of(trees: &'t Trees) -> Self {
            Self(trees, Mutex::default())
        }
    }

    impl Source for Levels<'_> {
        fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
            self.0.path_info(path)
        }

        fn walk(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError> {
            self.0.walk(path, visitor)
        }

        fn glimpse(&self, path: &StorePath, at: &[u8]) -> Result<Glimpse, WalkError> {
            let nodes = self.0.0.get(path).ok_or_else(|| WalkError::Absent { path: path.to_absolute() })?;
            assert!(self.1.lock().unwrap().insert((path.clone(), at.to_vec())), "{path} again at {at:?}");
            let below = if at.is_empty() { Vec::new() } else { [at, b"/"].concat() };
            let mut level = TreeListing::default();
            level.insert(at.to_vec(), nodes[at].kind());
            let inside = nodes.range(below.clone()..).take_while(|(path, _)| path.starts_with(&below));
            for (path, node) in inside.filter(|(path, _)| path.len() > below.len()) {
                if !path[below.len()..].contains(&b'/') {
                    level.insert(path.clone(), node.kind());
                }
            }
            Ok(Glimpse::Level(level))
        }
    }

    fn naming_itself(path: &StorePath) -> Result<Nodes, InvalidStorePath> {
        let node = RenderedNode::File { executable: false, contents: path.to_string().into() };
        Ok(Nodes::from([(b"self".to_vec(), node)]))
    }

    #[test]
    fn a_tree_may_name_its_own_store_path() {
        let root = || Nodes::from([(Vec::new(), RenderedNode::Directory)]);
        let rendered = Rendered::new("env", root(), naming_itself).unwrap();
        let contents = rendered.path.to_string().into_bytes();
        assert_eq!(rendered.nodes[b"self".as_slice()], RenderedNode::File { executable: false, contents });
        assert_eq!(rendered, Rendered::new("env", root(), naming_itself).unwrap());
    }

    #[test]
    fn other_contents_give_another_store_path() {
        let path = |text: &str, executable| {
            let node = RenderedNode::File { executable, contents: text.into() };
            Rendered::new("env", Nodes::new(), |_| {
                Ok::<_, InvalidStorePath>(Nodes::from([(b"x".to_vec(), node.clone())]))
            })
            .unwrap()
            .path
        };
        assert_ne!(path("a", false), path("b", false));
        assert_ne!(path("a", false), path("a", true));
    }
    #[test]
    fn what_names_the_store_path_lies_over_the_rest_and_both_count() {
        let links = |paths: &[&str]| -> Nodes {
            paths.iter().map(|path| (path.as_bytes().to_vec(), RenderedNode::Symlink(b"/x".to_vec()))).collect()
        };
        let with_self = |paths: &[&str]| Rendered::new("env", links(paths), naming_itself).unwrap();
        assert_ne!(with_self(&["a"]).path, with_self(&["b"]).path);
        let plain = with_self(&["a", "self.d"]);
        let buried = with_self(&["a", "self", "self.d", "self/in/it"]);
        assert_eq!(buried, plain, "a file has nothing below it");
    }
}
