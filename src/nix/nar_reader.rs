//! Reads a NAR from a stream and shows its nodes, as a walk on disk would.

use std::io::{self, Read};

use super::{Contents, Node, Visitor};

/// No string of a NAR's own is longer, nor is a name (`NAME_MAX`).
const LONGEST_NAME: u64 = 255;
/// No symbolic link's target is longer (`PATH_MAX`).
const LONGEST_TARGET: u64 = 4095;
/// The longest path within a tree: what a chain of directories may cost in memory.
const LONGEST_PATH: usize = 64 * 1024;

/// A stream that is no NAR, or could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The bytes are not those of a NAR.
    #[error("it is not a Nix archive: {reason} (at byte {at})")]
    Malformed {
        /// How many bytes were read until then.
        at: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The stream ended in the midst of it.
    #[error("it ends too early, after {at} bytes")]
    Truncated {
        /// How many bytes there were.
        at: u64,
    },
    /// The stream could not be read.
    #[error(transparent)]
    Read(io::Error),
    /// The visitor failed.
    #[error(transparent)]
    Visitor(io::Error),
}

/// Shows every node of the NAR in `stream` to `visitor` (Nix manual, "Nix Archive (NAR) format"), and reads to the
/// stream's end. Whatever is not exactly what Nix writes is refused: names out of order, strings not padded with zeros,
/// bytes behind the end.
///
/// There is no recursion, and no more memory is taken than the longest path of the tree.
pub fn read_nar(stream: &mut dyn Read, visitor: &mut dyn Visitor) -> Result<(), NarError> {
    let mut reader = Reader { stream, at: 0 };
    reader.expect(b"nix-archive-1", "it does not begin with nix-archive-1")?;
    let mut path = Vec::new();
    // The directories that are open: where their own paths end, and the last name that each had.
    let mut open: Vec<Directory> = Vec::new();
    let mut is_directory = reader.node(&path, visitor)?;
    loop {
        if is_directory {
            open.push(Directory { length: path.len(), last: Vec::new() });
        } else if open.is_empty() {
            break;
        } else {
            // The end of an entry of the directory that is open.
            reader.expect(b")", "an entry does not end with )")?;
        }
        // The next entry, of the nearest directory that has one.
        loop {
            let Some(directory) = open.last_mut() else { return reader.end() };
            path.truncate(directory.length);
            if reader.entry(directory, &mut path)? {
                break;
            }
            open.pop();
            if open.is_empty() {
                return reader.end();
            }
            reader.expect(b")", "an entry does not end with )")?;
        }
        is_directory = reader.node(&path, visitor)?;
    }
    reader.end()
}

/// A directory whose entries are being read.
struct Directory {
    /// The length of its path.
    length: usize,
    /// The name before.
    last: Vec<u8>,
}

struct Reader<'a> {
    stream: &'a mut dyn Read,
    at: u64,
}

