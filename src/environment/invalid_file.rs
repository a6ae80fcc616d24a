//! The error of everything that reads a file of Flox's: what is wrong with it, and in which place.

use std::fmt;
use std::path::PathBuf;

use super::container_config::InvalidConfig;
use super::install::InvalidPriority;
use super::schema::UnknownSchema;
use crate::nix::InvalidStorePath;

/// A line and a column in a file, both from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The position in it: always for TOML; for JSON only where the text itself is broken.
    pub position: Option<Position>,
    /// The dotted path of keys, such as `containerize.config.user`; empty for the file as a whole.
    pub key: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        Ok(())
    }
}

/// A file that says something which Flox's formats do not allow.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct InvalidFile {
    /// Where.
    pub place: Box<Place>,
    /// What.
    pub problem: Problem,
}

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The text is not TOML or JSON; the parser's own words.
    #[error("{0}")]
    Syntax(String),
    /// A value of another type.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// What belongs there.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// A key that the format does not have.
    #[error("unknown key")]
    UnknownKey {
        /// The keys that it has.
        known: Vec<&'static str>,
    },
    /// A key that must be there and is not.
    #[error("the key '{0}' is missing")]
    MissingKey(&'static str),
    /// A text that is none of the few that are allowed.
    #[error("'{found}' is not one of {}", known.join(", "))]
    UnknownValue {
        /// The text.
        found: String,
        /// Those that are allowed.
        known: &'static [&'static str],
    },
    /// A number in `version` or `lockfile-version` of a format that only has these.
    #[error("version {found} of this format is not known; only {}", versions(known))]
    UnknownVersion {
        /// The number, as written.
        found: String,
        /// The numbers that are known, ascending.
        known: &'static [i64],
    },
    /// An install entry that is several kinds of package at once, or none.
    #[error("a package needs exactly one of 'pkg-path', 'flake' and 'store-path'")]
    PackageKind,
    /// A text in `outputs` other than "all".
    #[error("'{0}' must be \"all\" or a list of names")]
    Outputs(String),
    /// `outputs` in a manifest of `version = 1`, which installs all of them.
    #[error("'outputs' needs schema-version = \"1.10.0\" or newer")]
    OutputsInVersion1,
    /// `schema-version`, or a `version` other than 1.
    #[error(transparent)]
    Schema(UnknownSchema),
    /// `priority`.
    #[error(transparent)]
    Priority(InvalidPriority),
    /// A store path.
    #[error(transparent)]
    StorePath(InvalidStorePath),
    /// A key of `[containerize.config]`.
    #[error(transparent)]
    Config(InvalidConfig),
    /// An environment's name that could not be a part of a file's name.
    #[error("'{0}' is not a name for an environment")]
    EnvironmentName(String),
    /// A generation's number that is none.
    #[error("'{0}' is not the number of a generation")]
    Generation(String),
}

fn versions(known: &[i64]) -> String {
    let numbers: Vec<_> = known.iter().map(i64::to_string).collect();
    if let [only] = &*numbers {
        format!("version {only} is")
    } else {
        format!("versions {} are", numbers.join(" and "))
    }
}

impl InvalidFile {
    /// What the user can do about it, where that is more than mending the value.
    pub fn hint(&self) -> Option<String> {
        match &self.problem {
            Problem::UnknownKey { known } if known.is_empty() => None,
            Problem::UnknownKey { known } => Some(format!("the keys here are {}", known.join(", "))),
            Problem::OutputsInVersion1 => {
                Some("replace 'version = 1' by 'schema-version = \"1.10.0\"', or take 'outputs' out".to_owned())
            }
            Problem::Schema(error) => Some(error.hint()),
            Problem::Config(error) => error.hint(),
            _ => None,
        }
    }
}
