//! One blob on its way to a registry: in chunks, going on where a connection broke.

use std::io::{self, Write};
use std::sync::PoisonError;

use reqwest::{Method, Response, StatusCode, header};
use url::Url;

use super::session::{Refusal, Scope};
use super::{RegistryError, Repository};
use crate::blob::Digest;
use crate::http::FetchError;

/// Bytes of a chunk, unless the registry wants larger ones. They stay in memory until the registry has them.
const CHUNK: usize = 8 << 20;
/// The largest chunk that a registry may ask for.
const LARGEST_CHUNK: usize = 64 << 20;
/// How often a blob is begun again.
const ATTEMPTS: u32 = 3;

/// How a blob came to be in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// The registry had it in another repository.
    Mounted,
    /// Its bytes were sent.
    Sent,
}

/// A blob did not get there.
#[derive(Debug)]
pub enum UploadError<E> {
    /// The registry's doing.
    Registry(RegistryError),
    /// Its bytes did not come.
    Source(E),
}

/// Where the next bytes of an upload go.
struct Place {
    url: Url,
    /// Bytes of the smallest chunk that the registry takes.
    least: usize,
}

/// What begins an upload.
enum Begun {
    Mounted,
    At(Place),
}

/// The registry no longer has what it was sent.
struct Lost;

