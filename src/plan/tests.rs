use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::nix::{ContentHash, PathInfo, Source, SourceError, Visitor, WalkError};

const MIB: u64 = 1 << 20;

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

/// Packages: `(size, what it refers to)`; a package at another version has another hash.
#[derive(Clone, Debug, Default)]
struct Packages {
    nodes: Vec<(u64, Vec<usize>)>,
    versions: BTreeMap<usize, usize>,
}

impl Packages {
    fn new(nodes: &[(u64, &[usize])]) -> Self {
        let nodes = nodes.iter().map(|(size, references)| (*size, references.to_vec())).collect();
        Self { nodes, versions: BTreeMap::new() }
    }

    fn path(&self, n: usize) -> StorePath {
        let digest = blake3::hash(&[n.to_le_bytes(), self.versions.get(&n).unwrap_or(&0).to_le_bytes()].concat());
        StorePath::synthetic(digest.as_bytes(), &format!("package{n}-1.0")).unwrap()
    }

    /// What no other package refers to.
    fn tops(&self) -> Vec<usize> {
        let referred: BTreeSet<_> = self.nodes.iter().flat_map(|(_, references)| references.clone()).collect();
        (0..self.nodes.len()).filter(|n| !referred.contains(n)).collect()
    }

    fn closure_of(&self, roots: &[usize]) -> Closure {
        let info = |n: usize| PathInfo {
            path: self.path(n),
            content: ContentHash::Nar([0; 32]),
            nar_size: self.nodes[n].0,
            references: self.nodes[n].1.iter().map(|&below| self.path(below)).collect(),
        };
        let infos = (0..self.nodes.len()).map(|n| (self.path(n), info(n))).collect();
        Closure::compute(&Infos(infos), roots.iter().map(|&n| self.path(n))).unwrap()
    }

    fn closure(&self) -> Closure {
        self.closure_of(&self.tops())
    }

    /// A new version of `n`: it and all that depends on it has another hash.
    fn with_new(&self, n: usize) -> Self {
        let mut changed = BTreeSet::from([n]);
        for dependent in n + 1..self.nodes.len() {
            if self.nodes[dependent].1.iter().any(|below| changed.contains(below)) {
                changed.insert(dependent);
            }
        }
        let mut new = self.clone();
        changed.into_iter().for_each(|n| *new.versions.entry(n).or_default() += 1);
        new
    }

    fn layers(&self, expected: &[&[usize]]) -> Vec<Vec<StorePath>> {
        expected.iter().map(|layer| layer.iter().map(|&n| self.path(n)).collect()).collect()
    }
}

fn plan_of(closure: &Closure, budget: usize) -> Vec<Vec<StorePath>> {
    plan_after(closure, &[], budget)
}

/// Where nothing that is gone can be had.
fn plan_after(closure: &Closure, previous: &[Vec<StorePath>], budget: usize) -> Vec<Vec<StorePath>> {
    plan(closure, [], &Previous { layers: previous.to_vec(), gone: BTreeMap::new() }, budget).layers
}

/// Where all that is gone can be had.
fn plan_over(closure: &Closure, before: &Closure, previous: &[Vec<StorePath>], budget: usize) -> LayerPlan {
    plan(closure, [], &Previous { layers: previous.to_vec(), gone: sizes(before) }, budget)
}

fn sizes(closure: &Closure) -> BTreeMap<StorePath, u64> {
    closure.paths().map(|info| (info.path.clone(), info.nar_size)).collect()
}

/// The bytes of the paths that the second closure has and the first has not.
fn new_bytes(before: &Closure, after: &Closure) -> u64 {
    after.paths().filter(|info| before.get(&info.path).is_none()).map(|info| info.nar_size).sum()
}

prop_compose! {
    /// Packages that refer to earlier ones.
    fn packages(sizes: std::ops::Range<u64>, most: usize)(
        nodes in prop::collection::vec((sizes, prop::collection::vec(any::<prop::sample::Index>(), 0..4)), 0..most)
    ) -> Packages {
        let references = |n: usize, references: Vec<prop::sample::Index>| {
            if n == 0 { Vec::new() } else { references.iter().map(|reference| reference.index(n)).collect() }
        };
        let nodes = nodes.into_iter().enumerate().map(|(n, (size, below))| (size, references(n, below))).collect();
        Packages { nodes, versions: BTreeMap::new() }
    }
}

