//! Layers that machines share: caches in directories, registries and buckets. Many at once: `share_crowd`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rstest::rstest;
use serde_json::Value;

use crate::archive::Archive;
use crate::bucket_server::Readers;
use crate::containerize::hello_environment;
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_proxy::{RegistryProxy, Request};
use crate::registry_server::Setup;
use crate::sandbox::Sandbox;

/// A machine with a layer cache of its own.
pub(crate) struct Machine<'s> {
    sandbox: &'s Sandbox,
    store: PathBuf,
    pub(crate) cache: PathBuf,
}

impl<'s> Machine<'s> {
    pub(crate) fn new(sandbox: &'s Sandbox, store: &Path, name: &str) -> Self {
        Self { sandbox, store: store.to_owned(), cache: sandbox.path(format!("machine-{name}")) }
    }

    pub(crate) fn command(&self, environment: &FloxEnv) -> assert_cmd::Command {
        let mut command = self.sandbox.cmd();
        command.env("LAYERHOLD_CACHE", &self.cache).arg("-v").arg("containerize");
        command.arg("--store").arg(&self.store).arg("-d").arg(environment.dir());
        // One that waits for ever has failed.
        command.timeout(Duration::from_secs(300));
        command
    }

    /// Makes an image with zstd layers in a file: its bytes, and what was said.
    pub(crate) fn image(&self, environment: &FloxEnv, args: &[&str]) -> (Vec<u8>, String) {
        let file = self.sandbox.path("work/image.tar");
        let _ = fs::remove_file(&file);
        let mut command = self.command(environment);
        let outcome = command.args(["--compression", "zstd", "-f"]).arg(&file).args(args).assert().success();
        let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
        (fs::read(file).unwrap(), self.sandbox.tidy(&said))
    }

    /// Pushes an image that it has made before, to a good end: what was said.
    pub(crate) fn push(&self, image: &str, reference: &str, args: &[&str]) -> String {
        let mut command = self.sandbox.cmd();
        command.env("LAYERHOLD_CACHE", &self.cache).args(["-v", "push", image, reference]).args(args);
        let outcome = command.arg("--store").arg(&self.store).timeout(Duration::from_secs(300)).assert().success();
        self.sandbox.tidy(&String::from_utf8(outcome.get_output().stderr.clone()).unwrap())
    }

