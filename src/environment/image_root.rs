//! The root of the image: the environment's tree, bash and coreutils, and the files that a Linux system expects.

use std::collections::BTreeSet;

use super::accounts;
use super::base::{Base, CA_BUNDLE};
use super::{ContainerConfig, Forest, ForestError, ForestNode, Package, Propagation};
use crate::nix::{STORE_DIR, Source, StorePath};
use crate::rootfs::{RootFs, RootNode, RootNodeKind};

/// Another place of the same certificates, where Debian's programs and Go look.
const CA_CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// Directories of ours: real ones, whatever the environment has there.
const DIRECTORIES: [&str; 10] =
    ["bin", "etc", "etc/ssl", "etc/ssl/certs", "nix", "run", "run/flox", "tmp", "var", "var/empty"];

/// Makes the root around the environment at `env`. Where the environment has a file that is also one of ours, ours
/// stays. Only `/run` and the working directory belong to the container's user; all else is root's.
pub(super) fn make(
    source: &dyn Source,
    env: &StorePath,
    base: &Base,
    config: &ContainerConfig,
) -> Result<RootFs, ForestError> {
    let working_dir = config.working_dir.as_deref().and_then(working_dir);
    let mut real: BTreeSet<Vec<u8>> = DIRECTORIES.iter().map(|path| path.as_bytes().to_vec()).collect();
    if let Some(path) = &working_dir {
        let parents = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        real.extend(parents.map(|end| path.as_bytes()[..end].to_vec()));
    }
    let mut rootfs = RootFs::new();
    for (path, node) in plant(source, env, base, &real)?.iter() {
        match node {
            ForestNode::Directory => rootfs.directory(path, 0o755),
            ForestNode::Link(target) => rootfs.symlink(path, target.clone()),
        }
    }
    // Parents first, so that nothing is put below what is a link.
    for path in real {
        if !matches!(rootfs.get(&path), Some(RootNode { kind: RootNodeKind::Directory, .. })) {
            rootfs.directory(path, 0o755);
        }
    }
    if let Some(bash) = &base.bash
        && rootfs.get(b"bin/sh").is_none()
    {
        rootfs.symlink("bin/sh", format!("{bash}/bin/{}", if base.bash_has_sh { "sh" } else { "bash" }));
    }
    if let Some(certificates) = &base.certificates {
        for path in [CA_BUNDLE, CA_CERTIFICATES] {
            if rootfs.get(path.as_bytes()).is_none() {
                rootfs.symlink(path, format!("{certificates}/{CA_BUNDLE}"));
            }
        }
    }
    let user = config.user.as_ref();
    rootfs.file("etc/passwd", 0o644, accounts::passwd(user));
    rootfs.file("etc/group", 0o644, accounts::group(user));
    rootfs.file("etc/nsswitch.conf", 0o644, accounts::NSSWITCH);
    rootfs.directory("var/empty", 0o555);
    rootfs.directory("tmp", 0o1777);
    let (uid, gid) = user.map_or((0, 0), |user| (user.uid, user.gid));
    let own = |mode| RootNode { kind: RootNodeKind::Directory, mode, uid, gid };
    // Also for whoever `--user` names.
    rootfs.insert("run", own(0o1777));
    rootfs.insert("run/flox", own(0o1777));
    if let Some(path) = working_dir {
        let shared = matches!(path.as_str(), "tmp" | "run" | "run/flox");
        rootfs.insert(path, own(if shared { 0o1777 } else { 0o755 }));
    }
    Ok(rootfs)
}

/// The environment's tree, and behind it, each at a priority of its own so that nothing conflicts, bash and coreutils.
fn plant(source: &dyn Source, env: &StorePath, base: &Base, real: &BTreeSet<Vec<u8>>) -> Result<Forest, ForestError> {
    let paths = [Some(env), base.bash.as_ref(), base.coreutils.as_ref()];
    let packages: Vec<Package> = (0..)
        .zip(paths.into_iter().flatten())
        .map(|(priority, path)| Package { name: path.name().to_owned(), path: path.clone(), priority })
        .collect();
    Forest::plant(source, &packages, Propagation::UserEnvironment, real)
}

/// The working directory as a path in the root, or `None` where it is not for this layer to make: the root itself, and
/// what lies in the store.
fn working_dir(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let path = parts.join("/");
    let store = &STORE_DIR[1..];
    let in_store = path.strip_prefix(store).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    (!path.is_empty() && !in_store).then_some(path)
}
