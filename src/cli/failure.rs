//! How a run that failed ends: what happened, why, what mends it, and the exit code.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use super::interrupt;
use super::progress::Progress;
use crate::event::Cancelled;

/// A run that did not end well.
#[derive(Debug)]
pub(super) struct Failure {
    error: Box<dyn Error>,
    hint: Option<String>,
    exit_code: u8,
    /// Whether somebody else has told the user already.
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

    /// Standard output could not be written.
    pub(super) fn output(error: io::Error) -> Self {
        Self::new(error, None)
    }

    /// The error with what is behind it, and the hint below, for a warning about work that goes on.
    pub(super) fn as_warning(&self) -> String {
        let cause = self.error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        let hint = self.hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        format!("{}{cause}{hint}", self.error)
    }

    /// Whether somebody stopped reading: that ends a run like any other end.
    fn is_closed_pipe(&self) -> bool {
        let mut next: Option<&(dyn Error + 'static)> = Some(&*self.error);
        while let Some(error) = next {
            if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                return true;
            }
            next = error.source();
        }
        false
    }

    /// Says it on standard error and gives the exit code.
    pub(super) fn report(self, progress: &Progress) -> ExitCode {
        if interrupt::happened() || Cancelled::caused(&*self.error) {
            progress.line("✘ interrupted");
            return ExitCode::from(interrupt::EXIT_CODE);
        }
        if self.is_closed_pipe() {
            return ExitCode::SUCCESS;
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
