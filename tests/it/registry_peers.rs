//! Pushed images as those see them who pull, run and inspect them; and logins as Docker and Podman leave them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use layerhold::blob::Digest;
use rstest::rstest;
use serde_json::Value;

use crate::containerize::{containerize, hello_environment};
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::{LoadedImage, Peer, peer, skip, unique_name};
use crate::platforms::{Project, both, here_and_elsewhere};
use crate::registry_server::{LOGIN, RegistryServer, Setup};
use crate::sandbox::Sandbox;

/// What a runtime needs to pull from a registry without TLS; Docker takes one on this machine as it is.
fn pull(runtime: Peer, reference: &str) {
    let insecure: &[&str] = if runtime.program == "podman" { &["--tls-verify=false"] } else { &[] };
    runtime.run([&["pull", "--quiet"][..], insecure, &[reference]].concat());
}

/// zstd as by default, gzip for a Docker that cannot read it.
fn compression(runtime: Peer) -> &'static str {
    let is_old = runtime.program == "docker" && {
        let version = runtime.run(["version", "--format", "{{.Server.Version}}"]);
        version.split('.').next().unwrap().parse::<u32>().unwrap() < 23
    };
    if is_old { "gzip" } else { "zstd" }
}

/// Pushes, pulls by the digest that was printed and by the tag, and runs.
fn pulls_and_runs(runtime: Peer) {
    let (nix, program) = (peer!(nix), peer!(docker_registry));
    let sandbox = Sandbox::new();
    let server = program.start(&sandbox.path("registry"), Setup::default());
    let name = unique_name("pull");
    let environment = hello_environment(&sandbox, nix, &name, "[vars]\nGREETING = \"from the manifest\"\n");
    let reference = server.reference(&format!("team/{name}:v1"));
    let push = |args: &[&str]| {
        let mut command = containerize(&sandbox, nix.root(), &environment);
        command.args(["--push", &reference, "--compression", compression(runtime)]).args(args);
        String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
    };
    let printed = push(&[]);
    let by_digest = printed.trim_end();
    assert!(by_digest.starts_with(&server.reference(&format!("team/{name}@sha256:"))), "{by_digest}");
    let described: Value = serde_json::from_str(&push(&["--json"])).unwrap();
    for reference in [by_digest, &reference] {
        pull(runtime, reference);
        let image = LoadedImage::new(runtime, reference);
        let [image_id, manifest] = ["image_id", "manifest_digest"].map(|digest| described[digest].as_str().unwrap());
        assert_eq!(image.id(), runtime.name_of(image_id, manifest));
        assert_eq!(image.run(&[], &["hello"]), "Hello, world!\n");
        assert_eq!(image.run(&[], &["sh", "-c", "echo \"$GREETING\""]), "from the manifest\n");
    }
}

#[test]
fn docker_pulls_and_runs_what_was_pushed() {
    pulls_and_runs(peer!(docker));
}

#[test]
fn podman_pulls_and_runs_what_was_pushed() {
    pulls_and_runs(peer!(podman));
}

/// Pushes an index, and pulls what is for this machine out of it.
fn pulls_its_own_platform(runtime: Peer) {
    let program = peer!(docker_registry);
    let name = unique_name("index");
    let Some(project) = Project::that_runs(&name) else {
        return skip("bash-static and busybox-static", "pulls_its_own_platform");
    };
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let reference = server.reference(&format!("team/{name}"));
    let args = ["--platform", &both(), "--push", &reference, "--compression", compression(runtime)];
    project.command(&args).assert().success();
    let reference = format!("{reference}:latest");
    pull(runtime, &reference);
    let image = LoadedImage::new(runtime, &reference);
    assert_eq!(image.run(&[], &["cat", "$FLOX_ENV/share/says"]), here_and_elsewhere().0.oci);
}

#[test]
fn docker_pulls_its_own_platform_out_of_an_index() {
    pulls_its_own_platform(peer!(docker));
}

#[test]
fn podman_pulls_its_own_platform_out_of_an_index() {
    pulls_its_own_platform(peer!(podman));
}

