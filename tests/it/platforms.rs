//! Images for other machines than this one, and one index over several.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::archive::{Archive, Platforms};
use crate::containerize::containerize;
use crate::flox_fixture::{BareStore, FloxEnv, LockedPackage, Tree, this_system};
use crate::peers::peer;
use crate::sandbox::Sandbox;

/// A platform, as runtimes and as Nix call it.
#[derive(Clone, Copy)]
pub(crate) struct Platform {
    pub(crate) oci: &'static str,
    pub(crate) system: &'static str,
}

const AMD64: Platform = Platform { oci: "linux/amd64", system: "x86_64-linux" };
const ARM64: Platform = Platform { oci: "linux/arm64", system: "aarch64-linux" };

/// This machine's platform, and another.
pub(crate) fn here_and_elsewhere() -> (Platform, Platform) {
    if this_system() == AMD64.system { (AMD64, ARM64) } else { (ARM64, AMD64) }
}

/// Both, as `--platform` takes them, this machine's first.
pub(crate) fn both() -> String {
    let (here, elsewhere) = here_and_elsewhere();
    format!("{},{}", here.oci, elsewhere.oci)
}

/// An environment whose packages have other store paths on each platform, but for one.
pub(crate) struct Project {
    pub(crate) sandbox: Sandbox,
    pub(crate) store: BareStore,
    environment: FloxEnv,
    pub(crate) name: String,
}

impl Project {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_tools(name, |_, _| Some(Vec::new())).unwrap()
    }

    /// With a shell and tools that run here, whatever platform they are said to be for; `None` where there are none.
    pub(crate) fn that_runs(name: &str) -> Option<Self> {
        Self::with_tools(name, |store, _| Some(vec![("bash", store.add_bash()?), ("tools", store.add_tools()?)]))
    }

    fn with_tools(
        name: &str,
        tools: impl Fn(&BareStore, Platform) -> Option<Vec<(&'static str, String)>>,
    ) -> Option<Self> {
        let sandbox = Sandbox::new();
        let store = BareStore::new(sandbox.path("root"));
        // Large enough for a layer of its own.
        let data = store.add("data-1", &Tree::new().file("share/data", vec![b'x'; 1 << 20]));
        let mut packages = Vec::new();
        for platform in [AMD64, ARM64] {
            let lib = store.add("lib-1", &Tree::new().file("lib/for", platform.system));
            let says = store.add("says-1", &Tree::new().file("share/says", platform.oci).link("share/lib", &lib));
            let own = [("data", data.clone()), ("says", says)].into_iter().chain(tools(&store, platform)?);
            packages.extend(own.map(|(id, path)| LockedPackage {
                system: platform.system.to_owned(),
                ..LockedPackage::new(id, &path)
            }));
        }
        let installs: std::collections::BTreeSet<_> = packages.iter().map(|package| &package.install_id).collect();
        let installs: String = installs.iter().map(|id| format!("{id}.pkg-path = \"{id}\"\n")).collect();
        let manifest = format!("schema-version = \"1.14.0\"\n[install]\n{installs}");
        let environment = FloxEnv::new(sandbox.path("project"), name, &manifest);
        environment.lock(&packages);
        Some(Self { sandbox, store, environment, name: name.to_owned() })
    }

    pub(crate) fn command(&self, args: &[&str]) -> assert_cmd::Command {
        let mut command = containerize(&self.sandbox, self.store.root(), &self.environment);
        command.args(args);
        command
    }

    /// A run to a good end with `--json`.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.command(args).arg("--json").assert().success().get_output().stdout.clone();
        serde_json::from_slice(&output).unwrap()
    }

    /// What a run that fails says, and its exit code.
    fn failure(&self, args: &[&str]) -> (String, i32) {
        let outcome = self.command(args).assert().failure();
        let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
        (self.sandbox.tidy(&said), outcome.get_output().status.code().unwrap())
    }

    /// A file in the directory that runs take place in.
    pub(crate) fn at(&self, name: &str) -> std::path::PathBuf {
        self.sandbox.path("work").join(name)
    }

    /// A file with the images for both platforms.
    pub(crate) fn archive_of_both(&self) -> (Platforms, String) {
        let file = self.at("both.tar");
        self.command(&["--platform", &both(), "-f", "both.tar"]).assert().success();
        (Platforms::open(&file), file.display().to_string())
    }
}

