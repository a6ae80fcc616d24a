//! What happens in a container when it starts: variables, hook, profile, command or shell.

use std::io::Write;
use std::process::Stdio;

use crate::containerize::{containerize, hello_environment};
use crate::peers::{LoadedImage, Peer, find_program, peer, unique_name};
use crate::sandbox::Sandbox;
use crate::terminal::Terminal;

/// Makes an environment of bash, coreutils and hello with the rest of a manifest, and loads its image into Docker.
fn load(docker: Peer, test: &str, rest: &str, args: &[&str]) -> Option<LoadedImage> {
    let nix = crate::peers::nix()?;
    let sandbox = Sandbox::new();
    let name = unique_name(test);
    let environment = hello_environment(&sandbox, nix, &name, rest);
    let file = sandbox.path("image.tar");
    containerize(&sandbox, nix.root(), &environment).arg("-f").arg(&file).args(args).assert().success();
    let image = LoadedImage::new(docker, format!("{name}:latest"));
    docker.run(["load", "-i", file.to_str().unwrap()]);
    Some(image)
}

/// The image, or the end of the test.
macro_rules! image {
    ($($argument:expr),*) => {
        match load(peer!(docker), $($argument),*) {
            Some(image) => image,
            None => { peer!(nix); return }
        }
    };
}

const EVERYTHING: &str = r#"
[vars]
SECOND = "$FIRST and second"
FIRST = "first"

[hook]
on-activate = '''
echo "hook: $SECOND"
export FROM_HOOK="set by the hook"
'''

[profile]
common = '''
echo "common: $FROM_HOOK" >&2
export FROM_COMMON=1
'''
bash = '''
alias greet="echo greetings"
'''
"#;

