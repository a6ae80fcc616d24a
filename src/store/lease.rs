//! Leases: what running builds use is not garbage.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tempfile::NamedTempFile;

use super::StoreError;
use super::files::IoContext;
use crate::blob::LayerKey;
use crate::crash;

/// A running build's hold on its layers. The file is locked as long as the process lives, so that a killed build
/// holds nothing.
#[derive(Debug)]
pub struct Lease {
    _locked: NamedTempFile,
}

/// All leases of processes that live.
#[derive(Debug, Default)]
pub(super) struct LiveLeases {
    /// Keys of layers in use.
    pub(super) keys: BTreeSet<LayerKey>,
    /// When the oldest was taken. Files younger than that may belong to a build that has not recorded them yet.
    pub(super) oldest: Option<SystemTime>,
    /// Files of builds that died.
    pub(super) dead: Vec<PathBuf>,
}

impl Lease {
    /// Only under the index's lock: no collection may see the file before it is locked and written.
    pub(super) fn take(leases: &Path, keys: &[LayerKey]) -> Result<Self, StoreError> {
        let mut file = tempfile::Builder::new().tempfile_in(leases).context("make a file in", leases)?;
        crash::point("lease.made");
        file.as_file().lock().context("lock", file.path())?;
        let text: String = keys.iter().map(|key| key.hex() + "\n").collect();
        file.write_all(text.as_bytes()).context("write", file.path())?;
        crash::point("lease.taken");
        Ok(Self { _locked: file })
    }
}

/// The keys in a lease's file; none where it cannot be read.
pub(super) fn keys_in(lease: &Path) -> Vec<LayerKey> {
    let text = std::fs::read(lease).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(LayerKey::from_hex).collect()
}

impl LiveLeases {
    /// Only under the index's lock.
    pub(super) fn read(leases: &Path) -> Result<Self, StoreError> {
        let mut live = Self::default();
        for entry in std::fs::read_dir(leases).context("list", leases)? {
            let path = entry.context("list", leases)?.path();
            let file = match File::open(&path) {
                Ok(file) => file,
                // Dropped since the directory was listed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).context("open", &path),
            };
            if file.try_lock().is_ok() {
                live.dead.push(path);
                continue;
            }
            live.keys.extend(keys_in(&path));
            let taken = file.metadata().and_then(|metadata| metadata.modified()).context("read", &path)?;
            live.oldest = Some(live.oldest.map_or(taken, |oldest| oldest.min(taken)));
        }
        Ok(live)
    }
}
