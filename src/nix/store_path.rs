//! Names of store paths, valid by construction.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The directory that every store path lies in, inside the image as on the machine.
pub const STORE_DIR: &str = "/nix/store";

/// Nix's base-32 digits: no `e`, `o`, `t`, `u` (Nix manual, "Store path", "Digest").
const BASE32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// A store path: 32 base-32 digits, a dash, and a name.
///
/// Written in full (`/nix/store/<hash>-<name>`); ordered by name and then by hash, so that orders made from it do not
/// jump about when a package is rebuilt.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StorePath {
    /// `<hash>-<name>`.
    base: Box<str>,
}

/// A text that does not name a store path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{path}' is not a store path: {reason}")]
pub struct InvalidStorePath {
    /// The text.
    pub path: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl StorePath {
    /// Number of digits of the hash part.
    pub const HASH_LEN: usize = 32;

    /// Reads `<hash>-<name>`.
    pub fn from_base_name(base: &str) -> Result<Self, InvalidStorePath> {
        let fail = |reason| Err(InvalidStorePath { path: base.to_owned(), reason });
        let bytes = base.as_bytes();
        if bytes.len() < Self::HASH_LEN + 2 || bytes[Self::HASH_LEN] != b'-' {
            return fail("its last part must be 32 digits, a dash and a name");
        }
        if !bytes[..Self::HASH_LEN].iter().all(|&byte| is_base32_digit(byte)) {
            return fail("its hash has characters that are not Nix base-32 digits");
        }
        let name = &bytes[Self::HASH_LEN + 1..];
        // nix: libstore/path.cc, checkName: at most 211 characters of a small alphabet.
        if name.len() > 211 {
            return fail("its name is longer than 211 characters");
        }
        if !name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-._?=".contains(byte)) {
            return fail("its name has characters other than letters, digits and +-._?=");
        }
        Ok(Self { base: base.into() })
    }

    /// The store path that `path` is or lies in: `/nix/store/<hash>-<name>[/...]`.
    pub fn containing(path: &Path) -> Result<Self, InvalidStorePath> {
        let fail = |reason| InvalidStorePath { path: path.display().to_string(), reason };
        let rest = path.strip_prefix(STORE_DIR).map_err(|_| fail("it does not lie in /nix/store"))?;
        let base = rest.components().next().ok_or_else(|| fail("it is the store itself"))?;
        let base = base.as_os_str().to_str().ok_or_else(|| fail("it is not UTF-8"))?;
        Self::from_base_name(base).map_err(|error| fail(error.reason))
    }

    /// The 32 digits.
    pub fn hash_part(&self) -> &str {
        &self.base[..Self::HASH_LEN]
    }

    /// What stands behind the dash: a package's name, version and output.
    pub fn name(&self) -> &str {
        &self.base[Self::HASH_LEN + 1..]
    }

    /// `<hash>-<name>`.
    pub fn base_name(&self) -> &str {
        &self.base
    }

    /// `/nix/store/<hash>-<name>`.
    pub fn to_absolute(&self) -> PathBuf {
        Path::new(STORE_DIR).join(&*self.base)
    }

    /// A store path for a tree that this tool made itself, from the tree's own hash.
    ///
    /// The first 160 bits of `digest` become the hash part, as Nix's own are 160 bits long.
    pub fn synthetic(digest: &[u8; 32], name: &str) -> Result<Self, InvalidStorePath> {
        Self::from_base_name(&format!("{}-{name}", to_base32(&digest[..20])))
    }
}

/// Nix's base-32: the least significant five bits last in the text (nix: libutil/hash.cc, `printHash32`).
pub fn to_base32(bytes: &[u8]) -> String {
    let digits = (bytes.len() * 8).div_ceil(5);
    (0..digits)
        .rev()
        .map(|n| {
            let (byte, bit) = (n * 5 / 8, n * 5 % 8);
            let low = u16::from(bytes[byte]) >> bit;
            let high = bytes.get(byte + 1).map_or(0, |&next| u16::from(next) << (8 - bit));
            BASE32[((low | high) & 31) as usize] as char
        })
        .collect()
}

/// Reads what [`to_base32`] writes; `None` for other digits, another length, or bits beyond the last byte.
pub(super) fn from_base32<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != (N * 8).div_ceil(5) {
        return None;
    }
    let mut bytes = [0u8; N];
    for (n, digit) in text.bytes().rev().enumerate() {
        let value = BASE32.iter().position(|&candidate| candidate == digit)? as u16;
        let (byte, bit) = (n * 5 / 8, n * 5 % 8);
        let shifted = value << bit;
        bytes[byte] |= shifted as u8;
        match bytes.get_mut(byte + 1) {
            Some(next) => *next |= (shifted >> 8) as u8,
            None if shifted >> 8 != 0 => return None,
            None => {}
        }
    }
    Some(bytes)
}

/// Whether `byte` is a base-32 digit of Nix's alphabet.
pub(super) const fn is_base32_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'd' | b'f'..=b'n' | b'p'..=b's' | b'v'..=b'z')
}

impl Ord for StorePath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.name().cmp(other.name()).then_with(|| self.base.cmp(&other.base))
    }
}

impl PartialOrd for StorePath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE_DIR}/{}", self.base)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for StorePath {
    type Err = InvalidStorePath;

    /// Reads `/nix/store/<hash>-<name>` and nothing below it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason| InvalidStorePath { path: text.to_owned(), reason };
        let base = text
            .strip_prefix(STORE_DIR)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| fail("it does not lie in /nix/store"))?;
        Self::from_base_name(base).map_err(|error| fail(error.reason))
    }
}

impl Serialize for StorePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StorePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3";

    #[test]
    fn a_store_path_has_a_hash_and_a_name() {
        let path: StorePath = HELLO.parse().unwrap();
        assert_eq!(path.hash_part(), "nm7p8wxflggcwxfzayhysq4z6a1wg373");
        assert_eq!(path.name(), "hello-2.12.3");
        assert_eq!(path.to_string(), HELLO);
        assert_eq!(StorePath::containing(Path::new(&format!("{HELLO}/bin/hello"))).unwrap(), path);
    }

    #[test]
    fn what_is_no_store_path_says_why() {
        let reason = |text: &str| text.parse::<StorePath>().unwrap_err().reason;
        assert_eq!(reason("/usr/bin/hello"), "it does not lie in /nix/store");
        assert_eq!(reason("/nix/store/hello"), "its last part must be 32 digits, a dash and a name");
        assert_eq!(
            reason(&HELLO.replacen("nm7p", "nm7e", 1)),
            "its hash has characters that are not Nix base-32 digits"
        );
        assert_eq!(reason(&format!("{HELLO}/bin")), "its name has characters other than letters, digits and +-._?=");
        assert_eq!(reason(&format!("{HELLO}{}", "x".repeat(211))), "its name is longer than 211 characters");
    }

    #[test]
    fn base32_is_nixs_own() {
        // nix-hash --type sha256 --to-base32 of the empty string's digest.
        let empty = sha256_of_nothing();
        let text = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";
        assert_eq!(to_base32(&empty), text);
        assert_eq!(from_base32::<32>(text), Some(empty));
        assert_eq!(from_base32::<32>(&text.replace('0', "z")), None, "bits beyond the last byte");
    }

    #[test]
    fn the_digits_are_those_of_the_alphabet() {
        assert!((0..=255).all(|byte| is_base32_digit(byte) == BASE32.contains(&byte)));
    }

    fn sha256_of_nothing() -> [u8; 32] {
        use sha2::Digest as _;
        sha2::Sha256::digest(b"").into()
    }
}
