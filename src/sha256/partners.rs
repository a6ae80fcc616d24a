//! Where threads that read a stream each leave what they have read, so that several streams are hashed at once.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{IN_TURNS, Sha256, update_together};

/// How long a thread waits for a partner. Another that is at work needs less to read its next piece; one whose disk is
/// slow is not worth waiting for.
const PATIENCE: Duration = Duration::from_micros(400);

/// How many pieces of a stream may wait to be hashed: a thread reads on while another hashes, and threads change places
/// on a core less often.
const MOST_WAITING: usize = 4;

/// With so many streams that have bytes a thread does not read on, but hashes them.
const ENOUGH: usize = IN_TURNS - 1;

/// So many bytes are hashed alone where no partner is there: to sleep and to wake takes longer.
const NOT_WORTH_WAITING: usize = 16 << 10;

/// Brings together the streams of several threads: of those that have bytes waiting one thread hashes some at once, while
/// the others read on, or sleep and their cores do something else.
///
/// So there should be more threads than cores, each with a stream of its own.
#[derive(Debug, Default)]
pub struct Partners {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// How many threads are at work, and may have bytes again soon.
    coming: usize,
    streams: Vec<Stream>,
    /// Places in `streams` that no thread has.
    free: Vec<usize>,
    /// Memory of pieces that were hashed.
    spare: Vec<Box<[u8]>>,
}

#[derive(Debug, Default)]
struct Stream {
    /// `None` while a thread is hashing the piece that waited longest, and where there is no stream.
    hasher: Option<Sha256>,
    waiting: VecDeque<Piece>,
    /// A piece that was hashed, and whose thread goes on with it.
    returned: Option<Box<[u8]>>,
    woken: Arc<Condvar>,
}

#[derive(Debug)]
struct Piece {
    buffer: Box<[u8]>,
    filled: usize,
    /// Whether its thread waits for it.
    is_wanted: bool,
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

impl Table {
    /// How many streams have bytes which nobody is hashing.
    fn ready(&self) -> usize {
        self.streams.iter().filter(|stream| stream.is_ready()).count()
    }

    /// Of the streams that are ready those that are hashed together next: `first`, if it is one of them, and those that
    /// have most.
    fn take_up(&mut self, first: usize) -> Vec<Work> {
        let mut work = Vec::with_capacity(IN_TURNS);
        while work.len() < IN_TURNS {
            let ready = self.streams.iter_mut().enumerate().filter(|(_, stream)| stream.is_ready());
            let Some((at, stream)) = ready.max_by_key(|(at, stream)| (*at == first, stream.waiting.len())) else {
                break;
            };
            let (Some(hasher), Some(piece)) = (stream.hasher.take(), stream.waiting.pop_front()) else { break };
            work.push(Work { at, hasher, piece });
        }
        work
    }

    fn put_down(&mut self, work: Work) {
        let stream = &mut self.streams[work.at];
        stream.hasher = Some(work.hasher);
        match work.piece.is_wanted {
            true => stream.returned = Some(work.piece.buffer),
            false => self.spare.push(work.piece.buffer),
        }
        // Its thread sleeps until there is room for several pieces, and not for each of them.
        if stream.waiting.len() <= MOST_WAITING / 2 {
            stream.woken.notify_one();
        }
    }
}

impl Stream {
    fn is_ready(&self) -> bool {
        self.hasher.is_some() && !self.waiting.is_empty()
    }
}

/// A stream and the piece that it takes in next.
struct Work {
    at: usize,
    hasher: Sha256,
    piece: Piece,
}

impl Partners {
    /// A stream that may be hashed together with those of other threads, from its first byte.
    pub fn begin(&self) -> Partner<'_> {
        let stream = Stream { hasher: Some(Sha256::new()), ..Stream::default() };
        let woken = Arc::clone(&stream.woken);
        let mut table = lock(&self.table);
        table.coming += 1;
        let at = match table.free.pop() {
            Some(at) => {
                table.streams[at] = stream;
                at
            }
            None => {
                table.streams.push(stream);
                table.streams.len() - 1
            }
        };
        Partner { partners: self, at, woken, bytes: 0 }
    }

    /// Frees the memory of pieces that were hashed.
    pub fn free(&self) {
        lock(&self.table).spare.clear();
    }

    /// Hashes a piece of each of as many streams as can be hashed together, `first` among them; nobody else has to do with
    /// those meanwhile.
    fn hash<'t>(&'t self, mut table: MutexGuard<'t, Table>, first: usize) -> MutexGuard<'t, Table> {
        let mut work = table.take_up(first);
        drop(table);
        let mut streams: Vec<_> = work.iter_mut().map(|work| (&mut work.hasher, work.piece.bytes())).collect();
        update_together(&mut streams);
        let mut table = lock(&self.table);
        work.into_iter().for_each(|work| table.put_down(work));
        table
    }
}

/// One thread's stream.
#[derive(Debug)]
pub struct Partner<'a> {
    partners: &'a Partners,
    /// Its place in the table.
    at: usize,
    woken: Arc<Condvar>,
    bytes: u64,
}

impl<'a> Partner<'a> {
    /// Takes in the first `filled` bytes of `buffer`, sooner or later, here or on another thread. What comes back is a
    /// buffer that was given before, if one is free.
    pub fn give(&mut self, buffer: Box<[u8]>, filled: usize) -> Option<Box<[u8]>> {
        self.put(Piece { buffer, filled, is_wanted: false }).spare.pop()
    }

