//! Layers of trees that stay as they were: hashed once and not again, and moved into a pipe page by page.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime};

use layerhold::delivery::BlobProvider as _;
use layerhold::event::Silent;
use layerhold::image::Layer;
use layerhold::layers::{Layers, Trouble, Workshop};
use layerhold::nix::{
    Closure, Hashing, LocalStore, NarWriter, NoMemo, Node, PathInfo, Source, SourceError, StorePath, TreeHasher,
    TreeState, Visitor, WalkError,
};
use layerhold::outlet::{Copied, Outlet};
use layerhold::pack::{Compression, LayerContents, Packer};
use layerhold::store::{LayerStore, Shelf};
use rstest::rstest;

use crate::containerize::containerize;
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::hostile::{SETTLING, streaming};
use crate::sandbox::Sandbox;
use crate::waits::is_ended_by_one_signal;

fn store_path(name: &str) -> StorePath {
    StorePath::synthetic(blake3::hash(name.as_bytes()).as_bytes(), name).unwrap()
}

/// A source that says in what state its only tree is, whatever is in it: `share/text`, with these contents.
struct Said {
    contents: Vec<u8>,
    state: Mutex<Option<u8>>,
}

impl Said {
    fn new(contents: &[u8], state: Option<u8>) -> Self {
        Self { contents: contents.to_vec(), state: Mutex::new(state) }
    }

    fn show(&self, visitor: &mut dyn Visitor) -> io::Result<()> {
        visitor.node(b"", Node::Directory)?;
        visitor.node(b"share", Node::Directory)?;
        let (size, mut contents) = (self.contents.len() as u64, self.contents.as_slice());
        visitor.node(b"share/text", Node::Regular { executable: false, size, contents: &mut contents })
    }
}

