//! Trees that nothing vouches for: what is found in them, and what is remembered.

use std::collections::HashMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rstest::rstest;

use super::*;
use crate::event::Silent;
use crate::nix::testing::{TestStore, noise, store_path};
use crate::nix::{LocalStore, MemoryTree, NoMemo, Source, SourceError};

fn a() -> StorePath {
    store_path('1', "a")
}

/// Remembers for as long as it lives.
#[derive(Default)]
struct MemoryMemo(Mutex<HashMap<FileStamp, RememberedFile>>);

impl MemoryMemo {
    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl FileMemo for MemoryMemo {
    fn recall(&self, stamps: &[FileStamp]) -> Vec<Option<RememberedFile>> {
        let known = self.0.lock().unwrap();
        stamps.iter().map(|stamp| known.get(stamp).cloned()).collect()
    }

    fn record(&self, files: &[(FileStamp, RememberedFile)]) {
        self.0.lock().unwrap().extend(files.iter().cloned());
    }
}

/// Counts the bytes that were read.
#[derive(Default)]
struct Counter(AtomicU64);

impl Observer for Counter {
    fn event(&self, event: Event) {
        if let Event::Advanced { bytes } = event {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// What is known of `path`, and how many bytes were read for it.
fn info(store: &TestStore, memo: &dyn FileMemo, now: SystemTime, path: &StorePath) -> (PathInfo, u64) {
    let counter = Counter::default();
    let local = LocalStore::open(store.root(), Hashing { memo, observer: &counter, now }).unwrap();
    let info = local.path_info(path).unwrap().unwrap();
    (info, counter.0.into_inner())
}

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

fn with_file(contents: &[u8]) -> TestStore {
    let store = TestStore::new();
    let mut tree = MemoryTree::new();
    tree.file(b"f", false, contents).unwrap();
    store.write(&a(), &tree);
    store
}

#[test]
fn an_unchanged_file_is_not_read_twice() {
    let store = with_file(&noise(10_000));
    let memo = MemoryMemo::default();
    let (first, read) = info(&store, &memo, later(), &a());
    assert_eq!((read, memo.len()), (10_000, 1));
    assert_eq!(info(&store, &memo, later(), &a()), (first.clone(), 0));
    fs::write(store.path(&a()).join("f"), noise(10_001)).unwrap();
    let (changed, read) = info(&store, &memo, later(), &a());
    assert_eq!(read, 10_001);
    assert_ne!(changed.content, first.content);
}

#[test]
fn a_file_that_changed_just_now_is_read_but_not_remembered() {
    let store = with_file(b"contents");
    let memo = MemoryMemo::default();
    for _ in 0..2 {
        assert_eq!(info(&store, &memo, SystemTime::now(), &a()).1, 8);
        assert_eq!(memo.len(), 0);
    }
}

#[test]
fn a_path_that_is_restored_later_is_found_in_remembered_files() {
    let other = store_path('7', "other");
    let store = with_file(format!("exec {other}/bin/tool").as_bytes());
    let memo = MemoryMemo::default();
    assert!(info(&store, &memo, later(), &a()).0.references.is_empty());
    store.write(&other, &MemoryTree::new());
    let (found, read) = info(&store, &memo, later(), &a());
    assert_eq!((Vec::from_iter(found.references), read), (vec![other.clone()], 0));
    fs::remove_dir(store.path(&other)).unwrap();
    assert!(info(&store, &memo, later(), &a()).0.references.is_empty());
}

#[test]
fn references_are_found_in_names_and_link_targets() {
    let (name, target) = (store_path('7', "in-name"), store_path('8', "in-target"));
    let store = TestStore::new();
    let mut tree = MemoryTree::new();
    tree.directory(format!("sub/x{}", name.hash_part()).as_bytes()).unwrap();
    tree.symlink(b"link", target.to_string().into_bytes()).unwrap();
    tree.symlink(b"self", a().to_string().into_bytes()).unwrap();
    store.write(&a(), &tree);
    store.write(&name, &MemoryTree::new());
    store.write(&target, &MemoryTree::new());
    let references = info(&store, &NoMemo, later(), &a()).0.references;
    assert_eq!(Vec::from_iter(references), [name, target]);
}

#[rstest]
#[case::first(0)]
#[case::across_small_buffers(BUFFER - 20)]
#[case::ending_with_a_small_buffer(BUFFER - 32)]
#[case::beginning_with_a_small_buffer(BUFFER)]
#[case::just_before_a_small_buffer(BUFFER - 33)]
#[case::last_of_a_small_file(600_000 - 32)]
fn a_reference_is_found_wherever_it_stands_in_a_small_file(#[case] at: usize) {
    found_at(600_000, at);
}

#[rstest]
#[case::across_large_buffers(LARGE_BUFFER - 5)]
#[case::ending_with_a_large_buffer(LARGE_BUFFER - 32)]
#[case::beginning_with_a_large_buffer(LARGE_BUFFER)]
#[case::across_the_halves_of_a_large_buffer(LARGE_BUFFER / 2 - 16)]
#[case::last_of_a_large_file(9_000_000 - 32)]
fn a_reference_is_found_wherever_it_stands_in_a_large_file(#[case] at: usize) {
    found_at(9_000_000, at);
}

fn found_at(size: usize, at: usize) {
    let other = StorePath::from_base_name("nm7p8wxflggcwxfzayhysq4z6a1wg373-other").unwrap();
    let mut bytes = noise(size);
    bytes[at..at + 32].copy_from_slice(other.hash_part().as_bytes());
    let store = with_file(&bytes);
    store.write(&other, &MemoryTree::new());
    let (info, read) = info(&store, &NoMemo, later(), &a());
    assert_eq!(Vec::from_iter(info.references), [other]);
    assert_eq!(read, size as u64);
    let mut tree = MemoryTree::new();
    tree.file(b"f", false, bytes).unwrap();
    assert_eq!(info.content, tree.content().0);
}

#[rstest]
#[case(LARGE as usize - 1)]
#[case(LARGE as usize)]
#[case(2 * LARGE as usize + 1)]
#[case(BUFFER)]
#[case(BUFFER + 1)]
fn sizes_around_the_buffers_hash_like_the_whole(#[case] size: usize) {
    let bytes = noise(size);
    let store = with_file(&bytes);
    let mut tree = MemoryTree::new();
    tree.file(b"f", false, bytes).unwrap();
    let info = info(&store, &NoMemo, later(), &a()).0;
    assert_eq!((info.content, info.nar_size), tree.content());
}

/// Wants the run to end after so many events.
struct Impatient(Mutex<u32>);

impl Observer for Impatient {
    fn event(&self, _: Event) {
        *self.0.lock().unwrap() -= 1;
    }

    fn cancelled(&self) -> bool {
        *self.0.lock().unwrap() == 0
    }
}

#[test]
fn hashing_stops_between_buffers_when_the_user_wants_it() {
    let store = with_file(&noise(3 * BUFFER));
    let observer = Impatient(Mutex::new(2));
    let hashing = Hashing { memo: &NoMemo, observer: &observer, now: later() };
    let error = LocalStore::open(store.root(), hashing).unwrap().path_info(&a()).unwrap_err();
    let SourceError::Walk(WalkError::Visitor(error)) = error else { panic!("{error}") };
    assert!(crate::event::Cancelled::caused(&error), "{error}");
}

#[test]
fn a_memo_that_answers_too_little_only_costs_work() {
    struct Broken;
    impl FileMemo for Broken {
        fn recall(&self, _: &[FileStamp]) -> Vec<Option<RememberedFile>> {
            Vec::new()
        }
        fn record(&self, _: &[(FileStamp, RememberedFile)]) {}
    }
    let store = with_file(b"contents");
    let hashing = Hashing { memo: &Broken, observer: &Silent, now: later() };
    let broken = LocalStore::open(store.root(), hashing).unwrap().path_info(&a()).unwrap().unwrap();
    assert_eq!(broken, info(&store, &NoMemo, later(), &a()).0);
}
