//! The crew: pieces of all layers are compressed on all cores, and each layer gets its own back in order.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Compression;
use super::bounds::Bounds;
use super::buffers::Buffers;
use super::compression::Codec;

/// Compresses on rayon's threads. Its memory is bounded by the number of pieces that are in its hands at once, and by that
/// of its codecs.
pub(super) struct Crew {
    shop: Arc<Shop>,
    places: Arc<Places>,
}

impl Crew {
    /// A crew that has so many pieces at once, in work and waiting.
    pub(super) fn new(compression: Compression, bounds: Bounds) -> Self {
        let work = Work { waiting: VecDeque::new(), running: 0, spare: Vec::new() };
        let shop = Shop { compression, compressors: bounds.compressors, work: Mutex::new(work) };
        let free = Mutex::new(vec![Vec::new(); bounds.places]);
        Self { shop: Arc::new(shop), places: Arc::new(Places { free, freed: Condvar::new() }) }
    }

    /// Frees the memory of all places and codecs that nobody has.
    pub(super) fn free(&self) {
        self.places.free().fill_with(Vec::new);
        self.shop.work().spare.clear();
    }

    /// A line for one layer's pieces; what they compress to goes to `out`.
    pub(super) fn line<'c, W: Write>(&'c self, buffers: &'c Buffers, out: W) -> Line<'c, W> {
        Line { crew: self, buffers, out, waiting: VecDeque::new() }
    }

    fn compress(&self, buffer: Box<[u8]>, filled: usize, place: Place) -> Receiver<io::Result<Done>> {
        let (done, receive) = sync_channel(1);
        self.shop.work().waiting.push_back(Job { buffer, filled, place, done });
        Shop::begin(&self.shop);
        receive
    }
}

/// A piece to be compressed.
struct Job {
    buffer: Box<[u8]>,
    filled: usize,
    place: Place,
    done: SyncSender<io::Result<Done>>,
}

/// Where the pieces of all layers are compressed, in the order in which they came.
struct Shop {
    compression: Compression,
    /// How many are compressed at once: at high levels a codec's tables are larger than all that a run has besides.
    compressors: usize,
    work: Mutex<Work>,
}

struct Work {
    /// Nothing waits unless as many are running as may.
    waiting: VecDeque<Job>,
    running: usize,
    /// Codecs that nobody uses now.
    spare: Vec<Codec>,
}

impl Shop {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins what has waited longest, if it may begin; whoever is done begins the next.
    fn begin(shop: &Arc<Self>) {
        let mut work = shop.work();
        if work.running == shop.compressors {
            return;
        }
        let Some(job) = work.waiting.pop_front() else { return };
        work.running += 1;
        let codec = work.spare.pop();
        drop(work);
        let shop = Arc::clone(shop);
        rayon::spawn_fifo(move || {
            let Job { buffer, filled, mut place, done } = job;
            let made = codec.map_or_else(|| new_codec(shop.compression), Ok);
            let compressed = made.and_then(|mut codec| {
                let compressed = codec.compress(&buffer[..filled], &mut place.compressed);
                shop.work().spare.push(codec);
                compressed
            });
            shop.work().running -= 1;
            Self::begin(&shop);
            // Last: who has the last piece may free the codecs. Nobody receives it where the layer was given up.
            let _ = done.send(compressed.map(|()| Done { buffer, place }));
        });
    }
}

fn new_codec(compression: Compression) -> io::Result<Codec> {
    Codec::new(compression)?.ok_or_else(|| io::Error::other("there is nothing to compress"))
}

/// A compressed piece.
struct Done {
    buffer: Box<[u8]>,
    /// Where it is compressed; free again when that is written.
    place: Place,
}

/// One layer's pieces on their way through the crew.
pub(super) struct Line<'c, W> {
    crew: &'c Crew,
    buffers: &'c Buffers,
    out: W,
    waiting: VecDeque<Receiver<io::Result<Done>>>,
}

impl<W: Write> Line<'_, W> {
    /// Gives the crew a piece, and gets a buffer of the same length for the next one. Waits while the crew is busy.
    pub(super) fn put(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
        while let Some(done) = self.waiting.front().map(Receiver::try_recv) {
            match done {
                Ok(done) => {
                    self.waiting.pop_front();
                    self.write(done?)?;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Err(lost()),
            }
        }
        let place = loop {
            if let Some(place) = Place::try_take(&self.crew.places) {
                break place;
            }
            // What this layer has in the crew's hands frees a place; if it has nothing there, others do.
            match self.waiting.pop_front() {
                Some(oldest) => self.write(wait(&oldest)?)?,
                None => Places::wait(&self.crew.places),
            }
        };
        self.waiting.push_back(self.crew.compress(buffer, filled, place));
        Ok(self.buffers.take())
    }

    /// Waits for the last piece and gives the writer back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        while let Some(oldest) = self.waiting.pop_front() {
            self.write(wait(&oldest)?)?;
        }
        Ok(self.out)
    }

    fn write(&mut self, done: Done) -> io::Result<()> {
        self.out.write_all(&done.place.compressed)?;
        self.buffers.put(done.buffer);
        Ok(())
    }
}

/// Waits for a piece. On a thread of the crew itself, it works meanwhile: it may be the only one.
fn wait(piece: &Receiver<io::Result<Done>>) -> io::Result<Done> {
    loop {
        match rayon::yield_now() {
            None => return piece.recv().map_err(|_| lost())?,
            Some(rayon::Yield::Executed) => {}
            Some(rayon::Yield::Idle) => std::thread::sleep(Duration::from_micros(100)),
        }
        match piece.recv_timeout(Duration::ZERO) {
            Ok(done) => return done,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(lost()),
        }
    }
}

fn lost() -> io::Error {
    io::Error::other("a thread that compresses ended before its work")
}

/// Places for the pieces that the crew may hold beside those that it has: each is memory for what one compresses to, for new
/// memory costs the system a page at a time, and is not given back as it was taken.
struct Places {
    free: Mutex<Vec<Vec<u8>>>,
    freed: Condvar,
}

impl Places {
    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(self: &Arc<Self>) {
        let free = self.free();
        if !free.is_empty() {
            return;
        }
        if rayon::current_thread_index().is_some() {
            drop(free);
            rayon::yield_now();
        } else {
            drop(self.freed.wait(free));
        }
    }
}

/// The right to have a piece in the crew's hands.
struct Place {
    compressed: Vec<u8>,
    places: Arc<Places>,
}

impl Place {
    fn try_take(places: &Arc<Places>) -> Option<Self> {
        let compressed = places.free().pop()?;
        Some(Self { compressed, places: Arc::clone(places) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.free().push(std::mem::take(&mut self.compressed));
        self.places.freed.notify_one();
    }
}
