//! Which store paths share a layer, and in what order the layers lie. Pure: no I/O, no clock, no machine.
//!
//! Store paths lie in disjoint directories, so grouping and order are free. What matters is how much of the next image
//! is already there. A layer is sent again when any of its paths changes, and classic Docker unpacks a layer again when
//! anything *below* it changed. A path changes with each path of its own closure; a package that goes takes along what
//! only it needs. As a rule nothing but the present closure is known, so what a change leaves alone must come out the
//! same from another closure.
//!
//! **Grouping** (`grouping`): each path belongs to the package that the user installs with the largest closure among
//! those that need it. Layers of one owner are joined, those first that least would be sent in vain for: up to a limit
//! whatever the budget says, and while that does not meet the budget, up to twice that limit. Owners keep packages that
//! come and go apart, and a small package that shares paths with a large one owns none of them; a limit that is there
//! even where layers are left keeps the plan the same when a closure grows or shrinks a little.
//!
//! **Order** (`order`): from the top, the change that touches least bytes for how often it is to be expected: first
//! what the user installs, smaller layers higher, then everything else.
//!
//! **After an image made before** (`previous`): its layers stay as they are, what is gone from them hidden by whiteouts as
//! long as that is little; all other paths are grouped and ordered like that among themselves, and come on top.
//!
//! The environment's own files come above all of these and are no part of this plan. `docs/plan.md` has the figures,
//! and what no plan can reach.

mod graph;
mod grouping;
mod order;
mod previous;
mod set;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::nix::{Closure, StorePath};

use graph::Graph;
use previous::{BALLAST, Kept, Layer};

/// Most layers that an image may have: overlayfs takes 128 lower directories, and runtimes keep one for themselves.
pub const MAX_LAYERS: usize = 127;
/// Layers of an image unless the user says otherwise: leaves room for images made on top of it.
pub const DEFAULT_LAYERS: usize = 100;

/// Store paths by layer, the bottom layer first; every path of the closure is in exactly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// The layers. None is empty; the paths of each are ordered by name.
    pub layers: Vec<Vec<StorePath>>,
    /// Those that layers still hold and the closure does not, each once, ordered by name: a whiteout has to hide each.
    pub hidden: Vec<StorePath>,
    /// How many of the layers are the image's before.
    pub kept: usize,
}

/// How many bytes of store paths that a closure has no more its image may carry along.
pub fn most_ballast(closure: &Closure) -> u64 {
    let bytes: u128 = closure.paths().map(|info| u128::from(info.nar_size)).sum();
    u64::try_from(bytes / BALLAST).unwrap_or(u64::MAX)
}

/// The layers of an image that was made before.
#[derive(Clone, Debug, Default)]
pub struct Previous {
    /// The store paths in each, the bottom one first; none where they are not known.
    pub layers: Vec<Vec<StorePath>>,
    /// Of the store paths in them that the closure does not have, those that can still be had, with their NARs' lengths
    /// in bytes.
    pub gone: BTreeMap<StorePath, u64>,
}

/// Distributes a closure over at most `budget` layers, one at least and [`MAX_LAYERS`] at most.
///
/// `installed` is what the user installs, as far as that is known beyond the closure's roots: the packages where the
/// root is an environment that refers to them. Where none of it is in the closure, the roots stand for it.
///
/// `previous` is an image that was made before, with no layers where there is none.
///
/// The same closure, with the same installed and after the same image, of which the same can be had, gives the same
/// plan on any machine and in any order of its input.
pub fn plan<'a>(
    closure: &Closure,
    installed: impl IntoIterator<Item = &'a StorePath>,
    previous: &Previous,
    budget: usize,
) -> LayerPlan {
    let budget = budget.clamp(1, MAX_LAYERS);
    let graph = Graph::new(closure, installed);
    let (kept, rest) = Kept::new(&graph, previous, budget);
    let count = kept.count();
    let groups = grouping::group(&graph, rest, budget - count);
    let layers = kept.with(&graph, order::order(&graph, groups));
    let mut hidden: Vec<_> = layers.iter().flat_map(|layer| layer.ballast.iter().cloned()).collect();
    hidden.sort_unstable();
    let store_paths = |layer: Layer| {
        let members = layer.members.iter().map(|&at| graph.paths[at].path.clone());
        let mut store_paths: Vec<_> = members.chain(layer.ballast).collect();
        store_paths.sort_unstable();
        store_paths
    };
    LayerPlan { layers: layers.into_iter().map(store_paths).collect(), hidden, kept: count }
}
