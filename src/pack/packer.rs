//! The packer: what all layers of a run share while they are packed, and the way of one layer through it.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use rustix::process::{Resource, getrlimit};

use super::bounds::Bounds;
use super::buffers::Buffers;
use super::crew::Crew;
use super::layer::{LayerContents, Lost, PackError, Packed};
use super::tar_writer::{TakePiece, TarWriter};
use super::{Compression, crew};
use crate::blob::{DiffId, Digest};
use crate::event::{Cancelled, Event, Observer};
use crate::nix::{Skeleton, Source, StorePath, TreeState};
use crate::outlet::Outlet;
use crate::parallel;
use crate::sha256::{self, Lane, LaneStream, Lanes, Partner, Partners, Sha256};

/// Packs layers, several at once on threads of the caller's: they hash their streams together, and share a crew that
/// compresses on all cores.
pub struct Packer<'a> {
    source: &'a dyn Source,
    compression: Compression,
    observer: &'a dyn Observer,
    partners: Partners,
    buffers: Buffers,
    /// Those of layers in lanes.
    of_lanes: Buffers,
    /// Those of layers in lanes whose bytes go nowhere.
    of_digests: Buffers,
    crew: Crew,
    /// What runtimes will not unpack of the layers that were packed, until that is told.
    lost: Mutex<Lost>,
}

/// So many files packing one layer has open at the most: directories on the way to a file, that file, a claim, and where
/// the layer goes.
const OPEN_FILES: usize = 12;

/// How long the pieces are that are hashed together with those of others in lanes: so many have to fit into a core's cache.
/// Shorter ones take longer to write.
const PIECE_OF_A_LANE: usize = 128 << 10;
/// The same, where they are hashed and nothing else.
const PIECE_OF_A_DIGEST: usize = 64 << 10;

impl<'a> Packer<'a> {
    /// A packer of store paths from `source`; `observer` may stop the work.
    pub fn new(source: &'a dyn Source, compression: Compression, observer: &'a dyn Observer) -> Self {
        let bounds = Bounds::new(compression, rayon::current_num_threads());
        let (buffers, crew) = (Buffers::new(compression.piece()), Crew::new(compression, bounds));
        let (of_lanes, of_digests) = (Buffers::new(PIECE_OF_A_LANE), Buffers::new(PIECE_OF_A_DIGEST));
        let (partners, lost) = (Partners::default(), Mutex::default());
        Self { source, compression, observer, partners, buffers, of_lanes, of_digests, crew, lost }
    }

