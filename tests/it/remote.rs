//! Environments on FloxHub, fetched with git from a server that wants a token: which generation, by which settings, and
//! what is said where one cannot be had.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rstest::rstest;
use serde_json::{Value, json};

use crate::archive::Archive;
use crate::flox_fixture::{BareStore, FloxEnv, LockedPackage, Tree, this_system};
use crate::floxhub_fixture::{Behaviour, FloxHub, HubEnvironment, TOKEN, provide_noting_git};
use crate::peers::peer;
use crate::proxy;
use crate::sandbox::Sandbox;

/// A FloxHub with the environment `me/web`, which has the generations 1, 2 and 3, the second of which is the current.
pub(crate) struct Place {
    pub(crate) sandbox: Sandbox,
    pub(crate) store: BareStore,
    tool: String,
    pub(crate) hub: FloxHub,
    pub(crate) web: HubEnvironment,
}

impl Place {
    pub(crate) fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox.provide("git");
        let store = BareStore::new(sandbox.path("root"));
        let tool = store.add("tool-1", &Tree::new().file("share/tool", "tool"));
        let hub = FloxHub::start(&sandbox, "hub");
        let web = hub.environment("me", "web");
        let place = Self { sandbox, store, tool, hub, web };
        for generation in 1..=3 {
            place.web.add(generation, &place.local(&generation.to_string()));
        }
        place.web.history(&[1, 2, 3, 2]);
        place
    }

    /// An environment in a directory, of the same packages as all here, with a variable of its own.
    pub(crate) fn local(&self, variable: &str) -> FloxEnv {
        let manifest = format!("version = 1\n[install]\ntool.pkg-path = 'tool'\n[vars]\nGENERATION = '{variable}'\n");
        let environment = FloxEnv::new(self.sandbox.path(format!("local-{variable}")), "web", &manifest);
        environment.lock(&[LockedPackage::new("tool", &self.tool)]);
        environment
    }

    /// `layerhold`, by somebody who has logged in.
    pub(crate) fn layerhold(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.env_clear().envs(self.sandbox.environment()).current_dir(self.sandbox.path("work"));
        command.env("FLOX_FLOXHUB_URL", self.hub.url()).env("FLOX_FLOXHUB_TOKEN", TOKEN);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `layerhold -v containerize -f image.tar`
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.layerhold();
        command.args(["-v", "containerize", "-f", "image.tar", "--store"]).arg(self.store.root()).args(args);
        command
    }

    /// The same with the environment `me/web`.
    pub(crate) fn web(&self) -> Command {
        self.command(&["-r", "me/web"])
    }

    pub(crate) fn kept(&self) -> PathBuf {
        self.sandbox.path("cache/fetched/floxmeta")
    }

    /// The one repository that is kept.
    pub(crate) fn repository(&self) -> PathBuf {
        let mut found = names_in(&self.kept()).into_iter().filter(|name| name.ends_with(".git"));
        let only = found.next().unwrap();
        assert_eq!(found.next(), None);
        self.kept().join(only)
    }

    /// Runs to a good end: the variable in the image, and what was said.
    #[track_caller]
    pub(crate) fn generation(&self, command: &mut Command) -> (String, String) {
        let said = run(command);
        let archive = Archive::open(&self.sandbox.path("work/image.tar"));
        assert_eq!(archive.docker_tag(), "web:latest");
        let env = archive.config["config"]["Env"].as_array().unwrap();
        let variable = env.iter().find_map(|variable| variable.as_str().unwrap().strip_prefix("GENERATION="));
        (variable.unwrap().to_owned(), self.sandbox.tidy(&said))
    }

    /// Runs to a bad end without an image: what was said.
    #[track_caller]
    pub(crate) fn failure(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        let said = self.sandbox.tidy(&String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(!self.sandbox.path("work/image.tar").exists(), "{said}");
        said.replace(self.hub.url(), "[HUB]")
    }
}

#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

#[track_caller]
pub(crate) fn says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
}

pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == text[0]);
    starts.into_iter().any(|(at, _)| bytes[at..].starts_with(text))
}

