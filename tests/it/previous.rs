//! `--previous`: layers that stay where the image before has them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::archive::{Archive, Platforms};
use crate::containerize::containerize;
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::{LoadedImage, Peer, peer, skip_this, unique_name};
use crate::registry_proxy::{Fault, RegistryProxy, Request};
use crate::registry_server::Setup;
use crate::sandbox::Sandbox;

/// A store, and environments of what is in it.
struct Project {
    sandbox: Sandbox,
    store: BareStore,
    name: String,
}

impl Project {
    fn new(name: &str) -> Self {
        let sandbox = Sandbox::new();
        let store = BareStore::new(sandbox.path("root"));
        Self { sandbox, store, name: name.to_owned() }
    }

    /// A package of that many mebibytes.
    fn package(&self, name: &str, mebibytes: usize) -> String {
        let mut bytes = vec![0; mebibytes << 20];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        self.store.add(name, &Tree::new().file(format!("share/{name}"), bytes))
    }

    /// Five packages of one to five mebibytes, these versions of them, and more.
    fn environment(&self, versions: [u32; 5], more: &[&str]) -> FloxEnv {
        self.environment_named(&self.name, versions, more)
    }

    /// The same, of another name.
    fn environment_named(&self, name: &str, versions: [u32; 5], more: &[&str]) -> FloxEnv {
        let five = (1..).zip(versions).map(|(n, version)| self.package(&format!("tool{n}-{version}"), n));
        let paths: Vec<String> = five.chain(more.iter().map(|path| (*path).to_owned())).collect();
        let ids: Vec<String> = (0..paths.len()).map(|n| format!("tool{n}")).collect();
        let installs: Vec<_> = ids.iter().zip(&paths).map(|(id, path)| (id.as_str(), path.as_str())).collect();
        FloxEnv::of_store_paths(self.sandbox.path(format!("project-{name}")), name, &installs, "")
    }

    fn command(&self, environment: &FloxEnv, args: &[&str]) -> assert_cmd::Command {
        let mut command = containerize(&self.sandbox, self.store.root(), environment);
        command.args(args);
        command
    }

    /// What `--json` says of the image in a file.
    fn described(&self, environment: &FloxEnv, args: &[&str]) -> Value {
        let mut command = self.command(environment, &["--json", "-f", "image.tar"]);
        let output = command.args(args).assert().success().get_output().stdout.clone();
        serde_json::from_slice(&output).unwrap()
    }

