//! `--proxy`: the image made by this tool in a container, out of a volume's store, with real Docker and real Podman.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rstest::rstest;

use crate::archive::Archive;
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::{LoadedImage, Peer, docker, find_program, peer, podman, skip, unique_name};
use crate::sandbox::Sandbox;

/// A runtime with an image to proxy with, and a volume that the image fills when it is first used.
struct Bench {
    sandbox: Sandbox,
    store: BareStore,
    runtime: Peer,
    image: LoadedImage,
    volume: String,
    bash: String,
    greeting: String,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for container in self.containers() {
            let _ = self.runtime.command(["rm", "--force", &container]).output();
        }
        let _ = self.runtime.command(["volume", "rm", "--force", &self.volume]).output();
    }
}

impl Bench {
    /// The image holds this tool; or, instead of it, a script of that name.
    fn new(runtime: Option<Peer>, script: Option<&str>) -> Option<Self> {
        let place = "proxy";
        let Some(runtime) = runtime else {
            skip("docker and podman", place);
            return None;
        };
        let sandbox = Sandbox::new();
        let store = BareStore::new(sandbox.path("root"));
        let (Some(bash), Some(tools)) = (store.add_bash(), store.add_tools()) else {
            skip("bash-static and busybox-static", place);
            return None;
        };
        let program = match script {
            Some(script) => Tree::new().program("bin/layerhold", format!("#!{bash}/bin/bash\n{script}")),
            None => own_program(&sandbox),
        };
        let program = store.add("layerhold-0", &program);
        let greeting = store.add("greeting-1", &Tree::new().file("share/greeting", "hello from the volume\n"));
        // Its containers have no network here; nothing is asked of one.
        let real = find_program(runtime.program).unwrap();
        sandbox.script(
            runtime.program,
            &format!(
                "case $1 in\nrun) shift; exec {0} run --network none \"$@\" ;;\n*) exec {0} \"$@\" ;;\nesac\n",
                real.display()
            ),
        );
        let name = unique_name("proxy");
        let installs = [("bash", &*bash), ("tools", &*tools), ("layerhold", &*program), ("greeting", &*greeting)];
        let environment = FloxEnv::of_store_paths(sandbox.path("proxy"), &name, &installs, "");
        let mut command = sandbox.cmd();
        command.args(["containerize", "--runtime", runtime.program, "--store"]).arg(store.root());
        command.arg("-d").arg(environment.dir()).assert().success();
        let image = LoadedImage::new(runtime, format!("{name}:latest"));
        Some(Self { sandbox, store, runtime, image, volume: unique_name("volume"), bash, greeting })
    }

    fn environment(&self, name: &str, greeting: &str) -> FloxEnv {
        let installs = [("bash", &*self.bash), ("greeting", greeting)];
        FloxEnv::of_store_paths(self.sandbox.path("a project, \"quoted\""), name, &installs, "[vars]\nA = \"b\"\n")
    }

    fn arguments(&self, environment: &FloxEnv) -> Vec<String> {
        let dir = environment.dir().display().to_string();
        let fixed = ["containerize", "--proxy", "--runtime", self.runtime.program, "-d", &dir];
        let named = ["--proxy-image", &self.image.reference, "--proxy-volume", &self.volume];
        fixed.into_iter().chain(named).map(str::to_owned).collect()
    }

    fn proxied(&self, environment: &FloxEnv) -> assert_cmd::Command {
        let mut command = self.sandbox.cmd();
        command.args(self.arguments(environment));
        command
    }

    /// The containers that use the volume, running or not.
    fn containers(&self) -> Vec<String> {
        let volume = format!("volume={}", self.volume);
        let listed = self.runtime.run(["ps", "--all", "--quiet", "--filter", &volume]);
        listed.lines().map(str::to_owned).collect()
    }

