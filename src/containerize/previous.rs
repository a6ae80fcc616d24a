//! The image before, whose layers stay where they are as far as they can.

use std::error::Error;
use std::io::{self, Read};
use std::str::FromStr;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};

use super::Request;
use super::ballast::{self, AtHand, Ballast};
use super::platform::{LaidOut, Platform};
use crate::blob::Digest;
use crate::environment::System;
use crate::event::{Event, Observer, in_one_line};
use crate::http::Patience;
use crate::image::{ImageName, ToldLayer, told_layers};
use crate::registry::{self, InvalidReference, Reference, Registries, RegistryError, Repository};
use crate::share::SharedCache;
use crate::store::{ImageRecord, PlatformRecord, StoreError};
use crate::substitute::Reach;

/// Readers refuse larger ones (containerd).
const LONGEST_DOCUMENT: u64 = 8 << 20;
/// What stands for the image's own name.
const SAME_NAME: &str = ".";

/// Which image that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Previous {
    /// The one that has had the image's name until now: the first that there is where it is pushed to, if it is; else
    /// in the layer store.
    SameName,
    /// One of the layer store, `NAME` or `NAME:TAG`.
    InStore(String),
    /// One of a registry.
    InRegistry(Reference),
}

impl Previous {
    /// The image, if it is one of a registry that is named.
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::InRegistry(reference) => Some(reference),
            Self::SameName | Self::InStore(_) => None,
        }
    }
}

/// A name with a slash is a registry's; a dot stands for the image's own.
impl FromStr for Previous {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        match text {
            SAME_NAME => Ok(Self::SameName),
            name if !name.is_empty() && !name.contains('/') => Ok(Self::InStore(name.to_owned())),
            reference => reference.parse().map(Self::InRegistry),
        }
    }
}

/// Why nothing is known of an image's layers.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    /// There is no such image.
    #[error("there is none")]
    Absent,
    /// The layer store is not in use.
    #[error("there is no layer cache")]
    NoStore,
    /// Those of that name are for other platforms.
    #[error("it is for other platforms")]
    ElsewhereOnly,
    /// Its history has not one entry a layer, of this tool's.
    #[error("it is not as layerhold made it")]
    Foreign,
    /// The registry has the manifest and not all that belongs to it.
    #[error("its registry has lost a part of it")]
    Incomplete,
    /// A document is not what its digest says, or not of a kind that is understood.
    #[error("what its registry has of it cannot be understood")]
    Damaged,
    /// A document did not come to its end.
    #[error("what its registry has of it did not come")]
    Broken(#[from] io::Error),
    /// The layer store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry could not be asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl Request<'_> {
    /// Has the layers of each platform laid out on those of the image before. Where nothing is known of them, this
    /// image is as a first one, and that is said.
    ///
    /// `pushed_to` is where this image is pushed.
    pub(super) fn lay_out_on_previous<'t>(
        &self,
        platforms: &mut [Platform],
        name: &ImageName,
        pushed_to: impl Iterator<Item = &'t Reference>,
        nix: &Reach<'_>,
        shared: Option<&SharedCache<'_>>,
        observer: &dyn Observer,
    ) {
        let Some(previous) = &self.previous else { return };
        // Whoever names none has none at first, and everything changes now and then.
        let say = |message, is_expected| match previous {
            _ if observer.cancelled() => {}
            Previous::SameName if is_expected => observer.event(Event::Detail { message }),
            _ => observer.event(Event::Warning { message }),
        };
        let (title, found) = self.find_previous(previous, name, pushed_to, observer);
        let unknown = |why: &Unknown| format!("layers are not laid out on those of '{title}': {}", in_one_line(why));
        let image = match found {
            Ok(image) => image,
            Err(why) => return say(unknown(&why), matches!(why, Unknown::Absent)),
        };
        for (&system, platform) in self.systems.iter().zip(platforms) {
            match image.layers_for(system) {
                Err(why) => say(self.of_platform(system, &unknown(&why)), false),
                Ok((digest, layers)) => {
                    let repository = image.repository();
                    let closure = &platform.closure;
                    let ballast = Ballast { request: self, layers: &layers, closure, nix, shared, repository };
                    let stays_not = |error: &dyn Error, is_expected| {
                        let message = format!("not all stays that is gone from '{title}': {}", in_one_line(error));
                        say(self.of_platform(system, &message), is_expected);
                    };
                    let AtHand { gone, trouble, known } = ballast.at_hand(name).unwrap_or_else(|error| {
                        stays_not(&error, false);
                        AtHand::default()
                    });
                    if let Some(error) = trouble {
                        stays_not(&error, self.substituters.offline);
                    }
                    let store_paths = layers.iter().map(|layer| layer.store_paths.clone()).collect();
                    let LaidOut { kept, hidden, ballast } = platform.lay_out_on(store_paths, gone, self.max_layers);
                    if platform.keeps_all_below(self.max_layers) {
                        platform.keep_links(ballast::links(&known, &layers, self.cache, shared));
                    }
                    if kept == 0 {
                        let message = format!("no layer of '{title}' ({digest}) stays");
                        say(self.of_platform(system, &message), true);
                        continue;
                    }
                    let mut message = format!("layers are laid out on those of '{title}' ({digest}): {kept} stay");
                    if hidden > 0 {
                        let are = if hidden == 1 { "is" } else { "are" };
                        message += &format!(
                            ", and hide {hidden} that {are} gone ({:.1} MiB)",
                            ballast as f64 / f64::from(1 << 20)
                        );
                    }
                    observer.event(Event::Detail { message: self.of_platform(system, &message) });
                }
            }
        }
    }

    /// What the image is called, and what there is of it.
    fn find_previous<'t, 'r>(
        &self,
        previous: &Previous,
        name: &ImageName,
        pushed_to: impl Iterator<Item = &'t Reference>,
        observer: &'r dyn Observer,
    ) -> (String, Result<Image<'r>, Unknown>) {
        let in_store = |image: &str| (image.to_owned(), self.in_store(image));
        match previous {
            Previous::InStore(image) => in_store(image),
            Previous::InRegistry(reference) => {
                // The image goes on without an answer, so one is not waited for as long as elsewhere.
                let settings = registry::Settings { patience: Patience::brief(), ..self.registries.clone() };
                let repository = Registries::new(settings, observer).repository(reference);
                (reference.to_string(), Image::in_registry(repository))
            }
            Previous::SameName => {
                let registries = Registries::new(self.registries.clone(), observer);
                let mut first_failure = None;
                for reference in pushed_to {
                    match Image::in_registry(registries.repository(reference)) {
                        Ok(image) => return (reference.to_string(), Ok(image)),
                        // Some registries do not say of an image whether it is not there or not for everybody.
                        Err(why) => {
                            let is_worse = matches!(first_failure, None | Some((_, Err(Unknown::Absent))));
                            if is_worse {
                                first_failure = Some((reference.to_string(), Err(why)));
                            }
                        }
                    }
                }
                first_failure.unwrap_or_else(|| in_store(&format!("{}:{}", name.repository(), name.tag())))
            }
        }
    }

    fn in_store<'r>(&self, image: &str) -> Result<Image<'r>, Unknown> {
        let store = self.cache.ok_or(Unknown::NoStore)?;
        store.image_named(image)?.map(Image::InStore).ok_or(Unknown::Absent)
    }
}

