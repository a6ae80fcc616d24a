//! Trees in memory, and a store that holds them: what tests write to disks, and hold against what is read there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use super::nar::NarSize;
use super::{
    ContentHash, InvalidStorePath, Node, PathInfo, Source, SourceError, StorePath, TreeHasher, Visitor, WalkError,
};

/// A node of a tree in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryNode {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Whether its owner may execute it.
        executable: bool,
        /// Its bytes.
        contents: Box<[u8]>,
    },
    /// A symbolic link with its target.
    Symlink(Box<[u8]>),
}

/// A tree of directories, files and symbolic links in memory.
///
/// One sorted map, one key a node: tens of thousands of links cost their paths and targets and little more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTree {
    /// By path, `/` replaced by NUL: no name has either, and as NUL comes before every other byte, the order of keys
    /// is NAR's (`a`, `a/b`, `a-b`, where the slash itself would come after the dash).
    nodes: BTreeMap<Box<[u8]>, MemoryNode>,
}

/// A node that cannot be put into a tree.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MemoryTreeError {
    /// A path is not `name/name/...`.
    #[error("'{path}' is not a path within a tree: a name is empty, '.', '..', longer than 255 bytes, or has a NUL")]
    Path {
        /// The path, its bytes replaced where they are no UTF-8.
        path: String,
    },
    /// There is a file or link where a directory is needed, or the other way round.
    #[error("'{path}' is there already, and is not a directory as '{other}' needs")]
    NotADirectory {
        /// The node in the way.
        path: String,
        /// The node that was to be put in.
        other: String,
    },
    /// There is a directory, with entries, where a file or link was to be put.
    #[error("'{path}' is there already, and is a directory")]
    IsADirectory {
        /// The directory.
        path: String,
    },
    /// A link to nowhere: its target is empty or has a NUL.
    #[error("the target of the link '{path}' is empty or has a NUL")]
    Target {
        /// The link.
        path: String,
    },
}

impl Default for MemoryTree {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryTree {
    /// An empty directory.
    pub fn new() -> Self {
        Self { nodes: BTreeMap::from([(Box::default(), MemoryNode::Directory)]) }
    }

    /// A tree that is this one node: a file, a link, or an empty directory.
    pub fn of(node: MemoryNode) -> Result<Self, MemoryTreeError> {
        check_target(b"", &node)?;
        Ok(Self { nodes: BTreeMap::from([(Box::default(), node)]) })
    }

    /// Puts a node at `path` (relative, without a leading slash). Directories on the way are made; a file or link
    /// takes the place of another; a directory that is there already stays as it is.
    pub fn insert(&mut self, path: &[u8], node: MemoryNode) -> Result<(), MemoryTreeError> {
        let named = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let valid =
            |name: &[u8]| !name.is_empty() && name != b"." && name != b".." && name.len() <= 255 && !name.contains(&0);
        if !path.split(|&byte| byte == b'/').all(valid) {
            return Err(MemoryTreeError::Path { path: named(path) });
        }
        check_target(path, &node)?;
        let key = to_key(path);
        // From the nearest parent upwards: in a large tree it is there almost always.
        let mut missing = Vec::new();
        let mut end = key.len();
        while end > 0 {
            end = key[..end].iter().rposition(|&byte| byte == 0).unwrap_or(0);
            match self.nodes.get(&key[..end]) {
                Some(MemoryNode::Directory) => break,
                Some(_) => {
                    return Err(MemoryTreeError::NotADirectory { path: named(&path[..end]), other: named(path) });
                }
                None => missing.push(end),
            }
        }
        match (self.nodes.get(&key), &node) {
            (Some(MemoryNode::Directory), MemoryNode::Directory) => return Ok(()),
            (Some(MemoryNode::Directory), _) => return Err(MemoryTreeError::IsADirectory { path: named(path) }),
            (Some(_), MemoryNode::Directory) => {
                return Err(MemoryTreeError::NotADirectory { path: named(path), other: named(path) });
            }
            _ => {}
        }
        for end in missing {
            self.nodes.insert(key[..end].into(), MemoryNode::Directory);
        }
        self.nodes.insert(key, node);
        Ok(())
    }

