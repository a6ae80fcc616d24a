//! Named points at which a debug build can be killed, so that tests see what a crash at each leaves behind.
//!
//! In a release build a point is nothing. The kill is SIGKILL to the process itself: no destructor runs, no buffer is
//! flushed, as if somebody had pulled the plug on the process alone.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Every point, in the order in which a build and then a garbage collection pass them.
pub const POINTS: &[&str] = &[
    "store.directory-made",
    "file.written",
    "file.in-place",
    "index.moved-aside",
    "index.opened",
    "index.filled",
    "index.changed",
    "index.flushed",
    "lease.made",
    "lease.taken",
    "claim.taken",
    "blob.begun",
    "blob.written",
    "blob.synced",
    "blob.in-place",
    "blob.committed",
    "layer.recorded",
    "layers.packed",
    "image.recorded",
    "output.layer",
    "output.piece",
    "output.written",
    "output.in-place",
    "gc.planned",
    "gc.image-gone",
    "gc.unindexed",
    "gc.record-gone",
    "gc.blob-gone",
    "gc.file-gone",
    "gc.buried",
    "discard.unindexed",
    "discard.record-gone",
    "discard.blob-gone",
    "clear.begun",
    "clear.entry-gone",
];

/// Where the process shall die.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashAt {
    point: String,
    /// How often the point is passed unharmed before.
    passes: u32,
}

/// A text that names no point.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no crash point: POINT or POINT:N, to die when the point is passed for the Nth time")]
pub struct InvalidCrashAt(String);

impl FromStr for CrashAt {
    type Err = InvalidCrashAt;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (point, count) = text.split_once(':').unwrap_or((text, "1"));
        let passes = count.parse::<u32>().ok().and_then(|count| count.checked_sub(1));
        match passes {
            Some(passes) if POINTS.contains(&point) => Ok(Self { point: point.to_owned(), passes }),
            _ => Err(InvalidCrashAt(text.to_owned())),
        }
    }
}

impl fmt::Display for CrashAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.point, self.passes + 1)
    }
}

static ARMED: OnceLock<(CrashAt, AtomicU32)> = OnceLock::new();

/// Makes the process die at a point. Only the first call counts; without debug assertions none does.
pub fn arm(at: CrashAt) {
    let _ = ARMED.set((at, AtomicU32::new(0)));
}

/// The process dies here if it was told to.
#[inline]
pub fn point(name: &'static str) {
    if !cfg!(debug_assertions) {
        return;
    }
    debug_assert!(POINTS.contains(&name), "'{name}' is not in the list of crash points");
    if let Some((at, passed)) = ARMED.get()
        && at.point == name
        && passed.fetch_add(1, Ordering::Relaxed) == at.passes
    {
        // It cannot fail: the process exists and is its own.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_named_with_or_without_a_count() {
        let parse = |text: &str| text.parse::<CrashAt>().map(|at| at.to_string()).ok();
        assert_eq!(parse("blob.synced").as_deref(), Some("blob.synced:1"));
        assert_eq!(parse("gc.blob-gone:7").as_deref(), Some("gc.blob-gone:7"));
        for text in ["", "nowhere", "blob.synced:0", "blob.synced:-1", "blob.synced:x", "blob.synced:1:1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
