//! Shared caches that tell at once what they have, and then do not give it: no layer that can be made here is waited
//! for, and none at all that does not come.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rstest::rstest;
use rustix::process::{Pid, Signal, kill_process};

use crate::cache_server::CacheServer;
use crate::crash::noise;
use crate::flox_fixture::{FloxEnv, Tree};
use crate::nix_fixture::NixStore;
use crate::peers::peer;
use crate::registry_proxy::{Fault, RegistryProxy, Request};
use crate::registry_server::{DockerRegistry, RegistryServer, Setup};
use crate::share::Project;
use crate::substitute;

/// The layers of packages in an image of a [`Place`].
const LAYERS: u64 = 4;

/// What is said of a cache of which a layer would take longer than to make it.
const TOO_SLOW: &str = "gives layers too slowly: this run waits for none that it can have otherwise";

/// An environment with layers that do not get smaller, and a cache of them in a registry behind a proxy.
struct Place {
    project: Project,
    environment: FloxEnv,
    expected: Vec<u8>,
    proxy: RegistryProxy,
    share: String,
    server: RegistryServer,
}

impl Place {
    fn new(program: &DockerRegistry) -> Self {
        let project = Project::new();
        let tools: Vec<_> = (0..LAYERS).map(|n| format!("tool-{n}")).collect();
        let paths = tools.iter().map(|name| {
            let bytes = noise(name, 3_000_000);
            project.store.add(name, &Tree::new().program(format!("bin/{name}"), bytes))
        });
        let paths: Vec<_> = paths.collect();
        let installs: Vec<_> = tools.iter().zip(&paths).map(|(name, path)| (name.as_str(), path.as_str())).collect();
        let environment = FloxEnv::of_store_paths(project.sandbox.path("tools"), "tools", &installs, "");
        let server = program.start(&project.sandbox.path("registry"), Setup::default());
        let proxy = RegistryProxy::start(&server);
        let share = proxy.reference("team/cache");
        let (expected, _) = project.machine("first").image(&environment, &["--cache-to", &share]);
        let traffic = proxy.traffic();
        assert!(traffic.sent() > LAYERS * 3_000_000, "{:#?}", traffic.log);
        Self { project, environment, expected, proxy, share, server }
    }

    /// The cache's sheet comes, and its layers meet this fault.
    fn fail(&self, fault: Fault) {
        self.proxy.fail_always_after(1, Request::GetBlob, fault);
    }
}

fn warnings(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.starts_with("! ")).collect()
}

#[rstest]
#[case::not_at_all(Fault::Hang, "is done without: ", "the server sends nothing, or next to nothing, for 2 s")]
#[case::byte_by_byte(
    Fault::Trickle,
    "is done without: ",
    "a layer did not come: the server sends nothing, or next to nothing, for 2 s"
)]
#[case::more_slowly_than_they_are_made(Fault::Slow(100_000), TOO_SLOW, "")]
fn layers_that_come_late_are_made_here_and_that_is_said_once(
    #[case] fault: Fault,
    #[case] what: &str,
    #[case] why: &str,
) {
    let place = Place::new(&peer!(docker_registry));
    place.fail(fault);
    let started = Instant::now();
    let machine = place.project.machine("second");
    let (image, said) = machine.image(&place.environment, &["--cache-from", &place.share]);
    let took = started.elapsed();
    assert!(image == place.expected);
    let said_of_it = warnings(&said);
    let [warning] = said_of_it.as_slice() else { panic!("{said}") };
    let warning = warning.strip_prefix(&format!("! the shared cache '{}' {what}", place.share));
    assert!(warning.is_some_and(|warning| warning.ends_with(why) && warning.is_empty() == why.is_empty()), "{said}");
    // Five seconds; a layer would take half a minute, or as many as a registry is given that an image goes to.
    assert!(took < Duration::from_secs(20), "{took:?}: {said}");
    // It is asked again by the next run.
    place.proxy.mend();
    let (image, said) = machine.image(&place.environment, &["--cache-from", &place.share]);
    assert!(image == place.expected && warnings(&said).is_empty(), "{said}");
    assert!(said.contains(&format!("fetched from a shared cache: {LAYERS} layers")), "{said}");
}

#[test]
fn a_cache_that_gives_layers_too_slowly_is_told_of_the_image_all_the_same() {
    let place = Place::new(&peer!(docker_registry));
    place.fail(Fault::Slow(100_000));
    let args = ["--cache-to", place.share.as_str(), "--tag", "v2"];
    let (_, said) = place.project.machine("second").image(&place.environment, &args);
    assert_eq!(warnings(&said), [format!("! the shared cache '{}' {TOO_SLOW}", place.share)], "{said}");
    assert_eq!(place.server.tags("team/cache").len(), 2, "a sheet of each run");
}

