//! Container runtimes: found on `PATH`, asked what they hold, and given an archive through a pipe.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;

use super::child::{Child, Ended};
use super::{Archive, ArchiveNames, DeliveryError, Finish, LayerBytes, Sink, docker, podman};
use crate::blob::{DiffId, Digest};
use crate::event::Observer;
use crate::image::{Image, Layer, LayerMediaType};

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

    /// How many layers an image may have: Docker's classic store ends at 125 (moby: layer/layer_store.go,
    /// `maxLayerDepth`); with Podman's overlay the mount's options end at 127 and more.
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
        std::env::split_paths(path?)
            // An empty entry is the current directory (execvp(3)).
            .map(|dir| if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir })
            .map(|dir| dir.join(runtime.program()))
            .find(|program| program.is_file() && rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok())
            .map(|program| Self { runtime, program, environment: Vec::new() })
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

    /// Whether the runtime answers, and reads layers of this media type: to be asked before any work is done.
    pub fn accepts(&self, media_type: LayerMediaType, observer: &dyn Observer) -> Result<(), DeliveryError> {
        match self.runtime {
            Runtime::Docker => docker::accepts(self, media_type, observer),
            Runtime::Podman => podman::accepts(self, observer),
        }
    }

    /// A sink that gives the runtime the image.
    pub fn sink<'a>(&self, observer: &'a dyn Observer) -> RuntimeSink<'a> {
        RuntimeSink { client: self.clone(), observer, there: There::Absent, load: None, partial: false }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn spawn(&self, arguments: &[&str], fed: bool) -> Result<Child, DeliveryError> {
        Child::spawn(&mut self.command(arguments), fed)
            .map_err(|source| DeliveryError::Spawn { program: self.program.clone(), source })
    }

    fn wait(&self, child: Child, observer: &dyn Observer) -> Result<Ended, DeliveryError> {
        match child.wait(observer) {
            Ok(Ok(ended)) => Ok(ended),
            Ok(Err(super::child::Interrupted)) => Err(DeliveryError::Interrupted),
            Err(source) => Err(DeliveryError::Spawn { program: self.program.clone(), source }),
        }
    }

    /// The command as people write it, down to its first option.
    fn shown(&self, arguments: &[&str]) -> String {
        let words = arguments.iter().take_while(|argument| !argument.starts_with('-'));
        words.fold(self.runtime.program().to_owned(), |shown, word| format!("{shown} {word}"))
    }

    fn failure(&self, arguments: &[&str], ended: &Ended) -> DeliveryError {
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
    fn images(&self, observer: &dyn Observer) -> Result<Vec<Listed>, DeliveryError> {
        let arguments = ["image", "ls", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"];
        let answer = self.run(&arguments, observer)?;
        let listed = answer.lines().filter(|line| !line.trim().is_empty()).map(|line| {
            let (id, name) = line.trim().split_once(' ')?;
            Some(Listed { id: parse_id(id)?, name: name.to_owned() })
        });
        listed
            .collect::<Option<_>>()
            .ok_or_else(|| DeliveryError::Answer { command: self.shown(&arguments), answer: answer.clone() })
    }

    /// The diff IDs of each of these images; of none, where an image went away meanwhile.
    fn diff_ids(&self, images: &[Listed], observer: &dyn Observer) -> Result<Vec<Vec<DiffId>>, DeliveryError> {
        let ids: BTreeSet<_> = images.iter().map(|image| image.id).collect();
        let ids: Vec<_> = ids.iter().map(|id| self.id_argument(id)).collect();
        let mut found = Vec::new();
        // As many as fit a command line easily.
        for ids in ids.chunks(256) {
            let mut arguments = vec!["image", "inspect", "--format", "{{json .RootFS.Layers}}"];
            arguments.extend(ids.iter().map(String::as_str));
            match self.run(&arguments, observer) {
                // A list that is not understood is of no use, but no harm either: everything is sent.
                Ok(answer) => found.extend(answer.lines().filter_map(|line| serde_json::from_str(line).ok())),
                Err(DeliveryError::Command { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// An image ID as the runtime's command line takes it.
    fn id_argument(&self, id: &Digest) -> String {
        match self.runtime {
            Runtime::Docker => id.to_string(),
            Runtime::Podman => id.hex(),
        }
    }

    /// The image's name in the runtime.
    fn name(&self, image: &Image) -> String {
        match self.runtime {
            Runtime::Docker => image.name.to_string(),
            Runtime::Podman => image.name.local_in_full(),
        }
    }

    /// Whether a name in the runtime's list is the image's.
    fn is_name(&self, image: &Image, listed: &str) -> bool {
        match self.runtime {
            // Docker lists short names; Podman in Docker's place lists full ones.
            Runtime::Docker => [image.name.to_string(), image.name.familiar_in_full(), image.name.local_in_full()]
                .contains(&listed.to_owned()),
            Runtime::Podman => listed == image.name.local_in_full(),
        }
    }

    fn archive_names(&self, image: &Image) -> ArchiveNames {
        match self.runtime {
            Runtime::Docker => ArchiveNames::portable(image),
            Runtime::Podman => ArchiveNames::local(image),
        }
    }
}

/// An image in a runtime's list.
struct Listed {
    id: Digest,
    /// `repository:tag`; `<none>:<none>` where it has lost its name.
    name: String,
}

/// Docker writes `sha256:` before an image ID; Podman does in some commands and not in others.
fn parse_id(text: &str) -> Option<Digest> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    format!("sha256:{hex}").parse().ok()
}

/// An image is what was sent if its ID is the digest of the config (Docker's classic store, Podman), or of the manifest
/// (Docker with containerd's image store).
fn is_image(image: &Image, id: &Digest) -> bool {
    *id == image.config_digest || *id == image.manifest_digest
}

/// Gives a runtime the image.
///
/// - An image that the runtime has under its name is left alone; one that it has under another name gets the name.
/// - Otherwise an archive goes into `docker load` or `podman load`. Layers that the runtime's other images have are
///   left out of it where the runtime can do without them; if it then cannot, everything is sent.
/// - Afterwards the runtime is asked whether the name stands for the image that was sent.
pub struct RuntimeSink<'a> {
    client: RuntimeClient,
    observer: &'a dyn Observer,
    there: There,
    /// The load that is under way.
    load: Option<Load>,
    /// Whether layers are left out of the archive because the runtime has them.
    partial: bool,
}

struct Load {
    child: Child,
    archive: Archive,
}

/// What the runtime has of the image.
#[derive(Clone, Copy)]
enum There {
    /// All of it, under its name.
    Named,
    /// All of it, under other names only.
    Unnamed(Digest),
    /// Not all of it.
    Absent,
}

/// The command that takes an archive from its standard input.
const LOAD: [&str; 2] = ["load", "--quiet"];

impl RuntimeSink<'_> {
    /// Lends the running load's pipe and archive; where the pipe breaks, the child says why.
    fn feed(
        &mut self,
        feed: impl FnOnce(&mut Archive, &mut dyn Write) -> Result<(), DeliveryError>,
    ) -> Result<Load, DeliveryError> {
        let mut load = match self.load.take() {
            Some(load) => load,
            None => Load { child: self.client.spawn(&LOAD, true)?, archive: Archive::new() },
        };
        let Load { child, archive } = &mut load;
        match child.feed(self.observer, |pipe| feed(archive, pipe)) {
            Ok(()) => Ok(load),
            Err(_) if self.observer.cancelled() => Err(DeliveryError::Interrupted),
            Err(DeliveryError::Stream(_)) => {
                let ended = self.client.wait(load.child, self.observer)?;
                Err(self.client.failure(&LOAD, &ended))
            }
            Err(error) => Err(error),
        }
    }

    /// Ends the archive and sees the load through.
    fn load(&mut self, image: &Image) -> Result<(), DeliveryError> {
        let names = self.client.archive_names(image);
        let load =
            self.feed(|archive, pipe| std::mem::take(archive).finish(pipe, image, &names, DeliveryError::Stream))?;
        let ended = self.client.wait(load.child, self.observer)?;
        if ended.status.success() { Ok(()) } else { Err(self.client.failure(&LOAD, &ended)) }
    }

    /// Fails unless the name stands for the image.
    fn verify(&self, image: &Image) -> Result<(), DeliveryError> {
        let name = self.client.name(image);
        let answer = self.client.run(&["image", "inspect", "--format", "{{.Id}}", &name], self.observer)?;
        let found = answer.trim().to_owned();
        match parse_id(&found) {
            Some(id) if is_image(image, &id) => Ok(()),
            _ => Err(DeliveryError::WrongImage {
                runtime: self.client.runtime,
                name,
                expected: image.config_digest,
                found,
            }),
        }
    }
}

impl Sink for RuntimeSink<'_> {
    fn has(&mut self, image: &Image) -> Result<BTreeSet<Digest>, DeliveryError> {
        let images = self.client.images(self.observer)?;
        let mut same = images.iter().filter(|listed| is_image(image, &listed.id));
        self.there = match (same.clone().find(|listed| self.client.is_name(image, &listed.name)), same.next()) {
            (Some(_), _) => There::Named,
            (None, Some(listed)) => There::Unnamed(listed.id),
            (None, None) => There::Absent,
        };
        let held = match self.there {
            There::Named | There::Unnamed(_) => return Ok(image.layers.iter().map(|layer| layer.digest).collect()),
            There::Absent => {
                let others = self.client.diff_ids(&images, self.observer)?;
                match self.client.runtime {
                    Runtime::Docker => docker::held(&self.client, image, &others, self.observer)?,
                    Runtime::Podman => podman::held(image, &others),
                }
            }
        };
        self.partial = !held.is_empty();
        Ok(held)
    }

    fn put(&mut self, layer: &Layer, bytes: LayerBytes<'_>) -> Result<(), DeliveryError> {
        let load = self.feed(|archive, pipe| archive.put(pipe, layer, bytes, DeliveryError::Stream))?;
        self.load = Some(load);
        Ok(())
    }

    fn finish(&mut self, image: &Image) -> Result<Finish, DeliveryError> {
        match std::mem::replace(&mut self.there, There::Absent) {
            There::Named => return Ok(Finish::Committed),
            There::Unnamed(id) => {
                match self.client.run(&["tag", &self.client.id_argument(&id), &self.client.name(image)], self.observer)
                {
                    Ok(_) => {}
                    // Removed since it was listed.
                    Err(DeliveryError::Command { .. }) => return Ok(Finish::Incomplete),
                    Err(error) => return Err(error),
                }
            }
            There::Absent => match self.load(image) {
                Ok(()) => {}
                // Whatever the reason, the runtime did without some layers before and gets them all now.
                Err(DeliveryError::Command { .. }) if self.partial => {
                    self.partial = false;
                    return Ok(Finish::Incomplete);
                }
                Err(error) => return Err(error),
            },
        }
        self.verify(image)?;
        Ok(Finish::Committed)
    }
}
