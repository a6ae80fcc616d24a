//! The one HTTP client, for whoever asks over the network.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

use super::FetchError;
use super::error::innermost;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(15);
/// The HTTP client of all caches: one pool of connections, made at the first question, for to read the system's
/// certificates takes longer than many a run.
pub(crate) struct Client {
    /// How many connections to a server are kept.
    connections: usize,
    /// Certificates to trust beside the system's, in PEM.
    certificates: Vec<u8>,
    client: OnceLock<Result<reqwest::Client, String>>,
}

impl Client {
    pub(crate) fn new(connections: usize, certificates: Vec<u8>) -> Self {
        Self { connections, certificates, client: OnceLock::new() }
    }

    pub(crate) fn get(&self) -> Result<&reqwest::Client, FetchError> {
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
            let client = self.0.get().map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
            HttpService::call(client, request).await
        })
    }
}
