//! Many machines at once on one shared cache, of every kind that there is.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rstest::rstest;
use serde_json::Value;

use crate::bucket_server::{BucketServer, Readers};
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_server::{RegistryServer, Setup};
use crate::sandbox::Sandbox;
use crate::share::{Machine, Project, age, files};
use crate::tidying::age_in;

const MACHINES: usize = 10;

/// Where a shared cache lies; it is there as long as the test.
enum Place {
    Directory(PathBuf),
    Registry(RegistryServer),
    Bucket(BucketServer),
    /// A bucket of Google's, and the program that makes keys for it.
    Google(BucketServer, PathBuf),
}

/// A place of that kind, a bucket with what lies in the sandbox below `bucket`, a registry that deletes or does not;
/// ends the test where it has no server.
macro_rules! place {
    ($kind:expr, $sandbox:expr, $deletes:expr) => {
        match $kind {
            "file" => Place::Directory($sandbox.path("share")),
            "registry" => {
                let setup = Setup { deletes: $deletes, ..Setup::default() };
                Place::Registry(peer!(docker_registry).start(&$sandbox.path("registry"), setup))
            }
            kind => {
                let (moto, is_googles) = (peer!(moto), kind == "google");
                fs::create_dir_all($sandbox.path("bucket")).unwrap();
                let server = moto.start(&$sandbox.path("bucket"), Readers::of(is_googles));
                if is_googles { Place::Google(server, peer!(openssl)) } else { Place::Bucket(server) }
            }
        }
    };
}

impl Place {
    /// The address of the cache, for the user of the sandbox.
    fn share(&self, sandbox: &Sandbox) -> String {
        match self {
            Self::Directory(directory) => format!("file://{}", directory.display()),
            Self::Registry(server) => server.reference("team/cache"),
            Self::Bucket(server) => server.share(sandbox, "team/cache"),
            Self::Google(server, openssl) => server.google_share(sandbox, openssl, "team/cache"),
        }
    }

    /// How many sheets there are.
    fn sheets(&self) -> usize {
        match self {
            Self::Directory(directory) => files(&directory.join("sheets")).len(),
            Self::Registry(server) => server.tags("team/cache").len(),
            Self::Bucket(server) | Self::Google(server, _) => {
                server.names().iter().filter(|name| name.starts_with("team/cache/sheets/")).count()
            }
        }
    }
}

/// Environments that share most of their store paths, each with one of its own.
fn overlapping(sandbox: &Sandbox, store: &BareStore) -> Vec<FloxEnv> {
    let tool = |name: &str, size: usize| {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        store.add(name, &Tree::new().program(format!("bin/{name}"), bytes))
    };
    let shared: Vec<_> = (0..16).map(|n| (format!("shared{n}"), tool(&format!("shared-{n}"), 2_000_000))).collect();
    let environment = |n: usize| {
        let own = tool(&format!("own-{n}"), 50_000);
        let mut installs: Vec<_> = shared.iter().map(|(id, path)| (id.as_str(), path.as_str())).collect();
        // Each leaves another one out.
        installs.remove(n);
        installs.push(("own", &own));
        FloxEnv::of_store_paths(sandbox.path(format!("project{n}")), &format!("env{n}"), &installs, "")
    };
    (0..MACHINES).map(environment).collect()
}

/// Environments of one small package each.
fn small(project: &Project, count: u8) -> Vec<FloxEnv> {
    let environment = |n: u8| {
        let own = format!("own-{n}");
        let path = project.store.add(&own, &Tree::new().program(format!("bin/{own}"), vec![n; 9000]));
        FloxEnv::of_store_paths(project.sandbox.path(format!("project-{n}")), &own, &[("own", path.as_str())], "")
    };
    (0..count).map(environment).collect()
}

/// Waits for a machine that must end well, and use its cache: the object that it prints.
fn finish(machine: Child) -> Value {
    let output = machine.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("without"), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[rstest]
#[case::directory("file")]
#[case::registry("registry")]
#[case::bucket("bucket")]
#[case::bucket_of_googles("google")]
fn ten_machines_at_once_make_each_layer_about_once(#[case] kind: &str) {
    let sandbox = Sandbox::new();
    let place = place!(kind, sandbox, false);
    let share = place.share(&sandbox);
    let store = BareStore::new(sandbox.path("root"));
    let environments = overlapping(&sandbox, &store);
    let lone = Machine::new(&sandbox, store.root(), "lone");
    let expected: Vec<_> = environments.iter().map(|environment| lone.image(environment, &[]).0).collect();
    let image = |n: usize| sandbox.path(format!("work/{n}.tar"));
    let machines: Vec<_> = environments
        .iter()
        .enumerate()
        .map(|(n, environment)| {
            let machine = Machine::new(&sandbox, store.root(), &n.to_string());
            machine.spawn(environment, &image(n), &share)
        })
        .collect();
    let (mut made, mut distinct) = (0, BTreeSet::new());
    for (n, machine) in machines.into_iter().enumerate() {
        let object = finish(machine);
        for layer in object["layers"].as_array().unwrap() {
            made += usize::from(layer["reused"] == false);
            distinct.insert(layer["digest"].as_str().unwrap().to_owned());
        }
        assert!(fs::read(image(n)).unwrap() == expected[n], "image {n} of {kind} is another one");
    }
    let distinct = distinct.len();
    eprintln!("{MACHINES} machines, {kind}: {made} layers compressed in all, {distinct} different ones");
    assert!(made * 10 <= distinct * 13, "{made} layers were made for {distinct}");
}

#[rstest]
#[case::directory("file")]
#[case::registry("registry")]
#[case::bucket("bucket")]
#[case::bucket_of_googles("google")]
fn many_runs_leave_few_sheets_that_lose_nothing(#[case] kind: &str) {
    let project = Project::new();
    let place = place!(kind, project.sandbox, true);
    let share = place.share(&project.sandbox);
    let environments = small(&project, 12);
    for (n, environment) in environments.iter().enumerate() {
        project.machine(&format!("m{n}")).image(environment, &["--cache-to", &share]);
    }
    let sheets = place.sheets();
    assert!((1..=9).contains(&sheets), "{sheets} sheets");
    for environment in &environments {
        let (_, said) = project.machine("late").image(environment, &["--cache-from", &share]);
        assert!(said.contains(" 0 new"), "{said}");
    }
}

#[test]
fn what_a_removal_that_was_cut_short_has_left_goes_with_the_next() {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup { deletes: true, ..Setup::default() });
    let share = server.reference("team/cache");
    let environments = small(&project, 17);
    let make = |n: usize| project.machine(&format!("m{n}")).image(&environments[n], &["--cache-to", &share]);
    (0..8).for_each(|n| drop(make(n)));
    let remnant = server.tags("team/cache").remove(0);
    make(8);
    assert_eq!(server.tags("team/cache").len(), 1, "nine were merged");
    server.lead_nowhere("team/cache", &remnant);
    let collect = || project.sandbox.cmd().args(["cache", "gc", "--remote", &share]).assert().success();
    // Another sheet has what it said.
    collect();
    (9..17).for_each(|n| drop(make(n)));
    let tags = server.tags("team/cache");
    assert!(tags.len() == 1 && !tags.contains(&remnant), "{tags:?}");
    collect();
}

