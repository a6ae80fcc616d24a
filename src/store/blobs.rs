//! Blobs on disk: nothing is visible before it is whole and durable.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::StoreError;
use super::files::{self, IoContext};
use crate::blob::{Digest, VerifyingReader};
use crate::crash;

/// A blob that is being written. Dropped without [`BlobWriter::commit`] it leaves nothing behind.
pub struct BlobWriter {
    file: NamedTempFile,
    directory: PathBuf,
}

impl BlobWriter {
    pub(super) fn new(tmp: &Path, directory: &Path) -> Result<Self, StoreError> {
        let file = NamedTempFile::new_in(tmp).context("make a file in", tmp)?;
        crash::point("blob.begun");
        Ok(Self { file, directory: directory.to_owned() })
    }

    /// Makes the blob visible under its digest, once it is on the disk.
    pub fn commit(self, digest: &Digest) -> Result<BlobStamp, StoreError> {
        let path = self.directory.join(digest.hex());
        crash::point("blob.written");
        self.file.as_file().sync_all().context("write the blob", &path)?;
        crash::point("blob.synced");
        let persisted = self.file.persist(&path).or_else(|error| match error.error.kind() {
            // Whatever it is, it is not the blob.
            std::io::ErrorKind::IsADirectory => {
                std::fs::remove_dir_all(&path)?;
                error.file.persist(&path).map_err(|error| error.error)
            }
            _ => Err(error.error),
        });
        let file = persisted.context("write the blob", &path)?;
        crash::point("blob.in-place");
        files::sync(&self.directory)?;
        crash::point("blob.committed");
        file.metadata().map(|metadata| BlobStamp::of(&metadata)).context("look at the blob", &path)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A kept blob's file in the state in which its bytes were known to be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl BlobStamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// A kept blob, open for reading.
pub enum KeptBlob {
    /// Known to be right, in this run, and not changed since.
    Known(File),
    /// To be checked on the way: fails at the end of bytes that are not the blob's.
    Checked(VerifyingReader<File>),
}

impl Read for KeptBlob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Known(file) => file.read(buf),
            Self::Checked(reader) => reader.read(buf),
        }
    }
}

/// Whether a file of the right length lies at `path`; its bytes are checked when they are read.
pub(super) fn is_whole(path: &Path, size: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}
