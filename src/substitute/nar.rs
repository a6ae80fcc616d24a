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
use crate::nix::{ContentHash, Contents, NarError, Node, Skeleton, SkeletonRecorder, StorePath, Visitor, read_nar};

/// The NAR could not be shown.
pub(super) enum NarFailure {
    /// It is a cache's fault: the first one's, where several failed.
    Cache(SubstituteError),
    /// The visitor failed, or the user wants the run to end.
    Visitor(io::Error),
}

/// Who has a NAR, and what is said of it there.
pub(super) struct Origin<'c> {
    pub(super) cache: &'c Cache,
    pub(super) narinfo: NarInfo,
}

/// Gives who has a NAR, one after the other, or why one of them is not asked. All say the same of the path.
pub(super) type Origins<'o, 'c> = dyn FnMut() -> Option<Result<Origin<'c>, SubstituteError>> + 'o;

/// Shows the NAR of `path` to `visitor`. Only where it returns without an error were the nodes those that the narinfo
/// vouches for: a visitor must keep nothing of a walk that fails. What it keeps otherwise is its skeleton.
pub(super) fn show<'c>(
    path: &StorePath,
    origins: &mut Origins<'_, 'c>,
    patience: Patience,
    (runtime, observer): (&'c Handle, &'c dyn Observer),
    visitor: &mut dyn Visitor,
) -> Result<Skeleton, NarFailure> {
    let around = (runtime, observer);
    let mut chain = Chain { path, origins, patience, around, origin: None, stream: None, at: 0, failure: None };
    if let Err(error) = chain.go_on(None) {
        return Err(chain.blame(error));
    }
    let Some(Origin { narinfo, .. }) = &chain.origin else { return Err(chain.blame(nobody())) };
    let (expected_size, expected) = (narinfo.info.nar_size, narinfo.info.content);
    let flat = match narinfo.content_address() {
        Some(ContentAddress::Flat(hash)) => Some(hash),
        _ => None,
    };
    let mut measured = Measured { chain, observer, sha256: Sha256::new(), most: expected_size };
    let mut checked = FlatCheck { visitor, expected: flat, found: None };
    let mut recorder = SkeletonRecorder { visitor: &mut checked, skeleton: Skeleton::default() };
    let read = read_nar(&mut measured, &mut recorder);
    let (skeleton, found_flat) = (recorder.skeleton, checked.found);
    let Measured { mut chain, sha256, .. } = measured;
    let (found_size, found) = (chain.at, ContentHash::Nar(sha256.finalize().into()));
    let (cache, path) = (chain.cache(), path.clone());
    let wrong_hash =
        |expected, found| NarFailure::Cache(SubstituteError::WrongHash { cache: cache.clone(), path, expected, found });
    match read {
        Err(NarError::Visitor(error)) => Err(NarFailure::Visitor(error)),
        Err(_) if found_size > expected_size => Err(chain.wrong_size(expected_size)),
        Err(NarError::Read(error)) => Err(chain.blame(error)),
        Err(source) => Err(NarFailure::Cache(chain.malformed(source))),
        Ok(()) if found_size != expected_size => Err(chain.wrong_size(expected_size)),
        Ok(()) if found != expected => Err(wrong_hash(expected, found)),
        Ok(()) if found_flat != flat => {
            Err(wrong_hash(flat.map_or(expected, ContentHash::Nar), found_flat.map_or(found, ContentHash::Nar)))
        }
        Ok(()) => Ok(skeleton),
    }
}

fn nobody() -> io::Error {
    io::Error::other("no cache is left to ask")
}

/// A NAR from one cache after the other: where one fails, the next goes on with the byte that is missing. They say the
/// same of it, and the hash is of all that was read, whoever it came from.
struct Chain<'s, 'o, 'c> {
    path: &'s StorePath,
    origins: &'s mut Origins<'o, 'c>,
    patience: Patience,
    around: (&'c Handle, &'c dyn Observer),
    /// Who was asked last.
    origin: Option<Origin<'c>>,
    stream: Option<Box<dyn Read + 'c>>,
    /// How many bytes were read.
    at: u64,
    /// Why the first one that failed did.
    failure: Option<SubstituteError>,
}

impl<'c> Chain<'_, '_, 'c> {
    /// The name of who was asked last.
    fn cache(&self) -> String {
        self.origin.as_ref().map(|origin| origin.cache.address.to_string()).unwrap_or_default()
    }

