//! `--previous` where what is gone is not on the machine any more.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::archive::Archive;
use crate::cache_server::{BinaryCache, CacheServer, Fault};
use crate::flox_fixture::FloxEnv;
use crate::nix_fixture::NixStore;
use crate::peers::peer;
use crate::registry_server::{DockerRegistry, RegistryServer, Setup};
use crate::sandbox::Sandbox;

/// A team's environment, from which a package went: the registry has the image with it and the shared cache its layers,
/// the binary cache has the package, and the machines have it no more.
struct Team {
    sandbox: Sandbox,
    nix: NixStore,
    registry: RegistryServer,
    /// The shared cache.
    cache: String,
    binary: BinaryCache,
    gone: String,
    /// One that stays.
    small: String,
    /// The image without it, where all was at hand.
    expected: Value,
}

/// What a run said, and what it says of the image.
struct Outcome {
    said: String,
    image: Value,
}

impl Outcome {
    fn hides_it(&self) -> bool {
        self.said.contains("and hide 1 that is gone (3.0 MiB)")
    }

    fn sent(&self) -> u64 {
        self.image["layers_sent"].as_u64().unwrap()
    }
}

impl Team {
    /// With its shared cache in the registry, or in a directory, and a server for its binary cache.
    fn new(nix: &NixStore, program: &DockerRegistry, cache_in_registry: bool) -> (Self, CacheServer) {
        let sandbox = Sandbox::new();
        let registry = program.start(&sandbox.path("registry"), Setup::default());
        let cache = match cache_in_registry {
            true => registry.reference("team/cache"),
            false => format!("file://{}", sandbox.path("share").display()),
        };
        let nix = nix.empty_one(sandbox.path("root"));
        let package = |name: &str, mebibytes: usize, programs: usize| {
            let directory = sandbox.path("packages").join(name);
            let (share, bin) = (directory.join("share"), directory.join("bin"));
            fs::create_dir_all(&share).and_then(|()| fs::create_dir_all(&bin)).unwrap();
            let mut bytes = vec![0; mebibytes << 20];
            blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
            fs::write(share.join(name), bytes).unwrap();
            (0..programs).for_each(|n| fs::write(bin.join(format!("{name}{n}")), name).unwrap());
            nix.add(&directory)
        };
        let gone = package("gone", 3, 2);
        let paths = [package("large", 40, 30), package("small", 1, 3), gone.clone()];
        let environment = |directory: &str, paths: &[String]| {
            let ids: Vec<String> = (0..paths.len()).map(|n| format!("tool{n}")).collect();
            let installs: Vec<_> = ids.iter().zip(paths).map(|(id, path)| (id.as_str(), path.as_str())).collect();
            FloxEnv::of_store_paths(sandbox.path(directory), "app", &installs, "");
        };
        environment("before", &paths);
        environment("after", &paths[..2]);
        let of_all: Vec<&str> = paths.iter().map(String::as_str).collect();
        let binary = BinaryCache::make(&nix, sandbox.path("binary-cache"), "none", &of_all);

        let (small, expected) = (paths[1].clone(), Value::Null);
        let team = Self { sandbox, nix, registry, cache, binary, gone, small, expected };
        let image = team.image();
        team.run("first", "before", &["--push", &image, "--cache-to", &team.cache]);
        let expected = team.run("first", "after", &["--push", &image, "--previous", "--dry-run"]);
        assert!(expected.hides_it(), "{}", expected.said);
        team.nix.delete(&team.gone);
        let server = CacheServer::start(&team.binary.directory);
        (Self { expected: expected.image, ..team }, server)
    }

    fn image(&self) -> String {
        self.registry.reference("team/app:1")
    }

    /// What went is on the machines for as long as this takes.
    fn while_it_is_there<T>(&self, work: impl FnOnce() -> T) -> T {
        assert_eq!(self.nix.add(&self.sandbox.path("packages/gone")), self.gone);
        let done = work();
        self.nix.delete(&self.gone);
        done
    }

    /// What makes the binary cache one that is asked.
    fn asking<'a>(&'a self, url: &'a str) -> [&'a str; 4] {
        ["--substituter", url, "--trusted-public-key", &self.binary.key]
    }

    /// A run on the machine with this layer cache.
    fn run(&self, machine: &str, environment: &str, args: &[&str]) -> Outcome {
        let mut command = self.sandbox.cmd();
        command.env("LAYERHOLD_CACHE", self.sandbox.path(machine)).args(["-v", "containerize", "--json"]);
        command.args(args).arg("--store").arg(self.nix.root()).arg("-d").arg(self.sandbox.path(environment));
        let output = command.assert().success().get_output().clone();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Outcome { said, image: serde_json::from_slice(&output.stdout).unwrap() }
    }

    fn is_expected(&self, outcome: &Outcome) -> bool {
        outcome.image["manifest_digest"] == self.expected["manifest_digest"]
    }
}

