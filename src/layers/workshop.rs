//! Where layers are made: looked for in the layer store, claimed, packed and recorded.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::{LayersError, media_type};
use crate::blob::LayerKey;
use crate::crash;
use crate::delivery::Spool;
use crate::event::{Cancelled, Event, Observer, Stage, in_one_line};
use crate::nix::TreeState;
use crate::pack::{Compression, LayerContents, PackError, Packed, Packer};
use crate::parallel;
use crate::sha256::Lane;
use crate::share::SharedCache;
use crate::store::{BlobStamp, Claim, Content, LayerRecord, LayerStore, StoreError};

/// Where layers come from and how they are made: what every step needs.
#[derive(Clone, Copy)]
pub struct Workshop<'a> {
    /// Makes layers.
    pub packer: &'a Packer<'a>,
    /// Where layers are kept. Without a store every layer is packed, and packed again on its way out.
    pub store: Option<&'a LayerStore>,
    /// Who watches.
    pub observer: &'a dyn Observer,
    /// Whether the store has failed in this run.
    pub trouble: &'a Trouble,
    /// What other machines know of layers.
    pub shared: Option<&'a SharedCache<'a>>,
    /// Now.
    pub now: SystemTime,
}

/// Set once the layer store has failed: nothing more is asked of it in this run, so that what is wrong is said once and
/// its cost is paid once.
#[derive(Debug, Default)]
pub struct Trouble {
    store: AtomicBool,
    /// What is remembered there has failed, which nothing else depends on.
    memory: AtomicBool,
}

/// A layer of which all is known now.
pub(super) struct Obtained {
    pub(super) record: LayerRecord,
    /// Whether it was known, or made by another process meanwhile.
    pub(super) reused: bool,
    /// The state of the blob that was made for it, where its bytes are kept.
    pub(super) made: Option<BlobStamp>,
    /// The state of the trees that it was made of in this run, where its bytes are not kept.
    pub(super) state: Option<TreeState>,
}

impl Obtained {
    pub(super) fn reused(record: LayerRecord) -> Self {
        Self { record, reused: true, made: None, state: None }
    }
}

