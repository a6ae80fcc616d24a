//! What host systems do each in their own way, under one name each: Linux's own calls, or what every Unix has.
//!
//! Both are compiled on Linux for tests, which hold one to the other; the bytes of an image do not depend on which it is.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(not(target_os = "linux"), test))]
mod portable;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
use portable as system;

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

pub(crate) use system::{
    Listing, boot, device, is_copied_by_hand, is_pipe, link, make_room_for_open_files, move_pages, on_one_core,
    open_directory_below, reserve, return_what_is_freed, share_blocks, unnamed, widen_pipe,
};

/// How long a full pipe is waited for at a time.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Whether a pipe takes something, or a write to it fails at once. Waits a moment for that, or until a signal comes. What
/// is no pipe always has room (poll(2)).
pub(crate) fn has_room(pipe: impl AsFd) -> bool {
    let mut pipes = [PollFd::new(&pipe, PollFlags::OUT)];
    !matches!(poll(&mut pipes, Some(&PATIENCE)), Ok(0) | Err(Errno::INTR))
}

#[cfg(test)]
mod tests;