    /// What a run says with `-v`.
    fn said(&self, environment: &FloxEnv, args: &[&str]) -> String {
        let mut command = self.sandbox.cmd();
        command.args(["-v", "containerize", "-f", "image.tar", "--store"]).arg(self.store.root());
        let output = command.arg("-d").arg(environment.dir()).args(args).assert().success().get_output().clone();
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// What a run says, and then the image is as without `--previous`.
    fn warning(&self, environment: &FloxEnv, args: &[&str]) -> String {
        let expected = self.described(environment, &["--tag", "fresh"]);
        let output = self.command(environment, &["--json", "-f", "image.tar"]).args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let image: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(image["image_id"], expected["image_id"], "{said}");
        let warnings = said.lines().filter(|line| !line.contains("written to"));
        warnings.map(|line| self.sandbox.tidy(line) + "\n").collect()
    }
}

/// The layers of packages, by their names, the bottom one first.
fn packages(image: &Value) -> Vec<String> {
    let names = |layer: &Value| -> Vec<String> {
        let paths = layer["store_paths"].as_array().unwrap().iter();
        let names = paths.map(|path| path.as_str().unwrap()["/nix/store/".len() + 33..].to_owned());
        names.filter(|name| !name.starts_with("environment")).collect()
    };
    let layers = image["layers"].as_array().unwrap().iter();
    layers.map(|layer| names(layer).join(" ")).filter(|names| names.starts_with("tool") || names == "added").collect()
}

#[test]
fn what_is_new_comes_on_top_and_the_rest_stays() {
    let project = Project::new("app");
    let added = project.package("added", 3);
    let first = project.described(&project.environment([1; 5], &[]), &[]);
    assert_eq!(packages(&first), ["tool5-1", "tool4-1", "tool3-1", "tool2-1", "tool1-1"]);

    let more = project.environment([1; 5], &[&added]);
    let fresh = project.described(&more, &["--tag", "fresh"]);
    assert_eq!(packages(&fresh), ["tool5-1", "tool4-1", "tool3-1", "added", "tool2-1", "tool1-1"]);
    let after = project.described(&more, &["--previous"]);
    assert_eq!(packages(&after), ["tool5-1", "tool4-1", "tool3-1", "tool2-1", "tool1-1", "added"]);

    let said = project.said(&more, &["--tag", "next", "--previous", "app:latest"]);
    let digest = after["manifest_digest"].as_str().unwrap();
    assert!(said.contains(&format!("layers are laid out on those of 'app:latest' ({digest}): 6 stay")), "{said}");

    // The same again is the same again; a package that is changed again and again costs itself alone. Three mebibytes
    // of sixteen are too much to be carried along.
    assert_eq!(project.described(&more, &["--previous"])["image_id"], after["image_id"]);
    let changed = project.described(&project.environment([1, 1, 2, 1, 1], &[&added]), &["--previous"]);
    assert_eq!(packages(&changed), ["tool5-1", "tool4-1", "tool2-1", "tool1-1", "added", "tool3-2"]);
    let gone = project.described(&project.environment([1, 1, 2, 1, 1], &[]), &["--previous", "app:latest"]);
    assert_eq!(packages(&gone), ["tool5-1", "tool4-1", "tool2-1", "tool1-1", "tool3-2"]);
}

/// Forty mebibytes, of which three are little.
#[test]
fn a_little_that_is_gone_is_hidden_where_it_lies() {
    let project = Project::new("app");
    let (large, old) = (project.package("tool-large", 40), project.package("tool3-1", 3));
    let archive = || Archive::open(&project.sandbox.path("work/image.tar"));
    project.described(&project.environment([1; 5], &[&large]), &[]);
    let before = ["tool-large", "tool5-1", "tool4-1", "tool3-1", "tool2-1", "tool1-1"];

    let changed = project.environment([1, 1, 2, 1, 1], &[&large]);
    let described = project.described(&changed, &["--tag", "fresh"]);
    assert_eq!(packages(&described), ["tool-large", "tool5-1", "tool4-1", "tool3-2", "tool2-1", "tool1-1"]);
    let (fresh, expected) = (archive(), archive().root());
    assert_eq!((fresh.hidden().len(), described["hidden"].clone()), (0, json!([])));
    let after = project.described(&changed, &["--previous"]);
    assert_eq!(packages(&after), [&before[..], &["tool3-2"]].concat());
    assert_eq!(archive().hidden(), [old.trim_start_matches('/')]);
    assert!(archive().root() == expected, "the layers over each other are the same file system");
    // Who asks for it is told.
    let why = project.sandbox.cmd().args(["cache", "why", &old]).assert().success().get_output().stdout.clone();
    insta::assert_snapshot!(project.sandbox.tidy(&String::from_utf8(why).unwrap()), @r"
    app:latest in layer 10135c3ba9ec through 70r64qv3crjncqir64rn4diqc8s62rb1-tool3-1
    app:latest in layer 10135c3ba9ec, hidden: nothing in it needs it any more
    ");
    let said = project.said(&changed, &["--tag", "next", "--previous", "app:latest"]);
    assert!(said.contains("7 stay, and hide 1 that is gone (3.0 MiB)"), "{said}");

    // The same again is the same again; what comes again lies on top, and carries nothing more along.
    assert_eq!(project.described(&changed, &["--previous"])["image_id"], after["image_id"]);
    let again = project.described(&project.environment([1, 1, 3, 1, 1], &[&large]), &["--previous"]);
    assert_eq!(packages(&again), [&before[..], &["tool3-3"]].concat());
    assert_eq!(archive().hidden(), [old.trim_start_matches('/')]);
    // Back where it began, nothing is hidden; and a package that comes and goes moves nothing.
    let more = project.environment([1; 5], &[&large, &project.package("added", 1)]);
    assert_eq!(packages(&project.described(&more, &["--previous"])), [&before[..], &["added"]].concat());
    assert_eq!(archive().hidden(), [""; 0]);
    let less = project.environment([1; 5], &[&large]);
    assert_eq!(packages(&project.described(&less, &["--previous"])), before);
}

#[test]
fn what_is_gone_goes_where_it_cannot_be_had_or_nothing_vouches_for_it() {
    let program = peer!(docker_registry);
    let project = Project::new("app");
    let (large, old) = (project.package("tool-large", 40), project.package("tool3-1", 3));
    let moved = ["tool-large", "tool5-1", "tool4-1", "tool2-1", "tool1-1", "tool3-2"];
    let changed = || project.environment([1, 1, 2, 1, 1], &[&large]);
    // Of an image of another name nothing is carried along.
    project.described(&project.environment_named("other", [1; 5], &[&large]), &[]);
    assert_eq!(packages(&project.described(&changed(), &["--previous", "other", "--tag", "next"])), moved);

    // A machine that never made the layer may have the store path all the same.
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let reference = server.reference("team/app:1");
    project.command(&project.environment([1; 5], &[&large]), &["--push", &reference]).assert().success();
    let cache = tempfile::tempdir().unwrap();
    let mut elsewhere = project.command(&changed(), &["--json", "-f", "image.tar", "--previous", &reference]);
    let output = elsewhere.env("LAYERHOLD_CACHE", cache.path()).assert().success().get_output().stdout.clone();
    assert_eq!(packages(&serde_json::from_slice(&output).unwrap()), moved);
    // Here it did, of whatever compression.
    let here = project.described(&changed(), &["--previous", &reference, "--tag", "next"]);
    assert_eq!(packages(&here), [&["tool-large", "tool5-1", "tool4-1", "tool3-1"][..], &moved[3..]].concat());

    std::fs::remove_dir_all(project.store.real(&old)).unwrap();
    assert_eq!(packages(&project.described(&changed(), &["--previous", &reference, "--tag", "next"])), moved);
}

#[test]
fn umoci_does_not_unpack_what_is_hidden() {
    let umoci = peer!(umoci);
    let project = Project::new("app");
    let (large, old) = (project.package("tool-large", 40), project.package("tool3-1", 3));
    let (layout, bundle) = (project.sandbox.path("layout"), project.sandbox.path("bundle"));
    for version in [1, 2] {
        let environment = project.environment([1, 1, version, 1, 1], &[&large]);
        let mut command = project.command(&environment, &["--compression", "gzip", "--previous", "--layout"]);
        command.arg(&layout).assert().success();
    }
    umoci.run([
        "unpack",
        "--rootless",
        "--image",
        &format!("{}:app:latest", layout.display()),
        bundle.to_str().unwrap(),
    ]);
    let is_there = |path: &str| bundle.join("rootfs").join(path.trim_start_matches('/')).exists();
    assert_eq!((is_there(&old), is_there(&project.package("tool3-2", 3)), is_there(&large)), (false, true, true));
}

/// Names that go are hidden, and the layer of the others stays.
#[test]
fn the_layer_of_the_roots_links_stays_where_names_go() {
    let project = Project::new("app");
    let programs = |name: &str, count: usize| {
        // Large enough not to lie on top of everything, and small enough to be hidden.
        let tree = Tree::new().file(format!("lib/{name}"), vec![0; 4 << 20]);
        project.store.add(name, &(0..count).fold(tree, |tree, n| tree.program(format!("bin/{name}{n}"), name)))
    };
    let large = project.package("tool-large", 40);
    let (many, few, other) = (programs("many", 40), programs("few", 3), programs("other", 30));
    let file = project.sandbox.path("work/image.tar");
    let made = |more: &[&String], args: &[&str]| {
        let more: Vec<&str> = more.iter().map(|path| path.as_str()).chain([large.as_str()]).collect();
        project.described(&project.environment([1; 5], &more), args);
        Archive::open(&file)
    };
    let links = |archive: &Archive| archive.layer_digests().iter().rev().nth(1).cloned().unwrap();
    let first = made(&[&many, &few, &other], &[]);
    let cases = [
        // What goes, what is new.
        (&[&many, &other][..], true),
        (&[&few, &other], false),
        (&[&many, &other, &programs("new", 1)], false),
        (&[&many, &few, &other], true),
    ];
    for (more, stays) in cases {
        let expected = made(more, &["--tag", "fresh"]);
        let after = made(more, &["--tag", "next", "--previous", "app:latest"]);
        assert!(after.root() == expected.root(), "{more:?}");
        assert_eq!(links(&after) == links(&first), stays, "{more:?}");
        let again = made(more, &["--tag", "next", "--previous", "app:next"]);
        assert_eq!(again.image_id(), after.image_id(), "{more:?}");
    }
    let less = made(&[&many, &other], &["--previous", "app:latest"]);
    assert_eq!(less.hidden().iter().filter(|path| path.starts_with("bin/few")).count(), 3);
    let back = made(&[&many, &few, &other], &["--previous", "app:latest"]);
    assert_eq!(back.image_id(), first.image_id());
}

/// A registry that has one image, whatever it is asked for.
fn serve(image: &Archive, config: &Value) -> String {
    let config = serde_json::to_vec(config).unwrap();
    let mut manifest = image.manifest.clone();
    manifest["config"]["digest"] = layerhold::blob::Digest::of(&config).to_string().into();
    manifest["config"]["size"] = config.len().into();
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("127.0.0.1:{}/team/app:1", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // A request comes in one piece; who begins with TLS hears that there is none.
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let line = String::from_utf8_lossy(&request[..length]);
            let (kind, body) = match &*line {
                line if line.contains("/manifests/") => ("application/vnd.oci.image.manifest.v1+json", &manifest[..]),
                line if line.contains("/blobs/") => ("application/octet-stream", &config[..]),
                _ => ("application/json", &b"{}"[..]),
            };
            let head = format!("Content-Type: {kind}\r\nContent-Length: {}\r\nConnection: close", body.len());
            // Whoever has heard enough closes.
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n{head}\r\n\r\n").and_then(|()| stream.write_all(body));
        }
    });
    reference
}