    /// The same as [`Machine::image`] beside others.
    pub(crate) fn spawn(&self, environment: &FloxEnv, file: &Path, share: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.env_clear().envs(self.sandbox.environment()).env("LAYERHOLD_CACHE", &self.cache);
        command.current_dir(self.sandbox.path("work")).args(["containerize", "--json", "--compression", "zstd"]);
        command.args(["--cache-to", share, "-f"]).arg(file).arg("--store").arg(&self.store);
        command.arg("-d").arg(environment.dir());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// A small environment, and the image of it that is made without any cache.
pub(crate) struct Project {
    pub(crate) sandbox: Sandbox,
    pub(crate) store: BareStore,
    pub(crate) environment: FloxEnv,
    pub(crate) expected: Vec<u8>,
}

impl Project {
    pub(crate) fn new() -> Self {
        let sandbox = Sandbox::new();
        let store = BareStore::new(sandbox.path("root"));
        let program = |name: &str, size| store.add(name, &Tree::new().program(format!("bin/{name}"), vec![7; size]));
        let (one, two) = (program("one", 300_000), program("two", 9_000));
        let installs = [("one", one.as_str()), ("two", two.as_str())];
        let environment = FloxEnv::of_store_paths(sandbox.path("project"), "pair", &installs, "");
        let mut project = Self { sandbox, store, environment, expected: Vec::new() };
        project.expected = project.machine("alone").image(&project.environment, &[]).0;
        project
    }

    pub(crate) fn machine(&self, name: &str) -> Machine<'_> {
        Machine::new(&self.sandbox, self.store.root(), name)
    }

    pub(crate) fn directory(&self) -> String {
        format!("file://{}", self.sandbox.path("share").display())
    }

    /// A machine that fills the cache.
    pub(crate) fn fill(&self, share: &str) {
        let (image, said) = self.machine("first").image(&self.environment, &["--cache-to", share]);
        assert!(image == self.expected);
        assert!(said.contains("given to the shared cache"), "{said}");
    }

    /// A new machine with this cache, and these arguments beside.
    pub(crate) fn newcomer(&self, name: &str, share: &str, args: &[&str]) -> String {
        let args = [&["--cache-from", share], args].concat();
        let (image, said) = self.machine(name).image(&self.environment, &args);
        assert!(image == self.expected, "{said}");
        said
    }

    /// Makes a key that signs: its file, and its public half.
    pub(crate) fn key(&self, name: &str) -> (String, String) {
        let file = self.sandbox.path(format!("{name}.key"));
        let made = self.sandbox.cmd().args(["cache", "key", name]).arg(&file).assert().success();
        let public = String::from_utf8(made.get_output().stdout.clone()).unwrap().trim().to_owned();
        (file.display().to_string(), public)
    }

    /// The digest, in hexadecimal digits, of the layer with the packages: by what the cache in the directory says.
    pub(crate) fn packages(&self) -> String {
        let lines = lines(&self.sandbox.path("share"));
        let entry = lines.iter().find(|line| is_of_packages(line)).unwrap();
        entry["layer"]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned()
    }
}

/// Whether a line of a sheet is the entry of a layer of packages, which an image's own files are not.
pub(crate) fn is_of_packages(line: &Value) -> bool {
    line["layer"]["contents"].as_array().is_some_and(|contents| !contents.is_empty())
}

/// What the sheets say of a cache in a directory.
pub(crate) fn lines(share: &Path) -> Vec<Value> {
    let text = |file: PathBuf| String::from_utf8(zstd::decode_all(&*fs::read(file).unwrap()).unwrap()).unwrap();
    let texts = files(&share.join("sheets")).into_iter().map(text);
    texts.flat_map(|text| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>()).collect()
}

/// Changes what they say.
pub(crate) fn rewrite(share: &Path, change: impl Fn(&mut Value)) {
    for file in files(&share.join("sheets")) {
        let changed = rewritten(&fs::read(&file).unwrap(), &change);
        fs::write(file, changed).unwrap();
    }
}

fn rewritten(sheet: &[u8], change: impl Fn(&mut Value)) -> Vec<u8> {
    let text = String::from_utf8(zstd::decode_all(sheet).unwrap()).unwrap();
    let changed = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        change(&mut line);
        line.to_string() + "\n"
    };
    let text: String = text.lines().map(changed).collect();
    zstd::encode_all(text.as_bytes(), 3).unwrap()
}

pub(crate) fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Bytes that do not compress.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn a_new_machine_reads_no_store_file_and_sends_nothing_but_the_manifest() {
    let (nix, registry) = (peer!(nix), peer!(docker_registry));
    let sandbox = Sandbox::new();
    let server = registry.start(&sandbox.path("registry"), Setup::default());
    let proxy = RegistryProxy::start(&server);
    let environment = hello_environment(&sandbox, nix, "hello", "");
    let (share, target) = (proxy.reference("team/cache"), proxy.reference("team/hello:v1"));
    let push = |machine: &Machine<'_>, how: &str, target: &str| {
        let mut command = machine.command(&environment);
        let outcome = command.args([how, &share, "--push", target]).assert().success();
        let output = outcome.get_output();
        let said = String::from_utf8(output.stderr.clone()).unwrap();
        (String::from_utf8(output.stdout.clone()).unwrap(), said)
    };
    let (first, _) = push(&Machine::new(&sandbox, nix.root(), "first"), "--cache-to", &target);
    proxy.traffic();

    // The same store, in whose files there is not what was there: their lengths and names are enough.
    let emptied = nix.copy(&sandbox.path("emptied"));
    emptied.empty(&["bash", "coreutils", "hello"]);
    let machine = Machine::new(&sandbox, emptied.root(), "second");
    let (second, said) = push(&machine, "--cache-from", &proxy.reference("team/other:v1"));
    assert_eq!(first.split('@').nth(1), second.split('@').nth(1), "{said}");
    assert!(said.contains("sent: 0 of ") && said.contains(" 0 new"), "{said}");
    let traffic = proxy.traffic();
    assert_eq!(traffic.of(Request::PatchUpload).requests, 0, "{:#?}", traffic.log);
    // The configuration goes with the only upload that is more than a mount.
    assert_eq!(traffic.of(Request::PutUpload).requests, 1, "{:#?}", traffic.log);
    assert!(traffic.sent() < 20_000, "{} bytes were sent", traffic.sent());
    assert_eq!(traffic.of(Request::PutManifest).requests, 1);
}

