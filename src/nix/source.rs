//! The abstraction that packing hangs on: a source of store paths.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::ErrorCode;

use crate::outlet::Outlet;

use super::{ContentHash, Glimpse, Skeleton, StorePath, TreeListing};

/// What is known of a store path without walking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// The path itself.
    pub path: StorePath,
    /// What its contents hash to, vouched for by the Nix database or taken of the tree by this tool.
    pub content: ContentHash,
    /// The length in bytes of its NAR serialisation.
    pub nar_size: u64,
    /// The store paths it refers to, itself left out.
    pub references: BTreeSet<StorePath>,
}

/// One node of a store path, as NAR knows it.
pub enum Node<'a> {
    /// A directory. Its entries follow, in byte order of their names.
    Directory,
    /// A regular file.
    Regular {
        /// Whether its owner may execute it.
        executable: bool,
        /// Its length in bytes; `contents` yields exactly that many, or the walk fails.
        size: u64,
        /// Its bytes. The file is opened at the first read: a visitor that needs none leaves it alone.
        contents: &'a mut dyn Contents,
    },
    /// A symbolic link and its target, uninterpreted.
    Symlink {
        /// The target's bytes.
        target: &'a [u8],
    },
}

/// The bytes of a regular file, front to back.
pub trait Contents: Read {
    /// Has `outlet` take at most `length` of the bytes as they lie on this machine, and says how many; `None` where that does
    /// not work, or no byte is left: reading tells which.
    fn give_pages(&mut self, outlet: &mut dyn Outlet, length: u64) -> io::Result<Option<u64>> {
        let _ = (outlet, length);
        Ok(None)
    }
}

impl Contents for &[u8] {}

/// Sees the nodes of a store path, parents before children, siblings in byte order of their names.
pub trait Visitor {
    /// Takes one node. `path` is relative to the store path, without a leading slash; the store path itself is `""`.
    fn node(&mut self, path: &[u8], node: Node<'_>) -> io::Result<()>;

    /// Whether it reads every file that it is shown: a source then opens them without a look at them before.
    fn reads(&self) -> bool {
        false
    }
}

impl<F: FnMut(&[u8], Node<'_>) -> io::Result<()>> Visitor for F {
    fn node(&mut self, path: &[u8], node: Node<'_>) -> io::Result<()> {
        self(path, node)
    }
}

/// The state of a tree, or of several: two walks in the same state saw the same nodes with the same contents, and what
/// was checked in the one need not be checked again in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeState(pub(super) [u8; 32]);

impl TreeState {
    /// What [`TreeState::to_bytes`] gave.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The state as a value for an index on disk.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// The state of several trees together.
    pub fn of_all(states: impl IntoIterator<Item = Self>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for state in states {
            hasher.update(&state.0);
        }
        Self(hasher.finalize().into())
    }
}

/// Where store paths are found: a local Nix store, trees in memory, binary caches.
///
/// Whatever the source, the same contents give the same nodes in the same order, hence the same layer.
pub trait Source: Send + Sync {
    /// What is known of `path`, or `None` where this source does not have it.
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError>;

    /// Shows every node of `path` to `visitor`. A tree that changes meanwhile is an error, never a mixture.
    fn walk(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError>;

    /// As [`Source::walk`], and says in what state the tree was; `None` where that cannot be told.
    fn walk_in_state(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<Option<TreeState>, WalkError> {
        self.walk(path, visitor)?;
        Ok(None)
    }

    /// The structure of `path`, at least as far as it can be seen from `at`: what stands there, and what that holds if it is a
    /// directory. What is above `at` is a directory, as an earlier look has shown.
    fn glimpse(&self, path: &StorePath, at: &[u8]) -> Result<Glimpse, WalkError> {
        let _ = at;
        Ok(Glimpse::Whole(match self.skeleton(path)? {
            Some(skeleton) => Arc::unwrap_or_clone(skeleton).listing,
            None => TreeListing::of_walk(|visitor| self.walk(path, visitor))?,
        }))
    }

    /// The contents of the regular file at `at` in `path`. That it is one, an earlier look has shown.
    fn read(&self, path: &StorePath, at: &[u8]) -> Result<Vec<u8>, WalkError> {
        if let Some(kept) = self.skeleton(path)?.as_ref().and_then(|skeleton| skeleton.file(at)) {
            return Ok(kept.to_vec());
        }
        let mut contents = None;
        let walked = self.walk(path, &mut |found: &[u8], node: Node<'_>| {
            if found == at
                && let Node::Regular { contents: reader, .. } = node
            {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes)?;
                contents = Some(bytes);
                // A visitor leaves a walk only with an error; this one goes no further than here.
                return Err(io::Error::other("seen enough"));
            }
            Ok(())
        });
        match (contents, walked) {
            (Some(contents), _) => Ok(contents),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => Err(WalkError::Changed { path: path.to_absolute().join(OsStr::from_bytes(at)) }),
        }
    }

    /// Is told which paths will be asked about next, so that a source far away can ask for many at once.
    fn prepare(&self, _paths: &[StorePath]) {}

