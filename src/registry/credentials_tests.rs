use std::fs;
use std::os::unix::fs::PermissionsExt;

use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::event::Silent;

fn basic(user: &str, password: &str) -> Option<Login> {
    Some(Login::Basic { user: user.to_owned(), password: password.to_owned() })
}

/// Searches one file, with helpers beside it.
fn find(file: &Value, registry: &str, repository: &str) -> Result<Option<Login>, CredentialsError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    fs::write(&path, file.to_string()).unwrap();
    let helper = |name: &str, text: &str| {
        let program = dir.path().join(format!("docker-credential-{name}"));
        fs::write(&program, format!("#!/bin/sh\nread -r server\n{text}\n")).unwrap();
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    };
    helper("good", r#"echo "{\"ServerURL\":\"$server\",\"Username\":\"of $server\",\"Secret\":\"s3cret\"}""#);
    helper("empty", "echo 'credentials not found in native keychain'; exit 1");
    helper("bad", "echo s3cret; exit 3");
    helper("odd", "echo s3cret");
    helper("token", r#"echo '{"Username":"<token>","Secret":"s3cret"}'"#);
    let path_variable = std::env::join_paths([dir.path(), Path::new("/bin")]).unwrap();
    let credentials = Credentials { files: vec![dir.path().join("none.json"), path], path: Some(path_variable) };
    Logins::default().find(&credentials, registry, repository, &Silent)
}

#[rstest]
#[case::docker(json!({ "auths": { "registry.example": { "auth": "bWU6czNjcmV0" } } }), basic("me", "s3cret"))]
#[case::as_an_address(json!({ "auths": { "https://registry.example/v2/": { "auth": "bWU6czNjcmV0" } } }), basic("me", "s3cret"))]
#[case::with_colons(json!({ "auths": { "registry.example": { "auth": "bWU6YTpi" } } }), basic("me", "a:b"))]
#[case::in_clear(json!({ "auths": { "registry.example": { "username": "me", "password": "p" } } }), basic("me", "p"))]
#[case::a_part(
    json!({ "auths": { "registry.example": { "auth": "YWxsOmE=" }, "registry.example/team": { "auth": "dGVhbTp0" } } }),
    basic("team", "t")
)]
#[case::another_part(json!({ "auths": { "registry.example/other": { "auth": "dGVhbTp0" } } }), None)]
#[case::a_port(json!({ "auths": { "registry.example:5000": { "auth": "bWU6czNjcmV0" } } }), None)]
#[case::a_token(
    json!({ "auths": { "registry.example": { "registrytoken": "t" } } }),
    Some(Login::Bearer("t".to_owned()))
)]
#[case::an_identity_token(
    json!({ "auths": { "registry.example": { "auth": "bWU6", "identitytoken": "t" } } }),
    Some(Login::Identity("t".to_owned()))
)]
#[case::an_identity_token_of_a_helper(json!({ "credsStore": "token" }), Some(Login::Identity("s3cret".to_owned())))]
#[case::nothing(json!({ "HttpHeaders": {} }), None)]
#[case::a_store(
    json!({ "auths": { "registry.example": {} }, "credsStore": "good" }),
    basic("of registry.example", "s3cret")
)]
#[case::a_helper_before_a_store(
    json!({ "credHelpers": { "registry.example": "good" }, "credsStore": "bad" }),
    basic("of registry.example", "s3cret")
)]
#[case::a_helper_for_another(json!({ "credHelpers": { "other.example": "bad" } }), None)]
#[case::a_helper_that_knows_nothing(json!({ "credsStore": "empty" }), None)]
fn logins_are_found(#[case] file: Value, #[case] login: Option<Login>) {
    assert!(find(&file, "registry.example", "team/app").unwrap() == login);
}

#[test]
fn dockers_hub_has_many_names() {
    for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io"] {
        let file = json!({ "auths": { key: { "auth": "bWU6czNjcmV0" } } });
        assert!(find(&file, "index.docker.io", "library/app").unwrap() == basic("me", "s3cret"), "{key}");
    }
    let file = json!({ "credsStore": "good" });
    assert!(find(&file, "index.docker.io", "a").unwrap() == basic("of https://index.docker.io/v1/", "s3cret"));
}

#[rstest]
#[case::failing(json!({ "credsStore": "bad" }), "failed with exit status 3")]
#[case::odd(json!({ "credsStore": "odd" }), "says what no helper does")]
#[case::missing(json!({ "credsStore": "missing" }), "was not found in PATH")]
#[case::no_base64(json!({ "auths": { "registry.example": { "auth": "s3cret" } } }), "is not USER:PASSWORD in base-64")]
#[case::no_object(json!({ "auths": ["s3cret"] }), "line 1 is not as it should be")]
fn what_does_not_help_is_an_error_without_a_secret_in_it(#[case] file: Value, #[case] says: &str) {
    let Err(error) = find(&file, "registry.example", "app") else { panic!("no error") };
    let text = format!("{error} {error:?} {:?}", error.hint());
    assert!(text.contains(says) && !text.contains("s3cret"), "{text}");
}