/// Who can move a tag can name layers of this machine's in any order.
#[test]
fn a_top_layer_is_not_taken_for_that_of_the_links() {
    let project = Project::new("app");
    let (large, old) = (project.package("tool-large", 40), project.package("tool3-1", 3));
    // What is gone in the end: otherwise nobody looks.
    let more = project.package("more", 4);
    let file = project.sandbox.path("work/image.tar");
    for (tag, options) in [("few", &["--max-layers", "9"][..]), ("many", &[])] {
        project.described(&project.environment([1; 5], &[&large, &more]), &[options, &["--tag", tag]].concat());
        let honest = Archive::open(&file);
        let changed = project.environment([1, 1, 2, 1, 1], &[&large, &more]);
        project.described(&changed, &[options, &["--tag", tag, "--previous"]].concat());
        let hiding = Archive::open(&file);
        assert_eq!(hiding.hidden(), [old.trim_start_matches('/')]);
        let mut config = honest.config.clone();
        let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
        let below_the_top = diff_ids.len() - 1;
        let top = hiding.config["rootfs"]["diff_ids"].as_array().unwrap().last().unwrap().clone();
        diff_ids.insert(below_the_top, top);
        let history = config["history"].as_array_mut().unwrap();
        let mut own = history.last().unwrap().clone();
        own["comment"] = "the image's own files".into();
        history.insert(below_the_top, own);
        let reference = serve(&honest, &config);
        let less = project.environment([1; 5], &[&large]);
        project.described(&less, &["--tag", "victim", "--previous", &reference]);
        let victim = Archive::open(&file);
        assert!(victim.store_paths().contains(&old), "{tag}");
        assert_eq!(victim.hidden(), [more.trim_start_matches('/')], "{tag}");
        let is_whiteout_of_it =
            |path: &Vec<u8>| path.ends_with(format!(".wh.{}", &old["/nix/store/".len()..]).as_bytes());
        for at in 0..victim.layer_digests().len() {
            assert!(!victim.layer(at).keys().any(is_whiteout_of_it), "{tag}");
        }
    }
}