/// The files below a directory that have a text in them.
fn files_with(dir: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            found.extend(files_with(&path, text));
        } else if path.is_file() && holds(&fs::read(&path).unwrap(), text.as_bytes()) {
            found.push(path);
        }
    }
    found
}

#[test]
fn an_environment_that_flox_locked_gives_the_image_that_it_gives_in_a_directory() {
    peer!(git);
    let nix = peer!(nix);
    let place = Place::new();
    let read = |file: &str| fs::read_to_string(format!("fixtures/environments/hello/{file}")).unwrap();
    let local = FloxEnv::new(place.sandbox.path("hello"), "hello", &read("manifest.toml"));
    let mut lock: Value = serde_json::from_str(&read("manifest.lock")).unwrap();
    for package in lock["packages"].as_array_mut().unwrap() {
        if package["system"] == this_system() {
            package["outputs"] = json!({ "out": nix.out("hello") });
        }
    }
    local.write("env/manifest.lock", &lock.to_string());
    place.hub.environment("me", "hello").add(1, &local).history(&[1]);

    let build = |file: &str, args: [&str; 2]| {
        let mut command = place.layerhold();
        command.args(["containerize", "-f", file, "--store"]).arg(nix.root()).arg("--shell").arg(nix.out("bash"));
        (run(command.args(args)), fs::read(place.sandbox.path("work").join(file)).unwrap())
    };
    let (said, remote) = build("remote.tar", ["-r", "me/hello"]);
    says(&said, &["⚡︎ 'hello:latest' written to file"]);
    let (_, from_directory) = build("local.tar", ["-d", &local.dir().display().to_string()]);
    assert!(remote == from_directory);
    assert!(Archive::read(remote).store_paths().contains(nix.out("hello")));
}

