//! Several streams on one thread, hashed together: each is made in a coroutine, which rests while its pieces are hashed.
//!
//! Threads that wait for each other's streams ([`super::Partners`]) do the same, but have to be put to sleep and woken for
//! it. Here none of them waits, as long as nothing that makes a stream has to. Where it has to, because files come from a
//! disk, all streams of its thread wait: then further threads help.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use corosensei::stack::DefaultStack;
use corosensei::{CoroutineResult, ScopedCoroutine, ScopedCoroutineRef, Yielder};

use super::deal::{Deal, Hand};
use super::{LANES, Pace, Sha256, time_worked, update_together};

/// How many pieces a stream makes until all others have made at least one, at the most, beyond the number of streams that a
/// thread makes at once. The longest ones make more than others, so that all of them end at about the same time.
const MOST_MORE: usize = 2;

/// How many pieces for each of its streams a thread makes until then, at the most, and one of every stream.
const MOST_FOR_EACH: usize = 3;

/// So often a thread that stands by looks whether the others had to wait for more than half of the time.
const WATCH: Duration = Duration::from_millis(20);
/// So many times in a row they had to: once is the doing of whoever else has the cores.
const TIMES: usize = 2;

/// What a coroutine rests with.
pub enum Wish {
    /// A new stream of about so many bytes.
    Begin(u64),
    /// So many bytes of a buffer are to be hashed.
    Hash(Box<[u8]>, usize),
    /// The stream is over.
    Digest,
    /// Nothing, until this thread may begin another stream.
    Rest,
}

/// What a coroutine is resumed with.
pub enum Reply {
    /// It goes on.
    Go,
    /// The buffer whose bytes were hashed.
    Buffer(Box<[u8]>),
    /// The stream's hash.
    Digest([u8; 32]),
}

/// Where a coroutine is left. Streams that are made in it are hashed one after the other.
pub type Lane = Yielder<Reply, Wish>;

/// The streams of a number of threads.
#[derive(Debug)]
pub struct Lanes {
    pace: Pace,
    /// How many bytes are to be hashed yet, about.
    left: AtomicI64,
    deal: Deal,
    /// How many streams a thread makes at once.
    of_a_thread: usize,
    /// How many one that helps does.
    of_a_helper: usize,
    /// How many threads work from the beginning.
    threads: usize,
    /// How many came, some of them in vain.
    came: AtomicUsize,
    /// How many streams those make at once that work, or have worked.
    lanes: AtomicUsize,
    /// For how long they worked, and did not wait, in nanoseconds.
    worked: AtomicU64,
    /// Whether those that came later are wanted; `None` while that is not known.
    help: Mutex<Option<bool>>,
    known: Condvar,
    is_stopped: AtomicBool,
}

type Coroutine<'c> = ScopedCoroutineRef<'c, Reply, Wish, (), DefaultStack>;

impl Lanes {
    /// Streams of about `bytes` in all, on so many threads, one a core, each of which makes [`LANES`] at the most; others,
    /// which make so many, help where these have to wait.
    pub fn new(bytes: u64, threads: usize, of_a_thread: usize, of_a_helper: usize) -> Self {
        Self::at_pace(Pace::of_this_cpu(), bytes, threads, of_a_thread, of_a_helper)
    }

    fn at_pace(pace: Pace, bytes: u64, threads: usize, of_a_thread: usize, of_a_helper: usize) -> Self {
        Self {
            pace,
            left: AtomicI64::new(signed(bytes)),
            deal: Deal::new(pace, threads),
            of_a_thread: of_a_thread.clamp(1, LANES),
            of_a_helper: of_a_helper.clamp(1, LANES),
            threads,
            came: AtomicUsize::new(0),
            lanes: AtomicUsize::new(0),
            worked: AtomicU64::new(0),
            help: Mutex::default(),
            known: Condvar::new(),
            is_stopped: AtomicBool::new(false),
        }
    }

    /// Ends all streams where they are: their coroutines are unwound, and what they have is dropped.
    pub fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Calls `body` once for each stream that a thread makes at once, in a coroutine of its own, on this thread; not at all
    /// on a thread that came in vain. `body` makes streams, one after the other, as long as there are any to make, and has its
    /// lane [`rest`] before it takes the next.
    pub fn run(&self, body: &dyn Fn(&Lane)) {
        let before = self.came.fetch_add(1, Ordering::Relaxed);
        let helps = before >= self.threads;
        if helps && !self.is_help_wanted(before == self.threads) {
            return;
        }
        let _over = NoMoreHelp(self);
        let lanes = if helps { self.of_a_helper } else { self.of_a_thread };
        self.lanes.fetch_add(lanes, Ordering::Relaxed);
        self.enter(Vec::with_capacity(lanes), lanes, body);
    }

