//! The packing hot path: walk, tar and digests, without and with codecs, in bytes of tar per second.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use layerhold::event::Silent;
use layerhold::nix::{Closure, Hashing, LocalStore, NoMemo, Node, Source, StorePath};
use layerhold::pack::{Compression, LayerContents, Packer};

/// Eight store paths of some 4 MiB each: many small files, some large ones, contents that compress as programs do.
fn corpus(root: &Path) -> Vec<StorePath> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    // Words out of a small vocabulary, so that codecs find what they find in real programs.
    let vocabulary: Vec<[u8; 12]> =
        (0..4096).map(|_| [next().to_le_bytes().as_slice(), &[0; 4]].concat().try_into().unwrap()).collect();
    let mut contents = |length: usize| -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 12);
        while bytes.len() < length {
            bytes.extend_from_slice(&vocabulary[(next() % 4096) as usize]);
        }
        bytes.truncate(length);
        bytes
    };
    (0..8u8)
        .map(|n| {
            let path = StorePath::synthetic(blake3::hash(&[n]).as_bytes(), &format!("package{n}-1.0")).unwrap();
            let base = root.join("nix/store").join(path.base_name());
            fs::create_dir_all(base.join("share/doc")).unwrap();
            fs::create_dir_all(base.join("bin")).unwrap();
            for file in 0..120 {
                fs::write(base.join(format!("share/doc/file{file}")), contents(1 << (file % 14 + 3))).unwrap();
            }
            let program = base.join("bin/program");
            fs::write(&program, contents(3 << 20)).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            path
        })
        .collect()
}

fn pack(criterion: &mut Criterion) {
    let root = tempfile::tempdir().unwrap();
    let paths = corpus(root.path());
    let hashing = Hashing { memo: &NoMemo, observer: &Silent, now: std::time::SystemTime::now() };
    let store = LocalStore::open(root.path(), hashing).unwrap();
    let closure = Closure::compute(&store, paths.clone()).unwrap();
    let layer = || LayerContents::StorePaths(closure.paths().collect());
    let packed = Packer::new(&store, Compression::None, &Silent).pack(&layer(), &mut io::sink()).unwrap();

    let mut group = criterion.benchmark_group("pack");
    group.throughput(Throughput::Bytes(packed.tar_size)).sample_size(10);
    group.bench_function("walk and read", |bencher| {
        let mut buffer = vec![0; 256 * 1024];
        bencher.iter(|| {
            for path in &paths {
                let mut read_all = |_: &[u8], node: Node<'_>| {
                    if let Node::Regular { contents, .. } = node {
                        while contents.read(&mut buffer)? > 0 {}
                    }
                    Ok(())
                };
                store.walk(path, &mut read_all).unwrap();
            }
        });
    });
    for compression in ["none", "zstd:1", "zstd:3", "gzip:6"] {
        let codec: Compression = compression.parse().unwrap();
        group.bench_function(format!("walk, tar, digests, {compression}"), |bencher| {
            let packer = Packer::new(&store, codec, &Silent);
            bencher.iter(|| packer.pack(&layer(), &mut io::sink()).unwrap());
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("unregistered tree");
    group.throughput(Throughput::Bytes(packed.tar_size)).sample_size(10);
    group.bench_function("scan and hash", |bencher| {
        bencher.iter(|| Closure::compute(&store, paths.clone()).unwrap());
    });
    group.finish();
}

criterion_group!(benches, pack);
criterion_main!(benches);
