//! The memory of files that were hashed, kept in the layer store.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::event::{Event, Observer};
use crate::nix::{FileMemo, FileStamp, RememberedFile};
use crate::store::LayerStore;

/// Reads it once, at the first question, and writes it once, at the end: the database is never held meanwhile.
/// Without a layer store, or with one that fails, nothing is remembered and files are hashed again.
pub struct Memo<'a> {
    store: Option<&'a LayerStore>,
    observer: &'a dyn Observer,
    known: OnceLock<HashMap<Vec<u8>, Vec<u8>>>,
    fresh: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl<'a> Memo<'a> {
    /// A memory in this store.
    pub fn new(store: Option<&'a LayerStore>, observer: &'a dyn Observer) -> Self {
        Self { store, observer, known: OnceLock::new(), fresh: Mutex::default() }
    }

    /// Keeps what was learned.
    pub fn save(&self) {
        let fresh = std::mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner));
        let saved = self.store.map(|store| store.remember(&fresh));
        if let Some(Err(error)) = saved {
            self.observer.event(Event::Detail { message: format!("{error}: the next run hashes these files again") });
        }
    }

    fn known(&self) -> &HashMap<Vec<u8>, Vec<u8>> {
        self.known.get_or_init(|| match self.store.map(LayerStore::recall) {
            Some(Ok(known)) => known,
            Some(Err(error)) => {
                self.observer.event(Event::Detail { message: format!("{error}: files are hashed again") });
                HashMap::new()
            }
            None => HashMap::new(),
        })
    }
}

impl FileMemo for Memo<'_> {
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