fn says(image: &Archive) -> String {
    let root = image.root();
    let (_, entry) = root.iter().find(|(path, _)| path.ends_with(b"says-1/share/says")).unwrap();
    let crate::archive::EntryKind::File(contents) = &entry.kind else { panic!("no file") };
    String::from_utf8(contents.clone()).unwrap()
}

#[test]
fn an_image_for_a_platform_holds_what_is_locked_for_it() {
    let project = Project::new("hello");
    for (spelling, platform) in [
        ("linux/arm64", ARM64),
        ("linux/arm64/v8", ARM64),
        ("arm64", ARM64),
        ("aarch64-linux", ARM64),
        ("linux/amd64", AMD64),
        ("linux/amd64,amd64", AMD64),
    ] {
        project.command(&["--platform", spelling, "-f", "image.tar"]).assert().success();
        let image = Archive::open(&project.at("image.tar"));
        assert_eq!(format!("linux/{}", image.config["architecture"].as_str().unwrap()), platform.oci, "{spelling}");
        assert_eq!(says(&image), platform.oci, "{spelling}");
        assert_eq!(image.store_paths().iter().filter(|path| path.ends_with("-says-1")).count(), 1);
    }
    // Without the flag the image is this machine's.
    let by_default = project.json(&["-f", "image.tar"]);
    assert_eq!(says(&Archive::open(&project.at("image.tar"))), here_and_elsewhere().0.oci);
    let named = project.json(&["-f", "image.tar", "--platform", here_and_elsewhere().0.oci]);
    assert_eq!((&named["image_id"], &named["layers_sent"]), (&by_default["image_id"], &0.into()));
}

#[test]
fn several_platforms_are_one_index_over_the_images_that_each_would_be() {
    let project = Project::new("hello");
    let (platforms, _) = project.archive_of_both();
    let (here, elsewhere) = here_and_elsewhere();
    assert_eq!(platforms.images.iter().map(|(platform, _)| &**platform).collect::<Vec<_>>(), [here.oci, elsewhere.oci]);
    for platform in [here, elsewhere] {
        let image = platforms.image(platform.oci);
        assert_eq!(says(image), platform.oci);
        project.command(&["--platform", platform.oci, "-f", "one.tar"]).assert().success();
        let alone = Archive::open(&project.at("one.tar"));
        assert_eq!(image.manifest_digest, alone.manifest_digest);
        assert_eq!(image.config, alone.config);
    }
    // What both have is one blob.
    let [first, second] = [here, elsewhere].map(|platform| platforms.image(platform.oci).layer_digests());
    assert!(first.iter().any(|digest| second.contains(digest)), "{first:?} {second:?}");
    assert!(platforms.layer_digests().len() < first.len() + second.len());

    // The order is the user's.
    let turned = format!("{},{}", elsewhere.oci, here.oci);
    project.command(&["--platform", &turned, "-f", "turned.tar"]).assert().success();
    let turned = Platforms::open(&project.at("turned.tar"));
    assert_eq!(turned.images[0].0, elsewhere.oci);
    assert_eq!(turned.image(here.oci).manifest_digest, platforms.image(here.oci).manifest_digest);
}

#[test]
fn each_image_of_an_index_holds_the_closure_that_nix_knows_and_no_more_layers_than_allowed() {
    let nix = peer!(nix);
    let sandbox = Sandbox::new();
    let manifest = "schema-version = \"1.14.0\"\n[install]\nhello.pkg-path = \"hello\"\n";
    let environment = FloxEnv::new(sandbox.path("project"), "hello", manifest);
    // What a package was built for its store path does not say.
    let packages = [(AMD64, "hello"), (ARM64, "hello-revised")];
    environment.lock(&packages.map(|(platform, package)| LockedPackage {
        system: platform.system.to_owned(),
        ..LockedPackage::new("hello", nix.out(package))
    }));
    let run = |args: &[&str]| {
        let mut command = containerize(&sandbox, nix.root(), &environment);
        command.args(["--platform", &both(), "-f", "image.tar"]).args(args).assert().success();
        Platforms::open(&sandbox.path("work/image.tar"))
    };
    let many = run(&[]);
    for (platform, package) in packages {
        let held = many.image(platform.oci).store_paths();
        let closure = nix.closure(&[nix.out(package)]);
        assert!(held.is_superset(&closure), "{:?}", closure.difference(&held));
        assert_eq!(held.len(), closure.len() + 1, "and the environment itself");
    }
    let few = run(&["--max-layers", "2"]);
    for (platform, image) in &few.images {
        assert!(many.image(platform).layer_digests().len() > 2);
        assert_eq!(image.layer_digests().len(), 2);
        assert!(image.root() == many.image(platform).root(), "{platform}");
    }
}

