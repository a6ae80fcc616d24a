//! The packing hot path: walk, tar, digests, without and with codecs, in bytes of tar per second.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

mod corpus;

use std::io;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use layerhold::event::Silent;
use layerhold::nix::{Closure, Hashing, LocalStore, NoMemo, Node, Source};
use layerhold::pack::{Compression, LayerContents, Packer};

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

criterion_group!(benches, pack);
criterion_main!(benches);
