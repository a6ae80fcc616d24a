//! Layers whose kept bytes are gone when many of them are sent at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use layerhold::blob::Digest;
use layerhold::delivery::BlobProvider as _;
use layerhold::event::Silent;
use layerhold::layers::{Layers, Trouble, Workshop};
use layerhold::nix::{Node, PathInfo, Source, SourceError, StorePath, TreeHasher, Visitor, WalkError};
use layerhold::outlet::Copied;
use layerhold::pack::{Compression, LayerContents, Packer};
use layerhold::parallel;
use layerhold::store::LayerStore;

/// Store paths that are files, walked slowly; counts how many are walked at once.
#[derive(Default)]
struct Slow {
    files: BTreeMap<StorePath, Vec<u8>>,
    at_work: AtomicUsize,
    most: AtomicUsize,
}

impl Source for Slow {
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        let Some(contents) = self.files.get(path) else { return Ok(None) };
        let mut tree = TreeHasher::new();
        tree.regular(b"", false, contents.len() as u64, blake3::hash(contents).as_bytes());
        let (path, content, nar_size) = (path.clone(), tree.finish(), contents.len() as u64);
        Ok(Some(PathInfo { path, content, nar_size, references: BTreeSet::new() }))
    }

    fn walk(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError> {
        self.most.fetch_max(self.at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(20));
        let mut contents = self.files[path].as_slice();
        let size = contents.len() as u64;
        let shown = visitor.node(b"", Node::Regular { executable: false, size, contents: &mut contents });
        self.at_work.fetch_sub(1, Ordering::SeqCst);
        shown.map_err(WalkError::Visitor)
    }
}

#[test]
fn they_are_made_again_as_few_at_once_as_any_others() {
    let names = (0..40).map(|at| format!("tool-{at}"));
    let files = names.map(|name| {
        let path = StorePath::synthetic(blake3::hash(name.as_bytes()).as_bytes(), &name).unwrap();
        (path, name.repeat(100).into_bytes())
    });
    let source = Slow { files: files.collect(), ..Slow::default() };
    let known: Vec<PathInfo> = source.files.keys().map(|path| source.path_info(path).unwrap().unwrap()).collect();

    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().join("cache");
    let store = LayerStore::open(&cache).unwrap();
    let (packer, trouble) = (Packer::new(&source, Compression::Zstd(1), &Silent), Trouble::default());
    let (store, now) = (Some(&store), SystemTime::now());
    let workshop = Workshop { packer: &packer, store, observer: &Silent, trouble: &trouble, shared: None, now };
    let contents = vec![known.iter().map(|path| LayerContents::StorePaths(vec![path])).collect()];
    let layers = Layers::look_up(workshop, contents, Default::default()).pack_missing(None).unwrap();
    let image = layers.descriptors().unwrap().remove(0);
    assert!(image.iter().all(|layer| layers.is_made(layer)));

    fs::remove_dir_all(cache.join("blobs")).unwrap();
    source.most.store(0, Ordering::SeqCst);
    let all_at_once = 4 * packer.threads();
    parallel::for_each(all_at_once, &image, |layer| -> Result<(), String> {
        let mut bytes = Vec::new();
        layers.copy_to(layer, &mut Copied(&mut bytes)).map_err(|error| error.to_string())?;
        assert_eq!(Digest::of(&bytes), layer.digest);
        Ok(())
    })
    .unwrap();
    assert_eq!(source.most.load(Ordering::SeqCst), packer.threads());
}
