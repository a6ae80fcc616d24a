//! The memory of files already read, so that an unchanged file is never read twice.

use rustix::fs::Stat;

use crate::host;

/// The 32 base-32 digits of a store path, as they stand in files that refer to it.
pub type HashPart = [u8; 32];

/// What tells one state of a file from another without reading it.
///
/// The change time is the part that counts: Nix sets the modification time of every store file to 1, but nobody can
/// set a change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileStamp {
    /// The file system's number.
    pub device: u64,
    /// The file's number in its file system.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Modification time, in nanoseconds since 1970.
    pub modified: i128,
    /// Change time (of contents or of attributes), in nanoseconds since 1970.
    pub changed: i128,
}

impl FileStamp {
    /// How far in the past a file's times must lie before they identify its contents, in nanoseconds.
    ///
    /// A file that is written twice within one tick of its file system's clock has the same times after both; ticks
    /// are up to two seconds long. Git calls this "racy" (Documentation/technical/racy-git.txt).
    pub(super) const SETTLED_AFTER: i128 = 2_000_000_000;

    pub(super) fn of(stat: &Stat) -> Self {
        let nanoseconds = |seconds, rest| i128::from(seconds) * 1_000_000_000 + rest;
        Self {
            device: host::device(stat),
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: nanoseconds(stat.st_mtime, i128::from(stat.st_mtime_nsec)),
            changed: nanoseconds(stat.st_ctime, i128::from(stat.st_ctime_nsec)),
        }
    }

    /// Whether any later change of the file shows in its stamp; `now` is a time before the file was read.
    pub(super) fn is_settled(&self, now: i128) -> bool {
        self.changed.max(self.modified) < now - Self::SETTLED_AFTER
    }

    /// The stamp as a fixed number of bytes: a key for an index on disk.
    pub fn to_bytes(&self) -> [u8; 56] {
        let mut bytes = [0; 56];
        bytes[..8].copy_from_slice(&self.device.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.inode.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.size.to_be_bytes());
        bytes[24..40].copy_from_slice(&self.modified.to_be_bytes());
        bytes[40..].copy_from_slice(&self.changed.to_be_bytes());
        bytes
    }
}

/// What was found when a file was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RememberedFile {
    /// blake3 of the contents.
    pub contents: [u8; 32],
    /// What looks like the hash part of a store path, in byte order: those in the store when the file was read, and
    /// those that may come to be in it. Which of them are references is decided anew at every look.
    pub hashes: Vec<HashPart>,
}

impl RememberedFile {
    /// Changes whenever the hash or the scan finds something else in the same file, so that old memories are not
    /// taken for new ones.
    const VERSION: u8 = 1;

    /// A value for an index on disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + 32 * (1 + self.hashes.len()));
        bytes.push(Self::VERSION);
        bytes.extend_from_slice(&self.contents);
        bytes.extend(self.hashes.iter().flatten());
        bytes
    }

    /// Reads what [`RememberedFile::to_bytes`] wrote; `None` for anything else, an older version's included.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&version, rest) = bytes.split_first()?;
        let (contents, rest) = rest.split_first_chunk::<32>()?;
        let (hashes, []) = rest.as_chunks::<32>() else { return None };
        (version == Self::VERSION).then(|| Self { contents: *contents, hashes: hashes.to_vec() })
    }
}

/// Remembers files by their stamps.
///
/// A memo is only ever asked to save work: one that cannot read or write what it keeps forgets, and the file is read
/// again. It is called from several threads, once or twice a store path.
pub trait FileMemo: Send + Sync {
    /// What is known of each of these files, in their order.
    fn recall(&self, stamps: &[FileStamp]) -> Vec<Option<RememberedFile>>;

    /// Remembers these files.
    fn record(&self, files: &[(FileStamp, RememberedFile)]);
}

/// Remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMemo;

impl FileMemo for NoMemo {
    fn recall(&self, stamps: &[FileStamp]) -> Vec<Option<RememberedFile>> {
        vec![None; stamps.len()]
    }

    fn record(&self, _: &[(FileStamp, RememberedFile)]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_file_is_read_back() {
        for hashes in [vec![], vec![[b'a'; 32]], vec![[b'a'; 32], [b'b'; 32]]] {
            let file = RememberedFile { contents: [7; 32], hashes };
            let bytes = file.to_bytes();
            assert_eq!(RememberedFile::from_bytes(&bytes), Some(file));
            assert_eq!(RememberedFile::from_bytes(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn a_memory_of_another_version_is_forgotten() {
        let mut bytes = RememberedFile { contents: [7; 32], hashes: vec![] }.to_bytes();
        bytes[0] += 1;
        assert_eq!(RememberedFile::from_bytes(&bytes), None);
        assert_eq!(RememberedFile::from_bytes(&[]), None);
    }

    #[test]
    fn every_part_of_a_stamp_is_in_its_key() {
        let stamp = FileStamp { device: 1, inode: 2, size: 3, modified: 4, changed: 5 };
        let others = [
            FileStamp { device: 9, ..stamp },
            FileStamp { inode: 9, ..stamp },
            FileStamp { size: 9, ..stamp },
            FileStamp { modified: 9, ..stamp },
            FileStamp { changed: 9, ..stamp },
        ];
        for other in others {
            assert_ne!(other.to_bytes(), stamp.to_bytes());
        }
    }

    #[test]
    fn a_file_that_changed_just_now_is_not_settled() {
        let stamp = FileStamp { device: 1, inode: 2, size: 3, modified: 1, changed: 10_000_000_000 };
        assert!(!stamp.is_settled(10_000_000_000));
        assert!(!stamp.is_settled(12_000_000_000));
        assert!(stamp.is_settled(12_000_000_001));
        assert!(!FileStamp { modified: 99_000_000_000, ..stamp }.is_settled(12_000_000_001));
    }
}
