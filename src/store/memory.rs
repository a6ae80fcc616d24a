//! What was learned at some cost and can be had again: a database of its own, so that its size costs nobody who does not
//! need it.

use std::collections::HashMap;
use std::path::Path;

use super::StoreError;
use super::database::{self, Held, WorkError};

/// The database's directory.
pub(super) const NAME: &str = "memory";

/// What memories are of. Each kind has its place and its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// Hashes of files that no database vouches for.
    Files,
    /// What binary caches answered.
    Answers,
    /// What store paths in binary caches are made of.
    Skeletons,
    /// What Flox's catalog answered.
    Catalog,
    /// Which blobs repositories of registries have.
    Blobs,
    /// Sheets of shared caches.
    Sheets,
    /// In what states trees were when layers were made of them.
    States,
    /// Entries of shared caches that are not believed.
    Disbelieved,
}

impl Shelf {
    fn tree(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Answers => "answers",
            Self::Skeletons => "skeletons",
            Self::Catalog => "catalog",
            Self::Blobs => "blobs",
            Self::Sheets => "sheets",
            Self::States => "states",
            Self::Disbelieved => "disbelieved",
        }
    }

    /// In sled's default tree: what the memories of this kind weigh together.
    fn weight_key(self) -> &'static [u8] {
        match self {
            Self::Files => b"memories",
            Self::Answers => b"answers",
            Self::Skeletons => b"skeletons",
            Self::Catalog => b"catalog",
            Self::Blobs => b"blobs",
            Self::Sheets => b"sheets",
            Self::States => b"states",
            Self::Disbelieved => b"disbelieved",
        }
    }

    /// Memories that weigh more than this together are all forgotten: they grow with every file that was ever hashed, and
    /// nobody can tell which will be wanted again. About 50 MB on the disk each.
    fn most(self) -> u64 {
        match self {
            Self::Files | Self::States => 400_000,
            // All of them are read by every run that needs one.
            Self::Answers | Self::Blobs | Self::Disbelieved => 20_000,
            Self::Skeletons | Self::Catalog | Self::Sheets => 50 << 20,
        }
    }

    fn weight(self, value: &[u8]) -> u64 {
        match self {
            Self::Files | Self::Answers | Self::Blobs | Self::States | Self::Disbelieved => 1,
            Self::Skeletons | Self::Catalog | Self::Sheets => value.len() as u64 + 64,
        }
    }
}

/// All that was remembered, by key.
pub(super) fn recall(root: &Path, held: &Held, shelf: Shelf) -> Result<HashMap<Vec<u8>, Vec<u8>>, StoreError> {
    if !root.join(NAME).exists() {
        return Ok(HashMap::new());
    }
    with_memory(root, held, |db| {
        let entries = db.open_tree(shelf.tree())?.iter();
        let entries = entries.map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())));
        Ok(entries.collect::<sled::Result<_>>()?)
    })
}

/// What was remembered under these keys.
pub(super) fn recall_these(
    root: &Path,
    held: &Held,
    shelf: Shelf,
    keys: &[Vec<u8>],
) -> Result<HashMap<Vec<u8>, Vec<u8>>, StoreError> {
    if !root.join(NAME).exists() {
        return Ok(HashMap::new());
    }
    with_memory(root, held, |db| {
        let tree = db.open_tree(shelf.tree())?;
        let mut found = HashMap::new();
        for key in keys {
            if let Some(value) = tree.get(key)? {
                found.insert(key.clone(), value.to_vec());
            }
        }
        Ok(found)
    })
}

/// Remembers values that can be had again by work.
pub(super) fn remember(
    root: &Path,
    held: &Held,
    shelf: Shelf,
    entries: &[(Vec<u8>, Vec<u8>)],
) -> Result<(), StoreError> {
    remember_at_most(shelf.most(), root, held, shelf, entries)
}

