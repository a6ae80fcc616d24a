use super::*;
use rstest::rstest;
use serde_json::{Value as Json, json};

const HELLO: &str = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3";

fn sample(name: &str) -> Lockfile {
    let file = Path::new("fixtures/environments").join(name).join("manifest.lock");
    Lockfile::parse(&file, &std::fs::read(&file).unwrap()).unwrap()
}

fn parse(value: Json) -> Result<Lockfile, InvalidFile> {
    Lockfile::parse(Path::new("manifest.lock"), value.to_string().as_bytes())
}

fn installed(lockfile: &Lockfile) -> Result<Vec<Installed>, InstallError> {
    lockfile.installed(System::X86_64Linux, &Location::Dir("/proj".into()))
}

/// `id output priority` of each, in order.
fn lines(lockfile: &Lockfile) -> Vec<String> {
    let line = |each: Installed| {
        assert_eq!(each.path.hash_part().len(), 32);
        format!("{} {} {}", each.install_id, each.output.as_deref().unwrap_or("-"), each.priority)
    };
    installed(lockfile).unwrap().into_iter().map(line).collect()
}

/// A store path whose name is `name`.
fn path(name: &str) -> String {
    format!("/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-{name}")
}

/// A catalog package with these outputs on x86_64-linux.
fn package(id: &str, outputs: &[&str], to_install: Option<&[&str]>) -> Json {
    let outputs: serde_json::Map<_, _> = outputs.iter().map(|name| ((*name).to_owned(), json!(path(name)))).collect();
    json!({ "install_id": id, "system": "x86_64-linux", "priority": 5, "outputs": outputs,
            "outputs_to_install": to_install })
}

/// A lockfile of schema 1.10.0 with these install entries and packages.
fn locked(install: Json, packages: Json) -> Lockfile {
    let manifest = json!({ "schema-version": "1.10.0", "install": install });
    parse(json!({ "lockfile-version": 1, "manifest": manifest, "packages": packages })).unwrap()
}

#[test]
fn the_samples_install_what_flox_installs() {
    assert_eq!(lines(&sample("hello")), ["hello out 5000"]);
    assert_eq!(lines(&sample("kitchen_sink")), ["hello out 5000"]);
    assert_eq!(lines(&sample("flake_hello")), ["hello out 5000"]);
    // Each is named several times in outputs_to_install, and stands there once.
    assert_eq!(lines(&sample("bash_v1_10_0_default")), ["bash man 5000", "bash out 5000"]);
}

#[test]
fn every_linux_system_has_its_own_paths() {
    let hello = sample("hello");
    let path = |system| hello.installed(system, &Location::Dir("/proj".into())).unwrap().remove(0).path;
    assert_eq!(path(System::X86_64Linux).to_string(), HELLO);
    assert_eq!(path(System::Aarch64Linux).base_name(), "qpp9968dpkv1c755nk13mrkrzpsvah18-hello-2.12.3");
}

#[test]
fn with_version_1_all_outputs_are_installed_the_others_behind_one_another() {
    let manifest = json!({ "version": 1, "install": { "a": { "pkg-path": "a" }, "b": { "pkg-path": "b" } } });
    let packages = [
        package("a", &["dev", "man", "out", "stubs"], Some(&["out", "man"])),
        package("b", &["bin", "doc", "lib"], Some(&["bin"])),
    ];
    let lockfile = parse(json!({ "lockfile-version": 1, "manifest": manifest, "packages": packages })).unwrap();
    assert_eq!(lines(&lockfile), ["a dev 5001", "a man 5000", "a out 5000", "b bin 5000", "b doc 5002", "b lib 5003"]);
}

#[test]
fn all_in_a_newer_schema_is_the_same() {
    let install = json!({ "a": { "pkg-path": "a", "outputs": "all" }, "b": { "pkg-path": "b" } });
    let packages = [package("a", &["dev", "out"], Some(&["out"])), package("b", &["dev", "out"], Some(&["out"]))];
    assert_eq!(lines(&locked(install, json!(packages))), ["a dev 5001", "a out 5000", "b out 5000"]);
}

