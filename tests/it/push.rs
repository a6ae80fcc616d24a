//! `layerhold push`, and what dry runs say of registries: what is promised is what then happens.

use std::fs;
use std::process::Output;

use layerhold::blob::Digest;
use rstest::rstest;
use serde_json::Value;

use crate::cache_server::CacheServer;
use crate::peers::peer;
use crate::platforms::{self, both};
use crate::registry_faults::{Place, place};
use crate::registry_proxy::{RegistryProxy, Request};
use crate::registry_server::{DockerRegistry, RegistryServer, Setup};
use crate::share::Project;
use crate::substitute;

const REPOSITORY: &str = "team/web";

/// Runs it to a good end.
fn run(place: &Place, args: &[&str]) -> Output {
    let mut command = place.sandbox.cmd();
    // No login of whoever runs the tests.
    let output = command.env("DOCKER_CONFIG", place.sandbox.path("home")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// What is printed, as an object.
fn described(place: &Place, args: &[&str]) -> Value {
    serde_json::from_slice(&run(place, &[args, &["--json"]].concat()).stdout).unwrap()
}

/// What a dry run prints says for people: its lines, and nothing on standard output.
fn foretold(place: &Place, args: &[&str]) -> Vec<String> {
    let output = run(place, &[args, &["--dry-run"]].concat());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "there is no reference to what is not there");
    place.masked(&output).lines().map(str::to_owned).collect()
}

/// Nothing is in the registry.
fn is_empty(place: &Place) {
    assert_eq!(place.server.tags(REPOSITORY), [""; 0]);
    assert_eq!(place.server.blobs(REPOSITORY), [""; 0]);
}

/// What a dry run says of its only target: the digests to send are those of layers, and the bytes theirs.
fn to_send(dry: &Value) -> Vec<&Value> {
    let [target] = dry["targets"].as_array().unwrap().as_slice() else { panic!("{dry:#}") };
    let digests = target["target"]["to_send"].as_array().unwrap();
    let layers = dry["layers"].as_array().unwrap().iter();
    let layers: Vec<_> = layers.filter(|layer| digests.contains(&layer["digest"])).collect();
    assert_eq!(layers.len(), digests.len(), "{dry:#}");
    let bytes: u64 = layers.iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    assert_eq!((&target["layers_sent"], &target["bytes_sent"]), (&layers.len().into(), &bytes.into()));
    layers
}

/// The store paths of layers by name, those of the image's own files left out.
fn packages(layers: &[&Value]) -> Vec<String> {
    let paths = layers.iter().flat_map(|layer| layer["store_paths"].as_array().unwrap());
    let names = paths.map(|path| path.as_str().unwrap()["/nix/store/".len() + 33..].to_owned());
    let mut names: Vec<_> = names.filter(|name| !name.starts_with("environment")).collect();
    names.sort();
    names
}

#[test]
fn an_image_that_was_made_before_is_in_the_registry_then() {
    let place = place!(Setup::default(), None);
    let containerize = place.containerize();
    let containerize: Vec<_> = containerize.iter().map(String::as_str).collect();
    let made = described(&place, &[&containerize[..], &["-f", "image.tar", "--tag", "v1"]].concat());
    let store = place.store.root().display().to_string();
    let reference = place.proxy.reference("team/web:v2");
    let push = ["push", "web:v1", &reference, "--store", &store];

    let dry = described(&place, &[&push[..], &["--dry-run"]].concat());
    assert_eq!((&dry["dry_run"], &dry["image_id"]), (&Value::Bool(true), &made["image_id"]));
    assert_eq!(packages(&to_send(&dry)), ["large-1", "middle-1", "small-first"]);
    let lines = foretold(&place, &push);
    let count = dry["layers"].as_array().unwrap().len();
    let title = "'web:v1' would be written to registry '[REGISTRY]/team/web:v2'";
    assert!(lines[0].starts_with(&format!("{title}: {count} of {count} layers, 10.")), "{lines:#?}");
    assert_eq!(lines.len(), 1 + count);
    assert!(lines.iter().any(|line| line == "    9.0 MiB  large-1"), "{lines:#?}");
    let (_, bytes) = lines[0].rsplit_once(", ").unwrap();
    is_empty(&place);

    let output = run(&place, &push);
    let digest = place.verify_in(REPOSITORY, "v2");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(printed, format!("{}@{digest}\n", place.proxy.reference(REPOSITORY)));
    let sent = format!("{count} of {count} layers sent, {bytes}, [TIME]");
    assert_eq!(place.masked(&output), format!("⚡︎ 'web:v1' written to registry '[REGISTRY]/team/web:v2': {sent}\n"));
    assert_eq!(dry["manifest_digest"], digest.to_string());
    assert_eq!(place.server.tags(REPOSITORY), ["v2"]);
    let manifest = place.server.ask("GET", &format!("/v2/{REPOSITORY}/manifests/v2")).body;
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["config"]["digest"], made["image_id"], "compressed otherwise, it is the same image");

    // Without a tag it gets the one that it has; nothing has to be sent for that.
    let nameless = place.proxy.reference(REPOSITORY);
    let push = ["push", "web:v1", &nameless, "--store", &store];
    let lines = foretold(&place, &push);
    let title = "'web:v1' would be written to registry '[REGISTRY]/team/web:v1'";
    assert_eq!(lines, [format!("{title}: 0 of {count} layers, 0 B")]);
    assert_eq!(place.server.tags(REPOSITORY), ["v2"]);
    let again = described(&place, &push);
    assert_eq!((&again["layers_sent"], &again["layers_held"]), (&0.into(), &count.into()));
    assert!(again["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{again:#}");
    assert_eq!(place.server.tags(REPOSITORY), ["v1", "v2"]);
    assert_eq!(place.verify_in(REPOSITORY, "v1"), digest);
}

#[test]
fn a_dry_run_says_what_a_push_then_sends_and_for_which_packages() {
    let mut place = place!(Setup::default(), None);
    let reference = place.proxy.reference("team/web:v1");
    let fields = ["image_id", "manifest_digest", "layers_sent", "bytes_sent", "layers_held", "bytes_held"];
    let check = |place: &Place, new: &[&str], held: u64| {
        let containerize = place.containerize();
        let containerize: Vec<_> = containerize.iter().map(String::as_str).collect();
        let args = [&containerize[..], &["--push", &reference]].concat();
        let blobs = place.server.blobs(REPOSITORY);
        let dry = described(place, &[&args[..], &["--dry-run"]].concat());
        let layers = to_send(&dry);
        assert_eq!(packages(&layers), new);
        assert!(dry["bytes_held"].as_u64().unwrap() >= held, "{dry:#}");
        assert_eq!(dry["layers"].as_array().unwrap().len() as u64, {
            let count = |field: &str| dry[field].as_u64().unwrap();
            count("layers_sent") + count("layers_held")
        });
        let lines = foretold(place, &args);
        let heading = format!("'web:latest' would be written to registry '[REGISTRY]/{REPOSITORY}:v1': ");
        let rest = lines[0].strip_prefix(&heading).unwrap_or_else(|| panic!("{lines:#?}"));
        assert!(rest.starts_with(&format!("{} of {} layers, ", layers.len(), dry["layers"].as_array().unwrap().len())));
        // A line for each layer: its bytes, and what is in it.
        let told: Vec<_> = lines[1..].iter().map(|line| line.trim_start().rsplit_once("  ").unwrap()).collect();
        assert_eq!(told.len(), layers.len(), "{lines:#?}");
        for name in new {
            assert!(told.iter().any(|(_, names)| names.split(", ").any(|told| told == *name)), "{lines:#?}");
        }
        assert_eq!(place.server.blobs(REPOSITORY), blobs, "nothing was sent");
        let real = described(place, &args);
        for field in fields {
            assert_eq!(real[field], dry[field], "{field}");
        }
        place.verify_in(REPOSITORY, "v1");
    };
    is_empty(&place);
    check(&place, &["large-1", "middle-1", "small-first"], 0);
    place.change();
    check(&place, &["small-second"], 10_000_000);
    check(&place, &[], 10_000_000);
}

/// A registry with a cache that another machine has filled, and what is before it.
fn with_cache(registry: &DockerRegistry) -> (Project, RegistryServer, RegistryProxy, String) {
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let proxy = RegistryProxy::start(&server);
    let share = proxy.reference("team/cache");
    project.fill(&share);
    (project, server, proxy, share)
}

#[rstest]
#[case::as_they_are("none")]
#[case::compressed("zstd")]
fn what_a_cache_in_the_registry_has_is_neither_compressed_nor_sent(#[case] in_the_file: &str) {
    let (project, server, proxy, share) = with_cache(&peer!(docker_registry));
    let machine = project.machine("second");
    let mut command = machine.command(&project.environment);
    command.args(["--compression", in_the_file, "--cache-from", &share, "-f", "image.tar"]).assert().success();
    proxy.traffic();

    let said = machine.push("pair", &proxy.reference("team/pair:prod"), &["--cache-from", &share]);
    assert!(said.contains("layers: 3 reused") && said.contains(" 0 new"), "{said}");
    assert!(said.contains("sent: 0 of 3 layers") && !said.contains("fetched") && !said.contains("! "), "{said}");
    let traffic = proxy.traffic();
    assert_eq!(traffic.of(Request::PatchUpload).requests, 0, "{:#?}", traffic.log);
    // The configuration goes with the only upload that is more than a mount.
    assert_eq!(traffic.of(Request::PutUpload).requests, 1, "{:#?}", traffic.log);
    assert!(traffic.sent() < 20_000, "{} bytes were sent", traffic.sent());
    assert_eq!(server.tags("team/pair"), ["prod"]);
    assert_eq!(server.tags("team/cache").len(), 1, "who only reads has written");
}

#[test]
fn what_is_known_here_is_mounted_from_a_cache_in_the_registry_and_that_is_asked_only_where_something_is_missing() {
    let (project, server, proxy, share) = with_cache(&peer!(docker_registry));
    let machine = project.machine("second");
    machine.image(&project.environment, &[]);
    proxy.traffic();

    let push = |tag: &str| {
        let mut command = machine.command(&project.environment);
        command.args(["--push", &proxy.reference(&format!("team/pair:{tag}")), "--cache-from", &share]);
        let outcome = command.assert().success();
        String::from_utf8_lossy(&outcome.get_output().stderr).into_owned()
    };
    let said = push("prod");
    assert!(said.contains(" 0 new") && said.contains("sent: 0 of 3 layers"), "{said}");
    let traffic = proxy.traffic();
    assert!(traffic.sent() < 20_000, "{} bytes were sent", traffic.sent());
    assert!(traffic.log.iter().any(|line| line.contains("/team/cache/")), "{:#?}", traffic.log);
    for tag in ["prod", "next"] {
        let said = push(tag);
        assert!(said.contains("sent: 0 of 3 layers"), "{said}");
        let traffic = proxy.traffic();
        assert!(!traffic.log.iter().any(|line| line.contains("/team/cache/")), "{tag}: {:#?}", traffic.log);
    }

    // It turns out that the repository has not what it is remembered to have.
    let manifest: Value = serde_json::from_slice(&server.ask("GET", "/v2/team/pair/manifests/prod").body).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let largest = layers.iter().max_by_key(|layer| layer["size"].as_u64()).unwrap();
    server.lose("team/pair", largest["digest"].as_str().unwrap());
    push("later");
    let traffic = proxy.traffic();
    assert!(traffic.sent() < 20_000, "{} bytes were sent", traffic.sent());
    assert_eq!(traffic.of(Request::PutUpload).requests, 0, "{:#?}", traffic.log);
    assert_eq!(server.tags("team/pair"), ["later", "next", "prod"]);
}

#[test]
fn a_cache_gets_mounted_what_another_in_its_registry_has_also_where_the_image_goes_elsewhere() {
    let registry = peer!(docker_registry);
    let (project, server, proxy, share) = with_cache(&registry);
    let elsewhere = registry.start(&project.sandbox.path("elsewhere"), Setup::default());
    let machine = project.machine("second");
    machine.image(&project.environment, &[]);
    proxy.traffic();

    let mut command = machine.command(&project.environment);
    command.args(["--push", &elsewhere.reference("team/pair:prod"), "--cache-to", &share]);
    command.args(["--cache-to", &proxy.reference("team/new-cache")]);
    let outcome = command.assert().success();
    let said = String::from_utf8_lossy(&outcome.get_output().stderr);
    assert!(said.contains("layers: 3 reused") && said.contains("sent: 3 of 3 layers"), "{said}");
    let traffic = proxy.traffic();
    let is_mount = |line: &&String| line.starts_with("POST /v2/team/new-cache/") && line.ends_with(": 201");
    assert_eq!(traffic.log.iter().filter(is_mount).count(), 3, "{said}: {:#?}", traffic.log);
    let (there, mounted) = (server.blobs("team/cache"), server.blobs("team/new-cache"));
    assert_eq!(mounted.iter().filter(|blob| there.contains(blob)).count(), 4, "three layers, and an empty document");
    assert_eq!(server.tags("team/new-cache").len(), 1);
}

#[test]
fn a_push_tells_the_caches_of_the_settings_and_a_dry_run_tells_nobody() {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let (share, (secret, public)) = (project.directory(), project.key("team"));
    let (machine, sheets) = (project.machine("alone"), project.sandbox.path("share/sheets"));
    let config = project.sandbox.path("home/.config/layerhold/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    let settings = format!("to = [\"{share}\"]\ntrust = [\"{public}\"]\nkey-file = \"{secret}\"\n");
    fs::write(&config, format!("[shared-cache]\n{settings}")).unwrap();
    // Compressed like that, the layers have still to be made.
    let said = machine.push("pair", &server.reference("team/pair:v1"), &["--dry-run", "--compression", "gzip"]);
    assert!(said.contains(" 3 new") && !sheets.exists(), "a dry run has written: {said}");
    let said = machine.push("pair", &server.reference("team/pair:v1"), &[]);
    assert!(said.contains("given to the shared cache 'file://[SANDBOX]/share': 3 layers, 3 blobs"), "{said}");
    fs::remove_file(&config).unwrap();
    let said = project.newcomer("trusting", &share, &["--cache-trust", &public]);
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");
}

#[rstest]
#[case::that_is_read("--cache-from")]
#[case::that_is_written("--cache-to")]
fn a_push_does_without_a_cache_that_is_away(#[case] how: &str) {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let target = server.reference("team/pair:v1");
    // Compressed like that, no layer is known here.
    let said = project.machine("alone").push("pair", &target, &[how, "127.0.0.1:1/away", "--compression", "gzip"]);
    assert_eq!(said.matches("! ").count(), 1, "{said}");
    assert!(said.contains("! the shared cache '127.0.0.1:1/away' is done without"), "{said}");
    assert_eq!(server.tags("team/pair"), ["v1"]);
}

#[test]
fn of_store_paths_that_are_gone_here_a_cache_has_the_layers_and_no_nar_is_fetched() {
    let (nix, registry) = (peer!(nix), peer!(docker_registry));
    let project = substitute::Project::new(nix, "xz");
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let binaries = CacheServer::start(&project.cache.directory);
    let share = format!("file://{}", project.sandbox.path("share").display());
    project.image_of_the_store(&[]);
    let mut command = project.sandbox.cmd();
    command.env("LAYERHOLD_CACHE", project.sandbox.path("first")).arg("containerize").arg("--store").arg(nix.root());
    command.arg("-d").arg(project.environment.dir()).args(["--cache-to", &share, "--compression", "zstd"]);
    command.args(["-f", "first.tar"]).assert().success();

    let config = project.sandbox.path("home/.config/layerhold/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    let (url, key) = (binaries.url(), &project.cache.key);
    fs::write(&config, format!("[substituters]\nurls = [\"{url}\"]\ntrusted-public-keys = [\"{key}\"]\n")).unwrap();
    let mut command = project.sandbox.cmd();
    command.env("LAYERHOLD_CACHE", project.sandbox.path("another-cache")).args(["-v", "push", "hello"]);
    command.arg(server.reference("team/hello:v1")).arg("--store").arg(project.sandbox.path("empty"));
    let outcome = command.args(["--cache-from", &share]).assert().success();
    let said = String::from_utf8_lossy(&outcome.get_output().stderr).into_owned();
    assert!(said.contains("fetched from a shared cache") && said.contains(" 0 new"), "{said}");
    let asked = binaries.asked();
    assert!(!asked.is_empty() && !asked.iter().any(|name| name.starts_with("nar/")), "{asked:#?}");
    assert_eq!(server.tags("team/hello"), ["v1"]);
}

#[test]
fn what_was_sent_is_said_of_each_registry_and_the_time_once() {
    let place = place!(Setup::default(), None);
    let references = ["team/web:v1", "team/web:v2"].map(|name| place.proxy.reference(name));
    let containerize = place.containerize();
    let mut args: Vec<_> = containerize.iter().map(String::as_str).collect();
    args.extend(["-f", "image.tar", "--push", &references[0], "--push", &references[1]]);
    let said = place.masked(&run(&place, &args));
    let count = place.server.blobs(REPOSITORY).len() - 1;
    let line = |target: &str| {
        let written = format!("⚡︎ 'web:latest' written to {target}");
        said.lines().find_map(|line| line.strip_prefix(&written)).unwrap_or_else(|| panic!("{target}: {said}"))
    };
    assert_eq!(line("file 'image.tar'"), "");
    let first = line("registry '[REGISTRY]/team/web:v1'");
    assert!(first.starts_with(&format!(": {count} of {count} layers sent, 10.")) && first.ends_with(" MiB"), "{first}");
    assert_eq!(line("registry '[REGISTRY]/team/web:v2'"), format!(": 0 of {count} layers sent, 0 B, [TIME]"));
}

#[test]
fn an_image_that_is_pushed_once_more_gets_back_what_the_registry_has_lost() {
    let place = place!(Setup::default(), None);
    place.push_whole("v1");
    let digest = place.verify_in(REPOSITORY, "v1");
    let manifest = place.server.ask("GET", &format!("/v2/{REPOSITORY}/manifests/v1")).body;
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let [layer, config] = [&manifest["layers"][1], &manifest["config"]].map(|blob| blob["digest"].as_str().unwrap());
    let (reference, store) = (place.proxy.reference("team/web:v1"), place.store.root().display().to_string());
    let push = ["push", "web", &reference, "--store", &store];
    let containerize = place.containerize();
    let containerize: Vec<_> = containerize.iter().map(String::as_str).chain(["--push", &reference]).collect();
    for lost in [layer, config] {
        place.server.lose(REPOSITORY, lost);
        place.proxy.traffic();
        // All of it was seen there a moment ago.
        run(&place, &containerize);
        assert_eq!(place.proxy.traffic().requests(), 2);
        assert!(!place.server.blobs(REPOSITORY).contains(&lost.to_owned()));
        run(&place, &push);
        assert_eq!(place.verify_in(REPOSITORY, "v1"), digest);
        let traffic = place.proxy.traffic();
        assert_eq!(traffic.of(Request::PostUpload).requests, 1, "what is there is not sent: {:#?}", traffic.log);
    }
    // Whoever only looks has the next run send it, whichever that is.
    place.server.lose(REPOSITORY, layer);
    let dry = described(&place, &[&push[..], &["--dry-run"]].concat());
    assert_eq!(to_send(&dry)[0]["digest"], layer);
    run(&place, &containerize);
    assert_eq!(place.verify_in(REPOSITORY, "v1"), digest);
}

#[test]
fn an_index_that_is_pushed_once_more_gets_back_the_image_that_the_registry_has_lost() {
    let program = peer!(docker_registry);
    let project = platforms::Project::new("hello");
    let server = program.start(&project.sandbox.path("registry"), Setup { deletes: true, ..Setup::default() });
    let reference = server.reference("team/hello:v1");
    project.command(&["--platform", &both(), "--push", &reference]).assert().success();
    let get = |name: &str| server.ask("GET", &format!("/v2/team/hello/manifests/{name}"));
    let index = get("v1").body;
    let listed: Value = serde_json::from_slice(&index).unwrap();
    let images: Vec<_> = listed["manifests"].as_array().unwrap().iter().map(|image| &image["digest"]).collect();
    assert_eq!(images.len(), 2);
    for lost in images.iter().map(|image| image.as_str().unwrap()) {
        assert_eq!(server.ask("DELETE", &format!("/v2/team/hello/manifests/{lost}")).status, 202);
        assert_eq!(get(lost).status, 404);
        let mut push = project.sandbox.cmd();
        push.args(["push", "hello", &reference, "--store"]).arg(project.store.root()).assert().success();
        assert_eq!(Digest::of(&get(lost).body).to_string(), lost);
        assert!(get("v1").body == index, "it is another index");
    }
}
