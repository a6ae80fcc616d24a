//! The Nix database in every state in which a reader may meet it.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use rstest::rstest;

use super::*;
use crate::nix::testing::{FORGETFUL, REGISTERED, TestStore, register, skip_this, store_path};
use crate::nix::{Closure, ClosureError, FileStamp, LocalStore, MemoryTree, Source};

fn a() -> StorePath {
    store_path('1', "a")
}

/// A store with the path `a`, on disk and in the database, which is still open for writing.
fn store() -> (TestStore, Connection) {
    let store = TestStore::new();
    store.write(&a(), &MemoryTree::new());
    let writer = store.database();
    register(&writer, &a(), Some(96), &[]);
    (store, writer)
}

fn beside(store: &TestStore, suffix: &str) -> PathBuf {
    let mut file = store.database_file().into_os_string();
    file.push(suffix);
    file.into()
}

#[test]
fn a_writers_commits_are_seen_before_they_are_written_back() {
    let (store, writer) = store();
    let reader = store.open();
    assert!(reader.has_database());
    assert_eq!(reader.path_info(&a()).unwrap().unwrap().content, REGISTERED);
    let b = store_path('2', "b");
    assert_eq!(reader.path_info(&b).unwrap(), None);
    store.write(&b, &MemoryTree::new());
    register(&writer, &b, Some(96), &[&a(), &b]);
    assert!(fs::metadata(beside(&store, "-wal")).unwrap().len() > 0);
    let info = reader.path_info(&b).unwrap().unwrap();
    assert_eq!(Vec::from_iter(info.references), [a()]);
}

#[test]
fn what_a_writer_has_not_committed_is_not_seen() {
    let (store, mut writer) = store();
    let reader = store.open();
    let transaction = writer.transaction().unwrap();
    let b = store_path('2', "b");
    register(&transaction, &b, Some(96), &[]);
    assert_eq!(reader.path_info(&b).unwrap(), None);
    transaction.rollback().unwrap();
}

#[test]
fn every_answer_is_from_one_state_while_a_writer_writes_and_checkpoints() {
    let (store, mut writer) = store();
    let others: Vec<StorePath> = "23456789".chars().map(|digit| store_path(digit, "other")).collect();
    for other in &others {
        register(&writer, other, Some(96), &[]);
    }
    let done = AtomicBool::new(false);
    let sizes = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let reader = store.open();
            let mut sizes = Vec::new();
            while !done.load(Ordering::Relaxed) {
                sizes.push(reader.path_info(&a()).unwrap().unwrap().references.len());
            }
            sizes
        });
        for round in 0..200 {
            let transaction = writer.transaction().unwrap();
            transaction.execute("delete from Refs", []).unwrap();
            if round % 2 == 0 {
                for other in &others {
                    let path = a().to_string();
                    transaction
                        .execute(
                            "insert into Refs select v.id, w.id from ValidPaths v, ValidPaths w \
                             where v.path = ?1 and w.path = ?2",
                            [path, other.to_string()],
                        )
                        .unwrap();
                }
            }
            transaction.commit().unwrap();
            if round % 10 == 0 {
                writer.query_row("pragma wal_checkpoint(restart)", [], |_| Ok(())).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
        reading.join().unwrap()
    });
    assert!(!sizes.is_empty());
    assert!(sizes.iter().all(|size| [0, 8].contains(size)), "{sizes:?}");
}

#[rstest]
#[case::null(None)]
#[case::zero(Some(0))]
fn a_nar_size_that_nobody_wrote_down_is_computed(#[case] size: Option<u64>) {
    let store = TestStore::new();
    let mut tree = MemoryTree::new();
    tree.file(b"bin/tool", true, *b"#!/bin/sh\n").unwrap();
    store.write(&a(), &tree);
    register(&store.database(), &a(), size, &[]);
    assert_eq!(store.open().path_info(&a()).unwrap().unwrap().nar_size, tree.content().1);
}

#[test]
fn a_path_that_the_database_does_not_vouch_for_says_what_to_do() {
    let (store, writer) = store();
    let (b, c) = (store_path('2', "b"), store_path('3', "c"));
    store.write(&b, &MemoryTree::new());
    register(&writer, &c, Some(96), &[]);
    let reader = store.open();
    let error = reader.path_info(&b).unwrap_err();
    assert!(matches!(&error, SourceError::Unregistered { path, .. } if *path == b), "{error}");
    assert_eq!(error.hint().unwrap(), format!("let Nix fetch or build it: nix-store --realise {b}"));
    let error = reader.path_info(&c).unwrap_err();
    assert!(matches!(&error, SourceError::Vanished { path, .. } if *path == c), "{error}");
    assert_eq!(error.hint().unwrap(), format!("let Nix fetch or build it again: nix-store --repair-path {c}"));
}

