//! Requests to one registry: its scheme, who asks, tokens, attempts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{Either, select};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};
use url::Url;

use super::tokens::Challenge;
use super::{Network, QUESTIONS, Reference, RegistryError, Settings, certificates};
use crate::event::Observer;
use crate::http::{Client, FetchError, Patience, answered, from_reqwest, is_loopback, tls_error, until_cancelled};

/// The longest page of tags that is read, in bytes.
const LONGEST_PAGE: u64 = 16 << 20;
/// The longest error message of a registry's that is read, in bytes.
const LONGEST_WORDS: usize = 64 << 10;

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Pull,
    Push,
}

impl Scope {
    /// As token services read it.
    pub(super) fn text(self, repository: &str) -> String {
        match self {
            Self::Pull => format!("repository:{repository}:pull"),
            Self::Push => format!("repository:{repository}:pull,push"),
        }
    }

    /// Whether a token for this is good for what a registry demands: who may push may pull.
    fn covers(self, wanted: &str, repository: &str) -> bool {
        wanted == self.text(repository) || wanted == Self::Pull.text(repository)
    }
}

/// A registry, as far as it is known in this run.
pub(super) struct Session<'a> {
    pub(super) settings: Arc<Settings>,
    /// What it is asked with; where certificates of its own cannot be read, why.
    client: Result<Arc<Client>, String>,
    pub(super) observer: &'a dyn Observer,
    pub(super) registry: String,
    pub(super) patience: Patience,
    /// Where it is, with its scheme.
    base: OnceCell<Url>,
    authorizations: Mutex<BTreeMap<(String, Scope), Authorization>>,
    /// Held by who asks for a token: what many requests need at once is asked for once.
    pub(super) negotiating: tokio::sync::Mutex<()>,
    /// Repositories, each with one that it was asked in vain to mount from, and for how many blobs in a row.
    pub(super) vain: Mutex<BTreeMap<(String, String), u32>>,
}

/// What a request says of who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Authorization {
    Nobody,
    Basic { user: String, password: String },
    Bearer { token: String, scopes: BTreeSet<String> },
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

#[derive(Deserialize)]
struct Tags {
    /// Some registries say `null` instead of none.
    tags: Option<Vec<String>>,
}

/// What the registry is asked.
pub(super) struct Question<'q> {
    /// Whose repository it is about.
    pub(super) reference: &'q Reference,
    /// What a token has to be for.
    pub(super) scope: Scope,
    /// In words, for errors.
    pub(super) what: &'q str,
    pub(super) method: Method,
    pub(super) url: &'q Url,
}

/// An answer that is no.
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The registry's codes: `MANIFEST_BLOB_UNKNOWN`.
    pub(super) codes: Vec<String>,
    words: String,
    /// What token would be good for it.
    pub(super) challenge: Option<Challenge>,
    /// Whether there was a login for the repository.
    logged_in: bool,
    /// What the request said of who asks; `None` at another host than the registry's.
    asked_as: Option<Authorization>,
    /// Where it would be answered: a body that is gone cannot be sent on there by the client.
    pub(super) elsewhere: Option<Url>,
}

impl<'a> Session<'a> {
    pub(super) fn new(registry: &str, settings: Arc<Settings>, network: &Network, observer: &'a dyn Observer) -> Self {
        let own = certificates::of_registry(&settings.certificate_directories, registry);
        let client = own.map(|own| match own.is_empty() {
            true => Arc::clone(&network.client),
            // What one registry is trusted with says nothing of another one.
            false => Arc::new(Client::new(QUESTIONS, [own, settings.certificates.clone()].concat())),
        });
        Self {
            patience: settings.patience,
            settings,
            client,
            observer,
            registry: registry.to_owned(),
            base: OnceCell::new(),
            authorizations: Mutex::default(),
            negotiating: tokio::sync::Mutex::default(),
            vain: Mutex::default(),
        }
    }

    /// The address of something in a repository: `v2/NAME/REST`.
    pub(super) async fn address(&self, reference: &Reference, rest: &str) -> Result<Url, RegistryError> {
        let joined = self.base().await?.join(&format!("v2/{}/{rest}", reference.repository()));
        joined.map_err(|error| self.unanswered(rest, FetchError::connection(error, false)))
    }

