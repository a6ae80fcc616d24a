//! What the contents of a store path hash to, who says so, and how Nix writes it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use std::fmt;

use super::store_path::{from_base32, to_base32};

/// The hash of a store path's contents.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentHash {
    /// sha256 of the NAR serialisation, as the Nix database or a signed narinfo records it.
    Nar([u8; 32]),
    /// blake3 over the nodes of a tree that nothing vouches for, taken by this tool ([`TreeHasher`](super::TreeHasher)).
    Tree([u8; 32]),
}

/// A text that is no sha256 hash in any of Nix's spellings.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is not a sha256 hash: {reason}")]
pub struct InvalidContentHash {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
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

    /// Reads a `narHash` as Nix writes it: `sha256:<64 hex digits>` (the database, `path-info`), `sha256:<52 base-32
    /// digits>` (narinfo), `sha256:<44 base-64 digits>`, or `sha256-<44 base-64 digits>` (Subresource Integrity).
    ///
    /// As in Nix (libutil/hash.cc, `Hash::parseAny`), the length tells the three digits apart; hexadecimal digits may
    /// have either case.
    pub fn from_nar_hash(text: &str) -> Result<Self, InvalidContentHash> {
        let fail = |reason| InvalidContentHash { text: text.to_owned(), reason };
        let Some(rest) = text.strip_prefix("sha256") else {
            return Err(fail("it does not begin with sha256: or sha256-"));
        };
        let (digits, base64_only) = match rest.as_bytes().first() {
            Some(b':') => (&rest[1..], false),
            Some(b'-') => (&rest[1..], true),
            _ => return Err(fail("it does not begin with sha256: or sha256-")),
        };
        let hash = match digits.len() {
            44 => from_base64(digits).ok_or_else(|| fail("its digits are not base-64"))?,
            52 if !base64_only => from_base32(digits).ok_or_else(|| fail("its digits are not Nix base-32"))?,
            64 if !base64_only => from_hex(digits).ok_or_else(|| fail("its digits are not hexadecimal"))?,
            _ => return Err(fail("it has the wrong number of digits")),
        };
        Ok(Self::Nar(hash))
    }
}

/// `sha256:<base-32>` as narinfo writes it, or `tree:<base-32>`.
impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, hash) = match self {
            Self::Nar(hash) => ("sha256", hash),
            Self::Tree(hash) => ("tree", hash),
        };
        write!(f, "{kind}:{}", to_base32(hash))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Reads `N` bytes in base-64 with its padding (RFC 4648, section 4); `None` for anything else, bits beyond the last byte
/// among it.
pub fn from_base64<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Writes bytes in base-64 with its padding.
pub fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// The sha256 of no bytes, as `nix-hash --type sha256 --to-base16` writes it.
    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case::hex(HEX)]
    #[case::upper_case_hex("sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855")]
    #[case::base32("sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73")]
    #[case::base64("sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")]
    #[case::sri("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")]
    fn every_spelling_of_nix_is_read(#[case] text: &str) {
        assert_eq!(ContentHash::from_nar_hash(text), ContentHash::from_nar_hash(HEX));
        assert_eq!(
            ContentHash::from_nar_hash(text).unwrap().to_string(),
            "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
        );
    }

    #[rstest]
    #[case("", "it does not begin with sha256: or sha256-")]
    #[case("sha1:e3b0", "it does not begin with sha256: or sha256-")]
    #[case("sha256e3", "it does not begin with sha256: or sha256-")]
    #[case("sha256:", "it has the wrong number of digits")]
    #[case(&HEX[..HEX.len() - 1], "it has the wrong number of digits")]
    #[case(&HEX.replace(':', "-"), "it has the wrong number of digits")]
    #[case(&HEX.replace("e3", "g3"), "its digits are not hexadecimal")]
    #[case("sha256:emdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73", "its digits are not Nix base-32")]
    #[case("sha256:zmdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73", "its digits are not Nix base-32")]
    #[case("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=", "its digits are not base-64")]
    #[case("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFUA", "its digits are not base-64")]
    fn what_is_no_hash_says_why(#[case] text: &str, #[case] reason: &str) {
        assert_eq!(ContentHash::from_nar_hash(text).unwrap_err().reason, reason);
    }

    proptest! {
        #[test]
        fn a_written_hash_is_read_back(hash: [u8; 32]) {
            let hash = ContentHash::Nar(hash);
            prop_assert_eq!(ContentHash::from_nar_hash(&hash.to_string()), Ok(hash));
        }
    }

    #[test]
    fn a_hash_of_a_nar_and_of_a_tree_are_different_fields() {
        assert_ne!(ContentHash::Nar([7; 32]).to_key_field(), ContentHash::Tree([7; 32]).to_key_field());
    }
}
