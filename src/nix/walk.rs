//! The walk over a store path on disk, in NAR order.
//!
//! Everything is opened relative to a directory's descriptor, never through a symbolic link. No recursion: a tree may
//! be deeper than the stack, and its paths longer than the system's limit. Few descriptors: of the directories that
//! lead to the current one only the nearest stay open, the others are found again through `..`.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, fstat, readlinkat_raw, statat};
use rustix::io::Errno;

use super::file::{CheckedFile, FileError, open_directory, regular};
use super::{Contents, EntryKind, FileStamp, Node, StorePath, TreeListing, TreeState, Visitor, WalkError};
use crate::host::{Listing, open_directory_below};
use crate::outlet::Outlet;

/// How many directories of one walk are open at once. Packing walks on every core, and the limit of descriptors may
/// be as low as 256.
const OPEN_DIRECTORIES: usize = 8;

/// Where a store path lies on disk.
#[derive(Clone, Copy)]
pub(super) struct Location<'a> {
    /// The store's directory, open.
    pub(super) directory: BorrowedFd<'a>,
    /// Its path, for messages.
    pub(super) store: &'a Path,
    /// The store path in it.
    pub(super) path: &'a StorePath,
}

impl Location<'_> {
    /// The path on disk of the node at `path`.
    pub(super) fn of(&self, path: &[u8]) -> PathBuf {
        let root = self.store.join(self.path.base_name());
        if path.is_empty() { root } else { root.join(OsStr::from_bytes(path)) }
    }

    /// A failure at the node at `path`.
    pub(super) fn error(&self, path: &[u8], error: FileError) -> WalkError {
        let path = self.of(path);
        match error {
            FileError::Changed => WalkError::Changed { path },
            FileError::Read(source) => WalkError::Read { path, source },
        }
    }
}

/// A node on disk.
pub(super) enum Entry<'a> {
    Directory(FileStamp),
    Regular(FileEntry<'a>),
    Symlink(&'a [u8]),
}

/// Takes an entry and its path in the tree.
pub(super) type See<'f> = dyn FnMut(&[u8], Entry<'_>) -> Result<(), WalkError> + 'f;

/// A regular file as its directory lists it, not looked at yet.
pub(super) struct FileEntry<'a> {
    directory: BorrowedFd<'a>,
    name: &'a [u8],
}

impl FileEntry<'_> {
    /// Whether its owner may execute it, and its stamp.
    pub(super) fn look(&self) -> Result<(bool, FileStamp), FileError> {
        regular(&statat(self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW).map_err(FileError::of_listed)?)
    }
}

/// Shows the nodes of a store path to `visitor`, and says in what state the tree was: the stamps of its directories and
/// files, as far as any later change would show in them, and the targets of its links; `now` is a time before the walk.
pub(super) fn walk(
    location: Location<'_>,
    visitor: &mut dyn Visitor,
    now: i128,
) -> Result<Option<TreeState>, WalkError> {
    let (mut state, mut is_settled) = (blake3::Hasher::new(), true);
    let mut stamped = |state: &mut blake3::Hasher, stamp: &FileStamp| {
        state.update(&stamp.to_bytes());
        is_settled &= stamp.is_settled(now);
    };
    walk_entries(location, &mut |path, entry| match entry {
        Entry::Directory(stamp) => {
            stamped(&mut state, &stamp);
            visitor.node(path, Node::Directory).map_err(WalkError::Visitor)
        }
        Entry::Symlink(target) => {
            state.update(&(target.len() as u64).to_le_bytes()).update(target);
            visitor.node(path, Node::Symlink { target }).map_err(WalkError::Visitor)
        }
        Entry::Regular(file) => {
            let opened = if visitor.reads() {
                CheckedFile::open_first(file.directory, file.name)
                    .map(|(open, executable, stamp)| (Some(open), executable, stamp))
            } else {
                file.look().map(|(executable, stamp)| (None, executable, stamp))
            };
            let (open, executable, stamp) = opened.map_err(|error| location.error(path, error))?;
            stamped(&mut state, &stamp);
            let mut contents = FileContents { file, stamp, open, failure: None };
            let shown = visitor.node(path, Node::Regular { executable, size: stamp.size, contents: &mut contents });
            contents.conclude(shown, location, path)
        }
    })?;
    Ok(is_settled.then(|| TreeState(state.finalize().into())))
}