impl Source for Said {
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        let mut tree = TreeHasher::new();
        tree.directory(b"");
        tree.directory(b"share");
        let contents = blake3::hash(&self.contents);
        tree.regular(b"share/text", false, self.contents.len() as u64, contents.as_bytes());
        let mut nar = NarWriter::new(Vec::new());
        self.show(&mut nar).unwrap();
        let (content, nar_size) = (tree.finish(), nar.finish().unwrap().len() as u64);
        Ok(Some(PathInfo { path: path.clone(), content, nar_size, references: BTreeSet::new() }))
    }

    fn walk(&self, _: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError> {
        self.show(visitor).map_err(WalkError::Visitor)
    }

    fn walk_in_state(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<Option<TreeState>, WalkError> {
        self.walk(path, visitor)?;
        Ok(self.state.lock().unwrap().map(|state| TreeState::from_bytes([state; 32])))
    }
}

/// One run: does something with the layer of what the path was when its contents were `known`, and that is made out of what
/// it is now.
fn run<T>(cache: &Path, known: &PathInfo, now: &Said, work: impl FnOnce(&Layers<'_>, &Layer) -> T) -> T {
    let store = LayerStore::open(cache).unwrap();
    let (packer, trouble) = (Packer::new(now, Compression::None, &Silent), Trouble::default());
    let (store, now) = (Some(&store), SystemTime::now());
    let workshop = Workshop { packer: &packer, store, observer: &Silent, trouble: &trouble, shared: None, now };
    let contents = vec![vec![LayerContents::StorePaths(vec![known])]];
    let layers = Layers::look_up(workshop, contents, Default::default()).pack_missing(None).unwrap();
    let layer = layers.descriptors().unwrap().remove(0).remove(0);
    layers.prepare(&[&layer]);
    let done = work(&layers, &layer);
    layers.remember_states();
    done
}

fn bytes(layers: &Layers<'_>, layer: &Layer) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let copied = layers.copy_to(layer, &mut Copied(&mut bytes));
    copied.map(|()| bytes).map_err(|error| error.to_string())
}

const RIGHT: &[u8] = b"as it was";
const WRONG: &[u8] = b"otherwise";

fn known() -> PathInfo {
    Said::new(RIGHT, None).path_info(&store_path("tool")).unwrap().unwrap()
}

#[test]
fn a_tree_in_the_state_in_which_it_was_hashed_is_not_hashed_again() {
    let cache = tempfile::tempdir().unwrap();
    let (cache, known) = (cache.path().join("cache"), known());
    let run = |contents: &[u8], state: Option<u8>| run(&cache, &known, &Said::new(contents, state), bytes);
    let whole = run(RIGHT, None).unwrap();
    assert!(run(WRONG, None).is_err(), "no state is known: it is hashed");
    // What turned out to be wrong is not known any more, so this makes the layer anew.
    assert_eq!(run(RIGHT, Some(1)).unwrap(), whole);

    // Whoever lies about the state is believed: that is how it shows that nothing is hashed.
    let unseen = run(WRONG, Some(1)).unwrap();
    assert!(unseen != whole && unseen.len() == whole.len());
    assert_eq!(run(RIGHT, None).unwrap(), whole, "where no state can be told it is hashed");
    assert_eq!(run(RIGHT, Some(2)).unwrap(), whole, "and in another state");
    assert_eq!(run(WRONG, Some(2)).unwrap(), unseen, "which is remembered");
    assert!(run(WRONG, Some(1)).is_err(), "and the one before is not");

    assert_eq!(run(RIGHT, Some(3)).unwrap(), whole);
    std::fs::remove_dir_all(cache.join("memory")).unwrap();
    assert!(run(WRONG, Some(3)).is_err(), "nothing is remembered");
}

#[test]
fn a_tree_that_is_touched_meanwhile_is_hashed_unless_that_was_a_moment_before() {
    let cache = tempfile::tempdir().unwrap();
    let (cache, known) = (cache.path().join("cache"), known());
    let whole = run(&cache, &known, &Said::new(RIGHT, Some(1)), bytes).unwrap();
    let touched = |contents: &[u8], is_asked: bool| {
        let source = Said::new(contents, Some(1));
        run(&cache, &known, &source, |layers, layer| {
            if is_asked {
                assert!(layers.pours(layer));
            }
            *source.state.lock().unwrap() = Some(2);
            [bytes(layers, layer), bytes(layers, layer)]
        })
    };
    let [first, second] = touched(RIGHT, true);
    assert!(first.unwrap_err().contains("changed while they were read"));
    assert_eq!(second.unwrap(), whole, "what was said held once");
    run(&cache, &known, &Said::new(RIGHT, Some(1)), bytes).unwrap();
    assert_eq!(touched(RIGHT, false), [Ok(whole.clone()), Ok(whole)]);
    run(&cache, &known, &Said::new(RIGHT, Some(1)), bytes).unwrap();
    assert!(touched(WRONG, false)[0].is_err());
}

#[test]
fn an_archive_is_the_same_hashed_or_not_and_moved_or_copied() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let [tool, other, third] = ["tool", "other", "third"].map(|name| {
        let text = name.repeat(1 << 20).into_bytes();
        store.add(
            &format!("{name}-1"),
            &Tree::new().file(format!("share/{name}"), text).file(format!("{name}.txt"), name),
        )
    });
    let packages = [("tool", &*tool), ("other", &*other), ("third", &*third)];
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "trees", &packages, "");
    thread::sleep(SETTLING);
    let archive = |file: &str| {
        let outcome = containerize(&sandbox, store.root(), &environment).args(["-f", file]).assert().success();
        match file {
            "-" => outcome.get_output().stdout.clone(),
            _ => std::fs::read(sandbox.path("work").join(file)).unwrap(),
        }
    };
    let whole = archive("hashed.tar");
    let remembered = || LayerStore::open(&sandbox.path("cache")).unwrap().recall(Shelf::States).unwrap();
    assert_eq!(remembered().len(), 3);
    assert!(archive("-") == whole);
    // Another name for a file is another change time: so it is when Nix optimises its store. At first that is too young to
    // tell anything, then it is another state, and then that is remembered.
    std::fs::hard_link(store.real(&tool).join("share/tool"), sandbox.path("another-name")).unwrap();
    assert!(archive("-") == whole);
    thread::sleep(SETTLING);
    let before = remembered();
    assert!(archive("-") == whole);
    assert!(remembered() != before && remembered().len() == 3);
    assert!(archive("-") == whole);
    std::fs::remove_file(sandbox.path("work/hashed.tar")).unwrap();
    assert!(archive("not-hashed.tar") == whole);

    std::fs::remove_dir_all(sandbox.path("cache/memory")).unwrap();
    let mut child = streaming(&sandbox, store.root(), &environment).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut vec![0; 6 << 20]).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "its reader has gone, with one layer at least");
    assert!(!remembered().is_empty());
}

