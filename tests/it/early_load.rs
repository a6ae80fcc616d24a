//! `podman load`, begun while a changed layer is packed.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::flox_fixture::{FloxEnv, Tree};
use crate::share::Project;

/// A project whose `podman` has no images, and says what it is asked. It takes no image; it answers whether there is one of
/// a name once a file `go` is there, which a load makes too.
struct Place {
    project: Project,
    changed: FloxEnv,
}

impl Place {
    fn new() -> Self {
        let project = Project::new();
        // The links in the image's root stay the same.
        let program = |name: &str, byte| project.store.add(name, &Tree::new().program(format!("bin/{name}"), [byte]));
        let (one, two) = (program("one", 8), program("two", 9));
        let installs = [("one", one.as_str()), ("two", two.as_str())];
        let changed = FloxEnv::of_store_paths(project.sandbox.path("changed"), "pair", &installs, "");
        let dir = project.sandbox.path("work").display().to_string();
        let podman = [
            &format!("cd '{dir}'; echo \"$1 $2\" >>calls"),
            "case \"$1 $2\" in",
            "'image inspect') until [ -e go ]; do /bin/sleep 0.02; done; exit 1;;",
            "'load --quiet') echo >>go; /bin/cat >/dev/null; echo 'load ended' >>calls; exit 1;;",
            "esac",
        ];
        project.sandbox.script("podman", &podman.join("\n"));
        Self { project, changed }
    }

    /// A machine knows the layers of the project's image.
    fn teach(&self, machine: &str) {
        let mut command = self.project.machine(machine).command(&self.project.environment);
        command.args(["-f", "image.tar"]).assert().success();
    }

    /// Runs on a machine, until the runtime refuses the image or to a good end: what the runtime was asked.
    fn calls(&self, machine: &str, environment: &FloxEnv, args: &[&str]) -> Vec<String> {
        let mut command = self.project.machine(machine).command(environment);
        let _ = command.args(["--runtime", "podman"]).args(args).output().unwrap();
        self.take_calls()
    }

    fn take_calls(&self) -> Vec<String> {
        let file = self.project.sandbox.path("work/calls");
        let calls = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(file);
        calls.lines().map(str::to_owned).collect()
    }

    fn set_go(&self, is_there: bool) {
        let file = self.project.sandbox.path("work/go");
        if is_there { fs::write(file, "").unwrap() } else { fs::remove_file(file).unwrap() }
    }
}

#[test]
fn it_begins_early_where_some_layers_are_known_and_others_are_not() {
    let place = Place::new();
    let known = &place.project.environment;
    place.set_go(true);
    let late = ["image inspect", "image ls", "load --quiet", "load ended"];
    assert_eq!(place.calls("new", known, &[]), late, "nothing is known");
    place.teach("first");
    assert_eq!(place.calls("first", known, &[]), late, "all is known");
    assert_eq!(place.calls("first", &place.changed, &["--dry-run"]), late[..2]);

    place.teach("second");
    place.set_go(false);
    let mut calls = place.calls("second", &place.changed, &[]);
    // The question was answered because the load had begun.
    calls[..2].sort();
    assert_eq!(calls, ["image inspect", "load --quiet", "image ls", "load ended"]);
}

/// Its end is that of its input, whatever the terminal sends to all who run in it.
#[test]
fn an_interrupted_run_lets_it_end_by_itself() {
    let place = Place::new();
    place.teach("alone");
    let sandbox = &place.project.sandbox;
    // What asks for a name waits for ever.
    let podman = fs::read_to_string(sandbox.path("bin/podman")).unwrap();
    fs::write(sandbox.path("bin/podman"), podman.replace("echo >>go; ", "")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(sandbox.environment()).env("LAYERHOLD_CACHE", sandbox.path("machine-alone"));
    command.args(["containerize", "--runtime", "podman", "--store"]).arg(place.project.store.root());
    command.arg("-d").arg(place.changed.dir()).current_dir(sandbox.path("work")).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    let has_begun = || fs::read_to_string(sandbox.path("work/calls")).is_ok_and(|calls| calls.contains("load"));
    while !has_begun() {
        assert!(started.elapsed() < Duration::from_secs(60), "no load begins");
        thread::sleep(Duration::from_millis(10));
    }
    kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(place.take_calls().last().unwrap(), "load ended");
}
