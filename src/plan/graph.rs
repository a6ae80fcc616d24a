//! A closure as numbered paths: who refers to whom, and what the user installs.

use std::collections::BTreeMap;

use super::set::Set;
use crate::nix::{Closure, PathInfo, StorePath};

/// A closure's paths, numbered in the order of their names. References that close a cycle, which only a store without a
/// database can show, are left out, a path's own to itself among them.
pub(super) struct Graph<'a> {
    pub(super) paths: Vec<&'a PathInfo>,
    /// Every path after all that it refers to.
    pub(super) bottom_up: Vec<usize>,
    /// What each path refers to.
    pub(super) references: Vec<Vec<usize>>,
    /// Each path's own closure, itself included, as places in `bottom_up`, where paths that go together lie near each
    /// other: the path changes whenever one of these does.
    pub(super) closures: Vec<Set>,
    /// What the user installs, and of that what nothing else refers to.
    pub(super) installed: Vec<bool>,
    pub(super) on_top: Vec<bool>,
}

impl<'a> Graph<'a> {
    pub(super) fn new<'b>(closure: &'a Closure, installed: impl IntoIterator<Item = &'b StorePath>) -> Self {
        let paths: Vec<&PathInfo> = closure.paths().collect();
        let number: BTreeMap<&StorePath, usize> = paths.iter().enumerate().map(|(at, info)| (&info.path, at)).collect();
        let numbers = |info: &PathInfo| info.references.iter().filter_map(|path| number.get(path).copied()).collect();
        let mut references: Vec<Vec<usize>> = paths.iter().map(|info| numbers(info)).collect();
        let bottom_up = bottom_up(&mut references);

        let mut closures = vec![Set::default(); paths.len()];
        for (rank, &at) in bottom_up.iter().enumerate() {
            closures[at] = references[at].iter().fold(Set::of(rank), |closure, &below| closure.union(&closures[below]));
        }

        let mut is_installed = vec![false; paths.len()];
        installed.into_iter().filter_map(|path| number.get(path)).for_each(|&at| is_installed[at] = true);
        let roots: Vec<usize> = closure.roots().iter().filter_map(|path| number.get(path).copied()).collect();
        if !is_installed.contains(&true) {
            roots.iter().for_each(|&at| is_installed[at] = true);
        }
        // An environment is a root that refers to all that is installed, and makes none of it less a choice.
        let mut on_top = is_installed.clone();
        for (at, below) in references.iter().enumerate() {
            if is_installed[at] || !roots.contains(&at) {
                below.iter().for_each(|&below| on_top[below] = false);
            }
        }
        Self { paths, bottom_up, references, closures, installed: is_installed, on_top }
    }

    /// The bytes of a path and all that it needs.
    pub(super) fn closure_size(&self, at: usize) -> u128 {
        self.closures[at].iter().map(|rank| u128::from(self.size(self.bottom_up[rank]))).sum()
    }

    pub(super) fn size(&self, at: usize) -> u64 {
        self.paths[at].nar_size
    }

    /// The number of a path that the closure has.
    pub(super) fn number(&self, path: &StorePath) -> Option<usize> {
        self.paths.binary_search_by(|info| info.path.cmp(path)).ok()
    }
}

/// An order with every path after all that it refers to; references that make one impossible are removed.
fn bottom_up(references: &mut [Vec<usize>]) -> Vec<usize> {
    #[derive(Clone, Copy, PartialEq)]
    enum Visit {
        Ahead,
        Entered,
        Done,
    }
    let mut visits = vec![Visit::Ahead; references.len()];
    let mut order = Vec::with_capacity(references.len());
    for start in 0..references.len() {
        let mut pending = vec![start];
        while let Some(&at) = pending.last() {
            if visits[at] == Visit::Ahead {
                visits[at] = Visit::Entered;
                references[at].retain(|&below| visits[below] != Visit::Entered);
                pending.extend(references[at].iter().filter(|&&below| visits[below] == Visit::Ahead));
                continue;
            }
            pending.pop();
            if visits[at] == Visit::Entered {
                visits[at] = Visit::Done;
                order.push(at);
            }
        }
    }
    order
}