fn nars(server: &CacheServer) -> usize {
    server.asked().iter().filter(|name| name.starts_with("nar/")).count()
}

#[test]
fn a_new_machine_hides_what_only_the_teams_caches_have() {
    let (nix, program) = (peer!(nix), peer!(docker_registry));
    let (team, server) = Team::new(nix, &program, true);
    let (url, image) = (server.url(), team.image());
    let (asking, from) = (team.asking(&url), ["--cache-from", &team.cache]);
    let after = |machine: &str, previous: &str, args: &[&[&str]]| {
        let push = ["--push", &image, "--dry-run", "--previous", previous];
        team.run(machine, "after", &[&push[..], &args.concat()].concat())
    };
    let new = after("new", ".", &[&from, &asking]);
    assert!(new.hides_it() && team.is_expected(&new), "{}", new.said);
    assert_eq!(new.sent(), 1, "the top layer alone, for names went with it: {:#}", new.image);
    assert!(!new.said.contains("fetched from a shared cache"), "{}", new.said);
    assert_eq!(nars(&server), 0);
    // When the environment wants it again, the layer comes and is looked into, though a record of it is here.
    let again = ["--push", &image, "--dry-run"];
    let again = team.run("new", "before", &[&again[..], &from, &asking].concat());
    assert!(again.said.contains("fetched from a shared cache: 1 layers"), "{}", again.said);
    assert_eq!(nars(&server), 0);
    // A binary cache that fails is done without, and that is said.
    let failure = Fault::Status(500, "");
    server.fail(&BinaryCache::narinfo(&team.gone), &[failure.clone(), failure]);
    let failing = after("failing", ".", &[&from, &asking]);
    assert!(!failing.hides_it() && !team.is_expected(&failing), "{}", failing.said);
    let said = format!("! not all stays that is gone from '{image}': ");
    assert!(failing.said.contains(&said) && failing.said.contains("status 500"), "{}", failing.said);
    // A machine that has made its layer, and has its bytes, needs no other that knows it.
    let first = after("first", ".", &[&asking]);
    assert!(first.hides_it() && team.is_expected(&first), "{}", first.said);

    // Nobody vouches for the layer, or for what is in it, or it would have to be made.
    let secret = team.sandbox.path("key");
    let key = team.sandbox.cmd().args(["cache", "key", "team"]).arg(&secret).output().unwrap().stdout;
    let trust = ["--cache-trust", std::str::from_utf8(&key).unwrap().trim()];
    let elsewhere = team.registry.reference("team/other:1");
    team.while_it_is_there(|| team.run("first", "before", &["--push", &elsewhere]));
    let cases: [(&str, &str, &[&[&str]]); 5] = [
        ("no shared cache", ".", &[&asking]),
        ("no binary cache", ".", &[&from]),
        ("unsigned entries", ".", &[&from, &asking, &trust]),
        ("another codec", ".", &[&from, &asking, &["--compression", "gzip"]]),
        ("another repository", &elsewhere, &[&from, &asking]),
    ];
    for (case, previous, args) in cases {
        let without = after(&format!("new {case}"), previous, args);
        assert!(!without.hides_it() && !team.is_expected(&without), "{case}: {}", without.said);
    }
    // Who trusts none of that says it once more, and signs it.
    let signing = ["--push", &elsewhere, "--cache-to", &team.cache, "--cache-key", secret.to_str().unwrap()];
    team.while_it_is_there(|| team.run("signer", "before", &[&signing[..], &trust].concat()));
    let signed = after("trusting", &elsewhere, &[&from, &asking, &trust]);
    assert!(signed.hides_it() && team.is_expected(&signed), "{}", signed.said);
    assert_eq!(nars(&server), 0);

    // What the environment needs of such a machine's comes, as ever, and what is hidden does not.
    team.nix.delete(&team.small);
    let far = after("far", ".", &[&from, &asking]);
    assert!(far.hides_it() && team.is_expected(&far), "{}", far.said);
    assert!(far.said.contains("fetched from a shared cache: 1 layers"), "{}", far.said);
    assert_eq!(nars(&server), 0);
}