    /// What the server at this address is asked with.
    pub(super) fn client(&self, url: &Url) -> Result<&reqwest::Client, FetchError> {
        self.pool()?.get(url)
    }

    /// Sends a request once ([`Client::send`](crate::http::Client::send)).
    pub(super) async fn send_once(&self, request: RequestBuilder) -> Result<Response, FetchError> {
        self.pool()?.send(request).await
    }

    fn pool(&self) -> Result<&Client, FetchError> {
        let unreadable = |reason: &String| FetchError::File(io::Error::other(reason.clone()));
        self.client.as_deref().map_err(unreadable)
    }

    /// Where an answer's `Location` leads to: it may be relative to where the answer came from.
    pub(super) fn follow(&self, response: &Response) -> Option<Url> {
        response.url().join(response.headers().get(header::LOCATION)?.to_str().ok()?).ok()
    }

    pub(super) fn unanswered(&self, what: &str, source: FetchError) -> RegistryError {
        RegistryError::Unanswered { registry: self.registry.clone(), what: what.to_owned(), source }
    }

    pub(super) fn refused(&self, what: &str, refusal: Refusal) -> RegistryError {
        let (registry, what) = (self.registry.clone(), what.to_owned());
        match refusal.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Denied { registry, what, logged_in: refusal.logged_in }
            }
            status => RegistryError::Refused { registry, what, status: status.as_u16(), reason: refusal.words },
        }
    }

    /// Asks until there is an answer: yes, or an error of the asker's. What is passing is waited for; a token that is no
    /// longer good is asked for anew, once.
    pub(super) async fn send(
        &self,
        question: Question<'_>,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Result<Response, Refusal>, RegistryError> {
        let &Question { reference, scope, what, .. } = &question;
        let (mut failures, mut is_fresh) = (0, false);
        let repository = reference.repository();
        loop {
            let error = match self.attempt(&question, &finish).await {
                Ok(Ok(response)) => return Ok(Ok(response)),
                Ok(Err(refusal)) if refusal.status == StatusCode::UNAUTHORIZED && !is_fresh => {
                    match &refusal.challenge {
                        Some(challenge) if challenge.scopes.iter().any(|wanted| !scope.covers(wanted, repository)) => {
                            is_fresh = true;
                            let asked_as = refusal.asked_as.as_ref();
                            self.widen_authorization(reference, scope, challenge, asked_as, what).await?;
                        }
                        _ => is_fresh = self.forget_authorization(reference, scope, &refusal),
                    }
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
        question: &Question<'_>,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Result<Response, Refusal>, RegistryError> {
        self.attempt_until(self.stalled(), question, finish).await
    }

    /// Comes to an end when whoever has not answered by then counts as one who does not answer.
    pub(super) async fn stalled(&self) {
        sleep(self.patience.stalled_after).await;
    }

    /// Asks once; who has not answered when `stalled` comes to an end counts as one who does not answer.
    pub(super) async fn attempt_until(
        &self,
        stalled: impl Future<Output = ()>,
        question: &Question<'_>,
        finish: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Result<Response, Refusal>, RegistryError> {
        let &Question { reference, scope, what, ref method, url } = question;
        let base = self.base().await?;
        let client = self.client(url).map_err(|error| self.unanswered(what, error))?;
        let mut request = client.request(method.clone(), url.clone());
        let mut asked_as = None;
        // An upload may go on at another host, which is shown nothing of this one's (CVE-2020-15157).
        if url.origin() == base.origin() {
            request = match asked_as.insert(self.authorization(reference, scope, what).await?) {
                Authorization::Nobody => request,
                Authorization::Basic { user, password } => request.basic_auth(user, Some(password)),
                Authorization::Bearer { token, .. } => request.bearer_auth(token),
            };
        }
        let answer = self.exchange(what, finish(request), stalled).await?;
        Ok(answer.map_err(|refusal| Refusal { logged_in: self.has_login(reference), asked_as, ..refusal }))
    }

    /// Sends a request once, and takes its answer, unless `stalled` comes to an end before.
    pub(super) async fn exchange(
        &self,
        what: &str,
        request: RequestBuilder,
        stalled: impl Future<Output = ()>,
    ) -> Result<Result<Response, Refusal>, RegistryError> {
        let after = self.patience.stalled_after;
        let sending = async {
            let sent = match select(pin!(self.send_once(request)), pin!(stalled)).await {
                Either::Left((sent, _)) => sent,
                Either::Right(_) => return Err(FetchError::Stalled { after }),
            };
            let response = sent?;
            let status = response.status();
            // What is not implemented will not be in a moment (RFC 9110, 15.6.2).
            let is_passing =
                matches!(status.as_u16(), 408 | 425 | 429 | 500..) && status != StatusCode::NOT_IMPLEMENTED;
            if !is_passing && !status.is_success() {
                return Ok(Err(Refusal::read(response, after).await));
            }
            answered(response).map(Ok)
        };
        self.until_cancelled(what, sending).await
    }

    fn has_login(&self, reference: &Reference) -> bool {
        self.settings.logins.has(&self.registry, reference.repository())
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

    /// All tags of a repository, page by page as the registry cuts them.
    pub(super) async fn tags(&self, reference: &Reference, scope: Scope) -> Result<Vec<String>, RegistryError> {
        const WHAT: &str = "its tags";
        let mut tags = BTreeSet::new();
        let mut page = Some(self.address(reference, "tags/list?n=1000").await?);
        while let Some(url) = page.take() {
            let as_it_is = |request| request;
            let question = Question { reference, scope, what: WHAT, method: Method::GET, url: &url };
            let response = match self.send(question, as_it_is).await? {
                Ok(response) => response,
                Err(refusal) if refusal.status == StatusCode::NOT_FOUND => break,
                Err(refusal) => return Err(self.refused(WHAT, refusal)),
            };
            let next = next_page(&url, &response);
            let bytes = self.body(WHAT, response, LONGEST_PAGE).await?;
            let listed: Tags = serde_json::from_slice(&bytes)
                .map_err(|error| self.unanswered(WHAT, FetchError::connection(error, false)))?;
            let known = tags.len();
            tags.extend(listed.tags.unwrap_or_default());
            // One that leads on and on to what is known already has an end here.
            page = next.filter(|_| tags.len() > known);
        }
        Ok(tags.into_iter().collect())
    }

    /// All of an answer's body, of at most `most` bytes; it comes as fast as a download must.
    pub(super) async fn body(&self, what: &str, mut response: Response, most: u64) -> Result<Vec<u8>, RegistryError> {
        let Patience { stalled_after: after, window, .. } = self.patience;
        let reading = async {
            let mut bytes = Vec::new();
            loop {
                let enough = bytes.len() + window;
                let filling = async {
                    while bytes.len() < enough {
                        let Some(piece) = response.chunk().await.map_err(from_reqwest)? else { return Ok(true) };
                        bytes.extend_from_slice(&piece);
                        if bytes.len() as u64 > most {
                            return Err(FetchError::TooLong { most });
                        }
                    }
                    Ok(false)
                };
                if timeout(after, filling).await.map_err(|_| FetchError::Stalled { after })?? {
                    return Ok(bytes);
                }
            }
        };
        self.until_cancelled(what, reading).await
    }

    pub(super) async fn base(&self) -> Result<&Url, RegistryError> {
        self.base.get_or_try_init(|| self.find_base()).await
    }

    /// A registry on this machine may speak plain http; any other one only if the user says so.
    async fn find_base(&self) -> Result<Url, RegistryError> {
        let address = |scheme: &str| {
            let address = Url::parse(&format!("{scheme}://{}/", self.registry));
            address.map_err(|error| self.unanswered("anything", FetchError::connection(error, false)))
        };
        let secure = address("https")?;
        let is_plain = self.settings.insecure.contains(&self.registry)
            || (is_loopback(&secure) && !self.speaks_tls(&secure).await?);
        if is_plain { address("http") } else { Ok(secure) }
    }

    /// Whether something at this address answers in TLS, with a certificate that is trusted or with one that is not.
    async fn speaks_tls(&self, address: &Url) -> Result<bool, RegistryError> {
        let client = self.client(address).map_err(|error| self.unanswered("anything", error))?;
        let asking = async { Ok(client.get(address.clone()).timeout(self.patience.stalled_after).send().await) };
        match self.until_cancelled("anything", asking).await? {
            Ok(_) => Ok(true),
            // One that is only not trusted speaks it; one that speaks plain http sends what is no message of TLS.
            Err(error) => Ok(tls_error(&error).is_some_and(|tls| !matches!(tls, rustls::Error::InvalidMessage(_)))),
        }
    }

    pub(super) fn authorizations(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, Scope), Authorization>> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a refusal, has the next request ask for a token anew; `false` where another request has had it asked for
    /// already since this one was made.
    pub(super) fn forget_authorization(&self, reference: &Reference, scope: Scope, refusal: &Refusal) -> bool {
        // Another host was shown nothing that could be better another time.
        let Some(asked_as) = &refusal.asked_as else { return true };
        let key = (reference.repository().to_owned(), scope);
        let mut authorizations = self.authorizations();
        let is_last = authorizations.get(&key).is_none_or(|last| last == asked_as);
        if is_last {
            authorizations.remove(&key);
        }
        is_last
    }
}

impl Refusal {
    async fn read(mut response: Response, patience: std::time::Duration) -> Self {
        let status = response.status();
        let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let challenge = challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?)).next();
        let elsewhere = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let elsewhere = elsewhere.and_then(|address| response.url().join(address).ok());
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
        Self { challenge, elsewhere, ..Self::parse(status, &text) }
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
        Self { status, codes, words, challenge: None, logged_in: false, asked_as: None, elsewhere: None }
    }

    pub(super) fn has_code(&self, code: &str) -> bool {
        self.codes.iter().any(|known| known == code)
    }
}

/// Where a list goes on: `Link: </v2/NAME/tags/list?last=TAG>; rel="next"` (RFC 8288), at the same server.
fn next_page(url: &Url, response: &Response) -> Option<Url> {
    let links = response.headers().get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    let next = links
        .flat_map(|value| value.split(','))
        .find(|link| link.contains("rel=\"next\"") || link.contains("rel=next"))?;
    let (_, target) = next.split_once('<')?;
    url.join(target.split_once('>')?.0).ok().filter(|next| next.origin() == url.origin())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;
    use crate::registry::Registries;

    #[test]
    fn another_host_is_asked_in_plain_http_only_where_the_user_says_so() {
        let base = |registry: &str, insecure: &[&str]| {
            let insecure = insecure.iter().map(|host| (*host).to_owned()).collect();
            let registries = Registries::new(Settings { insecure, ..Settings::default() }, &Silent);
            let repository = registries.repository(&format!("{registry}/app").parse().unwrap());
            repository.runtime().unwrap().block_on(repository.session.base()).unwrap().to_string()
        };
        assert_eq!(base("registry.example:5000", &[]), "https://registry.example:5000/");
        // Another port is another registry, and so is another name.
        let others = ["registry.example", "registry.example:5001", "example:5000", "10.0.0.1:5000"];
        assert_eq!(base("registry.example:5000", &others), "https://registry.example:5000/");
        assert_eq!(base("registry.example:5000", &["registry.example:5000"]), "http://registry.example:5000/");
        assert_eq!(base("10.0.0.1:5000", &[]), "https://10.0.0.1:5000/");
        assert_eq!(base("10.0.0.1:5000", &others), "http://10.0.0.1:5000/");
    }

    #[test]
    fn what_many_requests_were_refused_with_is_asked_for_anew_once() {
        let registries = Registries::new(Settings::default(), &Silent);
        let reference: Reference = "127.0.0.1:1/app".parse().unwrap();
        let session = registries.repository(&reference).session;
        let key = (reference.repository().to_owned(), Scope::Pull);
        let bearer = |token: &str| Authorization::Bearer { token: token.to_owned(), scopes: BTreeSet::new() };
        let refused = |asked_as| Refusal { asked_as, ..Refusal::parse(StatusCode::UNAUTHORIZED, b"") };
        let forget = |refusal: Refusal| session.forget_authorization(&reference, Scope::Pull, &refusal);
        session.authorizations().insert(key.clone(), bearer("old"));
        assert!(forget(refused(Some(bearer("old")))), "the first one has it asked for");
        assert!(session.authorizations().is_empty());
        session.authorizations().insert(key.clone(), bearer("new"));
        assert!(!forget(refused(Some(bearer("old")))), "the second one was refused before that");
        // An upload that went on at another host.
        assert!(forget(refused(None)), "there is nothing to be had for it");
        assert!(session.authorizations().get(&key) == Some(&bearer("new")));
    }
}
