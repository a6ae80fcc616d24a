//! What the store holds, for people and programs: images, layers, store paths, and who wants them.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::Serialize;

use super::gc::StoredImage;
use super::index::{disk_bytes, record_bytes};
use super::record::{ImageRecord, LayerRecord};
use super::{LayerStore, StoreError};
use crate::blob::{Digest, LayerKey};

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageRow {
    /// Repository name.
    pub name: String,
    /// Tag.
    pub tag: String,
    /// Digest of its configuration; of images for several platforms, of their index.
    pub image_id: Digest,
    /// The platforms that it is for: `linux/amd64`.
    pub platforms: Vec<String>,
    /// When it was made first, in seconds after the epoch.
    pub made_at: u64,
    /// When it was made last, in seconds after the epoch.
    pub used_at: u64,
    /// Length of all its blobs in bytes, kept or not.
    pub size: u64,
    /// Bytes on the disk that its layers and its record take, shared ones included.
    pub on_disk: u64,
    /// Bytes that would be free if it went.
    pub would_free: u64,
    /// Number of layers.
    pub layers: usize,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// A layer in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerRow {
    /// Digest of the blob.
    pub digest: Digest,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Bytes on the disk: the record, and the blob where it is kept.
    pub on_disk: u64,
    /// OCI media type.
    pub media_type: String,
    /// Whether its bytes are kept.
    pub kept: bool,
    /// The images that have it, as `NAME:TAG`.
    pub images: Vec<String>,
    /// The store paths in it.
    pub store_paths: Vec<String>,
}

/// What one store path costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathRow {
    /// The store path, without its directory.
    pub store_path: String,
    /// Its length in bytes, uncompressed.
    pub size: u64,
    /// Its share of what the layers that have it take on the disk, in bytes.
    pub on_disk: u64,
    /// Number of layers that have it.
    pub layers: usize,
    /// Number of images that have it.
    pub images: usize,
}

/// An image that holds something, and how it comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WhyRow {
    /// The image, as `NAME:TAG`.
    pub image: String,
    /// Digest of its configuration; of images for several platforms, of their index.
    pub image_id: Digest,
    /// The layer that has it; absent where the image itself was asked for, or the layer is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
    /// The shortest way through references: from what the user installed to what was asked for. Empty for a layer, and
    /// for a store path that nothing needs any more, which a layer of an image before holds and a whiteout hides.
    pub through: Vec<String>,
}

impl LayerStore {
    /// Every image, the one made last first.
    pub fn image_rows(&self) -> Result<Vec<ImageRow>, StoreError> {
        let layers: HashMap<LayerKey, OnDisk> =
            self.all_layers()?.into_iter().map(|(record, json_length)| OnDisk::of(&record, json_length)).collect();
        let images = self.images()?;
        let mut layer_holders: HashMap<LayerKey, usize> = HashMap::new();
        for key in images.iter().flat_map(|image| distinct_layers(&image.record)) {
            *layer_holders.entry(key).or_default() += 1;
        }
        // Layers made from different things can have the same blob, which goes with the last of them.
        let mut blob_holders: HashMap<Digest, Vec<LayerKey>> = HashMap::new();
        for (key, layer) in layers.iter().filter(|(_, layer)| layer.blob.is_some()) {
            blob_holders.entry(layer.digest).or_default().push(*key);
        }
        let mut rows: Vec<_> = images
            .into_iter()
            .map(|image| {
                let own = distinct_layers(&image.record);
                let present: Vec<_> = own.iter().filter_map(|key| Some((key, layers.get(key)?))).collect();
                let only_here = |key: &LayerKey| own.contains(key) && layer_holders[key] == 1;
                let blobs: BTreeMap<Digest, u64> =
                    present.iter().filter_map(|(_, layer)| Some((layer.digest, layer.blob?))).collect();
                let records = |keys: &dyn Fn(&LayerKey) -> bool| -> u64 {
                    present.iter().filter(|(key, _)| keys(key)).map(|(_, layer)| layer.record).sum()
                };
                let freed_blobs: u64 = blobs
                    .iter()
                    .filter(|(digest, _)| blob_holders[digest].iter().all(only_here))
                    .map(|(_, size)| size)
                    .sum();
                ImageRow {
                    image_id: image.record.image_id,
                    platforms: image.record.platforms.into_iter().map(|platform| platform.platform).collect(),
                    made_at: image.record.made_at,
                    used_at: image.record.used_at,
                    size: image.record.size,
                    on_disk: image.bytes + records(&|_| true) + blobs.values().sum::<u64>(),
                    would_free: image.bytes + records(&only_here) + freed_blobs,
                    layers: image.record.layers.len(),
                    pinned: image.pinned,
                    name: image.record.name,
                    tag: image.record.tag,
                }
            })
            .collect();
        rows.sort_by(|a, b| b.used_at.cmp(&a.used_at).then_with(|| (&a.name, &a.tag).cmp(&(&b.name, &b.tag))));
        Ok(rows)
    }

