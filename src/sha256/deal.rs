//! How streams are dealt out to threads, so that none has all the long ones.
//!
//! Side by side, as many streams as that takes no longer for than in turns are hashed in the time of the longest of them, and
//! all others beside them in no time of their own. So what a thread has to do is what its longest streams have left; short
//! ones, of which there are many, can go to any.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use super::Pace;

/// What the streams that were begun have left, on all threads that make more than are hashed in turns.
#[derive(Debug)]
pub(super) struct Deal {
    pace: Pace,
    bytes: AtomicI64,
    threads: AtomicUsize,
}

/// What those of one thread have left.
#[derive(Default)]
pub(super) struct Hand {
    bytes: i64,
    streams: usize,
}

impl Deal {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, bytes: AtomicI64::new(0), threads: AtomicUsize::new(0) }
    }

    /// A thread joins that makes so many streams at once; none where it makes so few that it takes what there is.
    pub(super) fn join(&self, streams: usize) -> Option<Hand> {
        (streams > self.pace.in_turns).then(|| {
            self.threads.fetch_add(1, Ordering::Relaxed);
            Hand::default()
        })
    }

    /// A thread tells how many bytes each of the streams that it has begun has left, about.
    pub(super) fn tell(&self, hand: &mut Hand, left: impl Iterator<Item = i64>) {
        let mut left: Vec<i64> = left.map(|left| left.max(0)).collect();
        left.sort_unstable_by_key(|&left| Reverse(left));
        let longest = left.iter().take(self.pace.side_by_side);
        let bytes = longest.fold(0i64, |sum, &left| sum.saturating_add(left));
        let before = std::mem::replace(hand, Hand { bytes, streams: left.len() });
        self.bytes.fetch_add(bytes.wrapping_sub(before.bytes), Ordering::Relaxed);
    }

    /// Whether a thread may begin with one more at once: where it has too few, where another one takes no time of its own,
    /// or where the others have about as much to do.
    pub(super) fn may_have_another(&self, hand: &Hand) -> bool {
        let threads = i64::try_from(self.threads.load(Ordering::Relaxed)).unwrap_or(i64::MAX).max(1);
        let mean = self.bytes.load(Ordering::Relaxed) / threads;
        // What is left of each is a guess, and what others have is a moment old.
        let about = mean.saturating_add(mean / 7);
        hand.streams < self.pace.in_turns || hand.streams >= self.pace.side_by_side || hand.bytes <= about
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { in_turns: 2, side_by_side: 4 };

    #[test]
    fn long_streams_are_dealt_out_and_short_ones_go_to_anyone() {
        let deal = Deal::new(PACE);
        let [mut one, mut other] = [(); 2].map(|()| deal.join(16).unwrap());
        assert!(deal.may_have_another(&one), "nobody has any");
        deal.tell(&mut one, [900].into_iter());
        assert!(deal.may_have_another(&one), "it takes two in turns");
        deal.tell(&mut one, [900, 300].into_iter());
        deal.tell(&mut other, [500, 300].into_iter());
        assert!(!deal.may_have_another(&one) && deal.may_have_another(&other));
        deal.tell(&mut other, [500, 300, 250].into_iter());
        assert!(deal.may_have_another(&one) && deal.may_have_another(&other), "about as much");
        deal.tell(&mut other, [500, 300, 250, 200].into_iter());
        assert!(deal.may_have_another(&one) && deal.may_have_another(&other), "another costs nothing");
        // Those beyond the longest four do not count.
        deal.tell(&mut other, [10, 500, 300, 250, 200, 10, 10].into_iter());
        deal.tell(&mut one, [1200, 300, 300].into_iter());
        assert!(!deal.may_have_another(&one));
        // What was done is not to do any more.
        deal.tell(&mut one, [400, 300, 300].into_iter());
        assert!(deal.may_have_another(&one));
    }

    #[test]
    fn a_thread_alone_and_one_with_few_streams_take_what_there_is() {
        let deal = Deal::new(PACE);
        assert!(deal.join(2).is_none());
        let mut one = deal.join(3).unwrap();
        deal.tell(&mut one, [i64::MAX, i64::MAX, -5].into_iter());
        assert!(deal.may_have_another(&one));
        deal.tell(&mut one, [].into_iter());
        assert!(deal.may_have_another(&one));
    }
}
