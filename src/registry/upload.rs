//! One blob on its way to a registry: in chunks, going on where a connection broke.

use std::io::{self, Write};
use std::sync::PoisonError;

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, header};
use url::Url;

use super::sending::{Answer, PIECE, Sending};
use super::session::{Refusal, Scope};
use super::{RegistryError, Repository};
use crate::blob::Digest;
use crate::http::FetchError;

/// Bytes of a chunk, unless the registry wants larger ones.
const CHUNK: u64 = 8 << 20;
/// The largest chunk that a registry may ask for.
const LARGEST_CHUNK: u64 = 64 << 20;
/// Of how many other repositories it is asked before a blob is sent: what is remembered of them may be of yesterday, and
/// each question is a request.
const MOUNTS: usize = 3;
/// After so many blobs in a row that another repository did not have it is asked for none any more in this run: it may be
/// gone, and each question leaves an upload begun.
const MISSES: u32 = 8;
/// How often a blob is begun again.
const ATTEMPTS: u32 = 3;
/// How often a request is sent on to another address.
const REDIRECTIONS: u32 = 5;

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
    least: u64,
}

/// What begins an upload.
enum Begun {
    Mounted,
    At(Place),
}

impl Repository<'_> {
    /// Brings a blob into the repository: out of one of these other repositories of the registry where that one lets us,
    /// else by sending its bytes, which `write` writes. They are not kept: it is called again where the registry has to be
    /// sent something once more.
    pub fn upload<E>(
        &self,
        digest: &Digest,
        size: u64,
        mount_from: &[String],
        mut write: impl FnMut(&mut dyn Write) -> Result<(), E>,
    ) -> Result<Uploaded, UploadError<E>> {
        let runtime = self.runtime().map_err(UploadError::Registry)?;
        let mut begun = self.begin(digest, mount_from);
        for _ in 0..ATTEMPTS {
            let place = match runtime.block_on(begun).map_err(UploadError::Registry)? {
                Begun::Mounted => return Ok(Uploaded::Mounted),
                Begun::At(place) => place,
            };
            let mut upload = Upload::new(self, place, digest, size);
            loop {
                let mut pass = Pass::new(&mut upload);
                let written = write(&mut pass);
                let turn = match (pass.turn.take(), written) {
                    (Some(turn), _) => turn,
                    (None, Err(error)) => return Err(UploadError::Source(error)),
                    (None, Ok(())) => pass.finish(),
                };
                match turn.map_err(UploadError::Registry)? {
                    Turn::Done => return Ok(Uploaded::Sent),
                    Turn::OnceMore => {}
                    Turn::Lost => break,
                }
            }
            begun = self.begin(digest, &[]);
        }
        let what = format!("the blob {digest}");
        let registry = self.session.registry.clone();
        Err(UploadError::Registry(RegistryError::Lost { registry, what, attempts: ATTEMPTS }))
    }

    /// Begins an upload, or does without one (distribution-spec, "Mounting a blob from another repository").
    async fn begin(&self, digest: &Digest, mount_from: &[String]) -> Result<Begun, RegistryError> {
        let what = format!("the blob {digest}");
        let plain = self.session.address(&self.reference, "blobs/uploads/").await?;
        let empty = |request: reqwest::RequestBuilder| request.header(header::CONTENT_LENGTH, 0);
        let post = |url: Url| {
            let (session, what) = (&self.session, &what);
            async move { session.send(self.question(Scope::Push, what, Method::POST, &url), empty).await }
        };
        let vain = || self.session.vain.lock().unwrap_or_else(PoisonError::into_inner);
        // Another repository may be another user's.
        let pair = |from: &String| (self.reference.repository().to_owned(), from.clone());
        let others = mount_from.iter().filter(|name| *name != self.reference.repository());
        let is_promising = |from: &&String| vain().get(&pair(from)).is_none_or(|&blobs| blobs < MISSES);
        let candidates = others.filter(is_promising).take(MOUNTS);
        // A registry that has nothing to mount there begins an upload instead: the last one is gone on with, and what was
        // begun before is forgotten there in time, as all that is left.
        let mut instead = None;
        for from in candidates {
            let mut url = plain.clone();
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
            match post(url).await {
                Ok(Ok(response)) if response.status() == StatusCode::CREATED => {
                    vain().remove(&pair(from));
                    return Ok(Begun::Mounted);
                }
                Ok(Ok(response)) => {
                    *vain().entry(pair(from)).or_default() += 1;
                    instead = Some(response);
                }
                // Whoever may not read there may still write here.
                Ok(Err(_)) => drop(vain().insert(pair(from), MISSES)),
                // What cannot be mounted just now can be sent.
                Err(error) if error.is_passing() => break,
                Err(error) => return Err(error),
            }
        }
        let response = match instead {
            Some(response) => response,
            None => post(plain.clone()).await?.map_err(|refusal| self.session.refused(&what, refusal))?,
        };
        let least = response.headers().get("OCI-Chunk-Min-Length");
        let least = least.and_then(|least| least.to_str().ok()?.parse().ok()).unwrap_or(0);
        match self.session.follow(&response) {
            Some(url) => Ok(Begun::At(Place { url, least })),
            None => Err(self.nonsense(&what, "it accepts an upload and does not say where")),
        }
    }

    fn nonsense(&self, what: &str, reason: &str) -> RegistryError {
        let (registry, what) = (self.session.registry.clone(), what.to_owned());
        RegistryError::Refused { registry, what, status: 200, reason: reason.to_owned() }
    }
}

