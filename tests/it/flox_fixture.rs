//! Flox environments on disk, and store roots that no Nix made and no database describes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use layerhold::blob::Digest;
use layerhold::nix::StorePath;
use serde_json::{Value, json};

use crate::peers::find_program;

/// A project directory with a `.flox` in it.
pub(crate) struct FloxEnv {
    dir: PathBuf,
}

impl FloxEnv {
    /// Writes `dir/.flox/env.json` and `dir/.flox/env/manifest.toml`; no lockfile.
    pub(crate) fn new(dir: impl Into<PathBuf>, name: &str, manifest: &str) -> Self {
        let environment = Self { dir: dir.into() };
        fs::create_dir_all(environment.dot_flox("env")).unwrap();
        environment.write("env.json", &json!({"name": name, "version": 1}).to_string());
        environment.write("env/manifest.toml", manifest);
        environment
    }

    /// An environment that installs store paths and nothing else: it needs no lockfile. `rest` is the remaining text
    /// of the manifest.
    pub(crate) fn of_store_paths(dir: impl Into<PathBuf>, name: &str, installs: &[(&str, &str)], rest: &str) -> Self {
        let lines = installs.iter().map(|(id, path)| format!("{id}.store-path = \"{path}\"\n"));
        Self::new(dir, name, &format!("version = 1\n\n[install]\n{}\n{rest}", lines.collect::<String>()))
    }

    /// Where it is: what `-d` takes.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// `relative` inside `.flox`.
    pub(crate) fn dot_flox(&self, relative: &str) -> PathBuf {
        self.dir.join(".flox").join(relative)
    }

    /// Writes a file inside `.flox`.
    pub(crate) fn write(&self, relative: &str, text: &str) {
        fs::write(self.dot_flox(relative), text).unwrap();
    }

    /// Writes a lockfile that belongs to the manifest as it stands now.
    pub(crate) fn lock(&self, packages: &[LockedPackage]) {
        let manifest = fs::read_to_string(self.dot_flox("env/manifest.toml")).unwrap();
        let mut manifest: Value = toml::from_str(&manifest).unwrap();
        let tables = manifest.as_object_mut().unwrap();
        // Flox leaves some empty tables out and writes others that the manifest lacks.
        tables.retain(|name, table| name == "install" || table.as_object().is_none_or(|table| !table.is_empty()));
        for name in ["install", "hook", "profile", "options"] {
            tables.entry(name).or_insert(json!({}));
        }
        let packages: Vec<_> = packages.iter().map(LockedPackage::entry).collect();
        let lockfile = json!({"lockfile-version": 1, "manifest": manifest, "packages": packages});
        self.write("env/manifest.lock", &serde_json::to_string_pretty(&lockfile).unwrap());
    }
}

/// A catalog package in a lockfile.
pub(crate) struct LockedPackage {
    /// Its name in `[install]`.
    pub(crate) install_id: String,
    /// Nix's name for the kind of machine.
    pub(crate) system: String,
    /// Outputs and their store paths.
    pub(crate) outputs: BTreeMap<String, String>,
    /// What newer schemas install.
    pub(crate) outputs_to_install: Vec<String>,
    /// Lower wins.
    pub(crate) priority: u32,
}

impl LockedPackage {
    /// A package for this machine with one output, at the usual priority.
    pub(crate) fn new(install_id: &str, out: &str) -> Self {
        Self {
            install_id: install_id.to_owned(),
            system: this_system(),
            outputs: BTreeMap::from([("out".to_owned(), out.to_owned())]),
            outputs_to_install: vec!["out".to_owned()],
            priority: 5,
        }
    }

    /// One more output that is not installed by default.
    pub(crate) fn with_output(mut self, name: &str, path: &str) -> Self {
        self.outputs.insert(name.to_owned(), path.to_owned());
        self
    }

    fn entry(&self) -> Value {
        let Self { install_id, system, outputs, outputs_to_install, priority } = self;
        json!({
            "attr_path": install_id, "broken": false, "derivation": "/nix/store/unknown.drv",
            "description": "A package of the tests", "install_id": install_id, "license": "MIT",
            "locked_url": "https://github.com/flox/nixpkgs?rev=0000000000000000000000000000000000000000",
            "name": install_id, "pname": install_id, "rev": "0000000000000000000000000000000000000000", "rev_count": 1,
            "rev_date": "2026-07-05T04:06:12Z", "scrape_date": "2026-07-06T04:40:45.046860Z",
            "stabilities": ["unstable"], "unfree": false, "version": "1",
            "outputs_to_install": outputs_to_install, "outputs": outputs, "system": system,
            "group": "toplevel", "priority": priority,
        })
    }
}

/// Nix's name for this machine.
pub(crate) fn this_system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}

/// `ROOT/nix/store` without a database.
pub(crate) struct BareStore {
    root: PathBuf,
}

