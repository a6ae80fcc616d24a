//! One binary cache: what it says of itself, its narinfos, its NARs.

use std::sync::{Arc, OnceLock};

use tokio::sync::OnceCell;

use super::address::{CacheAddress, Place};
use super::credentials::Credentials;
use super::error::SubstituteError;
use super::narinfo;
use super::transport::{Directory, Http};
use crate::http::{Client, FetchError, Objects, Patience, Transport, small_file};
use crate::nix::{STORE_DIR, StorePath};

/// The longest `nix-cache-info` that is read, in bytes.
const LONGEST_INFO: u64 = 64 * 1024;
/// Of a cache that says nothing of its priority (Nix manual, "Store types").
const DEFAULT_PRIORITY: u32 = 50;

/// One cache.
pub(super) struct Cache {
    pub(super) address: CacheAddress,
    pub(super) transport: Box<dyn Transport>,
    /// Why it did not answer: then it is not asked again in this run.
    failure: OnceLock<Arc<SubstituteError>>,
    info: OnceCell<Option<CacheInfo>>,
}

/// What a cache says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CacheInfo {
    pub(super) store: String,
    pub(super) priority: u32,
}

impl CacheInfo {
    /// Reads `nix-cache-info`.
    fn parse(text: &str) -> Self {
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.trim())
        };
        Self {
            store: field("StoreDir").unwrap_or(STORE_DIR).to_owned(),
            priority: field("Priority").and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_PRIORITY),
        }
    }
}

impl Cache {
    /// Asks nothing yet.
    pub(super) fn new(
        address: CacheAddress,
        client: &Arc<Client>,
        credentials: &Credentials,
    ) -> Result<Self, SubstituteError> {
        let unusable = |error: object_store::Error| SubstituteError::Unanswered {
            cache: address.to_string(),
            what: "anything".to_owned(),
            source: FetchError::Connection { error: Box::new(error), is_passing: false },
        };
        let transport: Box<dyn Transport> = match &address.place {
            Place::Http(base) => Box::new(Http::new(Arc::clone(client), base.clone(), credentials.login(base))),
            Place::File(directory) => Box::new(Directory(directory.clone())),
            Place::S3(bucket) => {
                let keys = credentials.aws.keys(bucket.profile.as_deref());
                Box::new(Objects(bucket.open(keys, client).map_err(unusable)?))
            }
        };
        Ok(Self { address, transport, failure: OnceLock::new(), info: OnceCell::new() })
    }

    /// The cache is not asked again in this run; says whether it was until now.
    pub(super) fn give_up(&self, error: &Arc<SubstituteError>) -> bool {
        self.failure.set(Arc::clone(error)).is_ok()
    }

    /// Why the cache is not asked any more.
    pub(super) fn failure(&self) -> Option<&Arc<SubstituteError>> {
        self.failure.get()
    }

    /// What the cache says of itself, asked for once.
    pub(super) async fn info(&self, patience: Patience) -> Result<Option<CacheInfo>, SubstituteError> {
        let ask = || async {
            match small_file(&*self.transport, "nix-cache-info", LONGEST_INFO, patience).await {
                Ok(bytes) => Ok(Some(CacheInfo::parse(&String::from_utf8_lossy(&bytes)))),
                Err(FetchError::NotFound) => Ok(None),
                Err(source) => Err(self.unanswered("its nix-cache-info", source)),
            }
        };
        let info = self.info.get_or_try_init(ask).await?;
        match info {
            Some(info) if info.store != STORE_DIR => {
                Err(SubstituteError::AnotherStore { cache: self.address.to_string(), store: info.store.clone() })
            }
            info => Ok(info.clone()),
        }
    }

    /// The bytes of a path's narinfo; `None` where the cache does not have the path. A bucket that may not be listed
    /// denies access to what it has not, and so may servers in front of one (nix: `HttpBinaryCacheStore`).
    pub(super) async fn narinfo(
        &self,
        path: &StorePath,
        patience: Patience,
    ) -> Result<Option<Vec<u8>>, SubstituteError> {
        let name = format!("{}.narinfo", path.hash_part());
        match small_file(&*self.transport, &name, narinfo::LONGEST, patience).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(FetchError::NotFound | FetchError::Denied { status: 403 }) => Ok(None),
            Err(source) => Err(self.unanswered(&format!("'{path}'"), source)),
        }
    }

    pub(super) fn unanswered(&self, what: &str, source: FetchError) -> SubstituteError {
        SubstituteError::Unanswered { cache: self.address.to_string(), what: what.to_owned(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_says_its_store_and_priority() {
        let info = CacheInfo::parse("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n");
        assert_eq!(info, CacheInfo { store: "/nix/store".to_owned(), priority: 40 });
        let nothing = CacheInfo { store: "/nix/store".to_owned(), priority: 50 };
        assert_eq!(CacheInfo::parse("Priority: high\n"), nothing);
        assert_eq!(CacheInfo::parse("StoreDir: /gnu/store").store, "/gnu/store");
    }
}
