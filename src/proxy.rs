//! A run of this tool in a container, where the Nix store lies in a volume of the runtime's: Flox's way on macOS.
//!
//! The image comes back as an archive on the container's standard output. The container's standard input says how long
//! it is wanted: it is open for as long as this process lives, whatever becomes of it, and [`ARGUMENT`] has the run in
//! the container end with it. So no container outlives the run that it belongs to.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::delivery::{DeliveryError, Receiver, Runtime, RuntimeClient, Target};
use crate::event::Observer;
use crate::outlet::Outlet;

/// The program in the container, looked for on the image's `PATH`.
pub const PROGRAM: &str = "layerhold";
/// The argument that tells a run that it is in a container of this kind.
pub const ARGUMENT: &str = "--in-proxy";

/// Where the layer store of runs in the container lies: in the volume, so that it is there again in the next one.
const CACHE: &str = "LAYERHOLD_CACHE=/nix/var/cache/layerhold";
/// How often the user's wish is looked at.
const INTERVAL: Duration = Duration::from_millis(50);
/// An archive ends with two empty blocks.
const END: usize = 1024;
/// How much of what is said on standard error is kept, to be understood.
const KEPT: usize = 16 << 10;

/// What is to be run.
pub struct Proxy<'a> {
    /// The runtime whose container it is.
    pub client: &'a RuntimeClient,
    /// The container's name, which no other one has.
    pub name: String,
    /// Its image.
    pub image: String,
    /// The volume that lies at `/nix` there.
    pub volume: String,
    /// Files and directories that are to be there, in the same place and not to be written to.
    pub shared: Vec<PathBuf>,
    /// Variables for the run. Their values are in no command line.
    pub variables: Vec<(String, OsString)>,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// A run in a container that brought no image. The target is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The run failed and has said why.
    #[error("the run in the container failed with exit status {code}")]
    Failed {
        /// Its exit status.
        code: u8,
    },
    /// The container did not come to be; the runtime has said why.
    #[error("{runtime} could not run a container of '{image}'")]
    Container {
        /// The runtime.
        runtime: Runtime,
        /// The image.
        image: String,
        /// What was said.
        words: String,
    },
    /// The image has no such program.
    #[error("the image '{image}' has no {PROGRAM} that runs with the volume '{volume}' at /nix")]
    NoProgram {
        /// The runtime.
        runtime: Runtime,
        /// The image.
        image: String,
        /// The volume.
        volume: String,
    },
    /// The container was ended by somebody else.
    #[error("the run in the container was killed by signal {signal}")]
    Killed {
        /// By which signal.
        signal: u8,
    },
    /// It ended well, but gave no archive.
    #[error("what the {PROGRAM} in '{image}' wrote is not an image")]
    NoArchive {
        /// The image.
        image: String,
    },
    /// The runtime's program could not be started, or was lost.
    #[error("cannot run '{}'", program.display())]
    Client {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive did not get to the target.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
}

impl ProxyError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoProgram { image, volume, runtime } => Some(format!(
                "name one that has a Linux build of {PROGRAM} on its PATH, outside /nix: --proxy-image IMAGE; what '{image}' \
                 has in /nix comes into the volume only while that is empty: --proxy-volume OTHER, or {} volume rm {volume}",
                runtime.program()
            )),
            Self::Killed { signal: 9 } => {
                Some("the runtime's machine may be short of memory: give it more, or run this again".to_owned())
            }
            Self::Container { runtime, words, image } => {
                let hint = DeliveryError::hint_of_words(*runtime, words).map(str::to_owned);
                hint.or_else(|| {
                    Some(format!("see whether any container of it runs: {} run --rm {image}", runtime.program()))
                })
            }
            Self::NoArchive { .. } => Some("name an image with this tool in it: --proxy-image IMAGE".to_owned()),
            Self::Delivery(error) => error.hint(),
            Self::Failed { .. } | Self::Killed { .. } | Self::Client { .. } => None,
        }
    }
}

