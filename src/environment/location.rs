//! Where an environment is, as messages and Flox's command line name it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::remote_name::RemoteName;

/// Where an environment is. Displayed as the end of "the environment ...".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// In the directory that holds its `.flox`.
    Dir(PathBuf),
    /// On FloxHub.
    Remote(RemoteName),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "in '{}'", path.display()),
            Self::Remote(name) => write!(f, "'{name}' on FloxHub"),
        }
    }
}

impl Location {
    /// The directory, if it is one.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            Self::Dir(path) => Some(path),
            Self::Remote(_) => None,
        }
    }

    /// A command of Flox's for the environment: `flox edit -d /path`.
    pub(super) fn flox(&self, subcommand: &str) -> String {
        match self {
            Self::Dir(path) => format!("flox {subcommand} -d {}", quoted(path)),
            Self::Remote(name) => format!("flox {subcommand} -r {name}"),
        }
    }

    /// The command that writes a lockfile which belongs to its manifest.
    ///
    /// Of those that do, `flox list` needs no terminal, runs no hook (unlike `flox activate`) and lets the versions of
    /// packages that are locked already be (unlike `flox upgrade`). But what it locks stays in its directory: for
    /// FloxHub a new generation is made.
    pub(super) fn relock_hint(&self) -> String {
        let subcommand = match self {
            Self::Dir(_) => "list",
            Self::Remote(_) => "upgrade",
        };
        format!("lock it: {}", self.flox(subcommand))
    }
}

/// A path as a POSIX shell reads it back.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_can_be_pasted_into_a_shell() {
        let hint = |path: &str| Location::Dir(path.into()).relock_hint();
        assert_eq!(hint("/home/me/proj"), "lock it: flox list -d /home/me/proj");
        assert_eq!(hint("/home/o'me/a b"), r"lock it: flox list -d '/home/o'\''me/a b'");
        let remote = Location::Remote("me/web".parse().unwrap());
        assert_eq!(remote.relock_hint(), "lock it: flox upgrade -r me/web");
        assert_eq!(remote.to_string(), "'me/web' on FloxHub");
    }
}
