//! Who is told which secret, and who is told none.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use rstest::rstest;

use super::super::transport::Http;
use super::*;
use crate::http::{Client, Transport};

const NETRC: &str = "\
machine cache.example login alice password one
machine other.example
  login bob
  password two
# machine cache.example login eve password wrong
";

fn shown(login: Option<Login>) -> String {
    match login {
        Some(Login::Basic { user, password }) => format!("{user}/{password}"),
        Some(Login::Bearer(token)) => format!("bearer {token}"),
        None => "nobody".to_owned(),
    }
}

#[rstest]
#[case("https://cache.example/", "alice/one")]
#[case("https://cache.example:8443/team/", "alice/one")]
#[case("http://other.example/", "bob/two")]
#[case("https://unknown.example/", "nobody")]
#[case::a_name_that_only_ends_so("https://evil-cache.example/", "nobody")]
#[case::of_the_address_itself("https://carol:s%40%26%2Bcret@cache.example/", "carol/s@&+cret")]
#[case::signs_that_mean_something_in_forms("https://carol:a&b+c=d;e@cache.example/", "carol/a&b+c=d;e")]
fn a_netrc_file_knows_hosts(#[case] cache: &str, #[case] expected: &str) {
    let credentials = Credentials { netrc: Some(NETRC.to_owned()), ..Credentials::default() };
    assert_eq!(shown(credentials.login(&cache.parse().unwrap())), expected);
}

#[test]
fn a_netrc_file_may_have_an_entry_for_all_other_hosts() {
    let netrc = Some(format!("{NETRC}default login anybody password three\n"));
    let credentials = Credentials { netrc, ..Credentials::default() };
    let login = |cache: &str| shown(credentials.login(&cache.parse().unwrap()));
    assert_eq!(
        (login("https://cache.example/"), login("https://x.example/")),
        ("alice/one".into(), "anybody/three".into())
    );
}

#[test]
fn secrets_do_not_show() {
    let credentials = Credentials { netrc: Some(NETRC.to_owned()), ..Credentials::default() };
    assert_eq!(format!("{credentials:?}"), "Credentials { .. }");
}

#[rstest]
#[case("https://cache.example/", "bearer host")]
#[case("https://cache.example/team/", "bearer team")]
#[case("https://cache.example/team/project/", "bearer project")]
#[case("https://cache.example/team/other/", "bearer team")]
#[case::a_path_that_only_begins_so("https://cache.example/teammates/", "bearer host")]
#[case::another_port("https://cache.example:8443/team/", "nobody")]
#[case::another_scheme("http://cache.example/team/", "nobody")]
#[case::another_host("https://cache.example.evil/team/", "nobody")]
fn a_token_is_for_a_server_and_the_paths_below(#[case] cache: &str, #[case] expected: &str) {
    let tokens = [
        ("https://cache.example", "host"),
        ("https://cache.example/team", "team"),
        ("https://cache.example/team/project/", "project"),
        ("nonsense", "never"),
    ];
    let logins = tokens.map(|(address, token)| (address.to_owned(), Login::Bearer(token.to_owned()))).into();
    let credentials = Credentials { logins, ..Credentials::default() };
    assert_eq!(shown(credentials.login(&cache.parse().unwrap())), expected);
}

#[test]
fn a_token_goes_before_the_netrc_file_and_the_address_before_both() {
    let logins = [("https://cache.example".to_owned(), Login::Bearer("token".to_owned()))].into();
    let credentials = Credentials { netrc: Some(NETRC.to_owned()), logins, ..Credentials::default() };
    let login = |cache: &str| shown(credentials.login(&cache.parse().unwrap()));
    assert_eq!(login("https://cache.example/"), "bearer token");
    assert_eq!(login("https://carol:three@cache.example/"), "carol/three");
}

/// A server that answers one question, and gives the headers that say who asked.
fn server(answer: impl Fn() -> String + Send + 'static) -> (Url, thread::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        stream.write_all(answer().as_bytes()).unwrap();
        headers.into_iter().filter(|line| line.to_lowercase().starts_with("authorization:")).collect()
    });
    (address, served)
}

fn found() -> String {
    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
}

fn ask(base: &Url, login: Option<Login>, name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let http = Http::new(Arc::new(Client::new(1, Vec::new())), base.clone(), login);
    runtime.block_on(async { http.get(name, 0).await.map(drop) }).unwrap();
}

