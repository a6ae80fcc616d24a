//! How much of an image is new after a change, by plan: `cargo bench --bench plan`.
//!
//! The closures in `fixtures/graphs` are real environments' (names, sizes, dependencies), made from the Debian package
//! index by `scripts/closure-graphs`; the plan was tuned on web and native and on no other. A change to a package gives
//! it and all that depends on it new store paths, as in Nix; it becomes up to 5 per cent larger or smaller, what
//! depends on it by less than 512 bytes. For each kind of change the first table shows, in MiB and on average: the
//! bytes of the changed store paths (new whatever the plan, unless a layer has hidden them until now), the bytes in
//! layers that the image before did not have, and the bytes from the lowest such layer upwards, which classic Docker
//! unpacks again; also where the plan knows the image before (`--previous`) and all that is in it can still be had. The
//! second shows for how many changes either is within its bound, 1.05 times the bytes that must be new and 1 MB, beside
//! what hindsight could do. The third shows the same as the first for series of changes (`plan/series.rs`), of which
//! each begins with a plan that knows none before; by how many per cent images are larger for what is gone and still in
//! them, on average and at most; and the figures where nothing that is gone can be had (`no ballast`). The fourth shows
//! the time that a plan takes as closures grow, for a path and in bytes of the closure per second.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "the table is what this bench is for")]

#[path = "plan/environments.rs"]
mod environments;
#[path = "plan/hindsight.rs"]
mod hindsight;
#[path = "plan/series.rs"]
mod series;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Instant;

use environments::{Graph, State, copies, read_graph};
use layerhold::nix::{Closure, StorePath};
use layerhold::plan::{Previous, plan};

/// Layers for store paths: the default budget without those of own files.
const BUDGET: usize = layerhold::plan::DEFAULT_LAYERS - 2;
/// The same for nixpkgs' plan, with one layer above.
const POPULARITY_BUDGET: usize = layerhold::plan::DEFAULT_LAYERS - 1;

type Layers = Vec<Vec<StorePath>>;

/// The lengths of store paths in bytes.
type Sizes = BTreeMap<StorePath, u64>;

/// Makes a plan of a closure, and of the layers of the image before, if there was one, with the sizes of what is in
/// them.
type Planner = fn(&Closure, &Layers, &Sizes) -> Layers;

/// The planners, each with the width of its column: this plan, the same after the image before, and others'.
const PLANNERS: [(&str, usize, Planner); 5] = [
    ("this plan", 14, |closure, _, _| plan(closure, [], &Previous::default(), BUDGET).layers),
    ("--previous", 14, |closure, previous, sizes| plan(closure, [], &previous_of(previous, sizes), BUDGET).layers),
    ("popularity", 15, |closure, _, _| popularity(closure)),
    ("one path a layer", 18, |closure, _, _| one_path_a_layer(closure)),
    ("one layer", 15, |closure, _, _| vec![closure.paths().map(|info| info.path.clone()).collect()]),
];

/// What changes of one kind cost, summed up.
#[derive(Default)]
struct Sums {
    count: u64,
    must: u64,
    costs: [Costs; PLANNERS.len()],
    /// For an order that knows the changes: the layers before them, and what each touches.
    touched: Vec<Vec<usize>>,
    /// For the most that any order holds within bounds: the packages that change and what may lie above.
    packages: Vec<(u64, u64)>,
}

/// What they cost with one planner, and for how many of them that is within the bounds.
#[derive(Default)]
struct Costs {
    new: u64,
    /// From the lowest new layer upwards.
    above: u64,
    new_in_bounds: u64,
    above_in_bounds: u64,
    /// The most bytes over the bound, and the change that has them.
    worst: (u64, String),
}

