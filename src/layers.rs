//! Obtains the planned layers, from the layer store or by packing them, and streams their bytes wherever they go.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::blob::{Digest, DigestMismatch, DigestWriter, LayerKey};
use crate::crash;
use crate::delivery::{BlobError, BlobProvider};
use crate::event::{Cancelled, Event, Observer, Stage};
use crate::image::{Layer, LayerMediaType, UnknownMediaType};
use crate::nix::Source;
use crate::pack::{Compression, LayerContents, PackError, Packed};
use crate::store::{Claim, Content, ImageRecord, LayerRecord, LayerStore, Lease, StoreError};

/// A layer could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// It could not be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The store's record of a layer names a kind of blob that is no layer's.
    #[error("the layer store has a record that this version cannot read")]
    MediaType(#[from] UnknownMediaType),
}

impl LayersError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Pack(PackError::Walk(error)) => error.hint(),
            Self::Pack(PackError::Write(_)) => None,
            Self::MediaType(_) => Some("make the cache anew: layerhold cache clear".to_owned()),
        }
    }
}

/// What an image calls layers of this kind.
pub fn media_type(compression: Compression) -> LayerMediaType {
    match compression {
        Compression::None => LayerMediaType::Tar,
        Compression::Gzip(_) => LayerMediaType::TarGzip,
        Compression::Zstd(_) => LayerMediaType::TarZstd,
    }
}

/// Where layers come from and how they are made: what every step needs.
#[derive(Clone, Copy)]
pub struct Workshop<'a> {
    /// Where store paths are read.
    pub source: &'a dyn Source,
    /// Where layers are kept. Without a store every layer is packed, and packed again on its way out.
    pub store: Option<&'a LayerStore>,
    /// How layers are compressed.
    pub compression: Compression,
    /// Who watches.
    pub observer: &'a dyn Observer,
    /// Whether the store has failed in this run.
    pub trouble: &'a Trouble,
}

/// Set once the layer store has failed: nothing more is asked of it in this run, so that what is wrong is said once and
/// its cost is paid once.
#[derive(Debug, Default)]
pub struct Trouble(AtomicBool);

/// The layers of an image, looked up in the store.
pub struct Sought<'a> {
    workshop: Workshop<'a>,
    contents: Vec<LayerContents<'a>>,
    keys: Vec<LayerKey>,
    known: Vec<Option<LayerRecord>>,
    lease: Option<Lease>,
}

impl<'a> Sought<'a> {
    /// Whether the store knows every layer.
    pub fn is_complete(&self) -> bool {
        self.known.iter().all(Option::is_some)
    }

    /// Packs, in parallel, the layers that the store does not know.
    pub fn pack_missing(self) -> Result<Layers<'a>, LayersError> {
        let Self { workshop, contents, keys, known, lease } = self;
        let (records, reused) = pack_missing(workshop, &contents, &keys, known)?.into_iter().unzip();
        let records: Vec<LayerRecord> = records;
        let by_digest = records.iter().enumerate().map(|(at, record)| (record.digest, at)).collect();
        let damaged = Mutex::default();
        Ok(Layers { workshop, contents, keys, records, reused, by_digest, damaged, _lease: lease })
    }
}

/// The layers of an image: all is known of them, and their bytes can be had.
pub struct Layers<'a> {
    workshop: Workshop<'a>,
    contents: Vec<LayerContents<'a>>,
    keys: Vec<LayerKey>,
    records: Vec<LayerRecord>,
    reused: Vec<bool>,
    by_digest: BTreeMap<Digest, usize>,
    /// Kept blobs that turned out to be damaged: their layers are made again.
    damaged: Mutex<BTreeSet<Digest>>,
    /// Keeps the layers from garbage collection until they are delivered.
    _lease: Option<Lease>,
}

impl<'a> Layers<'a> {
    /// Looks every layer up in the store, and packs nothing yet.
    pub fn look_up(workshop: Workshop<'a>, contents: Vec<LayerContents<'a>>) -> Sought<'a> {
        let keys: Vec<_> = contents.iter().map(|contents| contents.key(workshop.compression)).collect();
        let lease = workshop.with_store("protect layers in use", |store| store.lease(&keys));
        let found = workshop.with_store("look up layers", |store| store.lookup(&keys));
        let known = found.unwrap_or_else(|| vec![None; keys.len()]);
        Sought { workshop, contents, keys, known, lease }
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

    /// Remembers the image that these layers make, and says how many bytes the store takes now; a store that fails
    /// costs the memory, never the image.
    pub fn record_image(&self, image: &ImageRecord) -> Option<u64> {
        self.workshop.with_store("remember the image", |store| store.record_image(image))
    }

    /// The layers' keys, the bottom one first.
    pub fn keys(&self) -> &[LayerKey] {
        &self.keys
    }
}

