//! A canonical tar: one way to write each entry, whatever the machine.
//!
//! ustar headers (POSIX.1-1988) with owner names left empty and mtime 1, as Nix sets it; a PAX header (POSIX.1-2001)
//! goes before an entry only where ustar has no room: long names and link targets, files from 8 GiB. Docker, Podman,
//! containerd and umoci read these alike.

use std::io;

use tar::{EntryType, Header};

use super::buffers::Buffers;
use crate::nix::Contents;
use crate::outlet::Outlet;

const BLOCK: usize = 512;
/// The first length in bytes that eleven octal digits cannot hold.
const USTAR_SIZE_LIMIT: u64 = 1 << 33;
/// The first number of a user or a group that seven octal digits cannot hold.
const USTAR_ID_LIMIT: u32 = 1 << 21;
/// Nix sets every file's time to one second after the epoch.
const MTIME: u64 = 1;

/// Who owns an entry and who may use it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Attributes {
    /// Root's, as every file of the store is.
    pub(super) fn root(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0 }
    }
}

/// From this size on a file is worth a call for what goes before it, and one for every MiB of its pages.
const WORTH_MOVING: u64 = 64 << 10;

/// Takes a tar, cut into pieces of one length; only the last may be shorter, and those before a file that goes into an
/// outlet.
pub(super) trait TakePiece {
    /// Takes the first `filled` bytes of `buffer`, and gives a buffer of the same length for the next piece.
    fn take(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>>;

    /// Where the pieces go, if files may go there as they are.
    fn outlet(&mut self) -> Option<&mut dyn Outlet> {
        None
    }
}

/// Writes entries through buffers that change hands: file contents are read straight into them, and nobody copies them.
pub(super) struct TarWriter<'a> {
    /// Nobody takes a tar that is only measured.
    out: Option<&'a mut dyn TakePiece>,
    buffer: Box<[u8]>,
    /// Whose the buffer is at the end.
    buffers: Option<&'a Buffers>,
    filled: usize,
    /// What was passed on, and what was only measured.
    passed: u64,
    /// The path of the present entry, kept for its allocation.
    path: Vec<u8>,
}

impl<'a> TarWriter<'a> {
    /// Cuts the tar into pieces as long as these buffers.
    pub(super) fn new(out: &'a mut dyn TakePiece, buffers: &'a Buffers) -> Self {
        let (buffer, buffers) = (buffers.take(), Some(buffers));
        Self { out: Some(out), buffer, buffers, filled: 0, passed: 0, path: Vec::with_capacity(256) }
    }

    /// Only finds out how long the tar is; no file is read.
    pub(super) fn measuring() -> Self {
        let buffer = vec![0; 64 * BLOCK].into_boxed_slice();
        Self { out: None, buffer, buffers: None, filled: 0, passed: 0, path: Vec::with_capacity(256) }
    }

    /// Whether it only finds out how long the tar is.
    pub(super) fn is_measuring(&self) -> bool {
        self.out.is_none()
    }

    /// A directory. `path` has no trailing slash; the entry gets one.
    pub(super) fn directory(&mut self, path: &[u8], attributes: Attributes) -> io::Result<()> {
        self.header(path, EntryType::Directory, attributes, 0, b"")
    }

    /// A symbolic link.
    pub(super) fn symlink(&mut self, path: &[u8], target: &[u8], attributes: Attributes) -> io::Result<()> {
        self.header(path, EntryType::Symlink, attributes, 0, target)
    }

