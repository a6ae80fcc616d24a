//! How long a build waits for a layer's bytes.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::hurry::within;
use super::open::quick;
use crate::event::{Cancelled, Event, Observer};
use crate::http::Patience;

/// How long a blob is worth waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// So long: it can be made here instead.
    AtMost(Duration),
    /// For as long as it comes, however slowly: else it would have to come over the network from somewhere else.
    WhileItComes,
}

impl Wait {
    /// What a depot is given.
    pub(super) fn patience(self) -> Patience {
        match self {
            Self::AtMost(_) => quick(),
            // A line as slow as this one is slow, and who sends less is not sending.
            Self::WhileItComes => Patience { stalled_after: Duration::from_secs(5), window: 8 * 1024, ..quick() },
        }
    }
}

/// The observer as it is seen while a blob is read: that comes to an end when the user wants the run to end, when the
/// blob was waited for long enough, and when the cache is done without meanwhile, because of another blob.
pub struct Waiting<'w> {
    observer: &'w dyn Observer,
    wait: Wait,
    /// Whether the cache is done without.
    has_failed: &'w AtomicBool,
    /// Whether everything that can be made here was waited for long enough.
    are_all_late: &'w AtomicBool,
    is_late: AtomicBool,
}

impl<'w> Waiting<'w> {
    pub(super) fn new(
        observer: &'w dyn Observer,
        wait: Wait,
        has_failed: &'w AtomicBool,
        are_all_late: &'w AtomicBool,
    ) -> Self {
        Self { observer, wait, has_failed, are_all_late, is_late: AtomicBool::new(false) }
    }

    /// What a depot is given.
    pub(super) fn patience(&self) -> Patience {
        self.wait.patience()
    }

    /// Whether the blob was waited for long enough.
    pub(super) fn is_late(&self) -> bool {
        let is_late = || self.is_late.load(Ordering::Relaxed) || self.are_all_late.load(Ordering::Relaxed);
        matches!(self.wait, Wait::AtMost(_)) && is_late()
    }

    /// Reads the blob; from the moment on when it was waited for long enough, that comes to an end.
    pub(super) fn bounded<T>(&self, work: impl FnOnce() -> T) -> T {
        match self.wait {
            Wait::AtMost(limit) => within(limit, &self.is_late, work),
            Wait::WhileItComes => work(),
        }
    }
}

impl Observer for Waiting<'_> {
    fn event(&self, event: Event) {
        self.observer.event(event);
    }

    fn cancelled(&self) -> bool {
        self.is_late() || self.has_failed.load(Ordering::Relaxed) || self.observer.cancelled()
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
        let (has_failed, are_all_late) = (AtomicBool::new(false), AtomicBool::new(false));
        let waiting = |wait| Waiting::new(&Silent, wait, &has_failed, &are_all_late);
        let (near, far) = (waiting(Wait::AtMost(Duration::from_millis(1))), waiting(Wait::WhileItComes));
        // It has begun to come, and comes for ever.
        let endless =
            near.bounded(|| io::copy(&mut WaitedFor { blob: &mut io::repeat(7), waiting: &near }, &mut io::sink()));
        assert!(endless.is_err_and(|error| Cancelled::caused(&error)) && near.is_late());
        let next = waiting(Wait::AtMost(Duration::from_secs(3600)));
        assert!(next.bounded(|| !next.cancelled()), "one layer's time is no other's");
        are_all_late.store(true, Ordering::Relaxed);
        assert!(next.is_late() && !far.is_late() && !far.bounded(|| far.cancelled()));
        has_failed.store(true, Ordering::Relaxed);
        assert!(far.cancelled() && !far.is_late(), "somebody else has given the cache up");
    }
}
