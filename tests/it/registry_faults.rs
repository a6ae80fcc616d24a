//! Pushes to registries that fail: they get through, or end in words that help; and no tag leads to half an image.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use layerhold::blob::Digest;
use rstest::rstest;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_proxy::{Fault, RegistryProxy, Request};
use crate::registry_server::{LOGIN, RegistryServer, Setup};
use crate::registry_tokens::Tokens;
use crate::sandbox::Sandbox;

/// Large enough for two chunks, whatever compresses it.
const LARGE: usize = 9 << 20;
const SMALL: usize = 100_000;

/// A registry, a proxy before it, and an environment whose image goes there.
pub(crate) struct Place {
    pub(crate) sandbox: Sandbox,
    pub(crate) store: BareStore,
    environment: FloxEnv,
    pub(crate) server: RegistryServer,
    pub(crate) proxy: RegistryProxy,
}

impl Place {
    /// `None` where there is no registry.
    pub(crate) fn new(setup: Setup, tokens: Option<Tokens>) -> Option<Self> {
        let program = crate::peers::docker_registry()?;
        let sandbox = Sandbox::new();
        let server = program.start(&sandbox.path("registry"), setup);
        let proxy = RegistryProxy::start_with(&server, tokens);
        let store = BareStore::new(sandbox.path("root"));
        let environment = environment(&sandbox, &store, "first");
        Some(Self { sandbox, store, environment, server, proxy })
    }

    /// The environment changes: one small package is another one.
    pub(crate) fn change(&mut self) {
        self.environment = environment(&self.sandbox, &self.store, "second");
    }

    fn arguments(&self, tag: &str) -> Vec<String> {
        let mut arguments = self.containerize();
        arguments.extend(["--push".to_owned(), self.proxy.reference(&format!("team/web:{tag}"))]);
        arguments
    }

    /// Makes the image, and does nothing with it yet.
    pub(crate) fn containerize(&self) -> Vec<String> {
        let store = self.store.root().display().to_string();
        let dir = self.environment.dir().display().to_string();
        ["containerize", "--store", &store, "-d", &dir].map(str::to_owned).into()
    }

    fn command(&self, tag: &str) -> assert_cmd::Command {
        let mut command = self.sandbox.cmd();
        // No login of whoever runs the tests.
        command.env("DOCKER_CONFIG", self.sandbox.path("home")).args(self.arguments(tag));
        command
    }

    fn push(&self, tag: &str) -> Output {
        self.command(tag).output().unwrap()
    }

    /// Pushes to a good end: the image is there, whole.
    pub(crate) fn push_whole(&self, tag: &str) {
        let output = self.push(tag);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}\n{:#?}", self.proxy.traffic().log);
        let digest = self.verify(tag);
        let reference = format!("{}@{digest}\n", self.proxy.reference("team/web"));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), reference);
    }

    /// What a push says that fails, with what differs from run to run masked.
    pub(crate) fn failure(&self, tag: &str) -> String {
        let output = self.push(tag);
        assert!(!output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "no reference to what is not there");
        self.masked(&output)
    }

    pub(crate) fn masked(&self, output: &Output) -> String {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        self.sandbox.tidy(&said).replace(&self.proxy.host(), "[REGISTRY]")
    }

    /// Looks at every byte that a tag leads to; the manifest's digest.
    fn verify(&self, tag: &str) -> Digest {
        self.verify_in("team/web", tag)
    }

    /// The same in any repository.
    pub(crate) fn verify_in(&self, repository: &str, tag: &str) -> Digest {
        let answer = self.server.ask("GET", &format!("/v2/{repository}/manifests/{tag}"));
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        let manifest: Value = serde_json::from_slice(&answer.body).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        assert!(layers.len() >= 3, "{manifest:#}");
        let held: BTreeSet<_> = self.server.blobs(repository).into_iter().collect();
        for blob in layers.iter().chain([&manifest["config"]]) {
            let digest = blob["digest"].as_str().unwrap();
            assert!(held.contains(digest), "{tag} leads to {digest}, which is not there");
            let bytes = std::fs::read(self.server.blob_file(digest)).unwrap();
            assert_eq!(Digest::of(&bytes).to_string(), digest);
        }
        Digest::of(&answer.body)
    }

    /// The digests of an image's layers, the largest first.
    fn layers(&self, tag: &str) -> Vec<String> {
        let answer = self.server.ask("GET", &format!("/v2/team/web/manifests/{tag}"));
        let manifest: Value = serde_json::from_slice(&answer.body).unwrap();
        let mut layers = manifest["layers"].as_array().unwrap().clone();
        layers.sort_by_key(|layer| std::cmp::Reverse(layer["size"].as_u64()));
        layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
    }
}

