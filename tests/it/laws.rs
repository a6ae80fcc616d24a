//! Laws of packing: the same bytes whatever the order, the threads and the source; and what is packed is the tree.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use layerhold::blob::LayerKey;
use layerhold::event::Silent;
use layerhold::nix::{Closure, Hashing, LocalStore, NoMemo, PathInfo, StorePath};
use layerhold::pack::{Compression, LayerContents, PackError, Packed, Packer};
use proptest::prelude::*;

/// A node of a random tree.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory(BTreeMap<Vec<u8>, Node>),
    File { executable: bool, contents: Vec<u8> },
    Link(Vec<u8>),
}

/// Names of every kind that a file system takes: short and long, with bytes that are no UTF-8. What goes into a PAX
/// record has no newline here, because the `tar` crate takes it for the record's end; GNU tar, below, does not.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]{1,3}(\\.[a-c])?".prop_map(String::into_bytes),
        1 => prop::collection::vec(11u8..=255, 1..40),
        1 => prop::collection::vec(prop::sample::select(b"ab-. \xff".to_vec()), 90..255),
    ]
    .prop_map(|name| name.into_iter().map(|byte| if byte == b'/' { b'_' } else { byte }).collect::<Vec<_>>())
    .prop_filter("'.' and '..' are no names", |name| name != b"." && name != b"..")
}

fn tree() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..2000))
            .prop_map(|(executable, contents)| Node::File { executable, contents }),
        prop::collection::vec(11u8..=255, 1..300).prop_map(Node::Link),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| prop::collection::btree_map(name(), inner, 0..6).prop_map(Node::Directory))
}

fn write(at: &Path, node: &Node) {
    match node {
        Node::Directory(entries) => {
            std::fs::create_dir(at).unwrap();
            entries.iter().for_each(|(name, node)| write(&at.join(OsStr::from_bytes(name)), node));
        }
        Node::File { executable, contents } => {
            std::fs::write(at, contents).unwrap();
            let mode = if *executable { 0o755 } else { 0o600 };
            std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        Node::Link(target) => symlink(OsStr::from_bytes(target), at).unwrap(),
    }
}

/// Every node by its path in the archive, with its mode and its contents or target.
type Listing = BTreeMap<Vec<u8>, (u32, Option<Vec<u8>>)>;

fn expected(into: &mut Listing, path: &[u8], node: &Node) {
    match node {
        Node::Directory(entries) => {
            into.insert(path.to_vec(), (0o555, None));
            for (name, node) in entries {
                expected(into, &[path, b"/", name].concat(), node);
            }
        }
        Node::File { executable, contents } => {
            let mode = if *executable { 0o555 } else { 0o444 };
            into.insert(path.to_vec(), (mode, Some(contents.clone())));
        }
        Node::Link(target) => drop(into.insert(path.to_vec(), (0o777, Some(target.clone())))),
    }
}

fn read_back(tar: &[u8]) -> Listing {
    let mut found = Listing::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path_bytes().into_owned();
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        let contents = match entry.header().entry_type() {
            tar::EntryType::Directory => None,
            tar::EntryType::Symlink => Some(entry.link_name_bytes().unwrap().into_owned()),
            _ => {
                let mut contents = Vec::new();
                io::Read::read_to_end(&mut entry, &mut contents).unwrap();
                Some(contents)
            }
        };
        assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (1, 0));
        found.insert(path, (entry.header().mode().unwrap(), contents));
    }
    found
}

fn store_path(n: usize) -> StorePath {
    StorePath::synthetic(blake3::hash(&n.to_le_bytes()).as_bytes(), &format!("package-{n}")).unwrap()
}