impl Repository<'_> {
    /// Brings a blob into the repository: out of one of these other repositories of the registry where that one lets us,
    /// else by sending its bytes, which `write` writes; it is called again where the registry loses what it was sent.
    pub fn upload<E>(
        &self,
        digest: &Digest,
        size: u64,
        mount_from: &[String],
        mut write: impl FnMut(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Uploaded, UploadError<E>> {
        let runtime = self.runtime().map_err(UploadError::Registry)?;
        let mut candidates = mount_from.iter().filter(|name| *name != self.reference.repository());
        let mut begun = self.begin(digest, candidates.next());
        for _ in 0..ATTEMPTS {
            let place = match runtime.block_on(begun).map_err(UploadError::Registry)? {
                Begun::Mounted => return Ok(Uploaded::Mounted),
                Begun::At(place) => place,
            };
            let mut upload =
                Upload { repository: self, place, chunk: Vec::new(), sent: 0, size, digest, failure: None };
            let written = write(&mut upload);
            match (upload.failure.take(), written) {
                (Some(Ok(Lost)), _) => {}
                (Some(Err(error)), _) => return Err(UploadError::Registry(error)),
                (None, Err(error)) => return Err(UploadError::Source(error)),
                (None, Ok(())) => {
                    if let Ok(()) = runtime.block_on(upload.finish()).map_err(UploadError::Registry)? {
                        return Ok(Uploaded::Sent);
                    }
                }
            }
            begun = self.begin(digest, None);
        }
        let what = format!("the blob {digest}");
        let registry = self.session.registry.clone();
        Err(UploadError::Registry(RegistryError::Lost { registry, what, attempts: ATTEMPTS }))
    }

    /// Begins an upload, or does without one (distribution-spec, "Mounting a blob from another repository").
    async fn begin(&self, digest: &Digest, from: Option<&String>) -> Result<Begun, RegistryError> {
        let what = format!("the blob {digest}");
        let plain = self.session.address(&self.reference, "blobs/uploads/").await?;
        let empty = |request: reqwest::RequestBuilder| request.header(header::CONTENT_LENGTH, 0);
        let post = |url: Url| {
            let (session, what) = (&self.session, &what);
            async move { session.send(&self.reference, Scope::Push, what, Method::POST, &url, empty).await }
        };
        let closed = || self.session.closed.lock().unwrap_or_else(PoisonError::into_inner);
        // Another repository may be another user's.
        let pair = |from: &String| (self.reference.repository().to_owned(), from.clone());
        let from = from.filter(|from| !closed().contains(&pair(from)));
        let mounted = match from {
            Some(from) => {
                let mut url = plain.clone();
                url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
                match post(url).await? {
                    Ok(response) if response.status() == StatusCode::CREATED => return Ok(Begun::Mounted),
                    Ok(response) => Some(response),
                    // Whoever may not read there may still write here.
                    Err(_) => {
                        closed().insert(pair(from));
                        None
                    }
                }
            }
            None => None,
        };
        let response = match mounted {
            Some(response) => response,
            None => post(plain.clone()).await?.map_err(|refusal| self.session.refused(&what, refusal))?,
        };
        let least = response.headers().get("OCI-Chunk-Min-Length");
        let least = least.and_then(|least| least.to_str().ok()?.parse().ok()).unwrap_or(0);
        match self.session.follow(&plain, &response) {
            Some(url) => Ok(Begun::At(Place { url, least })),
            None => Err(self.nonsense(&what, "it accepts an upload and does not say where")),
        }
    }

    fn nonsense(&self, what: &str, reason: &str) -> RegistryError {
        let (registry, what) = (self.session.registry.clone(), what.to_owned());
        RegistryError::Refused { registry, what, status: 200, reason: reason.to_owned() }
    }
}

/// Takes a blob's bytes and sends them on in chunks.
struct Upload<'u, 'r> {
    repository: &'u Repository<'r>,
    place: Place,
    /// What has still to be sent.
    chunk: Vec<u8>,
    /// How many bytes the registry has.
    sent: u64,
    size: u64,
    digest: &'u Digest,
    failure: Option<Result<Lost, RegistryError>>,
}

impl Write for Upload<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let most = CHUNK.max(self.place.least).min(LARGEST_CHUNK);
        if self.chunk.capacity() == 0 {
            self.chunk.reserve_exact(most.min(usize::try_from(self.size).unwrap_or(most)).max(1));
        }
        if self.chunk.len() == most {
            let runtime = self.repository.runtime();
            let sent = runtime.and_then(|runtime| runtime.block_on(self.send_chunk()));
            self.failure = match sent {
                Ok(Ok(())) => None,
                Ok(Err(lost)) => Some(Ok(lost)),
                Err(error) => Some(Err(error)),
            };
            if self.failure.is_some() {
                return Err(io::Error::other("the registry did not take it"));
            }
        }
        let taken = bytes.len().min(most - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload<'_, '_> {
    fn what(&self) -> String {
        format!("the blob {}", self.digest)
    }

    /// Sends what is in the chunk. After a failure the registry is asked how much has come of it.
    async fn send_chunk(&mut self) -> Result<Result<(), Lost>, RegistryError> {
        let (repository, what) = (self.repository, self.what());
        let session = &repository.session;
        let (mut failures, mut is_fresh) = (0, false);
        let end = self.sent + self.chunk.len() as u64;
        // Not a copy: several blobs are under way at once.
        let bytes = bytes::Bytes::from(std::mem::take(&mut self.chunk));
        let first = self.sent;
        while self.sent < end {
            let rest = bytes.slice((self.sent - first) as usize..);
            let range = format!("{}-{}", self.sent, end - 1);
            let with_body = |request: reqwest::RequestBuilder| {
                request
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_RANGE, &range)
                    .header(header::CONTENT_LENGTH, rest.len())
                    .body(rest.clone())
            };
            let url = self.place.url.clone();
            let sent = session.attempt(&repository.reference, Scope::Push, &what, Method::PATCH, &url, with_body).await;
            let error = match sent {
                Ok(Ok(response)) => {
                    self.move_on(&url, &response);
                    let has = received(&response).unwrap_or(end);
                    if has == self.sent || has > end {
                        return Err(repository.nonsense(&what, "it has another number of bytes than were sent"));
                    }
                    self.sent = has;
                    failures = 0;
                    continue;
                }
                Ok(Err(refusal)) if refusal.status == StatusCode::UNAUTHORIZED && !is_fresh => {
                    is_fresh = true;
                    session.forget_authorization(&repository.reference, Scope::Push);
                    continue;
                }
                Ok(Err(refusal)) if is_lost(&refusal) => FetchError::Status { status: 503, retry_after: None },
                Ok(Err(refusal)) => return Err(session.refused(&what, refusal)),
                Err(RegistryError::Unanswered { source, .. }) => source,
                Err(error) => return Err(error),
            };
            failures += 1;
            match session.patience.wait(&error, failures) {
                Some(wait) => session.pause(&what, wait).await?,
                None => return Err(session.unanswered(&what, error)),
            }
            match self.ask_how_far().await? {
                Some(has) if (self.sent..=end).contains(&has) => self.sent = has,
                _ => return Ok(Err(Lost)),
            }
        }
        Ok(Ok(()))
    }

    /// How many bytes the registry has of this upload; `None` where it has forgotten it.
    async fn ask_how_far(&mut self) -> Result<Option<u64>, RegistryError> {
        let (repository, what) = (self.repository, self.what());
        let url = self.place.url.clone();
        let as_it_is = |request| request;
        let session = &repository.session;
        match session.send(&repository.reference, Scope::Push, &what, Method::GET, &url, as_it_is).await? {
            Ok(response) => {
                self.move_on(&url, &response);
                Ok(received(&response))
            }
            Err(_) => Ok(None),
        }
    }

    fn move_on(&mut self, url: &Url, response: &Response) {
        if let Some(next) = self.repository.session.follow(url, response) {
            self.place.url = next;
        }
    }

    /// Sends what is left, and has the registry verify the whole.
    async fn finish(mut self) -> Result<Result<(), Lost>, RegistryError> {
        let what = self.what();
        // One that fits into a chunk goes with the request that ends the upload.
        let body = match self.sent {
            0 => bytes::Bytes::from(std::mem::take(&mut self.chunk)),
            _ => match self.send_chunk().await? {
                Ok(()) => bytes::Bytes::new(),
                Err(lost) => return Ok(Err(lost)),
            },
        };
        let (repository, session) = (self.repository, &self.repository.session);
        let mut url = self.place.url.clone();
        url.query_pairs_mut().append_pair("digest", &self.digest.to_string());
        let with_body = |request: reqwest::RequestBuilder| {
            request
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, body.len())
                .body(body.clone())
        };
        let mut is_fresh = false;
        let response = loop {
            match session.attempt(&repository.reference, Scope::Push, &what, Method::PUT, &url, with_body).await {
                Ok(Ok(response)) => break response,
                Ok(Err(refusal)) if refusal.status == StatusCode::UNAUTHORIZED && !is_fresh => {
                    is_fresh = true;
                    session.forget_authorization(&repository.reference, Scope::Push);
                }
                Ok(Err(refusal)) if is_lost(&refusal) => return Ok(Err(Lost)),
                Ok(Err(refusal)) => return Err(session.refused(&what, refusal)),
                Err(RegistryError::Unanswered { source, .. }) => {
                    if !source.is_passing() {
                        return Err(session.unanswered(&what, source));
                    }
                    let Some(wait) = session.patience.wait(&source, 1) else {
                        return Err(session.unanswered(&what, source));
                    };
                    session.pause(&what, wait).await?;
                    // Its answer was lost, not what it had been told.
                    return match repository.has_blob(self.digest).await? {
                        true => Ok(Ok(())),
                        false => Ok(Err(Lost)),
                    };
                }
                Err(error) => return Err(error),
            }
        };
        repository.check_digest(&response, &what, self.digest)?;
        Ok(Ok(()))
    }
}

/// How many bytes have come: `Range: 0-99`. Nothing at all is `0-0` to most registries, as one byte is.
fn received(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::RANGE)?.to_str().ok()?;
    let last: u64 = range.trim_start_matches("bytes=").split_once('-')?.1.parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

/// Whether the upload has to be looked at, or begun, again.
fn is_lost(refusal: &Refusal) -> bool {
    refusal.status == StatusCode::RANGE_NOT_SATISFIABLE
        || refusal.status == StatusCode::NOT_FOUND
        || ["BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"].iter().any(|code| refusal.has_code(code))
}
