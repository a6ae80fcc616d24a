//! The programs that the product has to get along with, as far as they are there.
//!
//! `scripts/test` installs and starts them. What becomes of a test whose peer is absent, `skips.rs` says.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Takes what a peer's function returns, or ends the test: `let docker = peer!(docker);`.
macro_rules! peer {
    ($name:ident) => {
        match $crate::peers::$name() {
            Some(peer) => peer,
            None => return $crate::peers::skip(stringify!($name), std::any::type_name_of_val(&|| {})),
        }
    };
}
pub(crate) use peer;

pub(crate) use crate::skips::{skip, skip_this};

/// Nix, with the store that it has built for the tests.
pub(crate) use crate::nix_fixture::nix;

/// git, with its server program.
pub(crate) fn git() -> Option<()> {
    let output = Command::new("git").arg("--exec-path").output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.join("git-http-backend").is_file().then_some(())
}

/// A server of Amazon's protocol for buckets.
pub(crate) use crate::bucket_server::moto;

/// Debian's registry, and openssl for its certificates.
pub(crate) use crate::registry_server::docker_registry;

/// Makes keys.
pub(crate) fn openssl() -> Option<PathBuf> {
    find_program("openssl")
}

/// Root's right to mount file systems.
pub(crate) fn root() -> Option<()> {
    rustix::process::geteuid().is_root().then_some(())
}

/// Where a program is on this process's `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The variables that tell clients where their daemons and storage are.
pub(crate) fn environment() -> Vec<(String, String)> {
    ["DOCKER_HOST", "DOCKER_CONFIG", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "XDG_RUNTIME_DIR"]
        .iter()
        .filter_map(|&name| Some((name.to_owned(), std::env::var(name).ok()?)))
        .collect()
}

/// A program that is there and answers.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    /// Its name on `PATH`.
    pub(crate) program: &'static str,
}

impl Peer {
    fn answering(program: &'static str, question: &[&str]) -> Option<Self> {
        let answered = Command::new(program)
            .args(question)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        answered.then_some(Self { program })
    }

    /// The program with arguments.
    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.program);
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs it to its end; standard output, if it went well.
    pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(self, args: impl IntoIterator<Item = S>) -> String {
        let mut command = self.command(args);
        let output = command.output().unwrap();
        expect_success(&command, &output);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Which of an image's digests a runtime calls it by: that of its configuration, the image's ID; or, where Docker keeps
    /// images in containerd's store, that of its manifest.
    pub(crate) fn name_of<'d>(self, image_id: &'d str, manifest: &'d str) -> &'d str {
        let of_docker = || self.run(["info", "--format", "{{json .DriverStatus}}"]);
        let by_manifest = self.program == "docker" && of_docker().contains("io.containerd.snapshotter");
        if by_manifest { manifest } else { image_id }
    }

    /// Runs a command in a container of `image` (Docker and Podman); standard output, if it went well.
    pub(crate) fn run_image(self, options: &[&str], image: &str, args: &[&str]) -> String {
        self.run([&["run", "--rm", "--network", "none"], options, &[image], args].concat())
    }
}

fn expect_success(command: &Command, output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// Asks once in each process whether a peer answers.
macro_rules! peers {
    ($($(#[$doc:meta])* $name:ident, $question:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name() -> Option<Peer> {
            static ANSWER: OnceLock<Option<Peer>> = OnceLock::new();
            *ANSWER.get_or_init(|| Peer::answering(stringify!($name), $question))
        }
    )*};
}

peers! {
    /// Docker's client, with a daemon that answers.
    docker, &["version"];
    /// Podman, with a storage that works.
    podman, &["info"];
    /// containerd's client, with a daemon that answers at `CONTAINERD_ADDRESS`.
    ctr, &["version"];
    /// skopeo.
    skopeo, &["--version"];
    /// umoci.
    umoci, &["--version"];
}

/// An image in a runtime's storage, removed at the end of the test. Its name belongs to this test alone.
pub(crate) struct LoadedImage {
    peer: Peer,
    /// `name:tag`.
    pub(crate) reference: String,
}

impl LoadedImage {
    /// Takes care of an image that the test has loaded or is about to load.
    pub(crate) fn new(peer: Peer, reference: impl Into<String>) -> Self {
        Self { peer, reference: reference.into() }
    }

    /// Runs a command in a container of it; standard output, if it went well.
    pub(crate) fn run(&self, options: &[&str], args: &[&str]) -> String {
        self.peer.run_image(options, &self.reference, args)
    }

    /// What the runtime says of it, in its client's language of formats.
    pub(crate) fn inspect(&self, format: &str) -> String {
        self.peer.run(["image", "inspect", "--format", format, &self.reference])
    }

    /// The image's ID as the runtime has it, `sha256:...`.
    pub(crate) fn id(&self) -> String {
        let id = self.inspect("{{.Id}}");
        format!("sha256:{}", id.trim().trim_start_matches("sha256:"))
    }
}

impl Drop for LoadedImage {
    fn drop(&mut self) {
        let _ = self.peer.command(["image", "rm", "--force", &self.reference]).output();
    }
}

/// A name for an image or environment that no other test uses, in this run or another.
pub(crate) fn unique_name(test: &str) -> String {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("layerhold-it-{test}-{}-{count}", std::process::id())
}
