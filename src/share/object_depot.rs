//! A shared cache in an object store: `sheets/<name>`, `blobs/sha256/<digest>`, and `blobs/clock`, which says what time it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::runtime::Runtime;

use super::depot::{BlobNote, Depot, DepotError, ReadBlob, WriteBlob};
use super::garbage::GRACE;
use super::large_object::{LargeObject, PART, Upload, persist};
use super::sheet::{LONGEST, SheetName};
use super::waiting::Waiting;
use crate::blob::Digest;
use crate::event::Observer;
use crate::http::{Download, FetchError, Objects, Patience, small_file, until_cancelled};
use crate::registry::Deletion;

/// Questions about blobs that are under way at once.
const QUESTIONS: usize = 16;

/// An object store, once more as one that takes large objects in parts where it is one.
pub(super) type Stores = (Arc<dyn ObjectStore>, Option<Arc<dyn MultipartStore>>);

/// A bucket is both.
pub(super) fn bucket<S: ObjectStore + MultipartStore>(store: Arc<S>) -> Stores {
    (store.clone(), Some(store))
}

/// A blob that was written so long ago is written again by whoever needs it and knows of no sheet that names it, in
/// seconds: he has as long until a collection of garbage could take it, and names it before.
const RENEWED_AFTER: i64 = GRACE as i64 / 2;
/// An empty object, whose time is the store's.
const CLOCK: &str = "blobs/clock";

/// An object store as a depot.
pub(super) struct ObjectDepot<'a> {
    store: Arc<dyn ObjectStore>,
    /// What takes large objects in parts that may be sent again; `None` of a directory, which takes them at once.
    parts: Option<Arc<dyn MultipartStore>>,
    objects: Objects,
    prefix: String,
    runtime: Arc<Runtime>,
    observer: &'a dyn Observer,
    /// For what a build waits for.
    quick: Patience,
    steady: Patience,
    /// The time by the store's clock when it was asked, in seconds after 1970.
    clock: OnceLock<i64>,
}

impl<'a> ObjectDepot<'a> {
    pub(super) fn new(
        (store, parts): Stores,
        prefix: &str,
        runtime: Arc<Runtime>,
        observer: &'a dyn Observer,
        (quick, steady): (Patience, Patience),
    ) -> Self {
        let objects = Objects(Arc::clone(&store));
        Self {
            store,
            parts,
            objects,
            prefix: prefix.to_owned(),
            runtime,
            observer,
            quick,
            steady,
            clock: OnceLock::new(),
        }
    }

