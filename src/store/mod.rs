//! The layer store: what is known of every layer made before, and the bytes of those that are dear to make.
//!
//! On disk, below the directory that [`LayerStore::open`] is given:
//!
//! ```text
//! layerhold-store          the format's number; nothing else is touched before it is read
//! blobs/sha256/<digest>    bytes of compressed layers, named by their digest
//! records/<kk>/<key>       one layer's record each: the truth
//! images/<hash>            one image's record each: which layers it has
//! leases/<random>          one running build's each, locked by it: the keys of the layers that it uses
//! claims/<key>             locked by the process that is making the layer
//! pins                     names of images that no collection takes
//! index/                   a sled database of all layers, made from the records; may be thrown away at any time
//! memory/                  a sled database of what was learned at some cost, a shelf for each kind ([`Shelf`]); may be
//!                          thrown away at any time
//! outputs/<hash>           a file that was written and what it was given; may be thrown away at any time
//! fetched/                 what others fetched; not the store's
//! index.lock               held by the one process that has a database open, or collects garbage
//! tmp/                     files that are being written
//! ```
//!
//! **Write order.** A blob must be on the disk (written to `tmp`, synced, renamed, directory synced) before its record
//! is; a record must be in place before the index has it; the layers' records must be in place before an image's is.
//! Records carry a checksum: one that was torn by a power failure is as good as none, and its layer is made again.
//!
//! The store knows keys and blobs; what a layer holds is to it a list of texts.

mod blobs;
mod claim;
mod database;
mod files;
mod gc;
mod index;
mod inventory;
mod lease;
mod memory;
mod outputs;
mod pins;
mod record;
mod report;
mod sweep;
mod verify;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use blobs::{BlobStamp, BlobWriter, KeptBlob};
pub use claim::Claim;
pub use gc::{DoomedImage, DoomedIndex, DoomedLayer, GcPlan, GcPolicy, IndexReason, Orphan, Reason};
pub use lease::Lease;
pub use memory::Shelf;
pub use outputs::OutputToken;
pub use record::{Content, GraphNode, ImageRecord, LayerRecord, PlatformRecord};
pub use report::{ImageRow, LayerRow, PathRow, Wanted, WhyRow};
pub use verify::{Damage, Verified};

use rayon::prelude::*;

use crate::blob::{Digest, LayerKey, VerifyingReader};
use crate::crash;
use crate::event::Cancelled;
use database::{Held, WorkError};
use files::IoContext;
use index::Index;
use lease::LiveLeases;

/// The number in `layerhold-store`.
const FORMAT: &str = "layerhold layer store, format 1\n";

/// A layer store in a directory.
#[derive(Debug)]
pub struct LayerStore {
    root: PathBuf,
    patience: Duration,
    /// Whether the user wants the run to end.
    ended: &'static AtomicBool,
}

/// The wish to end of whoever has none.
static NEVER: AtomicBool = AtomicBool::new(false);

/// How long to wait for another process that holds the index. Only what looks at tens of thousands of layers takes
/// seconds: what a collection removes, it removes after it has let go of the index (docs/store.md).
const PATIENCE: Duration = Duration::from_secs(60);

/// What a store consists of, beside what its processes make when they need it.
const DIRECTORIES: &[&str] = &["blobs/sha256", "records", "images", "leases", "claims", outputs::NAME, "tmp"];

/// What may lie in a store's directory before its format does: a process was killed while it made the store.
const BEGINNINGS: &[&str] =
    &["blobs", "records", "images", "leases", "claims", outputs::NAME, "tmp", "index.lock", FETCHED];

/// Where others keep what they fetched. Nothing here looks into it; it goes when everything does.
const FETCHED: &str = "fetched";

/// Something went wrong in the store's directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} '{}'", path.display())]
    Io {
        /// What was tried, as in "cannot ...".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The directory holds a store of another format, or something else.
    #[error("'{}' is not a layer store of this version: its format is {found:?}", root.display())]
    Format {
        /// The store's directory.
        root: PathBuf,
        /// What its `layerhold-store` file says.
        found: String,
    },
    /// The directory has no format file and is not empty either: it is somebody's, not a store.
    #[error("'{}' is not a layer store: it holds '{}'", root.display(), entry.display())]
    Foreign {
        /// The directory.
        root: PathBuf,
        /// Something in it.
        entry: PathBuf,
    },
    /// Another process held a lock for too long.
    #[error("another process has held '{}' for {} s", path.display(), waited.as_secs())]
    Busy {
        /// The file that is locked.
        path: PathBuf,
        /// How long this process waited.
        waited: Duration,
    },
    /// The index could be neither opened nor made anew.
    #[error("cannot open the index '{}'", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What sled said.
        #[source]
        source: sled::Error,
    },
    /// A record could not be written as JSON.
    #[error("cannot encode a record")]
    Encode(#[source] serde_json::Error),
    /// The user ended the run while another process held a lock.
    #[error(transparent)]
    Interrupted(Cancelled),
}