    /// Warns of files which no container will have, in the layers that were packed since it did so last.
    pub fn tell_what_is_lost(&self) {
        let lost = std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner));
        let Lost { first: Some(first), count } = lost else { return };
        let first = String::from_utf8_lossy(&first).into_owned();
        let others = match count {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        let message = format!(
            "containers will lack '/{first}'{others}: runtimes take files whose names begin with '.wh.' for whiteouts"
        );
        self.observer.event(Event::Warning { message });
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

    /// How many threads should be at work on layers at once, each on one after the other: those that are packed, or have
    /// been and go somewhere.
    pub fn threads(&self) -> usize {
        // Of several that have something to hash one works for all while the others sleep; and some wait for a disk.
        let of_a_core = if self.compression == Compression::None { 3 } else { 2 };
        (of_a_core * rayon::current_num_threads()).min(most_at_once())
    }

    /// Does `work` for each item, which packs a layer, several at once; `bytes` is about how many are to be packed in all.
    ///
    /// Layers that are not compressed are packed in lanes, where all that they need is `near`: nobody waits there but for a
    /// disk. Others wait for the crew, or for a network, and are packed on threads of their own. So are all on a CPU that
    /// gains nothing by lanes.
    pub fn for_each<T: Sync, E: Send>(
        &self,
        items: &[T],
        bytes: u64,
        near: bool,
        work: impl Fn(&T, Option<&Lane>) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        if self.compression != Compression::None || !near || !sha256::is_faster_together() {
            // One that is compressed has a piece in the crew's hands, or waits for a place there.
            let threads = match self.compression {
                Compression::None => self.threads(),
                compressed => self.threads().min(Bounds::new(compressed, rayon::current_num_threads()).places),
            };
            return parallel::for_each(threads, items, |item| work(item, None));
        }
        let cores = rayon::current_num_threads();
        let Shares { of_a_thread, helpers, of_a_helper } =
            Shares::new(most_at_once(), cores, self.threads(), sha256::streams_at_once);
        // The first thread shall not take all that there is before the others come.
        let of_a_thread = of_a_thread.min(items.len().div_ceil(cores));
        let lanes = Lanes::new(bytes, cores, of_a_thread, of_a_helper);
        parallel::for_each_with(
            cores.min(most_at_once()) + helpers,
            items,
            |take_items| lanes.run(take_items),
            // The others are not waited for: each has much to do yet, and all that for nothing.
            |item, lane| {
                work(item, Some(lane)).inspect_err(|_| lanes.stop())?;
                sha256::rest(lane);
                Ok(())
            },
        )
    }

    /// Frees the memory in which layers were packed; more of them may follow all the same.
    pub fn pause(&self) {
        self.buffers.free();
        self.of_lanes.free();
        self.of_digests.free();
        self.partners.free();
        self.crew.free();
    }

    /// Packs one layer into `out` in one pass, and tells the observer of every piece of tar.
    pub fn pack(&self, contents: &LayerContents<'_>, out: &mut dyn Write) -> Result<Packed, PackError> {
        Ok(self.pack_in_state(contents, Some(out), None)?.0)
    }

    /// As [`Packer::pack`], in a lane where there is one, and to nowhere where only digests are wanted. Of a layer that is not
    /// compressed it says in what state the trees were: as long as they are in that, its bytes need not be hashed again.
    pub fn pack_in_state(
        &self,
        contents: &LayerContents<'_>,
        out: Option<&mut dyn Write>,
        lane: Option<&Lane>,
    ) -> Result<(Packed, Option<TreeState>), PackError> {
        let mut found = Lost::default();
        let tell = |bytes| self.observer.event(Event::Advanced { bytes });
        let packed = self.pack_and_tell(contents, out, lane, &tell, &mut found)?;
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).join(found);
        Ok(packed)
    }

    /// Packs one layer that was packed before: those who take its bytes tell how far they are.
    pub fn pack_again(
        &self,
        contents: &LayerContents<'_>,
        out: &mut dyn Write,
    ) -> Result<(Packed, Option<TreeState>), PackError> {
        self.pack_and_tell(contents, Some(out), None, &|_| (), &mut Lost::default())
    }

    /// Writes one layer's tar, and takes no digest: it was taken before. Says in what state the layer's trees were.
    pub fn write_again(
        &self,
        contents: &LayerContents<'_>,
        out: &mut dyn Outlet,
    ) -> Result<Option<TreeState>, PackError> {
        let mut unhashed = Unhashed { observer: self.observer, takes_pages: out.takes_pages(), out };
        Ok(self.write_tar(contents, &mut unhashed, &self.buffers, &mut Lost::default())?.1)
    }

    fn pack_and_tell(
        &self,
        contents: &LayerContents<'_>,
        out: Option<&mut dyn Write>,
        lane: Option<&Lane>,
        tell: &dyn Fn(u64),
        lost: &mut Lost,
    ) -> Result<(Packed, Option<TreeState>), PackError> {
        let of_lane = if out.is_some() { &self.of_lanes } else { &self.of_digests };
        let mut nowhere = io::sink();
        let out = out.unwrap_or(&mut nowhere);
        if self.compression == Compression::None {
            let (tar, buffers) = match lane {
                Some(lane) => (Stream::Lane(LaneStream::begin(lane, contents.estimated_size())), of_lane),
                None => (Stream::Partner(self.partners.begin()), &self.buffers),
            };
            let mut plain = Plain { observer: self.observer, tar, buffers, tell, out };
            let (size, state) = self.write_tar(contents, &mut plain, buffers, lost)?;
            // The blob is the tar: one digest serves for both.
            let digest = Digest::from_bytes(plain.tar.finish());
            return Ok((Packed { digest, diff_id: DiffId(digest), size, tar_size: size }, state));
        }
        let (tar, compressed) = (self.partners.begin(), Compressed { out, blob: Sha256::new() });
        let line = self.crew.line(&self.buffers, compressed);
        let mut compressing = Compressing { observer: self.observer, tar, tell, line };
        let (tar_size, _) = self.write_tar(contents, &mut compressing, &self.buffers, lost)?;
        let Compressing { tar, line, .. } = compressing;
        let Compressed { blob, .. } = line.finish().map_err(PackError::Write)?;
        let size = blob.bytes();
        let (digest, diff_id) = (Digest::from_bytes(blob.finish()), Digest::from_bytes(tar.finish()));
        Ok((Packed { digest, diff_id: DiffId(diff_id), size, tar_size }, None))
    }

    /// The length in bytes of a layer's tar.
    pub fn tar_size(&self, contents: &LayerContents<'_>) -> Result<u64, PackError> {
        contents.tar_size(self.source)
    }

    /// The state of the layer's trees, where it can be told without fetching them. Reads names and lengths, no contents.
    pub fn state(&self, contents: &LayerContents<'_>) -> Option<TreeState> {
        if self.is_far(contents) { None } else { contents.state(self.source) }
    }

    fn write_tar(
        &self,
        contents: &LayerContents<'_>,
        out: &mut dyn TakePiece,
        buffers: &Buffers,
        lost: &mut Lost,
    ) -> Result<(u64, Option<TreeState>), PackError> {
        contents.write_tar(self.source, TarWriter::new(out, buffers), lost)
    }
}

