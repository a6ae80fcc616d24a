//! Reads everything again: is the store what it says it is?

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::files::IoContext;
use super::inventory::list;
use super::record::{ImageRecord, LayerRecord};
use super::sweep::remove;
use super::{BlobStamp, LayerStore, StoreError};
use crate::blob::{Digest, LayerKey, VerifyingReader};
use crate::crash;
use crate::event::{Cancelled, Event, Observer, Stage};

/// Something in the store that is not what it should be. None of these reaches an image: each is noticed when it is
/// used, and the layer is made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A blob's bytes are not those that its name promises.
    Blob {
        /// What it should be.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// A record says that a blob is here, and it is not.
    MissingBlob {
        /// The blob.
        digest: Digest,
    },
    /// A record's file is cut short, changed, or another version's.
    Record {
        /// The file.
        path: PathBuf,
    },
    /// The index says something else of a layer than its record, or something of a layer without a record.
    Index {
        /// The layer.
        key: LayerKey,
    },
}

/// What [`LayerStore::verify`] saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Number of layers looked at.
    pub layers: usize,
    /// Number of blobs read.
    pub blobs: usize,
    /// Bytes read.
    pub bytes: u64,
    /// What is damaged, in the order of the files' names.
    pub damage: Vec<Damage>,
}

impl LayerStore {
    /// Reads every record and every kept blob.
    ///
    /// Builds go on meanwhile: what vanishes between two looks is not taken for damage.
    pub fn verify(&self, observer: &dyn Observer) -> Result<Verified, StoreError> {
        let mut seen = Verified::default();
        let mut records = BTreeMap::new();
        for directory in list(&self.root.join("records"))? {
            for path in list(&directory)? {
                match LayerRecord::read(&path)? {
                    Some(record) if self.record(&record.key) == path => drop(records.insert(record.key, record)),
                    _ if path.exists() => seen.damage.push(Damage::Record { path }),
                    _ => {}
                }
            }
        }
        for path in list(&self.root.join("images"))? {
            if ImageRecord::read(&path)?.is_none() && path.exists() {
                seen.damage.push(Damage::Record { path });
            }
        }
        seen.layers = records.len();
        seen.damage.extend(self.index_damage(&records)?);

        // Layers made from different things can have the same blob.
        let blobs: BTreeMap<Digest, &LayerRecord> =
            records.values().filter(|record| record.has_blob).map(|record| (record.digest, record)).collect();
        let total_bytes = blobs.values().map(|record| record.size).sum();
        observer.event(Event::Started { stage: Stage::Verifying, total_bytes });
        let damaged: Vec<Option<Damage>> =
            blobs.par_iter().map(|(_, record)| self.check_blob(record, observer)).collect::<Result<_, StoreError>>()?;
        observer.event(Event::Finished { stage: Stage::Verifying });
        seen.damage.extend(damaged.into_iter().flatten());
        seen.blobs = blobs.len();
        seen.bytes = total_bytes;
        Ok(seen)
    }

    /// Throws away what is damaged, so that it is made again when it is wanted; images stay.
    pub fn repair(&self, damage: &[Damage]) -> Result<(), StoreError> {
        let bad: BTreeSet<_> = damage
            .iter()
            .filter_map(|damage| match damage {
                Damage::Blob { digest, .. } | Damage::MissingBlob { digest } => Some(*digest),
                _ => None,
            })
            .collect();
        self.discard_blobs(&bad)?;
        for damage in damage {
            if let Damage::Record { path } = damage {
                remove(path)?;
            }
        }
        if damage.iter().any(|damage| matches!(damage, Damage::Index { .. })) {
            self.forget_index()?;
        }
        Ok(())
    }

    /// Forgets what is recorded of a layer without bytes, because it has turned out to be wrong.
    pub fn forget_layer(&self, key: &LayerKey) -> Result<(), StoreError> {
        self.with_index(|index| {
            index.remove_layers(std::iter::once(key))?;
            remove(&self.record(key))?;
            Ok(())
        })
    }

    /// Reads a kept blob to its end: an error says that it cannot be read, or is not what its digest promises. Says how
    /// its file looked before it was read.
    pub fn verify_blob(&self, digest: &Digest, size: u64, observer: &dyn Observer) -> std::io::Result<BlobStamp> {
        let path = self.blob(digest);
        let stamp = BlobStamp::of(&std::fs::metadata(&path)?);
        read_through(&path, digest, size, observer)?;
        Ok(stamp)
    }

    /// Forgets these blobs and every layer that has one of them.
    pub fn discard_blobs(&self, digests: &BTreeSet<Digest>) -> Result<(), StoreError> {
        if digests.is_empty() {
            return Ok(());
        }
        self.with_index(|index| {
            // The records are the truth, but the index may still know what its record no longer says.
            let recorded = super::record::read_all(&self.root.join("records"))?;
            let indexed = index.all_layers().collect::<sled::Result<Vec<_>>>()?;
            let keys: BTreeSet<_> = recorded
                .into_iter()
                .chain(indexed)
                .map(|(record, _)| record)
                .filter(|record| record.has_blob && digests.contains(&record.digest))
                .map(|record| record.key)
                .collect();
            index.remove_layers(&keys)?;
            crash::point("discard.unindexed");
            for key in &keys {
                remove(&self.record(key))?;
                crash::point("discard.record-gone");
            }
            for digest in digests {
                remove(&self.blob(digest))?;
                crash::point("discard.blob-gone");
            }
            Ok(())
        })
    }

    fn index_damage(&self, records: &BTreeMap<LayerKey, LayerRecord>) -> Result<Vec<Damage>, StoreError> {
        let indexed = match self.with_index(|index| Ok(index.all_layers().collect::<sled::Result<Vec<_>>>()?)) {
            // What cannot be opened now is not damaged for that.
            Err(error) if error.is_surroundings() => Vec::new(),
            indexed => indexed?,
        };
        let mut damage = Vec::new();
        for (record, _) in indexed {
            // A layer that was recorded or collected since the records were read is judged by its file.
            if records.get(&record.key) != Some(&record)
                && LayerRecord::read(&self.record(&record.key))?.as_ref() != Some(&record)
            {
                damage.push(Damage::Index { key: record.key });
            }
        }
        Ok(damage)
    }

    fn check_blob(&self, record: &LayerRecord, observer: &dyn Observer) -> Result<Option<Damage>, StoreError> {
        let digest = record.digest;
        let path = self.blob(&digest);
        match read_through(&path, &digest, record.size, observer) {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // Collected since the records were read, or gone while its record stays.
                let stays = LayerRecord::read(&self.record(&record.key))?.as_ref() == Some(record);
                Ok((stays && !path.exists()).then_some(Damage::MissingBlob { digest }))
            }
            Err(error) if Cancelled::caused(&error) => Err(error).context("read the blob", &path),
            Err(error) => Ok(Some(Damage::Blob { digest, reason: error.to_string() })),
        }
    }
}

fn read_through(path: &Path, digest: &Digest, size: u64, observer: &dyn Observer) -> std::io::Result<()> {
    let mut reader = VerifyingReader::new(std::fs::File::open(path)?, *digest, size);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        Cancelled::check(observer)?;
        match reader.read(&mut buffer)? {
            0 => return Ok(()),
            read => observer.event(Event::Advanced { bytes: read as u64 }),
        }
    }
}
