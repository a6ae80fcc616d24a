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
            Self::Unanswered { .. }
            | Self::NoToken { .. }
            | Self::Refused { .. }
            | Self::AnotherDigest { .. }
            | Self::Lost { .. } => None,
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

/// Whether a server has shown a certificate that is not trusted.
fn is_about_trust(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(tls_error(error), Some(rustls::Error::InvalidCertificate(_)))
}
