use super::*;
use crate::event::Silent;
use rstest::rstest;
use std::cell::RefCell;
use std::fs;
use tempfile::TempDir;

/// A directory tree with environments that have no packages, each named by its directory.
struct Tree(TempDir);

impl Tree {
    fn new(environments: &[&str]) -> Self {
        let tree = Self(TempDir::new().unwrap());
        for dir in environments {
            let name = if dir.is_empty() { "top" } else { dir.rsplit('/').next().unwrap() };
            tree.environment(dir, name);
        }
        tree
    }

    fn environment(&self, dir: &str, name: &str) {
        let dot_flox = self.path(dir).join(".flox");
        fs::create_dir_all(dot_flox.join("env")).unwrap();
        fs::write(dot_flox.join("env.json"), format!(r#"{{"name":"{name}","version":1}}"#)).unwrap();
        fs::write(dot_flox.join("env/manifest.toml"), "version = 1\n").unwrap();
    }

    fn path(&self, dir: &str) -> PathBuf {
        if dir.is_empty() { self.0.path().to_owned() } else { self.0.path().join(dir) }
    }

    fn dir(&self, dir: &str) -> &Self {
        fs::create_dir_all(self.path(dir)).unwrap();
        self
    }

    /// The environment's directory below the tree's top, or the error's message.
    fn find(&self, selection: &Selection, current: &str, active: Option<&str>) -> Result<String, FindError> {
        let current_dir = self.path(current);
        let surroundings = Surroundings {
            current_dir: &current_dir,
            active_environments: active,
            remote: RemoteAccess::default(),
            choose: None,
        };
        self.relative(find(selection, &surroundings, &Silent))
    }

    fn relative(&self, found: Result<Environment, FindError>) -> Result<String, FindError> {
        found.map(|found| found.location.dir().unwrap().strip_prefix(self.0.path()).unwrap().display().to_string())
    }

    /// The variable with one active environment.
    fn active(&self, dir: &str, name: &str) -> String {
        let path = self.path(dir);
        serde_json::json!([{ "environment": { "type": "dot-flox", "path": path, "pointer": { "name": name, "version": 1 } },
                             "generation": null, "mode": "dev" }])
        .to_string()
    }
}

const REMOTE: &str = r#"[{"environment":{"type":"remote","owner":"me","name":"web","floxhub_url":"https://x"}}]"#;

#[test]
fn a_directory_that_is_named_must_hold_an_environment() {
    let tree = Tree::new(&["a"]);
    tree.dir("b/.flox_");
    let dir = |path: &str| Selection::Dir(PathBuf::from(path));
    assert_eq!(tree.find(&dir("a"), "", None).unwrap(), "a");
    assert_eq!(tree.find(&dir("../a"), "b", None).unwrap(), "b/../a");
    assert_eq!(tree.find(&Selection::Dir(tree.path("a")), "b", None).unwrap(), "a");
    // Not found above it, nor is the active one taken.
    let error = tree.find(&dir("b"), "", Some(&tree.active("a", "a"))).unwrap_err();
    assert_eq!(error.to_string(), "Did not find an environment in 'b'");
    assert_eq!(error.hint().unwrap(), "make an environment there: flox init -d b");
    assert_eq!(
        tree.find(&dir("no/such"), "", None).unwrap_err().to_string(),
        "Did not find an environment in 'no/such'"
    );
}

#[rstest]
#[case("a/.flox", "", "a")]
#[case(".flox", "a", ".")]
#[case("./a/.flox/", "", "./a")]
fn naming_dot_flox_itself_is_answered_with_its_parent(#[case] path: &str, #[case] current: &str, #[case] parent: &str) {
    let tree = Tree::new(&["a"]);
    let error = tree.find(&Selection::Dir(PathBuf::from(path)), current, None).unwrap_err();
    assert_eq!(error.to_string(), format!("Did not find an environment in '{path}'"));
    assert_eq!(error.hint().unwrap(), format!("name the directory that holds '.flox': -d {parent}"));
}

#[test]
fn outside_a_git_repository_only_the_current_directory_counts() {
    let tree = Tree::new(&["", "a/b"]);
    tree.dir("a/c");
    assert_eq!(tree.find(&Selection::Default, "a/b", None).unwrap(), "a/b");
    assert_eq!(
        tree.find(&Selection::Default, "a/c", None).unwrap_err().to_string(),
        "Did not find an active environment or an environment in the current directory."
    );
}

#[rstest]
#[case::repository("")]
#[case::worktree("gitdir: /elsewhere/.git/worktrees/w\n")]
fn inside_a_git_repository_the_search_goes_up_to_its_top_and_no_further(#[case] dot_git: &str) {
    let tree = Tree::new(&["", "repo/a"]);
    tree.dir("repo/a/b/c").dir("repo/d");
    if dot_git.is_empty() {
        tree.dir("repo/.git");
    } else {
        fs::write(tree.path("repo/.git"), dot_git).unwrap();
    }
    assert_eq!(tree.find(&Selection::Default, "repo/a/b/c", None).unwrap(), "repo/a");
    assert!(matches!(tree.find(&Selection::Default, "repo/d", None), Err(FindError::Nowhere)));
    tree.environment("repo", "repo");
    assert_eq!(tree.find(&Selection::Default, "repo/d", None).unwrap(), "repo");
    assert_eq!(tree.find(&Selection::Default, "repo/a/b", None).unwrap(), "repo/a");
}

#[test]
fn a_submodule_ends_the_search() {
    let tree = Tree::new(&["repo"]);
    tree.dir("repo/.git").dir("repo/sub/a");
    fs::write(tree.path("repo/sub/.git"), "gitdir: ../.git/modules/sub\n").unwrap();
    assert!(matches!(tree.find(&Selection::Default, "repo/sub/a", None), Err(FindError::Nowhere)));
}

#[test]
fn what_is_active_is_taken_where_nothing_else_is_there() {
    let tree = Tree::new(&["a"]);
    tree.dir("b");
    let default = &Selection::Default;
    assert_eq!(tree.find(default, "b", Some(&tree.active("a", "a"))).unwrap(), "a");
    // As other versions of Flox write it.
    assert_eq!(tree.find(default, "b", Some(&tree.active("a/.flox", "a"))).unwrap(), "a");
    let unwrapped: serde_json::Value = serde_json::from_str(&tree.active("a", "a")).unwrap();
    let unwrapped = serde_json::json!([unwrapped[0]["environment"]]).to_string();
    assert_eq!(tree.find(default, "b", Some(&unwrapped)).unwrap(), "a");
    for none in [None, Some(""), Some("[]")] {
        let error = tree.find(default, "b", none).unwrap_err();
        assert!(matches!(error, FindError::Nowhere));
        assert_eq!(
            error.hint().unwrap(),
            "name the directory that holds '.flox' with -d PATH, or make an environment: flox init"
        );
    }
    let gone = tree.path("gone").display().to_string();
    let error = tree.find(default, "b", Some(&tree.active("gone", "gone"))).unwrap_err();
    assert_eq!(error.to_string(), format!("Did not find an environment in '{gone}'"));
}

#[test]
fn of_two_the_default_one_gives_way_and_without_a_terminal_the_found_one_is_taken() {
    let tree = Tree::new(&["a", "b"]);
    tree.environment("home", "default");
    let found = |current, active: &str, name| {
        tree.find(&Selection::Default, current, Some(&tree.active(active, name))).unwrap()
    };
    assert_eq!(found("a", "a", "a"), "a");
    assert_eq!(found("a", "home", "default"), "a");
    assert_eq!(found("home", "a", "a"), "a");
    assert_eq!(found("a", "b", "b"), "a");
}

#[rstest]
#[case(Choice::Found, "a")]
#[case(Choice::Active, "b")]
fn of_two_on_a_terminal_the_user_chooses(#[case] choice: Choice, #[case] expected: &str) {
    let tree = Tree::new(&["a", "b"]);
    let asked = RefCell::new(Vec::new());
    let ask = |found: &Candidate, active: &Candidate| {
        asked.borrow_mut().push((found.to_string(), active.to_string()));
        Ok(choice)
    };
    let current_dir = tree.path("a");
    let active = tree.active("b", "b");
    let mut surroundings = Surroundings {
        current_dir: &current_dir,
        active_environments: Some(&active),
        remote: RemoteAccess::default(),
        choose: Some(&ask),
    };
    assert_eq!(tree.relative(find(&Selection::Default, &surroundings, &Silent)).unwrap(), expected);
    let shown = |dir: &str| format!("{dir} at {}", tree.path(dir).display());
    assert_eq!(*asked.borrow(), [(shown("a"), shown("b"))]);
    // One and the same is no question, even where it is written otherwise.
    let active = tree.active("b/../a", "a");
    surroundings.active_environments = Some(&active);
    assert_eq!(tree.relative(find(&Selection::Default, &surroundings, &Silent)).unwrap(), "a");
    assert_eq!(asked.borrow().len(), 1);
}

#[test]
fn a_question_without_an_answer_is_an_error() {
    let tree = Tree::new(&["a", "b"]);
    let ask = |_: &Candidate, _: &Candidate| Err(io::Error::other("the terminal is gone"));
    let current_dir = tree.path("a");
    let active = tree.active("b", "b");
    let surroundings = Surroundings {
        current_dir: &current_dir,
        active_environments: Some(&active),
        remote: RemoteAccess::default(),
        choose: Some(&ask),
    };
    let error = find(&Selection::Default, &surroundings, &Silent).unwrap_err();
    assert_eq!(error.to_string(), "could not ask which environment is meant");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the terminal is gone");
    assert_eq!(error.hint().unwrap(), "name the environment with -d PATH");
}

fn remote(generation: Option<u64>, hub: Option<&str>) -> CandidatePlace {
    CandidatePlace::Remote(Remote { name: "me/web".parse().unwrap(), generation, hub: hub.map(str::to_owned) })
}

#[rstest]
#[case::as_it_is(REMOTE, remote(None, Some("https://x")))]
#[case::unwrapped(r#"[{"type":"remote","owner":"me","name":"web"}]"#, remote(None, None))]
#[case::pinned(
    r#"[{"environment":{"type":"remote","owner":"me","name":"web"},"generation":3,"mode":"run"}]"#,
    remote(Some(3), None)
)]
#[case::pinned_by_a_text(
    r#"[{"environment":{"type":"remote","owner":"me","name":"web"},"generation":"3"}]"#,
    remote(Some(3), None)
)]
fn an_active_environment_on_floxhub_is_meant_with_its_generation(
    #[case] active: &str,
    #[case] expected: CandidatePlace,
) {
    let tree = Tree::new(&["a"]);
    tree.dir("b");
    let place = |current: &str| {
        let current_dir = tree.path(current);
        let remote = RemoteAccess::default();
        let active_environments = Some(active);
        default(&Surroundings { current_dir: &current_dir, active_environments, remote, choose: None }, &Silent)
            .unwrap()
    };
    assert_eq!(place("b"), expected);
    // Where there is one on the way up it is found first.
    assert_eq!(place("a"), CandidatePlace::Dir(tree.path("a")));
}

