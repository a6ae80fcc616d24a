//! An image's own files, out of the layer that is kept of them.

use std::io::{self, Read};
use std::time::Duration;

use crate::blob::{DiffId, Digest};
use crate::pack::{Compression, read_own_files};
use crate::rootfs::RootFs;
use crate::share::{SharedCache, Together, Wait};
use crate::store::{LayerRecord, LayerStore, StoreError};

/// The files in a layer that the layer store keeps; `None` where it does not, or it is not what its record says.
pub(super) fn kept(store: &LayerStore, record: &LayerRecord) -> Result<Option<RootFs>, StoreError> {
    if !record.has_blob {
        return Ok(None);
    }
    let blob = store.read_blob(&record.digest, record.size, None)?;
    Ok(read(blob, record).ok().flatten())
}

/// The same out of a shared cache, which anybody may have written: one longer than 32 MiB is not read.
pub(super) fn of_shared(shared: &SharedCache<'_>, record: &LayerRecord) -> Option<RootFs> {
    const LONGEST: u64 = 32 << 20;
    // The image does not depend on it.
    const PATIENCE: Duration = Duration::from_secs(5);
    if record.size.max(record.tar_size) > LONGEST {
        return None;
    }
    let (mut root, alone) = (None, Together::default());
    shared.read_blob(&record.digest, record.size, Wait::AtMost(PATIENCE, &alone), |blob| {
        root = read(blob.take(record.size), record)?;
        root.is_some().then_some(()).ok_or_else(|| io::Error::other("it is not what its record says"))
    });
    root
}

fn read(blob: impl Read, record: &LayerRecord) -> io::Result<Option<RootFs>> {
    let mut tar = Vec::new();
    Compression::reader(&record.media_type, blob)?.take(record.tar_size).read_to_end(&mut tar)?;
    if DiffId(Digest::of(&tar)) != record.diff_id {
        return Ok(None);
    }
    Ok(read_own_files(&tar).ok())
}
