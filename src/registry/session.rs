//! Requests to one registry: its scheme, who asks, tokens, attempts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use oci_client::RegistryOperation;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};
use url::Url;

use super::credentials::Login;
use super::{Network, Reference, RegistryError, Settings};
use crate::event::Observer;
use crate::http::{FetchError, Patience, answered, from_reqwest, until_cancelled};

/// The longest error message of a registry's that is read, in bytes.
const LONGEST_WORDS: usize = 64 << 10;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Pull,
    Push,
}

/// A registry, as far as it is known in this run.
pub(super) struct Session<'a> {
    settings: Arc<Settings>,
    network: Arc<Network>,
    pub(super) observer: &'a dyn Observer,
    pub(super) registry: String,
    pub(super) patience: Patience,
    way: OnceCell<Way>,
    authorizations: Mutex<BTreeMap<(String, Scope), Authorization>>,
}

/// How the registry is reached.
struct Way {
    base: Url,
    /// Negotiates tokens, lists tags.
    library: oci_client::Client,
    login: Option<Login>,
}

/// What a request says of who asks.
#[derive(Clone)]
enum Authorization {
    Nobody,
    Basic { user: String, password: String },
    Bearer(String),
}

/// What registries say instead of doing what they are asked for (distribution-spec, "Error Codes").
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Words {
    errors: Vec<Word>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Word {
    code: String,
    message: String,
}

/// An answer that is no.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The registry's codes: `MANIFEST_BLOB_UNKNOWN`.
    pub(super) codes: Vec<String>,
    words: String,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        registry: &str,
        settings: Arc<Settings>,
        network: Arc<Network>,
        observer: &'a dyn Observer,
    ) -> Self {
        Self {
            patience: settings.patience,
            settings,
            network,
            observer,
            registry: registry.to_owned(),
            way: OnceCell::new(),
            authorizations: Mutex::default(),
        }
    }

    /// The address of something in a repository: `v2/NAME/REST`.
    pub(super) async fn address(&self, reference: &Reference, rest: &str) -> Result<Url, RegistryError> {
        let way = self.way(reference).await?;
        let joined = way.base.join(&format!("v2/{}/{rest}", reference.repository()));
        joined.map_err(|error| self.unanswered(rest, FetchError::connection(error, false)))
    }

    /// Where an answer's `Location` leads to: it may be relative.
    pub(super) fn follow(&self, base: &Url, response: &Response) -> Option<Url> {
        base.join(response.headers().get(header::LOCATION)?.to_str().ok()?).ok()
    }

    pub(super) fn unanswered(&self, what: &str, source: FetchError) -> RegistryError {
        RegistryError::Unanswered { registry: self.registry.clone(), what: what.to_owned(), source }
    }

    pub(super) fn refused(&self, what: &str, refusal: Refusal) -> RegistryError {
        let (registry, what) = (self.registry.clone(), what.to_owned());
        match refusal.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let logged_in = self.way.get().is_some_and(|way| way.login.is_some());
                RegistryError::Denied { registry, what, logged_in }
            }
            status => RegistryError::Refused { registry, what, status: status.as_u16(), reason: refusal.words },
        }
    }

    /// Asks until there is an answer: yes, or an error of the asker's. What is passing is waited for; a token that is no
    /// longer good is asked for anew, once.
    pub(super) async fn send(
        &self,
        reference: &Reference,
        scope: Scope,
        what: &str,
        method: Method,
        url: &Url,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Result<Response, Refusal>, RegistryError> {
        let (mut failures, mut is_fresh) = (0, false);
        loop {
            let error = match self.attempt(reference, scope, what, method.clone(), url, &finish).await {
                Ok(Ok(response)) => return Ok(Ok(response)),
                Ok(Err(refusal)) if refusal.status == StatusCode::UNAUTHORIZED && !is_fresh => {
                    is_fresh = true;
                    self.forget_authorization(reference, scope);
                    continue;
                }
                Ok(Err(refusal)) => return Ok(Err(refusal)),
                Err(RegistryError::Unanswered { source, .. }) => source,
                Err(error) => return Err(error),
            };
            failures += 1;
            match self.patience.wait(&error, failures) {
                Some(wait) => self.pause(what, wait).await?,
                None => return Err(self.unanswered(what, error)),
            }
        }
    }

    /// Asks once.
    pub(super) async fn attempt(
        &self,
        reference: &Reference,
        scope: Scope,
        what: &str,
        method: Method,
        url: &Url,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Result<Response, Refusal>, RegistryError> {
        let way = self.way(reference).await?;
        let client = self.network.client.get().map_err(|error| self.unanswered(what, error))?;
        let mut request = client.request(method, url.clone());
        // An upload may go on at another host, which is shown nothing of this one's (CVE-2020-15157).
        if url.origin() == way.base.origin() {
            request = match self.authorization(way, reference, scope, what).await? {
                Authorization::Nobody => request,
                Authorization::Basic { user, password } => request.basic_auth(user, Some(password)),
                Authorization::Bearer(token) => request.bearer_auth(token),
            };
        }
        let after = self.patience.stalled_after;
        let sending = async {
            let sent = timeout(after, finish(request).send()).await.map_err(|_| FetchError::Stalled { after })?;
            let response = sent.map_err(from_reqwest)?;
            let status = response.status();
            let is_passing = matches!(status.as_u16(), 408 | 425 | 429 | 500..);
            if !is_passing && !status.is_success() {
                return Ok(Err(Refusal::read(response, after).await));
            }
            answered(response).map(Ok)
        };
        self.until_cancelled(what, sending).await
    }

    /// Waits before another attempt.
    pub(super) async fn pause(&self, what: &str, wait: std::time::Duration) -> Result<(), RegistryError> {
        let waiting = async {
            sleep(wait).await;
            Ok(())
        };
        self.until_cancelled(what, waiting).await
    }

    /// Waits for `work`, unless the user wants the run to end.
    pub(super) async fn until_cancelled<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, RegistryError> {
        until_cancelled(self.observer, work).await.map_err(|error| self.unanswered(what, error))
    }

    /// All tags of a repository.
    pub(super) async fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        const PAGE: usize = 1000;
        const WHAT: &str = "its tags";
        let way = self.way(reference).await?;
        self.authorization(way, reference, Scope::Pull, WHAT).await?;
        let auth = way.registry_auth();
        let mut tags: Vec<String> = Vec::new();
        let mut failures = 0;
        loop {
            let last = tags.last().cloned();
            let listing = way.library.list_tags(reference.inner(), &auth, Some(PAGE), last.as_deref());
            let after = self.patience.stalled_after;
            let listing = async { timeout(after, listing).await.map_err(|_| FetchError::Stalled { after }) };
            let error = match self.until_cancelled(WHAT, listing).await? {
                Ok(page) => {
                    let is_last = page.tags.len() < PAGE;
                    let known = tags.len();
                    tags.extend(page.tags.into_iter().filter(|tag| last.as_ref().is_none_or(|last| tag > last)));
                    // A registry that knows no pages gives all at once.
                    if is_last || tags.len() == known {
                        return Ok(tags);
                    }
                    continue;
                }
                Err(error) => error,
            };
            failures += 1;
            match self.library_error(WHAT, error) {
                RegistryError::Refused { status: 404, .. } => return Ok(Vec::new()),
                RegistryError::Unanswered { source, .. } => match self.patience.wait(&source, failures) {
                    Some(wait) => self.pause(WHAT, wait).await?,
                    None => return Err(self.unanswered(WHAT, source)),
                },
                RegistryError::Denied { .. } if failures == 1 => {
                    self.forget_authorization(reference, Scope::Pull);
                    self.authorization(way, reference, Scope::Pull, WHAT).await?;
                }
                error => return Err(error),
            }
        }
    }

    async fn way(&self, reference: &Reference) -> Result<&Way, RegistryError> {
        self.way.get_or_try_init(|| self.find_way(reference)).await
    }

    /// A registry on this machine may speak plain http; any other one only if the user says so.
    async fn find_way(&self, reference: &Reference) -> Result<Way, RegistryError> {
        let credentials = &self.settings.credentials;
        let login = credentials.find(&self.registry, reference.repository(), self.observer)?;
        let address = |scheme: &str| {
            let address = Url::parse(&format!("{scheme}://{}/", self.registry));
            address.map_err(|error| self.unanswered("anything", FetchError::connection(error, false)))
        };
        let secure = address("https")?;
        let is_plain = self.settings.insecure.contains(&self.registry)
            || (is_loopback(&secure) && !self.speaks_tls(&secure).await?);
        let plain = if is_plain { Some(address("http")?) } else { None };
        let protocol = if plain.is_some() { ClientProtocol::Http } else { ClientProtocol::Https };
        // Made first: it chooses who does TLS, for the library's client too.
        self.network.client.get().map_err(|error| self.unanswered("anything", error))?;
        let library = self.library(protocol).map_err(|error| self.library_error("anything", error))?;
        Ok(Way { base: plain.unwrap_or(secure), library, login })
    }

    /// Whether something at this address answers in TLS, with a certificate that is trusted or with one that is not.
    async fn speaks_tls(&self, address: &Url) -> Result<bool, RegistryError> {
        let client = self.network.client.get().map_err(|error| self.unanswered("anything", error))?;
        let asking = async { Ok(client.get(address.clone()).timeout(self.patience.stalled_after).send().await) };
        match self.until_cancelled("anything", asking).await? {
            Ok(_) => Ok(true),
            Err(error) => Ok(is_about_certificates(&error)),
        }
    }

    fn library(&self, protocol: ClientProtocol) -> Result<oci_client::Client, OciDistributionError> {
        let pem = &self.settings.certificates;
        let config = |only: Vec<Certificate>| ClientConfig {
            protocol: protocol.clone(),
            extra_root_certificates: split_pem(pem),
            tls_certs_only: only,
            connect_timeout: Some(self.patience.stalled_after),
            read_timeout: Some(self.patience.stalled_after),
            user_agent: concat!("layerhold/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        oci_client::Client::try_from(config(Vec::new())).or_else(|_| {
            // A machine without certificates of its own has those that Mozilla trusts.
            let trusted = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
            let trusted = trusted.map(|data| Certificate { encoding: CertificateEncoding::Der, data: data.to_vec() });
            oci_client::Client::try_from(config(trusted.chain(split_pem(pem)).collect()))
        })
    }

    fn authorizations(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, Scope), Authorization>> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the next request ask for a token anew.
    pub(super) fn forget_authorization(&self, reference: &Reference, scope: Scope) {
        self.authorizations().remove(&(reference.repository().to_owned(), scope));
    }

    async fn authorization(
        &self,
        way: &Way,
        reference: &Reference,
        scope: Scope,
        what: &str,
    ) -> Result<Authorization, RegistryError> {
        let key = (reference.repository().to_owned(), scope);
        if let Some(known) = self.authorizations().get(&key) {
            return Ok(known.clone());
        }
        let mut failures = 0;
        let negotiated = loop {
            let operation = match scope {
                Scope::Pull => RegistryOperation::Pull,
                Scope::Push => RegistryOperation::Push,
            };
            let auth = way.registry_auth();
            let after = self.patience.stalled_after;
            let negotiating = way.library.auth(reference.inner(), &auth, operation);
            let negotiating = async { timeout(after, negotiating).await.map_err(|_| FetchError::Stalled { after }) };
            let error = match self.until_cancelled(what, negotiating).await? {
                Ok(token) => break token,
                Err(error) => self.library_error(what, error),
            };
            failures += 1;
            match error {
                RegistryError::Unanswered { source, .. } => match self.patience.wait(&source, failures) {
                    Some(wait) => self.pause(what, wait).await?,
                    None => return Err(self.unanswered(what, source)),
                },
                error => return Err(error),
            }
        };
        let authorization = match (negotiated, &way.login) {
            (Some(token), _) => Authorization::Bearer(token),
            (None, Some(Login::Basic { user, password })) => {
                Authorization::Basic { user: user.clone(), password: password.clone() }
            }
            (None, _) => Authorization::Nobody,
        };
        self.authorizations().insert(key, authorization.clone());
        Ok(authorization)
    }

    /// The library's errors have addresses in them, which may hold secrets.
    fn library_error(&self, what: &str, error: OciDistributionError) -> RegistryError {
        let refusal = |status: u16, text: &str| {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
            self.refused(what, Refusal::parse(status, text.as_bytes()))
        };
        match error {
            OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. } => {
                refusal(401, "")
            }
            OciDistributionError::ServerError { code, .. } if matches!(code, 408 | 425 | 429 | 500..) => {
                self.unanswered(what, FetchError::Status { status: code, retry_after: None })
            }
            OciDistributionError::ServerError { code, message, .. } => refusal(code, &message),
            OciDistributionError::RegistryError { envelope, .. } => {
                // It does not say the status; this code's is 404 (distribution-spec, "Error Codes").
                let is_absent = envelope.errors.iter().any(|error| error.code == OciErrorCode::NameUnknown);
                refusal(if is_absent { 404 } else { 400 }, &envelope.to_string())
            }
            OciDistributionError::RequestError(error) => self.unanswered(what, from_reqwest(error)),
            other => refusal(400, &other.to_string()),
        }
    }
}