/// How many layers threads pack at once, of the most that all of them may.
#[derive(Debug, PartialEq, Eq)]
struct Shares {
    /// One of those, one a core, that do not wait as a rule.
    of_a_thread: usize,
    /// How many others there are, which help where those wait for a disk.
    helpers: usize,
    /// One of them: each waits for one file at a time.
    of_a_helper: usize,
}

impl Shares {
    /// `streams_at_once` is what a thread best makes where there is room for so many.
    fn new(most: usize, cores: usize, threads: usize, streams_at_once: impl Fn(usize) -> usize) -> Self {
        let helpers = threads.saturating_sub(cores);
        let at_once = streams_at_once(most.saturating_sub(helpers) / cores);
        let of_a_thread = (most / cores).clamp(1, at_once);
        let left = most.saturating_sub(cores * of_a_thread);
        let helpers = helpers.min(left);
        Self { of_a_thread, helpers, of_a_helper: left.checked_div(helpers).map_or(0, |most| most.min(2)) }
    }
}

/// How many layers may be packed at once, with half of the files that this process may have open.
fn most_at_once() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (usize::try_from(limit / 2).unwrap_or(usize::MAX) / OPEN_FILES).max(1)
}

/// A tar on its way through its digest.
enum Stream<'p> {
    /// Others wait for it, and it for them.
    Partner(Partner<'p>),
    /// It is one of several on its thread.
    Lane(LaneStream<'p>),
}

impl Stream<'_> {
    fn finish(self) -> [u8; 32] {
        match self {
            Self::Partner(stream) => stream.finish(),
            Self::Lane(stream) => stream.finish(),
        }
    }
}

/// A tar that is written as it is.
struct Plain<'p> {
    observer: &'p dyn Observer,
    tar: Stream<'p>,
    buffers: &'p Buffers,
    tell: &'p dyn Fn(u64),
    out: &'p mut dyn Write,
}

impl TakePiece for Plain<'_> {
    /// Has the piece hashed while others are read, and gives another buffer for the next one.
    fn take(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
        Cancelled::check(self.observer)?;
        let mut write = || self.out.write_all(&buffer[..filled]);
        let another = match &mut self.tar {
            Stream::Partner(stream) => {
                stream.aside(&mut write)?;
                stream.give(buffer, filled).unwrap_or_else(|| self.buffers.take())
            }
            Stream::Lane(stream) => {
                write()?;
                stream.give(buffer, filled)
            }
        };
        (self.tell)(filled as u64);
        Ok(another)
    }
}

/// A tar whose digest is known.
struct Unhashed<'p> {
    observer: &'p dyn Observer,
    takes_pages: bool,
    out: &'p mut dyn Outlet,
}

impl TakePiece for Unhashed<'_> {
    fn take(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
        Cancelled::check(self.observer)?;
        self.out.write_all(&buffer[..filled])?;
        Ok(buffer)
    }

    fn outlet(&mut self) -> Option<&mut dyn Outlet> {
        self.takes_pages.then_some(&mut *self.out)
    }
}

/// A tar that the crew compresses.
struct Compressing<'p> {
    observer: &'p dyn Observer,
    tar: Partner<'p>,
    tell: &'p dyn Fn(u64),
    line: crew::Line<'p, Compressed<'p>>,
}

impl TakePiece for Compressing<'_> {
    /// Hashes the piece, says so, and stops when the user wants to.
    fn take(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
        Cancelled::check(self.observer)?;
        let buffer = self.tar.update(buffer, filled);
        (self.tell)(filled as u64);
        self.tar.aside(|| self.line.put(buffer, filled))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_the_layers_that_may_be_packed_at_once() {
        let in_turns = |_| 2;
        let side_by_side = |room: usize| if room >= 10 { room.min(16) } else { 2 };
        for most in [1, 2, 5, 10, 21, 42, 170, 100_000] {
            for cores in 1..=64 {
                for shares in
                    [Shares::new(most, cores, 3 * cores, in_turns), Shares::new(most, cores, 3 * cores, side_by_side)]
                {
                    let Shares { of_a_thread, helpers, of_a_helper } = shares;
                    let threads = cores.min(most);
                    assert!(threads * of_a_thread + helpers * of_a_helper <= most, "{most}, {cores}: {shares:?}");
                    assert!(of_a_thread > 0 && helpers <= 2 * cores && of_a_helper <= 2, "{most}, {cores}: {shares:?}");
                    // Where each may make two others help.
                    assert!(most <= 2 * cores || helpers > 0, "{most}, {cores}: {shares:?}");
                    assert_eq!(helpers == 0, of_a_helper == 0, "{most}, {cores}: {shares:?}");
                }
            }
        }
        // With as many files open as a process may have as a rule.
        let shares = |cores| {
            let Shares { of_a_thread, helpers, of_a_helper } = Shares::new(42, cores, 3 * cores, side_by_side);
            (of_a_thread, helpers, of_a_helper)
        };
        assert_eq!([2, 3, 4, 16].map(shares), [(16, 4, 2), (12, 6, 1), (2, 8, 2), (2, 10, 1)]);
    }
}
