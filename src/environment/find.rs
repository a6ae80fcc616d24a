//! Which environment is meant: by a flag, by the directory one stands in, or by what is active.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::Error as _;

use super::DOT_FLOX;
use super::location::{Location, quoted};
use super::open::{Environment, OpenError, read_name};
use super::remote::{self, Remote, RemoteAccess, RemoteError};
use super::remote_name::RemoteName;
use crate::event::{Event, Observer};

/// The variable in which Flox keeps the active environments, the innermost first.
pub const ACTIVE_ENVIRONMENTS: &str = "_FLOX_ACTIVE_ENVIRONMENTS";

/// The name of the environment that is everybody's own: where it competes with another, the other is meant.
const DEFAULT_NAME: &str = "default";

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// `-d PATH`: the environment in that directory.
    Dir(PathBuf),
    /// `-r OWNER/NAME`: an environment on FloxHub.
    Remote(Remote),
    /// Neither.
    Default,
}

/// What there is around the command.
pub struct Surroundings<'a> {
    /// The current directory, absolute.
    pub current_dir: &'a Path,
    /// The value of `_FLOX_ACTIVE_ENVIRONMENTS`.
    pub active_environments: Option<&'a str>,
    /// How environments on FloxHub are had.
    pub remote: RemoteAccess,
    /// Asks the user which one is meant, the found one (first) or the active one. `None` where there is no terminal.
    pub choose: Option<&'a Choose<'a>>,
}

/// Puts the question to the user.
pub type Choose<'a> = dyn Fn(&Candidate, &Candidate) -> io::Result<Choice> + 'a;

/// An environment that may be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: CandidatePlace,
}

/// Where a candidate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CandidatePlace {
    /// The directory that holds its `.flox`.
    Dir(PathBuf),
    /// FloxHub.
    Remote(Remote),
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            CandidatePlace::Dir(path) => write!(f, "{} at {}", self.name, path.display()),
            CandidatePlace::Remote(Remote { name, generation: None, .. }) => write!(f, "{name} (remote)"),
            CandidatePlace::Remote(Remote { name, generation: Some(generation), .. }) => {
                write!(f, "{name} (remote, generation {generation})")
            }
        }
    }
}

/// The user's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The environment in the current directory, or above it in the git repository.
    Found,
    /// The active one.
    Active,
}

/// No environment, or none that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// `-d PATH` without a `.flox` in it.
    #[error("Did not find an environment in '{}'", dir.display())]
    NotInDir {
        /// The path, as given.
        dir: PathBuf,
        /// Whether the path is a `.flox` itself.
        is_dot_flox: bool,
    },
    /// No flag, nothing found, nothing active.
    #[error("Did not find an active environment or an environment in the current directory.")]
    Nowhere,
    /// `_FLOX_ACTIVE_ENVIRONMENTS` is not what Flox writes.
    #[error("the variable {ACTIVE_ENVIRONMENTS} is not a list of environments")]
    Active(#[source] serde_json::Error),
    /// The user could not be asked.
    #[error("could not ask which environment is meant")]
    Ask(#[source] io::Error),
    /// It is on FloxHub, and cannot be had.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// It was found, but cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl FindError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotInDir { dir, is_dot_flox: true } => {
                let parent = match dir.parent() {
                    Some(parent) if parent != Path::new("") => parent,
                    _ => Path::new("."),
                };
                format!("name the directory that holds '.flox': -d {}", quoted(parent))
            }
            Self::NotInDir { dir, is_dot_flox: false } => {
                format!("make an environment there: flox init -d {}", quoted(dir))
            }
            Self::Nowhere => {
                "name the directory that holds '.flox' with -d PATH, or make an environment: flox init".to_owned()
            }
            Self::Active(_) => format!("name the environment with -d PATH, or: unset {ACTIVE_ENVIRONMENTS}"),
            Self::Ask(_) => "name the environment with -d PATH".to_owned(),
            Self::Remote(error) => return error.hint(),
            Self::Open(error) => return error.hint(),
        })
    }
}

/// Finds and reads the environment that is meant.
pub fn find(
    selection: &Selection,
    surroundings: &Surroundings<'_>,
    observer: &dyn Observer,
) -> Result<Environment, FindError> {
    let place = match selection {
        Selection::Dir(dir) => CandidatePlace::Dir(dir.clone()),
        Selection::Remote(remote) => CandidatePlace::Remote(remote.clone()),
        Selection::Default => default(surroundings, observer)?,
    };
    match place {
        CandidatePlace::Dir(dir) => Ok(Environment::open(&in_dir(&dir, surroundings.current_dir)?)?),
        CandidatePlace::Remote(remote) => Ok(remote::open(&remote, &surroundings.remote, observer)?),
    }
}

fn in_dir(dir: &Path, current_dir: &Path) -> Result<PathBuf, FindError> {
    let path = current_dir.join(dir);
    if path.join(DOT_FLOX).is_dir() {
        return Ok(path);
    }
    let is_dot_flox = path.file_name().is_some_and(|name| name == DOT_FLOX) && path.is_dir();
    Err(FindError::NotInDir { dir: dir.to_owned(), is_dot_flox })
}