/// An image or an index, as it is described where it is.
enum Image<'a> {
    InStore(ImageRecord),
    InRegistry { repository: Repository<'a>, manifest: Vec<u8> },
}

impl<'a> Image<'a> {
    fn in_registry(repository: Repository<'a>) -> Result<Self, Unknown> {
        let reference = repository.reference();
        let digest = reference.digest().map(|digest| digest.to_string());
        let name = digest.as_deref().or(reference.tag()).ok_or(Unknown::Absent)?;
        let manifest = repository.manifest(name, LONGEST_DOCUMENT)?.ok_or(Unknown::Absent)?;
        Ok(Self::InRegistry { repository, manifest })
    }

    /// The repository that it is in, `HOST/NAME`, if it is in one.
    fn repository(&self) -> Option<String> {
        match self {
            Self::InStore(_) => None,
            Self::InRegistry { repository, .. } => Some(repository.reference().name()),
        }
    }

    /// The digest of the manifest for this platform, and the layers.
    fn layers_for(&self, system: System) -> Result<(Digest, Vec<ToldLayer>), Unknown> {
        let (digest, config) = match self {
            Self::InStore(record) => {
                let is_wanted = |platform: &&PlatformRecord| platform.platform == system.platform();
                let platform = record.platforms.iter().find(is_wanted).ok_or(Unknown::ElsewhereOnly)?;
                (platform.manifest_digest, platform.config.clone().into_bytes())
            }
            Self::InRegistry { repository, manifest } => {
                let of_index = manifest_of_index(repository, manifest, system)?;
                let manifest = of_index.as_ref().unwrap_or(manifest);
                (Digest::of(manifest), config(repository, manifest)?)
            }
        };
        let config: ImageConfiguration = serde_json::from_slice(&config).map_err(|_| Unknown::Foreign)?;
        if format!("{}/{}", config.os(), config.architecture()) != system.platform() {
            return Err(Unknown::ElsewhereOnly);
        }
        Ok((digest, told_layers(&config).ok_or(Unknown::Foreign)?))
    }
}

/// The manifest of the image for this platform, where `manifest` is an index.
fn manifest_of_index(repository: &Repository<'_>, manifest: &[u8], system: System) -> Result<Option<Vec<u8>>, Unknown> {
    let Ok(index) = serde_json::from_slice::<ImageIndex>(manifest) else { return Ok(None) };
    let is_wanted = |descriptor: &&Descriptor| {
        let platform = descriptor.platform().as_ref();
        platform.is_some_and(|platform| format!("{}/{}", platform.os(), platform.architecture()) == system.platform())
    };
    let wanted = index.manifests().iter().find(is_wanted).ok_or(Unknown::ElsewhereOnly)?;
    let digest: Digest = wanted.digest().to_string().parse().map_err(|_| Unknown::Damaged)?;
    let manifest = repository.manifest(&digest.to_string(), LONGEST_DOCUMENT)?;
    Ok(Some(manifest.ok_or(Unknown::Incomplete)?))
}

/// The configuration of the image with this manifest.
fn config(repository: &Repository<'_>, manifest: &[u8]) -> Result<Vec<u8>, Unknown> {
    let manifest: ImageManifest = serde_json::from_slice(manifest).map_err(|_| Unknown::Damaged)?;
    let descriptor = manifest.config();
    let digest: Digest = descriptor.digest().to_string().parse().map_err(|_| Unknown::Damaged)?;
    let size = descriptor.size();
    if size > LONGEST_DOCUMENT {
        return Err(Unknown::Damaged);
    }
    let mut config = Vec::new();
    let read = repository.read_blob(&digest, size, |blob| blob.take(size).read_to_end(&mut config))?;
    read.ok_or(Unknown::Incomplete)??;
    if Digest::of(&config) == digest { Ok(config) } else { Err(Unknown::Damaged) }
}
