//! How long a build waits for shared caches in all, however many questions that takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::event::{Event, Observer};

/// The observer as shared caches see it: what is waited for comes to an end when the user wants the run to end, and
/// when the build has waited long enough.
pub struct Hurry<'a> {
    pub(super) observer: &'a dyn Observer,
    is_over: AtomicBool,
}

impl<'a> Hurry<'a> {
    /// In no hurry yet.
    pub fn new(observer: &'a dyn Observer) -> Self {
        Self { observer, is_over: AtomicBool::new(false) }
    }

    /// Does something. What is waited for after so long, by whatever thread, comes to an end then. One at a time.
    pub(super) fn within<T>(&self, limit: Duration, work: impl FnOnce() -> T) -> T {
        let done = within(limit, &self.is_over, work);
        self.is_over.store(false, Ordering::Relaxed);
        done
    }

    /// Whether the build has waited long enough.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Does something. `is_over` is set where that takes longer than `limit`.
pub(super) fn within<T>(limit: Duration, is_over: &AtomicBool, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (is_done, waiting) = channel::<()>();
        scope.spawn(move || {
            if waiting.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                is_over.store(true, Ordering::Relaxed);
            }
        });
        let done = work();
        drop(is_done);
        done
    })
}

impl Observer for Hurry<'_> {
    fn event(&self, event: Event) {
        self.observer.event(event);
    }

    fn cancelled(&self) -> bool {
        self.is_over() || self.observer.cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;

    #[test]
    fn what_takes_longer_than_it_may_is_ended_and_what_comes_next_is_not() {
        let hurry = Hurry::new(&Silent);
        assert!(!hurry.within(Duration::from_secs(3600), || hurry.cancelled()));
        hurry.within(Duration::from_millis(1), || {
            while !hurry.cancelled() {
                thread::yield_now();
            }
        });
        assert!(!hurry.cancelled());
    }
}
