//! Several caches in directories: which one serves, and what is remembered of them from run to run.

use std::fs;
use std::path::{Path, PathBuf};

use rstest::rstest;
use sha2::{Digest as _, Sha256};

use super::super::address::CacheAddress;
use super::*;
use crate::event::Silent;
use crate::nix::testing::{nar_of_tree, store_path};
use crate::nix::{MemoryNode, MemoryTree};

/// A memory that lasts as long as a test.
#[derive(Default)]
struct Memory {
    answers: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    skeletons: Mutex<HashMap<[u8; 32], Vec<u8>>>,
}

impl CacheMemory for Memory {
    fn answers(&self) -> HashMap<Vec<u8>, Vec<u8>> {
        self.answers.lock().unwrap().clone()
    }

    fn keep_answer(&self, key: Vec<u8>, answer: Vec<u8>) {
        self.answers.lock().unwrap().insert(key, answer);
    }

    fn skeletons(&self, nars: &[[u8; 32]]) -> HashMap<[u8; 32], Vec<u8>> {
        let skeletons = self.skeletons.lock().unwrap();
        nars.iter().filter_map(|nar| Some((*nar, skeletons.get(nar)?.clone()))).collect()
    }

    fn keep_skeleton(&self, nar: [u8; 32], skeleton: Vec<u8>) {
        self.skeletons.lock().unwrap().insert(nar, skeleton);
    }
}

/// A cache's directory.
struct CacheDirectory(tempfile::TempDir);

impl CacheDirectory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn address(&self) -> CacheAddress {
        format!("file://{}", self.path().display()).parse().unwrap()
    }

    fn narinfo(&self, path: &StorePath) -> PathBuf {
        self.path().join(format!("{}.narinfo", path.hash_part()))
    }

    fn nar(&self, path: &StorePath) -> PathBuf {
        self.path().join(format!("{}.nar", path.hash_part()))
    }

    /// Puts a path that is one file into the cache.
    fn put(&self, path: &StorePath, contents: &str, references: &[&StorePath]) {
        let file = MemoryNode::Regular { executable: false, contents: contents.as_bytes().into() };
        let nar = nar_of_tree(&MemoryTree::of(file).unwrap());
        let hash = ContentHash::Nar(Sha256::digest(&nar).into());
        let references: Vec<_> = references.iter().map(|path| path.base_name()).collect();
        let text = format!(
            "StorePath: {path}\nURL: {}.nar\nCompression: none\nNarHash: {hash}\nNarSize: {}\nReferences: {}\n",
            path.hash_part(),
            nar.len(),
            references.join(" ")
        );
        fs::write(self.nar(path), nar).unwrap();
        fs::write(self.narinfo(path), text).unwrap();
    }

    /// Writes a path's narinfo anew.
    fn change(&self, path: &StorePath, from: &str, to: &str) {
        let text = fs::read_to_string(self.narinfo(path)).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(self.narinfo(path), text.replace(from, to)).unwrap();
    }
}

const FOUND: u64 = 1000;
const ABSENT: u64 = 10;

fn settings(addresses: Vec<CacheAddress>) -> Settings {
    Settings { addresses, connections: 4, remember_found: FOUND, remember_absent: ABSENT, ..Settings::default() }
}

/// A run at this time, with these caches.
fn run<'m>(memory: &'m Memory, now: u64, caches: &[&CacheDirectory]) -> Caches<'m> {
    let addresses = caches.iter().map(|cache| cache.address()).collect();
    Caches::new(settings(addresses), memory, &Silent, now).unwrap()
}

/// The contents of a path that is one file.
fn contents(caches: &Caches<'_>, path: &StorePath) -> Result<String, WalkError> {
    let mut read = String::new();
    caches.walk(path, &mut |_: &[u8], node: Node<'_>| {
        let Node::Regular { contents, .. } = node else { return Ok(()) };
        contents.read_to_string(&mut read).map(drop)
    })?;
    Ok(read)
}

/// An error with all that is behind it.
fn told(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        said = format!("{said}: {error}");
        next = error.source();
    }
    said
}

fn hello() -> StorePath {
    store_path('1', "hello")
}

#[test]
fn all_that_a_path_refers_to_is_learned_with_it() {
    let (cache, memory) = (CacheDirectory::new(), Memory::default());
    let paths = ['1', '2', '3', '4'].map(|digit| store_path(digit, "path"));
    cache.put(&paths[0], "a", &[&paths[0], &paths[1], &paths[2]]);
    cache.put(&paths[1], "b", &[&paths[2]]);
    cache.put(&paths[2], "c", &[&paths[0], &paths[3]]);
    let caches = run(&memory, 0, &[&cache]);
    caches.resolve(&paths[..1], &|path| *path == paths[3], caches.patience());
    let known: BTreeSet<_> = caches.known().keys().cloned().collect();
    assert_eq!(known, paths[..3].iter().cloned().collect());
    let info = caches.path_info(&paths[0]).unwrap().unwrap();
    assert_eq!(info.references, paths[1..3].iter().cloned().collect());
    assert_eq!(contents(&caches, &paths[0]).unwrap(), "a");
}