fn remember_at_most(
    most: u64,
    root: &Path,
    held: &Held,
    shelf: Shelf,
    entries: &[(Vec<u8>, Vec<u8>)],
) -> Result<(), StoreError> {
    with_memory(root, held, |db| {
        let tree = db.open_tree(shelf.tree())?;
        let (new, replaced) = put(&tree, shelf, entries)?;
        let mut weight = (database::number(db, shelf.weight_key())? + new).saturating_sub(replaced);
        if weight > most {
            tree.clear()?;
            let (new, replaced) = put(&tree, shelf, entries)?;
            weight = new - replaced;
        }
        db.insert(shelf.weight_key(), &weight.to_be_bytes())?;
        db.flush()?;
        Ok(())
    })
}

/// Puts memories into their tree: what they weigh, and what those weighed whose places they took.
fn put(tree: &sled::Tree, shelf: Shelf, entries: &[(Vec<u8>, Vec<u8>)]) -> sled::Result<(u64, u64)> {
    let (mut new, mut replaced) = (0, 0);
    for (key, value) in entries {
        let before = tree.insert(key.as_slice(), value.as_slice())?;
        new += shelf.weight(value);
        replaced += before.map_or(0, |before| shelf.weight(&before));
    }
    Ok((new, replaced))
}

/// Opens the memory, which begins with nothing, and does `work` with it.
fn with_memory<T>(root: &Path, held: &Held, work: impl Fn(&sled::Db) -> Result<T, WorkError>) -> Result<T, StoreError> {
    database::with(root, NAME, held, |_| Ok(()), work)
}

#[cfg(test)]
mod tests {
    use super::super::NEVER;
    use super::*;
    use std::time::Duration;

    #[test]
    fn too_many_memories_are_forgotten_and_new_ones_kept() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        let held = database::hold(directory.path(), Duration::from_secs(1), &NEVER).unwrap();
        let entry = |n: u8| (vec![n], vec![n]);
        for n in 0..5 {
            remember_at_most(4, directory.path(), &held, Shelf::Files, &[entry(n)]).unwrap();
        }
        assert_eq!(recall(directory.path(), &held, Shelf::Files).unwrap(), HashMap::from([entry(4)]));
    }

    #[test]
    fn what_is_remembered_again_weighs_once() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        let held = database::hold(directory.path(), Duration::from_secs(1), &NEVER).unwrap();
        let remember = |shelf: Shelf, key: &[u8], value: &[u8]| {
            // Room for two, and not for a third.
            let most = 2 * shelf.weight(b"two") + shelf.weight(b"") / 2;
            remember_at_most(most, directory.path(), &held, shelf, &[(key.to_vec(), value.to_vec())]).unwrap();
        };
        for shelf in [Shelf::Blobs, Shelf::Skeletons] {
            remember(shelf, b"other", b"o");
            for n in 0..10u8 {
                // Also where it is longer than it was, and shorter.
                remember(shelf, b"same", &vec![n; usize::from(n % 4)]);
            }
            let all = HashMap::from([(b"other".to_vec(), b"o".to_vec()), (b"same".to_vec(), vec![9; 1])]);
            assert_eq!(recall(directory.path(), &held, shelf).unwrap(), all, "{shelf:?}");
        }
    }

    #[test]
    fn each_shelf_has_its_own_memories() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        let held = database::hold(directory.path(), Duration::from_secs(1), &NEVER).unwrap();
        let all = [
            Shelf::Files,
            Shelf::Answers,
            Shelf::Skeletons,
            Shelf::Catalog,
            Shelf::Blobs,
            Shelf::Sheets,
            Shelf::States,
            Shelf::Disbelieved,
        ];
        for (n, shelf) in all.into_iter().enumerate() {
            let entries = [(b"a".to_vec(), vec![n as u8]), (b"b".to_vec(), vec![])];
            remember(directory.path(), &held, shelf, &entries).unwrap();
        }
        for (n, shelf) in all.into_iter().enumerate() {
            let wanted = [b"a".to_vec(), b"c".to_vec()];
            let found = recall_these(directory.path(), &held, shelf, &wanted).unwrap();
            assert_eq!(found, HashMap::from([(b"a".to_vec(), vec![n as u8])]));
            assert_eq!(recall(directory.path(), &held, shelf).unwrap().len(), 2);
        }
    }
}