#[test]
fn two_flags_are_one_list_and_every_target_gets_the_same_index() {
    let project = Project::new("hello");
    let (here, elsewhere) = here_and_elsewhere();
    let two = ["--platform", here.oci, "--platform", elsewhere.oci];
    let (platforms, file) = project.archive_of_both();
    let piped = project.command(&[&two[..], &["-f", "-"]].concat()).assert().success().get_output().stdout.clone();
    assert!(piped == fs::read(file).unwrap(), "the file differs from standard output");
    let compressed = ["-f", "small.tar", "--compression", "zstd", "--platform"];
    project.command(&[&compressed[..], &[&both()]].concat()).assert().success();
    for (platform, image) in &Platforms::open(&project.at("small.tar")).images {
        assert_eq!(image.image_id(), platforms.image(platform).image_id());
    }

    let outcome = project.command(&[&two[..], &["--layout", "layout", "-t", "v1"]].concat()).assert().success();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains(&format!("'hello:v1' ({}, {}) written to layout", here.oci, elsewhere.oci)), "{said}");
    let index: Value = serde_json::from_slice(&fs::read(project.at("layout/index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(index["manifests"][0]["digest"], platforms.digest);
    assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "hello:v1");
    // An image takes the place of the index, and an index that of an image.
    project.command(&["--platform", here.oci, "--layout", "layout", "-t", "v1"]).assert().success();
    project.command(&[&two[..], &["--layout", "layout", "-t", "v1"]].concat()).assert().success();
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(project.at("layout/index.json")).unwrap()).unwrap(), index);
}

#[test]
fn json_describes_each_image_and_what_was_sent_of_all() {
    let project = Project::new("hello");
    let args = ["--platform", &both(), "-f", "both.tar"];
    let dry = project.json(&[&args[..], &["--dry-run"]].concat());
    assert!(!project.at("both.tar").exists());
    let real = project.json(&args);
    let archive = Platforms::open(&project.at("both.tar"));
    assert_eq!(real["index_digest"].as_str(), Some(&*archive.digest));
    assert_eq!((&real["image_id"], &real["layers"]), (&Value::Null, &Value::Null));
    let described = real["platforms"].as_array().unwrap();
    assert_eq!(described.len(), 2);
    for (described, (platform, image)) in described.iter().zip(&archive.images) {
        assert_eq!(described["platform"].as_str(), Some(&**platform));
        assert_eq!(described["image_id"], image.image_id());
        assert_eq!(described["manifest_digest"], image.manifest_digest);
        let layers = described["layers"].as_array().unwrap().iter();
        let digests: Vec<_> = layers.map(|layer| layer["digest"].as_str().unwrap()).collect();
        assert_eq!(digests, image.layer_digests());
    }
    assert_eq!(real["layers_sent"].as_u64(), Some(archive.layer_digests().len() as u64));
    for field in ["index_digest", "layers_sent", "bytes_sent", "layers_held", "bytes_held"] {
        assert_eq!(dry[field], real[field], "{field}");
    }
    let ids = |run: &Value| -> Vec<Value> {
        run["platforms"].as_array().unwrap().iter().map(|platform| platform["image_id"].clone()).collect()
    };
    assert_eq!(ids(&dry), ids(&real));
}

#[test]
fn layers_of_all_platforms_are_packed_together_and_what_is_shared_once() {
    let project = Project::new("hello");
    let mut command = project.sandbox.cmd();
    command.args(["-v", "containerize", "-f", "both.tar", "--platform", &both(), "--store"]).arg(project.store.root());
    let outcome = command.arg("-d").arg(project.environment.dir()).assert().success();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert_eq!(said.matches("Packing layers").count(), 1, "{said}");
    let platforms = Platforms::open(&project.at("both.tar"));
    let each_once = platforms.layer_digests().len();
    assert!(said.contains(&format!(", {each_once} new (")), "{said}");
    assert!(said.contains(&format!("sent: {each_once} of {each_once} layers")), "{said}");
    // What Flox has built is looked for on each platform.
    for (platform, _) in &platforms.images {
        assert!(said.contains(&format!("{platform}: Flox has not built")), "{said}");
    }
}

