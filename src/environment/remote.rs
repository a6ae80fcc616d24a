//! An environment on FloxHub: fetched, or as it was fetched before where FloxHub cannot be reached.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use super::fetched::Place;
use super::floxhub::{FLOXHUB_TOKEN, FloxHub, FloxHubError, FloxHubSettings};
use super::floxmeta::{Branch, FetchError, Floxmeta};
use super::generations::{current_generation, in_words};
use super::git::{Git, GitError};
use super::invalid_file::InvalidFile;
use super::location::Location;
use super::open::{Environment, File, Hub, OpenError};
use super::remote_name::RemoteName;
use crate::event::{Cancelled, Event, Observer};

/// An environment on FloxHub that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its name.
    pub name: RemoteName,
    /// The generation that is meant, where that is not the current one.
    pub generation: Option<u64>,
    /// The address of the FloxHub that it is on, where that is not the user's own.
    pub hub: Option<String>,
}

/// What it takes to get environments from FloxHub.
#[derive(Clone, Debug, Default)]
pub struct RemoteAccess {
    /// What the user has said about FloxHub.
    pub settings: FloxHubSettings,
    /// The value of `PATH`, on which git is looked for.
    pub path: Option<OsString>,
    /// The variables that git may see: where its parts, proxies and certificates are.
    pub git_environment: Vec<(OsString, OsString)>,
    /// Whether nothing is asked over the network: what was fetched before has to do.
    pub offline: bool,
    /// Directory for what is fetched; without one it is fetched anew each time.
    pub kept: Option<PathBuf>,
}

