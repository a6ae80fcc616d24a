//! Which store paths share a layer, and in what order the layers lie. Pure: no I/O, no clock, no machine.
//!
//! Store paths lie in disjoint directories, so grouping and order are free. What matters is how much of the next image
//! is already there. A layer is sent again when any of its paths changes, so paths that cost much lie alone; classic
//! Docker unpacks a layer again when anything *below* it changed, so what changes often lies on top.
//!
//! From bottom to top:
//!
//! 1. large paths that others refer to, one a layer, by their depth: a path lies above all that it refers to, so a
//!    change lies below little else than what it changes anyway;
//! 2. small paths that others refer to, grouped;
//! 3. small paths that the user installs, grouped;
//! 4. large paths that the user installs, one a layer.
//!
//! The environment's own files come above all of these and are no part of this plan.

use std::collections::{BTreeMap, BTreeSet};

use crate::nix::{Closure, PathInfo, StorePath};

/// Most layers that an image may have: overlayfs takes 128 lower directories, and runtimes keep one for themselves.
pub const MAX_LAYERS: usize = 127;
/// Layers of an image unless the user says otherwise: leaves room for images made on top of it.
pub const DEFAULT_LAYERS: usize = 100;

/// Store paths by layer, the bottom layer first; every path of the closure is in exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// The layers. None is empty.
    pub layers: Vec<Vec<StorePath>>,
}

/// Distributes a closure over at most `budget` layers.
///
/// The same closure gives the same plan on any machine and in any order of its input.
pub fn plan(closure: &Closure, budget: usize) -> LayerPlan {
    let depth = depths(closure);
    let by_depth = |a: &&PathInfo, b: &&PathInfo| (depth[&a.path], &a.path).cmp(&(depth[&b.path], &b.path));
    let referred: BTreeSet<&StorePath> = closure.paths().flat_map(|info| &info.references).collect();
    let is_top = |info: &PathInfo| closure.roots().contains(&info.path) && !referred.contains(&info.path);

    let (alone, grouped) = split_alone(closure, budget);
    let (mut alone_top, mut alone_below): (Vec<_>, Vec<_>) = alone.into_iter().partition(|info| is_top(info));
    let (grouped_top, grouped_below): (Vec<_>, Vec<_>) = grouped.into_iter().partition(|info| is_top(info));
    alone_below.sort_by(by_depth);
    alone_top.sort_by(by_depth);

    let groups = budget.saturating_sub(alone_below.len() + alone_top.len());
    let (groups_below, groups_top) = share_groups(groups, &grouped_below, &grouped_top);

    let single = |info: &PathInfo| vec![info.path.clone()];
    let mut layers: Vec<Vec<StorePath>> = alone_below.into_iter().map(single).collect();
    if groups_top == 0 {
        // One group for both kinds, or none at all.
        let both: Vec<_> = grouped_below.into_iter().chain(grouped_top).collect();
        layers.extend(group_by_name(&both, groups_below));
    } else {
        layers.extend(group_by_name(&grouped_below, groups_below));
        layers.extend(group_by_name(&grouped_top, groups_top));
    }
    layers.extend(alone_top.into_iter().map(single));
    LayerPlan { layers }
}

/// Which paths get a layer of their own: all, where the budget allows; else the largest.
fn split_alone(closure: &Closure, budget: usize) -> (Vec<&PathInfo>, Vec<&PathInfo>) {
    let mut by_size: Vec<_> = closure.paths().collect();
    if by_size.len() <= budget {
        return (by_size, Vec::new());
    }
    // A fifth of the budget for groups: few enough that most bytes lie alone, enough that a group stays small.
    let groups = (budget / 5).max(1);
    by_size.sort_by(|a, b| b.nar_size.cmp(&a.nar_size).then_with(|| a.path.cmp(&b.path)));
    let grouped = by_size.split_off(budget - groups);
    (by_size, grouped)
}

/// Shares groups between what is referred to and what the user installs, by the number of paths; each kind that has
/// paths gets one at least, while there are two.
fn share_groups(groups: usize, below: &[&PathInfo], top: &[&PathInfo]) -> (usize, usize) {
    match (below.len(), top.len()) {
        (0, 0) => (0, 0),
        (_, 0) => (groups, 0),
        (0, _) => (0, groups),
        _ if groups < 2 => (groups, 0),
        (below, top) => {
            let for_top = (groups * top / (below + top)).clamp(1, groups - 1);
            (groups - for_top, for_top)
        }
    }
}

