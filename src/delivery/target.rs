//! Where an image goes, and what flox's rules choose where the user leaves it open.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

use super::{Runtime, RuntimeClient};

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
}

/// A target that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The runtime that the user named is not installed.
    #[error("Container runtime '{}' not found in PATH.", .0.program())]
    RuntimeNotFound(Runtime),
    /// Two targets at once.
    #[error("--file and --layout exclude each other")]
    FileAndLayout,
}

impl TargetError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::RuntimeNotFound(runtime) => Some(format!(
                "install {}, or write the image to a file and load it elsewhere: --file image.tar",
                runtime.program()
            )),
            Self::FileAndLayout => None,
        }
    }
}

impl Target {
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

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file '{}'", path.display()),
            Self::Stdout => f.write_str("stdout"),
            Self::Runtime(client) => write!(f, "{} runtime", client.runtime()),
            Self::Layout(dir) => write!(f, "layout '{}'", dir.display()),
        }
    }
}