    /// Takes in the first `filled` bytes of `buffer`, here or on another thread, and gives it back.
    pub fn update(&mut self, buffer: Box<[u8]>, filled: usize) -> Box<[u8]> {
        drop(self.put(Piece { buffer, filled, is_wanted: true }));
        self.settle(0).streams[self.at].returned.take().expect("a piece is hashed when none is left to be")
    }

    fn put(&mut self, piece: Piece) -> MutexGuard<'a, Table> {
        self.bytes += piece.filled as u64;
        let mut table = self.settle(MOST_WAITING - 1);
        table.streams[self.at].waiting.push_back(piece);
        if table.streams[self.at].is_ready() && table.ready() >= ENOUGH {
            table = self.partners.hash(table, self.at);
        }
        table
    }

    /// Does something that may take long, while which nobody waits for this stream.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        let _back = Absence::begin(self.partners);
        work()
    }

    /// How many bytes were taken in.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hash of all that was taken in.
    pub fn finish(self) -> [u8; 32] {
        let hasher = self.settle(0).streams[self.at].hasher.clone();
        hasher.expect("nobody is hashing it").finish()
    }

    /// Hashes, or waits for others who do, until no more than `most` pieces of the stream wait; of none also until nobody
    /// is hashing.
    fn settle(&self, most: usize) -> MutexGuard<'a, Table> {
        let mut table = lock(&self.partners.table);
        let mut was_patient = false;
        loop {
            let stream = &table.streams[self.at];
            let is_free = stream.hasher.is_some();
            if stream.waiting.len() <= most && (most > 0 || is_free) {
                return table;
            }
            let is_small = stream.waiting.iter().map(|piece| piece.filled).sum::<usize>() <= NOT_WORTH_WAITING;
            // This thread itself is one of those that come.
            let is_time = is_free && (was_patient || is_small || table.coming < 2);
            if is_time || table.ready() >= 2 {
                table = self.partners.hash(table, self.at);
                was_patient = false;
                continue;
            }
            table.coming -= 1;
            let waited = self.woken.wait_timeout(table, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            (table, was_patient) = (waited.0, waited.1.timed_out());
            table.coming += 1;
        }
    }
}

impl Drop for Partner<'_> {
    fn drop(&mut self) {
        let mut table = lock(&self.partners.table);
        // Only where the stream was given up some are left.
        table.streams[self.at].waiting.clear();
        // Whoever is hashing puts it down here.
        while table.streams[self.at].hasher.is_none() {
            table = self.woken.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        table.streams[self.at] = Stream::default();
        table.free.push(self.at);
        table.coming -= 1;
    }
}

/// A thread that is not coming for the time being.
struct Absence<'p>(&'p Partners);

impl<'p> Absence<'p> {
    fn begin(partners: &'p Partners) -> Self {
        lock(&partners.table).coming -= 1;
        Self(partners)
    }
}

impl Drop for Absence<'_> {
    fn drop(&mut self) {
        lock(&self.0.table).coming += 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest as _;

    #[test]
    fn many_threads_each_get_the_hash_of_their_own_stream() {
        for threads in [1usize, 2, 3, 8] {
            let partners = Partners::default();
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let partners = &partners;
                    scope.spawn(move || {
                        for round in 0..20usize {
                            let mut stream = partners.begin();
                            let mut whole = Vec::new();
                            let mut buffer = vec![0; 5000].into_boxed_slice();
                            for piece in 0..round {
                                let filled = (thread * 1000 + round * 77 + piece * 311) % 5000;
                                buffer[..filled].fill((thread + piece) as u8);
                                whole.extend_from_slice(&buffer[..filled]);
                                buffer = match (thread + round) % 3 {
                                    0 => {
                                        let bytes = buffer.clone();
                                        let back = stream.update(buffer, filled);
                                        assert_eq!(back, bytes, "the same one comes back");
                                        back
                                    }
                                    _ => stream.give(buffer, filled).unwrap_or_else(|| vec![0; 5000].into()),
                                };
                                assert_eq!(buffer.len(), 5000);
                            }
                            assert_eq!(stream.bytes(), whole.len() as u64);
                            assert_eq!(stream.finish(), <[u8; 32]>::from(sha2::Sha256::digest(&whole)));
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn streams_that_are_given_up_leave_the_others_alone() {
        let partners = Partners::default();
        std::thread::scope(|scope| {
            for thread in 0..6u8 {
                let partners = &partners;
                scope.spawn(move || {
                    for round in 0..50u8 {
                        let (mut given_up, mut stream) = (partners.begin(), partners.begin());
                        let bytes = vec![thread ^ round; 40_000];
                        for _ in 0..MOST_WAITING {
                            given_up.give(bytes.clone().into(), 40_000);
                            stream.give(bytes.clone().into(), 40_000);
                        }
                        drop(given_up);
                        let whole = bytes.repeat(MOST_WAITING);
                        assert_eq!(stream.finish(), <[u8; 32]>::from(sha2::Sha256::digest(&whole)));
                    }
                });
            }
        });
        let table = lock(&partners.table);
        assert_eq!((table.coming, table.streams.len()), (0, table.free.len()), "all places are free again");
    }

    #[test]
    fn a_stream_without_a_partner_is_not_held_up() {
        let partners = Partners::default();
        // Begun, and never fed.
        let idle = partners.begin();
        idle.aside(|| ());
        let mut stream = partners.begin();
        stream.update(vec![7; 100].into_boxed_slice(), 100);
        assert_eq!(stream.finish(), <[u8; 32]>::from(sha2::Sha256::digest([7; 100])));
    }
}
