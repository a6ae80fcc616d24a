//! What the digests of layers cannot do without: directories are listed, every file is read and hashed, two streams at
//! once on each core, and nothing else is done; no tar, no order, no layers.
//!
//! `cargo bench --bench floor` reads the trees of the other benches and says how fast; `-- LIST` those that a file names,
//! one in a line: that is how `scripts/bench` puts the digests beside it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on has failed, and says what it found"
)]

mod corpus;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use std::{hint, iter, thread};

use layerhold::sha256::{Sha256, update_together};

const BUFFER: usize = 256 << 10;

fn main() {
    let list = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let root = tempfile::tempdir().unwrap();
    let trees: Vec<PathBuf> = match list {
        Some(list) => fs::read_to_string(list).unwrap().lines().map(PathBuf::from).collect(),
        None => {
            corpus::write(root.path(), 8);
            let store = fs::read_dir(root.path().join("nix/store")).unwrap();
            store.map(|entry| entry.unwrap().path()).collect()
        }
    };
    let begun = Instant::now();
    let files: Vec<Vec<_>> = on_all_cores(&trees, |next, trees| next.flat_map(|at| files_below(&trees[at])).collect());
    let files = files.concat();
    let read = on_all_cores(&files, |next, files| read_and_hash(&mut next.map(|at| &files[at])));
    let seconds = begun.elapsed().as_secs_f64();
    let bytes: u64 = read.into_iter().sum();
    let rate = bytes as f64 / f64::from(1 << 20) / seconds;
    println!("{} files, {bytes} bytes: {seconds:.3} s, {rate:.0} MiB/s", files.len());
}

/// Does `work` once on each core: what each makes of the places in `all` that it gets, one after the other.
fn on_all_cores<T: Sync, R: Send>(
    all: &[T],
    work: impl Fn(&mut dyn Iterator<Item = usize>, &[T]) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let places = || iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&at| at < all.len()));
    let cores = thread::available_parallelism().unwrap().get();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(|| work(&mut places(), all))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn files_below(path: &Path) -> Vec<PathBuf> {
    let kind = fs::symlink_metadata(path).unwrap().file_type();
    if kind.is_file() {
        return vec![path.to_owned()];
    }
    let mut files = Vec::new();
    let mut directories: Vec<PathBuf> = kind.is_dir().then(|| path.to_owned()).into_iter().collect();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()) {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => directories.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

/// Files, one after the other, as one stream.
struct Stream {
    file: Option<File>,
    buffer: Vec<u8>,
    filled: usize,
    hasher: Sha256,
}

impl Stream {
    fn new() -> Self {
        Self { file: None, buffer: vec![0; BUFFER], filled: 0, hasher: Sha256::new() }
    }

    /// Fills the buffer, as far as there are files.
    fn fill(&mut self, files: &mut dyn Iterator<Item = &PathBuf>) {
        self.filled = 0;
        while self.filled < BUFFER {
            if self.file.is_none() {
                let Some(path) = files.next() else { return };
                self.file = Some(File::open(path).unwrap());
            }
            match self.file.as_mut().unwrap().read(&mut self.buffer[self.filled..]).unwrap() {
                0 => self.file = None,
                count => self.filled += count,
            }
        }
    }
}

/// How many bytes were read.
fn read_and_hash(files: &mut dyn Iterator<Item = &PathBuf>) -> u64 {
    let (mut a, mut b) = (Stream::new(), Stream::new());
    loop {
        a.fill(files);
        b.fill(files);
        if a.filled + b.filled == 0 {
            break;
        }
        update_together(&mut [(&mut a.hasher, &a.buffer[..a.filled]), (&mut b.hasher, &b.buffer[..b.filled])]);
    }
    let bytes = a.hasher.bytes() + b.hasher.bytes();
    hint::black_box((a.hasher.finish(), b.hasher.finish()));
    bytes
}
