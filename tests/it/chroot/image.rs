//! An image's root on disk, and programs run in it as a runtime runs them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use layerhold::environment::{
    ActivateMode, Manifest, PRIORITY_SCALE, Package, RealiseRequest, Realised, StartServices, System, realise,
};
use layerhold::nix::{Closure, ContentHash, Node, PathInfo, Source, SourceError, StorePath, Visitor, WalkError};
use layerhold::rootfs::RootNodeKind;
use tempfile::TempDir;

use super::succeeded;
use crate::peers::skip_this;
use crate::stand_in;

/// A store of directories on disk, without a database and without references.
struct Disk(PathBuf);

impl Disk {
    fn on_disk(&self, path: &StorePath) -> PathBuf {
        self.0.join(path.to_string().trim_start_matches('/'))
    }
}

impl Source for Disk {
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        let info = || PathInfo {
            path: path.clone(),
            content: ContentHash::Tree([0; 32]),
            nar_size: 0,
            references: Default::default(),
        };
        Ok(self.on_disk(path).exists().then(info))
    }

    fn walk(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError> {
        let at = self.on_disk(path);
        if !at.exists() {
            return Err(WalkError::Absent { path: at });
        }
        walk(&at, b"", visitor).map_err(WalkError::Visitor)
    }
}

fn walk(at: &Path, rel: &[u8], visitor: &mut dyn Visitor) -> io::Result<()> {
    let meta = fs::symlink_metadata(at)?;
    if meta.is_symlink() {
        return visitor.node(rel, Node::Symlink { target: fs::read_link(at)?.as_os_str().as_bytes() });
    }
    if meta.is_file() {
        let contents = fs::read(at)?;
        let executable = meta.permissions().mode() & 0o100 != 0;
        return visitor.node(rel, Node::Regular { executable, size: meta.len(), contents: &mut contents.as_slice() });
    }
    visitor.node(rel, Node::Directory)?;
    let mut names: Vec<_> = fs::read_dir(at)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        let below = if rel.is_empty() { name.as_bytes().to_vec() } else { [rel, b"/", name.as_bytes()].concat() };
        walk(&at.join(&name), &below, visitor)?;
    }
    Ok(())
}

/// `None` where these tests cannot run.
fn static_programs() -> Option<[PathBuf; 2]> {
    let find = |names: [&str; 2]| names.into_iter().map(PathBuf::from).find(|path| path.exists());
    let programs = (find(["/usr/bin/bash-static", "/bin/bash-static"]), find(["/bin/busybox", "/usr/bin/busybox"]));
    match programs {
        (Some(bash), Some(busybox)) if rustix::process::geteuid().is_root() => Some([bash, busybox]),
        _ => {
            skip_this("root, bash-static and busybox-static");
            None
        }
    }
}

/// An image's root on disk.
pub(super) struct Image {
    dir: TempDir,
    pub(super) realised: Realised,
}

fn store_path(name: &str) -> StorePath {
    StorePath::synthetic(blake3::hash(name.as_bytes()).as_bytes(), name).unwrap()
}

fn put(root: &Path, name: &str, rel: &str, contents: &[u8], mode: u32) {
    let path = root.join(store_path(name).to_string().trim_start_matches('/')).join(rel);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, contents).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Programs that the environment has, all of them busybox.
const APPLETS: [&str; 9] = ["cat", "env", "id", "ls", "printf", "pwd", "sh", "sleep", "touch"];

pub(super) fn image_with(manifest: &Manifest, mode: ActivateMode, coreutils: bool) -> Option<Image> {
    make(manifest, mode, Kind { without_coreutils: !coreutils, ..Kind::default() })
}

/// An image of an environment that flox built, whose activation is a few lines that do as flox's does: variables, then
/// a shell that is given the command as a text.
pub(super) fn built_image(manifest: &Manifest) -> Option<Image> {
    make(manifest, ActivateMode::Dev, Kind { built: true, ..Kind::default() })
}

/// An image of an environment with all that an activation looks for.
pub(super) fn image_of_everything(manifest: &Manifest, mode: ActivateMode) -> Option<Image> {
    make(manifest, mode, Kind { everything: true, ..Kind::default() })
}

/// What is special about an image.
#[derive(Clone, Copy, Default)]
struct Kind {
    without_coreutils: bool,
    built: bool,
    everything: bool,
}

