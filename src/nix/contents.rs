//! What there is to know of a store path that nothing vouches for: its content hash, its NAR's length, its references.

use std::collections::BTreeSet;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rayon::prelude::*;

use super::file::{CheckedFile, FileError, open_directory};
use super::nar::NarSize;
use super::refscan::{Found, KnownPaths, OVERLAP};
use super::walk::{Entry, Location, walk_entries};
use super::{FileMemo, FileStamp, PathInfo, RememberedFile, StorePath, TreeHasher, WalkError};
use crate::event::{Cancelled, Event, Observer};

/// Bytes read at once of a file that shares the cores with others.
const BUFFER: usize = 256 * 1024;

/// A file of this many bytes gets all cores to itself.
const LARGE: u64 = 8 * 1024 * 1024;

/// Bytes read at once of a large file: enough for every core to have some of them.
const LARGE_BUFFER: usize = 4 * 1024 * 1024;

/// The longest relative path that goes into one system call (Linux: PATH_MAX is 4096, its NUL included).
const LONGEST_PATH: usize = 4095;

/// With what trees are hashed that no database vouches for.
#[derive(Clone, Copy)]
pub struct Hashing<'a> {
    /// Remembers files from one run to the next.
    pub memo: &'a dyn FileMemo,
    /// Is told of every buffer ([`Event::Advanced`]) and may stop the work.
    pub observer: &'a dyn Observer,
    /// A time not later than the first look at a file, by the clock that the file system uses: files that changed
    /// shortly before it or after are read, but not remembered.
    pub now: SystemTime,
}

impl Hashing<'_> {
    pub(super) fn now(&self) -> i128 {
        match self.now.duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        }
    }

    fn keep_going(&self) -> Result<(), WalkError> {
        Cancelled::check(self.observer).map_err(WalkError::Visitor)
    }
}

/// The structure of a store path, its strings in one buffer.
#[derive(Default)]
struct Structure {
    nodes: Vec<StructureNode>,
    strings: Vec<u8>,
}

struct StructureNode {
    /// The path's end in the buffer; it begins where the node before ends.
    path_end: usize,
    /// The link target's end; the same where there is none.
    end: usize,
    kind: StructureKind,
}

enum StructureKind {
    Directory,
    /// With its place among the regular files.
    Regular {
        executable: bool,
        file: usize,
    },
    Symlink,
}

/// A regular file of a structure.
struct File {
    /// Its path's place in the strings.
    path: Range<usize>,
    stamp: FileStamp,
}

/// Walks the store path, reads what is not remembered of it, and puts the rest together.
pub(super) fn examine(
    location: Location<'_>,
    known: &KnownPaths,
    hashing: &Hashing<'_>,
) -> Result<PathInfo, WalkError> {
    let (structure, files) = list(location, hashing)?;
    let files = read_files(location, &structure, &files, known, hashing)?;

    let (mut tree, mut size, mut found) = (TreeHasher::new(), NarSize::new(), Found::default());
    let mut start = 0;
    for node in &structure.nodes {
        let (path, target) = (&structure.strings[start..node.path_end], &structure.strings[node.path_end..node.end]);
        start = node.end;
        // A NAR has the names of its entries, so Nix finds hash parts in them too.
        found.scan_whole(known, path.rsplit(|&byte| byte == b'/').next().unwrap_or(path));
        match node.kind {
            StructureKind::Directory => {
                tree.directory(path);
                size.directory(path);
            }
            StructureKind::Regular { executable, file } => {
                let (stamp, read) = &files[file];
                tree.regular(path, executable, stamp.size, &read.contents);
                size.regular(path, executable, stamp.size);
            }
            StructureKind::Symlink => {
                tree.symlink(path, target);
                size.symlink(path, target);
                found.scan_whole(known, target);
            }
        }
    }
    let hashes = found.hashes.iter().chain(files.iter().flat_map(|(_, read)| &read.hashes));
    let references: BTreeSet<StorePath> =
        hashes.flat_map(|hash| known.get(hash)).filter(|path| *path != location.path).cloned().collect();
    Ok(PathInfo { path: location.path.clone(), content: tree.finish(), nar_size: size.finish(), references })
}

fn list(location: Location<'_>, hashing: &Hashing<'_>) -> Result<(Structure, Vec<File>), WalkError> {
    let (mut structure, mut files) = (Structure::default(), Vec::new());
    walk_entries(location, &mut |path, entry| {
        hashing.keep_going()?;
        let start = structure.strings.len();
        structure.strings.extend_from_slice(path);
        let path_end = structure.strings.len();
        let kind = match entry {
            Entry::Directory(_) => StructureKind::Directory,
            Entry::Regular(file) => {
                let (executable, stamp) = file.look().map_err(|error| location.error(path, error))?;
                files.push(File { path: start..path_end, stamp });
                StructureKind::Regular { executable, file: files.len() - 1 }
            }
            Entry::Symlink(target) => {
                structure.strings.extend_from_slice(target);
                StructureKind::Symlink
            }
        };
        structure.nodes.push(StructureNode { path_end, end: structure.strings.len(), kind });
        Ok(())
    })?;
    Ok((structure, files))
}

