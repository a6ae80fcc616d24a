//! Linux: the calls that only it has, where they save work or leave less behind.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, openat2};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::SpliceFlags;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// So many open files are made room for: 32 KiB of the kernel's.
const OPEN_FILES: u64 = 4096;

/// The space for one `getdents` call, in bytes.
const SPACE: usize = 32 * 1024;

/// Lists directories, one after the other, with one buffer for all.
pub(crate) struct Listing(Vec<MaybeUninit<u8>>);

impl Default for Listing {
    fn default() -> Self {
        Self(vec![MaybeUninit::uninit(); SPACE])
    }
}

impl Listing {
    /// Shows every name in `directory` with the kind of what has it, as far as the file system tells, in no order. The
    /// directory must not have been read from before.
    pub(crate) fn list(
        &mut self,
        directory: BorrowedFd<'_>,
        mut see: impl FnMut(&[u8], FileType),
    ) -> Result<(), Errno> {
        let mut entries = RawDir::new(directory, &mut self.0);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                see(name, entry.file_type());
            }
        }
        Ok(())
    }
}

/// Opens the directory at `path` below `directory`, through no symbolic link. Whatever stands in the way of that may not be
/// in the way of whoever goes name by name: an old kernel, a sandbox, a long path.
pub(crate) fn open_directory_below(directory: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(directory, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// The number of the file system that a file is on.
pub(crate) fn device(stat: &Stat) -> u64 {
    stat.st_dev
}

/// A file without a name on the file system of `directory`, which the system frees with the process, by whatever end;
/// `None` where that is not to be had. [`link`] gives it a name.
pub(crate) fn unnamed(directory: &Path, mode: u32) -> Option<File> {
    // Without this it could not be given a name.
    if !Path::new("/proc/self/fd").exists() {
        return None;
    }
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::from_raw_mode(mode)).ok().map(File::from)
}

/// Gives a file without a name one that no other file has.
pub(crate) fn link(unnamed: &File, name: &Path) -> io::Result<()> {
    // open(2) gives this way to link what has no name.
    let by_descriptor = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, &by_descriptor, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

/// Makes `target` the same file by sharing all blocks, where the file system can; else nothing is done.
pub(crate) fn share_blocks(file: &File, target: &File) -> bool {
    rustix::fs::ioctl_ficlone(target, file).is_ok()
}

/// Whether the kernel, asked to copy within the file system of `file`, would do no more than read and write. Others share
/// blocks, or have a server copy them (copy_file_range(2)); statfs(2) has the numbers.
pub(crate) fn is_copied_by_hand(file: &File) -> bool {
    const EXT4: u32 = 0xef53;
    const F2FS: u32 = 0xf2f5_2010;
    const OVERLAYFS: u32 = 0x794c_7630;
    const TMPFS: u32 = 0x0102_1994;
    const XFS: u32 = 0x5846_5342;
    // The type is signed on some machines, and has 32 bits on others.
    let kind = rustix::fs::fstatfs(file).map_or(0, |system| system.f_type as u32);
    [EXT4, F2FS, OVERLAYFS, TMPFS, XFS].contains(&kind)
}

/// Gives an empty file its length and, where the file system can, its room on the disk.
pub(crate) fn reserve(file: &File, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.set_len(length),
        other => Ok(other?),
    }
}

/// The most that a pipe holds which nobody with special rights has widened (pipe(7): `/proc/sys/fs/pipe-max-size`).
const WIDE: usize = 1 << 20;

/// Lets a pipe hold more, so that writer and reader wait less often for each other. What is no pipe, or may not be
/// widened, stays as it is.
pub(crate) fn widen_pipe(pipe: impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, WIDE);
}

/// Whether something is a pipe, into which [`move_pages`] may move a file's pages.
pub(crate) fn is_pipe(out: impl AsFd) -> bool {
    rustix::fs::fstat(out).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

/// Moves at most `length` bytes of `file`, from where it stands, into a pipe, and says how many; `None` where that does not
/// work, for whatever reason, or the pipe is full.
pub(crate) fn move_pages(file: impl AsFd, pipe: impl AsFd, length: u64) -> Option<u64> {
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(WIDE);
    Some(rustix::pipe::splice(&file, None, &pipe, None, length, SpliceFlags::NONBLOCK).ok()? as u64)
}

/// What is the same until the system starts again, and never after; `None` where the system does not say.
pub(crate) fn boot() -> Option<Vec<u8>> {
    fs::read("/proc/sys/kernel/random/boot_id").ok()
}

/// Has large memory go back to the system when it is freed; to be called before there are other threads. Once a large
/// piece was freed, the GNU C library keeps up to 64 MiB of each arena (mallopt(3), "dynamic mmap threshold"): the
/// planner's memory would lie idle while layers are packed.
pub(crate) fn return_what_is_freed() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "no safe function sets it")]
    // SAFETY: it takes two numbers, and there is no thread that could read the parameter meanwhile.
    unsafe {
        // The value that it has at first. That it is set ends its growth, and that of the threshold from which on
        // pieces are mapped each by itself.
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// Makes room in the table of open files for as many as a process usually may have; to be called before there are other
/// threads. With several, whoever opens one more than there is room for waits until none of them can still look into the
/// old table (`expand_files` in the kernel's fs/file.c), for 10 ms and longer, and so do all that open one meanwhile.
pub(crate) fn make_room_for_open_files() {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(OPEN_FILES);
    let last = i32::try_from(limit.min(OPEN_FILES)).unwrap_or(i32::MAX).saturating_sub(1).max(0);
    // Where that fails, the table grows when it has to.
    let _ = File::open("/").and_then(|any| Ok(fcntl_dupfd_cloexec(any, last)?));
}

/// Does `work` with this thread, and those that it starts, on the one core where it is. Threads that it starts stay there.
pub(crate) fn on_one_core<T>(work: impl FnOnce() -> T) -> T {
    let Ok(before) = sched_getaffinity(None) else { return work() };
    // Also where the work panics.
    let _back = Cores(before);
    let mut one = CpuSet::new();
    one.set(sched_getcpu());
    // Where that may not be, the work is done wherever it is.
    let _ = sched_setaffinity(None, &one);
    work()
}

/// The cores that this thread gets back.
struct Cores(CpuSet);

impl Drop for Cores {
    fn drop(&mut self) {
        // Somebody may have taken a core away meanwhile; the rest of the run is on fewer then, and no worse for it.
        let _ = sched_setaffinity(None, &self.0);
    }
}