    /// Puts a directory at `path`.
    pub fn directory(&mut self, path: &[u8]) -> Result<(), MemoryTreeError> {
        self.insert(path, MemoryNode::Directory)
    }

    /// Puts a regular file at `path`.
    pub fn file(
        &mut self,
        path: &[u8],
        executable: bool,
        contents: impl Into<Box<[u8]>>,
    ) -> Result<(), MemoryTreeError> {
        self.insert(path, MemoryNode::Regular { executable, contents: contents.into() })
    }

    /// Puts a symbolic link at `path`.
    pub fn symlink(&mut self, path: &[u8], target: impl Into<Box<[u8]>>) -> Result<(), MemoryTreeError> {
        self.insert(path, MemoryNode::Symlink(target.into()))
    }

    /// The node at `path`; the tree's root is `""`.
    pub fn get(&self, path: &[u8]) -> Option<&MemoryNode> {
        self.nodes.get(&to_key(path))
    }

    /// The number of nodes, the root among them.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the tree is a directory without entries.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() == 1 && self.nodes.values().all(|node| *node == MemoryNode::Directory)
    }

    /// Shows every node to `visitor`, in NAR order.
    pub fn walk(&self, visitor: &mut dyn Visitor) -> io::Result<()> {
        self.each(|path, node| match node {
            MemoryNode::Directory => visitor.node(path, Node::Directory),
            MemoryNode::Symlink(target) => visitor.node(path, Node::Symlink { target }),
            MemoryNode::Regular { executable, contents } => visitor.node(
                path,
                Node::Regular {
                    executable: *executable,
                    size: contents.len() as u64,
                    contents: &mut contents.as_ref(),
                },
            ),
        })
    }

    /// The hash of the tree, the same as a store without a database takes of it, and the length of its NAR in bytes.
    pub fn content(&self) -> (ContentHash, u64) {
        let (mut tree, mut size) = (TreeHasher::new(), NarSize::new());
        let Ok(()) = self.each(|path, node| -> Result<(), std::convert::Infallible> {
            match node {
                MemoryNode::Directory => {
                    tree.directory(path);
                    size.directory(path);
                }
                MemoryNode::Symlink(target) => {
                    tree.symlink(path, target);
                    size.symlink(path, target);
                }
                MemoryNode::Regular { executable, contents } => {
                    let length = contents.len() as u64;
                    tree.regular(path, *executable, length, blake3::hash(contents).as_bytes());
                    size.regular(path, *executable, length);
                }
            }
            Ok(())
        });
        (tree.finish(), size.finish())
    }

    fn each<E>(&self, mut see: impl FnMut(&[u8], &MemoryNode) -> Result<(), E>) -> Result<(), E> {
        let mut path = Vec::new();
        for (key, node) in &self.nodes {
            path.clear();
            path.extend(key.iter().map(|&byte| if byte == 0 { b'/' } else { byte }));
            see(&path, node)?;
        }
        Ok(())
    }
}

fn to_key(path: &[u8]) -> Box<[u8]> {
    path.iter().map(|&byte| if byte == b'/' { 0 } else { byte }).collect()
}

fn check_target(path: &[u8], node: &MemoryNode) -> Result<(), MemoryTreeError> {
    match node {
        MemoryNode::Symlink(target) if target.is_empty() || target.contains(&0) => {
            Err(MemoryTreeError::Target { path: String::from_utf8_lossy(path).into_owned() })
        }
        _ => Ok(()),
    }
}

/// A store of trees in memory.
#[derive(Debug, Default)]
pub struct MemoryStore(HashMap<StorePath, (PathInfo, MemoryTree)>);

impl MemoryStore {
    /// A store without paths.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tree and gives it a store path made from its contents, its name and its references: the same three give
    /// the same path on every machine. Fails where `name` is none that Nix allows.
    pub fn add(
        &mut self,
        name: &str,
        tree: MemoryTree,
        references: BTreeSet<StorePath>,
    ) -> Result<StorePath, InvalidStorePath> {
        let (content, nar_size) = tree.content();
        let mut hasher = blake3::Hasher::new_derive_key("layerhold 2026 synthetic store path v1");
        hasher.update(&content.to_key_field());
        for text in std::iter::once(name).chain(references.iter().map(StorePath::base_name)) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        let path = StorePath::synthetic(hasher.finalize().as_bytes(), name)?;
        self.0.insert(path.clone(), (PathInfo { path: path.clone(), content, nar_size, references }, tree));
        Ok(path)
    }
}