#[test]
fn what_a_cache_has_lost_or_has_wrong_is_made_here() {
    let project = Project::new();
    let share = project.directory();
    project.fill(&share);
    let blob = project.sandbox.path("share/blobs/sha256").join(project.packages());
    let said = project.newcomer("good", &share, &[]);
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");

    let good = fs::read(&blob).unwrap();
    fs::write(&blob, vec![0; good.len()]).unwrap();
    let said = project.newcomer("wrong", &share, &[]);
    assert!(said.contains("! the shared cache 'file://[SANDBOX]/share' gave sha256:[DIGEST] wrong"), "{said}");
    fs::write(&blob, &good[..good.len() / 2]).unwrap();
    project.newcomer("short", &share, &[]);
    fs::remove_file(&blob).unwrap();
    let said = project.newcomer("lost", &share, &[]);
    assert!(said.contains("has lost sha256:[DIGEST]"), "{said}");
    for machine in ["wrong", "short", "lost"] {
        let mut verify = project.sandbox.cmd();
        verify.env("LAYERHOLD_CACHE", project.sandbox.path(format!("machine-{machine}")));
        verify.args(["cache", "verify"]).assert().success();
    }

    let sheets = files(&project.sandbox.path("share/sheets"));
    fs::write(&sheets[0], b"no sheet").unwrap();
    let said = project.newcomer("no-sheet", &share, &[]);
    assert!(said.contains("it cannot be unpacked") && !said.contains("! "), "{said}");
}

#[test]
fn entries_count_only_when_a_trusted_key_has_signed_them() {
    let project = Project::new();
    let share = project.directory();
    let ((secret, public), (_, other)) = (project.key("team"), project.key("other"));
    let again = project.sandbox.cmd().args(["cache", "key", "team"]).arg(&secret).assert().failure();
    assert!(String::from_utf8_lossy(&again.get_output().stderr).contains("File exists"), "a key was overwritten");

    project.fill(&share);
    let said = project.newcomer("unsigned", &share, &["--cache-trust", &public]);
    assert!(said.contains("0 reused") && !said.contains("fetched"), "{said}");

    fs::remove_dir_all(project.sandbox.path("share")).unwrap();
    let (_, said) =
        project.machine("signer").image(&project.environment, &["--cache-to", &share, "--cache-key", &secret]);
    assert!(!said.contains(&fs::read_to_string(&secret).unwrap().trim()[10..]), "{said}");
    let said = project.newcomer("trusting", &share, &["--cache-trust", &public, "--cache-trust", &other]);
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");
    let said = project.newcomer("stranger", &share, &["--cache-trust", &other]);
    assert!(!said.contains("fetched"), "{said}");
}

