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
        _ => Err(FetchError::Status { status: status.as_u16(), retry_after: retry_after(response.headers()) }),
    }
}

/// How long a server wants to be left alone: in seconds, or until a date (RFC 9110, 10.2.3). That is one by the server's
/// own clock, which the answer shows as well; where it does not, or the date is none, nothing was said.
fn retry_after(headers: &header::HeaderMap) -> Option<Duration> {
    let text = |name: header::HeaderName| Some(headers.get(name)?.to_str().ok()?.trim());
    let wanted = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = wanted.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(wanted).ok()?;
    let now = httpdate::parse_http_date(text(header::DATE)?).ok()?;
    // A time that is over is no wait.
    Some(until.duration_since(now).unwrap_or_default())
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    #[rstest]
    #[case::seconds(Some("7"), None, Some(7))]
    #[case::seconds_whatever_the_date(Some(" 7 "), Some(DATE), Some(7))]
    #[case::a_date(Some("Sun, 06 Nov 1994 08:50:07 GMT"), Some(DATE), Some(30))]
    #[case::tomorrow(Some("Mon, 07 Nov 1994 08:49:37 GMT"), Some(DATE), Some(86_400))]
    #[case::a_date_as_it_was_written_once(Some("Sunday, 06-Nov-94 08:50:07 GMT"), Some(DATE), Some(30))]
    #[case::a_date_of_the_language_c(Some("Sun Nov  6 08:50:07 1994"), Some(DATE), Some(30))]
    #[case::a_date_that_is_over(Some("Sun, 06 Nov 1994 08:49:07 GMT"), Some(DATE), Some(0))]
    #[case::a_date_by_no_clock(Some("Sun, 06 Nov 1994 08:50:07 GMT"), None, None)]
    #[case::a_clock_that_is_none(Some("Sun, 06 Nov 1994 08:50:07 GMT"), Some("now"), None)]
    #[case::no_date(Some("soon"), Some(DATE), None)]
    #[case::before_there_were_seconds(Some("-1"), Some(DATE), None)]
    #[case::more_than_a_number_holds(Some("99999999999999999999"), Some(DATE), None)]
    #[case::nothing(None, Some(DATE), None)]
    fn a_server_says_how_long_it_wants_to_be_left_alone(
        #[case] after: Option<&'static str>,
        #[case] date: Option<&'static str>,
        #[case] expected: Option<u64>,
    ) {
        let said = [(header::RETRY_AFTER, after), (header::DATE, date)];
        let said = said.into_iter().filter_map(|(name, value)| Some((name, header::HeaderValue::from_static(value?))));
        assert_eq!(retry_after(&said.collect()), expected.map(Duration::from_secs));
    }
}
