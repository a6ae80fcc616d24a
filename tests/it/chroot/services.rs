//! Services beside a command, a shell, or alone, in a process namespace of their own. process-compose is a stand-in.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use layerhold::environment::{Manifest, Service, Services};
use rstest::rstest;
use rustix::process::{Pid, Signal, kill_process};

use super::image::{Image, Run, built_image, image, image_with};
use super::{Pty, read_until, succeeded, text, with_hook, with_vars};

const FOREVER: &str = "while :; do sleep 0.02; done";

fn service(command: &str) -> Service {
    Service { command: command.to_owned(), ..Service::default() }
}

fn serving<'a>(manifest: Manifest, services: impl IntoIterator<Item = (&'a str, Service)>) -> Manifest {
    let by_name = services.into_iter().map(|(name, service)| (name.to_owned(), service)).collect();
    Manifest { services: Services { auto_start: true, by_name }, ..manifest }
}

/// A service that says when it is up, and leaves a file when it is stopped.
fn stoppable() -> Service {
    service(&format!("trap 'echo stopped >/tmp/stopped; exit 0' TERM; echo up >/tmp/up; {FOREVER}"))
}

/// A script that runs `then` once the services have made the file `/tmp/up`.
fn once_up(then: &str) -> String {
    format!("while [ ! -s /tmp/up ]; do sleep 0.02; done; {then}")
}

/// The entrypoint with `args` as process 1.
fn container(image: &Image, run: Run<'_>, args: &[&str]) -> Command {
    let inner = image.command(run, &image.realised.entrypoint, args);
    let mut outer = Command::new("/usr/bin/unshare");
    outer.args(["--pid", "--fork", "--kill-child"]).arg(inner.get_program()).args(inner.get_args());
    outer.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    outer
}

/// With its output in pipes, and nothing to read.
fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Sends a signal to process 1 of a container, as `docker stop` does. The programs that made the namespace lie between.
fn signal(container: &Child, signal: Signal) {
    let mut id = container.id().to_string();
    let in_namespace = |id: &str| {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap().to_owned();
        line.split_whitespace().count() > 1 && line.ends_with("\t1")
    };
    while !in_namespace(&id) {
        id = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap().trim().to_owned();
    }
    kill_process(Pid::from_raw(id.parse().unwrap()).unwrap(), signal).unwrap();
}

fn wait_for(image: &Image, file: &str) -> String {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match fs::read_to_string(image.path(file)) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => assert!(Instant::now() < end, "no {file}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn said(image: &Image, file: &str) -> String {
    fs::read_to_string(image.path(file)).unwrap_or_default()
}

#[test]
fn a_service_has_the_variables_of_the_activation_and_its_own() {
    let own = Service {
        vars: [("OWN".to_owned(), "$PORT \"as it is\"".to_owned())].into(),
        ..service(&format!("echo \"$PORT, $HOOKED, $OWN, {{{{.Name}}}}\" >/tmp/up; {FOREVER}"))
    };
    let manifest = Manifest { on_activate: Some("export HOOKED=hooked".into()), ..with_vars(&[("PORT", "80")]) };
    let Some(image) = image(&serving(manifest, [("own", own)])) else { return };
    let script = once_up("cat /tmp/up; echo \"[$OWN]\"");
    let output = container(&image, Run::default(), &["sh", "-c", &script]).output().unwrap();
    assert_eq!(succeeded(&output), "80, hooked, $PORT \"as it is\", {{.Name}}\n[]\n");
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn when_the_command_has_ended_the_services_are_stopped_and_the_status_is_the_commands() {
    let daemon = Service {
        is_daemon: true,
        shutdown: Some("kill \"$(cat /tmp/daemon)\"; echo \"$MARK\" >/tmp/shut-down".to_owned()),
        vars: [("MARK".to_owned(), "mark".to_owned())].into(),
        ..service("sleep 1000 </dev/null >/dev/null 2>&1 & echo $! >/tmp/daemon")
    };
    let services = [("plain", stoppable()), ("daemon", daemon)];
    let Some(image) = image(&serving(Manifest::default(), services)) else { return };
    let script = once_up("while [ ! -s /tmp/daemon ]; do sleep 0.02; done; exit 42");
    let output = container(&image, Run::default(), &["sh", "-c", &script]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(42), String::new()));
    assert_eq!((said(&image, "tmp/stopped").as_str(), said(&image, "tmp/shut-down").as_str()), ("stopped\n", "mark\n"));
    let killed = container(&image, Run::default(), &["sh", "-c", "kill -KILL $$"]).status().unwrap();
    assert_eq!(killed.code(), Some(137));
}

#[rstest]
#[case(Signal::TERM, "TERM")]
#[case(Signal::INT, "INT")]
#[case(Signal::USR1, "USR1")]
fn signals_reach_the_command_and_what_it_makes_of_them_counts(#[case] sent: Signal, #[case] name: &str) {
    let Some(image) = image(&serving(Manifest::default(), [("plain", stoppable())])) else { return };
    let script = format!("trap 'echo got it; exit 7' {name}; echo ready; {FOREVER}");
    let mut child = spawn(container(&image, Run::default(), &["sh", "-c", &once_up(&script)]));
    read_until(child.stdout.as_mut().unwrap(), "ready\n");
    signal(&child, sent);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(7), "got it\n".to_owned()));
    assert_eq!(said(&image, "tmp/stopped"), "stopped\n");
}

