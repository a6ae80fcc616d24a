//! The place in which a repository is kept from run to run, for one process at a time.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::remote_name::RemoteName;
use crate::event::{Cancelled, Observer};

/// How long another process is waited for that fetches the same: longer than it may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often it is looked whether it is done.
const INTERVAL: Duration = Duration::from_millis(50);

/// A place for one repository.
pub(super) struct Place {
    dir: PathBuf,
    /// Held until the end; a process that is killed loses it.
    _lock: Option<File>,
    /// Removed at the end.
    temporary: Option<TempDir>,
}

impl Place {
    /// The place below `root` of an owner's repository on the FloxHub whose repositories are at `git_url`.
    pub(super) fn kept(root: &Path, git_url: &str, owner: &str, observer: &dyn Observer) -> io::Result<Self> {
        // Others need not read what may be private.
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        let hub = blake3::hash(git_url.as_bytes()).to_hex();
        let name = format!("{owner}-{}", &hub[..16]);
        let lock = File::options().create(true).append(true).open(root.join(format!("{name}.lock")))?;
        let mut waited = Duration::ZERO;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if waited >= PATIENCE => return Err(io::ErrorKind::TimedOut.into()),
                Err(TryLockError::WouldBlock) => {}
            }
            Cancelled::check(observer)?;
            thread::sleep(INTERVAL);
            waited += INTERVAL;
        }
        Ok(Self { dir: root.join(format!("{name}.git")), _lock: Some(lock), temporary: None })
    }

    /// A place for this run alone.
    pub(super) fn temporary() -> io::Result<Self> {
        let temporary = tempfile::Builder::new().prefix("layerhold-floxmeta-").tempdir()?;
        Ok(Self { dir: temporary.path().join("floxmeta.git"), _lock: None, temporary: Some(temporary) })
    }

    /// Whether what is put here is there in the next run.
    pub(super) fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    /// Where the repository is, if there is one.
    pub(super) fn repository(&self) -> &Path {
        &self.dir
    }

    /// A place beside it for another one. What a process that was killed has left there is removed.
    pub(super) fn next(&self) -> io::Result<Next<'_>> {
        let next = Next { place: self, path: self.dir.with_extension("new") };
        remove(&next.path)?;
        Ok(next)
    }

    /// Notes that an environment was fetched just now.
    pub(super) fn note(&self, name: &RemoteName, commit: &str) -> io::Result<()> {
        let notes = self.dir.join("fetched");
        DirBuilder::new().recursive(true).create(&notes)?;
        std::fs::write(notes.join(name.name()), format!("{commit}\n"))
    }

    /// When an environment was fetched last.
    pub(super) fn noted(&self, name: &RemoteName) -> Option<SystemTime> {
        std::fs::metadata(self.dir.join("fetched").join(name.name())).and_then(|note| note.modified()).ok()
    }
}

/// A place for a repository that is to take another one's; unless it does it is removed.
pub(super) struct Next<'a> {
    place: &'a Place,
    path: PathBuf,
}

impl Next<'_> {
    /// Where the repository is to be made.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it in the other one's place.
    pub(super) fn adopt(self) -> io::Result<()> {
        remove(&self.place.dir)?;
        std::fs::rename(&self.path, &self.place.dir)
    }
}

impl Drop for Next<'_> {
    fn drop(&mut self) {
        // What cannot be removed is removed by the next one.
        let _ = remove(&self.path);
    }
}

/// Removes a directory with all that is in it, or whatever else is there; nothing is no error.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(node) if node.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
