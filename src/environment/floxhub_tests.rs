use super::*;
use rstest::rstest;
use std::fs;
use tempfile::TempDir;

fn settings(url: &str) -> FloxHubSettings {
    FloxHubSettings { url: Some(url.to_owned()), ..FloxHubSettings::default() }
}

fn secret(text: &str) -> Option<Secret> {
    Some(Secret::new(text.to_owned()))
}

#[rstest]
#[case("https://hub.flox.dev", "https://api.flox.dev/git")]
#[case("https://hub.flox.dev/", "https://api.flox.dev/git")]
#[case("https://hub.preview.flox.dev:8000/x", "https://api.preview.flox.dev:8000/git")]
#[case("https://flox.example.com", "https://flox.example.com/git")]
#[case("https://nothub.flox.dev", "https://nothub.flox.dev/git")]
#[case("https://hub.notflox.dev", "https://hub.notflox.dev/git")]
#[case("https://hub.flox.dev.example.com", "https://hub.flox.dev.example.com/git")]
#[case("http://127.0.0.1:8080/hub/", "http://127.0.0.1:8080/hub/git")]
fn where_the_repositories_are_follows_from_the_address(#[case] url: &str, #[case] git_url: &str) {
    assert_eq!(FloxHub::reach(&settings(url), None).unwrap().git_url, git_url);
}

#[test]
fn a_variable_beats_the_configuration_and_that_what_is_usual() {
    let dir = TempDir::new().unwrap();
    let (own, system) = (dir.path().join("own.toml"), dir.path().join("system.toml"));
    let mut settings =
        FloxHubSettings { config_files: vec![own.clone(), system.clone()], ..FloxHubSettings::default() };
    let reach = |settings: &FloxHubSettings| FloxHub::reach(settings, None).unwrap();
    let hub = |url: &str, git_url: &str, services_url: &str, token| FloxHub {
        url: url.to_owned(),
        git_url: git_url.to_owned(),
        services_url: services_url.to_owned(),
        token,
    };
    let usual = hub("https://hub.flox.dev", "https://api.flox.dev/git", "https://api.flox.dev", None);
    assert_eq!(reach(&settings), usual);

    fs::write(&system, "floxhub_url = 'https://system'\nfloxhub_token = 'flox_system'\n").unwrap();
    let system = |token| hub("https://system", "https://system/git", "https://system", secret(token));
    assert_eq!(reach(&settings), system("flox_system"));
    fs::write(&own, "disable_metrics = true\nfloxhub_token = \"flox_own\\n\"\n").unwrap();
    assert_eq!(reach(&settings), system("flox_own"));

    settings.url = Some("https://variable/".to_owned());
    settings.token = secret("flox_variable");
    let variable = |git_url, services_url| hub("https://variable", git_url, services_url, secret("flox_variable"));
    assert_eq!(reach(&settings), variable("https://variable/git", "https://variable"));
    settings.git_url = Some("file:///srv/git/".to_owned());
    settings.catalog_url = Some("https://catalog/".to_owned());
    assert_eq!(reach(&settings), variable("file:///srv/git", "https://catalog"));
}

#[test]
fn the_token_is_for_the_users_own_floxhub() {
    let mut settings = settings("https://hub.example.com");
    settings.token = secret("flox_token");
    let own = FloxHub::reach(&settings, Some("https://hub.example.com/")).unwrap();
    assert_eq!((own.git_url.as_str(), own.token), ("https://hub.example.com/git", secret("flox_token")));
    let other = FloxHub::reach(&settings, Some("https://other.example.com/")).unwrap();
    assert_eq!((other.git_url.as_str(), other.token), ("https://other.example.com/git", None));
}

#[rstest]
fn what_is_no_address_is_refused_and_not_shown(
    #[values(
        "hub.flox.dev",
        "https://",
        "ssh://hub",
        "ext::sh -c id",
        "https://me:s3cret@hub",
        "https://hub?s3cret",
        "https://hub/a b"
    )]
    url: &str,
) {
    let git = FloxHubSettings { git_url: Some(url.to_owned()), ..FloxHubSettings::default() };
    for (settings, name) in [(settings(url), FLOXHUB_URL), (git, FLOXHUB_GIT_URL)] {
        let error = FloxHub::reach(&settings, None).unwrap_err();
        assert_eq!(error.to_string(), format!("{name} is not an address of FloxHub"));
        assert!(error.hint().unwrap().contains("https://hub.flox.dev"));
    }
}

#[test]
fn a_token_is_never_shown() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("flox.toml");
    let mut settings = FloxHubSettings { config_files: vec![file.clone()], ..FloxHubSettings::default() };
    for text in [
        "floxhub_token = flox_s3cret",
        "floxhub_token = 'flox_s3cret",
        "floxhub_token = 'flox s3cret'",
        "floxhub_token = ['flox_s3cret']",
        "floxhub_token = 's3cret'\nfloxhub_token = 's3cret'",
    ] {
        fs::write(&file, text).unwrap();
        let error = FloxHub::reach(&settings, None).unwrap_err();
        assert!(error.to_string().contains("flox.toml"), "{error}");
        assert!(!format!("{error} {error:?} {:?}", error.hint()).contains("s3cret"), "{error:?}");
    }
    fs::write(&file, "").unwrap();
    settings.token = secret("s3cret\nhost=elsewhere");
    let error = FloxHub::reach(&settings, None).unwrap_err();
    assert!(error.to_string().starts_with(FLOXHUB_TOKEN), "{error}");
    assert!(error.hint().unwrap().contains("flox auth login"));
    assert!(!format!("{error} {error:?} {settings:?}").contains("s3cret"));
}

#[test]
fn a_configuration_that_cannot_be_read_is_named() {
    let dir = TempDir::new().unwrap();
    let settings = FloxHubSettings { config_files: vec![dir.path().to_owned()], ..FloxHubSettings::default() };
    let error = FloxHub::reach(&settings, None).unwrap_err();
    assert_eq!(error.to_string(), format!("'{}' cannot be read", dir.path().display()));
}
