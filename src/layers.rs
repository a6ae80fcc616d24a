//! Obtains the planned layers, from the layer store or by packing them, and streams their bytes wherever they go.

mod cause;
mod past;
mod presence;
mod shared;
mod states;
mod workshop;

use cause::PathsChanged;
pub use cause::hint_of_cause;
use states::States;
use workshop::{Obtained, is_own, patience_for};
pub use workshop::{Trouble, Workshop};

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use crate::blob::{DiffId, Digest, DigestMismatch, LayerKey};
use crate::delivery::{BlobError, BlobProvider, Past, Spool};
use crate::event::{Cancelled, Event};
use crate::image::{Layer, LayerMediaType, UnknownMediaType};
use crate::outlet::{Copied, Outlet};
use crate::pack::{Compression, LayerContents, PackError, Packed};
use crate::parallel::{self, Places};
use crate::share::{Given, ImageUse};
use crate::store::{BlobStamp, ImageRecord, LayerRecord, Lease};

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
            Self::Pack(PackError::Write(error)) => {
                (error.kind() == io::ErrorKind::StorageFull).then(|| "free some space where the image goes".to_owned())
            }
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

/// The layers of one image or several, each once, looked up in the store.
pub struct Sought<'a> {
    workshop: Workshop<'a>,
    contents: Vec<LayerContents<'a>>,
    keys: Vec<LayerKey>,
    /// Each image's layers, the bottom one first, as places in the lists beside this.
    images: Vec<Vec<usize>>,
    known: Vec<Option<Obtained>>,
    lease: Option<Lease>,
    made_before: MadeBefore,
}

/// Layers that were made in this run before the others, because something in them lies far away: their store paths are
/// fetched once, and what is in them is known afterwards.
#[derive(Default)]
pub struct MadeBefore {
    layers: BTreeMap<LayerKey, Obtained>,
    _lease: Option<Lease>,
}

impl<'a> Sought<'a> {
    /// Whether the store knows every layer.
    pub fn is_complete(&self) -> bool {
        self.known.iter().all(Option::is_some)
    }

    /// Whether some layer is known.
    pub fn is_begun(&self) -> bool {
        self.known.iter().any(Option::is_some)
    }

    /// The sizes of all layers' blobs in bytes, where some have still to be made and their sizes can be told before.
    pub fn sizes(&self) -> Result<Option<Vec<u64>>, LayersError> {
        let packer = self.workshop.packer;
        if self.is_complete() || packer.compression() != Compression::None {
            return Ok(None);
        }
        let layers = self.known.par_iter().zip(&self.contents);
        let sizes = layers.map(|(known, contents)| match known {
            Some(known) => Ok(known.record.size),
            None => Ok(packer.tar_size(contents)?),
        });
        sizes.collect::<Result<_, LayersError>>().map(Some)
    }

    /// As [`Sought::pack_missing`], for layers that are only the beginning of what an image has.
    pub fn make_before(self) -> Result<MadeBefore, LayersError> {
        let Self { workshop, contents, keys, known, lease, .. } = self;
        let obtained = workshop::pack_missing(workshop, &contents, &keys, known, None)?;
        Ok(MadeBefore { layers: keys.into_iter().zip(obtained).collect(), _lease: lease })
    }

    /// Packs, in parallel, the layers that the store does not know; where there is a spool with places of these sizes,
    /// straight to their places.
    pub fn pack_missing(self, spool: Option<&Spool>) -> Result<Layers<'a>, LayersError> {
        let Self { workshop, contents, keys, images, known, lease, made_before } = self;
        let obtained = workshop::pack_missing(workshop, &contents, &keys, known, spool);
        // Also where it failed: the next run has what was packed until then, and does not look at it again.
        workshop.packer.tell_what_is_lost();
        let obtained = obtained?;
        let known_blobs =
            obtained.iter().filter_map(|layer| Some((layer.record.digest, layer.made.clone()?))).collect();
        let states = States::of_made(obtained.iter().map(|layer| layer.state));
        let (records, reused): (Vec<_>, Vec<_>) =
            obtained.into_iter().map(|layer| (layer.record, layer.reused)).unzip();
        let by_digest = records.iter().enumerate().map(|(at, record)| (record.digest, at)).collect();
        let (known_blobs, damaged, fetched) = (Mutex::new(known_blobs), Mutex::default(), Mutex::default());
        let (asked_for, wrong) = (Mutex::default(), Mutex::default());
        let making = Places::new(workshop.packer.threads());
        Ok(Layers {
            workshop,
            contents,
            keys,
            images,
            records,
            reused,
            states,
            by_digest,
            known_blobs,
            damaged,
            fetched,
            asked_for,
            wrong,
            making,
            _leases: (lease, made_before),
        })
    }
}