/// An upload, as far as the registry has said that it is.
struct Upload<'u, 'r> {
    repository: &'u Repository<'r>,
    place: Place,
    digest: &'u Digest,
    what: String,
    size: u64,
    /// How many bytes the registry has.
    sent: u64,
    /// Failures, redirections and new tokens since it has taken something.
    failures: u32,
    redirections: u32,
    is_fresh: bool,
}

/// What comes after a request.
enum Turn {
    /// The blob is there.
    Done,
    /// The registry lacks bytes that were sent.
    OnceMore,
    /// The registry no longer has what it was sent.
    Lost,
}

impl<'u, 'r> Upload<'u, 'r> {
    fn new(repository: &'u Repository<'r>, place: Place, digest: &'u Digest, size: u64) -> Self {
        let (what, sent) = (format!("the blob {digest}"), 0);
        Self { repository, place, digest, what, size, sent, failures: 0, redirections: 0, is_fresh: false }
    }

    /// The next request, and where in the blob its body ends: a chunk, or the one that ends the upload. A blob that fits
    /// into a chunk goes with that one.
    fn begin(&self) -> (Sending<'u>, u64) {
        let most = CHUNK.max(self.place.least).min(LARGEST_CHUNK);
        let rest = self.size - self.sent;
        let (method, url, length) = match rest == 0 || (self.sent == 0 && rest <= most) {
            true => {
                let mut url = self.place.url.clone();
                // One that was redirected has it already.
                if !url.query_pairs().any(|(name, _)| name == "digest") {
                    url.query_pairs_mut().append_pair("digest", &self.digest.to_string());
                }
                (Method::PUT, url, rest)
            }
            false => (Method::PATCH, self.place.url.clone(), rest.min(most)),
        };
        let sending = Sending::begin(self.repository, &self.what, (method, &url), (self.sent, length));
        (sending, self.sent + length)
    }

    /// What an answer means; `None` where the registry has something else to be told. After a failure it is asked how much
    /// has come.
    async fn conclude(&mut self, method: Method, end: u64, answer: Answer) -> Result<Option<Turn>, RegistryError> {
        let (repository, session) = (self.repository, &self.repository.session);
        let is_last = method == Method::PUT;
        let error = match answer {
            Ok(Ok(response)) if is_last => {
                repository.check_digest(&response, &self.what, self.digest)?;
                return Ok(Some(Turn::Done));
            }
            Ok(Ok(response)) => {
                self.move_on(&response);
                let has = received(&response).unwrap_or(end);
                if has == self.sent || has > end {
                    return Err(repository.nonsense(&self.what, "it has another number of bytes than were sent"));
                }
                (self.sent, self.failures, self.redirections, self.is_fresh) = (has, 0, 0, false);
                return Ok(None);
            }
            Ok(Err(refusal)) if refusal.status == StatusCode::UNAUTHORIZED && !self.is_fresh => {
                self.is_fresh = session.forget_authorization(&repository.reference, Scope::Push, &refusal);
                return Ok(None);
            }
            Ok(Err(refusal)) if is_lost(&refusal) && is_last => return Ok(Some(Turn::Lost)),
            Ok(Err(refusal)) if is_lost(&refusal) => FetchError::Status { status: 503, retry_after: None },
            Ok(Err(refusal)) => match self.redirected(&refusal) {
                Some(url) => {
                    self.place.url = url;
                    return Ok(None);
                }
                None => return Err(session.refused(&self.what, refusal)),
            },
            Err(RegistryError::Unanswered { source, .. }) => source,
            Err(error) => return Err(error),
        };
        self.failures += 1;
        match session.patience.wait(&error, self.failures) {
            Some(wait) => session.pause(&self.what, wait).await?,
            None => return Err(session.unanswered(&self.what, error)),
        }
        if is_last {
            // Its answer was lost, not what it had been told.
            let is_there = repository.has_blob(self.digest).await?;
            return Ok(Some(if is_there { Turn::Done } else { Turn::Lost }));
        }
        match self.ask_how_far().await? {
            Some(has) if (self.sent..=end).contains(&has) => self.sent = has,
            _ => return Ok(Some(Turn::Lost)),
        }
        Ok(None)
    }