#[rstest]
#[case::young(FOUND - 1, true)]
#[case::old(FOUND, false)]
fn that_a_cache_has_a_path_is_remembered_for_a_while(#[case] later: u64, #[case] is_remembered: bool) {
    let (cache, memory) = (CacheDirectory::new(), Memory::default());
    cache.put(&hello(), "hello", &[]);
    assert!(run(&memory, 5000, &[&cache]).path_info(&hello()).unwrap().is_some());
    fs::remove_file(cache.narinfo(&hello())).unwrap();
    let info = run(&memory, 5000 + later, &[&cache]).path_info(&hello()).unwrap();
    assert_eq!(info.is_some(), is_remembered);
}

#[rstest]
#[case::young(ABSENT - 1, true)]
#[case::old(ABSENT, false)]
fn that_a_cache_has_no_path_is_remembered_for_less(#[case] later: u64, #[case] is_remembered: bool) {
    let (cache, memory) = (CacheDirectory::new(), Memory::default());
    assert!(run(&memory, 5000, &[&cache]).path_info(&hello()).unwrap().is_none());
    cache.put(&hello(), "hello", &[]);
    let info = run(&memory, 5000 + later, &[&cache]).path_info(&hello()).unwrap();
    assert_eq!(info.is_none(), is_remembered);
}

#[test]
fn what_one_cache_answered_says_nothing_of_another() {
    let (empty, full, memory) = (CacheDirectory::new(), CacheDirectory::new(), Memory::default());
    assert!(run(&memory, 0, &[&empty]).path_info(&hello()).unwrap().is_none());
    full.put(&hello(), "hello", &[]);
    assert!(run(&memory, 0, &[&full]).path_info(&hello()).unwrap().is_some());
    assert!(run(&memory, 0, &[&empty]).path_info(&hello()).unwrap().is_none());
    assert_eq!(contents(&run(&memory, 0, &[&empty, &full]), &hello()).unwrap(), "hello");
}

#[test]
fn a_remembered_narinfo_whose_nar_has_moved_is_looked_up_anew() {
    let (cache, memory) = (CacheDirectory::new(), Memory::default());
    cache.put(&hello(), "hello", &[]);
    assert!(run(&memory, 0, &[&cache]).path_info(&hello()).unwrap().is_some());
    // As after the cache was filled anew with another compression.
    fs::rename(cache.nar(&hello()), cache.path().join("moved.nar")).unwrap();
    cache.change(&hello(), &format!("URL: {}.nar", hello().hash_part()), "URL: moved.nar");
    assert_eq!(contents(&run(&memory, 1, &[&cache]), &hello()).unwrap(), "hello");
    // And the new place is what is remembered from now on.
    fs::remove_file(cache.narinfo(&hello())).unwrap();
    assert_eq!(contents(&run(&memory, 2, &[&cache]), &hello()).unwrap(), "hello");
}

#[test]
fn a_narinfo_that_has_another_nar_by_now_is_not_what_the_layer_was_planned_with() {
    let (cache, memory) = (CacheDirectory::new(), Memory::default());
    cache.put(&hello(), "hello", &[]);
    assert!(run(&memory, 0, &[&cache]).path_info(&hello()).unwrap().is_some());
    cache.put(&hello(), "hullo", &[]);
    fs::rename(cache.nar(&hello()), cache.path().join("moved.nar")).unwrap();
    cache.change(&hello(), &format!("URL: {}.nar", hello().hash_part()), "URL: moved.nar");
    let error = contents(&run(&memory, 1, &[&cache]), &hello()).unwrap_err();
    assert!(told(&error).contains("there is no such file"), "{}", told(&error));
}

#[test]
fn the_next_cache_serves_where_one_has_lost_the_nar() {
    let (first, second, memory) = (CacheDirectory::new(), CacheDirectory::new(), Memory::default());
    for cache in [&first, &second] {
        cache.put(&hello(), "hello", &[]);
    }
    fs::remove_file(first.nar(&hello())).unwrap();
    for now in 0..2 {
        assert_eq!(contents(&run(&memory, now, &[&first, &second]), &hello()).unwrap(), "hello");
    }
    fs::remove_file(second.nar(&hello())).unwrap();
    let error = contents(&run(&memory, 2, &[&first, &second]), &hello()).unwrap_err();
    let said = told(&error);
    assert!(said.contains("there is no such file") && said.contains(&first.address().to_string()), "{said}");
}

