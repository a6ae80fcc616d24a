//! Store paths and where they come from: the local Nix store, or trees made in memory.
//!
//! Everything here speaks NAR semantics alone: a store path is a tree of directories, files with an executable bit,
//! and symbolic links, names in byte order. It knows nothing of OCI.

mod closure;
mod hash;
mod source;
mod store_path;
mod tree;

pub use closure::{Closure, ClosureError};
pub use hash::ContentHash;
pub use source::{Node, PathInfo, Source, SourceError, Union, Visitor, WalkError};
pub use store_path::{InvalidStorePath, STORE_DIR, StorePath};
pub use tree::{EntryKind, TreeListing};
