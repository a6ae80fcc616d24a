//! From an address to the depot there.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::local::LocalFileSystem;
use tokio::runtime::{Builder, Runtime};

use super::address::{Place, ShareAddress};
use super::depot::{Depot, DepotError};
use super::object_depot::{ObjectDepot, Stores, bucket};
use super::registry_depot::RegistryDepot;
use crate::event::Observer;
use crate::http::{Client, FetchError, Patience, open_google_bucket};
use crate::registry::{self, Reference, Registries, Repository};
use crate::substitute::AwsCredentials;

/// Connections to an object store that are kept.
const CONNECTIONS: usize = 16;

/// What a build waits for at most: an answer, soon, or none. A registry may stumble over two who do the same at once.
pub(super) fn quick() -> Patience {
    let soon = Duration::from_secs(2);
    Patience { attempts: 2, longest_wait: soon, stalled_after: soon, ..Patience::default() }
}

/// Who asks shared caches.
#[derive(Clone, Default)]
pub struct Keyring {
    /// Keys of buckets of Amazon's protocol.
    pub aws: AwsCredentials,
    /// A file with Google's application credentials.
    pub google: Option<String>,
    /// How registries are reached.
    pub registries: registry::Settings,
}

/// Opens depots: one runtime and one pool of connections for all.
pub(super) struct Opener<'a> {
    keyring: Keyring,
    observer: &'a dyn Observer,
    client: Arc<Client>,
    quick: Registries<'a>,
    steady: Registries<'a>,
    runtime: OnceLock<Arc<Runtime>>,
}

impl<'a> Opener<'a> {
    pub(super) fn new(keyring: Keyring, observer: &'a dyn Observer) -> Self {
        let hasty = registry::Settings { patience: quick(), ..keyring.registries.clone() };
        Self {
            client: Arc::new(Client::new(CONNECTIONS, keyring.registries.certificates.clone())),
            quick: Registries::new(hasty, observer),
            steady: Registries::new(keyring.registries.clone(), observer),
            keyring,
            observer,
            runtime: OnceLock::new(),
        }
    }

    /// A repository of a registry.
    pub(super) fn repository(&self, reference: &Reference) -> Repository<'a> {
        self.steady.repository(reference)
    }

    /// Nothing is asked yet; a directory is made where there is none.
    pub(super) fn open(&self, address: &ShareAddress) -> Result<Box<dyn Depot + 'a>, DepotError> {
        let failed = |source| DepotError::Objects { what: "anything".to_owned(), source };
        let unusable = |error: object_store::Error| failed(FetchError::connection(error, false));
        let (stores, prefix): (Stores, _) = match &address.place {
            Place::Registry(reference) => {
                let (quick, steady) = (self.quick.repository(reference), self.steady.repository(reference));
                return Ok(Box::new(RegistryDepot::new(quick, steady)));
            }
            Place::Directory(directory) => {
                std::fs::create_dir_all(directory).map_err(|error| failed(FetchError::File(error)))?;
                ((Arc::new(LocalFileSystem::new_with_prefix(directory).map_err(unusable)?), None), "")
            }
            Place::Bucket { bucket: described, prefix } => {
                let keys = self.keyring.aws.keys(described.profile.as_deref());
                (bucket(described.open(keys, &self.client).map_err(unusable)?), prefix.as_str())
            }
            Place::GoogleBucket { name, prefix, endpoint } => {
                let (google, endpoint) = (self.keyring.google.as_deref(), endpoint.as_deref());
                (bucket(open_google_bucket(name, endpoint, google, &self.client).map_err(unusable)?), prefix.as_str())
            }
        };
        let runtime = match self.runtime.get() {
            Some(runtime) => Arc::clone(runtime),
            None => {
                let made = Builder::new_multi_thread().worker_threads(2).enable_all().build();
                let made = Arc::new(made.map_err(|error| failed(FetchError::File(error)))?);
                Arc::clone(self.runtime.get_or_init(|| made))
            }
        };
        Ok(Box::new(ObjectDepot::new(stores, prefix, runtime, self.observer, (quick(), Patience::default()))))
    }
}
