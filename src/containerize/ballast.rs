//! What of the image before is at hand, though the closure has it no more.

use std::collections::{BTreeMap, BTreeSet};

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
use crate::store::{LayerRecord, StoreError};
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
    /// The links in the root, where their layer may stay.
    pub(super) links: Option<RootFs>,
}

/// Layers of images of one name or repository, by what is in them: one for each codec, and each kind of hash of their
/// contents.
type Known = BTreeMap<DiffId, Vec<LayerRecord>>;
/// Store paths that are gone, as far as this machine's Nix store has them.
type Here<'a> = BTreeMap<&'a StorePath, PathInfo>;

impl<'a> Ballast<'a> {
    /// Looks for it.
    pub(super) fn at_hand(&self, name: &ImageName) -> Result<AtHand, StoreError> {
        let gone = self.lossy().flat_map(|layer| &layer.store_paths).filter(|path| self.is_gone(path));
        let here: Here<'_> = gone.filter_map(|path| Some((path, self.nix.local_info(path).ok()??))).collect();
        let known = self.known(name, &here)?;
        let (gone, trouble) = self.store_paths(&known, &here);
        Ok(AtHand { gone, trouble, links: self.links(&known) })
    }

    fn is_gone(&self, path: &StorePath) -> bool {
        self.closure.get(path).is_none()
    }

    /// The layers from which something is gone. The top one, which always is another, is none of them.
    fn lossy(&self) -> impl Iterator<Item = &'a ToldLayer> {
        let below = self.layers.split_last().map(|(_, below)| below).unwrap_or_default();
        below.iter().filter(|layer| layer.store_paths.iter().any(|path| self.is_gone(path)))
    }

    /// Whether nothing is gone from the layer but what this machine has.
    fn is_here(&self, layer: &ToldLayer, here: &Here<'_>) -> bool {
        layer.store_paths.iter().all(|path| !self.is_gone(path) || here.contains_key(path))
    }

    /// The layers of all images of this name in the layer store. Where that does not do, and the image before is in a
    /// registry, those that shared caches know of images in the same repository: for a layer store to keep.
    fn known(&self, name: &ImageName, here: &Here<'_>) -> Result<Known, StoreError> {
        let mut known = Known::new();
        let Some(store) = self.request.cache else { return Ok(known) };
        let records = store.layers_of_all_named(name.repository())?;
        records.into_iter().for_each(|record| known.entry(record.diff_id).or_default().push(record));
        let does = |layer: &ToldLayer| self.is_here(layer, here) && known.contains_key(&layer.diff_id);
        if let (Some(shared), Some(repository)) = (self.shared, &self.repository)
            && !self.lossy().all(does)
        {
            let links = self.layers.iter().rev().nth(1);
            let wanted: BTreeSet<DiffId> = self.lossy().chain(links).map(|layer| layer.diff_id).collect();
            let records = shared.pushed_to(repository, &wanted);
            records.into_iter().for_each(|record| known.entry(record.diff_id).or_default().push(record));
        }
        Ok(known)
    }

    /// Whether the layer need not be made for this image.
    fn has_bytes(&self, record: &LayerRecord) -> bool {
        record.has_blob && record.media_type == media_type(self.request.compression).as_str()
    }

    /// The layers that may stay, with what is known of them: up to the first that may not, or with which there would be
    /// more ballast than an image may carry.
    ///
    /// One may where it is known: who moves a tag can have an image carry along nothing but what those have had. What is
    /// gone from it must be here, for it may have to be made; elsewhere is enough if it need not.
    fn may_stay<'k>(&self, known: &'k Known, here: &Here<'_>) -> Vec<(&'a ToldLayer, Vec<&'k LayerRecord>)> {
        let (most, mut ballast) = (plan::most_ballast(self.closure), 0_u64);
        let layers = self.lossy().map_while(|layer| {
            let is_of = |record: &&LayerRecord| {
                let names = record.contents.iter().map(|content| content.name.as_str());
                layer.store_paths.iter().map(StorePath::base_name).eq(names)
                    && (self.is_here(layer, here) || self.has_bytes(record))
            };
            let records: Vec<&LayerRecord> = known.get(&layer.diff_id)?.iter().filter(is_of).collect();
            let contents = layer.store_paths.iter().zip(&records.first()?.contents);
            for (_, content) in contents.filter(|(path, _)| self.is_gone(path)) {
                ballast = ballast.saturating_add(content.size);
            }
            (ballast <= most).then_some((layer, records))
        });
        layers.collect()
    }

    fn store_paths(&self, known: &Known, here: &Here<'_>) -> (BTreeMap<StorePath, PathInfo>, Option<SourceError>) {
        let layers = self.may_stay(known, here);
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
            let is_here = self.is_here(layer, here);
            let mut codecs = Compression::all().filter(|&codec| is_here || codec == self.request.compression);
            if !codecs.any(|codec| records.iter().any(|record| record.key == contents.key(codec))) {
                break;
            }
            gone.extend(
                infos.into_iter().filter(|info| self.is_gone(&info.path)).map(|info| (info.path.clone(), info)),
            );
        }
        (gone, None)
    }

    /// The links in the root of an image with these layers, where they have the layer below the top one. It is taken
    /// for theirs only if it has nothing else: a top layer's whiteouts would hide what this image needs.
    fn links(&self, known: &Known) -> Option<RootFs> {
        let [.., links, _] = self.layers else { return None };
        let records = || known.get(&links.diff_id).into_iter().flatten().filter(|record| record.contents.is_empty());
        let here = |record| own_files::kept(self.request.cache?, record).ok().flatten();
        let elsewhere = |record| own_files::of_shared(self.shared?, record);
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
}
