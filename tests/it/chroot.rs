//! The activation as it really runs: the rendered root on disk, entered with `chroot`, static programs inside.
//!
//! Needs root (for `chroot`, `mount` and other users) and the static bash and busybox that Debian has.

mod image;
mod services;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use layerhold::environment::{ActivateMode, Manifest};
use rstest::rstest;
use rustix::event::{PollFd, PollFlags, poll};

use image::{Image, Run, image, image_of_everything, image_with};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeded(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

fn with_hook(hook: &str) -> Manifest {
    Manifest { on_activate: Some(hook.to_owned()), ..Manifest::default() }
}

fn with_vars(vars: &[(&str, &str)]) -> Manifest {
    let vars = vars.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    Manifest { vars, ..Manifest::default() }
}

#[test]
fn profile_d_then_vars_then_the_hook_then_the_profile_then_the_command() {
    let manifest = Manifest {
        on_activate: Some("echo \"hook: $SECOND\"; export THIRD=\"$SECOND 3\"; cd /tmp".into()),
        profile_common: Some("export FOURTH=\"$THIRD 4\"".into()),
        profile_bash: Some("export FIFTH=\"$FOURTH 5\"".into()),
        ..with_vars(&[("SECOND", "$FIRST 2"), ("FIRST", "${GREETER_PROFILE#\"$FLOX_ENV\"}1")])
    };
    let Some(image) = image(&manifest) else { return };
    let output = image.run_with(Run::default(), &["sh", "-c", "echo \"$FIFTH\"; pwd"]);
    assert_eq!(succeeded(&output), "1 2 3 4 5\n/tmp\n");
    assert_eq!(text(&output.stderr), "hook: 1 2\n", "what a hook says goes to standard error");
}

#[rstest]
#[case::variables("$foo ${foo}x", "v a l v a lx")]
#[case::unset("[$nothing]", "[]")]
#[case::lone_dollars("5$ $ $$ $1 $@ $-x ${1} ${} ${foo:-x} ${foo", "5$ $ $$ $1 $@ $-x ${1} ${} ${foo:-x} ${foo")]
#[case::no_command_runs("$(touch /tmp/x) `id` $((1+1))", "$(touch /tmp/x) `id` $((1+1))")]
#[case::escaped("\\$foo \\${foo} \\n \\", "$foo ${foo} \\n \\")]
#[case::quotes("'$foo' \"$foo\" it's", "'v a l' \"v a l\" it's")]
#[case::separators("a;b & c | d > e\nf\tg", "a;b & c | d > e\nf\tg")]
#[case::globs("* ? [a] ~ {a,b}", "* ? [a] ~ {a,b}")]
#[case::empty("", "")]
#[case::own_names("$_flox_rest$_flox_name$name$out", "")]
#[case::not_ascii("é$foo€", "év a l€")]
#[case::replacement("$amp", "a&b\\0")]
#[case::option("-n", "-n")]
fn arguments_are_kept_whole_while_variables_expand(#[case] argument: &str, #[case] expected: &str) {
    let Some(image) = image(&with_vars(&[("foo", "v a l"), ("amp", "a&b\\\\0")])) else { return };
    assert_eq!(image.stdout(&["printf", "[%s]", argument, "", argument]), format!("[{expected}][][{expected}]"));
}

#[test]
fn bytes_that_are_no_text_are_kept() {
    let Some(image) = image(&Manifest::default()) else { return };
    let argument = OsString::from(OsStr::from_bytes(b"\xff$FLOX_ENV_CACHE\xfe\n\n"));
    let output = image.run_with(Run::default(), &[OsStr::new("printf"), OsStr::new("%s"), &argument]);
    assert_eq!(output.stdout, b"\xff/tmp\xfe\n\n");
}

#[test]
fn a_shells_script_is_the_shells_own_to_expand() {
    let Some(image) = image(&with_vars(&[("foo", "a  b")])) else { return };
    let script = "for i in 1 2; do echo \"$i $1 $foo\"; done";
    assert_eq!(image.stdout(&["sh", "-c", script, "sh", "$foo"]), "1 a  b a  b\n2 a  b a  b\n");
    let script = "set -- 1; echo $1";
    assert_eq!(image.stdout(&["/bin/bash", "-e", "-o", "pipefail", "-c", script]), "1\n");
    assert_eq!(image.stdout(&["printf", "%s,%s", "-c", "$foo"]), "-c,a  b", "a program that is no shell");
}

#[test]
fn a_command_is_found_as_in_a_shell() {
    let manifest = Manifest { profile_bash: Some("both() { echo \"function $1\"; }".into()), ..Manifest::default() };
    let Some(image) = image(&manifest) else { return };
    assert_eq!(image.stdout(&["greet"]), "greetings\n");
    assert_eq!(image.stdout(&["$FLOX_ENV/bin/greet"]), "greetings\n");
    assert_eq!(image.stdout(&["both", "$FLOX_ENV_CACHE"]), "function /tmp\n");
    let missing = image.run_with(Run::default(), &["nothing", "here"]);
    assert_eq!(missing.status.code(), Some(127));
    assert_eq!(text(&missing.stderr), "✘ ERROR: 'nothing' is not a command in the environment 'demo'\n");
    assert_eq!(image.run_with(Run::default(), &[""]).status.code(), Some(127));
    assert_eq!(image.run_with(Run::default(), &["/tmp"]).status.code(), Some(126));
    assert_eq!(image.run_with(Run::default(), &["sh", "-c", "exit 42"]).status.code(), Some(42));
}

#[test]
fn no_coreutils_are_needed() {
    let Some(image) = image_with(&with_hook("export X=1"), ActivateMode::Dev, false) else { return };
    let output = image.run_with(Run::default(), &["printf", "%s\\n", "$X $FLOX_ENV_DESCRIPTION"]);
    assert_eq!((succeeded(&output).as_str(), text(&output.stderr).as_str()), ("1 demo\n", ""));
}

#[test]
fn the_command_has_its_own_standard_input_whatever_ran_before() {
    let greedy = "while read -r line; do :; done; cat >/dev/null";
    let manifest = Manifest { profile_common: Some(greedy.into()), ..with_hook(greedy) };
    let Some(image) = image(&manifest) else { return };
    let mut child = spawn(image.command(Run::default(), &image.realised.entrypoint, &["cat"]));
    child.stdin.take().unwrap().write_all(b"one\ntwo").unwrap();
    assert_eq!(succeeded(&child.wait_with_output().unwrap()), "one\ntwo");
}

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Reads until `wanted` came, for at most 20 seconds.
fn read_until(from: &mut (impl Read + AsFd), wanted: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    let end = Instant::now() + Duration::from_secs(20);
    while !text(&seen).contains(wanted) {
        // Whoever says nothing more is not waited for any longer than whoever says something else.
        let left = end.saturating_duration_since(Instant::now());
        let ready = poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&left.try_into().unwrap())).unwrap();
        assert!(ready > 0, "no '{wanted}' in '{}'", text(&seen));
        match from.read(&mut byte) {
            Ok(1) => seen.push(byte[0]),
            other => panic!("no '{wanted}' in '{}': {other:?}", text(&seen)),
        }
    }
    text(&seen)
}

