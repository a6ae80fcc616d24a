//! `layerhold containerize` from the outside: what it writes, what it reuses, and that the same comes out everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, thread};

use serde_json::Value;

use crate::archive::{Archive, EntryKind, LayerEntry};
use crate::flox_fixture::{BareStore, FloxEnv, LockedPackage, Tree};
use crate::hostile::streaming;
use crate::nix_fixture::NixStore;
use crate::peers::peer;
use crate::registry_server::Setup;
use crate::sandbox::Sandbox;

/// An environment of bash, coreutils and hello, all from the real store.
pub(crate) fn hello_environment(sandbox: &Sandbox, nix: &NixStore, name: &str, rest: &str) -> FloxEnv {
    let installs = [("bash", nix.out("bash")), ("coreutils", nix.out("coreutils")), ("hello", nix.out("hello"))];
    FloxEnv::of_store_paths(sandbox.path("project"), name, &installs, rest)
}

/// `layerhold containerize --store ROOT -d DIR`.
pub(crate) fn containerize(sandbox: &Sandbox, store: &Path, environment: &FloxEnv) -> assert_cmd::Command {
    let mut command = sandbox.cmd();
    command.arg("containerize").arg("--store").arg(store).arg("-d").arg(environment.dir());
    command
}

/// Runs it into a file, and takes that apart.
pub(crate) fn archive(sandbox: &Sandbox, store: &Path, environment: &FloxEnv, args: &[&str]) -> Archive {
    let file = sandbox.path("image.tar");
    containerize(sandbox, store, environment).arg("-f").arg(&file).args(args).assert().success();
    Archive::open(&file)
}

fn json(command: &mut assert_cmd::Command) -> Value {
    let output = command.arg("--json").assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap()
}

#[test]
fn an_environment_of_a_real_store_becomes_an_archive_that_holds_its_closure() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "hello", "");
    let file = sandbox.path("hello.tar");
    let outcome = containerize(&sandbox, nix.root(), &environment).arg("-f").arg(&file).assert().success();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains(&format!("⚡︎ 'hello:latest' written to file '{}'", file.display())), "{said}");
    assert!(outcome.get_output().stdout.is_empty());

    let archive = Archive::open(&file);
    assert_eq!(archive.docker_tag(), "hello:latest");
    assert_eq!(archive.config["os"], "linux");
    assert_eq!(archive.config["created"], "1970-01-01T00:00:01Z");
    let installed = [nix.out("bash"), nix.out("coreutils"), nix.out("hello")];
    let closure = nix.closure(&installed);
    let held = archive.store_paths();
    assert!(held.is_superset(&closure), "missing: {:#?}", closure.difference(&held));
    assert!(!held.contains(nix.output("hello", "doc")), "what nothing refers to stays out");

    let root = archive.root();
    for (path, entry) in root.iter().filter(|(path, _)| path.starts_with(b"nix/store/")) {
        assert_eq!((entry.owner, entry.mtime), ((0, 0), 1), "{}", String::from_utf8_lossy(path));
    }
    assert_eq!(root[&b"tmp"[..]].mode, 0o1777);
    for path in ["etc/passwd", "etc/group", "etc/nsswitch.conf", "var/empty", "run"] {
        assert!(root.contains_key(path.as_bytes()), "{path}");
    }
}

#[test]
fn standard_output_carries_the_same_bytes_and_nothing_else() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "hello", "");
    let outcome = containerize(&sandbox, nix.root(), &environment).args(["-f", "-"]).assert().success();
    let piped = outcome.get_output().stdout.clone();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains("⚡︎ 'hello:latest' written to stdout"), "{said}");
    let file = sandbox.path("image.tar");
    containerize(&sandbox, nix.root(), &environment).arg("-f").arg(&file).assert().success();
    assert!(piped == fs::read(&file).unwrap(), "the file differs from standard output");
}

