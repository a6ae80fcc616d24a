//! How streams are dealt out to threads, so that all have about as much to do, from the beginning to the end.
//!
//! Side by side, as many streams as that takes no longer for than in turns are hashed in the time of the longest of them, and
//! all others beside them in no time of their own. So what a thread has to hash is what its longest streams have left; what
//! it has to read is what all of them have.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicI64, Ordering};

use super::{FEW, Pace};

/// What the streams that were begun have left to do, on all threads that make more than [`FEW`].
#[derive(Debug)]
pub(super) struct Deal {
    pace: Pace,
    /// In bytes that are hashed in turns.
    bytes: AtomicI64,
    threads: i64,
}

/// What those of one thread have left to do.
#[derive(Default)]
pub(super) struct Hand {
    bytes: i64,
    streams: usize,
}

impl Deal {
    /// So many threads count from the beginning: one that comes a moment later than others finds its part.
    pub(super) fn new(pace: Pace, threads: usize) -> Self {
        Self { pace, bytes: AtomicI64::new(0), threads: i64::try_from(threads).unwrap_or(i64::MAX).max(1) }
    }

    /// A thread joins that makes so many streams at once; none where it makes so few that it takes what there is.
    pub(super) fn join(&self, streams: usize) -> Option<Hand> {
        (streams > FEW).then(Hand::default)
    }

    /// A thread tells how many bytes each of the streams that it has begun has left, about.
    pub(super) fn tell(&self, hand: &mut Hand, left: impl Iterator<Item = i64>) {
        let mut left: Vec<i64> = left.map(|left| left.max(0)).collect();
        left.sort_unstable_by_key(|&left| Reverse(left));
        let sum = |left: &[i64]| left.iter().fold(0i64, |sum, &left| sum.saturating_add(left));
        let hashing = sum(&left[..left.len().min(self.pace.side_by_side)]);
        // Reading takes about half of the time that hashing in turns does: a third of `benches/floor.rs` is the system's.
        let bytes = hashing.saturating_add(sum(&left) / 2);
        let before = std::mem::replace(hand, Hand { bytes, streams: left.len() });
        self.bytes.fetch_add(hand.bytes.wrapping_sub(before.bytes), Ordering::Relaxed);
    }

    /// Whether a thread may begin with one more at once: where it has too few, or where the others have about as much to do,
    /// which is not taken so exactly while one more is one more to lie side by side.
    pub(super) fn may_have_another(&self, hand: &Hand) -> bool {
        let mean = self.bytes.load(Ordering::Relaxed) / self.threads;
        // What is left of each is a guess, and what others have is a moment old.
        let more = mean / if hand.streams < self.pace.side_by_side { 14 } else { 32 };
        hand.streams < FEW || hand.bytes <= mean.saturating_add(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { in_turns: 4, side_by_side: 4 };

    #[test]
    fn streams_are_dealt_out_so_that_threads_have_about_as_much_to_do() {
        let deal = Deal::new(PACE, 2);
        let [mut one, mut other] = [(); 2].map(|()| deal.join(16).unwrap());
        assert!(deal.may_have_another(&one), "nobody has any");
        deal.tell(&mut one, [900].into_iter());
        assert!(deal.may_have_another(&one), "one is too few");
        deal.tell(&mut one, [900, 300].into_iter());
        assert!(!deal.may_have_another(&one), "the other one has none yet, but comes");
        deal.tell(&mut other, [500, 300].into_iter());
        assert!(!deal.may_have_another(&one) && deal.may_have_another(&other));
        deal.tell(&mut other, [500, 300, 250].into_iter());
        assert!(deal.may_have_another(&one) && deal.may_have_another(&other), "about as much");
        deal.tell(&mut other, [500, 300, 250, 200].into_iter());
        assert!(deal.may_have_another(&one) && deal.may_have_another(&other), "as many as lie side by side");
        // Those beyond the longest four count less.
        deal.tell(&mut other, [10, 500, 300, 250, 200, 10, 10].into_iter());
        deal.tell(&mut one, [1200, 300, 300].into_iter());
        assert!(!deal.may_have_another(&one));
        // What was done is not to do any more.
        deal.tell(&mut one, [400, 300, 300].into_iter());
        assert!(deal.may_have_another(&one));
        // Also enough to lie side by side are not taken from who has less.
        assert!(!deal.may_have_another(&other));
        deal.tell(&mut one, [400, 300, 300, 200].into_iter());
        assert!(deal.may_have_another(&other));
    }

    #[test]
    fn a_thread_alone_and_one_with_few_streams_take_what_there_is() {
        let deal = Deal::new(PACE, 1);
        assert!(deal.join(2).is_none());
        let mut one = deal.join(3).unwrap();
        deal.tell(&mut one, [i64::MAX, i64::MAX, -5].into_iter());
        assert!(deal.may_have_another(&one));
        deal.tell(&mut one, [].into_iter());
        assert!(deal.may_have_another(&one));
    }
}
