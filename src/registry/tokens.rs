//! What requests say of who asks: nothing, a password, or a token for what the registry's challenge says that they need
//! (distribution, "Token Authentication Specification"). A mount reads in a second repository.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::ready;
use std::io;

use futures_util::stream;
use reqwest::{Body, Client, RequestBuilder, StatusCode, header};
use serde::Deserialize;
use tokio::time::timeout;
use url::{Position, Url, form_urlencoded};

use super::credentials::Login;
use super::session::{Authorization, Scope, Session};
use super::{Reference, RegistryError};
use crate::http::{FetchError, answered, from_reqwest, until_cancelled};

/// The longest answer of a token service's that is read, in bytes.
const LONGEST: usize = 1 << 20;

/// What token services know this tool by.
const CLIENT: &str = "layerhold";

/// What a registry demands instead of answering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Who gives tokens.
    realm: Url,
    service: Option<String>,
    /// `repository:NAME:ACTIONS` each.
    pub(super) scopes: BTreeSet<String>,
}

/// What a token service answers: the first name by the registries' specification, the second by OAuth 2.
#[derive(Deserialize)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
}

impl Challenge {
    /// Reads the value of a `WWW-Authenticate` header; `None` where it is about no token.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (scheme, mut rest) = value.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scopes) = (None, None, BTreeSet::new());
        while let Some((name, behind)) = rest.split_once('=') {
            // A scope has commas in it, so that it comes in quotes.
            let (text, behind) = match behind.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => behind.split_once(',').unwrap_or((behind, "")),
            };
            match name.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
                "realm" => realm = Url::parse(text).ok(),
                "service" => service = Some(text.to_owned()),
                "scope" => scopes.extend(text.split_whitespace().map(str::to_owned)),
                _ => {}
            }
            rest = behind;
        }
        Some(Self { realm: realm?, service, scopes })
    }

    fn service(&self) -> impl Iterator<Item = (&str, &str)> {
        self.service.iter().map(|service| ("service", service.as_str()))
    }

    /// The question for a token, of whoever asks with a password or without one.
    fn question(&self, client: &Client, scopes: &BTreeSet<String>) -> RequestBuilder {
        let mut url = self.realm.clone();
        let scopes = scopes.iter().map(|scope| ("scope", scope.as_str()));
        url.query_pairs_mut().extend_pairs(self.service().chain(scopes));
        client.get(url)
    }

    /// The same of whoever has an identity token (distribution, "OAuth2 Token Authentication").
    fn exchange(&self, client: &Client, identity: &str, scopes: &BTreeSet<String>) -> RequestBuilder {
        let scopes: Vec<_> = scopes.iter().map(String::as_str).collect();
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("grant_type", "refresh_token"), ("client_id", CLIENT)])
            .extend_pairs(self.service())
            .extend_pairs([("scope", scopes.join(" ").as_str()), ("refresh_token", identity)])
            .finish();
        let request = client.post(self.realm.clone()).header(header::CONTENT_LENGTH, form.len());
        // A body that can be sent but once: who is sent elsewhere, to anybody and perhaps in the open, does not go there.
        let once = Body::wrap_stream(stream::once(ready(Ok::<_, Infallible>(form))));
        request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(once)
    }
}

