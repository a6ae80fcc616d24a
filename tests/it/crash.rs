//! `kill -9`, at every named point and at random moments: the next run gives the identical image, the store is whole,
//! and what was left behind goes with the next garbage collection.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use layerhold::crash::POINTS;
use rstest::rstest;
use serde_json::Value;

use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::sandbox::Sandbox;

const SIGKILL: i32 = 9;

/// A store with two versions of an environment that share most layers, and the images that they should give.
struct Place {
    sandbox: Sandbox,
    store: BareStore,
    environments: [FloxEnv; 2],
    /// The archive of each environment, made with a cache of its own.
    whole: [Vec<u8>; 2],
}

impl Place {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let store = BareStore::new(sandbox.path("root"));
        let tool =
            |name: &str, size: usize| store.add(name, &Tree::new().program(format!("bin/{name}"), noise(name, size)));
        let shared = [tool("a-1", 90_000), tool("b-1", 40_000), tool("c-1", 500)];
        let environments = ["tool-1.0", "tool-2.0"].map(|version| {
            let tool = tool(version, 60_000);
            let installs = [("a", shared[0].as_str()), ("b", &shared[1]), ("c", &shared[2]), ("tool", &tool)];
            FloxEnv::of_store_paths(sandbox.path(version), "crash", &installs, "")
        });
        let mut place = Self { sandbox, store, environments, whole: [Vec::new(), Vec::new()] };
        for version in 0..2 {
            let cache = place.sandbox.path(format!("good-cache-{version}"));
            place.run(&cache, &place.build(version));
            place.whole[version] = fs::read(place.image()).unwrap();
        }
        fs::remove_file(place.image()).unwrap();
        place
    }

    fn image(&self) -> PathBuf {
        self.sandbox.path("work/image.tar")
    }

    /// Arguments that write the image of one version to a file.
    fn build(&self, version: usize) -> Vec<String> {
        self.build_into(version, "image.tar")
    }

    /// Compressed, so that the store keeps the bytes.
    fn build_into(&self, version: usize, file: &str) -> Vec<String> {
        let (store, dir) = (self.store.root().display(), self.environments[version].dir().display());
        let args = format!("containerize --store {store} -d {dir} --compression zstd:1 -f {file}");
        args.split(' ').map(str::to_owned).collect()
    }

    fn command(&self, cache: &Path, args: &[String]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.env_clear().envs(self.sandbox.environment()).env("LAYERHOLD_CACHE", cache);
        command.current_dir(self.sandbox.path("work")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to a good end.
    fn run(&self, cache: &Path, args: &[String]) -> String {
        let output = self.command(cache, args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "layerhold {}: {said}", args.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs until the point is passed for the `count`th time; `None` where the run ends before.
    fn crash(&self, cache: &Path, args: &[String], point: &str, count: u32) -> Option<()> {
        let armed = format!("{point}:{count}");
        let output = self.command(cache, args).env("LAYERHOLD_CRASH_AT", &armed).output().unwrap();
        if output.status.signal() == Some(SIGKILL) {
            return Some(());
        }
        assert!(output.status.success(), "{armed}: {}", String::from_utf8_lossy(&output.stderr));
        None
    }

    /// What must hold of a store after a crash, whatever crashed.
    fn assert_survived(&self, cache: &Path, what: &str) {
        let image = self.image();
        if let Ok(left) = fs::read(&image) {
            assert!(self.whole.contains(&left), "{what}: a file that was there is cut");
        }
        self.run(cache, &words("cache verify"));
        for version in 0..2 {
            self.run(cache, &self.build(version));
            assert!(fs::read(&image).unwrap() == self.whole[version], "{what}: another image of version {version}");
        }
        fs::remove_file(&image).unwrap();
        self.run(cache, &words("cache verify"));
        self.assert_tidied(cache, what);
    }

    /// The next garbage collection takes what was left behind, all of it and nothing else.
    fn assert_tidied(&self, cache: &Path, what: &str) {
        let plan: Value = serde_json::from_str(&self.run(cache, &words("cache gc --json"))).unwrap();
        assert_eq!(plan["images"], serde_json::json!([]), "{what}");
        for directory in ["tmp", "leases", "claims"] {
            let left: Vec<_> =
                fs::read_dir(cache.join(directory)).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "{what}: {left:?}");
        }
        let layers: Value = serde_json::from_str(&self.run(cache, &words("cache ls --layers --json"))).unwrap();
        let layers = layers.as_array().unwrap();
        assert!(layers.iter().all(|layer| layer["images"] != serde_json::json!([])), "{what}: {layers:#?}");
        let blobs = fs::read_dir(cache.join("blobs/sha256")).unwrap().count();
        assert_eq!(blobs, layers.iter().filter(|layer| layer["kept"] == true).count(), "{what}");
        let records = fs::read_dir(cache.join("records")).unwrap();
        let records: usize = records.map(|part| fs::read_dir(part.unwrap().path()).unwrap().count()).sum();
        assert_eq!(records, layers.len(), "{what}");
        let plan: Value = serde_json::from_str(&self.run(cache, &words("cache gc --json"))).unwrap();
        assert_eq!(plan["bytes_freed"], 0, "{what}: a second collection finds nothing");
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Bytes that do not compress, the same for the same name.
pub(crate) fn noise(name: &str, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy_tree(&path, &target) } else { fs::copy(&path, &target).map(drop).unwrap() }
    }
}

/// A job that is killed: what the cache holds before, the arguments, the points that the job passes.
struct Scenario {
    prepare: fn(&Place, &Path),
    args: fn(&Place) -> Vec<String>,
    points: &'static [&'static str],
}

fn both_versions(place: &Place, cache: &Path) {
    place.run(cache, &place.build(0));
    place.run(cache, &place.build(1));
    fs::remove_file(place.image()).unwrap();
}

const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "first build, the store",
        Scenario {
            prepare: |_, _| {},
            args: |place| place.build(0),
            points: &["store.directory-made", "file.written", "file.in-place", "lease.made", "lease.taken"],
        },
    ),
    (
        "first build, the index",
        Scenario {
            prepare: |_, _| {},
            args: |place| place.build(0),
            points: &["index.opened", "index.filled", "index.changed", "index.flushed"],
        },
    ),
    (
        "first build, blobs",
        Scenario {
            prepare: |_, _| {},
            args: |place| place.build(0),
            points: &["claim.taken", "blob.begun", "blob.written", "blob.synced", "blob.in-place", "blob.committed"],
        },
    ),
    (
        "first build, the rest",
        Scenario {
            prepare: |_, _| {},
            args: |place| place.build(0),
            points: &[
                "layer.recorded",
                "layers.packed",
                "image.recorded",
                "output.layer",
                "output.written",
                "output.in-place",
            ],
        },
    ),
    (
        "a build that replaces a file and adds to a store",
        Scenario {
            prepare: |place, cache| drop(place.run(cache, &place.build(0))),
            args: |place| place.build(1),
            points: &["file.written", "file.in-place", "layer.recorded", "output.written", "output.in-place"],
        },
    ),
    (
        "a build that copies another file",
        Scenario {
            prepare: |place, cache| drop(place.run(cache, &place.build_into(0, "other.tar"))),
            args: |place| place.build(0),
            points: &["output.piece", "output.written", "output.in-place"],
        },
    ),
    (
        "a build that finds its index damaged",
        Scenario {
            prepare: |place, cache| {
                both_versions(place, cache);
                fs::write(cache.join("index/conf"), "garbage").unwrap();
                fs::write(cache.join("index/db"), "garbage").unwrap();
                // A build that adds nothing would need no more of the index than this.
                fs::remove_file(cache.join("index/bytes")).unwrap();
            },
            args: |place| place.build(0),
            points: &["index.moved-aside", "index.filled", "index.opened"],
        },
    ),
    (
        "a collection of everything",
        Scenario {
            prepare: |place, cache| {
                both_versions(place, cache);
                fs::write(cache.join("tmp/left-over"), "x").unwrap();
                fs::write(cache.join("blobs/sha256/left-over"), "x").unwrap();
            },
            args: |_| words("cache gc --max-size 0"),
            points: &[
                "gc.planned",
                "gc.image-gone",
                "gc.unindexed",
                "gc.record-gone",
                "gc.blob-gone",
                "gc.file-gone",
                "gc.buried",
            ],
        },
    ),
    (
        "a collection of less than half",
        Scenario {
            prepare: |place, cache| {
                both_versions(place, cache);
                let images: Value = serde_json::from_str(&place.run(cache, &words("cache ls --json"))).unwrap();
                assert_eq!(images.as_array().unwrap().len(), 2);
                let record = fs::read_dir(cache.join("images")).unwrap().next().unwrap().unwrap().path();
                fs::remove_file(record).unwrap();
            },
            args: |_| words("cache gc"),
            points: &["index.changed", "index.flushed", "gc.unindexed", "gc.record-gone", "gc.buried"],
        },
    ),
    (
        "clearing",
        Scenario {
            prepare: both_versions,
            args: |_| words("cache clear"),
            points: &["clear.begun", "clear.entry-gone"],
        },
    ),
    (
        "pinning",
        Scenario {
            prepare: both_versions,
            args: |_| words("cache pin crash"),
            points: &["file.written", "file.in-place"],
        },
    ),
];

