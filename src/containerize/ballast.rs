//! What of the image before is at hand, though the closure has it no more.

use std::collections::BTreeMap;

use super::Request;
use super::own_files;
use crate::blob::DiffId;
use crate::image::{ImageName, ToldLayer};
use crate::layers::media_type;
use crate::nix::{Closure, PathInfo, Source, SourceError, StorePath};
use crate::pack::{Compression, LayerContents};
use crate::plan;
use crate::rootfs::{RootFs, RootNode, RootNodeKind};
use crate::share::SharedCache;
use crate::store::{LayerRecord, LayerStore, StoreError};
use crate::substitute::Reach;

/// The image before, and where it is looked for what it has.
pub(super) struct Ballast<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) layers: &'a [ToldLayer],
    pub(super) closure: &'a Closure,
    pub(super) nix: &'a Reach<'a>,
    pub(super) shared: Option<&'a SharedCache<'a>>,
    /// The repository that the image is in, `HOST/NAME`, if it is in one.
    pub(super) repository: Option<String>,
}

/// What is at hand.
#[derive(Default)]
pub(super) struct AtHand {
    /// The store paths that are gone and can be had, from the bottom up to the first layer that cannot stay.
    pub(super) gone: BTreeMap<StorePath, PathInfo>,
    /// Why there are no more of them, where somebody could not be asked.
    pub(super) trouble: Option<SourceError>,
    /// What is known of the image's layers.
    pub(super) known: Known,
}

/// Layers of images of one name or repository, by what is in them: one for each codec, and each kind of hash of their
/// contents.
pub(super) type Known = BTreeMap<DiffId, Vec<LayerRecord>>;
/// Store paths that are gone, as far as this machine's Nix store has them.
type Here<'a> = BTreeMap<&'a StorePath, PathInfo>;

impl<'a> Ballast<'a> {
    /// Looks for it.
    pub(super) fn at_hand(&self, name: &ImageName) -> Result<AtHand, StoreError> {
        let known = self.known(name)?;
        let (gone, trouble) = self.store_paths(&known);
        Ok(AtHand { gone, trouble, known })
    }

    fn is_gone(&self, path: &StorePath) -> bool {
        self.closure.get(path).is_none()
    }