#[rstest]
#[case::named(json!(["dev", "out"]), Some(&["man"][..]), &["a dev 5000", "a out 5000"])]
#[case::default(json!(null), Some(&["man", "out", "out"][..]), &["a man 5000", "a out 5000"])]
#[case::without_a_default(json!(null), None, &["a dev 5000", "a man 5000", "a out 5000"])]
fn a_newer_schema_installs_the_outputs_that_are_asked_for(
    #[case] outputs: Json,
    #[case] to_install: Option<&[&str]>,
    #[case] expected: &[&str],
) {
    let install = json!({ "a": { "pkg-path": "a", "outputs": outputs } });
    let lockfile = locked(install, json!([package("a", &["dev", "log", "man", "out", "stubs"], to_install)]));
    assert_eq!(lines(&lockfile), expected);
}

#[test]
fn store_paths_and_flakes_stand_beside_catalog_packages_at_their_priorities() {
    let install = json!({ "p": { "store-path": HELLO, "priority": 7 }, "f": { "flake": "f" } });
    let packages = json!([
        { "install_id": "p", "store_path": HELLO, "system": "x86_64-linux", "priority": 7 },
        { "install_id": "f", "outputs": { "out": HELLO, "dev": HELLO }, "outputs-to-install": ["out"],
          "system": "x86_64-linux", "priority": null },
    ]);
    assert_eq!(lines(&locked(install, packages)), ["p - 7000", "f out 5000"]);
}

#[test]
fn packages_for_other_systems_are_left_out() {
    let install = json!({ "mac": { "pkg-path": "a", "systems": ["aarch64-darwin"] }, "b": { "pkg-path": "b" } });
    let mut mac = package("mac", &["out"], None);
    mac["system"] = json!("aarch64-darwin");
    let packages = json!([mac, package("b", &["out"], None)]);
    assert_eq!(lines(&locked(install, packages)), ["b out 5000"]);
    let install = json!({ "a": { "pkg-path": "a", "systems": [] } });
    assert_eq!(lines(&locked(install, json!([package("a", &["out"], None)]))), [""; 0]);
}

#[test]
fn what_cannot_be_installed_says_which_package_and_what_to_do() {
    let check = |lockfile: Lockfile, message: &str, hint: &str| {
        let error = installed(&lockfile).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.hint().unwrap(), hint);
    };
    check(
        locked(json!({ "a": { "pkg-path": "a" } }), json!([])),
        "the package 'a' is not locked for x86_64-linux, and the manifest asks for it on every system",
        "resolve the packages again: flox upgrade -d /proj; or do without it there, with a.systems that lack \
         \"x86_64-linux\": flox edit -d /proj",
    );
    check(
        locked(json!({ "a": { "pkg-path": "a", "systems": ["aarch64-linux", "x86_64-linux"] } }), json!([])),
        "the package 'a' is not locked for x86_64-linux, and the manifest asks for it on aarch64-linux, x86_64-linux",
        "resolve the packages again: flox upgrade -d /proj; or do without it there, with a.systems that lack \
         \"x86_64-linux\": flox edit -d /proj",
    );
    check(
        locked(json!({}), json!([package("a", &["out"], None)])),
        "the lockfile has the package 'a', its manifest does not",
        "lock it: flox list -d /proj",
    );
    check(
        locked(
            json!({ "a": { "pkg-path": "a", "outputs": ["out", "doc"] } }),
            json!([package("a", &["out", "man"], None)]),
        ),
        "the package 'a' has no output 'doc', only man, out",
        "name other outputs: flox edit -d /proj",
    );
    check(
        locked(json!({ "a": { "pkg-path": "a" } }), json!([package("a", &["out"], Some(&["bin"]))])),
        "the lockfile names no store path to install for the package 'a' on x86_64-linux",
        "resolve the packages again: flox upgrade -d /proj",
    );
    let manifest = json!({ "version": 1, "options": { "systems": ["aarch64-darwin", "aarch64-linux"] } });
    check(
        parse(json!({ "lockfile-version": 1, "manifest": manifest, "packages": [] })).unwrap(),
        "the environment is not for x86_64-linux, only for aarch64-darwin, aarch64-linux",
        "add \"x86_64-linux\" to options.systems: flox edit -d /proj",
    );
}

