//! Who vouches for a store path: ed25519 keys and signatures, and paths that vouch for themselves.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::nix::{ContentHash, PathInfo, STORE_DIR, StorePath, from_base64, to_base32};

/// A public key that signatures are checked against: `NAME:BASE64`, as Nix's `trusted-public-keys` have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

/// A text that is no public key. It is not repeated, but for a key's name: it may be a secret one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidPublicKey {
    /// It has no name.
    #[error("a public key has no name: NAME:KEY is expected, KEY being 32 bytes in base-64")]
    Nameless,
    /// It has as many bytes as a secret key.
    #[error("'{name}' is a secret key, and the public one is expected: NAME:KEY, KEY being 32 bytes in base-64")]
    Secret {
        /// The key's name.
        name: String,
    },
    /// What stands behind its name is no key.
    #[error("'{name}' is not a public key: NAME:KEY is expected, KEY being 32 bytes in base-64")]
    NoKey {
        /// The key's name.
        name: String,
    },
}

impl FromStr for PublicKey {
    type Err = InvalidPublicKey;

    fn from_str(text: &str) -> Result<Self, InvalidPublicKey> {
        let named = text.split_once(':').filter(|(name, _)| !name.is_empty());
        let (name, text) = named.ok_or(InvalidPublicKey::Nameless)?;
        let name = name.to_owned();
        if from_base64::<64>(text).is_some() {
            return Err(InvalidPublicKey::Secret { name });
        }
        match from_base64(text).and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok()) {
            Some(key) => Ok(Self { name, key }),
            None => Err(InvalidPublicKey::NoKey { name }),
        }
    }
}

impl PublicKey {
    /// Whether `signature`, `NAME:BASE64`, was made with this key over `message`.
    pub fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let parsed = signature.split_once(':').filter(|(name, _)| *name == self.name);
        let bytes: Option<[u8; 64]> = parsed.and_then(|(_, text)| from_base64(text));
        bytes.is_some_and(|bytes| self.key.verify_strict(message, &Signature::from_bytes(&bytes)).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What is wrong with a store path's signatures.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Distrust {
    /// It has none.
    #[error("it has no signature")]
    Unsigned,
    /// It has some, none of them by a trusted key.
    #[error("it is signed by {}, whose key is not trusted", keys.join(", "))]
    Unknown {
        /// The names of the keys.
        keys: Vec<String>,
    },
    /// A signature by a trusted key's name is wrong: the narinfo was changed, or another key has the same name.
    #[error("its signature by {key} is wrong")]
    Wrong {
        /// The key's name.
        key: String,
    },
}

/// Checks that one of `signatures` (`NAME:BASE64`) was made by one of `keys`, over what Nix signs: the path, its NAR's
/// hash and length, and its references (nix: libstore/path-info.cc, `fingerprint`).
pub(super) fn check_signatures(
    info: &PathInfo,
    all_references: &BTreeSet<StorePath>,
    signatures: &[String],
    keys: &[PublicKey],
) -> Result<(), Distrust> {
    let references: BTreeSet<String> = all_references.iter().map(StorePath::to_string).collect();
    let references: Vec<_> = references.into_iter().collect();
    let fingerprint = format!("1;{};{};{};{}", info.path, info.content, info.nar_size, references.join(","));
    let mut wrong = None;
    let mut unknown = Vec::new();
    for signature in signatures {
        let (name, text) = signature.split_once(':').unwrap_or((signature, ""));
        let mut named = keys.iter().filter(|key| key.name == name).peekable();
        if named.peek().is_none() {
            unknown.push(name.to_owned());
            continue;
        }
        let bytes: Option<[u8; 64]> = from_base64(text);
        let is_valid = bytes.is_some_and(|bytes| {
            let signature = Signature::from_bytes(&bytes);
            named.any(|key| key.key.verify_strict(fingerprint.as_bytes(), &signature).is_ok())
        });
        if is_valid {
            return Ok(());
        }
        wrong = Some(name.to_owned());
    }
    match wrong {
        Some(key) => Err(Distrust::Wrong { key }),
        None if unknown.is_empty() => Err(Distrust::Unsigned),
        None => Err(Distrust::Unknown { keys: unknown }),
    }
}

/// What a path's name promises of its contents, where the name was made from them: such a path needs no signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentAddress {
    /// The sha256 of the NAR.
    Nar,
    /// The path is one file, with this sha256.
    Flat([u8; 32]),
}

/// Reads a narinfo's `CA` and says what it promises, if the path's name was made from it (nix: libstore/store-api.cc,
/// `makeFixedOutputPath`, `makeTextPath`). `None` where the name says something else, or where the kind of content
/// address is none of these: other hashes than sha256, trees that refer to themselves.
pub(super) fn content_address(
    info: &PathInfo,
    all_references: &BTreeSet<StorePath>,
    ca: &str,
) -> Option<ContentAddress> {
    if all_references.contains(&info.path) {
        return None;
    }
    let sha256 = |text: &str| match ContentHash::from_nar_hash(text) {
        Ok(ContentHash::Nar(hash)) => Some(hash),
        _ => None,
    };
    let references = || {
        let sorted: BTreeSet<String> = all_references.iter().map(StorePath::to_string).collect();
        sorted.iter().map(|path| format!(":{path}")).collect::<String>()
    };
    let name = info.path.name();
    let (made, address) = if let Some(hash) = ca.strip_prefix("fixed:r:") {
        let hash = sha256(hash)?;
        if ContentHash::Nar(hash) != info.content {
            return None;
        }
        (path_of(&format!("source{}", references()), &hash, name)?, ContentAddress::Nar)
    } else if let Some(hash) = ca.strip_prefix("fixed:") {
        let hash = sha256(hash)?;
        let inner = Sha256::digest(format!("fixed:out:sha256:{}:", hex(&hash)));
        let made = path_of("output:out", &inner.into(), name).filter(|_| all_references.is_empty())?;
        (made, ContentAddress::Flat(hash))
    } else {
        let hash = sha256(ca.strip_prefix("text:")?)?;
        (path_of(&format!("text{}", references()), &hash, name)?, ContentAddress::Flat(hash))
    };
    (made == info.path).then_some(address)
}

/// nix: libstore/store-api.cc, `makeStorePath`.
fn path_of(kind: &str, hash: &[u8; 32], name: &str) -> Option<StorePath> {
    let digest = Sha256::digest(format!("{kind}:sha256:{}:{STORE_DIR}:{name}", hex(hash)));
    // nix: libutil/hash.cc, `compressHash`.
    let mut compressed = [0; 20];
    for (at, byte) in digest.iter().enumerate() {
        compressed[at % 20] ^= byte;
    }
    StorePath::from_base_name(&format!("{}-{name}", to_base32(&compressed))).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
