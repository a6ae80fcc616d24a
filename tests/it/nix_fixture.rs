//! A real Nix store, built by a real Nix out of this machine's own programs: true references, several outputs, and
//! everything that a store path may hold. Built once and kept below `target`; nothing touches `/nix`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::FlockOperation;

use crate::peers::find_program;

/// The derivations; `libraries.nix`, which is generated, lists the shared libraries that they need.
const EXPRESSION: &str = include_str!("nix_fixture.nix");

/// The programs whose libraries become store paths; the expression copies them.
const PROGRAMS: &[&str] = &["bash", "cat", "ls", "id", "env", "sleep", "stat", "sort"];

/// A store with the packages of `nix_fixture.nix`.
pub(crate) struct NixStore {
    root: PathBuf,
    config: PathBuf,
    packages: BTreeMap<String, BTreeMap<String, String>>,
}

/// The store that all tests read. `None` where Nix, patchelf or a C compiler is missing.
pub(crate) fn nix() -> Option<&'static NixStore> {
    static STORE: OnceLock<Option<NixStore>> = OnceLock::new();
    STORE.get_or_init(NixStore::open_or_build).as_ref()
}

impl NixStore {
    /// What `--store` takes.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The store path of a package's default output.
    pub(crate) fn out(&self, package: &str) -> &str {
        self.output(package, "out")
    }

    /// The store path of one of a package's outputs.
    pub(crate) fn output(&self, package: &str, output: &str) -> &str {
        &self.packages[package][output]
    }

    /// The directory on this machine of a store path.
    pub(crate) fn real(&self, store_path: &str) -> PathBuf {
        self.root.join(store_path.trim_start_matches('/'))
    }