#[test]
fn an_unchanged_run_writes_nothing() {
    let project = Project::new("hello");
    for (target, file) in [(["-f", "both.tar"], "both.tar"), (["--layout", "layout"], "layout/index.json")] {
        let run = || project.json(&[&["--platform", &both()], &target[..]].concat());
        run();
        let inode = fs::metadata(project.at(file)).unwrap().ino();
        let again = run();
        assert_eq!((&again["layers_sent"], &again["bytes_sent"]), (&0.into(), &0.into()));
        assert_eq!(fs::metadata(project.at(file)).unwrap().ino(), inode, "{file}");
        let layers =
            again["platforms"].as_array().unwrap().iter().flat_map(|image| image["layers"].as_array().unwrap());
        assert!(layers.into_iter().all(|layer| layer["reused"] == true));
    }
    // The image of one platform is another file.
    let one = project.json(&["--platform", here_and_elsewhere().0.oci, "-f", "both.tar"]);
    assert!(one["layers_sent"].as_u64().unwrap() > 0);
    Archive::open(&project.at("both.tar"));
}

#[test]
fn the_cache_keeps_the_images_of_an_index_together() {
    let project = Project::new("hello");
    let run = project.json(&["--platform", &both(), "-f", "both.tar"]);
    let cache = |args: &[&str]| {
        let output = project.sandbox.cmd().arg("cache").args(args).assert().success().get_output().stdout.clone();
        String::from_utf8(output).unwrap()
    };
    let json = |args: &[&str]| -> Value { serde_json::from_str(&cache(args)).unwrap() };
    let rows = json(&["ls", "--json"]);
    assert_eq!(rows.as_array().unwrap().len(), 1);
    let (here, elsewhere) = here_and_elsewhere();
    assert_eq!(rows[0]["platforms"], serde_json::json!([here.oci, elsewhere.oci]));
    assert_eq!(rows[0]["image_id"], run["index_digest"]);
    assert_eq!(rows[0]["layers"], run["layers_sent"]);
    assert_eq!(rows[0]["size"], run["bytes_sent"]);
    assert_eq!(json(&["ls", "--layers", "--json"]).as_array().unwrap().len() as u64, run["layers_sent"]);

    // Each of the digests leads to it, and so does a store path of either platform.
    let mut asked = vec![run["index_digest"].as_str().unwrap().to_owned()];
    for platform in run["platforms"].as_array().unwrap() {
        asked.extend(["image_id", "manifest_digest"].map(|field| platform[field].as_str().unwrap().to_owned()));
        let says =
            platform["layers"].as_array().unwrap().iter().flat_map(|layer| layer["store_paths"].as_array().unwrap());
        asked.extend(says.map(|path| path.as_str().unwrap().to_owned()).filter(|path| path.ends_with("lib-1")));
    }
    assert_eq!(asked.len(), 7);
    for digest in asked {
        let rows = json(&["why", &digest, "--json"]);
        assert_eq!(rows.as_array().unwrap().len(), 1, "{digest}");
        assert_eq!((&rows[0]["image"], &rows[0]["image_id"]), (&"hello:latest".into(), &run["index_digest"]));
        if digest.starts_with("/nix/store") {
            assert_eq!(rows[0]["through"].as_array().unwrap().len(), 2, "{rows}");
        }
    }

    // Another image under the name is a row of its own, and shares layers; a pin keeps both.
    project.command(&["--platform", elsewhere.oci, "-f", "one.tar"]).assert().success();
    assert_eq!(json(&["ls", "--json"]).as_array().unwrap().len(), 2);
    cache(&["pin", "hello"]);
    cache(&["gc", "--max-size", "0"]);
    assert_eq!(json(&["ls", "--json"]).as_array().unwrap().len(), 2);
    cache(&["unpin", "hello"]);
    cache(&["gc", "--max-size", "0"]);
    assert_eq!(json(&["ls", "--json"]), serde_json::json!([]));
    assert_eq!(json(&["ls", "--layers", "--json"]), serde_json::json!([]));
}

