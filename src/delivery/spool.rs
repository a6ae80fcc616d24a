//! A file in which every layer has its place before it is made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use super::archive::{self, Place};
use crate::blob::Digest;
use crate::host;
use crate::image::Layer;

/// The blobs of an archive, the first of its entries, each at its place: written in any order, from several threads.
///
/// A layer whose length is known before its digest can be written here while it is made, and need not be made again to
/// be delivered; its header, which has the digest, is written later.
pub struct Spool {
    file: File,
    places: Vec<Place>,
    filled: Mutex<BTreeMap<usize, Digest>>,
}

impl Spool {
    /// Places for layers of these sizes in an empty file, which gets its length and, where the file system can, its room
    /// on the disk: a disk that is too small is known before any work.
    pub(super) fn new(file: File, sizes: impl IntoIterator<Item = u64>) -> io::Result<Self> {
        let places = Place::of_all(sizes);
        let spool = Self { file, places, filled: Mutex::default() };
        if spool.end() > 0 {
            host::reserve(&spool.file, spool.end())?;
        }
        Ok(spool)
    }

    /// A writer for the bytes of the layer `at`, counted from the lowest; `None` where that has no place.
    pub fn writer(&self, at: usize) -> Option<impl Write + '_> {
        self.places.get(at).map(|place| WriteAt { file: &self.file, at: place.bytes(), end: place.end })
    }

    /// Says that the layer `at` is at its place, whole, and what its digest is.
    pub fn fill(&self, at: usize, digest: Digest) {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner).insert(at, digest);
    }

    /// Whether this very layer is at the place.
    pub(super) fn holds(&self, at: usize, layer: &Layer) -> bool {
        self.filled.lock().unwrap_or_else(PoisonError::into_inner).get(&at) == Some(&layer.digest)
    }

    /// Whether the places are those of layers with these sizes.
    pub(super) fn fits(&self, sizes: impl IntoIterator<Item = u64>) -> bool {
        Place::of_all(sizes) == self.places
    }

    /// Writes the header before the layer `at`.
    pub(super) fn write_header(&self, at: usize, layer: &Layer) -> io::Result<()> {
        let place = self.places.get(at).ok_or_else(no_place)?;
        self.file.write_all_at(&archive::header(layer)?, place.header)
    }

    /// Where the next entry begins, in bytes from the file's beginning.
    pub(super) fn end(&self) -> u64 {
        self.places.last().map_or(0, |place| place.end)
    }
}

fn no_place() -> io::Error {
    io::Error::other("a layer has no place in the file")
}

/// Writes on from a place in a file that others write to elsewhere, and never into the next one's.
struct WriteAt<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Write for WriteAt<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() as u64 > self.end - self.at {
            return Err(io::Error::other("the layer is longer than it was"));
        }
        let written = self.file.write_at(buf, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
