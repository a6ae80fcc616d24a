//! Where an image goes, and what flox's rules choose where the user leaves it open.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

use super::{DeliveryError, FileSink, LayoutSink, Opening, RegistrySink, Runtime, RuntimeClient, Sink, StreamSink};
use crate::event::Observer;
use crate::image::{ImageName, LayerMediaType};
use crate::outlet::Outlet;
use crate::registry::{Reference, Registries};

/// Where an image goes. Displayed as the closing message has it: `written to <target>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An archive in a file.
    File(PathBuf),
    /// An archive to standard output.
    Stdout,
    /// A container runtime.
    Runtime(RuntimeClient),
    /// An OCI image layout.
    Layout(PathBuf),
    /// A registry, with the tag that the image gets there.
    Registry(Reference),
}

/// What the user says about the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetRequest {
    /// `--file`; `-` is standard output.
    pub file: Option<PathBuf>,
    /// `--runtime`.
    pub runtime: Option<Runtime>,
    /// `--layout`.
    pub layout: Option<PathBuf>,
    /// `--push`: repositories, each with its tag, else with the image's.
    pub push: Vec<Reference>,
}

/// A target that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The runtime that the user named is not installed.
    #[error("Container runtime '{}' not found in PATH.", .0.program())]
    RuntimeNotFound(Runtime),
    /// The image has more layers than the runtime takes.
    #[error("{runtime} takes at most {} layers, and the image has {count}", .runtime.max_layers())]
    TooManyLayers {
        /// The runtime.
        runtime: Runtime,
        /// The image's layers.
        count: usize,
    },
    /// Images for several platforms, for a runtime that keeps one under a name.
    #[error("{runtime} takes an image for one platform, not for several at once")]
    SeveralPlatforms {
        /// The runtime.
        runtime: Runtime,
    },
    /// An archive that was made elsewhere, for a layout or a registry, which have blobs of their own.
    #[error("image layouts and registries take no archive that was made elsewhere")]
    ArchiveForLayout,
    /// Two targets at once.
    #[error("--file and --layout exclude each other")]
    FileAndLayout,
    /// An image's digest follows from what it is made of.
    #[error("'{reference}' names a digest, and an image is pushed to a tag")]
    PushToDigest {
        /// What was to be pushed to.
        reference: Reference,
    },
    /// The same target twice.
    #[error("'{reference}' is named twice")]
    PushTwice {
        /// What is named twice.
        reference: Reference,
    },
}

impl TargetError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::RuntimeNotFound(runtime) => Some(format!(
                "install {}, or write the image to a file and load it elsewhere: --file image.tar",
                runtime.program()
            )),
            Self::TooManyLayers { runtime, .. } => Some(format!("--max-layers {}", runtime.max_layers())),
            Self::SeveralPlatforms { runtime } => Some(format!(
                "give it one at a time, each with a tag of its own: --runtime {} --platform linux/arm64 --tag arm64; \
                 or write them to a file or a layout: --file image.tar, --layout DIR",
                runtime.program()
            )),
            Self::ArchiveForLayout => Some(
                "write a file and copy out of that: --file image.tar; skopeo copy oci-archive:image.tar \
                 oci:DIR:NAME:TAG"
                    .to_owned(),
            ),
            Self::PushToDigest { reference } => Some(format!("name a tag: {}:latest", reference.name())),
            Self::FileAndLayout | Self::PushTwice { .. } => None,
        }
    }
}

/// What sinks are made with.
pub struct Means<'a> {
    /// The registries of the run.
    pub registries: &'a Registries<'a>,
    /// Who watches.
    pub observer: &'a dyn Observer,
    /// Whether registries are asked for every blob, whatever is remembered of them.
    pub asks_for_all: bool,
    /// Whether targets are only looked at: who may not push may see what that would send.
    pub dry_run: bool,
}

impl Target {
    /// All targets: those that the user named, registries last; where none is named, the one by flox's rules.
    pub fn choose_all(
        mut request: TargetRequest,
        path: Option<&OsStr>,
        name: &ImageName,
        environment: &str,
    ) -> Result<Vec<Self>, TargetError> {
        let push = std::mem::take(&mut request.push);
        let mut targets = match request == TargetRequest::default() && !push.is_empty() {
            true => Vec::new(),
            false => vec![Self::choose(request, path, environment)?],
        };
        for reference in push {
            let target = Self::to_registry(reference, name)?;
            match (targets.contains(&target), target) {
                (true, Self::Registry(reference)) => return Err(TargetError::PushTwice { reference }),
                (_, target) => targets.push(target),
            }
        }
        Ok(targets)
    }

    /// A repository, with the image's tag where it is named without one.
    pub fn to_registry(reference: Reference, name: &ImageName) -> Result<Self, TargetError> {
        match reference.digest() {
            Some(_) => Err(TargetError::PushToDigest { reference }),
            None if reference.has_own_tag() => Ok(Self::Registry(reference)),
            None => Ok(Self::Registry(reference.with_tag(name.tag()))),
        }
    }

