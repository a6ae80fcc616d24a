//! What a binary cache says of a store path: the narinfo file.

use std::collections::BTreeSet;

use super::codec::Codec;
use super::signature::{ContentAddress, Distrust, PublicKey, check_signatures, content_address};
use crate::nix::{ContentHash, PathInfo, StorePath};

/// The longest narinfo that is read, in bytes. The longest that is known has some thousand references.
pub(super) const LONGEST: u64 = 1 << 20;

/// A narinfo, read and found to be well-formed; whether it can be trusted is [`NarInfo::check`]'s to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NarInfo {
    /// The path, its NAR's hash and length, its references without itself.
    pub info: PathInfo,
    /// Where the NAR is, relative to the cache.
    pub url: String,
    /// How the file is compressed.
    pub codec: Codec,
    /// The length of the compressed file in bytes, where the cache says it.
    pub file_size: Option<u64>,
    /// The references, itself among them where it refers to itself: what is signed.
    all_references: BTreeSet<StorePath>,
    signatures: Vec<String>,
    ca: Option<String>,
}

/// A text that is no narinfo, or one of another path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidNarInfo {
    /// A field that must be there is not.
    #[error("it has no {field}")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field cannot be read.
    #[error("its {field} is '{value}': {reason}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it says, shortened.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is about another path.
    #[error("it is about '{found}'")]
    AnotherPath {
        /// The path that it is about.
        found: StorePath,
    },
    /// A line is not `Field: value`.
    #[error("line {line} is not 'Field: value'")]
    Line {
        /// The line's number, from 1.
        line: usize,
    },
    /// It is no text.
    #[error("it is not UTF-8")]
    NotText,
}

impl NarInfo {
    /// Reads the narinfo of `path` (nix: libstore/nar-info.cc).
    pub fn parse(path: &StorePath, bytes: &[u8]) -> Result<Self, InvalidNarInfo> {
        let text = std::str::from_utf8(bytes).map_err(|_| InvalidNarInfo::NotText)?;
        let mut fields = Fields::default();
        for (number, line) in text.lines().enumerate() {
            let (name, value) = match line.split_once(':') {
                Some((name, value)) => (name, value.trim()),
                None if line.is_empty() => continue,
                None => return Err(InvalidNarInfo::Line { line: number + 1 }),
            };
            fields.put(name, value);
        }
        let fail = |field, value: &str, reason: &dyn std::fmt::Display| InvalidNarInfo::Field {
            field,
            value: value.chars().take(200).collect(),
            reason: reason.to_string(),
        };
        let missing = |field| InvalidNarInfo::Missing { field };

        let found = fields.store_path.ok_or(missing("StorePath"))?;
        let found = StorePath::containing(found.as_ref())
            .ok()
            .filter(|store_path| store_path.to_string() == found)
            .ok_or_else(|| fail("StorePath", found, &"it is not a store path"))?;
        if found != *path {
            return Err(InvalidNarInfo::AnotherPath { found });
        }
        let hash = fields.nar_hash.ok_or(missing("NarHash"))?;
        let content = ContentHash::from_nar_hash(hash).map_err(|error| fail("NarHash", hash, &error.reason))?;
        let size = fields.nar_size.ok_or(missing("NarSize"))?;
        let nar_size = size.parse().ok().filter(|&size: &u64| size > 0);
        let nar_size = nar_size.ok_or_else(|| fail("NarSize", size, &"it is not a number of bytes"))?;
        let file_size = fields
            .file_size
            .map(|size| size.parse::<u64>().map_err(|_| fail("FileSize", size, &"it is not a number of bytes")))
            .transpose()?;
        let mut all_references = BTreeSet::new();
        for reference in fields.references.unwrap_or_default().split_whitespace() {
            let reference =
                StorePath::from_base_name(reference).map_err(|error| fail("References", reference, &error.reason))?;
            all_references.insert(reference);
        }
        let references = all_references.iter().filter(|reference| *reference != path).cloned().collect();
        let compression = fields.compression.filter(|name| !name.is_empty()).unwrap_or("bzip2");
        let codec =
            Codec::named(compression).ok_or_else(|| fail("Compression", compression, &"this tool does not know it"))?;
        let url = fields.url.filter(|url| !url.is_empty()).ok_or(missing("URL"))?.to_owned();
        Ok(Self {
            info: PathInfo { path: found, content, nar_size, references },
            url,
            codec,
            // To Nix, 0 is a length that nobody knows.
            file_size: file_size.filter(|&size| size > 0),
            all_references,
            signatures: fields.signatures.into_iter().map(str::to_owned).collect(),
            ca: fields.ca.map(str::to_owned),
        })
    }

    /// Whether somebody trusted vouches for it: one of `keys`, or the path's own name.
    pub fn check(&self, keys: &[PublicKey]) -> Result<(), Distrust> {
        if self.content_address().is_some() {
            return Ok(());
        }
        check_signatures(&self.info, &self.all_references, &self.signatures, keys)
    }

    pub(super) fn content_address(&self) -> Option<ContentAddress> {
        content_address(&self.info, &self.all_references, self.ca.as_deref()?)
    }
}

/// The fields that matter; of one that is there twice, the last.
#[derive(Default)]
struct Fields<'a> {
    store_path: Option<&'a str>,
    url: Option<&'a str>,
    compression: Option<&'a str>,
    file_size: Option<&'a str>,
    nar_hash: Option<&'a str>,
    nar_size: Option<&'a str>,
    references: Option<&'a str>,
    ca: Option<&'a str>,
    signatures: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    fn put(&mut self, name: &str, value: &'a str) {
        let field = match name {
            "Sig" => return self.signatures.push(value),
            "StorePath" => &mut self.store_path,
            "URL" => &mut self.url,
            "Compression" => &mut self.compression,
            "FileSize" => &mut self.file_size,
            "NarHash" => &mut self.nar_hash,
            "NarSize" => &mut self.nar_size,
            "References" => &mut self.references,
            "CA" => &mut self.ca,
            _ => return,
        };
        *field = Some(value);
    }
}

#[cfg(test)]
#[path = "narinfo_tests.rs"]
mod tests;
