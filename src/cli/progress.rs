//! What people see while they wait: a bar on a terminal, plain lines in a pipe, nothing with `-q`.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::size;
use crate::event::{Event, Observer, Stage};

/// How much the user wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verbosity {
    /// Errors alone.
    Quiet,
    /// Also results and warnings.
    Normal,
    /// Also details (`-v`, and more of it).
    Verbose(u8),
}

/// Shows events on standard error.
pub(super) struct Progress {
    verbosity: Verbosity,
    /// The bar of the present stage; none where standard error is no terminal.
    bar: Mutex<Option<ProgressBar>>,
    draws: bool,
    interrupted: &'static AtomicBool,
    /// Warnings that were given: the same trouble met a hundred times is said once.
    warned: Mutex<BTreeSet<String>>,
}

impl Progress {
    pub(super) fn new(verbosity: Verbosity, interrupted: &'static AtomicBool) -> Self {
        let draws = verbosity != Verbosity::Quiet && std::io::stderr().is_terminal();
        Self { verbosity, bar: Mutex::new(None), draws, interrupted, warned: Mutex::default() }
    }

    /// How much the user wants to read.
    pub(super) fn verbosity(&self) -> Verbosity {
        self.verbosity
    }

    /// A line for people, above the bar if there is one.
    pub(super) fn line(&self, line: &str) {
        let bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let write = || {
            // Nobody is left to be told that standard error is closed.
            let _ = writeln!(std::io::stderr(), "{line}");
        };
        match &*bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// What a command has done, in one line.
    pub(super) fn result(&self, line: &str) {
        if self.verbosity >= Verbosity::Normal {
            self.line(line);
        }
    }

    fn start(&self, stage: Stage, total_bytes: u64) {
        let text = match stage {
            Stage::Hashing => "Hashing store paths",
            Stage::Packing => "Packing layers",
            Stage::Delivering => "Delivering the image",
            Stage::Verifying => "Verifying layers",
        };
        if self.draws {
            let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr());
            let template = match total_bytes {
                0 => "{msg} {bytes} {bytes_per_sec}",
                _ => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}",
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar.set_message(text);
            *self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(bar);
        } else if self.verbosity >= Verbosity::Verbose(1) {
            let size = if total_bytes == 0 { String::new() } else { format!(" ({})", size::human(total_bytes)) };
            self.line(&format!("{text}{size}"));
        }
    }
}

impl Observer for Progress {
    fn event(&self, event: Event) {
        match event {
            Event::Started { stage, total_bytes } => self.start(stage, total_bytes),
            Event::Advanced { bytes } if self.draws => {
                if let Some(bar) = &*self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
                    bar.inc(bytes);
                }
            }
            Event::Finished { .. } => {
                if let Some(bar) = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
                    bar.finish_and_clear();
                }
            }
            Event::Warning { message } if self.verbosity >= Verbosity::Normal => {
                let mut warned = self.warned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if warned.insert(message.clone()) {
                    self.line(&format!("! {message}"));
                }
            }
            Event::Offline { environment, generation, fetched, reason } if self.verbosity >= Verbosity::Normal => {
                let generation = generation.map(|number| format!(", generation {number}")).unwrap_or_default();
                let age = fetched.and_then(|fetched| SystemTime::now().duration_since(fetched).ok());
                let when = age.map_or("before".to_owned(), |age| size::human_age(age.as_secs()));
                self.line(&format!(
                    "! FloxHub cannot be reached: {reason}\n  going on with '{environment}' as it was fetched \
                     {when}{generation}"
                ));
            }
            Event::Detail { message } if self.verbosity >= Verbosity::Verbose(1) => self.line(&message),
            _ => {}
        }
    }

    fn cancelled(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
