//! Tokens for a registry, given and demanded as Docker's do: bound to repositories and actions, and soon used up.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::registry_messages::basic;
use crate::registry_server::LOGIN;

/// A user: name, password, and what the names of repositories begin with that are this user's.
pub(crate) type User = (&'static str, &'static str, &'static str);

/// What [`Tokens::for_identity`] takes instead of a password.
pub(crate) const IDENTITY: &str = "identity-4711";

/// Who gets tokens.
#[derive(Default)]
enum Who {
    #[default]
    Everybody,
    Users(&'static [User]),
    /// Whoever shows [`IDENTITY`].
    Identity,
}

/// Who gets tokens, and how long they last.
#[derive(Default)]
pub(crate) struct Tokens {
    who: Who,
    /// Whether who asks for too much gets nothing at all.
    strict: bool,
    /// How many requests a token is good for; any number when absent.
    uses: Option<u32>,
    /// Whether who may only read in a repository that is not there is refused as somebody who may not.
    hides: bool,
    /// A repository that nobody is given a right to.
    closed: Option<&'static str>,
    /// Where tokens are asked for, where that is not the registry itself: a port on this machine.
    elsewhere: Option<u16>,
    given: Mutex<BTreeMap<String, Given>>,
}

struct Given {
    /// `repository:NAME:ACTION`, one action each.
    scopes: Vec<String>,
    uses: u32,
}

impl Tokens {
    /// For everybody.
    pub(crate) fn for_all() -> Self {
        Self::default()
    }

    /// For [`LOGIN`].
    pub(crate) fn for_login() -> Self {
        Self::for_users(&[(LOGIN.0, LOGIN.1, "")])
    }

    /// For users who each have repositories of their own.
    pub(crate) fn for_users(users: &'static [User]) -> Self {
        Self { who: Who::Users(users), ..Self::default() }
    }

    /// For whoever comes with [`IDENTITY`] (distribution, "OAuth2 Token Authentication").
    pub(crate) fn for_identity() -> Self {
        Self { who: Who::Identity, ..Self::default() }
    }

    /// Whoever asks for something that is another user's gets no token for the rest either.
    pub(crate) fn strictly(self) -> Self {
        Self { strict: true, ..self }
    }

    /// Each is refused after so many requests.
    pub(crate) fn good_for(self, uses: u32) -> Self {
        Self { uses: Some(uses), ..self }
    }

    /// None is good for this repository; what else was asked for is given all the same, as Docker's service does.
    pub(crate) fn but_for(self, repository: &'static str) -> Self {
        Self { closed: Some(repository), ..self }
    }

    /// Whoever may only read is not told that a repository is not there.
    pub(crate) fn hiding(self) -> Self {
        Self { hides: true, ..self }
    }

    /// They are to be asked for at another port on this machine.
    pub(crate) fn at(self, port: u16) -> Self {
        Self { elsewhere: Some(port), ..self }
    }

    /// Where they are asked for, of a registry at this port.
    pub(crate) fn realm(&self, port: u16) -> String {
        format!("http://127.0.0.1:{}/token", self.elsewhere.unwrap_or(port))
    }

    /// Answers a question for a token: status and body.
    pub(crate) fn give(&self, path: &str, authorization: Option<&str>) -> (u16, String) {
        let owned = match self.who {
            Who::Everybody => Some(""),
            Who::Users(users) => {
                let user = users.iter().find(|(name, password, _)| authorization == Some(&basic(name, password)));
                user.map(|(_, _, prefix)| *prefix)
            }
            Who::Identity => None,
        };
        let Some(owned) = owned else {
            return (401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}"#.to_owned());
        };
        let address = url::Url::parse(&format!("http://tests{path}")).unwrap();
        let scopes: Vec<_> = address.query_pairs().filter(|(name, _)| name == "scope").collect();
        match self.token(scopes.iter().flat_map(|(_, scope)| scope.split(' ')), owned) {
            Some(token) => (200, format!(r#"{{"token":"{token}","expires_in":300}}"#)),
            None => (403, r#"{"errors":[{"code":"DENIED","message":"that is not yours"}]}"#.to_owned()),
        }
    }

    /// Answers the same question in the form of OAuth 2.
    pub(crate) fn exchange(&self, form: &[u8]) -> (u16, String) {
        let form: BTreeMap<_, _> = url::form_urlencoded::parse(form).into_owned().collect();
        let get = |name: &str| form.get(name).map_or("", String::as_str);
        let is_right = (get("grant_type"), get("service"), get("refresh_token"))
            == ("refresh_token", "tests", IDENTITY)
            && !get("client_id").is_empty();
        if !matches!(self.who, Who::Identity) || !is_right {
            return (400, r#"{"error":"invalid_grant"}"#.to_owned());
        }
        let token = self.token(get("scope").split(' '), "").unwrap();
        (200, format!(r#"{{"access_token":"{token}","expires_in":300,"scope":"{}"}}"#, get("scope")))
    }

    /// A token for those of the scopes that are somebody's.
    fn token<'s>(&self, asked: impl Iterator<Item = &'s str>, owned: &str) -> Option<String> {
        let mut scopes = Vec::new();
        for scope in asked {
            let (resource, actions) = scope.rsplit_once(':').unwrap();
            let repository = resource.strip_prefix("repository:").unwrap();
            if Some(repository) == self.closed || !repository.starts_with(owned) {
                if self.strict {
                    return None;
                }
                continue;
            }
            scopes.extend(actions.split(',').map(|action| format!("{resource}:{action}")));
        }
        let mut given = self.given.lock().unwrap();
        let token = format!("token-{}", given.len());
        given.insert(token.clone(), Given { scopes, uses: self.uses.unwrap_or(u32::MAX) });
        Some(token)
    }

    /// Whether a request comes with a token that is good for it; if not, the parameter of the challenge that says what
    /// would be, with a comma before it. `is_there` tells of a repository, `NAME`.
    pub(crate) fn check(
        &self,
        method: &str,
        path: &str,
        authorization: Option<&str>,
        is_there: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        let needed = needed(method, path);
        let resource = |(resource, _): &(String, _)| resource.strip_prefix("repository:").map(str::to_owned);
        let hidden = needed.first().and_then(resource).filter(|name| self.hides && !is_there(name));
        let mut given = self.given.lock().unwrap();
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let token = token.and_then(|token| given.get_mut(token)).filter(|token| token.uses > 0);
        if let Some(token) = token
            && needed.iter().all(|(resource, actions)| {
                actions.iter().all(|action| token.scopes.contains(&format!("{resource}:{action}")))
            })
            && hidden.is_none_or(|name| token.scopes.contains(&format!("repository:{name}:push")))
        {
            token.uses -= 1;
            return Ok(());
        }
        let scopes: Vec<_> =
            needed.iter().map(|(resource, actions)| format!("{resource}:{}", actions.join(","))).collect();
        Err(if scopes.is_empty() { String::new() } else { format!(",scope=\"{}\"", scopes.join(" ")) })
    }
}

/// What a request needs: repositories with actions. A mount reads in another repository.
fn needed(method: &str, path: &str) -> Vec<(String, Vec<&'static str>)> {
    let address = url::Url::parse(&format!("http://tests{path}")).unwrap();
    let behind = address.path().strip_prefix("/v2/").unwrap_or_default();
    let ends = ["/manifests/", "/blobs/", "/tags/"];
    let Some(end) = ends.iter().find_map(|end| behind.find(end)) else { return Vec::new() };
    let actions = match method {
        "GET" | "HEAD" => vec!["pull"],
        "DELETE" => vec!["delete"],
        _ => vec!["pull", "push"],
    };
    let from = address.query_pairs().find(|(name, _)| name == "from");
    let from = from.map(|(_, from)| (format!("repository:{from}"), vec!["pull"]));
    std::iter::once((format!("repository:{}", &behind[..end]), actions)).chain(from).collect()
}

#[test]
fn a_token_is_good_for_what_was_asked_for_and_so_often() {
    let tokens = Tokens::for_login().good_for(1);
    let put = ("PUT", "/v2/team/web/manifests/v1");
    let Err(scope) = tokens.check(put.0, put.1, None, |_| true) else { panic!("it needs none") };
    assert_eq!(scope, ",scope=\"repository:team/web:pull,push\"");
    assert_eq!(tokens.give("/token?scope=repository:team/web:pull,push", None).0, 401);
    let (status, body) = tokens.give("/token?scope=repository:team/web:pull,push", Some(&basic(LOGIN.0, LOGIN.1)));
    assert_eq!((status, body.as_str()), (200, r#"{"token":"token-0","expires_in":300}"#));
    let token = Some("Bearer token-0");
    assert!(tokens.check("PUT", "/v2/other/manifests/v1", token, |_| true).is_err());
    let mount = "/v2/team/web/blobs/uploads/?mount=sha256:0&from=base";
    let Err(scope) = tokens.check("POST", mount, token, |_| true) else { panic!("the other repository is anybody's") };
    assert_eq!(scope, ",scope=\"repository:team/web:pull,push repository:base:pull\"");
    tokens.check(put.0, put.1, token, |_| true).unwrap();
    assert!(tokens.check(put.0, put.1, token, |_| true).is_err(), "it is used up");
}

#[test]
fn who_may_only_read_is_not_told_what_is_not_there() {
    let tokens = Tokens::for_all().hiding();
    for (number, actions) in ["pull", "pull,push"].into_iter().enumerate() {
        tokens.give(&format!("/token?scope=repository:team/web:{actions}"), None);
        let token = format!("Bearer token-{number}");
        let check = |is_there| tokens.check("HEAD", "/v2/team/web/manifests/v1", Some(&token), |_| is_there);
        assert_eq!((check(true).is_ok(), check(false).is_ok()), (true, actions == "pull,push"));
    }
}