impl Source for MemoryStore {
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        Ok(self.0.get(path).map(|(info, _)| info.clone()))
    }

    fn walk(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError> {
        let (_, tree) = self.0.get(path).ok_or_else(|| WalkError::Absent { path: path.to_absolute() })?;
        tree.walk(visitor).map_err(WalkError::Visitor)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"")]
    #[case(b"/a")]
    #[case(b"a/")]
    #[case(b"a//b")]
    #[case(b"a/./b")]
    #[case(b"..")]
    #[case(b"a\0b")]
    #[case(&[b'n'; 256])]
    fn what_is_no_path_is_refused(#[case] path: &[u8]) {
        let mut tree = MemoryTree::new();
        assert!(matches!(tree.directory(path), Err(MemoryTreeError::Path { .. })));
        assert!(tree.is_empty());
    }

    #[test]
    fn a_node_does_not_take_the_place_of_another_kind() {
        let mut tree = MemoryTree::new();
        tree.symlink(b"link", *b"target").unwrap();
        tree.directory(b"directory/sub").unwrap();
        let before = tree.clone();
        let in_the_way =
            |other: &str| Err(MemoryTreeError::NotADirectory { path: "link".to_owned(), other: other.to_owned() });
        assert_eq!(tree.symlink(b"link/a/b", *b"x"), in_the_way("link/a/b"));
        assert_eq!(tree.directory(b"link"), in_the_way("link"));
        let path = "directory".to_owned();
        assert_eq!(tree.symlink(b"directory", *b"x"), Err(MemoryTreeError::IsADirectory { path }));
        assert_eq!(tree.directory(b"directory"), Ok(()));
        assert_eq!(tree, before);
        tree.file(b"link", true, *b"x").unwrap();
        assert_eq!(tree.get(b"link"), Some(&MemoryNode::Regular { executable: true, contents: (*b"x").into() }));
    }

    #[test]
    fn a_link_to_nowhere_is_refused() {
        let path = || "a".to_owned();
        assert_eq!(MemoryTree::new().symlink(b"a", *b""), Err(MemoryTreeError::Target { path: path() }));
        assert_eq!(MemoryTree::new().symlink(b"a", *b"x\0"), Err(MemoryTreeError::Target { path: path() }));
        assert!(MemoryTree::of(MemoryNode::Symlink(Box::default())).is_err());
    }

    #[test]
    fn the_order_of_insertion_does_not_matter() {
        let links: Vec<String> = (0..50_000).map(|n| format!("share/{}/{}", n % 100, n)).collect();
        let build = |links: &mut dyn Iterator<Item = &String>| {
            let mut tree = MemoryTree::new();
            for link in links {
                tree.symlink(link.as_bytes(), format!("/nix/store/{link}").into_bytes()).unwrap();
            }
            tree
        };
        let tree = build(&mut links.iter());
        assert_eq!(tree, build(&mut links.iter().rev()));
        assert_eq!(tree.len(), 50_000 + 102);
    }

    #[test]
    fn contents_name_and_references_make_the_path() {
        let reference: StorePath = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello".parse().unwrap();
        let mut file = MemoryTree::new();
        file.file(b"f", false, *b"x").unwrap();
        let mut store = MemoryStore::new();
        let mut add = |name, tree: &MemoryTree, references: &[&StorePath]| {
            store.add(name, tree.clone(), references.iter().copied().cloned().collect()).unwrap()
        };
        let path = add("env", &file, &[]);
        assert_eq!(add("env", &file, &[]), path);
        assert_eq!(path.name(), "env");
        let others = [add("other", &file, &[]), add("env", &MemoryTree::new(), &[]), add("env", &file, &[&reference])];
        assert!(others.iter().all(|other| other.hash_part() != path.hash_part()));
        assert!(store.add("no name", file, BTreeSet::new()).is_err());
    }
}