/// A NAR of more bytes than any buffer holds.
fn long() -> String {
    (0..60_000).map(|number| format!("{number}\n")).collect()
}

#[rstest]
#[case::cut_short(false, "it ends too early, after 200000 bytes")]
#[case::compressed_and_cut_short(true, "incomplete deflate stream")]
fn the_next_cache_goes_on_where_one_breaks_in_the_midst(#[case] is_compressed: bool, #[case] message: &str) {
    let (first, second, memory) = (CacheDirectory::new(), CacheDirectory::new(), Memory::default());
    for cache in [&first, &second] {
        cache.put(&hello(), &long(), &[]);
    }
    let cut = |cache: &CacheDirectory| {
        let mut nar = fs::read(cache.nar(&hello())).unwrap();
        if is_compressed {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut encoder, &nar).unwrap();
            nar = encoder.finish().unwrap();
            nar.truncate(nar.len() / 2);
            cache.change(&hello(), "Compression: none", "Compression: gzip");
        } else {
            nar.truncate(200_000);
        }
        fs::write(cache.nar(&hello()), nar).unwrap();
    };
    cut(&first);
    for now in 0..2 {
        assert!(contents(&run(&memory, now, &[&first, &second]), &hello()).unwrap() == long());
    }
    // Both are broken: the first one's failure is what is told.
    fs::remove_file(second.nar(&hello())).unwrap();
    let said = told(&contents(&run(&memory, 2, &[&first, &second]), &hello()).unwrap_err());
    assert!(said.contains(message) && said.contains(&first.address().to_string()), "{said}");
}

#[test]
fn bytes_that_several_caches_gave_have_the_hash_of_all_or_are_an_error() {
    let (first, second, memory) = (CacheDirectory::new(), CacheDirectory::new(), Memory::default());
    for cache in [&first, &second] {
        cache.put(&hello(), &long(), &[]);
    }
    let mut nar = fs::read(first.nar(&hello())).unwrap();
    nar.truncate(200_000);
    nar[150_000] ^= 1;
    fs::write(first.nar(&hello()), nar).unwrap();
    let said = told(&contents(&run(&memory, 0, &[&first, &second]), &hello()).unwrap_err());
    assert!(said.contains("its hash is"), "{said}");
}

#[test]
fn the_next_cache_serves_where_one_gives_a_narinfo_that_is_none() {
    let (first, second, memory) = (CacheDirectory::new(), CacheDirectory::new(), Memory::default());
    fs::write(first.narinfo(&hello()), "<html>").unwrap();
    second.put(&hello(), "hello", &[]);
    assert_eq!(contents(&run(&memory, 0, &[&first, &second]), &hello()).unwrap(), "hello");
    let error = run(&memory, 0, &[&first]).path_info(&hello()).unwrap_err();
    assert!(told(&error).contains("line 1 is not 'Field: value'"), "{}", told(&error));
}

#[rstest]
#[case::priorities_of_their_own("Priority: 30\n", "Priority: 20\n", "", "", "second")]
#[case::none("", "Priority: 20\n", "", "", "second")]
#[case::the_same("Priority: 20\n", "Priority: 20\n", "", "", "first")]
#[case::said_in_the_address("Priority: 30\n", "Priority: 20\n", "?priority=10", "", "first")]
#[case::another_store("StoreDir: /gnu/store\nPriority: 1\n", "Priority: 20\n", "", "", "second")]
fn caches_are_asked_by_their_priorities(
    #[case] first_info: &str,
    #[case] second_info: &str,
    #[case] first_parameters: &str,
    #[case] second_parameters: &str,
    #[case] expected: &str,
) {
    let (first, second, memory) = (CacheDirectory::new(), CacheDirectory::new(), Memory::default());
    first.put(&hello(), "first", &[]);
    second.put(&hello(), "second", &[]);
    fs::write(first.path().join("nix-cache-info"), first_info).unwrap();
    fs::write(second.path().join("nix-cache-info"), second_info).unwrap();
    let address = |cache: &CacheDirectory, parameters| format!("{}{parameters}", cache.address()).parse().unwrap();
    let addresses = vec![address(&first, first_parameters), address(&second, second_parameters)];
    let caches = Caches::new(settings(addresses), &memory, &Silent, 0).unwrap();
    assert_eq!(contents(&caches, &hello()).unwrap(), expected);
}

