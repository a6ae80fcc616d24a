//! Records: what is known of a layer or an image, each in a checksummed file of its own.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::files::{self, IoContext};
use crate::blob::{DiffId, Digest, LayerKey, canonical_json};

/// What is known of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// What the layer is made from.
    #[serde(with = "key_as_hex")]
    pub key: LayerKey,
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Length of the uncompressed tar in bytes.
    pub tar_size: u64,
    /// OCI media type of the blob.
    pub media_type: String,
    /// Whether the store keeps the bytes.
    pub has_blob: bool,
    /// Whether this is only what a shared cache has said: this machine has not made the layer, and nobody vouched for it who
    /// was trusted by name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_hearsay: bool,
    /// What the layer holds, for people; empty for an image's own files.
    pub contents: Vec<Content>,
}

/// One of the things that a layer holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// What it is called: a store path without its directory.
    pub name: String,
    /// Its share of the uncompressed layer, in bytes.
    pub size: u64,
}

/// What is known of an image that was made, or of images for several platforms under one name: they stay and go together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Repository name.
    pub name: String,
    /// Tag.
    pub tag: String,
    /// Digest of the configuration; of images for several platforms, of their index.
    pub image_id: Digest,
    /// Digest of the manifest, or of the index.
    pub manifest_digest: Digest,
    /// The image for each platform.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<PlatformRecord>,
    /// Keys of its layers, the bottom one first; of several images, what the others have beside the first at the end.
    #[serde(with = "keys_as_hex")]
    pub layers: Vec<LayerKey>,
    /// Length of all its blobs in bytes, whether the store keeps them or not.
    pub size: u64,
    /// When it was made first, in seconds after the epoch.
    pub made_at: u64,
    /// When it was made last, in seconds after the epoch.
    pub used_at: u64,
    /// What it holds, and what each of those refers to.
    pub graph: Vec<GraphNode>,
}

/// The image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformRecord {
    /// The platform, as runtimes spell it: `linux/arm64`.
    pub platform: String,
    /// Digest of its configuration.
    pub image_id: Digest,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Its layers, the bottom one first: places in [`ImageRecord::layers`].
    pub layers: Vec<usize>,
    /// Its configuration, canonical JSON: what it takes to name the image again, however its layers are compressed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub config: String,
}

/// One thing that an image holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphNode {
    /// What it is called, as in [`Content::name`].
    pub name: String,
    /// Whether the user asked for it, rather than something else that is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub root: bool,
    /// What it refers to: places in the same list.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<usize>,
}

impl LayerRecord {
    /// The record in the file at `path`, if there is one and it is whole.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, StoreError> {
        read(path)
    }

    /// The same, with the length of its JSON in bytes.
    pub(super) fn read_with_length(path: &Path) -> Result<Option<(Self, u64)>, StoreError> {
        read_with_length(path)
    }

    pub(super) fn write(&self, tmp: &Path, path: &Path) -> Result<(), StoreError> {
        write(self, tmp, path)
    }
}

impl ImageRecord {
    /// The record in the file at `path`, if there is one and it is whole.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, StoreError> {
        read(path)
    }

    pub(super) fn write(&self, tmp: &Path, path: &Path) -> Result<(), StoreError> {
        write(self, tmp, path)
    }

    /// Whether it is the same record but for the time of its last use, and takes as many bytes.
    pub(super) fn is_but_for_its_use(&self, before: &Self) -> bool {
        let digits = |record: &Self| record.used_at.to_string().len();
        digits(self) == digits(before) && *self == Self { used_at: self.used_at, ..before.clone() }
    }

    /// Whether the digest is its own, or that of one of its platforms: of a configuration, a manifest or an index.
    pub(super) fn is_called(&self, digest: &Digest) -> bool {
        let own = [&self.image_id, &self.manifest_digest];
        let theirs = self.platforms.iter().flat_map(|platform| [&platform.image_id, &platform.manifest_digest]);
        own.into_iter().chain(theirs).any(|known| known == digest)
    }

    /// The layers of the image with this manifest, or of all images of the index with this digest; `None` where neither
    /// is here.
    pub(super) fn layers_of(&self, manifest: &Digest) -> Option<Vec<LayerKey>> {
        if self.manifest_digest == *manifest {
            return Some(self.layers.clone());
        }
        let platform = self.platforms.iter().find(|platform| platform.manifest_digest == *manifest)?;
        Some(platform.layers.iter().filter_map(|&at| self.layers.get(at).copied()).collect())
    }

    /// One file for one image under one name and tag, whatever characters they have.
    pub(super) fn file_name(&self) -> String {
        let identity = format!("{}:{} {}", self.name, self.tag, self.image_id);
        blake3::hash(identity.as_bytes()).to_hex().to_string()
    }
}

/// What a record's file has beside its JSON, in bytes: the checksum and two ends of lines.
pub(super) const FRAME: u64 = 66;

/// Writes the record as one line of JSON below the blake3 of that line.
fn write<T: Serialize>(record: &T, tmp: &Path, path: &Path) -> Result<(), StoreError> {
    let json = canonical_json(record).map_err(StoreError::Encode)?;
    let mut bytes = blake3::hash(&json).to_hex().as_bytes().to_vec();
    bytes.push(b'\n');
    bytes.extend_from_slice(&json);
    bytes.push(b'\n');
    files::write_atomically(tmp, path, &bytes)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    Ok(read_with_length(path)?.map(|(record, _)| record))
}

fn read_with_length<T: DeserializeOwned>(path: &Path) -> Result<Option<(T, u64)>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(parse(&bytes).map(|record| (record, bytes.len() as u64 - FRAME))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        // Something else has a record's name: it is found to be damaged, and goes.
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => Ok(None),
        // What the disk does not give back is lost like a torn record.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(None),
        Err(error) => Err(error).context("read the record", path),
    }
}

/// The record in these bytes, unless they are torn or another version's.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (checksum, json) = bytes.strip_suffix(b"\n")?.split_at_checked(65)?;
    let whole = checksum.strip_suffix(b"\n")? == blake3::hash(json).to_hex().as_bytes();
    if whole { serde_json::from_slice(json).ok() } else { None }
}

/// Every whole layer record below `records`, with the length of its JSON in bytes.
pub(super) fn read_all(records: &Path) -> Result<Vec<(LayerRecord, u64)>, StoreError> {
    let mut found = Vec::new();
    for directory in std::fs::read_dir(records).context("list", records)? {
        let directory = directory.context("list", records)?.path();
        for file in std::fs::read_dir(&directory).context("list", &directory)? {
            let path = file.context("list", &directory)?.path();
            // One that is collected meanwhile is no record any more.
            found.extend(read_with_length(&path)?);
        }
    }
    Ok(found)
}

mod key_as_hex {
    use super::LayerKey;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(key: &LayerKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&key.hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LayerKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        LayerKey::from_hex(&text).ok_or_else(|| D::Error::custom("not a layer key"))
    }
}

mod keys_as_hex {
    use super::LayerKey;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(keys: &[LayerKey], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keys.iter().map(LayerKey::hex))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LayerKey>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| LayerKey::from_hex(text).ok_or_else(|| D::Error::custom("not a layer key"))).collect()
    }
}
