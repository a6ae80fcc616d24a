//! Images as those see them who run and read them: Docker, Podman, containerd, skopeo, umoci.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::containerize::{archive, containerize, hello_environment};
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::{LoadedImage, Peer, find_program, peer, skip, unique_name};
use crate::sandbox::Sandbox;

/// A runtime loads an archive; the environment's programs then run in it.
fn loads_and_runs(runtime: Peer, args: &[&str]) {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let name = unique_name("load");
    let environment = hello_environment(&sandbox, nix, &name, "[vars]\nGREETING = \"from the manifest\"\n");
    let archive = archive(&sandbox, nix.root(), &environment, args);
    let image = LoadedImage::new(runtime, format!("{name}:latest"));
    let loaded = runtime.run(["load", "-i", sandbox.path("image.tar").to_str().unwrap()]);
    assert!(loaded.contains(&image.reference), "{loaded}");
    assert_eq!(image.id(), runtime.name_of(&archive.image_id(), &archive.manifest_digest));
    assert_eq!(image.run(&[], &["hello"]), "Hello, world!\n");
    assert_eq!(image.run(&[], &["sh", "-c", "echo \"$GREETING\""]), "from the manifest\n");
}

#[test]
fn docker_loads_and_runs_an_archive() {
    loads_and_runs(peer!(docker), &[]);
}

#[test]
fn docker_loads_and_runs_a_gzip_archive() {
    loads_and_runs(peer!(docker), &["--compression", "gzip"]);
}

#[test]
fn podman_loads_and_runs_an_archive() {
    loads_and_runs(peer!(podman), &[]);
}

#[test]
fn podman_loads_and_runs_a_zstd_archive() {
    loads_and_runs(peer!(podman), &["--compression", "zstd"]);
}

/// The tool hands the image to the runtime itself, twice, and once more after a change.
fn delivers_to(runtime: Peer, called: &str) {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    sandbox.provide(runtime.program);
    let name = unique_name("deliver");
    let image = LoadedImage::new(runtime, format!("{name}:v1"));
    let deliver = |hello: &str| {
        let installs = [("bash", nix.out("bash")), ("coreutils", nix.out("coreutils")), ("hello", nix.out(hello))];
        let environment = FloxEnv::of_store_paths(sandbox.path("project"), &name, &installs, "");
        let mut command = containerize(&sandbox, nix.root(), &environment);
        let outcome = command.args(["--runtime", runtime.program, "--tag", "v1", "--json"]).assert().success();
        let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
        assert!(said.contains(&format!("⚡︎ '{name}:v1' written to {called}")), "{said}");
        let described: Value = serde_json::from_slice(&outcome.get_output().stdout).unwrap();
        // Docker with containerd's image store calls an image by its manifest.
        ["image_id", "manifest_digest"].map(|id| described[id].as_str().unwrap().to_owned())
    };
    let first = deliver("hello");
    assert!(first.contains(&image.id()));
    assert_eq!(image.run(&[], &["hello"]), "Hello, world!\n");
    assert_eq!(deliver("hello"), first);
    assert!(first.contains(&image.id()));
    assert_eq!(image.run(&[], &["hello"]), "Hello, world!\n");
    let changed = deliver("hello-revised");
    assert_ne!(changed, first);
    assert!(changed.contains(&image.id()));
    assert_eq!(image.run(&[], &["hello"]), "Hello, revised world!\n");
}

#[test]
fn an_image_goes_straight_into_docker() {
    delivers_to(peer!(docker), "Docker runtime");
}

#[test]
fn an_image_goes_straight_into_podman() {
    delivers_to(peer!(podman), "Podman runtime");
}

