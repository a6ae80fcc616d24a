//! bash, coreutils and certificates that belong to an environment's packages, by Flox's catalog: a stand-in that answers
//! as the real one does, and a binary cache that the real Nix made.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::archive::Archive;
use crate::cache_server::BinaryCache;
use crate::flox_fixture::{FloxEnv, LockedPackage, this_system};
use crate::nix_fixture::NixStore;
use crate::peers::peer;
use crate::sandbox::Sandbox;

const REVISION: &str = "d407951447dcd00442e97087bf374aad70c04cea";

/// Flox's catalog on 127.0.0.1: knows store paths by attribute; it ends with the test.
struct Catalog {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    paths: Vec<(String, String)>,
    status: Mutex<Option<u16>>,
    /// Each question's path, `Authorization` header and body.
    asked: Mutex<Vec<(String, Option<String>, Value)>>,
}

impl Catalog {
    fn start(paths: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let paths = paths.iter().map(|(attribute, path)| ((*attribute).to_owned(), (*path).to_owned())).collect();
        let state = Arc::new(State { paths, ..State::default() });
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                served.serve(stream);
            }
        });
        Self { port, state }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn asked(&self) -> Vec<(String, Option<String>, Value)> {
        std::mem::take(&mut *self.state.asked.lock().unwrap())
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut line, mut length, mut login) = (String::new(), 0, None);
        reader.read_line(&mut line).unwrap();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            match header.trim().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().unwrap(),
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => login = Some(value.to_owned()),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let question: Value = serde_json::from_slice(&body).unwrap();
        let items: Vec<_> = question["items"].as_array().unwrap().iter().map(|group| self.resolve(group)).collect();
        self.asked.lock().unwrap().push((line.trim().to_owned(), login, question));
        let (status, answer) = match *self.status.lock().unwrap() {
            Some(status) => (status, json!({ "detail": "no" }).to_string()),
            None => (200, json!({ "items": items }).to_string()),
        };
        let length = answer.len();
        let _ = write!(stream, "HTTP/1.1 {status} So\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}");
    }

    /// A page with all packages of the group, or none.
    fn resolve(&self, group: &Value) -> Value {
        let descriptors = group["descriptors"].as_array().unwrap();
        let attribute = descriptors.last().unwrap()["attr_path"].as_str().unwrap();
        let path = self.paths.iter().find(|(known, _)| known == attribute).map(|(_, path)| path);
        let package = |descriptor: &Value| {
            json!({
                "install_id": descriptor["install_id"], "attr_path": descriptor["attr_path"], "rev": REVISION,
                "system": descriptor["systems"][0], "outputs": [{ "name": "out", "store_path": path }],
            })
        };
        let packages = || descriptors.iter().map(package).collect::<Vec<_>>();
        let page =
            path.map(|_| json!({ "page": 1, "url": "", "complete": true, "messages": [], "packages": packages() }));
        json!({ "name": group["name"], "page": page, "messages": [] })
    }
}

/// An environment of nothing but hello, and a binary cache that has bash and coreutils too.
struct Project {
    sandbox: Sandbox,
    environment: FloxEnv,
    cache: BinaryCache,
    bash: String,
    coreutils: String,
}

impl Project {
    fn new(nix: &'static NixStore) -> Self {
        let sandbox = Sandbox::new();
        let environment = FloxEnv::new(
            sandbox.path("project"),
            "hello",
            "version = 1\n\n[install]\nhello.pkg-path = \"hello\"\n\n[hook]\non-activate = \"export GREETING=hi\"\n",
        );
        environment.lock(&[LockedPackage::new("hello", nix.out("hello"))]);
        let lockfile = environment.dot_flox("env/manifest.lock");
        let mut locked: Value = serde_json::from_slice(&fs::read(&lockfile).unwrap()).unwrap();
        let package = &mut locked["packages"][0];
        package["rev"] = json!(REVISION);
        package["locked_url"] = json!(format!("https://github.com/flox/nixpkgs?rev={REVISION}"));
        package["derivation"] = json!("/nix/store/gsnnaglyb9vpvqcgw3i4czy3n892smms-hello-2.12.3.drv");
        fs::write(lockfile, locked.to_string()).unwrap();
        let installs = ["bash", "coreutils", "hello"].map(|package| nix.out(package));
        let cache = BinaryCache::make(nix, sandbox.path("binary-cache"), "none", &installs);
        fs::create_dir_all(sandbox.path("empty/nix/store")).unwrap();
        let [bash, coreutils, _] = installs.map(str::to_owned);
        Self { sandbox, environment, cache, bash, coreutils }
    }