fn check_partition(closure: &Closure, layers: &[Vec<StorePath>], budget: usize) -> Result<(), TestCaseError> {
    prop_assert!(layers.len() <= budget);
    prop_assert!(layers.iter().all(|layer| !layer.is_empty()));
    let mut planned: Vec<_> = layers.concat();
    planned.sort();
    let paths: Vec<_> = closure.paths().map(|info| info.path.clone()).collect();
    prop_assert_eq!(planned, paths);
    Ok(())
}

/// Each path of the closure is there once, what is hidden is all else, and that is not much.
fn check_whiteouts(
    closure: &Closure,
    planned: &LayerPlan,
    sizes: &BTreeMap<StorePath, u64>,
    budget: usize,
) -> Result<(), TestCaseError> {
    prop_assert!(planned.layers.len() <= budget);
    prop_assert!(planned.layers.iter().all(|layer| layer.is_sorted()));
    let is_hidden = |path: &&StorePath| closure.get(path).is_none();
    let mut hidden: Vec<_> = planned.layers.iter().flatten().filter(is_hidden).cloned().collect();
    hidden.sort();
    prop_assert_eq!(&hidden, &planned.hidden);
    let whole: u64 = closure.paths().map(|info| info.nar_size).sum();
    prop_assert!(hidden.iter().map(|path| sizes[path]).sum::<u64>() <= whole / 8);
    let there = planned.layers.iter().map(|layer| layer.iter().filter(|path| !is_hidden(path)).cloned().collect());
    let there: Vec<Vec<StorePath>> = there.filter(|layer: &Vec<_>| !layer.is_empty()).collect();
    check_partition(closure, &there, budget)
}