#[test]
fn a_signal_ends_a_function_too() {
    // Not `FOREVER`: while a program runs, bash leaves it to that program to be interrupted.
    let profile = "slowly() { echo ready; while :; do :; done; }".to_owned();
    let manifest = Manifest { profile_bash: Some(profile), ..Manifest::default() };
    let Some(image) = image(&serving(manifest, [("plain", stoppable())])) else { return };
    let mut child = spawn(container(&image, Run::default(), &["slowly"]));
    read_until(child.stdout.as_mut().unwrap(), "ready\n");
    wait_for(&image, "tmp/up");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(said(&image, "tmp/stopped"), "stopped\n");
}

#[test]
fn the_stop_signal_of_the_manifest_reaches_the_command_too() {
    let mut manifest = serving(Manifest::default(), [("plain", stoppable())]);
    manifest.containerize.stop_signal = Some("SIGPWR".to_owned());
    let Some(image) = image(&manifest) else { return };
    let script = once_up(&format!("trap 'exit 7' PWR; echo ready; {FOREVER}"));
    let mut child = spawn(container(&image, Run::default(), &["sh", "-c", &script]));
    read_until(child.stdout.as_mut().unwrap(), "ready\n");
    signal(&child, Signal::POWER);
    assert_eq!(child.wait().unwrap().code(), Some(7));
    fs::remove_file(image.path("tmp/up")).unwrap();
    let mut child = spawn(container(&image, Run::default(), &[]));
    wait_for(&image, "tmp/up");
    signal(&child, Signal::POWER);
    assert_eq!(child.wait().unwrap().code(), Some(0), "services stop at any signal that stops");
}

#[test]
fn without_a_command_and_an_input_the_services_are_the_container() {
    let web = service(&format!("trap 'echo bye; exit 0' TERM; echo hello; {FOREVER}"));
    let Some(image) = image(&serving(Manifest::default(), [("web", web)])) else { return };
    let mut child = spawn(container(&image, Run::default(), &[]));
    read_until(child.stdout.as_mut().unwrap(), "[web\t] hello\n");
    signal(&child, Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    // Its shell may tell of what it waited for, too.
    assert!(text(&output.stdout).contains("[web\t] bye\n"), "{}", text(&output.stdout));
}

#[test]
fn a_container_of_services_ends_with_them() {
    let Some(image) = image(&serving(Manifest::default(), [("once", service("echo done"))])) else { return };
    let output = container(&image, Run::default(), &[]).output().unwrap();
    assert_eq!(succeeded(&output), "[once\t] done\n");
}

#[test]
fn services_that_have_done_their_work_are_no_error() {
    let Some(image) = image(&serving(Manifest::default(), [("once", service("echo done"))])) else { return };
    let output = container(&image, Run::default(), &["sh", "-c", "sleep 0.3; greet"]).output().unwrap();
    assert_eq!((succeeded(&output).as_str(), text(&output.stderr).as_str()), ("greetings\n", ""));
    assert_eq!(said(&image, "tmp/services.log"), "[once\t] done\n");
}

#[test]
fn commands_are_read_from_an_input_that_somebody_gives() {
    let Some(image) = image(&serving(with_vars(&[("PORT", "80")]), [("plain", stoppable())])) else { return };
    let mut command = container(&image, Run::default(), &[]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let script = once_up("cat /tmp/up; echo $PORT; exit 3\n");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), "up\n80\n".to_owned()));
    assert_eq!((said(&image, "tmp/stopped").as_str(), text(&output.stderr).as_str()), ("stopped\n", ""));
}

