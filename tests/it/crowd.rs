//! Many processes at once on one layer store.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::sandbox::Sandbox;

const PROCESSES: usize = 8;

/// Environments that share most of their store paths, each with one of its own.
fn overlapping(sandbox: &Sandbox, store: &BareStore) -> Vec<FloxEnv> {
    let tool = |name: &str, size: usize| {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        store.add(name, &Tree::new().program(format!("bin/{name}"), bytes))
    };
    let shared: Vec<_> =
        (0..10).map(|n| (format!("shared{n}"), tool(&format!("shared-{n}"), 40_000 * n + 100))).collect();
    (0..PROCESSES)
        .map(|n| {
            let own = tool(&format!("own-{n}"), 50_000);
            let mut installs: Vec<_> = shared.iter().map(|(id, path)| (id.as_str(), path.as_str())).collect();
            // Each leaves another one out.
            installs.remove(n);
            installs.push(("own", &own));
            FloxEnv::of_store_paths(sandbox.path(format!("project{n}")), &format!("env{n}"), &installs, "")
        })
        .collect()
}

fn spawn(sandbox: &Sandbox, store: &BareStore, environment: &FloxEnv, file: &str, cache: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(sandbox.environment()).env("LAYERHOLD_CACHE", sandbox.path(cache));
    command.current_dir(sandbox.path("work")).args(["containerize", "--json", "--compression", "zstd", "-f", file]);
    command.arg("--store").arg(store.root()).arg("-d").arg(environment.dir());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for a process that must end well, and say nothing that it need not: the object that it prints.
fn finish(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.lines().any(|line| line.starts_with("! ")) && !said.contains("without"), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn eight_builds_beside_a_garbage_collector_all_come_out_right() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let environments = overlapping(&sandbox, &store);
    let image = |n: usize| sandbox.path(format!("work/{n}.tar"));
    let good: Vec<_> = environments
        .iter()
        .enumerate()
        .map(|(n, environment)| {
            finish(spawn(&sandbox, &store, environment, &format!("{n}.tar"), &format!("alone{n}")));
            fs::read(image(n)).unwrap()
        })
        .collect();

    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut collections = 0;
            while !over.load(Ordering::Relaxed) {
                // Everything that is not in use goes, each time.
                sandbox.cmd().args(["cache", "gc", "--max-size", "0"]).assert().success();
                collections += 1;
            }
            collections
        });
        let rounds = scope.spawn(|| {
            for _ in 0..5 {
                let running: Vec<_> = environments
                    .iter()
                    .enumerate()
                    .map(|(n, environment)| spawn(&sandbox, &store, environment, &format!("{n}.tar"), "cache"))
                    .collect();
                for (n, child) in running.into_iter().enumerate() {
                    finish(child);
                    assert!(fs::read(image(n)).unwrap() == good[n], "environment {n}");
                }
                sandbox.cmd().args(["cache", "verify"]).assert().success();
            }
        });
        let rounds = rounds.join();
        over.store(true, Ordering::Relaxed);
        let collections = collector.join().unwrap();
        assert!(rounds.is_ok());
        assert!(collections > 5, "{collections} collections ran beside the builds");
    });
    sandbox.cmd().args(["cache", "gc", "--max-size", "0"]).assert().success();
    for directory in ["tmp", "leases", "claims", "blobs/sha256", "images"] {
        assert_eq!(fs::read_dir(sandbox.path("cache").join(directory)).unwrap().count(), 0, "{directory}");
    }
}

#[test]
fn of_many_builds_at_once_only_one_makes_each_layer() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let environments = overlapping(&sandbox, &store);
    // Two processes for each environment.
    let running: Vec<_> = environments
        .iter()
        .chain(&environments)
        .enumerate()
        .map(|(n, environment)| spawn(&sandbox, &store, environment, &format!("{n}.tar"), "cache"))
        .collect();
    let mut made: Vec<String> = Vec::new();
    for child in running {
        let image = finish(child);
        let layers = image["layers"].as_array().unwrap();
        let own = layers.iter().filter(|layer| layer["reused"] == false);
        made.extend(own.map(|layer| layer["digest"].as_str().unwrap().to_owned()));
    }
    let times = made.len();
    made.sort();
    made.dedup();
    assert_eq!(times, made.len(), "a layer was made twice");
    sandbox.cmd().args(["cache", "verify"]).assert().success();
}

/// Ends it in bounded time, whatever it waits for: its exit code, if it ended by itself.
fn end(mut child: Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn whoever_waits_for_a_process_that_was_stopped_can_be_interrupted() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let environment = &overlapping(&sandbox, &store)[0];
    let cache = sandbox.path("cache");
    finish(spawn(&sandbox, &store, environment, "before.tar", "cache"));
    // As if the layers had never been made, and somebody were at all of them.
    let claims: Vec<_> = fs::read_dir(cache.join("records"))
        .unwrap()
        .flat_map(|directory| fs::read_dir(directory.unwrap().path()).unwrap())
        .map(|record| {
            let claim = fs::File::create(cache.join("claims").join(record.unwrap().file_name())).unwrap();
            claim.try_lock().unwrap();
            claim
        })
        .collect();
    assert!(claims.len() > 2);
    fs::remove_dir_all(cache.join("index")).unwrap();
    for known in ["records", "images"] {
        fs::remove_dir_all(cache.join(known)).unwrap();
        fs::create_dir(cache.join(known)).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(sandbox.environment()).env("LAYERHOLD_CACHE", &cache).current_dir(sandbox.path("work"));
    command.args(["-v", "containerize", "--compression", "zstd", "-f", "after.tar", "--store"]).arg(store.root());
    let mut child = command.arg("-d").arg(environment.dir()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let is_waiting = said.any(|line| line.contains("waiting for layers that others are making"));
    // What it says from here on goes nowhere, and is not waited for.
    let rest = thread::spawn(move || said.count());
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    assert!(is_waiting);
    assert_eq!(end(child), Some(130));
    rest.join().unwrap();
    drop(claims);
    finish(spawn(&sandbox, &store, environment, "after.tar", "cache"));
    assert_eq!(fs::read(sandbox.path("work/before.tar")).unwrap(), fs::read(sandbox.path("work/after.tar")).unwrap());
}