impl BlobProvider for Layers<'_> {
    /// Reads the kept blobs, on all threads. One that is damaged or cannot be read is thrown away, and its layer is
    /// packed again while it streams.
    fn prepare(&self, layers: &[&Layer]) {
        let Some(store) = self.workshop.store else { return };
        let kept: Vec<_> = layers
            .iter()
            .filter_map(|layer| Some(&self.records[*self.by_digest.get(&layer.digest)?]))
            .filter(|record| record.has_blob)
            .collect();
        let bad: BTreeMap<Digest, io::Error> = kept
            .par_iter()
            .filter_map(|record| {
                let error = store.verify_blob(&record.digest, record.size, self.workshop.observer).err()?;
                (!Cancelled::caused(&error)).then_some((record.digest, error))
            })
            .collect();
        for (digest, error) in &bad {
            let message = format!("the layer cache holds {digest} damaged ({error}): it is made again");
            self.workshop.observer.event(Event::Warning { message });
        }
        let bad: BTreeSet<_> = bad.into_keys().collect();
        self.workshop.with_store("throw away a damaged layer", |store| store.discard_blobs(&bad));
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).extend(bad);
    }

    /// Kept bytes are read and checked; bytes that are not kept are made again and checked against the record.
    fn copy_to(&self, layer: &Layer, out: &mut dyn Write) -> Result<(), BlobError> {
        let Some(&at) = self.by_digest.get(&layer.digest) else {
            return Err(BlobError::Source(format!("{} is no layer of this image", layer.digest).into()));
        };
        let record = &self.records[at];
        let is_damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner).contains(&record.digest);
        if let (true, false, Some(store)) = (record.has_blob, is_damaged, self.workshop.store) {
            // Gone since it was checked, for somebody cleared the cache: it is made again.
            if let Ok(mut blob) = store.read_blob(&record.digest, record.size) {
                return copy(&mut blob, out);
            }
        }
        let Workshop { source, compression, observer, .. } = self.workshop;
        let mut out = DigestWriter::new(out);
        self.contents[at].pack(source, compression, &mut out, observer).map_err(|error| match error {
            PackError::Write(error) => BlobError::Write(error),
            PackError::Walk(error) => BlobError::Source(error.into()),
        })?;
        let (_, found, found_size) = out.finish();
        if found != record.digest {
            let (expected, expected_size) = (record.digest, record.size);
            return Err(BlobError::Source(DigestMismatch { expected, expected_size, found, found_size }.into()));
        }
        Ok(())
    }

    fn blobs_of(&self, manifest: &Digest) -> BTreeSet<Digest> {
        let blobs = self.workshop.with_store("look up an image", |store| store.blobs_of_image(manifest));
        blobs.unwrap_or_default()
    }
}

/// Copies a blob, telling trouble with the blob from trouble with the target.
fn copy(blob: &mut dyn io::Read, out: &mut dyn Write) -> Result<(), BlobError> {
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match blob.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => out.write_all(&buffer[..read]).map_err(BlobError::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(BlobError::Source(error.into())),
        }
    }
}

/// Fills the places of `known` that are empty, on all threads of the present rayon pool. Says of each layer whether it
/// was reused: known, or made by another process meanwhile.
fn pack_missing(
    workshop: Workshop<'_>,
    contents: &[LayerContents<'_>],
    keys: &[LayerKey],
    known: Vec<Option<LayerRecord>>,
) -> Result<Vec<(LayerRecord, bool)>, LayersError> {
    let known: Vec<_> = known.into_iter().map(|record| Some((record?, true))).collect();
    let mut missing: Vec<_> = (0..contents.len()).filter(|&at| known[at].is_none()).collect();
    if missing.is_empty() {
        return Ok(known.into_iter().flatten().collect());
    }
    let total_bytes = missing.iter().map(|&at| contents[at].estimated_size()).sum();
    workshop.observer.event(Event::Started { stage: Stage::Packing, total_bytes });
    // Each thread takes the largest layer that is left, so that all of them end at about the same time.
    missing.sort_by_key(|&at| std::cmp::Reverse(contents[at].estimated_size()));

    let records = Mutex::new(known);
    let keep = |at: usize, record| records.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(record);
    // Layers that another process is making right now: its work is waited for, but only when there is no other.
    let elsewhere = Mutex::new(Vec::new());
    let outcome = on_every_thread(&missing, |at| {
        match workshop.try_claim(&keys[at]) {
            Ok(claim) => keep(at, workshop.pack(&contents[at], keys[at], claim)?),
            Err(BeingMade) => elsewhere.lock().unwrap_or_else(PoisonError::into_inner).push(at),
        }
        Ok(())
    })
    .and_then(|()| {
        let elsewhere = elsewhere.into_inner().unwrap_or_else(PoisonError::into_inner);
        on_every_thread(&elsewhere, |at| {
            let claim = workshop.with_store("wait for another process", |store| store.claim(&keys[at]));
            keep(at, workshop.pack(&contents[at], keys[at], claim)?);
            Ok(())
        })
    });
    let records = records.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Also after a failure: what was packed before it is kept, and the next run need not do it again.
    let packed: Vec<_> = missing.iter().filter_map(|&at| Some(records[at].as_ref()?.0.clone())).collect();
    crash::point("layers.packed");
    workshop.with_store("index layers", |store| store.index_layers(&packed));
    workshop.observer.event(Event::Finished { stage: Stage::Packing });
    outcome?;
    Ok(records.into_iter().flatten().collect())
}

/// Does `work` for each place, on every thread of the pool, in the order of the list. After a failure no thread takes
/// a further place.
fn on_every_thread(
    places: &[usize],
    work: impl Fn(usize) -> Result<(), LayersError> + Sync,
) -> Result<(), LayersError> {
    let next = AtomicUsize::new(0);
    let outcomes = rayon::broadcast(|_| {
        while let Some(&at) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(at).inspect_err(|_| next.store(places.len(), Ordering::Relaxed))?;
        }
        Ok(())
    });
    outcomes.into_iter().collect()
}