fn environment(sandbox: &Sandbox, store: &BareStore, version: &str) -> FloxEnv {
    let add = |name: &str, size: usize| {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
        store.add(name, &Tree::new().program(format!("bin/{name}"), bytes))
    };
    let paths = [add("large-1", LARGE), add("middle-1", 10 * SMALL), add(&format!("small-{version}"), SMALL)];
    let installs = [("large", paths[0].as_str()), ("middle", &paths[1]), ("small", &paths[2])];
    FloxEnv::of_store_paths(sandbox.path(format!("project-{version}")), "web", &installs, "")
}

/// Ends the test where there is no registry.
macro_rules! place {
    ($($argument:expr),*) => {{
        crate::peers::peer!(docker_registry);
        crate::registry_faults::Place::new($($argument),*).unwrap()
    }};
}
pub(crate) use place;

#[rstest]
#[case::refused_for_now(Request::HeadBlob, Fault::Status(429, "Retry-After: 1"))]
#[case::refused_for_now_at_the_begin(Request::HeadManifest, Fault::Status(429, "Retry-After: 0"))]
#[case::broken_before_an_upload(Request::PostUpload, Fault::Status(500, ""))]
#[case::broken_in_an_upload(Request::PatchUpload, Fault::Status(502, ""))]
#[case::cut_in_a_chunk(Request::PatchUpload, Fault::Cut(1 << 20))]
#[case::cut_in_a_chunk_that_is_kept(Request::PatchUpload, Fault::CutAndKeep(1 << 20))]
#[case::cut_in_a_blob(Request::PutUpload, Fault::Cut(1000))]
#[case::silent_after_a_blob(Request::PutUpload, Fault::Silence)]
#[case::session_is_lost(Request::PatchUpload, Fault::Refused(404, "BLOB_UPLOAD_UNKNOWN"))]
#[case::broken_at_the_end(Request::PutManifest, Fault::Status(503, "Retry-After: 1"))]
#[case::silent_at_the_end(Request::PutManifest, Fault::Silence)]
#[case::lacks_a_blob_after_all(Request::PutManifest, Fault::Refused(404, "MANIFEST_BLOB_UNKNOWN"))]
fn what_passes_is_survived(#[case] request: Request, #[case] fault: Fault) {
    let place = place!(Setup::default(), None);
    place.proxy.fail(request, &[fault]);
    place.push_whole("v1");
    let traffic = place.proxy.traffic();
    assert!(traffic.of(request).requests >= 2, "the fault was met: {:#?}", traffic.log);
    // The large layer may have gone twice, whole; nothing goes for ever.
    assert!(traffic.sent() < 3 * LARGE as u64, "{:#?}", traffic.log);
    assert!(traffic.requests() < 80, "{:#?}", traffic.log);
}

#[test]
fn a_registry_that_loses_blobs_gets_them_again() {
    let mut place = place!(Setup::default(), None);
    place.push_whole("v1");
    let layers = place.layers("v1");
    place.server.lose("team/web", &layers[1]);
    place.change();
    place.proxy.traffic();
    // What is remembered of the registry is no longer true, and found out before the tag is there.
    place.push_whole("v2");
    let traffic = place.proxy.traffic();
    assert!(traffic.sent() < LARGE as u64, "what is still there is not sent again: {:#?}", traffic.log);
}

