//! How much of an image is new after a change, by plan: `cargo bench --bench plan`.
//!
//! The closures in `fixtures/graphs` are real environments' (names, sizes, dependencies), made from the Debian package
//! index by `scripts/closure-graphs`. A change to a package gives it and all that depends on it new store paths, as in
//! Nix. For each kind of change the table shows, in MiB and on average: the bytes of the changed store paths (what must
//! be new whatever the plan), the bytes in layers that the image before did not have, and the bytes from the lowest
//! such layer upwards, which classic Docker unpacks again.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "the table is what this bench is for")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use layerhold::nix::{Closure, ContentHash, PathInfo, Source, SourceError, StorePath, Visitor, WalkError};
use layerhold::plan::plan;

/// Layers for store paths: the default budget without the top layer.
const BUDGET: usize = layerhold::plan::DEFAULT_LAYERS - 1;

struct Package {
    size: u64,
    is_root: bool,
    dependencies: Vec<String>,
}

type Graph = BTreeMap<String, Package>;

fn read_graph(text: &str) -> Graph {
    text.lines()
        .map(|line| {
            let mut words = line.split(' ').peekable();
            let name = words.next().unwrap().to_owned();
            let size = words.next().unwrap().strip_prefix("size=").unwrap().parse().unwrap();
            let is_root = words.next_if_eq(&"root").is_some();
            (name, Package { size, is_root, dependencies: words.map(str::to_owned).collect() })
        })
        .collect()
}

/// What `roots` need, themselves included.
fn needed<'a>(graph: &'a Graph, roots: impl IntoIterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut pending: Vec<&str> = roots.into_iter().collect();
    while let Some(name) = pending.pop() {
        if found.insert(name) {
            pending.extend(graph[name].dependencies.iter().map(String::as_str));
        }
    }
    found
}

