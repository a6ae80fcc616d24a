//! A place of its own for each test: home, cache, temporary files, and an environment in which nothing is inherited.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::peers;

/// A temporary directory with all that a run of `layerhold` may touch. It is removed at the end of the test.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
    variables: Mutex<Vec<(String, String)>>,
}

impl Sandbox {
    /// An empty place. `PATH` leads to its `bin`, which holds nothing: no runtime is found unless a test puts one there.
    pub(crate) fn new() -> Self {
        // Short, for sockets' paths have to fit into 108 bytes; lower-case, for Podman names images after layouts.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = loop {
            let name = format!("lh{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            match tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir() {
                // Left by a test that was killed, whose process had the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => break made.unwrap(),
            }
        };
        for name in ["home", "cache", "tmp", "bin", "work"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, variables: Mutex::default() }
    }

    /// `relative` inside the sandbox.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// The built `layerhold`, to be run in `work` with this sandbox's environment.
    pub(crate) fn cmd(&self) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.env_clear().envs(self.environment()).current_dir(self.path("work"));
        command
    }

    /// The variables that a run sees: a few of the sandbox's own, and those that say where the peers are.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let own = [("HOME", "home"), ("LAYERHOLD_CACHE", "cache"), ("TMPDIR", "tmp"), ("PATH", "bin")];
        let own = own.map(|(name, relative)| (name.to_owned(), self.path(relative).display().to_string()));
        // No Nix settings of this machine's, and nothing is asked of the world: a test names the caches that it wants.
        let nix = [("NIX_CONF_DIR", "/nowhere"), ("NIX_CONFIG", "substituters =")];
        let nix = nix.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let set = self.variables.lock().unwrap().clone();
        own.into_iter().chain(nix).chain(peers::environment()).chain(set).collect()
    }

    /// From now on runs see this variable, too.
    pub(crate) fn set(&self, name: &str, value: &Path) {
        self.variables.lock().unwrap().push((name.to_owned(), value.display().to_string()));
    }

    /// Puts a program of the machine on the sandbox's `PATH`.
    pub(crate) fn provide(&self, program: &str) {
        let real = peers::find_program(program).unwrap_or_else(|| panic!("no {program} on PATH"));
        std::os::unix::fs::symlink(real, self.path("bin").join(program)).unwrap();
    }

    /// Puts a shell script on the sandbox's `PATH`.
    pub(crate) fn script(&self, program: &str, text: &str) {
        let file = self.path("bin").join(program);
        fs::write(&file, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A text of the program with all that differs from run to run replaced: this sandbox's path by `[SANDBOX]`,
    /// digests by `sha256:[DIGEST]`, hashes of store paths by `[HASH]`, how long a push took by `[TIME]`.
    pub(crate) fn tidy(&self, text: &str) -> String {
        let text = text.replace(&self.dir.path().display().to_string(), "[SANDBOX]");
        let text =
            mask(&text, "sha256:", 64, "[DIGEST]", |byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        let text = mask(&text, "/nix/store/", 32, "[HASH]", |byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
        text.split_inclusive('\n').map(without_time).collect()
    }
}

/// The line of a push without how long the run took: `...layers sent, 10.1 MiB, [TIME]`.
fn without_time(line: &str) -> String {
    let of_push = line.trim_end().strip_suffix(" s").filter(|line| line.contains(" layers sent, "));
    match of_push.and_then(|line| line.rsplit_once(", ")) {
        Some((before, seconds)) if seconds.parse::<f64>().is_ok() => {
            format!("{before}, [TIME]{}", if line.ends_with('\n') { "\n" } else { "" })
        }
        _ => line.to_owned(),
    }
}

/// Replaces the `length` digits behind each `lead`.
fn mask(text: &str, lead: &str, length: usize, with: &str, is_digit: impl Fn(u8) -> bool) -> String {
    let mut masked = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(lead) {
        let (before, after) = rest.split_at(at + lead.len());
        masked.push_str(before);
        rest = match after.as_bytes().get(..length) {
            Some(digits) if digits.iter().all(|&byte| is_digit(byte)) => {
                masked.push_str(with);
                &after[length..]
            }
            _ => after,
        };
    }
    masked + rest
}

#[test]
fn what_differs_from_run_to_run_is_masked() {
    let sandbox = Sandbox::new();
    let digest = layerhold::blob::Digest::of(b"");
    let text = format!(
        "{}: {digest} of /nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello, not sha256:12 nor /nix/store/short\n\
         written: 1 of 2 layers sent, 3.0 KiB, 12.3 s\nwritten: 1 of 2 layers sent, 3.0 KiB\nin 12.3 s",
        sandbox.path("work").display()
    );
    assert_eq!(
        sandbox.tidy(&text),
        "[SANDBOX]/work: sha256:[DIGEST] of /nix/store/[HASH]-hello, not sha256:12 nor /nix/store/short\n\
         written: 1 of 2 layers sent, 3.0 KiB, [TIME]\nwritten: 1 of 2 layers sent, 3.0 KiB\nin 12.3 s"
    );
}