#[rstest]
#[case(json!([]), "expected a table, found an array")]
#[case(json!({}), "the key 'lockfile-version' is missing")]
#[case(
    json!({ "lockfile-version": 0 }),
    "lockfile-version: version 0 of this format is not known; only version 1 is"
)]
#[case(json!({ "lockfile-version": "1" }), "lockfile-version: expected an integer, found a string")]
#[case(json!({ "lockfile-version": 1 }), "the key 'manifest' is missing")]
#[case(json!({ "lockfile-version": 1, "manifest": { "version": 1 } }), "the key 'packages' is missing")]
#[case(
    json!({ "lockfile-version": 1, "manifest": { "schema-version": "2.0.0" } }),
    "manifest.schema-version: the version \"2.0.0\" of the manifest's format is not known"
)]
#[case(
    json!({ "lockfile-version": 1, "manifest": { "version": 1, "containerize": { "config": { "user": ":" } } } }),
    "manifest.containerize.config.user: ':' is not a user: a part of it is empty"
)]
#[case(
    json!({ "lockfile-version": 1, "manifest": { "version": 1 }, "packages": [{}] }),
    "packages[0]: the key 'outputs' is missing"
)]
#[case(
    json!({ "lockfile-version": 1, "manifest": { "version": 1 }, "packages": [{ "outputs": { "out": "/bin" } }] }),
    "packages[0].outputs.out: '/bin' is not a store path: it does not lie in /nix/store"
)]
#[case(
    json!({ "lockfile-version": 1, "manifest": { "version": 1 }, "packages": [{ "store_path": 1 }] }),
    "packages[0].store_path: expected a string, found an integer"
)]
#[case(
    json!({ "lockfile-version": 1, "manifest": { "version": 1 },
            "packages": [{ "outputs": {}, "install_id": "a", "system": "s", "priority": -1 }] }),
    "packages[0].priority: -1 is not a priority: it must be between 0 and 4294967295"
)]
#[case(
    json!({ "lockfile-version": 1, "manifest": { "version": 1 }, "packages": [], "compose": {} }),
    "compose: the key 'composer' is missing"
)]
fn a_broken_lockfile_names_file_and_key(#[case] value: Json, #[case] message: &str) {
    let error = parse(value).unwrap_err().to_string();
    assert_eq!(error, format!("manifest.lock: {message}"));
}

#[test]
fn packages_are_traced_to_the_revision_of_nixpkgs_that_most_of_them_are_from() {
    let locked = |id: &str, attribute: &str, url: &str, revision: &str| {
        json!({
            "install_id": id, "system": "x86_64-linux", "attr_path": attribute, "rev": revision,
            "locked_url": format!("{url}?rev={revision}"), "outputs": {},
            "derivation": format!("/nix/store/gsnnaglyb9vpvqcgw3i4czy3n892smms-{attribute}-1.drv"),
        })
    };
    let nixpkgs = "https://github.com/flox/nixpkgs";
    let packages = [
        locked("hello", "hello", nixpkgs, "new"),
        locked("old", "old", nixpkgs, "old"),
        locked("again", "hello", nixpkgs, "new"),
        locked("curl", "curl", nixpkgs, "new"),
        locked("own", "own", "https://github.com/somebody/project", "new"),
        json!({ "install_id": "flake", "system": "x86_64-linux", "outputs": {}, "locked-url": "github:NixOS/nixpkgs/0" }),
    ];
    let lockfile = json!({ "lockfile-version": 1, "manifest": { "version": 1 }, "packages": packages });
    let found = parse(lockfile).unwrap().from_nixpkgs(System::X86_64Linux);
    let found: Vec<_> = found.iter().map(|package| (package.attribute.as_str(), package.revision.as_str())).collect();
    assert_eq!(found, [("hello", "new"), ("curl", "new")]);
    let sample = sample("hello").from_nixpkgs(System::X86_64Linux);
    assert_eq!(sample[0].revision, "d407951447dcd00442e97087bf374aad70c04cea");
}

#[test]
fn the_same_json_laid_out_otherwise_is_the_same_lockfile() {
    let lockfile = sample("hello");
    let text = std::fs::read("fixtures/environments/hello/manifest.lock").unwrap();
    let mut value: Json = serde_json::from_slice(&text).unwrap();
    assert!(lockfile.equals(value.to_string().as_bytes()));
    value["packages"][0]["version"] = json!("2.12.4");
    assert!(!lockfile.equals(value.to_string().as_bytes()));
    assert!(!lockfile.equals(b"{"));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, cut in 0..4000usize, byte: u8) {
        let _ = Lockfile::parse(Path::new("manifest.lock"), &bytes);
        let mut text = std::fs::read("fixtures/environments/hello/manifest.lock").unwrap();
        text[cut] = byte;
        if let Ok(lockfile) = Lockfile::parse(Path::new("manifest.lock"), &text) {
            let _ = installed(&lockfile);
        }
    }
}
