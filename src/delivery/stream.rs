//! Standard output: the archive, to whoever reads it.

use std::collections::BTreeSet;

use super::{Archive, ArchiveNames, DeliveryError, Finish, Missing, Past, Sink};
use crate::blob::Digest;
use crate::image::Images;
use crate::outlet::Outlet;

/// Writes the archive to a stream. What went out cannot be taken back, but it is no whole archive before the end.
pub struct StreamSink<W> {
    out: W,
    archive: Archive,
}

impl<W: Outlet> StreamSink<W> {
    /// A sink on `out`, which need not be buffered.
    pub fn new(out: W) -> Self {
        Self { out, archive: Archive::new() }
    }
}

impl<W: Outlet> Sink for StreamSink<W> {
    fn has(&mut self, _: &Images, _: &dyn Past) -> Result<BTreeSet<Digest>, DeliveryError> {
        Ok(BTreeSet::new())
    }

    fn put(&mut self, missing: &Missing<'_>) -> Result<(), DeliveryError> {
        missing.in_order(self.out.takes_pages(), |layer, bytes| {
            self.archive.put(&mut self.out, layer, bytes, DeliveryError::of_stream)
        })
    }

    fn finish(&mut self, images: &Images, _: &dyn Past) -> Result<Finish, DeliveryError> {
        std::mem::take(&mut self.archive).finish(
            &mut self.out,
            images,
            &ArchiveNames::portable(images.name()),
            DeliveryError::of_stream,
        )?;
        Ok(Finish::Committed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{deliver, image};
    use super::*;
    use crate::event::Silent;
    use std::io;

    #[test]
    fn a_reader_that_goes_away_is_told_from_a_failure() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (image, blobs) = image("v1", &["base"]);
        let error = deliver(&image, &blobs, &mut StreamSink::new(writer), &Silent).unwrap_err();
        assert!(matches!(error, DeliveryError::ClosedPipe), "{error}");

        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let error = deliver(&image, &blobs, &mut StreamSink::new(full), &Silent).unwrap_err();
        assert_eq!(error.to_string(), "cannot write to stdout");
        assert!(error.hint().unwrap().contains("space"), "{:?}", error.hint());
    }
}