#[rstest]
#[case(r#","owner":"me""#, "3", true)]
#[case(r#","owner":"me""#, "null", false)]
#[case("", "3", false)]
fn an_active_generation_that_is_not_taken_is_a_warning(
    #[case] owner: &str,
    #[case] generation: &str,
    #[case] warned: bool,
) {
    struct Ear(std::sync::Mutex<Vec<Event>>);
    impl Observer for Ear {
        fn event(&self, event: Event) {
            self.0.lock().unwrap().push(event);
        }
    }
    let tree = Tree::new(&["a", "b"]);
    tree.dir("c");
    let active = format!(
        r#"[{{"environment":{{"type":"dot-flox","path":"{}","pointer":{{"name":"a"{owner}}}}},"generation":{generation}}}]"#,
        tree.path("a").display()
    );
    let warnings = |current: &str| {
        let current_dir = tree.path(current);
        let (active_environments, remote) = (Some(active.as_str()), RemoteAccess::default());
        let ear = Ear(std::sync::Mutex::default());
        default(&Surroundings { current_dir: &current_dir, active_environments, remote, choose: None }, &ear).unwrap();
        ear.0.into_inner().unwrap()
    };
    let message = "generation 3 of 'me/a' is active, but the image is made of what is in its directory\n  \
                   hint: for that generation: -r me/a --generation 3";
    let expected: Vec<_> = warned.then(|| Event::Warning { message: message.to_owned() }).into_iter().collect();
    assert_eq!(warnings("c"), expected);
    assert_eq!(warnings("a"), expected);
    assert_eq!(warnings("b"), []);
}