impl Costs {
    fn add(&mut self, (new, above): (u64, u64), bound: u64, name: &str) {
        self.new += new;
        self.above += above;
        self.new_in_bounds += u64::from(new <= bound);
        self.above_in_bounds += u64::from(above <= bound);
        let over = new.saturating_sub(bound);
        if over > self.worst.0 {
            self.worst = (over, name.to_owned());
        }
    }
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
fn cost(sizes: &Sizes, before: &Layers, after: &Layers) -> (u64, u64) {
    let bytes = |layer: &Vec<StorePath>| layer.iter().map(|path| sizes[path]).sum::<u64>();
    let known: BTreeSet<_> = before.iter().collect();
    let new = after.iter().filter(|layer| !known.contains(layer)).map(bytes).sum();
    let unchanged = before.iter().zip(after).take_while(|(before, after)| before == after).count();
    (new, after[unchanged..].iter().map(bytes).sum())
}

/// The image before, of which everything can still be had.
fn previous_of(layers: &Layers, sizes: &Sizes) -> Previous {
    Previous { layers: layers.clone(), gone: sizes.clone() }
}

/// The sizes of a closure's paths.
fn sizes_of(closure: &Closure) -> Sizes {
    closure.paths().map(|info| (info.path.clone(), info.nar_size)).collect()
}

/// The bytes of what is new, whatever the plan.
fn bytes_to_send(old: &Closure, new: &Closure) -> u64 {
    new.paths().filter(|info| old.get(&info.path).is_none()).map(|info| info.nar_size).sum()
}

/// A change: its kind, what changes, and the environment before and after.
type Change<'a> = (&'static str, &'a str, State<'a>, State<'a>);

/// The changes that are tried, by kind.
fn changes<'a>(graph: &'a Graph) -> Vec<Change<'a>> {
    let whole = State::whole(graph);
    let mut found: Vec<Change<'a>> = Vec::new();
    let mut change = |kind, names: &[&'a str]| found.push((kind, names[0], whole.clone(), whole.upgraded(names)));
    let referred: BTreeSet<&str> =
        graph.values().flat_map(|package| package.dependencies.iter().map(String::as_str)).collect();
    for root in whole.roots.iter().filter(|root| !referred.contains(*root)) {
        change("leaf", &[root]);
    }
    for name in referred.iter().step_by((referred.len() / 40).max(1)) {
        change("middle", &[name]);
    }
    let in_order: Vec<_> = whole.roots.iter().copied().collect();
    for three in in_order.windows(3) {
        change("several", three);
    }
    change("libc", &["libc6"]);
    for root in in_order {
        let without = whole.toggled(root);
        found.push(("removed", root, whole.clone(), without.clone()));
        found.push(("added", root, without, whole.clone()));
    }
    found
}

/// Tries every change to a graph's environment; what the changes of each kind cost.
fn measure(graph: &Graph) -> BTreeMap<&'static str, Sums> {
    let mut kinds: BTreeMap<&str, Sums> = BTreeMap::new();
    for (kind, name, before, after) in changes(graph) {
        let (old, new) = (before.closure(), after.closure());
        let must = bytes_to_send(&old, &new);
        let bound = must * 105 / 100 + 1_000_000;
        let sums = kinds.entry(kind).or_default();
        sums.count += 1;
        sums.must += must;
        for ((_, _, planner), costs) in PLANNERS.iter().zip(&mut sums.costs) {
            let mut sizes = sizes_of(&old);
            let before = planner(&old, &Vec::new(), &sizes);
            let after = planner(&new, &before, &sizes);
            sizes.extend(sizes_of(&new));
            costs.add(cost(&sizes, &before, &after), bound, name);
        }
        let layers = plan(&old, [], &Previous::default(), BUDGET).layers;
        let is_touched = |layer: &Vec<StorePath>| layer.iter().any(|path| new.get(path).is_none());
        sums.touched.push((0..layers.len()).filter(|&at| is_touched(&layers[at])).collect());
        let (size, new_size) = (before.size(name), after.size(name));
        sums.packages.push((size, bound + size - new_size));
    }
    kinds
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The first table's rows for one closure. An order for packages that come or go would know which, so has no row.
fn print_costs(name: &str, graph: &Graph, kinds: &BTreeMap<&str, Sums>) {
    let closure = State::whole(graph).closure();
    let sizes: Vec<u64> =
        plan(&closure, [], &Previous::default(), BUDGET).layers.iter().map(|layer| bytes(&closure, layer)).collect();
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
        for (at, (costs, &(_, width, _))) in sums.costs.iter().zip(&PLANNERS).enumerate() {
            print!("{:>width$}", format!("{:.1} / {:.0}", average(costs.new), average(costs.above)));
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
        let [this, with_previous, ..] = &sums.costs;
        let possible = match *kind {
            "leaf" => hindsight::most_within_bounds(sums.packages.clone()).to_string(),
            _ => "-".to_owned(),
        };
        print!("{name:10} {kind:9}");
        for within in [this.new_in_bounds, with_previous.new_in_bounds, this.above_in_bounds] {
            print!("{:>12}", format!("{within} of {}", sums.count));
        }
        print!("{:>12}{possible:>10}", format!("{} of {}", with_previous.above_in_bounds, sums.count));
        match &this.worst {
            (0, _) => println!("  -"),
            (over, name) => println!("  {name}: {:.1}", mib(*over)),
        }
    }
}