fn basic() -> Option<Login> {
    Some(Login::Basic { user: "user".to_owned(), password: "secret".to_owned() })
}

#[test]
fn a_server_is_told_once_who_asks() {
    let (mut base, served) = server(found);
    base.set_username("user").unwrap();
    base.set_password(Some("secret")).unwrap();
    let login = Credentials::default().login(&base);
    ask(&base, login, "nix-cache-info");
    let said: Vec<_> = served.join().unwrap().iter().map(|line| line.to_lowercase()).collect();
    assert_eq!(said, ["authorization: basic dxnlcjpzzwnyzxq="]);
}

#[rstest]
#[case::basic(basic())]
#[case::bearer(Some(Login::Bearer("secret".to_owned())))]
fn a_file_on_another_host_is_asked_for_without_a_secret(#[case] login: Option<Login>) {
    let (other, served) = server(found);
    // Nobody is asked there: the narinfo names a whole address.
    ask(&"http://127.0.0.2:9/".parse().unwrap(), login, other.join("nar/x.nar").unwrap().as_str());
    assert_eq!(served.join().unwrap(), [""; 0]);
}

#[rstest]
#[case::basic(basic())]
#[case::bearer(Some(Login::Bearer("secret".to_owned())))]
fn a_server_that_sends_elsewhere_is_followed_without_a_secret(#[case] login: Option<Login>) {
    let (other, told) = server(found);
    let (base, served) = server(move || {
        format!("HTTP/1.1 302 Found\r\nLocation: {other}nar\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    });
    ask(&base, login, "nar/x.nar");
    assert_eq!(served.join().unwrap().len(), 1);
    assert_eq!(told.join().unwrap(), [""; 0]);
}

fn aws(variables: &[(&str, &str)], file: Option<&str>) -> AwsCredentials {
    let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    AwsCredentials { variables, file: file.map(str::to_owned) }
}

fn keys(credentials: &AwsCredentials, profile: Option<&str>) -> String {
    let shown =
        |keys: crate::http::BucketKeys| format!("{}/{}/{}", keys.id, keys.secret, keys.token.unwrap_or_default());
    credentials.keys(profile).map_or("nobody".to_owned(), shown)
}

const AWS_FILE: &str = "\
# keys
[default]
aws_access_key_id = D
aws_secret_access_key=secret=d

[ ci ]
aws_access_key_id = C
aws_secret_access_key = secretc
aws_session_token = token
region = eu-west-1
[half]
aws_access_key_id = H
";
const OF_VARIABLES: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "V"), ("AWS_SECRET_ACCESS_KEY", "secretv")];

#[rstest]
#[case::variables(&OF_VARIABLES, None, "V/secretv/")]
#[case::a_session(&[OF_VARIABLES[0], OF_VARIABLES[1], ("AWS_SESSION_TOKEN", "t")], None, "V/secretv/t")]
#[case::half_of_a_key(&OF_VARIABLES[..1], None, "D/secret=d/")]
#[case::empty(&[("AWS_ACCESS_KEY_ID", ""), OF_VARIABLES[1]], None, "D/secret=d/")]
#[case::the_file(&[], None, "D/secret=d/")]
#[case::a_profile_by_variable(&[("AWS_PROFILE", "ci")], None, "C/secretc/token")]
#[case::a_profile_by_address(&OF_VARIABLES, Some("ci"), "C/secretc/token")]
#[case::a_profile_that_is_not_there(&OF_VARIABLES, Some("absent"), "nobody")]
#[case::a_profile_without_a_secret(&[], Some("half"), "nobody")]
fn keys_of_buckets_come_from_variables_or_profiles(
    #[case] variables: &[(&str, &str)],
    #[case] profile: Option<&str>,
    #[case] expected: &str,
) {
    let credentials = aws(variables, Some(AWS_FILE));
    assert_eq!(keys(&credentials, profile), expected);
    assert_eq!(format!("{credentials:?}"), "AwsCredentials { .. }");
}

#[test]
fn without_a_file_and_variables_a_bucket_is_asked_by_nobody() {
    assert_eq!(keys(&aws(&[], None), None), "nobody");
    assert_eq!(keys(&aws(&[], None), Some("ci")), "nobody");
}