/// An environment on FloxHub that cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// What the user has said about FloxHub cannot be used.
    #[error(transparent)]
    FloxHub(#[from] FloxHubError),
    /// There is no git.
    #[error("git was not found in PATH: '{name}' cannot be fetched from FloxHub without it")]
    NoGit {
        /// The environment.
        name: RemoteName,
    },
    /// FloxHub wants to know who asks, or does not let them in.
    #[error("FloxHub at {url} does not give '{name}' to {}", if *.logged_in { "the owner of this token" } else { "somebody who has not logged in" })]
    Refused {
        /// The environment.
        name: RemoteName,
        /// FloxHub's address.
        url: String,
        /// Whether there was a token.
        logged_in: bool,
    },
    /// The owner has nothing there.
    #[error("FloxHub at {url} has no environments of '{}'", name.owner())]
    NoOwner {
        /// The environment.
        name: RemoteName,
        /// FloxHub's address.
        url: String,
        /// Whether there was a token.
        logged_in: bool,
    },
    /// The owner has others.
    #[error("FloxHub at {url} has no environment '{name}'")]
    NoEnvironment {
        /// The environment.
        name: RemoteName,
        /// FloxHub's address.
        url: String,
    },
    /// FloxHub does not answer, and nothing was fetched before that would do.
    #[error("FloxHub at {url} cannot be reached, and '{name}' was not fetched before")]
    Unreachable {
        /// The environment.
        name: RemoteName,
        /// FloxHub's address.
        url: String,
        /// Why.
        #[source]
        source: GitError,
    },
    /// FloxHub, or the way to it, is not as it should be.
    #[error("cannot fetch '{name}' from FloxHub at {url}")]
    Fetch {
        /// The environment.
        name: RemoteName,
        /// FloxHub's address.
        url: String,
        /// Why.
        #[source]
        source: GitError,
    },
    /// git does not work here.
    #[error("git cannot fetch '{name}'")]
    Git {
        /// The environment.
        name: RemoteName,
        /// Why.
        #[source]
        source: GitError,
    },
    /// There is no room to fetch it to.
    #[error("there is no place to fetch '{name}' to")]
    Place {
        /// The environment.
        name: RemoteName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has no generation yet.
    #[error("'{name}' on FloxHub has no generation yet")]
    Empty {
        /// The environment.
        name: RemoteName,
    },
    /// It does not have the generation that is meant.
    #[error("'{name}' on FloxHub has no generation {wanted}, only {}", in_words(known))]
    NoGeneration {
        /// The environment.
        name: RemoteName,
        /// The generation.
        wanted: u64,
        /// Those that it has, ascending.
        known: Vec<u64>,
    },
    /// `metadata.json` is missing.
    #[error("'{name}' on FloxHub has no metadata.json")]
    NoMetadata {
        /// The environment.
        name: RemoteName,
    },
    /// `metadata.json` is not what Flox writes.
    #[error(transparent)]
    Metadata(#[from] InvalidFile),
    /// The generation cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The user wants the run to end.
    #[error("interrupted")]
    Interrupted(#[source] Cancelled),
}

impl RemoteError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::FloxHub(error) => return error.hint(),
            Self::NoGit { name } => {
                format!(
                    "install git, or copy the environment with Flox and name that: flox pull -d {0} {name}",
                    name.name()
                )
            }
            Self::Refused { logged_in: false, .. } => format!("log in: flox auth login; or set {FLOXHUB_TOKEN}"),
            Self::Refused { logged_in: true, .. } => {
                format!("if the token has expired, get a new one: flox auth login; or set {FLOXHUB_TOKEN}")
            }
            Self::NoOwner { logged_in: false, .. } => {
                "check OWNER; what is private is shown only after: flox auth login".to_owned()
            }
            Self::NoOwner { logged_in: true, .. } => "check OWNER".to_owned(),
            Self::NoEnvironment { .. } => {
                "check NAME: it is spelt as on FloxHub, upper and lower case as there".to_owned()
            }
            Self::Unreachable { source: GitError::Offline, .. } => "run this again without --offline".to_owned(),
            Self::Unreachable { .. } => {
                "check the network, and the proxy in https_proxy; once it was fetched it can be had without".to_owned()
            }
            Self::Fetch { source, .. } if source.to_string().contains("certificate") => {
                "if FloxHub has a certificate of your own, name the file with its root: GIT_SSL_CAINFO=/path".to_owned()
            }
            Self::Place { .. } => "name a directory that can be written to: TMPDIR=/path".to_owned(),
            Self::Empty { name } => format!("make one: {}", Location::Remote(name.clone()).flox("edit")),
            Self::NoGeneration { .. } => "name one of those, or leave --generation out for the current one".to_owned(),
            Self::Metadata(error) => return error.hint(),
            Self::Open(error) => return error.hint(),
            Self::Fetch { .. } | Self::Git { .. } | Self::NoMetadata { .. } | Self::Interrupted(_) => return None,
        })
    }
}

/// Gets the environment that is meant.
pub(super) fn open(
    wanted: &Remote,
    access: &RemoteAccess,
    observer: &dyn Observer,
) -> Result<Environment, RemoteError> {
    let hub = FloxHub::reach(&access.settings, wanted.hub.as_deref())?;
    let no_git = || RemoteError::NoGit { name: wanted.name.clone() };
    let git = Git::find(access.path.as_deref(), &access.git_environment, observer).ok_or_else(no_git)?;
    let job = Job { wanted, hub: &hub, git: &git, offline: access.offline, observer };
    let message = format!("fetching '{}' from {}", wanted.name, hub.git_url);
    observer.event(Event::Detail { message });
    let files = job.fetch(&job.place(access)?)?;
    observer.event(Event::Detail { message: format!("taking generation {} of '{}'", files.number, wanted.name) });
    let location = Location::Remote(wanted.name.clone());
    let hub = Hub {
        owner: wanted.name.owner().to_owned(),
        url: Some(hub.url),
        generation: wanted.generation,
        revision: Some(files.commit),
        local_revision: None,
    };
    let name = wanted.name.name().to_owned();
    Ok(Environment::of_files(name, location, Some(hub), &files.manifest, files.lockfile.as_ref())?)
}