#[test]
fn a_second_run_makes_no_layer_and_the_same_image() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "hello", "");
    let file = sandbox.path("image.tar");
    let run = || {
        let described = json(containerize(&sandbox, nix.root(), &environment).arg("-f").arg(&file));
        (described, fs::read(&file).unwrap())
    };
    let (first, first_bytes) = run();
    let (second, second_bytes) = run();
    let reused = |run: &Value| -> Vec<bool> {
        run["layers"].as_array().unwrap().iter().map(|layer| layer["reused"].as_bool().unwrap()).collect()
    };
    assert!(reused(&first).iter().all(|reused| !reused), "{first:#}");
    assert!(reused(&second).iter().all(|&reused| reused), "{second:#}");
    assert!(first_bytes == second_bytes);

    let archive = Archive::open(&file);
    assert_eq!(second["name"], "hello");
    assert_eq!(second["tag"], "latest");
    assert_eq!(second["image_id"].as_str().unwrap(), archive.image_id());
    assert_eq!(second["manifest_digest"].as_str().unwrap(), archive.manifest_digest);
    assert!(second["target"].to_string().contains("image.tar"), "{}", second["target"]);
    let layers = second["layers"].as_array().unwrap();
    let digests: Vec<_> = layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect();
    assert_eq!(digests, archive.layer_digests());
    for (at, layer) in layers.iter().enumerate() {
        assert_eq!(layer["diff_id"], archive.config["rootfs"]["diff_ids"][at]);
        assert_eq!(layer["size"], archive.manifest["layers"][at]["size"]);
    }
    let named: BTreeSet<_> = layers
        .iter()
        .flat_map(|layer| layer["store_paths"].as_array().unwrap())
        .map(|path| path.as_str().unwrap().to_owned())
        .collect();
    assert!(named.is_superset(&nix.closure(&[nix.out("hello"), nix.out("bash")])), "{named:#?}");
}

#[test]
fn a_dry_run_says_what_the_real_run_then_does_and_touches_nothing() {
    let nix = peer!(nix);
    for target in [["-f", "image.tar"], ["--layout", "layout"]] {
        let sandbox = Sandbox::new();
        let environment = hello_environment(&sandbox, nix, "hello", "");
        let run = |args: &[&str]| json(containerize(&sandbox, nix.root(), &environment).args(target).args(args));
        let dry = run(&["--dry-run"]);
        assert_eq!(fs::read_dir(sandbox.path("work")).unwrap().count(), 0, "{target:?}");
        let images = sandbox.cmd().args(["cache", "ls", "--json"]).assert().success().get_output().stdout.clone();
        assert_eq!(serde_json::from_slice::<Value>(&images).unwrap(), serde_json::json!([]));
        let real = run(&[]);
        assert_eq!((&dry["dry_run"], &real["dry_run"]), (&Value::Bool(true), &Value::Bool(false)));
        assert!(real["bytes_sent"].as_u64().unwrap() > 0);
        for field in ["image_id", "layers_sent", "bytes_sent", "layers_held", "bytes_held"] {
            assert_eq!(dry[field], real[field], "{field}");
        }
        // Nothing is left to be sent now.
        for args in [&["--dry-run"][..], &[]] {
            let again = run(args);
            assert_eq!((&again["layers_sent"], &again["bytes_sent"]), (&0.into(), &0.into()), "{target:?} {args:?}");
        }
    }
}

#[test]
fn the_bytes_are_the_same_for_another_cache_another_place_and_one_thread() {
    let nix = peer!(nix);
    let (here, there) = (Sandbox::new(), Sandbox::new());
    let elsewhere = nix.copy(&there.path("store-root"));
    let rest = "[vars]\nA = \"1\"\n[hook]\non-activate = 'echo hook'\n";
    let ours = hello_environment(&here, nix, "hello", rest);
    let theirs = hello_environment(&there, &elsewhere, "hello", rest);
    containerize(&here, nix.root(), &ours).args(["-f", "image.tar"]).assert().success();
    containerize(&there, elsewhere.root(), &theirs)
        .args(["-f", "image.tar"])
        .env("RAYON_NUM_THREADS", "1")
        .env("TZ", "Asia/Tokyo")
        .assert()
        .success();
    let read = |sandbox: &Sandbox| fs::read(sandbox.path("work/image.tar")).unwrap();
    assert!(read(&here) == read(&there));
}

