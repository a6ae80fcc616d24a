//! What of an image made before stays in the next one, and where.
//!
//! A chained store keeps a layer while all below it is the same. So the layers of the image before stay where they are
//! up to the first that something is gone from; what lies above that one is unpacked again in any order, and is free to
//! move. What is new comes on top: what was added has changed nothing below it then, and what has changed once is what
//! changes again. That is how lists order themselves (move to front, Sleator and Tarjan 1985), but here the layers have
//! sizes: a little of what has not changed stays above, so that small layers need not take turns with large ones.

use super::graph::Graph;
use crate::nix::StorePath;

/// What stays above a new layer is at most one part in so many of it: a change that comes again unpacks at most 1.05
/// times what was new when it came first. The series of changes in `benches/plan.rs` would cost least with a quarter, some
/// 5 per cent less.
const PARTS: u128 = 20;
/// So many layers are made free where none is left, of a budget four times that or more: were it one, each change would
/// add to the same layer from then on.
const ROOM: usize = 8;

/// The layers of an image that was made before, as far as the closure still has all that is in them. Paths are numbered
/// as in the graph.
pub(super) struct Kept {
    /// Those that stay where they are, the bottom one first: none below them is gone.
    in_place: Vec<Vec<usize>>,
    /// Those above one that is gone, in the same order.
    displaced: Vec<Vec<usize>>,
}

impl Kept {
    /// Of `layers`, the bottom one first, as many as the budget has room for, those on top going first; and all paths that
    /// are in none of them, in ascending order. A layer of which nothing is known counts as gone.
    pub(super) fn new(graph: &Graph<'_>, layers: &[Vec<StorePath>], budget: usize) -> (Self, Vec<usize>) {
        let mut is_kept = vec![false; graph.paths.len()];
        let mut kept = Self { in_place: Vec::new(), displaced: Vec::new() };
        let mut is_any_gone = false;
        for layer in layers {
            let members = layer.iter().map(|path| graph.number(path).filter(|&at| !is_kept[at]));
            match members.collect::<Option<Vec<usize>>>() {
                Some(mut members) if !members.is_empty() => {
                    members.iter().for_each(|&at| is_kept[at] = true);
                    members.sort_unstable();
                    members.dedup();
                    if is_any_gone { kept.displaced.push(members) } else { kept.in_place.push(members) }
                }
                _ => is_any_gone = true,
            }
        }
        let mut rest: Vec<usize> = (0..graph.paths.len()).filter(|&at| !is_kept[at]).collect();
        kept.make_room(&mut rest, budget);
        (kept, rest)
    }

    /// How many layers stay.
    pub(super) fn count(&self) -> usize {
        self.in_place.len() + self.displaced.len()
    }

    fn make_room(&mut self, rest: &mut Vec<usize>, budget: usize) {
        if self.count() < budget || (self.count() == budget && rest.is_empty()) {
            return;
        }
        let room = ROOM.min(budget / 4).max(1);
        while self.count() + room > budget {
            let Some(top) = self.displaced.pop().or_else(|| self.in_place.pop()) else { break };
            rest.extend(top);
        }
        rest.sort_unstable();
    }

    /// These layers and the new ones, all with the bottom one first.
    pub(super) fn with(self, graph: &Graph<'_>, mut new: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
        let bytes = |layer: &Vec<usize>| layer.iter().map(|&at| u128::from(graph.size(at))).sum::<u128>();
        let Self { in_place: mut layers, mut displaced } = self;
        let (mut from_top, mut above) = (Vec::new(), 0_u128);
        while let Some(next) = new.pop() {
            let most = bytes(&next) / PARTS;
            while let Some(layer) = displaced.pop_if(|layer| above + bytes(layer) <= most) {
                above += bytes(&layer);
                from_top.push(layer);
            }
            from_top.push(next);
        }
        layers.extend(displaced);
        layers.extend(from_top.into_iter().rev());
        layers
    }
}
