//! Shared caches that are slow, silent or far away: no image waits for them, and nothing is fetched in vain.

use std::time::{Duration, Instant};

use crate::flox_fixture::{FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_proxy::{Fault, RegistryProxy, Request};
use crate::registry_server::{DockerRegistry, RegistryServer, Setup};
use crate::share::{Project, noise};

#[test]
fn a_cache_that_does_not_answer_costs_a_warning() {
    let project = Project::new();
    // Nobody listens there.
    let said = project.newcomer("away", "127.0.0.1:1/team/cache", &[]);
    let warnings: Vec<_> = said.lines().filter(|line| line.starts_with("! ")).collect();
    let [warning] = warnings.as_slice() else { panic!("{said}") };
    assert!(warning.starts_with("! the shared cache '127.0.0.1:1/team/cache' is done without: "), "{said}");
    let (image, said) = project.machine("giving").image(&project.environment, &["--cache-to", "127.0.0.1:1/cache"]);
    assert!(image == project.expected);
    assert_eq!(said.lines().filter(|line| line.starts_with("! ")).count(), 1, "{said}");
    // One that accepts connections and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("127.0.0.1:{}/cache", listener.local_addr().unwrap().port());
    let said = project.newcomer("silent", &silent, &["--insecure-registry", silent.split('/').next().unwrap()]);
    let warnings: Vec<_> = said.lines().filter(|line| line.starts_with("! ")).collect();
    let [warning] = warnings.as_slice() else { panic!("{said}") };
    assert!(warning.starts_with(&format!("! the shared cache '{silent}' is done without: ")), "{said}");
    let said = project.newcomer("offline", "127.0.0.1:1/team/cache", &["--offline"]);
    assert!(!said.contains("! "), "{said}");
}

/// A project, a registry behind a proxy, and the cache in it.
fn behind_a_proxy(program: &DockerRegistry) -> (Project, RegistryServer, RegistryProxy, String) {
    let project = Project::new();
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let proxy = RegistryProxy::start(&server);
    let share = proxy.reference("team/cache");
    (project, server, proxy, share)
}

#[test]
fn a_cache_that_wants_to_be_left_alone_for_long_is_done_without_before_a_layer_is_made() {
    let (project, _server, proxy, share) = behind_a_proxy(&peer!(docker_registry));
    // What the run says of its work is what comes first.
    proxy.fail_always(Request::PostUpload, Fault::Status(429, "Retry-After: 60"));
    let started = Instant::now();
    let (image, said) = project.machine("polite").image(&project.environment, &["--cache-to", &share]);
    assert!(started.elapsed() < Duration::from_secs(60), "it has waited as long as the registry wants");
    assert!(image == project.expected);
    let warnings: Vec<_> = said.lines().filter(|line| line.starts_with("! ")).collect();
    let expected = format!("! the shared cache '{share}' is done without: its answers take longer than 10 s");
    assert_eq!(warnings, [expected.as_str()], "{said}");
    assert_eq!(proxy.traffic().of(Request::PostUpload).requests, 1);
}

#[test]
fn a_layer_on_a_line_that_has_stalled_does_not_hold_up_the_image_and_is_given_later() {
    let (project, server, proxy, share) = behind_a_proxy(&peer!(docker_registry));
    // One layer is made soon, and given while the other one takes its time.
    let large = project.store.add("large", &Tree::new().file("share/large", noise(32 << 20)));
    let small = project.store.add("small", &Tree::new().program("bin/small", "small"));
    let installs = [("large", large.as_str()), ("small", &small)];
    let environment = FloxEnv::of_store_paths(project.sandbox.path("uneven"), "uneven", &installs, "");
    let (expected, _) = project.machine("alone-and-uneven").image(&environment, &[]);
    // Behind the three of the sheet, which says twice what this run makes.
    proxy.fail_after(3, Request::PutUpload, Fault::Hang);
    let started = Instant::now();
    let (image, said) = project.machine("slow").image(&environment, &["--cache-to", &share]);
    // A registry that says nothing would be given thirty.
    assert!(started.elapsed() < Duration::from_secs(29), "it has waited for a layer: {said}");
    assert!(image == expected);
    assert!(said.contains("given to the shared cache") && said.contains("4 layers, 4 blobs"), "{said}");
    assert!(!said.contains("! "), "{said}");
    let log = proxy.traffic().log;
    let hung: Vec<_> = (0..log.len()).filter(|&at| log[at].ends_with(": hangs")).collect();
    let &[hung] = hung.as_slice() else { panic!("{log:#?}") };
    let uploads = |log: &[String]| {
        log.iter().filter(|line| line.contains("PUT /v2/team/cache/blobs/") && line.ends_with(": 201")).count()
    };
    assert_eq!(uploads(&log[..hung]), 3, "{log:#?}");
    assert!(uploads(&log[hung..]) >= 4, "{log:#?}");
    assert_eq!(server.tags("team/cache").len(), 1);
}

#[test]
fn what_a_registry_mounts_is_not_fetched_and_what_it_does_not_mount_is() {
    let (project, server, proxy, share) = behind_a_proxy(&peer!(docker_registry));
    project.fill(&share);
    proxy.traffic();
    let push = |name: &str, to: &str| {
        let machine = project.machine(name);
        let mut command = machine.command(&project.environment);
        let outcome = command.args(["--cache-from", &share, "--push", &proxy.reference(to)]).assert().success();
        (String::from_utf8(outcome.get_output().stderr.clone()).unwrap(), proxy.traffic())
    };
    let (said, traffic) = push("mounting", "team/new:v1");
    assert!(!said.contains("fetched"), "{said}");
    // The sheet.
    assert_eq!(traffic.of(Request::GetBlob).requests, 1, "{:#?}", traffic.log);
    proxy.fail_always(Request::Mount, Fault::Refused(403, "DENIED"));
    let (said, traffic) = push("sending", "team/other:v1");
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");
    assert!(traffic.of(Request::GetBlob).requests > 1, "{:#?}", traffic.log);
    assert_eq!(server.blobs("team/new"), server.blobs("team/other"));
}