/// The layers of one image or several: all is known of them, and their bytes can be had.
pub struct Layers<'a> {
    workshop: Workshop<'a>,
    contents: Vec<LayerContents<'a>>,
    keys: Vec<LayerKey>,
    images: Vec<Vec<usize>>,
    records: Vec<LayerRecord>,
    reused: Vec<bool>,
    by_digest: BTreeMap<Digest, usize>,
    /// In what states trees were when layers were made of them.
    states: States,
    /// Kept blobs whose bytes are known to be right: made, or read and checked, in this run.
    known_blobs: Mutex<BTreeMap<Digest, BlobStamp>>,
    /// Kept blobs that turned out to be damaged: their layers are made again.
    damaged: Mutex<BTreeSet<Digest>>,
    /// Blobs that came from a shared cache in this run: they are kept now.
    fetched: Mutex<BTreeSet<Digest>>,
    /// Layers whose bytes a target wanted.
    asked_for: Mutex<BTreeSet<usize>>,
    /// Layers that came out otherwise than was known of them.
    wrong: Mutex<BTreeSet<usize>>,
    /// More layers may be on their way at once than can be made: what is made takes memory. There are as many places as
    /// threads on which layers are made one after the other, or ahead of whoever takes them in order: nobody who has a
    /// place waits for one who has none.
    making: Places,
    /// Keep the layers from garbage collection until they are delivered.
    _leases: (Option<Lease>, MadeBefore),
}