fn make(manifest: &Manifest, mode: ActivateMode, kind: Kind) -> Option<Image> {
    let [bash, busybox] = static_programs()?;
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    put(root, "bash-5", "bin/bash", &fs::read(bash).unwrap(), 0o555);
    put(root, "greeter-1", "bin/greet", b"#!/bin/sh\necho greetings\n", 0o555);
    put(root, "greeter-1", "etc/profile.d/greeter.sh", b"export GREETER_PROFILE=\"$FLOX_ENV\"\n", 0o444);
    if !kind.without_coreutils {
        put(root, "coreutils-9", "bin/busybox", &fs::read(busybox).unwrap(), 0o555);
        let bin = root.join(store_path("coreutils-9").to_string().trim_start_matches('/')).join("bin");
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).unwrap();
        }
    }
    if kind.everything {
        for program in ["bin/cmake", "bin/java", "bin/python3.12", "sbin/daemon"] {
            put(root, "everything-1", program, b"#!/bin/sh\n", 0o555);
        }
        let bin = root.join(store_path("everything-1").to_string().trim_start_matches('/')).join("bin");
        symlink("python3.12", bin.join("python3")).unwrap();
        for (package, file) in [
            ("everything-1", "rustc-std-workspace-std/lib.rs"),
            ("everything-1", "share/jupyter/x"),
            ("glibc-locales-1", "lib/locale/locale-archive"),
            ("nss-cacert-1", "etc/ssl/certs/ca-bundle.crt"),
        ] {
            put(root, package, file, b"", 0o444);
        }
        put(root, "everything-1", "etc/profile.d/everything.sh", b"export PROFILE_D_SAW=\"$JAVA_HOME\"\n", 0o444);
    }
    let services = manifest.services.started(StartServices::AsManifest, System::X86_64Linux).unwrap();
    let mut names = vec!["bash-5", "greeter-1"];
    if kind.everything {
        names.extend(["everything-1", "glibc-locales-1", "nss-cacert-1"]);
    }
    if !kind.without_coreutils {
        names.push("coreutils-9");
    }
    if !services.is_empty() {
        put(root, "process-compose-1", "bin/process-compose", &stand_in::process_compose(), 0o555);
        names.push("process-compose-1");
    }
    if kind.built {
        let (env, bash) = (store_path("environment-dev"), store_path("bash-5"));
        let activate = format!(
            "#!{bash}/bin/bash\nexport FLOX_ENV={env} FLOX_PROMPT_ENVIRONMENTS=floxenv BUILT=built\n\
             printf -v command '%q ' \"$@\"\nexec {bash}/bin/bash -c \"$command\"\n"
        );
        put(root, "environment-dev", "activate", activate.as_bytes(), 0o555);
        put(root, "environment-dev", "activate.d/profile-common", b"echo profile of $BUILT\n", 0o444);
        names.push("environment-dev");
    }
    let source = Disk(root.to_owned());
    let closure = Closure::compute(&source, names.into_iter().map(store_path)).unwrap();
    let package = |name: &str| Package { name: name.into(), path: store_path(name), priority: 5 * PRIORITY_SCALE };
    let mut packages = vec![package("greeter-1")];
    if kind.everything {
        packages.push(package("everything-1"));
    }
    let built = kind.built.then(|| store_path("environment-dev"));
    let request = RealiseRequest {
        name: "demo",
        manifest,
        lockfile: None,
        packages: &packages,
        built: built.as_ref(),
        closure: &closure,
        source: &source,
        mode,
        shell: None,
        services: &services,
    };
    let realised = realise(&request).unwrap();
    for (path, node) in realised.own.clone().over(realised.links.clone()).iter() {
        let at = root.join(OsStr::from_bytes(path));
        match &node.kind {
            RootNodeKind::Directory => match fs::create_dir(&at) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => panic!("{}: {error}", at.display()),
                _ => {}
            },
            RootNodeKind::File(contents) => fs::write(&at, contents).unwrap(),
            RootNodeKind::Symlink(target) => {
                symlink(OsStr::from_bytes(target), &at).unwrap();
                continue;
            }
        }
        chown(&at, Some(node.uid), Some(node.gid)).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(node.mode)).unwrap();
    }
    for kernel in ["dev", "proc"] {
        fs::create_dir(root.join(kernel)).unwrap();
    }
    Some(Image { dir, realised })
}

pub(super) fn image(manifest: &Manifest) -> Option<Image> {
    image_with(manifest, ActivateMode::Dev, true)
}

/// How a container is run.
#[derive(Clone, Copy, Default)]
pub(super) struct Run<'a> {
    pub(super) user: Option<u32>,
    pub(super) read_only: bool,
    pub(super) env: &'a [(&'a str, &'a str)],
    pub(super) without_env: bool,
    pub(super) without_tmp: bool,
}

impl Image {
    /// A file in the root, as the host sees it.
    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// The command that becomes the entrypoint with `args`, in a root with `/dev` and `/proc` as a runtime makes it.
    pub(super) fn command<S: AsRef<OsStr>>(&self, run: Run<'_>, program: &[String], args: &[S]) -> Command {
        let root = self.dir.path().display();
        let mut script = format!("/bin/mount --bind {root} {root} && ");
        for kernel in ["dev", "proc"] {
            script += &format!("/bin/mount --rbind /{kernel} {root}/{kernel} && ");
        }
        if run.read_only {
            script += &format!("/bin/mount -o remount,bind,ro {root} && ");
            if !run.without_tmp {
                script += &format!("/bin/mount -t tmpfs tmpfs {root}/tmp && ");
            }
        }
        let user = run.user.map_or(String::new(), |id| format!("--userspec={id}:{id}"));
        script += &format!("exec /usr/sbin/chroot {user} {root} \"$@\"");
        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", &script, "sh"]).args(program).args(args);
        command.env_clear().current_dir("/");
        if !run.without_env {
            command.envs(self.realised.env.iter().cloned());
        }
        command.env("HOME", "/var/empty").envs(run.env.iter().copied());
        command
    }

    pub(super) fn run_with<S: AsRef<OsStr>>(&self, run: Run<'_>, args: &[S]) -> Output {
        self.command(run, &self.realised.entrypoint, args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command and returns its standard output; it must succeed.
    pub(super) fn stdout(&self, args: &[&str]) -> String {
        succeeded(&self.run_with(Run::default(), args))
    }

    /// The variables that a command sees.
    pub(super) fn variables(&self, run: Run<'_>) -> BTreeMap<String, String> {
        let output = succeeded(&self.run_with(run, &["env"]));
        let pairs = output.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}