    fn path(&self, name: &str) -> Path {
        Path::from(if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) })
    }

    fn blob(digest: &Digest) -> String {
        format!("blobs/sha256/{}", digest.hex())
    }

    fn failed(what: &str) -> impl Fn(FetchError) -> DepotError {
        move |source| DepotError::Objects { what: what.to_owned(), source }
    }

    /// Does something until it is done, or has failed too often.
    fn insist<T, W: Future<Output = object_store::Result<T>>>(
        &self,
        what: &str,
        patience: Patience,
        work: impl Fn() -> W,
    ) -> Result<T, DepotError> {
        self.runtime.block_on(until_cancelled(self.observer, persist(patience, work))).map_err(Self::failed(what))
    }

    /// What is known of an object; `None` where there is none.
    fn find(&self, name: &str) -> Result<Option<ObjectMeta>, DepotError> {
        let path = self.path(name);
        self.insist(name, self.steady, || async {
            match self.store.head(&path).await {
                Ok(object) => Ok(Some(object)),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// Whether an object was written so long ago that a collection of garbage may be about to remove it, by the store's own
    /// clock: what is written now has its time.
    fn is_old(&self, object: &ObjectMeta) -> Result<bool, DepotError> {
        let now = match self.clock.get() {
            Some(now) => Some(*now),
            None => {
                self.put(CLOCK, &Bytes::new(), PutMode::Overwrite)?;
                self.find(CLOCK)?.map(|now| *self.clock.get_or_init(|| now.last_modified.timestamp()))
            }
        };
        Ok(now.is_none_or(|now| now - object.last_modified.timestamp() > RENEWED_AFTER))
    }

    fn put(&self, name: &str, bytes: &Bytes, mode: PutMode) -> Result<bool, DepotError> {
        let path = self.path(name);
        self.insist(name, self.steady, || async {
            let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
            match self.store.put_opts(&path, bytes.clone().into(), options).await {
                Ok(_) => Ok(true),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn put_large(&self, name: &str, write: WriteBlob<'_>) -> Result<(), DepotError> {
        let path = self.path(name);
        let upload = match &self.parts {
            Some(parts) => {
                let id = self.insist(name, self.steady, || parts.create_multipart(&path))?;
                Upload::Numbered(Arc::clone(parts), id)
            }
            None => Upload::File(self.insist(name, self.steady, || self.store.put_multipart(&path))?),
        };
        let mut object = LargeObject::new(upload, path, self.steady, (&self.runtime, self.observer));
        let written = write(&mut object);
        let outcome = match (object.failure.take(), written) {
            (Some(error), _) => Err(Self::failed(name)(error)),
            (None, Err(error)) => Err(DepotError::Source(error)),
            (None, Ok(())) => object.finish().map_err(Self::failed(name)),
        };
        match outcome {
            Ok(()) => Ok(()),
            // There is no such upload any more where the end of it was answered, and that answer was lost.
            Err(DepotError::Objects { source: FetchError::NotFound, .. })
                if self.find(name).is_ok_and(|found| found.is_some()) =>
            {
                Ok(())
            }
            Err(error) => {
                object.abort();
                Err(error)
            }
        }
    }
}

impl Depot for ObjectDepot<'_> {
    fn sheets(&self) -> Result<Vec<SheetName>, DepotError> {
        let prefix = self.path("sheets");
        let listed = self.insist("its sheets", self.quick, || async {
            let found: Vec<_> = self.store.list(Some(&prefix)).try_collect().await?;
            Ok(found)
        })?;
        Ok(listed.iter().filter_map(|object| object.location.filename()?.parse().ok()).collect())
    }

    fn read_whole_sheet(&self, name: &SheetName) -> Result<Option<Vec<u8>>, DepotError> {
        let path = self.path(&format!("sheets/{name}")).to_string();
        let reading = small_file(&self.objects, &path, LONGEST, self.quick);
        match self.runtime.block_on(until_cancelled(self.observer, reading)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(FetchError::NotFound) => Ok(None),
            Err(error) => Err(Self::failed("a sheet")(error)),
        }
    }

    fn write_sheet(&self, name: &SheetName, bytes: &[u8], _: &BTreeMap<Digest, BlobNote>) -> Result<(), DepotError> {
        self.put(&format!("sheets/{name}"), &Bytes::copy_from_slice(bytes), PutMode::Overwrite).map(drop)
    }

    fn remove_sheet(&self, name: &SheetName) -> Result<Deletion, DepotError> {
        let path = self.path(&format!("sheets/{name}"));
        self.insist("a sheet", self.steady, || async {
            match self.store.delete(&path).await {
                Ok(()) => Ok(Deletion::Done),
                Err(Error::NotFound { .. }) => Ok(Deletion::Absent),
                Err(Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => Ok(Deletion::NotAllowed),
                Err(error) => Err(error),
            }
        })
    }

    fn has_blobs(&self, blobs: &[Digest]) -> Result<BTreeSet<Digest>, DepotError> {
        let asking = || {
            let asked = blobs.iter().map(|digest| {
                let path = self.path(&Self::blob(digest));
                async move {
                    match self.store.head(&path).await {
                        Ok(_) => Ok(Some(*digest)),
                        Err(Error::NotFound { .. }) => Ok(None),
                        Err(error) => Err(error),
                    }
                }
            });
            async move {
                let found: Vec<Option<Digest>> = stream::iter(asked).buffer_unordered(QUESTIONS).try_collect().await?;
                Ok(found.into_iter().flatten().collect())
            }
        };
        self.insist("its blobs", self.quick, asking)
    }

    fn read_blob(
        &self,
        blob: &Digest,
        size: u64,
        waiting: &Waiting<'_>,
        read: ReadBlob<'_>,
    ) -> Result<Option<io::Result<()>>, DepotError> {
        let path = self.path(&Self::blob(blob)).to_string();
        match Download::start(&self.objects, &path, size, waiting.patience(), (self.runtime.handle(), waiting)) {
            Ok(mut download) => Ok(Some(read(&mut download))),
            Err(FetchError::NotFound) => Ok(None),
            Err(error) => Err(Self::failed("a blob")(error)),
        }
    }

    fn write_blob(&self, blob: &Digest, size: u64, _: &[String], write: WriteBlob<'_>) -> Result<(), DepotError> {
        // One of another length is damaged. One that is old may be on its way out: no sheet names it, as far as is known.
        match self.find(&Self::blob(blob))? {
            Some(object) if object.size == size && !self.is_old(&object)? => Ok(()),
            _ => self.replace_blob(blob, size, write),
        }
    }

    fn replace_blob(&self, blob: &Digest, size: u64, write: WriteBlob<'_>) -> Result<(), DepotError> {
        let name = Self::blob(blob);
        if size > PART as u64 {
            return self.put_large(&name, write);
        }
        let mut bytes = Vec::new();
        write(&mut bytes).map_err(DepotError::Source)?;
        self.put(&name, &Bytes::from(bytes), PutMode::Overwrite).map(drop)
    }

    fn remove_blobs(&self, blobs: &BTreeMap<Digest, u64>, before: u64) -> Result<Option<u64>, DepotError> {
        let (mut freed, mut failure) = (0, None);
        for digest in blobs.keys() {
            let path = self.path(&Self::blob(digest));
            let removed = self.insist("a blob", self.steady, || async {
                let object = match self.store.head(&path).await {
                    Err(Error::NotFound { .. }) => return Ok(0),
                    found => found?,
                };
                // Somebody may be about to name one that is new.
                if object.last_modified.timestamp() >= i64::try_from(before).unwrap_or(i64::MAX) {
                    return Ok(0);
                }
                self.store.delete(&path).await?;
                Ok(object.size)
            });
            match removed {
                Ok(size) => freed += size,
                // The others go all the same.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        Ok(Some(freed))
    }
}
