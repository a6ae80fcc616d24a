//! Who asks a registry, and those who give tokens for it: they fail, they are asked by several users, they take passwords
//! or what `docker login` has left instead of one.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rstest::rstest;
use serde_json::{Value, json};

use crate::ports::ClosedPort;
use crate::registry_faults::{Place, place};
use crate::registry_messages::basic;
use crate::registry_proxy::{Fault, Request};
use crate::registry_server::{LOGIN, Setup};
use crate::registry_tokens::{IDENTITY, Tokens, User};

impl Place {
    /// Leaves a file of logins as Docker does.
    fn log_in(&self, file: &Value) {
        fs::write(self.sandbox.path("home/config.json"), file.to_string()).unwrap();
    }

    /// Makes the image and pushes it, in one run and to a good end, to `NAME:TAG` each.
    fn push_to(&self, names: &[&str]) {
        let mut command = self.sandbox.cmd();
        command.env("DOCKER_CONFIG", self.sandbox.path("home")).args(self.containerize());
        for name in names {
            command.args(["--push", &self.proxy.reference(name)]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}\n{:#?}", self.masked(&output), self.proxy.traffic().log);
    }
}

/// A login with a password, as the files have it.
fn auth(name: &str, password: &str) -> Value {
    json!({ "auth": basic(name, password).strip_prefix("Basic ").unwrap() })
}

#[rstest]
#[case::broken(&[Fault::Status(500, "")])]
#[case::restarting(&[Fault::Status(503, "Retry-After: 1"), Fault::Status(502, "")])]
#[case::busy(&[Fault::Status(429, "Retry-After: 0")])]
#[case::silent(&[Fault::Silence])]
fn a_token_service_that_fails_for_now_is_waited_for(#[case] faults: &[Fault]) {
    let place = place!(Setup::default(), Some(Tokens::for_all()));
    place.proxy.fail(Request::Token, faults);
    place.push_whole("v1");
    let traffic = place.proxy.traffic();
    // One token, to look and to push.
    assert_eq!(traffic.of(Request::Token).requests, 1 + faults.len() as u64, "{:#?}", traffic.log);
}

#[test]
fn a_new_repository_is_made_where_who_may_only_read_is_not_told_that_it_is_not_there() {
    let place = place!(Setup::default(), Some(Tokens::for_all().hiding()));
    place.push_whole("v1");
    let traffic = place.proxy.traffic();
    assert_eq!(traffic.of(Request::Token).requests, 1, "{:#?}", traffic.log);
    // Another tag, and another repository, whose blobs are mounted from the first.
    place.push_whole("v2");
    place.push_to(&["team/other:v1"]);
    place.verify_in("team/other", "v1");
    // A run that would only push asks as one that reads.
    let dry_run = |name: &str| {
        let mut command = place.sandbox.cmd();
        command.env("DOCKER_CONFIG", place.sandbox.path("home")).args(place.containerize());
        let output = command.args(["--dry-run", "--push", &place.proxy.reference(name)]).output().unwrap();
        (output.status.success(), place.masked(&output))
    };
    assert!(dry_run("team/web:v3").0);
    let (is_good, said) = dry_run("team/new:v1");
    assert!(!is_good && said.contains("does not allow the manifest 'v1'"), "{said}");
}

#[test]
fn a_registry_that_fails_for_now_before_it_says_whom_it_trusts_is_waited_for() {
    let place = place!(Setup::default(), Some(Tokens::for_all()));
    place.proxy.fail(Request::Ping, &[Fault::Status(503, ""), Fault::Status(429, "Retry-After: 0")]);
    place.push_whole("v1");
}

#[test]
fn a_token_service_that_goes_on_failing_is_named() {
    let place = place!(Setup::default(), Some(Tokens::for_all()));
    place.proxy.fail_always(Request::Token, Fault::Status(503, "Retry-After: 0"));
    insta::assert_snapshot!(place.failure("v1"), @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1': no token came from its token service '[REGISTRY]'
      caused by: the server answered with status 503
      hint: run this again in a while: layers that it has are not sent again
    ");
    assert_eq!(place.proxy.traffic().of(Request::Token).requests, 5, "as often as a registry is asked, and no more");
    place.proxy.fail_always(Request::Token, Fault::Status(429, "Retry-After: 3600"));
    insta::assert_snapshot!(place.failure("v1"), @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1': no token came from its token service '[REGISTRY]'
      caused by: the server answered with status 429 and wants to be left alone for 3600 s
      hint: run this again in a while: layers that it has are not sent again
    ");
    assert_eq!(place.proxy.traffic().of(Request::Token).requests, 1, "it wants to be left alone");
    place.proxy.fail_always(Request::Token, Fault::Status(404, ""));
    insta::assert_snapshot!(place.failure("v1"), @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1': no token came from its token service '[REGISTRY]'
      caused by: the server answered with status 404
      hint: see whether '[REGISTRY]' is the right token service, and whether a proxy (HTTPS_PROXY) answers in its place
    ");
    place.proxy.mend();
    place.push_whole("v1");
}

#[test]
fn a_token_service_that_cannot_be_reached_is_named() {
    let closed = ClosedPort::new();
    let port = closed.number();
    let place = place!(Setup::default(), Some(Tokens::for_all().at(port)));
    let said = place.failure("v1").replace(&port.to_string(), "[PORT]");
    insta::assert_snapshot!(said, @r"
    ✘ ERROR: the registry '[REGISTRY]' could not be asked for the manifest 'v1': no token came from its token service '127.0.0.1:[PORT]'
      caused by: Connection refused (os error 111)
      hint: see whether '127.0.0.1:[PORT]' can be reached from here, and through which proxy (HTTPS_PROXY), then run this again
    ");
}

const ALICE: User = ("alice", "apple-4711", "team-a/");
const BOB: User = ("bob", "banana-4711", "team-b/");
/// One who has all repositories.
const BOSS: User = ("bob", "banana-4711", "");

#[rstest]
#[case::that_is_nobodys_business(Tokens::for_users(&[ALICE, BOB]), false, false)]
#[case::that_is_refused_altogether(Tokens::for_users(&[ALICE, BOB]).strictly(), false, false)]
// Uploads share a token: one that is good for less may be used up by others before whoever had it renewed gets its turn.
#[case::whose_tokens_are_soon_used_up(Tokens::for_users(&[ALICE, BOB]).strictly().good_for(9), false, true)]
#[case::that_the_second_may_read(Tokens::for_users(&[ALICE, BOSS]), true, false)]
fn parts_of_a_registry_have_logins_of_their_own(#[case] tokens: Tokens, #[case] mounts: bool, #[case] renews: bool) {
    let place = place!(Setup::default(), Some(tokens));
    let host = place.proxy.host();
    let login = |user: User| auth(user.0, user.1);
    place.log_in(&json!({ "auths": {
        host.clone(): auth("nobody", "nothing-4711"),
        format!("{host}/team-a"): login(ALICE),
        format!("{host}/team-b"): login(BOB),
    } }));
    place.push_to(&["team-a/web:v1", "team-b/web:v1", "team-a/other:v1"]);
    let digest = place.verify_in("team-a/web", "v1");
    assert_eq!(place.verify_in("team-b/web", "v1"), digest);
    assert_eq!(place.verify_in("team-a/other", "v1"), digest);
    let traffic = place.proxy.traffic();
    let mounted = |name: &str| traffic.log.contains(&format!("POST /v2/{name}/blobs/uploads/: 201"));
    assert_eq!((mounted("team-b/web"), mounted("team-a/other")), (mounts, true), "{:#?}", traffic.log);
    // Once in each of three repositories; and again where a token was used up.
    assert_eq!(traffic.of(Request::Ping).requests > 3, renews, "{:#?}", traffic.log);
}

#[test]
fn the_login_of_a_whole_repository_is_its_own() {
    const ALL: &[User] = &[("carol", "cherry-4711", "team/web"), ("dave", "date-4711", "team/webs")];
    let place = place!(Setup::default(), Some(Tokens::for_users(ALL)));
    let host = place.proxy.host();
    place.log_in(&json!({ "auths": {
        format!("{host}/team/web"): auth("carol", "cherry-4711"),
        format!("{host}/team"): auth("dave", "date-4711"),
    } }));
    place.push_to(&["team/webs:v1", "team/web:v1"]);
    assert_eq!(place.verify_in("team/webs", "v1"), place.verify_in("team/web", "v1"));
}

/// A credential helper that notes each time that it runs.
fn helper(place: &Place, name: &str, user: &str, secret: &str) {
    let answer = json!({ "ServerURL": place.proxy.host(), "Username": user, "Secret": secret });
    let notes = place.sandbox.path("notes").display().to_string();
    place.sandbox.script(
        &format!("docker-credential-{name}"),
        &format!("read -r server\necho \"$1 $server\" >> '{notes}'\necho '{answer}'\n"),
    );
}

fn notes(place: &Place) -> Vec<String> {
    fs::read_to_string(place.sandbox.path("notes")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_credential_helper_runs_once_in_a_run() {
    let place = place!(Setup::default(), Some(Tokens::for_login().good_for(9)));
    helper(&place, "counting", LOGIN.0, LOGIN.1);
    place.log_in(&json!({ "auths": { place.proxy.host(): {} }, "credsStore": "counting" }));
    let mut command = place.sandbox.cmd();
    command.env("DOCKER_CONFIG", place.sandbox.path("home")).args(place.containerize());
    command.args(["--cache-to", &place.proxy.reference("team/cache")]);
    for name in ["team/web:v1", "team/other:v1"] {
        command.args(["--push", &place.proxy.reference(name)]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", place.masked(&output));
    let said = place.masked(&output);
    assert!(!said.contains("shared cache"), "{said}");
    assert!(!place.server.tags("team/cache").is_empty(), "{said}");
    place.verify_in("team/other", "v1");
    assert_eq!(notes(&place), [format!("get {}", place.proxy.host())]);
}

#[rstest]
#[case::in_a_file(false)]
#[case::of_a_helper(true)]
fn an_identity_token_is_exchanged_for_tokens(#[case] is_helped: bool) {
    let place = place!(Setup::default(), Some(Tokens::for_identity().good_for(9)));
    let host = place.proxy.host();
    if is_helped {
        helper(&place, "identity", "<token>", IDENTITY);
        place.log_in(&json!({ "credHelpers": { host: "identity" } }));
    } else {
        // As Docker writes it: no password in `auth`.
        let auth = auth("00000000-0000-0000-0000-000000000000", "")["auth"].clone();
        place.log_in(&json!({ "auths": { host: { "auth": auth, "identitytoken": IDENTITY } } }));
    }
    place.push_whole("v1");
    place.push_to(&["team/other:v1"]);
    place.verify_in("team/other", "v1");
    let log = place.proxy.traffic().log;
    assert!(log.contains(&"POST /token: 200".to_owned()), "{log:#?}");
    assert!(!log.iter().any(|line| line.starts_with("GET /token")), "{log:#?}");
    for (before, behind) in [("-v", None), ("-vv", None), ("-v", Some("--json")), ("-v", Some("--dry-run"))] {
        let mut command = place.sandbox.cmd();
        command.env("DOCKER_CONFIG", place.sandbox.path("home")).arg(before).args(place.containerize()).args(behind);
        let output = command.args(["--push", &place.proxy.reference("team/web:v2")]).output().unwrap();
        assert!(output.status.success(), "{}", place.masked(&output));
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        for secret in [IDENTITY, "token-"] {
            assert!(!said.contains(secret), "{secret} in {said}");
        }
    }
}

#[rstest]
#[case::that_is_no_longer_good(Setup::default(), Some(Tokens::for_identity()), None)]
#[case::where_passwords_are_wanted(Setup { login: true, ..Setup::default() }, None, None)]
#[case::where_the_service_knows_none(Setup::default(), Some(Tokens::for_login()), Some(Fault::Status(404, "")))]
#[case::where_the_service_lets_nobody_post(Setup::default(), Some(Tokens::for_login()), Some(Fault::Status(405, "")))]
fn an_identity_token_that_is_refused_is_said(
    #[case] setup: Setup,
    #[case] tokens: Option<Tokens>,
    #[case] fault: Option<Fault>,
) {
    let place = place!(setup, tokens);
    if let Some(fault) = fault {
        place.proxy.fail_always(Request::Token, fault);
    }
    place.log_in(&json!({ "auths": { place.proxy.host(): { "identitytoken": "identity-of-yesterday" } } }));
    insta::allow_duplicates! {
        insta::assert_snapshot!(place.failure("v1"), @r"
    ✘ ERROR: the registry '[REGISTRY]' does not take the identity token that a login has left
      hint: log in anew: docker login [REGISTRY], or podman login [REGISTRY]
    ");
    }
    assert!(place.proxy.traffic().of(Request::Token).requests <= 1, "it is not asked again and again");
}

/// A port whose visitors are counted and sent away.
fn lonely_port() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, visitors) = (listener.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&visitors);
    thread::spawn(move || {
        for _ in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, visitors)
}

#[test]
fn an_identity_token_goes_nowhere_else() {
    let place = place!(Setup::default(), Some(Tokens::for_identity()));
    let (port, visitors) = lonely_port();
    let location = format!("Location: http://127.0.0.1:{port}/token");
    place.log_in(&json!({ "auths": { place.proxy.host(): { "identitytoken": IDENTITY } } }));
    for status in [307, 308] {
        place.proxy.fail_always(Request::Token, Fault::Status(status, location.clone().leak()));
        let said = place.failure("v1");
        assert!(said.contains(&format!("the server answered with status {status}")), "{said}");
    }
    assert_eq!(visitors.load(Ordering::SeqCst), 0);
}

#[rstest]
#[case::a_password(auth(LOGIN.0, LOGIN.1))]
#[case::an_identity_token(json!({ "identitytoken": IDENTITY }))]
fn no_login_goes_to_a_token_service_in_the_open(#[case] login: Value) {
    let (port, visitors) = lonely_port();
    let place = place!(Setup { tls: true, tokens_at: Some(port), ..Setup::default() }, None);
    place.log_in(&json!({ "auths": { place.server.host(): login } }));
    let mut command = place.sandbox.cmd();
    command.env("DOCKER_CONFIG", place.sandbox.path("home")).arg("-vv").args(place.containerize());
    command.arg("--registry-ca").arg(place.server.authority());
    let output = command.args(["--push", &place.server.reference("team/web:v1")]).output().unwrap();
    let said = place.masked(&output).replace(&place.server.host(), "[SERVER]").replace(&port.to_string(), "[PORT]");
    let said = &said[said.find("✘").unwrap_or_default()..];
    insta::allow_duplicates! {
        insta::assert_snapshot!(said, @r"
    ✘ ERROR: the registry '[SERVER]' wants the login to go to '127.0.0.1:[PORT]' in plain http, where anybody can read it
      hint: have the registry's keeper give its token service TLS; to ask without a login: docker logout [SERVER], or podman logout [SERVER]
    ");
    }
    assert_eq!(visitors.load(Ordering::SeqCst), 0);
}
