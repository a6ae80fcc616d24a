//! The sled index: fast to ask about all layers at once, free to lose.
//!
//! sled calls itself beta, locks other processes out, and can panic on a damaged file. So it holds nothing that is not
//! in the records (or can be had again by work), it is opened for a question and closed after it, the wait for other
//! processes is on a lock file of our own, and an index that does not open is moved aside and made anew.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use super::StoreError;
use super::files::{self, IoContext};
use super::inventory::tree_bytes;
use super::record::{self, LayerRecord};
use crate::blob::{LayerKey, canonical_json};
use crate::crash;

/// Set in sled's default tree once every record is in the index.
const COMPLETE: &[u8] = b"complete";
/// In sled's default tree: how many bytes all layers and images take on the disk.
const BYTES: &[u8] = b"bytes";
/// In sled's default tree: how many memories there are.
const MEMORIES: &[u8] = b"memories";
/// Memories beyond this number are all forgotten: they grow with every file that was ever hashed, and nobody can tell
/// which will be wanted again. About 50 MB on the disk.
const MOST_MEMORIES: u64 = 400_000;
/// How long sled may keep its own lock after our lock is ours. It lets go a moment after it was dropped; longer means
/// that a stranger has the files open.
const SLED_PATIENCE: Duration = Duration::from_secs(10);

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

impl WorkError {
    /// The store's error of work that was done without an index.
    pub(super) fn without_index(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Index(source) => StoreError::Index { path: "index".into(), source },
        }
    }
}

/// The right to open the index and to collect garbage; released with the process, by whatever end.
#[derive(Debug)]
pub(super) struct Held {
    _locked: File,
    patience: Duration,
}

/// Waits until no other process holds the index, for as long as `patience` lasts.
pub(super) fn hold(root: &Path, patience: Duration) -> Result<Held, StoreError> {
    let path = root.join("index.lock");
    let file = File::options().create(true).append(true).open(&path).context("open", &path)?;
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_micros(200);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Held { _locked: file, patience }),
            Err(TryLockError::WouldBlock) if waited < patience => {
                std::thread::sleep(pause);
                waited += pause;
                pause = (pause * 2).min(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { path, waited: patience }),
            Err(TryLockError::Error(error)) => return Err(error).context("lock", &path),
        }
    }
}

