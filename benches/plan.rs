//! How much of an image is new after a change, by plan: `cargo bench --bench plan`.
//!
//! The closures in `fixtures/graphs` are real environments' (names, sizes, dependencies), made from the Debian package
//! index by `scripts/closure-graphs`; the plan was tuned on web and native and on no other. A change to a package gives
//! it and all that depends on it new store paths, as in Nix; it becomes up to 5 per cent larger or smaller, what
//! depends on it by less than 512 bytes. For each kind of change the first table shows, in MiB and on average: the
//! bytes of the changed store paths (what must be new whatever the plan), the bytes in layers that the image before did
//! not have, and the bytes from the lowest such layer upwards, which classic Docker unpacks again. The second shows for
//! how many changes either is within its bound, 1.05 times the bytes that must be new and 1 MB, beside what hindsight
//! could do. The third shows the time that a plan takes as closures grow.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "the table is what this bench is for")]

#[path = "plan/hindsight.rs"]
mod hindsight;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use layerhold::nix::{Closure, ContentHash, PathInfo, Source, SourceError, StorePath, Visitor, WalkError};
use layerhold::plan::plan;

/// Layers for store paths: the default budget without those of own files.
const BUDGET: usize = layerhold::plan::DEFAULT_LAYERS - 2;
/// The same for nixpkgs' plan, with one layer above.
const POPULARITY_BUDGET: usize = layerhold::plan::DEFAULT_LAYERS - 1;

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

/// One state of an environment: some roots, some packages at their second version, and all that depends on one of them.
struct State<'a> {
    graph: &'a Graph,
    roots: BTreeSet<&'a str>,
    upgraded: BTreeSet<&'a str>,
    changed: BTreeSet<&'a str>,
}

