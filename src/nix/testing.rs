//! What the tests of this module share: stores on disk, random trees, recorded walks, NARs.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    ContentHash, Hashing, LocalStore, MemoryNode, MemoryTree, NoMemo, Node, Source, StorePath, Visitor, WalkError,
};
use crate::event::Silent;

#[path = "../../tests/it/skips.rs"]
mod skips;
pub(super) use skips::skip_this;

/// Files are hashed and never remembered.
pub(super) const FORGETFUL: Hashing<'static> =
    Hashing { memo: &NoMemo, observer: &Silent, now: SystemTime::UNIX_EPOCH };

/// A store path with the hash part `digit`, 32 times.
pub(crate) fn store_path(digit: char, name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-{name}", digit.to_string().repeat(32))).unwrap()
}

/// A store on disk that is gone after the test.
pub(super) struct TestStore {
    root: TempDir,
}

impl TestStore {
    pub(super) fn new() -> Self {
        let root = TempDir::new().unwrap();
        fs::create_dir_all(root.path().join("nix/store")).unwrap();
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Where a store path lies.
    pub(super) fn path(&self, path: &StorePath) -> PathBuf {
        self.root().join("nix/store").join(path.base_name())
    }

    pub(super) fn open(&self) -> LocalStore<'static> {
        LocalStore::open(self.root(), FORGETFUL).unwrap()
    }

    /// Writes a tree as `path`.
    pub(super) fn write(&self, path: &StorePath, tree: &MemoryTree) {
        let at = self.path(path);
        tree.walk(&mut |path: &[u8], node: Node<'_>| {
            let at = if path.is_empty() { at.clone() } else { at.join(OsStr::from_bytes(path)) };
            match node {
                Node::Directory => fs::create_dir(at),
                Node::Symlink { target } => symlink(OsStr::from_bytes(target), at),
                Node::Regular { executable, contents, .. } => {
                    let mode = if executable { 0o755 } else { 0o644 };
                    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(at)?;
                    io::copy(contents, &mut file).map(drop)
                }
            }
        })
        .unwrap();
    }

    pub(super) fn database_file(&self) -> PathBuf {
        self.root().join("nix/var/nix/db/db.sqlite")
    }

    /// Makes the database, as Nix 2.8 does (libstore/schema.sql), and leaves it open for writing.
    pub(super) fn database(&self) -> rusqlite::Connection {
        fs::create_dir_all(self.root().join("nix/var/nix/db")).unwrap();
        let connection = rusqlite::Connection::open(self.database_file()).unwrap();
        connection
            .execute_batch(
                "pragma journal_mode = wal;
                 create table if not exists ValidPaths (
                     id integer primary key autoincrement not null, path text unique not null, hash text not null,
                     registrationTime integer not null, deriver text, narSize integer, ultimate integer, sigs text,
                     ca text);
                 create table if not exists Refs (
                     referrer integer not null, reference integer not null, primary key (referrer, reference));
                 create index if not exists IndexReferrer on Refs(referrer);
                 create index if not exists IndexReference on Refs(reference);",
            )
            .unwrap();
        connection
    }
}

/// Registers a path as valid; its references must be registered before, itself excepted.
pub(super) fn register(
    database: &rusqlite::Connection,
    path: &StorePath,
    nar_size: Option<u64>,
    references: &[&StorePath],
) {
    let hash = format!("sha256:{}", "ab".repeat(32));
    database
        .prepare_cached("insert into ValidPaths (path, hash, registrationTime, narSize) values (?1, ?2, 1, ?3)")
        .unwrap()
        .execute(rusqlite::params![path.to_string(), hash, nar_size.map(|size| size as i64)])
        .unwrap();
    for reference in references {
        database
            .prepare_cached(
                "insert into Refs select a.id, b.id from ValidPaths a, ValidPaths b where a.path = ?1 and b.path = ?2",
            )
            .unwrap()
            .execute([path.to_string(), reference.to_string()])
            .unwrap();
    }
}

/// The content hash that [`register`] writes.
pub(super) const REGISTERED: ContentHash = ContentHash::Nar([0xab; 32]);

/// One node as a walk showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) path: Vec<u8>,
    pub(super) node: MemoryNode,
}

/// Walks and reads everything.
pub(super) fn record(source: &dyn Source, path: &StorePath) -> Result<Vec<Seen>, WalkError> {
    record_nodes(|visitor| source.walk(path, visitor))
}

/// Records what is shown to a visitor.
pub(super) fn record_nodes<E>(walk: impl FnOnce(&mut dyn Visitor) -> Result<(), E>) -> Result<Vec<Seen>, E> {
    let mut seen = Vec::new();
    walk(&mut |path: &[u8], node: Node<'_>| {
        let node = match node {
            Node::Directory => MemoryNode::Directory,
            Node::Symlink { target } => MemoryNode::Symlink(target.into()),
            Node::Regular { executable, size, contents } => {
                let mut bytes = Vec::new();
                contents.read_to_end(&mut bytes)?;
                assert_eq!(bytes.len() as u64, size);
                MemoryNode::Regular { executable, contents: bytes.into() }
            }
        };
        seen.push(Seen { path: path.to_vec(), node });
        Ok(())
    })?;
    Ok(seen)
}

