//! Images out of binary caches that the real Nix made, on machines that have no store.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rstest::rstest;
use serde_json::Value;

use crate::cache_server::{BinaryCache, CacheServer, Fault};
use crate::containerize::hello_environment;
use crate::flox_fixture::FloxEnv;
use crate::nix_fixture::NixStore;
use crate::peers::{find_program, peer};
use crate::ports::{self, ClosedPort};
use crate::proxy;
use crate::sandbox::Sandbox;

/// An environment of the real store, whose packages a binary cache has too.
pub(crate) struct Project {
    pub(crate) sandbox: Sandbox,
    pub(crate) nix: &'static NixStore,
    pub(crate) environment: FloxEnv,
    pub(crate) cache: BinaryCache,
}

impl Project {
    pub(crate) fn new(nix: &'static NixStore, compression: &str) -> Self {
        let sandbox = Sandbox::new();
        let environment = hello_environment(&sandbox, nix, "hello", "");
        let installs = ["bash", "coreutils", "hello"].map(|package| nix.out(package));
        let cache = BinaryCache::make(nix, sandbox.path("binary-cache"), compression, &installs);
        fs::create_dir_all(sandbox.path("empty/nix/store")).unwrap();
        Self { sandbox, nix, environment, cache }
    }

    /// A run with the local store.
    pub(crate) fn image_of_the_store(&self, args: &[&str]) -> Vec<u8> {
        let file = self.sandbox.path("from-store.tar");
        let mut command = self.sandbox.cmd();
        command.arg("containerize").arg("--store").arg(self.nix.root()).arg("-d").arg(self.environment.dir());
        command.env("LAYERHOLD_CACHE", self.sandbox.path("another-cache"));
        command.arg("-f").arg(&file).args(args).assert().success();
        fs::read(file).unwrap()
    }

    /// A run with an empty store and this cache.
    pub(crate) fn command(&self, url: &str) -> assert_cmd::Command {
        self.command_that(&[], url)
    }

    /// The same, with options before the command's name.
    fn command_that(&self, options: &[&str], url: &str) -> assert_cmd::Command {
        let mut command = self.sandbox.cmd();
        command
            .args(options)
            .arg("containerize")
            .arg("--store")
            .arg(self.sandbox.path("empty"))
            .arg("-d")
            .arg(self.environment.dir());
        command.args(["--substituter", url, "--trusted-public-key", &self.cache.key]);
        command.arg("-f").arg(self.file());
        command
    }

    pub(crate) fn file(&self) -> std::path::PathBuf {
        self.sandbox.path("image.tar")
    }

    /// A run that fails; says why, tidied, with the cache's address replaced.
    pub(crate) fn failure(&self, url: &str) -> String {
        let outcome = self.command(url).assert().failure();
        let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
        assert!(!self.file().exists());
        self.sandbox.tidy(&said).replace(url, "[CACHE]")
    }

    /// The layer store holds nothing that is damaged, and no layer with this path.
    fn assert_clean_of(&self, path: &str) {
        self.sandbox.cmd().args(["cache", "verify"]).assert().success();
        let listed = self.sandbox.cmd().args(["cache", "ls", "--layers", "--json"]).output().unwrap();
        let base = path.rsplit('/').next().unwrap();
        assert!(!String::from_utf8_lossy(&listed.stdout).contains(base), "{path} left a layer");
    }
}

