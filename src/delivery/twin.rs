//! Another file that holds the very same archive, and its copy.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::fs::OFlags;

use super::written::token_of;
use super::{DeliveryError, Past};
use crate::crash;
use crate::event::{Event, Observer, Stage};
use crate::host;

/// How much is copied between two looks at whether the user still wants it.
const PIECE: u64 = 16 << 20;

/// A file that was given an archive before, and is as it was left.
pub(super) struct Twin {
    path: PathBuf,
    file: File,
    contents: [u8; 32],
    token: [u8; 32],
    length: u64,
}

/// A copy that was not made.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("interrupted")]
    Interrupted,
    #[error("it changed meanwhile")]
    Changed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Twin {
    /// The file that was given these contents last, of those that were not touched since and can be read. Those that
    /// were touched, or are gone, are forgotten.
    pub(super) fn find(contents: &[u8; 32], past: &dyn Past) -> Option<Self> {
        past.outputs_with(contents).into_iter().find_map(|path| {
            if is_gone_or_touched(&path, contents, past) {
                past.forget_output(&path);
                return None;
            }
            // Something else may have taken its place by now: a link is not followed, nobody is waited for at a pipe.
            let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).ok()?;
            let metadata = file.metadata().ok()?;
            let token = token_of(&metadata, contents).filter(|token| past.knows_output(&path, token))?;
            Some(Self { path, file, contents: *contents, token, length: metadata.len() })
        })
    }

    /// Makes `target`, an empty file, the same, and says whether that was done; where it was not, for whatever reason,
    /// `target` is empty again. The observer is told of `bytes`, which the file has at least.
    pub(super) fn copy_to(
        &self,
        target: &File,
        bytes: u64,
        observer: &dyn Observer,
        failed: impl Fn(io::Error) -> DeliveryError,
    ) -> Result<bool, DeliveryError> {
        let shown = self.path.display();
        match self.try_copy_to(target, bytes, observer) {
            Ok(()) => {
                let message = format!("copied from '{shown}', which holds the same image");
                observer.event(Event::Detail { message });
                Ok(true)
            }
            Err(CopyError::Interrupted) => Err(DeliveryError::Interrupted),
            Err(error) => {
                let message =
                    format!("cannot copy '{shown}', which holds the same image ({error}); going on without it");
                observer.event(Event::Detail { message });
                // Who writes an archive relies on zeros where it writes nothing.
                target.set_len(0).and_then(|()| { target }.rewind()).map_err(failed)?;
                observer.event(Event::Started { stage: Stage::Delivering, total_bytes: bytes });
                Ok(false)
            }
        }
    }

    fn try_copy_to(&self, target: &File, bytes: u64, observer: &dyn Observer) -> Result<(), CopyError> {
        if host::share_blocks(&self.file, target) {
            observer.event(Event::Advanced { bytes });
        } else {
            self.copy_pieces(target, bytes, observer)?;
        }
        // Whoever writes to a file changes its times first, so what was copied before this look is what was known.
        let is_as_it_was = token_of(&self.file.metadata()?, &self.contents) == Some(self.token);
        if is_as_it_was && target.metadata()?.len() == self.length { Ok(()) } else { Err(CopyError::Changed) }
    }

    fn copy_pieces(&self, target: &File, bytes: u64, observer: &dyn Observer) -> Result<(), CopyError> {
        // Blocks that are sought one after the other, while they are written, take ext4 half as long again.
        host::reserve(target, self.length)?;
        if host::is_copied_by_hand(target) && rayon::current_num_threads() > 1 {
            self.copy_by_hand(target, bytes, observer)
        } else {
            self.copy_by_kernel(target, bytes, observer)
        }
    }

    /// Where the kernel may have a way of its own; nothing comes through this process then.
    fn copy_by_kernel(&self, mut target: &File, bytes: u64, observer: &dyn Observer) -> Result<(), CopyError> {
        self.copy_each(bytes, observer, |length| io::copy(&mut (&self.file).take(length), &mut target))
    }

    /// One thread reads ahead of another that writes. The kernel would do both on one, and take longer.
    fn copy_by_hand(&self, target: &File, bytes: u64, observer: &dyn Observer) -> Result<(), CopyError> {
        let copied = ReadAhead::run(&self.file, self.length, |ahead| {
            self.copy_each(bytes, observer, |length| ahead.copy_to(target, length))
        });
        // Where no more threads are to be had.
        copied.unwrap_or_else(|| self.copy_by_kernel(target, bytes, observer))
    }

    /// Has all pieces copied, each by a call of `copy`, which takes how much that is at the most and says how much it was.
    fn copy_each(
        &self,
        bytes: u64,
        observer: &dyn Observer,
        mut copy: impl FnMut(u64) -> io::Result<u64>,
    ) -> Result<(), CopyError> {
        let mut copied = 0;
        while copied < self.length {
            if observer.cancelled() {
                return Err(CopyError::Interrupted);
            }
            let piece = copy(PIECE.min(self.length - copied))?;
            if piece == 0 {
                return Err(CopyError::Changed);
            }
            // The file is longer than what the observer was told of: it has headers, too.
            let advanced = bytes.min(copied + piece) - bytes.min(copied);
            observer.event(Event::Advanced { bytes: advanced });
            copied += piece;
            crash::point("output.piece");
        }
        Ok(())
    }
}