    fn malformed(&self, source: NarError) -> SubstituteError {
        SubstituteError::Malformed { cache: self.cache(), path: self.path.clone(), source }
    }

    fn wrong_size(&self, expected: u64) -> NarFailure {
        let (cache, path) = (self.cache(), self.path.clone());
        NarFailure::Cache(SubstituteError::WrongSize { cache, path, expected, found: self.at })
    }

    /// Whose fault it is that there is nothing more to read.
    fn blame(&mut self, error: io::Error) -> NarFailure {
        match self.failure.take() {
            _ if Cancelled::caused(&error) => NarFailure::Visitor(error),
            Some(failure) => NarFailure::Cache(failure),
            None => NarFailure::Cache(self.explain(error)),
        }
    }

    fn explain(&self, error: io::Error) -> SubstituteError {
        match error.downcast::<FetchError>() {
            Ok(source) => SubstituteError::Fetch { cache: self.cache(), path: self.path.clone(), source },
            // The codec's own complaint.
            Err(error) => self.malformed(NarError::Read(error)),
        }
    }

    /// Opens the NAR where the next one has it, at the byte that is missing; `failure` is why the last one failed.
    fn go_on(&mut self, mut failure: Option<SubstituteError>) -> io::Result<()> {
        self.stream = None;
        loop {
            if let Some(failure) = failure.take() {
                self.failure.get_or_insert(failure);
            }
            match (self.origins)().ok_or_else(nobody)? {
                Err(error) => failure = Some(error),
                Ok(origin) => match self.open(origin) {
                    Err(error) if Cancelled::caused(&error) => return Err(error),
                    Err(error) => failure = Some(self.explain(error)),
                    Ok(stream) => {
                        self.stream = Some(stream);
                        return Ok(());
                    }
                },
            }
        }
    }

    fn open(&mut self, origin: Origin<'c>) -> io::Result<Box<dyn Read + 'c>> {
        let Origin { cache, narinfo } = self.origin.insert(origin);
        let size = narinfo.info.nar_size;
        // No codec makes a file much longer; an endless one is not read for ever.
        let most = narinfo.file_size.unwrap_or_else(|| size.saturating_add(size / 8 + (1 << 20)));
        let download = Download::start(&*cache.transport, &narinfo.url, most, self.patience, self.around);
        let download = download.map_err(|error| match error {
            FetchError::Cancelled(cancelled) => io::Error::other(cancelled),
            error => io::Error::other(error),
        })?;
        let mut stream = narinfo.codec.reader(download)?;
        let skipped = io::copy(&mut (&mut stream).take(self.at), &mut io::sink())?;
        if skipped < self.at { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(stream) }
    }
}

impl Read for Chain<'_, '_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            let (Some(stream), Some(origin)) = (&mut self.stream, &self.origin) else { return Err(nobody()) };
            let failure = match stream.read(bytes) {
                Ok(0) if self.at < origin.narinfo.info.nar_size && !bytes.is_empty() => {
                    let truncated = self.malformed(NarError::Truncated { at: self.at });
                    let earlier = self.failure.take();
                    let gone_on = self.go_on(None);
                    let is_alone = earlier.is_none() && self.failure.is_none();
                    match gone_on {
                        // It may be whole, and what is said of its length wrong: whoever reads it will see.
                        Err(error) if is_alone && !Cancelled::caused(&error) => return Ok(0),
                        gone_on => {
                            self.failure = Some(earlier.unwrap_or(truncated));
                            gone_on?;
                        }
                    }
                    continue;
                }
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) if Cancelled::caused(&error) || error.kind() == io::ErrorKind::Interrupted => {
                    return Err(error);
                }
                Err(error) => self.explain(error),
            };
            self.go_on(Some(failure))?;
        }
    }
}

/// The NAR's bytes, hashed and counted. More than there may be end it: a bomb does not go off.
struct Measured<'s, 'o, 'c> {
    chain: Chain<'s, 'o, 'c>,
    observer: &'c dyn Observer,
    sha256: Sha256,
    most: u64,
}

impl Read for Measured<'_, '_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Cancelled::check(self.observer)?;
        let read = self.chain.read(bytes)?;
        if self.chain.at > self.most {
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

impl Contents for Hashed<'_> {}

impl Read for Hashed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.contents.read(bytes)?;
        self.sha256.update(&bytes[..read]);
        Ok(read)
    }
}
