//! What goes wrong on the way to a target, in words for people.

use std::io;
use std::path::PathBuf;

use crate::blob::Digest;
use crate::image::ImageError;
use crate::registry::RegistryError;

use super::{Runtime, TargetError};

/// An image that was not delivered. The target is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// A layer's bytes did not come, or were not what its digest promises.
    #[error("cannot read layer {digest}")]
    Layer {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A layer came with another length than its descriptor says.
    #[error("layer {digest} has {found} bytes instead of {expected}")]
    LayerSize {
        /// The layer's blob.
        digest: Digest,
        /// Bytes promised.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// The target does not take such images.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A document of the image could not be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The file could not be written.
    #[error("cannot write '{}'", path.display())]
    Write {
        /// The file, as it was given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is a directory.
    #[error("cannot write '{}': it is a directory", path.display())]
    IsDirectory {
        /// The directory, as it was given.
        path: PathBuf,
    },
    /// The file's directory is missing.
    #[error("cannot write '{}': there is no directory '{}'", path.display(), parent.display())]
    NoParent {
        /// The file, as it was given.
        path: PathBuf,
        /// The missing directory.
        parent: PathBuf,
    },
    /// Standard output could not be written.
    #[error("cannot write to stdout")]
    Stream(#[source] io::Error),
    /// The reader of standard output, or of a named pipe, went away. Not a failure of this tool: exit status 0.
    #[error("the reader closed the pipe")]
    ClosedPipe,
    /// The user wants the run to end.
    #[error("interrupted")]
    Interrupted,
    /// A directory that is no OCI image layout, and cannot become one.
    #[error("'{}' is not an OCI image layout: {reason}", dir.display())]
    NotALayout {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of an OCI image layout could not be read or written.
    #[error("cannot {action} '{}'", path.display())]
    Layout {
        /// `read`, `write`, `create` or `lock`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime's program could not be started.
    #[error("cannot start '{}'", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command of the runtime failed.
    #[error("'{command}' {status}{}", said(.words))]
    Command {
        /// The runtime.
        runtime: Runtime,
        /// What was run: `docker load`.
        command: String,
        /// How it ended: `failed with exit status 1`, `was killed by signal 9`.
        status: String,
        /// What it said on its standard error, or else on its standard output.
        words: String,
    },
    /// A runtime's answer that makes no sense.
    #[error("'{command}' gave an answer that is not understood: '{answer}'")]
    Answer {
        /// What was run.
        command: String,
        /// What it printed.
        answer: String,
    },
    /// The runtime took the image but has something else under its name.
    #[error("{runtime} has {found} under '{name}', not the image {expected} that it was given")]
    WrongImage {
        /// The runtime.
        runtime: Runtime,
        /// The name.
        name: String,
        /// The image ID that was sent.
        expected: Digest,
        /// What stands under the name.
        found: String,
    },
    /// The target lost layers twice while the image was on its way.
    #[error("the target removes layers while the image is delivered")]
    Vanished,
    /// A registry did not take the image; no tag of it has changed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A layer's bytes could not be given to a registry.
    #[error("cannot give a layer to the registry")]
    Upload(#[source] io::Error),
    /// The runtime cannot read layers compressed so.
    #[error("Docker {version} cannot load layers compressed with zstd")]
    ZstdUnsupported {
        /// The version of the daemon.
        version: String,
    },
}

fn said(words: &str) -> String {
    match words {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

impl DeliveryError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Write { source, .. } | Self::Layout { source, .. } | Self::Stream(source) => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
                    "free some space (docker image prune, nix-collect-garbage), or name a file on another disk".into(),
                ),
                io::ErrorKind::FileTooLarge => Some("name a file on a file system that holds larger files".into()),
                _ => None,
            },
            Self::Target(error) => error.hint(),
            Self::Registry(error) => error.hint(),
            Self::IsDirectory { path } => {
                Some(format!("name a file in it: --file {}", path.join("image.tar").display()))
            }
            Self::NoParent { parent, .. } => Some(format!("make it: mkdir -p {}", parent.display())),
            Self::NotALayout { .. } => Some("name a directory that is empty or not there yet: --layout DIR".into()),
            Self::Command { runtime, words, .. } => {
                let hint = Self::hint_of_words(*runtime, words)?;
                Some(match is_not_running(*runtime, words) {
                    true => format!("{hint}; or write a file: --file image.tar"),
                    false => hint.to_owned(),
                })
            }
            Self::ZstdUnsupported { .. } => {
                Some("Docker reads zstd since version 23; use --compression none or --compression gzip".into())
            }
            Self::WrongImage { runtime: Runtime::Docker, name, .. } => {
                Some(format!("see what took the name meanwhile: docker image inspect {name}"))
            }
            Self::WrongImage { runtime: Runtime::Podman, name, .. } => {
                Some(format!("see what took the name meanwhile: podman image inspect {name}"))
            }
            // Where layers come from is known to whoever gives them: `layers::hint_of_cause`.
            Self::Layer { .. } => None,
            _ => None,
        }
    }

    /// The usual reasons that a runtime gives, and what to do about each.
    pub fn hint_of_words(runtime: Runtime, words: &str) -> Option<&'static str> {
        let said = |reason: &str| words.to_ascii_lowercase().contains(reason);
        Some(match runtime {
            Runtime::Docker if is_forbidden(runtime, words) => {
                "join the group that may talk to the daemon: sudo usermod -aG docker \"$USER\", then log in again"
            }
            Runtime::Docker if is_not_running(runtime, words) => "is the daemon running? sudo systemctl start docker",
            Runtime::Podman if is_not_running(runtime, words) => "is its machine running? podman machine start",
            Runtime::Docker if said("no space left") => {
                "make room where the daemon keeps its images: docker image prune"
            }
            Runtime::Podman if said("no space left") => "make room where Podman keeps its images: podman image prune",
            _ if said("max depth exceeded") => "Docker takes at most 125 layers: --max-layers 100",
            _ => return None,
        })
    }
}

fn is_forbidden(runtime: Runtime, words: &str) -> bool {
    runtime == Runtime::Docker && words.to_ascii_lowercase().contains("permission denied")
}

fn is_not_running(runtime: Runtime, words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    let reasons = ["cannot connect", "connection refused", "daemon running"];
    !is_forbidden(runtime, &words) && reasons.iter().any(|reason| words.contains(reason))
}
