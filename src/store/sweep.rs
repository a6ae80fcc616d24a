//! Carries a garbage collection out.

use std::collections::BTreeSet;
use std::path::Path;

use super::database::WorkError;
use super::files::IoContext;
use super::gc::{self, GcPlan, GcPolicy};
use super::index::{self, Index};
use super::inventory::{Drift, list, tree_bytes};
use super::{LayerStore, StoreError, memory, outputs};
use crate::blob::LayerKey;
use crate::crash;

impl LayerStore {
    /// What a garbage collection would do now.
    pub fn plan_gc(&self, policy: &GcPolicy) -> Result<GcPlan, StoreError> {
        let plan = |index: Option<&Index>| -> Result<_, WorkError> { Ok(gc::plan(&self.inventory(index)?.0, policy)) };
        match self.with_index(|index| plan(Some(index))) {
            // It can be looked at all the same.
            Err(error) if error.is_surroundings() => plan(None).map_err(WorkError::without_database),
            planned => planned,
        }
    }

    /// Collects garbage and says what was done: exactly what [`LayerStore::plan_gc`] would have said.
    ///
    /// The index is held from the first look to the last deletion: builds wait, and none can take up a layer that is
    /// going. **Deletion order:** an image's record goes before its layers' entries in the index, those before their
    /// records, those before their blobs; a kill in between leaves files that nothing refers to, and the next
    /// collection takes them.
    pub fn gc(&self, policy: &GcPolicy) -> Result<GcPlan, StoreError> {
        let held = self.hold()?;
        let (plan, index_stays) = match index::with(&self.root, &held, |index| self.collect(Some(index), policy)) {
            // A full disk has no room for sled's log.
            Err(error) if error.is_surroundings() => self.collect(None, policy).map_err(WorkError::without_database)?,
            collected => collected?,
        };
        if !index_stays {
            remove(&self.root.join(index::NAME))?;
        }
        Ok(plan)
    }

    /// Says what was done, and whether the index stays: one that does not know of it, or has outgrown what is left, is
    /// made anew at the next opening.
    fn collect(&self, index: Option<&Index>, policy: &GcPolicy) -> Result<(GcPlan, bool), WorkError> {
        let (inventory, drift) = self.inventory(index)?;
        let plan = gc::plan(&inventory, policy);
        crash::point("gc.planned");
        for image in &plan.images {
            remove(&image.path)?;
            crash::point("gc.image-gone");
        }
        let going: BTreeSet<_> = plan.layers.iter().map(|layer| layer.key).collect();
        let bytes = plan.bytes_after - (inventory.index - plan.index) - (inventory.memory - plan.memory);
        let index_is_right = index.is_some_and(|index| set_right(index, &going, &drift, bytes).is_ok());
        crash::point("gc.unindexed");
        for layer in &plan.layers {
            remove(&self.record(&layer.key))?;
            crash::point("gc.record-gone");
        }
        for layer in plan.layers.iter().filter(|layer| layer.blob_goes) {
            remove(&self.blob(&layer.digest))?;
            crash::point("gc.blob-gone");
        }
        for orphan in &plan.orphans {
            remove(&orphan.path)?;
            crash::point("gc.file-gone");
        }
        if plan.memory > 0 {
            self.forget()?;
        }
        let index_stays = index_is_right && plan.index == 0;
        Ok((plan, index_stays))
    }

    /// Bytes that the store takes on the disk, without looking at each layer and image.
    pub fn quick_size(&self) -> Result<u64, StoreError> {
        self.with_index(|index| Ok(index.bytes()? + self.database_bytes()?))
    }

    /// Throws everything away but the store itself, whatever is in use.
    pub fn clear(&self) -> Result<u64, StoreError> {
        let bytes = tree_bytes(&self.root)?;
        let _held = self.hold()?;
        crash::point("clear.begun");
        // Before the records, so that the index never knows of a layer that has none.
        remove(&self.root.join(index::NAME))?;
        self.forget()?;
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
