//! What of an image made before stays in the next one, and where.
//!
//! A chained store keeps a layer while all below it is the same. So the layers of the image before stay where they are,
//! and what is new comes on top: what was added has changed nothing below it then, and what has changed once is what
//! changes again. That is how lists order themselves (move to front, Sleator and Tarjan 1985).
//!
//! A layer stays as well where some or all of its paths are gone from the closure: whiteouts hide them. They are
//! ballast, of which an image carries a share at most, and drops what has little above it beside what is new. From the
//! first layer that has to go, what lies above it is unpacked again in any order, and is free to move. Layers have
//! sizes: a little of it stays above what is new, so that small layers need not take turns with large ones.

use std::collections::BTreeSet;

use super::Previous;
use super::graph::Graph;
use crate::nix::StorePath;

/// What stays above a new layer is at most one part in so many of it: a change that comes again unpacks at most 1.05
/// times what was new when it came first. And what is unpacked again to be rid of ballast is at most one part in so
/// many of what is new.
const PARTS: u128 = 20;
/// Of the closure's size at most one part in so many is ballast.
pub(super) const BALLAST: u128 = 8;
/// So many layers are made free where none is left, of a budget four times that or more: were it one, each change would
/// add to the same layer from then on.
const ROOM: usize = 8;
/// A byte that is made anew is packed, sent and unpacked; for room, rather so many bytes are only unpacked again.
const ANEW: u128 = 4;

/// A layer of the image before.
#[derive(Default)]
pub(super) struct Layer {
    /// Its paths that the closure still has, numbered as in the graph, in ascending order.
    pub(super) members: Vec<usize>,
    /// Its paths that the closure has no more.
    pub(super) ballast: Vec<StorePath>,
    ballast_bytes: u128,
}

impl Layer {
    fn bytes(&self, graph: &Graph<'_>) -> u128 {
        self.members.iter().map(|&at| u128::from(graph.size(at))).sum()
    }
}

/// The layers of an image that was made before, as far as they stay.
pub(super) struct Kept {
    /// Those that stay where they are, the bottom one first.
    in_place: Vec<Layer>,
    /// Those above one that goes, in the same order; none of them carries ballast.
    displaced: Vec<Layer>,
}

impl Kept {
    /// Of the layers of `previous` as many as the budget has room for, and all paths that are in none of them, in
    /// ascending order. A layer of which nothing is known goes, and so does one with a path that cannot be had any
    /// more.
    pub(super) fn new(graph: &Graph<'_>, previous: &Previous, budget: usize) -> (Self, Vec<usize>) {
        let before = Before::new(graph, previous);
        let mut in_place = before.layers.iter().take_while(|layer| layer.is_some()).count();
        in_place = before.with_little_ballast(in_place);
        in_place = before.with_room(in_place, budget);
        in_place = before.without_what_is_cheap_to_drop(in_place);

        let mut kept = Self { in_place: Vec::new(), displaced: Vec::new() };
        for (at, layer) in before.layers.into_iter().enumerate() {
            match layer {
                Some(layer) if at < in_place => kept.in_place.push(layer),
                Some(layer) if layer.ballast.is_empty() => kept.displaced.push(layer),
                _ => {}
            }
        }
        let mut is_kept = vec![false; graph.paths.len()];
        let layers = kept.in_place.iter().chain(&kept.displaced);
        layers.flat_map(|layer| &layer.members).for_each(|&at| is_kept[at] = true);
        let mut rest: Vec<usize> = (0..graph.paths.len()).filter(|&at| !is_kept[at]).collect();
        kept.make_room(&mut rest, budget);
        (kept, rest)
    }

    /// How many layers stay.
    pub(super) fn count(&self) -> usize {
        self.in_place.len() + self.displaced.len()
    }

    /// Gives up the layers on top where none is left for what is new.
    fn make_room(&mut self, rest: &mut Vec<usize>, budget: usize) {
        if self.count() < budget || (self.count() == budget && rest.is_empty()) {
            return;
        }
        while self.count() + room(budget) > budget {
            let Some(top) = self.displaced.pop().or_else(|| self.in_place.pop()) else { break };
            rest.extend(top.members);
        }
        if self.displaced.is_empty() {
            while self.in_place.pop_if(|layer| layer.members.is_empty()).is_some() {}
        }
        rest.sort_unstable();
    }

