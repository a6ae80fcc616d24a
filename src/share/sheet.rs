//! Sheets: many entries and uses of images, written by one run or merged from several.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::entry::{Entry, Trust};
use super::signing::SecretKey;
use crate::blob::{DiffId, Digest, LayerKey, canonical_json};

/// The version of the format; what has another is not read.
const VERSION: u32 = 1;
/// How sheets are compressed.
const LEVEL: i32 = 3;
/// The longest sheet that is read, in bytes.
pub(super) const LONGEST: u64 = 32 << 20;
/// The longest text in one, in bytes: a few bytes may unpack to any number.
const LONGEST_TEXT: u64 = 512 << 20;
/// What stands before the bytes of an image's use that are signed.
const USE_SIGNED_AS: &[u8] = b"layerhold shared cache image 1\n";
/// What names of sheets begin with: in a registry they are tags.
const PREFIX: &str = "layerhold-cache";

/// The name of a sheet: `layerhold-cache.<level>.<32 hexadecimal digits>`. No two writers have the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SheetName {
    /// 0 for what one run wrote, one more than what it is merged from for a merged one.
    pub level: u32,
    id: [u8; 16],
}

impl SheetName {
    /// The name with these random bytes.
    pub fn new(level: u32, random: [u8; 16]) -> Self {
        Self { level, id: random }
    }
}

impl fmt::Display for SheetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{:032x}", self.level, u128::from_be_bytes(self.id))
    }
}

impl fmt::Debug for SheetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no name of a sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no name of a sheet")]
pub struct InvalidSheetName;

impl FromStr for SheetName {
    type Err = InvalidSheetName;

    fn from_str(text: &str) -> Result<Self, InvalidSheetName> {
        let parse = || {
            let (level, id) = text.strip_prefix(PREFIX)?.strip_prefix('.')?.split_once('.')?;
            let name = Self { level: level.parse().ok()?, id: u128::from_str_radix(id, 16).ok()?.to_be_bytes() };
            // One spelling for one name.
            (name.to_string() == text).then_some(name)
        };
        parse().ok_or(InvalidSheetName)
    }
}

impl Serialize for SheetName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SheetName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An image that was made with the layers of a cache: what garbage collection keeps entries for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUse {
    /// Repository name.
    pub name: String,
    /// Tag.
    pub tag: String,
    /// Digest of the manifest, or of the index over several platforms.
    pub manifest: Digest,
    /// Where it was pushed: `HOST/NAME:TAG` each, none where it went elsewhere.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub pushed: BTreeSet<String>,
    /// The keys of its layers.
    #[serde(with = "keys_as_hex")]
    pub keys: BTreeSet<LayerKey>,
    /// When it was made last, in seconds after 1970.
    pub used_at: u64,
    /// Who vouches for its layers being those of images of the repositories that it was pushed to.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub signatures: BTreeSet<String>,
}

impl ImageUse {
    /// The repositories that it was pushed to, `HOST/NAME`.
    pub fn repositories(&self) -> BTreeSet<&str> {
        self.pushed.iter().filter_map(|pushed| Some(pushed.rsplit_once(':')?.0)).collect()
    }

    /// What is signed: the canonical JSON of a repository and the layers of an image in it.
    fn statement(&self, repository: &str) -> Vec<u8> {
        let layers: Vec<String> = self.keys.iter().map(LayerKey::hex).collect();
        // Texts and lists of them: there is nothing in it that JSON could not say.
        let json = canonical_json(&(repository, layers)).unwrap_or_default();
        [USE_SIGNED_AS, &json].concat()
    }

    /// Adds the signatures of what is known now.
    pub(super) fn sign(&mut self, key: &SecretKey) {
        let signed: Vec<String> =
            self.repositories().into_iter().map(|repository| key.sign(&self.statement(repository))).collect();
        self.signatures.extend(signed);
    }
}

/// What sheets say: entries and uses of images. Merging loses nothing, and its order does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// By key, and then by all that is said of the layer: where two say different things of one key, both stay.
    entries: BTreeMap<(LayerKey, Digest), Entry>,
    images: BTreeMap<(String, String, Digest), ImageUse>,
}

