//! How long a build waits for a layer's bytes.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::hurry::within;
use super::open::quick;
use crate::event::{Cancelled, Event, Observer};
use crate::http::Patience;

/// Layers that are fetched together: the time for all of them may be up before that of one.
#[derive(Debug, Default)]
pub struct Together {
    pub(super) are_late: AtomicBool,
}

/// How long a blob is worth waiting for.
#[derive(Clone, Copy, Debug)]
pub enum Wait<'t> {
    /// So long, or until the time of those that it is fetched with is up: it can be made here instead.
    AtMost(Duration, &'t Together),
    /// For as long as it comes, however slowly: else it would have to come over the network from somewhere else.
    WhileItComes,
}

impl Wait<'_> {
    /// What a depot is given.
    pub(super) fn patience(self) -> Patience {
        match self {
            Self::AtMost(..) => quick(),
            // A line as slow as this one is slow, and who sends less is not sending.
            Self::WhileItComes => Patience { stalled_after: Duration::from_secs(5), window: 8 * 1024, ..quick() },
        }
    }
}

/// What is known of a cache by all who wait for it.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// It has failed, and is done without.
    pub(super) has_failed: AtomicBool,
    /// It gives layers too slowly for those that can be had otherwise.
    pub(super) is_slow: AtomicBool,
}

/// The observer as it is seen while a blob is read: that comes to an end when the user wants the run to end, when the
/// blob was waited for long enough, and when another blob has shown meanwhile that this one is not to be waited for.
pub struct Waiting<'w> {
    observer: &'w dyn Observer,
    wait: Wait<'w>,
    health: &'w Health,
    is_late: AtomicBool,
}

impl<'w> Waiting<'w> {
    pub(super) fn new(observer: &'w dyn Observer, wait: Wait<'w>, health: &'w Health) -> Self {
        Self { observer, wait, health, is_late: AtomicBool::new(false) }
    }

    /// What a depot is given.
    pub(super) fn patience(&self) -> Patience {
        self.wait.patience()
    }

    /// Whether the blob was waited for long enough.
    pub(super) fn is_late(&self) -> bool {
        match self.wait {
            Wait::AtMost(_, together) => {
                self.is_late.load(Ordering::Relaxed) || together.are_late.load(Ordering::Relaxed)
            }
            Wait::WhileItComes => false,
        }
    }

    /// Whether the cache is too slow for a blob that can be had otherwise.
    pub(super) fn is_for_others(&self) -> bool {
        matches!(self.wait, Wait::AtMost(..)) && self.health.is_slow.load(Ordering::Relaxed)
    }

    /// Reads the blob; from the moment on when it was waited for long enough, that comes to an end.
    pub(super) fn bounded<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.wait {
            Wait::AtMost(limit, _) => within(limit, &self.is_late, work),
            Wait::WhileItComes => work(),
        }
    }
}

impl Observer for Waiting<'_> {
    fn event(&self, event: Event) {
        self.observer.event(event);
    }

    fn cancelled(&self) -> bool {
        let has_failed = self.health.has_failed.load(Ordering::Relaxed);
        self.is_late() || self.is_for_others() || has_failed || self.observer.cancelled()
    }
}

/// A blob that comes to an end when it is no more waited for. Where bytes come steadily, and too slowly, no single wait
/// is long enough for that to be seen.
pub(super) struct WaitedFor<'w> {
    pub(super) blob: &'w mut dyn Read,
    pub(super) waiting: &'w Waiting<'w>,
}

impl Read for WaitedFor<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Cancelled::check(self.waiting)?;
        self.blob.read(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;

    #[test]
    fn what_can_be_made_here_is_waited_for_so_long_and_what_cannot_while_nobody_gives_the_cache_up() {
        let (health, together) = (Health::default(), Together::default());
        let waiting = |wait| Waiting::new(&Silent, wait, &health);
        let at_most = |limit| waiting(Wait::AtMost(limit, &together));
        let (near, far) = (at_most(Duration::from_millis(1)), waiting(Wait::WhileItComes));
        // It has begun to come, and comes for ever.
        let endless =
            near.bounded(|| io::copy(&mut WaitedFor { blob: &mut io::repeat(7), waiting: &near }, &mut io::sink()));
        assert!(endless.is_err_and(|error| Cancelled::caused(&error)) && near.is_late());
        let next = at_most(Duration::from_secs(3600));
        assert!(next.bounded(|| !next.cancelled()), "one layer's time is no other's");
        together.are_late.store(true, Ordering::Relaxed);
        assert!(next.is_late() && !far.is_late() && !far.bounded(|| far.cancelled()));
        let of_others = Together::default();
        let other = waiting(Wait::AtMost(Duration::from_secs(3600), &of_others));
        assert!(!other.cancelled(), "those that are fetched together have a time of their own");
        health.is_slow.store(true, Ordering::Relaxed);
        assert!(other.cancelled() && !other.is_late() && !far.cancelled(), "it is slow, and has all that is far");
        health.has_failed.store(true, Ordering::Relaxed);
        assert!(far.cancelled() && !far.is_late(), "somebody else has given the cache up");
    }
}