/// Recalls the files or reads them: small ones side by side, large ones one after the other on all cores.
fn read_files(
    location: Location<'_>,
    structure: &Structure,
    files: &[File],
    known: &KnownPaths,
    hashing: &Hashing<'_>,
) -> Result<Vec<(FileStamp, RememberedFile)>, WalkError> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let stamps: Vec<FileStamp> = files.iter().map(|file| file.stamp).collect();
    let mut read = hashing.memo.recall(&stamps);
    read.resize(files.len(), None);
    let unread: Vec<usize> = (0..files.len()).filter(|&file| read[file].is_none()).collect();
    let (large, small): (Vec<usize>, Vec<usize>) = unread.iter().partition(|&&file| files[file].stamp.size >= LARGE);

    let reader = FileReader { location, structure, known, hashing };
    let mut fresh: Vec<(usize, FileContents)> = small
        .par_iter()
        .map_init(Vec::new, |buffer, &file| Ok((file, reader.read(&files[file], buffer)?)))
        .collect::<Result<_, WalkError>>()?;
    let mut buffer = Vec::new();
    for file in large {
        fresh.push((file, reader.read(&files[file], &mut buffer)?));
    }
    drop(buffer);

    let now = hashing.now();
    let mut lasting = Vec::new();
    for (file, FileContents { contents, found }) in fresh {
        let complete = found.is_complete();
        let remembered = RememberedFile { contents, hashes: found.hashes.into_iter().collect() };
        if complete && stamps[file].is_settled(now) {
            lasting.push((stamps[file], remembered.clone()));
        }
        read[file] = Some(remembered);
    }
    if !lasting.is_empty() {
        hashing.memo.record(&lasting);
    }
    Ok(stamps.into_iter().zip(read.into_iter().flatten()).collect())
}

/// What a file was found to hold.
struct FileContents {
    contents: [u8; 32],
    found: Found,
}

/// Reads files of one store path.
struct FileReader<'a> {
    location: Location<'a>,
    structure: &'a Structure,
    known: &'a KnownPaths,
    hashing: &'a Hashing<'a>,
}

impl FileReader<'_> {
    /// Hashes a file and finds the hash parts in it. `buffer` is space to be used again.
    fn read(&self, file: &File, buffer: &mut Vec<u8>) -> Result<FileContents, WalkError> {
        let path = &self.structure.strings[file.path.clone()];
        let failed = |error| self.location.error(path, error);
        let mut open = open_at(self.location, path, file.stamp).map_err(failed)?;

        let large = file.stamp.size >= LARGE;
        // A buffer that is not filled ends the file, so there is one even for no bytes.
        let chunk = if large { LARGE_BUFFER as u64 } else { file.stamp.size.clamp(1, BUFFER as u64) } as usize;
        if buffer.len() < OVERLAP + chunk {
            buffer.resize(OVERLAP + chunk, 0);
        }
        let (mut hasher, mut found) = (blake3::Hasher::new(), Found::default());
        // The buffer begins with what is seen again, `kept` bytes; no window before `next` is looked at again.
        let (mut kept, mut next) = (0, 0);
        loop {
            self.hashing.keep_going()?;
            let end = kept + fill(&mut open, &mut buffer[kept..kept + chunk]).map_err(failed)?;
            let (data, new) = (&buffer[..end], &buffer[kept..end]);
            let last = new.len() < chunk;
            // A window at the very end waits for the byte behind it, except in the last buffer.
            let windows = next..(end + usize::from(last)).saturating_sub(StorePath::HASH_LEN).max(next);
            if large {
                let (scanned, ()) = rayon::join(
                    || scan_in_parallel(self.known, data, windows.clone()),
                    || {
                        hasher.update_rayon(new);
                    },
                );
                found.merge(scanned);
            } else {
                hasher.update(new);
                found.scan(self.known, data, windows.clone());
            }
            if !new.is_empty() {
                self.hashing.observer.event(Event::Advanced { bytes: new.len() as u64 });
            }
            if last {
                open.finish().map_err(failed)?;
                return Ok(FileContents { contents: hasher.finalize().into(), found });
            }
            let keep = end.min(OVERLAP);
            buffer.copy_within(end - keep..end, 0);
            (kept, next) = (keep, windows.end - (end - keep));
        }
    }
}

/// Fills `buffer` as far as the file goes.
fn fill(file: &mut CheckedFile, buffer: &mut [u8]) -> Result<usize, FileError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn scan_in_parallel(known: &KnownPaths, data: &[u8], windows: Range<usize>) -> Found {
    if windows.len() <= BUFFER {
        let mut found = Found::default();
        found.scan(known, data, windows);
        return found;
    }
    let middle = windows.start + windows.len() / 2;
    let (mut found, other) = rayon::join(
        || scan_in_parallel(known, data, windows.start..middle),
        || scan_in_parallel(known, data, middle..windows.end),
    );
    found.merge(other);
    found
}

/// Opens a file of a store path by its path, in steps where it is longer than one system call takes.
///
/// A directory on the way may be another by now, or a symbolic link; the file's stamp shows whether it is the same.
fn open_at(location: Location<'_>, path: &[u8], stamp: FileStamp) -> Result<CheckedFile, FileError> {
    let mut whole = location.path.base_name().as_bytes().to_vec();
    if !path.is_empty() {
        whole.push(b'/');
        whole.extend_from_slice(path);
    }
    let mut rest = whole.as_slice();
    let mut reached: Option<OwnedFd> = None;
    while rest.len() > LONGEST_PATH {
        let Some(slash) = rest[..LONGEST_PATH].iter().rposition(|&byte| byte == b'/') else { break };
        let from = reached.as_ref().map_or(location.directory, AsFd::as_fd);
        reached = Some(open_directory(from, &rest[..slash]).map_err(FileError::of_listed)?);
        rest = &rest[slash + 1..];
    }
    let from = reached.as_ref().map_or(location.directory, AsFd::as_fd);
    CheckedFile::open(from, rest, stamp)
}

#[cfg(test)]
mod tests;
