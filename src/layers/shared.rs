//! Layers out of shared caches: their bytes, and what those say of store paths that lie far away.

use std::collections::BTreeMap;
use std::io;

use rayon::prelude::*;

use super::Workshop;
use super::workshop::{LONGEST_WAIT, Obtained, patience_for};
use crate::blob::{Digest, DigestWriter, LayerKey, VerifyingReader};
use crate::event::{Cancelled, Event};
use crate::nix::{ContentHash, NarWriter, Node, Skeleton, SkeletonRecorder, Visitor};
use crate::pack::{Compression, LayerContents, read_store_paths};
use crate::share::{Together, Wait};
use crate::store::{BlobStamp, LayerRecord};

/// A store path as a layer has it.
struct Read {
    nar: NarWriter<DigestWriter<io::Sink>>,
    skeleton: Skeleton,
}

impl Read {
    fn new() -> Self {
        Self { nar: NarWriter::new(DigestWriter::new(io::sink())), skeleton: Skeleton::default() }
    }

    fn node(&mut self, path: &[u8], node: Node<'_>) -> io::Result<()> {
        let skeleton = std::mem::take(&mut self.skeleton);
        let mut recorder = SkeletonRecorder { visitor: &mut self.nar, skeleton };
        let seen = recorder.node(path, node);
        self.skeleton = recorder.skeleton;
        seen
    }
}

impl Workshop<'_> {
    /// Fetches the bytes of a layer that can be made here. Where they do not come while it could be, it is made.
    pub(super) fn fetch_near(
        &self,
        record: &LayerRecord,
        contents: &LayerContents<'_>,
        together: &Together,
    ) -> Option<BlobStamp> {
        let limit = patience_for(contents.estimated_size()).min(LONGEST_WAIT);
        self.fetch_blob(record, Wait::AtMost(limit, together))
    }

    /// Fetches a layer's bytes out of a shared cache into the store. What comes wrong is not kept.
    fn fetch_blob(&self, record: &LayerRecord, wait: Wait<'_>) -> Option<BlobStamp> {
        let (shared, store) = (self.shared?, self.store?);
        let mut kept = None;
        let came = shared.read_blob(&record.digest, record.size, wait, |blob| {
            let mut blob = VerifyingReader::new(blob, record.digest, record.size);
            let mut writer = store.blob_writer().map_err(io::Error::other)?;
            io::copy(&mut blob, &mut writer)?;
            kept = Some(writer.commit(&record.digest).map_err(io::Error::other)?);
            Ok(())
        });
        kept.filter(|_| came)
    }

    /// Those of the layers with something far in them whose bytes a shared cache has. An environment is rendered of what
    /// is in them, so they come at once; nothing of them is fetched from a binary cache, but they hold what its signed
    /// hashes say.
    pub(super) fn take_far(&self, wanted: &[(LayerKey, &LayerContents<'_>)]) -> Vec<Option<Obtained>> {
        let nothing = || wanted.iter().map(|_| None).collect();
        let Some(shared) = self.shared.filter(|_| !wanted.is_empty() && self.store.is_some()) else { return nothing() };
        if self.packer.compression() == Compression::None {
            return nothing();
        }
        let keys: Vec<LayerKey> = wanted.iter().map(|(key, _)| *key).collect();
        let found = shared.look_up(&keys);
        let taken: Vec<Option<Obtained>> = found
            .into_par_iter()
            .zip(wanted)
            .map(|(record, (_, contents))| {
                let record = record.filter(|record| record.has_blob && self.can_be(record))?;
                let stamp = self.fetch_far(&record, contents)?;
                Some(Obtained { made: Some(stamp), ..Obtained::reused(record) })
            })
            .collect();
        let records: Vec<LayerRecord> = taken.iter().flatten().map(|taken| taken.record.clone()).collect();
        self.tell_fetched(&records);
        self.record(&records);
        taken
    }

    /// Fetches the bytes of a layer with something far in it, and looks into them: what does not hold what binary caches
    /// have signed is not kept.
    pub(super) fn fetch_far(&self, record: &LayerRecord, contents: &LayerContents<'_>) -> Option<BlobStamp> {
        let stamp = self.fetch_blob(record, Wait::WhileItComes)?;
        let blob =
            self.with_store("read a layer", |store| store.read_blob(&record.digest, record.size, Some(&stamp)))?;
        match self.learn(record, contents, blob) {
            Ok(()) => Some(stamp),
            Err(error) if Cancelled::caused(&error) => None,
            Err(error) => {
                let message = format!("a shared cache has the layer {} wrong: {error}", record.digest);
                self.observer.event(Event::Warning { message });
                if let Some(shared) = self.shared {
                    shared.disbelieve(&record.key, &record.digest);
                }
                let bad = [record.digest].into();
                self.with_store("throw away a wrong layer", |store| store.discard_blobs(&bad));
                None
            }
        }
    }

    /// Says what came.
    pub(super) fn tell_fetched(&self, records: &[LayerRecord]) {
        if !records.is_empty() {
            let bytes: u64 = records.iter().map(|record| record.size).sum();
            let message = format!("fetched from a shared cache: {} layers, {bytes} bytes", records.len());
            self.observer.event(Event::Detail { message });
        }
    }

    /// Reads a layer that has come, and has the source know what is in it.
    fn learn(&self, record: &LayerRecord, contents: &LayerContents<'_>, blob: impl io::Read) -> io::Result<()> {
        let tar = Compression::reader(&record.media_type, blob)?;
        let mut tar = VerifyingReader::new(tar, record.diff_id.0, record.tar_size);
        let mut read: BTreeMap<String, Read> = BTreeMap::new();
        read_store_paths(&mut tar, |name, path, node| {
            Cancelled::check(self.observer)?;
            read.entry(name.to_owned()).or_insert_with(Read::new).node(path, node)
        })?;
        let LayerContents::StorePaths(paths) = contents else { return Ok(()) };
        let mut known = Vec::new();
        for info in paths {
            let wrong = || io::Error::other(format!("it does not hold '{}' as that was signed", info.path));
            let Read { nar, skeleton } = read.remove(info.path.base_name()).ok_or_else(wrong)?;
            let (_, digest, _) = nar.finish()?.finish();
            // What a tree hashes to that nobody vouches for is this machine's own.
            if let ContentHash::Nar(signed) = info.content {
                if Digest::from_bytes(signed) != digest {
                    return Err(wrong());
                }
                known.push((&info.path, skeleton));
            }
        }
        if let Some(name) = read.keys().next() {
            return Err(io::Error::other(format!("it holds '{name}', which does not belong there")));
        }
        known.into_iter().for_each(|(path, skeleton)| self.packer.learn(path, &skeleton));
        Ok(())
    }
}