#[rstest]
fn a_kill_at_any_point_loses_nothing(#[values(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)] scenario: usize) {
    let (name, scenario) = &SCENARIOS[scenario];
    let place = Place::new();
    let prepared = place.sandbox.path("prepared");
    (scenario.prepare)(&place, &prepared);
    let args = (scenario.args)(&place);
    for point in scenario.points {
        for count in 1.. {
            let cache = place.sandbox.path("crashed");
            let _ = fs::remove_dir_all(&cache);
            if prepared.exists() {
                copy_tree(&prepared, &cache);
            }
            let what = format!("{name}, killed at {point}:{count}");
            if place.crash(&cache, &args, point, count).is_none() {
                assert!(count > 1, "{name}: {point} is never passed");
                break;
            }
            place.assert_survived(&cache, &what);
        }
    }
}

#[test]
fn a_kill_while_damage_is_repaired_loses_nothing() {
    let place = Place::new();
    let prepared = place.sandbox.path("prepared");
    both_versions(&place, &prepared);
    let blob = fs::read_dir(prepared.join("blobs/sha256")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&blob).unwrap();
    bytes[0] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let repair = words("cache verify --repair");
    for point in ["discard.unindexed", "discard.record-gone", "discard.blob-gone"] {
        let cache = place.sandbox.path(point);
        copy_tree(&prepared, &cache);
        place.crash(&cache, &repair, point, 1).unwrap();
        // Not all may be thrown away yet, so that damage is still found; a second repair finishes it.
        place.run(&cache, &repair);
        place.assert_survived(&cache, point);
    }
}