/// Where the environment is that is meant where no flag says so.
fn default(surroundings: &Surroundings<'_>, observer: &dyn Observer) -> Result<CandidatePlace, FindError> {
    let active = active(surroundings.active_environments)?;
    let found = match search(surroundings.current_dir) {
        Some(path) => {
            let name = read_name(&path)?.ok_or_else(|| OpenError::Incomplete {
                path: path.join(DOT_FLOX).join("env.json"),
                environment: Location::Dir(path.clone()),
            })?;
            Some(Candidate { name, place: CandidatePlace::Dir(path) })
        }
        None => None,
    };
    let (active, pinned) = active.map_or((None, None), |active| (Some(active.candidate), active.pinned));
    let active_place = active.as_ref().map(|active| active.place.clone());
    let place = match (found, active) {
        (None, None) => return Err(FindError::Nowhere),
        (Some(found), None) => found.place,
        (None, Some(active)) => active.place,
        (Some(found), Some(active)) => choose(found, active, surroundings)?.place,
    };
    if let (Some(Remote { name, generation: Some(generation), .. }), Some(active)) = (pinned, active_place)
        && same_place(&place, &active)
    {
        let message = format!(
            "generation {generation} of '{name}' is active, but the image is made of what is in its directory\n  \
             hint: for that generation: -r {name} --generation {generation}"
        );
        observer.event(Event::Warning { message });
    }
    Ok(place)
}

fn choose(found: Candidate, active: Candidate, surroundings: &Surroundings<'_>) -> Result<Candidate, FindError> {
    let choice = if same_place(&found.place, &active.place) || active.name == DEFAULT_NAME {
        Choice::Found
    } else if found.name == DEFAULT_NAME {
        Choice::Active
    } else {
        match surroundings.choose {
            None => Choice::Found,
            Some(ask) => ask(&found, &active).map_err(FindError::Ask)?,
        }
    };
    Ok(match choice {
        Choice::Found => found,
        Choice::Active => active,
    })
}

fn same_place(one: &CandidatePlace, other: &CandidatePlace) -> bool {
    match (one, other) {
        (CandidatePlace::Dir(one), CandidatePlace::Dir(other)) => {
            one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
        }
        _ => false,
    }
}

/// The nearest directory with a `.flox`: the current one; inside a git repository also those above it, up to its top.
fn search(current_dir: &Path) -> Option<PathBuf> {
    // The top has a directory `.git`, or a file of that name in a worktree or a submodule.
    let top = current_dir.ancestors().find(|dir| dir.join(".git").exists()).unwrap_or(current_dir);
    let within = current_dir.ancestors().take_while(|dir| dir.starts_with(top));
    within.filter(|dir| dir.join(DOT_FLOX).is_dir()).map(Path::to_owned).next()
}

/// An active environment, as `_FLOX_ACTIVE_ENVIRONMENTS` has it.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum ActivePlace {
    DotFlox { path: PathBuf, pointer: ActivePointer },
    Remote { owner: String, name: String, floxhub_url: Option<String> },
}

/// What stands beside an active environment.
#[derive(Deserialize)]
struct Activation {
    generation: Option<ActiveGeneration>,
}

/// Flox writes it as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum ActiveGeneration {
    Number(u64),
    Text(String),
}

impl ActiveGeneration {
    fn number(self) -> Result<u64, FindError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(text) => text.parse().map_err(|error| FindError::Active(serde_json::Error::custom(error))),
        }
    }
}

#[derive(Deserialize)]
struct ActivePointer {
    name: String,
    owner: Option<String>,
}

/// The innermost active environment.
struct Active {
    candidate: Candidate,
    /// In a directory and on FloxHub, and active in a generation that need not be what the directory has.
    pinned: Option<Remote>,
}

fn active(variable: Option<&str>) -> Result<Option<Active>, FindError> {
    let Some(text) = variable.filter(|text| !text.is_empty()) else { return Ok(None) };
    let elements: Vec<serde_json::Value> = serde_json::from_str(text).map_err(FindError::Active)?;
    let Some(mut first) = elements.into_iter().next() else { return Ok(None) };
    // Older versions of Flox have the environment itself for an element; newer ones also say how it is active
    // (`generation`, `mode`).
    let inner = first.get_mut("environment").map(serde_json::Value::take);
    let (environment, generation) = match inner {
        Some(environment) => {
            let activation: Activation = serde_json::from_value(first).map_err(FindError::Active)?;
            (environment, activation.generation.map(ActiveGeneration::number).transpose()?)
        }
        None => (first, None),
    };
    Ok(Some(match serde_json::from_value(environment).map_err(FindError::Active)? {
        ActivePlace::Remote { owner, name, floxhub_url: hub } => {
            let invalid = |error| FindError::Active(serde_json::Error::custom(error));
            let remote = Remote { name: RemoteName::new(&owner, &name).map_err(invalid)?, generation, hub };
            Active { candidate: Candidate { name, place: CandidatePlace::Remote(remote) }, pinned: None }
        }
        ActivePlace::DotFlox { path, pointer } => {
            // Versions of Flox differ in whether it is the path of `.flox` or of the directory that holds it.
            let dir = match path.parent() {
                Some(parent) if path.ends_with(DOT_FLOX) => parent.to_owned(),
                _ => path,
            };
            let remote_name = pointer.owner.and_then(|owner| RemoteName::new(&owner, &pointer.name).ok());
            let pinned =
                remote_name.filter(|_| generation.is_some()).map(|name| Remote { name, generation, hub: None });
            Active { candidate: Candidate { name: pointer.name, place: CandidatePlace::Dir(dir) }, pinned }
        }
    }))
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;
