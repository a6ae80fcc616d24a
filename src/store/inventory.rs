//! Looks at everything that lies in the store's directory.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::database::WorkError;
use super::files::IoContext;
use super::gc::{Inventory, Orphan, StoredImage, StoredLayer, means};
use super::index::Index;
use super::lease::LiveLeases;
use super::record::{ImageRecord, LayerRecord};
use super::{LayerStore, StoreError};
use crate::blob::LayerKey;

/// Where the index and the records disagree: a build died between the two, or somebody removed a file.
#[derive(Debug, Default)]
pub(super) struct Drift {
    /// Layers that are recorded, and not in the index.
    pub(super) unindexed: Vec<LayerRecord>,
    /// Layers in the index that have no record.
    pub(super) unrecorded: Vec<LayerKey>,
}

impl LayerStore {
    /// What there is, seen while the index is held: no build can begin or end a lease meanwhile. Without an index the
    /// records are read, one by one.
    pub(super) fn inventory(&self, index: Option<&Index>) -> Result<(Inventory, Drift), WorkError> {
        let leases = LiveLeases::read(&self.root.join("leases"))?;
        let mut inventory = Inventory { leased: leases.keys.clone(), ..Inventory::default() };
        for layer in index.into_iter().flat_map(Index::all_layers) {
            let (record, json_length) = layer?;
            inventory.layers.insert(record.key, StoredLayer::new(&record, json_length));
        }
        let mut drift = Drift::default();
        let mut recorded = BTreeSet::new();
        let mut torn = Vec::new();
        for directory in list(&self.root.join("records"))? {
            for path in list(&directory)? {
                let key = path.file_name().and_then(|name| name.to_str()).and_then(LayerKey::from_hex);
                match key {
                    Some(key) if inventory.layers.contains_key(&key) => drop(recorded.insert(key)),
                    _ => match LayerRecord::read_with_length(&path)?.filter(|(record, _)| Some(record.key) == key) {
                        Some((record, json_length)) => {
                            recorded.insert(record.key);
                            inventory.layers.insert(record.key, StoredLayer::new(&record, json_length));
                            drift.unindexed.push(record);
                        }
                        None => torn.push(path),
                    },
                }
            }
        }
        drift.unrecorded = inventory.layers.keys().filter(|key| !recorded.contains(key)).copied().collect();
        inventory.layers.retain(|key, _| recorded.contains(key));
        inventory.images = self.images()?;
        inventory.orphans = self.orphans(&inventory, &leases, torn)?;
        inventory.index = tree_bytes(&self.root.join(super::index::NAME))?;
        inventory.memory =
            tree_bytes(&self.root.join(super::memory::NAME))? + tree_bytes(&self.root.join(super::outputs::NAME))?;
        inventory.free = free_bytes(&self.root)?;
        Ok((inventory, drift))
    }

    /// Every image whose record is whole; without its graph, which takes most of its memory.
    pub(super) fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let mut images = Vec::new();
        self.each_image(|mut image| {
            image.record.graph = Vec::new();
            images.push(image);
        })?;
        Ok(images)
    }

    /// Shows every image whose record is whole.
    pub(super) fn each_image(&self, mut see: impl FnMut(StoredImage)) -> Result<(), StoreError> {
        let pins = self.pins()?;
        for path in list(&self.root.join("images"))? {
            let Some(record) = ImageRecord::read(&path)? else { continue };
            let bytes = match std::fs::symlink_metadata(&path) {
                Ok(metadata) => metadata.len(),
                // Collected since the directory was listed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context("look at", &path),
            };
            let pinned = pins.iter().any(|pin| means(pin, &record));
            see(StoredImage { record, path, bytes, pinned });
        }
        Ok(())
    }

    /// What killed processes left: files that are being written by nobody, blobs without a record, torn records.
    fn orphans(
        &self,
        inventory: &Inventory,
        leases: &LiveLeases,
        torn: Vec<PathBuf>,
    ) -> Result<Vec<Orphan>, StoreError> {
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
        let kept: HashSet<_> =
            inventory.layers.values().filter(|layer| layer.blob_bytes > 0).map(|layer| layer.digest.hex()).collect();
        for path in list(&self.root.join("blobs/sha256"))? {
            if !path.file_name().is_some_and(|name| name.to_str().is_some_and(|name| kept.contains(name)))
                && is_left(&path)?
            {
                found.push(path);
            }
        }
        let images: HashSet<_> = inventory.images.iter().map(|image| &image.path).collect();
        found.extend(list(&self.root.join("images"))?.into_iter().filter(|path| !images.contains(path)));
        for path in torn {
            if is_left(&path)? {
                found.push(path);
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

impl StoredLayer {
    fn new(record: &LayerRecord, json_length: u64) -> Self {
        Self {
            digest: record.digest,
            record_bytes: super::index::record_bytes(json_length),
            blob_bytes: if record.has_blob { record.size } else { 0 },
            contents: record.contents.iter().map(|content| content.name.clone()).collect(),
        }
    }
}

/// The entries of a directory, sorted, so that what is made from them is the same everywhere.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).context("list", directory)? {
        paths.push(entry.context("list", directory)?.path());
    }
    // As bytes: all lie in the same directory, and to compare paths part by part takes ten times as long.
    paths.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    Ok(paths)
}

/// Bytes of a file, or of all files below a directory; what vanishes meanwhile has none.
pub(super) fn tree_bytes(path: &Path) -> Result<u64, StoreError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error).context("look at", path),
    };
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    match list(path) {
        Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(0),
        entries => entries?.iter().map(|path| tree_bytes(path)).sum(),
    }
}

/// Bytes that the user can still write to the file system of `path`.
pub(super) fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::statvfs(path).map_err(std::io::Error::from).context("look at the file system of", path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