/// As `--previous` where nothing that is gone can be had.
const WITHOUT_BALLAST: (&str, usize, Planner) =
    ("no ballast", 13, |closure, previous, _| plan(closure, [], &previous_of(previous, &Sizes::new()), BUDGET).layers);

/// The third table's columns.
fn series_planners() -> impl Iterator<Item = (&'static str, usize, Planner)> {
    PLANNERS[..2].iter().copied().chain([WITHOUT_BALLAST]).chain(PLANNERS[2..].iter().copied())
}

/// The third table's row for one closure; of `--previous` also what its images carry along, on average and at most.
fn print_series(name: &str, graph: &Graph) {
    let series: Vec<Vec<Closure>> =
        series::all(name, graph).iter().map(|states| states.iter().map(State::closure).collect()).collect();
    let changes: u64 = series.iter().map(|closures| closures.len() as u64 - 1).sum();
    let average = |bytes: u64| mib(bytes / changes);
    let pairs = series.iter().flat_map(|closures| closures.windows(2));
    print!("{name:10} {:>6.1}", average(pairs.map(|pair| bytes_to_send(&pair[0], &pair[1])).sum()));
    for (at, (_, width, planner)) in series_planners().enumerate() {
        let (mut new, mut above) = (0, 0);
        let mut ballast = Vec::new();
        for closures in &series {
            let mut sizes = sizes_of(&closures[0]);
            let mut layers = planner(&closures[0], &Vec::new(), &sizes);
            for closure in &closures[1..] {
                let next = planner(closure, &layers, &sizes);
                sizes.extend(sizes_of(closure));
                let costs = cost(&sizes, &layers, &next);
                (new, above) = (new + costs.0, above + costs.1);
                let needed: u64 = closure.paths().map(|info| info.nar_size).sum();
                let held: u64 = next.iter().flatten().map(|path| sizes[path]).sum();
                ballast.push((held - needed) as f64 / needed as f64 * 100.0);
                layers = next;
            }
        }
        print!("{:>width$}", format!("{:.1} / {:.0}", average(new), average(above)));
        if at == 1 {
            let most = ballast.iter().copied().fold(0.0, f64::max);
            print!("{:>9}", format!("{:.0} / {most:.0}", ballast.iter().sum::<f64>() / ballast.len() as f64));
        }
    }
    println!();
}

/// The fourth table: the time of a plan by the number of paths, and by their bytes, for one web environment and more of
/// them side by side.
fn print_growth(text: &str) {
    for count in [1, 2, 4, 8, 11] {
        let graph = copies(text, count);
        let closure = State::whole(&graph).closure();
        let mut times: Vec<f64> = (0..9)
            .map(|_| {
                let started = Instant::now();
                std::hint::black_box(plan(&closure, [], &Previous::default(), BUDGET));
                started.elapsed().as_secs_f64() * 1000.0
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let paths = closure.paths().len();
        let gib = closure.paths().map(|info| info.nar_size).sum::<u64>() as f64 / f64::from(1 << 30);
        print!("{paths:>6} paths {:>8.2} ms {:>8.2} us a path", times[4], times[4] * 1000.0 / paths as f64);
        println!(" {:>8.1} GiB/s of the closure", gib / times[4] * 1000.0);
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
    for (at, (name, width, _)) in PLANNERS.iter().enumerate() {
        print!("{name:>width$}");
        if at == 0 {
            print!("{:>11}", "hindsight");
        }
    }
    println!();
    measured.iter().for_each(|(name, graph, kinds)| print_costs(name, graph, kinds));

    println!();
    println!("{:20}{:>12}{:>12}{:>12}{:>12}", "", "new", "--previous", "upwards", "--previous");
    println!("{:10} {:9}{:>58}  worst by new bytes: MiB over", "closure", "change", "possible");
    measured.iter().for_each(|(name, _, kinds)| print_bounds(name, kinds));

    println!();
    print!("{:10} {:>6}", "closure", "must");
    for (at, (name, width, _)) in series_planners().enumerate() {
        print!("{name:>width$}");
        if at == 1 {
            print!("{:>9}", "% more");
        }
    }
    println!();
    measured.iter().for_each(|(name, graph, _)| print_series(name, graph));

    println!();
    print_growth(&fs::read_to_string(format!("{folder}/web.txt")).unwrap());
}