/// The NAR serialisation of a store path.
pub(super) fn nar(source: &dyn Source, path: &StorePath) -> Vec<u8> {
    nar_of(record(source, path).unwrap())
}

/// The NAR serialisation of a tree.
pub(crate) fn nar_of_tree(tree: &MemoryTree) -> Vec<u8> {
    nar_of(record_nodes(|visitor| tree.walk(visitor)).unwrap())
}

/// The NAR serialisation of nodes in order (Nix manual, "Nix Archive (NAR) format").
fn nar_of(nodes: Vec<Seen>) -> Vec<u8> {
    fn string(nar: &mut Vec<u8>, bytes: &[u8]) {
        nar.extend((bytes.len() as u64).to_le_bytes());
        nar.extend(bytes);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    fn strings(nar: &mut Vec<u8>, all: &[&str]) {
        all.iter().for_each(|text| string(nar, text.as_bytes()));
    }
    let mut nar = Vec::new();
    strings(&mut nar, &["nix-archive-1"]);
    // The paths of the directories that are open, the root's first.
    let mut open: Vec<Vec<u8>> = Vec::new();
    for Seen { path, node } in nodes {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], &path[..]),
        };
        if !path.is_empty() {
            while open.last().is_some_and(|directory| directory != parent) {
                // The directory's own bracket, and its entry's.
                strings(&mut nar, &[")", ")"]);
                open.pop();
            }
            strings(&mut nar, &["entry", "(", "name"]);
            string(&mut nar, name);
            strings(&mut nar, &["node"]);
        }
        strings(&mut nar, &["(", "type"]);
        match node {
            MemoryNode::Directory => {
                strings(&mut nar, &["directory"]);
                open.push(path);
                continue;
            }
            MemoryNode::Symlink(target) => {
                strings(&mut nar, &["symlink", "target"]);
                string(&mut nar, &target);
            }
            MemoryNode::Regular { executable, contents } => {
                strings(&mut nar, &["regular"]);
                if executable {
                    strings(&mut nar, &["executable", ""]);
                }
                strings(&mut nar, &["contents"]);
                string(&mut nar, &contents);
            }
        }
        strings(&mut nar, if path.is_empty() { &[")"] } else { &[")", ")"] });
    }
    for directory in open.iter().rev() {
        strings(&mut nar, if directory.is_empty() { &[")"] } else { &[")", ")"] });
    }
    nar
}

/// A tree as nested maps, from which the tests work out by themselves what a walk must show.
#[derive(Clone, Debug)]
pub(super) enum Model {
    Directory(BTreeMap<Vec<u8>, Model>),
    Leaf(MemoryNode),
}

impl Model {
    /// A file that may not be executed.
    pub(super) fn file(contents: &[u8]) -> Self {
        Self::Leaf(MemoryNode::Regular { executable: false, contents: contents.into() })
    }

    /// What a walk must show.
    pub(super) fn nodes(&self) -> Vec<Seen> {
        let mut nodes = Vec::new();
        self.collect(Vec::new(), &mut nodes);
        nodes
    }

    fn collect(&self, path: Vec<u8>, nodes: &mut Vec<Seen>) {
        match self {
            Self::Leaf(node) => nodes.push(Seen { path, node: node.clone() }),
            Self::Directory(entries) => {
                nodes.push(Seen { path: path.clone(), node: MemoryNode::Directory });
                for (name, entry) in entries {
                    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    entry.collect([&path, slash, name].concat(), nodes);
                }
            }
        }
    }

    /// The tree, its nodes put in from the last to the first.
    pub(super) fn tree(&self) -> MemoryTree {
        if let Self::Leaf(node) = self {
            return MemoryTree::of(node.clone()).unwrap();
        }
        let mut tree = MemoryTree::new();
        for Seen { path, node } in self.nodes().into_iter().skip(1).rev() {
            tree.insert(&path, node).unwrap();
        }
        tree
    }
}

/// Names that sort in surprising ways, among them such as are no UTF-8.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(prop_oneof![Just(b'a'), Just(b'-'), Just(b'.'), Just(b'0'), Just(0xff), Just(b' ')], 1..4),
        vec(1u8..=255, 1..20),
        Just(vec![b'n'; 255]),
    ]
    .prop_filter("not a name", |name| !name.contains(&b'/') && name != b"." && name != b"..")
}

/// A random tree: a directory mostly, but a file or a link may be a store path too.
pub(super) fn model() -> impl Strategy<Value = Model> {
    let file = (any::<bool>(), vec(any::<u8>(), 0..300))
        .prop_map(|(executable, bytes)| MemoryNode::Regular { executable, contents: bytes.into() });
    let link = vec(1u8..=255, 1..300).prop_map(|target| MemoryNode::Symlink(target.into()));
    let leaf = prop_oneof![file, link].prop_map(Model::Leaf);
    leaf.prop_recursive(4, 40, 6, |inner| btree_map(name(), inner, 0..6).prop_map(Model::Directory))
}

/// `size` bytes that repeat nowhere near.
pub(super) fn noise(size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..size.div_ceil(4) as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    bytes.truncate(size);
    bytes
}