/// Few layers, several platforms, another codec, and once more to a registry.
#[test]
fn what_is_hidden_is_hidden_in_every_kind_of_image() {
    let program = peer!(docker_registry);
    let project = Project::new("app");
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let (large, old) = (project.package("tool-large", 40), project.package("tool3-1", 3));
    let hidden = [old.trim_start_matches('/')];
    let first = || project.environment([1; 5], &[&large]);
    let file = project.sandbox.path("work/image.tar");
    for (tag, options) in [("few", &["--max-layers", "8"][..]), ("zstd", &["--compression", "zstd"])] {
        project.described(&first(), &[options, &["--tag", tag]].concat());
        let changed = project.environment([1, 1, 2, 1, 1], &[&large]);
        project.described(&changed, &[options, &["--tag", "fresh"]].concat());
        let expected = Archive::open(&file).root();
        let after = project.described(&changed, &[options, &["--tag", tag, "--previous"]].concat());
        let archive = Archive::open(&file);
        assert_eq!(archive.hidden(), hidden, "{tag}: {after:#}");
        assert_eq!(after["hidden"], json!([old]), "{tag}");
        assert!(archive.root() == expected, "{tag}");
        // What was made once is pushed as it was made.
        let reference = server.reference(&format!("team/app:{tag}"));
        let mut push = project.sandbox.cmd();
        push.args(["push", "--json", &format!("app:{tag}"), &reference, "--store"]).arg(project.store.root());
        let pushed: Value = serde_json::from_slice(&push.assert().success().get_output().stdout).unwrap();
        assert_eq!((&pushed["image_id"], &pushed["hidden"]), (&after["image_id"], &after["hidden"]), "{tag}");
    }
    let both = ["--platform", "linux/amd64,linux/arm64"];
    project.described(&first(), &both);
    project.described(&project.environment([1, 1, 2, 1, 1], &[&large]), &[&both[..], &["--previous"]].concat());
    let archive = Platforms::open(&file);
    for platform in ["linux/amd64", "linux/arm64"] {
        assert_eq!(archive.image(platform).hidden(), hidden, "{platform}");
    }
}

