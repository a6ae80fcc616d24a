//! Container runtimes: found on `PATH`, and asked what they are and hold.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use super::{DeliveryError, Opening, RuntimeSink};
use crate::blob::Digest;
use crate::child::{Child, Ended, find_program};
use crate::event::Observer;
use crate::image::{ImageName, LayerMediaType};

/// A kind of container runtime. Displayed as a name for people: `Docker`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runtime {
    /// Docker.
    Docker,
    /// Podman.
    Podman,
}

/// A word that names no runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Runtime must be 'docker' or 'podman'")]
pub struct InvalidRuntime;

impl Runtime {
    /// The name of its program, and its name on the command line.
    pub fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// How many layers an image may have at most.
    ///
    /// Docker's classic store refuses more than 125 (moby: layer/layer_store.go, `maxLayerDepth`). Podman refuses
    /// none, but other tools do: 127, as `--max-layers` allows.
    pub fn max_layers(self) -> usize {
        match self {
            Self::Docker => 125,
            Self::Podman => 127,
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
        })
    }
}

impl FromStr for Runtime {
    type Err = InvalidRuntime;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "docker" => Ok(Self::Docker),
            "podman" => Ok(Self::Podman),
            _ => Err(InvalidRuntime),
        }
    }
}

/// A runtime's program on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeClient {
    runtime: Runtime,
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
}

impl RuntimeClient {
    /// The runtime's program in the first directory of `path` (the value of `PATH`) that has it.
    pub fn find(runtime: Runtime, path: Option<&OsStr>) -> Option<Self> {
        find_program(runtime.program(), path).map(|program| Self { runtime, program, environment: Vec::new() })
    }

    /// The first of docker and podman that is on `path`.
    pub fn detect(path: Option<&OsStr>) -> Option<Self> {
        [Runtime::Docker, Runtime::Podman].into_iter().find_map(|runtime| Self::find(runtime, path))
    }

    /// Runs the program with this variable besides those that it inherits.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Which runtime it is.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// Begins to ask what a delivery has to know first; the answers are waited for by [`Opening::accepts`].
    pub fn ask(&self, name: &ImageName, media_type: LayerMediaType) -> Result<Opening, DeliveryError> {
        Opening::ask(self, name, media_type)
    }

    /// What the runtime calls the image.
    pub(super) fn name_of(&self, name: &ImageName) -> String {
        match self.runtime {
            Runtime::Docker => name.to_string(),
            Runtime::Podman => name.local_in_full(),
        }
    }

    /// A sink that gives the runtime the image.
    pub fn sink<'a>(&self, observer: &'a dyn Observer) -> RuntimeSink<'a> {
        RuntimeSink::new(self.clone(), observer)
    }

    /// The program's file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The program with arguments.
    pub(crate) fn command(&self, arguments: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts a command, with a pipe to its standard input where `fed`.
    pub(super) fn spawn(&self, arguments: &[&str], fed: bool) -> Result<Child, DeliveryError> {
        Child::spawn(&mut self.command(arguments), fed)
            .map_err(|source| DeliveryError::Spawn { program: self.program.clone(), source })
    }

    /// Sees a command to its end.
    pub(super) fn wait(&self, child: Child, observer: &dyn Observer) -> Result<Ended, DeliveryError> {
        match child.wait(observer) {
            Ok(Ok(ended)) => Ok(ended),
            Ok(Err(_)) => Err(DeliveryError::Interrupted),
            Err(source) => Err(DeliveryError::Spawn { program: self.program.clone(), source }),
        }
    }

    /// The command as people write it, down to its first option.
    pub(super) fn shown(&self, arguments: &[&str]) -> String {
        let words = arguments.iter().take_while(|argument| !argument.starts_with('-'));
        words.fold(self.runtime.program().to_owned(), |shown, word| format!("{shown} {word}"))
    }

    /// The error that a failed command makes.
    pub(super) fn failure(&self, arguments: &[&str], ended: &Ended) -> DeliveryError {
        DeliveryError::Command {
            runtime: self.runtime,
            command: self.shown(arguments),
            status: ended.status_words(),
            words: ended.words(),
        }
    }

    /// Runs a command to its end and gives what it printed.
    pub(super) fn run(&self, arguments: &[&str], observer: &dyn Observer) -> Result<String, DeliveryError> {
        let ended = self.wait(self.spawn(arguments, false)?, observer)?;
        if !ended.status.success() {
            return Err(self.failure(arguments, &ended));
        }
        String::from_utf8(ended.stdout).map_err(|error| DeliveryError::Answer {
            command: self.shown(arguments),
            answer: String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })
    }

    /// Every image that the runtime lists.
    pub(super) fn images(&self, observer: &dyn Observer) -> Result<Vec<Listed>, DeliveryError> {
        let arguments = ["image", "ls", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"];
        let mut answer = self.run(&arguments, observer);
        for _ in 1..LISTS {
            match &answer {
                Err(DeliveryError::Command { words, .. }) if words.contains(IMAGE_WENT) => {}
                _ => break,
            }
            answer = self.run(&arguments, observer);
        }
        let answer = answer?;
        let listed = answer.lines().filter(|line| !line.trim().is_empty()).map(|line| {
            let (id, name) = line.trim().split_once(' ')?;
            Some(Listed { id: parse_id(id)?, name: name.to_owned() })
        });
        listed
            .collect::<Option<_>>()
            .ok_or_else(|| DeliveryError::Answer { command: self.shown(&arguments), answer: answer.clone() })
    }

    /// An image ID as the runtime's command line takes it.
    pub(super) fn id_argument(&self, id: &Digest) -> String {
        match self.runtime {
            Runtime::Docker => id.to_string(),
            Runtime::Podman => id.hex(),
        }
    }
}

/// What Podman (4.3) says where an image was removed while it listed them all: the list fails then.
const IMAGE_WENT: &str = "image not known";
/// How often the list is asked for where that happens.
const LISTS: u32 = 3;

/// An image in a runtime's list.
pub(super) struct Listed {
    /// Its ID.
    pub(super) id: Digest,
    /// `repository:tag`; `<none>:<none>` where it has lost its name.
    pub(super) name: String,
}

/// Docker writes `sha256:` before an image ID; Podman does in some commands and not in others.
pub(super) fn parse_id(text: &str) -> Option<Digest> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    format!("sha256:{hex}").parse().ok()
}
