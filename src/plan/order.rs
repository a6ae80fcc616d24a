//! In what order layers lie.
//!
//! A change costs a chained store everything from its lowest layer upwards. Read from the top, that is a schedule:
//! layers are jobs that take their bytes, a change is done when the last of its layers is. The least sum over all
//! changes is NP-hard to find (scheduling with precedences); to place again and again the set with most changes done
//! per byte is at most twice as bad, where the best set is found (Chekuri and Motwani 1999). Here one set for each
//! layer is tried.

use super::graph::Graph;

/// Layers as bits: [`super::MAX_LAYERS`] of them fit.
type Layers = u128;

/// Brings layers in order, the bottom one first.
pub(super) fn order(graph: &Graph<'_>, layers: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    let touched = touched_layers(graph, &layers);
    let sizes = layers.iter().map(|layer| layer.iter().map(|&at| u128::from(graph.size(at))).sum()).collect();
    let above = layers.iter().map(|members| members.iter().fold(0, |above, &at| above | touched[at])).collect();
    let mut tower = Tower { sizes, above, placed: 0, from_top: Vec::new() };
    // What the user installs is what the user changes.
    let of_installed = touched.iter().zip(&graph.on_top).filter_map(|(&touched, &on_top)| on_top.then_some(touched));
    tower.place_by_yield(of_installed, &layers, &touched);
    tower.place_by_yield(touched.iter().copied(), &layers, &touched);

    let mut layers: Vec<Option<Vec<usize>>> = layers.into_iter().map(Some).collect();
    tower.from_top.iter().rev().filter_map(|&layer| layers[layer].take()).collect()
}

/// For each path the layers that are new when it changes: its own and those of all that depends on it.
fn touched_layers(graph: &Graph<'_>, layers: &[Vec<usize>]) -> Vec<Layers> {
    let mut touched: Vec<Layers> = vec![0; graph.paths.len()];
    for (layer, members) in layers.iter().enumerate() {
        members.iter().for_each(|&at| touched[at] = 1 << layer);
    }
    for &at in graph.bottom_up.iter().rev() {
        for &below in &graph.references[at] {
            touched[below] |= touched[at];
        }
    }
    touched
}

/// How often each set occurs.
fn counted(mut sets: Vec<(Layers, u128)>) -> Vec<(Layers, u128)> {
    sets.sort_unstable();
    sets.dedup_by(|next, kept| {
        let is_same = next.0 == kept.0;
        if is_same {
            kept.1 += next.1;
        }
        is_same
    });
    sets
}

/// Layers that have their place, and those that have none yet.
struct Tower {
    /// Bytes of each layer.
    sizes: Vec<u128>,
    /// The layers of all that depends on a layer's paths, itself included.
    above: Vec<Layers>,
    placed: Layers,
    from_top: Vec<usize>,
}

impl Tower {
    /// Places layers from the top until all of `changes` are done: each time the set that does most of them per byte.
    fn place_by_yield(&mut self, changes: impl Iterator<Item = Layers>, layers: &[Vec<usize>], touched: &[Layers]) {
        let mut changes: Vec<(Layers, u128)> = changes.map(|change| (change, 1)).collect();
        loop {
            changes.iter_mut().for_each(|(change, _)| *change &= !self.placed);
            changes.retain(|&(change, _)| change != 0);
            changes = counted(changes);
            if changes.is_empty() {
                return;
            }
            // For each layer the change of one of its paths that touches fewest.
            let unplaced = (0..layers.len()).filter(|&layer| self.placed & (1 << layer) == 0);
            let least = unplaced.filter_map(|layer| {
                layers[layer].iter().map(|&at| touched[at] & !self.placed).min_by_key(|set| (set.count_ones(), *set))
            });
            let worth = |set: Layers| {
                let done: u128 =
                    changes.iter().filter(|&&(change, _)| change & !set == 0).map(|(_, count)| count).sum();
                (done, self.bytes(set).max(1), set)
            };
            // By done / bytes, without a fraction.
            let best =
                least.map(worth).reduce(|best, next| if next.0 * best.1 > best.0 * next.1 { next } else { best });
            let Some((_, _, set)) = best else { return };
            self.place(set);
        }
    }

    fn bytes(&self, set: Layers) -> u128 {
        self.sizes.iter().enumerate().filter(|(layer, _)| set & (1 << layer) != 0).map(|(_, size)| size).sum()
    }

    /// Places a set, dependents above what they depend on, else small layers above large ones.
    fn place(&mut self, set: Layers) {
        let mut members: Vec<usize> = (0..self.sizes.len()).filter(|layer| set & (1 << layer) != 0).collect();
        members.sort_by_key(|&layer| (self.above[layer].count_ones(), self.sizes[layer], layer));
        self.from_top.extend(members);
        self.placed |= set;
    }
}