proptest! {
    #[test]
    fn a_plan_partitions_the_closure_within_its_budget(packages in packages(0..1 << 30, 200), budget in 1usize..=127) {
        let closure = packages.closure();
        check_partition(&closure, &plan_of(&closure, budget), budget)?;
    }

    #[test]
    fn sizes_near_the_largest_number_overflow_nothing(packages in packages(u64::MAX - 9..u64::MAX, 60), budget in 1usize..=9) {
        let closure = packages.closure();
        let first = plan_of(&closure, budget);
        check_partition(&closure, &first, budget)?;
        if let Some(last) = packages.nodes.len().checked_sub(1) {
            let changed = packages.with_new(last / 2).closure();
            check_partition(&changed, &plan_after(&changed, &first, budget), budget)?;
        }
    }

    /// Whatever the budget: with the sizes the same, a new version changes the layers that it is in and no other, and
    /// none changes its place.
    #[test]
    fn a_new_version_moves_no_other_path(
        packages in packages(0..4 * MIB, 150), changed in any::<prop::sample::Index>(), budget in 1usize..=127,
    ) {
        prop_assume!(!packages.nodes.is_empty());
        let after = packages.with_new(changed.index(packages.nodes.len()));
        let names = |layers: Vec<Vec<StorePath>>| -> Vec<Vec<String>> {
            layers.iter().map(|layer| layer.iter().map(|path| path.name().to_owned()).collect()).collect()
        };
        prop_assert_eq!(
            names(plan_of(&packages.closure(), budget)),
            names(plan_of(&after.closure(), budget))
        );
    }

    /// Where layers are left: what the installed package with the smallest closure brings along lies in layers of its
    /// own, so that it comes and goes without a change to those that hold nothing installed.
    #[test]
    fn the_smallest_package_comes_and_goes_alone(packages in packages(0..4 * MIB, 100)) {
        let mut roots = packages.tops();
        prop_assume!(roots.len() > 1);
        let closure_class = |&n: &usize| {
            let bytes: u64 = packages.closure_of(&[n]).paths().map(|info| info.nar_size).sum();
            (bytes.max(1).ilog2(), packages.path(n))
        };
        roots.sort_by_cached_key(closure_class);
        let (with, without) = (packages.closure_of(&roots), packages.closure_of(&roots[1..]));
        let tops: BTreeSet<_> = roots.iter().map(|&n| packages.path(n)).collect();
        let before = plan_of(&with, MAX_LAYERS);
        for layer in plan_of(&without, MAX_LAYERS).iter().filter(|layer| !layer.iter().any(|path| tops.contains(path))) {
            prop_assert!(before.contains(layer), "{layer:?} is not in {before:?}");
        }
    }

    #[test]
    fn a_large_path_lies_alone_and_above_all_that_it_refers_to(packages in packages(64 * MIB..1 << 30, 120)) {
        let closure = packages.closure();
        let layers = plan_of(&closure, MAX_LAYERS);
        prop_assert_eq!(layers.len(), packages.nodes.len());
        let place: BTreeMap<_, _> = layers.iter().enumerate().map(|(at, layer)| (layer[0].clone(), at)).collect();
        for info in closure.paths() {
            for reference in &info.references {
                prop_assert!(place[&info.path] > place[reference]);
            }
        }
    }

    /// Whatever the image before is said to have been: layers of other packages, of none, or with a path twice.
    #[test]
    fn a_plan_after_any_other_partitions_the_closure_within_its_budget(
        packages in packages(0..1 << 30, 120),
        previous in prop::collection::vec(prop::collection::vec(0usize..150, 0..6), 0..150),
        budget in 1usize..=127,
    ) {
        let previous = previous.iter().map(|layer| layer.iter().map(|&n| packages.path(n)).collect());
        let previous: Vec<Vec<StorePath>> = previous.collect();
        let closure = packages.closure();
        let layers = plan_after(&closure, &previous, budget);
        check_partition(&closure, &layers, budget)?;
        prop_assert!(layers.iter().all(|layer| layer.is_sorted()));
    }

    /// However often an environment is exported: the same after the same is the same.
    #[test]
    fn a_plan_after_itself_is_itself(
        packages in packages(0..64 * MIB, 150), changed in any::<prop::sample::Index>(), budget in 1usize..=127,
    ) {
        prop_assume!(!packages.nodes.is_empty());
        let first = plan_of(&packages.closure(), budget);
        prop_assert_eq!(&first, &plan_after(&packages.closure(), &first, budget));
        let changed = packages.with_new(changed.index(packages.nodes.len())).closure();
        let second = plan_after(&changed, &first, budget);
        prop_assert_eq!(&second, &plan_after(&changed, &second, budget));
    }

    /// Where layers are left: what has all of its paths stays, in its order, and in its place up to the first that has
    /// not.
    #[test]
    fn layers_that_lost_nothing_stay(packages in packages(0..64 * MIB, 60), changed in any::<prop::sample::Index>()) {
        prop_assume!(!packages.nodes.is_empty());
        let changed = packages.with_new(changed.index(packages.nodes.len())).closure();
        let before = plan_of(&packages.closure(), MAX_LAYERS);
        let after = plan_after(&changed, &before, MAX_LAYERS);
        let is_whole = |layer: &Vec<StorePath>| layer.iter().all(|path| changed.get(path).is_some());
        let in_place = before.iter().take_while(|layer| is_whole(layer)).count();
        prop_assert_eq!(&after[..in_place], &before[..in_place]);
        let stay: Vec<_> = before.into_iter().filter(is_whole).collect();
        let kept: Vec<_> = after.into_iter().filter(|layer| stay.contains(layer)).collect();
        prop_assert_eq!(kept, stay);
    }

    /// Where layers are left: a change that comes again unpacks little more than was new when it came first.
    #[test]
    fn what_changes_again_lies_near_the_top(
        packages in packages(0..64 * MIB, 60), changed in any::<prop::sample::Index>(),
    ) {
        prop_assume!(!packages.nodes.is_empty());
        let once = packages.with_new(changed.index(packages.nodes.len()));
        let bytes = |layers: &[Vec<StorePath>]| -> u64 {
            layers.iter().flatten().map(|path| once.closure().get(path).unwrap().nar_size).sum()
        };
        let before = plan_of(&packages.closure(), MAX_LAYERS);
        let after = plan_after(&once.closure(), &before, MAX_LAYERS);
        let new: Vec<_> = after.iter().filter(|layer| !before.contains(layer)).cloned().collect();
        // A layer that the second change leaves alone may lie below those that it does not.
        let is_touched = |layer: &Vec<StorePath>| layer.iter().any(|path| packages.closure().get(path).is_none());
        let lowest = after.iter().position(is_touched).unwrap();
        prop_assert!(bytes(&after[lowest..]) * 20 <= bytes(&new) * 21);
    }

    /// Where layers are left: a package that comes changes nothing below it.
    #[test]
    fn what_comes_lies_on_top_of_everything(packages in packages(0..64 * MIB, 60)) {
        let roots = packages.tops();
        prop_assume!(roots.len() > 1);
        let (with, without) = (packages.closure_of(&roots), packages.closure_of(&roots[1..]));
        let before = plan_of(&without, MAX_LAYERS);
        let after = plan_after(&with, &before, MAX_LAYERS);
        prop_assert_eq!(&before[..], &after[..before.len()]);
    }

    /// Whatever the image before is said to have been, and whatever of it can be had: each path is there once, what is
    /// hidden is what the closure does not have, and that is not much.
    #[test]
    fn ballast_is_hidden_and_little(
        packages in packages(0..1 << 30, 120),
        previous in prop::collection::vec(prop::collection::vec(0usize..150, 0..6), 0..150),
        gone in prop::collection::btree_map(100usize..150, 0u64..1 << 30, 0..50),
        budget in 1usize..=127,
    ) {
        let layers = previous.iter().map(|layer| layer.iter().map(|&n| packages.path(n)).collect()).collect();
        let gone = gone.into_iter().map(|(n, size)| (packages.path(n), size)).collect();
        let previous = Previous { layers, gone };
        let closure = packages.closure();
        let planned = plan(&closure, [], &previous, budget);
        check_whiteouts(&closure, &planned, &previous.gone, budget)?;
        let again = Previous { layers: planned.layers.clone(), gone: previous.gone.clone() };
        prop_assert_eq!(plan(&closure, [], &again, budget).layers, planned.layers);
    }

    /// Many changes one after the other, of packages that come and go as well: whatever became of the layers until
    /// then, each path is there once, ballast is little and hidden, and the same after the same is the same. Where
    /// layers are left, and all that has ever gone is little, a change unpacks no more than 1.05 times what is new, the
    /// first time as well as when it comes again.
    #[test]
    fn changes_cost_themselves(
        packages in packages(MIB..64 * MIB, 80),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4), 1..12),
        budget in prop_oneof![3usize..=127, Just(MAX_LAYERS)],
    ) {
        prop_assume!(packages.tops().len() > 1);
        let (tops, mut state, mut first) = (packages.tops(), packages, 0);
        let mut closure = state.closure();
        let mut layers = plan_of(&closure, budget);
        let mut seen = sizes(&closure);
        for (change, near_the_top, kind) in changes {
            match kind {
                0 => first = 1 - first,
                // What few depend on changes most often.
                1 => state = state.with_new(change.index(state.nodes.len())),
                _ => state = state.with_new(state.nodes.len() - 1 - near_the_top.index(state.nodes.len().div_ceil(4))),
            }
            let next = state.closure_of(&tops[first..]);
            let gone: u64 = seen.iter().filter(|(path, _)| next.get(path).is_none()).map(|(_, size)| size).sum();
            let new = new_bytes(&closure, &next);
            let count = next.paths().filter(|info| closure.get(&info.path).is_none()).count();
            let whole: u64 = next.paths().map(|info| info.nar_size).sum();
            let previous = Previous { layers: layers.clone(), gone: seen.clone() };
            let planned = plan(&next, [], &previous, budget);
            check_whiteouts(&next, &planned, &seen, budget)?;
            seen.extend(sizes(&next));
            let bytes = |layers: &[Vec<StorePath>]| layers.iter().flatten().map(|path| seen[path]).sum::<u64>();
            let same = layers.iter().zip(&planned.layers).take_while(|(before, after)| before == after).count();
            if gone <= whole / 8 && layers.len() + count + 4 <= budget {
                prop_assert!(bytes(&planned.layers[same..]) * 20 <= new * 21);
            }
            (closure, layers) = (next, planned.layers);
            let again = Previous { layers: layers.clone(), gone: seen.clone() };
            prop_assert_eq!(&plan(&closure, [], &again, budget).layers, &layers);
        }
    }

    /// Where layers are left: a package that goes moves nothing, if it is not much of the whole.
    #[test]
    fn what_goes_is_hidden(packages in packages(MIB..64 * MIB, 60)) {
        let roots = packages.tops();
        prop_assume!(roots.len() > 1);
        let (with, without) = (packages.closure_of(&roots), packages.closure_of(&roots[1..]));
        let whole: u64 = without.paths().map(|info| info.nar_size).sum();
        prop_assume!(new_bytes(&without, &with) <= whole / 8);
        let before = plan_of(&with, MAX_LAYERS);
        let after = plan_over(&without, &with, &before, MAX_LAYERS);
        prop_assert_eq!(&after.layers[..], &before[..after.layers.len()]);
    }

    /// Each layer has a path that is gone, and others that are not.
    #[test]
    fn a_plan_after_one_of_which_no_layer_is_left_is_as_after_none(
        packages in packages(0..64 * MIB, 100), budget in 1usize..=127,
    ) {
        let closure = packages.closure();
        let mut before = plan_of(&closure, budget);
        (1000..).zip(&mut before).for_each(|(n, layer)| layer.push(packages.path(n)));
        prop_assert_eq!(plan_after(&closure, &before, budget), plan_of(&closure, budget));
    }
}