impl<'a> Layers<'a> {
    /// Looks every layer of these images up, among those `made_before` and in the store, and packs nothing yet. What
    /// several images have is one layer.
    pub fn look_up(workshop: Workshop<'a>, images: Vec<Vec<LayerContents<'a>>>, made_before: MadeBefore) -> Sought<'a> {
        Self::look_up_in(workshop, images, made_before, false)
    }

    /// The same for layers of which an environment is rendered, and something in each lies far away: what shared caches
    /// have of them comes at once.
    pub fn look_up_far(workshop: Workshop<'a>, images: Vec<Vec<LayerContents<'a>>>) -> Sought<'a> {
        Self::look_up_in(workshop, images, MadeBefore::default(), true)
    }

    fn look_up_in(
        workshop: Workshop<'a>,
        images: Vec<Vec<LayerContents<'a>>>,
        mut made_before: MadeBefore,
        are_far: bool,
    ) -> Sought<'a> {
        let (mut contents, mut keys, mut places) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut place_of = |layer: LayerContents<'a>| {
            let key = layer.key(workshop.packer.compression());
            *places.entry(key).or_insert_with(|| {
                keys.push(key);
                contents.push(layer);
                keys.len() - 1
            })
        };
        let images = images.into_iter().map(|layers| layers.into_iter().map(&mut place_of).collect()).collect();
        if keys.is_empty() {
            return Sought { workshop, contents, keys, images, known: Vec::new(), lease: None, made_before };
        }
        let lease = workshop.with_store("protect layers in use", |store| store.lease(&keys));
        let found = workshop.with_store("look up layers", |store| store.lookup(&keys));
        let found = found.unwrap_or_else(|| vec![None; keys.len()]);
        let mut known: Vec<Option<Obtained>> = keys.iter().map(|key| made_before.layers.remove(key)).collect();
        for ((known, found), contents) in known.iter_mut().zip(found).zip(&contents) {
            // A record of something far whose bytes are not here may be another machine's, and nobody has looked into it.
            // The bytes of own files are always here, unless an earlier version left them elsewhere.
            let is_good =
                |record: &LayerRecord| (record.has_blob || !(are_far || is_own(contents))) && workshop.counts(record);
            *known = known.take().or_else(|| found.filter(is_good).map(Obtained::reused));
        }
        let unknown: Vec<usize> = (0..keys.len()).filter(|&at| known[at].is_none()).collect();
        let wanted: Vec<_> = unknown.iter().map(|&at| (keys[at], &contents[at])).collect();
        let found = if are_far { workshop.take_far(&wanted) } else { workshop.look_up_shared(&wanted) };
        for (at, found) in unknown.into_iter().zip(found) {
            known[at] = found;
        }
        Sought { workshop, contents, known, keys, images, lease, made_before }
    }

    /// Each image's layers, the bottom one first.
    pub fn descriptors(&self) -> Result<Vec<Vec<Layer>>, LayersError> {
        let of_image = |places: &Vec<usize>| places.iter().map(|&at| self.descriptor(at)).collect();
        self.images.iter().map(of_image).collect()
    }

    fn descriptor(&self, at: usize) -> Result<Layer, LayersError> {
        let record = &self.records[at];
        Ok(Layer {
            digest: record.digest,
            diff_id: record.diff_id,
            size: record.size,
            media_type: record.media_type.parse()?,
            store_paths: self.contents[at].store_paths(),
            reused: self.reused[at],
        })
    }

    /// Remembers what these layers make, and says how many bytes the store takes now; a store that fails
    /// costs the memory, never the image.
    pub fn record_image(&self, image: &ImageRecord) -> Option<u64> {
        self.workshop.with_store("remember the image", |store| store.record_image(image))
    }

    /// Gives the shared caches all layers that they do not know, and the use of the image.
    pub fn share(&self, image: &ImageUse) {
        let Some(shared) = self.workshop.shared.filter(|shared| shared.is_written()) else { return };
        // What is there may be mounted from there.
        shared.look_up(&[]);
        let repositories = self.known_repositories();
        let places: Vec<usize> = (0..self.records.len()).collect();
        let give = |&at: &usize| -> Result<(), LayersError> {
            let layer = self.descriptor(at)?;
            let write = |out: &mut dyn Write| self.copy_to(&layer, &mut Copied(out)).map_err(io::Error::other);
            shared.give(&self.records[at], &repositories, &write);
            Ok(())
        };
        // A layer that has no descriptor is in no image.
        let _ = parallel::for_each(self.workshop.packer.threads(), &places, give);
        for (address, given) in shared.finish(image) {
            let Given { entries, blobs, bytes } = given;
            let message =
                format!("given to the shared cache '{address}': {entries} layers, {blobs} blobs, {bytes} bytes");
            self.workshop.observer.event(Event::Detail { message });
        }
    }

    /// Fetches the compressed layers among these whose bytes are not here and in a shared cache. What does not come, or
    /// comes wrong, is made here.
    fn fetch(&self, layers: &[&Layer]) {
        let records = layers.iter().filter_map(|layer| Some(&self.records[*self.by_digest.get(&layer.digest)?]));
        let is_wanted = |record: &&LayerRecord| {
            !record.has_blob && record.digest != record.diff_id.0 && !self.fetched().contains(&record.digest)
        };
        let wanted: Vec<_> = records.filter(is_wanted).collect();
        let Some(shared) = self.workshop.shared.filter(|_| !wanted.is_empty()) else { return };
        // What the caches have is read here at the latest: it must not be begun in the midst of several such tasks, for
        // who begins it works on others meanwhile, and those would wait for it.
        shared.look_up(&[]);
        let wanted = wanted.into_iter().filter_map(|record| {
            let contents = &self.contents[*self.by_digest.get(&record.digest)?];
            Some((record, contents))
        });
        let (far, near): (Vec<_>, Vec<_>) = wanted.partition(|(_, contents)| self.workshop.packer.is_far(contents));
        let keep = |record: &LayerRecord, stamp: BlobStamp| {
            self.known_blobs().insert(record.digest, stamp);
            self.fetched().insert(record.digest);
            LayerRecord { has_blob: true, ..record.clone() }
        };
        let bytes = near.iter().map(|(_, contents)| contents.estimated_size()).sum();
        let mut fetched: Vec<LayerRecord> = shared.fetch_within(patience_for(bytes), |together| {
            let fetch = |(record, contents): &(&LayerRecord, &LayerContents<'_>)| {
                Some(keep(record, self.workshop.fetch_near(record, contents, together)?))
            };
            near.par_iter().filter_map(fetch).collect()
        });
        // These take their time, and not that of the others.
        let fetch = |(record, contents): &(&LayerRecord, &LayerContents<'_>)| {
            Some(keep(record, self.workshop.fetch_far(record, contents)?))
        };
        fetched.extend(far.par_iter().filter_map(fetch).collect::<Vec<_>>());
        self.workshop.tell_fetched(&fetched);
        self.workshop.record(&fetched);
    }

    /// Whether the blob's bytes are here, as far as anybody knows.
    fn is_kept(&self, record: &LayerRecord) -> bool {
        let is_here = record.has_blob || self.fetched().contains(&record.digest);
        is_here && !self.damaged.lock().unwrap_or_else(PoisonError::into_inner).contains(&record.digest)
    }

    fn fetched(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_blobs(&self) -> MutexGuard<'_, BTreeMap<Digest, BlobStamp>> {
        self.known_blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a layer's bytes again. They are checked against the record, unless nothing can have changed since they were
    /// hashed: then that was enough.
    fn make_again(&self, at: usize, out: &mut dyn Outlet) -> Result<(), BlobError> {
        let _place = self.making.take();
        let (packer, contents) = (self.workshop.packer, &self.contents[at]);
        let Some(state) = self.states.current(at, || packer.state(contents)) else {
            let (packed, state) = packer.pack_again(contents, out).map_err(blob_error)?;
            self.check(at, packed)?;
            self.states.learn(at, state);
            return Ok(());
        };
        if packer.write_again(contents, out).map_err(blob_error)? == Some(state) {
            return Ok(());
        }
        Err(BlobError::Source(PathsChanged.into()))
    }

    /// Recalls the states of trees of which these layers' bytes will be made again.
    fn recall_states(&self, layers: &[&Layer]) {
        let packer = self.workshop.packer;
        if packer.compression() != Compression::None {
            return;
        }
        let places = layers.iter().filter_map(|layer| self.by_digest.get(&layer.digest).copied());
        let unknown: Vec<&LayerRecord> = places
            .filter(|&at| !self.states.has(at) && !packer.is_far(&self.contents[at]))
            .map(|at| &self.records[at])
            .filter(|record| !self.is_kept(record))
            .collect();
        for (digest, state) in self.workshop.recall_states(&unknown) {
            if let Some(&at) = self.by_digest.get(&digest) {
                self.states.recall(at, state);
            }
        }
    }

    /// Remembers in what states the trees were whose layers were hashed in this run.
    pub fn remember_states(&self) {
        self.workshop.remember_states(&self.states.take_new(&self.records));
    }

    fn check(&self, at: usize, packed: Packed) -> Result<(), BlobError> {
        let LayerRecord { digest: expected, size: expected_size, .. } = self.records[at];
        let Packed { digest: found, size: found_size, .. } = packed;
        if found == expected {
            return Ok(());
        }
        self.disown(at);
        Err(BlobError::Source(DigestMismatch { expected, expected_size, found, found_size }.into()))
    }

    /// The layer came out otherwise. A shared cache that may have said what it is is not believed any more; where this
    /// machine has made it, its store paths are not what they were.
    fn disown(&self, at: usize) {
        let (key, record) = (self.keys[at], &self.records[at]);
        if !record.has_blob {
            self.workshop.with_store("forget a layer", |store| store.forget_layer(&key));
        }
        if let Some(shared) = self.workshop.shared.filter(|shared| shared.may_have_said(record)) {
            self.wrong.lock().unwrap_or_else(PoisonError::into_inner).insert(at);
            if !record.has_blob {
                shared.disbelieve(&key, &record.digest);
            }
        }
    }

    /// Forgets what is known of those layers that are not what each image has, by their diff IDs, the bottom one first;
    /// what shared caches may have said of them is not believed any more. Says of how many layers that is so. Those
    /// that were made in this run are not among them: to make them again would help nobody.
    pub fn forget_others<'d>(&self, images: impl Iterator<Item = &'d [DiffId]>) -> usize {
        let layers = self.images.iter().flatten().zip(images.flatten());
        let is_other = |&(&at, diff_id): &(&usize, &DiffId)| self.reused[at] && self.records[at].diff_id != *diff_id;
        let others: BTreeSet<usize> = layers.filter(is_other).map(|(&at, _)| at).collect();
        let mut doubted = 0;
        for &at in &others {
            let (key, record) = (&self.keys[at], &self.records[at]);
            self.workshop.with_store("forget a layer", |store| store.forget_layer(key));
            if let Some(shared) = self.workshop.shared.filter(|shared| shared.may_have_said(record)) {
                shared.disbelieve(key, &record.digest);
                doubted += 1;
            }
        }
        doubted
    }

    /// How many layers came out otherwise than shared caches may have said, in a delivery that has failed. Where one did, the
    /// others that were to be made are looked at as well: one more run has to be enough.
    pub fn count_wrong(&self) -> usize {
        let wrong = || self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = wrong();
        if known.is_empty() {
            return 0;
        }
        let asked_for = self.asked_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let is_doubtful = |&at: &usize| self.reused[at] && !self.is_kept(&self.records[at]) && !known.contains(&at);
        let doubtful: Vec<usize> = asked_for.into_iter().filter(is_doubtful).collect();
        let look = |&at: &usize| -> Result<(), LayersError> {
            let (packed, _) = self.workshop.packer.pack_again(&self.contents[at], &mut io::sink())?;
            if packed.digest != self.records[at].digest {
                self.disown(at);
            }
            Ok(())
        };
        // What cannot be made is said when it is wanted the next time.
        let _ = parallel::for_each(self.workshop.packer.threads(), &doubtful, look);
        wrong().len()
    }

    /// The layers' keys: those of the first image, the bottom one first, then what the others have beside them.
    pub fn keys(&self) -> &[LayerKey] {
        &self.keys
    }

    /// Each image's layers, the bottom one first, as places in [`Layers::keys`].
    pub fn images(&self) -> &[Vec<usize>] {
        &self.images
    }
}

