use super::*;
use crate::nix::StorePath;
use rstest::rstest;
use std::fs;
use tempfile::TempDir;

const HELLO: &str = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3";

/// A directory with a `.flox` of these files.
fn environment(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join(".flox/env")).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(".flox").join(name), text).unwrap();
    }
    dir
}

fn error(files: &[(&str, &str)]) -> (String, Option<String>) {
    let dir = environment(files);
    let error = Environment::open(dir.path()).unwrap_err();
    let at = dir.path().display().to_string();
    let relative = |text: String| text.replace(&at, "PROJ");
    (relative(error.to_string()), error.hint().map(relative))
}

const POINTER: (&str, &str) = ("env.json", r#"{"name":"proj","version":1}"#);

fn sample(name: &str) -> TempDir {
    let read = |file: &str| fs::read_to_string(format!("fixtures/environments/{name}/{file}")).unwrap();
    environment(&[
        POINTER,
        ("env/manifest.toml", &read("manifest.toml")),
        ("env/manifest.lock", &read("manifest.lock")),
    ])
}

#[rstest]
fn every_sample_belongs_to_its_lockfile(
    #[values("hello", "kitchen_sink", "flake_hello", "bash_v1_10_0_default")] name: &str,
) {
    let dir = sample(name);
    let environment = Environment::open(dir.path()).unwrap();
    assert_eq!(environment.name, "proj");
    assert_eq!(environment.location, Location::Dir(dir.path().to_owned()));
    assert_eq!(environment.hub, None);
    assert!(environment.lockfile.is_some());
    assert!(!environment.installed(System::X86_64Linux).unwrap().is_empty());
}

#[test]
fn the_kitchen_sink_is_read_whole() {
    let manifest = Environment::open(sample("kitchen_sink").path()).unwrap().manifest;
    assert_eq!(manifest.vars["VARS_SECTION_VAR"], "vars_section_var");
    assert!(manifest.on_activate.unwrap().contains("export HOOK_SECTION_VAR=\"hook_section_var\"\n"));
    assert!(manifest.profile_common.unwrap().starts_with("    echo \"running profile-common\"\n"));
    assert!(manifest.profile_bash.unwrap().contains("alias profile_alias=\"echo bash\""));
}

#[test]
fn a_change_of_the_manifest_makes_the_lockfile_stale_whatever_the_times() {
    let dir = sample("hello");
    let file = dir.path().join(".flox/env/manifest.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("# a comment\n{text}")).unwrap();
    Environment::open(dir.path()).unwrap();
    fs::write(&file, text.replace("[vars]", "[vars]\nA = '1'")).unwrap();
    let error = Environment::open(dir.path()).unwrap_err();
    let at = dir.path().display();
    assert_eq!(error.to_string(), format!("the lockfile of the environment in '{at}' is older than its manifest"));
    assert_eq!(error.hint(), Some(format!("lock it: flox list -d {at}")));
}

#[test]
fn a_manifest_with_packages_to_resolve_needs_a_lockfile() {
    let (message, hint) = error(&[POINTER, ("env/manifest.toml", "version = 1\ninstall.a.pkg-path = 'a'")]);
    assert_eq!(message, "the environment in 'PROJ' has no lockfile");
    assert_eq!(hint.as_deref(), Some("lock it: flox list -d PROJ"));
}

#[rstest]
#[case::without_a_lockfile(None)]
#[case::with_a_stale_one(Some(r#"{"lockfile-version":1,"manifest":{"version":1,"vars":{"B":"2"}},"packages":[]}"#))]
fn store_paths_need_no_lockfile(#[case] lockfile: Option<&str>) {
    let manifest = format!(
        "version = 1\n[vars]\nA = '1'\n[install]\nhello.store-path = '{HELLO}'\n\
         a = {{ store-path = '{HELLO}-a', priority = 3, systems = ['x86_64-linux'] }}\n\
         z = {{ store-path = '{HELLO}-z', systems = ['aarch64-linux'] }}\n"
    );
    let mut files = vec![POINTER, ("env/manifest.toml", manifest.as_str())];
    files.extend(lockfile.map(|text| ("env/manifest.lock", text)));
    let dir = environment(&files);
    let environment = Environment::open(dir.path()).unwrap();
    assert!(environment.lockfile.is_none());
    assert_eq!(environment.manifest.vars["A"], "1");
    let installed = environment.installed(System::X86_64Linux).unwrap();
    let path: StorePath = HELLO.parse().unwrap();
    let a: StorePath = format!("{HELLO}-a").parse().unwrap();
    let entry = |install_id: &str, path, priority| Installed {
        install_id: install_id.to_owned(),
        output: None,
        path,
        priority,
    };
    assert_eq!(installed, [entry("a", a, 3000), entry("hello", path, 5000)]);
}

#[test]
fn an_environment_without_packages_needs_no_lockfile() {
    let dir = environment(&[POINTER, ("env/manifest.toml", "schema-version = '1.14.0'\n")]);
    let environment = Environment::open(dir.path()).unwrap();
    assert_eq!(environment.installed(System::X86_64Linux).unwrap(), []);
}

#[test]
fn a_composed_environment_is_compared_by_its_own_manifest_and_read_from_the_merged_one() {
    let toml = "version = 1\ninclude.environments = [{ dir = '../base' }]\n[vars]\nA = '1'\n";
    let composer = r#"{"version":1,"vars":{"A":"1"},"options":{},"include":{"environments":[{"dir":"../base"}]}}"#;
    let lock = format!(
        r#"{{"lockfile-version":1,"packages":[],"manifest":{{"version":1,"vars":{{"A":"1","BASE":"2"}}}},
            "compose":{{"composer":{composer},"include":[],"warnings":[]}}}}"#
    );
    let dir = environment(&[POINTER, ("env/manifest.toml", toml), ("env/manifest.lock", &lock)]);
    let environment = Environment::open(dir.path()).unwrap();
    assert_eq!(environment.manifest.vars["BASE"], "2");

    let (message, _) =
        error(&[POINTER, ("env/manifest.toml", &toml.replace("'1'", "'3'")), ("env/manifest.lock", &lock)]);
    assert_eq!(message, "the lockfile of the environment in 'PROJ' is older than its manifest");
    let (message, _) = error(&[POINTER, ("env/manifest.toml", toml)]);
    assert_eq!(message, "the environment in 'PROJ' has no lockfile");
}

