//! How much memory a push takes.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use rstest::rstest;

use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_server::Setup;
use crate::sandbox::Sandbox;

/// What any run on two cores may take: 64 MiB, of which a release build has 13 of its own file in memory.
const MOST: u64 = (64 - 13) << 20;

/// The levels of zstd have tables of very different sizes, which each thread that compresses needs.
#[rstest]
#[case::zstd(None, 8, 18 << 20)]
#[case::zstd_12(Some("zstd:12"), 6, 18 << 20)]
#[case::zstd_19(Some("zstd:19"), 5, 9 << 20)]
fn layers_that_are_made_and_sent_are_never_in_memory(
    #[case] compression: Option<&str>,
    #[case] layers: usize,
    #[case] size: usize,
) {
    let program = peer!(docker_registry);
    let sandbox = Sandbox::new();
    let server = program.start(&sandbox.path("registry"), Setup::default());
    let store = BareStore::new(sandbox.path("root"));
    // Larger than a chunk each, whatever compresses them, and more than there are threads; as many as are sent at once.
    let installs: Vec<_> = (0..layers).map(|n| (format!("large{n}"), large(&store, n, size))).collect();
    let installs: Vec<_> = installs.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect();
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "web", &installs, "");

    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(sandbox.environment()).env("RAYON_NUM_THREADS", "2");
    command.env("DOCKER_CONFIG", sandbox.path("home")).current_dir(sandbox.path("work"));
    command.arg("containerize").arg("--store").arg(store.root()).arg("-d").arg(environment.dir());
    command.args(["--push", &server.reference("team/web:v1")]);
    command.args(compression.iter().flat_map(|codec| ["--compression", codec]));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = command.spawn().unwrap();
    let mut peak = 0;
    let status = loop {
        peak = peak.max(own_memory(running.id()).unwrap_or(0));
        if let Some(status) = running.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success());
    assert_eq!(server.tags("team/web"), ["v1"]);
    assert!((1 << 20..MOST).contains(&peak), "{} MiB", peak >> 20);
}

fn large(store: &BareStore, n: usize, size: usize) -> String {
    let (name, mut bytes) = (format!("large-{n}"), vec![0; size]);
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    store.add(&name, &Tree::new().program(format!("bin/{name}"), bytes))
}

/// What of a process's memory is in no file (proc(5)): a test's build of the program is larger than others.
fn own_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}
