//! Which images and layers go: a plan, made without touching anything.
//!
//! `--dry-run` prints the plan and a real run carries it out: there is one way to decide.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::record::ImageRecord;
use crate::blob::{Digest, LayerKey};

/// What may stay and what must go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcPolicy {
    /// The most bytes that the store may take on the disk. Beats every rule that keeps, except pins, layers that a
    /// running build uses, and the image that was just made.
    pub max_size: Option<u64>,
    /// The fewest bytes that shall be free on the store's file system.
    pub min_free: Option<u64>,
    /// Images that were not made for this many seconds go.
    pub older_than: Option<u64>,
    /// The images of each name that were made last stay, this many of them.
    pub keep_last: usize,
    /// Images with these names (`NAME` or `NAME:TAG`) stay.
    pub keep: Vec<String>,
    /// The image that was just made, which stays in any case.
    pub just_made: Option<Digest>,
    /// Now, in seconds after the epoch.
    pub now: u64,
}

/// What a store holds, as far as garbage collection is concerned.
#[derive(Clone, Debug, Default)]
pub(super) struct Inventory {
    pub(super) layers: BTreeMap<LayerKey, StoredLayer>,
    pub(super) images: Vec<StoredImage>,
    pub(super) leased: BTreeSet<LayerKey>,
    pub(super) orphans: Vec<Orphan>,
    /// Bytes of the index.
    pub(super) index: u64,
    /// Whether the index cannot be used now, so that it would not learn what goes.
    pub(super) index_is_out_of_reach: bool,
    /// Bytes of what was learned at some cost, and of what is known of files that were written.
    pub(super) memory: u64,
    /// Bytes free on the file system.
    pub(super) free: u64,
}

/// A layer on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredLayer {
    pub(super) digest: Digest,
    /// Bytes of its record.
    pub(super) record_bytes: u64,
    /// Bytes of its blob, which other layers with the same contents share; 0 where it is not kept.
    pub(super) blob_bytes: u64,
    /// What it holds.
    pub(super) contents: Vec<String>,
}

/// An image on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredImage {
    pub(super) record: ImageRecord,
    pub(super) path: PathBuf,
    /// Bytes of its record.
    pub(super) bytes: u64,
    pub(super) pinned: bool,
}

/// A file that nothing refers to: left by a process that was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The file or directory.
    pub path: PathBuf,
    /// Its bytes on the disk.
    pub bytes: u64,
}

/// Why an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was not made for longer than the policy allows.
    Old,
    /// The store would take more than the policy allows.
    Size,
    /// The file system would have less free than the policy wants.
    Free,
}

/// Why the index goes. It is made anew from the records when it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexReason {
    /// It cannot be used now, or not be written to: the disk is full, say. It would not learn what goes.
    OutOfReach,
    /// More layers go than stay: to strike them out one by one takes longer than to make it anew.
    Emptied,
    /// It takes much more than a new one would.
    Outgrown,
}

/// The index, where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoomedIndex {
    /// Why it goes.
    pub reason: IndexReason,
    /// Its bytes.
    pub bytes: u64,
}

/// An image that goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoomedImage {
    /// Its record.
    pub image: ImageRecord,
    /// Why it goes.
    pub reason: Reason,
    /// Bytes that its record takes.
    pub bytes: u64,
    pub(super) path: PathBuf,
}

/// A layer that goes: no image that stays has it, and nobody is using it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoomedLayer {
    /// Its key.
    pub key: LayerKey,
    /// Its digest.
    pub digest: Digest,
    /// Bytes that its going frees: its record's, and its blob's with the last layer that has it.
    pub bytes: u64,
    /// What it holds.
    pub contents: Vec<String>,
    pub(super) blob_goes: bool,
}

/// What a garbage collection will do, or has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcPlan {
    /// Images, least recently made first.
    pub images: Vec<DoomedImage>,
    /// Layers, by digest.
    pub layers: Vec<DoomedLayer>,
    /// Left-overs of killed processes.
    pub orphans: Vec<Orphan>,
    /// The index, where it goes.
    pub index: Option<DoomedIndex>,
    /// Bytes of what was learned at some cost and of what is known of files that were written, where that goes; 0 where it
    /// stays.
    pub memory: u64,
    /// Bytes that the store takes before.
    pub bytes_before: u64,
    /// Bytes that it takes after.
    pub bytes_after: u64,
    /// Bytes by which the store stays above the cap, because what is left is pinned, in use or was just made.
    pub over: u64,
}

