//! An image in a registry: blobs that it lacks, several at once; then manifests; the tag last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use super::{DeliveryError, Finish, Missing, Past, Sink};
use crate::blob::Digest;
use crate::event::Observer;
use crate::image::{Images, Layer};
use crate::registry::{PutManifest, RegistryError, Repository, UploadError, Uploaded};

/// Pushes to a tag of a repository.
///
/// - A registry whose tag leads to this very image is asked, once a day, whether it still has what the image is made
///   of; and each time where the user wants to be sure.
/// - Which blobs a repository has is remembered, and asked again where the registry refuses a manifest for want of one.
/// - A blob that another repository of the registry is remembered to have is mounted from there, where the registry lets
///   us.
/// - The tag changes last, so that it never leads to an image that is not whole.
pub struct RegistrySink<'a> {
    repository: Repository<'a>,
    observer: &'a dyn Observer,
    is_there: bool,
    /// Whether every blob is asked for, whatever is remembered of it.
    asks_for_all: bool,
    /// Whether nothing that is remembered can be trusted any more.
    was_refused: bool,
    /// Repositories of the same registry, and what they are remembered to have.
    others: BTreeMap<String, BTreeSet<Digest>>,
    /// Layers that the repository got without their being sent, and their bytes.
    mounted: Mutex<(usize, u64)>,
}

/// How many layers are sent at once, at least, whose bytes need only be read: what they wait for is answers.
const UPLOADS: usize = 8;