#[test]
fn a_change_of_one_package_leaves_the_layers_of_the_others_alone() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let with = |hello: &str| {
        let installs = [("bash", nix.out("bash")), ("bulk", nix.out("bulk")), ("hello", nix.out(hello))];
        let environment = FloxEnv::of_store_paths(sandbox.path("project"), "hello", &installs, "");
        json(containerize(&sandbox, nix.root(), &environment).arg("-f").arg(sandbox.path("image.tar")))
    };
    with("hello");
    let changed = with("hello-revised");
    let new: BTreeSet<_> = changed["layers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|layer| layer["reused"] == false)
        .flat_map(|layer| layer["store_paths"].as_array().unwrap())
        .map(|path| path.as_str().unwrap())
        .collect();
    assert!(new.contains(nix.out("hello-revised")), "{new:#?}");
    for package in ["glibc", "bash", "bulk"] {
        assert!(!new.contains(nix.out(package)), "{package} was packed again: {new:#?}");
    }
    let layers = changed["layers"].as_array().unwrap();
    let links: Vec<_> = layers.iter().filter(|layer| layer["store_paths"].as_array().unwrap().is_empty()).collect();
    let [links] = links.as_slice() else { panic!("{links:#?}") };
    assert_eq!(links["reused"], true, "the links in the root lead to the same names");
}

#[test]
fn compression_changes_blobs_and_not_what_is_in_them() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "hello", "");
    let plain = archive(&sandbox, nix.root(), &environment, &[]);
    for codec in ["gzip", "gzip:1", "zstd", "zstd:3"] {
        let compressed = archive(&sandbox, nix.root(), &environment, &["--compression", codec]);
        assert_eq!(compressed.image_id(), plain.image_id(), "{codec}: the configuration names uncompressed layers");
        let suffix = format!("+{}", codec.split(':').next().unwrap());
        for layer in compressed.manifest["layers"].as_array().unwrap() {
            assert!(layer["mediaType"].as_str().unwrap().ends_with(&suffix), "{layer}");
        }
    }
}

#[test]
fn an_image_has_no_more_layers_than_allowed_and_loses_nothing_by_it() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "hello", "");
    let many = archive(&sandbox, nix.root(), &environment, &[]);
    assert!(many.layer_digests().len() > 3);
    // From ten layers on the links in the root have one of their own.
    for most in [2, 3, 9, 10, 11] {
        let few = archive(&sandbox, nix.root(), &environment, &["--max-layers", &most.to_string()]);
        assert!(few.layer_digests().len() <= most, "{:?}", few.layer_digests());
        assert_eq!(few.root(), many.root(), "{most}");
    }
}

/// The nodes below `dir` on disk, as a layer has to show them.
fn tree_on_disk(dir: &Path, prefix: &[u8], nodes: &mut BTreeMap<Vec<u8>, LayerEntry>) {
    let metadata = fs::symlink_metadata(dir).unwrap();
    let kind = if metadata.is_symlink() {
        EntryKind::Link(fs::read_link(dir).unwrap().as_os_str().as_bytes().to_vec())
    } else if metadata.is_dir() {
        EntryKind::Directory
    } else {
        EntryKind::File(fs::read(dir).unwrap())
    };
    let mode = match kind {
        EntryKind::Link(_) => 0o777,
        _ => metadata.permissions().mode() & 0o7777,
    };
    nodes.insert(prefix.to_vec(), LayerEntry { mode, owner: (0, 0), mtime: 1, kind });
    if metadata.is_dir() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            tree_on_disk(&entry.path(), &[prefix, b"/", entry.file_name().as_bytes()].concat(), nodes);
        }
    }
}