impl Proxy<'_> {
    /// Runs it and brings the archive to `target`; each line that is said there goes to `say`.
    pub fn run(
        &self,
        target: &Target,
        stdout: &mut dyn Outlet,
        observer: &dyn Observer,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<(), ProxyError> {
        let mut receiver = Receiver::new(target, stdout, observer)?;
        let mut container = Container::start(self)?;
        let words = Mutex::new(Words::default());
        let (done, over) = channel::<()>();
        let (taken, status) = thread::scope(|scope| {
            let pid = rustix::process::Pid::from_child(&container.process);
            scope.spawn(move || {
                // Ends when `done` is dropped.
                while over.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    if observer.cancelled() {
                        self.remove();
                        // Not waited for before this scope ends, so the number is still its own.
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                        return;
                    }
                }
            });
            if let Some(stderr) = container.process.stderr.take() {
                scope.spawn(|| listen(stderr, &words, say));
            }
            let taken = container.copy_to(&mut receiver);
            if taken.is_err() {
                container.stop();
            }
            let status = container.wait();
            drop(done);
            (taken, status)
        });
        if observer.cancelled() {
            return Err(DeliveryError::Interrupted.into());
        }
        let tail = match taken {
            Ok(tail) => tail,
            Err(Broken::Target(error)) => return Err(receiver.explain(error).into()),
            Err(Broken::Client(source)) => return Err(self.client_error(source)),
        };
        let words = words.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.judge(status.map_err(|source| self.client_error(source))?, words.0)?;
        if tail.len() < END || tail.iter().any(|&byte| byte != 0) {
            return Err(ProxyError::NoArchive { image: self.image.clone() });
        }
        Ok(receiver.finish()?)
    }

    /// What an exit status of `docker run` or `podman run` means (docker-run(1), "Exit status").
    fn judge(&self, status: std::process::ExitStatus, words: String) -> Result<(), ProxyError> {
        let (runtime, image) = (self.client.runtime(), self.image.clone());
        let absent = || ProxyError::NoProgram { runtime, image: image.clone(), volume: self.volume.clone() };
        match status.code().and_then(|code| u8::try_from(code).ok()) {
            Some(0) => Ok(()),
            // Podman 4 says 127, Docker 127 or 125: what is said tells more.
            Some(126 | 127) => Err(absent()),
            Some(125) if words.contains("executable file") && words.contains("not found") => Err(absent()),
            Some(125) => Err(ProxyError::Container { runtime, image, words }),
            // The program's own for an interrupted run is 130.
            Some(code) if code > 130 => Err(ProxyError::Killed { signal: code - 128 }),
            Some(code) => Err(ProxyError::Failed { code }),
            None => Err(self.client_error(io::Error::other(status.to_string()))),
        }
    }

    fn client_error(&self, source: io::Error) -> ProxyError {
        ProxyError::Client { program: self.client.program().to_owned(), source }
    }

    /// The command that runs the container, without the variables' values.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = Vec::new();
        // No program of the runtime's as the first one of the container (`--init`): Podman may be without, and this one
        // takes signals by itself and has no children that it does not wait for. Labels of SELinux would keep it from
        // the files of the user.
        arguments.extend(
            ["run", "--rm", "--interactive", "--user", "0:0", "--security-opt", "label=disable"].map(Into::into),
        );
        let volume = ["type=volume".to_owned(), format!("source={}", self.volume), "target=/nix".to_owned()];
        let options = [("--name", self.name.as_str().into()), ("--entrypoint", PROGRAM.into())];
        let mounts = self.shared.iter().map(|path| ("--mount", bind(path)));
        let variables = self.variables.iter().map(|(name, _)| ("--env", name.into()));
        let options = options.into_iter().chain([("--mount", mount(&volume.map(Into::into)))]).chain(mounts);
        for (option, value) in options.chain([("--env", CACHE.into())]).chain(variables) {
            arguments.extend([option.into(), value]);
        }
        arguments.push(self.image.as_str().into());
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }

    /// Removes the container, running or not, if it is there.
    fn remove(&self) {
        let mut command = self.client.command(&["rm", "--force", &self.name]);
        let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

/// A path that is in the container where it is here.
fn bind(path: &Path) -> OsString {
    let at = |field: &str| {
        let mut text = OsString::from(field);
        text.push(path);
        text
    };
    mount(&["type=bind".into(), at("source="), at("target="), "readonly".into()])
}

/// `--mount` takes a line of CSV (docker-run(1)): a field with a comma or a quotation mark is quoted.
fn mount(fields: &[OsString]) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let field = |field: &OsString| {
        let bytes = field.as_bytes();
        if !bytes.iter().any(|byte| b",\"\n\r".contains(byte)) {
            return bytes.to_vec();
        }
        let doubled = bytes.iter().flat_map(|&byte| if byte == b'"' { vec![b'"', b'"'] } else { vec![byte] });
        [b'"'].into_iter().chain(doubled).chain([b'"']).collect()
    };
    OsString::from_vec(fields.iter().map(field).collect::<Vec<_>>().join(&b','))
}

/// Why the archive came no further.
enum Broken {
    Target(DeliveryError),
    Client(io::Error),
}

/// A running container and the runtime's program that is connected to it. Dropped before its end, it is removed.
struct Container<'a> {
    proxy: &'a Proxy<'a>,
    process: Child,
    is_over: bool,
}

impl<'a> Container<'a> {
    fn start(proxy: &'a Proxy<'a>) -> Result<Self, ProxyError> {
        let mut command: Command = proxy.client.command(&proxy.arguments());
        command.envs(proxy.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let process = command.spawn().map_err(|source| proxy.client_error(source))?;
        Ok(Self { proxy, process, is_over: false })
    }

    /// Brings what the container writes to `receiver`, and gives the end of it.
    fn copy_to(&mut self, receiver: &mut Receiver<'_>) -> Result<Vec<u8>, Broken> {
        let Some(mut stdout) = self.process.stdout.take() else { return Ok(Vec::new()) };
        let (mut buffer, mut tail) = (vec![0; 256 << 10], Vec::new());
        loop {
            let read = match stdout.read(&mut buffer) {
                Ok(0) => return Ok(tail),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Broken::Client(error)),
            };
            let bytes = &buffer[..read];
            receiver.write_all(bytes).map_err(Broken::Target)?;
            tail.extend_from_slice(&bytes[read.saturating_sub(END)..]);
            tail.drain(..tail.len().saturating_sub(END));
        }
    }

    /// Ends the container, by whatever it listens to.
    fn stop(&mut self) {
        drop(self.process.stdin.take());
        self.proxy.remove();
        let _ = self.process.kill();
    }

    fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        // Not `Child::wait`, which closes standard input: the container would take that for the end of this process.
        let status = loop {
            if let Some(status) = self.process.try_wait()? {
                break status;
            }
            thread::sleep(Duration::from_millis(5));
        };
        self.is_over = true;
        Ok(status)
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.stop();
            let _ = self.process.wait();
        }
    }
}

/// The beginning of what was said.
#[derive(Default)]
struct Words(String);

/// Passes on what is said, line by line.
fn listen(stderr: ChildStderr, words: &Mutex<Words>, say: &(dyn Fn(&str) + Sync)) {
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    // What cannot be read is left out: it is the exit status that counts.
    while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        say(text);
        let mut words = words.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if words.0.len() < KEPT {
            words.0.push_str(text);
            words.0.push('\n');
        }
        drop(words);
        line.clear();
    }
}

#[cfg(test)]
mod tests;
