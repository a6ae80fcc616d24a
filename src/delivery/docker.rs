//! What only Docker does: its daemon's version, and the layers that its classic image store can do without.

use std::collections::BTreeSet;

use super::{DeliveryError, RuntimeClient, podman};
use crate::blob::{DiffId, Digest};
use crate::event::Observer;
use crate::image::{Image, LayerMediaType};

/// The first version whose daemon loads layers compressed with zstd (moby/moby pull request 41759).
const ZSTD_SINCE: u64 = 23;

/// Asks the daemon for its version.
pub(super) fn accepts(
    client: &RuntimeClient,
    media_type: LayerMediaType,
    observer: &dyn Observer,
) -> Result<(), DeliveryError> {
    let version = match client.run(&["version", "--format", "{{.Server.Version}}"], observer) {
        Ok(version) => version.trim().to_owned(),
        // The package podman-docker puts Podman in Docker's place; without a machine it has no server.
        Err(error) => {
            return match client.run(&["--version"], observer) {
                Ok(program) if program.starts_with("podman") => podman::accepts(client, observer),
                _ => Err(error),
            };
        }
    };
    if media_type == LayerMediaType::TarZstd && !reads_zstd(&version) {
        return Err(DeliveryError::ZstdUnsupported { version });
    }
    Ok(())
}

/// A version that is not understood (a development build) gets the benefit of the doubt: the load itself will tell.
fn reads_zstd(version: &str) -> bool {
    match version.split('.').next().and_then(|major| major.parse().ok()) {
        Some(0) | None => true,
        Some(major) => major >= ZSTD_SINCE,
    }
}

/// The layers that `docker load` does without.
///
/// The classic store knows a layer by its chain (OCI image specification, config.md, "Layer ChainID"): the layers of
/// another image are reused as far up from the bottom as both images agree, and their files are then not looked for.
/// With containerd's image store every blob is looked for.
pub(super) fn held(
    client: &RuntimeClient,
    image: &Image,
    others: &[Vec<DiffId>],
    observer: &dyn Observer,
) -> Result<BTreeSet<Digest>, DeliveryError> {
    let common = |other: &Vec<DiffId>| {
        image.layers.iter().zip(other).take_while(|(ours, theirs)| ours.diff_id == **theirs).count()
    };
    let depth = others.iter().map(common).max().unwrap_or(0);
    if depth == 0 || !is_classic(client, observer)? {
        return Ok(BTreeSet::new());
    }
    let (below, above) = image.layers.split_at(depth);
    let mut held: BTreeSet<_> = below.iter().map(|layer| layer.digest).collect();
    // The same blob further up is another chain.
    for layer in above {
        held.remove(&layer.digest);
    }
    Ok(held)
}

/// Whether the daemon keeps images in its own store; no, where it does not say.
fn is_classic(client: &RuntimeClient, observer: &dyn Observer) -> Result<bool, DeliveryError> {
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
            assert_eq!(reads_zstd(version), reads, "{version}");
        }
    }
}
