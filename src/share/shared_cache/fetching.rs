//! Layers' bytes out of the caches, as long as they are worth waiting for.

use std::io::{self, Read};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::hurry::within;
use super::super::waiting::{Together, Wait, WaitedFor, Waiting};
use super::faults::Damage;
use super::{Share, SharedCache};
use crate::blob::Digest;
use crate::event::{Cancelled, in_one_line};
use crate::http::FetchError;

impl<'a> SharedCache<'a> {
    /// Fetches several layers that can be made here, at once or one after the other: each cache is waited for so long
    /// for all of them, whatever each of them is worth.
    pub fn fetch_within<T>(&self, limit: Duration, fetching: impl FnOnce(&Together) -> T) -> T {
        let caches = u32::try_from(self.usable().count()).unwrap_or(u32::MAX);
        let together = Together::default();
        within(limit.saturating_mul(caches), &together.are_late, || fetching(&together))
    }

    /// Has a blob read; false where no cache has it, or none gives it in time. What is read is not verified. A cache
    /// that does not give what it has is done without from then on, by all who wait for other blobs of it, too; one
    /// that is too slow is not waited for again by those who can do otherwise, and still told what is made here.
    pub fn read_blob(
        &self,
        blob: &Digest,
        size: u64,
        wait: Wait<'_>,
        mut read: impl FnMut(&mut dyn Read) -> io::Result<()>,
    ) -> bool {
        self.views.get_or_init(|| self.read_views());
        for share in self.usable().filter(|share| share.state().contents.blobs().contains_key(blob)) {
            let waiting = Waiting::new(self.observer, wait, &share.health);
            // The time was up before this cache was asked: that is not its fault.
            if waiting.is_late() {
                return false;
            }
            if waiting.is_for_others() {
                continue;
            }
            let mut read = |blob: &mut dyn Read| read(&mut WaitedFor { blob, waiting: &waiting });
            let done = waiting.bounded(|| share.depot.read_blob(blob, size, &waiting, &mut read));
            match done {
                Ok(Some(Ok(()))) => return true,
                Ok(Some(Err(error))) if Damage::is_in(&error) => {
                    share.state().damaged.insert(*blob, Damage::Wrong);
                    self.warn_of(share, &format!("gave {blob} wrong: {error}"));
                }
                Ok(Some(Err(error))) if has_broken_off(&error) => {
                    self.do_without_its_blobs(share, &waiting, &format!("a layer did not come: {error}"));
                }
                Ok(Some(Err(error))) => self.warn_of(share, &format!("gave {blob} wrong: {error}")),
                Ok(None) => {
                    share.state().damaged.insert(*blob, Damage::Lost);
                    self.warn_of(share, &format!("has lost {blob}"));
                }
                Err(error) if Damage::is_why(&error) => {
                    share.state().damaged.insert(*blob, Damage::Wrong);
                    self.warn_of(share, &format!("gave {blob} wrong: {}", in_one_line(&error)));
                }
                Err(error) => self.do_without_its_blobs(share, &waiting, &in_one_line(&error)),
            }
        }
        false
    }

    fn do_without_its_blobs(&self, share: &Share<'a>, waiting: &Waiting<'_>, why: &str) {
        if !waiting.is_late() && !waiting.is_for_others() {
            self.do_without(share, why);
        } else if !share.health.is_slow.swap(true, Ordering::Relaxed) && !self.observer.cancelled() {
            self.warn_of(share, "gives layers too slowly: this run waits for none that it can have otherwise");
        }
    }
}

/// Whether a blob was not read because whoever sends it has failed, or is no more waited for.
fn has_broken_off(error: &io::Error) -> bool {
    Cancelled::caused(error) || error.get_ref().is_some_and(|inner| inner.is::<FetchError>())
}
