//! What the layer store remembers: the images of a name, their layers, and who refers to what in them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Delivery;
use crate::delivery::Target;
use crate::image::Images;
use crate::layers::Layers;
use crate::nix::{Closure, PathInfo, StorePath};
use crate::share::ImageUse;
use crate::store::{GraphNode, ImageRecord, PlatformRecord};

/// The record of images that were made now: of several platforms one record, so that they stay and go together.
pub(super) fn of(images: &Images, closures: &[&Closure], layers: &Layers<'_>, now: SystemTime) -> ImageRecord {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let platforms = images.all().iter().zip(layers.images()).map(|(image, layers)| PlatformRecord {
        platform: image.platform(),
        image_id: image.config_digest,
        manifest_digest: image.manifest_digest,
        layers: layers.clone(),
        config: String::from_utf8_lossy(&image.config).into_owned(),
    });
    ImageRecord {
        name: images.name().repository().to_owned(),
        tag: images.name().tag().to_owned(),
        image_id: images.id(),
        manifest_digest: images.digest(),
        platforms: platforms.collect(),
        layers: layers.keys().to_vec(),
        size: images.layers().iter().map(|layer| layer.size).sum(),
        made_at: now,
        used_at: now,
        graph: graph(closures),
    }
}

/// What shared caches are told of images that were made now, and where they were pushed.
pub(super) fn use_of(images: &Images, layers: &Layers<'_>, deliveries: &[Delivery], now: SystemTime) -> ImageUse {
    let pushed = deliveries.iter().filter_map(|delivery| match &delivery.target {
        Target::Registry(reference) => Some(reference.to_string()),
        _ => None,
    });
    ImageUse {
        name: images.name().repository().to_owned(),
        tag: images.name().tag().to_owned(),
        manifest: images.digest(),
        pushed: pushed.collect(),
        keys: layers.keys().iter().copied().collect(),
        used_at: now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        signatures: BTreeSet::new(),
    }
}

/// The store paths of all closures, each once.
fn graph(closures: &[&Closure]) -> Vec<GraphNode> {
    let paths: BTreeMap<&StorePath, &PathInfo> =
        closures.iter().flat_map(|closure| closure.paths()).map(|info| (&info.path, info)).collect();
    let roots: BTreeSet<&StorePath> = closures.iter().flat_map(|closure| closure.roots()).collect();
    let place: BTreeMap<&StorePath, usize> = paths.keys().enumerate().map(|(at, path)| (*path, at)).collect();
    let node = |info: &&PathInfo| GraphNode {
        name: info.path.base_name().to_owned(),
        root: roots.contains(&info.path),
        references: info.references.iter().filter_map(|path| place.get(path).copied()).collect(),
    };
    paths.values().map(node).collect()
}