#[test]
fn the_current_generation_is_the_historys_last_and_another_can_be_named() {
    peer!(git);
    let place = Place::new();
    assert_eq!(place.generation(&mut place.web()).0, "2");
    assert_eq!(place.generation(place.web().args(["--generation", "3"])).0, "3");
    assert_eq!(place.generation(&mut place.command(&["--reference", "me/web"])).0, "2");
    // What changes there is seen at once.
    place.web.history(&[1, 2, 3, 2, 1]);
    assert_eq!(place.generation(&mut place.web()).0, "1");
    place.web.write("metadata.json", r#"{"version":1,"currentGen":"3","generations":{"1":{},"2":{},"3":{}}}"#);
    assert_eq!(place.generation(&mut place.web()).0, "3");
    // Wherever the cache is.
    for cache in ["in here", "../caf\u{e9}"] {
        assert_eq!(place.generation(place.web().env("LAYERHOLD_CACHE", cache)).0, "3");
        assert_eq!(names_in(&place.sandbox.path("work").join(cache).join("fetched/floxmeta")).len(), 2, "{cache}");
    }
    // Another environment of theirs is beside it in one repository.
    place.hub.environment("me", "other").add(7, &place.local("other")).history(&[7]);
    let said = run(&mut place.command(&["-r", "me/other"]));
    says(&said, &["'other:latest'"]);
    place.repository();
}

#[test]
fn the_active_environment_may_be_on_floxhub() {
    peer!(git);
    let place = Place::new();
    let active = |environment: Value| json!([environment]).to_string();
    let web = json!({ "type": "remote", "owner": "me", "name": "web", "floxhub_url": place.hub.url() });
    let of = |variable: String| {
        let mut command = place.command(&[]);
        command.env("_FLOX_ACTIVE_ENVIRONMENTS", variable);
        place.generation(&mut command).0
    };
    assert_eq!(of(active(json!({ "environment": web, "generation": null, "mode": "dev" }))), "2");
    assert_eq!(of(active(json!({ "environment": web, "generation": "1", "mode": "dev" }))), "1");
    assert_eq!(of(active(web.clone())), "2");
    // In a container it is fetched anew, the same generation of it.
    proxy::stand_in(&place.sandbox, place.store.root());
    for (pinned, expected) in [(json!("1"), "1"), (Value::Null, "2")] {
        let mut command = place.layerhold();
        command.args(["-v", "containerize", "-f", "image.tar"]).args(proxy::STAND_IN);
        let environment = json!({ "environment": web, "generation": pinned, "mode": "dev" });
        command.env("_FLOX_ACTIVE_ENVIRONMENTS", active(environment));
        assert_eq!(place.generation(&mut command).0, expected);
    }
    // One in the current directory comes first.
    let found = place.local("found");
    let mut command = place.command(&[]);
    command.current_dir(found.dir()).env("_FLOX_ACTIVE_ENVIRONMENTS", active(web));
    run(&mut command);
    assert!(found.dir().join("image.tar").exists());
}

#[test]
fn the_token_is_floxs_and_is_shown_to_nobody_but_floxhub() {
    peer!(git);
    let place = Place::new();
    fs::remove_file(place.sandbox.path("bin/git")).unwrap();
    let arguments = provide_noting_git(&place.sandbox);
    let command = |level: &str| {
        let mut command = place.layerhold();
        command.env_remove("FLOX_FLOXHUB_TOKEN").env("GIT_EXEC_PATH", place.sandbox.path("git-core"));
        command.args([level, "containerize", "-r", "me/web", "-f", "image.tar", "--store"]).arg(place.store.root());
        command
    };
    // What a user may have set up, by which a token would be kept, sent elsewhere or printed.
    let home = place.sandbox.path("home");
    let hook = format!("#!/bin/sh\necho hook >> '{}'\n", home.join("hook-ran").display());
    fs::create_dir(home.join("hooks")).unwrap();
    fs::write(home.join("hooks/reference-transaction"), hook).unwrap();
    fs::set_permissions(home.join("hooks/reference-transaction"), fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "[core]\n hooksPath = {}\n[credential]\n helper = store\n[url \"http://127.0.0.1:9/\"]\n insteadOf = {}\n",
        home.join("hooks").display(),
        place.hub.url()
    );
    fs::write(home.join(".gitconfig"), config).unwrap();
    fs::write(home.join(".netrc"), "machine 127.0.0.1 login oauth password wrong\n").unwrap();

    let config = place.sandbox.path("config");
    fs::create_dir_all(config.join("flox")).unwrap();
    let of_flox = format!("floxhub_token = \"{TOKEN}\"\nfloxhub_url = \"{}\"\n", place.hub.url());
    fs::write(config.join("flox/flox.toml"), of_flox).unwrap();
    for (variable, value) in [
        ("FLOX_CONFIG_DIR", config.join("flox").display().to_string()),
        ("XDG_CONFIG_HOME", config.display().to_string()),
        ("FLOX_FLOXHUB_TOKEN", TOKEN.to_owned()),
    ] {
        let mut command = command("-vvv");
        if variable != "FLOX_FLOXHUB_TOKEN" {
            command.env_remove("FLOX_FLOXHUB_URL");
        }
        command.env(variable, value).env("GIT_TRACE", "1").env("GIT_TRACE_CURL", "1").env("GIT_CURL_VERBOSE", "1");
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{variable}: {said}");
        says(&said, &["fetching 'me/web' from ", place.hub.url()]);
        assert!(!said.contains(TOKEN), "{said}");
    }
    let logged_in = |asked: &[(String, Option<String>)]| asked.iter().any(|(_, authorization)| authorization.is_some());
    assert!(logged_in(&place.hub.asked()));
    fs::remove_file(config.join("flox/flox.toml")).unwrap();

    let noted = fs::read_to_string(&arguments).unwrap();
    says(&noted, &["git-remote-http", " fetch ", "unpack-objects"]);
    let encoded = "b2F1dGg6ZmxveF9zM2NyZXRUMGtlbg";
    for secret in [TOKEN, encoded] {
        assert_eq!(files_with(&place.sandbox.path(""), secret), Vec::<PathBuf>::new());
    }
    assert!(!home.join("hook-ran").exists());
    assert!(!home.join(".git-credentials").exists());
    assert_eq!(names_in(&place.sandbox.path("tmp")), Vec::<String>::new());
}

#[test]
fn a_server_that_leads_elsewhere_does_not_take_the_token_there() {
    peer!(git);
    let place = Place::new();
    let elsewhere = FloxHub::start(&place.sandbox, "elsewhere");
    elsewhere.environment("me", "web").add(2, &place.local("elsewhere")).history(&[2]);
    place.hub.behave(Behaviour::Redirect(elsewhere.url().to_owned()));
    says(&place.failure(&mut place.web()), &["does not give 'me/web' to"]);
    let asked = elsewhere.asked();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|(_, authorization)| authorization.is_none()), "{asked:?}");
}

