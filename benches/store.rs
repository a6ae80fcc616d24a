//! How the layer store grows: `cargo bench --bench store`, or with numbers of layers: `cargo bench --bench store -- 1000`.
//!
//! For stores of 1,000, 10,000 and 100,000 layers, most of them records alone and one in ten with a blob: how long each
//! operation takes (the median of several), what the process's memory was at most meanwhile, and how long
//! `layerhold containerize` takes for an environment that has not changed, beside the same with a store that holds
//! nothing else. An image has 100 layers, 80 of which the image before had.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "the table is what this bench is for")]

use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use layerhold::blob::{DiffId, Digest, LayerKey, LayerKeyBuilder};
use layerhold::event::Silent;
use layerhold::nix::StorePath;
use layerhold::store::{Content, GcPolicy, GraphNode, ImageRecord, LayerRecord, LayerStore, Wanted};

const LAYERS_OF_AN_IMAGE: usize = 100;
const NEW_LAYERS_OF_AN_IMAGE: usize = 20;
/// The bytes of a layer, in an image of about a gigabyte; no layer is here, only what is known of it.
const BYTES_OF_A_LAYER: u64 = 10 << 20;
const BLOB: &[u8] = b"a blob of a few bytes: what counts here is how many there are";

fn key(n: usize) -> LayerKey {
    LayerKeyBuilder::new("layerhold store bench").field(&n.to_le_bytes()).finish()
}

fn name(n: usize) -> String {
    let digest = Digest::of(&n.to_le_bytes()).hex();
    let path = StorePath::synthetic(digest.as_bytes()[..32].try_into().unwrap(), &format!("package-{n}")).unwrap();
    path.base_name().to_owned()
}

fn layer(n: usize) -> LayerRecord {
    let has_blob = n.is_multiple_of(10);
    let bytes = [BLOB, &n.to_le_bytes()].concat();
    LayerRecord {
        key: key(n),
        digest: Digest::of(&bytes),
        diff_id: DiffId(Digest::of(&bytes)),
        size: bytes.len() as u64,
        tar_size: BYTES_OF_A_LAYER,
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        has_blob,
        is_hearsay: false,
        contents: vec![Content { name: name(n), size: 2048 }],
    }
}

fn image(first: usize, total: usize) -> ImageRecord {
    let layers: Vec<_> = (first..first + LAYERS_OF_AN_IMAGE).map(|n| n % total).collect();
    let node = |(at, n): (usize, &usize)| GraphNode {
        name: name(*n),
        root: at % 10 == 0,
        references: (at + 1..LAYERS_OF_AN_IMAGE.min(at + 4)).collect(),
    };
    ImageRecord {
        name: "bench".to_owned(),
        tag: format!("v{first}"),
        image_id: Digest::of(&first.to_le_bytes()),
        manifest_digest: Digest::of(&first.to_be_bytes()),
        platforms: vec![],
        size: 1 << 20,
        made_at: first as u64,
        used_at: first as u64,
        graph: layers.iter().enumerate().map(node).collect(),
        layers: layers.into_iter().map(key).collect(),
    }
}

fn fill(store: &LayerStore, total: usize) {
    let layers: Vec<_> = (0..total).map(layer).collect();
    for (n, layer) in layers.iter().enumerate() {
        if layer.has_blob {
            let path = store.root().join("blobs/sha256").join(layer.digest.hex());
            fs::write(path, [BLOB, &n.to_le_bytes()].concat()).unwrap();
        }
        store.record_layer(layer).unwrap();
    }
    store.index_layers(&layers).unwrap();
    for first in (0..total).step_by(NEW_LAYERS_OF_AN_IMAGE) {
        store.record_image(&image(first, total)).unwrap();
    }
}

/// The most memory that the process had resident since the last call of [`forget_peak`], in MiB (proc(5)).
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// The median time of some runs, and the peak of memory.
fn measure(runs: usize, mut work: impl FnMut()) -> (Duration, u64) {
    forget_peak();
    let mut times: Vec<_> = (0..runs)
        .map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        })
        .collect();
    times.sort();
    (times[runs / 2], peak())
}

/// An environment of forty packages that nobody changes.
struct Unchanged {
    place: tempfile::TempDir,
}

impl Unchanged {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut manifest = "version = 1\n\n[install]\n".to_owned();
        for n in 0..40 {
            let bin = place.path().join("root/nix/store").join(name(n)).join("bin");
            fs::create_dir_all(&bin).unwrap();
            fs::write(bin.join(format!("tool{n}")), n.to_string().repeat(20_000)).unwrap();
            manifest += &format!("tool{n}.store-path = \"/nix/store/{}\"\n", name(n));
        }
        let flox = place.path().join("project/.flox/env");
        fs::create_dir_all(&flox).unwrap();
        fs::write(flox.join("manifest.toml"), manifest).unwrap();
        fs::write(place.path().join("project/.flox/env.json"), r#"{"name":"unchanged","version":1}"#).unwrap();
        Self { place }
    }

