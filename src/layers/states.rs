//! In what states trees were when layers were made of them: as long as a tree is in that state, its layer need not be hashed
//! again. The layer store remembers them from run to run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Workshop;
use crate::blob::Digest;
use crate::event::Event;
use crate::nix::TreeState;
use crate::store::{LayerRecord, Shelf};

/// The states of the trees of a list of layers.
pub(super) struct States(Mutex<Vec<Option<Known>>>);

#[derive(Clone, Copy)]
struct Known {
    state: TreeState,
    /// Whether the layer was hashed in this run, and its state is not remembered yet.
    is_new: bool,
}

impl States {
    /// Of layers that were made in this run, or `None`.
    pub(super) fn of_made(states: impl Iterator<Item = Option<TreeState>>) -> Self {
        Self(Mutex::new(states.map(|state| Some(Known { state: state?, is_new: true })).collect()))
    }

    /// The state in which the layer's trees were when their bytes were found to be right.
    pub(super) fn of(&self, at: usize) -> Option<TreeState> {
        self.known()[at].map(|known| known.state)
    }

    /// The layer's bytes were found to be right, and its trees in this state.
    pub(super) fn learn(&self, at: usize, state: Option<TreeState>) {
        if let Some(state) = state {
            self.known()[at] = Some(Known { state, is_new: true });
        }
    }

    /// So it was in an earlier run.
    pub(super) fn recall(&self, at: usize, state: TreeState) {
        self.known()[at] = Some(Known { state, is_new: false });
    }

    /// What is to be remembered, under which key, and was not yet.
    pub(super) fn take_new(&self, records: &[LayerRecord]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut known = self.known();
        let of_layers = known.iter_mut().zip(records);
        let new = of_layers.filter_map(|(known, record)| {
            let known = known.as_mut().filter(|known| known.is_new)?;
            known.is_new = false;
            Some((record.key.as_bytes().to_vec(), value_of(known.state, record)))
        });
        new.collect()
    }

    fn known(&self) -> MutexGuard<'_, Vec<Option<Known>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Workshop<'_> {
    /// What is remembered of these layers, by their digests. Where the memory fails, nothing is: layers are hashed.
    pub(super) fn recall_states(&self, records: &[&LayerRecord]) -> Vec<(Digest, TreeState)> {
        let Some(store) = self.store_without_trouble().filter(|_| !records.is_empty()) else { return Vec::new() };
        let keys: Vec<Vec<u8>> = records.iter().map(|record| record.key.as_bytes().to_vec()).collect();
        let found = store.recall_these(Shelf::States, &keys).unwrap_or_else(|error| {
            let message = format!("{error}: layers are hashed as if nobody had done so before");
            self.observer.event(Event::Detail { message });
            Default::default()
        });
        let state =
            |(record, key): (&&LayerRecord, &Vec<u8>)| Some((record.digest, state_of(found.get(key)?, record)?));
        records.iter().zip(&keys).filter_map(state).collect()
    }

    /// Remembers states for later runs, as far as the memory can.
    pub(super) fn remember_states(&self, entries: &[(Vec<u8>, Vec<u8>)]) {
        let Some(store) = self.store_without_trouble().filter(|_| !entries.is_empty()) else { return };
        if let Err(error) = store.remember(Shelf::States, entries) {
            let message = format!("{error}: the next run hashes layers again");
            self.observer.event(Event::Detail { message });
        }
    }
}

/// Changes with what a state is made of, or what a layer with the same key.
const VERSION: u8 = 1;

/// A state says what the bytes are together with their digest: of another digest it says nothing.
fn value_of(state: TreeState, record: &LayerRecord) -> Vec<u8> {
    [&[VERSION], &record.digest.as_bytes()[..], &state.to_bytes()].concat()
}

/// Reads what [`value_of`] made of this record.
fn state_of(value: &[u8], record: &LayerRecord) -> Option<TreeState> {
    let (digest, state) = value.strip_prefix(&[VERSION])?.split_at_checked(32)?;
    (digest == record.digest.as_bytes()).then_some(TreeState::from_bytes(state.try_into().ok()?))
}
