//! Why a file could not be had over the network, and whether another attempt may end better.

use std::io;
use std::time::Duration;

use reqwest::{StatusCode, header};

/// A file of a cache could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The cache has no such file.
    #[error("there is no such file")]
    NotFound,
    /// The cache wants to know who asks, or does not want this one to.
    #[error("access is denied (status {status})")]
    Denied {
        /// The HTTP status.
        status: u16,
    },
    /// The server says that it cannot answer.
    #[error("the server answered with status {status}{}", left_alone(*retry_after))]
    Status {
        /// The HTTP status.
        status: u16,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// No bytes, or too few, came for too long.
    #[error("the server sends nothing, or next to nothing, for {} s", after.as_secs())]
    Stalled {
        /// How long was waited.
        after: Duration,
    },
    /// There are more bytes than there may be.
    #[error("it is longer than {most} bytes")]
    TooLong {
        /// How many there may be.
        most: u64,
    },
    /// The server could not be reached, or the connection broke.
    #[error("{}", innermost(&**error))]
    Connection {
        /// Why; its own words are this error's.
        error: Box<dyn std::error::Error + Send + Sync>,
        /// Whether another attempt may end better.
        is_passing: bool,
    },
    /// A file could not be read.
    #[error(transparent)]
    File(io::Error),
    /// The user ended the run.
    #[error(transparent)]
    Cancelled(crate::event::Cancelled),
}

impl FetchError {
    /// Whether another attempt may end better.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            Self::Stalled { .. } => true,
            Self::Connection { is_passing, .. } => *is_passing,
            Self::NotFound | Self::Denied { .. } | Self::TooLong { .. } | Self::File(_) | Self::Cancelled(_) => false,
        }
    }

    pub(crate) fn connection(error: impl std::error::Error + Send + Sync + 'static, is_passing: bool) -> Self {
        Self::Connection { error: Box::new(error), is_passing }
    }
}

/// What a server says of attempts to come.
fn left_alone(retry_after: Option<Duration>) -> String {
    let after = retry_after.map(|after| after.as_secs()).filter(|seconds| *seconds > 0);
    after.map_or_else(String::new, |seconds| format!(" and wants to be left alone for {seconds} s"))
}

/// HTTP libraries wrap what happened many times; who reads it wants to know what, not through how many hands it went.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

pub(crate) fn from_reqwest(error: reqwest::Error) -> FetchError {
    // What is wrong with a certificate, another attempt will not mend.
    let is_certificate = tls_error(&error).is_some();
    let is_passing = !is_certificate && !error.is_builder() && !error.is_redirect();
    // The address may hold a secret; who reports this names the cache.
    FetchError::connection(error.without_url(), is_passing)
}

/// What TLS found wrong, somewhere among an error's causes.
pub(crate) fn tls_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // The source of an I/O error is that of the error in it, which may be the one that is looked for.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The answer, unless its status is an error.
pub(crate) fn answered(response: reqwest::Response) -> Result<reqwest::Response, FetchError> {
    let status = response.status();
    match status {
        _ if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND | StatusCode::GONE => Err(FetchError::NotFound),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Err(FetchError::Denied { status: status.as_u16() })
        }
        _ => {
            let after = response.headers().get(header::RETRY_AFTER);
            let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            let retry_after = after.map(Duration::from_secs);
            Err(FetchError::Status { status: status.as_u16(), retry_after })
        }
    }
}

pub(crate) fn from_object_store(error: object_store::Error) -> FetchError {
    match error {
        object_store::Error::NotFound { .. } => FetchError::NotFound,
        object_store::Error::PermissionDenied { .. } => FetchError::Denied { status: 403 },
        object_store::Error::Unauthenticated { .. } => FetchError::Denied { status: 401 },
        // The library keeps the status of what it does not expect, a listing that is denied say, in words alone.
        other if other.to_string().contains("403 Forbidden") => FetchError::Denied { status: 403 },
        other => FetchError::connection(other, true),
    }
}