#[test]
fn every_oddity_of_a_store_path_arrives_as_it_is() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "odd", &[("odd", nix.out("oddities"))], "");
    let mut held = archive(&sandbox, nix.root(), &environment, &[]).root();
    let prefix = nix.out("oddities").trim_start_matches('/').as_bytes();
    held.retain(|path, _| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest[0] == b'/'));
    let mut expected = BTreeMap::new();
    tree_on_disk(&nix.real(nix.out("oddities")), prefix, &mut expected);
    // The mode of a link means nothing, and tar writers differ.
    for entry in held.values_mut().filter(|entry| matches!(entry.kind, EntryKind::Link(_))) {
        entry.mode = 0o777;
    }
    assert_eq!(held.len(), expected.len());
    for (path, entry) in &expected {
        assert_eq!(held.get(path), Some(entry), "{}", String::from_utf8_lossy(path));
    }
}

#[test]
fn a_store_without_a_database_is_scanned_for_references() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let lib = store.add("lib-1", &Tree::new().file("lib/data", "data"));
    let unused = store.add("unused-1", &Tree::new().file("x", "x"));
    let tool = store.add("tool-1", &Tree::new().file("share/tool/uses", format!("see {lib}/lib/data")));
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "bare", &[("tool", &tool)], "");
    let held = archive(&sandbox, store.root(), &environment, &[]).store_paths();
    assert!(held.contains(&tool) && held.contains(&lib), "{held:#?}");
    assert!(!held.contains(&unused), "{held:#?}");
}

#[test]
fn the_store_of_an_environment_variable_is_used() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let tool = store.add("tool-1", &Tree::new().file("share/tool", "tool"));
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "bare", &[("tool", &tool)], "");
    let mut command = sandbox.cmd();
    command.env("LAYERHOLD_STORE", store.root()).args(["containerize", "-f", "x.tar", "-d"]).arg(environment.dir());
    command.assert().success();
    assert!(Archive::open(&sandbox.path("work/x.tar")).store_paths().contains(&tool));
}

#[test]
fn a_lockfile_says_which_outputs_are_installed() {
    let nix = peer!(nix);
    let package = || LockedPackage::new("hello", nix.out("hello")).with_output("doc", nix.output("hello", "doc"));
    let held = |manifest: &str| {
        let sandbox = Sandbox::new();
        let environment = FloxEnv::new(sandbox.path("project"), "hello", manifest);
        environment.lock(&[package()]);
        archive(&sandbox, nix.root(), &environment, &["--shell", nix.out("bash")]).store_paths()
    };
    let install = "[install]\nhello.pkg-path = \"hello\"\n";
    let doc = nix.output("hello", "doc");
    assert!(held(&format!("version = 1\n{install}")).contains(doc), "version 1 installs every output");
    let newer = format!("schema-version = \"1.14.0\"\n{install}");
    assert!(!held(&newer).contains(doc), "a newer schema installs outputs_to_install");
    assert!(held(&format!("{newer}hello.outputs = \"all\"\n")).contains(doc), "the manifest may ask for all");
}

