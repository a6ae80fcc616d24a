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

/// How a process ends that shall end soon.
fn end(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        match child.try_wait().unwrap() {
            Some(status) => return status,
            None if begun.elapsed() > Duration::from_secs(20) => {
                child.kill().unwrap();
                return child.wait().unwrap();
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Sees that a process waits, and that one signal ends it.
fn is_ended_by_one_signal(mut child: Child) {
    thread::sleep(Duration::from_millis(1500));
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(end(&mut child).code(), Some(130));
}

#[test]
fn one_signal_ends_the_wait_for_a_named_pipes_reader() {
    let place = Place::new();
    is_ended_by_one_signal(place.spawn(&place.fifo()));
}

#[test]
fn one_signal_ends_the_wait_for_another_processs_lock() {
    let place = Place::new();
    assert!(end(&mut place.spawn(Path::new("before.tar"))).success());
    let lock = File::options().append(true).open(place.sandbox.path("cache/index.lock")).unwrap();
    lock.lock().unwrap();
    is_ended_by_one_signal(place.spawn(Path::new("after.tar")));
    assert!(!place.sandbox.path("work/after.tar").exists());
    drop(lock);
    assert!(end(&mut place.spawn(Path::new("after.tar"))).success());
}

#[test]
fn a_named_pipes_reader_may_come_late_and_read_slowly() {
    let place = Place::new();
    assert!(end(&mut place.spawn(Path::new("image.tar"))).success());
    let fifo = place.fifo();
    let mut child = place.spawn(&fifo);
    thread::sleep(Duration::from_millis(500));
    let mut pipe = File::open(&fifo).unwrap();
    // The pipe is full meanwhile.
    thread::sleep(Duration::from_millis(500));
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut pipe, &mut read).unwrap();
    assert!(end(&mut child).success());
    assert!(read == fs::read(place.sandbox.path("work/image.tar")).unwrap());
}