impl Way {
    fn registry_auth(&self) -> RegistryAuth {
        match &self.login {
            Some(Login::Basic { user, password }) => RegistryAuth::Basic(user.clone(), password.clone()),
            Some(Login::Bearer(token)) => RegistryAuth::Bearer(token.clone()),
            None => RegistryAuth::Anonymous,
        }
    }
}

impl Refusal {
    async fn read(mut response: Response, patience: std::time::Duration) -> Self {
        let status = response.status();
        let mut text = Vec::new();
        let reading = async {
            while let Ok(Some(piece)) = response.chunk().await {
                text.extend_from_slice(&piece);
                if text.len() > LONGEST_WORDS {
                    break;
                }
            }
        };
        // What does not come is done without: the status says the most.
        let _ = timeout(patience, reading).await;
        Self::parse(status, &text)
    }

    fn parse(status: StatusCode, text: &[u8]) -> Self {
        let words: Words = serde_json::from_slice(text).unwrap_or_default();
        let codes: Vec<_> = words.errors.iter().map(|word| word.code.clone()).collect();
        let said = words.errors.first().map(|word| match word.message.as_str() {
            "" => word.code.clone(),
            message => format!("{}: {message}", word.code),
        });
        let usual = || status.canonical_reason().unwrap_or("no reason given").to_owned();
        // One line, and not a page of a server's between here and there.
        let words = said.unwrap_or_else(usual).chars().filter(|c| !c.is_control()).take(300).collect();
        Self { status, codes, words }
    }

    pub(super) fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|known| known == code)
    }
}

/// Docker's rule for registries that need no certificate.
fn is_loopback(address: &Url) -> bool {
    match address.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

/// Whether a server speaks TLS, and is only not trusted.
fn is_about_certificates(error: &reqwest::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = error.downcast_ref::<rustls::Error>().or_else(|| inner?.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls {
            return !matches!(tls, rustls::Error::InvalidMessage(_));
        }
        next = error.source();
    }
    false
}

/// Certificates one by one, as the library takes them.
fn split_pem(pem: &[u8]) -> Vec<Certificate> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = String::from_utf8_lossy(pem);
    let whole = text.split_inclusive(END).filter(|part| part.contains("-----BEGIN CERTIFICATE-----"));
    whole.map(|part| Certificate { encoding: CertificateEncoding::Pem, data: part.as_bytes().to_vec() }).collect()
}