#[test]
fn skeletons_are_recalled_without_a_fetch_also_of_paths_that_are_known_later() {
    let (cache, memory) = (CacheDirectory::new(), Memory::default());
    let paths = ['1', '2'].map(|digit| store_path(digit, "path"));
    let skeletons = |caches: &Caches<'_>| {
        paths.clone().map(|path| {
            caches.prepare(std::slice::from_ref(&path));
            caches.skeleton(&path).unwrap().unwrap()
        })
    };
    paths.iter().for_each(|path| cache.put(path, path.hash_part(), &[]));
    let seen = skeletons(&run(&memory, 0, &[&cache]));
    paths.iter().for_each(|path| fs::remove_file(cache.nar(path)).unwrap());
    assert_eq!(skeletons(&run(&memory, 1, &[&cache])), seen);
    // Whoever remembers nothing has to fetch, and cannot.
    memory.skeletons.lock().unwrap().clear();
    let caches = run(&memory, 1, &[&cache]);
    caches.prepare(&paths);
    assert!(caches.skeleton(&paths[0]).is_err());
}

#[test]
fn a_remembered_skeleton_that_is_damaged_is_fetched() {
    let (cache, memory) = (CacheDirectory::new(), Memory::default());
    cache.put(&hello(), "hello", &[]);
    let skeleton = |now| {
        let caches = run(&memory, now, &[&cache]);
        caches.prepare(&[hello()]);
        caches.skeleton(&hello()).unwrap().unwrap()
    };
    let seen = skeleton(0);
    memory.skeletons.lock().unwrap().values_mut().for_each(|bytes| bytes.truncate(5));
    assert_eq!(skeleton(1), seen);
}

#[test]
fn without_the_network_what_is_remembered_of_it_leads_to_a_directory_that_has_the_same() {
    let (directory, memory) = (CacheDirectory::new(), Memory::default());
    directory.put(&hello(), "hello", &[]);
    let far: CacheAddress = "http://127.0.0.2:9/".parse().unwrap();
    let narinfo = fs::read(directory.narinfo(&hello())).unwrap();
    let key = format!("{far}\n{}", hello().hash_part()).into_bytes();
    memory.keep_answer(key, [&0u64.to_le_bytes()[..], &narinfo].concat());
    let offline = |addresses| Settings { offline: true, ..settings(addresses) };

    let caches = Caches::new(offline(vec![far.clone(), directory.address()]), &memory, &Silent, 1).unwrap();
    assert_eq!(contents(&caches, &hello()).unwrap(), "hello");
    let caches = Caches::new(offline(vec![far]), &memory, &Silent, 1 << 40).unwrap();
    assert!(caches.path_info(&hello()).unwrap().is_some(), "however old it is");
    let error = contents(&caches, &hello()).unwrap_err();
    assert!(told(&error).contains("--offline keeps this run from asking"), "{}", told(&error));
}

#[rstest]
#[case::largest_nar("NarSize: 120", "NarSize: 18446744073709551615", "has 120 bytes, not 18446744073709551615")]
#[case::a_longer_nar("NarSize: 120", "NarSize: 112", "not 112")]
#[case::a_shorter_file("NarSize: 120", "NarSize: 120\nFileSize: 119", "it is longer than 119 bytes")]
#[case::compressed("Compression: none", "Compression: xz", "cannot be used")]
#[case::a_file_elsewhere("URL: ", "URL: ../", "there is no such file")]
fn a_narinfo_that_lies_of_its_nar_is_found_out(#[case] from: &str, #[case] to: &str, #[case] message: &str) {
    let (cache, memory) = (CacheDirectory::new(), Memory::default());
    cache.put(&hello(), "hello", &[]);
    cache.change(&hello(), from, to);
    let error = contents(&run(&memory, 0, &[&cache]), &hello()).unwrap_err();
    assert!(told(&error).contains(message), "{}", told(&error));
}

#[test]
fn a_file_that_is_not_what_its_name_was_made_of_is_named_with_its_own_hash() {
    let (cache, memory) = (CacheDirectory::new(), Memory::default());
    // Nix 2.8: `builtins.toFile "inner.txt" "inner\n"`.
    let inner = StorePath::from_base_name("w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt").unwrap();
    let ca = "CA: text:sha256:116n0nnvfd7qqb0q8z8jfjhj2ix1n2af6jrz8m108s9v9l86h2ll\nReferences:";
    let caches = |contents: &str| {
        cache.put(&inner, contents, &[]);
        cache.change(&inner, "References:", ca);
        let settings = Settings { require_signatures: true, ..settings(vec![cache.address()]) };
        Caches::new(settings, &memory, &Silent, 0).unwrap()
    };
    let error = contents(&caches("other\n"), &inner).unwrap_err();
    let other = ContentHash::Nar(Sha256::digest("other\n").into());
    let expected = format!("its hash is {other}, not sha256:116n0nnvfd7qqb0q8z8jfjhj2ix1n2af6jrz8m108s9v9l86h2ll");
    assert!(told(&error).contains(&expected), "{}", told(&error));
    memory.answers.lock().unwrap().clear();
    assert_eq!(contents(&caches("inner\n"), &inner).unwrap(), "inner\n");
}