    /// A regular file of exactly `size` bytes; `contents` ending early is an error of kind `UnexpectedEof`.
    pub(super) fn file(
        &mut self,
        path: &[u8],
        size: u64,
        contents: &mut dyn Contents,
        attributes: Attributes,
    ) -> io::Result<()> {
        self.header(path, EntryType::Regular, attributes, size, b"")?;
        if self.is_measuring() {
            self.passed += size.next_multiple_of(BLOCK as u64);
            return Ok(());
        }
        let mut left = size - self.move_pages(size, contents)?;
        while left > 0 {
            if self.filled == self.buffer.len() {
                self.pass_on()?;
            }
            let room = &mut self.buffer[self.filled..];
            let wanted = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match contents.read(&mut room[..wanted]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.filled += read;
            left -= read as u64;
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.append(&[0; BLOCK][..padding as usize])
    }

    /// Has the outlet take a large file's bytes as they are, as far as that goes; how many it took.
    fn move_pages(&mut self, size: u64, contents: &mut dyn Contents) -> io::Result<u64> {
        if size < WORTH_MOVING || self.outlet().is_none() {
            return Ok(0);
        }
        self.pass_on()?;
        let mut taken = 0;
        while taken < size {
            let Some(outlet) = self.outlet() else { break };
            match contents.give_pages(outlet, size - taken)? {
                None | Some(0) => break,
                Some(more) => taken += more,
            }
        }
        self.passed += taken;
        Ok(taken)
    }

    fn outlet(&mut self) -> Option<&mut dyn Outlet> {
        self.out.as_mut()?.outlet()
    }

    /// Two empty blocks end the archive. Its length in bytes.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.append(&[0; 2 * BLOCK])?;
        self.pass_on()?;
        if let Some(buffers) = self.buffers {
            buffers.put(self.buffer);
        }
        Ok(self.passed)
    }

    fn header(
        &mut self,
        path: &[u8],
        entry_type: EntryType,
        attributes: Attributes,
        size: u64,
        link: &[u8],
    ) -> io::Result<()> {
        let mut full = std::mem::take(&mut self.path);
        full.clear();
        full.extend_from_slice(path);
        if entry_type == EntryType::Directory {
            full.push(b'/');
        }

        let mut header = Header::new_ustar();
        let split = split_for_ustar(&full);
        let link_fits = link.len() <= 100;
        let size_fits = size < USTAR_SIZE_LIMIT;
        if split.is_none() || !link_fits || !size_fits {
            let mut records = Vec::new();
            let binary = (split.is_none() && !is_utf8(&full)) || (!link_fits && !is_utf8(link));
            if binary {
                // POSIX.1-2001 has UTF-8 in records unless this one comes first.
                pax_record(&mut records, "hdrcharset", b"BINARY");
            }
            if split.is_none() {
                pax_record(&mut records, "path", &full);
            }
            if !link_fits {
                pax_record(&mut records, "linkpath", link);
            }
            if !size_fits {
                pax_record(&mut records, "size", size.to_string().as_bytes());
            }
            self.pax_header(&records)?;
        }

        {
            let ustar = header.as_ustar_mut().ok_or_else(|| io::Error::other("not a ustar header"))?;
            // Where a PAX record has the whole, these fields are for old readers and cut short.
            let (prefix, name) = split.unwrap_or((&[], &full[..full.len().min(100)]));
            ustar.prefix[..prefix.len()].copy_from_slice(prefix);
            ustar.name[..name.len()].copy_from_slice(name);
            let link = &link[..link.len().min(100)];
            ustar.linkname[..link.len()].copy_from_slice(link);
        }
        header.set_entry_type(entry_type);
        set_numbers(&mut header, attributes, if size_fits { size } else { 0 });
        self.path = full;
        self.append(header.as_bytes())
    }

    fn pax_header(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let name = b"././@PaxHeader";
        if let Some(ustar) = header.as_ustar_mut() {
            ustar.name[..name.len()].copy_from_slice(name);
        }
        header.set_entry_type(EntryType::XHeader);
        set_numbers(&mut header, Attributes::root(0o444), records.len() as u64);
        self.append(header.as_bytes())?;
        self.append(records)?;
        let padding = records.len().next_multiple_of(BLOCK) - records.len();
        self.append(&[0; BLOCK][..padding])
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.filled == self.buffer.len() {
                self.pass_on()?;
            }
            let taken = bytes.len().min(self.buffer.len() - self.filled);
            self.buffer[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let filled = std::mem::take(&mut self.filled);
        self.passed += filled as u64;
        if let Some(out) = &mut self.out {
            self.buffer = out.take(std::mem::take(&mut self.buffer), filled)?;
        }
        Ok(())
    }
}

/// Sets every number of a header, the checksum last. A layer has thousands of them: no digit goes through a string.
fn set_numbers(header: &mut Header, attributes: Attributes, size: u64) {
    let Attributes { mode, uid, gid } = attributes;
    let fields = header.as_old_mut();
    octal(&mut fields.mode, mode.into());
    octal(&mut fields.uid, uid.into());
    octal(&mut fields.gid, gid.into());
    octal(&mut fields.size, size);
    octal(&mut fields.mtime, MTIME);
    if uid.max(gid) >= USTAR_ID_LIMIT {
        // In binary, which every reader knows, too.
        header.set_uid(uid.into());
        header.set_gid(gid.into());
    }
    header.as_old_mut().cksum = [b' '; 8];
    let sum = header.as_bytes().iter().map(|&byte| u64::from(byte)).sum();
    octal(&mut header.as_old_mut().cksum, sum);
}

/// As many octal digits as there is room for, and a NUL behind them.
fn octal(field: &mut [u8], mut value: u64) {
    let Some((end, digits)) = field.split_last_mut() else { return };
    *end = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

fn is_utf8(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

/// Splits a path at a slash into a prefix of at most 155 bytes and a name of at most 100, the prefix as short as it
/// goes; `None` where there is no such slash.
fn split_for_ustar(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((&[], path));
    }
    // The slash itself is in neither part; a directory's last slash is part of its name.
    let first = path.len() - 101;
    let last = path.len().saturating_sub(2).min(155);
    (first..=last).find(|&at| path[at] == b'/').map(|at| (&path[..at], &path[at + 1..]))
}

/// Appends `"<length> <key>=<value>\n"`, whose length counts its own digits.
fn pax_record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut digits = 1;
    while (rest + digits).to_string().len() != digits {
        digits += 1;
    }
    records.extend_from_slice(format!("{} {key}=", rest + digits).as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Contents for io::Empty {}
    impl Contents for io::Repeat {}

    const PIECE: usize = 1024;

    impl TakePiece for Vec<u8> {
        fn take(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
            assert!(self.len().is_multiple_of(PIECE), "a piece that is not full is the last");
            self.extend_from_slice(&buffer[..filled]);
            Ok(buffer)
        }
    }

    fn archive(write: impl FnOnce(&mut TarWriter<'_>) -> io::Result<()>) -> Vec<u8> {
        let (mut bytes, buffers) = (Vec::new(), Buffers::new(PIECE));
        let mut writer = TarWriter::new(&mut bytes, &buffers);
        write(&mut writer).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn only_entry(archive: &[u8]) -> (Vec<u8>, Option<Vec<u8>>, u64) {
        let mut archive = tar::Archive::new(archive);
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        let link = entry.link_name_bytes().map(|link| link.into_owned());
        (entry.path_bytes().into_owned(), link, entry.size())
    }

    #[test]
    fn names_of_every_length_come_back() {
        for length in (1..600).chain([4095, 70_000]) {
            for slash_every in [3, 60, 101, 1000] {
                let path: Vec<u8> =
                    (0..length).map(|n| if n % slash_every == slash_every - 1 { b'/' } else { b'a' }).collect();
                let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
                let tar = archive(|tar| tar.file(&path, 0, &mut io::empty(), Attributes::root(0o444)));
                assert_eq!(only_entry(&tar).0, path);
                let tar = archive(|tar| tar.directory(&path, Attributes::root(0o555)));
                assert_eq!(only_entry(&tar).0, [path.as_slice(), b"/"].concat());
            }
        }
    }

    #[test]
    fn link_targets_of_every_length_come_back() {
        for length in [1, 99, 100, 101, 255, 4095] {
            let target = vec![b'x'; length];
            let tar = archive(|tar| tar.symlink(b"link", &target, Attributes::root(0o777)));
            assert_eq!(only_entry(&tar).1.unwrap(), target);
        }
    }

    #[test]
    fn names_need_not_be_utf8() {
        for length in [3, 300] {
            let path = vec![0xff; length];
            let tar = archive(|tar| tar.file(&path, 0, &mut io::empty(), Attributes::root(0o444)));
            assert_eq!(only_entry(&tar).0, path);
            assert_eq!(tar.windows(10).any(|at| at == b"hdrcharset"), length == 300);
        }
    }

    #[test]
    fn a_file_of_eight_gib_gets_a_pax_size() {
        struct Counting(u64, Vec<u8>);
        impl TakePiece for Counting {
            fn take(&mut self, buffer: Box<[u8]>, filled: usize) -> io::Result<Box<[u8]>> {
                if self.1.len() < 4096 {
                    self.1.extend_from_slice(&buffer[..filled.min(4096)]);
                }
                self.0 += filled as u64;
                Ok(buffer)
            }
        }
        for (size, pax) in [(USTAR_SIZE_LIMIT - 1, false), (USTAR_SIZE_LIMIT, true)] {
            let (mut counting, buffers) = (Counting(0, Vec::new()), Buffers::new(1 << 20));
            let mut tar = TarWriter::new(&mut counting, &buffers);
            tar.file(b"huge", size, &mut io::repeat(0), Attributes::root(0o444)).unwrap();
            tar.finish().unwrap();
            let Counting(written, start) = counting;
            assert_eq!(only_entry(&start), (b"huge".to_vec(), None, size));
            assert_eq!(written, size.next_multiple_of(512) + 512 * if pax { 5 } else { 3 });
        }
    }

    #[test]
    fn a_tar_is_as_long_as_it_was_measured() {
        let write = |tar: &mut TarWriter<'_>| {
            tar.directory(b"nix/store", Attributes::root(0o555))?;
            for size in [0, 1, 511, 512, 513, 3000] {
                let name = vec![b'n'; size + 1];
                tar.file(&name, size as u64, &mut io::repeat(1), Attributes::root(0o444))?;
                tar.symlink(b"link", &name, Attributes::root(0o777))?;
            }
            Ok(())
        };
        let mut measuring = TarWriter::measuring();
        write(&mut measuring).unwrap();
        assert_eq!(measuring.finish().unwrap(), archive(write).len() as u64);
    }

    proptest! {
        #[test]
        fn numbers_are_those_that_the_library_writes(
            mode in 0u32..0o10_000, uid: u32, gid in 0u32..1 << 22, size in 0..USTAR_SIZE_LIMIT,
        ) {
            let (mut ours, mut theirs) = (Header::new_ustar(), Header::new_ustar());
            set_numbers(&mut ours, Attributes { mode, uid, gid }, size);
            theirs.set_mode(mode);
            theirs.set_uid(uid.into());
            theirs.set_gid(gid.into());
            theirs.set_size(size);
            theirs.set_mtime(MTIME);
            theirs.set_cksum();
            prop_assert_eq!(&ours.as_bytes()[..], &theirs.as_bytes()[..]);
        }
    }

    #[test]
    fn contents_that_end_early_are_an_error() {
        let (mut bytes, buffers) = (Vec::new(), Buffers::new(PIECE));
        let mut tar = TarWriter::new(&mut bytes, &buffers);
        let error = tar.file(b"short", 10, &mut &b"123"[..], Attributes::root(0o444)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_header_is_nixs() {
        let tar = archive(|tar| tar.file(b"nix/store/x/run", 3, &mut &b"abc"[..], Attributes::root(0o555)));
        let header = Header::from_byte_slice(&tar[..512]);
        assert_eq!(header.mtime().unwrap(), 1);
        assert_eq!(header.mode().unwrap(), 0o555);
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert_eq!(header.username_bytes(), Some(&b""[..]));
        assert_eq!(&tar[512..516], b"abc\0");
        assert_eq!(tar.len(), 4 * 512);
    }
}
