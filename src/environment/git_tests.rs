use super::*;
use crate::event::{Event, Silent};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

/// A directory with a `git` of these lines of shell, which finds its tools on no `PATH`.
fn git(script: &str) -> TempDir {
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("git");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn run(dir: &TempDir, observer: &dyn Observer, token: Option<&str>) -> Result<String, GitError> {
    let environment = [("SEEN".into(), "yes".into())];
    let git = Git::find(Some(dir.path().as_os_str()), &environment, observer).unwrap();
    let git = Git { patience: Duration::from_millis(200), ..git };
    let token = token.map(|token| Secret::new(token.to_owned()));
    let server = Server { url: "https://x/git", token: token.as_ref() };
    git.run(dir.path(), Some(server), &["fetch"]).map(|printed| String::from_utf8(printed).unwrap())
}

#[test]
fn it_sees_what_it_is_given_and_nothing_else() {
    let dir = git("export -p; echo \"arguments: $*\"");
    let printed = run(&dir, &Silent, Some("s3cret")).unwrap();
    let (variables, arguments) = printed.split_once("arguments: ").unwrap();
    let mut names: Vec<_> = variables
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split('=').next())
        // The shell's own.
        .filter(|name| !["PWD", "OLDPWD"].contains(name))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "FLOX_FLOXHUB_TOKEN",
            "GIT_ALLOW_PROTOCOL",
            "GIT_CONFIG_GLOBAL",
            "GIT_CONFIG_NOSYSTEM",
            "GIT_CONFIG_SYSTEM",
            "GIT_TERMINAL_PROMPT",
            "HOME",
            "LC_ALL",
            "SEEN"
        ]
    );
    assert!(variables.contains("GIT_ALLOW_PROTOCOL='https'\n"), "{variables}");
    assert!(arguments.contains("credential.https://x/git.helper=") && !arguments.contains("s3cret"), "{arguments}");
    assert!(!run(&dir, &Silent, None).unwrap().contains("FLOX_FLOXHUB_TOKEN="));
}

#[test]
fn the_helper_says_the_token_when_it_is_asked_for_it() {
    let helper = HELPER.strip_prefix('!').unwrap();
    let said = |action: &str| {
        let script = format!("{helper} {action}");
        let output =
            Command::new("/bin/sh").args(["-c", &script]).env("FLOX_FLOXHUB_TOKEN", "a$b\\n'c").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(said("get"), "username=oauth\npassword=a$b\\n'c\n");
    assert_eq!((said("store"), said("erase")), (String::new(), String::new()));
}

#[test]
fn what_it_says_of_its_failure_is_kept_without_the_token() {
    let dir = git("echo 'remote: s3cret is old' >&2; echo 'fatal: no s3cret' >&2; echo 'fatal: more' >&2; exit 128");
    let error = run(&dir, &Silent, Some("s3cret")).unwrap_err();
    assert_eq!(error.to_string(), "no ***");
    assert!(!format!("{error:?}").contains("s3cret"));
    assert_eq!(run(&git("exit 3"), &Silent, None).unwrap_err().to_string(), "git failed with exit status 3");
}

#[test]
fn who_does_not_come_to_an_end_is_ended() {
    // Neither while it keeps its outputs open nor when it has closed them; nor does what it has started.
    for script in ["while :; do :; done", "exec >&- 2>&-; while :; do :; done", "(while :; do :; done) & wait"] {
        let error = run(&git(script), &Silent, None).unwrap_err();
        assert!(matches!(error, GitError::TooSlow(_)), "{script}: {error:?}");
    }
}

#[test]
fn a_wish_to_stop_ends_it() {
    struct Impatient;
    impl Observer for Impatient {
        fn event(&self, _: Event) {}
        fn cancelled(&self) -> bool {
            true
        }
    }
    let error = run(&git("while :; do :; done"), &Impatient, None).unwrap_err();
    assert!(crate::event::Cancelled::caused(&error), "{error:?}");
}
