//! Where threads that hash a stream each meet, so that their streams are hashed in pairs.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Sha256, update_two};

/// How long a thread waits for a partner. Another that is at work needs less to read its next buffer; one whose disk is
/// slow is not worth waiting for.
const PATIENCE: Duration = Duration::from_micros(400);

/// Brings together the streams of several threads: of two that have bytes to hash at the same time one thread hashes
/// both, while the other sleeps and its core does something else.
///
/// So there should be twice as many threads as cores, each with a stream of its own.
#[derive(Debug, Default)]
pub struct Partners {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// How many threads are on the way to their next bytes, or wait for a partner.
    coming: usize,
    /// A stream whose thread waits for a partner.
    waiting: Option<(Work, Arc<Seat>)>,
}

/// A stream and bytes that it takes in next.
#[derive(Debug)]
struct Work {
    hasher: Sha256,
    buffer: Box<[u8]>,
    filled: usize,
}

impl Work {
    fn alone(&mut self) {
        self.hasher.update(&self.buffer[..self.filled]);
    }

    fn together(&mut self, other: &mut Self) {
        let (bytes, other_bytes) = (&self.buffer[..self.filled], &other.buffer[..other.filled]);
        update_two(&mut self.hasher, bytes, &mut other.hasher, other_bytes);
    }
}

/// Where a thread that waits gets its stream back.
#[derive(Debug, Default)]
struct Seat {
    done: Mutex<Option<Work>>,
    woken: Condvar,
}

impl Partners {
    /// A stream that may be hashed together with those of other threads, from its first byte.
    pub fn begin(&self) -> Partner<'_> {
        lock(&self.table).coming += 1;
        Partner { partners: self, hasher: Sha256::new(), seat: Arc::default() }
    }

    fn hash(&self, mut work: Work, seat: &Arc<Seat>) -> Work {
        let mut table = lock(&self.table);
        if let Some((mut other, others_seat)) = table.waiting.take() {
            drop(table);
            work.together(&mut other);
            *lock(&others_seat.done) = Some(other);
            others_seat.woken.notify_one();
            return work;
        }
        if table.coming < 2 {
            drop(table);
            work.alone();
            return work;
        }
        table.waiting = Some((work, Arc::clone(seat)));
        drop(table);
        self.wait(seat)
    }

    /// Waits for a partner, and where none comes takes the stream back and hashes it alone.
    fn wait(&self, seat: &Arc<Seat>) -> Work {
        let mut done = lock(&seat.done);
        if done.is_none() {
            (done, _) = seat.woken.wait_timeout(done, PATIENCE).unwrap_or_else(PoisonError::into_inner);
        }
        loop {
            if let Some(work) = done.take() {
                return work;
            }
            drop(done);
            if let Some(mut work) = self.take_back(seat) {
                work.alone();
                return work;
            }
            // A partner is at it: it always comes to an end.
            done = lock(&seat.done);
            if done.is_none() {
                done = seat.woken.wait(done).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn take_back(&self, seat: &Arc<Seat>) -> Option<Work> {
        let mut table = lock(&self.table);
        let (work, of_whom) = table.waiting.take()?;
        if Arc::ptr_eq(&of_whom, seat) {
            return Some(work);
        }
        table.waiting = Some((work, of_whom));
        None
    }
}

/// One thread's stream.
#[derive(Debug)]
pub struct Partner<'a> {
    partners: &'a Partners,
    hasher: Sha256,
    seat: Arc<Seat>,
}

impl Partner<'_> {
    /// Takes in the first `filled` bytes of `buffer`, here or on another thread, and gives it back.
    pub fn update(&mut self, buffer: Box<[u8]>, filled: usize) -> Box<[u8]> {
        let work = Work { hasher: std::mem::take(&mut self.hasher), buffer, filled };
        let Work { hasher, buffer, .. } = self.partners.hash(work, &self.seat);
        self.hasher = hasher;
        buffer
    }

    /// Does something that may take long, while which nobody waits for this stream.
    pub fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Aside<'a>(&'a Partners);
        impl Drop for Aside<'_> {
            fn drop(&mut self) {
                lock(&self.0.table).coming += 1;
            }
        }
        lock(&self.partners.table).coming -= 1;
        let _back = Aside(self.partners);
        work()
    }

    /// How many bytes were taken in.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    /// The hash of all that was taken in.
    pub fn finish(mut self) -> [u8; 32] {
        std::mem::take(&mut self.hasher).finish()
    }
}

impl Drop for Partner<'_> {
    fn drop(&mut self) {
        lock(&self.partners.table).coming -= 1;
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
                                buffer = stream.update(buffer, filled);
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