/// A store with these trees, and what is known of them.
fn with_store<T>(trees: &[Node], work: impl FnOnce(&LocalStore<'_>, &Closure) -> T) -> T {
    let root = tempfile::tempdir().unwrap();
    let store = root.path().join("nix/store");
    std::fs::create_dir_all(&store).unwrap();
    for (n, tree) in trees.iter().enumerate() {
        write(&store.join(store_path(n).base_name()), tree);
    }
    let hashing = Hashing { memo: &NoMemo, observer: &Silent, now: SystemTime::UNIX_EPOCH };
    let store = LocalStore::open(root.path(), hashing).unwrap();
    let closure = Closure::compute(&store, (0..trees.len()).map(store_path)).unwrap();
    work(&store, &closure)
}

fn pack(store: &LocalStore<'_>, paths: Vec<&PathInfo>, codec: Compression) -> (LayerKey, Packed, Vec<u8>) {
    let contents = LayerContents::StorePaths(paths);
    let mut bytes = Vec::new();
    let packed = Packer::new(store, codec, &Silent).pack(&contents, &mut bytes).unwrap();
    (contents.key(codec), packed, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_packed_is_the_tree(trees in prop::collection::vec(tree(), 1..4)) {
        let mut listing = Listing::from([(b"nix".to_vec(), (0o755, None)), (b"nix/store".to_vec(), (0o755, None))]);
        for (n, tree) in trees.iter().enumerate() {
            expected(&mut listing, format!("nix/store/{}", store_path(n).base_name()).as_bytes(), tree);
        }
        let (_, packed, bytes) = with_store(&trees, |store, closure| pack(store, closure.paths().collect(), Compression::None));
        prop_assert_eq!(read_back(&bytes), listing);
        prop_assert_eq!(packed.size, bytes.len() as u64);
        prop_assert_eq!(packed.digest, layerhold::blob::Digest::of(&bytes));
    }

    #[test]
    fn bytes_depend_on_neither_order_nor_threads(
        trees in prop::collection::vec(tree(), 1..5),
        codec in prop::sample::select(vec!["none", "gzip:1", "zstd:1"]),
    ) {
        let codec: Compression = codec.parse().unwrap();
        let packed = |threads: usize, reversed: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| with_store(&trees, |store, closure| {
                let mut paths: Vec<_> = closure.paths().collect();
                if reversed {
                    paths.reverse();
                }
                pack(store, paths, codec)
            }))
        };
        let first = packed(1, false);
        prop_assert_eq!(&packed(2, true), &first);
        prop_assert_eq!(&packed(7, false), &first);
    }

    #[test]
    fn layers_packed_at_once_are_what_each_is_alone(
        trees in prop::collection::vec(tree(), 1..20),
        codec in prop::sample::select(vec!["none", "zstd:1"]),
        threads in 1usize..4,
        near in any::<bool>(),
        bytes in 0u64..100_000,
        written in prop::collection::vec(any::<bool>(), 1..20),
    ) {
        let codec: Compression = codec.parse().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| with_store(&trees, |store, closure| {
            let packer = Packer::new(store, codec, &Silent);
            let packed = Mutex::new(BTreeMap::new());
            let paths: Vec<_> = closure.paths().collect();
            // Of some no more is wanted than what they would be.
            let is_written = |path: &PathInfo| written[usize::from(path.path.base_name().as_bytes()[0]) % written.len()];
            packer.for_each(&paths, bytes, near, |&path, lane| {
                let mut out = Vec::new();
                let into: Option<&mut dyn io::Write> = if is_written(path) { Some(&mut out) } else { None };
                let (layer, _) = packer.pack_in_state(&LayerContents::StorePaths(vec![path]), into, lane)?;
                packed.lock().unwrap().insert(path.path.clone(), (layer, out));
                Ok::<(), PackError>(())
            })
            .unwrap();
            let alone = paths.iter().map(|&path| {
                let (_, layer, out) = pack(store, vec![path], codec);
                (path.path.clone(), (layer, if is_written(path) { out } else { Vec::new() }))
            });
            assert_eq!(packed.into_inner().unwrap(), alone.collect());
        }));
    }

    #[test]
    fn another_tree_or_codec_is_another_key(one in tree(), other in tree()) {
        let key = |tree: &Node, codec: &str| {
            let codec = codec.parse().unwrap();
            with_store(std::slice::from_ref(tree), |_, closure| LayerContents::StorePaths(closure.paths().collect()).key(codec))
        };
        prop_assert_eq!(key(&one, "none") == key(&other, "none"), one == other);
        let keys = ["none", "gzip:1", "gzip:2", "zstd:1"].map(|codec| key(&one, codec));
        prop_assert!(keys.iter().enumerate().all(|(n, key)| !keys[..n].contains(key)));
    }
}

/// Text of so many bytes that compresses, and is nowhere the same.
fn text(seed: u32, length: usize) -> Vec<u8> {
    let lines =
        (0..u32::MAX).flat_map(|n| format!("{:08x}\n", n.wrapping_add(seed).wrapping_mul(2_654_435_761)).into_bytes());
    lines.take(length).collect()
}