/// What a store path has at `at`, which is itself or a directory in it, and what that holds. No file is looked at: its
/// directory says what it is.
pub(super) fn list_level(location: Location<'_>, at: &[u8]) -> Result<TreeListing, WalkError> {
    let mut listing = TreeListing::default();
    let mut target = vec![0; 256];
    let directory = if at.is_empty() {
        let (root, kind) = root(location)?;
        show(location, location.directory, b"", root, kind, &mut target, &mut recording(&mut listing))?
    } else {
        Some(open_at(location, at)?)
    };
    let Some(directory) = directory else { return Ok(listing) };
    let mut ancestry = Ancestry::new(location);
    ancestry.path.extend_from_slice(at);
    ancestry.enter(directory)?;
    listing.insert(at.to_vec(), EntryKind::Directory);
    while ancestry.advance()? {
        let Some((directory, path, name, kind)) = ancestry.current() else { continue };
        if kind == FileType::Directory {
            listing.insert(path.to_vec(), EntryKind::Directory);
        } else {
            show(location, directory, path, name, kind, &mut target, &mut recording(&mut listing))?;
        }
    }
    Ok(listing)
}

/// The contents of the regular file at `at`.
pub(super) fn read_file(location: Location<'_>, at: &[u8]) -> Result<Vec<u8>, WalkError> {
    let (above, name) = match at.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&at[..slash], &at[slash + 1..]),
        None => (&b""[..], at),
    };
    let opened;
    let (directory, name) = if at.is_empty() {
        (location.directory, location.path.base_name().as_bytes())
    } else {
        opened = open_at(location, above)?;
        (opened.descriptor.as_fd(), name)
    };
    let error = |error| location.error(at, error);
    let (mut file, _, _) = CheckedFile::open_first(directory, name).map_err(error)?;
    let (mut bytes, mut part) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut part).map_err(error)? {
            0 => return Ok(bytes),
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
}

/// Opens the store path itself or a directory in it, through no link. Name by name where it does not go at once: on an
/// old kernel, in a sandbox, or because the path is longer than the system takes.
fn open_at(location: Location<'_>, at: &[u8]) -> Result<Opened, WalkError> {
    let root = location.path.base_name().as_bytes();
    let names = || std::iter::once(root).chain(at.split(|&byte| byte == b'/').filter(|name| !name.is_empty()));
    let whole = names().collect::<Vec<_>>().join(&b'/');
    if let Ok(opened) = open_directory_below(location.directory, &whole).and_then(Opened::new) {
        return Ok(opened);
    }
    let mut end = 0;
    let mut above: Option<Opened> = None;
    for name in names() {
        end += name.len();
        let directory = above.as_ref().map_or(location.directory, |above| above.descriptor.as_fd());
        let opened = open_directory(directory, name).and_then(Opened::new);
        // The root's name is no part of the path below it.
        let path = || &whole[(root.len() + 1).min(end)..end];
        above = Some(opened.map_err(|errno| location.error(path(), FileError::of_listed(errno)))?);
        end += 1;
    }
    above.ok_or_else(|| location.error(b"", FileError::Changed))
}

fn recording(listing: &mut TreeListing) -> impl FnMut(&[u8], Entry<'_>) -> Result<(), WalkError> {
    |path, entry| {
        let kind = match entry {
            Entry::Directory(_) => EntryKind::Directory,
            Entry::Regular(_) => EntryKind::Regular,
            Entry::Symlink(target) => EntryKind::Symlink(target.to_vec()),
        };
        listing.insert(path.to_vec(), kind);
        Ok(())
    }
}

/// The contents of a file, opened at the first read.
struct FileContents<'a> {
    file: FileEntry<'a>,
    stamp: FileStamp,
    open: Option<CheckedFile>,
    /// What went wrong with the file. The visitor gets no more than a sign of it: its own errors may wrap that, but
    /// the walk knows whose fault it was.
    failure: Option<FileError>,
}

