//! Packs trees into layers: nodes become a canonical tar, the tar becomes a compressed and digested blob, in one pass.
//!
//! A layer is a pure function of its contents and its [`Compression`]: no clock, no user, no thread count shows in it.
//! This module does not know where the bytes go.

mod bounds;
mod buffers;
mod compression;
mod crew;
mod layer;
mod packer;
mod tar_reader;
mod tar_writer;

pub use compression::{Compression, InvalidCompression};
pub use layer::{LayerContents, PackError, Packed};
pub use packer::Packer;
pub use tar_reader::{read_own_files, read_store_paths};
