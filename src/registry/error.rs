//! What can go wrong with a registry, and what mends it.

use crate::blob::Digest;
use crate::http::{FetchError, tls_error};

use super::credentials::CredentialsError;

/// A registry did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It does not answer, or its answer broke off.
    #[error("the registry '{registry}' could not be asked for {what}")]
    Unanswered {
        /// Its host.
        registry: String,
        /// What it was asked for.
        what: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The service that gives tokens for it does not answer, or not with a token.
    #[error(
        "the registry '{registry}' could not be asked for {what}: no token came from its token service '{service}'"
    )]
    NoToken {
        /// Its host.
        registry: String,
        /// What it was to be asked for.
        what: String,
        /// The host of the service.
        service: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The service that gives tokens for it would be shown a login in plain http.
    #[error("the registry '{registry}' wants the login to go to '{service}' in plain http, where anybody can read it")]
    TokenInTheOpen {
        /// Its host.
        registry: String,
        /// The host of the service.
        service: String,
    },
    /// It, or the service that gives tokens for it, takes no identity token, or no longer this one.
    #[error("the registry '{registry}' does not take the identity token that a login has left")]
    IdentityToken {
        /// Its host.
        registry: String,
    },
    /// It does not let this user do that.
    #[error("the registry '{registry}' does not allow {what} to {}", if *.logged_in { "this user" } else { "somebody who has not logged in" })]
    Denied {
        /// Its host.
        registry: String,
        /// What it was asked for.
        what: String,
        /// Whether there was something to log in with.
        logged_in: bool,
    },
    /// It says no, for a reason of its own.
    #[error("the registry '{registry}' refuses {what}: {reason} (status {status})")]
    Refused {
        /// Its host.
        registry: String,
        /// What it was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// Its own words.
        reason: String,
    },
    /// It says that it has got something else than what was sent.
    #[error("the registry '{registry}' says that {what} is {found}, and it is {expected}")]
    AnotherDigest {
        /// Its host.
        registry: String,
        /// What was sent.
        what: String,
        /// Its digest.
        expected: Digest,
        /// What the registry calls it.
        found: String,
    },
    /// It lost what it had been sent, again and again.
    #[error("the registry '{registry}' lost {what} before it was whole, {attempts} times")]
    Lost {
        /// Its host.
        registry: String,
        /// What was sent.
        what: String,
        /// How often it was sent.
        attempts: u32,
    },
    /// It says that it lacks what it took a moment before.
    #[error("the registry '{registry}' refuses {what}: it lacks blobs again that it has just been sent")]
    Forgetful {
        /// Its host.
        registry: String,
        /// What was sent last.
        what: String,
    },
    /// Who asks cannot be told.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl RegistryError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unanswered { source: FetchError::Connection { error, .. }, .. }
            | Self::NoToken { source: FetchError::Connection { error, .. }, .. }
                if is_about_trust(&**error) =>
            {
                Some("if it is by an authority of your own: --registry-ca FILE with that one's certificate".to_owned())
            }
            Self::Unanswered { registry, source: FetchError::Connection { .. }, .. } => Some(format!(
                "see whether its name is right; one that speaks plain http: --insecure-registry {registry}"
            )),
            Self::Denied { registry, logged_in: false, .. } => {
                Some(format!("log in: docker login {registry}, or podman login {registry}"))
            }
            Self::Denied { registry, logged_in: true, .. } => Some(format!(
                "see whether this user may do that, and whether the password is still good: docker login {registry}, or \
                 podman login {registry}"
            )),
            Self::IdentityToken { registry } => {
                Some(format!("log in anew: docker login {registry}, or podman login {registry}"))
            }
            Self::Credentials(error) => error.hint(),
            Self::Forgetful { .. } => {
                Some("see whether its garbage is being collected: a registry takes nothing meanwhile".to_owned())
            }
            Self::TokenInTheOpen { registry, .. } => Some(format!(
                "have the registry's keeper give its token service TLS; to ask without a login: docker logout {registry}, or \
                 podman logout {registry}"
            )),
            Self::Unanswered { registry, source, .. } => of_silence(registry, source),
            Self::NoToken { service, source: FetchError::Connection { .. }, .. } => Some(format!(
                "see whether '{service}' can be reached from here, and through which proxy (HTTPS_PROXY), then run this \
                 again"
            )),
            Self::NoToken { service, source: FetchError::Status { .. } | FetchError::NotFound, .. }
                if !self.is_passing() =>
            {
                Some(format!(
                    "see whether '{service}' is the right token service, and whether a proxy (HTTPS_PROXY) answers in its \
                     place"
                ))
            }
            Self::NoToken { registry, source, .. } => of_silence(registry, source),
            Self::Refused { registry, status, .. } => Some(of_refusal(registry, *status)),
            Self::AnotherDigest { .. } => Some(
                "see whether something on the way changes what is sent, a proxy for instance (HTTPS_PROXY), and run this \
                 again"
                    .to_owned(),
            ),
            Self::Lost { .. } => Some(
                "see whether it has room, and whether all of its replicas keep their uploads in one place; then run this \
                 again: layers that it has are not sent again"
                    .to_owned(),
            ),
        }
    }

    /// Whether the same may be done another time.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Unanswered { source, .. } | Self::NoToken { source, .. } if source.is_passing())
    }

    /// Whether the user ended the run.
    pub fn is_interruption(&self) -> bool {
        matches!(self, Self::Unanswered { source: FetchError::Cancelled(_), .. })
    }
}