impl FileContents<'_> {
    fn open(&mut self) -> Result<&mut CheckedFile, FileError> {
        match &mut self.open {
            Some(open) => Ok(open),
            none => Ok(none.insert(CheckedFile::open(self.file.directory, self.file.name, self.stamp)?)),
        }
    }

    /// Does something with the open file, as long as nothing went wrong with it.
    fn with_file<T>(&mut self, work: impl FnOnce(&mut CheckedFile) -> Result<T, FileError>) -> io::Result<T> {
        if self.failure.is_some() {
            return Err(io::Error::other("the file could not be read"));
        }
        self.open().and_then(work).map_err(|failure| {
            let sign = match &failure {
                FileError::Changed => io::Error::other("the file changed while it was read"),
                FileError::Read(error) => error.kind().into(),
            };
            self.failure = Some(failure);
            sign
        })
    }

    fn conclude(mut self, shown: io::Result<()>, location: Location<'_>, path: &[u8]) -> Result<(), WalkError> {
        if let Some(failure) = self.failure {
            return Err(location.error(path, failure));
        }
        shown.map_err(WalkError::Visitor)?;
        match &mut self.open {
            Some(open) => open.finish().map_err(|error| location.error(path, error)),
            None => Ok(()),
        }
    }
}

impl Read for FileContents<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.with_file(|file| file.read(buf))
    }
}

impl Contents for FileContents<'_> {
    fn give_pages(&mut self, outlet: &mut dyn Outlet, length: u64) -> io::Result<Option<u64>> {
        self.with_file(|file| Ok(file.give_pages(outlet, length)))
    }
}

/// Shows every entry of a store path to `see`, in NAR order.
pub(super) fn walk_entries(location: Location<'_>, see: &mut See<'_>) -> Result<(), WalkError> {
    let (root, kind) = root(location)?;
    let mut target = vec![0; 256];
    let mut ancestry = Ancestry::new(location);
    if let Some(directory) = show(location, location.directory, b"", root, kind, &mut target, see)? {
        ancestry.enter(directory)?;
    }
    while ancestry.advance()? {
        let Some((directory, path, name, kind)) = ancestry.current() else { continue };
        if let Some(directory) = show(location, directory, path, name, kind, &mut target, see)? {
            ancestry.enter(directory)?;
        }
    }
    Ok(())
}