    fn containerize(&self, cache: &Path) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.env_clear().env("LAYERHOLD_CACHE", cache).env("HOME", self.place.path());
        command.args(["-q", "containerize", "-f", "/dev/null", "--store"]).arg(self.place.path().join("root"));
        command.arg("-d").arg(self.place.path().join("project")).stdin(Stdio::null());
        assert!(command.status().unwrap().success());
    }

    /// Medians with a store that holds nothing else and with this one, measured in turns.
    fn compare(&self, cache: &Path) -> (Duration, Duration) {
        let alone = tempfile::tempdir().unwrap();
        let (mut with_little, mut with_much) = (Vec::new(), Vec::new());
        for round in 0..16 {
            for (cache, times) in [(alone.path(), &mut with_little), (cache, &mut with_much)] {
                let begun = Instant::now();
                self.containerize(cache);
                if round > 0 {
                    times.push(begun.elapsed());
                }
            }
        }
        with_little.sort();
        with_much.sort();
        (with_little[7], with_much[7])
    }
}

/// How long a build that begins while garbage is collected waits for its lease at most.
fn longest_wait_for_a_lease(store: &LayerStore, policy: &GcPolicy) -> Duration {
    // However long it takes: the waits are what is measured.
    let patient = LayerStore::open(store.root()).unwrap().with_patience(Duration::from_secs(3600));
    std::thread::scope(|scope| {
        let collection = scope.spawn(|| drop(black_box(store.gc(policy).unwrap())));
        let mut longest = Duration::ZERO;
        while !collection.is_finished() {
            let begun = Instant::now();
            drop(patient.lease(&[]).unwrap());
            longest = longest.max(begun.elapsed());
            std::thread::sleep(Duration::from_millis(1));
        }
        longest
    })
}

fn row(what: &str, (time, peak): (Duration, u64)) {
    println!("  {what:<44} {:>9.1} ms {peak:>6} MiB", time.as_secs_f64() * 1e3);
}

fn main() {
    let mut sizes: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![1_000, 10_000, 100_000];
    }
    let unchanged = Unchanged::new();
    for total in sizes {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        let begun = Instant::now();
        fill(&store, total);
        let images = total / NEW_LAYERS_OF_AN_IMAGE;
        println!("{total} layers, {images} images (filled in {:.1} s)", begun.elapsed().as_secs_f64());
        let keys: Vec<_> = (0..LAYERS_OF_AN_IMAGE).map(|n| key(n * total / LAYERS_OF_AN_IMAGE)).collect();
        let policy = GcPolicy { max_size: Some(1 << 40), now: 1 << 32, ..GcPolicy::default() };
        let tight = GcPolicy { max_size: Some(0), ..policy.clone() };

        row("open", measure(11, || drop(black_box(LayerStore::open_to_write(directory.path()).unwrap()))));
        let looked_up = measure(11, || drop(black_box(store.lookup(&keys).unwrap())));
        row("look up 100 layers", looked_up);
        let gib = (LAYERS_OF_AN_IMAGE as u64 * BYTES_OF_A_LAYER) as f64 / f64::from(1 << 30);
        println!("  {:<44} {:>9.1} GiB/s of the layers", "", gib / looked_up.0.as_secs_f64());
        row("lease 100 layers", measure(11, || drop(black_box(store.lease(&keys).unwrap()))));
        row("index one more layer", measure(11, || store.index_layers(&[layer(1)]).unwrap()));
        row("gc --dry-run, nothing to do", measure(3, || drop(black_box(store.plan_gc(&policy).unwrap()))));
        row("gc --dry-run, everything to do", measure(3, || drop(black_box(store.plan_gc(&tight).unwrap()))));
        row("ls", measure(3, || drop(black_box(store.image_rows().unwrap()))));
        row("ls --layers", measure(3, || drop(black_box(store.layer_rows().unwrap()))));
        row("du", measure(3, || drop(black_box(store.path_rows().unwrap()))));
        row("why PATH", measure(3, || drop(black_box(store.why(&Wanted::StorePath(name(7))).unwrap()))));
        row("verify", measure(1, || assert!(store.verify(&Silent).unwrap().damage.is_empty())));
        let remake = || {
            fs::remove_dir_all(directory.path().join("index")).unwrap();
            store.prepare_index().unwrap();
        };
        row("make the index anew", measure(1, remake));
        let (alone, with_all) = unchanged.compare(directory.path());
        let ratio = with_all.as_secs_f64() / alone.as_secs_f64();
        println!(
            "  containerize, nothing changed: {:.1} ms, {:.1} ms with a store of its own: {ratio:.2} times",
            with_all.as_secs_f64() * 1e3,
            alone.as_secs_f64() * 1e3
        );
        let mut longest_wait = Duration::ZERO;
        row("gc --max-size 0", measure(1, || longest_wait = longest_wait_for_a_lease(&store, &tight)));
        println!("  {:<44} {:>9.1} ms", "a build waits for it at most", longest_wait.as_secs_f64() * 1e3);
        std::io::stdout().flush().unwrap();
    }
}