impl GcPlan {
    /// Bytes that go.
    pub fn freed(&self) -> u64 {
        self.bytes_before - self.bytes_after
    }

    /// The index, of so many bytes, goes after all.
    pub(super) fn take_index(&mut self, bytes: u64) {
        self.index = Some(DoomedIndex { reason: IndexReason::OutOfReach, bytes });
        self.bytes_after -= bytes;
        self.over = self.over.saturating_sub(bytes);
    }
}

/// Whether `pattern` (`NAME` or `NAME:TAG`) means this image.
pub(super) fn means(pattern: &str, image: &ImageRecord) -> bool {
    match pattern.rsplit_once(':') {
        Some((name, tag)) => image.name == name && image.tag == tag,
        None => image.name == pattern,
    }
}

/// Decides what goes. Pure: the same inventory and policy give the same plan.
pub(super) fn plan(inventory: &Inventory, policy: &GcPolicy) -> GcPlan {
    let mut state = State::new(inventory);
    let bytes_before = state.bytes;

    // What nothing holds goes in any case.
    let orphans = inventory.orphans.clone();
    state.bytes -= orphans.iter().map(|orphan| orphan.bytes).sum::<u64>();
    let unused: Vec<_> = inventory.layers.keys().filter(|key| !state.holders.contains_key(key)).copied().collect();
    for key in unused {
        state.drop_layer(key);
    }

    let mut index = state.index_that_goes();

    let mut by_use: Vec<_> = (0..inventory.images.len()).collect();
    by_use.sort_by_key(|&n| (inventory.images[n].record.used_at, &inventory.images[n].path));
    let spared = spared_by_rules(inventory, policy, &by_use);
    let untouchable = |n: usize| {
        let image = &inventory.images[n];
        image.pinned || policy.just_made == Some(image.record.image_id)
    };

    let mut doomed = Vec::new();
    if let Some(age) = policy.older_than {
        for &n in by_use.iter().filter(|&&n| !spared.contains(&n) && !untouchable(n)) {
            if inventory.images[n].record.used_at.saturating_add(age) < policy.now {
                state.drop_image(n);
                doomed.push((n, Reason::Old));
            }
        }
    }

    // The cap is a ceiling: rules that keep only say who goes last.
    let cap_of_free = policy.min_free.map(|wanted| {
        let missing = wanted.saturating_sub(inventory.free);
        if missing == 0 { u64::MAX } else { bytes_before.saturating_sub(missing) }
    });
    let (soft, hard): (Vec<_>, Vec<_>) = by_use.iter().copied().partition(|n| !spared.contains(n));
    for (cap, reason) in [(policy.max_size, Reason::Size), (cap_of_free, Reason::Free)] {
        let Some(cap) = cap else { continue };
        for &n in soft.iter().chain(&hard) {
            if state.bytes <= cap {
                break;
            }
            if !untouchable(n) && !state.gone.contains(&n) {
                state.drop_image(n);
                doomed.push((n, reason));
            }
        }
    }

    let cap = policy.max_size.unwrap_or(u64::MAX).min(cap_of_free.unwrap_or(u64::MAX));
    index = index.or_else(|| state.index_that_goes());
    // Small and dear to learn again, so it goes last.
    let memory = if state.bytes > cap { inventory.memory } else { 0 };
    let bytes_after = state.bytes - memory;
    let images = doomed
        .into_iter()
        .map(|(n, reason)| {
            let image = &inventory.images[n];
            DoomedImage { image: image.record.clone(), reason, bytes: image.bytes, path: image.path.clone() }
        })
        .collect();
    let mut layers = state.doomed_layers;
    layers.sort_by_key(|layer| (layer.digest, layer.key));
    GcPlan { images, layers, orphans, index, memory, bytes_before, bytes_after, over: bytes_after.saturating_sub(cap) }
}

/// Images that the keep rules speak for.
fn spared_by_rules(inventory: &Inventory, policy: &GcPolicy, by_use: &[usize]) -> BTreeSet<usize> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut spared = BTreeSet::new();
    for &n in by_use.iter().rev() {
        let image = &inventory.images[n].record;
        let of_this_name = seen.entry(&image.name).or_default();
        *of_this_name += 1;
        if *of_this_name <= policy.keep_last || policy.keep.iter().any(|pattern| means(pattern, image)) {
            spared.insert(n);
        }
    }
    spared
}

