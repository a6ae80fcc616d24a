//! A person at a terminal: a program on a pseudo-terminal, what is typed, and what then appears.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;

use crate::peers::find_program;

/// How long a program may take to show what is expected of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program whose standard streams are a terminal of its own.
pub(crate) struct Terminal {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
    child: Child,
}

impl Terminal {
    /// A command to be given to [`Self::spawn`]: it will have a session of its own, and the terminal for the controlling
    /// one.
    pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
        // Taking a controlling terminal between fork and exec is no safe Rust; util-linux does it.
        let mut session = Command::new(find_program("setsid").unwrap());
        session.args(["--ctty", "--wait"]).arg(program);
        session
    }

    /// Starts such a command.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let open = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            Stdio::from(File::from(rustix::fs::open(&name, flags, Mode::empty()).unwrap()))
        };
        let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
        // It holds the other end of the terminal, which has to close with the program.
        drop(command);

        let keyboard = File::from(master);
        let mut reader = keyboard.try_clone().unwrap();
        let (send, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The last program that lets go of the terminal ends this with an error (EIO).
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { keyboard, screen, seen: String::new(), child }
    }

    /// Types a line.
    pub(crate) fn send(&mut self, line: &str) {
        self.keyboard.write_all(format!("{line}\r").as_bytes()).unwrap();
    }

    /// Waits until `text` has appeared, and returns all that came before it and has not been returned yet.
    pub(crate) fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.seen, rest);
                before.truncate(at);
                return before;
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => panic!("no {text:?} after {PATIENCE:?}; the screen: {:?}", self.seen),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended without {text:?}; the screen: {:?}", self.seen),
            }
        }
    }

    /// Waits for the end: how it ended, and what has appeared since.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(bytes) = self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        assert!(Instant::now() < deadline, "still running; the screen: {:?}", self.seen);
        (self.child.wait().unwrap(), std::mem::take(&mut self.seen))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_terminal_shows_what_a_program_asks_and_passes_on_what_is_typed() {
    let mut shell = Terminal::command("sh");
    shell.args(["-c", "test -t 0 && test -t 2 && printf 'name? ' && read name && echo \"hello $name\"; exit 3"]);
    let mut terminal = Terminal::spawn(shell);
    terminal.expect("name? ");
    terminal.send("you");
    terminal.expect("hello you");
    assert_eq!(terminal.finish().0.code(), Some(3));
}
