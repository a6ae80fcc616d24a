//! Store paths, their closure and contents, and where they come from: the local Nix store, or a NAR.
//!
//! Everything here speaks NAR semantics alone: a store path is a tree of directories, files with an executable bit,
//! and symbolic links, names in byte order. It knows nothing of OCI.

mod closure;
#[cfg(test)]
mod conformance;
mod contents;
mod database;
mod file;
mod hash;
mod local;
mod memo;
#[cfg(test)]
mod memory;
mod nar;
mod nar_reader;
mod nar_writer;
#[cfg(test)]
mod real_nix;
mod refscan;
mod resolve;
mod skeleton;
mod source;
mod store_path;
#[cfg(test)]
pub(crate) mod testing;
mod tree;
mod tree_hash;
mod walk;

pub use closure::{Closure, ClosureError};
pub use contents::Hashing;
pub use hash::{ContentHash, InvalidContentHash, from_base64, to_base64};
pub use local::LocalStore;
pub use memo::{FileMemo, FileStamp, HashPart, NoMemo, RememberedFile};
#[cfg(test)]
pub use memory::{MemoryNode, MemoryStore, MemoryTree, MemoryTreeError};
pub use nar_reader::{NarError, read_nar};
pub use nar_writer::NarWriter;
pub use skeleton::{Skeleton, SkeletonRecorder};
pub use source::{Contents, Far, Node, PathInfo, Source, SourceError, TreeState, Visitor, WalkError};
pub use store_path::{InvalidStorePath, STORE_DIR, StorePath, to_base32};
pub use tree::{EntryKind, Glimpse, TreeListing};
pub use tree_hash::TreeHasher;
