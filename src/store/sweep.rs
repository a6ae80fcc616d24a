//! Carries a garbage collection out.

use std::path::Path;

use super::files::IoContext;
use super::gc::{self, GcPlan, GcPolicy};
use super::inventory::{list, tree_bytes};
use super::{LayerStore, StoreError};
use crate::crash;

impl LayerStore {
    /// What a garbage collection would do now.
    pub fn plan_gc(&self, policy: &GcPolicy) -> Result<GcPlan, StoreError> {
        self.with_index(|index| Ok(gc::plan(&self.inventory(index)?, policy)))
    }

    /// Collects garbage and says what was done: exactly what [`LayerStore::plan_gc`] would have said.
    ///
    /// The index is held from the first look to the last deletion: builds wait, and none can take up a layer that is
    /// going. **Deletion order:** an image's record goes before its layers' entries in the index, those before their
    /// records, those before their blobs; a kill in between leaves files that nothing refers to, and the next
    /// collection takes them.
    pub fn gc(&self, policy: &GcPolicy) -> Result<GcPlan, StoreError> {
        let (plan, index_failed) = self.with_index(|index| {
            let plan = gc::plan(&self.inventory(index)?, policy);
            crash::point("gc.planned");
            for image in &plan.images {
                remove(&image.path)?;
                crash::point("gc.image-gone");
            }
            // A full disk has no room for sled's log either. The space comes from what follows, and the index, which
            // is then out of date, is made anew at the next opening.
            let keys: Vec<_> = plan.layers.iter().map(|layer| layer.key).collect();
            let index_failed = index.remove_layers(&keys).is_err();
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
            Ok((plan, index_failed))
        })?;
        if index_failed {
            self.forget_index()?;
        }
        Ok(plan)
    }

    /// Bytes that the store takes on the disk, without looking at each layer: cheap enough for every run.
    pub fn quick_size(&self) -> Result<u64, StoreError> {
        let layers = self.with_index(|index| Ok(index.layer_bytes()?))?;
        Ok(layers + tree_bytes(&self.root.join("images"))? + tree_bytes(&self.root.join("index"))?)
    }

    /// Throws everything away but the store itself, whatever is in use.
    pub fn clear(&self) -> Result<u64, StoreError> {
        let bytes = tree_bytes(&self.root)?;
        let _guard = super::index::lock(&self.root)?;
        crash::point("clear.begun");
        // Before the records, so that it never knows of a layer that has none.
        remove(&self.root.join("index"))?;
        for directory in ["images", "records", "blobs/sha256", "claims", "tmp"] {
            // What is in it and not itself: a store that lacks a directory is none.
            for path in list(&self.root.join(directory))? {
                remove(&path)?;
                crash::point("clear.entry-gone");
            }
        }
        Ok(bytes.saturating_sub(tree_bytes(&self.root)?))
    }

    /// Removes the index; the next opening makes it from the records.
    pub(super) fn forget_index(&self) -> Result<(), StoreError> {
        let _guard = super::index::lock(&self.root)?;
        remove(&self.root.join("index"))
    }
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