/// Puts paths into groups by their package's name alone, so that a new version, another package more or less, or a
/// changed size moves no other path to another group.
fn group_by_name(paths: &[&PathInfo], groups: usize) -> Vec<Vec<StorePath>> {
    let mut layers: BTreeMap<u64, Vec<StorePath>> = BTreeMap::new();
    for info in paths {
        let hash = blake3::hash(package_name(info.path.name()).as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        layers.entry(u64::from_le_bytes(first) % groups.max(1) as u64).or_default().push(info.path.clone());
    }
    for layer in layers.values_mut() {
        layer.sort();
    }
    layers.into_values().collect()
}

/// A store path's name without its version: up to the first dash that a digit follows (nix: `DrvName`).
fn package_name(name: &str) -> &str {
    let bytes = name.as_bytes();
    let version = (1..bytes.len()).find(|&at| bytes[at - 1] == b'-' && bytes[at].is_ascii_digit());
    version.map_or(name, |at| &name[..at - 1])
}

/// How far each path lies above the deepest path that it refers to, 0 for one that refers to nothing.
fn depths(closure: &Closure) -> BTreeMap<&StorePath, usize> {
    let mut depth: BTreeMap<&StorePath, usize> = BTreeMap::new();
    let mut entered = BTreeSet::new();
    for info in closure.paths() {
        let mut pending = vec![info];
        while let Some(&at) = pending.last() {
            let references = || at.references.iter().filter_map(|path| closure.get(path));
            // Each path waits once for what it refers to; a cycle, which only a store without a database can show,
            // finds its paths already entered and ends.
            if entered.insert(&at.path) {
                pending.extend(references().filter(|info| !entered.contains(&info.path)));
                continue;
            }
            pending.pop();
            let below = references().filter_map(|info| depth.get(&info.path).copied()).max();
            depth.entry(&at.path).or_insert(below.map_or(0, |depth| depth + 1));
        }
    }
    depth
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::{ContentHash, Source, SourceError, Visitor, WalkError};
    use proptest::prelude::*;

    /// A source of path infos without any tree.
    struct Graph(BTreeMap<StorePath, PathInfo>);

    impl Source for Graph {
        fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
            Ok(self.0.get(path).cloned())
        }

        fn walk(&self, path: &StorePath, _: &mut dyn Visitor) -> Result<(), WalkError> {
            Err(WalkError::Absent { path: path.to_absolute() })
        }
    }

    fn path(n: usize) -> StorePath {
        StorePath::synthetic(blake3::hash(&n.to_le_bytes()).as_bytes(), &format!("package{n}-1.0")).unwrap()
    }

    /// A closure from `(size, references to earlier paths)`; the paths that nothing refers to are its roots.
    fn closure(nodes: &[(u64, Vec<usize>)]) -> Closure {
        let infos: BTreeMap<_, _> = nodes
            .iter()
            .enumerate()
            .map(|(n, (size, references))| {
                let info = PathInfo {
                    path: path(n),
                    content: ContentHash::Nar([n as u8; 32]),
                    nar_size: *size,
                    references: references.iter().map(|&n| path(n)).collect(),
                };
                (path(n), info)
            })
            .collect();
        let referred: BTreeSet<_> = infos.values().flat_map(|info| info.references.clone()).collect();
        let roots: Vec<_> = infos.keys().filter(|path| !referred.contains(path)).cloned().collect();
        Closure::compute(&Graph(infos), roots).unwrap()
    }

    fn arbitrary_closure() -> impl Strategy<Value = Closure> {
        prop::collection::vec((0u64..1 << 30, prop::collection::vec(any::<prop::sample::Index>(), 0..4)), 0..200)
            .prop_map(|nodes| {
                let nodes: Vec<_> = nodes
                    .into_iter()
                    .enumerate()
                    .map(|(n, (size, references))| {
                        let references =
                            if n == 0 { Vec::new() } else { references.iter().map(|i| i.index(n)).collect() };
                        (size, references)
                    })
                    .collect();
                closure(&nodes)
            })
    }

    proptest! {
        #[test]
        fn a_plan_partitions_the_closure_within_its_budget(closure in arbitrary_closure(), budget in 1usize..=127) {
            let plan = plan(&closure, budget);
            prop_assert!(plan.layers.len() <= budget);
            prop_assert!(plan.layers.iter().all(|layer| !layer.is_empty()));
            let mut planned: Vec<_> = plan.layers.concat();
            planned.sort();
            let paths: Vec<_> = closure.paths().map(|info| info.path.clone()).collect();
            prop_assert_eq!(planned, paths);
        }

        #[test]
        fn within_the_budget_a_path_lies_above_all_that_it_refers_to(closure in arbitrary_closure()) {
            let plan = plan(&closure, usize::MAX);
            let place: BTreeMap<_, _> =
                plan.layers.iter().enumerate().map(|(at, layer)| (layer[0].clone(), at)).collect();
            for info in closure.paths() {
                for reference in &info.references {
                    prop_assert!(place[&info.path] > place[reference]);
                }
            }
        }
    }

    #[test]
    fn what_the_user_installs_lies_on_top() {
        let closure = closure(&[(100, vec![]), (10, vec![0]), (50, vec![0]), (1, vec![1])]);
        let layers = plan(&closure, 100).layers;
        assert_eq!(layers, [vec![path(0)], vec![path(1)], vec![path(2)], vec![path(3)]]);
    }

    #[test]
    fn a_new_version_moves_no_other_path() {
        let graph = |hash: u8, size: u64| {
            let infos: BTreeMap<_, _> = (0..300usize)
                .map(|n| {
                    let changed = n == 7;
                    let path = StorePath::synthetic(
                        blake3::hash(&[n as u8, (n >> 8) as u8, if changed { hash } else { 0 }]).as_bytes(),
                        &format!("package{n}-{}", if changed { hash } else { 1 }),
                    )
                    .unwrap();
                    let nar_size = if changed { size } else { n as u64 * 1000 };
                    let content = ContentHash::Nar([0; 32]);
                    (path.clone(), PathInfo { path, content, nar_size, references: BTreeSet::new() })
                })
                .collect();
            let roots: Vec<_> = infos.keys().cloned().collect();
            plan(&Closure::compute(&Graph(infos), roots).unwrap(), 99)
        };
        let (before, after) = (graph(1, 7000), graph(2, 9000));
        let changed = after.layers.iter().filter(|layer| !before.layers.contains(layer)).count();
        assert_eq!(changed, 1);
    }

    #[test]
    fn a_package_name_ends_before_its_version() {
        for (name, package) in
            [("hello-2.12.3", "hello"), ("gtk+3-3.24.1-dev", "gtk+3"), ("x-y", "x-y"), ("env-", "env-"), ("a-1", "a")]
        {
            assert_eq!(package_name(name), package);
        }
    }
}