#[test]
fn a_remote_environment_is_shown_with_its_generation() {
    let shown = |generation| Candidate { name: "web".to_owned(), place: remote(generation, None) }.to_string();
    assert_eq!(shown(None), "me/web (remote)");
    assert_eq!(shown(Some(3)), "me/web (remote, generation 3)");
}

#[test]
fn without_git_there_are_no_remote_environments() {
    let tree = Tree::new(&["a"]);
    tree.dir("b");
    for error in [
        tree.find(
            &Selection::Remote(Remote { name: "me/web".parse().unwrap(), generation: None, hub: None }),
            "a",
            None,
        ),
        tree.find(&Selection::Default, "b", Some(REMOTE)),
    ] {
        let error = error.unwrap_err();
        assert_eq!(error.to_string(), "git was not found in PATH: 'me/web' cannot be fetched from FloxHub without it");
        assert_eq!(
            error.hint().unwrap(),
            "install git, or copy the environment with Flox and name that: flox pull -d web me/web"
        );
    }
}

#[rstest]
fn a_variable_that_flox_did_not_write_is_an_error(
    #[values(
        "x",
        "{}",
        "[1]",
        r#"[{"environment":{"type":"cloud"}}]"#,
        r#"[{"environment":{"type":"remote"}}]"#,
        r#"[{"environment":{"type":"remote","owner":"../me","name":"web"}}]"#,
        r#"[{"environment":{"type":"remote","owner":"me","name":"web"},"generation":"x"}]"#
    )]
    active: &str,
) {
    let tree = Tree::new(&["a"]);
    let error = tree.find(&Selection::Default, "a", Some(active)).unwrap_err();
    assert_eq!(error.to_string(), "the variable _FLOX_ACTIVE_ENVIRONMENTS is not a list of environments");
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(error.hint().unwrap(), "name the environment with -d PATH, or: unset _FLOX_ACTIVE_ENVIRONMENTS");
    // Where the environment is named, nobody looks.
    assert_eq!(tree.find(&Selection::Dir(PathBuf::from("a")), "", Some(active)).unwrap(), "a");
}