/// What a repository has of some blobs.
struct Presence {
    held: BTreeSet<Digest>,
    /// Whether memory alone did not do.
    has_asked: bool,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl<'a> RegistrySink<'a> {
    /// A sink on a repository; its reference says which tag. Nothing is asked yet.
    pub fn new(repository: Repository<'a>, observer: &'a dyn Observer) -> Self {
        let (others, mounted) = (BTreeMap::new(), Mutex::default());
        Self { repository, observer, is_there: false, asks_for_all: false, was_refused: false, others, mounted }
    }

    /// The same, asking for every blob and manifest: what is remembered of a registry that has lost something since is
    /// no longer true, and who pushes once more to mend that wants more than to hear that all is well.
    pub fn asking_for_all(self) -> Self {
        Self { asks_for_all: true, ..self }
    }

    fn name(&self) -> String {
        self.repository.reference().name()
    }

    fn tag(&self) -> &str {
        self.repository.reference().tag().unwrap_or("latest")
    }

    fn error(&self, error: RegistryError) -> DeliveryError {
        if error.is_interruption() || self.observer.cancelled() { DeliveryError::Interrupted } else { error.into() }
    }

    fn has_blobs(&self, blobs: &[Digest]) -> Result<BTreeSet<Digest>, DeliveryError> {
        self.repository.has_blobs(blobs).map_err(|error| self.error(error))
    }

    /// Those of the blobs that the repository has or, where not all are asked for, is remembered to have. What is gone
    /// is forgotten, so that other runs send it, too, should this one not come to that.
    fn find(
        &self,
        blobs: &[Digest],
        remembered: &BTreeSet<Digest>,
        past: &dyn Past,
    ) -> Result<Presence, DeliveryError> {
        let is_known = |blob: &Digest| !self.asks_for_all && remembered.contains(blob);
        let (known, asked): (Vec<_>, Vec<_>) = blobs.iter().copied().partition(is_known);
        let mut held = self.has_blobs(&asked)?;
        past.remember_blobs(&self.name(), &held.iter().copied().collect::<Vec<_>>());
        let is_gone = |blob: &Digest| remembered.contains(blob) && !held.contains(blob);
        past.forget_blobs(&self.name(), &asked.iter().copied().filter(is_gone).collect::<Vec<_>>());
        held.extend(known);
        Ok(Presence { held, has_asked: !asked.is_empty() })
    }

    /// The layers that an image still has which its tag leads to. What was not seen there within a day is asked for:
    /// registries lose blobs under images, by a collection of garbage that ran beside a push for instance.
    fn still_there(&mut self, images: &Images, past: &dyn Past) -> Result<BTreeSet<Digest>, DeliveryError> {
        let layers: BTreeSet<Digest> = images.layers().iter().map(|layer| layer.digest).collect();
        let configs = images.all().iter().map(|image| image.config_digest);
        let blobs: Vec<Digest> = layers.iter().copied().chain(configs).collect();
        let Presence { held, has_asked } = self.find(&blobs, &past.seen_blobs(&self.name()), past)?;
        self.is_there = blobs.iter().all(|blob| held.contains(blob));
        if let (Images::Several(index), true) = (images, has_asked) {
            for image in &index.images {
                let there = self.repository.manifest_digest(&image.manifest_digest.to_string());
                if there.map_err(|error| self.error(error))? != Some(image.manifest_digest) {
                    self.is_there = false;
                    // Manifests are not remembered, but looked at by whoever has a blob to ask for.
                    past.forget_blobs(&self.name(), &[image.config_digest]);
                }
            }
        }
        Ok(layers.intersection(&held).copied().collect())
    }

    /// Looks for repositories that blobs may be mounted from. What this one is remembered, or said, to have comes back.
    fn look_for_others(&mut self, past: &dyn Past) -> BTreeSet<Digest> {
        let reference = self.repository.reference();
        let mut remembered = past.repositories(reference.registry());
        let own = remembered.remove(&self.name()).unwrap_or_default();
        let registry = reference.names_begin_with();
        let others = remembered.into_iter();
        let others = others.filter_map(|(name, blobs)| Some((name.strip_prefix(&registry)?.to_owned(), blobs)));
        self.others.extend(others);
        own
    }

    /// The repositories, by their names in the registry, that may have a blob.
    fn sources(&self, blob: &Digest) -> Vec<String> {
        self.others.iter().filter(|(_, blobs)| blobs.contains(blob)).map(|(name, _)| name.clone()).collect()
    }

    fn count_mounted(&self, bytes: u64) {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        *mounted = (mounted.0 + 1, mounted.1 + bytes);
    }

    fn put_small(&self, digest: &Digest, bytes: &[u8]) -> Result<(), DeliveryError> {
        let write = |out: &mut dyn std::io::Write| out.write_all(bytes);
        match self.repository.upload(digest, bytes.len() as u64, &[], write) {
            Ok(_) => Ok(()),
            Err(UploadError::Registry(error)) => Err(self.error(error)),
            Err(UploadError::Source(error)) => Err(DeliveryError::Upload(error)),
        }
    }

    fn put_manifest(&self, name: &str, media_type: &str, bytes: &[u8]) -> Result<Finish, DeliveryError> {
        match self.repository.put_manifest(name, media_type, bytes).map_err(|error| self.error(error))? {
            PutManifest::Stored => Ok(Finish::Committed),
            PutManifest::LacksBlobs => Ok(Finish::Incomplete),
        }
    }

    /// Brings everything but the layers, the tag last.
    fn put_documents(&self, images: &Images) -> Result<Finish, DeliveryError> {
        let configs: Vec<Digest> = images.all().iter().map(|image| image.config_digest).collect();
        let held = self.has_blobs(&configs)?;
        for image in images.all().iter().filter(|image| !held.contains(&image.config_digest)) {
            self.put_small(&image.config_digest, &image.config)?;
        }
        match images {
            Images::One(image) => self.put_manifest(self.tag(), MANIFEST, &image.manifest),
            Images::Several(index) => {
                for image in &index.images {
                    let finish = self.put_manifest(&image.manifest_digest.to_string(), MANIFEST, &image.manifest)?;
                    if finish == Finish::Incomplete {
                        return Ok(finish);
                    }
                }
                self.put_manifest(self.tag(), INDEX, &index.index)
            }
        }
    }
}

impl Sink for RegistrySink<'_> {
    fn has(&mut self, images: &Images, past: &dyn Past) -> Result<BTreeSet<Digest>, DeliveryError> {
        let layers: Vec<Digest> = images.layers().iter().map(|layer| layer.digest).collect();
        let there = self.repository.manifest_digest(self.tag()).map_err(|error| self.error(error))?;
        if there == Some(images.digest()) {
            let held = self.still_there(images, past)?;
            if !self.is_there {
                self.look_for_others(past);
            }
            return Ok(held);
        }
        let seen = past.seen_blobs(&self.name());
        if !self.asks_for_all && layers.iter().all(|layer| seen.contains(layer)) {
            // Nobody has to be asked who else has them.
            return Ok(layers.into_iter().collect());
        }
        let own = self.look_for_others(past);
        Ok(self.find(&layers, &own, past)?.held)
    }

