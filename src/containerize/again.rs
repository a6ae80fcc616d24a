//! An image that was made before, to a registry: out of the layer store, without its environment.

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use super::attempt::{self, Attempt};
use super::sources::reach;
use super::targets::Targets;
use super::{Report, own_files, record};
use crate::blob::DiffId;
use crate::delivery::{Means, Target};
use crate::error::{AgainError, Error};
use crate::event::Observer;
use crate::image::{Image, ImageError, ImageName, Images};
use crate::layers::{Layers, MadeBefore, Trouble, Workshop};
use crate::memo::Memo;
use crate::nix::{PathInfo, Source, StorePath};
use crate::pack::{Compression, LayerContents, Packer};
use crate::registry::{self, Reference, Registries};
use crate::rootfs::RootFs;
use crate::share::{self, Hurry, SharedCache};
use crate::store::{ImageRecord, LayerRecord, LayerStore, PlatformRecord};
use crate::substitute::{self, Reach};

/// What is asked for.
pub struct AgainRequest<'a> {
    /// The image: `NAME` or `NAME:TAG`.
    pub image: String,
    /// Where it goes.
    pub push: Reference,
    /// The layer store, which has it.
    pub cache: &'a LayerStore,
    /// How its layers are compressed there.
    pub compression: Compression,
    /// The root of the Nix store; where none is named, `/`, if there is a store.
    pub store: Option<PathBuf>,
    /// The binary caches for what the Nix store does not have.
    pub substituters: substitute::Settings,
    /// What other machines know of layers, and whom this one tells.
    pub share: share::Settings,
    /// How registries are reached.
    pub registries: registry::Settings,
    /// Whether it is only said what would be sent.
    pub dry_run: bool,
    /// Now.
    pub now: SystemTime,
}

/// Pushes an image that was made before. Its configuration, and so its ID, stays as it is, however its layers are
/// compressed now.
pub fn push_again(request: AgainRequest<'_>, observer: &dyn Observer) -> Result<Report, Error> {
    let record = request.cache.image_named(&request.image)?;
    let record = record.ok_or_else(|| AgainError::Unknown(request.image.clone()))?;
    let title = format!("{}:{}", record.name, record.tag);
    let name = ImageName::new(&record.name, &record.tag)?;
    let targets = Targets::only(Target::to_registry(request.push.clone(), &name)?);

    let memo = Memo::new(Some(request.cache), observer);
    let nix = reach(request.store.as_deref(), &request.substituters, &memo, observer, request.now)?;
    let ingredients: Vec<_> = record
        .platforms
        .iter()
        .map(|platform| Ingredients::gather(&request, &record, platform, &title, &nix))
        .collect::<Result<_, _>>()?;
    memo.save();

    let share = if request.dry_run { request.share.clone().read_only() } else { request.share.clone() };
    let hurry = Hurry::new(observer);
    let shared = SharedCache::new(share, &memo, &hurry, request.now);
    let trouble = Trouble::default();
    let packer = Packer::new(&nix, request.compression, observer);
    let workshop = Workshop {
        packer: &packer,
        store: Some(request.cache),
        observer,
        trouble: &trouble,
        shared: shared.as_ref(),
        now: request.now,
    };
    let pushing = Pushing { request: &request, name, ingredients: &ingredients, workshop };
    attempt::make(targets, &memo, observer, |targets| pushing.attempt(targets))
}

/// An image of which it is known what it is made of.
struct Pushing<'p> {
    request: &'p AgainRequest<'p>,
    name: ImageName,
    ingredients: &'p [Ingredients],
    workshop: Workshop<'p>,
}

impl Pushing<'_> {
    /// Has its layers, compressed as they are wanted now, and brings it to its target.
    fn attempt(&self, targets: Targets) -> Result<Attempt, Error> {
        let Self { request, name, ingredients, workshop } = self;
        let observer = workshop.observer;
        let contents = ingredients.iter().map(Ingredients::contents).collect();
        let layers = Layers::look_up(*workshop, contents, MadeBefore::default()).pack_missing(None)?;
        // The records of the image as it was made say what they are, whatever others say.
        let wrong = layers.forget_others(ingredients.iter().map(|ingredients| &*ingredients.diff_ids));
        if wrong > 0 {
            return Ok(Attempt::Failed { error: ImageError::OtherLayers.into(), wrong });
        }
        let images = ingredients.iter().zip(layers.descriptors()?).map(|(ingredients, layers)| {
            let config = ingredients.config.as_bytes().to_vec();
            Image::with_config(name.clone(), config, layers, ingredients.hidden())
        });
        let images = images.collect::<Result<Vec<_>, ImageError>>()?;
        let images = Images::assemble(name.clone(), images)?;

        let registries = Registries::new(request.registries.clone(), observer);
        let mut nowhere = io::sink();
        // Whoever pushes an image once more may do so because the registry has lost some of it.
        let means = Means { registries: &registries, observer, asks_for_all: true, dry_run: request.dry_run };
        let sinks = targets.sinks(&mut nowhere, &means);
        if request.dry_run {
            layers.remember_states();
            let deliveries = sinks.foresee(&images, &layers)?;
            return Ok(Attempt::Made(Report { images, deliveries, cache_bytes: None }));
        }
        let deliveries = sinks.deliver(&images, &layers, observer);
        layers.remember_states();
        match deliveries {
            Ok(deliveries) => {
                layers.share(&record::use_of(&images, &layers, &deliveries, request.now));
                Ok(Attempt::Made(Report { images, deliveries, cache_bytes: None }))
            }
            Err(error) => Ok(Attempt::Failed { error, wrong: layers.count_wrong() }),
        }
    }
}

