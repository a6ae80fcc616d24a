//! The shared cache: what a team's machines know of layers, in a registry or an object store, layer key to layer.

mod address;
mod depot;
mod entry;
mod garbage;
mod hurry;
mod large_object;
mod merging;
mod object_depot;
mod open;
mod registry_depot;
mod shared_cache;
mod sheet;
mod signing;
mod waiting;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod samples;

pub use address::{InvalidShareAddress, ShareAddress};
pub use depot::{BlobNote, Depot, DepotError, ReadBlob, UnreadableSheet, WriteBlob};
pub use entry::{Entry, Trust};
pub use garbage::{Garbage, GarbagePolicy, Gone, collect};
pub use hurry::Hurry;
pub use open::Keyring;
pub use shared_cache::{Given, Settings, ShareMemory, SharedCache, WriteLayer};
pub use sheet::{Contents, EncodeError, ImageUse, InvalidSheet, InvalidSheetName, Sheet, SheetName};
pub use signing::{InvalidSecretKey, SecretKey};
pub use waiting::{Together, Wait, Waiting};