/// Another process is making the layer.
struct BeingMade;

impl Workshop<'_> {
    /// Does something with the store, if there is one. A store that fails costs time, never the image: that is said
    /// and the work goes on.
    fn with_store<T>(&self, what: &str, work: impl FnOnce(&LayerStore) -> Result<T, StoreError>) -> Option<T> {
        if self.trouble.0.load(Ordering::Relaxed) {
            return None;
        }
        match work(self.store?) {
            Ok(done) => Some(done),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                self.give_up_the_store(what, &format!("{error}{cause}"), error.hint());
                None
            }
        }
    }

    fn give_up_the_store(&self, what: &str, why: &str, hint: Option<String>) {
        if self.trouble.0.swap(true, Ordering::Relaxed) {
            return;
        }
        let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        let message = format!("the layer cache could not {what} ({why}); going on without{hint}");
        self.observer.event(Event::Warning { message });
    }

    fn try_claim(&self, key: &LayerKey) -> Result<Option<Claim>, BeingMade> {
        match self.with_store("claim a layer", |store| store.try_claim(key)) {
            Some(None) => Err(BeingMade),
            Some(claim) => Ok(claim),
            None => Ok(None),
        }
    }

    /// Packs one layer and records it, unless another process has done so by now: says whether one has.
    fn pack(
        &self,
        contents: &LayerContents<'_>,
        key: LayerKey,
        claim: Option<Claim>,
    ) -> Result<(LayerRecord, bool), LayersError> {
        if let Some(Some(record)) = self.with_store("read a record", |store| store.read_record(&key)) {
            return Ok((record, true));
        }
        let (packed, has_blob) = self.pack_blob(contents)?;
        let record = LayerRecord {
            key,
            digest: packed.digest,
            diff_id: packed.diff_id,
            size: packed.size,
            tar_size: packed.tar_size,
            media_type: media_type(self.compression).to_string(),
            has_blob,
            contents: contents
                .sizes()
                .map(|(path, size)| Content { name: path.base_name().to_owned(), size })
                .collect(),
        };
        self.with_store("record a layer", |store| store.record_layer(&record));
        drop(claim);
        Ok((record, false))
    }

    /// Packs one layer, and keeps its bytes where they cost more to make than to read: an uncompressed layer's are made
    /// again from the store paths when they are wanted. Says whether they were kept.
    fn pack_blob(&self, contents: &LayerContents<'_>) -> Result<(Packed, bool), LayersError> {
        let to_nowhere = || contents.pack(self.source, self.compression, &mut io::sink(), self.observer);
        if self.compression == Compression::None {
            return Ok((to_nowhere()?, false));
        }
        let Some(mut blob) = self.with_store("keep a layer", LayerStore::blob_writer) else {
            return Ok((to_nowhere()?, false));
        };
        match contents.pack(self.source, self.compression, &mut blob, self.observer) {
            Ok(packed) => {
                let kept = self.with_store("keep a layer", |_| blob.commit(&packed.digest)).is_some();
                Ok((packed, kept))
            }
            // The cache's disk is full, say: the image does not depend on it.
            Err(PackError::Write(error)) if !Cancelled::caused(&error) => {
                drop(blob);
                let hint = (error.kind() == io::ErrorKind::StorageFull)
                    .then(|| "make room: layerhold cache gc --max-size SIZE".to_owned());
                self.give_up_the_store("keep a layer", &error.to_string(), hint);
                Ok((to_nowhere()?, false))
            }
            Err(error) => Err(error.into()),
        }
    }
}