#[test]
fn a_runtime_is_refused_before_any_work() {
    let project = Project::new("hello");
    for runtime in ["docker", "podman"] {
        project.sandbox.script(runtime, "echo \"$@\" >> \"$TMPDIR/asked\"\nexit 1\n");
    }
    // Not even the store is looked at.
    fs::remove_dir_all(project.store.root()).unwrap();
    for (args, runtime) in [(&[][..], "Docker"), (&["--runtime", "podman"], "Podman"), (&["--dry-run"], "Docker")] {
        let (said, code) = project.failure(&[&["--platform", &both()], args].concat());
        assert_eq!(code, 1);
        assert!(said.contains(&format!("ERROR: {runtime} takes an image for one platform, not for several")), "{said}");
        assert!(said.contains("hint: ") && said.contains("--file image.tar"), "{said}");
    }
    assert!(!project.sandbox.path("tmp/asked").exists());
    assert_eq!(fs::read_dir(project.sandbox.path("work")).unwrap().count(), 0);
}

#[test]
fn what_a_platform_lacks_is_named_with_the_platform() {
    let project = Project::new("hello");
    let (_, elsewhere) = here_and_elsewhere();
    let manifest = |install: &str| format!("schema-version = \"1.14.0\"\n[install]\n{install}");
    let data = project.store.add("data-1", &Tree::new().file("share/data", "the same everywhere"));
    let here_only = || [LockedPackage::new("data", &data)];

    // Asked for on every system, and locked for this machine's alone.
    project.environment.write("env/manifest.toml", &manifest("data.pkg-path = \"data\"\n"));
    project.environment.lock(&here_only());
    let (said, _) = project.failure(&["-f", "x.tar", "--platform", &both()]);
    let expected = format!(
        "the package 'data' is not locked for {}, and the manifest asks for it on every system",
        elsewhere.system
    );
    assert!(said.contains(&expected) && said.contains(elsewhere.oci), "{said}");
    assert!(said.contains("hint: resolve the packages again: flox upgrade -d"), "{said}");

    // Limited to this machine: elsewhere it is left out, and that is no error.
    let limited = format!("data.pkg-path = \"data\"\ndata.systems = [\"{}\"]\n", this_system());
    project.environment.write("env/manifest.toml", &manifest(&limited));
    project.environment.lock(&here_only());
    let (platforms, _) = project.archive_of_both();
    let holds = |platform: Platform| platforms.image(platform.oci).store_paths().contains(&data);
    assert!(holds(here_and_elsewhere().0) && !holds(elsewhere));

    // The environment is for this machine alone.
    let options = format!("{}[options]\nsystems = [\"{}\"]\n", manifest("data.pkg-path = \"data\"\n"), this_system());
    project.environment.write("env/manifest.toml", &options);
    project.environment.lock(&here_only());
    let (said, _) = project.failure(&["-f", "x.tar", "--platform", elsewhere.oci]);
    assert!(said.contains(&format!("is not for {}, only for {}", elsewhere.system, this_system())), "{said}");
    assert!(said.contains(&format!("hint: add \"{}\" to options.systems", elsewhere.system)), "{said}");
    assert!(!project.at("x.tar").exists());
}

#[test]
fn a_missing_store_path_is_named_with_the_platform_that_needs_it() {
    let project = Project::new("hello");
    let (here, elsewhere) = here_and_elsewhere();
    // Of one platform's packages one is gone.
    let (platforms, _) = project.archive_of_both();
    let says = |platform: Platform| {
        let paths = platforms.image(platform.oci).store_paths();
        paths.into_iter().find(|path| path.ends_with("says-1")).unwrap()
    };
    fs::remove_dir_all(project.store.real(&says(elsewhere))).unwrap();
    project.command(&["-f", "x.tar"]).assert().success();
    for asked in [both(), elsewhere.oci.to_owned()] {
        let (said, _) = project.failure(&["-f", "x.tar", "--platform", &asked]);
        let expected =
            format!("ERROR: no image for {}: '/nix/store/[HASH]-says-1' is not in the Nix store", elsewhere.oci);
        assert!(said.contains(&expected), "{said}");
        let hint = format!(
            "build it on {} and copy it from there: nix-copy-closure --from HOST /nix/store/",
            elsewhere.system
        );
        assert!(said.contains(&hint), "{said}");
    }
    // What is lost of this machine's own needs no name, unless there are several.
    fs::remove_dir_all(project.store.real(&says(here))).unwrap();
    let (said, _) = project.failure(&["-f", "x.tar"]);
    assert!(said.contains("ERROR: '/nix/store/[HASH]-says-1' is not in the Nix store"), "{said}");
    let (said, _) = project.failure(&["-f", "x.tar", "--platform", &both()]);
    assert!(said.contains(&format!("ERROR: no image for {}: '/nix/store/", here.oci)), "{said}");
    assert!(said.contains("flox activate"), "{said}");
}

