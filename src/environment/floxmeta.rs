//! An owner's `floxmeta` repository: a branch for each environment, in its tree a directory for each generation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::floxhub::FloxHub;
use super::git::{Git, GitError, Server};
use super::remote_name::RemoteName;

/// A bare repository on this machine with what was fetched of an owner's environments.
pub(super) struct Floxmeta<'a> {
    git: &'a Git<'a>,
    dir: PathBuf,
}

/// An environment could not be fetched.
#[derive(Debug)]
pub(super) enum FetchError {
    /// FloxHub wants to know who asks, or does not let them in.
    Refused,
    /// The owner has no repository there.
    NoRepository,
    /// The repository has no such branch.
    NoBranch,
    /// Nobody answers, or something in between does.
    Unreachable(GitError),
    /// FloxHub, or the way to it, is not as it should be: what was fetched before is no answer to that.
    Distrusted(GitError),
    /// Something is wrong here.
    Local(GitError),
}

impl<'a> Floxmeta<'a> {
    /// The repository at `dir`.
    pub(super) fn at(git: &'a Git<'a>, dir: &Path) -> Self {
        Self { git, dir: dir.to_owned() }
    }

    /// Makes an empty repository at `dir`.
    pub(super) fn init(git: &'a Git<'a>, dir: &Path) -> Result<Self, GitError> {
        std::fs::create_dir(dir)?;
        // Without a template, which would bring hooks.
        git.run(dir, None, &["init", "--quiet", "--bare", "--template="])?;
        Ok(Self::at(git, dir))
    }

    /// Fetches the environment as it is now: no older states, for each has all generations in it.
    pub(super) fn fetch(&self, hub: &FloxHub, name: &RemoteName) -> Result<(), FetchError> {
        let url = format!("{}/{}/floxmeta", hub.git_url, name.owner());
        let branch = format!("+refs/heads/{0}:refs/heads/{0}", name.name());
        let server = Server { url: &hub.git_url, token: hub.token.as_ref() };
        let args = ["fetch", "--quiet", "--no-tags", "--depth=1", &url, &branch];
        self.git.run(&self.dir, Some(server), &args).map(drop).map_err(FetchError::of)
    }

    /// The environment as it was fetched last.
    pub(super) fn branch(&self, name: &RemoteName) -> Result<Branch<'a>, GitError> {
        let run = |args: &[&str]| {
            self.git.run(&self.dir, None, args).map(|printed| String::from_utf8_lossy(&printed).into_owned())
        };
        let commit = run(&["rev-parse", "--verify", &format!("refs/heads/{}^{{commit}}", name.name())])?;
        let commit = commit.trim().to_owned();
        let listing = run(&["ls-tree", "-r", "-z", "--full-tree", &commit])?;
        // `<mode> <type> <object>\t<path>`
        let file = |entry: &str| {
            let (node, path) = entry.split_once('\t')?;
            Some((path.to_owned(), node.split(' ').nth(2)?.to_owned()))
        };
        let files = listing.split('\0').filter_map(file).collect();
        Ok(Branch { git: self.git, dir: self.dir.clone(), commit, files })
    }
}

/// An environment's tree.
pub(super) struct Branch<'a> {
    git: &'a Git<'a>,
    dir: PathBuf,
    /// The commit that it is of.
    pub(super) commit: String,
    files: BTreeMap<String, String>,
}

impl Branch<'_> {
    /// The text of a file, if there is one.
    pub(super) fn read(&self, path: &str) -> Result<Option<Vec<u8>>, GitError> {
        let Some(object) = self.files.get(path) else { return Ok(None) };
        self.git.run(&self.dir, None, &["cat-file", "blob", object]).map(Some)
    }

    /// The generations that are there, ascending.
    pub(super) fn generations(&self) -> Vec<u64> {
        let number = |path: &String| path.strip_suffix("/env/manifest.toml")?.parse().ok();
        let mut numbers: Vec<u64> = self.files.keys().filter_map(number).collect();
        numbers.sort_unstable();
        numbers
    }
}

impl FetchError {
    /// Takes git at its word: it has one exit status for everything.
    fn of(error: GitError) -> Self {
        let words = match &error {
            GitError::Failed(words) => words.to_lowercase(),
            GitError::TooSlow(_) => return Self::Unreachable(error),
            _ => return Self::Local(error),
        };
        let says = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
        let status = words.split("returned error: ").nth(1).and_then(|behind| behind.get(..3)?.parse::<u16>().ok());
        let denied = words.lines().any(|line| line.starts_with("remote:") && line.contains("denied"));
        match status {
            Some(401 | 403) => return Self::Refused,
            Some(404) => return Self::NoRepository,
            Some(408 | 429 | 500..) => return Self::Unreachable(error),
            Some(_) => return Self::Distrusted(error),
            None => {}
        }
        if denied || says(&["authentication failed", "could not read username", "could not read password"]) {
            Self::Refused
        } else if says(&["couldn't find remote ref"]) {
            Self::NoBranch
        } else if words.lines().any(|line| line.starts_with("fatal: repository '") && line.ends_with("' not found"))
            || says(&["does not appear to be a git repository"])
        {
            Self::NoRepository
        } else if says(&["certificate", "transport '", "protocol \""]) {
            Self::Distrusted(error)
        } else if says(&[
            "unable to access '",
            "rpc failed",
            "early eof",
            "hung up",
            "unexpected disconnect",
            // Something answers, as networks do that want a login first, but it does not speak git.
            "is this a git repository?",
            "invalid server response",
            "unable to update url base from redirection",
        ]) {
            Self::Unreachable(error)
        } else {
            Self::Local(error)
        }
    }
}

#[cfg(test)]
#[path = "floxmeta_tests.rs"]
mod tests;