#[test]
fn without_a_login_what_is_public_is_had_and_nothing_else() {
    peer!(git);
    let place = Place::new();
    let anonymous = || {
        let mut command = place.web();
        command.env_remove("FLOX_FLOXHUB_TOKEN");
        command
    };
    let said = place.failure(&mut anonymous());
    says(
        &said,
        &[
            "✘ ERROR: FloxHub at [HUB] does not give 'me/web' to somebody who has not logged in",
            "hint: log in: flox auth login; or set FLOX_FLOXHUB_TOKEN",
        ],
    );
    place.hub.behave(Behaviour::Open);
    assert_eq!(place.generation(&mut anonymous()).0, "2");
}

#[rstest]
#[case::a_token_that_has_expired("401 Unauthorized")]
#[case::somebody_elses("403 Forbidden")]
fn what_is_refused_is_not_had_from_what_was_fetched_before(#[case] status: &'static str) {
    peer!(git);
    let place = Place::new();
    place.generation(&mut place.web());
    fs::remove_file(place.sandbox.path("work/image.tar")).unwrap();
    place.hub.behave(Behaviour::Status(status));
    let said = place.failure(&mut place.web());
    says(&said, &["FloxHub at [HUB] does not give 'me/web' to the owner of this token", "flox auth login"]);
    place.hub.behave(Behaviour::Login);
    says(&place.failure(place.web().env("FLOX_FLOXHUB_TOKEN", "flox_other")), &["does not give 'me/web'"]);
    let said = place.failure(place.web().env("FLOX_FLOXHUB_TOKEN", "flox other"));
    says(&said, &["FLOX_FLOXHUB_TOKEN is not a token", "hint: get a new one: flox auth login"]);
    assert!(!said.contains("flox other"), "{said}");
}

#[test]
fn what_is_not_there_is_said() {
    peer!(git);
    let place = Place::new();
    place.generation(&mut place.web());
    fs::remove_file(place.sandbox.path("work/image.tar")).unwrap();
    let said = place.failure(&mut place.command(&["-r", "nobody/web"]));
    says(&said, &["✘ ERROR: FloxHub at [HUB] has no environments of 'nobody'", "hint: check OWNER"]);
    let said = place.failure(&mut place.command(&["-r", "me/wep"]));
    says(&said, &["✘ ERROR: FloxHub at [HUB] has no environment 'me/wep'", "hint: check NAME"]);
    let said = place.failure(place.web().args(["--generation", "7"]));
    says(&said, &["✘ ERROR: 'me/web' on FloxHub has no generation 7, only 1-3", "hint: name one of those"]);
    place.hub.environment("me", "empty");
    let said = place.failure(&mut place.command(&["-r", "me/empty"]));
    says(&said, &["'me/empty' on FloxHub has no generation yet", "hint: make one: flox edit -r me/empty"]);
}

#[rstest]
#[case::damaged("{\"version\":2,\n\"history\":", "me/web:metadata.json:2:10: EOF")]
#[case::unknown("{\"version\":3}", "me/web:metadata.json: version: version 3 of this format is not known")]
#[case::a_generation_that_is_not_there(
    r#"{"version":2,"history":[{"current_generation":"9"}]}"#,
    "'me/web' on FloxHub has no generation 9, only 1-3"
)]
fn metadata_that_is_not_what_flox_writes(#[case] metadata: &str, #[case] part: &str) {
    peer!(git);
    let place = Place::new();
    place.web.write("metadata.json", metadata);
    says(&place.failure(&mut place.web()), &[part]);
}

