//! The Nix database, read while Nix may be writing it.
//!
//! Nix keeps its database in SQLite's write-ahead-log mode: beside `db.sqlite` there are, while somebody has it open,
//! `-wal` (changes not yet written back) and `-shm` (the readers' and writers' common index of it). A reader needs
//! all three (sqlite.org/wal.html, "Read-Only Databases"), and there are three ways to come by them:
//!
//! - They are there, or may be made: SQLite reads as usual, and sees every change that was committed. This is how it
//!   goes for root, for the owner of a single-user store, and for everyone while the daemon has the database open.
//! - They are absent and may not be made (an unprivileged user while no daemon runs, a read-only file system): nobody
//!   has the database open and nothing is left to write back, so the database file alone is the whole truth, and is
//!   opened as `immutable`. SQLite then takes no locks and looks for no changes; so this module does: a query counts
//!   only if the file was the same before and after it, and is repeated otherwise, by the way that is open by then.
//! - A `-wal` with changes is there, but no `-shm`, and it may not be made (a copied or crashed store on a read-only
//!   file system): the database file alone would be an old state or none. That is an error.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{ContentHash, SourceError, StorePath};

/// How long to wait for a writer that has the database to itself (Nix does so for a moment when it opens it).
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a query is repeated because the database changed under it, and how long to wait in between.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// One path with all its references in one statement, hence from one state of the database. A path without references
/// gives one row whose last column is null.
const QUERY: &str = "select v.hash, v.narSize, t.path from ValidPaths v \
    left join Refs r on r.referrer = v.id left join ValidPaths t on t.id = r.reference where v.path = ?1";

/// What the database says of a path.
pub(super) struct Record {
    pub(super) content: ContentHash,
    /// `None` in databases of old, where nobody wrote it down.
    pub(super) nar_size: Option<u64>,
    /// The path itself included, where it refers to itself.
    pub(super) references: Vec<StorePath>,
}

/// An open Nix database.
pub(super) struct Database {
    file: PathBuf,
    /// Connections that nobody uses at the moment: there come to be as many as threads that ask at once.
    idle: Mutex<Vec<Access>>,
}

struct Access {
    connection: Connection,
    /// The state of the files for which an `immutable` connection holds; `None` where SQLite looks after that.
    still: Option<Stillness>,
}

/// What an `immutable` connection relies on: nothing to write back, and the database file as it was.
#[derive(PartialEq, Eq)]
struct Stillness {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    wal: u64,
}

/// Why a query brought nothing.
enum Failure {
    Sqlite(rusqlite::Error),
    Files(io::Error),
    Record { path: String, reason: String },
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Files(error)
    }
}

impl Database {
    /// Opens the database file, which must exist.
    pub(super) fn open(file: PathBuf) -> Result<Self, SourceError> {
        let database = Self { file, idle: Mutex::new(Vec::new()) };
        let access = database.connect().map_err(|failure| database.error(failure))?;
        database.idle.lock().unwrap_or_else(PoisonError::into_inner).push(access);
        Ok(database)
    }

    /// The database file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// What the database says of `path`; `None` where it does not know it as valid.
    pub(super) fn record(&self, path: &StorePath) -> Result<Option<Record>, SourceError> {
        let mut access = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let answer = self.query(&mut access, path).map_err(|failure| self.error(failure));
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(access);
        answer
    }

    fn query(&self, slot: &mut Option<Access>, path: &StorePath) -> Result<Option<Record>, Failure> {
        let path = path.to_string();
        let mut attempt = 1;
        loop {
            let access = match slot {
                Some(access) => access,
                None => slot.insert(self.connect()?),
            };
            let answer = if access.still.as_ref().is_none_or(|still| self.stillness().is_ok_and(|now| now == *still)) {
                let answer = read(&access.connection, &path);
                match &access.still {
                    None => Some(answer),
                    Some(still) => (self.stillness()? == *still).then_some(answer),
                }
            } else {
                None
            };
            match answer {
                Some(Err(Failure::Sqlite(error))) if attempt < ATTEMPTS && lost_its_files(&error) => {}
                Some(answer) => return answer,
                None if attempt < ATTEMPTS => {}
                None => return Err(Failure::Files(io::Error::other("it changes faster than it can be read"))),
            }
            *slot = None;
            attempt += 1;
            thread::sleep(PAUSE);
        }
    }