#[test]
fn an_unregistered_reference_is_named_with_who_refers_to_it() {
    let (store, writer) = store();
    let top = store_path('2', "top");
    store.write(&top, &MemoryTree::new());
    register(&writer, &top, Some(96), &[&a()]);
    fs::remove_dir(store.path(&a())).unwrap();
    let error = Closure::compute(&store.open(), [top.clone()]).unwrap_err();
    assert!(matches!(&error, ClosureError::Unusable { path, .. } if *path == a()));
    assert_eq!(error.to_string(), format!("'{}' cannot be used, but '{top}' refers to it", a()));
    assert!(error.hint().unwrap().contains("--repair-path"));
}

#[rstest]
#[case::hash("update ValidPaths set hash = 'md5:00'", "'md5:00' is not a sha256 hash")]
#[case::size("update ValidPaths set narSize = -1", "its NAR is -1 bytes long")]
fn a_record_that_makes_no_sense_is_an_error(#[case] damage: &str, #[case] reason: &str) {
    let (store, writer) = store();
    writer.execute(damage, []).unwrap();
    let error = store.open().path_info(&a()).unwrap_err();
    assert!(error.to_string().contains(reason), "{error}");
    assert!(error.to_string().contains(&a().to_string()), "{error}");
}

#[test]
fn a_file_that_is_no_database_is_an_error() {
    let (store, writer) = store();
    drop(writer);
    fs::write(store.database_file(), "no database at all, though long enough to be read as one ".repeat(50)).unwrap();
    let error = LocalStore::open(store.root(), FORGETFUL).err().unwrap();
    assert!(matches!(error, SourceError::Database { .. }), "{error}");
    fs::write(store.database_file(), "").unwrap();
    let error = store.open().path_info(&a()).unwrap_err();
    assert!(matches!(error, SourceError::Database { .. }), "{error}");
}

#[test]
fn odd_characters_in_the_stores_path_are_no_matter() {
    let outer = TestStore::new();
    let root = outer.root().join("a?mode=memory&b#c%41 d");
    fs::create_dir_all(root.join("nix/var/nix/db")).unwrap();
    fs::rename(outer.root().join("nix/store"), root.join("nix/store")).unwrap();
    {
        let writer = outer.database();
        register(&writer, &a(), Some(96), &[]);
    }
    fs::rename(outer.database_file(), root.join("nix/var/nix/db/db.sqlite")).unwrap();
    let database = Database::open(root.join("nix/var/nix/db/db.sqlite")).unwrap();
    assert_eq!(database.record(&a()).unwrap().unwrap().content, REGISTERED);
}

/// Not a test: what [`look`] runs as somebody else. Prints what it finds.
#[test]
#[ignore = "run by the tests that look at a store as another user or on a read-only file system"]
#[expect(clippy::print_stdout, reason = "it answers the test that runs it")]
fn look_at_a_store() {
    let root = PathBuf::from(std::env::var_os("LAYERHOLD_TEST_ROOT").unwrap());
    let found = match LocalStore::open(&root, FORGETFUL) {
        Ok(store) => format!("{:?}", store.path_info(&a()).map(|info| info.map(|info| info.content))),
        Err(error) => format!("{error}: {:?}", error.hint()),
    };
    println!("FOUND {found}");
}

/// Runs [`look_at_a_store`] by way of `command`.
fn look(store: &TestStore, command: &[&str]) -> String {
    let Output { stdout, stderr, .. } = Command::new(command[0])
        .args(&command[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "nix::database::tests::look_at_a_store", "--ignored", "--nocapture"])
        .env("LAYERHOLD_TEST_ROOT", store.root())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    let found = stdout.lines().find_map(|line| line.split_once("FOUND ").map(|(_, found)| found.to_owned()));
    found.unwrap_or_else(|| panic!("no answer: {stdout}{stderr}"))
}

/// Whether this right is had here, as `command` shows; else the test is skipped.
fn may(right: &str, command: &[&str]) -> bool {
    let runs = Command::new(command[0]).args(&command[1..]).arg("true").output();
    let runs = runs.is_ok_and(|output| output.status.success());
    if !runs {
        skip_this(&format!("right to {right}"));
    }
    runs
}

const NOBODY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

fn found() -> String {
    format!("{:?}", Ok::<_, ()>(Some(REGISTERED)))
}

/// How the database's companions are when an unprivileged user comes.
#[derive(Clone, Copy, PartialEq)]
enum Companions {
    /// A writer has it open; nothing is written back yet.
    InUse,
    /// The last writer closed it.
    Absent,
    /// Left over by a reader: an empty `-wal`, a `-shm` that nobody uses.
    Empty,
    /// The last writer crashed: changes in `-wal`, a `-shm` that nobody uses.
    Crashed,
}