#[test]
fn a_shell_on_a_terminal_ends_when_the_container_is_stopped() {
    let manifest = serving(with_hook("true"), [("plain", stoppable())]);
    let Some(image) = image(&manifest) else { return };
    let mut shell = Pty::start(container(&image, Run { env: &[("TERM", "dumb")], ..Run::default() }, &[]));
    read_until(&mut shell.terminal, "flox [floxenv] ");
    wait_for(&image, "tmp/up");
    // What is typed is the shell's: neither it nor the services end.
    shell.terminal.write_all(b"sleep 100\n").unwrap();
    read_until(&mut shell.terminal, "sleep 100\r\n");
    std::thread::sleep(Duration::from_millis(200));
    shell.terminal.write_all(b"\x03").unwrap();
    read_until(&mut shell.terminal, "flox [floxenv] ");
    shell.terminal.write_all(b"echo $((40 + 2)).; cat /tmp/up\n").unwrap();
    read_until(&mut shell.terminal, "42.\r\nup\r\n");
    read_until(&mut shell.terminal, "flox [floxenv] ");
    // A bash that is hung up at the very moment at which it begins to wait for a line goes on waiting.
    std::thread::sleep(Duration::from_millis(200));
    signal(&shell.child, Signal::TERM);
    assert_eq!(shell.child.wait().unwrap().code(), Some(129), "a hang-up");
    assert_eq!(said(&image, "tmp/stopped"), "stopped\n");
}

#[test]
fn what_is_typed_reaches_a_command_once() {
    let Some(image) = image(&serving(Manifest::default(), [("plain", stoppable())])) else { return };
    let script = once_up(&format!("trap 'echo int >>/tmp/ints' INT; trap 'exit 8' HUP; echo ready; {FOREVER}"));
    let mut command = Pty::start(container(&image, Run::default(), &["bash", "-c", &script]));
    read_until(&mut command.terminal, "ready");
    command.terminal.write_all(b"\x03").unwrap();
    wait_for(&image, "tmp/ints");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(said(&image, "tmp/stopped"), "", "the services are no part of what is typed");
    signal(&command.child, Signal::HUP);
    assert_eq!(command.child.wait().unwrap().code(), Some(8));
    assert_eq!((said(&image, "tmp/ints").as_str(), said(&image, "tmp/stopped").as_str()), ("int\n", "stopped\n"));
}

#[test]
fn whatever_a_shell_could_run_is_run() {
    let manifest = Manifest { profile_bash: Some("both() { echo \"function $1\"; }".into()), ..Manifest::default() };
    let manifest = serving(manifest, [("plain", service(FOREVER))]);
    let Some(image) = image(&manifest) else { return };
    let run = |args: &[&str]| container(&image, Run::default(), args).output().unwrap();
    assert_eq!(succeeded(&run(&["both", "$FLOX_ENV_CACHE"])), "function /tmp\n");
    assert_eq!(succeeded(&run(&["printf", "[%s]", "a b", "", "*"])), "[a b][][*]");
    let missing = run(&["nothing"]);
    assert_eq!(missing.status.code(), Some(127));
    assert_eq!(text(&missing.stderr), "✘ ERROR: 'nothing' is not a command in the environment 'demo'\n");
    let manifest = serving(Manifest::default(), [("plain", service("while :; do read -t 1; done <>/dev/null"))]);
    let Some(image) = image_with(&manifest, layerhold::environment::ActivateMode::Run, false) else { return };
    assert_eq!(succeeded(&container(&image, Run::default(), &["echo", "builtin"]).output().unwrap()), "builtin\n");
}