#[test]
fn where_nothing_is_removed_what_was_merged_once_is_not_merged_again() {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup { deletes: false, ..Setup::default() });
    let share = server.reference("team/cache");
    for (n, environment) in small(&project, 20).iter().enumerate() {
        project.machine(&format!("m{n}")).image(environment, &["--cache-to", &share]);
    }
    assert_eq!(server.tags("team/cache").len(), 20 + 2, "after nine, and after eight more");
}

#[rstest]
#[case::directory("file")]
#[case::registry("registry")]
#[case::bucket("bucket")]
#[case::bucket_of_googles("google")]
fn writers_that_merge_at_once_beside_a_collector_lose_nothing(#[case] kind: &str) {
    let project = Project::new();
    let mut environments = small(&project, 17);
    // An image that nobody has made for two months, so that a collection has something to take.
    let abandoned = environments.remove(16);
    let make_abandoned = |share: &str| project.machine("abandoned").image(&abandoned, &["--cache-to", share]);
    const LONG: u64 = 60 * 24 * 3600;
    let directory = match kind {
        "file" => Some("share"),
        "bucket" | "google" => Some("bucket/team/cache"),
        _ => None,
    };
    if let Some(directory) = directory.map(|directory| project.sandbox.path(directory)) {
        make_abandoned(&format!("file://{}", directory.display()));
        age(&directory, LONG);
    }
    let place = place!(kind, project.sandbox, true);
    let share = place.share(&project.sandbox);
    if let Place::Registry(server) = &place {
        make_abandoned(&share);
        age_in(server, "team/cache", LONG);
    }
    let collect = || project.sandbox.cmd().args(["cache", "gc", "--remote", &share]).output().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let (mut collections, mut gone) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                let output = collect();
                let said = String::from_utf8_lossy(&output.stderr);
                // Whoever cannot read what changes meanwhile leaves all as it is.
                assert!(
                    output.status.success() || said.contains("its sheets change faster than they are read"),
                    "{said}"
                );
                collections += u32::from(output.status.success());
                gone += u32::from(output.status.success() && !says_that_nothing_went(&said));
            }
            (collections, gone)
        });
        let writers = scope.spawn(|| {
            // There are more than eight sheets after the second round: who comes then merges them.
            for (round, together) in environments.chunks(4).enumerate() {
                let running: Vec<_> = (0..)
                    .zip(together)
                    .map(|(n, environment)| {
                        let file = project.sandbox.path(format!("work/{round}-{n}.tar"));
                        project.machine(&format!("m{round}-{n}")).spawn(environment, &file, &share)
                    })
                    .collect();
                running.into_iter().for_each(|machine| drop(finish(machine)));
            }
        });
        let writers = writers.join();
        over.store(true, Ordering::Relaxed);
        let (collections, gone) = collector.join().unwrap();
        assert!(writers.is_ok());
        eprintln!("{kind}: {collections} collections came to their ends beside the writers, {gone} took something");
        assert!(collections > 0);
    });
    // One that found no rest behind its new sheet has said again what it had taken; and so may those have who merged
    // meanwhile.
    let output = collect();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for environment in &environments {
        let (_, said) = project.machine("late").image(environment, &["--cache-from", &share]);
        assert!(said.contains(" 0 new") && !said.contains("! "), "{said}");
    }
    let (_, said) = project.machine("latest").image(&abandoned, &["--cache-from", &share]);
    assert!(!said.contains(" 0 new") && !said.contains("! "), "{said}");
    let output = collect();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && says_that_nothing_went(&said), "{said}");
    let sheets = place.sheets();
    assert!((1..=12).contains(&sheets), "{sheets} sheets of 17 runs: they were not merged");
}

/// Whether a collection took no layer.
fn says_that_nothing_went(said: &str) -> bool {
    said.lines().any(|line| line.starts_with("0 layers gone"))
}