#[rstest]
#[case::in_use(Companions::InUse)]
#[case::absent(Companions::Absent)]
#[case::empty(Companions::Empty)]
#[case::crashed(Companions::Crashed)]
fn an_unprivileged_user_reads_the_database(#[case] companions: Companions) {
    if !may("become another user", NOBODY) {
        return;
    }
    let (store, writer) = store();
    fs::set_permissions(store.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let _writer = match companions {
        Companions::InUse => Some(writer),
        Companions::Absent => {
            drop(writer);
            assert!(!beside(&store, "-wal").exists() && !beside(&store, "-shm").exists());
            None
        }
        Companions::Empty => {
            drop(writer);
            store.open().path_info(&a()).unwrap();
            assert_eq!(fs::metadata(beside(&store, "-wal")).unwrap().len(), 0);
            assert!(beside(&store, "-shm").exists());
            None
        }
        Companions::Crashed => {
            let (wal, shm) = (fs::read(beside(&store, "-wal")).unwrap(), fs::read(beside(&store, "-shm")).unwrap());
            let file = fs::read(store.database_file()).unwrap();
            drop(writer);
            fs::write(store.database_file(), file).unwrap();
            fs::write(beside(&store, "-wal"), wal).unwrap();
            fs::write(beside(&store, "-shm"), shm).unwrap();
            None
        }
    };
    assert_eq!(look(&store, NOBODY), found());
    if companions == Companions::Absent {
        assert!(!beside(&store, "-wal").exists() && !beside(&store, "-shm").exists());
    }
}

const READ_ONLY: &str = r#"mount --bind "$LAYERHOLD_TEST_ROOT" "$LAYERHOLD_TEST_ROOT" &&
    mount -o remount,bind,ro "$LAYERHOLD_TEST_ROOT" && exec "$@""#;

#[test]
fn a_read_only_file_system_is_read() {
    let mounts = &["unshare", "-m", "sh", "-c", "mount --bind /mnt /mnt && exec \"$@\"", "sh"];
    if !may("mount", mounts) {
        return;
    }
    let (store, writer) = store();
    let command = &["unshare", "-m", "sh", "-c", READ_ONLY, "sh"];
    assert_eq!(look(&store, command), found(), "while a writer writes elsewhere");
    let wal = fs::read(beside(&store, "-wal")).unwrap();
    let file = fs::read(store.database_file()).unwrap();
    drop(writer);
    assert_eq!(look(&store, command), found(), "without companions");
    // Without its log the database would be an old one: not even the table is in the file.
    fs::write(store.database_file(), file).unwrap();
    fs::write(beside(&store, "-wal"), wal).unwrap();
    let answer = look(&store, command);
    assert!(answer.starts_with("cannot read the Nix database") && answer.contains("nix-store --verify"), "{answer}");
}

#[test]
fn an_immutable_database_that_changes_after_all_is_read_again() {
    let (store, writer) = store();
    drop(writer);
    let database = Database::open(store.database_file()).unwrap();
    // As if the companions could not have been made.
    let still = database.stillness().unwrap();
    *database.idle.lock().unwrap() =
        vec![Access { connection: database.open_as("ro&immutable=1").unwrap(), still: Some(still) }];
    assert!(database.record(&a()).unwrap().is_some());
    let b = store_path('2', "b");
    assert!(database.record(&b).unwrap().is_none());
    assert!(database.idle.lock().unwrap()[0].still.is_some());
    register(&store.database(), &b, Some(96), &[]);
    assert!(database.record(&b).unwrap().is_some());
}

#[test]
fn a_closure_of_thousands_of_paths_takes_one_query_each() {
    let store = TestStore::new();
    let writer = store.database();
    writer.execute_batch("begin").unwrap();
    let paths: Vec<StorePath> = (0..5000).map(|n| StorePath::from_base_name(&format!("{n:032}-p")).unwrap()).collect();
    for (n, path) in paths.iter().enumerate() {
        fs::create_dir(store.path(path)).unwrap();
        let references: Vec<&StorePath> =
            (1..=10).filter_map(|step| paths[..n].get(n.wrapping_sub(step * step))).collect();
        register(&writer, path, Some(96), &references);
    }
    writer.execute_batch("commit").unwrap();
    let source = store.open();
    let started = std::time::Instant::now();
    let closure = Closure::compute(&source, [paths[4999].clone()]).unwrap();
    let took = started.elapsed();
    assert_eq!(closure.paths().len(), 5000);
    // Tens of milliseconds in a release build; far more would mean a table read from end to end for each path.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn stamps_tell_files_apart() {
    let (store, _writer) = store();
    let stat = |path: PathBuf| FileStamp::of(&rustix::fs::lstat(path).unwrap());
    assert_ne!(stat(store.database_file()), stat(beside(&store, "-wal")));
}