#[test]
fn every_point_has_its_crash() {
    let mut killed: Vec<_> = SCENARIOS.iter().flat_map(|(_, scenario)| scenario.points).copied().collect();
    killed.extend(["discard.unindexed", "discard.record-gone", "discard.blob-gone"]);
    killed.sort_unstable();
    killed.dedup();
    let mut all = POINTS.to_vec();
    all.sort_unstable();
    assert_eq!(killed, all);
}

/// Numbers that look random and are the same in every run.
struct Numbers(blake3::OutputReader);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    fn below(&mut self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }
}

fn kill_after(command: &mut Command, delay: Duration) -> ExitStatus {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(delay);
    // The child may be done: then the kill fails, and its own end tells.
    let _ = child.kill();
    child.wait().unwrap()
}

/// Each of two stores lives through 150 kills.
#[rstest]
fn a_store_survives_kills_at_random_moments(#[values(1, 2)] seed: u64) {
    let place = Place::new();
    let cache = place.sandbox.path("long-lived");
    let jobs = [place.build(0), place.build(1), words("cache gc --max-size 0"), words("cache gc --max-size 150000")];
    let begun = Instant::now();
    place.run(&cache, &jobs[0]);
    let mut longest = begun.elapsed();
    let mut numbers = Numbers::new(seed);
    let (mut kills, mut runs) = (0, 0);
    while kills < 150 {
        runs += 1;
        let job = &jobs[numbers.below(jobs.len() as u64) as usize];
        let delay = Duration::from_micros(numbers.below(longest.as_micros() as u64));
        let status = kill_after(&mut place.command(&cache, job), delay);
        let what = format!("seed {seed}, run {runs}: `{}` killed after {delay:?}", job.join(" "));
        if status.signal() != Some(SIGKILL) {
            assert!(status.success(), "{what}: {status}");
            continue;
        }
        kills += 1;
        if let Ok(left) = fs::read(place.image()) {
            assert!(place.whole.contains(&left), "{what}: a file that was there is cut");
        }
        place.run(&cache, &words("cache verify"));
        let version = numbers.below(2) as usize;
        let begun = Instant::now();
        place.run(&cache, &place.build(version));
        longest = begun.elapsed().max(longest / 2);
        assert!(fs::read(place.image()).unwrap() == place.whole[version], "{what}");
    }
    for version in 0..2 {
        place.run(&cache, &place.build(version));
    }
    place.assert_tidied(&cache, "at the end");
}
