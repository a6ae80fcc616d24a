//! What the contents of a store path hash to, and who says so.

use std::fmt;

/// The hash of a store path's contents.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentHash {
    /// sha256 of the NAR serialisation, as the Nix database or a signed narinfo records it.
    Nar([u8; 32]),
    /// blake3 over the nodes of a tree that nothing vouches for, taken by this tool.
    Tree([u8; 32]),
}

impl ContentHash {
    /// Tag and hash in one: a field of a layer's key.
    pub fn to_key_field(self) -> [u8; 33] {
        let (tag, hash) = match self {
            Self::Nar(hash) => (0, hash),
            Self::Tree(hash) => (1, hash),
        };
        let mut field = [tag; 33];
        field[1..].copy_from_slice(&hash);
        field
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, hash) = match self {
            Self::Nar(hash) => ("sha256", hash),
            Self::Tree(hash) => ("tree", hash),
        };
        write!(f, "{kind}:{}", super::store_path::to_base32(hash))
    }
}
