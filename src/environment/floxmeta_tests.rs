use super::*;
use rstest::rstest;
use std::time::Duration;

fn kind(words: &str) -> &'static str {
    match FetchError::of(GitError::Failed(words.to_owned())) {
        FetchError::Refused => "refused",
        FetchError::NoRepository => "no repository",
        FetchError::NoBranch => "no branch",
        FetchError::Unreachable(_) => "unreachable",
        FetchError::Distrusted(_) => "distrusted",
        FetchError::Local(_) => "local",
    }
}

/// What git says, in its versions and with the TLS libraries that it is built with.
#[rstest]
#[case("fatal: could not read Username for 'https://x': terminal prompts disabled", "refused")]
#[case("fatal: Authentication failed for 'https://x/git/me/floxmeta/'", "refused")]
#[case("remote: DENIED\nfatal: unable to access 'https://x/': The requested URL returned error: 403", "refused")]
#[case("remote: Access denied\nfatal: the remote end hung up unexpectedly", "refused")]
#[case("fatal: repository 'https://x/git/me/floxmeta/' not found", "no repository")]
#[case("fatal: '/srv/git/me/floxmeta' does not appear to be a git repository", "no repository")]
#[case("fatal: couldn't find remote ref refs/heads/web", "no branch")]
#[case("fatal: unable to access 'https://x/': Could not resolve host: x", "unreachable")]
#[case("fatal: unable to access 'https://x/': Failed to connect to x port 443: Connection refused", "unreachable")]
#[case("fatal: unable to access 'https://x/': Operation too slow. Less than 1 bytes/sec transferred", "unreachable")]
#[case("fatal: unable to access 'https://x/': The requested URL returned error: 502", "unreachable")]
#[case("fatal: unable to access 'https://x/': The requested URL returned error: 429", "unreachable")]
#[case("error: RPC failed; curl 18 transfer closed with 9 bytes remaining\nfatal: early EOF", "unreachable")]
#[case("fatal: https://x/git/me/floxmeta/info/refs not valid: is this a git repository?", "unreachable")]
#[case("fatal: unable to access 'https://x/': SSL certificate problem: self-signed certificate", "distrusted")]
#[case("fatal: unable to access 'https://x/': server certificate verification failed. CAfile: none", "distrusted")]
#[case("fatal: unable to access 'https://x/': The requested URL returned error: 400", "distrusted")]
#[case("fatal: unable to access 'https://x/': Protocol \"http\" disabled in libcurl", "distrusted")]
#[case("fatal: transport 'http' not allowed", "distrusted")]
#[case("fatal: not a git repository: '/cache/me.git'", "local")]
#[case("error: cannot open '/cache/me.git/FETCH_HEAD': Permission denied", "local")]
#[case("fatal: Unable to create '/cache/me.git/shallow.lock': File exists.", "local")]
#[case("fatal: loose object 1234 (stored in /cache/me.git/objects/12/34) is corrupt", "local")]
#[case("fatal: bad object refs/heads/web\nerror: x did not send all necessary objects", "local")]
#[case("git was killed by signal 9", "local")]
fn git_is_taken_at_its_word(#[case] words: &str, #[case] expected: &str) {
    assert_eq!(kind(words), expected);
}

#[test]
fn who_takes_too_long_cannot_be_reached() {
    let error = FetchError::of(GitError::TooSlow(Duration::from_secs(9)));
    assert!(matches!(error, FetchError::Unreachable(_)));
}

proptest::proptest! {
    #[test]
    fn no_words_make_the_reader_panic(words in "(returned error: )?.{0,20}") {
        kind(&words);
    }
}
