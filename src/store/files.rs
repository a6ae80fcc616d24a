//! Files that appear whole or not at all.

use std::io::Write;
use std::path::Path;

use super::StoreError;
use crate::crash;

/// Says what was tried and where when an operation on a file fails.
pub(super) trait IoContext<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { action, path: path.to_owned(), source })
    }
}

/// Puts `bytes` at `path`, through a file in `tmp` on the same file system.
///
/// Not synced: whoever reads the file must be able to tell a torn one.
pub(super) fn write_atomically(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut file = tempfile::NamedTempFile::new_in(tmp).context("make a file in", tmp)?;
    file.write_all(bytes).context("write", path)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        std::fs::create_dir_all(parent).context("make the directory", parent)?;
    }
    crash::point("file.written");
    file.persist(path).map_err(|error| error.error).context("write", path)?;
    crash::point("file.in-place");
    Ok(())
}

/// Makes a file's contents, or the renames in a directory, durable.
pub(super) fn sync(path: &Path) -> Result<(), StoreError> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).context("sync", path)
}

/// Whether the error comes from where the store lies and not from what it holds: whoever tries again, or anew, meets
/// it again.
pub(super) fn is_surroundings(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull)
}