impl BareStore {
    /// An empty store below `root`.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        fs::create_dir_all(root.join("nix/store")).unwrap();
        Self { root }
    }

    /// What `--store` takes.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The directory on this machine of a store path.
    pub(crate) fn real(&self, store_path: &str) -> PathBuf {
        self.root.join(store_path.trim_start_matches('/'))
    }

    /// Adds a tree under a hash made of its contents; `/nix/store/<hash>-<name>`.
    ///
    /// `@out@` in a file or link becomes the store path itself.
    pub(crate) fn add(&self, name: &str, tree: &Tree) -> String {
        let digest = Digest::of(format!("{name} {:?}", tree.0).as_bytes());
        let digest: Vec<u8> = digest.hex().into_bytes();
        let store_path = StorePath::synthetic(digest[..32].try_into().unwrap(), name).unwrap().to_string();
        let real = self.real(&store_path);
        if real.exists() {
            return store_path;
        }
        fs::create_dir(&real).unwrap();
        for (relative, node) in &tree.0 {
            let file = real.join(relative);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            match node {
                TreeNode::Directory => fs::create_dir_all(&file).unwrap(),
                TreeNode::Link(target) => symlink(target.replace("@out@", &store_path), &file).unwrap(),
                TreeNode::File { contents, executable } => {
                    fs::write(&file, replace(contents, b"@out@", store_path.as_bytes())).unwrap();
                    let mode = if *executable { 0o555 } else { 0o444 };
                    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
                }
            }
        }
        store_path
    }

    /// Adds a bash that runs in any container, as `bin/bash` and `bin/sh`.
    pub(crate) fn add_bash(&self) -> Option<String> {
        let bash = fs::read(find_program("bash-static")?).unwrap();
        Some(self.add("bash-static-5.2", &Tree::new().program("bin/bash", bash).link("bin/sh", "bash")))
    }

    /// Adds a few usual tools that run in any container.
    pub(crate) fn add_tools(&self) -> Option<String> {
        let busybox = fs::read(find_program("busybox")?).unwrap();
        let tools = ["cat", "env", "id", "kill", "ls", "mkdir", "ps", "readlink", "sleep", "stat", "touch", "tr", "wc"];
        let tree = Tree::new().program("bin/busybox", busybox);
        let tree = tools.iter().fold(tree, |tree, tool| tree.link(&format!("bin/{tool}"), "busybox"));
        Some(self.add("busybox-static-1.35", &tree))
    }
}

/// What a store path is to hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree(BTreeMap<PathBuf, TreeNode>);

#[derive(Clone, Debug)]
enum TreeNode {
    Directory,
    File { contents: Vec<u8>, executable: bool },
    Link(String),
}

impl Tree {
    /// An empty directory.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A regular file.
    pub(crate) fn file(self, path: impl AsRef<[u8]>, contents: impl Into<Vec<u8>>) -> Self {
        self.with(path, TreeNode::File { contents: contents.into(), executable: false })
    }

    /// An executable file.
    pub(crate) fn program(self, path: impl AsRef<[u8]>, contents: impl Into<Vec<u8>>) -> Self {
        self.with(path, TreeNode::File { contents: contents.into(), executable: true })
    }

    /// A symbolic link.
    pub(crate) fn link(self, path: impl AsRef<[u8]>, target: &str) -> Self {
        self.with(path, TreeNode::Link(target.to_owned()))
    }

    /// An empty directory.
    pub(crate) fn directory(self, path: impl AsRef<[u8]>) -> Self {
        self.with(path, TreeNode::Directory)
    }

    fn with(mut self, path: impl AsRef<[u8]>, node: TreeNode) -> Self {
        self.0.insert(PathBuf::from(std::ffi::OsStr::from_bytes(path.as_ref())), node);
        self
    }
}

fn replace(bytes: &[u8], what: &[u8], with: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = rest.windows(what.len()).position(|window| window == what) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(with);
        rest = &rest[at + what.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}

#[test]
fn a_bare_store_holds_what_was_added_under_a_hash_of_its_contents() {
    let dir = tempfile::tempdir().unwrap();
    let store = BareStore::new(dir.path());
    let tree = Tree::new().file("share/own", "in @out@").program("bin/x", "#!").link("bin/y", "x").directory("empty");
    let path = store.add("x-1", &tree);
    assert_eq!(store.add("x-1", &tree.clone()), path, "the same contents, the same path");
    assert_ne!(store.add("x-1", &tree.file("z", "")), path);
    assert_eq!(fs::read_to_string(store.real(&path).join("share/own")).unwrap(), format!("in {path}"));
    assert_eq!(fs::metadata(store.real(&path).join("bin/y")).unwrap().permissions().mode() & 0o777, 0o555);
    assert!(store.real(&path).join("empty").is_dir());
}