#[test]
fn an_image_after_another_is_the_same_on_any_machine() {
    let program = peer!(docker_registry);
    let project = Project::new("app");
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let (first, second) = (server.reference("team/app:1"), server.reference("team/app:2"));
    let added = project.package("added", 3);
    let (before, after) = (project.environment([1; 5], &[]), || project.environment([1; 5], &[&added]));
    project.command(&before, &["--push", &first]).assert().success();
    let here = project.described(&after(), &["--previous", "app", "--compression", "zstd"]);

    let elsewhere = |args: &[&str]| -> Value {
        let cache = tempfile::tempdir().unwrap();
        let mut command = project.command(&after(), &["--json"]);
        let output = command.args(args).env("LAYERHOLD_CACHE", cache.path()).assert().success().get_output().clone();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let there = elsewhere(&["--push", &second, "--previous", &first]);
    assert_eq!(there["manifest_digest"], here["manifest_digest"]);
    assert_eq!(packages(&there).last().map(String::as_str), Some("added"));
    // The registry has the layers of the image before, and no other image says where they are.
    assert_eq!(there["layers_sent"], 2, "what was added, and the environment: {there:#}");
    // Without a name, the one that the tag is on until now; so a tag that moves from image to image needs no other.
    let moved = elsewhere(&["--push", &first, "--previous"]);
    assert_eq!(moved["manifest_digest"], here["manifest_digest"]);
    assert_eq!(elsewhere(&["--push", &first, "--previous"])["manifest_digest"], here["manifest_digest"]);
    let third = server.reference("team/app:3");
    let both = elsewhere(&["--push", &third, "--push", &first, "--previous"]);
    assert_eq!(both["manifest_digest"], here["manifest_digest"]);
    let digest = format!("{}@{}", server.reference("team/app"), here["manifest_digest"].as_str().unwrap());
    let by_digest = elsewhere(&["-f", "image.tar", "--compression", "zstd", "--previous", &digest]);
    assert_eq!(by_digest["manifest_digest"], here["manifest_digest"]);
}

#[test]
fn each_platform_has_an_image_before() {
    let program = peer!(docker_registry);
    let project = Project::new("app");
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let reference = server.reference("team/app:1");
    let added = project.package("added", 3);
    let both = ["--platform", "linux/amd64,linux/arm64"];
    project.command(&project.environment([1; 5], &[]), &both).args(["--push", &reference]).assert().success();
    for previous in ["app", &reference] {
        let after = project.environment([1; 5], &[&added]);
        let described = project.described(&after, &[&both[..], &["--previous", previous, "--tag", "next"]].concat());
        for platform in described["platforms"].as_array().unwrap() {
            assert_eq!(packages(platform).last().map(String::as_str), Some("added"), "{previous}: {platform:#}");
        }
    }
    let one = project.described(&project.environment([1; 5], &[&added]), &["--previous", &reference]);
    assert_eq!(packages(&one).last().map(String::as_str), Some("added"));
    let (here, elsewhere) = crate::platforms::here_and_elsewhere();
    let only = server.reference("team/app:only");
    let environment = project.environment([1; 5], &[&added]);
    project.command(&environment, &["--push", &only, "--platform", elsewhere.oci]).assert().success();
    let said = project.warning(&environment, &["--previous", &only, "--platform", here.oci]);
    assert_eq!(said, format!("! layers are not laid out on those of '{only}': it is for other platforms\n"));
}

#[test]
fn without_an_image_before_it_is_the_same_as_ever() {
    let project = Project::new("app");
    let environment = project.environment([1; 5], &[]);
    // What everybody begins with is not worth a word.
    assert_eq!(project.warning(&environment, &["--tag", "new", "--previous"]), "");
    let (_, elsewhere) = crate::platforms::here_and_elsewhere();
    project.described(&environment, &["--tag", "elsewhere", "--platform", elsewhere.oci]);
    let said = [
        project.warning(&environment, &["--previous", "app:nowhere"]),
        project.warning(&environment, &["--previous", "app:elsewhere"]),
        project.warning(&environment, &["--previous", "registry.example/team/app:1", "--offline"]),
    ];
    // Where the layer cache cannot be had that is said, and then this.
    let mut command = project.command(&environment, &["-f", "image.tar", "--previous", "app"]);
    let uncached = command.env("LAYERHOLD_CACHE", "/proc/nowhere").assert().success();
    let uncached = String::from_utf8_lossy(&uncached.get_output().stderr).into_owned();
    assert!(uncached.contains("! layers are not laid out on those of 'app': there is no layer cache\n"), "{uncached}");
    insta::assert_snapshot!(said.concat(), @r#"
    ! layers are not laid out on those of 'app:nowhere': there is none
    ! layers are not laid out on those of 'app:elsewhere': it is for other platforms
    ! layers are not laid out on those of 'registry.example/team/app:1': --offline asks no registry
    "#);
    for invalid in ["registry.example/Team/app", ""] {
        let refused = project.command(&environment, &["--previous", invalid]).assert().code(2);
        let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(said.contains(&format!("error: invalid value '{invalid}' for '--previous [<IMAGE>]'")), "{said}");
    }
}

#[test]
fn it_may_stand_in_the_environment_and_in_the_tools_own_file() {
    let project = Project::new("app");
    let added = project.package("added", 3);
    project.described(&project.environment([1; 5], &[]), &[]);
    let (more, lies_on_top) = (project.environment([1; 5], &[&added]), Some("added".to_owned()));
    let top = |variable: &str, args: &[&str]| {
        let mut command = project.command(&more, &["--json", "-f", "image.tar", "--dry-run"]);
        if !variable.is_empty() {
            command.env("LAYERHOLD_PREVIOUS", variable);
        }
        let image = command.args(args).assert().success().get_output().stdout.clone();
        packages(&serde_json::from_slice(&image).unwrap()).pop()
    };
    assert_ne!(top("", &[]), lies_on_top);
    assert_eq!(top(".", &[]), lies_on_top);
    assert_eq!(top("app:latest", &["--tag", "other"]), lies_on_top);
    assert_ne!(top(".", &["--no-previous"]), lies_on_top);
    assert_eq!(top("", &["--no-previous", "--previous"]), lies_on_top);

    std::fs::create_dir_all(project.sandbox.path("home/.config/layerhold")).unwrap();
    let config = project.sandbox.path("home/.config/layerhold/config.toml");
    std::fs::write(&config, "[layers]\nprevious = true\n").unwrap();
    assert_eq!(top("", &[]), lies_on_top);
    assert_ne!(top("", &["--no-previous"]), lies_on_top);
    assert_ne!(top("app:none", &[]), lies_on_top, "what is named goes before the file");
    std::fs::write(&config, "[layers]\nprevious = \"app\"\n").unwrap();
    let refused = project.command(&more, &["-f", "image.tar"]).assert().failure();
    let said = project.sandbox.tidy(&String::from_utf8_lossy(&refused.get_output().stderr));
    assert!(said.contains("invalid type: string \"app\", expected a boolean"), "{said}");
    assert!(said.contains("hint: what it may hold: ") && said.contains("previous = true"), "{said}");
}

#[test]
fn a_registry_that_fails_costs_a_warning_and_half_a_minute_at_most() {
    let program = peer!(docker_registry);
    let project = Project::new("app");
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let proxy = RegistryProxy::start(&server);
    let reference = proxy.reference("team/app:1");
    let environment = project.environment([1; 5], &[]);
    project.command(&environment, &["--push", &reference]).assert().success();
    let mut said = project.warning(&environment, &["--previous", &proxy.reference("team/app:none")]);
    for (request, fault) in [
        (Request::GetManifest, Fault::Status(500, "")),
        (Request::GetManifest, Fault::Refused(403, "DENIED")),
        (Request::GetManifest, Fault::Hang),
        (Request::GetManifest, Fault::Trickle),
        (Request::GetManifest, Fault::Damage),
        (Request::GetBlob, Fault::Status(404, "")),
        (Request::GetBlob, Fault::Damage),
        (Request::GetBlob, Fault::CutAnswer(10)),
        (Request::GetBlob, Fault::Trickle),
    ] {
        said += &format!("{request:?} {fault:?}: ");
        proxy.fail_always(request, fault);
        let started = Instant::now();
        said += &project.warning(&environment, &["--previous", &reference]);
        // Three times five seconds, waits between them, and two whole runs; a registry that an image goes to has
        // minutes.
        assert!(started.elapsed() < Duration::from_secs(40), "{said}{:?}", started.elapsed());
        proxy.mend();
    }
    said += &project.warning(&environment, &["--previous", "127.0.0.1:1/team/app:1"]);
    insta::assert_snapshot!(said.replace(&proxy.host(), "[REGISTRY]"), @r#"
    ! layers are not laid out on those of '[REGISTRY]/team/app:none': there is none
    GetManifest Status(500, ""): ! layers are not laid out on those of '[REGISTRY]/team/app:1': the registry '[REGISTRY]' could not be asked for the manifest '1': the server answered with status 500
    GetManifest Refused(403, "DENIED"): ! layers are not laid out on those of '[REGISTRY]/team/app:1': the registry '[REGISTRY]' does not allow the manifest '1' to somebody who has not logged in
    GetManifest Hang: ! layers are not laid out on those of '[REGISTRY]/team/app:1': the registry '[REGISTRY]' could not be asked for the manifest '1': the server sends nothing, or next to nothing, for 5 s
    GetManifest Trickle: ! layers are not laid out on those of '[REGISTRY]/team/app:1': the registry '[REGISTRY]' could not be asked for the manifest '1': the server sends nothing, or next to nothing, for 5 s
    GetManifest Damage: ! layers are not laid out on those of '[REGISTRY]/team/app:1': what its registry has of it cannot be understood
    GetBlob Status(404, ""): ! layers are not laid out on those of '[REGISTRY]/team/app:1': its registry has lost a part of it
    GetBlob Damage: ! layers are not laid out on those of '[REGISTRY]/team/app:1': what its registry has of it cannot be understood
    GetBlob CutAnswer(10): ! layers are not laid out on those of '[REGISTRY]/team/app:1': what its registry has of it did not come: end of file before message length reached
    GetBlob Trickle: ! layers are not laid out on those of '[REGISTRY]/team/app:1': what its registry has of it did not come: the server sends nothing, or next to nothing, for 5 s
    ! layers are not laid out on those of '127.0.0.1:1/team/app:1': the registry '127.0.0.1:1' could not be asked for the manifest '1': Connection refused (os error 111)
    "#);
}

/// What lies above nothing new is known to the runtime, in the same chain.
fn only_what_is_new_goes_in(runtime: Peer) {
    let project = Project::new(&unique_name("previous"));
    project.sandbox.provide(runtime.program);
    let image = LoadedImage::new(runtime, format!("{}:latest", project.name));
    let (Some(bash), Some(tools)) = (project.store.add_bash(), project.store.add_tools()) else {
        return skip_this("bash-static and busybox-static");
    };
    let small = project.store.add("small", &Tree::new().program("bin/small", "small"));
    let added = project.package("added", 3);
    let run = |more: &[&str], args: &[&str]| -> Value {
        let environment = project.environment([1; 5], more);
        let mut command = project.command(&environment, &["--runtime", runtime.program, "--json"]);
        serde_json::from_slice(&command.args(args).assert().success().get_output().stdout).unwrap()
    };
    let chain = || -> Vec<String> { serde_json::from_str(&image.inspect("{{json .RootFS.Layers}}")).unwrap() };
    run(&[&bash, &tools, &small], &["--previous"]);
    let before = chain();
    let after = run(&[&bash, &tools, &small, &added], &["--previous"]);
    let (sent, most) = (after["bytes_sent"].as_u64().unwrap(), (3 << 20) + 500_000);
    assert!(sent <= most, "{sent} of {most}: {after:#}");
    // All but the image's own files, which are in two layers on top.
    let same = before.len() - 2;
    assert_eq!(chain()[..same], before[..same], "{after:#}");
    assert_eq!(image.run(&[], &["sh", "-c", "wc -c </nix/environment/share/added"]).trim(), (3 << 20).to_string());

    // A new version of what lies deeper: the old one stays there, and nobody sees it.
    let before = chain();
    let old = project.package("tool1-1", 1);
    let see = |path: &str| image.run(&[], &["sh", "-c", &format!("if [ -e {path} ]; then echo yes; else echo no; fi")]);
    assert_eq!(see(&old).trim(), "yes");
    let run = |more: &[&str]| -> Value {
        let environment = project.environment([2, 1, 1, 1, 1], more);
        let mut command = project.command(&environment, &["--runtime", runtime.program, "--json", "--previous"]);
        serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
    };
    let after = run(&[&bash, &tools, &small, &added]);
    let (sent, most) = (after["bytes_sent"].as_u64().unwrap(), (1 << 20) + 500_000);
    assert!(sent <= most, "{sent} of {most}: {after:#}");
    let same = before.len() - 2;
    assert_eq!(chain()[..same], before[..same], "{after:#}");
    assert_eq!((see(&old).trim(), see(&project.package("tool1-2", 1)).trim()), ("no", "yes"));

    // A package that goes is hidden, and so is its name in the root: everything but the top layer stays.
    let before = chain();
    assert_eq!(see("/bin/small").trim(), "yes");
    let after = run(&[&bash, &tools, &added]);
    let same = before.len() - 1;
    assert_eq!(chain()[..same], before[..same], "{after:#}");
    assert_eq!((see(&small).trim(), see("/bin/small").trim()), ("no", "no"));
}

#[test]
fn docker_unpacks_only_what_is_new() {
    only_what_is_new_goes_in(peer!(docker));
}

#[test]
fn podman_unpacks_only_what_is_new() {
    only_what_is_new_goes_in(peer!(podman));
}
