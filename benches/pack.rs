//! The packing hot path: walk, tar, digests, without and with codecs, in bytes of tar per second; sha256 by itself.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

mod corpus;

use std::io;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use layerhold::event::Silent;
use layerhold::nix::{Closure, Hashing, LocalStore, NoMemo, Node, Source};
use layerhold::pack::{Compression, LayerContents, Packer};
use layerhold::sha256::{LANES, Sha256, update_together};

fn pack(criterion: &mut Criterion) {
    let root = tempfile::tempdir().unwrap();
    let paths = corpus::write(root.path(), 8);
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
    group.bench_function("walk, tar", |bencher| {
        let packer = Packer::new(&store, Compression::None, &Silent);
        bencher.iter(|| packer.write_again(&layer(), &mut io::sink()).unwrap());
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

/// As many streams at once as there are layers packed on a core, on the way that takes this CPU the least time.
fn sha256(criterion: &mut Criterion) {
    const PIECE: usize = 64 << 10;
    let pieces: Vec<Vec<u8>> = (0..LANES).map(|at| vec![at as u8; PIECE]).collect();
    let mut group = criterion.benchmark_group("sha256");
    for streams in [1, 2, 4, 8, 10, 12, LANES] {
        group.throughput(Throughput::Bytes((streams * PIECE) as u64));
        group.bench_function(format!("{streams} streams at once"), |bencher| {
            let mut hashers = vec![Sha256::new(); streams];
            bencher.iter(|| {
                let mut more: Vec<_> = hashers.iter_mut().zip(pieces.iter().map(Vec::as_slice)).collect();
                update_together(&mut more);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pack, sha256);
criterion_main!(benches);