    /// Stands by until it is known whether help is wanted; one thread finds out.
    fn is_help_wanted(&self, finds_out: bool) -> bool {
        let enough = WATCH.as_nanos() as u64 * self.threads as u64 / 2;
        let mut help = self.help.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut worked, mut times) = (self.worked.load(Ordering::Relaxed), 0);
        loop {
            if let Some(is_wanted) = *help {
                return is_wanted;
            }
            if !finds_out {
                help = self.known.wait(help).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (guard, timeout) = self.known.wait_timeout(help, WATCH).unwrap_or_else(PoisonError::into_inner);
            help = guard;
            if timeout.timed_out() {
                let since = std::mem::replace(&mut worked, self.worked.load(Ordering::Relaxed));
                times = if worked - since < enough { times + 1 } else { 0 };
                if times == TIMES {
                    help.get_or_insert(true);
                    self.known.notify_all();
                }
            }
        }
    }

    /// Makes one coroutine more until there are enough. Each lives in a scope, so this calls itself.
    fn enter(&self, coroutines: Vec<Coroutine<'_>>, enough: usize, body: &dyn Fn(&Lane)) {
        if coroutines.len() == enough {
            return self.work(coroutines);
        }
        ScopedCoroutine::new(|lane: &Lane, _| body(lane)).scope(|coroutine| {
            let mut coroutines: Vec<Coroutine<'_>> = coroutines;
            coroutines.push(coroutine);
            self.enter(coroutines, enough, body);
        });
    }

    fn work(&self, coroutines: Vec<Coroutine<'_>>) {
        let mut tracks: Vec<_> = coroutines.into_iter().map(Track::new).collect();
        let lanes = tracks.len();
        let mut worker = Worker { lanes, told: time_worked(), hand: self.deal.join(lanes) };
        while !tracks.is_empty() && !self.is_stopped.load(Ordering::Relaxed) {
            self.begin_another(&mut tracks, &mut worker);
            let mut room = signed((MOST_FOR_EACH * lanes) as u64);
            for track in tracks.iter_mut().filter(|track| !track.rests) {
                track.share = self.share(track.left, lanes).min(room).max(1);
                room -= track.share;
            }
            self.make_and_hash(&mut tracks, &mut worker);
            tracks.retain(|track| !track.is_over);
        }
    }