/// What a runtime has is neither read nor sent: it may be gone from the store's files.
fn only_what_is_missing_is_read_and_sent(runtime: Peer) {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    sandbox.provide(runtime.program);
    let name = unique_name("unread");
    let image = LoadedImage::new(runtime, format!("{name}:latest"));
    let store = nix.copy(&sandbox.path("emptied"));
    let deliver = |hello: &str| -> Value {
        let installs = [("bash", nix.out("bash")), ("coreutils", nix.out("coreutils")), ("hello", nix.out(hello))];
        let environment = FloxEnv::of_store_paths(sandbox.path("project"), &name, &installs, "");
        let mut command = containerize(&sandbox, store.root(), &environment);
        let outcome = command.args(["--runtime", runtime.program, "--json"]).assert().success();
        serde_json::from_slice(&outcome.get_output().stdout).unwrap()
    };
    let first = deliver("hello");
    store.empty(&["bash", "coreutils", "hello"]);
    let again = deliver("hello");
    assert_eq!((&again["layers_sent"], &again["bytes_sent"]), (&Value::from(0), &Value::from(0)), "{again:#}");
    assert_eq!(again["image_id"], first["image_id"]);
    let revised = deliver("hello-revised");
    let digests = |described: &Value| -> Vec<(String, u64)> {
        let layers = described["layers"].as_array().unwrap().iter();
        layers.map(|layer| (layer["digest"].as_str().unwrap().to_owned(), layer["size"].as_u64().unwrap())).collect()
    };
    let known = digests(&first);
    let new: u64 = digests(&revised).iter().filter(|layer| !known.contains(layer)).map(|(_, size)| size).sum();
    // The root's links lie above what changed: a runtime whose layers are chained has them in the other chain only.
    let layers = revised["layers"].as_array().unwrap();
    let links: Vec<_> = layers.iter().filter(|layer| layer["store_paths"].as_array().unwrap().is_empty()).collect();
    let [links] = links.as_slice() else { panic!("{revised:#}") };
    assert_eq!(links["reused"], true, "{revised:#}");
    // Other tests' images may have some of the new ones, too.
    let (sent, links) = (revised["bytes_sent"].as_u64().unwrap(), links["size"].as_u64().unwrap());
    assert!(sent <= new + links && new + links < 500_000, "{sent} of {new} and {links}: {revised:#}");
    assert_eq!(image.run(&[], &["hello"]), "Hello, revised world!\n");
}

#[test]
fn docker_gets_only_what_it_lacks_and_nothing_else_is_read() {
    only_what_is_missing_is_read_and_sent(peer!(docker));
}

#[test]
fn podman_gets_only_what_it_lacks_and_nothing_else_is_read() {
    only_what_is_missing_is_read_and_sent(peer!(podman));
}

/// Each start of Podman's program takes longer than a small layer. Only overlays say where their storage is, and they do
/// not lie on every file system.
#[test]
fn podman_starts_no_more_often_than_it_has_to() {
    let (podman, nix) = (peer!(podman), peer!(nix));
    let sandbox = Sandbox::new();
    let mut asked = podman.command(["info", "--format", "{{.Store.GraphDriverName}}"]);
    let driver = asked.env_clear().envs(sandbox.environment()).env("PATH", std::env::var_os("PATH").unwrap());
    let driver = driver.output().unwrap();
    assert!(driver.status.success(), "{driver:?}");
    let driver = String::from_utf8(driver.stdout).unwrap();
    let real = find_program("podman").unwrap();
    sandbox.script("podman", &format!("echo \"$1 $2\" >>\"$HOME/calls\"\nexec '{}' \"$@\"", real.display()));
    let name = unique_name("twice");
    let image = LoadedImage::new(podman, format!("{name}:latest"));
    let calls = |hello: &str| -> Vec<String> {
        let installs = [("bash", nix.out("bash")), ("coreutils", nix.out("coreutils")), ("hello", nix.out(hello))];
        let environment = FloxEnv::of_store_paths(sandbox.path("project"), &name, &installs, "");
        containerize(&sandbox, nix.root(), &environment).args(["--runtime", "podman"]).assert().success();
        let file = sandbox.path("home/calls");
        let calls = fs::read_to_string(&file).unwrap();
        fs::remove_file(file).unwrap();
        calls.lines().map(str::to_owned).collect()
    };
    calls("hello");
    let mut again = calls("hello-revised");
    // The first two start at about the same time.
    again.sort();
    let expected: &[_] = match driver.trim() {
        "overlay" => &["image inspect", "load --quiet"],
        _ => &["image inspect", "image inspect", "load --quiet"],
    };
    assert_eq!(again, expected, "with {driver}");
    assert_eq!(image.run(&[], &["hello"]), "Hello, revised world!\n");
}

