//! Which files were written from this store, each with what it was given and a token of the state in which it was left:
//! what a file that is still so need not be given again, and what others can be copied from it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::files;
use super::inventory::list;
use super::sweep::remove;
use super::{LayerStore, StoreError};

/// The directory, a small file for each file that was written.
pub(super) const NAME: &str = "outputs";
/// Files beyond this number are all forgotten: nobody can tell which will be written again.
const MOST: usize = 1000;
/// What a record begins with. Those before it were a token alone; they count as none.
const FORMAT: &[u8] = b"layerhold output, format 2\n";

/// What was written to a file, or that and how it was left, as far as it matters to whoever asks: any 32 bytes.
pub type OutputToken = [u8; 32];

/// What is remembered of one file.
struct OutputRecord {
    file: PathBuf,
    contents: OutputToken,
    token: OutputToken,
}

impl OutputRecord {
    /// One that is torn, unreadable or of another form is as good as none: the file is written again.
    fn read(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let (contents, rest) = bytes.strip_prefix(FORMAT)?.split_first_chunk()?;
        let (token, file) = rest.split_first_chunk()?;
        Some(Self { file: OsStr::from_bytes(file).into(), contents: *contents, token: *token })
    }

    fn bytes(&self) -> Vec<u8> {
        [FORMAT, &self.contents, &self.token, self.file.as_os_str().as_bytes()].concat()
    }
}

impl LayerStore {
    /// Whether the file was given this, and left like that, when it was written last.
    pub fn knows_output(&self, file: &Path, token: &OutputToken) -> bool {
        OutputRecord::read(&self.output(file)).is_some_and(|known| known.file == file && known.token == *token)
    }

    /// The files that were given these contents when they were written last, the latest first.
    pub fn outputs_with(&self, contents: &OutputToken) -> Result<Vec<PathBuf>, StoreError> {
        let known = list(&self.root.join(NAME))?.into_iter().filter_map(|path| {
            let record = OutputRecord::read(&path).filter(|record| record.contents == *contents)?;
            let written = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
            Some((written.unwrap_or(SystemTime::UNIX_EPOCH), record.file))
        });
        let mut known: Vec<_> = known.collect();
        known.sort_by(|a, b| b.cmp(a));
        Ok(known.into_iter().map(|(_, file)| file).collect())
    }

    /// Remembers what the file was given, and the token of how it was left.
    pub fn remember_output(&self, file: &Path, contents: &OutputToken, token: &OutputToken) -> Result<(), StoreError> {
        let path = self.output(file);
        let known = list(&self.root.join(NAME))?;
        if known.len() >= MOST && !path.exists() {
            known.iter().try_for_each(|known| remove(known))?;
        }
        let record = OutputRecord { file: file.to_owned(), contents: *contents, token: *token };
        files::write_atomically(&self.tmp(), &path, &record.bytes())
    }

    /// Forgets a file that is not as it was left.
    pub fn forget_output(&self, file: &Path) -> Result<(), StoreError> {
        remove(&self.output(file))
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
        store.remember_output(a, &[9; 32], &[1; 32]).unwrap();
        assert!(store.knows_output(a, &[1; 32]) && !store.knows_output(b, &[1; 32]));
        store.remember_output(a, &[9; 32], &[2; 32]).unwrap();
        assert!(store.knows_output(a, &[2; 32]) && !store.knows_output(a, &[1; 32]));
        assert!(store.bytes_beside_records().unwrap() >= 64, "they count");
        store.clear().unwrap();
        assert!(!store.knows_output(a, &[2; 32]));
    }

    #[test]
    fn files_with_the_same_contents_are_found_the_latest_first() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        let odd = Path::new(OsStr::from_bytes(b"/not \xff UTF-8\n.tar"));
        let files = [Path::new("/a.tar"), odd, Path::new("/c.tar")];
        for (at, file) in files.into_iter().enumerate() {
            store.remember_output(file, &[9; 32], &[at as u8; 32]).unwrap();
            let written = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(at as u64);
            std::fs::File::open(store.output(file)).unwrap().set_modified(written).unwrap();
        }
        store.remember_output(Path::new("/other.tar"), &[8; 32], &[0; 32]).unwrap();
        assert_eq!(store.outputs_with(&[9; 32]).unwrap(), [files[2], files[1], files[0]]);
        store.forget_output(files[2]).unwrap();
        store.forget_output(files[2]).unwrap();
        store.remember_output(files[0], &[8; 32], &[0; 32]).unwrap();
        assert_eq!(store.outputs_with(&[9; 32]).unwrap(), [odd]);
        assert!(store.outputs_with(&[7; 32]).unwrap().is_empty());
    }

    #[test]
    fn records_of_the_older_form_and_torn_ones_count_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        let file = Path::new("/a.tar");
        store.remember_output(file, &[9; 32], &[1; 32]).unwrap();
        let whole = std::fs::read(store.output(file)).unwrap();
        let empty = [0; 27 + 64];
        for bytes in [&[1; 32][..], &whole[..whole.len() - 1], &whole[..FORMAT.len() + 40], &empty, b""] {
            std::fs::write(store.output(file), bytes).unwrap();
            assert!(!store.knows_output(file, &[1; 32]), "{bytes:?}");
            assert!(!store.outputs_with(&[9; 32]).unwrap().contains(&file.to_owned()), "{bytes:?}");
        }
        store.remember_output(file, &[9; 32], &[1; 32]).unwrap();
        assert!(store.knows_output(file, &[1; 32]));
    }

    #[test]
    fn outputs_do_not_grow_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        for n in 0..MOST + 10 {
            store.remember_output(Path::new(&format!("/{n}.tar")), &[0; 32], &[n as u8; 32]).unwrap();
        }
        assert_eq!(list(&directory.path().join(NAME)).unwrap().len(), 10);
        assert!(store.knows_output(Path::new(&format!("/{}.tar", MOST + 9)), &[(MOST + 9) as u8; 32]));
    }
}
