//! Entries: what a shared cache says of one layer, and who vouches for it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::signing::SecretKey;
use crate::blob::{LayerKey, canonical_json};
use crate::store::LayerRecord;
use crate::substitute::PublicKey;

/// What stands before the bytes that are signed: a signature of something else is none of an entry.
const SIGNED_AS: &[u8] = b"layerhold shared cache entry 1\n";

/// What a shared cache says of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The layer. [`LayerRecord::has_blob`] says whether the cache has its bytes; a layer without is made again from its
    /// store paths when its bytes are wanted.
    pub layer: LayerRecord,
    /// Who vouches for it: `NAME:BASE64` each, as Nix writes signatures.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub signatures: BTreeSet<String>,
}

/// Whose word counts.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Whose signatures count; where none is named, everything counts that somebody could write into the cache.
    pub keys: Vec<PublicKey>,
}

impl Entry {
    /// An entry that nobody vouches for yet.
    pub fn new(layer: LayerRecord) -> Self {
        Self { layer: LayerRecord { is_hearsay: false, ..layer }, signatures: BTreeSet::new() }
    }

    /// What the layer is made from.
    pub fn key(&self) -> LayerKey {
        self.layer.key
    }

    /// What is signed: the canonical JSON of the layer. Where its bytes are is no part of it, for that changes, nor is from
    /// whom a machine has it.
    pub(super) fn statement(&self) -> Vec<u8> {
        let layer = LayerRecord { has_blob: false, is_hearsay: false, ..self.layer.clone() };
        // A record is numbers, texts and lists of them: there is nothing in it that JSON could not say.
        let json = canonical_json(&layer).unwrap_or_default();
        [SIGNED_AS, &json].concat()
    }

    /// Adds a signature.
    pub fn sign(&mut self, key: &SecretKey) {
        let signature = key.sign(&self.statement());
        self.signatures.insert(signature);
    }

    /// Takes what another entry of the same layer knows beside.
    pub(super) fn join(&mut self, other: Self) {
        self.layer.has_blob |= other.layer.has_blob;
        self.signatures.extend(other.signatures);
    }
}

impl Trust {
    /// Whether the entry counts.
    pub fn accepts(&self, entry: &Entry) -> bool {
        self.accepts_statement(|| entry.statement(), &entry.signatures)
    }

    /// Whether what is stated counts, with these signatures.
    pub(super) fn accepts_statement(&self, statement: impl Fn() -> Vec<u8>, signatures: &BTreeSet<String>) -> bool {
        if self.keys.is_empty() {
            return true;
        }
        let statement = statement();
        let is_of = |key: &PublicKey| signatures.iter().any(|signature| key.verifies(&statement, signature));
        self.keys.iter().any(is_of)
    }
}