#[test]
fn the_first_runtime_on_path_gets_the_image() {
    let (docker, nix) = (peer!(docker), peer!(nix));
    let sandbox = Sandbox::new();
    sandbox.provide("docker");
    let name = unique_name("detect");
    let image = LoadedImage::new(docker, format!("{name}:latest"));
    let environment = hello_environment(&sandbox, nix, &name, "");
    let outcome = containerize(&sandbox, nix.root(), &environment).assert().success();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains("written to Docker runtime"), "{said}");
    assert_eq!(image.run(&[], &["hello"]), "Hello, world!\n");
    assert_eq!(fs::read_dir(sandbox.path("work")).unwrap().count(), 0, "no file beside it");
}

#[test]
fn containerd_imports_and_runs_an_archive() {
    let (ctr, nix) = (peer!(ctr), peer!(nix));
    let sandbox = Sandbox::new();
    let name = unique_name("ctr");
    let environment = hello_environment(&sandbox, nix, &name, "");
    archive(&sandbox, nix.root(), &environment, &[]);
    let namespace = ["--namespace", &name];
    let ctr = |args: &[&str]| ctr.run([&namespace[..], args].concat());
    ctr(&["images", "import", sandbox.path("image.tar").to_str().unwrap()]);
    let listed = ctr(&["images", "ls", "--quiet"]);
    let reference = listed.lines().find(|line| line.contains(&name)).unwrap();
    // It runs the command without the entrypoint: the image's own PATH leads to it.
    assert_eq!(ctr(&["run", "--rm", reference, &name, "hello"]), "Hello, world!\n");
    for reference in listed.lines() {
        ctr(&["images", "rm", "--sync", reference]);
    }
    ctr(&["namespaces", "rm", &name]);
}

#[test]
fn skopeo_reads_one_file_as_both_kinds_of_archive() {
    let (skopeo, nix) = (peer!(skopeo), peer!(nix));
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "hello", "[vars]\nA = \"b\"\n");
    let archive = archive(&sandbox, nix.root(), &environment, &["--label", "a=b"]);
    let file = sandbox.path("image.tar").display().to_string();
    for transport in ["docker-archive", "oci-archive"] {
        let inspected: Value = serde_json::from_str(&skopeo.run(["inspect", &format!("{transport}:{file}")])).unwrap();
        assert_eq!(inspected["Labels"]["a"], "b", "{transport}");
        assert_eq!(inspected["Layers"].as_array().unwrap().len(), archive.layer_digests().len(), "{transport}");
        assert_eq!(inspected["Architecture"], archive.config["architecture"], "{transport}");
    }
    let inspected: Value = serde_json::from_str(&skopeo.run(["inspect", &format!("oci-archive:{file}")])).unwrap();
    assert_eq!(inspected["Digest"].as_str().unwrap(), archive.manifest_digest);
}

/// Unpacks an image of a layout; the tree of hello in it is the one in the store.
fn umoci_finds_hello(umoci: Peer, layout: &Path, tag: &str, hello: &str, real: &Path, bundle: &Path) {
    let image = format!("{}:{tag}", layout.display());
    umoci.run(["unpack", "--rootless", "--image", &image, bundle.to_str().unwrap()]);
    let unpacked = bundle.join("rootfs").join(hello.trim_start_matches('/'));
    assert_eq!(fs::read(unpacked.join("bin/hello")).unwrap(), fs::read(real.join("bin/hello")).unwrap());
}

#[test]
fn umoci_unpacks_what_skopeo_copies_out_of_the_archive() {
    let (umoci, skopeo, nix) = (peer!(umoci), peer!(skopeo), peer!(nix));
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "hello", "");
    archive(&sandbox, nix.root(), &environment, &["--compression", "gzip"]);
    let (file, layout) = (sandbox.path("image.tar"), sandbox.path("layout"));
    let (from, to) = (format!("oci-archive:{}", file.display()), format!("oci:{}:hello", layout.display()));
    skopeo.run(["copy", "--insecure-policy", &from, &to]);
    let hello = nix.out("hello");
    umoci_finds_hello(umoci, &layout, "hello", hello, &nix.real(hello), &sandbox.path("bundle"));
}

