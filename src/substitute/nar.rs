//! A NAR on its way: decompressed, measured, hashed and shown to a visitor, in one pass.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;

use super::cache::Cache;
use super::error::SubstituteError;
use super::narinfo::NarInfo;
use super::signature::ContentAddress;
use crate::event::{Cancelled, Observer};
use crate::http::{Download, FetchError, Patience};
use crate::nix::{ContentHash, NarError, Node, Skeleton, SkeletonRecorder, Visitor, read_nar};

/// The NAR could not be shown.
pub(super) enum NarFailure {
    /// Nothing was shown yet, so that another cache may be tried.
    NotStarted(SubstituteError),
    /// It is the cache's fault.
    Cache(SubstituteError),
    /// The visitor failed, or the user wants the run to end.
    Visitor(io::Error),
}

/// Shows the NAR of a path to `visitor`. Only where it returns without an error were the nodes those that the narinfo
/// vouches for: a visitor must keep nothing of a walk that fails. What it keeps otherwise is its skeleton.
pub(super) fn show(
    cache: &Cache,
    narinfo: &NarInfo,
    patience: Patience,
    (runtime, observer): (&Handle, &dyn Observer),
    visitor: &mut dyn Visitor,
) -> Result<Skeleton, NarFailure> {
    let (name, path, expected_size) = (cache.address.to_string(), narinfo.info.path.clone(), narinfo.info.nar_size);
    // No codec makes a file much longer; an endless one is not read for ever.
    let most = narinfo.file_size.unwrap_or_else(|| expected_size.saturating_add(expected_size / 8 + (1 << 20)));
    let download = Download::start(&*cache.transport, &narinfo.url, most, patience, (runtime, observer));
    let download = download.map_err(|error| match error {
        FetchError::Cancelled(cancelled) => NarFailure::Visitor(io::Error::other(cancelled)),
        error => {
            NarFailure::NotStarted(SubstituteError::Fetch { cache: name.clone(), path: path.clone(), source: error })
        }
    })?;
    let malformed =
        |source| NarFailure::Cache(SubstituteError::Malformed { cache: name.clone(), path: path.clone(), source });
    let stream = narinfo.codec.reader(download).map_err(|error| malformed(NarError::Read(error)))?;
    let mut measured = Measured { stream, observer, sha256: Sha256::new(), at: 0, most: expected_size };
    let flat = match narinfo.content_address() {
        Some(ContentAddress::Flat(hash)) => Some(hash),
        _ => None,
    };
    let mut checked = FlatCheck { visitor, expected: flat, found: None };
    let mut recorder = SkeletonRecorder { visitor: &mut checked, skeleton: Skeleton::default() };
    let read = read_nar(&mut measured, &mut recorder);
    let (skeleton, found_flat) = (recorder.skeleton, checked.found);
    let (found_size, found) = (measured.at, ContentHash::Nar(measured.sha256.finalize().into()));
    let cache_failed = |error| Err(NarFailure::Cache(error));
    match read {
        Err(NarError::Visitor(error)) => Err(NarFailure::Visitor(error)),
        Err(NarError::Read(error)) if Cancelled::caused(&error) => Err(NarFailure::Visitor(error)),
        Err(_) if found_size > expected_size => {
            cache_failed(SubstituteError::WrongSize { cache: name, path, expected: expected_size, found: found_size })
        }
        Err(NarError::Read(error)) => Err(match error.downcast::<FetchError>() {
            Ok(source) => NarFailure::Cache(SubstituteError::Fetch { cache: name, path, source }),
            // The codec's own complaint.
            Err(error) => malformed(NarError::Read(error)),
        }),
        Err(source) => Err(malformed(source)),
        Ok(()) if found_size != expected_size => {
            cache_failed(SubstituteError::WrongSize { cache: name, path, expected: expected_size, found: found_size })
        }
        Ok(()) if found != narinfo.info.content => {
            cache_failed(SubstituteError::WrongHash { cache: name, path, expected: narinfo.info.content, found })
        }
        Ok(()) if found_flat != flat => cache_failed(SubstituteError::WrongHash {
            cache: name,
            path,
            expected: flat.map_or(narinfo.info.content, ContentHash::Nar),
            found: found_flat.map_or(found, ContentHash::Nar),
        }),
        Ok(()) => Ok(skeleton),
    }
}

/// The NAR's bytes, hashed and counted. More than there may be end it: a bomb does not go off.
struct Measured<'s> {
    stream: Box<dyn Read + 's>,
    observer: &'s dyn Observer,
    sha256: Sha256,
    at: u64,
    most: u64,
}

impl Read for Measured<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Cancelled::check(self.observer)?;
        let read = self.stream.read(bytes)?;
        self.at += read as u64;
        if self.at > self.most {
            return Err(io::Error::other("it is longer than it may be"));
        }
        self.sha256.update(&bytes[..read]);
        Ok(read)
    }
}

/// A path that is one file, whose name was made from the file's hash.
struct FlatCheck<'v> {
    visitor: &'v mut dyn Visitor,
    expected: Option<[u8; 32]>,
    /// Of a tree that is no such file, nothing.
    found: Option<[u8; 32]>,
}

impl Visitor for FlatCheck<'_> {
    fn node(&mut self, path: &[u8], node: Node<'_>) -> io::Result<()> {
        match (self.expected, node) {
            (Some(_), Node::Regular { executable: false, size, contents }) if path.is_empty() => {
                let mut hashed = Hashed { contents, sha256: Sha256::new() };
                self.visitor.node(path, Node::Regular { executable: false, size, contents: &mut hashed })?;
                io::copy(&mut hashed, &mut io::sink())?;
                self.found = Some(hashed.sha256.finalize().into());
                Ok(())
            }
            (_, node) => self.visitor.node(path, node),
        }
    }
}

struct Hashed<'c> {
    contents: &'c mut dyn Read,
    sha256: Sha256,
}

impl Read for Hashed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.contents.read(bytes)?;
        self.sha256.update(&bytes[..read]);
        Ok(read)
    }
}
