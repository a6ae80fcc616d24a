//! Store paths out of binary caches: asked for, verified, and streamed as trees.
//!
//! A cache answers with a narinfo a path: what the path refers to, what its NAR hashes to, who signed that. The NAR is
//! walked while it arrives; nothing of it is believed before its hash was right, and nothing of it is kept but its
//! skeleton.

mod address;
mod cache;
mod caches;
mod codec;
mod credentials;
mod error;
mod handed;
mod memory;
mod nar;
mod narinfo;
mod netrc;
mod nix_conf;
mod reach;
mod settings;
mod signature;
mod transport;

pub use crate::http::FetchError;
pub use address::{CacheAddress, InvalidAddress};
pub use caches::Caches;
pub use codec::Codec;
pub use credentials::{AwsCredentials, Credentials, Login};
pub use error::SubstituteError;
pub use memory::{CacheMemory, NoCacheMemory};
pub use narinfo::{InvalidNarInfo, NarInfo};
pub use nix_conf::{InvalidNixConf, NixConf};
pub use reach::Reach;
pub use settings::Settings;
pub use signature::{Distrust, InvalidPublicKey, PublicKey};
