//! What was learned at some cost, kept in the layer store: hashes of files, what was answered by
//! binary caches, Flox's catalog and shared caches.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::blob::{Digest, LayerKey};
use crate::catalog::CatalogMemory;
use crate::event::{Event, Observer, in_one_line};
use crate::nix::{FileMemo, FileStamp, RememberedFile};
use crate::share::ShareMemory;
use crate::store::{LayerStore, Shelf, StoreError};
use crate::substitute::CacheMemory;

/// What is kept under an entry of a shared cache that is not believed; nothing under one that is again.
const DISBELIEVED: &[u8] = b"no";

/// What is kept under keys.
type Entries = HashMap<Vec<u8>, Vec<u8>>;

/// Reads at the first question, and writes once, at the end: the database is never held meanwhile. Without a layer store,
/// or with one that fails, nothing is remembered and everything is learned again.
pub struct Memo<'a> {
    store: Option<&'a LayerStore>,
    observer: &'a dyn Observer,
    files: OnceLock<Entries>,
    fresh: Mutex<Fresh>,
}

/// What was learned in this run.
#[derive(Default)]
struct Fresh {
    files: Vec<(Vec<u8>, Vec<u8>)>,
    answers: Vec<(Vec<u8>, Vec<u8>)>,
    skeletons: Vec<(Vec<u8>, Vec<u8>)>,
    catalog: Vec<(Vec<u8>, Vec<u8>)>,
    sheets: Vec<(Vec<u8>, Vec<u8>)>,
    disbelieved: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Memo<'a> {
    /// A memory in this store.
    pub fn new(store: Option<&'a LayerStore>, observer: &'a dyn Observer) -> Self {
        Self { store, observer, files: OnceLock::new(), fresh: Mutex::default() }
    }

    /// Keeps what was learned since the last time.
    pub fn save(&self) {
        let Some(store) = self.store else { return };
        let Fresh { files, answers, skeletons, catalog, sheets, disbelieved } = std::mem::take(&mut *self.fresh());
        let saved = store
            .remember(Shelf::Files, &files)
            .and_then(|()| store.remember(Shelf::Answers, &answers))
            .and_then(|()| store.remember(Shelf::Skeletons, &skeletons))
            .and_then(|()| store.remember(Shelf::Catalog, &catalog))
            .and_then(|()| store.remember(Shelf::Sheets, &sheets))
            .and_then(|()| store.remember(Shelf::Disbelieved, &disbelieved));
        if let Err(error) = saved {
            let message = format!("{}: the next run hashes files and asks binary caches again", in_one_line(&error));
            self.observer.event(Event::Detail { message });
        }
    }

    fn fresh(&self) -> MutexGuard<'_, Fresh> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recall(&self, recall: impl FnOnce(&LayerStore) -> Result<Entries, StoreError>) -> Entries {
        match self.store.map(recall) {
            Some(Ok(known)) => known,
            Some(Err(error)) => {
                let message = format!("{}: going on as if nothing were remembered", in_one_line(&error));
                self.observer.event(Event::Detail { message });
                Entries::new()
            }
            None => Entries::new(),
        }
    }
}

impl FileMemo for Memo<'_> {
    fn recall(&self, stamps: &[FileStamp]) -> Vec<Option<RememberedFile>> {
        let known = self.files.get_or_init(|| self.recall(|store| store.recall(Shelf::Files)));
        stamps
            .iter()
            .map(|stamp| known.get(stamp.to_bytes().as_slice()).and_then(|value| RememberedFile::from_bytes(value)))
            .collect()
    }

    fn record(&self, files: &[(FileStamp, RememberedFile)]) {
        let files = files.iter().map(|(stamp, file)| (stamp.to_bytes().to_vec(), file.to_bytes()));
        self.fresh().files.extend(files);
    }
}

impl CacheMemory for Memo<'_> {
    fn answers(&self) -> Entries {
        self.recall(|store| store.recall(Shelf::Answers))
    }

    fn keep_answer(&self, key: Vec<u8>, answer: Vec<u8>) {
        self.fresh().answers.push((key, answer));
    }

    fn skeletons(&self, nars: &[[u8; 32]]) -> HashMap<[u8; 32], Vec<u8>> {
        let keys: Vec<Vec<u8>> = nars.iter().map(|nar| nar.to_vec()).collect();
        let found = self.recall(|store| store.recall_these(Shelf::Skeletons, &keys));
        found.into_iter().filter_map(|(key, value)| Some((key.try_into().ok()?, value))).collect()
    }

    fn keep_skeleton(&self, nar: [u8; 32], skeleton: Vec<u8>) {
        self.fresh().skeletons.push((nar.to_vec(), skeleton));
    }
}

impl CatalogMemory for Memo<'_> {
    fn answer_to(&self, question: &Digest) -> Option<Vec<u8>> {
        let key = question.hex().into_bytes();
        self.recall(|store| store.recall_these(Shelf::Catalog, std::slice::from_ref(&key))).remove(&key)
    }

    fn keep_answer_to(&self, question: &Digest, answer: Vec<u8>) {
        self.fresh().catalog.push((question.hex().into_bytes(), answer));
    }
}

impl ShareMemory for Memo<'_> {
    fn sheets(&self, keys: &[String]) -> HashMap<String, Vec<u8>> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| key.clone().into_bytes()).collect();
        let found = self.recall(|store| store.recall_these(Shelf::Sheets, &keys));
        found.into_iter().filter_map(|(key, value)| Some((String::from_utf8(key).ok()?, value))).collect()
    }

    fn keep_sheets(&self, sheets: Vec<(String, Vec<u8>)>) {
        self.fresh().sheets.extend(sheets.into_iter().map(|(key, value)| (key.into_bytes(), value)));
    }

    fn disbelieved(&self) -> Vec<(LayerKey, Digest)> {
        let known = self.recall(|store| store.recall(Shelf::Disbelieved));
        let entry = |(entry, value): (Vec<u8>, Vec<u8>)| {
            let (key, digest) = std::str::from_utf8(&entry).ok()?.split_once(' ').filter(|_| value == DISBELIEVED)?;
            Some((LayerKey::from_hex(key)?, digest.parse().ok()?))
        };
        known.into_iter().filter_map(entry).collect()
    }

    fn keep_belief(&self, key: &LayerKey, digest: &Digest, is_believed: bool) {
        let value = if is_believed { Vec::new() } else { DISBELIEVED.to_vec() };
        self.fresh().disbelieved.push((format!("{} {digest}", key.hex()).into_bytes(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl Observer for Heard {
        fn event(&self, event: Event) {
            if let Event::Detail { message } = event {
                self.0.lock().unwrap().push(message);
            }
        }
    }

    #[test]
    fn a_store_that_fails_is_said_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let (store, heard) = (LayerStore::open(directory.path()).unwrap(), Heard::default());
        std::fs::remove_dir_all(directory.path()).unwrap();
        let memo = Memo::new(Some(&store), &heard);
        assert!(memo.answers().is_empty());
        memo.keep_answer(b"question".to_vec(), b"answer".to_vec());
        memo.save();
        let heard = heard.0.into_inner().unwrap();
        let why = std::io::Error::from_raw_os_error(2).to_string();
        assert_eq!(heard.len(), 2);
        for (message, end) in heard.iter().zip(["going on as if nothing were remembered", "asks binary caches again"]) {
            assert!(message.contains(&format!("': {why}: ")) && message.ends_with(end), "{message}");
        }
    }
}