    fn wait_for_containers(&self, count: usize) {
        let patience = Instant::now();
        while self.containers().len() != count {
            assert!(
                patience.elapsed() < Duration::from_secs(60),
                "{} containers, not {count}",
                self.containers().len()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// This tool with its libraries, where its dynamic linker looks for them once they are at the root of an image.
fn own_program(sandbox: &Sandbox) -> Tree {
    let copy = sandbox.path("layerhold");
    fs::copy(env!("CARGO_BIN_EXE_layerhold"), &copy).unwrap();
    // As it is with debug information it takes a while to load.
    let _ = Command::new("strip").arg(&copy).status();
    let listing = Command::new("ldd").arg(&copy).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let files = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    files.fold(Tree::new().program("bin/layerhold", fs::read(&copy).unwrap()), |tree, file| {
        let place = match file.contains("/ld-linux") {
            true => PathBuf::from(file.trim_start_matches('/')),
            false => Path::new("lib").join(Path::new(file).file_name().unwrap()),
        };
        tree.program(place.to_str().unwrap(), fs::read(file).unwrap())
    })
}

fn runtime(name: &str) -> Option<Peer> {
    if name == "docker" { docker() } else { podman() }
}

/// A `podman` whose containers are no containers: processes that have nothing of this run but the variables and the
/// arguments that they are given, and this store for the volume's.
pub(crate) fn stand_in(sandbox: &Sandbox, store: &Path) {
    let container = format!(
        r#"[ "$1" = run ] || exit 0
echo "$@" > '{arguments}'
shift
variables=()
while [ "$1" != image ]; do
    if [ "$1" = --env ] && [[ $2 != *=* ]]; then variables+=("$2=${{!2}}"); fi
    shift
done
exec /usr/bin/env -i HOME=/nowhere NIX_CONF_DIR=/nowhere LAYERHOLD_CACHE='{cache}' PATH="$PATH" "${{variables[@]}}"     {tool} "${{@:2}}" --store '{store}'
"#,
        arguments = sandbox.path("container-arguments").display(),
        cache = sandbox.path("volume-cache").display(),
        tool = env!("CARGO_BIN_EXE_layerhold"),
        store = store.display(),
    );
    let script = sandbox.path("bin/container.bash");
    fs::write(&script, container).unwrap();
    sandbox.script("podman", &format!("exec /bin/bash {} \"$@\"\n", script.display()));
}

/// The options of a run with it.
pub(crate) const STAND_IN: [&str; 5] = ["--proxy", "--runtime", "podman", "--proxy-image", "image"];

#[rstest]
fn the_same_image_comes_out_of_the_container(#[values("docker", "podman")] name: &str) {
    let Some(bench) = Bench::new(runtime(name), None) else { return };
    let project = unique_name("proxied");
    let environment = bench.environment(&project, &bench.greeting);
    let options = ["--tag", "v1", "--label", "a=b", "--max-layers", "5", "--mode", "run"];
    let (here, there) = (bench.sandbox.path("here.tar"), bench.sandbox.path("there.tar"));
    let mut local = bench.sandbox.cmd();
    local.args(["containerize", "--store"]).arg(bench.store.root()).arg("-d").arg(environment.dir());
    local.args(options).arg("-f").arg(&here).assert().success();

    let outcome = bench.proxied(&environment).args(options).arg("-f").arg(&there).assert().success();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert_eq!(said.matches("⚡︎").count(), 1, "{said}");
    assert!(said.contains(&format!("⚡︎ '{project}:v1' written to file '{}'", there.display())), "{said}");
    assert!(fs::read(&here).unwrap() == fs::read(&there).unwrap(), "the same bytes");

    let outcome = bench.proxied(&environment).args(options).args(["-f", "-"]).assert().success();
    assert!(outcome.get_output().stdout == fs::read(&here).unwrap(), "the same bytes");

    let mut loud = bench.sandbox.cmd();
    loud.arg("-v").args(bench.arguments(&environment)).args(options);
    let outcome = loud.assert().success();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains("3 reused"), "the layer store is in the volume: {said}");
    let image = LoadedImage::new(bench.runtime, format!("{project}:v1"));
    assert_eq!(image.run(&[], &["bash", "-c", "echo $(<$FLOX_ENV/share/greeting)"]), "hello from the volume\n");
    bench.wait_for_containers(0);
}

#[rstest]
fn a_failure_in_the_container_is_said_once_and_leaves_nothing(#[values("docker", "podman")] name: &str) {
    let Some(bench) = Bench::new(runtime(name), None) else { return };
    let gone = bench.greeting.replace("greeting-1", "gone-1");
    let environment = bench.environment("project", &gone);
    let out = bench.sandbox.path("work/image.tar");
    let outcome = bench.proxied(&environment).args(["--offline", "-f"]).arg(&out).assert().code(1);
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert_eq!(said.matches("ERROR").count(), 1, "{said}");
    assert!(said.contains(&format!("✘ ERROR: '{gone}' is not in the Nix store")), "{said}");
    assert_eq!(fs::read_dir(bench.sandbox.path("work")).unwrap().count(), 0);
    bench.wait_for_containers(0);
}

#[rstest]
#[case("docker", "exit 137", 1, "was killed by signal 9", "more")]
#[case("podman", "exit 130", 130, "", "")]
#[case("docker", "echo no archive", 1, "is not an image", "--proxy-image")]
#[case("podman", "exit 0", 1, "is not an image", "--proxy-image")]
fn what_the_container_ends_with_is_understood(
    #[case] name: &str,
    #[case] script: &str,
    #[case] code: i32,
    #[case] message: &str,
    #[case] hint: &str,
) {
    let Some(bench) = Bench::new(runtime(name), Some(script)) else { return };
    let environment = bench.environment("project", &bench.greeting);
    let outcome = bench.proxied(&environment).args(["-f", "image.tar"]).assert().code(code);
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains(message) && said.contains(hint), "{said}");
    assert_eq!(fs::read_dir(bench.sandbox.path("work")).unwrap().count(), 0);
}

#[rstest]
fn an_image_without_the_tool_is_named(#[values("docker", "podman")] name: &str) {
    let Some(mut bench) = Bench::new(runtime(name), None) else { return };
    let environment = bench.environment("project", &bench.greeting);
    let plain = unique_name("plain");
    let bare = FloxEnv::of_store_paths(bench.sandbox.path("bare"), &plain, &[("bash", &*bench.bash)], "");
    let mut command = bench.sandbox.cmd();
    command.args(["containerize", "--runtime", name, "--store"]).arg(bench.store.root());
    command.arg("-d").arg(bare.dir()).assert().success();
    bench.image = LoadedImage::new(bench.runtime, format!("{plain}:latest"));
    let outcome = bench.proxied(&environment).args(["-f", "image.tar"]).assert().code(1);
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains(&format!("the image '{plain}:latest' has no layerhold that runs")), "{said}");
    assert!(said.contains("--proxy-image IMAGE"), "{said}");
    bench.wait_for_containers(0);
}

#[rstest]
fn a_binary_cache_in_a_directory_is_there_in_the_container(#[values("docker", "podman")] name: &str) {
    let nix = peer!(nix);
    let Some(bench) = Bench::new(runtime(name), None) else { return };
    let (cache, plain) = (bench.sandbox.path("binary-cache"), nix.out("plain"));
    let to = format!("file://{}", cache.display());
    let mut copy = nix.nix("nix");
    copy.args(["--extra-experimental-features", "nix-command", "copy", "--no-check-sigs", "--to", &to, plain]);
    let copied = copy.output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let environment = bench.environment("project", plain);
    let mut command = bench.proxied(&environment);
    command.env("NIX_CONFIG", "require-sigs = false").args(["--substituter", &to, "-f", "image.tar"]);
    command.assert().success();
    let archive = Archive::open(&bench.sandbox.path("work/image.tar"));
    assert!(archive.store_paths().contains(plain));
}

/// The container ends by itself when its input does; or does not listen to anything.
#[rstest]
fn a_run_that_is_ended_leaves_no_container(
    #[values("docker", "podman")] name: &str,
    #[values(("KILL", "cat"), ("INT", "trap '' INT TERM; while :; do sleep 1; done"))] case: (&str, &str),
) {
    let (signal, script) = case;
    let Some(bench) = Bench::new(runtime(name), Some(script)) else { return };
    let environment = bench.environment("project", &bench.greeting);
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(bench.sandbox.environment()).current_dir(bench.sandbox.path("work"));
    command.args(bench.arguments(&environment)).args(["-f", "image.tar"]).stdin(Stdio::null()).stderr(Stdio::null());
    // A group of its own: the signal is for the one process.
    let mut outer = command.process_group(0).spawn().unwrap();
    bench.wait_for_containers(1);
    let sent = Command::new("kill").args([format!("-{signal}"), outer.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let status = outer.wait().unwrap();
    assert_eq!(status.code(), (signal == "INT").then_some(130));
    bench.wait_for_containers(0);
    assert_eq!(fs::read_dir(bench.sandbox.path("work")).unwrap().count(), 0);
}

#[test]
fn a_run_in_a_container_ends_with_its_input() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    // Long enough to compress for the end of the input to be seen meanwhile.
    let text: Vec<u8> =
        (0..4_000_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let large = store.add("large-1", &Tree::new().file("share/large", text));
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "project", &[("large", &large)], "");
    let mut command = sandbox.cmd();
    command.args(["containerize", "--in-proxy", "--compression", "zstd:19", "-f", "image.tar", "--store"]);
    command.arg(store.root()).arg("-d").arg(environment.dir()).write_stdin("").assert().code(130);
    assert_eq!(fs::read_dir(sandbox.path("work")).unwrap().count(), 0);
}

#[test]
fn what_a_container_cannot_give_is_refused_with_it() {
    let sandbox = Sandbox::new();
    for option in ["--json", "--dry-run", "--layout=images", "--store=root"] {
        let outcome = sandbox.cmd().args(["containerize", "--proxy", option]).assert().code(2);
        let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
        assert!(said.contains("'--proxy' cannot be used with"), "{said}");
    }
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "project", &[], "");
    let outcome = sandbox.cmd().args(["containerize", "--proxy", "-d"]).arg(environment.dir()).assert().code(1);
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(said.contains("needs Docker or Podman, and neither is on PATH"), "{said}");
}
