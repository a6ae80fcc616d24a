//! The one HTTP client, for whoever asks over the network.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use url::Url;

use super::FetchError;
use super::error::{from_reqwest, innermost};

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(15);

/// Bytes of one file that a server may send before they are read (RFC 9113, 5.2). That much memory a file takes that is
/// open and not read: each core has two or three layers on their way, and each of those one file.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same of all files on a connection together: no bound of its own, and what Go's client has. Who packs a layer
/// holds on to pieces of it while the next bytes are waited for, and others do not read on before they are given such a
/// place: if their files took up what the connection has, as three did with the usual 5 MiB, nobody would get any
/// further.
const CONNECTION_WINDOW: u32 = 1 << 30;
// That is room for as many questions as there may be at once, and for three files on each of 256 cores.
const _: () = assert!(CONNECTION_WINDOW / STREAM_WINDOW >= 128 + 3 * 256);

/// The HTTP client of all caches, or two of them: a pool of connections each, made at the first question, for to read the
/// system's certificates takes longer than many a run.
pub(crate) struct Client {
    /// How many connections to a server are kept.
    connections: usize,
    /// Certificates to trust beside the system's, in PEM.
    certificates: Vec<u8>,
    /// For servers on this machine.
    here: OnceLock<Made>,
    /// For all others.
    elsewhere: OnceLock<Made>,
}

type Made = Result<reqwest::Client, String>;

/// Whether an address is this machine's own, by the rule that Docker's client has.
pub(crate) fn is_loopback(address: &Url) -> bool {
    match address.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

impl Client {
    pub(crate) fn new(connections: usize, certificates: Vec<u8>) -> Self {
        Self { connections, certificates, here: OnceLock::new(), elsewhere: OnceLock::new() }
    }

    /// What the server at this address is asked with. One on this machine is asked without a proxy, whatever the
    /// environment says, as Docker's client has it (Go: `httpproxy.Config.ProxyFunc`): to a proxy the address is its
    /// own, and it would be shown a login that is meant for here.
    pub(crate) fn get(&self, url: &Url) -> Result<&reqwest::Client, FetchError> {
        let is_here = is_loopback(url);
        let client = if is_here { &self.here } else { &self.elsewhere };
        let client = client.get_or_init(|| self.make(is_here).map_err(|error| innermost(&error)));
        client.as_ref().map_err(|reason| FetchError::Connection { error: reason.as_str().into(), is_passing: false })
    }

    /// Sends a request that was made with [`Client::get`]. Where it is sent on from this machine to another one, or
    /// back, the other client follows, once, for one of them has proxies and one has none; a login stays behind.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, FetchError> {
        let again = request.try_clone();
        let response = request.send().await.map_err(from_reqwest)?;
        let (Some(again), Some(url)) = (again, sent_across(&response)) else { return Ok(response) };
        let mut request = again.build().map_err(from_reqwest)?;
        let keeps_its_method =
            matches!(response.status(), StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
        if !keeps_its_method && ![Method::GET, Method::HEAD].contains(request.method()) {
            return Ok(response);
        }
        let client = self.get(&url)?;
        *request.url_mut() = url;
        request.headers_mut().remove(header::AUTHORIZATION);
        client.execute(request).await.map_err(from_reqwest)
    }

    fn builder(&self, is_here: bool) -> reqwest::ClientBuilder {
        // Another part of the process may have chosen a provider; then that one serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let follow = Policy::custom(move |attempt| match is_loopback(attempt.url()) == is_here {
            true => Policy::default().redirect(attempt),
            false => attempt.stop(),
        });
        let builder = reqwest::Client::builder()
            .user_agent(concat!("layerhold/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(self.connections)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .redirect(follow);
        if is_here { builder.no_proxy() } else { builder }
    }

    /// Proxies are those of the environment (`https_proxy`, `no_proxy`), certificates those of the system
    /// (`SSL_CERT_FILE`) and our own.
    fn make(&self, is_here: bool) -> Result<reqwest::Client, reqwest::Error> {
        let mut builder = self.builder(is_here);
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
            self.builder(is_here).tls_certs_only(trusted).build()
        })
    }
}

/// Where a redirection leads that crosses the border of this machine.
fn sent_across(response: &Response) -> Option<Url> {
    let location = response.headers().get(header::LOCATION).filter(|_| response.status().is_redirection())?;
    let url = response.url().join(location.to_str().ok()?).ok()?;
    (is_loopback(&url) != is_loopback(response.url())).then_some(url)
}

/// The client of all caches, for object stores: theirs would know neither our certificates nor the fallback for machines
/// without any, and would give up on a NAR that takes longer than half a minute.
#[derive(Clone)]
pub(crate) struct SharedClient(pub(crate) Arc<Client>);

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
            let url = Url::parse(&request.uri().to_string());
            let url = url.map_err(|error| HttpError::new(HttpErrorKind::Request, error))?;
            let client = self.0.get(&url).map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
            HttpService::call(client, request).await
        })
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
