//! The index of all layers, for questions that are about more than one: what collecting, listing and the cap need.
//!
//! The records are the truth; the index is made from them and may be lost at any time.

use std::path::{Path, PathBuf};

use super::StoreError;
use super::database::{self, Held, WorkError};
use super::inventory::tree_bytes;
use super::record::{self, LayerRecord};
use crate::blob::{LayerKey, canonical_json};
use crate::crash;

/// The database's directory.
pub(super) const NAME: &str = "index";
/// In sled's default tree: how many bytes all layers and images take on the disk.
const BYTES: &[u8] = b"bytes";
/// The same number in a file of its own in the database's directory, for who needs no more than that: opening sled takes
/// the longer the more it holds. The file is not there while the number changes.
const BYTES_FILE: &str = "bytes";

/// The index, open.
pub(super) struct Index {
    layers: sled::Tree,
    db: sled::Db,
    bytes_file: PathBuf,
}

/// Opens the index of the store at `root`, does `work` with it, and closes it.
///
/// An index that is missing or damaged is made from the records; `work` may then be done a second time.
pub(super) fn with<T>(
    root: &Path,
    held: &Held,
    work: impl Fn(&Index) -> Result<T, WorkError>,
) -> Result<T, StoreError> {
    let fill = |db: &sled::Db| Ok(Index::of(db, root)?.fill(&Truth::read(root)?)?);
    database::with(root, NAME, held, fill, |db| work(&Index::of(db, root)?))
}

/// How many bytes all layers and images take on the disk, where that can be told without opening the index. Asked by who
/// has the right to open it, so that nobody is changing it.
pub(super) fn bytes_at_hand(root: &Path, _: &Held) -> Option<u64> {
    let text = std::fs::read_to_string(root.join(NAME).join(BYTES_FILE)).ok()?;
    // Without its end of line it is cut.
    text.strip_suffix('\n')?.parse().ok()
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

impl Index {
    fn of(db: &sled::Db, root: &Path) -> sled::Result<Self> {
        let bytes_file = root.join(NAME).join(BYTES_FILE);
        Ok(Self { layers: db.open_tree("layers")?, db: db.clone(), bytes_file })
    }

    fn fill(&self, truth: &Truth) -> sled::Result<()> {
        let mut bytes = truth.image_bytes;
        for (record, json_length) in &truth.records {
            self.layers.insert(record.key.as_bytes(), to_value(record)?)?;
            bytes += disk_bytes(record, *json_length);
        }
        self.set_bytes(bytes)
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
        database::number(&self.db, BYTES)
    }

    /// Says how many bytes all layers and images take, where that is known better.
    pub(super) fn set_bytes(&self, bytes: u64) -> sled::Result<()> {
        match std::fs::remove_file(&self.bytes_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(sled::Error::Io(error)),
            _ => {}
        }
        self.db.insert(BYTES, &bytes.to_be_bytes())?;
        crash::point("index.changed");
        self.db.flush()?;
        crash::point("index.flushed");
        // Where it cannot be written, on a full disk say, the index itself answers.
        let _ = std::fs::write(&self.bytes_file, format!("{bytes}\n"));
        Ok(())
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