    /// Has streams make their shares, piece by piece, and hashes those together, before they have left the core's cache: of
    /// all streams while they are enough to lie side by side, and then of those that have the most to make. Others begin
    /// meanwhile.
    fn make_and_hash(&self, tracks: &mut [Track<'_>], worker: &mut Worker) {
        while !self.is_stopped.load(Ordering::Relaxed) {
            let mut waiting: Vec<&mut Track<'_>> = tracks.iter_mut().filter(|track| track.share > 0).collect();
            if waiting.is_empty() {
                break;
            }
            if waiting.len() < self.pace.side_by_side {
                waiting.sort_by_key(|track| (track.piece.is_none(), Reverse(track.share)));
                waiting.truncate(self.pace.in_turns);
            }
            for track in &mut waiting {
                self.make(track, worker.lanes);
            }
            hash(waiting);
            self.tell(worker);
            // Where all have made their shares it would be hashed alone.
            if tracks.iter().any(|track| track.share > 0) {
                self.begin_another(tracks, worker);
            }
        }
    }

    /// Has a coroutine that rests begin with another stream, where this thread may: no more than one at once, so that each
    /// thread has some of the longest. What makes one piece at the most does not count.
    fn begin_another(&self, tracks: &mut [Track<'_>], worker: &mut Worker) {
        while !self.is_stopped.load(Ordering::Relaxed) {
            if let Some(hand) = &mut worker.hand {
                self.deal.tell(hand, tracks.iter().filter(|track| !track.rests).map(|track| track.left));
                if !self.deal.may_have_another(hand) {
                    return;
                }
            }
            let Some(track) = tracks.iter_mut().find(|track| track.rests && !track.is_over) else { return };
            track.rests = false;
            self.make(track, worker.lanes);
            if track.piece.is_some() && track.left > 0 {
                return;
            }
            self.tell(worker);
        }
    }

    /// Tells for how long this thread worked since it told that the last time.
    fn tell(&self, worker: &mut Worker) {
        let before = std::mem::replace(&mut worker.told, time_worked());
        self.worked.fetch_add(worker.told.saturating_sub(before).as_nanos() as u64, Ordering::Relaxed);
    }

    /// Has a coroutine make one piece, unless it has one, rests or is over; its thread makes so many streams at once.
    fn make(&self, track: &mut Track<'_>, lanes: usize) {
        while track.piece.is_none() {
            match track.coroutine.resume(std::mem::replace(&mut track.reply, Reply::Go)) {
                CoroutineResult::Yield(Wish::Begin(bytes)) => {
                    // What was expected of one that was given up.
                    self.forget(track);
                    (track.hasher, track.left) = (Sha256::new(), signed(bytes));
                    track.share = self.share(track.left, lanes);
                }
                CoroutineResult::Yield(Wish::Hash(buffer, filled)) => {
                    self.left.fetch_sub(signed(filled as u64), Ordering::Relaxed);
                    track.left -= signed(filled as u64);
                    track.piece = Some((buffer, filled));
                }
                CoroutineResult::Yield(Wish::Digest) => {
                    self.forget(track);
                    // All its pieces were hashed before.
                    track.reply = Reply::Digest(std::mem::take(&mut track.hasher).finish());
                }
                CoroutineResult::Yield(Wish::Rest) => {
                    self.forget(track);
                    (track.rests, track.share) = (true, 0);
                    return;
                }
                CoroutineResult::Return(()) => {
                    self.forget(track);
                    (track.rests, track.is_over, track.share) = (true, true, 0);
                    return;
                }
            }
        }
    }

    /// Expects no more of a stream: what was expected was no more than a guess.
    fn forget(&self, track: &mut Track<'_>) {
        self.left.fetch_sub(std::mem::take(&mut track.left), Ordering::Relaxed);
    }

    /// How many pieces a stream with so many bytes left makes until all of so many have made theirs.
    fn share(&self, left: i64, lanes: usize) -> i64 {
        let fair = self.left.load(Ordering::Relaxed) / signed(self.lanes.load(Ordering::Relaxed) as u64).max(1);
        (left / fair.max(1)).clamp(1, signed((lanes + MOST_MORE) as u64))
    }
}

/// Hashes the pieces of these streams together, and gives each its buffer back.
fn hash(mut tracks: Vec<&mut Track<'_>>) {
    let pieces = tracks.iter_mut().filter_map(|track| {
        let (buffer, filled) = track.piece.as_ref()?;
        Some((&mut track.hasher, &buffer[..*filled]))
    });
    update_together(&mut pieces.collect::<Vec<_>>());
    for track in tracks {
        if let Some((buffer, _)) = track.piece.take() {
            track.reply = Reply::Buffer(buffer);
            track.share -= 1;
        }
    }
}

/// Says, at the end of a thread's streams, that there are none left to help with.
struct NoMoreHelp<'l>(&'l Lanes);

impl Drop for NoMoreHelp<'_> {
    fn drop(&mut self) {
        self.0.help.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(false);
        self.0.known.notify_all();
    }
}

/// A thread that makes streams.
struct Worker {
    /// How many at once.
    lanes: usize,
    /// It has told that it worked for so long.
    told: Duration,
    hand: Option<Hand>,
}

/// A coroutine and its stream.
struct Track<'c> {
    coroutine: Coroutine<'c>,
    reply: Reply,
    hasher: Sha256,
    /// How many pieces it is to make, and have hashed, until all have made theirs.
    share: i64,
    /// Made, and not hashed yet.
    piece: Option<(Box<[u8]>, usize)>,
    /// How many bytes of the stream are still to come, about.
    left: i64,
    /// Has no stream, and waits for being asked for another, or is over.
    rests: bool,
    is_over: bool,
}

impl<'c> Track<'c> {
    fn new(coroutine: Coroutine<'c>) -> Self {
        let (reply, hasher) = (Reply::Go, Sha256::new());
        Self { coroutine, reply, hasher, share: 0, piece: None, left: 0, rests: true, is_over: false }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Leaves it to the thread when a coroutine goes on to its next stream: those of other threads may have less to do.
pub fn rest(lane: &Lane) {
    lane.suspend(Wish::Rest);
}

/// A stream that is made in a coroutine.
pub struct LaneStream<'l> {
    lane: &'l Lane,
    bytes: u64,
}

impl<'l> LaneStream<'l> {
    /// Begins a stream of about so many bytes.
    pub fn begin(lane: &'l Lane, expected: u64) -> Self {
        lane.suspend(Wish::Begin(expected));
        Self { lane, bytes: 0 }
    }