    /// Where a request is sent on to, which the client cannot do by itself: it does not have the body.
    fn redirected(&mut self, refusal: &Refusal) -> Option<Url> {
        let is_redirection = matches!(refusal.status.as_u16(), 307 | 308) && self.redirections < REDIRECTIONS;
        self.redirections += 1;
        refusal.elsewhere.clone().filter(|_| is_redirection)
    }

    /// How many bytes the registry has of this upload; `None` where it has forgotten it.
    async fn ask_how_far(&mut self) -> Result<Option<u64>, RegistryError> {
        let (repository, url) = (self.repository, self.place.url.clone());
        let as_it_is = |request| request;
        let session = &repository.session;
        match session.send(repository.question(Scope::Push, &self.what, Method::GET, &url), as_it_is).await? {
            Ok(response) => {
                self.move_on(&response);
                Ok(received(&response))
            }
            Err(_) => Ok(None),
        }
    }

    fn move_on(&mut self, response: &Response) {
        if let Some(next) = self.repository.session.follow(response) {
            self.place.url = next;
        }
    }
}

/// One pass over a blob's bytes, from the first one on: those that the registry has are left out, the others go to it.
struct Pass<'p, 'u, 'r> {
    upload: &'p mut Upload<'u, 'r>,
    /// How many bytes have come.
    at: u64,
    /// The last of them, which still have to be given to the request.
    piece: Vec<u8>,
    /// The request under way, and where in the blob its body ends.
    sending: Option<(Sending<'u>, u64)>,
    /// Why the pass came to an end before its last byte.
    turn: Option<Result<Turn, RegistryError>>,
}

impl<'p, 'u, 'r> Pass<'p, 'u, 'r> {
    fn new(upload: &'p mut Upload<'u, 'r>) -> Self {
        Self { upload, at: 0, piece: Vec::new(), sending: None, turn: None }
    }

    /// Takes some of the bytes. The end of the blob's stays here: its source may yet say that they are wrong.
    fn take(&mut self, bytes: &[u8]) -> Result<(usize, Option<Turn>), RegistryError> {
        let (sent, size) = (self.upload.sent, self.upload.size);
        if self.at < sent {
            let known = (sent - self.at).min(bytes.len() as u64);
            self.at += known;
            return Ok((known as usize, None));
        }
        if self.at == size {
            // What is too much is for the source to notice.
            return Ok((bytes.len(), None));
        }
        let (_, end) = self.sending.get_or_insert_with(|| self.upload.begin());
        let end = *end;
        let room = (PIECE - self.piece.len()).min(usize::try_from(end - self.at).unwrap_or(PIECE));
        let taken = bytes.len().min(room);
        if self.piece.capacity() == 0 {
            self.piece.reserve_exact(room);
        }
        self.piece.extend_from_slice(&bytes[..taken]);
        self.at += taken as u64;
        let is_over = self.at == end;
        let turn = if self.at < size && (is_over || self.piece.len() == PIECE) { self.send(is_over)? } else { None };
        Ok((taken, turn))
    }

    /// Sends the piece, and where it is the request's last one, sees what is answered.
    fn send(&mut self, is_over: bool) -> Result<Option<Turn>, RegistryError> {
        let Some((mut sending, end)) = self.sending.take() else { return Ok(None) };
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        let turn = self.upload.repository.runtime()?.block_on(async {
            let early = if piece.is_empty() { None } else { sending.give(piece).await };
            let method = sending.method.clone();
            let answer = match (early, is_over) {
                (Some(answer), _) => answer,
                (None, true) => sending.answer().await,
                (None, false) => {
                    self.sending = Some((sending, end));
                    return Ok(None);
                }
            };
            self.upload.conclude(method, end, answer).await
        })?;
        // What the registry does not have has to come again.
        let lacks = self.sending.is_none() && self.upload.sent < self.at;
        Ok(turn.or(lacks.then_some(Turn::OnceMore)))
    }

    /// Sends what is left, and has the registry verify the whole.
    fn finish(mut self) -> Result<Turn, RegistryError> {
        if self.at < self.upload.size {
            let session = &self.upload.repository.session;
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "there are fewer bytes of it than was said");
            return Err(session.unanswered(&self.upload.what, FetchError::File(error)));
        }
        loop {
            if self.sending.is_none() {
                self.sending = Some(self.upload.begin());
            }
            if let Some(turn) = self.send(true)? {
                return Ok(turn);
            }
        }
    }
}

impl Write for Pass<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.take(bytes) {
            Ok((taken, None)) => return Ok(taken),
            Ok((_, Some(turn))) => self.turn = Some(Ok(turn)),
            Err(error) => self.turn = Some(Err(error)),
        }
        Err(io::Error::other("the registry did not take it"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
