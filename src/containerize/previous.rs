//! The image before, whose layers stay where they are as far as they can.

use std::io::Read;
use std::str::FromStr;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

use super::Request;
use crate::blob::Digest;
use crate::environment::System;
use crate::event::{Event, Observer, in_one_line};
use crate::http::Patience;
use crate::image::{ImageName, planned_layers};
use crate::nix::StorePath;
use crate::registry::{self, InvalidReference, Reference, Registries, RegistryError, Repository};
use crate::store::{ImageRecord, StoreError};

/// Readers refuse larger ones (containerd).
const LONGEST_DOCUMENT: u64 = 8 << 20;

/// Which image that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Previous {
    /// The one that has had the image's name until now: the first that there is where it is pushed to, if it is; else in
    /// the layer store.
    SameName,
    /// One of the layer store, `NAME` or `NAME:TAG`.
    Kept(String),
    /// One of a registry.
    Pushed(Reference),
}

impl Previous {
    /// The image, if it is one of a registry that is named.
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Pushed(reference) => Some(reference),
            Self::SameName | Self::Kept(_) => None,
        }
    }
}

/// A name with a slash is a registry's; none is the image's own.
impl FromStr for Previous {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        match text {
            "" => Ok(Self::SameName),
            name if !name.contains('/') => Ok(Self::Kept(name.to_owned())),
            reference => reference.parse().map(Self::Pushed),
        }
    }
}

/// Why nothing is known of an image's layers.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    /// There is no such image.
    #[error("there is none")]
    Absent,
    /// Those of that name are for other platforms.
    #[error("it is for other platforms")]
    ElsewhereOnly,
    /// What it says of itself names no store paths.
    #[error("it was not made by this tool, or by an earlier version")]
    Strange,
    /// A document is not what its digest says, or cannot be read.
    #[error("what its registry has of it is damaged")]
    Damaged,
    /// The layer store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry could not be asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl Request<'_> {
    /// The planned layers of the image before, for each platform; none where nothing is known of them. That makes this
    /// image no other than a first one, so it is only said.
    ///
    /// `pushed_to` is where this image is pushed.
    pub(super) fn previous_layers<'t>(
        &self,
        name: &ImageName,
        pushed_to: impl Iterator<Item = &'t Reference>,
        observer: &dyn Observer,
    ) -> Vec<Vec<Vec<StorePath>>> {
        let Some(previous) = &self.previous else { return vec![Vec::new(); self.systems.len()] };
        let registries = registry::Settings { patience: Patience::brief(), ..self.registries.clone() };
        let registries = Registries::new(registries, observer);
        let (title, found) = self.find_previous(previous, name, pushed_to, &registries);
        let say = |system: Option<System>, why: &Unknown| {
            let message = format!("layers are not laid out on those of '{title}': {}", in_one_line(why));
            let message = system.map_or(message.clone(), |system| self.of_platform(system, &message));
            // That there is none yet is what everybody begins with.
            observer.event(match (previous, why) {
                (Previous::SameName, Unknown::Absent) => Event::Detail { message },
                _ => Event::Warning { message },
            });
        };
        let image = match found {
            Ok(image) => image,
            Err(why) => {
                say(None, &why);
                return vec![Vec::new(); self.systems.len()];
            }
        };
        let layers_of = |&system: &System| match image.layers_for(system) {
            Ok(layers) => {
                let message = format!("layers are laid out on those of '{title}'");
                observer.event(Event::Detail { message: self.of_platform(system, &message) });
                layers
            }
            Err(why) => {
                say(Some(system), &why);
                Vec::new()
            }
        };
        self.systems.iter().map(layers_of).collect()
    }

    /// What the image is called, and what there is of it.
    fn find_previous<'t, 'r>(
        &self,
        previous: &Previous,
        name: &ImageName,
        pushed_to: impl Iterator<Item = &'t Reference>,
        registries: &Registries<'r>,
    ) -> (String, Result<Image<'r>, Unknown>) {
        let kept = |image: &str| (image.to_owned(), self.kept(image));
        let pushed =
            |reference: &Reference| (reference.to_string(), Image::of_registry(registries.repository(reference)));
        match previous {
            Previous::Kept(image) => kept(image),
            Previous::Pushed(reference) => pushed(reference),
            Previous::SameName => {
                let mut last = None;
                for found in pushed_to.map(pushed) {
                    let is_there = !matches!(found, (_, Err(Unknown::Absent)));
                    last = Some(found);
                    if is_there {
                        break;
                    }
                }
                last.unwrap_or_else(|| kept(&format!("{}:{}", name.repository(), name.tag())))
            }
        }
    }

    fn kept<'r>(&self, image: &str) -> Result<Image<'r>, Unknown> {
        let record = self.cache.map(|store| store.image_named(image)).transpose()?.flatten();
        record.map(Image::Kept).ok_or(Unknown::Absent)
    }
}

/// An image or an index, as it is described where it is.
enum Image<'a> {
    Kept(ImageRecord),
    Pushed { repository: Repository<'a>, manifest: Vec<u8> },
}

impl<'a> Image<'a> {
    fn of_registry(repository: Repository<'a>) -> Result<Self, Unknown> {
        let reference = repository.reference();
        let digest = reference.digest().map(|digest| digest.to_string());
        let name = digest.as_deref().or(reference.tag()).ok_or(Unknown::Absent)?;
        let manifest = repository.manifest(name, LONGEST_DOCUMENT)?.ok_or(Unknown::Absent)?;
        Ok(Self::Pushed { repository, manifest })
    }

    fn layers_for(&self, system: System) -> Result<Vec<Vec<StorePath>>, Unknown> {
        let config = match self {
            Self::Kept(record) => {
                let platform = record.platforms.iter().find(|platform| platform.platform == system.platform());
                platform.ok_or(Unknown::ElsewhereOnly)?.config.clone().into_bytes()
            }
            Self::Pushed { repository, manifest } => pushed_config(repository, manifest, system)?,
        };
        planned_layers(&config).ok_or(Unknown::Strange)
    }
}

/// The configuration of the image with this manifest, or of the one for `system` in this index.
fn pushed_config(repository: &Repository<'_>, manifest: &[u8], system: System) -> Result<Vec<u8>, Unknown> {
    let of_index;
    let manifest = match serde_json::from_slice::<ImageIndex>(manifest) {
        Err(_) => manifest,
        Ok(index) => {
            let is_wanted = |descriptor: &&Descriptor| {
                descriptor.platform().as_ref().is_some_and(|platform| {
                    format!("{}/{}", platform.os(), platform.architecture()) == system.platform()
                })
            };
            let wanted = index.manifests().iter().find(is_wanted).ok_or(Unknown::ElsewhereOnly)?;
            let digest = wanted.digest().to_string();
            of_index = repository.manifest(&digest, LONGEST_DOCUMENT)?.ok_or(Unknown::Damaged)?;
            &of_index
        }
    };
    let manifest: ImageManifest = serde_json::from_slice(manifest).map_err(|_| Unknown::Damaged)?;
    let (digest, size) = (manifest.config().digest().to_string(), manifest.config().size());
    let digest: Digest = digest.parse().map_err(|_| Unknown::Damaged)?;
    if size > LONGEST_DOCUMENT {
        return Err(Unknown::Damaged);
    }
    let mut config = Vec::new();
    let read = repository.read_blob(&digest, size, |blob| blob.take(size).read_to_end(&mut config))?;
    match read {
        Some(Ok(_)) if Digest::of(&config) == digest => Ok(config),
        _ => Err(Unknown::Damaged),
    }
}
