//! The sled index: fast to ask, free to lose.
//!
//! sled calls itself beta, locks other processes out, and can panic on a damaged file. So it holds nothing that is not
//! in the records (or can be had again by work), it is opened for a question and closed after it, the wait for other
//! processes is on a lock file of our own, and an index that does not open is moved aside and made anew.

use std::collections::HashMap;
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use super::StoreError;
use super::files::IoContext;
use super::record::LayerRecord;
use crate::blob::{LayerKey, canonical_json};
use crate::crash;

/// Set in sled's default tree once every record is in the index.
const COMPLETE: &[u8] = b"complete";
/// In sled's default tree: how many bytes all layers take on the disk.
const LAYER_BYTES: &[u8] = b"layer bytes";

/// The index, open.
pub(super) struct Index {
    layers: sled::Tree,
    memory: sled::Tree,
    db: sled::Db,
}

/// What can go wrong while the index is open.
#[derive(Debug)]
pub(super) enum WorkError {
    /// The index itself.
    Index(sled::Error),
    /// Something else in the store.
    Store(StoreError),
}

impl From<sled::Error> for WorkError {
    fn from(error: sled::Error) -> Self {
        Self::Index(error)
    }
}

impl From<StoreError> for WorkError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Waits until no other process has the index open; released when the file is closed, by whatever end.
pub(super) fn lock(root: &Path) -> Result<File, StoreError> {
    let path = root.join("index.lock");
    let file = File::options().create(true).append(true).open(&path).context("open", &path)?;
    file.lock().context("lock", &path)?;
    Ok(file)
}

/// Opens the index at `root`, waiting for other processes, does `work` with it, and closes it.
///
/// An index that is missing or damaged is made from `records`; `work` may then be done a second time.
pub(super) fn with<T>(
    root: &Path,
    records: impl Fn() -> Result<Vec<LayerRecord>, StoreError>,
    work: impl Fn(&Index) -> Result<T, WorkError>,
) -> Result<T, StoreError> {
    let _guard = lock(root)?;
    let path = root.join("index");
    let attempt = |rebuild: bool| -> Result<T, WorkError> {
        let records = if rebuild { Some(records()?) } else { None };
        // sled asserts what it finds on the disk; a panic here says "damaged" and nothing more.
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let index = Index::open(&path)?;
            match &records {
                Some(records) => index.fill(records)?,
                None if !index.is_complete()? => {
                    return Err(sled::Error::ReportableBug("the index was never finished".to_owned()).into());
                }
                None => {}
            }
            work(&index)
        }));
        outcome.unwrap_or_else(|_| Err(sled::Error::ReportableBug("the index is damaged".to_owned()).into()))
    };
    let fail = |error| match error {
        WorkError::Index(source) => StoreError::Index { path: path.clone(), source },
        WorkError::Store(error) => error,
    };
    if path.exists() {
        match attempt(false) {
            Ok(done) => return Ok(done),
            Err(WorkError::Index(error)) if !is_surroundings(&error) => move_aside(root, &path)?,
            Err(error) => return Err(fail(error)),
        }
    }
    attempt(true).map_err(fail)
}

/// Whether a new index would meet the same error: the disk is full, or the directory is not ours.
fn is_surroundings(error: &sled::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let sled::Error::Io(error) = error else { return false };
    matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}

/// Out of the way and then deleted: a second damage finds no leftovers, and a kill in between leaves only an orphan.
fn move_aside(root: &Path, path: &Path) -> Result<(), StoreError> {
    let aside = tempfile::Builder::new()
        .prefix("damaged-index-")
        .tempdir_in(root.join("tmp"))
        .context("make a directory in", &root.join("tmp"))?;
    std::fs::rename(path, aside.path().join("index")).context("move the damaged index", path)?;
    crash::point("index.moved-aside");
    Ok(())
}

