//! The crew: pieces of all layers are compressed on all cores, and each layer gets its own back in order.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Compression;
use super::buffers::Buffers;
use super::compression::Codec;

/// Compresses on rayon's threads. Its memory is bounded by the number of pieces that are in its hands at once.
pub(super) struct Crew {
    compression: Compression,
    places: Arc<Places>,
}

impl Crew {
    /// A crew of `cores` threads: each has a piece in work and one waiting.
    pub(super) fn new(compression: Compression, cores: usize) -> Self {
        let free = Mutex::new(vec![Vec::new(); 2 * cores]);
        Self { compression, places: Arc::new(Places { free, freed: Condvar::new() }) }
    }

    /// Frees the memory of all places that nobody has.
    pub(super) fn free(&self) {
        self.places.free().fill_with(Vec::new);
    }

    /// A line for one layer's pieces; what they compress to goes to `out`.
    pub(super) fn line<'c, W: Write>(&'c self, buffers: &'c Buffers, out: W) -> Line<'c, W> {
        Line { crew: self, buffers, out, waiting: VecDeque::new() }
    }

    fn compress(&self, buffer: Box<[u8]>, filled: usize, mut place: Place) -> Receiver<io::Result<Done>> {
        let (send, receive) = sync_channel(1);
        let compression = self.compression;
        rayon::spawn_fifo(move || {
            let compressed = with_codec(compression, |codec| codec.compress(&buffer[..filled], &mut place.compressed));
            // Nobody receives it where the layer was given up.
            let _ = send.send(compressed.map(|()| Done { buffer, place }));
        });
        receive
    }
}

/// Calls `work` with this thread's codec, which keeps its tables from piece to piece.
fn with_codec<T>(compression: Compression, work: impl FnOnce(&mut Codec) -> io::Result<T>) -> io::Result<T> {
    thread_local! {
        static CODEC: RefCell<Option<(Compression, Codec)>> = const { RefCell::new(None) };
    }
    CODEC.with_borrow_mut(|kept| {
        let (_, codec) = match kept {
            Some(kept) if kept.0 == compression => kept,
            other => {
                let codec = Codec::new(compression)?.ok_or_else(|| io::Error::other("there is nothing to compress"))?;
                other.insert((compression, codec))
            }
        };
        work(codec)
    })
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
