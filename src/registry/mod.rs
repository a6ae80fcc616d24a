//! Registries as the OCI distribution specification has them: references, credentials, blobs, manifests.
//!
//! References are oci-spec's. The well-kept client for registries, oci-client, hides an upload's session, so that none could
//! go on where it broke, keeps `Retry-After` to itself, follows no list's pages, compares no digests, and cannot tell a token
//! service that fails from one that refuses: all requests are made here.

mod certificates;
mod credentials;
mod error;
mod reference;
mod sending;
mod session;
#[cfg(test)]
pub(crate) mod stand_in;
mod tokens;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Method, Response, StatusCode, header};
use tokio::runtime::{Builder, Runtime};

pub(crate) use credentials::Logins;
pub use credentials::{Credentials, CredentialsError};
pub use error::RegistryError;
pub use reference::{InvalidReference, Reference};
use session::{Question, Scope, Session};
pub use upload::{UploadError, Uploaded};

use crate::blob::Digest;
use crate::event::Observer;
use crate::http::{Answer, Asked, Client, Download, FetchError, Patience, Transport};

/// Questions about blobs that are under way at once.
const QUESTIONS: usize = 16;
/// What manifests are asked for as.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
                         application/vnd.docker.distribution.manifest.v2+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json";

/// The longest manifest that is read: distribution takes 4 MiB.
pub(crate) const LONGEST_MANIFEST: u64 = 4 << 20;

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Who asks.
    pub credentials: Credentials,
    /// Hosts, with their ports, that are reached by plain http. Those on this machine may be without being named.
    pub insecure: Vec<String>,
    /// Certificates to trust beside the system's, in PEM, whatever the registry.
    pub certificates: Vec<u8>,
    /// Where those of single registries are: in a directory `HOST`, or `HOST:PORT`, of one of these, files whose names
    /// end in `.crt`. They are looked for at the first question to the registry, and count for that one alone.
    pub certificate_directories: Vec<PathBuf>,
    /// How much a server is given.
    pub(crate) patience: Patience,
    /// What was found of logins: clones of these settings share it.
    pub(crate) logins: Arc<Logins>,
}

impl Settings {
    /// With the logins that were found for those settings, and will be: a run runs no credential helper twice.
    pub fn with_logins_of(self, others: &Self) -> Self {
        Self { logins: Arc::clone(&others.logins), ..self }
    }
}

/// The registries of a run: one client, one set of tokens. Nothing is read or asked before the first question.
pub struct Registries<'a> {
    settings: Arc<Settings>,
    observer: &'a dyn Observer,
    network: Arc<Network>,
    sessions: Mutex<BTreeMap<String, Arc<Session<'a>>>>,
}

/// What all registries are asked with.
struct Network {
    /// For those that have no certificates of their own: one pool of connections.
    client: Arc<Client>,
    runtime: OnceLock<io::Result<Runtime>>,
}

/// A repository of a registry. Every call waits for its answer, and may be made from any thread; what is passing is tried
/// again, in bounded time.
pub struct Repository<'a> {
    reference: Reference,
    /// What a token for reading has to be for.
    reads: Scope,
    session: Arc<Session<'a>>,
    network: Arc<Network>,
}

/// What became of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutManifest {
    /// It is there.
    Stored,
    /// The repository has not all blobs that it names.
    LacksBlobs,
}

/// What became of something that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is gone.
    Done,
    /// It was not there.
    Absent,
    /// The registry does not delete, or not for this user.
    NotAllowed,
}

impl<'a> Registries<'a> {
    /// Registries that are reached like this.
    pub fn new(settings: Settings, observer: &'a dyn Observer) -> Self {
        let client = Arc::new(Client::new(QUESTIONS, settings.certificates.clone()));
        let network = Arc::new(Network { client, runtime: OnceLock::new() });
        Self { settings: Arc::new(settings), observer, network, sessions: Mutex::default() }
    }

    /// The repository that the reference is in.
    pub fn repository(&self, reference: &Reference) -> Repository<'a> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = reference.registry();
        let session = sessions.entry(registry.to_owned()).or_insert_with(|| {
            Arc::new(Session::new(registry, Arc::clone(&self.settings), &self.network, self.observer))
        });
        let (session, network) = (Arc::clone(session), Arc::clone(&self.network));
        Repository { reference: reference.clone(), reads: Scope::Pull, session, network }
    }
}

impl<'a> Repository<'a> {
    /// What it was named by.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The same, read with the right to push that is wanted in a moment, as Docker does: that is one token fewer, and
    /// some registries refuse to say of a repository that is not there that it is not, but to whoever may make it.
    pub fn for_pushing(self) -> Self {
        Self { reads: Scope::Push, ..self }
    }

