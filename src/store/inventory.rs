//! Looks at everything that lies in the store's directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use super::files::IoContext;
use super::gc::{Inventory, Orphan, StoredImage, StoredLayer, means};
use super::index::{Index, WorkError};
use super::lease::LiveLeases;
use super::record::ImageRecord;
use super::{LayerStore, StoreError};
use crate::blob::LayerKey;

impl LayerStore {
    /// What there is, seen while the index is held: no build can begin or end a lease meanwhile.
    pub(super) fn inventory(&self, index: &Index) -> Result<Inventory, WorkError> {
        let leases = LiveLeases::read(&self.root.join("leases"))?;
        let mut inventory = Inventory { leased: leases.keys.clone(), ..Inventory::default() };
        for (record, json_length) in index.all_layers()? {
            let layer = StoredLayer {
                digest: record.digest,
                record_bytes: super::index::record_bytes(json_length),
                blob_bytes: if record.has_blob { record.size } else { 0 },
                contents: record.contents.into_iter().map(|content| content.name).collect(),
            };
            inventory.layers.insert(record.key, layer);
        }
        inventory.images = self.images()?;
        inventory.orphans = self.orphans(&inventory, &leases)?;
        inventory.overhead = tree_bytes(&self.root.join("index"))?;
        inventory.free = free_bytes(&self.root)?;
        Ok(inventory)
    }

    /// Every image whose record is whole.
    pub(super) fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let pins = self.pins()?;
        let mut images = Vec::new();
        for path in list(&self.root.join("images"))? {
            let bytes = std::fs::symlink_metadata(&path).context("look at", &path)?.len();
            if let Some(record) = ImageRecord::read(&path)? {
                let pinned = pins.iter().any(|pin| means(pin, &record));
                images.push(StoredImage { record, path, bytes, pinned });
            }
        }
        Ok(images)
    }

    /// What killed processes left: files that are being written by nobody, blobs without a record, torn records.
    fn orphans(&self, inventory: &Inventory, leases: &LiveLeases) -> Result<Vec<Orphan>, StoreError> {
        let mut found: Vec<_> = leases.dead.clone();
        // A file that is younger than a running build's lease may be that build's.
        let is_left = |path: &Path| -> Result<bool, StoreError> {
            let Some(oldest) = leases.oldest else { return Ok(true) };
            let modified = std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
            Ok(modified.unwrap_or(SystemTime::UNIX_EPOCH) < oldest)
        };
        for path in list(&self.tmp())? {
            if is_left(&path)? {
                found.push(path);
            }
        }
        let kept: BTreeSet<_> =
            inventory.layers.values().filter(|layer| layer.blob_bytes > 0).map(|layer| layer.digest.hex()).collect();
        for path in list(&self.root.join("blobs/sha256"))? {
            if !path.file_name().is_some_and(|name| name.to_str().is_some_and(|name| kept.contains(name)))
                && is_left(&path)?
            {
                found.push(path);
            }
        }
        let images: BTreeSet<_> = inventory.images.iter().map(|image| &image.path).collect();
        found.extend(list(&self.root.join("images"))?.into_iter().filter(|path| !images.contains(path)));
        for directory in list(&self.root.join("records"))? {
            for path in list(&directory)? {
                let key = path.file_name().and_then(|name| name.to_str()).and_then(LayerKey::from_hex);
                if !key.is_some_and(|key| inventory.layers.contains_key(&key)) && is_left(&path)? {
                    found.push(path);
                }
            }
        }
        for path in list(&self.root.join("claims"))? {
            let locked = std::fs::File::open(&path).is_ok_and(|file| file.try_lock().is_err());
            if !locked {
                found.push(path);
            }
        }
        found
            .into_iter()
            .map(|path| {
                let bytes = tree_bytes(&path)?;
                Ok(Orphan { path, bytes })
            })
            .collect()
    }
}

/// The entries of a directory, sorted, so that what is made from them is the same everywhere.
pub(super) fn list(directory: &Path) -> Result<Vec<std::path::PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).context("list", directory)? {
        paths.push(entry.context("list", directory)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Bytes of a file, or of all files below a directory; a file that vanishes meanwhile has none.
pub(super) fn tree_bytes(path: &Path) -> Result<u64, StoreError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).context("look at", path),
    };
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    list(path)?.iter().map(|path| tree_bytes(path)).sum()
}

/// Bytes that the user can still write to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::statvfs(path).map_err(std::io::Error::from).context("look at the file system of", path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