    /// What Nix itself takes for the closure of some paths.
    pub(crate) fn closure(&self, paths: &[&str]) -> BTreeSet<String> {
        let output = self.nix("nix-store").args(["--query", "--requisites"]).args(paths).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// Takes what is in the large files of these packages and all that they need: for a copy.
    pub(crate) fn empty(&self, packages: &[&str]) {
        let outs: Vec<_> = packages.iter().map(|package| self.out(package)).collect();
        let emptied: usize =
            self.closure(&outs).iter().map(|path| empty(&self.root().join(path.trim_start_matches('/')))).sum();
        assert!(emptied > 10, "{emptied} files");
    }

    /// A program of Nix's, set up for this store.
    pub(crate) fn nix(&self, program: &str) -> Command {
        nix_command(program, &self.root, &self.config)
    }

    /// A copy that a test may damage or add to.
    pub(crate) fn copy(&self, to: &Path) -> Self {
        let status = Command::new("cp").args(["-a", "--"]).arg(&self.root).arg(to).status().unwrap();
        assert!(status.success());
        Self { root: to.to_owned(), config: self.config.clone(), packages: self.packages.clone() }
    }

    /// A store of its own, with nothing in it yet.
    pub(crate) fn empty_one(&self, root: PathBuf) -> Self {
        fs::create_dir_all(&root).unwrap();
        Self { root, config: self.config.clone(), packages: BTreeMap::new() }
    }

    /// Copies a directory into the store; says its store path.
    pub(crate) fn add(&self, directory: &Path) -> String {
        output_of(self.nix("nix-store").arg("--add").arg(directory)).trim().to_owned()
    }

    /// Removes a store path.
    pub(crate) fn delete(&self, store_path: &str) {
        output_of(self.nix("nix-store").args(["--delete", store_path]));
    }

    fn open_or_build() -> Option<Self> {
        for program in ["nix-build", "nix-instantiate", "patchelf", "cc", "ldd"] {
            find_program(program)?;
        }
        let libraries = libraries();
        let key = blake3::hash(format!("{EXPRESSION}{libraries}").as_bytes()).to_hex();
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(place).unwrap();
        // Every test may be a process of its own; the first one builds, the others wait for it.
        let lock = File::create(place.join("nix-fixture.lock")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        let built = place.join(format!("nix-fixture-{}", &key[..16]));
        if !built.exists() {
            let partial = place.join("nix-fixture.partial");
            if partial.exists() {
                fs::remove_dir_all(&partial).unwrap();
            }
            build(&partial, &libraries);
            fs::rename(&partial, &built).unwrap();
        }
        let packages = serde_json::from_slice(&fs::read(built.join("packages.json")).unwrap()).unwrap();
        Some(Self { root: built.join("root"), config: built.join("config"), packages })
    }
}

/// Builds everything into `place/root`; writes `place/packages.json`, the outputs of each package.
fn build(place: &Path, libraries: &str) {
    let (root, config) = (place.join("root"), place.join("config"));
    fs::create_dir_all(&config).unwrap();
    fs::create_dir_all(&root).unwrap();
    // A store that does not lie at /nix is built for in a chroot, whatever `sandbox` says: hence the paths.
    let settings = "build-users-group =\nsandbox = false\nfilter-syscalls = false\nsubstitute = false\nsubstituters =\n\
         sandbox-paths = /bin /usr /lib /lib64? /etc/alternatives?\n";
    fs::write(config.join("nix.conf"), settings).unwrap();
    fs::write(config.join("fixture.nix"), EXPRESSION).unwrap();
    fs::write(config.join("libraries.nix"), libraries).unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = nix_command(program, &root, &config).args(args).arg(config.join("fixture.nix")).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    run("nix-build", &["--no-out-link", "-A", "packages"]);
    let outputs = run("nix-instantiate", &["--eval", "--strict", "--json", "-A", "outputs"]);
    fs::write(place.join("packages.json"), outputs).unwrap();
}

fn nix_command(program: &str, root: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("NIX_CONF_DIR", config).env("HOME", config).env_remove("NIX_PATH").env_remove("NIX_CONFIG");
    command.arg("--store").arg(root);
    command
}

/// A Nix expression: `{ loader; libc; libraries = { "<soname>" = { file; needs; }; }; }`, as the dynamic linker
/// resolves [`PROGRAMS`]. Libraries of glibc itself are `libc`'s neighbours and not listed.
fn libraries() -> String {
    let bash = find_program("bash").unwrap();
    let loader = patchelf("--print-interpreter", &bash);
    let resolved: BTreeMap<String, PathBuf> = PROGRAMS
        .iter()
        .flat_map(|program| {
            let listing = output_of(Command::new("ldd").arg(find_program(program).unwrap()));
            let pairs = listing.lines().filter_map(|line| {
                let (name, rest) = line.trim().split_once(" => ")?;
                Some((name.to_owned(), fs::canonicalize(rest.split(" (").next()?).ok()?))
            });
            pairs.collect::<Vec<_>>()
        })
        .collect();
    let libc = resolved["libc.so.6"].parent().unwrap().to_owned();
    let is_glibc = |name: &str| {
        ["libc.", "libm.", "libdl.", "libpthread.", "librt.", "ld-"].iter().any(|lead| name.starts_with(lead))
    };
    let list = resolved.iter().filter(|(name, _)| !is_glibc(name)).map(|(name, file)| {
        let needs = patchelf("--print-needed", file);
        let needs: String = needs.lines().filter(|name| !is_glibc(name)).map(|name| format!(" \"{name}\"")).collect();
        format!("    \"{name}\" = {{ file = \"{}\"; needs = [{needs} ]; }};\n", file.display())
    });
    let list: String = list.collect();
    format!("{{\n  loader = \"{loader}\";\n  libc = \"{}\";\n  libraries = {{\n{list}  }};\n}}\n", libc.display())
}

fn patchelf(question: &str, file: &Path) -> String {
    output_of(Command::new("patchelf").arg(question).arg(file)).trim().to_owned()
}

fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_fixture_is_a_store_that_nix_itself_finds_whole() {
    let store = crate::peers::peer!(nix);
    let verified = store.nix("nix-store").args(["--verify", "--check-contents"]).output().unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let closure = store.closure(&[store.out("greeter")]);
    for package in ["greeter", "hello", "bash", "glibc"] {
        assert!(closure.contains(store.out(package)), "{package} is in {closure:#?}");
    }
    assert!(!closure.contains(store.output("hello", "doc")));
    let hello = store.nix("nix-store").args(["--query", "--references", store.out("hello")]).output().unwrap();
    assert!(String::from_utf8(hello.stdout).unwrap().contains(store.out("glibc")));
}

/// Overwrites the large files below with zeros of the same number; says how many.
fn empty(path: &Path) -> usize {
    let metadata = fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() {
        return fs::read_dir(path).unwrap().map(|entry| empty(&entry.unwrap().path())).sum();
    }
    if !metadata.is_file() || metadata.len() < 4096 {
        return 0;
    }
    fs::write(path, vec![0; usize::try_from(metadata.len()).unwrap()]).unwrap();
    1
}
