//! A regular file that is what its directory entry said, from the first byte to the last.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

use super::FileStamp;
use crate::outlet::Outlet;

/// A file could not be read as the one it was.
#[derive(Debug)]
pub(super) enum FileError {
    /// It is another one now, or has other contents.
    Changed,
    /// The system said so.
    Read(io::Error),
}

impl FileError {
    /// What a failed call says about an entry that was there a moment ago.
    pub(super) fn of_listed(errno: Errno) -> Self {
        match errno {
            // Gone; or now a symbolic link, or below one.
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Self::Changed,
            other => Self::Read(other.into()),
        }
    }
}

/// A regular file, open, and checked against its stamp before and after it is read.
pub(super) struct CheckedFile {
    file: File,
    stamp: FileStamp,
    read: u64,
    checked: bool,
}

impl CheckedFile {
    /// Opens the file `name` in `directory`, which must be the one with this stamp.
    pub(super) fn open(directory: BorrowedFd<'_>, name: &[u8], stamp: FileStamp) -> Result<Self, FileError> {
        let descriptor = open_unchecked(directory, name)?;
        Self::check(&descriptor, &stamp)?;
        Ok(Self { file: File::from(descriptor), stamp, read: 0, checked: false })
    }

    /// Opens whatever regular file is called `name` in `directory`; says whether its owner may execute it, and its stamp.
    pub(super) fn open_first(directory: BorrowedFd<'_>, name: &[u8]) -> Result<(Self, bool, FileStamp), FileError> {
        let descriptor = open_unchecked(directory, name)?;
        let stat = fstat(&descriptor).map_err(|errno| FileError::Read(errno.into()))?;
        let (executable, stamp) = regular(&stat)?;
        Ok((Self { file: File::from(descriptor), stamp, read: 0, checked: false }, executable, stamp))
    }

    /// Reads on. At the end of the contents the file is looked at once more.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<usize, FileError> {
        let left = self.stamp.size - self.read;
        let buf_len = buf.len() as u64;
        let wanted = left.min(buf_len) as usize;
        if wanted == 0 {
            if left == 0 {
                self.finish()?;
            }
            return Ok(0);
        }
        let read = loop {
            match self.file.read(&mut buf[..wanted]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => break other.map_err(FileError::Read)?,
            }
        };
        if read == 0 {
            return Err(FileError::Changed);
        }
        self.read += read as u64;
        Ok(read)
    }

    /// Has `outlet` take at most `length` bytes as they are, and says how many; `None` where that does not work.
    pub(super) fn give_pages(&mut self, outlet: &mut dyn Outlet, length: u64) -> Option<u64> {
        let wanted = length.min(self.stamp.size - self.read);
        // Where there is nothing to take, reading finds out whether that is the end.
        let taken = outlet.take_pages(self.file.as_fd(), wanted).filter(|&taken| taken > 0);
        self.read += taken.unwrap_or(0);
        taken
    }

    /// Makes sure that a file which was read to its end is still the same: a longer one, or one that was written to
    /// meanwhile, has another stamp. Does nothing for a file that was not read to its end.
    pub(super) fn finish(&mut self) -> Result<(), FileError> {
        if self.checked || self.read < self.stamp.size {
            return Ok(());
        }
        self.checked = true;
        Self::check(&self.file, &self.stamp)
    }

    fn check(descriptor: impl AsFd, stamp: &FileStamp) -> Result<(), FileError> {
        let stat = fstat(descriptor).map_err(|errno| FileError::Read(errno.into()))?;
        if regular(&stat)?.1 == *stamp { Ok(()) } else { Err(FileError::Changed) }
    }
}

/// What the status of a file that is listed as a regular one says: whether its owner may execute it, and its stamp.
pub(super) fn regular(stat: &Stat) -> Result<(bool, FileStamp), FileError> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((stat.st_mode & 0o100 != 0, FileStamp::of(stat))),
        _ => Err(FileError::Changed),
    }
}

fn open_unchecked(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, FileError> {
    // NONBLOCK: should a FIFO have taken its place, opening it must not wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty()).map_err(FileError::of_listed)
}

/// Opens the directory `name` in `directory`, never through a symbolic link.
pub(super) fn open_directory(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}