/// More bytes than a new index of no layers takes.
const NEW_INDEX: u64 = 1 << 20;
/// More times its records' bytes than a new index takes.
const INDEX_FACTOR: u64 = 8;

/// What is left while images are struck off.
struct State<'a> {
    inventory: &'a Inventory,
    /// Who needs each layer: the images that have it, and one more where somebody is using it.
    holders: BTreeMap<LayerKey, usize>,
    /// How many layers have each blob: layers made from different things can have the same bytes.
    blob_holders: BTreeMap<Digest, usize>,
    gone: BTreeSet<usize>,
    doomed_layers: Vec<DoomedLayer>,
    /// Bytes of the records of layers that are left.
    record_bytes: u64,
    /// Bytes of the index, as long as it stays.
    index: u64,
    bytes: u64,
}

impl<'a> State<'a> {
    fn new(inventory: &'a Inventory) -> Self {
        let mut holders = BTreeMap::new();
        let in_images = inventory.images.iter().flat_map(|image| {
            // An image may have a layer twice and still holds it once.
            image.record.layers.iter().collect::<BTreeSet<_>>()
        });
        for key in in_images.chain(&inventory.leased) {
            *holders.entry(*key).or_default() += 1;
        }
        let mut blob_holders: BTreeMap<Digest, usize> = BTreeMap::new();
        let mut bytes = inventory.index + inventory.memory;
        let mut record_bytes = 0;
        for layer in inventory.layers.values() {
            bytes += layer.record_bytes;
            record_bytes += layer.record_bytes;
            if layer.blob_bytes > 0 {
                let holders = blob_holders.entry(layer.digest).or_default();
                if *holders == 0 {
                    bytes += layer.blob_bytes;
                }
                *holders += 1;
            }
        }
        bytes += inventory.images.iter().map(|image| image.bytes).sum::<u64>();
        bytes += inventory.orphans.iter().map(|orphan| orphan.bytes).sum::<u64>();
        Self {
            inventory,
            holders,
            blob_holders,
            gone: BTreeSet::new(),
            doomed_layers: Vec::new(),
            record_bytes,
            index: inventory.index,
            bytes,
        }
    }

    /// The index, if it goes with what is doomed so far. sled's files never shrink, hence one much larger than a new
    /// one would be goes as well.
    fn index_that_goes(&mut self) -> Option<DoomedIndex> {
        let going = self.doomed_layers.len();
        let reason = if self.inventory.index_is_out_of_reach {
            IndexReason::OutOfReach
        } else if going > self.inventory.layers.len() - going {
            IndexReason::Emptied
        } else if self.index > NEW_INDEX + INDEX_FACTOR * self.record_bytes {
            IndexReason::Outgrown
        } else {
            return None;
        };
        self.bytes -= self.index;
        let bytes = std::mem::take(&mut self.index);
        (bytes > 0).then_some(DoomedIndex { reason, bytes })
    }

    fn drop_image(&mut self, n: usize) {
        self.gone.insert(n);
        let image = &self.inventory.images[n];
        self.bytes -= image.bytes;
        for key in image.record.layers.iter().collect::<BTreeSet<_>>() {
            let Some(holders) = self.holders.get_mut(key) else { continue };
            *holders -= 1;
            if *holders == 0 {
                self.drop_layer(*key);
            }
        }
    }

    fn drop_layer(&mut self, key: LayerKey) {
        // An image may name a layer that is not here any more: it was damaged and thrown away, say.
        let Some(layer) = self.inventory.layers.get(&key) else { return };
        let mut bytes = layer.record_bytes;
        let mut blob_goes = false;
        if let Some(holders) = self.blob_holders.get_mut(&layer.digest)
            && layer.blob_bytes > 0
        {
            *holders -= 1;
            blob_goes = *holders == 0;
        }
        if blob_goes {
            bytes += layer.blob_bytes;
        }
        self.bytes -= bytes;
        self.record_bytes -= layer.record_bytes;
        let (digest, contents) = (layer.digest, layer.contents.clone());
        self.doomed_layers.push(DoomedLayer { key, digest, bytes, contents, blob_goes });
    }
}

#[cfg(test)]
mod tests;