impl State<'_> {
    fn store_path(&self, name: &str) -> StorePath {
        let version = if self.changed.contains(name) { 2 } else { 1 };
        let digest = blake3::hash(format!("{name} {version}").as_bytes());
        StorePath::synthetic(digest.as_bytes(), &format!("{name}-{version}")).unwrap()
    }

    /// A size that a second version may well have: made from the name, so that each run measures the same.
    fn size(&self, name: &str) -> u64 {
        let size = self.graph[name].size;
        let by = u64::from(u16::from_le_bytes(*blake3::hash(name.as_bytes()).as_bytes().first_chunk().unwrap()));
        match (self.upgraded.contains(name), self.changed.contains(name)) {
            (true, _) => size * (950 + by % 101) / 1000,
            (_, true) => size + by % 512,
            _ => size,
        }
    }

    fn closure(&self) -> Closure {
        let infos = needed(self.graph, self.roots.iter().copied()).into_iter().map(|name| {
            let path = self.store_path(name);
            let references = self.graph[name].dependencies.iter().map(|name| self.store_path(name)).collect();
            let info = PathInfo {
                content: ContentHash::Nar([0; 32]),
                nar_size: self.size(name),
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

/// The planners, this plan first.
const PLANNERS: [(&str, Planner); 4] = [
    ("this plan", |closure| plan(closure, [], BUDGET).layers),
    ("popularity", popularity),
    ("one path a layer", one_path_a_layer),
    ("one layer", |closure| vec![closure.paths().map(|info| info.path.clone()).collect()]),
];

/// What changes of one kind cost, summed up, and for how many of them this plan is within its bounds.
#[derive(Default)]
struct Sums {
    count: u64,
    must: u64,
    /// A planner each: bytes in new layers, bytes from the lowest of them upwards.
    costs: [(u64, u64); PLANNERS.len()],
    new_in_bounds: u64,
    above_in_bounds: u64,
    /// The most bytes over the bound, and the change that has them.
    worst: (u64, String),
    /// For an order that knows the changes: the layers before them, and what each touches.
    touched: Vec<Vec<usize>>,
    /// For the most that any order holds within bounds: the packages that change and what may lie above.
    packages: Vec<(u64, u64)>,
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
    let rest = paths.split_off(paths.len().min(POPULARITY_BUDGET - 1));
    paths.into_iter().map(|path| vec![path]).chain([rest]).filter(|layer| !layer.is_empty()).collect()
}

/// By depth: each path above all that it refers to.
fn one_path_a_layer(closure: &Closure) -> Layers {
    let mut depth: BTreeMap<&StorePath, usize> = BTreeMap::new();
    while depth.len() < closure.paths().len() {
        for info in closure.paths() {
            let below: Option<Vec<usize>> = info.references.iter().map(|path| depth.get(path).copied()).collect();
            if let Some(below) = below {
                depth.entry(&info.path).or_insert(below.into_iter().max().map_or(0, |below| below + 1));
            }
        }
    }
    let mut paths: Vec<_> = closure.paths().map(|info| info.path.clone()).collect();
    paths.sort_by_key(|path| (depth[path], path.clone()));
    paths.into_iter().map(|path| vec![path]).collect()
}

fn bytes(closure: &Closure, layer: &[StorePath]) -> u64 {
    layer.iter().map(|path| closure.get(path).unwrap().nar_size).sum()
}

/// Bytes in layers that `before` lacks, and bytes from the lowest of them upwards.
fn cost(closure: &Closure, before: &Layers, after: &Layers) -> (u64, u64) {
    let bytes = |layer: &Vec<StorePath>| bytes(closure, layer);
    let known: BTreeSet<_> = before.iter().collect();
    let new = after.iter().filter(|layer| !known.contains(layer)).map(bytes).sum();
    let unchanged = before.iter().zip(after).take_while(|(before, after)| before == after).count();
    (new, after[unchanged..].iter().map(bytes).sum())
}

/// A change: its kind, what changes, and the environment before and after.
type Change<'a> = (&'static str, &'a str, State<'a>, State<'a>);

/// The changes that are tried, by kind.
fn changes<'a>(graph: &'a Graph) -> Vec<Change<'a>> {
    let roots: BTreeSet<&str> =
        graph.iter().filter(|(_, package)| package.is_root).map(|(name, _)| name.as_str()).collect();
    let state = |roots: &BTreeSet<&'a str>, upgraded: &[&'a str]| State {
        graph,
        roots: roots.clone(),
        upgraded: upgraded.iter().copied().collect(),
        changed: with_dependents(graph, upgraded),
    };
    let mut found: Vec<Change<'a>> = Vec::new();
    let mut change = |kind, names: &[&'a str]| found.push((kind, names[0], state(&roots, &[]), state(&roots, names)));
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
    for &root in &roots {
        let without: BTreeSet<_> = roots.iter().copied().filter(|&other| other != root).collect();
        found.push(("removed", root, state(&roots, &[]), state(&without, &[])));
        found.push(("added", root, state(&without, &[]), state(&roots, &[])));
    }
    found
}

/// Tries every change to a graph's environment; what the changes of each kind cost.
fn measure(graph: &Graph) -> BTreeMap<&'static str, Sums> {
    let mut kinds: BTreeMap<&str, Sums> = BTreeMap::new();
    for (kind, name, before, after) in changes(graph) {
        let (old, new) = (before.closure(), after.closure());
        let must = new.paths().filter(|info| old.get(&info.path).is_none()).map(|info| info.nar_size).sum::<u64>();
        let bound = must * 105 / 100 + 1_000_000;
        let sums = kinds.entry(kind).or_default();
        sums.count += 1;
        sums.must += must;
        for ((_, planner), sum) in PLANNERS.iter().zip(&mut sums.costs) {
            let (bytes, above) = cost(&new, &planner(&old), &planner(&new));
            *sum = (sum.0 + bytes, sum.1 + above);
        }
        let layers = PLANNERS[0].1(&old);
        let (bytes, above) = cost(&new, &layers, &PLANNERS[0].1(&new));
        sums.new_in_bounds += u64::from(bytes <= bound);
        sums.above_in_bounds += u64::from(above <= bound);
        let over = bytes.saturating_sub(bound);
        if over > sums.worst.0 {
            sums.worst = (over, name.to_owned());
        }
        let is_touched = |layer: &Vec<StorePath>| layer.iter().any(|path| new.get(path).is_none());
        sums.touched.push((0..layers.len()).filter(|&at| is_touched(&layers[at])).collect());
        let (size, new_size) = (before.size(name), after.size(name));
        sums.packages.push((size, bound - new_size + size));
    }
    kinds
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The first table's rows for one closure. An order for packages that come or go would know which, so has no row.
fn print_costs(name: &str, graph: &Graph, kinds: &BTreeMap<&str, Sums>) {
    let roots = graph.iter().filter(|(_, package)| package.is_root).map(|(name, _)| name.as_str()).collect();
    let closure = State { graph, roots, upgraded: BTreeSet::new(), changed: BTreeSet::new() }.closure();
    let sizes: Vec<u64> = PLANNERS[0].1(&closure).iter().map(|layer| bytes(&closure, layer)).collect();
    for (kind, sums) in kinds {
        let average = |bytes: u64| mib(bytes / sums.count);
        let best = match *kind {
            "added" | "removed" => "-".to_owned(),
            _ => {
                let known = hindsight::Known { sizes: sizes.clone(), touched: sums.touched.clone() };
                format!("{:.0}", average(known.least_bytes_above()))
            }
        };
        print!("{name:10} {kind:9} {:>6.1}", average(sums.must));
        for (at, &(new, above)) in sums.costs.iter().enumerate() {
            print!("{:>18}", format!("{:.1} / {:.0}", average(new), average(above)));
            if at == 0 {
                print!("{best:>11}");
            }
        }
        println!();
    }
}

/// The second table's rows for one closure.
fn print_bounds(name: &str, kinds: &BTreeMap<&str, Sums>) {
    for (kind, sums) in kinds {
        let of = |within: u64| format!("{within} of {}", sums.count);
        print!("{name:10} {kind:9}{:>12}{:>12}", of(sums.new_in_bounds), of(sums.above_in_bounds));
        match *kind {
            "leaf" => print!("{:>10}", hindsight::most_within_bounds(sums.packages.clone())),
            _ => print!("{:>10}", "-"),
        }
        match &sums.worst {
            (0, _) => println!("  -"),
            (over, name) => println!("  {name}: {:.1} MiB over", mib(*over)),
        }
    }
}

/// The graph of `text` again and again, all in one, with names of their own.
fn copies(text: &str, count: usize) -> Graph {
    let copy = |at: usize| {
        let renamed = move |name: &str| format!("{name}-copy{at}");
        read_graph(text).into_iter().map(move |(name, package)| {
            let dependencies = package.dependencies.iter().map(|name| renamed(name)).collect();
            (renamed(&name), Package { dependencies, ..package })
        })
    };
    (0..count).flat_map(copy).collect()
}

/// The third table: the time of a plan by the number of paths, for one web environment and more of them side by side.
fn print_growth(text: &str) {
    for count in [1, 2, 4, 8, 11] {
        let graph = copies(text, count);
        let roots = graph.iter().filter(|(_, package)| package.is_root).map(|(name, _)| name.as_str()).collect();
        let closure = State { graph: &graph, roots, upgraded: BTreeSet::new(), changed: BTreeSet::new() }.closure();
        let mut times: Vec<f64> = (0..9)
            .map(|_| {
                let started = Instant::now();
                std::hint::black_box(plan(&closure, [], BUDGET));
                started.elapsed().as_secs_f64() * 1000.0
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let paths = closure.paths().len();
        println!("{paths:>6} paths {:>8.2} ms {:>8.2} us a path", times[4], times[4] * 1000.0 / paths as f64);
    }
}

fn main() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/graphs");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let measured: Vec<_> = files
        .iter()
        .map(|file| {
            let graph = read_graph(&fs::read_to_string(file).unwrap());
            let kinds = measure(&graph);
            (file.file_stem().unwrap().to_string_lossy().into_owned(), graph, kinds)
        })
        .collect();

    println!("{:10} {:9} {:>6}  new MiB / MiB from the lowest new layer upwards", "closure", "change", "must");
    print!("{:27}", "");
    for (at, (name, _)) in PLANNERS.iter().enumerate() {
        print!("{name:>18}");
        if at == 0 {
            print!("{:>11}", "hindsight");
        }
    }
    println!();
    measured.iter().for_each(|(name, graph, kinds)| print_costs(name, graph, kinds));

    println!();
    println!("{:10} {:9}{:>12}{:>12}{:>10}  worst by new bytes", "closure", "change", "new", "upwards", "possible");
    measured.iter().for_each(|(name, _, kinds)| print_bounds(name, kinds));

    println!();
    print_growth(&fs::read_to_string(format!("{folder}/web.txt")).unwrap());
}
