//! The content hash of a tree that nothing vouches for.

use super::ContentHash;

/// Takes blake3 over the nodes of a tree, in NAR order.
///
/// Every field is prefixed with its length, so no two trees hash the same bytes. A file goes in with the blake3 of its
/// contents, so files can be read in any order, in parallel, or not at all when they are remembered. Which source the
/// tree comes from does not show.
#[derive(Clone, Debug)]
pub struct TreeHasher(blake3::Hasher);

impl Default for TreeHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl TreeHasher {
    /// Starts a tree.
    pub fn new() -> Self {
        Self(blake3::Hasher::new_derive_key("layerhold 2026 store path tree v1"))
    }

    /// Adds a directory. `path` is relative to the tree's root, which is itself `""`.
    pub fn directory(&mut self, path: &[u8]) {
        self.node(b'd', path);
    }

    /// Adds a regular file of `size` bytes; `contents` is their blake3.
    pub fn regular(&mut self, path: &[u8], executable: bool, size: u64, contents: &[u8; 32]) {
        self.node(if executable { b'x' } else { b'f' }, path);
        self.0.update(&size.to_le_bytes());
        self.0.update(contents);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &[u8], target: &[u8]) {
        self.node(b'l', path);
        self.bytes(target);
    }

    /// The hash of all nodes.
    pub fn finish(&self) -> ContentHash {
        ContentHash::Tree(self.0.finalize().into())
    }

    fn node(&mut self, kind: u8, path: &[u8]) {
        self.0.update(&[kind]);
        self.bytes(path);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(build: impl Fn(&mut TreeHasher)) -> ContentHash {
        let mut hasher = TreeHasher::new();
        build(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn every_part_of_a_node_counts() {
        let contents = *blake3::hash(b"contents").as_bytes();
        let hashes = [
            hash(|_| {}),
            hash(|tree| tree.directory(b"")),
            hash(|tree| tree.directory(b"a")),
            hash(|tree| tree.symlink(b"a", b"b")),
            hash(|tree| tree.symlink(b"ab", b"")),
            hash(|tree| tree.regular(b"a", false, 8, &contents)),
            hash(|tree| tree.regular(b"a", true, 8, &contents)),
            hash(|tree| tree.regular(b"a", true, 9, &contents)),
            hash(|tree| tree.regular(b"b", true, 8, &contents)),
            hash(|tree| tree.regular(b"a", true, 8, &[0; 32])),
        ];
        for (n, one) in hashes.iter().enumerate() {
            assert!(!hashes[..n].contains(one), "{n}");
        }
    }

    #[test]
    fn the_hash_is_the_same_in_every_version_of_this_tool() {
        // Layers are found by it: when this changes, the context's version must.
        let tree = hash(|tree| {
            tree.directory(b"");
            tree.regular(b"bin", true, 5, blake3::hash(b"hello").as_bytes());
            tree.symlink(b"lib", b"bin");
        });
        insta::assert_snapshot!(tree, @"tree:08kjl6qxxbqfs3b035nn7qzn1bd7qkjf8alb80mp34sj38873f1d");
    }
}