/// The length of what one thread reads while another one writes. Short enough for a core's cache.
const BUFFER: usize = 256 << 10;
/// How many of those there are.
const BUFFERS: usize = 4;

/// A file that a thread reads from its beginning.
struct ReadAhead {
    read: Receiver<io::Result<Vec<u8>>>,
    written: Sender<Vec<u8>>,
}

impl ReadAhead {
    /// Does `work` while a thread reads the first `length` bytes of `file`; `None` where there can be no such thread.
    fn run<T>(file: &File, length: u64, work: impl FnOnce(&Self) -> T) -> Option<T> {
        let (to_write, read) = channel();
        let (written, to_fill) = channel();
        for _ in 0..BUFFERS {
            // The other end is here.
            let _ = written.send(Vec::new());
        }
        thread::scope(|scope| {
            let reads = move || {
                let mut at = 0;
                while at < length {
                    // Whoever writes may have given up.
                    let Ok(buffer) = to_fill.recv() else { return };
                    let filled = fill(buffer, file, at, length - at);
                    let read = filled.as_ref().map_or(0, |buffer| buffer.len() as u64);
                    if to_write.send(filled).is_err() || read == 0 {
                        return;
                    }
                    at += read;
                }
            };
            thread::Builder::new().spawn_scoped(scope, reads).ok()?;
            // Gone before the thread is waited for, which ends with it.
            let ahead = Self { read, written };
            Some(work(&ahead))
        })
    }

    /// Writes what was read, `length` bytes of it or a buffer more, and says how much that was: less where the file ends.
    fn copy_to(&self, mut target: &File, length: u64) -> io::Result<u64> {
        let mut copied = 0;
        while copied < length {
            let Ok(buffer) = self.read.recv() else { break };
            let buffer = buffer?;
            target.write_all(&buffer)?;
            copied += buffer.len() as u64;
            // Nobody takes it once all is read.
            let _ = self.written.send(buffer);
        }
        Ok(copied)
    }
}

/// Fills a buffer from a place in a file, with no more than is `left`, and with less where the file ends.
fn fill(mut buffer: Vec<u8>, file: &File, at: u64, left: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
    buffer.resize(length, 0);
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// Whether a file is certainly not as it was left. Without being opened: that may do something, to a device say.
fn is_gone_or_touched(path: &Path, contents: &[u8; 32], past: &dyn Past) -> bool {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            token_of(&metadata, contents).is_some_and(|token| !past.knows_output(path, &token))
        }
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
#[path = "twin_tests.rs"]
mod tests;
