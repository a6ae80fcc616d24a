//! What goes wrong, what is then said, and with which status it ends.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use rstest::rstest;

use crate::containerize::containerize;
use crate::flox_fixture::{BareStore, FloxEnv, LockedPackage, Tree};
use crate::sandbox::Sandbox;

/// A sandbox with a store of one package that needs no shell.
struct Place {
    sandbox: Sandbox,
    store: BareStore,
    tool: String,
}

impl Place {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let store = BareStore::new(sandbox.path("root"));
        let tool = store.add("tool-1", &Tree::new().file("share/tool", "tool"));
        Self { sandbox, store, tool }
    }

    fn environment(&self, rest: &str) -> FloxEnv {
        FloxEnv::of_store_paths(self.sandbox.path("project"), "place", &[("tool", &self.tool)], rest)
    }

    /// The arguments for a run over an environment, into a file.
    fn containerize(&self, environment: &FloxEnv) -> assert_cmd::Command {
        let mut command = containerize(&self.sandbox, self.store.root(), environment);
        command.args(["-f", "image.tar"]);
        command
    }

    /// Runs a command that has to fail with status 1 and leave no image; what it says, made tidy.
    fn failure(&self, command: &mut assert_cmd::Command) -> String {
        let outcome = command.assert().code(1);
        assert!(outcome.get_output().stdout.is_empty());
        assert!(!self.image().exists(), "a run that fails leaves no image");
        let said = self.sandbox.tidy(&String::from_utf8(outcome.get_output().stderr.clone()).unwrap());
        assert!(said.contains("✘ ERROR: "), "{said}");
        said
    }

    fn image(&self) -> PathBuf {
        self.sandbox.path("work/image.tar")
    }

    /// The names of files in the directory that images are written to.
    fn left_behind(&self) -> Vec<String> {
        let entries = fs::read_dir(self.sandbox.path("work")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// Asserts that all of `parts` stand in `said`.
#[track_caller]
fn says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
}

#[test]
fn a_directory_without_an_environment() {
    let place = Place::new();
    let dir = place.sandbox.path("empty");
    fs::create_dir(&dir).unwrap();
    let said = place.failure(place.sandbox.cmd().args(["containerize", "-f", "image.tar", "-d"]).arg(&dir));
    says(&said, &["✘ ERROR: Did not find an environment in '[SANDBOX]/empty'"]);
}

#[test]
fn no_environment_at_all() {
    let place = Place::new();
    let said = place.failure(place.sandbox.cmd().args(["containerize", "-f", "image.tar"]));
    says(&said, &["✘ ERROR: Did not find an active environment or an environment in the current directory."]);
}

#[rstest]
#[case::even_with_a_file(&["-f", "image.tar"])]
#[case::alone(&[])]
fn a_runtime_that_is_not_there(#[case] args: &[&str]) {
    let place = Place::new();
    let mut command = containerize(&place.sandbox, place.store.root(), &place.environment(""));
    let said = place.failure(command.args(["--runtime", "podman"]).args(args));
    says(&said, &["✘ ERROR: Container runtime 'podman' not found in PATH."]);
}

#[test]
fn a_runtime_that_is_none() {
    let place = Place::new();
    let mut command = containerize(&place.sandbox, place.store.root(), &place.environment(""));
    let outcome = command.args(["--runtime", "lxc"]).assert().failure();
    says(&String::from_utf8_lossy(&outcome.get_output().stderr), &["Runtime must be 'docker' or 'podman'"]);
}

#[test]
fn an_option_that_is_none_is_wrong_usage() {
    Sandbox::new().cmd().args(["containerize", "--no-such-option"]).assert().code(2);
}

#[test]
fn a_store_path_that_is_not_in_the_store() {
    let place = Place::new();
    let absent = "/nix/store/00000000000000000000000000000000-absent-1";
    let environment = FloxEnv::of_store_paths(place.sandbox.path("project"), "place", &[("absent", absent)], "");
    says(&place.failure(&mut place.containerize(&environment)), &["/nix/store/[HASH]-absent-1", "hint: "]);
}

#[rstest]
#[case::an_unknown_key("[containerize.config]\nuserr = \"x\"\n", &["userr"])]
#[case::a_wrong_type("[containerize.config]\nuser = 7\n", &["user", "string"])]
#[case::a_port_that_is_none("[containerize.config]\nexposed-ports = [\"http\"]\n", &["exposed-ports", "http"])]
#[case::a_relative_working_directory("[containerize.config]\nworking-dir = \"srv\"\n", &["working-dir", "srv"])]
#[case::broken_toml("[vars\nA = 1\n", &["manifest.toml:6:6: "])]
fn a_manifest_that_is_wrong_is_named_with_the_key_or_line(#[case] rest: &str, #[case] parts: &[&str]) {
    let place = Place::new();
    let said = place.failure(&mut place.containerize(&place.environment(rest)));
    says(&said, &["manifest.toml"]);
    says(&said, parts);
}

#[test]
fn a_lockfile_that_is_broken_is_named_with_the_line() {
    let place = Place::new();
    let environment = place.environment("");
    environment.write("env/manifest.lock", "{\n  \"lockfile-version\": 1,\n  oops\n}");
    says(&place.failure(&mut place.containerize(&environment)), &["manifest.lock:3:3: "]);
}

#[test]
fn catalog_packages_without_a_lockfile() {
    let place = Place::new();
    let manifest = "version = 1\n[install]\nhello.pkg-path = \"hello\"\n";
    let environment = FloxEnv::new(place.sandbox.path("project"), "place", manifest);
    says(&place.failure(&mut place.containerize(&environment)), &["hint: ", "flox "]);
}

#[test]
fn a_lockfile_that_does_not_belong_to_the_manifest_any_more() {
    let place = Place::new();
    let manifest = "version = 1\n[install]\ntool.pkg-path = \"tool\"\n";
    let environment = FloxEnv::new(place.sandbox.path("project"), "place", manifest);
    environment.lock(&[LockedPackage::new("tool", &place.tool)]);
    place.containerize(&environment).assert().success();
    fs::remove_file(place.image()).unwrap();
    environment.write("env/manifest.toml", &format!("{manifest}other.pkg-path = \"other\"\n"));
    says(&place.failure(&mut place.containerize(&environment)), &["hint: ", "flox "]);
}

#[test]
fn two_packages_that_want_to_own_one_file() {
    let place = Place::new();
    let rival = place.store.add("rival-1", &Tree::new().file("share/tool", "rival"));
    let installs = [("tool", &*place.tool), ("rival", &*rival)];
    let environment = FloxEnv::of_store_paths(place.sandbox.path("project"), "place", &installs, "");
    let said = place.failure(&mut place.containerize(&environment));
    says(&said, &["share/tool", "/nix/store/[HASH]-tool-1", "/nix/store/[HASH]-rival-1"]);

    let manifest = fs::read_to_string(environment.dot_flox("env/manifest.toml")).unwrap();
    environment.write("env/manifest.toml", &manifest.replace("[install]", "[install]\nrival.priority = 4"));
    place.containerize(&environment).assert().success();
}

#[test]
fn a_hook_where_the_closure_has_no_bash() {
    let place = Place::new();
    let environment = place.environment("[hook]\non-activate = 'echo hook'\n");
    says(&place.failure(&mut place.containerize(&environment)), &["bash", "hint: "]);
}

#[test]
fn a_bash_that_lies_in_the_store_is_named_if_it_runs_there() {
    let place = Place::new();
    let environment = place.environment("[hook]\non-activate = \"true\"\n");
    // Names alone make no shell: a patch, and a program for another kind of machine.
    place.store.add("bash-5.3.patch", &Tree::new().file("x", ""));
    place.store.add("bash-5.3", &Tree::new().program("bin/bash", b"\x7fELF\x02\x01 for nothing"));
    let said = place.failure(&mut place.containerize(&environment));
    says(&said, &["--shell /nix/store/...-bash-..."]);
    // The beginning of a program for this machine.
    let own = &fs::read(std::env::current_exe().unwrap()).unwrap()[..20];
    let shell = place.store.add("bash-interactive-5.2", &Tree::new().program("bin/bash", own));
    let said = place.failure(&mut place.containerize(&environment));
    let hint = "hint: add one: flox install bash; or take the one in the Nix store here: --shell /nix/store/[HASH]-bash-\
                interactive-5.2\n";
    says(&said, &[hint]);
    place.containerize(&environment).args(["--shell", &shell]).assert().success();
}

#[test]
fn a_socket_in_a_store_path() {
    let place = Place::new();
    let _socket = UnixListener::bind(place.store.real(&place.tool).join("share/socket")).unwrap();
    let said = place.failure(&mut place.containerize(&place.environment("")));
    says(&said, &["share/socket", "socket"]);
}

#[test]
fn a_run_that_fails_leaves_the_old_file_and_nothing_beside_it() {
    let place = Place::new();
    fs::write(place.image(), "old").unwrap();
    let environment = place.environment("");
    fs::remove_dir_all(place.store.real(&place.tool)).unwrap();
    place.containerize(&environment).assert().code(1);
    assert_eq!(fs::read_to_string(place.image()).unwrap(), "old");
    assert_eq!(place.left_behind(), ["image.tar"]);
}

#[test]
fn a_file_in_a_directory_that_is_not_there() {
    let place = Place::new();
    let mut command = containerize(&place.sandbox, place.store.root(), &place.environment(""));
    let said = place.failure(command.args(["-f", "absent/image.tar"]));
    says(&said, &["cannot write 'absent/image.tar'", "hint: ", "mkdir -p absent"]);
}

#[test]
fn a_full_disk_behind_standard_output() {
    let place = Place::new();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(place.sandbox.environment()).current_dir(place.sandbox.path("work"));
    command.args(["containerize", "-f", "-", "--store"]).arg(place.store.root());
    command.arg("-d").arg(place.environment("").dir());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    says(&said, &["✘ ERROR: ", "No space left on device"]);
}

#[rstest]
#[case::that_refuses("echo 'no space in the storage' >&2; exit 7", "no space in the storage")]
#[case::that_is_killed("kill -9 $$", "killed")]
fn a_runtime(#[case] script: &str, #[case] part: &str) {
    let place = Place::new();
    for runtime in ["docker", "podman"] {
        place.sandbox.script(runtime, script);
        let mut command = containerize(&place.sandbox, place.store.root(), &place.environment(""));
        let said = place.failure(command.args(["--runtime", runtime]));
        says(&said.to_lowercase(), &[part, runtime]);
        assert!(!said.contains("written to"), "{said}");
    }
}

#[test]
fn a_runtime_that_cannot_read_the_layers_is_known_before_any_work() {
    let place = Place::new();
    place.sandbox.script("docker", "case \"$1 $2\" in version*) echo 20.10.24 ;; *inspect) exit 1 ;; esac");
    let run = |args: &[&str]| {
        let mut command = containerize(&place.sandbox, place.store.root(), &place.environment(""));
        command.args(["--compression", "zstd"]).args(args);
        command
    };
    let files = |directory: &str| fs::read_dir(place.sandbox.path("cache").join(directory)).unwrap().count();
    let refused = |tag: &str| {
        let said = place.failure(&mut run(&["--runtime", "docker", "--tag", tag]));
        says(&said, &["Docker 20.10.24 cannot load layers compressed with zstd", "hint: ", "--compression none"]);
    };
    refused("v1");
    assert_eq!((files("records"), files("images")), (0, 0));
    // Nor is an image recorded that can go nowhere, where all of its layers are there.
    run(&["-f", "other.tar", "--tag", "v1"]).assert().success();
    assert_eq!(files("images"), 1);
    refused("v2");
    assert_eq!(files("images"), 1);
}

#[test]
fn an_argument_out_of_range() {
    let place = Place::new();
    let environment = place.environment("");
    for args in
        [["--max-layers", "1"], ["--max-layers", "128"], ["--compression", "lzma"], ["--compression", "zstd:99"]]
    {
        place.containerize(&environment).args(args).assert().code(2);
    }
}

#[test]
fn quiet_says_nothing_and_verbose_more() {
    let place = Place::new();
    let environment = place.environment("");
    let run_with = |before: &[&str], behind: &[&str]| {
        let mut command = place.sandbox.cmd();
        command.args(before).arg("containerize").args(behind);
        command.args(["-f", "image.tar", "--store"]).arg(place.store.root());
        let outcome = command.arg("-d").arg(environment.dir()).assert().success();
        String::from_utf8(outcome.get_output().stderr.clone()).unwrap()
    };
    let run = |flag: Option<&str>| run_with(flag.as_slice(), &[]);
    let (quiet, usual, verbose) = (run(Some("-q")), run(None), run(Some("-v")));
    assert_eq!(quiet, "");
    // Behind the command they are the same.
    assert_eq!(run_with(&[], &["-q"]), "");
    let behind = run_with(&[], &["--verbose"]);
    assert!(behind.lines().count() > usual.lines().count(), "{behind}");
    assert!(usual.contains("written to file"), "{usual}");
    assert!(verbose.lines().count() > usual.lines().count(), "{verbose}");
    for said in [usual, verbose] {
        assert!(!said.contains('\u{1b}') && !said.contains('\r'), "a pipe gets plain lines: {said:?}");
    }
}

#[rstest]
#[case::before(&["-q", "-v", "cache", "path"])]
#[case::behind(&["cache", "path", "-q", "-v"])]
#[case::between(&["cache", "-q", "-v", "path"])]
#[case::quiet_before_and_verbose_behind(&["-q", "cache", "path", "-v"])]
#[case::verbose_before_and_quiet_behind(&["-v", "cache", "path", "-q"])]
fn quiet_and_verbose_exclude_each_other(#[case] args: &[&str]) {
    let outcome = Sandbox::new().cmd().args(args).assert().code(2);
    let said = String::from_utf8_lossy(&outcome.get_output().stderr).into_owned();
    assert!(said.contains("'--quiet' cannot be used with '--verbose...'"), "{said}");
}

#[rstest]
#[case::in_a_variable(&["containerize"], "LAYERHOLD_CACHE_FROM", "s3://id:s3cret@bucket")]
#[case::in_the_other_one(&["containerize"], "LAYERHOLD_CACHE_TO", "gs://id:s3cret@bucket/team")]
#[case::cut_by_a_comma(&["containerize"], "LAYERHOLD_CACHE_FROM", "s3://id:s3cret,@bucket")]
#[case::of_a_registry(&["containerize"], "LAYERHOLD_CACHE_TO", "id:s3cret@registry.example/cache")]
#[case::of_the_image_before(&["containerize"], "LAYERHOLD_PREVIOUS", "https://id:s3cret@registry.example/app")]
#[case::cache_to_read(&["containerize", "--cache-from", "https://id:s3cret@registry.example/cache"], "", "")]
#[case::cache_to_write(&["containerize", "--cache-to=s3://id:s3cret@bucket"], "", "")]
#[case::cache_to_tidy(&["cache", "gc", "--remote", "s3://id:s3cret@bucket"], "", "")]
#[case::target(&["containerize", "--push", "id:s3cret@registry.example/app:v1"], "", "")]
#[case::target_alone(&["push", "app", "https://id:s3cret@registry.example/app"], "", "")]
#[case::image_before(&["containerize", "--previous", "id:s3cret@registry.example/app"], "", "")]
#[case::binary_cache(&["containerize", "--substituter", "https://id:s3cret@cache.example:port"], "", "")]
#[case::environment(&["containerize", "-r", "https://id:s3cret@hub.example/me/app"], "", "")]
#[case::nothing_that_is_wanted(&["containerize", "s3://id:s3cret@bucket"], "", "")]
fn a_secret_in_what_is_refused_is_not_repeated(#[case] args: &[&str], #[case] variable: &str, #[case] value: &str) {
    let sandbox = Sandbox::new();
    let mut command = sandbox.cmd();
    if !variable.is_empty() {
        command.env(variable, value);
    }
    let outcome = command.args(args).assert().code(2);
    let output = outcome.get_output();
    let said = String::from_utf8([&output.stdout[..], &output.stderr].concat()).unwrap();
    assert!(said.contains("...") && !said.contains("s3cret"), "{said}");
}

#[test]
fn a_secret_key_in_the_wrong_place_is_not_repeated() {
    let sandbox = Sandbox::new();
    let (file, settings) = (sandbox.path("team.key"), sandbox.path("home/.config/layerhold/config.toml"));
    sandbox.cmd().args(["cache", "key", "team"]).arg(&file).assert().success();
    let key = fs::read_to_string(&file).unwrap();
    let key = key.trim();
    let secret = key.split_once(':').unwrap().1;
    fs::create_dir_all(settings.parent().unwrap()).unwrap();
    let to: &[&str] = &["containerize", "--cache-to", "file:///nowhere", "--cache-key"];
    for (arguments, set, says) in [
        (to, "", "a key was given where its file is expected"),
        (&["cache", "key"], "", "that is no name of a key"),
        (&["containerize", "--cache-trust"], "", "'team' is a secret key"),
        (&["containerize", "--cache-trust", "other:key"], "", "unexpected argument 'team:...'"),
        (&["containerize", "--tag"], "[shared-cache]\ntrust = \"{key}\"\n", "trust = \"team:...\""),
        (&["containerize", "--tag"], "[shared-cache]\ntrust = [\"{key}\"]\n", "'team' is a secret key"),
    ] {
        fs::write(&settings, set.replace("{key}", key)).unwrap();
        let last = if arguments.contains(&"--tag") { "v1" } else { key };
        let also = if arguments == ["cache", "key"] { Some("out") } else { None };
        let outcome = sandbox.cmd().args(arguments).arg(last).args(also).assert().failure();
        let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
        assert!(said.contains(says) && !said.contains(secret), "{arguments:?} {said}");
    }
}

#[test]
fn a_secret_in_a_file_of_settings_that_is_wrong_is_not_repeated() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("home/.config/layerhold/config.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    for (table, key) in [("shared-cache", "from"), ("substituters", "urls")] {
        fs::write(&file, format!("[{table}]\n{key} = \"https://id:s3cret@cache.example\"\n")).unwrap();
        let outcome = sandbox.cmd().arg("containerize").assert().code(1);
        let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
        says(&said, &["config.toml: TOML parse error at line 2", "...@cache.example"]);
        assert!(!said.contains("s3cret"), "{said}");
    }
}