    /// The layers from which something is gone. The top one, which always is another, is none of them.
    fn lossy(&self) -> impl Iterator<Item = &'a ToldLayer> {
        let below = self.layers.split_last().map(|(_, below)| below).unwrap_or_default();
        below.iter().filter(|layer| layer.store_paths.iter().any(|path| self.is_gone(path)))
    }

    /// The layers of all images of this name in the layer store. Where that does not do, and the image before is in a
    /// registry, those that shared caches know of images in the same repository: for a layer store to keep.
    fn known(&self, name: &ImageName) -> Result<Known, StoreError> {
        let mut known = Known::new();
        let Some(store) = self.request.cache else { return Ok(known) };
        let records = store.layers_of_all_named(name.repository())?;
        records.into_iter().for_each(|record| known.entry(record.diff_id).or_default().push(record));
        let is_here = |path: &StorePath| !self.is_gone(path) || self.nix.is_here(path);
        let does = |layer: &ToldLayer| known.contains_key(&layer.diff_id) && layer.store_paths.iter().all(is_here);
        let wanted = || self.lossy().chain(links_layer(self.layers));
        if let (Some(shared), Some(repository)) = (self.shared, &self.repository)
            && !wanted().all(does)
        {
            let records = shared.pushed_to(repository, &wanted().map(|layer| layer.diff_id).collect());
            records.into_iter().for_each(|record| known.entry(record.diff_id).or_default().push(record));
        }
        Ok(known)
    }

    /// Whether the layer need not be made for this image.
    fn has_bytes(&self, record: &LayerRecord) -> bool {
        record.has_blob && record.media_type == media_type(self.request.compression).as_str()
    }

    /// The layers that may stay, with what is known of them: up to the first that may not, or with which there would be
    /// more ballast than an image may carry. What this machine's Nix store has of them comes into `here`.
    ///
    /// One may where it is known: who moves a tag can have an image carry along nothing but what those have had. What is
    /// gone from it must be here, for it may have to be made; elsewhere is enough if it need not.
    fn may_stay<'k>(&self, known: &'k Known, here: &mut Here<'a>) -> Vec<(&'a ToldLayer, Vec<&'k LayerRecord>)> {
        let (most, mut ballast) = (plan::most_ballast(self.closure), 0_u64);
        let layers = self.lossy().map_while(|layer| {
            let is_of = |record: &&LayerRecord| {
                let names = record.contents.iter().map(|content| content.name.as_str());
                layer.store_paths.iter().map(StorePath::base_name).eq(names)
            };
            let mut records: Vec<&LayerRecord> = known.get(&layer.diff_id)?.iter().filter(is_of).collect();
            let contents = layer.store_paths.iter().zip(&records.first()?.contents);
            let gone: Vec<_> = contents.filter(|(path, _)| self.is_gone(path)).collect();
            ballast = gone.iter().fold(ballast, |sum, (_, content)| sum.saturating_add(content.size));
            if ballast > most {
                return None;
            }
            here.extend(gone.iter().filter_map(|(path, _)| Some((*path, self.nix.local_info(path).ok()??))));
            if !gone.iter().all(|(path, _)| here.contains_key(path)) {
                records.retain(|record| self.has_bytes(record));
            }
            (!records.is_empty()).then_some((layer, records))
        });
        layers.collect()
    }

    fn store_paths(&self, known: &Known) -> (BTreeMap<StorePath, PathInfo>, Option<SourceError>) {
        let mut here = Here::new();
        let layers = self.may_stay(known, &mut here);
        let paths = layers.iter().flat_map(|(layer, _)| &layer.store_paths);
        let elsewhere = paths.filter(|path| self.is_gone(path) && !here.contains_key(path));
        self.nix.prepare_briefly(&elsewhere.cloned().collect::<Vec<_>>());

        let mut gone = BTreeMap::new();
        for (layer, records) in layers {
            let near = |path: &StorePath| self.closure.get(path).or_else(|| here.get(path)).cloned();
            let info = |path| near(path).map_or_else(|| self.nix.path_info(path), |info| Ok(Some(info)));
            let infos: Vec<PathInfo> = match layer.store_paths.iter().map(info).collect::<Result<Option<_>, _>>() {
                Ok(Some(infos)) => infos,
                Ok(None) => break,
                Err(error) => return (gone, Some(error)),
            };
            let contents = LayerContents::StorePaths(infos.iter().collect());
            let is_here = layer.store_paths.iter().all(|path| near(path).is_some());
            let mut codecs = Compression::all().filter(|&codec| is_here || codec == self.request.compression);
            if !codecs.any(|codec| records.iter().any(|record| record.key == contents.key(codec))) {
                break;
            }
            let infos = infos.into_iter().filter(|info| self.is_gone(&info.path));
            gone.extend(infos.map(|info| (info.path.clone(), info)));
        }
        (gone, None)
    }
}

/// The layer that has the links in the root of an image, where they have one: the one below the top.
fn links_layer(layers: &[ToldLayer]) -> Option<&ToldLayer> {
    layers.iter().rev().nth(1)
}

/// The links in the root of an image with these layers, as far as their layer is known and can be had. It is taken for
/// theirs only if it has nothing else: a top layer's whiteouts would hide what this image needs.
pub(super) fn links(
    known: &Known,
    layers: &[ToldLayer],
    store: Option<&LayerStore>,
    shared: Option<&SharedCache<'_>>,
) -> Option<RootFs> {
    let records = || known.get(&links_layer(layers)?.diff_id);
    let records = || records().into_iter().flatten().filter(|record| record.contents.is_empty());
    let here = |record| own_files::kept(store?, record).ok().flatten();
    let elsewhere = |record| own_files::of_shared(shared?, record);
    let links = records().find_map(here).or_else(|| records().find_map(elsewhere))?;
    let is_link = |(path, node): (&[u8], &RootNode)| {
        let mut names = path.split(|&byte| byte == b'/');
        !matches!(node.kind, RootNodeKind::File(_))
            && !path.starts_with(b"nix/")
            && path != b"nix"
            && !names.any(|name| name.starts_with(b".wh."))
    };
    let is_plain = links.iter().all(is_link);
    is_plain.then_some(links)
}