#[test]
fn variables_come_before_the_hook_and_the_hook_before_the_command() {
    let image = image!("order", EVERYTHING, &[]);
    let docker = peer!(docker);
    let args = ["run", "--rm", "--network", "none", &image.reference, "sh", "-c", "echo \"$SECOND|$FROM_HOOK\""];
    let output = docker.command(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(out, "first and second|set by the hook\n", "{err}");
    assert!(err.contains("hook: first and second\n"), "what a hook prints goes to standard error: {err}");
    assert!(err.contains("common: set by the hook\n"), "profile scripts run before commands too, as in flox: {err}");
}

#[test]
fn arguments_stay_whole_and_their_variables_expand() {
    let image = image!("arguments", "[vars]\nfoo = \"value of foo\"\n", &[]);
    assert_eq!(image.run(&[], &["echo", "$foo"]), "value of foo\n");
    let odd = ["printf", "<%s>", "two words", "", "it's \"quoted\"", "a;b", "line\nbreak", "*", "$foo!"];
    let expected = "<two words><><it's \"quoted\"><a;b><line\nbreak><*><value of foo!>";
    assert_eq!(image.run(&[], &odd), expected);
}

#[test]
fn a_command_has_its_standard_input() {
    let image = image!("stdin", EVERYTHING, &[]);
    let docker = peer!(docker);
    let mut command = docker.command(["run", "--rm", "-i", "--network", "none", &image.reference, "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through\nthe container").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "through\nthe container");
}

#[test]
fn a_command_is_process_1_and_its_status_is_the_containers() {
    let image = image!("process", EVERYTHING, &[]);
    assert_eq!(image.run(&[], &["bash", "-c", "echo $$"]), "1\n");
    let docker = peer!(docker);
    let args = ["run", "--rm", "--network", "none", &image.reference, "bash", "-c", "exit 42"];
    assert_eq!(docker.command(args).status().unwrap().code(), Some(42));
}

#[test]
fn a_signal_reaches_the_command() {
    let image = image!("signal", EVERYTHING, &[]);
    let docker = peer!(docker);
    let script = "trap 'echo stopped; exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let container = unique_name("signal-container");
    let name = ["--name", &container];
    let args = [&["run", "--detach", "--network", "none"], &name[..], &[&image.reference, "bash", "-c", script]];
    docker.run(args.concat());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !docker.run(["logs", &container]).contains("ready") {
        assert!(std::time::Instant::now() < deadline, "the command never started");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    docker.run(["stop", "--time", "30", &container]);
    let said = docker.run(["logs", &container]);
    let status = docker.run(["inspect", "--format", "{{.State.ExitCode}}", &container]);
    docker.run(["rm", "--force", &container]);
    assert!(said.contains("stopped"), "{said}");
    assert_eq!(status.trim(), "0");
}

#[test]
fn whoever_runs_it_and_on_a_read_only_root() {
    let image = image!("user", EVERYTHING, &[]);
    assert_eq!(image.run(&["--user", "4321:4321"], &["id", "-u"]), "4321\n");
    assert_eq!(image.run(&["--read-only", "--tmpfs", "/tmp"], &["hello"]), "Hello, world!\n");
    let both = ["--read-only", "--tmpfs", "/tmp", "--user", "4321"];
    assert_eq!(image.run(&both, &["sh", "-c", "echo $FROM_HOOK"]), "set by the hook\n");
}

#[test]
fn the_user_of_the_manifest_runs_it_in_the_working_directory() {
    let rest = "[containerize.config]\nuser = \"worker:staff\"\nworking-dir = \"/srv/work\"\ncmd = [\"pwd\"]\n";
    let image = image!("worker", rest, &[]);
    assert_eq!(image.run(&[], &[]), "/srv/work\n");
    assert_eq!(image.run(&[], &["whoami"]), "worker\n");
    assert_eq!(image.run(&[], &["id", "-u"]), "10000\n");
    image.run(&[], &["touch", "/srv/work/own", "/run/own", "/tmp/own"]);
}

#[test]
fn what_goes_around_the_entrypoint_still_finds_the_programs() {
    let image = image!("around", "[vars]\nSTATIC = \"in Env\"\n", &[]);
    assert_eq!(image.run(&["--entrypoint", "hello"], &[]), "Hello, world!\n");
    assert_eq!(image.run(&["--entrypoint", "sh"], &["-c", "echo $STATIC"]), "in Env\n");
}

#[test]
fn an_activation_says_where_it_is() {
    let image = image!("variables", "", &[]);
    let env = image.run(&[], &["env"]);
    let value = |name: &str| {
        let lead = format!("{name}=");
        env.lines().find_map(|line| line.strip_prefix(&lead).map(str::to_owned))
    };
    let flox_env = value("FLOX_ENV").unwrap();
    assert!(flox_env.starts_with("/nix/store/"), "{env}");
    assert!(value("PATH").unwrap().contains(&format!("{flox_env}/bin")), "{env}");
    assert_eq!(value("FLOX_ENV_CACHE").as_deref(), Some("/tmp"));
    assert_eq!(value("FLOX_PROMPT_ENVIRONMENTS").as_deref(), Some("floxenv"));
    assert!(image.reference.starts_with(&value("FLOX_ENV_DESCRIPTION").unwrap()), "{env}");
    for name in ["FLOX_ENV_DIRS", "MANPATH", "XDG_DATA_DIRS", "INFOPATH"] {
        assert!(value(name).is_some(), "{name} is missing:\n{env}");
    }
    assert!(value("LIBRARY_PATH").unwrap().contains(&flox_env), "development is the usual mode");
    let lean = image!("variables-run", "", &["--mode", "run"]);
    assert!(!lean.run(&[], &["env"]).contains("LIBRARY_PATH="));
}

#[test]
fn a_hook_that_exits_is_told_to_return() {
    let image = image!("exit", "[hook]\non-activate = 'exit 0'\n", &[]);
    let docker = peer!(docker);
    let output = docker.command(["run", "--rm", "--network", "none", &image.reference, "hello"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("return"), "{said}");
}

#[test]
fn a_terminal_gets_a_shell_with_the_prompt_and_the_profile() {
    let image = image!("terminal", EVERYTHING, &[]);
    let docker = find_program("docker").unwrap();
    let mut command = Terminal::command(docker);
    command.args(["run", "--rm", "-it", "--network", "none", &image.reference]);
    let mut terminal = Terminal::spawn(command);
    let before = terminal.expect("flox [floxenv]");
    assert!(before.contains("hook: first and second"), "{before}");
    assert!(before.contains("common: set by the hook"), "{before}");
    terminal.send("hello; echo \"$FROM_COMMON-$SECOND\"; greet you");
    terminal.expect("Hello, world!");
    terminal.expect("1-first and second");
    terminal.expect("greetings you");
    terminal.send("exit 5");
    let (status, rest) = terminal.finish();
    assert_eq!(status.code(), Some(5), "{rest}");
}
