//! Carries a garbage collection out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tempfile::TempDir;

use super::database::{Held, WorkError};
use super::files::IoContext;
use super::gc::{self, GcPlan, GcPolicy, Inventory};
use super::index::{self, Index};
use super::inventory::{Drift, list, tree_bytes};
use super::{LayerStore, StoreError, memory, outputs};
use crate::blob::LayerKey;
use crate::crash;

impl LayerStore {
    /// What a garbage collection would do now.
    pub fn plan_gc(&self, policy: &GcPolicy) -> Result<GcPlan, StoreError> {
        let held = match self.hold() {
            // It can be looked at all the same.
            Err(error) if error.is_surroundings() => {
                let (inventory, _) = self.inventory(None).map_err(WorkError::without_database)?;
                return Ok(gc::plan(&inventory, policy));
            }
            held => held?,
        };
        self.with_index_in_reach(&held, |index| Ok(gc::plan(&self.inventory_to_collect(index)?.0, policy)))
    }

    /// Collects garbage and says what was done: exactly what [`LayerStore::plan_gc`] would have said.
    ///
    /// The index's lock is held from the first look until nothing that goes can be found any more: builds wait, and none
    /// can take up a layer that is going. **Deletion order:** an image's record goes before its layers' entries in the
    /// index, those before their records, those before their blobs; a kill in between leaves files that nothing refers
    /// to, and the next collection takes them.
    pub fn gc(&self, policy: &GcPolicy) -> Result<GcPlan, StoreError> {
        let held = self.hold()?;
        let (plan, grave) = self.with_index_in_reach(&held, |index| self.begin_to_collect(index, policy))?;
        if plan.index.is_some() {
            grave.bury(&self.root.join(index::NAME))?;
        }
        crash::point("gc.unindexed");
        // In the order of the keys: neighbours lie in one directory.
        let keys: BTreeSet<_> = plan.layers.iter().map(|layer| layer.key).collect();
        for key in &keys {
            grave.bury(&self.record(key))?;
            crash::point("gc.record-gone");
        }
        for layer in plan.layers.iter().filter(|layer| layer.blob_goes) {
            grave.bury(&self.blob(&layer.digest))?;
            crash::point("gc.blob-gone");
        }
        for orphan in &plan.orphans {
            grave.bury(&orphan.path)?;
            crash::point("gc.file-gone");
        }
        if plan.memory > 0 {
            grave.bury(&self.root.join(memory::NAME))?;
            list(&self.root.join(outputs::NAME))?.iter().try_for_each(|output| grave.bury(output))?;
        }
        crash::point("gc.buried");
        drop(held);
        grave.empty()?;
        Ok(plan)
    }

    /// Does `work` with the index, or without one where it cannot be had: a full disk has no room for sled's log.
    fn with_index_in_reach<T>(
        &self,
        held: &Held,
        work: impl Fn(Option<&Index>) -> Result<T, WorkError>,
    ) -> Result<T, StoreError> {
        match index::with(&self.root, held, |index| work(Some(index))) {
            Err(error) if error.is_surroundings() => work(None).map_err(WorkError::without_database),
            done => done,
        }
    }

    /// What there is, and whether the index could learn what goes.
    fn inventory_to_collect(&self, index: Option<&Index>) -> Result<(Inventory, Drift), WorkError> {
        let (mut inventory, drift) = self.inventory(index)?;
        inventory.index_is_out_of_reach = index.is_none() || inventory.free < ROOM_FOR_THE_INDEX;
        Ok((inventory, drift))
    }

    /// Decides, removes the images' records, and makes the index say what the records will say afterwards, unless it
    /// goes.
    fn begin_to_collect(&self, index: Option<&Index>, policy: &GcPolicy) -> Result<(GcPlan, Grave), WorkError> {
        let (inventory, drift) = self.inventory_to_collect(index)?;
        let mut plan = gc::plan(&inventory, policy);
        crash::point("gc.planned");
        let grave = Grave::dig(&self.tmp());
        for image in &plan.images {
            grave.bury(&image.path)?;
            crash::point("gc.image-gone");
        }
        if let (Some(index), None) = (index, plan.index) {
            let going: BTreeSet<_> = plan.layers.iter().map(|layer| layer.key).collect();
            let bytes = plan.bytes_after - inventory.index - (inventory.memory - plan.memory);
            if set_right(index, &going, &drift, bytes).is_err() {
                plan.take_index(inventory.index);
            }
        }
        Ok((plan, grave))
    }

    /// Throws everything away but the store itself, whatever is in use.
    pub fn clear(&self) -> Result<u64, StoreError> {
        let bytes = tree_bytes(&self.root)?;
        let _held = self.hold()?;
        crash::point("clear.begun");
        // Before the records, so that the index never knows of a layer that has none.
        remove(&self.root.join(index::NAME))?;
        self.forget()?;
        remove(&self.fetched())?;
        for directory in ["images", "records", "blobs/sha256", "claims", "tmp"] {
            // What is in it and not itself: a store that lacks a directory is none.
            for path in list(&self.root.join(directory))? {
                remove(&path)?;
                crash::point("clear.entry-gone");
            }
        }
        Ok(bytes.saturating_sub(tree_bytes(&self.root)?))
    }

    /// Forgets what can be learned again of files that were read or written.
    fn forget(&self) -> Result<(), StoreError> {
        remove(&self.root.join(memory::NAME))?;
        list(&self.root.join(outputs::NAME))?.iter().try_for_each(|output| remove(output))
    }

    /// Removes the index; the next opening makes it from the records.
    pub(super) fn forget_index(&self) -> Result<(), StoreError> {
        let _held = self.hold()?;
        remove(&self.root.join(index::NAME))
    }
}

/// The fewest bytes that must be free for the index to be written to: some segments of sled's log, of 512 KiB each.
const ROOM_FOR_THE_INDEX: u64 = 4 << 20;

/// Where files go that cannot be found any more, until they are removed without keeping anybody waiting: a rename takes
/// the same time on every file system, a removal may wait for the disk. What a kill leaves in it lies in `tmp/`, where
/// the next collection takes it.
struct Grave {
    /// None where the disk has no room for a directory.
    directory: Option<PathBuf>,
}

impl Grave {
    fn dig(tmp: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("collected-").tempdir_in(tmp);
        Self { directory: directory.ok().map(TempDir::keep) }
    }

    fn bury(&self, path: &Path) -> Result<(), StoreError> {
        let moved = match (&self.directory, path.file_name()) {
            (Some(directory), Some(name)) => std::fs::rename(path, directory.join(name)).is_ok(),
            _ => false,
        };
        if moved { Ok(()) } else { remove(path) }
    }

    fn empty(self) -> Result<(), StoreError> {
        let Some(directory) = self.directory else { return Ok(()) };
        let files = match list(&directory) {
            // Another collection has taken it for left over, and removes it.
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            files => files?,
        };
        // At once, for each may wait for the disk.
        files.par_iter().try_for_each(|path| remove(path))?;
        remove(&directory)
    }
}

/// Makes the index say what the records will say after the collection.
fn set_right(index: &Index, going: &BTreeSet<LayerKey>, drift: &Drift, bytes: u64) -> sled::Result<()> {
    index.insert_layers(drift.unindexed.iter().filter(|record| !going.contains(&record.key)))?;
    // In the order of the keys: sled keeps neighbours together.
    index.remove_layers(going.iter().chain(&drift.unrecorded))?;
    index.set_bytes(bytes)
}

/// Removes a file or a directory with all that is in it; one that is gone already is no error.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let is_dir = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let outcome = if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove", path),
        _ => Ok(()),
    }
}