    fn question<'q>(&'q self, scope: Scope, what: &'q str, method: Method, url: &'q url::Url) -> Question<'q> {
        Question { reference: &self.reference, scope, what, method, url }
    }

    /// The digest of the manifest or index with this tag or digest; `None` where there is none.
    pub fn manifest_digest(&self, name: &str) -> Result<Option<Digest>, RegistryError> {
        let what = format!("the manifest '{name}'");
        let said = self.runtime()?.block_on(async {
            let url = self.session.address(&self.reference, &format!("manifests/{name}")).await?;
            let accept = |request: reqwest::RequestBuilder| request.header(header::ACCEPT, MANIFESTS);
            let answer = self.session.send(self.question(self.reads, &what, Method::HEAD, &url), accept).await?;
            match answer {
                Ok(response) => Ok(Some(digest_of(&response).and_then(|digest| digest.parse().ok()))),
                Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(None),
                Err(refusal) => Err(self.session.refused(&what, refusal)),
            }
        })?;
        match said {
            // It is there, and its digest need not be said (distribution-spec, "Pulling manifests").
            Some(None) => Ok(self.manifest(name, LONGEST_MANIFEST)?.map(|bytes| Digest::of(&bytes))),
            Some(digest) => Ok(digest),
            None => Ok(None),
        }
    }

    /// The manifest or index with this tag or digest, of at most `most` bytes; `None` where there is none. What was asked
    /// for by its digest has that digest.
    pub fn manifest(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let what = format!("the manifest '{name}'");
        self.runtime()?.block_on(async {
            let url = self.session.address(&self.reference, &format!("manifests/{name}")).await?;
            let accept = |request: reqwest::RequestBuilder| request.header(header::ACCEPT, MANIFESTS);
            let answer = self.session.send(self.question(self.reads, &what, Method::GET, &url), accept).await?;
            let response = match answer {
                Ok(response) => response,
                Err(refusal) if refusal.status == StatusCode::NOT_FOUND => return Ok(None),
                Err(refusal) => return Err(self.session.refused(&what, refusal)),
            };
            let bytes = self.session.body(&what, response, most).await?;
            match name.parse::<Digest>() {
                Ok(digest) if Digest::of(&bytes) != digest => Err(RegistryError::AnotherDigest {
                    registry: self.session.registry.clone(),
                    what,
                    expected: digest,
                    found: Digest::of(&bytes).to_string(),
                }),
                _ => Ok(Some(bytes)),
            }
        })
    }

    /// Puts a manifest or an index under a tag or its digest.
    pub fn put_manifest(&self, name: &str, media_type: &str, bytes: &[u8]) -> Result<PutManifest, RegistryError> {
        let what = format!("the manifest '{name}'");
        self.runtime()?.block_on(async {
            let url = self.session.address(&self.reference, &format!("manifests/{name}")).await?;
            let body = bytes::Bytes::copy_from_slice(bytes);
            let with_body =
                |request: reqwest::RequestBuilder| request.header(header::CONTENT_TYPE, media_type).body(body.clone());
            let answer = self.session.send(self.question(Scope::Push, &what, Method::PUT, &url), with_body).await?;
            match answer {
                Ok(response) => {
                    self.check_digest(&response, &what, &Digest::of(bytes))?;
                    Ok(PutManifest::Stored)
                }
                Err(refusal) if LACKING.iter().any(|code| refusal.has_code(code)) => Ok(PutManifest::LacksBlobs),
                Err(refusal) => Err(self.session.refused(&what, refusal)),
            }
        })
    }

    /// Removes the manifest with this digest, and with it every tag on it.
    pub fn delete_manifest(&self, digest: &Digest) -> Result<Deletion, RegistryError> {
        let what = format!("to remove the manifest '{digest}'");
        self.runtime()?.block_on(async {
            let url = self.session.address(&self.reference, &format!("manifests/{digest}")).await?;
            let as_it_is = |request| request;
            match self.session.send(self.question(Scope::Push, &what, Method::DELETE, &url), as_it_is).await? {
                Ok(_) => Ok(Deletion::Done),
                Err(refusal) => match refusal.status {
                    StatusCode::NOT_FOUND => Ok(Deletion::Absent),
                    // The specification has 400 and 405 for registries that do not delete ("Content Management").
                    StatusCode::BAD_REQUEST
                    | StatusCode::METHOD_NOT_ALLOWED
                    | StatusCode::NOT_IMPLEMENTED
                    | StatusCode::FORBIDDEN
                    | StatusCode::UNAUTHORIZED => Ok(Deletion::NotAllowed),
                    _ if refusal.has_code("UNSUPPORTED") || refusal.has_code("DENIED") => Ok(Deletion::NotAllowed),
                    _ => Err(self.session.refused(&what, refusal)),
                },
            }
        })
    }

    /// All tags; none of a repository that is not there.
    pub fn tags(&self) -> Result<Vec<String>, RegistryError> {
        self.runtime()?.block_on(self.session.tags(&self.reference, self.reads))
    }

    /// Those of the blobs that the repository has.
    pub fn has_blobs(&self, digests: &[Digest]) -> Result<BTreeSet<Digest>, RegistryError> {
        self.runtime()?.block_on(async {
            let asked = |digest: &'_ Digest| {
                let digest = *digest;
                async move { Ok::<_, RegistryError>(self.has_blob(&digest).await?.then_some(digest)) }
            };
            // The first one alone: it finds the way and the token that the others use.
            let (first, others) = digests.split_at(digests.len().min(1));
            let mut found: BTreeSet<Digest> = BTreeSet::new();
            for digest in first {
                found.extend(asked(digest).await?);
            }
            let others = stream::iter(others.iter().map(asked)).buffer_unordered(QUESTIONS);
            let others: Vec<Option<Digest>> = others.try_collect().await?;
            found.extend(others.into_iter().flatten());
            Ok(found)
        })
    }

    /// Has `read` read a blob; `None` where the repository has none. The bytes are those that come: whoever wants them to
    /// have the digest looks at that. A connection that breaks is taken up again where it broke.
    pub fn read_blob<T>(
        &self,
        digest: &Digest,
        size: u64,
        read: impl FnOnce(&mut dyn Read) -> T,
    ) -> Result<Option<T>, RegistryError> {
        self.read_blob_while(digest, size, (self.session.patience, self.session.observer), read)
    }

    /// The same for whoever has a patience, and a wish to stop, of its own.
    pub(crate) fn read_blob_while<T>(
        &self,
        digest: &Digest,
        size: u64,
        (patience, observer): (Patience, &dyn Observer),
        read: impl FnOnce(&mut dyn Read) -> T,
    ) -> Result<Option<T>, RegistryError> {
        let what = format!("the blob {digest}");
        let runtime = self.runtime()?;
        let url = runtime.block_on(self.session.address(&self.reference, &format!("blobs/{digest}")))?;
        let blob = Blob { repository: self, url, what: &what };
        match Download::start(&blob, "", size, patience, (runtime.handle(), observer)) {
            Ok(mut download) => Ok(Some(read(&mut download))),
            Err(FetchError::NotFound) => Ok(None),
            Err(error) => Err(self.session.unanswered(&what, error)),
        }
    }

    async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let what = format!("the blob {digest}");
        let url = self.session.address(&self.reference, &format!("blobs/{digest}")).await?;
        let as_it_is = |request| request;
        match self.session.send(self.question(self.reads, &what, Method::HEAD, &url), as_it_is).await? {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(false),
            Err(refusal) => Err(self.session.refused(&what, refusal)),
        }
    }

    /// The registry may say what digest it has found: that must be ours.
    fn check_digest(&self, response: &Response, what: &str, digest: &Digest) -> Result<(), RegistryError> {
        match digest_of(response) {
            Some(found) if found != digest.to_string() => Err(RegistryError::AnotherDigest {
                registry: self.session.registry.clone(),
                what: what.to_owned(),
                expected: *digest,
                found: found.chars().filter(|c| !c.is_control()).take(100).collect(),
            }),
            _ => Ok(()),
        }
    }

    fn runtime(&self) -> Result<&Runtime, RegistryError> {
        let made =
            self.network.runtime.get_or_init(|| Builder::new_multi_thread().worker_threads(2).enable_all().build());
        made.as_ref().map_err(|error| {
            let error = io::Error::new(error.kind(), error.to_string());
            self.session.unanswered("anything", FetchError::File(error))
        })
    }
}