#[test]
fn the_manifests_configuration_becomes_the_images() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let rest = r#"
        [containerize.config]
        user = "www-data:1234"
        exposed-ports = ["80", "53/udp"]
        cmd = ["hello", "two words"]
        volumes = ["/data"]
        working-dir = "/srv/app"
        stop-signal = "SIGINT"
        labels = { "org.example.a" = "manifest", "org.example.b" = "manifest" }
    "#;
    let environment = hello_environment(&sandbox, nix, "configured", rest);
    let archive = archive(&sandbox, nix.root(), &environment, &["--label", "org.example.a=given", "--label", "empty"]);
    let config = &archive.config["config"];
    assert_eq!(config["User"], "www-data:1234");
    assert_eq!(config["ExposedPorts"], serde_json::json!({"80/tcp": {}, "53/udp": {}}));
    assert_eq!(config["Cmd"], serde_json::json!(["hello", "two words"]));
    assert_eq!(config["Volumes"], serde_json::json!({"/data": {}}));
    assert_eq!(config["WorkingDir"], "/srv/app");
    assert_eq!(config["StopSignal"], "SIGINT");
    assert_eq!(config["Labels"]["org.example.a"], "given");
    assert_eq!(config["Labels"]["org.example.b"], "manifest");
    assert_eq!(config["Labels"]["empty"], "");
    let root = archive.root();
    let EntryKind::File(passwd) = &root[&b"etc/passwd"[..]].kind else { panic!("/etc/passwd is no file") };
    let passwd = String::from_utf8_lossy(passwd);
    let line = passwd.lines().find(|line| line.starts_with("www-data:")).unwrap();
    let fields: Vec<_> = line.split(':').collect();
    assert_eq!((fields[2], fields[3], fields[5], fields[6]), ("10000", "1234", "/var/empty", "/bin/sh"), "{line}");
    assert_eq!(root[&b"srv/app"[..]].owner, (10000, 1234));
    for (path, entry) in root.iter().filter(|(path, _)| path.starts_with(b"nix/store/")) {
        assert_eq!(entry.owner, (0, 0), "{}", String::from_utf8_lossy(path));
    }
}

#[test]
fn labels_are_kept_where_the_manifest_configures_nothing() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "labelled", "");
    let archive = archive(&sandbox, nix.root(), &environment, &["--label", "a=b=c"]);
    assert_eq!(archive.config["config"]["Labels"]["a"], "b=c");
}

#[test]
fn the_image_is_called_what_the_message_says() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "MixedCase", "");
    let file = sandbox.path("image.tar");
    let outcome =
        containerize(&sandbox, nix.root(), &environment).args(["-t", "v1.2", "-f"]).arg(&file).assert().success();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains("'mixedcase:v1.2' written to"), "{said}");
    assert_eq!(Archive::open(&file).docker_tag(), "mixedcase:v1.2");
}

#[test]
fn without_a_runtime_the_image_goes_to_a_file_named_after_the_environment() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "hello", "");
    let outcome = containerize(&sandbox, nix.root(), &environment).assert().success();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains("written to file"), "{said}");
    Archive::open(&sandbox.path("work/hello-container.tar"));
}

#[test]
fn a_certificate_bundle_of_the_closure_is_found_where_programs_look() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let installs = [("cacert", nix.out("cacert"))];
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "certified", &installs, "");
    let root = archive(&sandbox, nix.root(), &environment, &[]).root();
    let bundle = format!("{}/etc/ssl/certs/ca-bundle.crt", nix.out("cacert"));
    // Where Debian's programs and Go look; nothing is there where the closure has no certificates.
    let EntryKind::Link(target) = &root[&b"etc/ssl/certs/ca-certificates.crt"[..]].kind else { panic!("no link") };
    assert_eq!(String::from_utf8_lossy(target), bundle);
    let EntryKind::File(certificates) = &root[&bundle.as_bytes()[1..]].kind else { panic!("no file '{bundle}'") };
    assert!(certificates.starts_with(b"-----BEGIN CERTIFICATE-----"));
    let without = hello_environment(&sandbox, nix, "uncertified", "");
    let root = archive(&sandbox, nix.root(), &without, &[]).root();
    assert!(!root.keys().any(|path| path.ends_with(b".crt")));
}