#[test]
fn skopeo_inspects_an_index_and_each_image_in_it() {
    let (skopeo, program) = (peer!(skopeo), peer!(docker_registry));
    let project = Project::new("hello");
    let server = program.start(&project.sandbox.path("registry"), Setup::default());
    let reference = server.reference("team/hello");
    let pushed = project.command(&["--platform", &both(), "--push", &reference]).assert().success();
    let printed = String::from_utf8(pushed.get_output().stdout.clone()).unwrap();
    let from = format!("docker://{reference}:latest");
    let inspect = |args: &[&str]| {
        let (before, behind) = args.split_at(args.len() / 2 * 2);
        skopeo.run([before, &["inspect", "--tls-verify=false"], behind, &[&from]].concat())
    };
    let raw = inspect(&["--raw"]);
    assert_eq!(printed, format!("{reference}@{}\n", Digest::of(raw.as_bytes())));
    let index: Value = serde_json::from_str(&raw).unwrap();
    let (here, elsewhere) = here_and_elsewhere();
    for (platform, listed) in [here, elsewhere].iter().zip(index["manifests"].as_array().unwrap()) {
        let arch = platform.oci.strip_prefix("linux/").unwrap();
        assert_eq!(listed["platform"]["architecture"], arch);
        let image: Value = serde_json::from_str(&inspect(&["--override-arch", arch])).unwrap();
        assert_eq!(image["Architecture"], arch);
        let raw = skopeo.run([
            "inspect",
            "--tls-verify=false",
            "--raw",
            &format!("docker://{reference}@{}", listed["digest"].as_str().unwrap()),
        ]);
        let manifest: Value = serde_json::from_str(&raw).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        assert!(
            layers.iter().all(|layer| layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"),
            "{raw}"
        );
        assert_eq!(image["Layers"].as_array().unwrap().len(), layers.len());
    }
}

#[test]
fn an_index_that_lost_an_image_gets_it_again() {
    let program = peer!(docker_registry);
    let project = Project::new("hello");
    let setup = Setup { deletes: true, ..Setup::default() };
    let server = program.start(&project.sandbox.path("registry"), setup);
    let reference = server.reference("team/hello");
    let push = |machine: &str| {
        let machine = project.sandbox.path(machine);
        let mut command = project.command(&["--platform", &both(), "--push", &reference]);
        command.env("LAYERHOLD_CACHE", machine).assert().success();
    };
    push("first");
    let index: Value = serde_json::from_slice(&server.ask("GET", "/v2/team/hello/manifests/latest").body).unwrap();
    let image = format!("/v2/team/hello/manifests/{}", index["manifests"][1]["digest"].as_str().unwrap());
    assert_eq!(server.ask("DELETE", &image).status, 202);
    assert_eq!(server.ask("GET", &image).status, 404);
    // The tag still leads to the index.
    push("second");
    assert_eq!(server.ask("GET", &image).status, 200);
}

/// A small environment, and a registry that demands a login.
struct Guarded {
    sandbox: Sandbox,
    store: BareStore,
    environment: FloxEnv,
    server: RegistryServer,
}

impl Guarded {
    /// `None` where there is no registry.
    fn new(setup: Setup) -> Option<Self> {
        let program = crate::peers::docker_registry()?;
        let sandbox = Sandbox::new();
        let server = program.start(&sandbox.path("registry"), setup);
        let store = BareStore::new(sandbox.path("root"));
        let tool = store.add("tool-1", &Tree::new().program("bin/tool", vec![b'x'; 100_000]));
        let environment = FloxEnv::of_store_paths(sandbox.path("project"), "web", &[("tool", &tool)], "");
        Some(Self { sandbox, store, environment, server })
    }

    /// Pushes with these variables and arguments; none of the machine's own that lead to logins.
    fn push(&self, variables: &[(&str, &Path)], args: &[&str]) -> Output {
        let mut command = containerize(&self.sandbox, self.store.root(), &self.environment);
        for name in ["DOCKER_CONFIG", "XDG_RUNTIME_DIR"] {
            command.env_remove(name);
        }
        command.args(["--push", &self.server.reference("team/web:v1")]).args(args);
        command.envs(variables.iter().copied()).output().unwrap()
    }

    fn said(&self, output: &Output) -> String {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        self.sandbox.tidy(&said).replace(&self.server.host(), "[REGISTRY]")
    }

    /// With these variables the login is found, and without it is not.
    fn assert_logged_in(&self, variables: &[(&str, &Path)], is_logged_in: bool) {
        let output = self.push(variables, &[]);
        assert_eq!(output.status.success(), is_logged_in, "{}", self.said(&output));
    }
}

/// Ends the test where there is no registry.
macro_rules! guarded {
    ($setup:expr) => {{
        peer!(docker_registry);
        Guarded::new($setup).unwrap()
    }};
}

const BEHIND_LOGIN: Setup = Setup { login: true, tls: false, deletes: false, relative: false, tokens_at: None };

/// Logs in, or out again, with the real program.
fn login(runtime: Peer, args: &[&str], variables: &[(&str, &Path)]) {
    let mut command = Command::new(runtime.program);
    // Podman too would write into Docker's file, if that is named.
    command.env_remove("XDG_RUNTIME_DIR").env_remove("DOCKER_CONFIG").envs(variables.iter().copied());
    command.args(args).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), LOGIN.1.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_docker_login_leaves_is_found() {
    let docker = peer!(docker);
    let place = guarded!(BEHIND_LOGIN);
    let (config, host) = (place.sandbox.path("docker"), place.server.host());
    let named: &[(&str, &Path)] = &[("DOCKER_CONFIG", &config)];
    place.assert_logged_in(named, false);
    login(docker, &["login", "--username", LOGIN.0, "--password-stdin", &host], named);
    place.assert_logged_in(named, true);
    // Where it is when no variable says so.
    fs::rename(&config, place.sandbox.path("home/.docker")).unwrap();
    place.assert_logged_in(&[], true);
    login(docker, &["logout", &host], &[("DOCKER_CONFIG", &place.sandbox.path("home/.docker"))]);
    place.assert_logged_in(&[], false);
}

#[test]
fn what_podman_login_leaves_is_found() {
    let podman = peer!(podman);
    let place = guarded!(BEHIND_LOGIN);
    let (running, file, host) = (place.sandbox.path("running"), place.sandbox.path("auth.json"), place.server.host());
    fs::create_dir(&running).unwrap();
    let into = ["login", "--tls-verify=false", "--username", LOGIN.0, "--password-stdin", &host];
    for named in [[("XDG_RUNTIME_DIR", running.as_path())], [("REGISTRY_AUTH_FILE", file.as_path())]] {
        place.assert_logged_in(&named, false);
        login(podman, &into, &named);
        place.assert_logged_in(&named, true);
        login(podman, &["logout", &host], &named);
        place.assert_logged_in(&named, false);
    }
}

#[test]
fn what_podman_login_leaves_is_found_where_there_is_no_directory_of_the_session() {
    let podman = peer!(podman);
    peer!(root);
    let place = guarded!(BEHIND_LOGIN);
    let host = place.server.host();
    // Podman's own place then, /run/containers/0, whose other logins stay.
    login(podman, &["login", "--tls-verify=false", "--username", LOGIN.0, "--password-stdin", &host], &[]);
    let output = place.push(&[], &[]);
    login(podman, &["logout", &host], &[]);
    assert!(output.status.success(), "{}", place.said(&output));
    place.assert_logged_in(&[], false);
}

#[test]
fn a_credential_helper_is_asked() {
    let place = guarded!(BEHIND_LOGIN);
    let config = place.sandbox.path("docker");
    fs::create_dir(&config).unwrap();
    fs::write(config.join("config.json"), r#"{"credsStore": "tests"}"#).unwrap();
    let (user, secret) = LOGIN;
    let host = place.server.host();
    let script = |secret: &str| {
        let answer = format!(r#"{{"ServerURL":"{host}","Username":"{user}","Secret":"{secret}"}}"#);
        format!("read server\n[ \"$1 $server\" = 'get {host}' ] || exit 1\necho '{answer}'\n")
    };
    let named: &[(&str, &Path)] = &[("DOCKER_CONFIG", &config)];
    // The protocol has no end of a line behind the registry's name.
    place.sandbox.script("docker-credential-tests", &script(secret).replace("read server", "read server || true"));
    place.assert_logged_in(named, true);
    place.sandbox.script("docker-credential-tests", "echo 'the secret is sesame' >&2; exit 1\n");
    let output = place.push(named, &[]);
    insta::assert_snapshot!(place.said(&output), @r"
    ✘ ERROR: the credential helper 'docker-credential-tests', named in '[SANDBOX]/docker/config.json', failed with exit status 1
      hint: try it: echo HOST | docker-credential-tests get; or log in without it: podman login HOST
    ");
    assert!(!place.said(&output).contains("sesame"));
}

#[test]
fn the_registrys_own_collection_of_garbage_leaves_images_and_the_cache_whole() {
    let place = guarded!(Setup { deletes: true, ..Setup::default() });
    let cache = place.server.reference("team/cache");
    let run = |machine: &str, args: &[&str]| {
        let machine = place.sandbox.path(machine);
        let output = place.push(&[("LAYERHOLD_CACHE", &machine)], args);
        assert!(output.status.success(), "{}", place.said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let pushed = run("first", &["--cache-to", &cache]);
    let before = place.server.blobs("team/cache");
    place.server.collect_garbage();
    let is_there = |digest: &String| place.server.blob_file(digest).exists();
    let (kept, gone): (Vec<_>, Vec<_>) = before.into_iter().partition(is_there);
    assert!(!gone.is_empty(), "what the sheet said while the run went on is garbage, and nothing else is");
    assert!(gone.iter().all(|digest| !place.server.blobs("team/web").contains(digest)), "{gone:?}");
    assert!(!kept.is_empty());
    // A machine that has never seen the environment, and a registry that has lost the image, not the cache.
    let manifest = pushed.trim_end().rsplit_once('@').unwrap().1;
    assert_eq!(place.server.ask("DELETE", &format!("/v2/team/web/manifests/{manifest}")).status, 202);
    place.server.collect_garbage();
    assert_eq!(run("second", &["--cache-from", &cache]), pushed);
    let found = place.server.ask("GET", "/v2/team/web/manifests/v1");
    let found: Value = serde_json::from_slice(&found.body).unwrap();
    for layer in found["layers"].as_array().unwrap() {
        assert!(is_there(&layer["digest"].as_str().unwrap().to_owned()), "{found:#}");
    }
}

#[rstest]
#[case::named("--registry-ca")]
#[case::where_podman_looks(".config/containers/certs.d")]
fn a_registry_behind_tls_is_trusted_with_its_authority(#[case] how: &str) {
    let place = guarded!(Setup { tls: true, ..Setup::default() });
    let output = place.push(&[], &[]);
    insta::allow_duplicates! {
        insta::assert_snapshot!(place.said(&output), @r"
        ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1'
          caused by: invalid peer certificate: UnknownIssuer
          hint: if it is by an authority of your own: --registry-ca FILE with that one's certificate
        ");
    }
    let authority = place.server.authority();
    let output = if how.starts_with("--") {
        place.push(&[], &[how, authority.to_str().unwrap()])
    } else {
        let directory = place.sandbox.path("home").join(how).join(place.server.host());
        fs::create_dir_all(&directory).unwrap();
        fs::copy(&authority, directory.join("ca.crt")).unwrap();
        place.push(&[], &[])
    };
    assert!(output.status.success(), "{}", place.said(&output));
    // What was printed is what others find there.
    let skopeo = peer!(skopeo);
    let directory = place.sandbox.path("certificates");
    fs::create_dir(&directory).unwrap();
    fs::copy(&authority, directory.join("ca.crt")).unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let from = format!("docker://{}", place.server.reference("team/web:v1"));
    let raw = skopeo.run(["inspect", "--cert-dir", directory.to_str().unwrap(), "--raw", &from]);
    assert!(printed.trim_end().ends_with(&Digest::of(raw.as_bytes()).to_string()), "{printed}");
}

#[test]
fn an_authority_of_one_registry_is_none_of_another_s() {
    let place = guarded!(Setup { tls: true, ..Setup::default() });
    let known = format!("localhost:{}", place.server.port());
    let directory = place.sandbox.path("home/.config/containers/certs.d").join(&known);
    fs::create_dir_all(&directory).unwrap();
    fs::copy(place.server.authority(), directory.join("ca.crt")).unwrap();
    let known = format!("{known}/team/known:v1");
    // Both are asked in one run, and the one is trusted.
    let output = place.push(&[], &["--push", &known]);
    insta::assert_snapshot!(place.said(&output), @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1'
      caused by: invalid peer certificate: UnknownIssuer
      hint: if it is by an authority of your own: --registry-ca FILE with that one's certificate
    ");
    // A file that cannot be read is an error of who is asked with it.
    fs::remove_file(directory.join("ca.crt")).unwrap();
    fs::create_dir(directory.join("ca.crt")).unwrap();
    let output = place.push(&[], &["--registry-ca", place.server.authority().to_str().unwrap(), "--push", &known]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("ca.crt': Is a directory"), "{said}");
    assert_eq!(place.server.tags("team/web"), ["v1"], "{said}");
}