#[rstest]
#[case::copied(Duration::ZERO)]
#[case::moved(SETTLING)]
fn one_signal_ends_a_run_whose_reader_has_stopped(#[case] age: Duration) {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let tool = store.add("tool-1", &Tree::new().file("share/large", vec![b'l'; 16 << 20]));
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "stopped", &[("tool", &tool)], "");
    thread::sleep(age);
    let mut child = streaming(&sandbox, store.root(), &environment).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut vec![0; 1 << 20]).unwrap();
    // It waits for room in the pipe.
    is_ended_by_one_signal(&mut child);
    drop(pipe);
}

/// A pipe's writer that counts what was moved into it.
struct Counted<'c> {
    pipe: io::PipeWriter,
    moved: &'c Mutex<u64>,
    /// How much of a file it moves, at the most.
    most: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pipe.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outlet for Counted<'_> {
    fn takes_pages(&self) -> bool {
        true
    }

    fn take_pages(&mut self, file: BorrowedFd<'_>, length: u64) -> Option<u64> {
        while !self.pipe.has_room() {}
        let mut moved = self.moved.lock().unwrap();
        let left = self.most - *moved;
        let taken = if left == 0 { None } else { self.pipe.take_pages(file, length.min(left)) };
        *moved += taken.unwrap_or(0);
        taken
    }
}

#[test]
fn what_is_moved_into_a_pipe_is_what_would_be_copied() {
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("nix/store").join(store_path("tool").base_name());
    std::fs::create_dir_all(&tree).unwrap();
    let sizes = [0, 1, 65_535, 65_536, 65_537, 3 << 20, 100, 1_000_001];
    for (at, size) in sizes.into_iter().enumerate() {
        let contents: Vec<u8> = (0..size).map(|place: usize| (place * 31 + at) as u8 ^ (place >> 9) as u8).collect();
        std::fs::write(tree.join(format!("file-{at}")), contents).unwrap();
    }
    let now = SystemTime::now() + Duration::from_secs(3600);
    let store = LocalStore::open(root.path(), Hashing { memo: &NoMemo, observer: &Silent, now }).unwrap();
    let closure = Closure::compute(&store, [store_path("tool")]).unwrap();
    let contents = LayerContents::StorePaths(closure.paths().collect());
    let packer = Packer::new(&store, Compression::None, &Silent);
    let mut copied = Vec::new();
    let (_, state) = packer.pack_in_state(&contents, Some(&mut copied), None).unwrap();
    assert!(state.is_some());

    let large: u64 = sizes.into_iter().filter(|&size| size >= 65_536).map(|size| size as u64).sum();
    // Where moving ends, in the midst of a file, the rest is copied.
    for most in [large, 0, 70_000, 1 << 20] {
        let (mut reader, pipe) = io::pipe().unwrap();
        let moved = Mutex::new(0);
        let mut counted = Counted { pipe, moved: &moved, most };
        let read = thread::scope(|scope| {
            let read = scope.spawn(move || {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes).unwrap();
                bytes
            });
            assert_eq!(packer.write_again(&contents, &mut counted).unwrap(), state);
            drop(counted);
            read.join().unwrap()
        });
        assert!(read == copied, "{most}");
        assert_eq!(*moved.lock().unwrap(), if cfg!(target_os = "linux") { most } else { 0 });
    }
}
