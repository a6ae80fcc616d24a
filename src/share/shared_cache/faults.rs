//! What a run finds wrong with a cache: blobs that are lost or damaged, and entries of layers that come out otherwise here.
//! It goes on without, and gives the caches that it writes what is right.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::depot::DepotError;
use super::super::merging::{self, Replacement};
use super::super::sheet::{Contents, SheetName};
use super::{SharedCache, State};
use crate::blob::{Digest, DigestMismatch, LayerKey};
use crate::http::FetchError;
use crate::store::LayerRecord;

/// What is wrong with a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// It is gone.
    Lost,
    /// Something else lies under its digest.
    Wrong,
}

impl Damage {
    /// Whether a blob was not read because it is another one, rather than because somebody failed.
    pub(super) fn is_in(error: &io::Error) -> bool {
        let inner = error.get_ref();
        inner.is_some_and(|inner| {
            inner.is::<DigestMismatch>() || matches!(inner.downcast_ref(), Some(FetchError::TooLong { .. }))
        })
    }

    /// The same of one that is known to be another before any of it is read.
    pub(super) fn is_why(error: &DepotError) -> bool {
        matches!(error, DepotError::Objects { source: FetchError::TooLong { .. }, .. })
    }
}

impl SharedCache<'_> {
    /// The layer with this key comes out otherwise here: who says that it has this digest is not believed, in this run and
    /// in later ones.
    pub fn disbelieve(&self, key: &LayerKey, digest: &Digest) {
        let entry = BTreeSet::from([(*key, *digest)]);
        self.disbelieved().extend(&entry);
        self.memory.keep_belief(key, digest, false);
        self.shares.iter().for_each(|share| share.state().contents.leave_out(&entry));
    }

    /// Whether the record may be what a cache has said, rather than what this machine has made.
    pub fn may_have_said(&self, record: &LayerRecord) -> bool {
        record.is_hearsay || !self.trust.keys.is_empty()
    }

    /// The layer came out like that after all.
    pub fn believe(&self, record: &LayerRecord) {
        if self.disbelieved().remove(&(record.key, record.digest)) {
            self.memory.keep_belief(&record.key, &record.digest, true);
        }
    }

    pub(super) fn disbelieved(&self) -> MutexGuard<'_, BTreeSet<(LayerKey, Digest)>> {
        let disbelieved = self.disbelieved.get_or_init(|| Mutex::new(self.memory.disbelieved().into_iter().collect()));
        disbelieved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What takes the place of sheets that nobody writes to any more and that say what is not believed of layers of which
    /// something else is known; `None` where there are none.
    pub(super) fn outdone(&self, state: &State) -> Option<Replacement> {
        let disbelieved = self.disbelieved();
        let is_outdone = |(key, _): &&(LayerKey, Digest)| state.contents.find(key, &self.trust).is_some();
        let outdone: BTreeSet<_> = disbelieved.iter().filter(is_outdone).copied().collect();
        if outdone.is_empty() {
            return None;
        }
        let says_so = |name: &SheetName| {
            let sheet = &state.view[name];
            let mut entries = sheet.contents.entries();
            merging::is_over(sheet, self.now)
                && entries.any(|entry| outdone.contains(&(entry.key(), entry.layer.digest)))
        };
        let names: BTreeSet<SheetName> = merging::live(&state.view).into_iter().filter(says_so).collect();
        if names.is_empty() {
            return None;
        }
        let mut contents = Contents::default();
        names.iter().for_each(|name| contents.merge(state.view[name].contents.clone()));
        contents.leave_out(&outdone);
        let supersedes = merging::with_merged(names, &state.view, &state.listed);
        Some(Replacement::new(contents, supersedes, self.now))
    }
}
