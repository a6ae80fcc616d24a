//! sled databases: fast to ask, free to lose.
//!
//! sled calls itself beta, locks other processes out, and can panic on a damaged file. So a database holds nothing that
//! cannot be had again, it is opened for a question and closed after it, the wait for other processes is on a lock file
//! of our own, and a database that does not open is moved aside and begun anew.

use std::fs::{File, TryLockError};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::StoreError;
use super::files::{self, IoContext};
use crate::crash;
use crate::event::Cancelled;
use crate::host;

/// Set in sled's default tree once a new database holds what it begins with: sled opens some damaged files as if they
/// were empty, and a process can be killed before it is through.
const COMPLETE: &[u8] = b"complete";
/// How long sled may keep its own lock after our lock is ours. It lets go a moment after it was dropped; longer means
/// that a stranger has the files open.
const SLED_PATIENCE: Duration = Duration::from_secs(10);

/// What can go wrong while a database is open.
#[derive(Debug)]
pub(super) enum WorkError {
    /// The database itself.
    Database(sled::Error),
    /// Something else in the store.
    Store(StoreError),
}

impl From<sled::Error> for WorkError {
    fn from(error: sled::Error) -> Self {
        Self::Database(error)
    }
}

impl From<StoreError> for WorkError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl WorkError {
    /// The store's error of work that was done without a database.
    pub(super) fn without_database(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Database(source) => StoreError::Index { path: "index".into(), source },
        }
    }
}

/// The right to open databases and to collect garbage; released with the process, by whatever end.
#[derive(Debug)]
pub(super) struct Held {
    _locked: File,
    patience: Duration,
    ended: &'static AtomicBool,
}

/// Waits until no other process has that right, for as long as `patience` lasts and nobody has set `ended`.
pub(super) fn hold(root: &Path, patience: Duration, ended: &'static AtomicBool) -> Result<Held, StoreError> {
    let path = root.join("index.lock");
    let file = File::options().create(true).append(true).open(&path).context("open", &path)?;
    let mut waited = Duration::ZERO;
    let mut pause = Duration::from_micros(200);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Held { _locked: file, patience, ended }),
            Err(TryLockError::WouldBlock) if ended.load(Ordering::Relaxed) => {
                return Err(StoreError::Interrupted(Cancelled));
            }
            Err(TryLockError::WouldBlock) if waited < patience => {
                std::thread::sleep(pause);
                waited += pause;
                pause = (pause * 2).min(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { path, waited: patience }),
            Err(TryLockError::Error(error)) => return Err(error).context("lock", &path),
        }
    }
}

/// Opens the database `name` at `root`, does `work` with it, and closes it.
///
/// One that is missing or damaged is made anew with what `begin` puts into it; `work` may then be done a second time.
pub(super) fn with<T>(
    root: &Path,
    name: &str,
    held: &Held,
    begin: impl Fn(&sled::Db) -> Result<(), WorkError>,
    work: impl Fn(&sled::Db) -> Result<T, WorkError>,
) -> Result<T, StoreError> {
    let path = root.join(name);
    let patience = held.patience.min(SLED_PATIENCE);
    let attempt = |is_new: bool| -> Result<T, WorkError> {
        let whole = || {
            let db = open(&path, patience, held.ended)?;
            if is_new {
                begin(&db)?;
                crash::point("index.filled");
                db.insert(COMPLETE, &[])?;
                db.flush()?;
            } else if !db.contains_key(COMPLETE)? {
                return Err(sled::Error::ReportableBug("it was never finished".to_owned()).into());
            }
            work(&db)
        };
        // sled starts eight threads for the first thing that it reads or writes, and each that runs before all are started
        // burns its core until they are: on one core they wait for their turn instead, and none keeps the starting one
        // from its own. And it asserts what it finds on the disk; a panic here says "damaged" and nothing more.
        let outcome = host::on_one_core(|| std::panic::catch_unwind(AssertUnwindSafe(whole)));
        outcome.unwrap_or_else(|_| Err(sled::Error::ReportableBug("it is damaged".to_owned()).into()))
    };
    let fail = |error| match error {
        WorkError::Database(error) if is_sled_lock(&error) => {
            StoreError::Busy { path: path.join("db"), waited: patience }
        }
        WorkError::Database(source) => StoreError::Index { path: path.clone(), source },
        WorkError::Store(error) => error,
    };
    if path.exists() {
        match attempt(false) {
            Ok(done) => return Ok(done),
            Err(WorkError::Database(error)) if !is_surroundings(&error) && !is_sled_lock(&error) => {
                move_aside(root, &path)?;
            }
            Err(error) => return Err(fail(error)),
        }
    }
    attempt(true).map_err(fail)
}

fn open(path: &Path, patience: Duration, ended: &AtomicBool) -> sled::Result<sled::Db> {
    let config = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(16 << 20);
    let pause = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    let db = loop {
        match config.open() {
            Err(error) if is_sled_lock(&error) && waited < patience && !ended.load(Ordering::Relaxed) => {
                std::thread::sleep(pause);
                waited += pause;
            }
            opened => break opened?,
        }
    };
    crash::point("index.opened");
    Ok(db)
}

/// The number under `key` in sled's default tree; 0 where there is none.
pub(super) fn number(db: &sled::Db, key: &[u8]) -> sled::Result<u64> {
    let value = db.get(key)?;
    Ok(value.and_then(|value| value.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes))
}

/// sled's words for a lock that another process has; the error has no kind of its own.
fn is_sled_lock(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

/// Whether a new database would meet the same error: the disk is full, or the directory is not ours.
fn is_surroundings(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if files::is_surroundings(error))
}

/// Out of the way and then deleted: a second damage finds no leftovers, and a kill in between leaves only an orphan.
fn move_aside(root: &Path, path: &Path) -> Result<(), StoreError> {
    let aside = tempfile::Builder::new()
        .prefix("damaged-")
        .tempdir_in(root.join("tmp"))
        .context("make a directory in", &root.join("tmp"))?;
    std::fs::rename(path, aside.path().join("database")).context("move the damaged database", path)?;
    crash::point("index.moved-aside");
    Ok(())
}
