//! In what states trees were when layers were made of them: as long as a tree is in that state, its layer need not be
//! hashed again. The layer store remembers them from run to run.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Workshop;
use crate::blob::Digest;
use crate::nix::TreeState;
use crate::store::{LayerRecord, Shelf};

/// The states of the trees of a list of layers.
pub(super) struct States(Mutex<Vec<Option<Known>>>);

#[derive(Clone, Copy)]
struct Known {
    state: TreeState,
    /// Whether the layer was hashed in this run, and its state is not remembered yet.
    is_new: bool,
    /// Whether the trees were found to be in that state a moment ago, for bytes that are wanted now.
    is_confirmed: bool,
}

impl Known {
    fn new(state: TreeState, is_new: bool) -> Self {
        Self { state, is_new, is_confirmed: false }
    }
}

impl States {
    /// The states in which the trees were of layers that were made in this run; `None` of those that were not.
    pub(super) fn of_made(states: impl Iterator<Item = Option<TreeState>>) -> Self {
        Self(Mutex::new(states.map(|state| Some(Known::new(state?, true))).collect()))
    }

    /// Whether it is known in what state the layer's trees were when their bytes were found to be right.
    pub(super) fn has(&self, at: usize) -> bool {
        self.known()[at].is_some()
    }

    /// Whether the layer's trees are in that state; `look` finds out in what state they are. Where they are in another
    /// one, it is forgotten. Those that were hashed in this run are not looked at, for that would be felt in a cold run.
    /// Holds for those who ask next.
    pub(super) fn confirm(&self, at: usize, look: impl FnOnce() -> Option<TreeState>) -> bool {
        let Some(before) = self.known()[at] else { return false };
        let is_confirmed = before.is_new || look() == Some(before.state);
        self.known()[at] = is_confirmed.then_some(Known { is_confirmed, ..before });
        is_confirmed
    }

    /// The state of the layer's trees, if it is that one: confirmed before, or now.
    pub(super) fn current(&self, at: usize, look: impl FnOnce() -> Option<TreeState>) -> Option<TreeState> {
        let is_confirmed = self.known()[at].is_some_and(|known| known.is_confirmed);
        if !is_confirmed && !self.confirm(at, look) {
            return None;
        }
        let mut known = self.known();
        let known = known[at].as_mut()?;
        known.is_confirmed = false;
        Some(known.state)
    }

    /// The layer's bytes were found to be right, and its trees in this state.
    pub(super) fn learn(&self, at: usize, state: Option<TreeState>) {
        self.known()[at] = state.map(|state| Known::new(state, true));
    }

    /// So it was in an earlier run.
    pub(super) fn recall(&self, at: usize, state: TreeState) {
        self.known()[at] = Some(Known::new(state, false));
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
    /// What is remembered of these layers, by their digests.
    pub(super) fn recall_states(&self, records: &[&LayerRecord]) -> Vec<(Digest, TreeState)> {
        if records.is_empty() {
            return Vec::new();
        }
        let keys: Vec<Vec<u8>> = records.iter().map(|record| record.key.as_bytes().to_vec()).collect();
        let found = self
            .with_memory("layers are hashed again", |store| store.recall_these(Shelf::States, &keys))
            .unwrap_or_default();
        let state =
            |(record, key): (&&LayerRecord, &Vec<u8>)| Some((record.digest, state_of(found.get(key)?, record)?));
        records.iter().zip(&keys).filter_map(state).collect()
    }

    /// Remembers states for later runs.
    pub(super) fn remember_states(&self, entries: &[(Vec<u8>, Vec<u8>)]) {
        // Who wants the run to end does not wait for another process that has the memory.
        if !entries.is_empty() && !self.observer.cancelled() {
            self.with_memory("the next run hashes layers again", |store| store.remember(Shelf::States, entries));
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
