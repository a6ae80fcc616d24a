//! HTTP in spite of servers that fail: one client, certificates, attempts, bounded waits, downloads that go on.

mod client;
mod error;
mod fetch;
mod login;
mod objects;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::Stream;
use reqwest::{StatusCode, header};

pub(crate) use client::{Client, SharedClient, is_loopback};
pub use error::FetchError;
pub(crate) use error::{answered, from_object_store, from_reqwest, tls_error};
pub(crate) use fetch::{Download, Patience, small_file, until_cancelled};
pub(crate) use login::without_login;
pub(crate) use objects::{Bucket, BucketKeys, Objects, open_google_bucket};

/// The bytes of a file, or of its rest.
pub(crate) type Body = Pin<Box<dyn Stream<Item = Result<Bytes, FetchError>> + Send>>;
/// What a question is answered with, in time.
pub(crate) type Asked<'t> = Pin<Box<dyn Future<Output = Result<Answer, FetchError>> + Send + 't>>;

/// A file of a cache.
pub(crate) struct Answer {
    /// Where in the file the body begins: at the byte that was asked for, or at 0 with a server that knows no ranges.
    pub(crate) start: u64,
    pub(crate) body: Body,
}

impl Answer {
    /// The body of a response to a question for a file from its byte `from` on.
    pub(crate) fn of(response: reqwest::Response, from: u64) -> Self {
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => range.and_then(first_byte).unwrap_or(from),
            _ => 0,
        };
        let body = response.bytes_stream().map(|piece| piece.map_err(from_reqwest));
        Self { start, body: Box::pin(body) }
    }
}

/// The first byte of `bytes 100-199/200`.
fn first_byte(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Answers questions for files of one cache.
pub(crate) trait Transport: Send + Sync {
    /// The file called `name`, relative to the cache, from its byte `from` on.
    fn get<'t>(&'t self, name: &'t str, from: u64) -> Asked<'t>;
}
