//! What the stages tell whoever watches: typed events, and the wish to stop.

use std::time::SystemTime;

/// Something that happened on the way through.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A stage begins that will handle `total_bytes` (uncompressed tar or blob bytes; zero where nobody can tell).
    Started {
        /// The stage.
        stage: Stage,
        /// How much there is to do, in bytes.
        total_bytes: u64,
    },
    /// The current stage has handled this many bytes more.
    Advanced {
        /// Bytes since the last such event.
        bytes: u64,
    },
    /// The stage is over.
    Finished {
        /// The stage.
        stage: Stage,
    },
    /// Something went on by another way than usual; worth a line for people even without `-v`.
    Warning {
        /// What happened and what it means, one sentence.
        message: String,
    },
    /// FloxHub cannot be reached: an environment there is taken as it was when it was fetched last.
    Offline {
        /// The environment, `OWNER/NAME`.
        environment: String,
        /// Which of its generations is taken, if one can be.
        generation: Option<u64>,
        /// When that was, if that is known.
        fetched: Option<SystemTime>,
        /// Why it cannot be reached.
        reason: String,
    },
    /// A detail for `-v`.
    Detail {
        /// One line.
        message: String,
    },
}

/// An error with what is behind it, for a message about work that goes on.
pub(crate) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    // Servers may answer with pages.
    text.lines().next().unwrap_or_default().to_owned()
}

/// The long parts of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Contents are hashed that no database vouches for.
    Hashing,
    /// Layers are packed and digested.
    Packing,
    /// The image goes to its target.
    Delivering,
    /// The layer store is read again.
    Verifying,
}

/// Watches a run. The stages run in parallel, so an observer is shared between threads.
pub trait Observer: Sync {
    /// Takes note of an event; must return quickly.
    fn event(&self, event: Event);

    /// Whether the user wants the run to end (Ctrl-C). Stages ask between buffers and then fail with `Interrupted`.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event) {}
}

/// The user ended the run: what a stage fails with after [`Observer::cancelled`] said so.
///
/// Travels inside an `io::Error` of kind `Other`; `ErrorKind::Interrupted` would be taken for a call to be repeated.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Cancelled;

impl Cancelled {
    /// Fails if the user wants the run to end.
    pub fn check(observer: &dyn Observer) -> std::io::Result<()> {
        if observer.cancelled() { Err(std::io::Error::other(Self)) } else { Ok(()) }
    }

    /// Whether this error, or one that caused it, is the user's wish to stop.
    pub fn caused(error: &(dyn std::error::Error + 'static)) -> bool {
        let mut next = Some(error);
        while let Some(error) = next {
            if error.is::<Self>() {
                return true;
            }
            // An io::Error shows its inner error's source as its own, so the inner error itself is looked at here.
            let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
            if inner.is_some_and(|inner| Self::caused(inner)) {
                return true;
            }
            next = error.source();
        }
        false
    }
}
