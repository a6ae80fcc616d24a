//! What earlier runs delivered, and what others say of registries.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{Layers, presence};
use crate::blob::Digest;
use crate::delivery::Past;
use crate::share::SharedCache;
use crate::store::Shelf;

impl Layers<'_> {
    /// What repositories were asked for, or were given by this machine, within a day.
    fn remembered_repositories(&self) -> BTreeMap<String, BTreeSet<Digest>> {
        let remembered = self.workshop.with_store("look up repositories", |store| store.recall(Shelf::Blobs));
        presence::recalled(&remembered.unwrap_or_default(), self.workshop.now)
    }

    /// The repositories with the blobs that they are remembered, or said by those who were asked, to have.
    pub(super) fn known_repositories(&self) -> BTreeMap<String, BTreeSet<Digest>> {
        let mut repositories = self.remembered_repositories();
        for (name, blobs) in self.workshop.shared.map(SharedCache::repositories).unwrap_or_default() {
            repositories.entry(name).or_default().extend(blobs);
        }
        repositories
    }
}

impl Past for Layers<'_> {
    fn blobs_of(&self, manifest: &Digest) -> BTreeSet<Digest> {
        let blobs = self.workshop.with_store("look up an image", |store| store.blobs_of_image(manifest));
        blobs.unwrap_or_default()
    }

    fn knows_output(&self, file: &Path, token: &[u8; 32]) -> bool {
        self.workshop.store.is_some_and(|store| store.knows_output(file, token))
    }

    fn outputs_with(&self, contents: &[u8; 32]) -> Vec<PathBuf> {
        let files = self.workshop.with_store("look up files", |store| store.outputs_with(contents));
        files.unwrap_or_default()
    }

    fn remember_output(&self, file: &Path, contents: &[u8; 32], token: &[u8; 32]) {
        self.workshop.with_store("remember the file", |store| store.remember_output(file, contents, token));
    }

    fn forget_output(&self, file: &Path) {
        self.workshop.with_store("forget a file", |store| store.forget_output(file));
    }

    fn repositories(&self, registry: &str) -> BTreeMap<String, BTreeSet<Digest>> {
        if let Some(shared) = self.workshop.shared.filter(|shared| shared.concerns(registry)) {
            // Where every layer is known here nobody has looked yet, and a cache in the registry may have them all.
            shared.look_up(&[]);
        }
        self.known_repositories()
    }

    fn seen_blobs(&self, repository: &str) -> BTreeSet<Digest> {
        self.remembered_repositories().remove(repository).unwrap_or_default()
    }

    fn remember_blobs(&self, repository: &str, blobs: &[Digest]) {
        if blobs.is_empty() {
            return;
        }
        let entries = presence::entries(repository, blobs, Some(self.workshop.now));
        self.workshop.with_store("remember a repository", |store| store.remember(Shelf::Blobs, &entries));
    }

    fn forget_blobs(&self, repository: &str, blobs: &[Digest]) {
        if blobs.is_empty() {
            return;
        }
        let entries = presence::entries(repository, blobs, None);
        self.workshop.with_store("forget a repository", |store| store.remember(Shelf::Blobs, &entries));
    }
}
