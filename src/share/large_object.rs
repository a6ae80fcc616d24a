//! A large object on its way to a store: in parts, several at once, each of which is sent again where that fails.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartId, MultipartUpload};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::event::Observer;
use crate::http::{FetchError, Patience, from_object_store, until_cancelled};

/// Bytes of a part, and how many of them may be under way.
pub(super) const PART: usize = 8 << 20;
const PARTS: usize = 2;

/// Does something until it is done, or has failed too often.
pub(super) async fn persist<T, W: Future<Output = object_store::Result<T>>>(
    patience: Patience,
    work: impl Fn() -> W,
) -> Result<T, FetchError> {
    let mut failures = 0;
    loop {
        let after = patience.stalled_after;
        let error = match timeout(after, work()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => from_object_store(error),
            Err(_) => FetchError::Stalled { after },
        };
        failures += 1;
        match patience.wait(&error, failures) {
            Some(wait) => sleep(wait).await,
            None => return Err(error),
        }
    }
}

/// What takes the parts.
pub(super) enum Upload {
    /// A bucket: a part has a number there, and may be sent again.
    Numbered(Arc<dyn MultipartStore>, MultipartId),
    /// A file of this machine, which becomes the object when it is whole.
    File(Box<dyn MultipartUpload>),
}

/// The object, as far as it was written.
pub(super) struct LargeObject<'p> {
    path: Path,
    upload: Upload,
    patience: Patience,
    runtime: &'p Runtime,
    observer: &'p dyn Observer,
    /// The part that is being written, and how many were before it.
    part: Vec<u8>,
    begun: usize,
    under_way: JoinSet<Result<(usize, Option<PartId>), FetchError>>,
    arrived: BTreeMap<usize, PartId>,
    /// Why it cannot be written on.
    pub(super) failure: Option<FetchError>,
}

impl<'p> LargeObject<'p> {
    pub(super) fn new(
        upload: Upload,
        path: Path,
        patience: Patience,
        (runtime, observer): (&'p Runtime, &'p dyn Observer),
    ) -> Self {
        // How much of a part has come nobody can see: it is given longer than a small answer, and so is their end, for
        // which a bucket puts them together.
        let patience = Patience { stalled_after: 2 * patience.stalled_after, ..patience };
        let (part, under_way, arrived) = (Vec::new(), JoinSet::new(), BTreeMap::new());
        Self { path, upload, patience, runtime, observer, part, begun: 0, under_way, arrived, failure: None }
    }

    /// Sends the rest, and has the store make an object of all.
    pub(super) fn finish(&mut self) -> Result<(), FetchError> {
        if !self.part.is_empty() {
            self.send()?;
        }
        self.wait_for(0)?;
        let (path, patience) = (&self.path, self.patience);
        let parts: Vec<PartId> = std::mem::take(&mut self.arrived).into_values().collect();
        let upload = &mut self.upload;
        let finishing = async move {
            match upload {
                Upload::Numbered(store, id) => {
                    persist(patience, || store.complete_multipart(path, id, parts.clone())).await.map(drop)
                }
                Upload::File(file) => file.complete().await.map(drop).map_err(from_object_store),
            }
        };
        self.runtime.block_on(until_cancelled(self.observer, finishing))
    }

    /// Takes back what was sent. What cannot be taken back is the bucket's to tidy: parts are no object.
    pub(super) fn abort(mut self) {
        self.under_way.abort_all();
        let (path, after) = (&self.path, self.patience.stalled_after);
        let upload = &mut self.upload;
        let aborting = async move {
            let aborting = async {
                match upload {
                    Upload::Numbered(store, id) => store.abort_multipart(path, id).await,
                    Upload::File(file) => file.abort().await,
                }
            };
            timeout(after, aborting).await.map(drop).map_err(|_| FetchError::Stalled { after })
        };
        let _ = self.runtime.block_on(until_cancelled(self.observer, aborting));
    }

    /// Begins to send the part that was written, as soon as few enough are under way.
    fn send(&mut self) -> Result<(), FetchError> {
        self.wait_for(PARTS - 1)?;
        let (at, part) = (self.begun, Bytes::from(std::mem::take(&mut self.part)));
        self.begun += 1;
        let runtime = self.runtime.handle();
        match &mut self.upload {
            Upload::Numbered(store, id) => {
                let (store, path, id, patience) = (Arc::clone(store), self.path.clone(), id.clone(), self.patience);
                let sending = async move {
                    let sent = persist(patience, || store.put_part(&path, &id, at, part.clone().into())).await;
                    sent.map(|sent| (at, Some(sent)))
                };
                self.under_way.spawn_on(sending, runtime);
            }
            Upload::File(file) => {
                let writing = file.put_part(part.into());
                let writing = async move { writing.await.map(|()| (at, None)).map_err(from_object_store) };
                self.under_way.spawn_on(writing, runtime);
            }
        }
        Ok(())
    }

    /// Waits until no more than so many parts are under way.
    fn wait_for(&mut self, most: usize) -> Result<(), FetchError> {
        let (under_way, arrived) = (&mut self.under_way, &mut self.arrived);
        let waiting = async {
            while under_way.len() > most {
                let Some(sent) = under_way.join_next().await else { break };
                let (at, part) = sent.map_err(|error| FetchError::connection(error, false))??;
                arrived.extend(part.map(|part| (at, part)));
            }
            Ok(())
        };
        self.runtime.block_on(until_cancelled(self.observer, waiting))
    }
}

impl Write for LargeObject<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.part.len() == PART
            && let Err(error) = self.send()
        {
            self.failure = Some(error);
            return Err(io::Error::other("the object store did not take it"));
        }
        if self.part.capacity() == 0 {
            self.part.reserve_exact(PART);
        }
        let taken = bytes.len().min(PART - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "large_object_tests.rs"]
mod tests;
