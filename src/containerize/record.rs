//! What the layer store remembers of an image: its layers, and who refers to what in it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::blob::LayerKey;
use crate::image::Image;
use crate::nix::{Closure, PathInfo, StorePath};
use crate::store::{GraphNode, ImageRecord};

/// The record of an image of these layers, made now.
pub(super) fn of(image: &Image, closure: &Closure, layers: &[LayerKey], now: SystemTime) -> ImageRecord {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    ImageRecord {
        name: image.name.repository().to_owned(),
        tag: image.name.tag().to_owned(),
        image_id: image.config_digest,
        manifest_digest: image.manifest_digest,
        layers: layers.to_vec(),
        size: image.layers.iter().map(|layer| layer.size).sum(),
        made_at: now,
        used_at: now,
        graph: graph(closure),
    }
}

fn graph(closure: &Closure) -> Vec<GraphNode> {
    let place: BTreeMap<&StorePath, usize> = closure.paths().enumerate().map(|(at, info)| (&info.path, at)).collect();
    let node = |info: &PathInfo| GraphNode {
        name: info.path.base_name().to_owned(),
        root: closure.roots().contains(&info.path),
        references: info.references.iter().filter_map(|path| place.get(path).copied()).collect(),
    };
    closure.paths().map(node).collect()
}