impl StoreError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Foreign { .. } => Some("name a directory of its own: LAYERHOLD_CACHE=/path layerhold ...".to_owned()),
            Self::Busy { path, .. } => {
                Some(format!("see who it is, and end it or wait for it: fuser -v '{}'", path.display()))
            }
            Self::Index { path, .. } => {
                Some(format!("remove it, the next run makes it from the records: rm -r '{}'", path.display()))
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Some("make room: layerhold cache gc --max-size SIZE".to_owned())
            }
            Self::Format { root, .. } => Some(format!(
                "name another directory with LAYERHOLD_CACHE, or remove this one: rm -r '{}'",
                root.display()
            )),
            Self::Io { source, .. }
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Some("name a directory that you can write to: LAYERHOLD_CACHE=/path layerhold ...".to_owned())
            }
            _ => None,
        }
    }

    /// Whether the store itself may be whole, and only cannot be written to, or used, now.
    fn is_surroundings(&self) -> bool {
        match self {
            Self::Io { source, .. } => files::is_surroundings(source),
            Self::Index { source: sled::Error::Io(source), .. } => files::is_surroundings(source),
            Self::Busy { .. } => true,
            _ => false,
        }
    }
}

impl LayerStore {
    /// Opens the store at `root`, making it if there is none.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_until(root, &NEVER)
    }

    /// The same, with a store that no longer waits for other processes once somebody has set `ended`.
    pub fn open_until(root: &Path, ended: &'static AtomicBool) -> Result<Self, StoreError> {
        let store = Self { root: root.to_owned(), patience: PATIENCE, ended };
        let format = store.root.join("layerhold-store");
        match std::fs::read_to_string(&format) {
            Ok(found) if found == FORMAT => {
                store.make_directories()?;
                return Ok(store);
            }
            Ok(found) => return Err(StoreError::Format { root: store.root, found: found.trim_end().to_owned() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("read", &format),
        }
        std::fs::create_dir_all(root).context("make the directory", root)?;
        for entry in inventory::list(root)? {
            let name = entry.file_name().and_then(|name| name.to_str());
            // Looked at again, for another process may have made the store by now.
            if !name.is_some_and(|name| BEGINNINGS.contains(&name)) && !format.exists() {
                return Err(StoreError::Foreign { root: store.root, entry });
            }
        }
        // Of processes that find no store one makes it; nobody collects what it is writing.
        let _held = store.hold()?;
        store.make_directories()?;
        // Last, so that a store with this file is whole.
        files::write_atomically(&store.tmp(), &format, FORMAT.as_bytes())?;
        // A record that is torn by a power failure is made again; a store without a format would be lost.
        files::sync(&format)?;
        files::sync(root)?;
        Ok(store)
    }

    /// Makes those directories that are missing: somebody may have tidied one away.
    fn make_directories(&self) -> Result<(), StoreError> {
        for directory in DIRECTORIES {
            let path = self.root.join(directory);
            if !path.is_dir() {
                std::fs::create_dir_all(&path).context("make the directory", &path)?;
                crash::point("store.directory-made");
            }
        }
        Ok(())
    }

    /// The store with another limit to the time that it waits for other processes.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Opens the store at `root` for a build: also makes sure that it can be written to.
    pub fn open_to_write(root: &Path) -> Result<Self, StoreError> {
        Self::open(root)?.to_write()
    }

    /// The store for a build: makes sure that it can be written to.
    pub fn to_write(self) -> Result<Self, StoreError> {
        tempfile::tempfile_in(self.tmp()).context("write to", &self.tmp())?;
        Ok(self)
    }

    /// The directory for what others fetched; it need not be there.
    pub fn fetched(&self) -> PathBuf {
        self.root.join(FETCHED)
    }

    /// The directory that the store lives in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What is known of the layers with these keys, in their order. A layer whose bytes should be here but are not
    /// counts as unknown.
    ///
    /// Each record's file is read: a hundred small files take less time than opening the index, and as long in a store
    /// of any size.
    pub fn lookup(&self, keys: &[LayerKey]) -> Result<Vec<Option<LayerRecord>>, StoreError> {
        keys.par_iter().map(|key| self.read_record(key)).collect()
    }

    /// Starts a blob that will be kept.
    pub fn blob_writer(&self) -> Result<BlobWriter, StoreError> {
        BlobWriter::new(&self.tmp(), &self.root.join("blobs/sha256"))
    }

    /// Opens a kept blob. One whose file is as it was when its bytes were known to be right is not checked again.
    pub fn read_blob(&self, digest: &Digest, size: u64, known: Option<&BlobStamp>) -> Result<KeptBlob, StoreError> {
        let path = self.blob(digest);
        let file = std::fs::File::open(&path).context("open the blob", &path)?;
        let stamp = file.metadata().map(|metadata| BlobStamp::of(&metadata)).context("look at the blob", &path)?;
        Ok(if known == Some(&stamp) {
            KeptBlob::Known(file)
        } else {
            KeptBlob::Checked(VerifyingReader::new(file, *digest, size))
        })
    }

    /// Protects layers from garbage collection until the lease is dropped, by whatever end of the process.
    ///
    /// Taken before the layers are looked up: whoever collects garbage either sees the lease, or is done before the
    /// look-up and the layer is seen to be gone.
    pub fn lease(&self, keys: &[LayerKey]) -> Result<Lease, StoreError> {
        let held = self.hold()?;
        let leases = self.root.join("leases");
        self.take_over(&held, &LiveLeases::read(&leases)?.dead)?;
        Lease::take(&leases, keys)
    }

    /// Claims the work on a layer, or says that another process is at it.
    pub fn try_claim(&self, key: &LayerKey) -> Result<Option<Claim>, StoreError> {
        Claim::try_take(&self.root.join("claims").join(key.hex()))
    }

    /// The record of one layer, past the index: what another process has just made.
    pub fn read_record(&self, key: &LayerKey) -> Result<Option<LayerRecord>, StoreError> {
        let record = LayerRecord::read(&self.record(key))?.filter(|record| record.key == *key);
        Ok(record.filter(|record| self.has_its_bytes(record)))
    }

    /// Records a layer whose blob, where it is kept, was committed before. [`LayerStore::index_layers`] follows.
    pub fn record_layer(&self, record: &LayerRecord) -> Result<(), StoreError> {
        record.write(&self.tmp(), &self.record(&record.key))?;
        crash::point("layer.recorded");
        Ok(())
    }

    /// Makes the index where there is none, so that it need not be waited for when layers are to be taken into it.
    pub fn prepare_index(&self) -> Result<(), StoreError> {
        if self.root.join(index::NAME).exists() { Ok(()) } else { self.with_index(|_| Ok(())) }
    }

    /// Takes layers that were recorded before into the index.
    pub fn index_layers(&self, records: &[LayerRecord]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        self.with_index(|index| Ok(index.insert_layers(records)?))
    }

    /// Records an image whose layers were recorded before, and says how many bytes the store takes now. The same image
    /// made again under the same name keeps the time when it was made first.
    pub fn record_image(&self, image: &ImageRecord) -> Result<u64, StoreError> {
        let path = self.root.join("images").join(image.file_name());
        let held = self.hold()?;
        if let (Some(before), Some(bytes)) = (ImageRecord::read(&path)?, index::bytes_at_hand(&self.root, &held)) {
            let again = ImageRecord { made_at: before.made_at, ..image.clone() };
            // Its record is as long as it was: the index need not learn of it.
            if again.is_but_for_its_use(&before) {
                again.write(&self.tmp(), &path)?;
                crash::point("image.recorded");
                return Ok(bytes + self.bytes_beside_records()?);
            }
        }
        index::with(&self.root, &held, |index| {
            let length = || std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            let length_before = length();
            let made_at = ImageRecord::read(&path)?.map_or(image.made_at, |before| before.made_at);
            ImageRecord { made_at, ..image.clone() }.write(&self.tmp(), &path)?;
            crash::point("image.recorded");
            let bytes = (index.bytes()? + length()).saturating_sub(length_before);
            index.set_bytes(bytes)?;
            Ok(bytes + self.bytes_beside_records()?)
        })
    }

    /// Of the images with this name, `NAME` or `NAME:TAG`, the one that was made last.
    pub fn image_named(&self, name: &str) -> Result<Option<ImageRecord>, StoreError> {
        let images = self.images()?.into_iter().filter(|image| gc::means(name, &image.record));
        // Several may be made in one second: their records are written one after the other.
        let written = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        Ok(images.max_by_key(|image| (image.record.used_at, written(&image.path))).map(|image| image.record))
    }

    /// The layers of all images with this name, whatever their tags.
    pub fn layers_of_all_named(&self, repository: &str) -> Result<Vec<LayerRecord>, StoreError> {
        let images = self.images()?.into_iter().filter(|image| image.record.name == repository);
        let keys: BTreeSet<LayerKey> = images.flat_map(|image| image.record.layers).collect();
        let keys: Vec<LayerKey> = keys.into_iter().collect();
        Ok(self.lookup(&keys)?.into_iter().flatten().collect())
    }

    /// The layers' blobs of a recorded image, by the digest of its manifest or of its index; none where there is no
    /// such image.
    pub fn blobs_of_image(&self, manifest: &Digest) -> Result<BTreeSet<Digest>, StoreError> {
        let images = self.images()?;
        let Some(layers) = images.iter().find_map(|image| image.record.layers_of(manifest)) else {
            return Ok(BTreeSet::new());
        };
        let blobs = layers.par_iter().map(|key| LayerRecord::read(&self.record(key)));
        Ok(blobs.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().map(|record| record.digest).collect())
    }

    /// Everything that was remembered of this kind, by key.
    pub fn recall(&self, shelf: Shelf) -> Result<HashMap<Vec<u8>, Vec<u8>>, StoreError> {
        memory::recall(&self.root, &self.hold()?, shelf)
    }

    /// What was remembered under these keys.
    pub fn recall_these(&self, shelf: Shelf, keys: &[Vec<u8>]) -> Result<HashMap<Vec<u8>, Vec<u8>>, StoreError> {
        memory::recall_these(&self.root, &self.hold()?, shelf, keys)
    }

    /// Remembers what can be had again by work: it may be forgotten at any time.
    pub fn remember(&self, shelf: Shelf, entries: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        memory::remember(&self.root, &self.hold()?, shelf, entries)
    }

    fn has_its_bytes(&self, record: &LayerRecord) -> bool {
        !record.has_blob || blobs::is_whole(&self.blob(&record.digest), record.size)
    }

    fn hold(&self) -> Result<Held, StoreError> {
        database::hold(&self.root, self.patience, self.ended)
    }

    fn with_index<T>(&self, work: impl Fn(&Index) -> Result<T, WorkError>) -> Result<T, StoreError> {
        index::with(&self.root, &self.hold()?, work)
    }

    /// Every layer with the length of its record in bytes. Where the index cannot be had, for the store cannot be
    /// written to, say, the records themselves are read.
    fn all_layers(&self) -> Result<Vec<(LayerRecord, u64)>, StoreError> {
        match self.with_index(|index| Ok(index.all_layers().collect::<sled::Result<_>>()?)) {
            Err(error) if error.is_surroundings() => record::read_all(&self.root.join("records")),
            all => all,
        }
    }

    /// Bytes of the databases' files, of what is remembered beside them, and of what is being written, or was when its
    /// process was killed.
    fn bytes_beside_records(&self) -> Result<u64, StoreError> {
        let parts = [index::NAME, memory::NAME, outputs::NAME, "tmp"];
        parts.iter().map(|name| inventory::tree_bytes(&self.root.join(name))).sum()
    }

    /// Looks after builds that died: layers that they recorded may be missing from the index.
    fn take_over(&self, held: &Held, dead: &[PathBuf]) -> Result<(), StoreError> {
        if dead.is_empty() {
            return Ok(());
        }
        let keys: BTreeSet<_> = dead.iter().flat_map(|lease| lease::keys_in(lease)).collect();
        let records = keys.iter().filter_map(|key| self.read_record(key).transpose()).collect::<Result<Vec<_>, _>>()?;
        index::with(&self.root, held, |index| Ok(index.insert_layers(&records)?))?;
        dead.iter().try_for_each(|lease| sweep::remove(lease))
    }

    fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn record(&self, key: &LayerKey) -> PathBuf {
        let key = key.hex();
        self.root.join("records").join(&key[..2]).join(key)
    }
}

#[cfg(test)]
mod tests;
