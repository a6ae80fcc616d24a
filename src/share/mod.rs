//! The shared cache: what a team's machines know of layers, in a registry or an object store, layer key to layer.

mod address;
mod depot;
mod entry;
mod merging;
mod object_depot;
mod registry_depot;
mod sheet;
mod signing;

#[cfg(test)]
mod samples;

pub use address::{InvalidShareAddress, ShareAddress};
pub use depot::{BlobNote, Depot, DepotError, ReadBlob, WriteBlob};
pub use entry::{Entry, Trust};
pub use sheet::{Contents, EncodeError, ImageUse, InvalidSheet, InvalidSheetName, Sheet, SheetName};
pub use signing::{InvalidSecretKey, SecretKey};