#[test]
fn layers_that_come_as_fast_as_they_are_made_are_taken() {
    let place = Place::new(&peer!(docker_registry));
    place.fail(Fault::Slow(10 << 20));
    let (image, said) = place.project.machine("second").image(&place.environment, &["--cache-from", &place.share]);
    assert!(image == place.expected && warnings(&said).is_empty(), "{said}");
    assert!(said.contains(&format!("fetched from a shared cache: {LAYERS} layers")), "{said}");
}

#[test]
fn the_next_cache_gives_what_the_first_one_does_not() {
    let place = Place::new(&peer!(docker_registry));
    let good = place.project.directory();
    place.project.machine("filling").image(&place.environment, &["--cache-to", &good]);
    place.fail(Fault::Hang);
    let from = ["--cache-from", &place.share, "--cache-from", &good];
    let started = Instant::now();
    let (image, said) = place.project.machine("second").image(&place.environment, &from);
    assert!(image == place.expected, "{said}");
    assert!(said.contains(&format!("fetched from a shared cache: {LAYERS} layers")), "{said}");
    assert_eq!(warnings(&said).len(), 1, "{said}");
    assert!(started.elapsed() < Duration::from_secs(20), "{said}");
}

#[test]
fn one_signal_ends_the_wait_for_a_layer() {
    let place = Place::new(&peer!(docker_registry));
    place.fail(Fault::Slow(100_000));
    let sandbox = &place.project.sandbox;
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(sandbox.environment()).env("LAYERHOLD_CACHE", sandbox.path("machine-second"));
    command.args(["containerize", "--compression", "zstd", "--cache-from", &place.share, "-f", "image.tar", "--store"]);
    command.arg(place.project.store.root()).arg("-d").arg(place.environment.dir()).current_dir(sandbox.path("work"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    while !place.proxy.traffic().log.iter().any(|line| line.contains("/blobs/") && line.ends_with(": 200")) {
        assert!(started.elapsed() < Duration::from_secs(60), "it asks for nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The sheet was first.
    std::thread::sleep(Duration::from_millis(700));
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    let signalled = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let outcome = child.wait_with_output().unwrap();
    assert!(signalled.elapsed() < Duration::from_secs(3), "{:?}", signalled.elapsed());
    assert_eq!(outcome.status.code(), Some(130));
    let said = String::from_utf8(outcome.stderr).unwrap();
    assert!(warnings(&said).is_empty(), "{said}");
}

/// What the environment's image costs where nothing is at hand and a cache's layers meet this fault: whether it is
/// right, how many files came from the binary cache, what was said, and how long it took.
fn far(nix: &'static NixStore, program: &DockerRegistry, fault: Fault) -> (bool, usize, String, Duration) {
    let project = substitute::Project::new(nix, "xz");
    let compression = ["--compression", "zstd"];
    let expected = project.image_of_the_store(&compression);
    let binary = CacheServer::start(&project.cache.directory);
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let proxy = RegistryProxy::start(&server);
    let share = proxy.reference("team/cache");
    let run = |name: &str, how: &str| {
        substitute::on_an_empty_machine(&project, &binary, name, &[&compression[..], &[how, &share]].concat())
    };
    run("first", "--cache-to");
    proxy.fail_always_after(1, Request::GetBlob, fault);
    let started = Instant::now();
    let (asked, said) = run("second", "--cache-from");
    let took = started.elapsed();
    (fs::read(project.file()).unwrap() == expected, substitute::nars(&asked), said, took)
}

#[rstest]
#[case::not_at_all(Fault::Hang)]
#[case::byte_by_byte(Fault::Trickle)]
fn layers_with_something_far_that_do_not_come_are_made_of_what_binary_caches_have(#[case] fault: Fault) {
    let (is_right, nars, said, took) = far(peer!(nix), &peer!(docker_registry), fault);
    assert!(is_right && nars > 0, "{said}");
    assert_eq!(warnings(&said).len(), 1, "{said}");
    assert!(took < Duration::from_secs(40), "{took:?}: {said}");
}

#[test]
fn layers_with_something_far_may_come_slowly() {
    let (is_right, nars, said, took) = far(peer!(nix), &peer!(docker_registry), Fault::Slow(200_000));
    assert!(took > Duration::from_secs(7), "it would have been worth waiting for if it were near: {took:?}");
    assert!(is_right && nars == 0, "{said}");
    assert_eq!(warnings(&said), [""; 0], "{said}");
}