/// Opens the index at `root`, does `work` with it, and closes it.
///
/// An index that is missing or damaged is made from the records; `work` may then be done a second time.
pub(super) fn with<T>(
    root: &Path,
    held: &Held,
    work: impl Fn(&Index) -> Result<T, WorkError>,
) -> Result<T, StoreError> {
    let path = root.join("index");
    let patience = held.patience.min(SLED_PATIENCE);
    let attempt = |rebuild: bool| -> Result<T, WorkError> {
        let truth = if rebuild { Some(Truth::read(root)?) } else { None };
        // sled asserts what it finds on the disk; a panic here says "damaged" and nothing more.
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let index = Index::open(&path, patience)?;
            match &truth {
                Some(truth) => index.fill(truth)?,
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
        WorkError::Index(error) if is_sled_lock(&error) => StoreError::Busy { path: path.join("db"), waited: patience },
        WorkError::Index(source) => StoreError::Index { path: path.clone(), source },
        WorkError::Store(error) => error,
    };
    if path.exists() {
        match attempt(false) {
            Ok(done) => return Ok(done),
            Err(WorkError::Index(error)) if !is_surroundings(&error) && !is_sled_lock(&error) => {
                move_aside(root, &path)?;
            }
            Err(error) => return Err(fail(error)),
        }
    }
    attempt(true).map_err(fail)
}

/// What the index is made from.
struct Truth {
    records: Vec<(LayerRecord, u64)>,
    image_bytes: u64,
}

impl Truth {
    fn read(root: &Path) -> Result<Self, StoreError> {
        let mut records = record::read_all(&root.join("records"))?;
        // sled writes neighbours together.
        records.sort_unstable_by_key(|(record, _)| record.key);
        Ok(Self { records, image_bytes: tree_bytes(&root.join("images"))? })
    }
}

/// sled's words for a lock that another process has; the error has no kind of its own.
fn is_sled_lock(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

/// Whether a new index would meet the same error: the disk is full, or the directory is not ours.
fn is_surroundings(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if files::is_surroundings(error))
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
    fn open(path: &Path, patience: Duration) -> sled::Result<Self> {
        let config = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(16 << 20);
        let pause = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        let db = loop {
            match config.open() {
                Err(error) if is_sled_lock(&error) && waited < patience => {
                    std::thread::sleep(pause);
                    waited += pause;
                }
                opened => break opened?,
            }
        };
        crash::point("index.opened");
        Ok(Self { layers: db.open_tree("layers")?, memory: db.open_tree("memory")?, db })
    }

    /// Takes in all records, then says so: sled opens some damaged files as if they were empty, and a process can be
    /// killed half-way through this.
    fn fill(&self, truth: &Truth) -> sled::Result<()> {
        let mut bytes = truth.image_bytes;
        for (record, json_length) in &truth.records {
            self.layers.insert(record.key.as_bytes(), to_value(record)?)?;
            bytes += disk_bytes(record, *json_length);
        }
        self.set_bytes(bytes)?;
        crash::point("index.filled");
        self.db.insert(COMPLETE, &[])?;
        self.db.flush().map(drop)
    }

    fn is_complete(&self) -> sled::Result<bool> {
        self.db.contains_key(COMPLETE)
    }

    /// Every layer with the length of its record in bytes.
    pub(super) fn all_layers(&self) -> impl Iterator<Item = sled::Result<(LayerRecord, u64)>> {
        self.layers.iter().filter_map(|entry| match entry {
            // A value of another version is as good as none: the layer is made again.
            Ok((_, value)) => serde_json::from_slice(&value).ok().map(|record| Ok((record, value.len() as u64))),
            Err(error) => Some(Err(error)),
        })
    }

    pub(super) fn insert_layers<'a>(&self, records: impl IntoIterator<Item = &'a LayerRecord>) -> sled::Result<()> {
        let mut bytes = self.bytes()?;
        for record in records {
            let value = to_value(record)?;
            bytes += disk_bytes(record, value.len() as u64);
            if let Some(before) = self.layers.insert(record.key.as_bytes(), value)? {
                bytes = bytes.saturating_sub(disk_bytes_of_value(&before));
            }
        }
        self.set_bytes(bytes)
    }

    pub(super) fn remove_layers<'a>(&self, keys: impl IntoIterator<Item = &'a LayerKey>) -> sled::Result<()> {
        let mut bytes = self.bytes()?;
        for key in keys {
            if let Some(before) = self.layers.remove(key.as_bytes())? {
                bytes = bytes.saturating_sub(disk_bytes_of_value(&before));
            }
        }
        self.set_bytes(bytes)
    }

    /// How many bytes all layers and images take on the disk, without looking at each.
    pub(super) fn bytes(&self) -> sled::Result<u64> {
        self.number(BYTES)
    }

    /// Says how many bytes all layers and images take, where that is known better.
    pub(super) fn set_bytes(&self, bytes: u64) -> sled::Result<()> {
        self.db.insert(BYTES, &bytes.to_be_bytes())?;
        crash::point("index.changed");
        self.db.flush()?;
        crash::point("index.flushed");
        Ok(())
    }

    fn number(&self, key: &[u8]) -> sled::Result<u64> {
        let value = self.db.get(key)?;
        Ok(value.and_then(|value| value.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes))
    }

    pub(super) fn recall(&self) -> sled::Result<HashMap<Vec<u8>, Vec<u8>>> {
        self.memory.iter().map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
    }

    pub(super) fn remember(&self, entries: &[(Vec<u8>, Vec<u8>)]) -> sled::Result<()> {
        let mut memories = self.number(MEMORIES)? + entries.len() as u64;
        if memories > MOST_MEMORIES {
            self.memory.clear()?;
            memories = entries.len() as u64;
        }
        let mut batch = sled::Batch::default();
        for (key, value) in entries {
            batch.insert(key.as_slice(), value.as_slice());
        }
        self.memory.apply_batch(batch)?;
        self.db.insert(MEMORIES, &memories.to_be_bytes())?;
        self.db.flush().map(drop)
    }
}

fn to_value(record: &LayerRecord) -> sled::Result<Vec<u8>> {
    canonical_json(record).map_err(|error| sled::Error::Io(error.into()))
}

/// What a layer takes on the disk, in bytes: its record's file and, where it is kept, its blob.
pub(super) fn disk_bytes(record: &LayerRecord, json_length: u64) -> u64 {
    record_bytes(json_length) + if record.has_blob { record.size } else { 0 }
}

/// What a record's file takes, in bytes: the index has the JSON without the line of its checksum.
pub(super) fn record_bytes(json_length: u64) -> u64 {
    json_length + record::FRAME
}

fn disk_bytes_of_value(value: &[u8]) -> u64 {
    serde_json::from_slice(value).map_or(0, |record| disk_bytes(&record, value.len() as u64))
}