/// What has arrived stays: a run that failed has done a part of the next one's work.
const AGAIN: &str = "run this again in a while: layers that it has are not sent again";

/// What mends a registry, or its token service, that gave no answer, or none that can be used.
fn of_silence(registry: &str, source: &FetchError) -> Option<String> {
    match source {
        FetchError::Denied { .. } => Some(format!("log in: docker login {registry}, or podman login {registry}")),
        FetchError::NotFound => Some(no_registry(registry)),
        FetchError::Status { .. } if source.is_passing() => Some(AGAIN.to_owned()),
        FetchError::Stalled { .. } => Some(AGAIN.to_owned()),
        FetchError::Status { .. } | FetchError::TooLong { .. } | FetchError::Connection { .. } => {
            Some(no_registry(registry))
        }
        // A file of this machine's, which the error names; and who ended the run knows why.
        FetchError::File(_) | FetchError::Cancelled(_) => None,
    }
}

fn no_registry(registry: &str) -> String {
    format!(
        "see whether that is a registry's address, and whether a proxy (HTTPS_PROXY) answers in its place: \
         curl -i https://{registry}/v2/"
    )
}

/// What mends a refusal for the registry's own reason.
fn of_refusal(registry: &str, status: u16) -> String {
    match status {
        // It refuses nothing, and what it says is no registry's answer.
        ..=399 => no_registry(registry),
        401 | 403 => format!("see whether this user may do that: docker login {registry}, or podman login {registry}"),
        404 | 405 => {
            "see whether the repository's name is right, and whether it has to be made there before".to_owned()
        }
        413 => {
            "have it, or the proxy before it, take larger bodies; or make smaller layers: --max-layers 127".to_owned()
        }
        408 | 425 | 429 | 500.. => AGAIN.to_owned(),
        _ => "its words say what it does not take; one that does not know zstd: --compression gzip".to_owned(),
    }
}

/// Whether a server has shown a certificate that is not trusted.
fn is_about_trust(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Cancelled;

    const HOST: &str = "registry.example";

    fn unanswered(source: FetchError) -> RegistryError {
        RegistryError::Unanswered { registry: HOST.to_owned(), what: "a blob".to_owned(), source }
    }

    fn no_token(source: FetchError) -> RegistryError {
        let (registry, what, service) = (HOST.to_owned(), "a blob".to_owned(), "auth.example".to_owned());
        RegistryError::NoToken { registry, what, service, source }
    }

    fn hint(error: RegistryError) -> String {
        error.hint().unwrap_or_default()
    }

    #[test]
    fn who_gives_no_answer_has_a_hint_that_fits() {
        let after = std::time::Duration::from_secs(30);
        for error in [unanswered, no_token] {
            assert_eq!(hint(error(FetchError::Stalled { after })), AGAIN);
            assert_eq!(hint(error(FetchError::Status { status: 503, retry_after: None })), AGAIN);
            assert!(hint(error(FetchError::Denied { status: 401 })).contains("docker login registry.example"));
            assert!(hint(error(FetchError::NotFound)).contains("HTTPS_PROXY"));
            assert!(hint(error(FetchError::Status { status: 418, retry_after: None })).contains("HTTPS_PROXY"));
            assert_eq!(error(FetchError::Cancelled(Cancelled)).hint(), None);
        }
        let refused = || FetchError::connection(std::io::Error::from(std::io::ErrorKind::ConnectionRefused), true);
        assert!(hint(no_token(refused())).contains("'auth.example'"));
        assert!(hint(no_token(FetchError::NotFound)).contains("'auth.example'"));
        assert!(hint(unanswered(FetchError::NotFound)).contains("https://registry.example/v2/"));
        assert!(hint(unanswered(refused())).contains("--insecure-registry registry.example"));
    }

    #[test]
    fn who_refuses_or_loses_has_a_hint_that_fits() {
        let refused = |status| {
            let (registry, what, reason) = (HOST.to_owned(), "the manifest 'v1'".to_owned(), "no".to_owned());
            hint(RegistryError::Refused { registry, what, status, reason })
        };
        assert!(refused(403).contains("docker login registry.example"));
        assert!(refused(404).contains("name"));
        assert!(refused(400).contains("--compression gzip"));
        assert!(refused(200).contains("HTTPS_PROXY") && refused(302).contains("HTTPS_PROXY"));
        assert_eq!((refused(429), refused(503)), (AGAIN.to_owned(), AGAIN.to_owned()));
        let lost = RegistryError::Lost { registry: HOST.to_owned(), what: "a blob".to_owned(), attempts: 3 };
        assert!(hint(lost).contains("run this again"));
        let (expected, found) = (Digest::of(b"a"), "sha256:0".to_owned());
        let another = RegistryError::AnotherDigest { registry: HOST.to_owned(), what: "a".to_owned(), expected, found };
        assert!(hint(another).contains("HTTPS_PROXY"));
    }
}
