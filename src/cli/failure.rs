//! How a run that failed ends: what happened, why, what mends it, and the exit code.

use std::error::Error;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use super::interrupt;
use super::progress::Progress;
use crate::event::{Cancelled, in_one_line};

/// A run that did not end well.
#[derive(Debug)]
pub(super) struct Failure {
    error: Box<dyn Error>,
    hint: Option<String>,
    exit_code: u8,
    /// Whether somebody else has told the user already, or there is nothing to tell.
    is_said: bool,
}

impl Failure {
    /// Failed: exit code 1.
    pub(super) fn new(error: impl Into<Box<dyn Error>>, hint: Option<String>) -> Self {
        Self { error: error.into(), hint, exit_code: 1, is_said: false }
    }

    /// Wrong usage: exit code 2.
    pub(super) fn usage(error: impl Into<Box<dyn Error>>, hint: Option<String>) -> Self {
        Self { exit_code: 2, ..Self::new(error, hint) }
    }

    /// `cache verify` found damage: exit code 3.
    pub(super) fn damage(error: impl Into<Box<dyn Error>>, hint: Option<String>) -> Self {
        Self { exit_code: 3, ..Self::new(error, hint) }
    }

    /// Another run failed and has said why: its exit code.
    pub(super) fn said(error: impl Into<Box<dyn Error>>, exit_code: u8) -> Self {
        Self { exit_code, is_said: true, ..Self::new(error, None) }
    }

    /// The user wanted the run to end: exit code 130.
    pub(super) fn interrupted() -> Self {
        Self::new(Cancelled, None)
    }

    /// Standard output could not be written. That somebody stopped reading it ends a run like any other end; no other
    /// pipe that broke does.
    pub(super) fn output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { exit_code: 0, is_said: true, ..Self::new(error, None) },
            _ => Self::new(error, None),
        }
    }

    /// A file of the user's could not be read.
    pub(super) fn unreadable(file: &Path, error: &io::Error) -> Self {
        Self::new(format!("cannot read '{}': {error}", file.display()), None)
    }

    /// The error with what is behind it, and the hint below, for a warning about work that goes on.
    pub(super) fn as_warning(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        in_one_line(&*self.error) + &hint
    }

    /// Says it on standard error and gives the exit code.
    pub(super) fn report(self, progress: &Progress) -> ExitCode {
        if interrupt::happened() || Cancelled::caused(&*self.error) {
            progress.line("✘ interrupted");
            return ExitCode::from(interrupt::EXIT_CODE);
        }
        if self.is_said {
            return ExitCode::from(self.exit_code);
        }
        progress.line(&format!("✘ ERROR: {}", self.error));
        let mut said = self.error.to_string();
        let mut next = self.error.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            // An error that shows its cause's words as its own has said them already.
            if !said.ends_with(&text) {
                progress.line(&format!("  caused by: {text}"));
            }
            said = text;
            next = cause.source();
        }
        if let Some(hint) = &self.hint {
            progress.line(&format!("  hint: {hint}"));
        }
        ExitCode::from(self.exit_code)
    }
}

#[cfg(test)]
mod tests {
    use super::super::progress::Verbosity;
    use super::*;
    use crate::delivery::DeliveryError;

    fn exit_code(failure: Failure) -> ExitCode {
        failure.report(&Progress::new(Verbosity::Quiet, interrupt::flag()))
    }

    #[test]
    fn only_a_reader_of_standard_output_may_go_away() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(exit_code(Failure::output(broken())), ExitCode::SUCCESS);
        assert_eq!(exit_code(Failure::output(io::ErrorKind::StorageFull.into())), ExitCode::FAILURE);
        // A connection, or a child's standard input.
        assert_eq!(exit_code(Failure::new(broken(), None)), ExitCode::FAILURE);
        let written = DeliveryError::Write { path: "image.tar".into(), source: broken() };
        assert_eq!(exit_code(Failure::new(written, None)), ExitCode::FAILURE);
    }

    #[test]
    fn a_warning_has_all_that_is_behind_it() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Error(&'static str, #[source] Option<Box<Error>>);
        let behind = Error("there is no room", None);
        let error = Error("the cache failed", Some(Box::new(Error("cannot write 'x'", Some(Box::new(behind))))));
        let warning = Failure::new(error, Some("make room".to_owned())).as_warning();
        assert_eq!(warning, "the cache failed: cannot write 'x': there is no room\n  hint: make room");
    }
}
