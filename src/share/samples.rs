//! Entries and images for tests.

use std::collections::HashMap;

use super::ShareMemory;
use super::entry::Entry;
use super::sheet::ImageUse;
use crate::blob::{DiffId, Digest, LayerKey, LayerKeyBuilder};
use crate::store::{Content, LayerRecord};

/// The key of the `n`-th layer.
pub(super) fn key(n: u8) -> LayerKey {
    LayerKeyBuilder::new("layerhold test of the shared cache").field(&[n]).finish()
}

/// The bytes of the `n`-th layer.
pub(super) fn bytes(n: u8) -> Vec<u8> {
    vec![n; 100 + usize::from(n)]
}

/// The entry of the `n`-th layer.
pub(super) fn entry(n: u8, has_blob: bool) -> Entry {
    Entry::new(LayerRecord {
        key: key(n),
        digest: Digest::of(&bytes(n)),
        diff_id: DiffId(Digest::of(&[n])),
        size: bytes(n).len() as u64,
        tar_size: 1000,
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(),
        has_blob,
        is_hearsay: false,
        contents: vec![Content { name: format!("path-{n}"), size: 900 }],
    })
}

/// The `n`-th image, of these layers.
pub(super) fn image(n: u8, layers: &[u8], used_at: u64) -> ImageUse {
    ImageUse {
        name: format!("image-{n}"),
        tag: "latest".to_owned(),
        manifest: Digest::of(&[n, 1]),
        pushed: Default::default(),
        keys: layers.iter().map(|&n| key(n)).collect(),
        used_at,
        signatures: Default::default(),
    }
}

/// Remembers nothing.
pub(super) struct Forgetful;

impl ShareMemory for Forgetful {
    fn sheets(&self, _: &[String]) -> HashMap<String, Vec<u8>> {
        HashMap::new()
    }

    fn keep_sheets(&self, _: Vec<(String, Vec<u8>)>) {}

    fn disbelieved(&self) -> Vec<(LayerKey, Digest)> {
        Vec::new()
    }

    fn keep_belief(&self, _: &LayerKey, _: &Digest, _: bool) {}
}