#[test]
fn the_command_has_its_standard_input() {
    let Some(image) = image(&serving(Manifest::default(), [("plain", service(FOREVER))])) else { return };
    let mut command = container(&image, Run::default(), &["cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"one\ntwo").unwrap();
    assert_eq!(succeeded(&child.wait_with_output().unwrap()), "one\ntwo");
}

#[test]
fn services_that_cannot_start_are_an_error_before_the_command() {
    let Some(image) = image(&serving(Manifest::default(), [("plain", stoppable())])) else { return };
    let fails = |because: &str| {
        let output = container(&image, Run::default(), &["greet"]).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
        let error = text(&output.stderr);
        let first =
            format!("✘ ERROR: the services did not start: process-compose ended with status 1\n  FTL {because}");
        assert!(error.starts_with(&first), "{error}");
    };
    fs::create_dir(image.path("tmp/services.sock")).unwrap();
    fails("/tmp/services.sock: ");
    fs::remove_dir(image.path("tmp/services.sock")).unwrap();
    // A socket that an earlier run left does not mean that they are up.
    drop(UnixListener::bind(image.path("tmp/services.sock")).unwrap());
    fs::remove_file(image.path("tmp/process-compose.log")).unwrap();
    fs::create_dir(image.path("tmp/process-compose.log")).unwrap();
    fails("Is a directory");
}

#[test]
fn any_user_on_a_read_only_root_is_enough() {
    let Some(image) = image(&serving(Manifest::default(), [("plain", stoppable())])) else { return };
    let run = Run { user: Some(4242), read_only: true, ..Run::default() };
    let output = container(&image, run, &["sh", "-c", &once_up("id -u")]).output().unwrap();
    assert_eq!(succeeded(&output), "4242\n");
    let run = Run { user: Some(4242), read_only: true, without_tmp: true, ..Run::default() };
    let output = container(&image, run, &["greet"]).output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stderr).as_str()),
        (
            Some(1),
            "✘ ERROR: the services cannot start: their files in /tmp cannot be written\n\
             hint: on a read-only root, give it a /tmp: --tmpfs /tmp\n"
        )
    );
}

#[test]
fn a_second_activation_finds_the_services_running_and_leaves_them() {
    let counted = service(&format!("echo start >>/tmp/starts; echo up >/tmp/up; {FOREVER}"));
    let Some(image) = image(&serving(Manifest::default(), [("counted", counted)])) else { return };
    let entry = image.realised.entrypoint[0].clone();
    // What an earlier run of the container left.
    drop(UnixListener::bind(image.path("tmp/services.sock")).unwrap());
    let inner = once_up("cat /tmp/up");
    let script = once_up(&format!("{entry} sh -c '{inner}'; {entry} sh -c '{inner}'"));
    let output = container(&image, Run::default(), &["sh", "-c", &script]).output().unwrap();
    assert_eq!((succeeded(&output).as_str(), text(&output.stderr).as_str()), ("up\nup\n", ""));
    assert_eq!(said(&image, "tmp/starts"), "start\n");
}

#[test]
fn an_environment_that_flox_built_serves_as_well() {
    let web = service(&format!("trap 'echo stopped >/tmp/stopped' EXIT; echo $BUILT >/tmp/up; {FOREVER}"));
    let Some(image) = built_image(&serving(Manifest::default(), [("web", web)])) else { return };
    let script = once_up("cat /tmp/up; echo \"$1\"; exit 42");
    let output = container(&image, Run::default(), &["sh", "-c", &script, "sh", "a  b"]).output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(42), "built\na  b\n".to_owned()));
    assert_eq!((said(&image, "tmp/stopped").as_str(), text(&output.stderr).as_str()), ("stopped\n", ""));
    let missing = container(&image, Run::default(), &["nothing"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(127));
    assert!(text(&missing.stderr).starts_with("✘ ERROR: 'nothing' is not a command"), "{}", text(&missing.stderr));
    for file in ["tmp/up", "tmp/stopped"] {
        fs::remove_file(image.path(file)).unwrap();
    }
    let mut child = spawn(container(&image, Run::default(), &[]));
    wait_for(&image, "tmp/up");
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(said(&image, "tmp/stopped"), "stopped\n");
    let mut shell = Pty::start(container(&image, Run { env: &[("TERM", "dumb")], ..Run::default() }, &[]));
    read_until(&mut shell.terminal, "profile of built\r\nflox [floxenv] ");
    shell.terminal.write_all(b"exit 9\n").unwrap();
    assert_eq!(shell.child.wait().unwrap().code(), Some(9));
}