#[test]
fn settings_may_stand_in_the_environment_and_in_the_tools_own_file() {
    let project = Project::new();
    let share = project.directory();
    project.fill(&share);
    let (machine, environment) = (project.machine("variable"), &project.environment);
    let file = project.sandbox.path("work/image.tar");
    let run = |machine: &Machine<'_>, variable: Option<&str>| {
        let mut command = machine.command(environment);
        command.args(["--compression", "zstd", "-f"]).arg(&file);
        if let Some(value) = variable {
            command.env("LAYERHOLD_CACHE_FROM", value);
        }
        String::from_utf8(command.assert().success().get_output().stderr.clone()).unwrap()
    };
    let said = run(&machine, Some(&format!("{share},127.0.0.1:1/away")));
    assert!(said.contains("fetched from a shared cache") && said.contains("127.0.0.1:1/away"), "{said}");
    fs::create_dir_all(project.sandbox.path("home/.config/layerhold")).unwrap();
    let config = project.sandbox.path("home/.config/layerhold/config.toml");
    fs::write(&config, format!("[shared-cache]\nfrom = [\"{share}\"]\n")).unwrap();
    let said = run(&project.machine("file"), None);
    assert!(said.contains("fetched from a shared cache"), "{said}");
    fs::write(&config, "[shared-cache]\nfrom = [\"https://registry.example/cache\"]\n").unwrap();
    let outcome = project.machine("wrong").command(environment).arg("-f").arg(&file).assert().failure();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(
        said.contains("config.toml: 'https://registry.example/cache' is not the address of a shared cache"),
        "{said}"
    );
    // A variable that is set to nothing is not set: the file is read.
    let mut command = project.machine("empty").command(environment);
    command.env("LAYERHOLD_CACHE_FROM", "").env("LAYERHOLD_CACHE_TO", "").arg("-f").arg(&file);
    let said = String::from_utf8(command.assert().failure().get_output().stderr.clone()).unwrap();
    assert!(said.contains("config.toml: 'https://registry.example/cache'"), "{said}");
    fs::remove_file(&config).unwrap();
    let said = String::from_utf8(command.assert().success().get_output().stderr.clone()).unwrap();
    assert!(!said.contains("shared cache"), "{said}");
}

