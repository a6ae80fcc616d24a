//! Any Unix, macOS among them: the same without the calls that only Linux has.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, FileType, Stat};
use rustix::io::Errno;

/// Lists directories, one after the other.
#[derive(Default)]
pub(crate) struct Listing;

impl Listing {
    /// Shows every name in `directory` with the kind of what has it, as far as the file system tells, in no order. The
    /// directory must not have been read from before.
    pub(crate) fn list(
        &mut self,
        directory: BorrowedFd<'_>,
        mut see: impl FnMut(&[u8], FileType),
    ) -> Result<(), Errno> {
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                see(name, entry.file_type());
            }
        }
        Ok(())
    }
}

/// Opens the directory at `path` below `directory`, through no symbolic link: POSIX goes name by name.
pub(crate) fn open_directory_below(_directory: BorrowedFd<'_>, _path: &[u8]) -> Result<OwnedFd, Errno> {
    Err(Errno::NOSYS)
}

/// The number of the file system that a file is on.
#[allow(clippy::unnecessary_cast, reason = "it is an i32 on macOS")]
pub(crate) fn device(stat: &Stat) -> u64 {
    stat.st_dev as u64
}

/// A file without a name that [`link`] can give one later: POSIX has none.
pub(crate) fn unnamed(_: &Path, _: u32) -> Option<File> {
    None
}

/// Gives a file without a name one; there are none.
pub(crate) fn link(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// No two files share blocks.
pub(crate) fn share_blocks(_: &File, _: &File) -> bool {
    false
}

/// Nobody is asked to copy.
pub(crate) fn is_copied_by_hand(_: &File) -> bool {
    true
}

/// Gives an empty file its length; its room on the disk is found when it is written.
pub(crate) fn reserve(file: &File, length: u64) -> io::Result<()> {
    file.set_len(length)
}

/// Pipes are as wide as the system makes them.
pub(crate) fn widen_pipe(_: impl AsFd) {}

/// Nothing is a pipe into which pages can be moved.
pub(crate) fn is_pipe(_: impl AsFd) -> bool {
    false
}

/// Moves nothing.
pub(crate) fn move_pages(_: impl AsFd, _: impl AsFd, _: u64) -> Option<u64> {
    None
}

/// What is the same until the system starts again: nothing that can be asked for without a program or a special call.
pub(crate) fn boot() -> Option<Vec<u8>> {
    None
}

/// What is freed goes back to the system, or not, as the allocator has it.
#[cfg(not(target_os = "linux"))]
pub(crate) fn return_what_is_freed() {}

/// The table of open files grows as it has to.
#[cfg(not(target_os = "linux"))]
pub(crate) fn make_room_for_open_files() {}

/// Does `work`, wherever the system has it run.
pub(crate) fn on_one_core<T>(work: impl FnOnce() -> T) -> T {
    work()
}
