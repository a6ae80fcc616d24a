//! What a run waits for may never come: the first signal ends it.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::sandbox::Sandbox;

/// An environment that takes more than a pipe holds.
struct Place {
    sandbox: Sandbox,
    store: BareStore,
    environment: FloxEnv,
}

impl Place {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let store = BareStore::new(sandbox.path("root"));
        let tool = store.add("tool-1", &Tree::new().file("share/large", vec![b'l'; 1 << 20]));
        let environment = FloxEnv::of_store_paths(sandbox.path("project"), "waits", &[("tool", &tool)], "");
        Self { sandbox, store, environment }
    }

    fn spawn(&self, file: &Path) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.env_clear().envs(self.sandbox.environment()).env("LAYERHOLD_CACHE", self.sandbox.path("cache"));
        command.args(["containerize", "--store"]).arg(self.store.root()).arg("-d").arg(self.environment.dir());
        command.arg("-f").arg(file).current_dir(self.sandbox.path("work"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn fifo(&self) -> std::path::PathBuf {
        let fifo = self.sandbox.path("work/fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        fifo
    }
}

/// So soon a process ends, of itself or because a signal has told it to.
const SOON: Duration = Duration::from_secs(20);
/// Whoever does not wait by then never does.
const FOR_EVER: Duration = Duration::from_secs(300);

/// How a process ends, which is killed unless that is soon.
fn end(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None if begun.elapsed() > SOON => {
                child.kill().unwrap();
                return child.wait().unwrap();
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Waits until a process has handlers for signals, and has waited for a quarter of a second by then: none of its
/// threads ran, or was about to. However slow the machine is, what is ready to run is not taken for what waits.
pub(crate) fn until_it_waits(child: &mut Child) {
    let begun = Instant::now();
    let (mut before, mut looks) = (None, 0);
    while looks < 5 {
        assert!(child.try_wait().unwrap().is_none(), "it has ended, and did not wait");
        assert!(begun.elapsed() < FOR_EVER, "it never waits");
        thread::sleep(Duration::from_millis(50));
        let now = times_of_sleepers(child.id()).filter(|_| catches_interrupts(child.id()));
        looks = if now.is_some() && now == before { looks + 1 } else { 0 };
        before = now;
    }
}

/// How long each thread of a process has run so far; `None` where one runs, or is ready to, or waits for a disk
/// (proc_pid_stat(5)).
fn times_of_sleepers(process: u32) -> Option<Vec<String>> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let time = |thread: std::io::Result<fs::DirEntry>| {
        let stat = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
        // A name may have anything in it.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<_> = fields.split(' ').collect();
        (fields[0] == "S").then(|| format!("{} {}", fields[11], fields[12]))
    };
    threads.map(time).collect()
}

/// Whether the first interrupt is the process's own business by now (proc_pid_status(5)).
fn catches_interrupts(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or_default();
    u64::from_str_radix(caught.trim(), 16).is_ok_and(|caught| caught >> (Signal::INT.as_raw() - 1) & 1 == 1)
}

/// Whether a process has a file open.
fn has_open(process: u32, file: &Path) -> bool {
    let (file, open) = (file.canonicalize().unwrap(), fs::read_dir(format!("/proc/{process}/fd")).unwrap());
    open.flatten().any(|open| fs::read_link(open.path()).is_ok_and(|open| open == file))
}

/// Sees that one signal ends a process that waits.
pub(crate) fn is_ended_by_one_signal(child: &mut Child) {
    until_it_waits(child);
    kill_process(Pid::from_child(child), Signal::INT).unwrap();
    assert_eq!(end(child).code(), Some(130));
}

/// Sees that a whole run ends well.
fn succeeds(mut child: Child) {
    assert!(end(&mut child).success());
}

#[test]
fn one_signal_ends_the_wait_for_a_named_pipes_reader() {
    let place = Place::new();
    is_ended_by_one_signal(&mut place.spawn(&place.fifo()));
}

#[test]
fn one_signal_ends_the_wait_for_another_processs_lock() {
    let place = Place::new();
    succeeds(place.spawn(Path::new("before.tar")));
    let file = place.sandbox.path("cache/index.lock");
    let lock = File::options().append(true).open(&file).unwrap();
    lock.lock().unwrap();
    let mut child = place.spawn(Path::new("after.tar"));
    until_it_waits(&mut child);
    assert!(has_open(child.id(), &file), "it waits for something else");
    is_ended_by_one_signal(&mut child);
    assert!(!place.sandbox.path("work/after.tar").exists());
    drop(lock);
    succeeds(place.spawn(Path::new("after.tar")));
}

#[test]
fn who_reads_waits_and_who_is_busy_or_has_no_handler_does_not() {
    let run = |program: &[&str]| Command::new(program[0]).args(&program[1..]).stdin(Stdio::piped()).spawn().unwrap();
    let mut reading = run(&["/bin/sh", "-c", "trap : INT; read line"]);
    until_it_waits(&mut reading);
    let mut busy = run(&["/bin/sh", "-c", "trap : INT; while :; do :; done"]);
    // No shell, which would have one of its own accord.
    let mut without = run(&["cat"]);
    while !catches_interrupts(busy.id()) || times_of_sleepers(without.id()).is_none() {
        thread::sleep(Duration::from_millis(20));
    }
    let is_never_asleep = (0..5).all(|_| {
        thread::sleep(Duration::from_millis(50));
        times_of_sleepers(busy.id()).is_none()
    });
    let catches = catches_interrupts(without.id());
    for child in [&mut reading, &mut busy, &mut without] {
        let _ = (child.kill(), child.wait());
    }
    assert_eq!((is_never_asleep, catches), (true, false));
}

#[test]
fn a_named_pipes_reader_may_come_late_and_read_slowly() {
    let place = Place::new();
    succeeds(place.spawn(Path::new("image.tar")));
    let fifo = place.fifo();
    let mut child = place.spawn(&fifo);
    until_it_waits(&mut child);
    let mut pipe = File::open(&fifo).unwrap();
    // The pipe is full by then.
    until_it_waits(&mut child);
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut pipe, &mut read).unwrap();
    succeeds(child);
    assert!(read == fs::read(place.sandbox.path("work/image.tar")).unwrap());
}
