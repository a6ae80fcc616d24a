//! Tokens for more than one repository: what a registry's challenge says that a request needs (distribution, "Token
//! Authentication Specification"). The library asks for one repository's alone, and a mount reads in another.

use std::collections::BTreeSet;
use std::io;

use reqwest::{StatusCode, header};
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;

use super::credentials::Login;
use super::session::{Authorization, Scope, Session, Way};
use super::{Reference, RegistryError};
use crate::http::{FetchError, answered, from_reqwest};

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
        if let Some(token) = self.token(way, challenge, &wanted, what).await? {
            self.authorizations().insert(key, Authorization::Bearer { token, scopes: wanted });
        }
        Ok(())
    }

    /// A token for all these scopes; `None` where the service gives none.
    async fn token(
        &self,
        way: &Way,
        challenge: &Challenge,
        scopes: &BTreeSet<String>,
        what: &str,
    ) -> Result<Option<String>, RegistryError> {
        // A password that went to the registry in secret does not go to its token service in the open.
        if way.base.scheme() == "https" && challenge.realm.scheme() != "https" {
            return Ok(None);
        }
        let mut url = challenge.realm.clone();
        let service = challenge.service.iter().map(|service| ("service", service.as_str()));
        url.query_pairs_mut().extend_pairs(service.chain(scopes.iter().map(|scope| ("scope", scope.as_str()))));
        let mut failures = 0;
        loop {
            let error = match self.until_cancelled(what, self.ask_for_token(way, &url)).await {
                Ok(token) => return Ok(Some(token)),
                Err(RegistryError::Unanswered { source, .. }) => source,
                Err(error) => return Err(error),
            };
            failures += 1;
            match self.patience.wait(&error, failures) {
                Some(wait) => self.pause(what, wait).await?,
                None if matches!(error, FetchError::Denied { .. } | FetchError::NotFound) => return Ok(None),
                None => return Err(self.unanswered(what, error)),
            }
        }
    }

    async fn ask_for_token(&self, way: &Way, url: &Url) -> Result<String, FetchError> {
        let mut request = self.client()?.get(url.clone()).header(header::ACCEPT, "application/json");
        if let Some(Login::Basic { user, password }) = &way.login {
            request = request.basic_auth(user, Some(password));
        }
        let after = self.patience.stalled_after;
        let asking = async {
            let response = request.send().await.map_err(from_reqwest)?;
            // Some say so of somebody whom they do not know.
            if response.status() == StatusCode::BAD_REQUEST {
                return Err(FetchError::Denied { status: 400 });
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
            token.ok_or_else(|| FetchError::connection(io::Error::other("the token service gives no token"), false))
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
