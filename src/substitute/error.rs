//! What can go wrong with a binary cache, and what mends it.

use std::sync::Arc;

use super::narinfo::InvalidNarInfo;
use super::signature::Distrust;
use crate::http::FetchError;
use crate::nix::{ContentHash, Far, NarError, StorePath};

/// A path could not be had from a binary cache, though none says that it does not have it.
#[derive(Debug, thiserror::Error)]
pub enum SubstituteError {
    /// A cache does not answer.
    #[error("the binary cache '{cache}' could not be asked for {what}")]
    Unanswered {
        /// The cache.
        cache: String,
        /// What it was asked for.
        what: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// A cache is about another store directory.
    #[error("the binary cache '{cache}' has paths of '{store}', not of '/nix/store'")]
    AnotherStore {
        /// The cache.
        cache: String,
        /// Its store directory.
        store: String,
    },
    /// A narinfo cannot be read.
    #[error("the binary cache '{cache}' gives a narinfo of '{path}' that cannot be used")]
    NarInfo {
        /// The cache.
        cache: String,
        /// The path.
        path: StorePath,
        /// What is wrong with it.
        #[source]
        source: InvalidNarInfo,
    },
    /// Nobody trusted vouches for a path.
    #[error("the binary cache '{cache}' has '{path}', but {source}")]
    Distrusted {
        /// The cache.
        cache: String,
        /// The path.
        path: StorePath,
        /// Why not.
        source: Distrust,
    },
    /// The NAR does not arrive whole.
    #[error("cannot fetch '{path}' from the binary cache '{cache}'")]
    Fetch {
        /// The cache.
        cache: String,
        /// The path.
        path: StorePath,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// What arrived is no NAR.
    #[error("what the binary cache '{cache}' sends as '{path}' cannot be used")]
    Malformed {
        /// The cache.
        cache: String,
        /// The path.
        path: StorePath,
        /// What is wrong with it.
        #[source]
        source: NarError,
    },
    /// The NAR is a right one, but of something else.
    #[error("what the binary cache '{cache}' sends as '{path}' is something else: its hash is {found}, not {expected}")]
    WrongHash {
        /// The cache.
        cache: String,
        /// The path.
        path: StorePath,
        /// What the narinfo says.
        expected: ContentHash,
        /// What arrived.
        found: ContentHash,
    },
    /// The NAR has another length than the narinfo says.
    #[error("what the binary cache '{cache}' sends as '{path}' has {found} bytes, not {expected}")]
    WrongSize {
        /// The cache.
        cache: String,
        /// The path.
        path: StorePath,
        /// What the narinfo says.
        expected: u64,
        /// What arrived; where it is more than expected, as far as it was read.
        found: u64,
    },
    /// Nothing is asked over the network, and what is remembered does not reach.
    #[error("'{path}' is not on this machine, and --offline keeps this run from asking a binary cache for it")]
    Offline {
        /// The path.
        path: StorePath,
    },
}

/// What mends a cache that is wrong.
const BLAME: &str = "tell whoever runs the cache; meanwhile another one: --substituter URL";

impl SubstituteError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unanswered { cache, source, .. } | Self::Fetch { cache, source, .. } => Some(match source {
                FetchError::Denied { .. } if cache.starts_with("s3://") => {
                    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws/credentials in the \
                     cache's address: ?profile=NAME"
                        .to_owned()
                }
                FetchError::Denied { .. } => format!(
                    "give a password in a netrc file (netrc-file in nix.conf, or NETRC), or a token: \
                     [substituters.tokens] with \"{cache}\" = \"FILE\" in config.toml"
                ),
                FetchError::NotFound | FetchError::TooLong { .. } => BLAME.to_owned(),
                _ => "see whether the network and the cache work, and run this again; another cache: --substituter URL"
                    .to_owned(),
            }),
            Self::AnotherStore { .. } => Some("leave it out: --substituter URL names the caches to ask".to_owned()),
            Self::Distrusted { source: Distrust::Unknown { .. }, .. } => Some(
                "if you trust it: --trusted-public-key NAME:KEY, or trusted-public-keys in nix.conf".to_owned(),
            ),
            Self::Distrusted { source: Distrust::Unsigned, .. } => Some(
                "sign it: nix store sign --recursive --key-file KEY; or, if the way to the cache is safe and all in it \
                 is trusted, add ?trusted=true to its address"
                    .to_owned(),
            ),
            Self::NarInfo { .. }
            | Self::Distrusted { .. }
            | Self::Malformed { .. }
            | Self::WrongHash { .. }
            | Self::WrongSize { .. } => Some(BLAME.to_owned()),
            Self::Offline { .. } => Some("run this again without --offline".to_owned()),
        }
    }
}

/// As a source's failure; of one that several paths share, each is told.
pub(super) fn far(error: impl Into<Arc<SubstituteError>>) -> Far {
    let failure = error.into();
    Far { hint: failure.hint(), failure }
}