    /// The target by flox's rules: the file; else the given runtime; else the first of docker and podman that is on
    /// `path` (the value of `PATH`); else `<name>-container.tar` in the current directory.
    ///
    /// A given runtime must be on `path` even where a file is given. A layout is chosen as a file is.
    pub fn choose(request: TargetRequest, path: Option<&OsStr>, name: &str) -> Result<Self, TargetError> {
        let given = request
            .runtime
            .map(|runtime| RuntimeClient::find(runtime, path).ok_or(TargetError::RuntimeNotFound(runtime)))
            .transpose()?;
        match (request.file, request.layout) {
            (Some(_), Some(_)) => Err(TargetError::FileAndLayout),
            (Some(file), None) if file.as_os_str() == "-" => Ok(Self::Stdout),
            (Some(file), None) => Ok(Self::File(file)),
            (None, Some(layout)) => Ok(Self::Layout(layout)),
            (None, None) => Ok(match given.or_else(|| RuntimeClient::detect(path)) {
                Some(client) => Self::Runtime(client),
                None => Self::File(PathBuf::from(format!("{}-container.tar", name.replace('/', "-")))),
            }),
        }
    }
}

impl Target {
    /// Asks a runtime what has to be known before layers of this media type are made for it, and does not wait for the
    /// answers. No other target is asked anything.
    pub fn ask(&self, name: &ImageName, media_type: LayerMediaType) -> Result<Option<Opening>, DeliveryError> {
        match self {
            Self::Runtime(client) => client.ask(name, media_type).map(Some),
            Self::File(_) | Self::Stdout | Self::Layout(_) | Self::Registry(_) => Ok(None),
        }
    }

    /// Whether a delivery that fails leaves nothing at the target: a stream cannot be taken back.
    pub fn is_untouched_by_failures(&self) -> bool {
        match self {
            Self::Stdout => false,
            Self::File(path) => std::fs::metadata(path).map_or(true, |metadata| metadata.is_file()),
            Self::Runtime(_) | Self::Layout(_) | Self::Registry(_) => true,
        }
    }

    /// Whether the target takes images for that many platforms under one name.
    pub fn accepts_platforms(&self, count: usize) -> Result<(), TargetError> {
        match self {
            Self::Runtime(client) if count > 1 => Err(TargetError::SeveralPlatforms { runtime: client.runtime() }),
            _ => Ok(()),
        }
    }

    /// Whether the target takes that many layers.
    pub fn accepts_layers(&self, count: usize) -> Result<(), TargetError> {
        match self {
            Self::Runtime(client) if count > client.runtime().max_layers() => {
                Err(TargetError::TooManyLayers { runtime: client.runtime(), count })
            }
            _ => Ok(()),
        }
    }