/// Fills the places of `known` that are empty, on the packer's threads.
pub(super) fn pack_missing(
    workshop: Workshop<'_>,
    contents: &[LayerContents<'_>],
    keys: &[LayerKey],
    known: Vec<Option<Obtained>>,
    spool: Option<&Spool>,
) -> Result<Vec<Obtained>, LayersError> {
    let mut missing: Vec<_> = (0..contents.len()).filter(|&at| known[at].is_none()).collect();
    if missing.is_empty() {
        return Ok(known.into_iter().flatten().collect());
    }
    let total_bytes = missing.iter().map(|&at| contents[at].estimated_size()).sum();
    workshop.observer.event(Event::Started { stage: Stage::Packing, total_bytes });
    // Each thread takes the largest layer that is left, so that all of them end at about the same time.
    missing.sort_by_key(|&at| std::cmp::Reverse(contents[at].estimated_size()));

    let layers = Mutex::new(known);
    let keep = |at: usize, layer| layers.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(layer);
    // Layers that another process, or another machine, is making right now: its work is waited for, but only when there
    // is no other.
    let elsewhere = Mutex::new(Vec::new());
    let packer = workshop.packer;
    let near = !missing.iter().any(|&at| packer.is_far(&contents[at]));
    let claimed: Vec<LayerKey> = missing.iter().filter(|&&at| !is_own(&contents[at])).map(|&at| keys[at]).collect();
    let shared = workshop.shared.filter(|_| !claimed.is_empty());
    let on_other_machines = shared.map(|shared| shared.claim(&claimed)).unwrap_or_default();
    let outcome: Result<(), LayersError> = std::thread::scope(|scope| {
        // A new index is made meanwhile, so that nobody waits for it at the end.
        scope.spawn(|| workshop.with_store("make the index", LayerStore::prepare_index));
        workshop.giving(|give| {
            let pack = |at: usize, claim: Option<Claim>, lane: Option<&Lane>| -> Result<Obtained, LayersError> {
                let place = spool.map(|spool| (spool, at));
                let obtained = workshop.pack(&contents[at], keys[at], claim, place, lane)?;
                give(&obtained.record);
                Ok(obtained)
            };
            packer
                .for_each(&missing, total_bytes, near, |&at, lane| {
                    let claim = match on_other_machines.contains(&keys[at]) {
                        true => Err(BeingMade),
                        false => workshop.try_claim(&keys[at]),
                    };
                    match claim {
                        Ok(claim) => keep(at, pack(at, claim, lane)?),
                        Err(BeingMade) => elsewhere.lock().unwrap_or_else(PoisonError::into_inner).push(at),
                    }
                    Ok(())
                })
                .and_then(|()| {
                    let elsewhere = std::mem::take(&mut *elsewhere.lock().unwrap_or_else(PoisonError::into_inner));
                    if !elsewhere.is_empty() {
                        let message = format!("waiting for layers that others are making: {}", elsewhere.len());
                        workshop.observer.event(Event::Detail { message });
                    }
                    parallel::for_each(packer.threads(), &elsewhere, |&at| {
                        let claim = workshop.wait_for_another_process(&contents[at], &keys[at])?;
                        let made = workshop.wait_for_another_machine(&contents[at], &keys[at]);
                        keep(at, made.map_or_else(|| pack(at, claim, None), Ok)?);
                        Ok(())
                    })
                })
        })
    });
    let layers = layers.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Also after a failure: what was packed before it is kept, and the next run need not do it again.
    let packed: Vec<_> = missing.iter().filter_map(|&at| Some(layers[at].as_ref()?.record.clone())).collect();
    crash::point("layers.packed");
    workshop.with_store("index layers", |store| store.index_layers(&packed));
    workshop.observer.event(Event::Finished { stage: Stage::Packing });
    // What comes now needs memory of its own: connections, say.
    workshop.packer.pause();
    outcome?;
    Ok(layers.into_iter().flatten().collect())
}

/// Another process, or another machine, is making the layer.
struct BeingMade;

/// How often is looked whether another process is done with a layer.
const GLANCE: Duration = Duration::from_millis(10);
/// Bytes a second that another process on this machine is expected to pack at least, with the slowest codec and all cores
/// at other work.
const SLOWEST_HERE: u64 = 1 << 20;
/// So long another process is waited for at least.
const SHORTEST_WAIT_HERE: Duration = Duration::from_secs(30);

/// Bytes a second that whoever makes a layer elsewhere is expected to pack and to send at least.
const SLOWEST_PACKING: u64 = 20 << 20;
/// So long nothing need be heard of another machine before it is given up, even for a small layer.
const SHORTEST_WAIT: Duration = Duration::from_secs(5);
/// No layer is waited for any longer without news.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// So long layers of so many bytes are waited for rather than made here.
pub(super) fn patience_for(bytes: u64) -> Duration {
    SHORTEST_WAIT + Duration::from_secs(bytes / SLOWEST_PACKING)
}

/// Whether the layer is of an image's own files. They lie nowhere else: its bytes are always kept, and since they cost little
/// they are made here, whoever else has them.
pub(super) fn is_own(contents: &LayerContents<'_>) -> bool {
    matches!(contents, LayerContents::RootFs { .. })
}

/// A record of somebody else's, whose bytes are not here.
fn without_bytes(record: LayerRecord) -> LayerRecord {
    LayerRecord { has_blob: false, ..record }
}

impl Workshop<'_> {
    /// Does something with the store, if there is one. A store that fails costs time, never the image: that is said
    /// and the work goes on.
    pub(super) fn with_store<T>(
        &self,
        what: &str,
        work: impl FnOnce(&LayerStore) -> Result<T, StoreError>,
    ) -> Option<T> {
        match work(self.store_without_trouble()?) {
            Ok(done) => Some(done),
            Err(error) => {
                self.give_up_the_store(what, &in_one_line(&error), error.hint());
                None
            }
        }
    }

    /// The store, if there is one, and it has not failed.
    fn store_without_trouble(&self) -> Option<&LayerStore> {
        self.store.filter(|_| !self.trouble.store.load(Ordering::Relaxed))
    }

    /// Asks the store's memory for something, or has it remember something. One that fails costs the work of finding out
    /// again, and is asked no more in this run.
    pub(super) fn with_memory<T>(
        &self,
        consequence: &str,
        work: impl FnOnce(&LayerStore) -> Result<T, StoreError>,
    ) -> Option<T> {
        let store = self.store_without_trouble().filter(|_| !self.trouble.memory.load(Ordering::Relaxed))?;
        match work(store) {
            Ok(done) => Some(done),
            Err(error) => {
                self.trouble.memory.store(true, Ordering::Relaxed);
                self.observer.event(Event::Detail { message: format!("{error}: {consequence}") });
                None
            }
        }
    }

    fn give_up_the_store(&self, what: &str, why: &str, hint: Option<String>) {
        // A store that is no more waited for, for the user ends the run, has no trouble that anybody wants to read of.
        if self.trouble.store.swap(true, Ordering::Relaxed) || self.observer.cancelled() {
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

    /// Claims the work on a layer that another process is making, once that is over; its record may be there then. A
    /// process that was stopped, and has not ended, keeps its claim: after a while the layer is made without one.
    fn wait_for_another_process(
        &self,
        contents: &LayerContents<'_>,
        key: &LayerKey,
    ) -> Result<Option<Claim>, LayersError> {
        let patience = SHORTEST_WAIT_HERE + Duration::from_secs(contents.estimated_size() / SLOWEST_HERE);
        let mut waited = Duration::ZERO;
        loop {
            match self.try_claim(key) {
                Ok(claim) => return Ok(claim),
                Err(BeingMade) if waited >= patience => {
                    let waited = waited.as_secs();
                    let message =
                        format!("another process has been at a layer for {waited} s; it is made here as well");
                    self.observer.event(Event::Warning { message });
                    return Ok(None);
                }
                Err(BeingMade) => {}
            }
            Cancelled::check(self.observer).map_err(PackError::Write)?;
            thread::sleep(GLANCE);
            waited += GLANCE;
        }
    }

    /// What the shared caches know of layers that the store does not: recorded here too, though their bytes are not here
    /// yet. Layers of own files are made, and count as known where that gives what is known.
    pub(super) fn look_up_shared(&self, wanted: &[(LayerKey, &LayerContents<'_>)]) -> Vec<Option<Obtained>> {
        let nothing = || wanted.iter().map(|_| None).collect();
        let Some(shared) = self.shared.filter(|_| !wanted.is_empty()) else { return nothing() };
        let keys: Vec<LayerKey> = wanted.iter().map(|(key, _)| *key).collect();
        let found = shared.look_up(&keys).into_iter();
        let found: Vec<_> = found.map(|found| found.filter(|record| self.can_be(record)).map(without_bytes)).collect();
        let (mut obtained, mut to_record) = (Vec::new(), Vec::new());
        for (found, (key, contents)) in found.into_iter().zip(wanted) {
            obtained.push(match found {
                Some(told) if is_own(contents) => self.make_own(contents, *key, &told),
                Some(told) => {
                    to_record.push(told.clone());
                    Some(Obtained::reused(told))
                }
                None => None,
            });
        }
        self.record(&to_record);
        obtained
    }

    /// Makes a layer of own files of which others have `told`. Where it cannot be made, that is said when all are made that
    /// nobody knows.
    fn make_own(&self, contents: &LayerContents<'_>, key: LayerKey, told: &LayerRecord) -> Option<Obtained> {
        let made = self.pack(contents, key, None, None, None).ok()?;
        self.packer.pause();
        self.with_store("index layers", |store| store.index_layers(std::slice::from_ref(&made.record)));
        let reused = made.record.digest == told.digest;
        if let Some(shared) = self.shared.filter(|_| !reused) {
            shared.disbelieve(&key, &told.digest);
        }
        Some(Obtained { reused, ..made })
    }

    /// Whether somebody else's record is of a layer like those that are made here.
    pub(super) fn can_be(&self, record: &LayerRecord) -> bool {
        let as_packed = record.digest == record.diff_id.0 && record.size == record.tar_size;
        let compression = self.packer.compression();
        record.media_type == media_type(compression).as_str() && (compression != Compression::None || as_packed)
    }

    /// Whether the store's record counts by what is said of trust.
    pub(super) fn counts(&self, record: &LayerRecord) -> bool {
        self.shared.is_none_or(|shared| shared.counts(record))
    }

    pub(super) fn record(&self, records: &[LayerRecord]) {
        for record in records {
            self.with_store("record a layer", |store| store.record_layer(record));
        }
        self.with_store("index layers", |store| store.index_layers(records));
    }

    /// The layer that another machine is making, once it has; `None` where that takes longer than to make it here.
    fn wait_for_another_machine(&self, contents: &LayerContents<'_>, key: &LayerKey) -> Option<Obtained> {
        let shared = self.shared.filter(|shared| shared.is_written())?;
        if let Some(record) = self.read_record(contents, key) {
            return Some(Obtained::reused(record));
        }
        if is_own(contents) {
            return None;
        }
        let record = shared.wait_for(key, patience_for(contents.estimated_size()).min(LONGEST_WAIT));
        let record = record.filter(|record| self.can_be(record))?;
        if self.packer.is_far(contents) {
            let stamp = self.fetch_far(&record, contents)?;
            self.record(std::slice::from_ref(&record));
            return Some(Obtained { made: Some(stamp), ..Obtained::reused(record) });
        }
        let record = without_bytes(record);
        self.record(std::slice::from_ref(&record));
        Some(Obtained::reused(record))
    }

    /// The layer's record, if there is one by now that counts. Of a layer with something far in it, or of own files, one that
    /// has no bytes here may be another machine's, and nobody has looked into it.
    fn read_record(&self, contents: &LayerContents<'_>, key: &LayerKey) -> Option<LayerRecord> {
        let record = self.with_store("read a record", |store| store.read_record(key))??;
        let does = record.has_blob || !(is_own(contents) || self.packer.is_far(contents));
        (does && self.counts(&record)).then_some(record)
    }

    /// Runs `work`, which tells of layers that were made; they are given to the shared caches meanwhile, as far as that
    /// goes: what is left when the work is done is given at the end of the run.
    fn giving<T>(&self, work: impl FnOnce(&(dyn Fn(&LayerRecord) + Sync)) -> T) -> T {
        let (Some(shared), Some(store)) = (self.shared.filter(|shared| shared.is_written()), self.store) else {
            return work(&|_| {});
        };
        let (send, made) = channel::<LayerRecord>();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let is_over = &is_over;
            let giver = scope.spawn(move || {
                let give = |record: LayerRecord| {
                    // Without its bytes at hand it is given at the end.
                    if record.has_blob || record.digest == record.diff_id.0 {
                        let write = |out: &mut dyn Write| {
                            let blob = store.read_blob(&record.digest, record.size, None);
                            io::copy(&mut blob.map_err(io::Error::other)?, out).map(drop)
                        };
                        shared.give(&record, &BTreeMap::new(), &write);
                    }
                };
                // What has come in meanwhile is shown together.
                let is_wanted = |_: &LayerRecord| !is_over.load(Ordering::Relaxed);
                while let Some(record) = made.recv().ok().filter(is_wanted) {
                    give(record);
                    made.try_iter().take_while(is_wanted).for_each(give);
                    shared.publish();
                }
            });
            let send = Mutex::new(send);
            let give = |record: &LayerRecord| {
                let send = send.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever would receive it has had enough.
                let _ = send.send(record.clone());
            };
            let done = work(&give);
            is_over.store(true, Ordering::Relaxed);
            drop(send);
            // A layer that goes over a slow line does not hold up the image.
            if let Err(panic) = shared.wait_briefly(|| giver.join()) {
                std::panic::resume_unwind(panic);
            }
            done
        })
    }

    /// Packs one layer and records it, unless another process has done so by now.
    fn pack(
        &self,
        contents: &LayerContents<'_>,
        key: LayerKey,
        claim: Option<Claim>,
        place: Option<(&Spool, usize)>,
        lane: Option<&Lane>,
    ) -> Result<Obtained, LayersError> {
        if let Some(record) = self.read_record(contents, &key) {
            return Ok(Obtained::reused(record));
        }
        let Made { packed, blob: made, state } = self.pack_blob(contents, place, lane)?;
        let record = LayerRecord {
            key,
            digest: packed.digest,
            diff_id: packed.diff_id,
            size: packed.size,
            tar_size: packed.tar_size,
            media_type: media_type(self.packer.compression()).to_string(),
            has_blob: made.is_some(),
            is_hearsay: false,
            contents: contents
                .sizes()
                .map(|(path, size)| Content { name: path.base_name().to_owned(), size })
                .collect(),
        };
        self.with_store("record a layer", |store| store.record_layer(&record));
        if let Some(shared) = self.shared {
            shared.believe(&record);
        }
        drop(claim);
        Ok(Obtained { record, reused: false, made, state })
    }

    /// Packs one layer, and keeps its bytes where they cost more to make than to read. An uncompressed layer's whose store
    /// paths are all on this machine do not: they go to their place at the target, if that has one, or are made again
    /// when they are wanted. An image's own files lie nowhere else.
    fn pack_blob(
        &self,
        contents: &LayerContents<'_>,
        place: Option<(&Spool, usize)>,
        lane: Option<&Lane>,
    ) -> Result<Made, LayersError> {
        let to_nowhere = || -> Result<Made, LayersError> {
            let (packed, state) = self.packer.pack_in_state(contents, None, lane)?;
            Ok(Made { packed, blob: None, state })
        };
        if self.packer.compression() == Compression::None && !is_own(contents) && !self.packer.is_far(contents) {
            let Some((spool, at, mut out)) = place.and_then(|(spool, at)| Some((spool, at, spool.writer(at)?))) else {
                return to_nowhere();
            };
            let (packed, state) = self.packer.pack_in_state(contents, Some(&mut out), lane)?;
            spool.fill(at, packed.digest);
            return Ok(Made { packed, blob: None, state });
        }
        let Some(mut blob) = self.with_store("keep a layer", LayerStore::blob_writer) else {
            return to_nowhere();
        };
        match self.packer.pack_in_state(contents, Some(&mut blob), lane) {
            Ok((packed, _)) => {
                let blob = self.with_store("keep a layer", |_| blob.commit(&packed.digest));
                Ok(Made { packed, blob, state: None })
            }
            // The cache's disk is full, say: the image does not depend on it.
            Err(PackError::Write(error)) if !Cancelled::caused(&error) => {
                drop(blob);
                let hint = (error.kind() == io::ErrorKind::StorageFull)
                    .then(|| "make room: layerhold cache gc --max-size SIZE".to_owned());
                self.give_up_the_store("keep a layer", &error.to_string(), hint);
                to_nowhere()
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What packing a layer gave.
struct Made {
    packed: Packed,
    /// The blob that was kept.
    blob: Option<BlobStamp>,
    /// The state of the trees that it was made of.
    state: Option<TreeState>,
}
