//! What only Docker does: its daemon's version, and the layers that each of its image stores can do without.

use std::collections::BTreeSet;

use super::opening::Inspected;
use super::{DeliveryError, Past, Runtime, RuntimeClient};
use crate::blob::Digest;
use crate::child::Ended;
use crate::event::{Event, Observer};
use crate::image::{Image, LayerMediaType};

/// The first version whose daemon loads layers compressed with zstd (moby/moby pull request 41759).
const ZSTD_SINCE: u64 = 23;

/// The question for the daemon's version.
pub(super) const VERSION: [&str; 3] = ["version", "--format", "{{.Server.Version}}"];

/// Whether a runtime's version has to be known before layers of this media type are made for it.
pub(super) fn must_tell_version(runtime: Runtime, media_type: LayerMediaType) -> bool {
    runtime == Runtime::Docker && media_type == LayerMediaType::TarZstd
}

/// Fails where the daemon, by its answer to [`VERSION`], cannot read layers compressed with zstd.
pub(super) fn reads_zstd(client: &RuntimeClient, ended: &Ended, observer: &dyn Observer) -> Result<(), DeliveryError> {
    if !ended.status.success() {
        // The package podman-docker puts Podman in Docker's place; without a machine it has no server.
        return match client.run(&["--version"], observer) {
            Ok(program) if program.starts_with("podman") => Ok(()),
            _ => Err(client.failure(&VERSION, ended)),
        };
    }
    let version = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
    if has_zstd(&version) { Ok(()) } else { Err(DeliveryError::ZstdUnsupported { version }) }
}

/// A version that is not understood (a development build) gets the benefit of the doubt: the load itself will tell.
fn has_zstd(version: &str) -> bool {
    match version.split('.').next().and_then(|major| major.parse().ok()) {
        Some(0) | None => true,
        Some(major) => major >= ZSTD_SINCE,
    }
}

/// The layers that `docker load` does without.
///
/// - The classic store knows a layer by its chain (OCI image specification, config.md, "Layer ChainID"): the layers of
///   another image are reused as far up from the bottom as both images agree, and their files are then not looked for.
/// - containerd's image store looks for every blob, first in the archive and then among those that it has. Which blobs
///   an image has Docker does not say, only its manifest's digest: they are known where that image was delivered from
///   here.
pub(super) fn held(
    client: &RuntimeClient,
    image: &Image,
    others: &[Inspected],
    past: &dyn Past,
    observer: &dyn Observer,
) -> Result<BTreeSet<Digest>, DeliveryError> {
    let common = |other: &Inspected| {
        image.layers.iter().zip(other.diff_ids()).take_while(|(ours, theirs)| ours.diff_id == **theirs).count()
    };
    let Some(depth) = others.iter().map(common).max() else { return Ok(BTreeSet::new()) };
    if is_classic(client, others, observer)? {
        let (below, above) = image.layers.split_at(depth);
        let mut held: BTreeSet<_> = below.iter().map(|layer| layer.digest).collect();
        // The same blob further up is another chain.
        for layer in above {
            held.remove(&layer.digest);
        }
        return Ok(held);
    }
    let blobs: BTreeSet<_> =
        others.iter().filter_map(Inspected::id).flat_map(|manifest| past.blobs_of(&manifest)).collect();
    let held: BTreeSet<_> =
        image.layers.iter().map(|layer| layer.digest).filter(|digest| blobs.contains(digest)).collect();
    if held.is_empty() {
        let message = "Docker keeps images in containerd's store, and which layers it has is not known: sending all";
        observer.event(Event::Detail { message: message.to_owned() });
    }
    Ok(held)
}

/// Whether the daemon keeps images in its own store; no, where it does not say.
fn is_classic(client: &RuntimeClient, images: &[Inspected], observer: &dyn Observer) -> Result<bool, DeliveryError> {
    match images.iter().find_map(Inspected::driver) {
        // Names that only one of the two stores has.
        Some("overlay2" | "vfs") => return Ok(true),
        Some("overlayfs" | "native") => return Ok(false),
        _ => {}
    }
    match client.run(&["info", "--format", "{{json .DriverStatus}}"], observer) {
        Ok(status) => Ok(!status.contains("io.containerd.snapshotter")),
        Err(DeliveryError::Command { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zstd_is_read_since_version_23() {
        for (version, reads) in [
            ("20.10.24+dfsg1", false),
            ("1.13.1", false),
            ("23.0.0-rc.1", true),
            ("28.2.2", true),
            ("0.0.0-20240101", true),
            ("dev", true),
        ] {
            assert_eq!(has_zstd(version), reads, "{version}");
        }
    }
}
