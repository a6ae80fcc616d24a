//! The secret half of a key that signs entries, in Nix's format.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey};

use crate::nix::{from_base64, to_base64};
use crate::substitute::PublicKey;

/// A key that signs entries: `NAME:BASE64`, BASE64 being the secret and the public half, 32 bytes each, as
/// `nix key generate-secret` writes it.
#[derive(Clone)]
pub struct SecretKey {
    name: String,
    key: SigningKey,
}

/// A text that is no secret key. What it is, is not said: it may be one after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a secret key: NAME:KEY is expected, KEY being 64 bytes in base-64")]
pub struct InvalidSecretKey;

impl SecretKey {
    /// A key of this name from 32 random bytes; `None` where the name is none: empty, or with a colon or white space.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Option<Self> {
        let is_name =
            !name.is_empty() && !name.contains(|character: char| character == ':' || character.is_whitespace());
        is_name.then(|| Self { name: name.to_owned(), key: SigningKey::from_bytes(seed) })
    }

    /// The secret text, for a file that nobody else may read.
    pub fn secret_text(&self) -> String {
        format!("{}:{}", self.name, to_base64(&self.key.to_keypair_bytes()))
    }

    /// The public text, for `--cache-trust`.
    pub fn public_text(&self) -> String {
        format!("{}:{}", self.name, to_base64(self.key.verifying_key().as_bytes()))
    }

    /// The public half; `None` where the name is none that a public key has.
    pub(super) fn public(&self) -> Option<PublicKey> {
        self.public_text().parse().ok()
    }

    /// The signature of `message`, `NAME:BASE64`.
    pub(super) fn sign(&self, message: &[u8]) -> String {
        format!("{}:{}", self.name, to_base64(&self.key.sign(message).to_bytes()))
    }
}

impl FromStr for SecretKey {
    type Err = InvalidSecretKey;

    fn from_str(text: &str) -> Result<Self, InvalidSecretKey> {
        let parse = || {
            let (name, key) = text.trim().split_once(':')?;
            let key = SigningKey::from_keypair_bytes(&from_base64(key)?).ok()?;
            (!name.is_empty()).then(|| Self { name: name.to_owned(), key })
        };
        parse().ok_or(InvalidSecretKey)
    }
}

/// The secret stays where it is.
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_is_written_and_its_public_half_knows_its_signatures() {
        let key = SecretKey::from_seed("team-1", &[7; 32]).unwrap();
        let again: SecretKey = format!("{}\n", key.secret_text()).parse().unwrap();
        assert_eq!(again.public_text(), key.public_text());
        let public: PublicKey = key.public_text().parse().unwrap();
        let signature = again.sign(b"layer");
        assert!(public.verifies(b"layer", &signature));
        assert!(!public.verifies(b"other", &signature));
        assert!(!format!("{key:?}").contains(&key.secret_text()[7..]));
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let public = SecretKey::from_seed("team-1", &[7; 32]).unwrap().public_text();
        for text in ["", "team-1", "team-1:", ":AAAA", &public] {
            assert_eq!(text.parse::<SecretKey>().unwrap_err(), InvalidSecretKey);
        }
        assert!(SecretKey::from_seed("a:b", &[7; 32]).is_none() && SecretKey::from_seed("", &[7; 32]).is_none());
    }
}
