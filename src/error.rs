//! Every way in which the whole way through can fail, one stage each.

use crate::delivery::{DeliveryError, Target, TargetError};
use crate::environment::{FindError, InstallError, RealiseError, ServicesError, System};
use crate::image::{ImageError, NameError};
use crate::layers::{LayersError, hint_of_cause};
use crate::nix::{ClosureError, SourceError, StorePath};
use crate::store::StoreError;
use crate::substitute::SubstituteError;

/// A run that failed, as the stage that failed says it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The environment was not found or cannot be read.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Its packages are not what its files promise.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// Its services cannot be started.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// The image cannot have the environment's name or the tag.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The target cannot be had.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The Nix store cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The binary caches cannot be asked.
    #[error(transparent)]
    Substitute(#[from] SubstituteError),
    /// Something that the environment needs is not in the Nix store.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The environment cannot be put together.
    #[error(transparent)]
    Realise(#[from] RealiseError),
    /// The image for one of several platforms, or for another than this machine's, cannot be made.
    #[error("no image for {}: {error}", system.platform())]
    Platform {
        /// The kind of machine that the image would be for.
        system: System,
        /// Whether this machine is one.
        here: bool,
        /// Why.
        #[source]
        error: Box<Error>,
    },
    /// A layer cannot be had.
    #[error(transparent)]
    Layers(#[from] LayersError),
    /// The image cannot be described.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image did not reach its target.
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    /// The image did not reach one of its targets.
    #[error("{error}; it is written to {}", all_of(.written))]
    NotEverywhere {
        /// Those that it did reach.
        written: Vec<Target>,
        /// Why the next one has it not.
        #[source]
        error: DeliveryError,
    },
    /// An image that was made before cannot be had again.
    #[error(transparent)]
    Again(#[from] AgainError),
    /// The layer store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn all_of(targets: &[Target]) -> String {
    targets.iter().map(Target::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// What mends it: a command to run, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Find(error) => error.hint(),
            Self::Install(error) => error.hint(),
            Self::Services(error) => Some(error.hint()),
            Self::Name(error) => error.hint(),
            Self::Target(error) => error.hint(),
            Self::Source(error) => error.hint(),
            Self::Substitute(error) => error.hint(),
            Self::Closure(error) => error.hint(),
            Self::Realise(error) => error.hint(),
            Self::Platform { error, system, here } => match &**error {
                Self::Closure(error) if !here => error.hint_elsewhere(system.as_str()),
                error => error.hint(),
            },
            Self::Layers(error) => error.hint(),
            Self::Image(_) => None,
            Self::Delivery(DeliveryError::Layer { source, .. })
            | Self::NotEverywhere { error: DeliveryError::Layer { source, .. }, .. } => hint_of_cause(&**source),
            Self::Delivery(error) | Self::NotEverywhere { error, .. } => error.hint(),
            Self::Again(error) => Some(error.hint()),
            Self::Store(error) => error.hint(),
        }
    }
}

/// An image that was made before, and cannot be had again.
#[derive(Debug, thiserror::Error)]
pub enum AgainError {
    /// No image has that name.
    #[error("the layer cache knows no image '{0}'")]
    Unknown(String),
    /// It was made by a version that did not keep what it takes.
    #[error("the layer cache does not have all of '{image}': {what}")]
    Incomplete {
        /// The image.
        image: String,
        /// What is missing.
        what: &'static str,
    },
    /// A store path is not what it was, or nowhere to be had.
    #[error("'{path}' is no longer what '{image}' was made of")]
    Changed {
        /// The image.
        image: String,
        /// The path.
        path: StorePath,
    },
    /// Something in a record is no name.
    #[error("the layer cache's record of '{0}' cannot be read")]
    Record(String),
}

impl AgainError {
    /// What mends it.
    pub fn hint(&self) -> String {
        match self {
            Self::Unknown(_) => "see what there is: layerhold cache ls".to_owned(),
            Self::Incomplete { .. } | Self::Changed { .. } | Self::Record(_) => {
                "make it again, and push it at once: layerhold containerize --push REGISTRY/NAME".to_owned()
            }
        }
    }
}
