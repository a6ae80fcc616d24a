//! Standard output: the archive, to whoever reads it.

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::{Archive, ArchiveNames, DeliveryError, Finish, LayerBytes, Sink};
use crate::blob::Digest;
use crate::image::{Image, Layer};

/// Writes the archive to a stream. What went out cannot be taken back, but it is no whole archive before the end.
pub struct StreamSink<W> {
    out: W,
    archive: Archive,
}

impl<W: Write> StreamSink<W> {
    /// A sink on `out`, which need not be buffered.
    pub fn new(out: W) -> Self {
        Self { out, archive: Archive::new() }
    }
}

/// A reader that went away is no failure of this tool's.
fn describe(error: io::Error) -> DeliveryError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => DeliveryError::ClosedPipe,
        _ => DeliveryError::Stream(error),
    }
}

impl<W: Write> Sink for StreamSink<W> {
    fn has(&mut self, _: &Image) -> Result<BTreeSet<Digest>, DeliveryError> {
        Ok(BTreeSet::new())
    }

    fn put(&mut self, layer: &Layer, bytes: LayerBytes<'_>) -> Result<(), DeliveryError> {
        self.archive.put(&mut self.out, layer, bytes, describe)
    }

    fn finish(&mut self, image: &Image) -> Result<Finish, DeliveryError> {
        std::mem::take(&mut self.archive).finish(&mut self.out, image, &ArchiveNames::portable(image), describe)?;
        Ok(Finish::Committed)
    }
}
