//! Which binary caches are asked, and whom to trust.

use super::address::CacheAddress;
use super::credentials::Credentials;
use super::signature::PublicKey;

/// Which binary caches are asked, in which order, and whose signatures count.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The caches; of two with the same priority the first is asked first.
    pub addresses: Vec<CacheAddress>,
    /// Whose signatures count.
    pub keys: Vec<PublicKey>,
    /// Whether paths must be signed at all (`require-sigs`).
    pub require_signatures: bool,
    /// Who asks.
    pub credentials: Credentials,
    /// Certificates to trust beside the system's, in PEM.
    pub certificates: Vec<u8>,
    /// How many questions may be under way at once (`http-connections`).
    pub connections: usize,
    /// How long an answer that a cache has a path is remembered, in seconds (`narinfo-cache-positive-ttl`).
    pub remember_found: u64,
    /// The same for the answer that it has not (`narinfo-cache-negative-ttl`).
    pub remember_absent: u64,
    /// Whether nothing is asked over the network.
    pub offline: bool,
}