#[test]
fn an_image_is_as_old_as_it_is_said_to_be() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let tool = store.add("tool-1", &Tree::new().file("share/tool", "tool"));
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "dated", &[("tool", &tool)], "");
    let image = |epoch: Option<&str>, args: &[&str]| {
        let mut command = containerize(&sandbox, store.root(), &environment);
        command.args(["-f", "image.tar"]).args(args).envs(epoch.map(|epoch| ("SOURCE_DATE_EPOCH", epoch)));
        command.assert().success();
        Archive::open(&sandbox.path("work/image.tar"))
    };
    let is_from = |image: &Archive, when: &str| {
        assert_eq!(image.config["created"], when);
        for entry in image.config["history"].as_array().unwrap() {
            assert_eq!(entry["created"], when);
        }
    };
    let (undated, dated) = (image(None, &[]), image(Some("1234567890"), &[]));
    is_from(&undated, "1970-01-01T00:00:01Z");
    is_from(&dated, "2009-02-13T23:31:30Z");
    is_from(&image(Some("1234567890"), &["--created", "0"]), "1970-01-01T00:00:00Z");
    // What is in it is as old as ever: the layers are the same.
    assert_eq!(dated.layer_digests(), undated.layer_digests());
    assert_eq!(image(Some("1234567890"), &[]).image_id(), dated.image_id());
    let mut command = containerize(&sandbox, store.root(), &environment);
    command.args(["-f", "image.tar"]).env("SOURCE_DATE_EPOCH", "yesterday").assert().code(2);
}

#[test]
fn a_reader_that_goes_away_ends_the_run_without_an_error() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let environment = hello_environment(&sandbox, nix, "hello", "");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(sandbox.environment()).current_dir(sandbox.path("work"));
    command.args(["containerize", "-f", "-", "-d"]).arg(environment.dir()).arg("--store").arg(nix.root());
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = command.stdout(writer).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop((command, reader));
    let errors = thread::spawn({
        let mut errors = child.stderr.take().unwrap();
        move || std::io::read_to_string(&mut errors).unwrap()
    });
    let status = child.wait().unwrap();
    let said = errors.join().unwrap();
    assert!(status.success() && !said.contains("ERROR"), "{status}: {said}");
}

#[test]
fn a_reader_that_goes_away_keeps_nothing_from_the_other_targets() {
    let program = peer!(docker_registry);
    let sandbox = Sandbox::new();
    let server = program.start(&sandbox.path("registry"), Setup::default());
    let store = BareStore::new(sandbox.path("root"));
    // Far more than a pipe holds.
    let tool = store.add("tool-1", &Tree::new().file("share/tool", vec![7; 8 << 20]));
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "web", &[("tool", &tool)], "");
    let mut command = streaming(&sandbox, store.root(), &environment);
    let (reader, writer) = std::io::pipe().unwrap();
    command.args(["--push", &server.reference("team/web:1")]).stdout(writer).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    drop((command, reader));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("ERROR"), "{}: {said}", output.status);
    assert_eq!(server.tags("team/web"), ["1"], "{said}");
}

#[test]
fn files_that_runtimes_take_for_whiteouts_are_warned_of_once_by_who_packs_them() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let tree = |name: &str| Tree::new().file(format!("share/{name}"), "text").file(format!("share/not{name}"), "text");
    let first = store.add("first-1", &tree(".wh.b").file("share/.wh.a", "text"));
    let second = store.add("second-1", &tree(".whoever"));
    let third = store.add("third-1", &tree(".wh.c"));
    let installs = [("first", first.as_str()), ("second", second.as_str()), ("third", third.as_str())];
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "whiteouts", &installs, "");
    let warnings = |args: &[&str]| {
        let mut command = containerize(&sandbox, store.root(), &environment);
        let outcome = command.args(args).assert().success();
        let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
        said.lines().filter(|line| line.contains(".wh.")).map(str::to_owned).collect::<Vec<_>>()
    };
    let path = [format!("{first}/share/.wh.a"), format!("{third}/share/.wh.c")].into_iter().min().unwrap();
    let expected = format!(
        "! containers will lack '{path}', and 2 more: runtimes take files whose names begin with '.wh.' for whiteouts"
    );
    assert_eq!(warnings(&["-f", "image.tar"]), [expected.as_str()]);
    // The layers are known.
    assert!(warnings(&["-f", "again.tar"]).is_empty());
    assert_eq!(warnings(&["-f", "small.tar", "--compression", "gzip"]), [expected]);
}