    fn connect(&self) -> Result<Access, Failure> {
        let mut attempt = 1;
        loop {
            // Before anything is opened: what is true of the files after this shows in a comparison.
            let still = self.stillness()?;
            let refused = match self.open_as("ro") {
                Ok(connection) => return Ok(Access { connection, still: None }),
                Err(error) if lost_its_files(&error) => error,
                Err(error) => return Err(error.into()),
            };
            if still.wal == 0 {
                let connection = self.open_as("ro&immutable=1")?;
                return Ok(Access { connection, still: Some(still) });
            }
            // Perhaps the last writer left at this very moment, and took the files with it.
            if attempt == ATTEMPTS {
                return Err(refused.into());
            }
            attempt += 1;
            thread::sleep(PAUSE);
        }
    }

    fn open_as(&self, mode: &str) -> Result<Connection, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(uri(&self.file, mode), flags)?;
        connection.busy_timeout(PATIENCE)?;
        // Plans that do not depend on the path asked for: otherwise every query would be planned anew.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        // SQLite opens its files at the first look.
        connection.query_row("select count(*) from sqlite_master", [], |_| Ok(()))?;
        Ok(connection)
    }

    fn stillness(&self) -> io::Result<Stillness> {
        let file = fs::metadata(&self.file)?;
        let mut wal = self.file.clone().into_os_string();
        wal.push("-wal");
        let wal = match fs::metadata(wal) {
            Ok(wal) => wal.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Stillness {
            inode: file.ino(),
            size: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
            wal,
        })
    }

    fn error(&self, failure: Failure) -> SourceError {
        let database = self.file.clone();
        match failure {
            Failure::Sqlite(source) => SourceError::Database { database, source },
            Failure::Files(source) => SourceError::DatabaseFile { database, source },
            Failure::Record { path, reason } => SourceError::Record { database, path, reason },
        }
    }
}

/// SQLite could not have the files that it needs beside the database, or lost them.
fn lost_its_files(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}

fn read(connection: &Connection, path: &str) -> Result<Option<Record>, Failure> {
    let fail = |reason: String| Failure::Record { path: path.to_owned(), reason };
    let mut statement = connection.prepare_cached(QUERY)?;
    let mut rows = statement.query([path])?;
    let mut record = None;
    while let Some(row) = rows.next()? {
        if record.is_none() {
            let content =
                ContentHash::from_nar_hash(row.get_ref(0)?.as_str().map_err(|error| fail(error.to_string()))?)
                    .map_err(|error| fail(error.to_string()))?;
            let nar_size = match row.get::<_, Option<i64>>(1)? {
                None | Some(0) => None,
                Some(size) => Some(u64::try_from(size).map_err(|_| fail(format!("its NAR is {size} bytes long")))?),
            };
            record = Some(Record { content, nar_size, references: Vec::new() });
        }
        let reference = row.get_ref(2)?.as_str_or_null().map_err(|error| fail(error.to_string()))?;
        if let (Some(record), Some(reference)) = (&mut record, reference) {
            record.references.push(reference.parse().map_err(|error| fail(format!("a reference of it: {error}")))?);
        }
    }
    Ok(record)
}

/// A file's name as SQLite wants it (sqlite.org/uri.html).
fn uri(file: &Path, mode: &str) -> OsString {
    // With an empty authority, so that a path that begins with two slashes is not taken for one.
    let mut uri = String::from(if file.is_absolute() { "file://" } else { "file:" });
    for &byte in file.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(byte.into()),
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str("?mode=");
    uri.push_str(mode);
    uri.into()
}

#[cfg(test)]
mod tests;
