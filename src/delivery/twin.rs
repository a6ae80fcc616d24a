//! Another file that holds the very same archive, and its copy by the kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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

    /// The kernel copies: no byte comes through this process where any other way is open.
    fn copy_pieces(&self, mut target: &File, bytes: u64, observer: &dyn Observer) -> Result<(), CopyError> {
        // Blocks that are sought one after the other, while they are written, take ext4 half as long again.
        host::reserve(target, self.length)?;
        let mut copied = 0;
        while copied < self.length {
            if observer.cancelled() {
                return Err(CopyError::Interrupted);
            }
            let piece = io::copy(&mut (&self.file).take(PIECE.min(self.length - copied)), &mut target)?;
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
