//! The length of a NAR serialisation, computed from a tree's structure without its files' contents.

use std::io;

use super::{Node, Visitor};

/// Adds up the length in bytes of a tree's NAR (Nix manual, "Nix Archive (NAR) format").
///
/// Every string of the format is its length as 64 bits and its bytes, padded with zeros to a multiple of eight. The
/// parts of a node add up in any order, so nothing has to be remembered of open directories.
#[derive(Clone, Copy, Debug)]
pub(super) struct NarSize(u64);

/// The length of one string.
const fn string(length: u64) -> u64 {
    8 + length.next_multiple_of(8)
}

/// `(` and `)`, `type`.
const NODE: u64 = 2 * string(1) + string(4);

impl NarSize {
    /// The length of the magic string alone: the tree has still to come.
    pub(super) fn new() -> Self {
        Self(string("nix-archive-1".len() as u64))
    }

    /// Adds a directory, without its entries.
    pub(super) fn directory(&mut self, path: &[u8]) {
        self.entry(path);
        self.0 += NODE + string("directory".len() as u64);
    }

    /// Adds a regular file of `size` bytes.
    pub(super) fn regular(&mut self, path: &[u8], executable: bool, size: u64) {
        self.entry(path);
        self.0 += NODE + string("regular".len() as u64) + string("contents".len() as u64) + string(size);
        if executable {
            self.0 += string("executable".len() as u64) + string(0);
        }
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &[u8], target: &[u8]) {
        self.entry(path);
        self.0 += NODE + string("symlink".len() as u64) + string("target".len() as u64) + string(target.len() as u64);
    }

    /// The sum.
    pub(super) fn finish(self) -> u64 {
        self.0
    }

    /// What a directory adds for one of its entries: `entry ( name <name> node <node> )`.
    fn entry(&mut self, path: &[u8]) {
        if path.is_empty() {
            return;
        }
        let name = path.rsplit(|&byte| byte == b'/').next().map_or(0, <[u8]>::len);
        self.0 += string(5) + string(1) + string(4) + string(name as u64) + string(4) + string(1);
    }
}

impl Visitor for NarSize {
    fn node(&mut self, path: &[u8], node: Node<'_>) -> io::Result<()> {
        match node {
            Node::Directory => self.directory(path),
            Node::Regular { executable, size, .. } => self.regular(path, executable, size),
            Node::Symlink { target } => self.symlink(path, target),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_nix_store_dump() {
        // `nix-store --dump P | wc -c` of Nix 2.8 for an empty file, an executable one, a link, a directory.
        let size = |add: &dyn Fn(&mut NarSize)| {
            let mut sum = NarSize::new();
            add(&mut sum);
            sum.finish()
        };
        assert_eq!(size(&|sum| sum.regular(b"", false, 0)), 112);
        assert_eq!(size(&|sum| sum.regular(b"", true, 9)), 160);
        assert_eq!(size(&|sum| sum.symlink(b"", b"target")), 120);
        assert_eq!(size(&|sum| sum.directory(b"")), 96);
    }
}
