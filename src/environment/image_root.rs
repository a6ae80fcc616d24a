//! The root of the image: the environment's tree, bash and coreutils, and the files that a Linux system expects.

use std::collections::BTreeSet;

use super::accounts;
use super::base::{Base, CA_BUNDLE};
use super::forest::{Forest, ForestNode, Propagation};
use super::store_view::StoreView;
use super::{ContainerConfig, ForestError, Package};
use crate::nix::{STORE_DIR, StorePath};
use crate::rootfs::{RootFs, RootNode, RootNodeKind};

/// Another place of the same certificates, where Debian's programs and Go look.
const CA_CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

/// Directories of ours: real ones, whatever the environment has there.
const DIRECTORIES: [&str; 11] =
    ["bin", "etc", "etc/ssl", "etc/ssl/certs", "nix", "nix/store", "run", "run/flox", "tmp", "var", "var/empty"];

/// Where the environment is found in every image, whatever its store path is called.
///
/// The root's links lead through it, but for those to bash and coreutils themselves. So a new version of another package
/// changes none of them: they are shipped again only where names come or go. They are also short enough for ustar, which
/// takes a third of the bytes of longer ones.
const ENVIRONMENT: &str = "nix/environment";

/// The root of an image, by what changes together.
pub(super) struct ImageRoot {
    /// The links to what the environment, bash and coreutils have.
    pub(super) links: RootFs,
    /// What lies above them: accounts, directories with an owner or a mode of their own, and [`ENVIRONMENT`].
    pub(super) own: RootFs,
}

/// Makes the root around the environment at `env`. Where the environment has a file that is also one of ours, ours
/// stays. Only `/run` and the working directory belong to the container's user; all else is root's.
pub(super) fn make(
    view: &StoreView<'_>,
    env: &StorePath,
    base: &Base,
    config: &ContainerConfig,
) -> Result<ImageRoot, ForestError> {
    let working_dir = config.working_dir.as_deref().and_then(working_dir);
    let mut real: BTreeSet<Vec<u8>> = DIRECTORIES.iter().map(|path| path.as_bytes().to_vec()).collect();
    if let Some(path) = &working_dir {
        let parents = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        real.extend(parents.map(|end| path.as_bytes()[..end].to_vec()));
    }
    let forest = plant(view, env, base, &real)?;
    let own = own_files(env, config, real, working_dir);
    let links = links(&forest, env, base, &own);
    Ok(ImageRoot { links, own })
}

/// What the root has of its own, whatever is in the environment.
fn own_files(
    env: &StorePath,
    config: &ContainerConfig,
    directories: BTreeSet<Vec<u8>>,
    working_dir: Option<String>,
) -> RootFs {
    let mut own = RootFs::new();
    directories.into_iter().for_each(|path| own.directory(path, 0o755));
    own.symlink(ENVIRONMENT, env.to_string());
    let user = config.user.as_ref();
    own.file("etc/passwd", 0o644, accounts::passwd(user));
    own.file("etc/group", 0o644, accounts::group(user));
    own.file("etc/nsswitch.conf", 0o644, accounts::NSSWITCH);
    own.directory("var/empty", 0o555);
    own.directory("tmp", 0o1777);
    let (uid, gid) = user.map_or((0, 0), |user| (user.uid, user.gid));
    let users = |mode| RootNode { kind: RootNodeKind::Directory, mode, uid, gid };
    // Also for whoever `--user` names.
    own.insert("run", users(0o1777));
    own.insert("run/flox", users(0o1777));
    if let Some(path) = working_dir {
        let shared = matches!(path.as_str(), "tmp" | "run" | "run/flox");
        own.insert(path, users(if shared { 0o1777 } else { 0o755 }));
    }
    own
}

/// The forest, with the environment called by the name that it has in every image, and what programs look for in other
/// places than those where it is. Nothing is put where `own` has something, below what it has other than directories, or
/// into the store.
fn links(forest: &Forest, env: &StorePath, base: &Base, own: &RootFs) -> RootFs {
    let mut links = RootFs::new();
    let env = env.to_string().into_bytes();
    let is_directory = |node: &RootNode| node.kind == RootNodeKind::Directory;
    let has_room = |path: &[u8]| {
        let mut above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
        own.get(path).is_none()
            && above.all(|above| above != &STORE_DIR.as_bytes()[1..] && own.get(above).is_none_or(is_directory))
    };
    for (path, node) in forest.iter().filter(|(path, _)| has_room(path)) {
        match node {
            ForestNode::Directory => links.directory(path, 0o755),
            ForestNode::Link(target) => match target.strip_prefix(env.as_slice()) {
                Some(inside) => links.symlink(path, [b"/", ENVIRONMENT.as_bytes(), inside].concat()),
                None => links.symlink(path, target.clone()),
            },
        }
    }
    let is_free = |links: &RootFs, path: &[u8]| links.get(path).is_none() && has_room(path);
    if let Some(bash) = &base.bash
        && is_free(&links, b"bin/sh")
    {
        links.symlink("bin/sh", format!("{bash}/bin/{}", if base.bash_has_sh { "sh" } else { "bash" }));
    }
    if let Some(certificates) = &base.certificates {
        for path in [CA_BUNDLE, CA_CERTIFICATES] {
            if is_free(&links, path.as_bytes()) {
                links.symlink(path, format!("{certificates}/{CA_BUNDLE}"));
            }
        }
    }
    links
}

/// The environment's tree, and behind it, each at a priority of its own so that nothing conflicts, bash and coreutils.
fn plant(view: &StoreView<'_>, env: &StorePath, base: &Base, real: &BTreeSet<Vec<u8>>) -> Result<Forest, ForestError> {
    let paths = [Some(env), base.bash.as_ref(), base.coreutils.as_ref()];
    let packages: Vec<Package> = (0..)
        .zip(paths.into_iter().flatten())
        .map(|(priority, path)| Package { name: path.name().to_owned(), path: path.clone(), priority })
        .collect();
    Forest::plant(view, &packages, Propagation::UserEnvironment, real)
}

/// The working directory as a path in the root, or `None` where it is not for this layer to make: the root itself, and
/// what lies in the store or in the environment.
fn working_dir(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let path = parts.join("/");
    let is_in = |place| path.strip_prefix(place).is_some_and(|rest: &str| rest.is_empty() || rest.starts_with('/'));
    let is_made = is_in(&STORE_DIR[1..]) || is_in(ENVIRONMENT);
    (!path.is_empty() && !is_made).then_some(path)
}