#[test]
fn a_layout_grows_by_what_it_lacks_and_podman_pulls_from_it() {
    let (podman, nix) = (peer!(podman), peer!(nix));
    let sandbox = Sandbox::new();
    let layout = sandbox.path("layout");
    let name = unique_name("layout");
    let add = |tag: &str| {
        let environment = hello_environment(&sandbox, nix, &name, "");
        let mut command = containerize(&sandbox, nix.root(), &environment);
        command.arg("--layout").arg(&layout).args(["--tag", tag]).assert().success();
    };
    let blobs = || {
        let entries = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(Result::unwrap);
        let times = entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap()));
        times.collect::<std::collections::BTreeMap<_, _>>()
    };
    add("v1");
    let before = blobs();
    add("v1");
    assert_eq!(blobs(), before, "a second run writes no blob");
    // Podman 4 calls the image after the layout's path, whose letters must then be small ones: hence a relative path.
    let mut pull = podman.command(["pull", "--quiet", &format!("oci:layout:{name}:v1")]);
    let output = pull.current_dir(sandbox.path("")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let id = String::from_utf8(output.stdout).unwrap();
    let image = LoadedImage::new(podman, id.trim());
    assert_eq!(image.run(&[], &["hello"]), "Hello, world!\n");
}

#[test]
fn an_image_piped_into_docker_load_runs() {
    let (docker, nix) = (peer!(docker), peer!(nix));
    let sandbox = Sandbox::new();
    let name = unique_name("pipe");
    let environment = hello_environment(&sandbox, nix, &name, "");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(sandbox.environment()).args(["containerize", "-f", "-", "--store"]).arg(nix.root());
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = command.arg("-d").arg(environment.dir()).stdout(writer).spawn().unwrap();
    drop(command);
    let image = LoadedImage::new(docker, format!("{name}:latest"));
    let mut load = docker.command(["load"]);
    assert!(load.stdin(reader).output().unwrap().status.success());
    assert!(child.wait().unwrap().success());
    assert_eq!(image.run(&[], &["hello"]), "Hello, world!\n");
}

#[test]
fn a_store_that_no_nix_made_gives_containers_that_run() {
    let docker = peer!(docker);
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let (Some(bash), Some(tools)) = (store.add_bash(), store.add_tools()) else {
        return skip("bash-static and busybox-static", "a_store_that_no_nix_made_gives_containers_that_run");
    };
    let greeting = store.add("greeting-1", &Tree::new().file("share/greeting", "hello from a bare store\n"));
    let name = unique_name("bare");
    let installs = [("bash", &*bash), ("tools", &*tools), ("greeting", &*greeting)];
    let hook = "[hook]\non-activate = 'export GREETING=$FLOX_ENV/share/greeting'\n";
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), &name, &installs, hook);
    archive(&sandbox, store.root(), &environment, &[]);
    let image = LoadedImage::new(docker, format!("{name}:latest"));
    docker.run(["load", "-i", sandbox.path("image.tar").to_str().unwrap()]);
    assert_eq!(image.run(&[], &["cat", "$GREETING"]), "hello from a bare store\n");
}

#[test]
fn an_environment_without_a_shell_runs_commands_directly() {
    let docker = peer!(docker);
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let Some(tools) = store.add_tools() else {
        return skip("busybox-static", "an_environment_without_a_shell_runs_commands_directly");
    };
    let name = unique_name("shell-less");
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), &name, &[("tools", &tools)], "");
    archive(&sandbox, store.root(), &environment, &[]);
    let image = LoadedImage::new(docker, format!("{name}:latest"));
    docker.run(["load", "-i", sandbox.path("image.tar").to_str().unwrap()]);
    assert!(image.run(&[], &["cat", "/etc/passwd"]).starts_with("root:"));
}