impl Session<'_> {
    /// Has the next request bring a token that is good for what the registry demands as well: a mount reads in another
    /// repository, and to delete is not to push. Where there is none, the next request fails as this one did.
    pub(super) async fn widen_authorization(
        &self,
        reference: &Reference,
        scope: Scope,
        challenge: &Challenge,
        asked_as: Option<&Authorization>,
        what: &str,
    ) -> Result<(), RegistryError> {
        let _one_by_one = self.negotiating.lock().await;
        let key = (reference.repository().to_owned(), scope);
        // Others who were refused for the same have had it widened meanwhile.
        if let Some(known @ Authorization::Bearer { scopes, .. }) = self.authorizations().get(&key)
            && asked_as != Some(known)
            && challenge.scopes.iter().all(|wanted| scopes.contains(wanted))
        {
            return Ok(());
        }
        let mut wanted = BTreeSet::from([scope.text(reference.repository())]);
        wanted.extend(challenge.scopes.iter().cloned());
        if let Some(Authorization::Bearer { scopes, .. }) = self.authorizations().get(&key) {
            wanted.extend(scopes.iter().cloned());
        }
        // Whoever writes asks, also where something is read that is another user's.
        let login = self.login(reference)?;
        match self.token(login.as_ref(), challenge, &wanted, what).await {
            Ok(token) => {
                self.authorizations().insert(key, Authorization::Bearer { token, scopes: wanted });
                Ok(())
            }
            Err(error) if error.is_passing() || error.is_interruption() => Err(error),
            Err(_) => Ok(()),
        }
    }

    /// What the next request is to say of who asks. What many requests need at once is negotiated once.
    pub(super) async fn authorization(
        &self,
        reference: &Reference,
        scope: Scope,
        what: &str,
    ) -> Result<Authorization, RegistryError> {
        let key = (reference.repository().to_owned(), scope);
        if let Some(known) = self.authorizations().get(&key) {
            return Ok(known.clone());
        }
        let _one_by_one = self.negotiating.lock().await;
        if let Some(known) = self.authorizations().get(&key) {
            return Ok(known.clone());
        }
        let scopes = BTreeSet::from([scope.text(reference.repository())]);
        let authorization = match self.login(reference)? {
            Some(Login::Bearer(token)) => Authorization::Bearer { token, scopes },
            login => self.negotiate(login, scopes, what).await?,
        };
        self.authorizations().insert(key, authorization.clone());
        Ok(authorization)
    }

    /// As the registry demands it of everybody (distribution-spec, "Determining Support"). That question is put once:
    /// whoever wants to be authorized waits and asks again as for anything else.
    async fn negotiate(
        &self,
        login: Option<Login>,
        scopes: BTreeSet<String>,
        what: &str,
    ) -> Result<Authorization, RegistryError> {
        let ping = self.base().await?.join("v2/").map_err(|error| FetchError::connection(error, false));
        let request = ping.and_then(|ping| Ok(self.client(&ping)?.get(ping)));
        let answer =
            self.exchange(what, request.map_err(|error| self.unanswered(what, error))?, self.stalled()).await?;
        let (is_refused, challenge) = match answer {
            Ok(_) => (false, None),
            Err(refusal) => (refusal.status == StatusCode::UNAUTHORIZED, refusal.challenge),
        };
        match (challenge, login) {
            (Some(challenge), login) => {
                let token = self.token(login.as_ref(), &challenge, &scopes, what).await?;
                Ok(Authorization::Bearer { token, scopes })
            }
            (None, Some(Login::Basic { user, password })) => Ok(Authorization::Basic { user, password }),
            // It demands a password.
            (None, Some(Login::Identity(_))) if is_refused => {
                Err(RegistryError::IdentityToken { registry: self.registry.clone() })
            }
            (None, _) => Ok(Authorization::Nobody),
        }
    }

    /// Who asks about a repository.
    fn login(&self, reference: &Reference) -> Result<Option<Login>, RegistryError> {
        let (logins, credentials) = (&self.settings.logins, &self.settings.credentials);
        Ok(logins.find(credentials, &self.registry, reference.repository(), self.observer)?)
    }

    /// A token for all these scopes. What is passing is waited for.
    async fn token(
        &self,
        login: Option<&Login>,
        challenge: &Challenge,
        scopes: &BTreeSet<String>,
        what: &str,
    ) -> Result<String, RegistryError> {
        let service = challenge.realm[Position::BeforeHost..Position::AfterPort].to_owned();
        let registry = self.registry.clone();
        // What went to the registry in secret does not go to its token service in the open.
        if login.is_some() && self.base().await?.scheme() == "https" && challenge.realm.scheme() != "https" {
            return Err(RegistryError::TokenInTheOpen { registry, service });
        }
        let mut failures = 0;
        let source = loop {
            let asking = self.ask_for_token(login, challenge, scopes);
            let error = match until_cancelled(self.observer, asking).await {
                Ok(token) => return Ok(token),
                Err(error) => error,
            };
            failures += 1;
            match self.patience.wait(&error, failures) {
                Some(wait) => self.pause(what, wait).await?,
                None => break error,
            }
        };
        let what = what.to_owned();
        Err(match (source, login) {
            // 404 and 405: it knows of no such tokens (distribution, "OAuth2 Token Authentication").
            (
                FetchError::Denied { .. } | FetchError::Status { status: 404 | 405 | 410, .. },
                Some(Login::Identity(_)),
            ) => RegistryError::IdentityToken { registry },
            (FetchError::Denied { .. }, login) => RegistryError::Denied { registry, what, logged_in: login.is_some() },
            (cancelled @ FetchError::Cancelled(_), _) => self.unanswered(&what, cancelled),
            (source, _) => RegistryError::NoToken { registry, what, service, source },
        })
    }

    async fn ask_for_token(
        &self,
        login: Option<&Login>,
        challenge: &Challenge,
        scopes: &BTreeSet<String>,
    ) -> Result<String, FetchError> {
        let client = self.client(&challenge.realm)?;
        let request = match login {
            // It is good for what it is good for.
            Some(Login::Bearer(_)) => return Err(FetchError::Denied { status: 401 }),
            Some(Login::Identity(token)) => challenge.exchange(client, token, scopes),
            Some(Login::Basic { user, password }) => {
                challenge.question(client, scopes).basic_auth(user, Some(password))
            }
            None => challenge.question(client, scopes),
        };
        let request = request.header(header::ACCEPT, "application/json");
        let after = self.patience.stalled_after;
        let asking = async {
            let response = self.send_once(request).await?;
            match response.status() {
                // Some say so of somebody whom they do not know.
                StatusCode::BAD_REQUEST => return Err(FetchError::Denied { status: 400 }),
                // It is no file that is not there.
                status @ (StatusCode::NOT_FOUND | StatusCode::GONE) => {
                    return Err(FetchError::Status { status: status.as_u16(), retry_after: None });
                }
                _ => {}
            }
            let mut response = answered(response)?;
            let mut text = Vec::new();
            while let Some(piece) = response.chunk().await.map_err(from_reqwest)? {
                text.extend_from_slice(&piece);
                if text.len() > LONGEST {
                    return Err(FetchError::TooLong { most: LONGEST as u64 });
                }
            }
            // The library's own words may have the token in them.
            let given: Option<Given> = serde_json::from_slice(&text).ok();
            let token = given.and_then(|given| given.token.or(given.access_token));
            token.ok_or_else(|| FetchError::connection(io::Error::other("its answer has no token in it"), false))
        };
        timeout(after, asking).await.map_err(|_| FetchError::Stalled { after })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_in_any_order_with_commas_in_quotes() {
        let value = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push repository:c:pull""#;
        let challenge = Challenge::parse(value).unwrap();
        assert_eq!(challenge.realm.as_str(), "https://auth.example/token");
        assert_eq!(challenge.service.as_deref(), Some("registry.example"));
        let scopes: Vec<_> = challenge.scopes.iter().map(String::as_str).collect();
        assert_eq!(scopes, ["repository:a/b:pull,push", "repository:c:pull"]);
        let value = r#"bearer error="insufficient_scope", service=registry, realm="http://127.0.0.1:5001/token""#;
        let challenge = Challenge::parse(value).unwrap();
        assert_eq!((challenge.service.as_deref(), challenge.scopes.len()), (Some("registry"), 0));
    }

    #[test]
    fn what_is_no_challenge_for_a_token_is_none() {
        for value in ["", "Basic realm=\"tests\"", "Bearer", "Bearer realm=\"nowhere\"", "Bearer realm=\"https://open"]
        {
            assert_eq!(Challenge::parse(value), None, "{value}");
        }
    }
}