#[test]
fn what_changes_comes_on_top_but_below_a_little() {
    let sizes = [40 * MIB, 30 * MIB, 10 * MIB, MIB, MIB - MIB / 4];
    let packages = Packages::new(&sizes.map(|size| (size, &[] as &[usize])));
    let before = plan_of(&packages.closure(), 100);
    assert_eq!(before, packages.layers(&[&[0], &[1], &[2], &[3], &[4]]));
    // Of 30 MiB a twentieth: the next one would be more.
    let changed = packages.with_new(1);
    let after = plan_after(&changed.closure(), &before, 100);
    assert_eq!(after, changed.layers(&[&[0], &[2], &[3], &[1], &[4]]));
}

#[test]
fn a_layer_of_which_nothing_is_known_is_gone() {
    let sizes = [40 * MIB, 30 * MIB, 20 * MIB, 10 * MIB];
    let packages = Packages::new(&sizes.map(|size| (size, &[] as &[usize])));
    let mut before = plan_of(&packages.closure(), 100);
    assert_eq!(before, packages.layers(&[&[0], &[1], &[2], &[3]]));
    before[1].clear();
    assert_eq!(plan_after(&packages.closure(), &before, 100), packages.layers(&[&[0], &[2], &[3], &[1]]));
}

#[test]
fn what_is_new_shares_layers_before_any_is_made_free() {
    let packages = Packages::new(&[(60 * MIB, &[] as &[usize]); 20]);
    let roots: Vec<usize> = (0..20).collect();
    let before = plan_of(&packages.closure_of(&roots[..17]), 18);
    assert_eq!(before.len(), 17);
    let after = plan_after(&packages.closure_of(&roots), &before, 18);
    assert_eq!(after[..17], before[..]);
    assert_eq!(after[17].len(), 3);
}

