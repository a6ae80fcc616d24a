//! What a run costs when much, little or nothing is known: store look-ups, packing what is missing, and the whole
//! program, in bytes of the image per second.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

mod corpus;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use layerhold::event::Silent;
use layerhold::nix::{Closure, Hashing, LocalStore, NoMemo, PathInfo, StorePath};
use layerhold::pack::{Compression, LayerContents, Packer};
use layerhold::store::{LayerRecord, LayerStore};
use tempfile::TempDir;

/// Store paths of an environment; there is one more, which takes the place of the first in a changed one.
const PATHS: usize = 8;

/// A store of unregistered trees with two environments, `base` and `changed`.
struct Machine {
    place: TempDir,
    paths: Vec<StorePath>,
}

impl Machine {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let paths = corpus::write(&place.path().join("root"), PATHS as u8 + 1);
        let machine = Self { place, paths };
        machine.write_environment("base", machine.base());
        machine.write_environment("changed", machine.changed());
        machine
    }

    fn base(&self) -> &[StorePath] {
        &self.paths[..PATHS]
    }

    fn changed(&self) -> &[StorePath] {
        &self.paths[1..]
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn write_environment(&self, name: &str, paths: &[StorePath]) {
        let flox = self.at(name).join(".flox");
        fs::create_dir_all(flox.join("env")).unwrap();
        fs::write(flox.join("env.json"), r#"{"name":"bench","version":1}"#).unwrap();
        // All have the same programs: the priority says whose is taken.
        let installs: String = paths
            .iter()
            .enumerate()
            .map(|(n, path)| format!("tool{n}.store-path = \"{path}\"\ntool{n}.priority = {n}\n"))
            .collect();
        fs::write(flox.join("env/manifest.toml"), format!("version = 1\n\n[install]\n{installs}")).unwrap();
    }

    fn closure(&self, paths: &[StorePath]) -> (LocalStore<'_>, Closure) {
        let hashing = Hashing { memo: &NoMemo, observer: &Silent, now: std::time::SystemTime::now() };
        let store = LocalStore::open(&self.at("root"), hashing).unwrap();
        let closure = Closure::compute(&store, paths.to_vec()).unwrap();
        (store, closure)
    }

    /// Runs the program, with the cache in `cache`.
    fn containerize(&self, environment: &str, cache: &Path) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.env_clear().env("LAYERHOLD_CACHE", cache).env("HOME", self.place.path()).stdin(Stdio::null());
        command.args(["-q", "containerize", "--store"]).arg(self.at("root"));
        command.arg("-d").arg(self.at(environment)).arg("-f").arg(self.at("image.tar"));
        assert!(command.status().unwrap().success());
    }

    /// A cache of its own for one run, as a run of `base` has left it.
    fn cache_with_base(&self) -> TempDir {
        let cache = tempfile::tempdir_in(self.place.path()).unwrap();
        let copied = Command::new("cp").args(["-a", "-T"]).arg(self.at("cache")).arg(cache.path()).status().unwrap();
        assert!(copied.success());
        cache
    }
}

/// Looks layers of one store path each up, and packs those that the store does not know. Gives their records.
fn pack_missing(cache: &LayerStore, source: &LocalStore<'_>, layers: &[&PathInfo]) -> Vec<LayerRecord> {
    let packer = Packer::new(source, Compression::None, &Silent);
    let contents: Vec<_> = layers.iter().map(|info| LayerContents::StorePaths(vec![*info])).collect();
    let keys: Vec<_> = contents.iter().map(|contents| contents.key(Compression::None)).collect();
    let known = cache.lookup(&keys).unwrap();
    let missing = contents.iter().zip(&keys).zip(known).filter(|(_, known)| known.is_none());
    missing
        .map(|((contents, &key), _)| {
            let packed = packer.pack(contents, &mut io::sink()).unwrap();
            LayerRecord {
                key,
                digest: packed.digest,
                diff_id: packed.diff_id,
                size: packed.size,
                tar_size: packed.tar_size,
                media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
                has_blob: false,
                is_hearsay: false,
                contents: Vec::new(),
            }
        })
        .collect()
}

fn layers(criterion: &mut Criterion) {
    let machine = Machine::new();
    let (source, closure) = machine.closure(&machine.paths);
    let infos = |paths: &[StorePath]| paths.iter().map(|path| closure.get(path).unwrap()).collect::<Vec<_>>();
    let (base, changed) = (infos(machine.base()), infos(machine.changed()));
    let nothing = LayerStore::open(&machine.at("cache of nothing")).unwrap();
    let cache = LayerStore::open(&machine.at("cache of base")).unwrap();
    let records = pack_missing(&nothing, &source, &base);
    assert_eq!(records.len(), PATHS);
    records.iter().for_each(|record| cache.record_layer(record).unwrap());
    cache.index_layers(&records).unwrap();
    let keys: Vec<_> = records.iter().map(|record| record.key).collect();

    let mut group = criterion.benchmark_group("store");
    group.throughput(Throughput::Elements(keys.len() as u64)).sample_size(20);
    group.bench_function("look up known layers", |bencher| bencher.iter(|| cache.lookup(&keys).unwrap()));
    group.bench_function("look up unknown layers", |bencher| bencher.iter(|| nothing.lookup(&keys).unwrap()));
    group.finish();

    let mut group = criterion.benchmark_group("pack what is missing");
    group.throughput(Throughput::Bytes(records.iter().map(|record| record.tar_size).sum())).sample_size(10);
    for (name, cache, layers, missing) in
        [("hit", &cache, &base, 0), ("one change", &cache, &changed, 1), ("miss", &nothing, &base, PATHS)]
    {
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(pack_missing(cache, &source, layers).len(), missing));
        });
    }
    group.finish();
}

fn program(criterion: &mut Criterion) {
    let machine = Machine::new();
    let cache = machine.at("cache");
    machine.containerize("base", &cache);

    let mut group = criterion.benchmark_group("layerhold containerize -f FILE");
    group.throughput(Throughput::Bytes(fs::metadata(machine.at("image.tar")).unwrap().len())).sample_size(10);
    group.bench_function("cold", |bencher| {
        let empty = || tempfile::tempdir_in(machine.place.path()).unwrap();
        bencher.iter_batched(empty, |cache| machine.containerize("base", cache.path()), BatchSize::PerIteration);
    });
    // The files are no longer too young to be remembered.
    machine.containerize("base", &cache);
    group.bench_function("unchanged", |bencher| bencher.iter(|| machine.containerize("base", &cache)));
    group.bench_function("one change", |bencher| {
        let known = || machine.cache_with_base();
        bencher.iter_batched(known, |cache| machine.containerize("changed", cache.path()), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, layers, program);
criterion_main!(benches);
