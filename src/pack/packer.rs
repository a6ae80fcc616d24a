//! The packer: what all layers of a run share while they are packed, and the way of one layer through it.

use std::io::{self, Write};

use super::buffers::Buffers;
use super::crew::Crew;
use super::layer::{LayerContents, PackError, Packed};
use super::tar_writer::{TakePiece, TarWriter};
use super::{Compression, crew};
use crate::blob::{DiffId, Digest};
use crate::event::{Cancelled, Event, Observer};
use crate::nix::{Skeleton, Source, StorePath, TreeState};
use crate::sha256::{Partner, Partners, Sha256};

/// Packs layers, several at once on threads of the caller's: they hash their streams together, and share a crew that
/// compresses on all cores.
pub struct Packer<'a> {
    source: &'a dyn Source,
    compression: Compression,
    observer: &'a dyn Observer,
    partners: Partners,
    buffers: Buffers,
    crew: Crew,
}

impl<'a> Packer<'a> {
    /// A packer of store paths from `source`; `observer` may stop the work.
    pub fn new(source: &'a dyn Source, compression: Compression, observer: &'a dyn Observer) -> Self {
        let cores = rayon::current_num_threads();
        let (buffers, crew) = (Buffers::new(compression.piece()), Crew::new(compression, cores));
        Self { source, compression, observer, partners: Partners::default(), buffers, crew }
    }

    /// How its layers are compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Whether something of the layer would have to be fetched from elsewhere.
    pub fn is_far(&self, contents: &LayerContents<'_>) -> bool {
        contents.store_paths().iter().any(|path| self.source.is_far(path))
    }

    /// Has the source know what is in a path that is far, and was had out of a layer.
    pub fn learn(&self, path: &StorePath, skeleton: &Skeleton) {
        self.source.learn(path, skeleton);
    }

    /// How many threads should pack at once, each one layer after the other.
    pub fn threads(&self) -> usize {
        // Of several that have something to hash one works for all while the others sleep; and some wait for a disk.
        let of_a_core = if self.compression == Compression::None { 3 } else { 2 };
        of_a_core * rayon::current_num_threads()
    }

    /// Frees the memory in which layers were packed; more of them may follow all the same.
    pub fn pause(&self) {
        self.buffers.free();
        self.partners.free();
        self.crew.free();
    }

    /// Packs one layer into `out` in one pass, and tells the observer of every piece of tar.
    pub fn pack(&self, contents: &LayerContents<'_>, out: &mut dyn Write) -> Result<Packed, PackError> {
        Ok(self.pack_in_state(contents, out)?.0)
    }

    /// As [`Packer::pack`], and says in what state the layer's trees were.
    pub fn pack_in_state(
        &self,
        contents: &LayerContents<'_>,
        out: &mut dyn Write,
    ) -> Result<(Packed, Option<TreeState>), PackError> {
        self.pack_and_tell(contents, out, &|bytes| self.observer.event(Event::Advanced { bytes }))
    }

    /// Packs one layer that was packed before: those who take its bytes tell how far they are.
    pub fn pack_again(
        &self,
        contents: &LayerContents<'_>,
        out: &mut dyn Write,
    ) -> Result<(Packed, Option<TreeState>), PackError> {
        self.pack_and_tell(contents, out, &|_| ())
    }

    /// Writes one layer's tar, and takes no digest: it was taken before. Says in what state the layer's trees were.
    pub fn write_again(
        &self,
        contents: &LayerContents<'_>,
        out: &mut dyn Write,
    ) -> Result<Option<TreeState>, PackError> {
        let mut unhashed = Unhashed { observer: self.observer, out };
        Ok(self.write_tar(contents, &mut unhashed)?.1)
    }

