//! From a symbolic link to the store path that it names.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::{STORE_DIR, StorePath};

/// As many links as Linux follows in one path (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Follows `link` component by component until it is in the store `/nix/store`, or in `store`, where that store's
/// files lie. `root` is where absolute links into `/nix` are looked for first.
pub(super) fn resolve(root: &Path, store: &Path, link: &Path) -> io::Result<Option<StorePath>> {
    // The way there may lead through links, and then `at` is spelled otherwise.
    let store = fs::canonicalize(store)?;
    let mut at = PathBuf::new();
    let mut ahead: VecDeque<OsString> = VecDeque::new();
    let mut links = 0;
    push_front(&mut ahead, link);
    while let Some(component) = ahead.pop_front() {
        match Path::new(&component).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => match at.components().next_back() {
                Some(Component::Normal(_)) => _ = at.pop(),
                Some(Component::RootDir) => {}
                _ => at.push(".."),
            },
            Some(Component::Normal(name)) => {
                let next = at.join(name);
                if at == store || at == Path::new(STORE_DIR) {
                    return Ok(name.to_str().and_then(|name| StorePath::from_base_name(name).ok()));
                }
                match fs::symlink_metadata(&next) {
                    Ok(metadata) if metadata.is_symlink() => {
                        links += 1;
                        if links > MOST_LINKS {
                            return Err(rustix::io::Errno::LOOP.into());
                        }
                        let target = fs::read_link(&next)?;
                        push_front(&mut ahead, &under_root(root, target));
                    }
                    Ok(_) => at = next,
                    // The store itself need not be where its links say: a store under another root has them too.
                    Err(error) if is_absent(&error) && !Path::new(STORE_DIR).starts_with(&next) => return Ok(None),
                    Err(error) if is_absent(&error) => at = next,
                    Err(error) => return Err(error),
                }
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Reads a file, following links at its end; absolute ones into the store lead below `root`.
pub(super) fn read_file(root: &Path, file: PathBuf) -> io::Result<Option<Vec<u8>>> {
    let mut at = file;
    for _ in 0..MOST_LINKS {
        match fs::read_link(&at) {
            Ok(target) if target.starts_with(STORE_DIR) => {
                at = root.join(target.strip_prefix("/").unwrap_or(&target));
            }
            Ok(target) => at = at.parent().unwrap_or(Path::new("/")).join(target),
            // Not a link: the file itself.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return fs::read(&at).map(Some),
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn push_front(ahead: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        ahead.push_front(component.as_os_str().to_owned());
    }
}

/// Links in a store under another root are written as if the root were `/`.
fn under_root(root: &Path, target: PathBuf) -> PathBuf {
    match target.strip_prefix("/") {
        Ok(inside) if inside.starts_with("nix") && !inside.starts_with("nix/store") => {
            let candidate = root.join(inside);
            if fs::symlink_metadata(&candidate).is_ok() { candidate } else { target }
        }
        _ => target,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::LocalStore;
    use super::super::testing::{FORGETFUL, TestStore, store_path};
    use super::*;

    fn env() -> StorePath {
        store_path('1', "env")
    }

    /// A store whose root also has `project/.flox/run`.
    fn store() -> (TestStore, PathBuf) {
        let store = TestStore::new();
        let run = store.root().join("project/.flox/run");
        fs::create_dir_all(&run).unwrap();
        (store, run)
    }

    #[test]
    fn links_are_followed_to_the_store() {
        let (store, run) = store();
        symlink(env().to_absolute(), run.join("absolute")).unwrap();
        symlink(env().to_absolute().join("bin/tool"), run.join("inside")).unwrap();
        symlink("absolute", run.join("relative")).unwrap();
        symlink("../run/./relative", run.join("through-parent")).unwrap();
        symlink("../.flox", store.root().join("project/.flox/again")).unwrap();
        symlink(store.path(&env()), run.join("physical")).unwrap();
        let local = store.open();
        for link in ["absolute", "inside", "relative", "through-parent", "../again/run/absolute", "physical"] {
            assert_eq!(local.resolve(&run.join(link)).unwrap(), Some(env()), "{link}");
        }
        symlink(store.root(), store.root().join("root")).unwrap();
        let linked = LocalStore::open(&store.root().join("root"), FORGETFUL).unwrap();
        assert_eq!(linked.resolve(&run.join("physical")).unwrap(), Some(env()));
        assert_eq!(local.resolve(&env().to_absolute()).unwrap(), Some(env()));
        assert_eq!(local.resolve(&store.path(&env()).join("bin")).unwrap(), Some(env()));
    }

    #[test]
    fn a_profile_under_another_root_is_found_there() {
        let (store, run) = store();
        let profiles = store.root().join("nix/var/nix/profiles");
        fs::create_dir_all(&profiles).unwrap();
        symlink("dev-1-link", profiles.join("layerhold-test-dev")).unwrap();
        symlink(env().to_absolute(), profiles.join("dev-1-link")).unwrap();
        symlink("/nix/var/nix/profiles/layerhold-test-dev", run.join("dev")).unwrap();
        assert_eq!(store.open().resolve(&run.join("dev")).unwrap(), Some(env()));
    }

    #[test]
    fn what_leads_elsewhere_names_no_store_path() {
        let (store, run) = store();
        symlink("/nix/store", run.join("store")).unwrap();
        symlink("/nix/store/.links/x", run.join("links")).unwrap();
        symlink("nowhere/at/all", run.join("dangling")).unwrap();
        fs::write(run.join("file"), "").unwrap();
        for link in ["store", "links", "dangling", "file", "file/below", "absent", "."] {
            assert_eq!(store.open().resolve(&run.join(link)).unwrap(), None, "{link}");
        }
    }

    #[test]
    fn a_circle_of_links_is_an_error() {
        let (store, run) = store();
        symlink("b", run.join("a")).unwrap();
        symlink("a", run.join("b")).unwrap();
        assert_eq!(store.open().resolve(&run.join("a")).unwrap_err().raw_os_error(), Some(40));
    }
}
