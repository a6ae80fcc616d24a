//! What requests say of who asks: nothing, a password, or a token for what the registry's challenge says that they need
//! (distribution, "Token Authentication Specification"). A mount reads in a second repository.

use std::collections::BTreeSet;
use std::io;

use reqwest::{StatusCode, header};
use serde::Deserialize;
use tokio::time::timeout;
use url::{Position, Url};

use super::credentials::Login;
use super::session::{Authorization, Scope, Session, Way};
use super::{Reference, RegistryError};
use crate::http::{FetchError, answered, from_reqwest, until_cancelled};

/// The longest answer of a token service's that is read, in bytes.
const LONGEST: usize = 1 << 20;

/// What a registry demands instead of answering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// Who gives tokens.
    realm: Url,
    service: Option<String>,
    /// `repository:NAME:ACTIONS` each.
    pub(super) scopes: BTreeSet<String>,
}

/// What a token service answers; older ones have the second name.
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
}

impl Session<'_> {
    /// Has the next request bring a token that is good for what the registry demands as well: a mount reads in another
    /// repository, and to delete is not to push. Where there is none, the next request fails as this one did.
    pub(super) async fn widen_authorization(
        &self,
        reference: &Reference,
        scope: Scope,
        challenge: &Challenge,
        what: &str,
    ) -> Result<(), RegistryError> {
        let _one_by_one = self.negotiating.lock().await;
        let key = (reference.repository().to_owned(), scope);
        let mut wanted = BTreeSet::from([scope.text(reference.repository())]);
        wanted.extend(challenge.scopes.iter().cloned());
        if let Some(Authorization::Bearer { scopes, .. }) = self.authorizations().get(&key) {
            wanted.extend(scopes.iter().cloned());
        }
        let way = self.way(reference).await?;
        match self.token(way, challenge, &wanted, what).await {
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
        way: &Way,
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
        let authorization = match &way.login {
            Some(Login::Bearer(token)) => Authorization::Bearer { token: token.clone(), scopes },
            login => match (self.challenge(way, what).await?, login) {
                (Some(challenge), _) => {
                    let token = self.token(way, &challenge, &scopes, what).await?;
                    Authorization::Bearer { token, scopes }
                }
                (None, Some(Login::Basic { user, password })) => {
                    Authorization::Basic { user: user.clone(), password: password.clone() }
                }
                (None, _) => Authorization::Nobody,
            },
        };
        self.authorizations().insert(key, authorization.clone());
        Ok(authorization)
    }

    /// What tokens the registry demands of everybody (distribution-spec, "Determining Support"). Asked once: whoever wants
    /// to be authorized waits and asks again as for anything else.
    async fn challenge(&self, way: &Way, what: &str) -> Result<Option<Challenge>, RegistryError> {
        let ping = way.base.join("v2/").map_err(|error| FetchError::connection(error, false));
        let request = ping.and_then(|ping| Ok(self.client()?.get(ping)));
        let answer = self.exchange(what, request.map_err(|error| self.unanswered(what, error))?).await?;
        Ok(answer.err().and_then(|refusal| refusal.challenge))
    }

    /// A token for all these scopes. What is passing is waited for.
    async fn token(
        &self,
        way: &Way,
        challenge: &Challenge,
        scopes: &BTreeSet<String>,
        what: &str,
    ) -> Result<String, RegistryError> {
        let service = challenge.realm[Position::BeforeHost..Position::AfterPort].to_owned();
        let registry = self.registry.clone();
        // A password that went to the registry in secret does not go to its token service in the open.
        if way.login.is_some() && way.base.scheme() == "https" && challenge.realm.scheme() != "https" {
            return Err(RegistryError::TokenInTheOpen { registry, service });
        }
        let mut failures = 0;
        let source = loop {
            let asking = self.ask_for_token(way, challenge, scopes);
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
        Err(match source {
            FetchError::Denied { .. } => RegistryError::Denied { registry, what, logged_in: way.login.is_some() },
            cancelled @ FetchError::Cancelled(_) => self.unanswered(&what, cancelled),
            source => RegistryError::NoToken { registry, what, service, source },
        })
    }

    async fn ask_for_token(
        &self,
        way: &Way,
        challenge: &Challenge,
        scopes: &BTreeSet<String>,
    ) -> Result<String, FetchError> {
        let mut url = challenge.realm.clone();
        let service = challenge.service.iter().map(|service| ("service", service.as_str()));
        url.query_pairs_mut().extend_pairs(service.chain(scopes.iter().map(|scope| ("scope", scope.as_str()))));
        let mut request = self.client()?.get(url).header(header::ACCEPT, "application/json");
        if let Some(Login::Basic { user, password }) = &way.login {
            request = request.basic_auth(user, Some(password));
        }
        let after = self.patience.stalled_after;
        let asking = async {
            let response = request.send().await.map_err(from_reqwest)?;
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
