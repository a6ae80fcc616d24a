//! `--services`, `--no-services` and `services.auto-start` from the outside, and in containers of real runtimes, where
//! process-compose is a stand-in.

use std::time::{Duration, Instant};

use crate::archive::EntryKind;
use crate::containerize::{archive, containerize};
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::{LoadedImage, Peer, peer, skip_this, unique_name};
use crate::sandbox::Sandbox;
use crate::stand_in;

const WEB: &str = "[services.web]\ncommand = \"\"\"
trap 'echo bye; exit 0' TERM
echo web on $PORT
echo up >/tmp/up
while :; do sleep 0.1; done\"\"\"\n";

/// A store, and an environment in it of bash and tools, with or without process-compose.
fn environment(sandbox: &Sandbox, name: &str, with_process_compose: bool, rest: &str) -> Option<(BareStore, FloxEnv)> {
    let store = BareStore::new(sandbox.path("store"));
    let (Some(bash), Some(tools)) = (store.add_bash(), store.add_tools()) else {
        skip_this("bash-static and busybox-static");
        return None;
    };
    let manager = Tree::new().program("bin/process-compose", stand_in::process_compose());
    let manager = store.add("process-compose-1", &manager);
    let mut installs = vec![("bash", bash.as_str()), ("tools", tools.as_str())];
    if with_process_compose {
        installs.push(("process-compose", manager.as_str()));
    }
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), name, &installs, "");
    let manifest = std::fs::read_to_string(environment.dot_flox("env/manifest.toml")).unwrap();
    let manifest = manifest.replace("version = 1", "schema-version = \"1.12.0\"");
    environment.write("env/manifest.toml", &format!("{manifest}{rest}"));
    Some((store, environment))
}

fn failure(sandbox: &Sandbox, store: &BareStore, environment: &FloxEnv, args: &[&str]) -> String {
    let file = sandbox.path("image.tar");
    let outcome = containerize(sandbox, store.root(), environment).arg("-f").arg(&file).args(args).assert().failure();
    assert!(!file.exists());
    String::from_utf8(outcome.get_output().stderr.clone()).unwrap()
}

#[test]
fn what_cannot_serve_says_what_mends_it() {
    let sandbox = Sandbox::new();
    let rest = format!("[services]\nauto-start = true\n{WEB}");
    let Some((store, plain)) = environment(&sandbox, "web", false, &rest) else { return };
    let missing = "✘ ERROR: the environment has no process-compose, which its services need (web)\n  \
                   hint: add it: flox install process-compose; or make the image without services: --no-services\n";
    assert_eq!(failure(&sandbox, &store, &plain, &[]), missing);
    assert_eq!(failure(&sandbox, &store, &plain, &["--services"]), missing);
    let other = Sandbox::new();
    let Some((store, none)) = environment(&other, "web", true, "") else { return };
    let system = crate::flox_fixture::this_system();
    assert_eq!(
        failure(&other, &store, &none, &["--services"]),
        format!(
            "✘ ERROR: the manifest has no services for {system} to start\n  \
             hint: define one: flox edit; or leave --services out\n"
        )
    );
    let both = sandbox.cmd().args(["containerize", "--services", "--no-services"]).assert().failure().code(2);
    assert!(String::from_utf8_lossy(&both.get_output().stderr).contains("cannot be used with"));
}

#[test]
fn an_image_that_starts_nothing_is_the_same_with_services_and_without() {
    let sandbox = Sandbox::new();
    let rest = format!("[services]\nauto-start = true\n{WEB}");
    let Some((store, serving)) = environment(&sandbox, "web", false, &rest) else { return };
    let declined = archive(&sandbox, store.root(), &serving, &["--no-services"]).config.clone();
    let other = Sandbox::new();
    let Some((store, plain)) = environment(&other, "web", false, WEB) else { return };
    assert_eq!(archive(&other, store.root(), &plain, &[]).config, declined);
}

#[test]
fn the_configuration_lies_in_the_environment() {
    let sandbox = Sandbox::new();
    let Some((store, serving)) = environment(&sandbox, "web", true, &format!("{WEB}vars.A = \"b\"\n")) else { return };
    let root = archive(&sandbox, store.root(), &serving, &["--services"]).root();
    let named = |path: &[u8]| path.ends_with(b"-environment-web/service-config.yaml");
    let (_, entry) = root.iter().find(|(path, _)| named(path)).unwrap();
    let EntryKind::File(config) = &entry.kind else { panic!("{entry:?}") };
    let config: serde_json::Value = serde_json::from_slice(config).unwrap();
    assert_eq!(config["processes"]["web"]["environment"], serde_json::json!(["A=b"]));
}

/// Loads the image of an environment with services.
fn load(runtime: Peer, rest: &str) -> Option<LoadedImage> {
    let sandbox = Sandbox::new();
    let name = unique_name("services");
    let (store, environment) = environment(&sandbox, &name, true, rest)?;
    let file = sandbox.path("image.tar");
    containerize(&sandbox, store.root(), &environment).arg("--services").arg("-f").arg(&file).assert().success();
    let image = LoadedImage::new(runtime, format!("{name}:latest"));
    runtime.run(["load", "-i", file.to_str().unwrap()]);
    Some(image)
}

fn wait_for_log(runtime: Peer, container: &str, wanted: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    while !runtime.run(["logs", container]).contains(wanted) {
        assert!(Instant::now() < end, "no '{wanted}'");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn serves(runtime: Peer) {
    let rest = format!("[vars]\nPORT = \"80\"\n{WEB}");
    let Some(image) = load(runtime, &rest) else { return };
    // Alone.
    let container = unique_name("alone");
    runtime.run(["run", "--detach", "--network", "none", "--name", &container, &image.reference]);
    wait_for_log(runtime, &container, "web on 80");
    let manager = runtime.run(["exec", &container, "process-compose", "process", "list", "-u", "/tmp/services.sock"]);
    assert_eq!(manager, "web\n");
    runtime.run(["stop", "--time", "30", &container]);
    let (said, status) =
        (runtime.run(["logs", &container]), runtime.run(["inspect", "--format", "{{.State.ExitCode}}", &container]));
    runtime.run(["rm", "--force", &container]);
    assert!(said.contains("bye"), "{said}");
    assert_eq!(status.trim(), "0");
    // Beside a command, whose status is the container's.
    let script = "while [ ! -e /tmp/up ]; do sleep 0.05; done; echo $PORT; exit 42";
    let args = ["run", "--rm", "--network", "none", &image.reference, "sh", "-c", script];
    let output = runtime.command(args).output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(42), "80\n"));
}

#[test]
fn services_run_in_docker() {
    serves(peer!(docker));
}

#[test]
fn services_run_in_podman() {
    serves(peer!(podman));
}