impl Contents {
    /// Adds an entry.
    pub fn insert(&mut self, entry: Entry) {
        match self.entries.entry((entry.key(), Digest::of(&entry.statement()))) {
            std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(entry)),
            std::collections::btree_map::Entry::Occupied(place) => place.into_mut().join(entry),
        }
    }

    /// Adds an image that was made.
    pub fn insert_image(&mut self, image: ImageUse) {
        let identity = (image.name.clone(), image.tag.clone(), image.manifest);
        match self.images.entry(identity) {
            std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(image)),
            std::collections::btree_map::Entry::Occupied(place) => {
                let known = place.into_mut();
                known.pushed.extend(image.pushed);
                known.keys.extend(image.keys);
                known.signatures.extend(image.signatures);
                known.used_at = known.used_at.max(image.used_at);
            }
        }
    }

    /// Takes all that another sheet says.
    pub fn merge(&mut self, other: Self) {
        other.entries.into_values().for_each(|entry| self.insert(entry));
        other.images.into_values().for_each(|image| self.insert_image(image));
    }

    /// Leaves out what is said of layers with these keys and digests.
    pub(super) fn leave_out(&mut self, entries: &BTreeSet<(LayerKey, Digest)>) {
        if !entries.is_empty() {
            self.entries.retain(|(key, _), entry| !entries.contains(&(*key, entry.layer.digest)));
        }
    }

    /// What is said of the layer with this key by who is trusted: an entry whose bytes the cache has, if there is one.
    pub fn find(&self, key: &LayerKey, trust: &Trust) -> Option<&Entry> {
        let mut trusted = self.of_key(key).filter(|entry| trust.accepts(entry));
        let first = trusted.next()?;
        Some(if first.layer.has_blob { first } else { trusted.find(|entry| entry.layer.has_blob).unwrap_or(first) })
    }

    /// All that is said of the layer with this key.
    pub fn of_key(&self, key: &LayerKey) -> impl Iterator<Item = &Entry> {
        let first = Digest::from_bytes([0; 32]);
        self.entries.range((*key, first)..).take_while(move |((found, _), _)| found == key).map(|(_, entry)| entry)
    }

    /// All entries, by key.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// All images, by name.
    pub fn images(&self) -> impl Iterator<Item = &ImageUse> {
        self.images.values()
    }

    /// The image of this name, tag and manifest.
    pub fn image(&self, name: &str, tag: &str, manifest: &Digest) -> Option<&ImageUse> {
        self.images.get(&(name.to_owned(), tag.to_owned(), *manifest))
    }

    /// What is said, by who is trusted, of these layers of images that were pushed to this repository, `HOST/NAME`.
    pub fn pushed_to(&self, repository: &str, layers: &BTreeSet<DiffId>, trust: &Trust) -> Vec<&Entry> {
        let is_pushed = |image: &&ImageUse| {
            image.repositories().contains(repository)
                && trust.accepts_statement(|| image.statement(repository), &image.signatures)
        };
        let keys: BTreeSet<&LayerKey> = self.images.values().filter(is_pushed).flat_map(|image| &image.keys).collect();
        let entries = keys.into_iter().flat_map(|key| self.of_key(key));
        entries.filter(|entry| layers.contains(&entry.layer.diff_id) && trust.accepts(entry)).collect()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is said at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.images.is_empty()
    }

    /// The blobs that belong to the entries, with their lengths in bytes.
    pub fn blobs(&self) -> BTreeMap<Digest, u64> {
        let kept = self.entries.values().filter(|entry| entry.layer.has_blob);
        kept.map(|entry| (entry.layer.digest, entry.layer.size)).collect()
    }
}

/// A sheet as it lies in a depot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sheet {
    /// Whether it never changes any more. One that may is written by a run that goes on.
    pub is_final: bool,
    /// When it was written, in seconds after 1970.
    pub time: u64,
    /// The sheets whose contents are in this one.
    pub supersedes: BTreeSet<SheetName>,
    /// The layers that its run is making, while it goes on.
    pub claims: BTreeSet<LayerKey>,
    /// Whether its run is just choosing which layers to make.
    pub is_choosing: bool,
    /// What it says.
    pub contents: Contents,
}

