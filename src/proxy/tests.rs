//! The command line of the container, and what is made of its end.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rstest::rstest;

use super::*;

fn client() -> RuntimeClient {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy("/bin/sh", dir.path().join("podman")).unwrap();
    RuntimeClient::find(Runtime::Podman, Some(dir.path().as_os_str())).unwrap()
}

fn proxy(client: &RuntimeClient) -> Proxy<'_> {
    Proxy {
        client,
        name: "layerhold-1".to_owned(),
        image: "nixos/nix".to_owned(),
        volume: "flox-nix".to_owned(),
        shared: vec!["/home/me/project/.flox".into()],
        variables: vec![("FLOX_FLOXHUB_TOKEN".to_owned(), "secret".into())],
        arguments: ["containerize", "--file", "-", ARGUMENT].map(Into::into).into(),
    }
}

#[test]
fn the_container_has_the_store_the_environment_and_no_secret_in_its_command_line() {
    let client = client();
    let arguments = proxy(&client).arguments();
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap()).collect();
    assert_eq!(
        arguments.join(" "),
        "run --rm --interactive --user 0:0 --security-opt label=disable --name layerhold-1 --entrypoint layerhold \
         --mount type=volume,source=flox-nix,target=/nix \
         --mount type=bind,source=/home/me/project/.flox,target=/home/me/project/.flox,readonly \
         --env LAYERHOLD_CACHE=/nix/var/cache/layerhold --env FLOX_FLOXHUB_TOKEN \
         nixos/nix containerize --file - --in-proxy"
    );
}

#[rstest]
#[case(b"/a b", b"type=bind,source=/a b,target=/a b,readonly")]
#[case(b"/a,b", b"type=bind,\"source=/a,b\",\"target=/a,b\",readonly")]
#[case(b"/a\"b", b"type=bind,\"source=/a\"\"b\",\"target=/a\"\"b\",readonly")]
#[case(b"/a:\xff", b"type=bind,source=/a:\xff,target=/a:\xff,readonly")]
fn any_path_can_be_bound(#[case] path: &[u8], #[case] expected: &[u8]) {
    assert_eq!(bind(Path::new(OsStr::from_bytes(path))).as_bytes(), expected);
}

#[rstest]
#[case(1, "✘ ERROR: anything", "the run in the container failed with exit status 1")]
#[case(2, "", "the run in the container failed with exit status 2")]
#[case(125, "no such image", "Podman could not run a container of 'nixos/nix'")]
#[case(125, "exec: \"layerhold\": executable file not found in $PATH", "the image 'nixos/nix' has no layerhold")]
#[case(126, "", "the image 'nixos/nix' has no layerhold")]
#[case(127, "", "the image 'nixos/nix' has no layerhold")]
#[case(130, "✘ interrupted", "the run in the container failed with exit status 130")]
#[case(137, "", "the run in the container was killed by signal 9")]
fn an_exit_status_says_whose_failure_it_was(#[case] code: i32, #[case] words: &str, #[case] expected: &str) {
    let client = client();
    let error = proxy(&client).judge(ExitStatus::from_raw(code << 8), words.to_owned()).unwrap_err();
    assert!(error.to_string().starts_with(expected), "{error}");
}

#[test]
fn who_needs_the_runtime_for_the_container_is_not_sent_to_a_file() {
    let client = client();
    let error = |words: &str| proxy(&client).judge(ExitStatus::from_raw(125 << 8), words.to_owned()).unwrap_err();
    assert_eq!(error("Cannot connect").hint().unwrap(), "is its machine running? podman machine start");
    assert!(error("no such image").hint().unwrap().ends_with("podman run --rm nixos/nix"));
}