#[test]
fn where_everything_is_at_hand_nobody_is_asked() {
    let (nix, program) = (peer!(nix), peer!(docker_registry));
    let (team, server) = Team::new(nix, &program, true);
    let (url, image) = (server.url(), team.image());
    let away = ["--cache-from", "127.0.0.1:1/away", "--push", &image, "--dry-run", "--previous"];
    let asking = [&away[..], &team.asking(&url)].concat();
    let outcome = team.while_it_is_there(|| team.run("first", "after", &asking));
    assert!(team.is_expected(&outcome) && outcome.hides_it(), "{}", outcome.said);
    assert!(!outcome.said.contains("127.0.0.1:1/away"), "{}", outcome.said);
    assert_eq!(server.asked(), [""; 0]);
}

#[test]
fn what_is_hidden_comes_with_its_layer_or_is_gone() {
    let (nix, program) = (peer!(nix), peer!(docker_registry));
    let (team, server) = Team::new(nix, &program, false);
    let (url, image) = (server.url(), team.image());
    let file = team.sandbox.path("image.tar");
    let to_file = ["-f", file.to_str().unwrap(), "--compression", "zstd"];
    team.run("plain", "after", &to_file);
    let expected = Archive::open(&file).root();
    let from = ["--cache-from", &team.cache];
    let after = |machine: &str, from: &[&str]| {
        let previous = ["--previous", &image];
        let outcome = team.run(machine, "after", &[&to_file[..], &previous, &team.asking(&url), from].concat());
        let archive = Archive::open(&file);
        assert!(archive.root() == expected, "the layers over each other are the same file system");
        assert_eq!(!archive.hidden().is_empty(), outcome.hides_it());
        outcome
    };
    let new = after("new", &from);
    assert!(new.hides_it() && team.is_expected(&new), "{}", new.said);
    assert_eq!(nars(&server), 0, "it comes with its layer");

    let layers = team.expected["layers"].as_array().unwrap().iter();
    let is_of_it = |layer: &&Value| layer["store_paths"].to_string().contains(&team.gone);
    let layer = layers.clone().find(is_of_it).unwrap()["digest"].as_str().unwrap();
    // The bytes that a machine keeps are damaged: they are made again, of what comes from the binary cache.
    let blob = |place: &str| team.sandbox.path(place).join("blobs").join(layer.replace(':', "/"));
    let length = fs::metadata(blob("first")).unwrap().len();
    fs::write(blob("first"), vec![0; length as usize]).unwrap();
    let first = after("first", &[]);
    assert!(first.said.contains(&format!("the layer cache holds {layer} damaged")), "{}", first.said);
    assert!(first.hides_it() && team.is_expected(&first), "{}", first.said);
    assert_eq!(nars(&server), 1);

    fs::remove_file(blob("share")).unwrap();
    let later = after("later", &from);
    assert!(!later.hides_it(), "{}", later.said);
    assert_eq!(nars(&server), 0);
}

#[test]
fn a_layer_that_was_kept_for_what_it_hides_is_looked_into_when_that_comes_back() {
    let (nix, program) = (peer!(nix), peer!(docker_registry));
    let (team, server) = Team::new(nix, &program, true);
    let url = server.url();
    let file = team.sandbox.path("image.tar");
    let to_file = ["-f", file.to_str().unwrap(), "--compression", "zstd"];
    team.while_it_is_there(|| team.run("first", "before", &to_file));
    let expected = Archive::open(&file).root();

    // A machine whose files are no longer those that its database vouches for fills a cache.
    let (image, cache) = (team.registry.reference("team/forged:1"), team.registry.reference("team/forged-cache"));
    team.while_it_is_there(|| {
        let directory = team.nix.real(&team.gone).join("share");
        let forged = directory.join("gone");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let mut bytes = fs::read(&forged).unwrap();
        bytes[0] ^= 1;
        fs::remove_file(&forged).and_then(|()| fs::write(&forged, bytes)).unwrap();
        team.run("forger", "before", &["--push", &image, "--cache-to", &cache]);
    });
    let caches = [&["--cache-from", &cache][..], &team.asking(&url)].concat();
    let hiding = team.run("new", "after", &[&["--push", &image, "--dry-run", "--previous"][..], &caches].concat());
    assert!(hiding.hides_it(), "{}", hiding.said);
    assert_eq!(nars(&server), 0);
    let back = team.run("new", "before", &[&to_file[..], &caches].concat());
    assert!(back.said.contains("as that was signed"), "{}", back.said);
    assert!(Archive::open(&file).root() == expected, "{}", back.said);
    assert_eq!(nars(&server), 1);
}