/// A sheet that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSheet {
    /// It is cut, longer than it may be, or not compressed as it should be.
    #[error("it cannot be unpacked")]
    Unpack(#[source] io::Error),
    /// It does not begin as a sheet does.
    #[error("it is not a sheet")]
    Malformed(#[source] serde_json::Error),
    /// It was written by another version.
    #[error("it has format {found}, and this version reads {VERSION}")]
    Version {
        /// The format's number.
        found: u32,
    },
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    layerhold_cache: u32,
    /// The sheet's own name, which nobody reads: two sheets that say the same would be one manifest in a registry, which
    /// goes from under both names when it is removed from one.
    #[serde(default)]
    name: Option<SheetName>,
    #[serde(default)]
    r#final: bool,
    #[serde(default)]
    time: u64,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    supersedes: BTreeSet<SheetName>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty", with = "keys_as_hex")]
    claims: BTreeSet<LayerKey>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    choosing: bool,
}

/// Only the number, of a first line that may otherwise be anything.
#[derive(Deserialize)]
struct Version {
    layerhold_cache: u32,
}

/// Every other line.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Image { image: ImageUse },
    Entry(Entry),
}

impl Sheet {
    /// The bytes that are stored under this name, and under no other: lines of JSON, compressed. The same sheet has the same
    /// bytes.
    pub fn encode(&self, name: &SheetName) -> Result<Vec<u8>, EncodeError> {
        let Self { is_final, time, supersedes, claims, is_choosing, contents } = self;
        let mut out = zstd::Encoder::new(Vec::new(), LEVEL)?;
        let head = Head {
            layerhold_cache: VERSION,
            name: Some(*name),
            r#final: *is_final,
            time: *time,
            supersedes: supersedes.clone(),
            claims: claims.clone(),
            choosing: *is_choosing,
        };
        let mut line = |json: Vec<u8>| out.write_all(&json).and_then(|()| out.write_all(b"\n"));
        line(canonical_json(&head)?)?;
        for entry in contents.entries() {
            line(canonical_json(entry)?)?;
        }
        for image in contents.images() {
            line(canonical_json(&Line::Image { image: image.clone() })?)?;
        }
        Ok(out.finish()?)
    }

    /// Reads what [`Sheet::encode`] wrote. Lines of a kind that this version does not know are left out.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidSheet> {
        let mut text = Vec::new();
        let unpacker = zstd::Decoder::new(bytes).map_err(InvalidSheet::Unpack)?;
        unpacker.take(LONGEST_TEXT + 1).read_to_end(&mut text).map_err(InvalidSheet::Unpack)?;
        if text.len() as u64 > LONGEST_TEXT {
            return Err(InvalidSheet::Unpack(io::ErrorKind::FileTooLarge.into()));
        }
        let mut lines = text.split(|&byte| byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let Version { layerhold_cache: found } = serde_json::from_slice(first).map_err(InvalidSheet::Malformed)?;
        if found != VERSION {
            return Err(InvalidSheet::Version { found });
        }
        let head: Head = serde_json::from_slice(first).map_err(InvalidSheet::Malformed)?;
        let mut contents = Contents::default();
        for line in lines {
            match serde_json::from_slice(line) {
                Ok(Line::Entry(entry)) => contents.insert(entry),
                Ok(Line::Image { image }) => contents.insert_image(image),
                Err(_) => {}
            }
        }
        let Head { r#final: is_final, time, supersedes, claims, choosing: is_choosing, .. } = head;
        Ok(Self { is_final, time, supersedes, claims, is_choosing, contents })
    }
}

/// A sheet could not be turned into bytes.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// Not into JSON.
    #[error("cannot write a sheet as JSON")]
    Json(#[from] serde_json::Error),
    /// Not into compressed bytes.
    #[error("cannot compress a sheet")]
    Compress(#[from] io::Error),
}

mod keys_as_hex {
    use std::collections::BTreeSet;

    use super::LayerKey;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(keys: &BTreeSet<LayerKey>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(keys.iter().map(LayerKey::hex))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<LayerKey>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| LayerKey::from_hex(text).ok_or_else(|| D::Error::custom("not a layer key"))).collect()
    }
}

#[cfg(test)]
#[path = "sheet_tests.rs"]
mod tests;