#[test]
fn a_generation_that_is_not_whole() {
    peer!(git);
    let place = Place::new();
    place.web.remove("2/env/manifest.lock");
    let said = place.failure(&mut place.web());
    says(
        &said,
        &["✘ ERROR: the environment 'me/web' on FloxHub has no lockfile", "hint: lock it: flox upgrade -r me/web"],
    );
    assert_eq!(place.generation(place.web().args(["--generation", "1"])).0, "1");
    fs::remove_file(place.sandbox.path("work/image.tar")).unwrap();
    place.web.write("2/env/manifest.toml", "version = 1\n[vars\n");
    says(&place.failure(&mut place.web()), &["me/web:2/env/manifest.toml:2:6: "]);
    place.web.remove("metadata.json");
    says(&place.failure(&mut place.web()), &["'me/web' on FloxHub has no metadata.json"]);
}

#[test]
fn wrong_usage() {
    let sandbox = Sandbox::new();
    for args in [
        &["-r", "web"][..],
        &["-r", "me/../web"],
        &["-r", "me/web", "-d", "."],
        &["-r", "me/web", "--generation", "0"],
        &["-d", ".", "--generation", "1"],
        &["--generation", "1"],
    ] {
        sandbox.cmd().arg("containerize").args(args).assert().code(2);
    }
    let output = sandbox.cmd().args(["containerize", "-r", "web"]).assert().get_output().stderr.clone();
    says(
        &String::from_utf8(output).unwrap(),
        &["'web' does not name a remote environment: it must have the form OWNER/NAME"],
    );
}

#[test]
fn an_address_that_is_none() {
    let sandbox = Sandbox::new();
    sandbox.script("git", "exit 1");
    let mut command = sandbox.cmd();
    command.args(["containerize", "-r", "me/web"]).env("_FLOX_FLOXHUB_GIT_URL", "https://me:s3cret@hub");
    let output = command.assert().code(1).get_output().stderr.clone();
    let said = String::from_utf8(output).unwrap();
    says(&said, &["✘ ERROR: _FLOX_FLOXHUB_GIT_URL is not an address of FloxHub", "hint: "]);
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn git_that_is_missing_or_broken() {
    peer!(git);
    let place = Place::new();
    fs::remove_file(place.sandbox.path("bin/git")).unwrap();
    says(&place.failure(&mut place.web()), &["git was not found in PATH", "hint: install git"]);
    place.sandbox.script("git", "echo 'fatal: this git is broken' >&2; exit 128");
    says(&place.failure(&mut place.web()), &["git cannot fetch 'me/web'", "caused by: this git is broken"]);
    place.sandbox.script("git", "kill -9 $$");
    says(&place.failure(&mut place.web()), &["git cannot fetch 'me/web'", "was killed by signal 9"]);
}

#[test]
fn an_environment_in_a_directory_needs_neither_git_nor_floxhub() {
    let place = Place::new();
    fs::remove_file(place.sandbox.path("bin/git")).unwrap();
    let local = place.local("local");
    let pointer = json!({ "name": "web", "version": 1, "owner": "me", "floxhub_url": place.hub.url() });
    local.write("env.json", &pointer.to_string());
    local.write("env.lock", r#"{"version":1,"rev":"6666cd76f96956469e7be39d750cc7d9","local_rev":null}"#);
    let dir = local.dir().display().to_string();
    // Settings that are no use for FloxHub are none of its business either.
    let mut command = place.command(&["-d", &dir]);
    assert_eq!(place.generation(command.env("FLOX_FLOXHUB_URL", "nonsense")).0, "local");
    assert_eq!(place.hub.asked(), []);
    // Flox has not checked it out yet.
    fs::remove_file(local.dot_flox("env/manifest.toml")).unwrap();
    fs::remove_file(place.sandbox.path("work/image.tar")).unwrap();
    let said = place.failure(&mut place.command(&["-d", &dir]));
    says(&said, &["hint: let Flox restore it: flox list -d "]);
}