/// The store path's name in the store, and what it is.
fn root(location: Location<'_>) -> Result<(&[u8], FileType), WalkError> {
    let name = location.path.base_name().as_bytes();
    match statat(location.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok((name, FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Err(WalkError::Absent { path: location.path.to_absolute() }),
        Err(errno) => Err(location.error(b"", FileError::Read(errno.into()))),
    }
}

/// An open directory and the state in which it was opened.
struct Opened {
    descriptor: OwnedFd,
    stamp: FileStamp,
}

impl Opened {
    fn new(descriptor: OwnedFd) -> Result<Self, Errno> {
        let stamp = FileStamp::of(&fstat(&descriptor)?);
        Ok(Self { descriptor, stamp })
    }
}

/// Shows one entry; a directory comes back open.
fn show(
    location: Location<'_>,
    directory: BorrowedFd<'_>,
    path: &[u8],
    name: &[u8],
    kind: FileType,
    target: &mut Vec<u8>,
    see: &mut See<'_>,
) -> Result<Option<Opened>, WalkError> {
    let listed = |errno| location.error(path, FileError::of_listed(errno));
    let kind = match kind {
        // Some file systems do not tell with the name.
        FileType::Unknown => {
            FileType::from_raw_mode(statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(listed)?.st_mode)
        }
        known => known,
    };
    match kind {
        FileType::Directory => {
            let opened = open_directory(directory, name).and_then(Opened::new).map_err(listed)?;
            see(path, Entry::Directory(opened.stamp))?;
            Ok(Some(opened))
        }
        FileType::RegularFile => {
            see(path, Entry::Regular(FileEntry { directory, name }))?;
            Ok(None)
        }
        FileType::Symlink => {
            let length = loop {
                match readlinkat_raw(directory, name, target.as_mut_slice()) {
                    // A full buffer may hold a part of the target.
                    Ok(length) if length < target.len() => break length,
                    Ok(length) => target.resize(length * 4, 0),
                    Err(Errno::INVAL) => return Err(location.error(path, FileError::Changed)),
                    Err(errno) => return Err(listed(errno)),
                }
            };
            see(path, Entry::Symlink(&target[..length]))?;
            Ok(None)
        }
        other => Err(WalkError::Unsupported {
            path: location.of(path),
            kind: match other {
                FileType::Fifo => "FIFO",
                FileType::Socket => "socket",
                FileType::CharacterDevice => "character device",
                FileType::BlockDevice => "block device",
                _ => "file of an unknown kind",
            },
        }),
    }
}

/// One name of a directory; the names of all open directories share one buffer.
#[derive(Clone, Copy)]
struct Listed {
    start: usize,
    length: usize,
    kind: FileType,
}

/// A directory on the way from the root to the current entry.
struct Frame {
    /// Closed while the walk is far below it.
    descriptor: Option<OwnedFd>,
    stamp: FileStamp,
    /// Length of its path.
    path: usize,
    /// Where its names begin in [`Ancestry::names`].
    names: usize,
    /// Its entries in [`Ancestry::entries`]: the first, the next to show, the end.
    first: usize,
    next: usize,
}

/// The directories that lead to the current entry, each with its names in byte order.
struct Ancestry<'a> {
    location: Location<'a>,
    frames: Vec<Frame>,
    entries: Vec<Listed>,
    names: Vec<u8>,
    /// The current entry's path.
    path: Vec<u8>,
    listing: Listing,
}

impl<'a> Ancestry<'a> {
    fn new(location: Location<'a>) -> Self {
        Self {
            location,
            frames: Vec::new(),
            entries: Vec::new(),
            names: Vec::new(),
            path: Vec::new(),
            listing: Listing::default(),
        }
    }

    /// Goes into the current entry, a directory, and lists it.
    fn enter(&mut self, directory: Opened) -> Result<(), WalkError> {
        let (first, names) = (self.entries.len(), self.names.len());
        let listed = self.listing.list(directory.descriptor.as_fd(), |name, kind| {
            self.entries.push(Listed { start: self.names.len(), length: name.len(), kind });
            self.names.extend_from_slice(name);
        });
        listed.map_err(|errno| self.location.error(&self.path, FileError::Read(errno.into())))?;
        let name = |entry: &Listed| &self.names[entry.start..entry.start + entry.length];
        self.entries[first..].sort_unstable_by(|a, b| name(a).cmp(name(b)));
        let Opened { descriptor, stamp } = directory;
        let path = self.path.len();
        self.frames.push(Frame { descriptor: Some(descriptor), stamp, path, names, first, next: first });
        if let Some(far) = self.frames.len().checked_sub(OPEN_DIRECTORIES + 1) {
            self.frames[far].descriptor = None;
        }
        Ok(())
    }

    /// Moves to the next entry, out of directories that have none left. False at the end of the tree.
    fn advance(&mut self) -> Result<bool, WalkError> {
        loop {
            let Some(frame) = self.frames.last_mut() else { return Ok(false) };
            self.path.truncate(frame.path);
            // The last frame's entries are the last entries.
            if let Some(entry) = self.entries.get(frame.next) {
                frame.next += 1;
                if frame.path > 0 {
                    self.path.push(b'/');
                }
                self.path.extend_from_slice(&self.names[entry.start..entry.start + entry.length]);
                return Ok(true);
            }
            self.leave()?;
        }
    }

    /// The current entry: its directory, its path, its name, its kind as listed.
    fn current(&self) -> Option<(BorrowedFd<'_>, &[u8], &[u8], FileType)> {
        let frame = self.frames.last()?;
        let entry = self.entries.get(frame.next.checked_sub(1)?)?;
        let name = &self.path[self.path.len() - entry.length..];
        Some((frame.descriptor.as_ref()?.as_fd(), &self.path, name, entry.kind))
    }

    /// Goes back to the parent of the current directory, which must not have changed while it was walked.
    fn leave(&mut self) -> Result<(), WalkError> {
        let Some(Frame { descriptor: Some(descriptor), stamp, names, first, .. }) = self.frames.pop() else {
            return Ok(());
        };
        let error = |path: &[u8], error| Err(self.location.error(path, error));
        match fstat(&descriptor) {
            Ok(stat) if FileStamp::of(&stat) == stamp => {}
            Ok(_) => return error(&self.path, FileError::Changed),
            Err(errno) => return error(&self.path, FileError::Read(errno.into())),
        }
        self.entries.truncate(first);
        self.names.truncate(names);
        if let Some(parent) = self.frames.last_mut().filter(|parent| parent.descriptor.is_none()) {
            let reopened = open_directory(descriptor.as_fd(), b"..").and_then(|fd| Ok((fstat(&fd)?, fd)));
            match reopened {
                // Had the directory been moved meanwhile, its parent would be another one.
                Ok((stat, fd)) if FileStamp::of(&stat) == parent.stamp => parent.descriptor = Some(fd),
                Ok(_) => return error(&self.path[..parent.path], FileError::Changed),
                Err(errno) => return error(&self.path[..parent.path], FileError::of_listed(errno)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
