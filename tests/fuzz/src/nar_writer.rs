//! NARs out of walks.

use std::io;

use layerhold::nix::{Node, Visitor};

/// Writes nodes as a NAR (Nix manual, "Nix Archive (NAR) format").
#[derive(Default)]
pub struct NarWriter {
    bytes: Vec<u8>,
    /// The paths of the directories that are open, the root's first.
    open: Vec<Vec<u8>>,
}

impl NarWriter {
    fn string(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(&(string.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(string);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    fn strings(&mut self, strings: &[&str]) {
        strings.iter().for_each(|string| self.string(string.as_bytes()));
    }

    /// Ends a node, and the entry that it is of unless it is the root.
    fn close(&mut self, path: &[u8]) {
        self.strings(if path.is_empty() { &[")"] } else { &[")", ")"] });
    }

    /// The whole of it, after the walk.
    pub fn finish(mut self) -> Vec<u8> {
        while let Some(path) = self.open.pop() {
            self.close(&path);
        }
        self.bytes
    }
}

impl Visitor for NarWriter {
    fn node(&mut self, path: &[u8], node: Node<'_>) -> io::Result<()> {
        if path.is_empty() {
            self.strings(&["nix-archive-1"]);
        } else {
            let slash = path.iter().rposition(|&byte| byte == b'/');
            let parent = &path[..slash.unwrap_or(0)];
            while let Some(done) = self.open.pop_if(|open| open != parent) {
                self.close(&done);
            }
            self.strings(&["entry", "(", "name"]);
            self.string(&path[slash.map_or(0, |slash| slash + 1)..]);
            self.strings(&["node"]);
        }
        self.strings(&["(", "type"]);
        match node {
            Node::Directory => {
                self.strings(&["directory"]);
                self.open.push(path.to_vec());
                return Ok(());
            }
            Node::Symlink { target } => {
                self.strings(&["symlink", "target"]);
                self.string(target);
            }
            Node::Regular { executable, contents, .. } => {
                let mut bytes = Vec::new();
                contents.read_to_end(&mut bytes)?;
                self.strings(&["regular"]);
                if executable {
                    self.strings(&["executable", ""]);
                }
                self.strings(&["contents"]);
                self.string(&bytes);
            }
        }
        self.close(path);
        Ok(())
    }
}
