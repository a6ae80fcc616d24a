//! What every depot must do, over every one that needs no server; those that do are tried by the integration tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use rstest::rstest;

use super::depot::{BlobNote, Depot, DepotError};
use super::object_depot::{ObjectDepot, Stores, bucket};
use super::sheet::SheetName;
use super::waiting::{Health, Wait, Waiting};
use crate::blob::Digest;
use crate::event::Silent;
use crate::http::Patience;
use crate::registry::Deletion;

/// A depot, and what must live as long as it does.
struct Place {
    depot: ObjectDepot<'static>,
    directory: tempfile::TempDir,
}

fn place(kind: &str) -> Place {
    let directory = tempfile::tempdir().unwrap();
    let (stores, prefix): (Stores, _) = match kind {
        "directory" => ((Arc::new(LocalFileSystem::new_with_prefix(directory.path()).unwrap()), None), ""),
        _ => (bucket(Arc::new(InMemory::new())), "team/cache"),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let patience = (Patience::default(), Patience::default());
    Place { depot: ObjectDepot::new(stores, prefix, Arc::new(runtime), &Silent, patience), directory }
}

fn read(depot: &dyn Depot, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut found = Vec::new();
    let mut read = |blob: &mut dyn Read| blob.read_to_end(&mut found).map(drop);
    let health = Health::default();
    let waiting = Waiting::new(&Silent, Wait::WhileItComes, &health);
    depot.read_blob(&Digest::of(bytes), bytes.len() as u64, &waiting, &mut read).unwrap()?.unwrap();
    Some(found)
}

fn write(depot: &dyn Depot, bytes: &[u8]) {
    depot.write_blob(&Digest::of(bytes), bytes.len() as u64, &[], &mut |out| out.write_all(bytes)).unwrap();
}

#[rstest]
fn sheets_are_had_as_they_were_written_last(#[values("memory", "directory")] kind: &str) {
    let place = place(kind);
    let depot = &place.depot;
    let (one, two) = (SheetName::new(0, [1; 16]), SheetName::new(3, [2; 16]));
    assert_eq!(depot.sheets().unwrap(), []);
    assert_eq!(depot.read_sheet(&one).unwrap(), None);
    let notes = BTreeMap::<Digest, BlobNote>::new();
    depot.write_sheet(&one, b"first", &notes).unwrap();
    depot.write_sheet(&two, b"other", &notes).unwrap();
    depot.write_sheet(&one, b"second", &notes).unwrap();
    assert_eq!(BTreeSet::from_iter(depot.sheets().unwrap()), BTreeSet::from([one, two]));
    assert_eq!(depot.read_sheet(&one).unwrap().unwrap(), b"second");
    assert_eq!(depot.remove_sheet(&one).unwrap(), Deletion::Done);
    assert_ne!(depot.remove_sheet(&one).unwrap(), Deletion::NotAllowed);
    assert_eq!(depot.sheets().unwrap(), [two]);
}

#[rstest]
fn blobs_are_had_whole_or_not_at_all(#[values("memory", "directory")] kind: &str) {
    let place = place(kind);
    let depot = &place.depot;
    let (small, large) = (b"small".to_vec(), vec![7; 20 << 20]);
    assert_eq!(read(depot, &small), None);
    for bytes in [&small, &large] {
        write(depot, bytes);
        // Again, which nothing is written for.
        let never = |_: &mut dyn std::io::Write| panic!("it is there");
        depot.write_blob(&Digest::of(bytes), bytes.len() as u64, &[], &mut { never }).unwrap();
        assert!(read(depot, bytes).unwrap() == *bytes);
    }
    let absent = vec![8; 9 << 20];
    let asked = [&small, &absent, &large].map(|bytes| Digest::of(bytes));
    assert_eq!(depot.has_blobs(&asked).unwrap(), BTreeSet::from([asked[0], asked[2]]));
    let broken = depot.write_blob(&asked[1], absent.len() as u64, &[], &mut |out| {
        out.write_all(&absent[..absent.len() - 1])?;
        Err(std::io::Error::other("the layer did not come"))
    });
    assert!(matches!(broken, Err(DepotError::Source(_))));
    assert_eq!(read(depot, &absent), None);
}

#[rstest]
fn blobs_that_are_damaged_are_replaced(#[values("memory", "directory")] kind: &str) {
    let place = place(kind);
    let depot = &place.depot;
    for bytes in [b"small".to_vec(), vec![7; 20 << 20]] {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let whole = |out: &mut dyn std::io::Write| out.write_all(&bytes);
        // One that is cut shows in its length.
        depot.write_blob(&digest, size - 1, &[], &mut |out| out.write_all(&bytes[1..])).unwrap();
        depot.write_blob(&digest, size, &[], &mut { whole }).unwrap();
        assert!(read(depot, &bytes).unwrap() == bytes);
        // Others do not: whoever has read it knows.
        depot.replace_blob(&digest, size, &mut |out| out.write_all(&vec![0; bytes.len()])).unwrap();
        assert!(read(depot, &bytes).unwrap() != bytes);
        depot.replace_blob(&digest, size, &mut { whole }).unwrap();
        assert!(read(depot, &bytes).unwrap() == bytes);
    }
}

#[test]
fn blobs_that_are_old_are_written_again_before_they_are_relied_on() {
    let place = place("directory");
    let depot = &place.depot;
    write(depot, b"blob");
    let file = place.directory.path().join("blobs/sha256").join(Digest::of(b"blob").hex());
    let times_written = |age: u64| {
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(then).unwrap();
        let mut times = 0;
        let mut again = |out: &mut dyn std::io::Write| {
            times += 1;
            out.write_all(b"blob")
        };
        depot.write_blob(&Digest::of(b"blob"), 4, &[], &mut again).unwrap();
        times
    };
    assert_eq!([60, 1200, 2400].map(times_written), [0, 0, 1]);
    // It is new now.
    let an_hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    assert!(std::fs::metadata(&file).unwrap().modified().unwrap() > an_hour_ago);
}

#[rstest]
fn blobs_go_when_they_are_old(#[values("memory", "directory")] kind: &str) {
    let place = place(kind);
    let depot = &place.depot;
    write(depot, b"blob");
    let blobs = BTreeMap::from([(Digest::of(b"blob"), 4), (Digest::of(b"none"), 4)]);
    assert_eq!(depot.remove_blobs(&blobs, 1000).unwrap(), Some(0));
    assert_eq!(depot.remove_blobs(&blobs, 1 << 40).unwrap(), Some(4));
    assert_eq!(read(depot, b"blob"), None);
}
