//! The vocabulary of content addressing: digests, keys, and streams that count or verify what passes through them.
//!
//! Everything here is free of files and formats; every other module may use it.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::sha256::Sha256;

/// A sha256 digest of some bytes, written `sha256:<64 hex digits>` (OCI image specification, descriptor.md, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(bytes);
        Self(hasher.finish())
    }

    /// A digest that was computed elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits, without the algorithm: a blob's file name in an image layout.
    pub fn hex(&self) -> String {
        to_hex(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", to_hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("not a sha256 digest: '{0}'")]
pub struct InvalidDigest(String);

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("sha256:").and_then(from_hex).map(Self).ok_or_else(|| InvalidDigest(text.to_owned()))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The digest of a layer's uncompressed tar (OCI image specification, config.md, "Layer DiffID").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiffId(pub Digest);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a layer is made from: a keyed blake3 over its inputs and its packing options.
///
/// Two layers with the same key have the same bytes; the key is known before a byte is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerKey([u8; 32]);

impl LayerKey {
    /// The raw key: the index's key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 hexadecimal digits: a record's file name.
    pub fn hex(&self) -> String {
        to_hex(&self.0)
    }

    /// Reads what [`LayerKey::hex`] wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        from_hex(text).map(Self)
    }
}

impl fmt::Debug for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// Collects the inputs of a layer into its [`LayerKey`].
///
/// Every field is prefixed with its length, so no two different lists of fields hash the same bytes.
pub struct LayerKeyBuilder(blake3::Hasher);

impl LayerKeyBuilder {
    /// Starts a key; `context` names the kind of input and the version of the packing format
    /// (blake3 `derive_key`: another context, another family of keys).
    pub fn new(context: &str) -> Self {
        Self(blake3::Hasher::new_derive_key(context))
    }

    /// Adds one field.
    pub fn field(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// The finished key.
    pub fn finish(&self) -> LayerKey {
        LayerKey(self.0.finalize().into())
    }
}

/// Turns a value into the one JSON text that stands for it: object keys sorted, no white space.
///
/// `oci-spec` keeps labels and annotations in hash maps, whose order changes from run to run; digests are taken of
/// what this function returns and of nothing else.
pub fn canonical_json<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    // serde_json's own map is a BTreeMap (its `preserve_order` feature is off), so this sorts at every depth.
    serde_json::to_vec(&serde_json::to_value(value)?)
}

/// Passes bytes on and keeps their sha256 and their number.
pub struct DigestWriter<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> DigestWriter<W> {
    /// Wraps `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// The inner writer, the digest of all that was written, and its length in bytes.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest(self.hasher.finish()), self.bytes)
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hasher.update(&buf[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        self.inner.write_all(buf)?;
        self.hasher.update(buf);
        self.bytes += buf.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Bytes that are not what their digest or length promised.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected} ({expected_size} bytes), found {found} ({found_size} bytes)")]
pub struct DigestMismatch {
    /// The digest that was promised.
    pub expected: Digest,
    /// The length in bytes that was promised.
    pub expected_size: u64,
    /// The digest of what came.
    pub found: Digest,
    /// The length in bytes of what came.
    pub found_size: u64,
}

/// A reader that fails at the end of a stream which is not what its digest promised.
///
/// The bytes are passed on before they are known to be right: whoever consumes them commits nothing until the end.
pub struct VerifyingReader<R> {
    inner: R,
    hasher: Option<Sha256>,
    bytes: u64,
    expected: Digest,
    expected_size: u64,
}

impl<R: Read> VerifyingReader<R> {
    /// Reads `inner`, which must be `size` bytes with this digest.
    pub fn new(inner: R, expected: Digest, size: u64) -> Self {
        Self { inner, hasher: Some(Sha256::new()), bytes: 0, expected, expected_size: size }
    }

    fn check(&mut self) -> io::Result<()> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let found = Digest(hasher.finish());
        if found == self.expected && self.bytes == self.expected_size {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            DigestMismatch {
                expected: self.expected,
                expected_size: self.expected_size,
                found,
                found_size: self.bytes,
            },
        ))
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(buf)?;
        if read == 0 {
            self.check()?;
            return Ok(0);
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buf[..read]);
        }
        self.bytes += read as u64;
        Ok(read)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [DIGITS[(byte >> 4) as usize] as char, DIGITS[(byte & 15) as usize] as char]).collect()
}

/// Lower-case hexadecimal digits only: one spelling for one digest.
fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digest of no bytes, as every OCI tool prints it.
    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_written_as_oci_writes_it() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn other_spellings_of_a_digest_are_refused() {
        for text in ["", "sha256:", &EMPTY[7..], &EMPTY.to_uppercase(), &EMPTY[..70], "md5:00"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn fields_of_a_key_do_not_run_into_each_other() {
        let key = |fields: &[&[u8]]| {
            let mut builder = LayerKeyBuilder::new("layerhold test");
            for field in fields {
                builder.field(field);
            }
            builder.finish()
        };
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_ne!(key(&[b"ab"]), key(&[b"ab", b""]));
        assert_eq!(key(&[b"ab", b"c"]), key(&[b"ab", b"c"]));
    }

    #[test]
    fn json_is_sorted_at_every_depth() {
        let value: std::collections::HashMap<_, _> =
            [("b", vec![("z", 1), ("a", 2)]), ("a", vec![])].into_iter().collect();
        assert_eq!(canonical_json(&value).unwrap(), br#"{"a":[],"b":[["z",1],["a",2]]}"#);
    }

    #[test]
    fn a_verifying_reader_fails_at_the_end_of_wrong_bytes() {
        let read = |bytes: &[u8], promised: &[u8]| {
            let mut out = Vec::new();
            VerifyingReader::new(bytes, Digest::of(promised), promised.len() as u64).read_to_end(&mut out)
        };
        assert_eq!(read(b"layer", b"layer").unwrap(), 5);
        assert_eq!(read(b"layex", b"layer").unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(b"laye", b"layer").unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