    /// The binary caches that are asked for what is not on this machine.
    fn asks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether to walk `path` is to fetch it from elsewhere.
    fn is_far(&self, _path: &StorePath) -> bool {
        false
    }

    /// What is kept of a path that is far, so that its structure need not be fetched again; `None` for one that is near.
    fn skeleton(&self, _path: &StorePath) -> Result<Option<Arc<Skeleton>>, WalkError> {
        Ok(None)
    }

    /// Is told the skeleton of a path that is far, and was had in another way; its contents are those of its content hash.
    fn learn(&self, _path: &StorePath, _skeleton: &Skeleton) {}
}

/// A source could not say what it knows of a path.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no store at all.
    #[error("there is no Nix store at '{}'", store.display())]
    NoStore {
        /// The directory that should be the store.
        store: PathBuf,
    },
    /// The path is on disk, but the Nix database does not vouch for it: a build or a download that did not end well.
    #[error("'{path}' is on disk, but the Nix database '{}' does not know it as valid", database.display())]
    Unregistered {
        /// The path.
        path: StorePath,
        /// The database file.
        database: PathBuf,
    },
    /// The Nix database vouches for the path, but it is not on disk: somebody removed it without Nix.
    #[error("the Nix database '{}' knows '{path}' as valid, but it is not on disk", database.display())]
    Vanished {
        /// The path.
        path: StorePath,
        /// The database file.
        database: PathBuf,
    },
    /// The Nix database did not answer.
    #[error("cannot read the Nix database '{}'", database.display())]
    Database {
        /// The database file.
        database: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The Nix database's files could not be looked at.
    #[error("cannot read the Nix database '{}'", database.display())]
    DatabaseFile {
        /// The database file.
        database: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The Nix database holds something that this tool cannot read.
    #[error("the Nix database '{}' says of '{path}': {reason}", database.display())]
    Record {
        /// The database file.
        database: PathBuf,
        /// The store path in question, as the database has it.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The store's directory could not be opened or listed.
    #[error("cannot read the store '{}'", store.display())]
    Store {
        /// The directory.
        store: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A source that is not on this machine failed.
    #[error(transparent)]
    Far(Far),
    /// A tree that nothing vouches for could not be walked for its hash.
    #[error(transparent)]
    Walk(#[from] WalkError),
}

impl SourceError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoStore { .. } => Some(
                "install Nix or Flox, or name with --store ROOT the directory in which the store lies as nix/store"
                    .to_owned(),
            ),
            Self::Unregistered { path, .. } => Some(format!("let Nix fetch or build it: nix-store --realise {path}")),
            Self::Vanished { path, .. } => {
                Some(format!("let Nix fetch or build it again: nix-store --repair-path {path}"))
            }
            Self::Database { source, .. } => match source.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    Some("another program has it to itself: wait for it, then run this again".to_owned())
                }
                Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly) => Some(
                    "its last changes are in files beside it that cannot be used here; as its owner, where it can be \
                     written to, run: nix-store --verify"
                        .to_owned(),
                ),
                _ => Some("let Nix look at it: nix-store --verify".to_owned()),
            },
            Self::Record { .. } => Some("let Nix look at it: nix-store --verify".to_owned()),
            Self::Far(far) => far.hint.clone(),
            Self::DatabaseFile { .. } | Self::Store { .. } => None,
            Self::Walk(error) => error.hint(),
        }
    }
}

/// A failure of a source that is not on this machine, in that source's own words.
#[derive(Clone, Debug)]
pub struct Far {
    /// The failure; one may stand in the way of several paths.
    pub failure: Arc<dyn std::error::Error + Send + Sync>,
    /// What mends it.
    pub hint: Option<String>,
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(f)
    }
}

impl std::error::Error for Far {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.failure.source()
    }
}

/// A walk over a store path failed.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// This source does not have the path.
    #[error("'{}' is not in the store", path.display())]
    Absent {
        /// The absolute path.
        path: PathBuf,
    },
    /// A file or directory could not be read.
    #[error("cannot read '{}'", path.display())]
    Read {
        /// The file on disk.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that a store path cannot hold.
    #[error("'{}' is a {kind}; a store path holds only directories, regular files and symbolic links", path.display())]
    Unsupported {
        /// The file on disk.
        path: PathBuf,
        /// `socket`, `FIFO`, `character device` or `block device`.
        kind: &'static str,
    },
    /// A file changed or vanished between two looks at it.
    #[error("'{}' changed while it was read", path.display())]
    Changed {
        /// The file on disk.
        path: PathBuf,
    },
    /// A source that is not on this machine failed.
    #[error(transparent)]
    Far(Far),
    /// The visitor failed (its output broke, or the user interrupted).
    #[error(transparent)]
    Visitor(io::Error),
}

impl WalkError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Changed { .. } => {
                Some("something else is writing to the store: wait for it, then run this again".to_owned())
            }
            Self::Unsupported { path, .. } => {
                Some(format!("remove it, or build the path again without it: {}", path.display()))
            }
            Self::Far(far) => far.hint.clone(),
            Self::Absent { .. } | Self::Read { .. } | Self::Visitor(_) => None,
        }
    }
}