#[test]
fn where_no_layer_is_left_those_on_top_are_made_anew() {
    let packages = Packages::new(&[(60 * MIB, &[] as &[usize]); 40]);
    let roots: Vec<usize> = (0..40).collect();
    for (budget, stay) in [(39, 31), (19, 15), (8, 6), (3, 2), (1, 0)] {
        let before = plan_of(&packages.closure_of(&roots[..budget]), budget);
        let after = plan_after(&packages.closure_of(&roots[..=budget]), &before, budget);
        assert_eq!(after.iter().take_while(|layer| before.contains(layer)).count(), stay, "of {budget}");
        assert!(after.len() > stay && after.len() <= budget, "{} of {budget}", after.len());
    }
}

#[test]
fn what_is_gone_is_hidden_where_it_lies_deep() {
    let sizes = [100 * MIB, 40 * MIB, 30 * MIB, 10 * MIB, MIB];
    let packages = Packages::new(&sizes.map(|size| (size, &[] as &[usize])));
    let (first, changed) = (packages.closure(), packages.with_new(3));
    let before = plan_of(&first, 100);
    assert_eq!(before, packages.layers(&[&[0], &[1], &[2], &[3], &[4]]));
    let after = plan_over(&changed.closure(), &first, &before, 100);
    assert_eq!(after.layers, [&before[..], &changed.layers(&[&[3]])].concat());
    assert_eq!((after.hidden, after.kept), (vec![packages.path(3)], 5));
    // It comes back: what was hidden is there, and what came instead lies on top of everything and goes.
    let back = plan_over(&first, &changed.closure(), &after.layers, 100);
    assert_eq!((back.layers, back.hidden), (before.clone(), Vec::new()));
    // 40 MiB are more than an eighth of what there is.
    let changed = packages.with_new(1);
    let after = plan_over(&changed.closure(), &first, &before, 100);
    assert_eq!(after.layers, changed.layers(&[&[0], &[2], &[3], &[1], &[4]]));
    assert_eq!((after.hidden, after.kept), (Vec::new(), 4));
}

