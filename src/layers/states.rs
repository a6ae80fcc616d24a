//! In what states trees were when layers were made of them: as long as a tree is in that state, its layer need not be hashed
//! again. The layer store remembers them from run to run.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::nix::TreeState;
use crate::store::LayerRecord;

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

    /// Fills in what was remembered of the layers with these records; `recall` looks keys up.
    pub(super) fn recall(
        &self,
        records: &[LayerRecord],
        places: impl Iterator<Item = usize>,
        recall: impl FnOnce(&[Vec<u8>]) -> HashMap<Vec<u8>, Vec<u8>>,
    ) {
        let mut known = self.known();
        let unknown: Vec<(usize, Vec<u8>)> =
            places.filter(|&at| known[at].is_none()).map(|at| (at, records[at].key.as_bytes().to_vec())).collect();
        if unknown.is_empty() {
            return;
        }
        let keys: Vec<Vec<u8>> = unknown.iter().map(|(_, key)| key.clone()).collect();
        let remembered = recall(&keys);
        for (at, key) in unknown {
            let state = remembered.get(&key).and_then(|value| state_of(value, &records[at]));
            known[at] = state.map(|state| Known { state, is_new: false });
        }
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

/// A state says what the bytes are together with their digest: of another digest it says nothing.
fn value_of(state: TreeState, record: &LayerRecord) -> Vec<u8> {
    [*record.digest.as_bytes(), state.to_bytes()].concat()
}

/// Reads what [`value_of`] made of this record.
fn state_of(value: &[u8], record: &LayerRecord) -> Option<TreeState> {
    let (digest, state) = value.split_at_checked(32)?;
    (digest == record.digest.as_bytes()).then_some(TreeState::from_bytes(state.try_into().ok()?))
}