    fn pack_and_tell(
        &self,
        contents: &LayerContents<'_>,
        out: &mut dyn Write,
        tell: &dyn Fn(u64),
    ) -> Result<(Packed, Option<TreeState>), PackError> {
        let tar = self.partners.begin();
        if self.compression == Compression::None {
            let mut plain = Plain { tar: Watched { packer: self, tar, tell }, out };
            let (_, state) = self.write_tar(contents, &mut plain)?;
            // The blob is the tar: one digest serves for both.
            let tar = plain.tar.tar;
            let size = tar.bytes();
            let digest = Digest::from_bytes(tar.finish());
            return Ok((Packed { digest, diff_id: DiffId(digest), size, tar_size: size }, state));
        }
        let compressed = Compressed { out, blob: Sha256::new() };
        let mut compressing =
            Compressing { tar: Watched { packer: self, tar, tell }, line: self.crew.line(&self.buffers, compressed) };
        let (_, state) = self.write_tar(contents, &mut compressing)?;
        let Compressing { tar: Watched { tar, .. }, line } = compressing;
        let Compressed { blob, .. } = line.finish().map_err(PackError::Write)?;
        let (size, tar_size) = (blob.bytes(), tar.bytes());
        let (digest, diff_id) = (Digest::from_bytes(blob.finish()), Digest::from_bytes(tar.finish()));
        Ok((Packed { digest, diff_id: DiffId(diff_id), size, tar_size }, state))
    }

    /// The length in bytes of a layer's tar.
    pub fn tar_size(&self, contents: &LayerContents<'_>) -> Result<u64, PackError> {
        contents.tar_size(self.source)
    }

    fn write_tar(
        &self,
        contents: &LayerContents<'_>,
        out: &mut dyn TakePiece,
    ) -> Result<(u64, Option<TreeState>), PackError> {
        contents.write_tar(self.source, TarWriter::new(out, &self.buffers))
    }
}

/// A tar on its way through its digest.
struct Watched<'p, 'a> {
    packer: &'p Packer<'a>,
    tar: Partner<'p>,
    tell: &'p dyn Fn(u64),
}

impl Watched<'_, '_> {
    /// Hashes a piece, says so, and stops when the user wants to.
    fn hash(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
        Cancelled::check(self.packer.observer)?;
        let buffer = self.tar.update(buffer, filled);
        (self.tell)(filled as u64);
        Ok(buffer)
    }

    /// Has a piece hashed while others are read, and gives a buffer for the next one.
    fn hash_aside(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
        Cancelled::check(self.packer.observer)?;
        let another = self.tar.give(buffer, filled).unwrap_or_else(|| self.packer.buffers.take());
        (self.tell)(filled as u64);
        Ok(another)
    }
}

/// A tar that is written as it is.
struct Plain<'p, 'a> {
    tar: Watched<'p, 'a>,
    out: &'p mut dyn Write,
}

impl TakePiece for Plain<'_, '_> {
    fn take(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
        self.tar.tar.aside(|| self.out.write_all(&buffer[..filled]))?;
        self.tar.hash_aside(buffer, filled)
    }
}

/// A tar whose digest is known.
struct Unhashed<'p> {
    observer: &'p dyn Observer,
    out: &'p mut dyn Write,
}

impl TakePiece for Unhashed<'_> {
    fn take(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
        Cancelled::check(self.observer)?;
        self.out.write_all(&buffer[..filled])?;
        Ok(buffer)
    }
}

/// A tar that the crew compresses.
struct Compressing<'p, 'a> {
    tar: Watched<'p, 'a>,
    line: crew::Line<'p, Compressed<'p>>,
}

impl TakePiece for Compressing<'_, '_> {
    fn take(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
        let buffer = self.tar.hash(buffer, filled)?;
        self.tar.tar.aside(|| self.line.put(buffer, filled))
    }
}

/// Where the crew's work goes, in order.
struct Compressed<'p> {
    out: &'p mut dyn Write,
    blob: Sha256,
}

impl Write for Compressed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.out.write_all(buf)?;
        self.blob.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