/// A session on a terminal of its own.
struct Pty {
    child: Child,
    terminal: fs::File,
}

impl Pty {
    fn start(inner: Command) -> Self {
        let pty = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        rustix::pty::grantpt(&pty).unwrap();
        rustix::pty::unlockpt(&pty).unwrap();
        let name = rustix::pty::ptsname(&pty, Vec::new()).unwrap();
        let open = || fs::OpenOptions::new().read(true).write(true).open(OsStr::from_bytes(name.to_bytes())).unwrap();
        let side = open();
        let mut outer = Command::new("/usr/bin/setsid");
        outer.args(["--ctty", "--wait"]).arg(inner.get_program()).args(inner.get_args()).env_clear().process_group(0);
        outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child =
            outer.stdin(side.try_clone().unwrap()).stdout(side.try_clone().unwrap()).stderr(side).spawn().unwrap();
        Self { child, terminal: fs::File::from(pty) }
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn the_command_is_the_same_process_and_gets_its_signals() {
    let Some(image) = image(&with_hook("true")) else { return };
    let script = "trap 'echo got it; exit 7' TERM; echo ready $$; while :; do sleep 0.05; done";
    let mut child = spawn(image.command(Run::default(), &image.realised.entrypoint, &["sh", "-c", script]));
    let ready = read_until(child.stdout.as_mut().unwrap(), "\n");
    assert_eq!(ready, format!("ready {}\n", child.id()));
    signal(&child, rustix::process::Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(7), "got it\n".to_owned()));
}

#[test]
fn the_command_is_process_1_of_a_container() {
    let Some(image) = image(&with_hook("true")) else { return };
    let inner = image.command(Run::default(), &image.realised.entrypoint, &["sh", "-c", "echo $$"]);
    let mut outer = Command::new("/usr/bin/unshare");
    outer.args(["--pid", "--fork"]).arg(inner.get_program()).args(inner.get_args()).env_clear();
    outer.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert_eq!(succeeded(&outer.output().unwrap()), "1\n");
}

#[test]
fn a_signal_ends_a_hook_that_takes_its_time() {
    let Some(image) = image(&with_hook("echo waiting; while :; do sleep 0.05; done")) else { return };
    let mut child = spawn(image.command(Run::default(), &image.realised.entrypoint, &["greet"]));
    read_until(child.stderr.as_mut().unwrap(), "waiting\n");
    signal(&child, rustix::process::Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(143), String::new(), String::new())
    );
}