#[test]
fn what_is_written_and_signed_may_be_a_setting_too() {
    let project = Project::new();
    let (share, (secret, public)) = (project.directory(), project.key("team"));
    let given = "given to the shared cache 'file://[SANDBOX]/share': 3 layers, 3 blobs";
    let run = |name: &str, variable: Option<&str>| {
        let file = project.sandbox.path("work/image.tar");
        let mut command = project.machine(name).command(&project.environment);
        command.args(["--compression", "zstd", "-f"]).arg(&file);
        if let Some(value) = variable {
            command.env("LAYERHOLD_CACHE_TO", value);
        }
        let said = String::from_utf8(command.assert().success().get_output().stderr.clone()).unwrap();
        assert!(fs::read(file).unwrap() == project.expected, "{said}");
        project.sandbox.tidy(&said)
    };
    let said = run("variable", Some(&share));
    assert!(said.contains(given), "{said}");

    // What nobody has signed is as good as not there, so all is given again.
    let config = project.sandbox.path("home/.config/layerhold/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    let settings = format!("to = [\"{share}\"]\ntrust = [\"{public}\"]\nkey-file = \"{secret}\"\n");
    fs::write(&config, format!("[shared-cache]\n{settings}")).unwrap();
    let said = run("file", None);
    assert!(said.contains(given) && !said.contains("fetched"), "{said}");
    let said = run("another", None);
    assert!(said.contains("fetched from a shared cache: 1 layers") && said.contains("3 reused"), "{said}");
    fs::remove_file(&config).unwrap();
    let said = project.newcomer("trusting", &share, &["--cache-trust", &public]);
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");
}

#[test]
fn several_caches_are_filled_at_once() {
    let project = Project::new();
    let shares = ["share", "other"].map(|name| format!("file://{}", project.sandbox.path(name).display()));
    let both = ["--cache-to", &shares[0], "--cache-to", &shares[1]];
    let said = project.machine("first").image(&project.environment, &both).1;
    for (at, share) in shares.iter().enumerate() {
        let given = format!("given to the shared cache '{}': 3 layers, 3 blobs", project.sandbox.tidy(share));
        assert!(said.contains(&given), "{said}");
        let said = project.newcomer(&format!("m{at}"), share, &[]);
        assert!(said.contains("fetched from a shared cache: 1 layers") && said.contains(" 0 new"), "{said}");
    }
    // One that lacks everything gets it from whoever has it out of the other.
    fs::remove_dir_all(project.sandbox.path("other")).unwrap();
    let (image, said) = project.machine("third").image(&project.environment, &both);
    assert!(image == project.expected && said.contains("other': 3 layers, 3 blobs"), "{said}");
    assert!(said.contains("share': 0 layers, 0 blobs"), "{said}");
}

#[test]
fn a_bucket_is_a_cache_too() {
    let moto = peer!(moto);
    let project = Project::new();
    fs::create_dir_all(project.sandbox.path("nothing")).unwrap();
    let server = moto.start(&project.sandbox.path("nothing"), Readers::Owner);
    let share = server.url().replace("s3://cache", "s3://cache/team/layers");
    let (id, secret) = server.keys.clone();
    let image = |name: &str, how: &str, secret: &str| {
        let machine = project.machine(name);
        let file = project.sandbox.path("work/image.tar");
        let mut command = machine.command(&project.environment);
        command.env("AWS_ACCESS_KEY_ID", &id).env("AWS_SECRET_ACCESS_KEY", secret);
        let outcome = command.args(["--compression", "zstd", how, &share, "-f"]).arg(&file).assert().success();
        assert!(fs::read(&file).unwrap() == project.expected);
        String::from_utf8(outcome.get_output().stderr.clone()).unwrap()
    };
    let said = image("first", "--cache-to", &secret);
    assert!(said.contains("given to the shared cache 's3://cache/team/layers': 3 layers, 3 blobs"), "{said}");
    let said = image("second", "--cache-from", &secret);
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");
    let said = image("third", "--cache-from", "not the secret");
    assert!(said.contains("access is denied") && !said.contains("not the secret"), "{said}");
}

#[test]
fn a_bucket_of_googles_is_one_too() {
    let (moto, openssl) = (peer!(moto), peer!(openssl));
    let project = Project::new();
    fs::create_dir_all(project.sandbox.path("nothing")).unwrap();
    let server = moto.start(&project.sandbox.path("nothing"), Readers::All);
    let share = server.google_share(&project.sandbox, &openssl, "team/layers");
    let image = |name: &str, args: &[&str]| {
        let machine = project.machine(name);
        let file = project.sandbox.path("work/image.tar");
        let mut command = machine.command(&project.environment);
        let outcome = command.args(["--compression", "zstd"]).args(args).arg("-f").arg(&file).assert().success();
        assert!(fs::read(&file).unwrap() == project.expected);
        String::from_utf8(outcome.get_output().stderr.clone()).unwrap()
    };
    let said = image("first", &["--cache-to", &share]);
    assert!(said.contains("given to the shared cache 'gs://cache/team/layers': 3 layers, 3 blobs"), "{said}");
    let said = image("second", &["--cache-from", &share]);
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");
    // What is there is not given again.
    let said = image("third", &["--cache-to", &share]);
    assert!(said.contains("': 0 layers, 0 blobs"), "{said}");
    let absent = share.replace("//cache/", "//absent/");
    let said = image("fourth", &["--cache-from", &absent]);
    assert!(said.contains("the shared cache 'gs://absent/team/layers' is done without"), "{said}");
}

#[rstest]
#[case::of_amazons(false)]
#[case::of_googles(true)]
fn a_large_layer_goes_into_a_bucket_in_parts(#[case] is_googles: bool) {
    let moto = peer!(moto);
    let project = Project::new();
    fs::create_dir_all(project.sandbox.path("nothing")).unwrap();
    let server = moto.start(&project.sandbox.path("nothing"), Readers::of(is_googles));
    let share = match is_googles {
        true => server.google_share(&project.sandbox, &peer!(openssl), "team/layers"),
        false => server.share(&project.sandbox, "team/layers"),
    };
    let noise = project.store.add("noise", &Tree::new().file("share/noise", noise(20 << 20)));
    let environment = FloxEnv::of_store_paths(project.sandbox.path("noisy"), "noisy", &[("noise", &noise)], "");
    let (expected, _) = project.machine("alone-with-noise").image(&environment, &[]);
    let (image, said) = project.machine("first").image(&environment, &["--cache-to", &share]);
    assert!(image == expected && said.contains("3 layers, 3 blobs") && !said.contains("! "), "{said}");
    // Parts of eight megabytes.
    let parts = server.parts();
    assert_eq!(
        parts.iter().filter(|(name, parts)| name.contains("/blobs/sha256/") && **parts == 3).count(),
        1,
        "{parts:?}"
    );
    assert_eq!(parts.values().filter(|&&parts| parts > 1).count(), 1, "{parts:?}");
    let (image, said) = project.machine("second").image(&environment, &["--cache-from", &share]);
    assert!(image == expected && said.contains("fetched from a shared cache: 1 layers"), "{said}");
    assert!(said.contains(" 0 new") && !said.contains("! "), "{said}");
}

#[test]
fn garbage_of_a_cache_is_what_no_tag_leads_to_any_more() {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let setup = Setup { deletes: true, ..Setup::default() };
    let server = registry.start(&project.sandbox.path("registry"), setup);
    let (share, target) = (project.directory(), server.reference("team/app:v1"));
    let push = |program: &[u8]| {
        let path = project.store.add("app", &Tree::new().program("bin/app", program));
        let environment = FloxEnv::of_store_paths(project.sandbox.path("app"), "app", &[("app", path.as_str())], "");
        let machine = project.machine("pushing");
        let mut command = machine.command(&environment);
        command.args(["--cache-to", &share, "--push", &target]).assert().success();
    };
    push(b"first");
    push(b"second");
    // What was made within the hour stays, and a use is written down once a day: the sheets say that it was 26 hours ago.
    age(&project.sandbox.path("share"), 26 * 3600);
    let collect = |args: &[&str]| {
        let mut command = project.sandbox.cmd();
        command.args(["cache", "gc", "--remote", &share]).args(args);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = [output.stdout, output.stderr].concat();
        project.sandbox.tidy(&String::from_utf8(text).unwrap())
    };
    let object: Value = serde_json::from_str(&collect(&["--dry-run", "--json"])).unwrap();
    assert_eq!(
        (object["layers"].as_array().unwrap().len(), &object["layers_kept"]),
        (2, &Value::from(3)),
        "{object:#}"
    );
    let blobs = || files(&project.sandbox.path("share/blobs/sha256")).len();
    assert_eq!(blobs(), 5);
    assert!(collect(&["--keep-last", "2"]).contains("0 layers gone"));
    let said = collect(&[]);
    assert!(said.contains("no tag leads to it  app:latest") && said.contains("2 layers gone"), "{said}");
    assert_eq!(blobs(), 3);
    assert!(collect(&[]).contains("0 layers gone"));
    // A registry that cannot be asked is no reason to throw anything away.
    drop(server);
    let outcome = project.sandbox.cmd().args(["cache", "gc", "--remote", &share]).assert().failure();
    let said = String::from_utf8_lossy(&outcome.get_output().stderr).into_owned();
    assert!(said.contains("was not tidied\n  caused by: the registry '127.0.0.1:"), "{said}");
    assert_eq!(blobs(), 3);
}

/// Makes everything that a cache in a directory says and has so many seconds older.
pub(crate) fn age(share: &Path, seconds: u64) {
    for file in files(&share.join("sheets")) {
        let aged = older(&fs::read(&file).unwrap(), seconds);
        fs::write(file, aged).unwrap();
    }
    for blob in files(&share.join("blobs/sha256")) {
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        fs::File::options().write(true).open(blob).unwrap().set_modified(then).unwrap();
    }
}

/// A sheet, and all that it says of, so many seconds older.
pub(crate) fn older(sheet: &[u8], seconds: u64) -> Vec<u8> {
    rewritten(sheet, |line| {
        for (object, key) in [("", "time"), ("image", "used_at")] {
            let place = if object.is_empty() { Some(&mut *line) } else { line.get_mut(object) };
            if let Some(time) = place.and_then(|place| place.get_mut(key)) {
                *time = (time.as_u64().unwrap() - seconds).into();
            }
        }
    })
}

#[test]
fn uncompressed_layers_are_known_but_not_carried() {
    let project = Project::new();
    let share = project.directory();
    let file = project.sandbox.path("work/plain.tar");
    let plain = |name: &str, how: &str| {
        let machine = project.machine(name);
        let outcome = machine.command(&project.environment).args([how, &share, "-f"]).arg(&file).assert().success();
        Archive::open(&file);
        (fs::read(&file).unwrap(), String::from_utf8(outcome.get_output().stderr.clone()).unwrap())
    };
    let (first, said) = plain("first", "--cache-to");
    assert!(said.contains("3 layers, 0 blobs, 0 bytes"), "{said}");
    let (second, said) = plain("second", "--cache-from");
    assert!(first == second && said.contains("layers: 3 reused"), "{said}");
}
