//! An image's own files, out of the layer that the layer store keeps of them.

use std::io::Read;

use crate::blob::{DiffId, Digest};
use crate::pack::{Compression, read_own_files};
use crate::rootfs::RootFs;
use crate::store::{LayerRecord, LayerStore, StoreError};

/// The files in a layer; `None` where it is not kept, or is not what its record says.
pub(super) fn kept(store: &LayerStore, record: &LayerRecord) -> Result<Option<RootFs>, StoreError> {
    if !record.has_blob {
        return Ok(None);
    }
    let blob = store.read_blob(&record.digest, record.size, None)?;
    let mut tar = Vec::new();
    let read = Compression::reader(&record.media_type, blob).and_then(|mut blob| blob.read_to_end(&mut tar));
    let is_whole = read.is_ok() && DiffId(Digest::of(&tar)) == record.diff_id;
    Ok(read_own_files(&tar).ok().filter(|_| is_whole))
}
