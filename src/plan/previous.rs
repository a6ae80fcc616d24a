//! What of an image made before stays in the next one, and where.
//!
//! A chained store keeps a layer while all below it is the same. So the layers of the image before stay where they are
//! up to the first that something is gone from; what lies above that one is unpacked again in any order, and is free to
//! move. What is new comes on top: what was added has changed nothing below it then, and what has changed once is what
//! changes again. That is how lists order themselves (move to front, Sleator and Tarjan 1985), but here the layers have
//! sizes: one stays above another that is much larger.

use super::graph::Graph;
use crate::nix::StorePath;

/// So many times as large a new layer is at least as one that stays above it. Of 1 to 64 it is what the series of changes
/// in `benches/plan.rs` cost least with, on the whole.
const MUCH_LARGER: u128 = 4;
/// So many layers what is new has at least, if it has as many paths, where the budget is used up: were there only one,
/// each change would add to the same layer.
const ROOM: usize = 8;

/// The layers of an image that was made before, as far as the closure still has all that is in them. Paths are numbered
/// as in the graph, and every one is in one of the three.
pub(super) struct Kept {
    /// Those that stay where they are, the bottom one first: none below them is gone.
    pub(super) in_place: Vec<Vec<usize>>,
    /// Those above one that is gone, in the same order.
    pub(super) displaced: Vec<Vec<usize>>,
    /// All other paths, in ascending order.
    pub(super) rest: Vec<usize>,
}

impl Kept {
    /// Of `layers`, the bottom one first, as many as the budget has room for; those on top go first.
    pub(super) fn new(graph: &Graph<'_>, layers: &[Vec<StorePath>], budget: usize) -> Self {
        let mut is_kept = vec![false; graph.paths.len()];
        let mut kept = Self { in_place: Vec::new(), displaced: Vec::new(), rest: Vec::new() };
        let mut is_gone = false;
        for layer in layers.iter().filter(|layer| !layer.is_empty()) {
            let members = layer.iter().map(|path| graph.number(path).filter(|&at| !is_kept[at]));
            match members.collect::<Option<Vec<usize>>>() {
                Some(mut members) => {
                    members.iter().for_each(|&at| is_kept[at] = true);
                    members.sort_unstable();
                    members.dedup();
                    if is_gone { kept.displaced.push(members) } else { kept.in_place.push(members) }
                }
                None => is_gone = true,
            }
        }
        kept.rest = (0..graph.paths.len()).filter(|&at| !is_kept[at]).collect();
        kept.make_room(budget);
        kept
    }

    /// How many layers stay.
    pub(super) fn count(&self) -> usize {
        self.in_place.len() + self.displaced.len()
    }

    fn make_room(&mut self, budget: usize) {
        while self.count() + self.rest.len().min(ROOM) > budget {
            let Some(top) = self.displaced.pop().or_else(|| self.in_place.pop()) else { break };
            self.rest.extend(top);
        }
        self.rest.sort_unstable();
    }

    /// All layers, the bottom one first, with those of the rest in the order given.
    pub(super) fn with(self, graph: &Graph<'_>, mut new: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
        let bytes = |layer: &Vec<usize>| layer.iter().map(|&at| u128::from(graph.size(at))).sum::<u128>();
        let Self { mut in_place, mut displaced, .. } = self;
        let mut from_top = Vec::new();
        loop {
            let stays_above = match (displaced.last(), new.last()) {
                (None, None) => break,
                (Some(displaced), Some(new)) => bytes(displaced).saturating_mul(MUCH_LARGER) <= bytes(new),
                (displaced, _) => displaced.is_some(),
            };
            from_top.extend(if stays_above { displaced.pop() } else { new.pop() });
        }
        in_place.extend(from_top.into_iter().rev());
        in_place
    }
}