#[test]
fn what_a_registry_has_lost_under_an_image_that_is_pushed_already_is_sent_again() {
    let place = place!(Setup::default(), None);
    place.push_whole("v1");
    let digest = place.verify("v1");
    let manifest: Value = serde_json::from_slice(&place.server.ask("GET", "/v2/team/web/manifests/v1").body).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap().to_owned();
    for lost in [place.layers("v1")[1].clone(), config] {
        place.server.lose("team/web", &lost);
        // A machine that has seen none of its blobs asks for all of them, although the tag leads to the image.
        let newcomer = place.sandbox.path(format!("newcomer-{}", &lost[7..15]));
        place.proxy.traffic();
        place.command("v1").env("LAYERHOLD_CACHE", &newcomer).assert().success();
        assert_eq!(place.verify("v1"), digest);
        let traffic = place.proxy.traffic();
        assert_eq!(traffic.of(Request::PostUpload).requests, 1, "what is there is not sent: {:#?}", traffic.log);
        // It asks once.
        place.command("v1").env("LAYERHOLD_CACHE", &newcomer).assert().success();
        let traffic = place.proxy.traffic();
        assert_eq!(traffic.of(Request::HeadBlob).requests, 0, "{:#?}", traffic.log);
    }
}

/// What is said where a fault does not go away.
fn lasting(request: Request, fault: Fault) -> String {
    let place = Place::new(Setup::default(), None).unwrap();
    place.proxy.fail_always(request, fault);
    let said = place.failure("v1");
    assert_eq!(place.server.tags("team/web"), Vec::<String>::new(), "no tag leads to half an image");
    let traffic = place.proxy.traffic();
    assert!(traffic.requests() < 100, "{:#?}", traffic.log);
    // The same registry, mended.
    place.proxy.mend();
    place.push_whole("v1");
    said
}

macro_rules! lasting {
    ($request:expr, $fault:expr) => {{
        peer!(docker_registry);
        lasting($request, $fault)
    }};
}