/// How many members a gzip file has (RFC 1952), or how many frames one of zstd (RFC 8878).
fn pieces(codec: Compression, mut blob: &[u8]) -> usize {
    let mut count = 0;
    while !blob.is_empty() {
        match codec {
            Compression::Zstd(_) => blob = &blob[zstd::zstd_safe::find_frame_compressed_size(blob).unwrap()..],
            _ => drop(io::copy(&mut flate2::bufread::GzDecoder::new(&mut blob), &mut io::sink()).unwrap()),
        }
        count += 1;
    }
    count
}

/// Pieces of several layers are in the hands of all cores at once, and each layer gets its own back, in order.
#[test]
fn layers_of_many_pieces_are_the_same_on_any_number_of_threads() {
    let file = |n: u32, length: usize| Node::File { executable: false, contents: text(n, length) };
    let trees = [file(1, 9_000_000), file(2, 5_000_000), file(3, 2_500_000)];
    let mut golden = String::new();
    with_store(&trees, |store, closure| {
        let paths: Vec<_> = closure.paths().collect();
        for codec in ["gzip:6", "zstd:3"] {
            let codec: Compression = codec.parse().unwrap();
            let on_threads = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let packed = Mutex::new(BTreeMap::new());
                pool.install(|| {
                    let packer = Packer::new(store, codec, &Silent);
                    packer.for_each(&paths, 16_500_000, true, |&path, lane| {
                        let mut out = Vec::new();
                        let (layer, _) =
                            packer.pack_in_state(&LayerContents::StorePaths(vec![path]), Some(&mut out), lane)?;
                        packed.lock().unwrap().insert(path.path.clone(), (layer, out));
                        Ok::<(), PackError>(())
                    })
                })
                .unwrap();
                packed.into_inner().unwrap()
            };
            let first = on_threads(1);
            for (path, (layer, blob)) in &first {
                assert_eq!(layer.digest, layerhold::blob::Digest::of(blob));
                golden += &format!("{codec} {}: {} pieces, {}\n", path.name(), pieces(codec, blob), layer.digest);
            }
            for threads in [2, 5] {
                assert!(on_threads(threads) == first, "{codec} on {threads} threads");
            }
        }
    });
    insta::assert_snapshot!(golden, @"
    gzip:6 package-0: 9 pieces, sha256:f0bf6c2fea8bb13d0880e59f1e8492e0f202d74618f16d48370d7f2cd426df37
    gzip:6 package-1: 5 pieces, sha256:ec57724b14ba0e231a6ac3466cfd0db0849fa1e8ab7171e184a6bc9d4a5280b3
    gzip:6 package-2: 3 pieces, sha256:f9b7c29d39cc60cfd27b68b7496d1532b2da81b24f3a8c6b372bbc87389ac5fb
    zstd:3 package-0: 5 pieces, sha256:7762e1da9f6815d47ca9767f44c360b8f4b15f1de2f03e3ab880844a56bd1440
    zstd:3 package-1: 3 pieces, sha256:f1d81b8b39a76daa529822481af4074ec169f1522b93ae8f46caec444983cf0c
    zstd:3 package-2: 2 pieces, sha256:7ee9d143cc15311bab2629dbf4547a6ea239384b4247a9d385c869f2cdeab051
    ");
}

/// Layers of many pieces, some of which are written and others hashed only, share a thread.
#[test]
fn long_layers_hashed_at_once_are_what_each_is_alone() {
    let file = |n: u32| Node::File { executable: false, contents: text(n, 50_000 + (n * n * 25_000) as usize) };
    let trees: Vec<_> = (0..14).map(file).collect();
    with_store(&trees, |store, closure| {
        let paths: Vec<_> = closure.paths().enumerate().collect();
        let alone: Vec<_> = paths.iter().map(|&(_, path)| pack(store, vec![path], Compression::None)).collect();
        let bytes = alone.iter().map(|(_, layer, _)| layer.size).sum();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let packer = Packer::new(store, Compression::None, &Silent);
            let done = AtomicUsize::new(0);
            pool.install(|| {
                packer.for_each(&paths, bytes, true, |&(at, path), lane| {
                    let mut out = Vec::new();
                    let into: Option<&mut dyn io::Write> = if at % 2 == 0 { Some(&mut out) } else { None };
                    let (layer, _) = packer.pack_in_state(&LayerContents::StorePaths(vec![path]), into, lane)?;
                    let (_, expected, written) = &alone[at];
                    assert_eq!(&layer, expected, "{at} on {threads} threads");
                    assert!(out.is_empty() && at % 2 == 1 || out == *written, "{at} on {threads} threads");
                    done.fetch_add(1, Ordering::Relaxed);
                    Ok::<(), PackError>(())
                })
            })
            .unwrap();
            assert_eq!(done.into_inner(), paths.len());
        }
    });
}