#[test]
fn an_environment_that_cannot_be_read_says_so() {
    let tree = Tree::new(&["a"]);
    fs::write(tree.path("a/.flox/env.json"), "{}").unwrap();
    let error = tree.find(&Selection::Default, "a", None).unwrap_err();
    assert!(error.to_string().ends_with("/a/.flox/env.json: the key 'version' is missing"), "{error}");
    fs::remove_file(tree.path("a/.flox/env.json")).unwrap();
    let error = tree.find(&Selection::Default, "a", None).unwrap_err();
    assert!(error.to_string().ends_with("/a/.flox/env.json' is missing"), "{error}");
    assert!(error.hint().unwrap().starts_with("make an environment there: flox init -d "));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Against the rule said in one sentence: up to the nearest repository's top, and only where there is one.
    #[test]
    fn the_search_follows_the_rule_in_any_tree(flox: [bool; 5], git: [bool; 5]) {
        let tree = Tree::new(&[]);
        let dir = |depth: usize| "d/".repeat(depth) + "d";
        for depth in 0..5 {
            tree.dir(&dir(depth));
            if flox[depth] {
                tree.environment(&dir(depth), "d");
            }
            if git[depth] {
                tree.dir(&(dir(depth) + "/.git"));
            }
        }
        let top = (0..5).rev().find(|&depth| git[depth]).unwrap_or(4);
        let expected = (top..5).rev().find(|&depth| flox[depth]).map(|depth| tree.path(&dir(depth)));
        proptest::prop_assert_eq!(search(&tree.path(&dir(4))), expected);
    }

    #[test]
    fn no_variable_makes_the_reader_panic(text: String) {
        let _ = active(Some(&text));
    }
}