    fn command(&self, catalog: &Catalog) -> assert_cmd::Command {
        let mut command = self.sandbox.cmd();
        command.arg("-v").arg("containerize").arg("--store").arg(self.sandbox.path("empty"));
        command.arg("-d").arg(self.environment.dir()).arg("-f").arg(self.sandbox.path("image.tar"));
        command.arg("--substituter").arg(format!("file://{}", self.cache.directory.display()));
        command.args(["--trusted-public-key", &self.cache.key]).env("FLOX_CATALOG_URL", catalog.url());
        command
    }

    fn said(&self, outcome: &assert_cmd::assert::Assert) -> String {
        self.sandbox.tidy(&String::from_utf8(outcome.get_output().stderr.clone()).unwrap())
    }
}

#[test]
fn bash_and_coreutils_come_from_the_lockfiles_own_nixpkgs() {
    let nix = peer!(nix);
    let project = Project::new(nix);
    let catalog = Catalog::start(&[("bash", &project.bash), ("coreutils", &project.coreutils)]);
    let outcome = project.command(&catalog).env("FLOX_FLOXHUB_TOKEN", "t0ken").assert().success();
    let said = project.said(&outcome);
    for line in ["bash beside the environment's packages: '/nix/store/[HASH]", "has no certificates beside"] {
        assert!(said.contains(line), "{said}");
    }
    assert!(!said.contains("t0ken"), "{said}");
    let image = Archive::open(&project.sandbox.path("image.tar"));
    for path in [&project.bash, &project.coreutils] {
        assert!(image.store_paths().contains(path), "{path} is not in the image");
    }
    let asked = catalog.asked();
    let [(line, login, question)] = asked.as_slice() else { panic!("asked once: {asked:#?}") };
    assert_eq!(line, "POST /api/v1/catalog/resolve HTTP/1.1");
    assert_eq!(login.as_deref(), Some("Bearer t0ken"));
    let descriptors = &question["items"][0]["descriptors"];
    assert_eq!(descriptors[0]["systems"], json!([this_system()]));
    assert_eq!(descriptors[0]["derivation"], "/nix/store/gsnnaglyb9vpvqcgw3i4czy3n892smms-hello-2.12.3.drv");

    // An answer is remembered, with or without a network.
    let first = fs::read(project.sandbox.path("image.tar")).unwrap();
    fs::remove_file(project.sandbox.path("image.tar")).unwrap();
    project.command(&catalog).arg("--offline").assert().success();
    assert!(fs::read(project.sandbox.path("image.tar")).unwrap() == first);
    assert!(catalog.asked().is_empty());
}

#[test]
fn a_catalog_that_does_not_help_leaves_the_error_of_an_environment_without_bash() {
    let nix = peer!(nix);
    let project = Project::new(nix);
    let catalog = Catalog::start(&[("bash", "/nix/store/gsnnaglyb9vpvqcgw3i4czy3n892smms-bash-5.3")]);
    let said = |outcome| project.said(&outcome);
    let text = said(project.command(&catalog).assert().failure());
    assert!(text.contains("bash would be '/nix/store/[HASH]-bash-5.3', which is nowhere to be had"), "{text}");
    assert!(text.contains("✘ ERROR: the environment has no bash, which hook.on-activate needs"), "{text}");

    project.sandbox.cmd().args(["cache", "clear"]).assert().success();
    *catalog.state.status.lock().unwrap() = Some(503);
    let text = said(project.command(&catalog).assert().failure());
    let warning = "the image goes without bash, coreutils, certificates: Flox's catalog was not asked: \
                   the server answered with status 503";
    assert!(text.contains(warning), "{text}");
    *catalog.state.status.lock().unwrap() = Some(200);
    let text = said(project.command(&catalog).assert().failure());
    assert!(text.contains("was not asked: its answer cannot be read: missing field `items`"), "{text}");
    catalog.asked();
    let text = said(project.command(&catalog).arg("--offline").assert().failure());
    assert!(text.contains("it is not asked with --offline, and has not been asked before"), "{text}");
    assert!(catalog.asked().is_empty());
}

#[test]
fn who_asks_no_binary_cache_asks_no_catalog() {
    let nix = peer!(nix);
    let project = Project::new(nix);
    let catalog = Catalog::start(&[("bash", &project.bash)]);
    let mut command = project.sandbox.cmd();
    command.arg("containerize").arg("--store").arg(nix.root()).arg("-d").arg(project.environment.dir());
    command.arg("-f").arg(project.sandbox.path("image.tar")).env("FLOX_CATALOG_URL", catalog.url());
    command.assert().failure();
    assert!(catalog.asked().is_empty());
}