    /// Every layer, the largest first.
    pub fn layer_rows(&self) -> Result<Vec<LayerRow>, StoreError> {
        let mut images: BTreeMap<LayerKey, Vec<String>> = BTreeMap::new();
        for image in self.images()? {
            for key in distinct_layers(&image.record) {
                images.entry(key).or_default().push(title(&image.record));
            }
        }
        let mut rows: Vec<_> = self
            .layers_by_key()?
            .into_iter()
            .map(|(key, (record, on_disk))| LayerRow {
                digest: record.digest,
                size: record.size,
                on_disk,
                media_type: record.media_type,
                kept: record.has_blob,
                images: images.remove(&key).unwrap_or_default(),
                store_paths: record.contents.into_iter().map(|content| content.name).collect(),
            })
            .collect();
        rows.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.digest.cmp(&b.digest)));
        Ok(rows)
    }

    /// What every store path costs, the dearest first.
    pub fn path_rows(&self) -> Result<Vec<PathRow>, StoreError> {
        let layers = self.layers_by_key()?;
        let mut images: BTreeMap<String, usize> = BTreeMap::new();
        self.each_image(|StoredImage { record: image, .. }| {
            // What an image hides it has all the same, and it is in no graph.
            let held = image.layers.iter().filter_map(|key| layers.get(key)).flat_map(|(record, _)| &record.contents);
            let names: BTreeSet<&str> = image
                .graph
                .iter()
                .map(|node| node.name.as_str())
                .chain(held.map(|content| content.name.as_str()))
                .collect();
            for name in names {
                *images.entry(name.to_owned()).or_default() += 1;
            }
        })?;
        let mut rows: BTreeMap<String, PathRow> = BTreeMap::new();
        for (record, on_disk) in layers.into_values() {
            let whole: u64 = record.contents.iter().map(|content| content.size).sum();
            for content in record.contents {
                let row = rows.entry(content.name.clone()).or_insert_with(|| PathRow {
                    images: images.get(&content.name).copied().unwrap_or(0),
                    store_path: content.name,
                    size: content.size,
                    on_disk: 0,
                    layers: 0,
                });
                row.layers += 1;
                let share = u128::from(on_disk) * u128::from(content.size) / u128::from(whole.max(1));
                row.on_disk += u64::try_from(share).unwrap_or(u64::MAX);
            }
        }
        let mut rows: Vec<_> = rows.into_values().collect();
        rows.sort_by(|a, b| (b.on_disk, b.size, &a.store_path).cmp(&(a.on_disk, a.size, &b.store_path)));
        Ok(rows)
    }

    /// Which images hold a store path, or a layer or image with this digest, and through which references.
    pub fn why(&self, wanted: &Wanted) -> Result<Vec<WhyRow>, StoreError> {
        let layers = self.layers_by_key()?;
        let mut rows = Vec::new();
        self.each_image(|StoredImage { record: image, .. }| {
            let row = |layer, through| WhyRow { image: title(&image), image_id: image.image_id, layer, through };
            match wanted {
                Wanted::Digest(digest) => {
                    let has = |key: &&LayerKey| {
                        layers
                            .get(key)
                            .is_some_and(|(record, _)| record.digest == *digest || record.diff_id.0 == *digest)
                    };
                    if image.layers.iter().any(|key| has(&key)) {
                        rows.push(row(Some(*digest), Vec::new()));
                    } else if image.is_called(digest) {
                        rows.push(row(None, Vec::new()));
                    }
                }
                Wanted::StorePath(base_name) => {
                    let has_it =
                        |record: &LayerRecord| record.contents.iter().any(|content| content.name == *base_name);
                    let records = image.layers.iter().filter_map(|key| layers.get(key)).map(|(record, _)| record);
                    let layer = records.filter(|record| has_it(record)).map(|record| record.digest).next();
                    let through = way_to(&image, base_name);
                    if layer.is_some() || through.is_some() {
                        rows.push(row(layer, through.unwrap_or_default()));
                    }
                }
            }
        })?;
        // Who needs it comes before who only carries it along.
        rows.sort_by(|a, b| {
            (a.through.is_empty(), &a.image, a.image_id).cmp(&(b.through.is_empty(), &b.image, b.image_id))
        });
        Ok(rows)
    }

    fn layers_by_key(&self) -> Result<BTreeMap<LayerKey, (LayerRecord, u64)>, StoreError> {
        Ok(self
            .all_layers()?
            .into_iter()
            .map(|(record, json_length)| {
                let bytes = disk_bytes(&record, json_length);
                (record.key, (record, bytes))
            })
            .collect())
    }
}

/// What a layer takes on the disk.
struct OnDisk {
    digest: Digest,
    /// Bytes of its record.
    record: u64,
    /// Bytes of its blob, where it is kept.
    blob: Option<u64>,
}

impl OnDisk {
    fn of(record: &LayerRecord, json_length: u64) -> (LayerKey, Self) {
        let blob = record.has_blob.then_some(record.size);
        (record.key, Self { digest: record.digest, record: record_bytes(json_length), blob })
    }
}

/// What `cache why` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A store path, without its directory.
    StorePath(String),
    /// A layer, by digest or diff ID; an image, by ID or manifest digest; images for several platforms, also by the
    /// digest of their index.
    Digest(Digest),
}

fn title(image: &ImageRecord) -> String {
    format!("{}:{}", image.name, image.tag)
}

fn distinct_layers(image: &ImageRecord) -> BTreeSet<LayerKey> {
    image.layers.iter().copied().collect()
}

/// The shortest way from something that the user installed to `name`, both included.
fn way_to(image: &ImageRecord, name: &str) -> Option<Vec<String>> {
    let target = image.graph.iter().position(|node| node.name == name)?;
    let mut from: BTreeMap<usize, Option<usize>> = BTreeMap::new();
    let mut next: VecDeque<usize> = VecDeque::new();
    for (at, _) in image.graph.iter().enumerate().filter(|(_, node)| node.root) {
        from.insert(at, None);
        next.push_back(at);
    }
    while let Some(at) = next.pop_front() {
        if at == target {
            break;
        }
        for &reference in image.graph.get(at).map(|node| node.references.as_slice()).unwrap_or_default() {
            from.entry(reference).or_insert_with(|| {
                next.push_back(reference);
                Some(at)
            });
        }
    }
    let mut way = vec![name.to_owned()];
    let mut at = target;
    while let Some(Some(before)) = from.get(&at) {
        way.push(image.graph[*before].name.clone());
        at = *before;
    }
    way.reverse();
    Some(way)
}
