//! Where a shared cache's sheets and blobs lie.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use super::sheet::{InvalidSheet, SheetName};
use super::waiting::Waiting;
use crate::blob::Digest;
use crate::http::FetchError;
use crate::registry::{Deletion, RegistryError};

/// A blob that a sheet's entries need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobNote {
    /// Its length in bytes.
    pub size: u64,
    /// Its OCI media type.
    pub media_type: String,
}

/// A depot did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// The registry's doing.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The object store's doing.
    #[error("{what} could not be had or kept")]
    Objects {
        /// What was wanted.
        what: String,
        /// Why.
        #[source]
        source: FetchError,
    },
    /// The bytes that were to be kept did not come.
    #[error("the bytes of a layer did not come")]
    Source(#[source] io::Error),
    /// It lost a blob that it has just been given.
    #[error("it has not kept a blob")]
    Forgetful,
    /// A sheet that is listed cannot be read.
    #[error("the sheet {name} cannot be read")]
    Sheet {
        /// The sheet.
        name: SheetName,
        /// Why.
        #[source]
        why: UnreadableSheet,
    },
    /// Its sheets were others at every look.
    #[error("its sheets change faster than they are read")]
    Restless,
}

/// Why a sheet that is listed cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableSheet {
    /// It is listed at every look, and not had at any; or its tag is there, and its bytes are not.
    #[error("it is listed, and its bytes are not there")]
    Lost,
    /// Something else has its name.
    #[error("what is there is no sheet")]
    Foreign,
    /// Its bytes are others than they were.
    #[error("its bytes do not have their digest")]
    Damaged,
    /// Its bytes broke off.
    #[error("its bytes did not come")]
    Broken(#[source] io::Error),
    /// Its bytes say nothing, or nothing to this version.
    #[error(transparent)]
    Invalid(#[from] InvalidSheet),
}

impl DepotError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            Self::Objects { source: FetchError::Denied { .. }, .. } => Some(
                "name a key that may: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS"
                    .to_owned(),
            ),
            Self::Sheet { why: UnreadableSheet::Invalid(InvalidSheet::Version { .. }), .. } => {
                Some("have the cache tidied by a version that reads all its sheets".to_owned())
            }
            Self::Sheet { why: UnreadableSheet::Broken(_), .. } => None,
            Self::Sheet { name, .. } => Some(format!(
                "if it cannot be had back, remove '{name}' there: layers that only its images need go then"
            )),
            Self::Restless => Some("try again while fewer runs write to it".to_owned()),
            Self::Objects { .. } | Self::Source(_) | Self::Forgetful => None,
        }
    }
}

/// Writes a blob; may be called again where the depot loses what it got.
pub type WriteBlob<'w> = &'w mut dyn FnMut(&mut dyn Write) -> io::Result<()>;
/// Reads a blob. What comes is not verified yet.
pub type ReadBlob<'r> = &'r mut dyn FnMut(&mut dyn Read) -> io::Result<()>;

/// What sheets and blobs are kept in. Calls wait for their answers, may come from any thread, and may be made again. What
/// is written is seen by every later look, and nothing that is named is changed by another writer.
pub trait Depot: Send + Sync {
    /// The sheets that are there.
    fn sheets(&self) -> Result<Vec<SheetName>, DepotError>;

    /// The bytes of a sheet, for a build, to which one that is not whole says nothing; `None` where it is gone.
    fn read_sheet(&self, name: &SheetName) -> Result<Option<Vec<u8>>, DepotError> {
        match self.read_whole_sheet(name) {
            Err(DepotError::Sheet { .. }) => Ok(None),
            read => read,
        }
    }

    /// The same for whoever removes what no sheet needs: one that is there and not whole is an error.
    fn read_whole_sheet(&self, name: &SheetName) -> Result<Option<Vec<u8>>, DepotError>;

    /// Writes a sheet, or writes it anew. The blobs that its entries need are there by then.
    fn write_sheet(&self, name: &SheetName, bytes: &[u8], blobs: &BTreeMap<Digest, BlobNote>)
    -> Result<(), DepotError>;

    /// Removes a sheet.
    fn remove_sheet(&self, name: &SheetName) -> Result<Deletion, DepotError>;

    /// Removes what may be left of sheets that are gone and that other sheets supersede, because a removal was cut
    /// short. What goes wrong leaves it to a later one.
    fn finish_removals(&self, _absent: &[SheetName]) {}

    /// Those of the blobs that are there; a build waits for the answer.
    fn has_blobs(&self, blobs: &[Digest]) -> Result<BTreeSet<Digest>, DepotError>;

    /// Has a blob read, as long as a build waits for it; the answer is what `read` gives, `None` where there is no such
    /// blob.
    fn read_blob(
        &self,
        blob: &Digest,
        size: u64,
        waiting: &Waiting<'_>,
        read: ReadBlob<'_>,
    ) -> Result<Option<io::Result<()>>, DepotError>;

    /// Keeps a blob, out of one of these repositories of the same registry if it can be had from there. One that is there
    /// already is not written, unless it may be about to go.
    fn write_blob(
        &self,
        blob: &Digest,
        size: u64,
        mount_from: &[String],
        write: WriteBlob<'_>,
    ) -> Result<(), DepotError>;

    /// Keeps a blob in the place of what is there: for one that is known to be damaged.
    fn replace_blob(&self, blob: &Digest, size: u64, write: WriteBlob<'_>) -> Result<(), DepotError>;

    /// Removes blobs that nothing needs and that were kept before `before`, in seconds after 1970; says how many bytes that
    /// gave, or `None` where that is somebody else's work.
    fn remove_blobs(&self, blobs: &BTreeMap<Digest, u64>, before: u64) -> Result<Option<u64>, DepotError>;
}
