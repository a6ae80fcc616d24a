//! Claims: two processes that want the same layer do the work once.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::files::IoContext;
use crate::crash;

/// The right to make one layer, held by one process at a time. A process that is killed loses it.
///
/// The file goes when the claim is dropped. Who had opened it before then holds a lock on a file without a name, while a
/// third process may claim anew: both look for the record first, so at worst a layer whose making failed is made twice.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _locked: File,
}

impl Claim {
    pub(super) fn try_take(path: &Path) -> Result<Option<Self>, StoreError> {
        let file = File::options().create(true).append(true).open(path).context("open", path)?;
        match file.try_lock() {
            Ok(()) => {
                crash::point("claim.taken");
                Ok(Some(Self { path: path.to_owned(), _locked: file }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).context("lock", path),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What is left behind is empty, locked by nobody, and taken by the next garbage collection.
        let _ = std::fs::remove_file(&self.path);
    }
}