#[test]
fn a_registry_that_is_broken_is_named() {
    insta::assert_snapshot!(lasting!(Request::PutManifest, Fault::Status(500, "")), @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1'
      caused by: the server answered with status 500
      hint: run this again in a while: layers that it has are not sent again
    ");
}

#[test]
fn a_registry_that_wants_to_be_left_alone_for_long_is_not_waited_for() {
    insta::assert_snapshot!(lasting!(Request::HeadManifest, Fault::Status(429, "Retry-After: 3600")), @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1'
      caused by: the server answered with status 429 and wants to be left alone for 3600 s
      hint: run this again in a while: layers that it has are not sent again
    ");
}

#[test]
fn a_registry_that_forbids_says_so_once() {
    insta::assert_snapshot!(lasting!(Request::PostUpload, Fault::Refused(403, "DENIED")), @r"
    ✘ ERROR: the registry '[REGISTRY]' does not allow the blob sha256:[DIGEST] to somebody who has not logged in
      hint: log in: docker login [REGISTRY], or podman login [REGISTRY]
    ");
}

#[test]
fn a_registry_without_room_for_a_blob_is_quoted() {
    insta::assert_snapshot!(lasting!(Request::PutUpload, Fault::Refused(413, "SIZE_INVALID")), @r"
    ✘ ERROR: the registry '[REGISTRY]' refuses the blob sha256:[DIGEST]: SIZE_INVALID: said the proxy (status 413)
      hint: have it, or the proxy before it, take larger bodies; or make smaller layers: --max-layers 127
    ");
}

#[test]
fn a_registry_that_lies_about_a_blob_is_not_believed() {
    insta::assert_snapshot!(lasting!(Request::PutUpload, Fault::OtherDigest), @r"
    ✘ ERROR: the registry '[REGISTRY]' says that the blob sha256:[DIGEST] is sha256:[DIGEST], and it is sha256:[DIGEST]
      hint: see whether something on the way changes what is sent, a proxy for instance (HTTPS_PROXY), and run this again
    ");
}

#[test]
fn a_registry_that_always_lacks_blobs_is_given_up() {
    insta::assert_snapshot!(lasting!(Request::PutManifest, Fault::Refused(404, "MANIFEST_BLOB_UNKNOWN")), @r"
    ✘ ERROR: the registry '[REGISTRY]' refuses the manifest 'v1': it lacks blobs again that it has just been sent
      hint: see whether its garbage is being collected: a registry takes nothing meanwhile
    ");
}

#[test]
fn a_registry_that_loses_every_upload_is_given_up() {
    insta::assert_snapshot!(lasting!(Request::PutUpload, Fault::Refused(404, "BLOB_UPLOAD_UNKNOWN")), @r"
    ✘ ERROR: the registry '[REGISTRY]' lost the blob sha256:[DIGEST] before it was whole, 3 times
      hint: see whether it has room, and whether all of its replicas keep their uploads in one place; then run this again: layers that it has are not sent again
    ");
}

#[test]
fn a_registry_that_cuts_every_upload_is_given_up() {
    insta::assert_snapshot!(lasting!(Request::PatchUpload, Fault::Cut(100)), @r"
    ✘ ERROR: the registry '[REGISTRY]' lost the blob sha256:[DIGEST] before it was whole, 3 times
      hint: see whether it has room, and whether all of its replicas keep their uploads in one place; then run this again: layers that it has are not sent again
    ");
}

#[test]
fn a_registry_that_lies_about_the_manifest_is_not_believed() {
    let place = place!(Setup::default(), None);
    place.proxy.fail_always(Request::PutManifest, Fault::OtherDigest);
    insta::assert_snapshot!(place.failure("v1"), @r"
    ✘ ERROR: the registry '[REGISTRY]' says that the manifest 'v1' is sha256:[DIGEST], and it is sha256:[DIGEST]
      hint: see whether something on the way changes what is sent, a proxy for instance (HTTPS_PROXY), and run this again
    ");
}

#[test]
fn a_tag_stays_on_the_image_before_when_a_push_fails() {
    let mut place = place!(Setup::default(), None);
    place.push_whole("latest");
    let before = place.verify("latest");
    place.change();
    for (request, fault) in [
        (Request::PutUpload, Fault::Refused(403, "DENIED")),
        (Request::PutManifest, Fault::Refused(400, "MANIFEST_INVALID")),
    ] {
        place.proxy.fail_always(request, fault);
        place.failure("latest");
        assert_eq!(place.verify("latest"), before);
        place.proxy.mend();
    }
    place.push_whole("latest");
    assert_ne!(place.verify("latest"), before);
}

/// Starts a push, and waits until a request hangs.
fn hanging(place: &Place, request: Request, after: usize) -> std::process::Child {
    place.proxy.fail_after(after, request, Fault::Hang);
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(place.sandbox.environment()).env("DOCKER_CONFIG", place.sandbox.path("home"));
    command.args(place.arguments("v1")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut log = Vec::new();
    while !log.iter().any(|line: &String| line.ends_with(": hangs")) {
        assert!(Instant::now() < deadline, "nothing hangs: {log:#?}");
        log.extend(place.proxy.traffic().log);
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn a_push_that_is_killed_leaves_no_tag_and_the_next_sends_what_is_missing() {
    // What was on its way is the killed push's doing, and is over before the next one is counted.
    let killed = |place: &Place, request, after| {
        let mut child = hanging(place, request, after);
        child.kill().unwrap();
        child.wait().unwrap();
        place.proxy.wait_for_the_last();
        place.proxy.traffic();
    };
    let place = place!(Setup::default(), None);
    // All blobs are there, and the manifest is not.
    killed(&place, Request::PutManifest, 0);
    assert_eq!(place.server.tags("team/web"), Vec::<String>::new());
    place.push_whole("v1");
    let traffic = place.proxy.traffic();
    assert_eq!(traffic.of(Request::PostUpload).requests, 0, "all blobs were there: {:#?}", traffic.log);

    // In the midst of the large layer.
    let place = place!(Setup::default(), None);
    killed(&place, Request::PatchUpload, 1);
    assert_eq!(place.server.tags("team/web"), Vec::<String>::new());
    let there = place.server.blobs("team/web").len() as u64;
    place.push_whole("v1");
    let traffic = place.proxy.traffic();
    let all = place.server.blobs("team/web").len() as u64;
    assert_eq!(traffic.of(Request::PostUpload).requests, all - there, "{:#?}", traffic.log);
}

#[test]
fn a_push_to_a_registry_that_hangs_can_be_interrupted() {
    let place = place!(Setup::default(), None);
    for request in [Request::HeadManifest, Request::PatchUpload, Request::PutManifest] {
        let child = hanging(&place, request, 0);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{request:?}: {}", place.masked(&output));
        assert_eq!(place.server.tags("team/web"), Vec::<String>::new());
    }
}

#[rstest]
#[case::basic(Setup { login: true, ..Setup::default() }, None)]
#[case::token(Setup::default(), Some(Tokens::for_login()))]
fn whoever_has_not_logged_in_is_told_how(#[case] setup: Setup, #[case] tokens: Option<Tokens>) {
    let place = place!(setup, tokens);
    insta::allow_duplicates! {
        insta::assert_snapshot!(place.failure("v1"), @r"
    ✘ ERROR: the registry '[REGISTRY]' does not allow the manifest 'v1' to somebody who has not logged in
      hint: log in: docker login [REGISTRY], or podman login [REGISTRY]
    ");
    }
}

#[rstest]
#[case::basic(Setup { login: true, ..Setup::default() }, None)]
#[case::token(Setup::default(), Some(Tokens::for_login().good_for(9)))]
fn nothing_secret_is_said(#[case] setup: Setup, #[case] tokens: Option<Tokens>) {
    let place = place!(setup, tokens);
    let login = crate::registry_messages::basic(LOGIN.0, LOGIN.1);
    let right = login.strip_prefix("Basic ").unwrap();
    let wrong = crate::registry_messages::basic(LOGIN.0, "sesame-wrong");
    let file = place.sandbox.path("auth.json");
    for auth in [right, wrong.strip_prefix("Basic ").unwrap()] {
        std::fs::write(&file, serde_json::json!({"auths": {place.proxy.host(): {"auth": auth}}}).to_string()).unwrap();
        for (before, behind) in [("-v", None), ("-vv", None), ("-v", Some("--json")), ("-v", Some("--dry-run"))] {
            let mut command = place.sandbox.cmd();
            command.env("REGISTRY_AUTH_FILE", &file).arg(before).args(place.arguments("v1")).args(behind);
            let output = command.output().unwrap();
            assert_eq!(output.status.success(), auth == right, "{}", place.masked(&output));
            let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
            // The passwords, the header, the tokens, the state of an upload.
            for secret in ["sesame", auth, "token-", "_state"] {
                assert!(!said.contains(secret), "{secret} in {said}");
            }
        }
    }
    assert_eq!(place.server.tags("team/web"), ["v1"]);
}

#[test]
fn tags_of_one_repository_have_one_reference() {
    let place = place!(Setup::default(), None);
    let others = ["team/web:v2", "team/api:v1"].map(|name| place.proxy.reference(name));
    let mut command = place.command("v1");
    let output = command.args(others.iter().flat_map(|other| ["--push", other])).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let digest = place.verify("v1");
    assert_eq!(place.verify("v2"), digest);
    let expected = ["team/web", "team/api"].map(|name| format!("{}@{digest}\n", place.proxy.reference(name)));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected.concat());
}