impl BlobProvider for Layers<'_> {
    fn past(&self) -> &dyn Past {
        self
    }

    fn threads(&self) -> usize {
        self.workshop.packer.threads()
    }

    /// Recalls in what states trees were, and reads the kept blobs that were not made in this run, on all threads. One that
    /// is damaged or cannot be read is thrown away, and its layer is packed again while it streams.
    fn prepare(&self, layers: &[&Layer]) {
        let places = layers.iter().filter_map(|layer| self.by_digest.get(&layer.digest));
        self.asked_for.lock().unwrap_or_else(PoisonError::into_inner).extend(places);
        let Some(store) = self.workshop.store else { return };
        self.recall_states(layers);
        let kept: Vec<_> = layers
            .iter()
            .filter_map(|layer| Some(&self.records[*self.by_digest.get(&layer.digest)?]))
            .filter(|record| record.has_blob && !self.known_blobs().contains_key(&record.digest))
            .collect();
        let verify = |record: &&LayerRecord| {
            (record.digest, store.verify_blob(&record.digest, record.size, self.workshop.observer))
        };
        let mut bad = BTreeMap::new();
        for (digest, verified) in kept.par_iter().map(verify).collect::<Vec<_>>() {
            match verified {
                Ok(stamp) => drop(self.known_blobs().insert(digest, stamp)),
                Err(error) if Cancelled::caused(&error) => {}
                Err(error) => drop(bad.insert(digest, error)),
            }
        }
        for (digest, error) in &bad {
            let message = format!("the layer cache holds {digest} damaged ({error}): it is made again");
            self.workshop.observer.event(Event::Warning { message });
        }
        let bad: BTreeSet<_> = bad.into_keys().collect();
        self.workshop.with_store("throw away a damaged layer", |store| store.discard_blobs(&bad));
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).extend(bad);
        self.fetch(layers);
    }

    /// Kept bytes are read; bytes that are not kept are made again and checked against the record, or of trees that are as
    /// they were when that was done.
    fn copy_to(&self, layer: &Layer, out: &mut dyn Outlet) -> Result<(), BlobError> {
        let Some(&at) = self.by_digest.get(&layer.digest) else {
            return Err(BlobError::Source(format!("{} is no layer of this image", layer.digest).into()));
        };
        let record = &self.records[at];
        if let (true, Some(store)) = (self.is_kept(record), self.workshop.store) {
            // Gone since it was checked, for somebody cleared the cache: it is made again.
            let known = self.known_blobs().get(&record.digest).cloned();
            if let Ok(mut blob) = store.read_blob(&record.digest, record.size, known.as_ref()) {
                return copy(&mut blob, out);
            }
        }
        self.make_again(at, out)
    }

    fn is_made(&self, layer: &Layer) -> bool {
        let place = self.by_digest.get(&layer.digest);
        self.workshop.store.is_some() && place.is_some_and(|&at| self.is_kept(&self.records[at]))
    }

    fn may_pour(&self, layer: &Layer) -> bool {
        let Some(&at) = self.by_digest.get(&layer.digest) else { return false };
        !self.is_kept(&self.records[at]) && self.states.has(at)
    }

    fn pours(&self, layer: &Layer) -> bool {
        let Some(&at) = self.by_digest.get(&layer.digest).filter(|_| self.may_pour(layer)) else { return false };
        self.states.confirm(at, || self.workshop.packer.state(&self.contents[at]))
    }
}

/// Tells trouble with the target from trouble with the store paths.
fn blob_error(error: PackError) -> BlobError {
    match error {
        PackError::Write(error) => BlobError::Write(error),
        PackError::Walk(error) => BlobError::Source(error.into()),
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
