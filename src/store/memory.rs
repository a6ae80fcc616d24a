//! What was learned of files that no database vouches for: the memory of hashes, a database of its own, so that its
//! size costs nobody who does not need it.

use std::collections::HashMap;
use std::path::Path;

use super::StoreError;
use super::database::{self, Held, WorkError};

/// The database's directory.
pub(super) const NAME: &str = "memory";
/// In sled's default tree: how many memories there are.
const COUNT: &[u8] = b"memories";
/// Memories beyond this number are all forgotten: they grow with every file that was ever hashed, and nobody can tell
/// which will be wanted again. About 50 MB on the disk.
const MOST: u64 = 400_000;

/// All that was remembered, by key.
pub(super) fn recall(root: &Path, held: &Held) -> Result<HashMap<Vec<u8>, Vec<u8>>, StoreError> {
    if !root.join(NAME).exists() {
        return Ok(HashMap::new());
    }
    with_memory(root, held, |db| {
        let entries = db.open_tree("files")?.iter();
        let entries = entries.map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())));
        Ok(entries.collect::<sled::Result<_>>()?)
    })
}

/// Remembers values that can be had again by work.
pub(super) fn remember(root: &Path, held: &Held, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StoreError> {
    remember_at_most(MOST, root, held, entries)
}

fn remember_at_most(most: u64, root: &Path, held: &Held, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StoreError> {
    with_memory(root, held, |db| {
        let files = db.open_tree("files")?;
        let mut count = database::number(db, COUNT)? + entries.len() as u64;
        if count > most {
            files.clear()?;
            count = entries.len() as u64;
        }
        let mut batch = sled::Batch::default();
        for (key, value) in entries {
            batch.insert(key.as_slice(), value.as_slice());
        }
        files.apply_batch(batch)?;
        db.insert(COUNT, &count.to_be_bytes())?;
        db.flush()?;
        Ok(())
    })
}

/// Opens the memory, which begins with nothing, and does `work` with it.
fn with_memory<T>(root: &Path, held: &Held, work: impl Fn(&sled::Db) -> Result<T, WorkError>) -> Result<T, StoreError> {
    database::with(root, NAME, held, |_| Ok(()), work)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn too_many_memories_are_forgotten_and_new_ones_kept() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        let held = database::hold(directory.path(), Duration::from_secs(1)).unwrap();
        let entry = |n: u8| (vec![n], vec![n]);
        for n in 0..5 {
            remember_at_most(4, directory.path(), &held, &[entry(n)]).unwrap();
        }
        assert_eq!(recall(directory.path(), &held).unwrap(), HashMap::from([entry(4)]));
    }
}
