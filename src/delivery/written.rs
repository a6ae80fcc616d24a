//! Whether a file is still as this tool wrote it, without reading it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::ArchiveNames;
use crate::host;
use crate::image::Images;

/// The version of what an archive looks like: another one is another file for the same image.
const ARCHIVE_VERSION: &str = "layerhold 2026 written archive, version 1";

/// What says that a file holds the images' archive and has not been touched since: what it was given, and its state.
///
/// `None` where the file cannot be told from another, or may have lost what it was given: the times of a file that was
/// never synchronised say nothing after a power failure, so that the token is good until the system starts again.
pub(super) fn token(file: &Path, images: &Images) -> Option<[u8; 32]> {
    let boot = host::boot()?;
    let metadata = fs::symlink_metadata(file).ok().filter(fs::Metadata::is_file)?;
    let names = ArchiveNames::portable(images.name());
    let mut hasher = blake3::Hasher::new_derive_key(ARCHIVE_VERSION);
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(&boot);
    field(images.digest().to_string().as_bytes());
    field(names.full.as_bytes());
    field(names.repo_tag.as_bytes());
    field(images.name().tag().as_bytes());
    for number in [metadata.dev(), metadata.ino(), metadata.size()] {
        field(&number.to_le_bytes());
    }
    for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
        field(&number.to_le_bytes());
    }
    Some(hasher.finalize().into())
}

/// Moves a file's modification time back by a nanosecond, and says whether that could be done.
///
/// The system's clock for files stands still for some milliseconds. Who writes to the file within the same tick gives
/// it the time that it had; but not the one that it has now.
pub(super) fn mark(file: &File) -> bool {
    let marked = || {
        let before = file.metadata()?.modified()? - Duration::from_nanos(1);
        file.set_modified(before)?;
        Ok::<_, io::Error>(file.metadata()?.modified()? == before)
    };
    marked().unwrap_or(false)
}
