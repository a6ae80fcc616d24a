//! Delivery: an image, or several with their index, goes to a file, a stream, a container runtime, an OCI image layout or a
//! registry.
//!
//! [`deliver`] is the one way through; each target is a [`Sink`]. Whatever a sink already has is not sent, and nothing
//! is visible at the target before [`Sink::finish`]: a sink that is dropped unfinished leaves the target as it was.

mod ahead;
mod archive;
mod docker;
mod error;
mod file;
mod layout;
mod load;
mod missing;
mod opening;
mod partial;
mod podman;
mod receiver;
mod registry;
mod runtime;
mod spool;
mod stream;
mod target;
mod twin;
mod written;

#[cfg(test)]
#[path = "at_once_tests.rs"]
mod at_once;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod samples;

pub use archive::{Archive, ArchiveNames};
pub use error::DeliveryError;
pub use file::FileSink;
pub use layout::LayoutSink;
pub use load::RuntimeSink;
pub use missing::{LayerBytes, Missing};
pub use opening::Opening;
pub use receiver::Receiver;
pub use registry::RegistrySink;
pub use runtime::{InvalidRuntime, Runtime, RuntimeClient};
pub use spool::Spool;
pub use stream::StreamSink;
pub use target::{Means, Target, TargetError, TargetRequest};

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::blob::Digest;
use crate::event::{Event, Observer, Stage};
use crate::image::{Images, Layer};
use crate::outlet::Outlet;

/// Where a layer's bytes come from: the layer store, or packing on the way.
pub trait BlobProvider: Sync {
    /// On how many threads layers' bytes are best made at once.
    fn threads(&self) -> usize {
        1
    }

    /// What earlier runs delivered.
    fn past(&self) -> &dyn Past {
        &NoPast
    }

    /// Is told which layers will be asked for, before the first one is: the time to find out which bytes are still good,
    /// as what has gone out into a stream cannot be taken back.
    fn prepare(&self, layers: &[&Layer]) {
        let _ = layers;
    }

    /// Writes the layer's blob to `out`, whole and in order.
    ///
    /// The bytes are checked against the layer's digest as they pass, or what they are made of is known to be as it was when
    /// they were; where they are not what was promised, this fails at the end. So whoever gets them commits nothing before
    /// this has returned `Ok`.
    fn copy_to(&self, layer: &Layer, out: &mut dyn Outlet) -> Result<(), BlobError>;

    /// Whether the layer's bytes are kept, so that they need only be read.
    fn is_made(&self, layer: &Layer) -> bool {
        let _ = layer;
        false
    }

    /// Whether [`BlobProvider::pours`] may be true.
    fn may_pour(&self, layer: &Layer) -> bool {
        let _ = layer;
        false
    }

    /// Whether the layer's bytes need not be hashed, and an outlet may take pages of files for them: as a rule they cost less
    /// then than to make them ahead. Holds for a moment, in which they are copied.
    fn pours(&self, layer: &Layer) -> bool {
        let _ = layer;
        false
    }
}

/// What earlier runs delivered, as far as it is remembered.
pub trait Past: Sync {
    /// The layers' blobs of an image that was delivered before, by the digest of its manifest, or of the index that
    /// stood under its name; none where that is not known.
    fn blobs_of(&self, manifest: &Digest) -> BTreeSet<Digest> {
        let _ = manifest;
        BTreeSet::new()
    }

    /// Whether the file was given this, and left like that, when it was written last.
    fn knows_output(&self, file: &Path, token: &[u8; 32]) -> bool {
        let _ = (file, token);
        false
    }

    /// The files that were given these contents when they were written last, the latest first.
    fn outputs_with(&self, contents: &[u8; 32]) -> Vec<PathBuf> {
        let _ = contents;
        Vec::new()
    }

    /// Remembers what a file was given, and the token of that and of how it was left.
    fn remember_output(&self, file: &Path, contents: &[u8; 32], token: &[u8; 32]) {
        let _ = (file, contents, token);
    }

    /// Forgets a file that is not as it was left.
    fn forget_output(&self, file: &Path) {
        let _ = file;
    }

    /// The repositories of a registry, `HOST/NAME`, with the blobs that they are remembered or said to have; who says it
    /// may have to be asked.
    fn repositories(&self, registry: &str) -> BTreeMap<String, BTreeSet<Digest>> {
        let _ = registry;
        BTreeMap::new()
    }

    /// The blobs that a repository, `HOST/NAME`, was asked for or was given by this machine, not long ago.
    fn seen_blobs(&self, repository: &str) -> BTreeSet<Digest> {
        let _ = repository;
        BTreeSet::new()
    }

    /// Remembers that a repository has these blobs.
    fn remember_blobs(&self, repository: &str, blobs: &[Digest]) {
        let _ = (repository, blobs);
    }

    /// Forgets that a repository has these blobs.
    fn forget_blobs(&self, repository: &str, blobs: &[Digest]) {
        let _ = (repository, blobs);
    }
}

/// Nothing is remembered.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPast;

impl Past for NoPast {}

/// A layer's bytes did not come.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// `out` failed; the error is the one that it gave.
    #[error("cannot write the layer's bytes")]
    Write(#[source] io::Error),
    /// The bytes cannot be had, or are not what the layer's digest promises.
    #[error(transparent)]
    Source(Box<dyn std::error::Error + Send + Sync>),
}

/// How [`Sink::finish`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Finish {
    /// The image is at the target, whole.
    Committed,
    /// The target no longer has something that [`Sink::has`] found there. Nothing was changed; the sink takes
    /// every layer anew and then finishes.
    Incomplete,
}

