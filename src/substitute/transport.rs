//! How the files of a binary cache are had: from a server, a directory or a bucket, one answer a question.

use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore};
use reqwest::{StatusCode, header};
use url::Url;

use super::credentials::Login;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(15);
/// Files are read in pieces of this many bytes.
const PIECE: usize = 256 * 1024;

/// The bytes of a file, or of its rest.
pub(super) type Body = Pin<Box<dyn Stream<Item = Result<Bytes, FetchError>> + Send>>;
/// What a question is answered with, in time.
pub(super) type Asked<'t> = Pin<Box<dyn Future<Output = Result<Answer, FetchError>> + Send + 't>>;

/// A file of a cache.
pub(super) struct Answer {
    /// Where in the file the body begins: at the byte that was asked for, or at 0 with a server that knows no ranges.
    pub(super) start: u64,
    pub(super) body: Body,
}

/// A file of a cache could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The cache has no such file.
    #[error("there is no such file")]
    NotFound,
    /// The cache wants to know who asks, or does not want this one to.
    #[error("access is denied (status {status})")]
    Denied {
        /// The HTTP status.
        status: u16,
    },
    /// The server says that it cannot answer.
    #[error("the server answered with status {status}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// No bytes, or too few, came for too long.
    #[error("the server sends nothing, or next to nothing, for {} s", after.as_secs())]
    Stalled {
        /// How long was waited.
        after: Duration,
    },
    /// There are more bytes than there may be.
    #[error("it is longer than {most} bytes")]
    TooLong {
        /// How many there may be.
        most: u64,
    },
    /// The server could not be reached, or the connection broke.
    #[error("{}", innermost(&**error))]
    Connection {
        /// Why; its own words are this error's.
        error: Box<dyn std::error::Error + Send + Sync>,
        /// Whether another attempt may end better.
        is_passing: bool,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(io::Error),
    /// The user ended the run.
    #[error(transparent)]
    Cancelled(crate::event::Cancelled),
}

impl FetchError {
    /// Whether another attempt may end better.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            Self::Stalled { .. } => true,
            Self::Connection { is_passing, .. } => *is_passing,
            Self::NotFound | Self::Denied { .. } | Self::TooLong { .. } | Self::File(_) | Self::Cancelled(_) => false,
        }
    }

    fn connection(error: impl std::error::Error + Send + Sync + 'static, is_passing: bool) -> Self {
        Self::Connection { error: Box::new(error), is_passing }
    }
}

/// HTTP libraries wrap what happened many times; who reads it wants to know what, not through how many hands it went.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Answers questions for files of one cache.
pub(super) trait Transport: Send + Sync {
    /// The file called `name`, relative to the cache, from its byte `from` on.
    fn get<'t>(&'t self, name: &'t str, from: u64) -> Asked<'t>;
}

/// The HTTP client of all caches: one pool of connections, made at the first question, for to read the system's
/// certificates takes longer than many a run.
pub(super) struct Client {
    /// How many connections to a server are kept.
    connections: usize,
    /// Certificates to trust beside the system's, in PEM.
    certificates: Vec<u8>,
    client: OnceLock<Result<reqwest::Client, String>>,
}

impl Client {
    pub(super) fn new(connections: usize, certificates: Vec<u8>) -> Self {
        Self { connections, certificates, client: OnceLock::new() }
    }

    fn get(&self) -> Result<&reqwest::Client, FetchError> {
        let client = self.client.get_or_init(|| self.make().map_err(|error| innermost(&error)));
        client.as_ref().map_err(|reason| FetchError::Connection { error: reason.as_str().into(), is_passing: false })
    }

    fn builder(&self) -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .user_agent(concat!("layerhold/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(self.connections)
    }

    /// Proxies are those of the environment (`https_proxy`, `no_proxy`), certificates those of the system
    /// (`SSL_CERT_FILE`) and our own.
    fn make(&self) -> Result<reqwest::Client, reqwest::Error> {
        // Another part of the process may have chosen a provider; then that one serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = self.builder();
        if !self.certificates.is_empty() {
            builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&self.certificates)?);
        }
        // A machine without certificates of its own has those that Mozilla trusts.
        builder.build().or_else(|_| {
            let certificates = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
            let mut trusted = certificates
                .map(|certificate| reqwest::Certificate::from_der(certificate))
                .collect::<Result<Vec<_>, _>>()?;
            trusted.extend(reqwest::Certificate::from_pem_bundle(&self.certificates)?);
            self.builder().tls_certs_only(trusted).build()
        })
    }
}

/// A cache on an HTTP server.
pub(super) struct Http {
    client: Arc<Client>,
    base: Url,
    login: Option<Login>,
}

impl Http {
    pub(super) fn new(client: Arc<Client>, mut base: Url, login: Option<Login>) -> Self {
        // The client would send what stands in the address beside the login: servers refuse two.
        let _ = (base.set_username(""), base.set_password(None));
        Self { client, base, login }
    }
}