    /// These layers and the new ones, all with the bottom one first.
    pub(super) fn with(self, graph: &Graph<'_>, mut new: Vec<Vec<usize>>) -> Vec<Layer> {
        let Self { in_place: mut layers, mut displaced } = self;
        let (mut from_top, mut above) = (Vec::new(), 0_u128);
        while let Some(members) = new.pop() {
            let next = Layer { members, ..Layer::default() };
            let most = next.bytes(graph) / PARTS;
            while let Some(layer) = displaced.pop_if(|layer| above + layer.bytes(graph) <= most) {
                above += layer.bytes(graph);
                from_top.push(layer);
            }
            from_top.push(next);
        }
        layers.extend(displaced);
        layers.extend(from_top.into_iter().rev());
        layers
    }
}

/// How many layers are made free where none is left.
fn room(budget: usize) -> usize {
    ROOM.min(budget / 4).max(1)
}

/// What the layers of the image before are now. How many of them stay in place decides what becomes of the others.
struct Before<'g> {
    graph: &'g Graph<'g>,
    /// `None` for one that cannot stay anywhere.
    layers: Vec<Option<Layer>>,
}

impl<'g> Before<'g> {
    /// A path counts where it comes first.
    fn new(graph: &'g Graph<'g>, previous: &Previous) -> Self {
        let mut seen = BTreeSet::new();
        let layers = previous.layers.iter().map(|paths| {
            let paths: BTreeSet<&StorePath> = paths.iter().collect();
            if paths.is_empty() || !seen.is_disjoint(&paths) {
                return None;
            }
            let mut layer = Layer::default();
            for path in &paths {
                match graph.number(path) {
                    Some(at) => layer.members.push(at),
                    None => {
                        layer.ballast_bytes += u128::from(*previous.gone.get(path)?);
                        layer.ballast.push(StorePath::clone(path));
                    }
                }
            }
            seen.extend(paths);
            Some(layer)
        });
        Self { graph, layers: layers.collect() }
    }

    /// The bytes that the closure still has of these layers.
    fn bytes<'l>(&self, layers: impl IntoIterator<Item = &'l Option<Layer>>) -> u128 {
        layers.into_iter().flatten().map(|layer| layer.bytes(self.graph)).sum()
    }

    /// The bytes of the closure.
    fn all(&self) -> u128 {
        (0..self.graph.paths.len()).map(|at| u128::from(self.graph.size(at))).sum()
    }

    /// How many layers stay if `in_place` of them do where they are.
    fn count(&self, in_place: usize) -> usize {
        in_place + self.layers[in_place..].iter().flatten().filter(|layer| layer.ballast.is_empty()).count()
    }

    /// Whether the closure has a path that is in none of those then.
    fn is_anything_new(&self, in_place: usize) -> bool {
        let above = self.layers[in_place..].iter().flatten().filter(|layer| layer.ballast.is_empty());
        let stay = self.layers[..in_place].iter().flatten().chain(above);
        stay.map(|layer| layer.members.len()).sum::<usize>() < self.graph.paths.len()
    }

    /// As many of these as carry no more ballast than an image may.
    fn with_little_ballast(&self, in_place: usize) -> usize {
        let (closure, mut ballast) = (self.all(), 0);
        let layers = self.layers[..in_place].iter().flatten();
        let fit = layers.take_while(|layer| {
            ballast += layer.ballast_bytes;
            ballast <= closure / BALLAST
        });
        fit.count()
    }

    /// As many of these as leave room for new layers, where there is little of it, and if to be rid of the others'
    /// ballast costs less than to make those on top anew.
    fn with_room(&self, in_place: usize, budget: usize) -> usize {
        let little = room(budget).div_ceil(2);
        if self.count(in_place) + little <= budget || !self.is_anything_new(in_place) {
            return in_place;
        }
        let has_room = |in_place: &usize| self.count(*in_place) + room(budget) <= budget;
        let Some(fewer) = (0..in_place).rev().find(has_room) else { return in_place };
        let anew = self.bytes(self.layers.iter().rev().filter(|layer| layer.is_some()).take(room(budget)));
        if self.bytes(&self.layers[fewer..in_place]) <= ANEW * anew { fewer } else { in_place }
    }

    /// These without the ballast that has little above it, beside what the closure has and no layer does.
    fn without_what_is_cheap_to_drop(&self, in_place: usize) -> usize {
        let new = self.all() - self.bytes(&self.layers);
        let (mut fewer, mut above) = (in_place, 0);
        for at in (0..in_place).rev() {
            let Some(layer) = &self.layers[at] else { continue };
            above += layer.bytes(self.graph);
            if above * PARTS > new {
                break;
            }
            if !layer.ballast.is_empty() {
                fewer = at;
            }
        }
        fewer
    }
}