    /// Takes in the first `filled` bytes of `buffer`, which comes back.
    pub fn give(&mut self, buffer: Box<[u8]>, filled: usize) -> Box<[u8]> {
        self.bytes += filled as u64;
        match self.lane.suspend(Wish::Hash(buffer, filled)) {
            Reply::Buffer(buffer) => buffer,
            Reply::Go | Reply::Digest(_) => unreachable!("a buffer is what was given"),
        }
    }

    /// How many bytes were taken in.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hash of all that was taken in.
    pub fn finish(self) -> [u8; 32] {
        match self.lane.suspend(Wish::Digest) {
            Reply::Digest(digest) => digest,
            Reply::Go | Reply::Buffer(_) => unreachable!("a digest is what was wished for"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use sha2::Digest as _;

    use super::*;

    #[test]
    fn many_streams_on_several_threads_each_get_their_own_hash() {
        for threads in [1usize, 2, 3] {
            let lengths: Vec<usize> = (0..40).map(|at| (at * at * 977) % 100_000).collect();
            let lanes = Lanes::new(lengths.iter().sum::<usize>() as u64, threads, 1 + threads, threads);
            let (next, done) = (AtomicUsize::new(0), Mutex::new(0));
            let body = |lane: &Lane| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&length) = lengths.get(at) else { return };
                    let whole: Vec<u8> = (0..length).map(|place| (place * 31 + at) as u8).collect();
                    // What is expected is no more than a guess.
                    let mut stream = LaneStream::begin(lane, (length * (at % 3)) as u64);
                    let mut buffer = vec![0; 4096].into_boxed_slice();
                    for piece in whole.chunks(4096) {
                        buffer[..piece.len()].copy_from_slice(piece);
                        buffer = stream.give(buffer, piece.len());
                    }
                    if at % 7 == 3 {
                        continue; // given up
                    }
                    assert_eq!(stream.bytes(), length as u64);
                    assert_eq!(stream.finish(), <[u8; 32]>::from(sha2::Sha256::digest(&whole)));
                    *done.lock().unwrap() += 1;
                }
            };
            std::thread::scope(|scope| {
                // Some more, that nobody may need.
                for _ in 0..threads + 2 {
                    scope.spawn(|| lanes.run(&body));
                }
            });
            assert_eq!(done.into_inner().unwrap(), lengths.len() - (0..lengths.len()).filter(|at| at % 7 == 3).count());
        }
    }

