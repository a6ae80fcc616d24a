//! How often an image is made: once, and once more where what others have said of its layers was wrong.

use super::Report;
use super::targets::Targets;
use crate::error::Error;
use crate::event::{Event, Observer};
use crate::memo::Memo;

/// How it went to make an image and to bring it to its targets.
pub(super) enum Attempt {
    /// It is there, or would be.
    Made(Report),
    /// It could not be delivered.
    Failed {
        /// Why.
        error: Error,
        /// How many layers came out otherwise than shared caches may have said: what they said was believed then.
        wrong: usize,
    },
}

/// Has an image made and brought to its targets; once more where that failed for what shared caches have said, and
/// nothing has gone out for good.
pub(super) fn make(
    targets: Targets,
    memo: &Memo<'_>,
    observer: &dyn Observer,
    mut attempt: impl FnMut(Targets) -> Result<Attempt, Error>,
) -> Result<Report, Error> {
    let once_more = targets.once_more();
    let first = attempt(targets);
    // Who said what was wrong is not believed by the next run either.
    memo.save();
    let (error, wrong) = match first? {
        Attempt::Made(report) => return Ok(report),
        Attempt::Failed { error, wrong } => (error, wrong),
    };
    let is_nowhere = !matches!(error, Error::NotEverywhere { .. });
    match once_more.filter(|_| is_nowhere && wrong > 0) {
        Some(targets) => {
            observer.event(doubt(wrong, ": the image is made again without that"));
            let again = attempt(targets);
            memo.save();
            again?.into_result(observer)
        }
        None => Attempt::Failed { error, wrong }.into_result(observer),
    }
}

impl Attempt {
    /// For whoever makes no other; says what was wrong.
    fn into_result(self, observer: &dyn Observer) -> Result<Report, Error> {
        match self {
            Self::Made(report) => Ok(report),
            Self::Failed { error, wrong } => {
                if wrong > 0 {
                    observer.event(doubt(wrong, "\n  hint: run this again: they are made here then"));
                }
                Err(error)
            }
        }
    }
}

/// Some layers came out otherwise than others have said.
fn doubt(layers: usize, consequence: &str) -> Event {
    let message = format!("{layers} layers come out otherwise here than a shared cache has said{consequence}");
    Event::Warning { message }
}