/// One environment to be had.
struct Job<'a> {
    wanted: &'a Remote,
    hub: &'a FloxHub,
    git: &'a Git<'a>,
    offline: bool,
    observer: &'a dyn Observer,
}

/// The files of one generation.
struct Generation {
    number: u64,
    commit: String,
    manifest: File,
    lockfile: Option<File>,
}

/// Why a generation cannot be read.
enum Unread {
    /// The repository on this machine is damaged.
    Damaged(GitError),
    /// The environment is not as it should be, wherever it is read.
    Unfit(RemoteError),
}

impl From<GitError> for Unread {
    fn from(error: GitError) -> Self {
        match error {
            GitError::Interrupted(cancelled) => Self::Unfit(RemoteError::Interrupted(cancelled)),
            error => Self::Damaged(error),
        }
    }
}

impl Job<'_> {
    /// Where to fetch to. What cannot be kept is fetched all the same.
    fn place(&self, access: &RemoteAccess) -> Result<Place, RemoteError> {
        let name = &self.wanted.name;
        if let Some(root) = &access.kept {
            match Place::kept(root, &self.hub.git_url, name.owner(), self.observer) {
                Ok(place) => return Ok(place),
                Err(_) if self.observer.cancelled() => return Err(RemoteError::Interrupted(Cancelled)),
                Err(error) => self.cannot_keep(&format!("'{}' cannot be used: {error}", root.display())),
            }
        }
        self.temporary()
    }

    fn temporary(&self) -> Result<Place, RemoteError> {
        Place::temporary().map_err(|source| RemoteError::Place { name: self.wanted.name.clone(), source })
    }

    fn cannot_keep(&self, why: &str) {
        let message = format!("going on without keeping what is fetched: {why}");
        self.observer.event(Event::Warning { message });
    }

    fn ask(&self, floxmeta: &Floxmeta<'_>) -> Result<(), FetchError> {
        match self.offline {
            true => Err(FetchError::Unreachable(GitError::Offline)),
            false => floxmeta.fetch(self.hub, &self.wanted.name),
        }
    }

    /// Fetches into what is kept, and anew where that is damaged or nothing is.
    fn fetch(&self, place: &Place) -> Result<Generation, RemoteError> {
        let name = &self.wanted.name;
        if !place.repository().exists() {
            return self.fetch_anew(place);
        }
        let floxmeta = Floxmeta::at(self.git, place.repository());
        match self.ask(&floxmeta) {
            Ok(()) => match self.read(&floxmeta) {
                Ok(generation) => {
                    self.note(place, &generation);
                    Ok(generation)
                }
                Err(Unread::Unfit(error)) => Err(error),
                Err(Unread::Damaged(error)) => self.start_over(place, &error),
            },
            Err(FetchError::Local(error @ GitError::Failed(_))) => self.start_over(place, &error),
            Err(FetchError::Unreachable(source)) => match self.read(&floxmeta) {
                Err(Unread::Damaged(_)) => Err(self.failure(FetchError::Unreachable(source))),
                read => {
                    let generation = read.as_ref().map(|generation| generation.number).ok();
                    let (environment, fetched) = (name.to_string(), place.noted(name));
                    let reason = source.to_string();
                    self.observer.event(Event::Offline { environment, generation, fetched, reason });
                    read.map_err(|unread| self.unread(unread))
                }
            },
            Err(error) => Err(self.failure(error)),
        }
    }

    fn start_over(&self, place: &Place, reason: &GitError) -> Result<Generation, RemoteError> {
        let message = format!("what was fetched of '{}' before is thrown away: {reason}", self.wanted.name.owner());
        self.observer.event(Event::Detail { message });
        self.fetch_anew(place)
    }

    /// Fetches into a new repository; where that cannot be kept, because the disk is full perhaps, into one for this run
    /// alone.
    fn fetch_anew(&self, place: &Place) -> Result<Generation, RemoteError> {
        let why = match self.fetch_and_adopt(place) {
            Err(RemoteError::Git { source, .. }) if place.is_kept() => source.to_string(),
            Err(RemoteError::Place { source, .. }) if place.is_kept() => source.to_string(),
            fetched => return fetched,
        };
        self.cannot_keep(&why);
        self.fetch_and_adopt(&self.temporary()?)
    }

    /// Fetches beside the repository first: a process that is killed leaves the old one as it was.
    fn fetch_and_adopt(&self, place: &Place) -> Result<Generation, RemoteError> {
        let no_place = |source| RemoteError::Place { name: self.wanted.name.clone(), source };
        let next = place.next().map_err(no_place)?;
        let floxmeta = Floxmeta::init(self.git, next.path()).map_err(|error| self.failure(FetchError::Local(error)))?;
        self.ask(&floxmeta).map_err(|error| self.failure(error))?;
        // What is damaged as soon as it is fetched is not worth keeping; what is not as it should be, is.
        let read = match self.read(&floxmeta) {
            Err(error @ Unread::Damaged(_)) => return Err(self.unread(error)),
            read => read,
        };
        next.adopt().map_err(no_place)?;
        read.inspect(|generation| self.note(place, generation)).map_err(|unread| self.unread(unread))
    }

    /// Without a note nobody can tell later when it was: that is all.
    fn note(&self, place: &Place, generation: &Generation) {
        let _ = place.note(&self.wanted.name, &generation.commit);
    }

    /// Reads the generation that is meant.
    fn read(&self, floxmeta: &Floxmeta<'_>) -> Result<Generation, Unread> {
        let name = &self.wanted.name;
        let branch = floxmeta.branch(name)?;
        let file = |branch: &Branch<'_>, path: String| -> Result<Option<File>, GitError> {
            let text = branch.read(&path)?;
            // As git shows it.
            Ok(text.map(|text| File { path: PathBuf::from(format!("{name}:{path}")), text }))
        };
        let unfit = |error| Unread::Unfit(error);
        let metadata = file(&branch, "metadata.json".to_owned())?
            .ok_or_else(|| unfit(RemoteError::NoMetadata { name: name.clone() }))?;
        let current = current_generation(&metadata.path, &metadata.text).map_err(|error| unfit(error.into()))?;
        let number = self.wanted.generation.or(current);
        let number = number.ok_or_else(|| unfit(RemoteError::Empty { name: name.clone() }))?;
        let manifest = file(&branch, format!("{number}/env/manifest.toml"))?.ok_or_else(|| {
            unfit(match branch.generations() {
                known if known.is_empty() => RemoteError::Empty { name: name.clone() },
                known => RemoteError::NoGeneration { name: name.clone(), wanted: number, known },
            })
        })?;
        let lockfile = file(&branch, format!("{number}/env/manifest.lock"))?;
        Ok(Generation { number, commit: branch.commit, manifest, lockfile })
    }

    fn unread(&self, error: Unread) -> RemoteError {
        match error {
            Unread::Unfit(error) => error,
            Unread::Damaged(error) => self.failure(FetchError::Local(error)),
        }
    }

    fn failure(&self, error: FetchError) -> RemoteError {
        let (name, url) = (self.wanted.name.clone(), self.hub.url.clone());
        let logged_in = self.hub.token.is_some();
        match error {
            FetchError::Refused => RemoteError::Refused { name, url, logged_in },
            FetchError::NoRepository => RemoteError::NoOwner { name, url, logged_in },
            FetchError::NoBranch => RemoteError::NoEnvironment { name, url },
            FetchError::Unreachable(source) => RemoteError::Unreachable { name, url, source },
            FetchError::Local(GitError::Interrupted(cancelled)) => RemoteError::Interrupted(cancelled),
            FetchError::Local(source) => RemoteError::Git { name, source },
            FetchError::Distrusted(source) => RemoteError::Fetch { name, url, source },
        }
    }
}
