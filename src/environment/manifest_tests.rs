use super::*;
use crate::environment::install::SelectedOutputs;
use rstest::rstest;

fn parse(text: &str) -> Result<Manifest, InvalidFile> {
    Manifest::parse(Path::new("manifest.toml"), text.as_bytes())
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// Every key that the documentation of schema 1.15.0 has.
const EVERY_KEY: &str = r#"
schema-version = "1.15.0"
minimum-cli-version = { version = "1.13.0", reason = "deactivation" }

[install]
hello = { pkg-path = "hello", pkg-group = "a", version = "^2.12", systems = ["x86_64-linux"], priority = 3 }
pip = { pkg-path = ["python3Packages", "pip"], outputs = "all" }
flake = { flake = "github:NixOS/nixpkgs#hello", outputs = ["out", "man"], systems = ["x86_64-linux"], priority = 6 }
path = { store-path = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3", systems = [], priority = 0 }

[vars]
A = "1"
"dotted.name" = "2"

[hook]
on-activate = "echo activate"
on-deactivate = "echo deactivate"

[profile]
common = "c"
bash = "b"
zsh = "z"
fish = "f"
tcsh = "t"
deactivate = { common = "c", bash = "b", zsh = "z", fish = "f", tcsh = "t" }

[options]
systems = ["x86_64-linux", "aarch64-linux"]
cuda-detection = false
sandbox = "warn"
allow = { unfree = true, broken = false, licenses = ["MIT"] }
semver.allow-pre-releases = true
activate = { mode = "run", add-sbin = true }

[services]
auto-start = true
[services.web]
command = "serve"
vars.PORT = "80"
is-daemon = true
shutdown.command = "stop"
systems = ["x86_64-linux"]
systemd.service.restart = "always"

[build.app]
command = "make"
runtime-packages = ["hello"]
sandbox = "pure"
sandbox-allow = ["/etc"]
version = { file = "VERSION" }
description = "An app"
license = ["MIT"]

[containerize.config]
user = "www-data"
exposed-ports = ["80"]
cmd = ["serve"]
volumes = ["/data"]
working-dir = "/srv"
labels = { a = "b" }
stop-signal = "SIGINT"

[include]
environments = [
    { dir = "../base", name = "base" },
    { remote = "owner/name", name = "other", generation = 3 },
    { reference = "owner/name" },
]

[plugins.secrets]
TOKEN = "path/to/token"
"#;

#[test]
fn every_documented_key_is_read() {
    let manifest = parse(EVERY_KEY).unwrap();
    assert_eq!(manifest.schema, Schema::V1_15);
    assert_eq!(manifest.install.keys().collect::<Vec<_>>(), ["flake", "hello", "path", "pip"]);
    assert_eq!(
        manifest.install["hello"],
        InstallEntry {
            source: PackageSource::Catalog { pkg_path: "hello".to_owned() },
            priority: Some(3),
            systems: Some(vec!["x86_64-linux".to_owned()]),
            outputs: None,
        }
    );
    let pip = &manifest.install["pip"];
    assert_eq!(pip.source, PackageSource::Catalog { pkg_path: "python3Packages.pip".to_owned() });
    assert_eq!(pip.outputs, Some(SelectedOutputs::All));
    let flake = &manifest.install["flake"];
    assert_eq!(flake.source, PackageSource::Flake { installable: "github:NixOS/nixpkgs#hello".to_owned() });
    assert_eq!(flake.outputs, Some(SelectedOutputs::Named(vec!["out".to_owned(), "man".to_owned()])));
    assert!(
        matches!(&manifest.install["path"].source, PackageSource::StorePath(path) if path.name() == "hello-2.12.3")
    );
    assert_eq!(manifest.vars["dotted.name"], "2");
    assert_eq!(manifest.on_activate.as_deref(), Some("echo activate"));
    assert_eq!(manifest.profile_common.as_deref(), Some("c"));
    assert_eq!(manifest.profile_bash.as_deref(), Some("b"));
    assert_eq!(manifest.activate_mode, Some(ActivateMode::Run));
    assert!(manifest.add_sbin);
    assert_eq!(manifest.systems.unwrap(), ["x86_64-linux", "aarch64-linux"]);
    assert_eq!(manifest.services.by_name.keys().collect::<Vec<_>>(), ["web"]);
    assert!(manifest.has_includes);
    assert_eq!(manifest.containerize.user.unwrap().name, "www-data");
}

#[rstest]
#[case("version = 1", Schema::V1)]
#[case("schema-version = '1.10.0'", Schema::V1_10)]
#[case("schema-version = '1.11.0'", Schema::V1_11)]
#[case("schema-version = '1.12.0'", Schema::V1_12)]
#[case("schema-version = '1.13.0'", Schema::V1_13)]
#[case("schema-version = '1.14.0'", Schema::V1_14)]
#[case("schema-version = '1.15.0'", Schema::V1_15)]
fn every_schema_version_is_known(#[case] text: &str, #[case] schema: Schema) {
    assert_eq!(parse(text).unwrap().schema, schema);
}

#[rstest]
#[case("version = 2", "1:11: version: the version 2 of the manifest's format is not known")]
#[case(
    "schema-version = '1.16.0'",
    "1:18: schema-version: the version \"1.16.0\" of the manifest's format is not known"
)]
fn another_version_says_which_are_known(#[case] text: &str, #[case] message: &str) {
    let error = parse(text).unwrap_err();
    assert_eq!(error.to_string(), format!("manifest.toml:{message}"));
    assert_eq!(
        error.hint().unwrap(),
        "'version = 1' and 'schema-version' from \"1.10.0\" to \"1.15.0\" are known; lower it and leave out what newer \
         versions added"
    );
}

