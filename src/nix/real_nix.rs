//! Stores that the real Nix made, against what the real Nix says of them. Runs where Nix is installed; in CI it must be.

use std::fs;
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::testing::{FORGETFUL, nar, skip_this};
use super::{Closure, ContentHash, LocalStore, Source, StorePath};

/// Two derivations, the second of which refers to the first and to itself, with everything a NAR can hold.
const EXPRESSION: &str = r#"
let
  build = name: script: derivation {
    inherit name; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" script ];
    PATH = "/usr/bin:/bin";
  };
  library = build "library-1.0" ''
    mkdir -p $out/lib; head -c 100000 /dev/zero > $out/lib/zeros; : > $out/lib/empty; ln -s zeros $out/lib/link
  '';
in build "tool-2.0" ''
  mkdir -p $out/bin $out/a $out/a-b $out/share/empty
  echo "${library}/lib" > $out/bin/tool; chmod +x $out/bin/tool
  echo "$out" > $out/a/self; echo x > $out/a.b; ln -s ${library}/lib/zeros $out/share/zeros
  printf 12345678 > "$out/eight"; echo odd > "$out/odd name"
''
"#;

struct RealStore {
    root: TempDir,
}

impl RealStore {
    /// Runs a program of Nix's on the store.
    fn nix(&self, program: &str, args: &[&str]) -> String {
        let output = Command::new(program)
            .args(args)
            .args(["--store", self.root.path().to_str().unwrap()])
            .args(["--option", "sandbox", "false", "--option", "substitute", "false"])
            .args(["--option", "build-users-group", ""])
            // A store under another root is built in a chroot, sandbox or not; the builder is this machine's shell.
            .args(["--option", "sandbox-paths", "/bin /usr /lib /lib64"])
            .env("HOME", self.root.path().join("home"))
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {error}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A store in which the expression was built, with the path of the tool.
    fn build() -> Option<(Self, StorePath)> {
        let absent = Command::new("nix-store").arg("--version").output().is_err();
        if absent {
            skip_this("nix");
            return None;
        }
        let store = Self { root: TempDir::new().unwrap() };
        let out = store.nix("nix-build", &["--no-out-link", "--expr", EXPRESSION]);
        let tool = out.parse().unwrap();
        Some((store, tool))
    }
}

/// What `nix-store --dump` writes of a path on disk.
fn dump(path: &Path) -> Vec<u8> {
    let output = Command::new("nix-store").arg("--dump").arg(path).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn the_database_is_read_as_nix_reads_it() {
    let Some((nix, tool)) = RealStore::build() else { return };
    let store = LocalStore::open(nix.root.path(), FORGETFUL).unwrap();
    assert!(store.has_database());
    let closure = Closure::compute(&store, [tool.clone()]).unwrap();
    assert_eq!(closure.paths().len(), 2);
    for info in closure.paths() {
        let path = info.path.to_string();
        let mut references: Vec<String> =
            nix.nix("nix-store", &["-q", "--references", &path]).lines().map(str::to_owned).collect();
        references.retain(|reference| *reference != path);
        references.sort();
        let mut ours: Vec<String> = info.references.iter().map(StorePath::to_string).collect();
        ours.sort();
        assert_eq!(ours, references);
        assert_eq!(info.nar_size.to_string(), nix.nix("nix-store", &["-q", "--size", &path]));
        let hash = nix.nix("nix-store", &["-q", "--hash", &path]);
        assert_eq!(info.content, ContentHash::from_nar_hash(&hash).unwrap());
    }
    assert_eq!(closure.get(&tool).unwrap().references.len(), 1);
}

#[test]
fn a_walk_gives_the_nar_that_nix_dumps_and_hashes() {
    let Some((nix, tool)) = RealStore::build() else { return };
    let store = LocalStore::open(nix.root.path(), FORGETFUL).unwrap();
    for info in Closure::compute(&store, [tool]).unwrap().paths() {
        let ours = nar(&store, &info.path);
        assert!(ours == dump(&nix.root.path().join("nix/store").join(info.path.base_name())));
        assert_eq!(ours.len() as u64, info.nar_size);
        assert_eq!(ContentHash::Nar(Sha256::digest(&ours).into()), info.content);
    }
}

#[test]
fn without_its_database_a_store_has_the_same_references_and_sizes() {
    let Some((nix, tool)) = RealStore::build() else { return };
    let with = Closure::compute(&LocalStore::open(nix.root.path(), FORGETFUL).unwrap(), [tool.clone()]).unwrap();
    fs::remove_dir_all(nix.root.path().join("nix/var/nix/db")).unwrap();
    let store = LocalStore::open(nix.root.path(), FORGETFUL).unwrap();
    assert!(!store.has_database());
    let without = Closure::compute(&store, [tool]).unwrap();
    for (with, without) in with.paths().zip(without.paths()) {
        assert_eq!(
            (&with.path, with.nar_size, &with.references),
            (&without.path, without.nar_size, &without.references)
        );
        assert!(matches!(without.content, ContentHash::Tree(_)));
    }
    assert_eq!(with.paths().len(), without.paths().len());
    assert_eq!(store.path_info(&"/nix/store/00000000000000000000000000000000-x".parse().unwrap()).unwrap(), None);
}