/// A layer that cannot be written ends the others, too: nobody wants them any more.
#[test]
fn layers_packed_at_once_end_where_one_fails() {
    const LENGTH: usize = 40 << 20;
    let trees: Vec<_> = (0..8).map(|n| Node::File { executable: false, contents: vec![n; LENGTH] }).collect();
    let written = AtomicUsize::new(0);
    let failure = with_store(&trees, |store, closure| {
        let packer = Packer::new(store, Compression::None, &Silent);
        let paths: Vec<_> = closure.paths().collect();
        packer.for_each(&paths, (8 * LENGTH) as u64, true, |&path, lane| {
            let fails = path.path == paths[2].path;
            let mut out = Counted { written: &written, fails };
            packer.pack_in_state(&LayerContents::StorePaths(vec![path]), Some(&mut out), lane).map(drop)
        })
    });
    assert!(matches!(failure, Err(PackError::Write(_))), "{failure:?}");
    assert!(written.into_inner() < 8 * LENGTH / 2);
}

/// Counts what is written, or takes nothing.
struct Counted<'c> {
    written: &'c AtomicUsize,
    fails: bool,
}

impl io::Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.fails {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.written.fetch_add(bytes.len(), Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same archive by GNU tar, which reads PAX headers in its own way.
#[test]
fn gnu_tar_unpacks_the_tree() {
    let long = |n: usize| [vec![b'n'; 120], b"\n7 x=y\n".to_vec(), n.to_string().into_bytes()].concat();
    let deep = (0..20).fold(Node::File { executable: true, contents: b"deep".to_vec() }, |inner, n| {
        Node::Directory(BTreeMap::from([(long(n), inner)]))
    });
    let entries = [
        (b"deep".to_vec(), deep),
        (b"empty".to_vec(), Node::File { executable: false, contents: Vec::new() }),
        (b"none".to_vec(), Node::Directory(BTreeMap::new())),
        (b"not-\xff-utf8".to_vec(), Node::File { executable: false, contents: b"x".to_vec() }),
        ([b"\xfe".to_vec(), long(0)].concat(), Node::Link(vec![b't'; 300])),
    ];
    let tree = Node::Directory(BTreeMap::from(entries));
    let (_, _, bytes) = with_store(std::slice::from_ref(&tree), |store, closure| {
        pack(store, closure.paths().collect(), Compression::None)
    });
    let place = tempfile::tempdir().unwrap();
    let archive = place.path().join("layer.tar");
    std::fs::write(&archive, bytes).unwrap();
    let unpacked = place.path().join("root");
    std::fs::create_dir(&unpacked).unwrap();
    let mut tar = Command::new("tar");
    let output = tar.arg("-C").arg(&unpacked).args(["--no-same-owner", "-xf"]).arg(&archive).output().unwrap();
    // It takes names for bytes anyway, and says that it does not know the record that POSIX has for that.
    let said = String::from_utf8_lossy(&output.stderr);
    let expected = |line: &str| line.ends_with("Ignoring unknown extended header keyword 'hdrcharset'");
    assert!(output.status.success() && said.lines().all(expected), "{said}");
    let packed_again = place.path().join("again");
    std::fs::create_dir_all(packed_again.join("nix")).unwrap();
    std::fs::rename(unpacked.join("nix/store"), packed_again.join("nix/store")).unwrap();
    let hashing = Hashing { memo: &NoMemo, observer: &Silent, now: SystemTime::UNIX_EPOCH };
    let again = LocalStore::open(&packed_again, hashing).unwrap();
    let again = Closure::compute(&again, [store_path(0)]).unwrap();
    let content = |closure: &Closure| closure.paths().next().unwrap().content;
    assert_eq!(content(&again), with_store(&[tree], |_, closure| content(closure)));
}