#[test]
fn an_environment_of_floxhub_has_an_owner_and_a_revision() {
    let pointer = r#"{"name":"web","owner":"me","floxhub_url":"https://hub.flox.dev/","version":1,"env_id":"x"}"#;
    let manifest = ("env/manifest.toml", "version = 1");
    let dir = environment(&[("env.json", pointer), manifest]);
    let mut hub = Hub {
        owner: "me".to_owned(),
        url: Some("https://hub.flox.dev/".to_owned()),
        generation: None,
        revision: None,
        local_revision: None,
    };
    assert_eq!(Environment::open(dir.path()).unwrap().hub.as_ref(), Some(&hub));

    let lock = r#"{"version":1,"rev":"1234","local_rev":null}"#;
    let dir = environment(&[("env.json", pointer), ("env.lock", lock), manifest]);
    hub.revision = Some("1234".to_owned());
    assert_eq!(Environment::open(dir.path()).unwrap().hub.as_ref(), Some(&hub));

    let (message, _) = error(&[("env.json", pointer), ("env.lock", r#"{"version":1}"#), manifest]);
    assert_eq!(message, "PROJ/.flox/env.lock: the key 'rev' is missing");
}

#[rstest]
#[case(&[], "'PROJ/.flox/env.json' is missing", Some("make an environment there: flox init -d PROJ"))]
#[case(&[POINTER], "'PROJ/.flox/env/manifest.toml' is missing", Some("let Flox restore it: flox list -d PROJ"))]
#[case(&[("env.json", "{")], "PROJ/.flox/env.json:1:1: EOF while parsing an object", None)]
#[case(&[("env.json", "{\"version\":1}")], "PROJ/.flox/env.json: the key 'name' is missing", None)]
#[case(
    &[("env.json", r#"{"name":"a","version":2}"#)],
    "PROJ/.flox/env.json: version: version 2 of this format is not known; only version 1 is",
    None
)]
#[case(
    &[("env.json", r#"{"name":"../a","version":1}"#)],
    "PROJ/.flox/env.json: name: '../a' is not a name for an environment",
    None
)]
#[case(
    &[POINTER, ("env/manifest.toml", "version = 1\n[containerize.config]\nports = []\n")],
    "PROJ/.flox/env/manifest.toml:3:1: containerize.config.ports: unknown key",
    Some("the keys here are user, exposed-ports, cmd, volumes, working-dir, labels, stop-signal")
)]
#[case(
    &[POINTER, ("env/manifest.toml", "version = 1"), ("env/manifest.lock", "{\n  \"a\" 1\n}")],
    "PROJ/.flox/env/manifest.lock:2:7: expected `:`",
    None
)]
fn what_cannot_be_read_names_the_file(
    #[case] files: &[(&str, &str)],
    #[case] message: &str,
    #[case] hint: Option<&str>,
) {
    let (found, found_hint) = error(files);
    assert_eq!(found, message);
    assert_eq!(found_hint.as_deref(), hint);
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() {
    let dir = environment(&[POINTER]);
    fs::create_dir(dir.path().join(".flox/env/manifest.toml")).unwrap();
    let error = Environment::open(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("/.flox/env/manifest.toml' cannot be read"), "{error}");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("directory"));
}