#[rstest]
#[case("", "1:1: the key 'schema-version' is missing")]
#[case("version = '1'", "1:11: version: expected an integer, found a string")]
#[case("schema-version = 1", "1:18: schema-version: expected a string, found an integer")]
#[case("version = 1\nextra = 1", "2:1: extra: unknown key")]
#[case("version = 1\ninstall = []", "2:11: install: expected a table, found an array")]
#[case("version = 1\ninstall.a = 'a'", "2:13: install.a: expected a table, found a string")]
#[case(
    "version = 1\n[install.a]",
    "2:1: install.a: a package needs exactly one of 'pkg-path', 'flake' and 'store-path'"
)]
#[case(
    "version = 1\n[install]\na = { flake = 'f', pkg-path = 'p' }",
    "3:5: install.a: a package needs exactly one of 'pkg-path', 'flake' and 'store-path'"
)]
#[case("version = 1\n[install]\na.pkg-path = 1", "3:14: install.a.pkg-path: expected a string, found an integer")]
#[case("version = 1\n[install]\na = { pkg-path = 'a', pkg = 1 }", "3:23: install.a.pkg: unknown key")]
#[case("version = 1\n[install]\na = { flake = 'a', version = '1' }", "3:20: install.a.version: unknown key")]
#[case(
    "version = 1\n[install]\na = { pkg-path = 'a', outputs = 'all' }",
    "3:33: install.a.outputs: 'outputs' needs schema-version = \"1.10.0\" or newer"
)]
#[case(
    "schema-version = '1.10.0'\n[install]\na = { pkg-path = 'a', outputs = 'out' }",
    "3:33: install.a.outputs: 'out' must be \"all\" or a list of names"
)]
#[case(
    "schema-version = '1.10.0'\n[install]\na = { pkg-path = 'a', outputs = [1] }",
    "3:34: install.a.outputs[0]: expected a string, found an integer"
)]
#[case(
    "version = 1\n[install]\na = { pkg-path = 'a', priority = -1 }",
    "3:34: install.a.priority: -1 is not a priority: it must be between 0 and 4294967295"
)]
#[case(
    "version = 1\n[install]\na = { pkg-path = 'a', priority = 2.5 }",
    "3:34: install.a.priority: expected an integer, found a float"
)]
#[case(
    "version = 1\n[install]\na.store-path = '/nix/store/x'",
    "3:16: install.a.store-path: '/nix/store/x' is not a store path: its last part must be 32 digits, a dash and a name"
)]
#[case(
    "version = 1\n[install]\na.store-path = '/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3/bin'",
    "3:16: install.a.store-path: '/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3/bin' is not a store path: \
     its name has characters other than letters, digits and +-._?="
)]
#[case("version = 1\n[vars]\nPORT = 80", "3:8: vars.PORT: expected a string, found an integer")]
#[case("version = 1\n[vars]\nA = 2026-01-01", "3:5: vars.A: expected a string, found a date or time")]
#[case("version = 1\n[hook]\nscript = 'x'", "3:1: hook.script: unknown key")]
#[case("version = 1\n[hook]\non-activate = true", "3:15: hook.on-activate: expected a string, found a boolean")]
#[case("version = 1\n[profile]\nksh = 'x'", "3:1: profile.ksh: unknown key")]
#[case("version = 1\n[profile]\nzsh = 1", "3:7: profile.zsh: expected a string, found an integer")]
#[case("version = 1\n[profile.deactivate]\nksh = 'x'", "3:1: profile.deactivate.ksh: unknown key")]
#[case("version = 1\n[options.activate]\nmode = 'fast'", "3:8: options.activate.mode: 'fast' is not one of dev, run")]
#[case(
    "version = 1\n[options]\nsystems = 'all'",
    "3:11: options.systems: expected an array of strings, found a string"
)]
#[case(
    "version = 1\n[options.allow]\nunfree = 'yes'",
    "3:10: options.allow.unfree: expected a boolean, found a string"
)]
#[case("version = 1\n[services.a]\nvars = {}", "2:1: services.a: the key 'command' is missing")]
#[case("version = 1\n[services]\nauto-start = 'a'", "3:14: services.auto-start: expected a boolean, found a string")]
#[case(
    "version = 1\n[build.a]\ncommand = ''\nversion = 1",
    "4:11: build.a.version: expected a string, found an integer"
)]
#[case(
    "version = 1\n[build.a]\ncommand = ''\nsandbox = 'on'",
    "4:11: build.a.sandbox: 'on' is not one of off, warn, enforce, prompt, pure"
)]
#[case("version = 1\n[containerize]\nuser = 'a'", "3:1: containerize.user: unknown key")]
#[case("version = 1\n[containerize.config]\nUser = 'a'", "3:1: containerize.config.User: unknown key")]
#[case(
    "version = 1\n[containerize.config]\ncmd = 'serve'",
    "3:7: containerize.config.cmd: expected an array, found a string"
)]
#[case("version = 1\n[include]\nenvironments = [{}]", "3:17: include.environments[0]: the key 'remote' is missing")]
#[case(
    "version = 1\n[include]\nenvironments = [{ dir = '.', generation = 1 }]",
    "3:30: include.environments[0].generation: unknown key"
)]
#[case("version = 1\nplugins.a = {}\nplugins = 1", "3:1: plugins: duplicate key")]
fn errors_name_line_column_and_key(#[case] text: &str, #[case] message: &str) {
    assert_eq!(error(text), format!("manifest.toml:{message}"));
}

#[test]
fn a_manifest_needs_a_lockfile_only_for_what_it_does_not_resolve_itself() {
    let needs_none = |text: &str| parse(&format!("version = 1\n{text}")).unwrap().needs_no_lockfile();
    let path = "a.store-path = '/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3'";
    assert!(needs_none("[vars]\nA = 'b'"));
    assert!(needs_none(&format!("[install]\n{path}")));
    assert!(!needs_none(&format!("[install]\n{path}\nb.pkg-path = 'b'")));
    assert!(!needs_none("[install]\nb.flake = 'b'"));
    assert!(!needs_none("include.environments = [{ dir = '../b' }]"));
}

proptest::proptest! {
    #[test]
    fn no_manifest_makes_the_reader_panic(
        table in "(install|vars|hook|profile|options|services|build|containerize\\.config|include|plugins)",
        key in "[a-z.-]{1,12}",
        value in "(1|-1|''|'all'|true|\\[\\]|\\[\\[1\\]\\]|\\{\\}|\\{a=1\\}|1e9|1979-05-27)",
    ) {
        let _ = parse(&format!("version = 1\n[{table}]\n{key} = {value}\n"));
    }
}
