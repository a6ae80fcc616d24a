//! The `git` program, as it comes and not as the user has set it up.
//!
//! What the user has configured for git is for their own repositories and is left out: hooks would run in ours,
//! credential helpers would store our token or ask for another one, rewritten addresses would lead it elsewhere. Flox
//! leaves it out too. Proxies and certificates are known from environment variables.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::floxhub::{FLOXHUB_TOKEN, Secret};
use crate::child::{Abandoned, Child, find_program};
use crate::event::{Cancelled, Observer};

/// How long a command may take. What is fetched is small; a server that does not answer must not keep anybody.
const PATIENCE: Duration = Duration::from_secs(90);

/// For every command: nobody else's hooks, no work in the background after its end, no other way to log in, and an end
/// to a transfer in which nothing has come for so many seconds.
const SETTINGS: [&str; 6] = [
    "core.hooksPath=/dev/null",
    "gc.autoDetach=false",
    "maintenance.autoDetach=false",
    "credential.helper=",
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=20",
];

/// Tells git the token out of git's own environment: it stands on no command line and in no file
/// (gitcredentials(7), "Custom helpers").
const HELPER: &str =
    r#"!f() { if [ "$1" = get ]; then printf 'username=oauth\npassword=%s\n' "$FLOX_FLOXHUB_TOKEN"; fi; }; f"#;

/// The program, and what it may see.
pub(super) struct Git<'a> {
    program: PathBuf,
    environment: &'a [(OsString, OsString)],
    observer: &'a dyn Observer,
    patience: Duration,
}

/// Who is talked to.
pub(super) struct Server<'a> {
    /// What all its addresses begin with.
    pub(super) url: &'a str,
    /// What it lets this user in by.
    pub(super) token: Option<&'a Secret>,
}

/// A command that did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// It could not be started, or not be waited for.
    #[error("git cannot be run")]
    Run(#[from] io::Error),
    /// It took too long.
    #[error("git has not come to an end within {} s", .0.as_secs())]
    TooSlow(Duration),
    /// It failed: its own words, without the token.
    #[error("{}", last_words(.0))]
    Failed(String),
    /// Nothing is to be asked over the network.
    #[error("--offline keeps this run from asking it")]
    Offline,
    /// The user wants the run to end.
    #[error("interrupted")]
    Interrupted(#[source] Cancelled),
}

impl<'a> Git<'a> {
    /// The first `git` on `path`, to be run with these variables and no others; `None` where there is none.
    pub(super) fn find(
        path: Option<&OsStr>,
        environment: &'a [(OsString, OsString)],
        observer: &'a dyn Observer,
    ) -> Option<Self> {
        find_program("git", path).map(|program| Self { program, environment, observer, patience: PATIENCE })
    }

    /// Runs a command on the repository at `dir`, which may talk to `server` and to nobody else: what it prints.
    pub(super) fn run(&self, dir: &Path, server: Option<Server<'_>>, args: &[&str]) -> Result<Vec<u8>, GitError> {
        let url = server.as_ref().map(|server| server.url);
        let token = server.as_ref().and_then(|server| server.token);
        let mut command = Command::new(&self.program);
        command.arg("--git-dir").arg(dir);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        // Those before 2.32 do not know of `GIT_CONFIG_GLOBAL`. curl looks for passwords in the home directory, too.
        command.env("HOME", dir).env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_SYSTEM", "/dev/null");
        command.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        // Where https leads on to http, it is not followed; the other way round it is.
        let scheme = url.and_then(|url| url.split(':').next()).unwrap_or_default();
        command.env("GIT_ALLOW_PROTOCOL", if scheme == "http" { "http:https" } else { scheme });
        if let (Some(url), Some(token)) = (url, token) {
            command.env(FLOXHUB_TOKEN, token.reveal()).arg("-c").arg(format!("credential.{url}.helper={HELPER}"));
        }
        // Its own helpers go with it when it is ended.
        command.args(args).process_group(0);
        let ended = match Child::spawn(&mut command, false)?.wait_at_most(self.patience, self.observer)? {
            Ok(ended) => ended,
            Err(Abandoned::Interrupted) => return Err(GitError::Interrupted(Cancelled)),
            Err(Abandoned::TooSlow) => return Err(GitError::TooSlow(self.patience)),
        };
        if ended.status.success() {
            return Ok(ended.stdout);
        }
        let words = match ended.words() {
            words if words.is_empty() => format!("git {}", ended.status_words()),
            words => words,
        };
        Err(GitError::Failed(match token {
            Some(token) => words.replace(token.reveal(), "***"),
            None => words,
        }))
    }
}

/// The line that says why: the first that git calls fatal, else the last.
fn last_words(words: &str) -> &str {
    let fatal = words.lines().find_map(|line| line.strip_prefix("fatal: "));
    fatal.or_else(|| words.lines().last()).unwrap_or(words)
}

#[cfg(test)]
#[path = "git_tests.rs"]
mod tests;
