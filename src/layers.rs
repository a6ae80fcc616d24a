//! Obtains the planned layers, from the layer store or by packing them, and streams their bytes wherever they go.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::blob::{Digest, DigestMismatch, DigestWriter, LayerKey};
use crate::delivery::{BlobError, BlobProvider};
use crate::event::{Event, Observer, Stage};
use crate::image::{Layer, UnknownMediaType};
use crate::nix::Source;
use crate::pack::{Compression, LayerContents, PackError, Packed};
use crate::store::{LayerRecord, LayerStore, StoreError};

/// A layer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// It could not be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The layer store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's record of a layer names a kind of blob that is no layer's.
    #[error("the layer store has a record that this version cannot read")]
    MediaType(#[from] UnknownMediaType),
}

/// The layers of an image: all is known of them, and their bytes can be had.
pub struct Layers<'a> {
    contents: Vec<LayerContents<'a>>,
    records: Vec<LayerRecord>,
    reused: Vec<bool>,
    by_digest: BTreeMap<Digest, usize>,
    source: &'a dyn Source,
    store: &'a LayerStore,
    compression: Compression,
    observer: &'a dyn Observer,
}

impl<'a> Layers<'a> {
    /// Looks every layer up in the store and packs, in parallel, those that it does not know.
    pub fn obtain(
        contents: Vec<LayerContents<'a>>,
        source: &'a dyn Source,
        store: &'a LayerStore,
        compression: Compression,
        observer: &'a dyn Observer,
    ) -> Result<Self, LayersError> {
        let keys: Vec<_> = contents.iter().map(|contents| contents.key(compression)).collect();
        let mut records = store.lookup(&keys)?;
        let reused: Vec<_> = records.iter().map(Option::is_some).collect();

        let missing: Vec<_> = (0..contents.len()).filter(|&at| !reused[at]).collect();
        let packed = pack_all(&missing, &contents, &keys, source, store, compression, observer)?;
        store.record_layers(&packed)?;
        for (at, record) in missing.into_iter().zip(packed) {
            records[at] = Some(record);
        }

        let records: Vec<_> = records.into_iter().flatten().collect();
        let by_digest = records.iter().enumerate().map(|(at, record)| (record.digest, at)).collect();
        Ok(Self { contents, records, reused, by_digest, source, store, compression, observer })
    }

    /// The layers as the image has them, the bottom one first.
    pub fn descriptors(&self) -> Result<Vec<Layer>, LayersError> {
        self.records
            .iter()
            .enumerate()
            .map(|(at, record)| {
                Ok(Layer {
                    digest: record.digest,
                    diff_id: record.diff_id,
                    size: record.size,
                    media_type: record.media_type.parse()?,
                    store_paths: self.contents[at].store_paths(),
                    reused: self.reused[at],
                })
            })
            .collect()
    }

    /// The layers' keys, the bottom one first.
    pub fn keys(&self) -> Vec<LayerKey> {
        self.records.iter().map(|record| record.key).collect()
    }
}

impl BlobProvider for Layers<'_> {
    /// Kept bytes are read and checked; bytes that are not kept are made again and checked against the record.
    fn copy_to(&self, layer: &Layer, out: &mut dyn Write) -> Result<(), BlobError> {
        let Some(&at) = self.by_digest.get(&layer.digest) else {
            return Err(BlobError::read(io::Error::other(format!("{} is no layer of this image", layer.digest))));
        };
        let record = &self.records[at];
        if record.has_blob {
            let mut blob = self.store.read_blob(&record.digest, record.size).map_err(BlobError::read)?;
            return copy(&mut blob, out);
        }
        let mut out = DigestWriter::new(out);
        self.contents[at].pack(self.source, self.compression, &mut out, self.observer).map_err(|error| match error {
            PackError::Write(error) => BlobError::write(error),
            PackError::Walk(error) => BlobError::read(error),
        })?;
        let (_, found, found_size) = out.finish();
        if found != record.digest {
            return Err(BlobError::read(DigestMismatch {
                expected: record.digest,
                expected_size: record.size,
                found,
                found_size,
            }));
        }
        Ok(())
    }
}

/// Copies a blob, telling trouble with the blob from trouble with the target.
fn copy(blob: &mut dyn io::Read, out: &mut dyn Write) -> Result<(), BlobError> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match blob.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => out.write_all(&buffer[..read]).map_err(BlobError::write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(BlobError::read(error)),
        }
    }
}

/// Packs the layers at the places `missing`, on all threads of the present rayon pool, and returns their records in
/// the order of `missing`.
fn pack_all(
    missing: &[usize],
    contents: &[LayerContents<'_>],
    keys: &[LayerKey],
    source: &dyn Source,
    store: &LayerStore,
    compression: Compression,
    observer: &dyn Observer,
) -> Result<Vec<LayerRecord>, LayersError> {
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let total_bytes = missing.iter().map(|&at| contents[at].estimated_size()).sum();
    observer.event(Event::Started { stage: Stage::Packing, total_bytes });

    // Each thread takes the largest layer that is left, so that all of them end at about the same time.
    let mut by_size: Vec<_> = (0..missing.len()).collect();
    by_size.sort_by_key(|&n| std::cmp::Reverse(contents[missing[n]].estimated_size()));
    let next = AtomicUsize::new(0);
    let done = Mutex::new(vec![None; missing.len()]);
    let outcomes = rayon::broadcast(|_| -> Result<(), LayersError> {
        while let Some(&n) = by_size.get(next.fetch_add(1, Ordering::Relaxed)) {
            let at = missing[n];
            let packed = pack_one(&contents[at], source, store, compression, observer).inspect_err(|_| {
                // The other threads finish the layer that they are at and take no further one.
                next.store(by_size.len(), Ordering::Relaxed);
            })?;
            let record = LayerRecord {
                key: keys[at],
                digest: packed.digest,
                diff_id: packed.diff_id,
                size: packed.size,
                tar_size: packed.tar_size,
                media_type: compression.media_type().to_owned(),
                has_blob: compression != Compression::None,
                contents: contents[at].store_paths().iter().map(|path| path.base_name().to_owned()).collect(),
            };
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[n] = Some(record);
        }
        Ok(())
    });
    let outcome: Result<Vec<()>, _> = outcomes.into_iter().collect();
    let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    observer.event(Event::Finished { stage: Stage::Packing });
    if outcome.is_err() {
        // What was packed before the failure is kept: the next run need not do it again.
        store.record_layers(&done.into_iter().flatten().collect::<Vec<_>>())?;
        outcome?;
        return Ok(Vec::new());
    }
    Ok(done.into_iter().flatten().collect())
}

/// Packs one layer. Only bytes that cost more to make than to read are kept: an uncompressed layer's are made again
/// from the store paths when they are wanted.
fn pack_one(
    contents: &LayerContents<'_>,
    source: &dyn Source,
    store: &LayerStore,
    compression: Compression,
    observer: &dyn Observer,
) -> Result<Packed, LayersError> {
    if compression == Compression::None {
        return Ok(contents.pack(source, compression, &mut io::sink(), observer)?);
    }
    let mut blob = store.blob_writer()?;
    let packed = contents.pack(source, compression, &mut blob, observer)?;
    blob.commit(&packed.digest)?;
    Ok(packed)
}
