//! Files in object stores: buckets of clouds, directories.

use std::sync::Arc;

use futures_util::StreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder};
use object_store::{GetOptions, GetRange, ObjectStore, RetryConfig};
use serde::{Deserialize, Serialize};

use super::{Answer, Asked, Client, SharedClient, Transport, from_object_store};

/// Files in a bucket, or in whatever else is an object store.
pub(crate) struct Objects(pub(crate) Arc<dyn ObjectStore>);

impl Transport for Objects {
    fn get<'t>(&'t self, name: &'t str, from: u64) -> Asked<'t> {
        Box::pin(async move {
            let key = object_store::path::Path::from(name);
            let range = (from > 0).then_some(GetRange::Offset(from));
            let options = GetOptions { range, ..GetOptions::default() };
            let found = self.0.get_opts(&key, options).await.map_err(from_object_store)?;
            let start = found.range.start;
            let body = found.into_stream().map(|piece| piece.map_err(from_object_store));
            Ok(Answer { start, body: Box::pin(body) })
        })
    }
}

/// A bucket with Amazon's protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) name: String,
    pub(crate) region: Option<String>,
    /// The server's address, where it is not Amazon's own.
    pub(crate) endpoint: Option<String>,
    /// Who of several users in a file of keys.
    pub(crate) profile: Option<String>,
}

/// What there is to show a bucket.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BucketKeys {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

/// Attempts and waits are counted in one place, ours.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..Default::default() }
}

impl Bucket {
    /// A bucket with what the parameters of its address say (Nix manual, "S3 Binary Cache Store").
    pub(crate) fn described<'p>(name: &str, parameter: impl Fn(&str) -> Option<&'p str>) -> Self {
        let scheme = parameter("scheme").unwrap_or("https");
        let endpoint = parameter("endpoint").map(|endpoint| match endpoint.contains("://") {
            true => endpoint.to_owned(),
            false => format!("{scheme}://{endpoint}"),
        });
        let own = |name| parameter(name).map(str::to_owned);
        Self { name: name.to_owned(), region: own("region"), endpoint, profile: own("profile") }
    }

    /// The bucket as an object store; nothing is asked yet.
    pub(crate) fn open(&self, keys: Option<BucketKeys>, client: &Arc<Client>) -> object_store::Result<Arc<AmazonS3>> {
        let mut builder = AmazonS3Builder::new()
            .with_http_connector(SharedClient(Arc::clone(client)))
            .with_bucket_name(&self.name)
            .with_region(self.region.as_deref().unwrap_or("us-east-1"))
            .with_retry(no_retries());
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
        }
        builder = match keys {
            Some(keys) => {
                builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
                match keys.token {
                    Some(token) => builder.with_token(token),
                    None => builder,
                }
            }
            None => builder.with_skip_signature(true),
        };
        Ok(Arc::new(builder.build()?))
    }
}

/// A bucket of Google's, with the keys in that file of application credentials, else with those of the machine. A server
/// that is not Google's is asked without any, unless there is that file.
pub(crate) fn open_google_bucket(
    name: &str,
    endpoint: Option<&str>,
    credentials: Option<&str>,
    client: &Arc<Client>,
) -> object_store::Result<Arc<GoogleCloudStorage>> {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_http_connector(SharedClient(Arc::clone(client)))
        .with_bucket_name(name)
        .with_retry(no_retries());
    if let Some(endpoint) = endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/')).with_skip_signature(credentials.is_none());
    }
    if let Some(file) = credentials {
        builder = builder.with_application_credentials(file);
    }
    Ok(Arc::new(builder.build()?))
}