/// The codes of a manifest that comes before its blobs (distribution-spec, "Error Codes").
const LACKING: [&str; 3] = ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"];

fn digest_of(response: &Response) -> Option<&str> {
    response.headers().get("Docker-Content-Digest")?.to_str().ok()
}

/// A blob to download.
struct Blob<'b, 'a> {
    repository: &'b Repository<'a>,
    url: url::Url,
    what: &'b str,
}

impl Transport for Blob<'_, '_> {
    fn get<'t>(&'t self, _: &'t str, from: u64) -> Asked<'t> {
        Box::pin(async move {
            let Repository { session, reference, reads, .. } = self.repository;
            let ranged = |request: reqwest::RequestBuilder| match from {
                0 => request,
                from => request.header(header::RANGE, format!("bytes={from}-")),
            };
            let question = self.repository.question(*reads, self.what, Method::GET, &self.url);
            let mut is_fresh = false;
            let response = loop {
                match session.attempt(&question, ranged).await {
                    Ok(Ok(response)) => break response,
                    Ok(Err(refusal)) if refusal.status == StatusCode::UNAUTHORIZED && !is_fresh => {
                        is_fresh = session.forget_authorization(reference, *reads, &refusal);
                    }
                    Ok(Err(refusal)) if refusal.status == StatusCode::NOT_FOUND => return Err(FetchError::NotFound),
                    Ok(Err(refusal)) => return Err(FetchError::Denied { status: refusal.status.as_u16() }),
                    Err(RegistryError::Unanswered { source, .. }) => return Err(source),
                    Err(other) => return Err(FetchError::connection(other, false)),
                }
            };
            Ok(Answer::of(response, from))
        })
    }
}