    fn may_find(&self, layer: &Layer) -> bool {
        !self.sources(&layer.digest).is_empty()
    }

    fn put(&mut self, missing: &Missing<'_>) -> Result<(), DeliveryError> {
        let held = match self.was_refused {
            true => self.has_blobs(&missing.layers().iter().map(|layer| layer.digest).collect::<Vec<_>>())?,
            false => BTreeSet::new(),
        };
        missing.at_once_from_afar(UPLOADS, |layer, mut bytes| {
            if held.contains(&layer.digest) {
                self.count_mounted(layer.size);
                bytes.skip();
                return Ok(());
            }
            let sources = self.sources(&layer.digest);
            let mut is_prepared = sources.is_empty();
            let write = |out: &mut dyn std::io::Write| {
                // No other repository gives it.
                if !std::mem::replace(&mut is_prepared, true) {
                    bytes.prepare();
                }
                bytes.copy_once_more_to(out, DeliveryError::Upload)
            };
            match self.repository.upload(&layer.digest, layer.size, &sources, write) {
                Ok(Uploaded::Sent) => Ok(()),
                Ok(Uploaded::Mounted) => {
                    self.count_mounted(layer.size);
                    bytes.skip();
                    Ok(())
                }
                Err(UploadError::Registry(error)) => Err(self.error(error)),
                Err(UploadError::Source(error)) => Err(error),
            }
        })
    }

    fn found_there(&self) -> (usize, u64) {
        *self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&mut self, images: &Images, past: &dyn Past) -> Result<Finish, DeliveryError> {
        if self.is_there {
            return Ok(Finish::Committed);
        }
        let configs = images.all().iter().map(|image| image.config_digest);
        let blobs: Vec<Digest> = images.layers().iter().map(|layer| layer.digest).chain(configs).collect();
        let finish = self.put_documents(images)?;
        match finish {
            Finish::Committed => past.remember_blobs(&self.name(), &blobs),
            Finish::Incomplete if self.was_refused => {
                let registry = self.repository.reference().registry().to_owned();
                let what = format!("the manifest '{}'", self.tag());
                return Err(RegistryError::Forgetful { registry, what }.into());
            }
            Finish::Incomplete => {
                self.was_refused = true;
                self.mounted = Mutex::default();
                past.forget_blobs(&self.name(), &blobs);
                // What it has lost another repository may give.
                self.look_for_others(past);
            }
        }
        Ok(finish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;
    use crate::registry::{Registries, Settings};

    /// What repositories of two registries have.
    struct Remembered(Digest);

    impl Past for Remembered {
        fn repositories(&self, registry: &str) -> BTreeMap<String, BTreeSet<Digest>> {
            assert_eq!(registry, "index.docker.io");
            let names = ["docker.io/team/api", "docker.io/team/web", "registry.example/team/api"];
            names.map(|name| (name.to_owned(), BTreeSet::from([self.0]))).into()
        }
    }

    #[test]
    fn layers_are_mounted_from_repositories_of_the_same_registry_also_of_one_that_is_asked_elsewhere() {
        let registries = Registries::new(Settings::default(), &Silent);
        let repository = registries.repository(&"docker.io/team/web:v1".parse().unwrap());
        let mut sink = RegistrySink::new(repository, &Silent);
        let blob = Digest::of(b"layer");
        assert_eq!(sink.look_for_others(&Remembered(blob)), BTreeSet::from([blob]));
        assert_eq!(sink.sources(&blob), ["team/api"]);
    }
}
