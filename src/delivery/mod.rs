//! Delivery: an image goes to a file, a stream, a container runtime or an OCI image layout.
//!
//! [`deliver`] is the one way through; each target is a [`Sink`]. Whatever a sink already has is not sent, and nothing
//! is visible at the target before [`Sink::finish`]: a sink that is dropped unfinished leaves the target as it was.

mod archive;
mod child;
mod docker;
mod error;
mod file;
mod layout;
mod load;
mod opening;
mod partial;
mod podman;
mod runtime;
mod stream;
mod target;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod samples;

pub use archive::{Archive, ArchiveNames};
pub use error::DeliveryError;
pub use file::FileSink;
pub use layout::LayoutSink;
pub use load::RuntimeSink;
pub use opening::Opening;
pub use runtime::{InvalidRuntime, Runtime, RuntimeClient};
pub use stream::StreamSink;
pub use target::{Target, TargetError, TargetRequest};

use std::collections::BTreeSet;
use std::io::{self, Write};

use crate::blob::Digest;
use crate::event::{Event, Observer, Stage};
use crate::image::{Image, Layer};

/// Where a layer's bytes come from: the layer store, or packing on the way.
pub trait BlobProvider {
    /// Is told which layers will be asked for, before the first one is: the time to find out which bytes are still good,
    /// as what has gone out into a stream cannot be taken back.
    fn prepare(&self, layers: &[&Layer]) {
        let _ = layers;
    }

    /// Writes the layer's blob to `out`, whole and in order.
    ///
    /// The bytes are checked against the layer's digest as they pass; where they are not what was promised, this fails
    /// at the end. So whoever gets them commits nothing before this has returned `Ok`.
    fn copy_to(&self, layer: &Layer, out: &mut dyn Write) -> Result<(), BlobError>;

    /// The layers' blobs of an image that was delivered before, by the digest of its manifest; none where that is not
    /// known.
    fn blobs_of(&self, manifest: &Digest) -> BTreeSet<Digest> {
        let _ = manifest;
        BTreeSet::new()
    }
}

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
    /// every layer from anew and then finishes.
    Incomplete,
}

/// A target of delivery.
///
/// The calls come in this order: `has`, `put` for each layer that it does not have (the lowest first, each once),
/// `finish`. All take the same image.
pub trait Sink {
    /// The layers, by digest, that the target has already and that need not be put. `provider` may know which blobs
    /// other images have.
    fn has(&mut self, image: &Image, provider: &dyn BlobProvider) -> Result<BTreeSet<Digest>, DeliveryError>;

    /// Takes one layer. Where this fails the sink is used no more.
    fn put(&mut self, layer: &Layer, bytes: LayerBytes<'_>) -> Result<(), DeliveryError>;

    /// Makes the image visible at the target, in one step.
    fn finish(&mut self, image: &Image) -> Result<Finish, DeliveryError>;
}

/// One layer's bytes, to be copied once: counted, stopped when the user wants it, and of the promised length.
pub struct LayerBytes<'a> {
    layer: &'a Layer,
    provider: &'a dyn BlobProvider,
    observer: &'a dyn Observer,
}

impl LayerBytes<'_> {
    /// Copies the bytes to `out`; `describe` says what a failure of `out` means.
    pub fn copy_to(
        self,
        out: &mut dyn Write,
        describe: impl FnOnce(io::Error) -> DeliveryError,
    ) -> Result<(), DeliveryError> {
        let mut metered = Metered { out, observer: self.observer, bytes: 0, failure: None };
        let copied = self.provider.copy_to(self.layer, &mut metered);
        let Metered { bytes, failure, .. } = metered;
        // Who failed is known here, however the provider wraps it: `out`, the user, or the provider itself.
        match failure {
            Some(_) if self.observer.cancelled() => return Err(DeliveryError::Interrupted),
            Some(error) => return Err(describe(error)),
            None => {}
        }
        match copied {
            Err(BlobError::Write(error)) => Err(describe(error)),
            Err(BlobError::Source(source)) => Err(DeliveryError::Layer { digest: self.layer.digest, source }),
            Ok(()) if bytes != self.layer.size => {
                Err(DeliveryError::LayerSize { digest: self.layer.digest, expected: self.layer.size, found: bytes })
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Tells the observer of every buffer, and remembers why its writer failed.
struct Metered<'a> {
    out: &'a mut dyn Write,
    observer: &'a dyn Observer,
    bytes: u64,
    failure: Option<io::Error>,
}

impl Write for Metered<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written =
            if self.observer.cancelled() { Err(io::Error::other("interrupted")) } else { self.out.write(buf) };
        match written {
            Ok(written) => {
                self.bytes += written as u64;
                self.observer.event(Event::Advanced { bytes: written as u64 });
                Ok(written)
            }
            // Not a failure: whoever writes tries again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.failure = Some(error);
                Err(copy)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
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

/// Brings `image` to `sink`, its layers' bytes out of `provider`.
pub fn deliver(
    image: &Image,
    provider: &dyn BlobProvider,
    sink: &mut dyn Sink,
    observer: &dyn Observer,
) -> Result<Delivered, DeliveryError> {
    let held = sink.has(image, provider)?;
    let delivered = send(image, &held, provider, sink, observer)?;
    if sink.finish(image)? == Finish::Committed {
        observer.event(Event::Finished { stage: Stage::Delivering });
        return Ok(delivered);
    }
    observer.event(Event::Detail { message: "the target lost layers that it had; sending the whole image".to_owned() });
    let delivered = send(image, &BTreeSet::new(), provider, sink, observer)?;
    match sink.finish(image)? {
        Finish::Committed => {
            observer.event(Event::Finished { stage: Stage::Delivering });
            Ok(delivered)
        }
        Finish::Incomplete => Err(DeliveryError::Vanished),
    }
}

fn send(
    image: &Image,
    held: &BTreeSet<Digest>,
    provider: &dyn BlobProvider,
    sink: &mut dyn Sink,
    observer: &dyn Observer,
) -> Result<Delivered, DeliveryError> {
    // Two layers may be one blob.
    let mut seen = BTreeSet::new();
    let blobs = image.layers.iter().filter(|layer| seen.insert(layer.digest));
    let (there, missing): (Vec<_>, Vec<_>) = blobs.partition(|layer| held.contains(&layer.digest));
    let bytes = |layers: &[&Layer]| layers.iter().map(|layer| layer.size).sum();
    let delivered = Delivered {
        layers_sent: missing.len(),
        bytes_sent: bytes(&missing),
        layers_held: there.len(),
        bytes_held: bytes(&there),
    };
    observer.event(Event::Started { stage: Stage::Delivering, total_bytes: delivered.bytes_sent });
    provider.prepare(&missing);
    for layer in missing {
        if observer.cancelled() {
            return Err(DeliveryError::Interrupted);
        }
        sink.put(layer, LayerBytes { layer, provider, observer })?;
    }
    Ok(delivered)
}