impl Reader<'_> {
    fn malformed(&self, reason: &'static str) -> NarError {
        NarError::Malformed { at: self.at, reason }
    }

    /// Begins a node, and reads all of it unless it is a directory; says whether it is.
    fn node(&mut self, path: &[u8], visitor: &mut dyn Visitor) -> Result<bool, NarError> {
        self.expect(b"(", "a node does not begin with (")?;
        self.expect(b"type", "a node has no type")?;
        match self.string(LONGEST_NAME, "a node's type is too long")?.as_slice() {
            b"directory" => {
                visitor.node(path, Node::Directory).map_err(NarError::Visitor)?;
                return Ok(true);
            }
            b"symlink" => {
                self.expect(b"target", "a symbolic link has no target")?;
                let target = self.string(LONGEST_TARGET, "a symbolic link's target is too long")?;
                if target.is_empty() || target.contains(&0) {
                    return Err(self.malformed("a symbolic link's target is empty or has a NUL"));
                }
                visitor.node(path, Node::Symlink { target: &target }).map_err(NarError::Visitor)?;
            }
            b"regular" => self.regular(path, visitor)?,
            _ => return Err(self.malformed("a node is neither directory, regular nor symlink")),
        }
        self.expect(b")", "a node does not end with )")?;
        Ok(false)
    }

    fn regular(&mut self, path: &[u8], visitor: &mut dyn Visitor) -> Result<(), NarError> {
        let mut executable = false;
        let mut field = self.string(LONGEST_NAME, "a file's field is too long")?;
        if field == b"executable" {
            self.expect(b"", "executable has a value")?;
            executable = true;
            field = self.string(LONGEST_NAME, "a file's field is too long")?;
        }
        if field != b"contents" {
            return Err(self.malformed("a file has no contents"));
        }
        let size = self.number()?;
        let mut contents = NarContents { reader: self, left: size, failure: None };
        let shown = visitor.node(path, Node::Regular { executable, size, contents: &mut contents });
        // A visitor's own errors may wrap the sign that it got; whose fault it was is known here.
        if let Some(failure) = contents.failure {
            return Err(failure);
        }
        shown.map_err(NarError::Visitor)?;
        contents.skip()?;
        self.padding(size)
    }

    /// Begins the next entry and puts its name behind the directory's path; says whether there is one.
    fn entry(&mut self, directory: &mut Directory, path: &mut Vec<u8>) -> Result<bool, NarError> {
        match self.string(LONGEST_NAME, "a directory's field is too long")?.as_slice() {
            b")" => return Ok(false),
            b"entry" => {}
            _ => return Err(self.malformed("a directory has something other than entries")),
        }
        self.expect(b"(", "an entry does not begin with (")?;
        self.expect(b"name", "an entry has no name")?;
        let name = self.string(LONGEST_NAME, "a name is longer than 255 bytes")?;
        if name.is_empty() || name == b"." || name == b".." || name.iter().any(|&byte| byte == b'/' || byte == 0) {
            return Err(self.malformed("a name is empty, '.', '..', or has a slash or a NUL"));
        }
        if name <= directory.last {
            return Err(self.malformed("names are not in order"));
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        if path.len() > LONGEST_PATH {
            return Err(self.malformed("a path is longer than 64 KiB"));
        }
        directory.last = name;
        self.expect(b"node", "an entry has no node")?;
        Ok(true)
    }

    /// Nothing may follow.
    fn end(mut self) -> Result<(), NarError> {
        match self.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(self.malformed("something follows its end")),
        }
    }

    fn expect(&mut self, text: &[u8], reason: &'static str) -> Result<(), NarError> {
        match self.string(LONGEST_NAME, reason)? == text {
            true => Ok(()),
            false => Err(self.malformed(reason)),
        }
    }

    fn string(&mut self, longest: u64, reason: &'static str) -> Result<Vec<u8>, NarError> {
        let length = self.number()?;
        if length > longest {
            return Err(self.malformed(reason));
        }
        let mut bytes = vec![0; length as usize];
        self.read_exact(&mut bytes)?;
        self.padding(length)?;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u64, NarError> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// What follows a string of this length up to a multiple of eight bytes.
    fn padding(&mut self, length: u64) -> Result<(), NarError> {
        let mut zeros = [0; 8];
        let zeros = &mut zeros[..(length.wrapping_neg() % 8) as usize];
        self.read_exact(zeros)?;
        match zeros.iter().all(|&byte| byte == 0) {
            true => Ok(()),
            false => Err(self.malformed("a string is not padded with zeros")),
        }
    }

    fn read_exact(&mut self, mut bytes: &mut [u8]) -> Result<(), NarError> {
        while !bytes.is_empty() {
            match self.read(bytes)? {
                0 => return Err(NarError::Truncated { at: self.at }),
                read => bytes = &mut bytes[read..],
            }
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, NarError> {
        loop {
            match self.stream.read(bytes) {
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(NarError::Read(error)),
            }
        }
    }
}

/// A file's contents, within the stream.
struct NarContents<'r, 'a> {
    reader: &'r mut Reader<'a>,
    left: u64,
    failure: Option<NarError>,
}

impl NarContents<'_, '_> {
    fn try_read(&mut self, bytes: &mut [u8]) -> Result<usize, NarError> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if wanted == 0 {
            return Ok(0);
        }
        match self.reader.read(&mut bytes[..wanted])? {
            0 => Err(NarError::Truncated { at: self.reader.at }),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }

    /// Passes over what the visitor left.
    fn skip(&mut self) -> Result<(), NarError> {
        let mut buffer = [0; 8192];
        while self.left > 0 {
            self.try_read(&mut buffer)?;
        }
        Ok(())
    }
}

impl Read for NarContents<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::Error::other("the archive could not be read"));
        }
        self.try_read(bytes).map_err(|failure| {
            let sign = match &failure {
                NarError::Read(error) => error.kind().into(),
                other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
            };
            self.failure = Some(failure);
            sign
        })
    }
}

