//! Which files were written from this store, each with a token of what was written and of the state in which it was
//! left: what a file that is still so need not be given again.

use std::path::{Path, PathBuf};

use super::files;
use super::inventory::list;
use super::sweep::remove;
use super::{LayerStore, StoreError};

/// The directory, a small file for each file that was written.
pub(super) const NAME: &str = "outputs";
/// Files beyond this number are all forgotten: nobody can tell which will be written again.
const MOST: usize = 1000;

/// What was written to a file and how it was left, as far as it matters to whoever asks: any 32 bytes.
pub type OutputToken = [u8; 32];

impl LayerStore {
    /// Whether the file was given this, and left like that, when it was written last.
    pub fn knows_output(&self, file: &Path, token: &OutputToken) -> bool {
        // One that is torn or unreadable is as good as none: the file is written again.
        std::fs::read(self.output(file)).is_ok_and(|known| known == token)
    }

    /// Remembers what the file was given.
    pub fn remember_output(&self, file: &Path, token: &OutputToken) -> Result<(), StoreError> {
        let path = self.output(file);
        let known = list(&self.root.join(NAME))?;
        if known.len() >= MOST && !path.exists() {
            known.iter().try_for_each(|known| remove(known))?;
        }
        files::write_atomically(&self.tmp(), &path, token)
    }

    fn output(&self, file: &Path) -> PathBuf {
        let name = blake3::hash(file.as_os_str().as_encoded_bytes()).to_hex();
        self.root.join(NAME).join(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_known_as_it_was_left_last() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        let (a, b) = (Path::new("/a.tar"), Path::new("/b.tar"));
        assert!(!store.knows_output(a, &[1; 32]));
        store.remember_output(a, &[1; 32]).unwrap();
        assert!(store.knows_output(a, &[1; 32]) && !store.knows_output(b, &[1; 32]));
        store.remember_output(a, &[2; 32]).unwrap();
        assert!(store.knows_output(a, &[2; 32]) && !store.knows_output(a, &[1; 32]));
        assert!(store.quick_size().unwrap() >= 32, "they count");
        store.clear().unwrap();
        assert!(!store.knows_output(a, &[2; 32]));
    }

    #[test]
    fn outputs_do_not_grow_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        for n in 0..MOST + 10 {
            store.remember_output(Path::new(&format!("/{n}.tar")), &[n as u8; 32]).unwrap();
        }
        assert_eq!(list(&directory.path().join(NAME)).unwrap().len(), 10);
        assert!(store.knows_output(Path::new(&format!("/{}.tar", MOST + 9)), &[(MOST + 9) as u8; 32]));
    }
}
