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
        let state = Mutex::new(State { free: vec![Vec::new(); bounds.places], hungry: 0 });
        let places = Places { state, freed: Condvar::new(), patience: PATIENCE };
        Self { shop: Arc::new(shop), places: Arc::new(places) }
    }

    /// Frees the memory of all places and codecs that nobody has.
    pub(super) fn free(&self) {
        self.places.state().free.fill_with(Vec::new);
        self.shop.work().spare.clear();
    }

    /// A line for one layer's pieces; what they compress to goes to `out`.
    pub(super) fn line<'c, W: Write>(&'c self, buffers: &'c Buffers, out: W) -> Line<'c, W> {
        Line { crew: self, buffers, out, waiting: VecDeque::new() }
    }

    fn compress(&self, buffer: Box<[u8]>, filled: usize, place: Place) -> Receiver<io::Result<Done>> {
        let (done, receive) = sync_channel(1);
        self.shop.work().waiting.push_back(Job { buffer, filled, place, done });
        let shop = Arc::clone(&self.shop);
        // One for each piece, where whoever gives it has its threads: a thread of the crew that gives pieces itself may not
        // come back to what it has begun for others.
        rayon::spawn_fifo(move || shop.compress_what_waits());
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
    /// For each a thread comes, or is there already.
    waiting: VecDeque<Job>,
    running: usize,
    /// Codecs that nobody uses now.
    spare: Vec<Codec>,
}

impl Shop {
    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compresses pieces, the one that has waited longest first, until none waits; nothing where as many threads do so as
    /// may: each of them looks once more before it ends.
    fn compress_what_waits(&self) {
        let mut next = self.work().begin(self.compressors);
        while let Some((job, codec)) = next {
            let Job { buffer, filled, mut place, done } = job;
            let made = codec.map_or_else(|| new_codec(self.compression), Ok);
            let mut spare = None;
            let compressed =
                made.and_then(|codec| spare.insert(codec).compress(&buffer[..filled], &mut place.compressed));
            next = self.work().go_on(spare);
            // Last: who has the last piece may free the codecs. Nobody receives it where the layer was given up.
            let _ = done.send(compressed.map(|()| Done { buffer, place }));
        }
    }
}

impl Work {
    /// What a thread that comes begins with, and a codec that nobody uses.
    fn begin(&mut self, compressors: usize) -> Option<(Job, Option<Codec>)> {
        if self.running == compressors {
            return None;
        }
        self.running += 1;
        self.go_on(None)
    }

    /// What a thread that is done goes on with; it ends where nothing waits.
    fn go_on(&mut self, codec: Option<Codec>) -> Option<(Job, Option<Codec>)> {
        self.spare.extend(codec);
        match self.waiting.pop_front() {
            Some(job) => Some((job, self.spare.pop())),
            None => {
                self.running -= 1;
                None
            }
        }
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
        let places = &self.crew.places;
        let place = loop {
            if self.waiting.is_empty() {
                break places.take_first();
            }
            if let Some(place) = places.take_more() {
                break place;
            }
            // What this layer has in the crew's hands frees a place.
            if let Some(oldest) = self.waiting.pop_front() {
                self.write(wait(&oldest)?)?;
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

/// How long a layer that has nothing in the crew's hands waits for a place. Longer than all pieces take that are there, at
/// the highest level, too.
const PATIENCE: Duration = Duration::from_secs(10);
/// The length of one wait: so often it is counted.
const INTERVAL: Duration = Duration::from_millis(20);

/// Places for the pieces that the crew may hold beside those that it has: each is memory for what one compresses to, for new
/// memory costs the system a page at a time, and is not given back as it was taken.
struct Places {
    state: Mutex<State>,
    freed: Condvar,
    patience: Duration,
}

struct State {
    free: Vec<Vec<u8>>,
    /// How many layers wait that have nothing in the crew's hands: who has something leaves as many places free.
    hungry: usize,
}

impl Places {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another place for a layer that has something in the crew's hands, if one is free.
    fn take_more(self: &Arc<Self>) -> Option<Place> {
        let mut state = self.state();
        let is_left = state.free.len() > state.hungry;
        let compressed = state.free.pop_if(|_| is_left)?;
        Some(Place { compressed, places: Arc::clone(self) })
    }

    /// A place for a layer that has nothing in the crew's hands. All of them may be held by layers that nobody reads on
    /// before this one has gone out: so there is one more where none has become free for long.
    fn take_first(self: &Arc<Self>) -> Place {
        let mut state = self.state();
        state.hungry += 1;
        let mut waited = Duration::ZERO;
        let compressed = loop {
            if let Some(compressed) = state.free.pop() {
                break compressed;
            }
            if waited >= self.patience {
                break Vec::new();
            }
            if rayon::current_thread_index().is_some() {
                drop(state);
                // It may be the only thread of the crew.
                if rayon::yield_now() != Some(rayon::Yield::Executed) {
                    std::thread::sleep(INTERVAL);
                    waited += INTERVAL;
                }
                state = self.state();
            } else {
                state = self.freed.wait_timeout(state, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
                waited += INTERVAL;
            }
        };
        state.hungry -= 1;
        drop(state);
        Place { compressed, places: Arc::clone(self) }
    }
}

/// The right to have a piece in the crew's hands.
struct Place {
    compressed: Vec<u8>,
    places: Arc<Places>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.state().free.push(std::mem::take(&mut self.compressed));
        self.places.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PIECE: usize = 4096;

    /// Takes something only once it may.
    struct Stopped(mpsc::Receiver<()>);

    impl Write for Stopped {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            // An error is that the sender is gone: from then on all is taken.
            let _ = self.0.recv();
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn put(line: &mut Line<'_, impl Write>, buffers: &Buffers, pieces: usize) {
        for n in 0..pieces {
            let mut buffer = buffers.take();
            buffer.fill(n as u8);
            let spare = line.put(buffer, PIECE).unwrap();
            buffers.put(spare);
        }
    }

    #[test]
    fn a_layer_that_nobody_reads_on_holds_up_no_other() {
        let compression = Compression::Zstd(1);
        let mut crew = Crew::new(compression, Bounds { compressors: 1, places: 2 });
        Arc::get_mut(&mut crew.places).unwrap().patience = Duration::from_millis(100);
        let buffers = Buffers::new(PIECE);
        let (release, stopped) = mpsc::channel();
        let (told, over) = mpsc::channel();
        std::thread::scope(|scope| {
            // It takes all places, and then its writer takes nothing.
            let held = scope.spawn(|| {
                let mut line = crew.line(&buffers, Stopped(stopped));
                put(&mut line, &buffers, 6);
                line.finish().unwrap();
            });
            while !crew.places.state().free.is_empty() {
                std::thread::yield_now();
            }
            scope.spawn(|| {
                let mut line = crew.line(&buffers, Vec::new());
                put(&mut line, &buffers, 6);
                told.send(line.finish().unwrap()).unwrap();
            });
            let written = over.recv_timeout(Duration::from_secs(30));
            let is_held = !held.is_finished();
            drop(release);
            assert!(is_held && !written.expect("the other layer waits for ever").is_empty());
        });
    }
}
