//! What only Podman does: any layer that it has, under whatever chain, can be left out of an archive.

use std::collections::BTreeSet;

use super::opening::Inspected;
use crate::blob::Digest;
use crate::image::Image;

/// The layers that `podman load` does without: those whose diff ID any of its images has.
///
/// It reads the archive as an image layout and opens only the blobs of layers that it does not find in its storage
/// (containers/image: `TryReusingBlob`). A compressed layer is found only if it came with the same compression; if not,
/// the load fails and everything is sent.
pub(super) fn held(image: &Image, others: &[Inspected]) -> BTreeSet<Digest> {
    let known: BTreeSet<_> = others.iter().flat_map(Inspected::diff_ids).collect();
    image.layers.iter().filter(|layer| known.contains(&layer.diff_id)).map(|layer| layer.digest).collect()
}