impl Transport for Http {
    fn get<'t>(&'t self, name: &'t str, from: u64) -> Asked<'t> {
        Box::pin(async move {
            let url = self.base.join(name).map_err(|error| FetchError::connection(error, false))?;
            let is_own = url.origin() == self.base.origin();
            let mut request = self.client.get()?.get(url);
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            // A narinfo may name a file on another host: that one is not told any secret.
            request = match &self.login {
                Some(Login::Basic { user, password }) if is_own => request.basic_auth(user, Some(password)),
                Some(Login::Bearer(token)) if is_own => request.bearer_auth(token),
                _ => request,
            };
            let response = request.send().await.map_err(from_reqwest)?;
            let status = response.status();
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
                StatusCode::NOT_FOUND | StatusCode::GONE => return Err(FetchError::NotFound),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                    return Err(FetchError::Denied { status: status.as_u16() });
                }
                _ => {
                    let after = response.headers().get(header::RETRY_AFTER);
                    let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
                    let retry_after = after.map(Duration::from_secs);
                    return Err(FetchError::Status { status: status.as_u16(), retry_after });
                }
            }
            let start = match status {
                StatusCode::PARTIAL_CONTENT => {
                    let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                    range.and_then(first_byte).unwrap_or(from)
                }
                _ => 0,
            };
            let body = response.bytes_stream().map(|piece| piece.map_err(from_reqwest));
            Ok(Answer { start, body: Box::pin(body) })
        })
    }
}

/// The first byte of `bytes 100-199/200`.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn from_reqwest(error: reqwest::Error) -> FetchError {
    // What a certificate is wrong with, another attempt will not mend.
    let is_certificate = {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        let mut found = false;
        while let Some(error) = next {
            found |= error.is::<rustls::Error>();
            let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            found |= inner.is_some_and(|inner| inner.is::<rustls::Error>());
            next = error.source();
        }
        found
    };
    let is_passing = !is_certificate && !error.is_builder() && !error.is_redirect();
    // The address may hold a secret; who reports this names the cache.
    FetchError::connection(error.without_url(), is_passing)
}

/// A cache in a directory.
pub(super) struct Directory(pub(super) PathBuf);

impl Transport for Directory {
    fn get<'t>(&'t self, name: &'t str, from: u64) -> Asked<'t> {
        let open = || {
            let relative = Path::new(name);
            if !relative.components().all(|component| matches!(component, Component::Normal(_))) {
                return Err(FetchError::NotFound);
            }
            let mut file = File::open(self.0.join(relative)).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FetchError::NotFound,
                _ => FetchError::File(error),
            })?;
            file.seek(SeekFrom::Start(from)).map_err(FetchError::File)?;
            let pieces = stream::unfold(file, |mut file| async move {
                let mut piece = vec![0; PIECE];
                match file.read(&mut piece) {
                    Ok(0) => None,
                    Ok(read) => {
                        piece.truncate(read);
                        Some((Ok(Bytes::from(piece)), file))
                    }
                    Err(error) => Some((Err(FetchError::File(error)), file)),
                }
            });
            Ok(Answer { start: from, body: Box::pin(pieces) as Body })
        };
        let answer = open();
        Box::pin(async move { answer })
    }
}

/// The client of all caches, for object stores: theirs would know neither our certificates nor the fallback for machines
/// without any, and would give up on a NAR that takes longer than half a minute.
#[derive(Clone)]
pub(super) struct SharedClient(pub(super) Arc<Client>);

impl fmt::Debug for SharedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedClient").finish_non_exhaustive()
    }
}

impl HttpConnector for SharedClient {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for SharedClient {
    fn call<'c, 'f>(
        &'c self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'f>>
    where
        'c: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let client = self.0.get().map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
            HttpService::call(client, request).await
        })
    }
}

/// A cache in a bucket.
pub(super) struct Objects(pub(super) Box<dyn ObjectStore>);

impl Transport for Objects {
    fn get<'t>(&'t self, name: &'t str, from: u64) -> Asked<'t> {
        Box::pin(async move {
            let key = object_store::path::Path::from(name);
            let range = (from > 0).then_some(GetRange::Offset(from));
            let options = GetOptions { range, ..GetOptions::default() };
            let found = self.0.get_opts(&key, options).await.map_err(from_object_store)?;
            let start = found.range.start;
            let body = found.into_stream().map(|piece| piece.map_err(from_object_store));
            Ok(Answer { start, body: Box::pin(body) })
        })
    }
}

fn from_object_store(error: object_store::Error) -> FetchError {
    match error {
        object_store::Error::NotFound { .. } => FetchError::NotFound,
        object_store::Error::PermissionDenied { .. } => FetchError::Denied { status: 403 },
        object_store::Error::Unauthenticated { .. } => FetchError::Denied { status: 401 },
        other => FetchError::connection(other, true),
    }
}
