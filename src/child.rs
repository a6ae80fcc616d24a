//! A child process whose output is kept, that stops when the user wants it, and that is never left behind.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child as Process, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::event::Observer;
use crate::host::widen_pipe;
use crate::outlet::{Outlet, Patient};

/// How much of either output is kept; the rest is read and thrown away.
const KEPT: u64 = 64 << 20;

/// How often the user's wish and the child's end are looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// How often the end is looked at of a child that has closed its outputs.
const END_INTERVAL: Duration = Duration::from_millis(5);

/// How long a child that gets no input may take to end: as a rule as long as it takes to start.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long outputs may stay open after the child's end: a grandchild that holds them is not waited for.
const GRACE: Duration = Duration::from_secs(1);

/// The program in the first directory of `path` (the value of `PATH`) that has it.
pub(crate) fn find_program(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    std::env::split_paths(path?)
        // An empty entry is the current directory (execvp(3)).
        .map(|dir| if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir })
        .map(|dir| dir.join(name))
        .find(|program| program.is_file() && rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok())
}

/// A running child. Dropped before its end, it is killed and waited for.
pub(crate) struct Child {
    process: Process,
    stdin: Option<ChildStdin>,
    ends: Receiver<(Which, Vec<u8>)>,
    stdout: Option<Vec<u8>>,
    stderr: Option<Vec<u8>>,
}

#[derive(Clone, Copy)]
enum Which {
    Stdout,
    Stderr,
}

/// A child that came to its end.
pub(crate) struct Ended {
    /// How.
    pub(crate) status: ExitStatus,
    /// What it printed.
    pub(crate) stdout: Vec<u8>,
    /// What it said of itself.
    pub(crate) stderr: Vec<u8>,
}

impl Ended {
    /// How it ended, as a predicate: `failed with exit status 1`. To be asked of a child that failed, or that ended
    /// while it was fed.
    pub(crate) fn status_words(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(0), _) => "ended before it had read the whole image".to_owned(),
            (Some(code), _) => format!("failed with exit status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "failed".to_owned(),
        }
    }

    /// What it has to say for itself: its standard error, or else its standard output, without white space around.
    pub(crate) fn words(&self) -> String {
        [&self.stderr, &self.stdout]
            .map(|output| String::from_utf8_lossy(output).trim().to_owned())
            .into_iter()
            .find(|words| !words.is_empty())
            .unwrap_or_default()
    }
}

/// Why a child was not seen to its end; it is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abandoned {
    /// The user wants the run to end.
    Interrupted,
    /// It took too long.
    TooSlow,
}

impl Child {
    /// Starts `command`, with a pipe to its standard input where `fed`, else with none.
    pub(crate) fn spawn(command: &mut Command, fed: bool) -> io::Result<Self> {
        let mut process = command
            .stdin(if fed { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (send, ends) = channel();
        // Both outputs are read at all times: a child that cannot write stops reading.
        let collect = |which, pipe: Option<Box<dyn Read + Send>>| {
            let send = send.clone();
            thread::spawn(move || {
                let mut kept = Vec::new();
                if let Some(mut pipe) = pipe {
                    // What cannot be read is left out: it is the exit status that counts.
                    let _ = pipe.by_ref().take(KEPT).read_to_end(&mut kept);
                    let _ = io::copy(&mut pipe, &mut io::sink());
                }
                // Nobody listens where the child was dropped.
                let _ = send.send((which, kept));
            });
        };
        collect(Which::Stdout, process.stdout.take().map(|pipe| Box::new(pipe) as _));
        collect(Which::Stderr, process.stderr.take().map(|pipe| Box::new(pipe) as _));
        let stdin = process.stdin.take().inspect(|stdin| widen_pipe(stdin));
        Ok(Self { stdin, process, ends, stdout: None, stderr: None })
    }

    /// Runs `feed` with a writer to the child's standard input; a wish to stop kills the child, so that a write to a
    /// full pipe comes back.
    pub(crate) fn feed<T>(&mut self, observer: &dyn Observer, feed: impl FnOnce(&mut dyn Outlet) -> T) -> T {
        let pid = rustix::process::Pid::from_child(&self.process);
        let (_done, over) = channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                // Ends when `_done` is dropped.
                while over.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    if observer.cancelled() {
                        // The child is not waited for before this scope ends, so the number is still its own.
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                        return;
                    }
                }
            });
            let _done = _done;
            match &mut self.stdin {
                Some(stdin) => feed(stdin),
                None => feed(&mut Closed),
            }
        })
    }

    /// Writes to the child's standard input, for as long as the user wants that; a child that ends breaks the pipe.
    pub(crate) fn write_all(&mut self, bytes: &[u8], observer: &dyn Observer) -> io::Result<()> {
        match &mut self.stdin {
            Some(stdin) => Patient::new(stdin, observer).write_all(bytes),
            None => Closed.write_all(bytes),
        }
    }

    /// Closes the child's standard input and waits for its end, however long that takes.
    pub(crate) fn wait(self, observer: &dyn Observer) -> io::Result<Result<Ended, Abandoned>> {
        self.wait_at_most(Duration::MAX, observer)
    }

    /// Closes the child's standard input and waits for its end, about as long as `patience` says: what is counted is
    /// the waiting.
    pub(crate) fn wait_at_most(
        mut self,
        patience: Duration,
        observer: &dyn Observer,
    ) -> io::Result<Result<Ended, Abandoned>> {
        self.stdin = None;
        let mut waited = Duration::ZERO;
        // A child that ends closes its outputs, which wakes this loop at once.
        let status = loop {
            let open = self.stdout.is_none() || self.stderr.is_none();
            if open && !self.collect(INTERVAL) {
                waited += INTERVAL;
            }
            if let Some(status) = self.process.try_wait()? {
                break status;
            }
            if observer.cancelled() {
                return Ok(Err(Abandoned::Interrupted));
            }
            if waited >= patience {
                return Ok(Err(Abandoned::TooSlow));
            }
            if !open {
                thread::sleep(END_INTERVAL);
                waited += END_INTERVAL;
            }
        };
        while (self.stdout.is_none() || self.stderr.is_none()) && self.collect(GRACE) {}
        Ok(Ok(Ended {
            status,
            stdout: self.stdout.take().unwrap_or_default(),
            stderr: self.stderr.take().unwrap_or_default(),
        }))
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Closes the child's standard input, and gives it a moment to end by itself: one that is killed may leave something
    /// behind.
    pub(crate) fn dismiss(mut self) {
        self.stdin = None;
        let mut waited = Duration::ZERO;
        while waited < FAREWELL && self.is_running() {
            thread::sleep(END_INTERVAL);
            waited += END_INTERVAL;
        }
    }

    /// Waits for one output's end; false where none came.
    fn collect(&mut self, patience: Duration) -> bool {
        match self.ends.recv_timeout(patience) {
            Ok((Which::Stdout, kept)) => self.stdout = Some(kept),
            Ok((Which::Stderr, kept)) => self.stderr = Some(kept),
            Err(_) => return false,
        }
        true
    }
}

/// The standard input of a child that is not fed.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outlet for Closed {}

impl Drop for Child {
    fn drop(&mut self) {
        // Once it has been waited for its number may be another process's.
        if !self.is_running() {
            return;
        }
        // Killed before its input ends, so that it cannot take the end for that of the archive.
        let pid = rustix::process::Pid::from_child(&self.process);
        if rustix::process::getpgid(Some(pid)) == Ok(pid) {
            // It leads a group of its own: whatever it has started goes with it.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