impl Contents for NarContents<'_, '_> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{Model, Seen, TestStore, model, nar, nar_of_tree, record_nodes, store_path};
    use super::*;

    fn shown(nar: &[u8]) -> Result<Vec<Seen>, NarError> {
        record_nodes(|visitor| read_nar(&mut &nar[..], visitor))
    }

    proptest! {
        #[test]
        fn a_nar_shows_the_tree_that_it_was_written_of(model in model()) {
            prop_assert_eq!(shown(&nar_of_tree(&model.tree())).unwrap(), model.nodes());
        }

        #[test]
        fn a_cut_nar_is_an_error_wherever_it_is_cut(model in model(), cut: prop::sample::Index) {
            let whole = nar_of_tree(&model.tree());
            let at = cut.index(whole.len());
            let is_truncated = matches!(shown(&whole[..at]), Err(NarError::Truncated { at: end }) if end == at as u64);
            prop_assert!(is_truncated);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), model in model(), at: prop::sample::Index) {
            let _ = shown(&bytes);
            let mut damaged = nar_of_tree(&model.tree());
            let at = at.index(damaged.len());
            damaged[at] ^= 1 << (bytes.len() % 8);
            let _ = shown(&damaged);
        }
    }

    fn strings(parts: &[&str]) -> Vec<u8> {
        let string = |text: &&str| {
            let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
            bytes.extend_from_slice(text.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes
        };
        [&"nix-archive-1"].into_iter().chain(parts).flat_map(string).collect()
    }

    #[rstest::rstest]
    #[case::another_type(&["(", "type", "socket", ")"], "a node is neither directory, regular nor symlink")]
    #[case::no_contents(&["(", "type", "regular", ")"], "a file has no contents")]
    #[case::an_empty_target(&["(", "type", "symlink", "target", "", ")"], "a symbolic link's target is empty or has a NUL")]
    #[case::a_second_node(&["(", "type", "symlink", "target", "x", ")", "("], "something follows its end")]
    #[case::not_closed(&["(", "type", "symlink", "target", "x", "("], "a node does not end with )")]
    #[case::parent(&["(", "type", "directory", "entry", "(", "name", "..", "node"], "a name is empty, '.', '..', or has a slash or a NUL")]
    #[case::slash(&["(", "type", "directory", "entry", "(", "name", "a/b", "node"], "a name is empty, '.', '..', or has a slash or a NUL")]
    #[case::twice(
        &["(", "type", "directory", "entry", "(", "name", "a", "node", "(", "type", "symlink", "target", "x", ")", ")", "entry", "(", "name", "a", "node"],
        "names are not in order"
    )]
    fn what_nix_would_not_write_says_why(#[case] parts: &[&str], #[case] expected: &str) {
        let error = shown(&strings(parts)).unwrap_err();
        assert!(matches!(error, NarError::Malformed { reason, .. } if reason == expected), "{error}");
    }

    #[test]
    fn a_length_that_lies_takes_no_memory() {
        let mut nar = strings(&["(", "type", "symlink", "target"]);
        nar.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(shown(&nar), Err(NarError::Malformed { reason: "a symbolic link's target is too long", .. })));
        let mut nar = strings(&["(", "type", "regular", "contents"]);
        nar.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(shown(&nar), Err(NarError::Truncated { .. })));
    }

    #[test]
    fn padding_must_be_zeros() {
        let mut nar = strings(&["(", "type", "symlink", "target", "x", ")"]);
        *nar.last_mut().unwrap() = 1;
        assert!(matches!(shown(&nar), Err(NarError::Malformed { reason: "a string is not padded with zeros", .. })));
    }

    #[test]
    fn a_deep_tree_needs_no_stack() {
        const DEPTH: usize = 30_000;
        let down = ["(", "type", "directory", "entry", "(", "name", "d", "node"].repeat(DEPTH);
        let up = [")", ")"].repeat(DEPTH);
        let nar = strings(&[&down[..], &["(", "type", "symlink", "target", "x", ")"], &up[..]].concat());
        let mut deepest = 0;
        let mut measure = |path: &[u8], _: Node<'_>| {
            deepest = deepest.max(path.len());
            Ok(())
        };
        read_nar(&mut &nar[..], &mut measure).unwrap();
        assert_eq!(deepest, 2 * DEPTH - 1);
    }

    #[test]
    fn a_visitors_error_comes_back_as_it_was_and_what_it_leaves_is_passed_over() {
        let model = Model::Directory(
            [(b"a".to_vec(), Model::file(&[1; 100_000])), (b"b".to_vec(), Model::file(b"b"))].into_iter().collect(),
        );
        let nar_bytes = nar_of_tree(&model.tree());
        let mut seen = 0;
        read_nar(&mut &nar_bytes[..], &mut |_: &[u8], node: Node<'_>| {
            seen += 1;
            if let Node::Regular { contents, .. } = node {
                contents.read_exact(&mut [0; 1])?;
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, 3);
        let error =
            read_nar(&mut &nar_bytes[..], &mut |_: &[u8], _: Node<'_>| Err(io::Error::other("the disk is full")));
        assert!(matches!(error, Err(NarError::Visitor(error)) if error.to_string() == "the disk is full"));
        // `nar` is what a store's walk gives: the two agree.
        let store = TestStore::new();
        let path = store_path('1', "tree");
        store.write(&path, &model.tree());
        assert!(nar(&store.open(), &path) == nar_bytes);
    }
}
