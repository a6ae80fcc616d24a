//! The Nix store on this machine.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::contents::{Hashing, examine};
use super::database::Database;
use super::nar::NarSize;
use super::refscan::KnownPaths;
use super::resolve;
use super::walk::{Location, list_level, read_file, walk};
use super::{Glimpse, PathInfo, Source, SourceError, StorePath, TreeState, Visitor, WalkError};

/// A Nix store on disk, with the root directory `/` or another (Nix's "local store" with a `root`).
///
/// Its files lie in `ROOT/nix/store`, its database in `ROOT/nix/var/nix/db`; its store paths are called
/// `/nix/store/...` whatever the root. Where there is a database, it alone says what is valid, what its contents hash
/// to, and what refers to what. A store without one is a directory of store paths: references are found by scanning,
/// as Nix finds them after a build, and contents are hashed.
pub struct LocalStore<'a> {
    root: PathBuf,
    /// `ROOT/nix/store`.
    store: PathBuf,
    directory: OwnedFd,
    knowledge: Knowledge,
    hashing: Hashing<'a>,
}

/// Who knows the paths of the store.
enum Knowledge {
    Database(Database),
    /// The names in the store's directory, as they were when it was opened.
    Directory(KnownPaths),
}

impl<'a> LocalStore<'a> {
    /// Opens the store under `root`. `hashing` is used only where no database vouches for the contents.
    ///
    /// Fails where there is no store, or where its database is there but cannot be read.
    pub fn open(root: &Path, hashing: Hashing<'a>) -> Result<Self, SourceError> {
        let store = root.join("nix/store");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = match openat(CWD, &store, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(SourceError::NoStore { store }),
            Err(errno) => return Err(SourceError::Store { store, source: errno.into() }),
        };
        let database = root.join("nix/var/nix/db/db.sqlite");
        let knowledge = match fs::metadata(&database) {
            Ok(_) => Knowledge::Database(Database::open(database)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Knowledge::Directory(list(&store)?),
            Err(source) => return Err(SourceError::DatabaseFile { database, source }),
        };
        Ok(Self { root: root.to_owned(), store, directory, knowledge, hashing })
    }

    /// Whether a Nix database vouches for the paths, so that none has to be read to be known.
    pub fn has_database(&self) -> bool {
        matches!(self.knowledge, Knowledge::Database(_))
    }

    /// The store path that a symbolic link names, through as many links as it takes: `.flox/run/<system>.<name>-dev`,
    /// a profile, a `result` of `nix build`. A path inside a store path names that.
    ///
    /// Links are followed as far as the store and no farther: a store path need not be there. Absolute links into
    /// `/nix` are looked for under this store's root first. `None` where `link` leads elsewhere or nowhere.
    pub fn resolve(&self, link: &Path) -> io::Result<Option<StorePath>> {
        resolve::resolve(&self.root, &self.store, link)
    }

    /// The bytes of a small file in a store path, through links within the store; `None` where there is none.
    pub fn read_file(&self, path: &StorePath, name: &str) -> io::Result<Option<Vec<u8>>> {
        resolve::read_file(&self.root, self.store.join(path.base_name()).join(name))
    }

    /// Whether something lies on disk in the place of `path`, whatever vouches for it.
    pub fn has_on_disk(&self, path: &StorePath) -> bool {
        matches!(self.is_on_disk(path), Ok(true))
    }

    /// The store paths whose names `wanted` wants, in the order of their names.
    pub fn named(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<StorePath>, SourceError> {
        let mut paths = store_paths(&self.store)?;
        paths.retain(|path| wanted(path.name()));
        paths.sort_by(|a, b| (a.name(), a).cmp(&(b.name(), b)));
        Ok(paths)
    }

    fn location<'s>(&'s self, path: &'s StorePath) -> Location<'s> {
        Location { directory: self.directory.as_fd(), store: &self.store, path }
    }

    fn is_on_disk(&self, path: &StorePath) -> Result<bool, SourceError> {
        match statat(&self.directory, path.base_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(WalkError::Read { path: self.location(path).of(b""), source: errno.into() }.into()),
        }
    }
}

impl Source for LocalStore<'_> {
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        let on_disk = self.is_on_disk(path)?;
        let database = match &self.knowledge {
            Knowledge::Database(database) => database,
            Knowledge::Directory(_) if !on_disk => return Ok(None),
            Knowledge::Directory(known) => return Ok(Some(examine(self.location(path), known, &self.hashing)?)),
        };
        let file = || database.file().to_owned();
        match database.record(path)? {
            None if on_disk => Err(SourceError::Unregistered { path: path.clone(), database: file() }),
            None => Ok(None),
            Some(_) if !on_disk => Err(SourceError::Vanished { path: path.clone(), database: file() }),
            Some(record) => {
                let nar_size = match record.nar_size {
                    Some(size) => size,
                    None => {
                        let mut size = NarSize::new();
                        walk(self.location(path), &mut size, self.hashing.now())?;
                        size.finish()
                    }
                };
                let references = record.references.into_iter().filter(|reference| reference != path).collect();
                Ok(Some(PathInfo { path: path.clone(), content: record.content, nar_size, references }))
            }
        }
    }

    fn walk(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError> {
        walk(self.location(path), visitor, self.hashing.now()).map(drop)
    }

    fn glimpse(&self, path: &StorePath, at: &[u8]) -> Result<Glimpse, WalkError> {
        Ok(Glimpse::Level(list_level(self.location(path), at)?))
    }

    fn read(&self, path: &StorePath, at: &[u8]) -> Result<Vec<u8>, WalkError> {
        read_file(self.location(path), at)
    }

    fn walk_in_state(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<Option<TreeState>, WalkError> {
        walk(self.location(path), visitor, self.hashing.now())
    }
}

fn list(store: &Path) -> Result<KnownPaths, SourceError> {
    Ok(KnownPaths::new(store_paths(store)?))
}

/// Every store path in the directory; other files there (`.links`, temporary ones) are not Nix's concern either.
fn store_paths(store: &Path) -> Result<Vec<StorePath>, SourceError> {
    let failed = |source| SourceError::Store { store: store.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(store).map_err(failed)? {
        if let Some(path) = entry.map_err(failed)?.file_name().to_str().map(StorePath::from_base_name) {
            paths.extend(path.ok());
        }
    }
    Ok(paths)
}