/// A target of delivery.
///
/// The calls come in this order: `spool` where layers are still to be made and there are places for them, `has`, `copy`,
/// `put` with the layers that it does not have unless all was copied, `finish`. All take the same images.
pub trait Sink {
    /// Whether layers could be written to their places at the target while they are made, so that it is worth the walk
    /// over their store paths to know their sizes before.
    fn has_places(&self) -> bool {
        false
    }

    /// Places in which layers of these sizes can be written while they are made, the lowest first; `None` where the
    /// target takes layers only when all is known of them.
    fn spool(&mut self, sizes: &[u64]) -> Result<Option<&Spool>, DeliveryError> {
        let _ = sizes;
        Ok(None)
    }

    /// The layers, by digest, that the target has already and that need not be put.
    fn has(&mut self, images: &Images, past: &dyn Past) -> Result<BTreeSet<Digest>, DeliveryError>;

    /// Copies the images as a whole from elsewhere, where they are as they were delivered before, and says whether that
    /// was done: no layer is looked at then.
    fn copy(&mut self, images: &Images, past: &dyn Past, observer: &dyn Observer) -> Result<bool, DeliveryError> {
        let _ = (images, past, observer);
        Ok(false)
    }

    /// Whether the target may get the layer from elsewhere, so that its bytes may never be wanted: the sink has them
    /// prepared when they are ([`LayerBytes::prepare`]).
    fn may_find(&self, layer: &Layer) -> bool {
        let _ = layer;
        false
    }

    /// Takes the layers that the target lacks, none where it has all. Where this fails the sink is used no more.
    fn put(&mut self, missing: &Missing<'_>) -> Result<(), DeliveryError>;

    /// Which of the layers that it was to be given it took from elsewhere at the target: their blobs, and their bytes.
    fn found_there(&self) -> (usize, u64) {
        (0, 0)
    }

    /// Makes the images visible at the target under their name, in one step.
    fn finish(&mut self, images: &Images, past: &dyn Past) -> Result<Finish, DeliveryError>;
}

/// What a delivery did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// How many blobs of layers were sent.
    pub layers_sent: usize,
    /// Their length in bytes.
    pub bytes_sent: u64,
    /// How many blobs of layers the target had already.
    pub layers_held: usize,
    /// Their length in bytes.
    pub bytes_held: u64,
}

impl Delivered {
    /// The same, where some layers were there after all.
    fn but_for(self, (layers, bytes): (usize, u64)) -> Self {
        Self {
            layers_sent: self.layers_sent.saturating_sub(layers),
            bytes_sent: self.bytes_sent.saturating_sub(bytes),
            layers_held: self.layers_held + layers,
            bytes_held: self.bytes_held + bytes,
        }
    }
}

/// Brings `images` to `sink`, their layers' bytes out of `provider`.
pub fn deliver(
    images: &Images,
    provider: &dyn BlobProvider,
    sink: &mut dyn Sink,
    observer: &dyn Observer,
) -> Result<Delivered, DeliveryError> {
    let past = provider.past();
    let held = sink.has(images, past)?;
    let delivered = send(images, &held, provider, sink, observer)?;
    if sink.finish(images, past)? == Finish::Committed {
        observer.event(Event::Finished { stage: Stage::Delivering });
        return Ok(delivered.but_for(sink.found_there()));
    }
    observer.event(Event::Detail { message: "the target lost layers that it had; sending the whole image".to_owned() });
    let delivered = send(images, &BTreeSet::new(), provider, sink, observer)?;
    match sink.finish(images, past)? {
        Finish::Committed => {
            observer.event(Event::Finished { stage: Stage::Delivering });
            Ok(delivered.but_for(sink.found_there()))
        }
        Finish::Incomplete => Err(DeliveryError::Vanished),
    }
}

/// What [`deliver`] would do now, and the layers that it would send. Nothing is sent, and the target stays as it is.
pub fn foresee<'i>(
    images: &'i Images,
    past: &dyn Past,
    sink: &mut dyn Sink,
) -> Result<(Delivered, Vec<&'i Layer>), DeliveryError> {
    let held = sink.has(images, past)?;
    let (missing, delivered) = divide(images, &held);
    Ok((delivered, missing))
}

/// The layers that the target lacks, each blob once, and how many there are of both kinds.
fn divide<'a>(images: &'a Images, held: &BTreeSet<Digest>) -> (Vec<&'a Layer>, Delivered) {
    let (there, missing): (Vec<_>, Vec<_>) =
        images.layers().into_iter().partition(|layer| held.contains(&layer.digest));
    let bytes = |layers: &[&Layer]| layers.iter().map(|layer| layer.size).sum();
    let delivered = Delivered {
        layers_sent: missing.len(),
        bytes_sent: bytes(&missing),
        layers_held: there.len(),
        bytes_held: bytes(&there),
    };
    (missing, delivered)
}

fn send(
    images: &Images,
    held: &BTreeSet<Digest>,
    provider: &dyn BlobProvider,
    sink: &mut dyn Sink,
    observer: &dyn Observer,
) -> Result<Delivered, DeliveryError> {
    let (missing, delivered) = divide(images, held);
    observer.event(Event::Started { stage: Stage::Delivering, total_bytes: delivered.bytes_sent });
    if sink.copy(images, provider.past(), observer)? {
        return Ok(delivered);
    }
    let wanted: Vec<&Layer> = missing.iter().copied().filter(|layer| !sink.may_find(layer)).collect();
    provider.prepare(&wanted);
    sink.put(&Missing::new(missing, provider, observer))?;
    Ok(delivered)
}