#[rstest]
#[case::exit("exit 0", 1, "calls 'exit', which would end the activation\nhint: use 'return' instead\n")]
#[case::exit_in_a_function(
    "f() { exit; }; f",
    1,
    "calls 'exit', which would end the activation\nhint: use 'return' instead\n"
)]
#[case::exec(
    "exec sh -c 'echo no'",
    1,
    "calls 'exec', which would end the activation\nhint: leave 'exec' out, and use 'return' to end the hook early\n"
)]
#[case::builtin_exit(
    "builtin exit 0",
    1,
    "ended the shell (status 1)\nhint: a command failed under 'set -e', or a variable is missing; use 'return' to end the hook early\n"
)]
#[case::set_e(
    "set -e; sh -c 'exit 3'; true",
    3,
    "ended the shell (status 3)\nhint: a command failed under 'set -e', or a variable is missing; use 'return' to end the hook early\n"
)]
#[case::returned("return 4", 4, "failed (status 4)\nhint: a hook that has nothing to do ends with 'return 0'\n")]
fn a_hook_that_ends_the_activation_or_fails_is_an_error(
    #[case] hook: &str,
    #[case] status: i32,
    #[case] message: &str,
) {
    let Some(image) = image(&with_hook(hook)) else { return };
    let output = image.run_with(Run::default(), &["greet"]);
    assert_eq!(text(&output.stderr), format!("✘ ERROR: 'hook.on-activate' {message}"));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(status), String::new()));
}

