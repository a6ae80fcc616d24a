//! Vocabulary: sha256 (FIPS 180-4) of one stream, or of several at once on one core.
//!
//! A core with SHA instructions waits for each round of a stream before it can begin the next: it could do nearly twice the
//! work. So streams that have bytes at the same time are hashed in turns, block by block ([`update_together`]): [`Lanes`]
//! makes several streams on one thread, [`Partners`] brings those of several threads together. Where many have bytes, some
//! CPUs hash them faster side by side in wide registers, without SHA instructions. What is hashed, and what comes out, is
//! plain sha256.

mod deal;
#[cfg(target_arch = "x86_64")]
mod interleaved;
mod lanes;
mod partners;
#[cfg(target_arch = "x86_64")]
mod wide;

use std::sync::OnceLock;
use std::time::Duration;

pub use lanes::{Lane, LaneStream, Lanes, rest};
pub use partners::{Partner, Partners};
use rustix::time::{ClockId, clock_gettime};

/// The bytes that one application of the compression function takes.
const BLOCK: usize = 64;

/// How many streams are hashed in turns, at the most (docs/architecture.md).
const IN_TURNS: usize = 4;
/// As many gain on every CPU that has the instructions.
const FEW: usize = 2;
/// How many streams are hashed at once, at the most: side by side.
pub const LANES: usize = 16;

/// The initial hash value (FIPS 180-4, section 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The sha256 of a stream, so far.
#[derive(Clone, Debug)]
pub struct Sha256 {
    state: [u32; 8],
    /// The beginning of a block that is not whole yet.
    tail: [u8; BLOCK],
    tail_len: usize,
    bytes: u64,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self { state: INITIAL, tail: [0; BLOCK], tail_len: 0, bytes: 0 }
    }
}

impl Sha256 {
    /// The sha256 of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes were hashed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes in more of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, rest) = self.begin(bytes).as_chunks();
        sha2::block_api::compress256(&mut self.state, blocks);
        self.end(rest);
    }

    /// The hash of all that was taken in (FIPS 180-4, section 5.1.1: a one bit, zeros, the length in bits).
    pub fn finish(mut self) -> [u8; 32] {
        let length = self.bytes.wrapping_mul(8).to_be_bytes();
        let zeros = (2 * BLOCK - 1 - length.len() - self.tail_len) % BLOCK;
        self.update(&[0x80]);
        self.update(&[0; BLOCK][..zeros]);
        self.update(&length);
        let mut hash = [0; 32];
        for (bytes, word) in hash.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        hash
    }

    /// Completes the block that was begun before, where `bytes` suffice for it: what is left of them.
    fn begin<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        self.bytes += bytes.len() as u64;
        if self.tail_len == 0 {
            return bytes;
        }
        let (completing, rest) = bytes.split_at(bytes.len().min(BLOCK - self.tail_len));
        self.tail[self.tail_len..][..completing.len()].copy_from_slice(completing);
        self.tail_len += completing.len();
        if self.tail_len == BLOCK {
            sha2::block_api::compress256(&mut self.state, &[self.tail]);
            self.tail_len = 0;
        }
        rest
    }

    /// Keeps less than a block for later.
    fn end(&mut self, rest: &[u8]) {
        self.tail[self.tail_len..][..rest.len()].copy_from_slice(rest);
        self.tail_len += rest.len();
    }
}

/// Whether several streams at once take less time than one after the other, on this machine.
pub fn is_faster_together() -> bool {
    #[cfg(target_arch = "x86_64")]
    return interleaved::is_possible() || wide::is_possible();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// How many streams at once take this CPU the least time, where there is room for so many: only as many side by side as
/// take less time than in turns, [`LANES`] at the most. Those in turns may be more than there is room for.
pub fn streams_at_once(room: usize) -> usize {
    Pace::of_this_cpu().streams_at_once(room)
}

/// What takes a CPU the least time.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// So many streams in turns. The registers are enough for two; where one round has to be waited for longer than what
    /// else is to do takes, more gain all the same.
    in_turns: usize,
    /// From so many streams on all of them side by side: that takes as long for fewer. More than [`LANES`] where it gains
    /// nothing.
    side_by_side: usize,
}

impl Pace {
    /// A trial of less than a millisecond finds out, once in a process.
    fn of_this_cpu() -> Self {
        static PACE: OnceLock<Pace> = OnceLock::new();
        *PACE.get_or_init(|| {
            let (mut few, mut many, mut wide) = (Duration::MAX, Duration::MAX, Duration::MAX);
            for _ in 0..5 {
                few = few.min(trial(|turns, count| compress_by(FEW, turns, count)));
                many = many.min(trial(|turns, count| compress_by(IN_TURNS, turns, count)));
                wide = wide.min(trial(compress_side_by_side));
            }
            Self::from_trials(few, many, wide)
        })
    }

    fn streams_at_once(self, room: usize) -> usize {
        if room >= self.side_by_side { room.min(LANES) } else { self.in_turns }
    }