    /// As many as are hashed side by side, several pieces of each in a round, on any CPU.
    #[test]
    fn streams_side_by_side_and_what_is_left_of_the_long_ones_each_get_their_own_hash() {
        let lengths: Vec<usize> = (0..60).map(|at| 200_000 / (at + 1) + at * 64 % 1000).collect();
        let pace = Pace { in_turns: 2, side_by_side: 3 };
        let lanes = Lanes::at_pace(pace, lengths.iter().sum::<usize>() as u64, 2, LANES, 2);
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let body = |lane: &Lane| {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(&length) = lengths.get(at) else { return };
                if at % 5 == 2 {
                    // As after what made no stream at all.
                    rest(lane);
                }
                let whole: Vec<u8> = (0..length).map(|place| (place * 31 + length) as u8).collect();
                let mut stream = LaneStream::begin(lane, length as u64);
                for (at, piece) in whole.chunks(1000).enumerate() {
                    // Others are there only after a while.
                    if at % 16 == 0 {
                        std::thread::sleep(Duration::from_micros(100));
                    }
                    stream.give(piece.into(), piece.len());
                }
                assert_eq!(stream.finish(), <[u8; 32]>::from(sha2::Sha256::digest(&whole)));
                done.fetch_add(1, Ordering::Relaxed);
                rest(lane);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| lanes.run(&body));
            }
        });
        assert_eq!(done.into_inner(), lengths.len());
    }

    #[test]
    fn threads_help_where_others_wait() {
        let (next, threads) = (AtomicUsize::new(0), Mutex::new(std::collections::BTreeSet::new()));
        let lanes = Lanes::new(1 << 30, 1, 4, 2);
        let body = |lane: &Lane| {
            while next.fetch_add(1, Ordering::Relaxed) < 400 {
                threads.lock().unwrap().insert(format!("{:?}", std::thread::current().id()));
                let mut stream = LaneStream::begin(lane, 1000);
                std::thread::sleep(Duration::from_millis(1));
                stream.give(vec![7; 1000].into(), 1000);
                assert_eq!(stream.finish(), <[u8; 32]>::from(sha2::Sha256::digest([7; 1000])));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| lanes.run(&body));
            }
        });
        assert_eq!(threads.into_inner().unwrap().len(), 3);
    }

    #[test]
    fn what_makes_no_stream_and_what_makes_one_piece_do_not_hold_up_the_next() {
        let lanes = Lanes::new(1 << 20, 1, 8, 2);
        let [next, pieces] = [(); 2].map(|()| AtomicUsize::new(0));
        let before_the_last = Mutex::new(None);
        lanes.run(&|lane| {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let length = match at {
                    0 | 11 => 100_000,
                    1..6 => 0,
                    6..11 => 1000,
                    _ => return,
                };
                if at == 11 {
                    *before_the_last.lock().unwrap() = Some(pieces.load(Ordering::Relaxed));
                }
                if length > 0 {
                    let mut stream = LaneStream::begin(lane, length);
                    let mut buffer: Box<[u8]> = vec![7; 1000].into();
                    for _ in 0..length / 1000 {
                        pieces.fetch_add(usize::from(at == 0), Ordering::Relaxed);
                        buffer = stream.give(buffer, 1000);
                    }
                    stream.finish();
                }
                rest(lane);
            }
        });
        assert!(before_the_last.into_inner().unwrap().is_some_and(|pieces| pieces < 3));
    }

    #[test]
    fn a_thread_with_more_to_do_than_the_others_leaves_them_the_next_streams() {
        let lanes = Lanes::at_pace(Pace { in_turns: 2, side_by_side: 3 }, 1 << 20, 2, 4, 2);
        let other = Mutex::new(lanes.deal.join(4).unwrap());
        lanes.deal.tell(&mut other.lock().unwrap(), [1 << 20; 4].into_iter());
        let [next, begun, before, after, has_less, dropped] = [(); 6].map(|()| AtomicUsize::new(0));
        lanes.run(&|lane| {
            let _counted = OnDrop(&dropped);
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= 12 {
                    // Two lanes rest.
                    return lanes.stop();
                }
                let mut stream = LaneStream::begin(lane, 10_000);
                let most = if has_less.load(Ordering::Relaxed) == 0 { &before } else { &after };
                most.fetch_max(begun.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                let mut buffer: Box<[u8]> = vec![7; 1000].into();
                for _ in 1..10 {
                    buffer = stream.give(buffer, 1000);
                }
                // With its last piece it has nothing more to do.
                begun.fetch_sub(1, Ordering::Relaxed);
                stream.give(buffer, 1000);
                assert_eq!(stream.finish(), <[u8; 32]>::from(sha2::Sha256::digest([7; 10_000])));
                if at == 3 {
                    lanes.deal.tell(&mut other.lock().unwrap(), [].into_iter());
                    has_less.store(1, Ordering::Relaxed);
                }
                rest(lane);
            }
        });
        assert_eq!([before.into_inner(), after.into_inner(), dropped.into_inner()], [4, 2, 4]);
    }

    struct OnDrop<'a>(&'a AtomicUsize);

    impl Drop for OnDrop<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn streams_that_are_stopped_have_no_end_and_leave_nothing() {
        let (next, dropped) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let lanes = Lanes::new(1 << 20, 1, 4, 2);
        lanes.run(&|lane| {
            let _counted = OnDrop(&dropped);
            let at = next.fetch_add(1, Ordering::Relaxed);
            let mut stream = LaneStream::begin(lane, 1 << 20);
            for piece in 0.. {
                if (at, piece) == (2, 50) {
                    return lanes.stop();
                }
                stream.give(vec![0; 100].into(), 100);
            }
        });
        assert_eq!(dropped.into_inner(), 4);
    }

    #[test]
    fn a_panic_in_one_stream_reaches_the_thread_and_drops_what_the_others_have() {
        let (next, dropped) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let lanes = Lanes::new(1 << 20, 1, 4, 2);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            lanes.run(&|lane| {
                let _counted = OnDrop(&dropped);
                let at = next.fetch_add(1, Ordering::Relaxed);
                let mut stream = LaneStream::begin(lane, 1 << 20);
                for piece in 0.. {
                    stream.give(vec![0; 100].into(), 100);
                    assert!(at != 2 || piece < 50, "the third fails");
                }
            });
        }));
        assert!(outcome.is_err());
        assert_eq!(dropped.into_inner(), 4);
    }
}