#[test]
fn a_hook_with_a_syntax_error_is_an_error() {
    let Some(image) = image(&with_hook("if then")) else { return };
    let output = image.run_with(Run::default(), &["greet"]);
    assert!(text(&output.stderr).contains("syntax error"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("✘ ERROR: 'hook.on-activate' failed"), "{}", text(&output.stderr));
    assert!(!output.status.success() && output.stdout.is_empty());
}

#[rstest]
#[case::a_last_command_that_fails("[ -e /nowhere ] && echo found")]
#[case::an_early_return("return\nexit 1")]
#[case::an_exit_in_a_subshell("(exit 3); x=$(exit 4); (exec sh -c 'exit 5') | exec cat; sh -c 'exit 6'; true")]
#[case::options_left_on("set -euf -o pipefail -o posix; set -C; IFS=/; trap 'echo no' EXIT")]
#[case::positional_parameters("set -- a b; shift; unset PWD")]
#[case::a_backslash_at_the_end("true \\")]
#[case::a_here_document("cat <<END >/dev/null\n  text\nEND")]
fn a_hook_may_do_what_ends_nothing(#[case] hook: &str) {
    let Some(image) = image(&with_hook(hook)) else { return };
    let output = image.run_with(Run::default(), &["printf", "%s|", "a b", "*", "$FLOX_ENV_CACHE", "$nothing"]);
    assert_eq!((succeeded(&output).as_str(), text(&output.stderr).as_str()), ("a b|*|/tmp||", ""));
}

#[test]
fn the_variables_are_floxs() {
    let Some(image) = image(&Manifest::default()) else { return };
    let shown = shown(&image, Run { without_env: true, env: &[("PATH", "/bin")], ..Run::default() });
    insta::assert_snapshot!(shown, @r"
    ACLOCAL_PATH=/E/share/aclocal
    CPATH=/E/include
    FLOX_ENV=/E
    FLOX_ENV_CACHE=/tmp
    FLOX_ENV_DESCRIPTION=demo
    FLOX_ENV_DIRS=/E
    FLOX_PROMPT_ENVIRONMENTS=floxenv
    GREETER_PROFILE=/E
    INFOPATH=/E/share/info:
    LIBRARY_PATH=/E/lib
    MANPATH=/E/share/man:
    PATH=/E/bin:/E/sbin:/bin
    PKG_CONFIG_PATH=/E/lib/pkgconfig:/E/share/pkgconfig
    XDG_DATA_DIRS=/E/share
    ");
}

/// The variables of an activation, one a line, with the environment at `/E`.
fn shown(image: &Image, run: Run<'_>) -> String {
    let env = image.realised.generated[0].to_string();
    let own = ["HOME", "PWD", "OLDPWD", "SHLVL", "_"];
    let variables = image.variables(run).into_iter().filter(|(name, _)| !own.contains(&name.as_str()));
    variables.map(|(name, value)| format!("{name}={}\n", value.replace(&env, "/E"))).collect()
}

#[test]
fn an_environment_with_everything_has_floxs_variables_for_it() {
    let vars = &[("SECOND", "$FIRST 2"), ("FIRST", "${PROFILE_D_SAW:+1}"), ("PATH", "/opt/bin:$PATH")];
    let manifest = Manifest { on_activate: Some("export HOOK=\"$SECOND 3\"".into()), ..with_vars(vars) };
    let Some(image) = image_of_everything(&manifest, ActivateMode::Dev) else { return };
    let (_, locales) = image.realised.env.iter().find(|(name, _)| name == "LOCALE_ARCHIVE").unwrap();
    let fresh = Run { without_env: true, env: &[("PATH", "/bin"), ("PYTHONPATH", "/mine")], ..Run::default() };
    insta::assert_snapshot!(shown(&image, fresh).replace(locales, "/L"), @r"
    ACLOCAL_PATH=/E/share/aclocal
    CMAKE_PREFIX_PATH=/E
    CPATH=/E/include
    FIRST=1
    FLOX_ENV=/E
    FLOX_ENV_CACHE=/tmp
    FLOX_ENV_DESCRIPTION=demo
    FLOX_ENV_DIRS=/E
    FLOX_PROMPT_ENVIRONMENTS=floxenv
    GREETER_PROFILE=/E
    HOOK=1 2 3
    INFOPATH=/E/share/info:
    JAVA_HOME=/E
    JUPYTER_PATH=/E/share/jupyter
    LIBRARY_PATH=/E/lib
    LOCALE_ARCHIVE=/L
    MANPATH=/E/share/man:
    NIX_SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt
    PATH=/opt/bin:/E/bin:/E/sbin:/bin
    PKG_CONFIG_PATH=/E/lib/pkgconfig:/E/share/pkgconfig
    PROFILE_D_SAW=/E
    PYTHONPATH=/mine:/E/lib/python3.12/site-packages
    RUST_SRC_PATH=/E
    SECOND=1 2
    SSL_CERT_FILE=/etc/ssl/certs/ca-bundle.crt
    XDG_DATA_DIRS=/E/share
    ");
    // What the image's Env has already, the activation does not change.
    let again: Vec<_> = shown(&image, Run::default()).lines().map(str::to_owned).collect();
    for (name, value) in &image.realised.env {
        let line = format!("{name}={}", value.replace(&image.realised.generated[0].to_string(), "/E"));
        assert!(again.contains(&line), "{line} is not in {again:#?}");
    }
    // Whoever runs it may bring certificates and locales of their own.
    let own = [("SSL_CERT_FILE", "/mine.crt"), ("LOCALE_ARCHIVE", "/mine")];
    let variables = image.variables(Run { without_env: true, env: &own, ..Run::default() });
    assert_eq!(
        ["SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "LOCALE_ARCHIVE"].map(|name| variables[name].as_str()),
        ["/mine.crt", "/mine.crt", "/mine"]
    );
    let Some(image) = image_of_everything(&Manifest::default(), ActivateMode::Run) else { return };
    let variables = image.variables(Run::default());
    for name in ["JAVA_HOME", "PYTHONPATH", "CMAKE_PREFIX_PATH", "JUPYTER_PATH", "RUST_SRC_PATH", "PROFILE_D_SAW"] {
        assert!(!variables.contains_key(name), "{name}");
    }
    assert!(variables.contains_key("SSL_CERT_FILE") && variables.contains_key("LOCALE_ARCHIVE"));
}

#[test]
fn run_mode_leaves_out_profile_d_and_what_compilers_read() {
    let Some(image) = image_with(&Manifest::default(), ActivateMode::Run, true) else { return };
    let variables = image.variables(Run::default());
    for name in ["GREETER_PROFILE", "CPATH", "LIBRARY_PATH", "PKG_CONFIG_PATH", "ACLOCAL_PATH"] {
        assert!(!variables.contains_key(name), "{name}");
    }
    assert!(variables.contains_key("XDG_DATA_DIRS"));
}

#[test]
fn an_activation_on_top_of_the_images_env_changes_nothing_twice() {
    let manifest = with_vars(&[("PATH", "$FLOX_ENV/more:$PATH"), ("CPATH", "/c:$CPATH"), ("STATIC", "it's $FLOX_ENV")]);
    let Some(image) = image(&manifest) else { return };
    let expected: BTreeMap<_, _> = image.realised.env.iter().cloned().collect();
    let once = image.variables(Run::default());
    for (name, value) in &expected {
        assert_eq!(once.get(name), Some(value), "{name}");
    }
    let entry = image.realised.entrypoint[0].as_str();
    let twice = succeeded(&image.run_with(Run::default(), &[entry, entry, "env"]));
    for (name, value) in &expected {
        assert!(twice.lines().any(|line| line == format!("{name}={value}")), "{name} in {twice}");
    }
    let own = image.variables(Run { env: &[("PATH", "/mine:/bin")], ..Run::default() });
    let env = &expected["FLOX_ENV"];
    assert_eq!(own["PATH"], format!("{env}/more:{env}/bin:{env}/sbin:/mine:/bin"));
}

#[test]
fn what_is_not_activated_has_the_images_env() {
    let Some(image) = image(&with_vars(&[("PORT", "80")])) else { return };
    let program = ["/bin/sh", "-c", "greet; echo $PORT $FLOX_ENV_DESCRIPTION"].map(str::to_owned);
    let output = image.command(Run::default(), &program, &[] as &[&str]).output().unwrap();
    assert_eq!(succeeded(&output), "greetings\n80 demo\n");
}

#[test]
fn any_user_on_a_read_only_root_is_enough() {
    let manifest = Manifest { profile_common: Some("true".into()), ..with_hook("export X=$UID; : >/tmp/mark") };
    let Some(image) = image(&manifest) else { return };
    let run = Run { user: Some(4242), read_only: true, ..Run::default() };
    let script = "id -u; touch /run/x /etc/x 2>/dev/null || echo read-only; ls /tmp; echo $X";
    assert_eq!(succeeded(&image.run_with(run, &["sh", "-c", script])), "4242\nread-only\nmark\n4242\n");
    let run = Run { user: Some(4242), ..Run::default() };
    let script = "touch /run/x /run/flox/x /tmp/x && echo writable; touch /x 2>/dev/null || echo not the root";
    assert_eq!(succeeded(&image.run_with(run, &["sh", "-c", script])), "writable\nnot the root\n");
}

#[test]
fn without_a_command_or_a_terminal_commands_are_read_from_standard_input() {
    let manifest = Manifest { profile_bash: Some("f() { echo \"f $1\"; }".into()), ..with_hook("export X=1; cat") };
    let Some(image) = image(&manifest) else { return };
    let mut child = spawn(image.command(Run::default(), &image.realised.entrypoint, &[] as &[&str]));
    let script = b"f $X\ncat <<END\n$BASH_ENV$$\nEND\nread -r line\nfor the line\necho \"$line\"; exit 5\n";
    child.stdin.take().unwrap().write_all(script).unwrap();
    let id = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), format!("f 1\n{id}\nfor the line\n"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn on_a_terminal_there_is_a_shell_with_a_prompt_and_the_profile() {
    let manifest = Manifest {
        profile_common: Some("echo \"profile of $HOOKED\"".into()),
        profile_bash: Some("alias hi='greet'".into()),
        ..with_hook("export HOOKED=hook; [[ -t 0 ]] && echo \"hook on a terminal\"")
    };
    let Some(image) = image(&manifest) else { return };
    let run = Run { user: Some(4242), read_only: true, env: &[("TERM", "dumb")], ..Run::default() };
    let inner = image.command(run, &image.realised.entrypoint, &[] as &[&str]);
    let Pty { mut child, mut terminal } = Pty::start(inner);
    let start = read_until(&mut terminal, "flox [floxenv] ");
    assert!(start.contains("hook on a terminal") && start.contains("profile of hook"), "{start}");
    read_until(&mut terminal, "$ ");
    terminal.write_all(b"hi; echo $((40 + 2))$HISTFILE.\n").unwrap();
    let answer = read_until(&mut terminal, "42.");
    assert!(answer.contains("greetings"), "{answer}");
    terminal.write_all(b"exit 9\n").unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < end, "the shell does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(9));
}