#[test]
fn wrong_platforms_and_shells_are_wrong_usage() {
    let project = Project::new("hello");
    let bash = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-bash-5.2";
    for (args, expected) in [
        (
            &["--platform", "windows/amd64"][..],
            "'windows/amd64' is not a platform that images are made for: linux/amd64",
        ),
        (&["--platform", "linux/amd64,"], "is not a platform"),
        (&["--platform", &both(), "--shell", bash], "a shell runs on one platform, and there are several"),
        (&["--platform", "arm64", "--shell", &format!("amd64={bash}")], "a shell for linux/amd64, and no image for it"),
    ] {
        let (said, code) = project.failure(&[args, &["-f", "x.tar"]].concat());
        assert!(said.contains(expected) && code == 2, "{code}: {said}");
    }
}

#[test]
fn a_store_path_for_every_platform_is_taken_as_it_is_with_a_warning() {
    let project = Project::new("hello");
    let tool = project.store.add("tool-1", &Tree::new().program("bin/tool", "#!"));
    let warning = "gets the store paths of 'tool' as they are";
    let warnings = |rest: &str, platform: &str| {
        let name = project.sandbox.path("paths");
        let environment = FloxEnv::of_store_paths(name, "hello", &[("tool", &tool)], rest);
        let mut command = containerize(&project.sandbox, project.store.root(), &environment);
        let outcome = command.args(["-f", "x.tar", "--platform", platform]).assert().success();
        String::from_utf8(outcome.get_output().stderr.clone()).unwrap().matches(warning).count()
    };
    let (here, elsewhere) = here_and_elsewhere();
    assert_eq!(warnings("", here.oci), 0);
    assert_eq!(warnings("", elsewhere.oci), 1);
    assert_eq!(warnings("", &both()), 2);
    let here_only = format!("tool.systems = [\"{}\"]\n", here.system);
    assert_eq!(warnings(&here_only, &both()), 0);
}

#[test]
fn each_platform_has_its_shell() {
    let project = Project::new("hello");
    let shells = [AMD64, ARM64].map(|platform| {
        let path = project.store.add("bash-5", &Tree::new().program("bin/bash", format!("#!{}", platform.oci)));
        format!("{}={path}", platform.oci)
    });
    project.environment.write(
        "env/manifest.toml",
        &fs::read_to_string(project.environment.dot_flox("env/manifest.toml"))
            .unwrap()
            .replace("[install]", "[hook]\non-activate = 'true'\n[install]"),
    );
    let lock = project.environment.dot_flox("env/manifest.lock");
    let mut locked: Value = serde_json::from_slice(&fs::read(&lock).unwrap()).unwrap();
    locked["manifest"]["hook"] = serde_json::json!({"on-activate": "true"});
    fs::write(&lock, locked.to_string()).unwrap();
    let args = ["-f", "x.tar", "--platform", &both()];
    let (said, _) = project.failure(&args);
    assert!(said.contains("no image for linux/") && said.contains("has no bash"), "{said}");
    let [first, second] = &shells;
    project.command(&[&args[..], &["--shell", first, "--shell", second]].concat()).assert().success();
    let platforms = Platforms::open(&project.at("x.tar"));
    for shell in &shells {
        let (platform, path) = shell.split_once('=').unwrap();
        let bash: Vec<_> =
            platforms.image(platform).store_paths().into_iter().filter(|path| path.ends_with("bash-5")).collect();
        assert_eq!(bash, [path]);
    }
}
