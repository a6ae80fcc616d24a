//! The memory of files that were hashed, kept in the layer store's index.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::event::{Event, Observer};
use crate::nix::{FileMemo, FileStamp, RememberedFile};
use crate::store::{LayerStore, StoreError};

/// Reads the index once, at the first question, and writes it once, at the end: the index is never held meanwhile.
pub struct StoreMemo<'a> {
    store: &'a LayerStore,
    observer: &'a dyn Observer,
    known: OnceLock<HashMap<Vec<u8>, Vec<u8>>>,
    fresh: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl<'a> StoreMemo<'a> {
    /// A memory in this store.
    pub fn new(store: &'a LayerStore, observer: &'a dyn Observer) -> Self {
        Self { store, observer, known: OnceLock::new(), fresh: Mutex::default() }
    }

    /// Keeps what was learned.
    pub fn save(&self) -> Result<(), StoreError> {
        let fresh = std::mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner));
        self.store.remember(&fresh)
    }

    fn known(&self) -> &HashMap<Vec<u8>, Vec<u8>> {
        self.known.get_or_init(|| {
            self.store.recall().unwrap_or_else(|error| {
                let message = format!("{error}: files are hashed again");
                self.observer.event(Event::Detail { message });
                HashMap::new()
            })
        })
    }
}

impl FileMemo for StoreMemo<'_> {
    fn recall(&self, stamps: &[FileStamp]) -> Vec<Option<RememberedFile>> {
        let known = self.known();
        stamps
            .iter()
            .map(|stamp| known.get(stamp.to_bytes().as_slice()).and_then(|value| RememberedFile::from_bytes(value)))
            .collect()
    }

    fn record(&self, files: &[(FileStamp, RememberedFile)]) {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.extend(files.iter().map(|(stamp, file)| (stamp.to_bytes().to_vec(), file.to_bytes())));
    }
}