    /// A sink on the target; `opening` is what [`Target::ask`] gave, if that was called. `stdout` is standard output,
    /// without a line buffer; only [`Target::Stdout`] writes to it.
    pub fn sink<'a>(
        &self,
        opening: Option<Opening>,
        stdout: Box<dyn Outlet + 'a>,
        means: &Means<'a>,
    ) -> Box<dyn Sink + 'a> {
        let observer = means.observer;
        match self {
            Self::File(path) => Box::new(FileSink::new(path).watched_by(observer)),
            Self::Stdout => Box::new(StreamSink::new(stdout)),
            Self::Runtime(client) => match opening {
                Some(opening) => Box::new(client.sink(observer).opened(opening)),
                None => Box::new(client.sink(observer)),
            },
            Self::Layout(dir) => Box::new(LayoutSink::new(dir, observer)),
            Self::Registry(reference) => {
                let repository = means.registries.repository(reference);
                let repository = if means.dry_run { repository } else { repository.for_pushing() };
                let sink = RegistrySink::new(repository, observer);
                Box::new(if means.asks_for_all { sink.asking_for_all() } else { sink })
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file '{}'", path.display()),
            Self::Stdout => f.write_str("stdout"),
            Self::Registry(reference) => write!(f, "registry '{reference}'"),
            Self::Runtime(client) => write!(f, "{} runtime", client.runtime()),
            Self::Layout(dir) => write!(f, "layout '{}'", dir.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::fake;
    use super::*;

    /// Directories with docker, with podman, with both, as values of `PATH`.
    fn paths() -> (tempfile::TempDir, [std::ffi::OsString; 3]) {
        let dir = tempfile::tempdir().unwrap();
        for (sub, runtimes) in [
            ("docker", &[Runtime::Docker][..]),
            ("podman", &[Runtime::Podman]),
            ("both", &[Runtime::Docker, Runtime::Podman]),
        ] {
            for runtime in runtimes {
                fake(*runtime, &dir.path().join(sub));
            }
        }
        let paths = ["docker", "podman", "both"].map(|sub| dir.path().join(sub).into_os_string());
        (dir, paths)
    }

    fn choose(request: TargetRequest, path: &OsStr) -> Result<String, String> {
        match Target::choose(request, Some(path), "Hello") {
            Ok(target) => Ok(target.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn targets_are_chosen_as_flox_chooses_them() {
        let (_dir, [docker, podman, both]) = paths();
        let none = OsStr::new("/nonexistent");
        let request = TargetRequest::default;
        let file = |name: &str| TargetRequest { file: Some(name.into()), ..request() };
        let runtime = |runtime| TargetRequest { runtime: Some(runtime), ..request() };

        assert_eq!(choose(request(), &docker).unwrap(), "Docker runtime");
        assert_eq!(choose(request(), &podman).unwrap(), "Podman runtime");
        assert_eq!(choose(request(), &both).unwrap(), "Docker runtime");
        assert_eq!(choose(request(), none).unwrap(), "file 'Hello-container.tar'");
        assert_eq!(choose(file("a.tar"), &both).unwrap(), "file 'a.tar'");
        assert_eq!(choose(file("-"), &both).unwrap(), "stdout");
        assert_eq!(choose(runtime(Runtime::Podman), &both).unwrap(), "Podman runtime");
        assert_eq!(choose(TargetRequest { layout: Some("dir".into()), ..request() }, &both).unwrap(), "layout 'dir'");
    }

    #[test]
    fn a_given_runtime_must_be_on_path_even_with_a_file() {
        let (_dir, [docker, ..]) = paths();
        let request =
            TargetRequest { file: Some("a.tar".into()), runtime: Some(Runtime::Podman), ..TargetRequest::default() };
        assert_eq!(choose(request, &docker).unwrap_err(), "Container runtime 'podman' not found in PATH.");
        let request =
            TargetRequest { file: Some("a.tar".into()), layout: Some("b".into()), ..TargetRequest::default() };
        assert_eq!(choose(request, &docker).unwrap_err(), "--file and --layout exclude each other");
        let request = TargetRequest { runtime: Some(Runtime::Docker), ..TargetRequest::default() };
        assert_eq!(Target::choose(request, None, "x"), Err(TargetError::RuntimeNotFound(Runtime::Docker)));
    }

    #[test]
    fn a_file_that_nobody_may_execute_is_no_runtime() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, [docker, podman, _]) = paths();
        let program = dir.path().join("docker/docker");
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(choose(TargetRequest::default(), &docker).unwrap(), "file 'Hello-container.tar'");
        let path = std::env::join_paths([&docker, &podman]).unwrap();
        assert_eq!(choose(TargetRequest::default(), &path).unwrap(), "Podman runtime");
    }

    #[test]
    fn a_target_opens_the_sink_that_it_names() {
        use super::super::conformance::whole_archive;
        use super::super::samples::{deliver, image};
        use crate::event::Silent;
        let dir = tempfile::tempdir().unwrap();
        let client = fake(Runtime::Podman, &dir.path().join("podman"));
        let (image, blobs) = image("v1", &["base"]);
        for target in [
            Target::File(dir.path().join("image.tar")),
            Target::Stdout,
            Target::Layout(dir.path().join("layout")),
            Target::Runtime(client),
        ] {
            let mut stdout = Vec::new();
            let opening = target.ask(&image.name, LayerMediaType::TarZstd).unwrap();
            let registries = Registries::new(crate::registry::Settings::default(), &Silent);
            let means = Means { registries: &registries, observer: &Silent, asks_for_all: false, dry_run: false };
            deliver(&image, &blobs, &mut *target.sink(opening, Box::new(&mut stdout), &means), &Silent).unwrap();
            assert_eq!(whole_archive(&stdout).is_some(), target == Target::Stdout);
        }
        assert!(whole_archive(&std::fs::read(dir.path().join("image.tar")).unwrap()).is_some());
        assert!(dir.path().join("layout/index.json").exists());
        assert!(std::fs::read_to_string(dir.path().join("podman/images")).unwrap().contains("localhost/hello:v1"));
    }

    #[test]
    fn what_went_into_a_stream_cannot_be_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image.tar");
        assert!(Target::File(file.clone()).is_untouched_by_failures());
        std::fs::write(&file, "old").unwrap();
        assert!(Target::File(file).is_untouched_by_failures());
        assert!(!Target::File("/dev/null".into()).is_untouched_by_failures());
        assert!(!Target::Stdout.is_untouched_by_failures());
    }

    #[test]
    fn runtimes_have_floxs_names() {
        assert_eq!("docker".parse(), Ok(Runtime::Docker));
        assert_eq!("podman".parse(), Ok(Runtime::Podman));
        assert_eq!("Docker".parse::<Runtime>().unwrap_err().to_string(), "Runtime must be 'docker' or 'podman'");
    }
}