impl Index {
    fn open(path: &Path) -> sled::Result<Self> {
        let config = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(16 << 20);
        let db = loop {
            match config.open() {
                // sled lets go of its file a moment after it was dropped. Our own lock is held, so nobody else has the
                // index open on purpose and the wait is short.
                Err(sled::Error::Io(error)) if error.to_string().starts_with("could not acquire lock") => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => break opened?,
            }
        };
        crash::point("index.opened");
        Ok(Self { layers: db.open_tree("layers")?, memory: db.open_tree("memory")?, db })
    }

    /// Takes in all records, then says so: sled opens some damaged files as if they were empty, and a process can be
    /// killed half-way through this.
    fn fill(&self, records: &[LayerRecord]) -> sled::Result<()> {
        self.insert_layers(records)?;
        crash::point("index.filled");
        self.db.insert(COMPLETE, &[])?;
        self.db.flush().map(drop)
    }

    fn is_complete(&self) -> sled::Result<bool> {
        self.db.contains_key(COMPLETE)
    }

    pub(super) fn layers(&self, keys: &[LayerKey]) -> sled::Result<Vec<Option<LayerRecord>>> {
        keys.iter()
            .map(|key| {
                let value = self.layers.get(key.as_bytes())?;
                // A value of another version is as good as none: the layer is made again.
                Ok(value.and_then(|value| serde_json::from_slice(&value).ok()))
            })
            .collect()
    }

    /// Every layer with the length of its record in bytes.
    pub(super) fn all_layers(&self) -> sled::Result<Vec<(LayerRecord, u64)>> {
        let mut found = Vec::new();
        for entry in &self.layers {
            let (_, value) = entry?;
            if let Ok(record) = serde_json::from_slice(&value) {
                found.push((record, value.len() as u64));
            }
        }
        Ok(found)
    }

    pub(super) fn insert_layers(&self, records: &[LayerRecord]) -> sled::Result<()> {
        let mut bytes = self.layer_bytes()?;
        for record in records {
            let value = canonical_json(record).map_err(|error| sled::Error::Io(error.into()))?;
            bytes += disk_bytes(record, value.len() as u64);
            if let Some(before) = self.layers.insert(record.key.as_bytes(), value)? {
                bytes = bytes.saturating_sub(disk_bytes_of_value(&before));
            }
        }
        self.set_layer_bytes(bytes)
    }

    pub(super) fn remove_layers(&self, keys: &[LayerKey]) -> sled::Result<()> {
        let mut bytes = self.layer_bytes()?;
        for key in keys {
            if let Some(before) = self.layers.remove(key.as_bytes())? {
                bytes = bytes.saturating_sub(disk_bytes_of_value(&before));
            }
        }
        self.set_layer_bytes(bytes)
    }

    /// How many bytes all layers take on the disk, without looking at each.
    pub(super) fn layer_bytes(&self) -> sled::Result<u64> {
        let value = self.db.get(LAYER_BYTES)?;
        Ok(value.and_then(|value| value.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes))
    }

    fn set_layer_bytes(&self, bytes: u64) -> sled::Result<()> {
        self.db.insert(LAYER_BYTES, &bytes.to_be_bytes())?;
        crash::point("index.changed");
        self.db.flush()?;
        crash::point("index.flushed");
        Ok(())
    }

    pub(super) fn recall(&self) -> sled::Result<HashMap<Vec<u8>, Vec<u8>>> {
        self.memory.iter().map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
    }

    pub(super) fn remember(&self, entries: &[(Vec<u8>, Vec<u8>)]) -> sled::Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in entries {
            batch.insert(key.as_slice(), value.as_slice());
        }
        self.memory.apply_batch(batch)?;
        self.db.flush().map(drop)
    }
}

/// What a layer takes on the disk, in bytes: its record's file and, where it is kept, its blob.
pub(super) fn disk_bytes(record: &LayerRecord, json_length: u64) -> u64 {
    record_bytes(json_length) + if record.has_blob { record.size } else { 0 }
}

/// What a record's file takes, in bytes: the index has the JSON without the line of its checksum.
pub(super) fn record_bytes(json_length: u64) -> u64 {
    json_length + 66
}

fn disk_bytes_of_value(value: &[u8]) -> u64 {
    serde_json::from_slice(value).map_or(0, |record| disk_bytes(&record, value.len() as u64))
}