/// What one platform's image is made of.
struct Ingredients {
    config: String,
    /// What the layers are, however they are compressed.
    diff_ids: Vec<DiffId>,
    layers: Vec<Ingredient>,
}

enum Ingredient {
    StorePaths(Vec<PathInfo>),
    OwnFiles { root: RootFs, store_paths: Vec<StorePath> },
}

impl Ingredients {
    fn gather(
        request: &AgainRequest<'_>,
        image: &ImageRecord,
        platform: &PlatformRecord,
        title: &str,
        nix: &Reach<'_>,
    ) -> Result<Self, Error> {
        let incomplete = |what| AgainError::Incomplete { image: title.to_owned(), what };
        if platform.config.is_empty() {
            return Err(incomplete("an earlier version made it, and kept no configuration").into());
        }
        let keys: Vec<_> = platform.layers.iter().filter_map(|&at| image.layers.get(at).copied()).collect();
        let records = request.cache.lookup(&keys)?;
        let records: Option<Vec<LayerRecord>> = records.into_iter().collect();
        let records = records.ok_or_else(|| incomplete("a layer's record is gone"))?;
        let layers = records.iter().map(|record| match record.contents.is_empty() {
            true => Self::own_files(request.cache, record, title),
            false => Self::store_paths(record, title, nix),
        });
        let diff_ids = records.iter().map(|record| record.diff_id).collect();
        Ok(Self { config: platform.config.clone(), diff_ids, layers: layers.collect::<Result<_, _>>()? })
    }

    fn store_paths(record: &LayerRecord, title: &str, nix: &Reach<'_>) -> Result<Ingredient, Error> {
        let invalid = || AgainError::Record(title.to_owned());
        let mut infos = Vec::new();
        let paths = record.contents.iter().map(|content| StorePath::from_base_name(&content.name));
        let paths: Vec<StorePath> = paths.collect::<Result<_, _>>().map_err(|_| invalid())?;
        nix.prepare(&paths);
        for path in paths {
            let changed = || AgainError::Changed { image: title.to_owned(), path: path.clone() };
            infos.push(nix.path_info(&path)?.ok_or_else(changed)?);
        }
        // The layer's key follows from its contents and the codec: one of them must give the key that it had.
        let contents = LayerContents::StorePaths(infos.iter().collect());
        match Compression::all().any(|compression| contents.key(compression) == record.key) {
            true => Ok(Ingredient::StorePaths(infos)),
            false => {
                let path = infos.first().map(|info| info.path.clone()).ok_or_else(invalid)?;
                Err(AgainError::Changed { image: title.to_owned(), path }.into())
            }
        }
    }

    /// The image's own files lie in no store: they are taken out of their kept layer.
    fn own_files(cache: &LayerStore, record: &LayerRecord, title: &str) -> Result<Ingredient, Error> {
        let incomplete =
            || AgainError::Incomplete { image: title.to_owned(), what: "the layer of its own files is not kept" };
        let root = own_files::kept(cache, record)?.ok_or_else(incomplete)?;
        let names = root.iter().filter_map(|(path, _)| path.strip_prefix(b"nix/store/"));
        let store_paths = names.filter(|name| !name.contains(&b'/')).filter_map(store_path).collect();
        Ok(Ingredient::OwnFiles { root, store_paths })
    }

    fn contents(&self) -> Vec<LayerContents<'_>> {
        self.layers.iter().map(Ingredient::contents).collect()
    }

    /// The store paths that the top layer hides.
    fn hidden(&self) -> Vec<StorePath> {
        let Some(Ingredient::OwnFiles { root, .. }) = self.layers.last() else { return Vec::new() };
        root.hidden_in(b"nix/store").filter_map(store_path).collect()
    }
}

/// The store path with this base name.
fn store_path(name: &[u8]) -> Option<StorePath> {
    StorePath::from_base_name(std::str::from_utf8(name).ok()?).ok()
}

impl Ingredient {
    fn contents(&self) -> LayerContents<'_> {
        match self {
            Self::StorePaths(infos) => LayerContents::StorePaths(infos.iter().collect()),
            Self::OwnFiles { root, store_paths } => LayerContents::RootFs { root, store_paths },
        }
    }
}