#[rstest]
#[case::xz("xz", "none")]
#[case::zstd("zstd", "none")]
#[case::not_at_all("none", "gzip:6")]
#[case::gzip("gzip", "zstd:3")]
#[case::bzip2("bzip2", "none")]
#[case::brotli("br", "none")]
fn an_image_out_of_a_cache_is_byte_for_byte_the_one_out_of_the_store(#[case] nars: &str, #[case] layers: &str) {
    let nix = peer!(nix);
    let project = Project::new(nix, nars);
    let expected = project.image_of_the_store(&["--compression", layers]);
    let server = CacheServer::start(&project.cache.directory);
    for url in [format!("file://{}", project.cache.directory.display()), server.url()] {
        project.sandbox.cmd().args(["cache", "clear"]).assert().success();
        project.command(&url).args(["--compression", layers]).assert().success();
        assert!(fs::read(project.file()).unwrap() == expected, "{url}");
        fs::remove_file(project.file()).unwrap();
    }
    let asked = server.asked();
    let nars: Vec<_> = asked.iter().filter(|name| name.starts_with("nar/")).collect();
    let closure = nix.closure(&["bash", "coreutils", "hello"].map(|package| nix.out(package)));
    assert_eq!(nars.len(), closure.len(), "every NAR is fetched once: {asked:#?}");
}

/// A run on another machine that has nothing but this layer cache: what it asked the binary cache for, and what it said.
pub(crate) fn on_an_empty_machine(
    project: &Project,
    server: &CacheServer,
    machine: &str,
    args: &[&str],
) -> (Vec<String>, String) {
    let _ = (server.asked(), fs::remove_file(project.file()));
    let mut command = project.command_that(&["-v"], &server.url());
    command.env("LAYERHOLD_CACHE", project.sandbox.path(machine)).args(args);
    let outcome = command.assert().success();
    (server.asked(), String::from_utf8(outcome.get_output().stderr.clone()).unwrap())
}

pub(crate) fn nars(asked: &[String]) -> usize {
    asked.iter().filter(|name| name.starts_with("nar/")).count()
}

#[rstest]
#[case("zstd")]
#[case("gzip")]
fn layers_that_a_shared_cache_has_are_not_made_of_nars(#[case] compression: &str) {
    let nix = peer!(nix);
    let project = Project::new(nix, "xz");
    let compression = ["--compression", compression];
    let expected = project.image_of_the_store(&compression);
    let server = CacheServer::start(&project.cache.directory);
    let share = format!("file://{}", project.sandbox.path("share").display());

    let (asked, _) =
        on_an_empty_machine(&project, &server, "first", &[&compression[..], &["--cache-to", &share]].concat());
    assert!(nars(&asked) > 0, "{asked:#?}");
    assert!(fs::read(project.file()).unwrap() == expected);
    let (asked, said) =
        on_an_empty_machine(&project, &server, "second", &[&compression[..], &["--cache-from", &share]].concat());
    assert_eq!(nars(&asked), 0, "{asked:#?}");
    assert!(said.contains("fetched from a shared cache"), "{said}");
    assert!(fs::read(project.file()).unwrap() == expected);
    // What has come is here now.
    let (asked, _) = on_an_empty_machine(&project, &server, "second", &[&compression[..], &["--offline"]].concat());
    assert_eq!(asked, [""; 0]);
    assert!(fs::read(project.file()).unwrap() == expected);
}

#[test]
fn what_a_shared_cache_has_of_a_signed_path_is_what_was_signed() {
    let nix = peer!(nix);
    let project = Project::new(nix, "xz");
    let compression = ["--compression", "zstd"];
    let expected = project.image_of_the_store(&compression);
    let server = CacheServer::start(&project.cache.directory);
    let share = format!("file://{}", project.sandbox.path("share").display());
    // A machine whose files are no longer those that its database vouches for.
    let root = project.sandbox.path("tampered");
    let copied = Command::new("cp").arg("-a").arg(nix.root()).arg(&root).status().unwrap();
    assert!(copied.success());
    let program = root.join(nix.out("hello").trim_start_matches('/')).join("bin/hello");
    make_writable(&program);
    let mut bytes = fs::read(&program).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&program, bytes).unwrap();
    let mut command = project.sandbox.cmd();
    command.arg("containerize").arg("--store").arg(&root).arg("-d").arg(project.environment.dir());
    command.env("LAYERHOLD_CACHE", project.sandbox.path("tamperer")).args(compression).args(["--cache-to", &share]);
    command.arg("-f").arg(project.sandbox.path("tampered.tar")).assert().success();

    let (asked, said) =
        on_an_empty_machine(&project, &server, "second", &[&compression[..], &["--cache-from", &share]].concat());
    assert!(said.contains("as that was signed"), "{said}");
    assert!(nars(&asked) > 0, "{asked:#?}");
    assert!(fs::read(project.file()).unwrap() == expected);
    let verify =
        project.sandbox.cmd().env("LAYERHOLD_CACHE", project.sandbox.path("second")).args(["cache", "verify"]).output();
    assert!(verify.unwrap().status.success());
}