    /// What follows from the time that [`LANES`] streams take.
    fn from_trials(few: Duration, many: Duration, wide: Duration) -> Self {
        let [few, many, wide] = [few, many, wide].map(|time| time.as_nanos());
        // What is kept of more streams at once has to be worth it.
        let is_worth_it = |more: u128, fewer: u128| more * 25 < fewer * 24;
        let (in_turns, narrow) = if is_worth_it(many, few) { (IN_TURNS, many) } else { (FEW, few) };
        let side_by_side = match is_worth_it(wide, narrow) {
            // Fewer take no less, so they have to take longer than that in turns.
            true => (wide * LANES as u128 / narrow) as usize + 1,
            false => usize::MAX,
        };
        Self { in_turns, side_by_side }
    }
}

/// For how long this thread works on a piece of [`LANES`] streams; for ever where it cannot.
fn trial(compress: impl Fn(&mut [Turn<'_>], usize) -> bool) -> Duration {
    const PIECE: [[u8; BLOCK]; 32] = [[0; BLOCK]; 32];
    let mut states = [INITIAL; LANES];
    let mut turns: Vec<Turn<'_>> = states.iter_mut().map(|state| (state, &PIECE[..])).collect();
    let begun = time_worked();
    let is_done = compress(&mut turns, PIECE.len());
    if is_done { time_worked().saturating_sub(begun) } else { Duration::MAX }
}

/// For how long this thread has worked, and not waited.
fn time_worked() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Takes in more of several streams at once, as far as more than one has bytes: in turns or side by side, whatever takes this
/// CPU less time than one after the other.
pub fn update_together(streams: &mut [(&mut Sha256, &[u8])]) {
    for streams in streams.chunks_mut(LANES) {
        let mut turns: Vec<Turn<'_>> = Vec::with_capacity(LANES);
        let mut rests: Vec<&[u8]> = Vec::with_capacity(LANES);
        for (stream, bytes) in streams.iter_mut() {
            let (blocks, rest) = stream.begin(bytes).as_chunks();
            turns.push((&mut stream.state, blocks));
            rests.push(rest);
        }
        loop {
            turns.retain(|(_, blocks)| !blocks.is_empty());
            let Some(count) = turns.iter().map(|(_, blocks)| blocks.len()).min() else { break };
            compress_together(&mut turns, count);
            for (_, blocks) in &mut turns {
                *blocks = &blocks[count..];
            }
        }
        for ((stream, _), rest) in streams.iter_mut().zip(rests) {
            stream.end(rest);
        }
    }
}

/// A stream's state, and the blocks that it takes in next.
type Turn<'l> = (&'l mut [u32; 8], &'l [[u8; BLOCK]]);

/// Applies the compression function to the first `count` blocks of each stream, [`LANES`] at the most.
fn compress_together(turns: &mut [Turn<'_>], count: usize) {
    // One alone need not wait for the trial.
    if turns.len() == 1 {
        compress_by(1, turns, count);
        return;
    }
    let pace = Pace::of_this_cpu();
    if turns.len() < pace.side_by_side || !compress_side_by_side(turns, count) {
        compress_by(pace.in_turns, turns, count);
    }
}

/// As [`compress_together`], so many streams in turns, or each by itself where that gains nothing: one way or the other it
/// is done.
fn compress_by(in_turns: usize, turns: &mut [Turn<'_>], count: usize) -> bool {
    for turns in turns.chunks_mut(in_turns) {
        if !compress_in_turns(turns, count) {
            for (state, blocks) in turns {
                sha2::block_api::compress256(state, &blocks[..count]);
            }
        }
    }
    true
}

/// As [`compress_together`], block by block in turns. Does nothing and says so where that gains nothing.
#[cfg(target_arch = "x86_64")]
fn compress_in_turns(turns: &mut [Turn<'_>], count: usize) -> bool {
    use interleaved::try_compress;
    match turns {
        [(a, of_a), (b, of_b)] => try_compress([a, b], [&of_a[..count], &of_b[..count]]),
        [(a, of_a), (b, of_b), (c, of_c)] => try_compress([a, b, c], [&of_a[..count], &of_b[..count], &of_c[..count]]),
        [(a, of_a), (b, of_b), (c, of_c), (d, of_d)] => {
            try_compress([a, b, c, d], [&of_a[..count], &of_b[..count], &of_c[..count], &of_d[..count]])
        }
        _ => false,
    }
}

/// As [`compress_together`], side by side. Does nothing and says so where that cannot be.
#[cfg(target_arch = "x86_64")]
fn compress_side_by_side(turns: &mut [Turn<'_>], count: usize) -> bool {
    let [(_, any), ..] = turns else { return false };
    // Where there are fewer streams, the others are of no interest.
    let (mut states, mut blocks) = ([INITIAL; LANES], [&any[..count]; LANES]);
    for ((state, blocks), (of_turn, in_turn)) in states.iter_mut().zip(&mut blocks).zip(&*turns) {
        (*state, *blocks) = (**of_turn, &in_turn[..count]);
    }
    let is_done = wide::try_compress(&mut states, blocks);
    if is_done {
        for ((of_turn, _), state) in turns.iter_mut().zip(states) {
            **of_turn = state;
        }
    }
    is_done
}

#[cfg(not(target_arch = "x86_64"))]
fn compress_in_turns(_: &mut [Turn<'_>], _: usize) -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn compress_side_by_side(_: &mut [Turn<'_>], _: usize) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest as _;

    fn reference(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    /// Bytes that differ from place to place.
    fn sample(length: usize, seed: u8) -> Vec<u8> {
        (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
    }

    #[test]
    fn every_length_around_the_blocks_is_padded_right() {
        for length in (0..300).chain([4096, 65_537]) {
            let bytes = sample(length, 1);
            let mut hasher = Sha256::new();
            hasher.update(&bytes);
            assert_eq!(hasher.bytes(), length as u64);
            assert_eq!(hasher.finish(), reference(&bytes), "{length}");
        }
    }

    proptest! {
        #[test]
        fn streams_cut_anywhere_and_hashed_together_or_alone_are_sha256(
            rounds in prop::collection::vec((prop::collection::vec(0usize..400, 1..LANES + 3), any::<bool>()), 0..12),
        ) {
            let mut streams = vec![Sha256::new(); LANES + 2];
            let mut whole = vec![Vec::new(); LANES + 2];
            for (round, (lengths, together)) in rounds.into_iter().enumerate() {
                let pieces: Vec<_> =
                    lengths.iter().enumerate().map(|(at, length)| sample(*length, (round * 32 + at) as u8)).collect();
                for (whole, piece) in whole.iter_mut().zip(&pieces) {
                    whole.extend_from_slice(piece);
                }
                let mut more: Vec<_> = streams.iter_mut().zip(pieces.iter().map(Vec::as_slice)).collect();
                if together {
                    update_together(&mut more);
                } else {
                    more.into_iter().for_each(|(stream, piece)| stream.update(piece));
                }
            }
            for (stream, whole) in streams.into_iter().zip(whole) {
                prop_assert_eq!(stream.bytes(), whole.len() as u64);
                prop_assert_eq!(stream.finish(), reference(&whole));
            }
        }
    }

    /// Whatever this CPU gains by, each way gives the same as one stream after the other.
    #[test]
    fn all_ways_agree_on_any_number_of_streams() {
        let blocks: Vec<Vec<[u8; BLOCK]>> =
            (0..LANES).map(|at| sample(BLOCK * 7, at as u8 + 1).as_chunks().0.to_vec()).collect();
        let mut expected = [INITIAL; LANES];
        for (state, blocks) in expected.iter_mut().zip(&blocks) {
            sha2::block_api::compress256(state, &blocks[..5]);
        }
        for number in 1..=LANES {
            for in_turns in 0..=IN_TURNS {
                let mut states = [INITIAL; LANES];
                let mut turns: Vec<Turn<'_>> =
                    states.iter_mut().zip(&blocks).map(|(state, blocks)| (state, &blocks[..])).take(number).collect();
                let is_done = match in_turns {
                    0 => compress_side_by_side(&mut turns, 5),
                    _ => compress_by(in_turns, &mut turns, 5),
                };
                let done = if is_done { number } else { 0 };
                assert_eq!(states[..done], expected[..done], "{number}, {in_turns}");
                assert_eq!(states[done..], [INITIAL; LANES][done..], "{number}, {in_turns}");
                #[cfg(target_arch = "x86_64")]
                assert!(is_done || in_turns == 0 && !wide::is_possible());
            }
        }
    }

    #[test]
    fn streams_go_the_way_that_took_the_least_time() {
        let pace = |few, many, wide| {
            let [few, many, wide] = [few, many, wide].map(Duration::from_micros);
            let Pace { in_turns, side_by_side } = Pace::from_trials(few, many, wide);
            (in_turns, side_by_side)
        };
        // Half the time for sixteen: as long as eight in turns.
        assert_eq!(pace(100, 100, 50), (FEW, 9));
        assert_eq!(pace(100, 80, 20), (IN_TURNS, 5));
        // What is hardly faster is not worth it.
        assert_eq!(pace(100, 97, 94), (FEW, 16));
        assert_eq!(pace(100, 97, 97), (FEW, usize::MAX));
        let pace = Pace { in_turns: FEW, side_by_side: 9 };
        assert_eq!([0, 8, 9, 12, 40].map(|room| pace.streams_at_once(room)), [FEW, FEW, 9, 12, LANES]);
        let second = Duration::from_secs(1);
        let Pace { in_turns, side_by_side } = Pace::from_trials(second, second, Duration::MAX);
        assert_eq!((in_turns, side_by_side), (FEW, usize::MAX));
    }
}