/// `changed` and all that depends on one of them.
fn with_dependents<'a>(graph: &'a Graph, changed: &[&'a str]) -> BTreeSet<&'a str> {
    let mut found: BTreeSet<&str> = changed.iter().copied().collect();
    loop {
        let before = found.len();
        for (name, package) in graph {
            if package.dependencies.iter().any(|dependency| found.contains(dependency.as_str())) {
                found.insert(name);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// One state of an environment: some roots, some packages at their second version.
struct State<'a> {
    graph: &'a Graph,
    roots: BTreeSet<&'a str>,
    changed: BTreeSet<&'a str>,
}

impl State<'_> {
    fn store_path(&self, name: &str) -> StorePath {
        let version = if self.changed.contains(name) { 2 } else { 1 };
        let digest = blake3::hash(format!("{name} {version}").as_bytes());
        StorePath::synthetic(digest.as_bytes(), &format!("{name}-{version}")).unwrap()
    }

    fn closure(&self) -> Closure {
        let infos = needed(self.graph, self.roots.iter().copied()).into_iter().map(|name| {
            let path = self.store_path(name);
            let references = self.graph[name].dependencies.iter().map(|name| self.store_path(name)).collect();
            let info = PathInfo {
                content: ContentHash::Nar([0; 32]),
                nar_size: self.graph[name].size,
                path: path.clone(),
                references,
            };
            (path, info)
        });
        let roots: Vec<_> = self.roots.iter().map(|name| self.store_path(name)).collect();
        Closure::compute(&Infos(infos.collect()), roots).unwrap()
    }
}

/// A source of path infos without any tree.
struct Infos(BTreeMap<StorePath, PathInfo>);

impl Source for Infos {
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        Ok(self.0.get(path).cloned())
    }

    fn walk(&self, path: &StorePath, _: &mut dyn Visitor) -> Result<(), WalkError> {
        Err(WalkError::Absent { path: path.to_absolute() })
    }
}

type Layers = Vec<Vec<StorePath>>;

type Planner = fn(&Closure) -> Layers;

/// What changes of one kind cost, summed up.
#[derive(Default)]
struct Sums {
    count: u64,
    must: u64,
    /// A planner each: bytes in new layers, bytes from the lowest of them upwards.
    costs: [(u64, u64); 4],
}

/// The plan of nixpkgs' `streamLayeredImage`: the paths that most others need each alone, the rest in one layer.
fn popularity(closure: &Closure) -> Layers {
    let mut needed_by: BTreeMap<&StorePath, usize> = BTreeMap::new();
    for info in closure.paths() {
        let mut seen = BTreeSet::new();
        let mut pending: Vec<&StorePath> = vec![&info.path];
        while let Some(path) = pending.pop() {
            if seen.insert(path) {
                *needed_by.entry(path).or_default() += 1;
                pending.extend(&closure.get(path).unwrap().references);
            }
        }
    }
    let mut paths: Vec<_> = closure.paths().map(|info| info.path.clone()).collect();
    paths.sort_by(|a, b| needed_by[b].cmp(&needed_by[a]).then_with(|| a.cmp(b)));
    let rest = paths.split_off(paths.len().min(BUDGET - 1));
    paths.into_iter().map(|path| vec![path]).chain([rest]).filter(|layer| !layer.is_empty()).collect()
}

fn one_path_a_layer(closure: &Closure) -> Layers {
    plan(closure, usize::MAX).layers
}

fn one_layer(closure: &Closure) -> Layers {
    vec![closure.paths().map(|info| info.path.clone()).collect()]
}

/// Bytes in layers that `before` lacks, and bytes from the lowest of them upwards.
fn cost(closure: &Closure, before: &Layers, after: &Layers) -> (u64, u64) {
    let bytes = |layer: &Vec<StorePath>| layer.iter().map(|path| closure.get(path).unwrap().nar_size).sum::<u64>();
    let known: BTreeSet<_> = before.iter().collect();
    let new = after.iter().filter(|layer| !known.contains(layer)).map(bytes).sum();
    let unchanged = before.iter().zip(after).take_while(|(before, after)| before == after).count();
    (new, after[unchanged..].iter().map(bytes).sum())
}

/// The changes that are tried, by kind.
fn changes<'a>(graph: &'a Graph) -> Vec<(&'static str, State<'a>, State<'a>)> {
    let roots: BTreeSet<&str> =
        graph.iter().filter(|(_, package)| package.is_root).map(|(name, _)| name.as_str()).collect();
    let state = |roots: &BTreeSet<&'a str>, changed| State { graph, roots: roots.clone(), changed };
    let mut found = Vec::new();
    let mut change = |kind, names: &[&'a str]| {
        found.push((kind, state(&roots, BTreeSet::new()), state(&roots, with_dependents(graph, names))));
    };
    let referred: BTreeSet<&str> =
        graph.values().flat_map(|package| package.dependencies.iter().map(String::as_str)).collect();
    for root in roots.iter().filter(|root| !referred.contains(*root)) {
        change("leaf", &[root]);
    }
    for name in referred.iter().step_by((referred.len() / 40).max(1)) {
        change("middle", &[name]);
    }
    let in_order: Vec<_> = roots.iter().copied().collect();
    for three in in_order.windows(3) {
        change("several", three);
    }
    change("libc", &["libc6"]);
    for root in &roots {
        let without: BTreeSet<_> = roots.iter().copied().filter(|other| other != root).collect();
        found.push(("removed", state(&roots, BTreeSet::new()), state(&without, BTreeSet::new())));
        found.push(("added", state(&without, BTreeSet::new()), state(&roots, BTreeSet::new())));
    }
    found
}

fn main() {
    let planners: [(&str, Planner); 4] = [
        ("this plan", |closure| plan(closure, BUDGET).layers),
        ("popularity", popularity),
        ("one path a layer", one_path_a_layer),
        ("one layer", one_layer),
    ];
    println!("{:10} {:9} {:>6}  new MiB / MiB from the lowest new layer upwards", "closure", "change", "must");
    print!("{:27}", "");
    planners.iter().for_each(|(name, _)| print!("{name:>20}"));
    println!();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/graphs");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut planning = (0usize, 0.0);
    for file in files {
        let graph = read_graph(&fs::read_to_string(&file).unwrap());
        let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
        for (kind, before, after) in changes(&graph) {
            let (old, new) = (before.closure(), after.closure());
            let must = new.paths().filter(|info| old.get(&info.path).is_none()).map(|info| info.nar_size).sum::<u64>();
            let sum = sums.entry(kind).or_default();
            sum.count += 1;
            sum.must += must;
            for ((_, planner), sum) in planners.iter().zip(&mut sum.costs) {
                let started = Instant::now();
                let (before, after) = (planner(&old), planner(&new));
                planning = (planning.0 + 2, planning.1 + started.elapsed().as_secs_f64());
                let (bytes, above) = cost(&new, &before, &after);
                *sum = (sum.0 + bytes, sum.1 + above);
            }
        }
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        for (kind, Sums { count, must, costs }) in sums {
            let mib = |bytes: u64| bytes as f64 / count as f64 / f64::from(1 << 20);
            print!("{name:10} {kind:9} {:>6.1}", mib(must));
            costs.iter().for_each(|&(new, above)| print!("{:>20}", format!("{:.1} / {:.0}", mib(new), mib(above))));
            println!();
        }
    }
    println!("{} plans, {:.2} ms each", planning.0, planning.1 * 1000.0 / planning.0 as f64);
}