#[test]
fn ballast_with_little_above_it_goes() {
    let sizes = [400 * MIB, 30 * MIB, MIB];
    let packages = Packages::new(&sizes.map(|size| (size, &[] as &[usize])));
    let before = plan_of(&packages.closure(), 100);
    assert_eq!(before, packages.layers(&[&[0], &[1], &[2]]));
    let changed = packages.with_new(1);
    let after = plan_over(&changed.closure(), &packages.closure(), &before, 100);
    assert_eq!(after.layers, changed.layers(&[&[0], &[1], &[2]]));
    // What is new is measured: where the package only goes, nothing moves.
    let after = plan_over(&packages.closure_of(&[0, 2]), &packages.closure(), &before, 100);
    assert_eq!((after.layers, after.hidden), (before, vec![packages.path(1)]));
}

#[test]
fn ballast_that_cannot_be_had_goes_with_its_layer() {
    let sizes = [400 * MIB, 30 * MIB, 20 * MIB];
    let packages = Packages::new(&sizes.map(|size| (size, &[] as &[usize])));
    let before = plan_of(&packages.closure(), 100);
    let changed = packages.with_new(1);
    let after = plan_after(&changed.closure(), &before, 100);
    assert_eq!(after, changed.layers(&[&[0], &[2], &[1]]));
}

/// Eight layers of ballast lie below 31 others, of which eight are on top, and there may be 39.
#[test]
fn ballast_goes_for_room_where_that_costs_less_than_to_make_layers_anew() {
    for (on_top, hidden, kept) in [(60 * MIB, 0, 31), (MIB, 8, 31)] {
        let size = |at| if at < 23 { 60 * MIB } else { on_top };
        let nodes: Vec<(u64, &[usize])> = (0..32).map(|at| (size(at), &[] as &[usize])).collect();
        let packages = Packages::new(&nodes);
        let gone: Vec<StorePath> = (100..108).map(|n| packages.path(n)).collect();
        let layers = gone.iter().cloned().chain((0..31).map(|n| packages.path(n))).map(|path| vec![path]).collect();
        let gone = gone.into_iter().map(|path| (path, MIB)).collect();
        let after = plan(&packages.closure(), [], &Previous { layers, gone }, 39);
        assert_eq!((after.hidden.len(), after.kept), (hidden, kept), "{on_top}");
    }
}

#[test]
fn what_the_user_installs_lies_on_top_the_smallest_highest() {
    let packages =
        Packages::new(&[(100 * MIB, &[]), (10 * MIB, &[0]), (50 * MIB, &[0]), (30 * MIB, &[1]), (70 * MIB, &[1])]);
    let layers = plan_of(&packages.closure(), 100);
    assert_eq!(layers, packages.layers(&[&[0], &[1], &[4], &[2], &[3]]));
}

#[test]
fn an_environment_does_not_hide_what_is_installed() {
    // Package 4 is the environment; 2 and 3 are installed.
    let packages =
        Packages::new(&[(40 * MIB, &[]), (30 * MIB, &[0]), (70 * MIB, &[1]), (50 * MIB, &[0]), (MIB, &[2, 3])]);
    let closure = packages.closure();
    let installed = [packages.path(2), packages.path(3), Packages::new(&[]).path(9)];
    assert_eq!(
        plan(&closure, &installed, &Previous::default(), 100).layers,
        packages.layers(&[&[0], &[1], &[2], &[3], &[4]])
    );
}

#[test]
fn what_two_packages_need_belongs_to_the_larger_one() {
    // 2 belongs to 4, 1 to 3 alone; all are small enough to share a layer.
    let packages = Packages::new(&[(50 * MIB, &[]), (9000, &[]), (9000, &[]), (5 * MIB, &[1, 2]), (5 * MIB, &[0, 2])]);
    let layers = plan_of(&packages.closure(), 100);
    assert!(packages.layers(&[&[1], &[2]]).iter().all(|layer| layers.contains(layer)), "{layers:?}");
}

#[test]
fn what_is_negligible_is_joined_even_where_layers_are_left() {
    let packages = Packages::new(&[(9000, &[]), (9000, &[]), (20 * MIB, &[]), (20 * MIB, &[0, 1, 2])]);
    assert_eq!(plan_of(&packages.closure(), 100), packages.layers(&[&[2], &[0, 1], &[3]]));
}

#[test]
fn references_in_a_circle_are_planned_too() {
    let packages = Packages::new(&[(9000, &[0, 1]), (40 * MIB, &[2]), (50 * MIB, &[0]), (60 * MIB, &[1, 3])]);
    let closure = packages.closure_of(&[3]);
    check_partition(&closure, &plan_of(&closure, 3), 3).unwrap();
}

#[test]
fn nothing_is_in_no_layer() {
    assert_eq!(plan_of(&Closure::default(), 99), Vec::<Vec<StorePath>>::new());
}