/// Files of a store, and the directories that they are in, cannot be written as they are.
fn make_writable(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    for path in [file.parent().unwrap(), file] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn what_is_known_is_not_asked_for_again() {
    let nix = peer!(nix);
    let project = Project::new(nix, "xz");
    let server = CacheServer::start(&project.cache.directory);
    project.command(&server.url()).assert().success();
    let first = fs::read(project.file()).unwrap();
    assert!(!server.asked().is_empty());
    fs::remove_file(project.file()).unwrap();
    project.command(&server.url()).arg("--offline").assert().success();
    assert!(fs::read(project.file()).unwrap() == first);
    fs::remove_file(project.file()).unwrap();
    project.command(&server.url()).assert().success();
    assert_eq!(server.asked(), [""; 0]);
}

#[test]
fn the_local_store_comes_first_and_the_caches_by_their_priorities() {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    let near = CacheServer::start(&project.cache.directory);
    // The same paths, of a cache that wants to be asked first.
    let copy = project.sandbox.path("second");
    assert!(Command::new("cp").arg("-a").arg(&project.cache.directory).arg(&copy).status().unwrap().success());
    fs::write(copy.join("nix-cache-info"), "StoreDir: /nix/store\nPriority: 10\n").unwrap();
    let preferred = CacheServer::start(&copy);
    fs::remove_file(copy.join(BinaryCache::narinfo(nix.out("hello")))).unwrap();

    project.command(&near.url()).args(["--substituter", &preferred.url()]).assert().success();
    let of = |asked: Vec<String>| asked.into_iter().filter(|name| name.starts_with("nar/")).count();
    assert_eq!(of(near.asked()), 1, "hello alone");
    assert!(of(preferred.asked()) > 1);

    let mut command = project.sandbox.cmd();
    command.arg("containerize").arg("--store").arg(nix.root()).arg("-d").arg(project.environment.dir());
    command.args(["--substituter", &near.url(), "-f", "-"]).assert().success();
    assert_eq!(near.asked(), [""; 0]);
}

#[test]
fn a_layer_that_was_made_of_nars_is_the_layer_of_the_store() {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    let url = format!("file://{}", project.cache.directory.display());
    project.command(&url).assert().success();
    let mut command = project.sandbox.cmd();
    command.arg("containerize").arg("--store").arg(nix.root()).arg("-d").arg(project.environment.dir());
    let output = command.args(["--json", "--dry-run", "-f", "x.tar"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let layers = report["layers"].as_array().unwrap();
    assert!(layers.iter().all(|layer| layer["reused"] == true), "{report:#}");
}

#[rstest]
#[case::not_found(Fault::Status(404, ""))]
#[case::server_error(Fault::Status(500, ""))]
#[case::unavailable(Fault::Status(503, ""))]
#[case::too_many(Fault::Status(429, "Retry-After: 1\r\n"))]
#[case::cut(Fault::CutAfter(1000))]
#[case::cut_at_once(Fault::CutAfter(0))]
fn a_server_that_fails_now_and_then_is_asked_again(#[case] fault: Fault) {
    let nix = peer!(nix);
    let project = Project::new(nix, "xz");
    let expected = project.image_of_the_store(&[]);
    let server = CacheServer::start(&project.cache.directory);
    let nar = project.cache.field(nix.out("hello"), "URL");
    // What is not there is not asked for again: of the narinfo nothing more can be expected, so it is not tried here.
    if matches!(fault, Fault::Status(404, _)) {
        server.fail(&nar, &[fault]);
        assert!(project.failure(&server.url()).contains("there is no such file"));
        project.assert_clean_of(nix.out("hello"));
    } else {
        server.fail(&nar, &[fault.clone(), fault.clone()]);
        server.fail(&BinaryCache::narinfo(nix.out("hello")), &[fault]);
    }
    project.command(&server.url()).assert().success();
    assert!(fs::read(project.file()).unwrap() == expected);
}

#[rstest]
#[case::with_ranges(&[Fault::CutAfter(300_000), Fault::CutAfter(200_000)], true)]
#[case::without_ranges(&[Fault::CutAfter(300_000), Fault::NoRanges], false)]
fn a_cut_stream_goes_on_where_it_was_cut(#[case] faults: &[Fault], #[case] ranges: bool) {
    let nix = peer!(nix);
    let project = Project::new(nix, "none");
    let expected = project.image_of_the_store(&[]);
    let server = CacheServer::start(&project.cache.directory);
    let nar = project.cache.field(nix.out("bash"), "URL");
    server.fail(&nar, faults);
    project.command(&server.url()).assert().success();
    assert!(fs::read(project.file()).unwrap() == expected);
    let asked: Vec<_> = server.asked().into_iter().filter(|name| name.starts_with(&nar)).collect();
    let expected = match ranges {
        true => vec![nar.clone(), format!("{nar} from 300000"), format!("{nar} from 500000")],
        false => vec![nar.clone(), format!("{nar} from 300000")],
    };
    assert_eq!(asked, expected);
}

#[test]
fn where_a_server_is_lost_in_the_midst_of_a_nar_the_next_cache_goes_on() {
    let nix = peer!(nix);
    let project = Project::new(nix, "none");
    let expected = project.image_of_the_store(&[]);
    let (first, second) = (CacheServer::start(&project.cache.directory), CacheServer::start(&project.cache.directory));
    let nar = project.cache.field(nix.out("bash"), "URL");
    first.fail(&nar, &[vec![Fault::CutAfter(300_000)], always(Fault::Status(503, ""))].concat());
    project.command(&first.url()).args(["--substituter", &second.url()]).assert().success();
    assert_eq!(second.asked().iter().filter(|name| name.starts_with("nar/")).count(), 1);
    assert!(fs::read(project.file()).unwrap() == expected);
}

/// Many attempts, all in vain.
fn always(fault: Fault) -> Vec<Fault> {
    vec![fault; 100]
}

#[rstest]
#[case::status("status", always(Fault::Status(502, "")))]
#[case::too_long_a_wait("too_long_a_wait", always(Fault::Status(429, "Retry-After: 3600\r\n")))]
#[case::denied("denied", always(Fault::Status(401, "")))]
#[case::cut("cut", always(Fault::CutAfter(100)))]
#[case::endless("endless", always(Fault::Endless))]
#[case::another_nar("another_nar", always(Fault::Body(Arc::new(Vec::new()))))]
#[case::no_nar("no_nar", always(Fault::Body(Arc::new(b"<html>not what you want</html>".to_vec()))))]
#[case::bomb("bomb", always(Fault::Body(Arc::new(Vec::new()))))]
fn a_nar_that_cannot_be_had_ends_the_run_and_leaves_nothing(#[case] name: &str, #[case] mut faults: Vec<Fault>) {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    let server = CacheServer::start(&project.cache.directory);
    let hello = nix.out("hello");
    let nar = project.cache.field(hello, "URL");
    match name {
        "another_nar" => {
            let other = project.cache.directory.join(project.cache.field(nix.out("bash"), "URL"));
            faults = always(Fault::Body(Arc::new(fs::read(other).unwrap())));
        }
        // A gigabyte of zeros.
        "bomb" => {
            let string = |text: &str| {
                let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
                bytes.extend_from_slice(text.as_bytes());
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                bytes
            };
            let mut nar = ["nix-archive-1", "(", "type", "regular", "contents"].map(string).concat();
            nar.extend_from_slice(&(1u64 << 30).to_le_bytes());
            let bytes = (&nar[..]).chain(std::io::repeat(0).take(1 << 30));
            faults = always(Fault::Body(Arc::new(zstd::encode_all(bytes, 1).unwrap())));
        }
        _ => {}
    }
    if name == "bomb" {
        project.cache.change(hello, |text| text.replace("FileSize: ", "FileSize: 9"));
    }
    server.fail(&nar, &faults);
    let said = project.failure(&server.url());
    insta::assert_snapshot!(format!("nar_{name}"), said);
    project.assert_clean_of(hello);
    // Once the server is well again, what was made before is used.
    server.fail(&nar, &[]);
    server.asked();
    project.command(&server.url()).assert().success();
    let nars: Vec<_> = server.asked().into_iter().filter(|name| name.starts_with("nar/")).collect();
    assert!(nars.contains(&nar), "{nars:?}");
}

#[rstest]
#[case::unsigned("unsigned", &|text: String| without(&text, "Sig:"))]
#[case::bad_signature("bad_signature", &|text: String| text.replace("Sig: test-1:", "Sig: test-1:AAAA"))]
#[case::another_key("another_key", &|text: String| text.replace("Sig: test-1:", "Sig: other-1:"))]
#[case::changed("changed", &|text: String| text.replace("NarSize: ", "NarSize: 1"))]
#[case::another_path("another_path", &|text: String| text.replace("-hello", "-hullo"))]
#[case::garbage("garbage", &|_| "<html>".to_owned())]
#[case::an_unknown_codec("an_unknown_codec", &|text: String| text.replace("Compression: zstd", "Compression: lzip"))]
#[case::endless("endless", &|text: String| text + &"x: y\n".repeat(300_000))]
fn a_narinfo_that_cannot_be_trusted_is_an_error(#[case] name: &str, #[case] change: &dyn Fn(String) -> String) {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    let hello = nix.out("hello");
    project.cache.change(hello, change);
    let url = format!("file://{}", project.cache.directory.display());
    insta::assert_snapshot!(format!("narinfo_{name}"), project.failure(&url));
    project.assert_clean_of(hello);
}

fn without(text: &str, field: &str) -> String {
    text.lines().filter(|line| !line.starts_with(field)).map(|line| format!("{line}\n")).collect()
}

#[rstest]
#[case::killed("KILL", None)]
#[case::interrupted("INT", Some(130))]
#[case::ended("TERM", Some(130))]
fn a_run_that_is_ended_while_it_fetches_leaves_nothing_bad(#[case] signal: &str, #[case] code: Option<i32>) {
    let nix = peer!(nix);
    let project = Project::new(nix, "none");
    let expected = project.image_of_the_store(&[]);
    let server = CacheServer::start(&project.cache.directory);
    let hello = nix.out("hello");
    let nar = project.cache.field(hello, "URL");
    server.fail(&nar, &[Fault::HangAfter(1000)]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(project.sandbox.environment()).stdout(Stdio::null()).stderr(Stdio::null());
    command.arg("containerize").arg("--store").arg(project.sandbox.path("empty")).arg("-f").arg(project.file());
    command.arg("-d").arg(project.environment.dir());
    command.args(["--substituter", &server.url(), "--trusted-public-key", &project.cache.key]);
    let mut child = command.spawn().unwrap();
    while !server.asked().contains(&nar) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let sent = Command::new("/bin/kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), code);
    assert!(!project.file().exists());
    project.assert_clean_of(hello);
    project.command(&server.url()).assert().success();
    assert!(fs::read(project.file()).unwrap() == expected);
}

#[test]
fn unsigned_paths_are_taken_from_a_cache_that_is_trusted_and_where_no_signatures_are_wanted() {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    project.cache.change(nix.out("hello"), |text| without(&text, "Sig:"));
    let url = format!("file://{}", project.cache.directory.display());
    project.command(&format!("{url}?trusted=true")).assert().success();
    project.sandbox.cmd().args(["cache", "clear"]).assert().success();
    project.command(&url).env("NIX_CONFIG", "require-sigs = false").assert().success();
}

#[test]
fn a_path_in_no_cache_is_named_with_who_needs_it() {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    let glibc = nix.out("glibc");
    fs::remove_file(project.cache.directory.join(BinaryCache::narinfo(glibc))).unwrap();
    let url = format!("file://{}", project.cache.directory.display());
    insta::assert_snapshot!("missing_everywhere", project.failure(&url));
}

#[test]
fn a_cache_that_is_down_is_said_once_and_another_one_serves() {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    let server = CacheServer::start(&project.cache.directory);
    let closed = ClosedPort::new();
    let down = format!("http://127.0.0.1:{}", closed.number());
    insta::assert_snapshot!("all_down", project.failure(&down));
    let outcome = project.command(&down).args(["--substituter", &server.url()]).assert().success();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert_eq!(said.matches(&down).count(), 1, "{said}");
}

#[test]
fn settings_come_from_nix_conf_and_from_the_tools_own_file() {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    let server = CacheServer::start(&project.cache.directory);
    let run = || {
        let mut command = project.sandbox.cmd();
        command.arg("containerize").arg("--store").arg(project.sandbox.path("empty"));
        command.arg("-d").arg(project.environment.dir()).args(["-f", "-"]);
        command
    };
    let conf = project.sandbox.path("conf");
    fs::create_dir_all(&conf).unwrap();
    let text = format!("substituters = daemon {}\ntrusted-public-keys = {}\n", server.url(), project.cache.key);
    fs::write(conf.join("nix.conf"), &text).unwrap();
    run().env("NIX_CONF_DIR", &conf).env_remove("NIX_CONFIG").assert().success();
    project.sandbox.cmd().args(["cache", "clear"]).assert().success();

    let own = project.sandbox.path("home/.config/layerhold");
    fs::create_dir_all(&own).unwrap();
    let text =
        format!("[substituters]\nurls = [\"{}\"]\ntrusted-public-keys = [\"{}\"]\n", server.url(), project.cache.key);
    fs::write(own.join("config.toml"), text).unwrap();
    run().assert().success();
}

#[rstest]
#[case::netrc("Basic dXNlcjpzZWNyZXQ=", "home/.netrc", "machine 127.0.0.1 login user password secret\n")]
#[case::bearer("Bearer secret", "token", "secret\n")]
fn whoever_must_log_in_does(#[case] login: &str, #[case] file: &str, #[case] text: &str) {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    let server = CacheServer::start_with(&project.cache.directory, Some(login), std::time::Duration::ZERO);
    insta::assert_snapshot!("denied", project.failure(&server.url()));
    fs::write(project.sandbox.path(file), text).unwrap();
    let own = project.sandbox.path("home/.config/layerhold");
    fs::create_dir_all(&own).unwrap();
    if file == "token" {
        let tokens = format!("[substituters.tokens]\n\"{}\" = {:?}\n", server.url(), project.sandbox.path(file));
        fs::write(own.join("config.toml"), tokens).unwrap();
    }
    let mut command = project.sandbox.cmd();
    command.args(["-vvv", "containerize", "--store"]).arg(project.sandbox.path("empty"));
    command.arg("-d").arg(project.environment.dir()).arg("-f").arg(project.file());
    command.args(["--substituter", &server.url(), "--trusted-public-key", &project.cache.key]);
    let outcome = command.assert().success();
    assert!(!String::from_utf8_lossy(&outcome.get_output().stderr).contains("secret"));
}

/// As [`whoever_must_log_in_does`], in a container, which has none of the user's files.
#[rstest]
#[case::netrc("Basic dXNlcjpzZWNyZXQ=", "machine 127.0.0.1 login user password secret\n")]
#[case::bearer("Bearer secret", "machine 127.0.0.1 login user password another\n")]
fn whoever_must_log_in_does_so_in_a_container(#[case] login: &str, #[case] netrc: &str) {
    let nix = peer!(nix);
    let project = Project::new(nix, "zstd");
    let server = CacheServer::start_with(&project.cache.directory, Some(login), std::time::Duration::ZERO);
    proxy::stand_in(&project.sandbox, &project.sandbox.path("empty"));
    fs::write(project.sandbox.path("home/.netrc"), netrc).unwrap();
    if login.starts_with("Bearer") {
        let own = project.sandbox.path("home/.config/layerhold");
        fs::create_dir_all(&own).unwrap();
        fs::write(project.sandbox.path("token"), "secret\n").unwrap();
        let tokens = format!("[substituters.tokens]\n\"{}\" = {:?}\n", server.url(), project.sandbox.path("token"));
        fs::write(own.join("config.toml"), tokens).unwrap();
    }
    let certificates = project.sandbox.path("certificates.pem");
    fs::write(&certificates, "").unwrap();
    let mut command = project.sandbox.cmd();
    command.env("NIX_SSL_CERT_FILE", &certificates);
    command.args(["-vvv", "containerize", "-d"]).arg(project.environment.dir()).arg("-f").arg(project.file());
    command.args(["--substituter", &server.url(), "--trusted-public-key", &project.cache.key]).args(proxy::STAND_IN);
    let outcome = command.assert().success();
    assert!(!String::from_utf8_lossy(&outcome.get_output().stderr).contains("secret"));
    assert!(fs::read(project.file()).unwrap() == project.image_of_the_store(&[]));
    let arguments = fs::read_to_string(project.sandbox.path("container-arguments")).unwrap();
    let file = certificates.display();
    assert!(arguments.contains(&format!("type=bind,source={file},target={file},readonly")), "{arguments}");
    assert!(arguments.contains("--env NIX_SSL_CERT_FILE ") && !arguments.contains("secret"), "{arguments}");
}

#[test]
fn a_well_known_server_serves_as_well() {
    let nix = peer!(nix);
    let project = Project::new(nix, "xz");
    let expected = project.image_of_the_store(&[]);
    let (mut server, port) = ports::serve(|port| {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string(), "--directory"]);
        command.arg(&project.cache.directory);
        command
    });
    let outcome = project.command(&format!("http://127.0.0.1:{port}")).output();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(outcome.unwrap().status.success());
    assert!(fs::read(project.file()).unwrap() == expected);
}

#[test]
fn a_machine_without_nix_makes_the_image_as_nobody_in_a_root_of_its_own() {
    let nix = peer!(nix);
    let project = Project::new(nix, "xz");
    let expected = project.image_of_the_store(&[]);
    let server = CacheServer::start(&project.cache.directory);
    let root = project.sandbox.path("root");
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap());
    let put = |from: &Path, to: &Path| {
        fs::create_dir_all(inside(to).parent().unwrap()).unwrap();
        fs::copy(from, inside(to)).unwrap();
    };
    let binary = Path::new(env!("CARGO_BIN_EXE_layerhold"));
    put(binary, Path::new("/layerhold"));
    let needs = Command::new("ldd").arg(binary).output().unwrap();
    for word in String::from_utf8(needs.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
        put(Path::new(word), Path::new(word));
    }
    let copied =
        Command::new("cp").arg("-a").arg(project.environment.dir()).arg(root.join("project")).status().unwrap();
    assert!(copied.success());
    fs::create_dir_all(root.join("home")).unwrap();
    let given = Command::new("chown").args(["-R", "65534:65534"]).arg(&root).status().unwrap();
    assert!(given.success(), "tests run as root");

    let outcome = Command::new(find_program("setpriv").unwrap())
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--map-root-user", "--wd=/"])
        .arg(format!("--root={}", root.display()))
        .args(["/layerhold", "containerize", "-d", "/project", "-f", "/home/image.tar"])
        .args(["--substituter", &server.url(), "--trusted-public-key", &project.cache.key])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", "/home")
        .output()
        .unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    assert!(!root.join("nix").exists());
    assert!(fs::read(root.join("home/image.tar")).unwrap() == expected);
}
