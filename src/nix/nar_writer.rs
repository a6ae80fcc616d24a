//! A walk as a NAR: what a signed hash is compared with where no NAR was fetched.

use std::io::{self, Write};

use super::{Node, Visitor};

/// Writes the nodes of one store path as a NAR (Nix manual, "Nix Archive (NAR) format").
pub struct NarWriter<W> {
    out: W,
    /// The directories that are open, each by its path; the store path's own is first.
    open: Vec<Vec<u8>>,
    is_begun: bool,
}

impl<W: Write> NarWriter<W> {
    /// Nothing is written yet.
    pub fn new(out: W) -> Self {
        Self { out, open: Vec::new(), is_begun: false }
    }

    /// Ends the NAR, and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        while !self.open.is_empty() {
            self.close()?;
        }
        Ok(self.out)
    }

    fn string(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(&(bytes.len() as u64).to_le_bytes())?;
        self.out.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn pad(&mut self, length: u64) -> io::Result<()> {
        self.out.write_all(&[0; 8][..(length.next_multiple_of(8) - length) as usize])
    }

    fn strings(&mut self, all: &[&str]) -> io::Result<()> {
        all.iter().try_for_each(|text| self.string(text.as_bytes()))
    }

    /// Ends the innermost directory, and its entry in the one around it.
    fn close(&mut self) -> io::Result<()> {
        self.open.pop();
        self.strings(if self.open.is_empty() { &[")"] } else { &[")", ")"] })
    }

    /// Comes to where the node belongs.
    fn enter(&mut self, path: &[u8]) -> io::Result<()> {
        let unordered = || io::Error::new(io::ErrorKind::InvalidData, "an entry without its directory");
        if path.is_empty() {
            return match std::mem::replace(&mut self.is_begun, true) {
                true => Err(unordered()),
                false => self.strings(&["nix-archive-1"]),
            };
        }
        let slash = path.iter().rposition(|&byte| byte == b'/');
        let (parent, name) = slash.map_or((&[][..], path), |slash| (&path[..slash], &path[slash + 1..]));
        while self.open.last().ok_or_else(unordered)? != parent {
            self.close()?;
        }
        self.strings(&["entry", "(", "name"])?;
        self.string(name)?;
        self.strings(&["node"])
    }
}

impl<W: Write> Visitor for NarWriter<W> {
    fn node(&mut self, path: &[u8], node: Node<'_>) -> io::Result<()> {
        self.enter(path)?;
        self.strings(&["(", "type"])?;
        match node {
            Node::Directory => {
                self.open.push(path.to_vec());
                return self.strings(&["directory"]);
            }
            Node::Regular { executable, size, contents } => {
                self.strings(if executable {
                    &["regular", "executable", "", "contents"]
                } else {
                    &["regular", "contents"]
                })?;
                self.out.write_all(&size.to_le_bytes())?;
                if io::copy(contents, &mut self.out)? != size {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.pad(size)?;
            }
            Node::Symlink { target } => {
                self.strings(&["symlink", "target"])?;
                self.string(target)?;
            }
        }
        self.strings(if path.is_empty() { &[")"] } else { &[")", ")"] })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{model, nar_of_tree};
    use super::*;

    proptest! {
        #[test]
        fn a_walk_becomes_the_nar_of_its_tree(model in model()) {
            let tree = model.tree();
            let mut nar = NarWriter::new(Vec::new());
            tree.walk(&mut nar).unwrap();
            prop_assert_eq!(nar.finish().unwrap(), nar_of_tree(&tree));
        }
    }

    #[test]
    fn nodes_out_of_their_order_are_refused() {
        for paths in [&["", ""][..], &["", "b/c"], &["a"]] {
            let mut nar = NarWriter::new(Vec::new());
            let written = paths.iter().try_for_each(|path| nar.node(path.as_bytes(), Node::Directory));
            assert!(written.is_err(), "{paths:?}");
        }
    }
}
