//! Which paths share a layer.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::graph::Graph;
use super::set::Set;

/// A joint that costs no more, in [`Group::vain`]'s unit, is made whatever the budget. The web and native closures of
/// `benches/plan.rs` need no costlier one for 98 layers, and have some room to grow.
const NEGLIGIBLE: u128 = 24 << 40;
/// How many times as much a joint of installed packages costs: they change most often, and by themselves.
const INSTALLED: u128 = 64;
/// How many groups on either side of it a group may be joined with: bounds the time, and more make no better plan.
const WINDOW: usize = 32;
/// Among so few joints nobody looks for those whose groups are there no more.
const FEW: usize = 1 << 14;

/// Who the paths of a group belong to. Only groups of one owner are joined, while there is any other way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    /// What the user installs and nothing refers to belongs to nobody else and is grouped by itself.
    on_top: bool,
    /// Of the installed paths that need it the one with the largest closure: to the power of two, so that a new version
    /// makes no other owner, and its number. `None` for what none needs, such as an environment itself.
    largest: Option<(u32, usize)>,
}

/// Paths that share a layer.
struct Group {
    owner: Owner,
    members: Vec<usize>,
    /// All that the members refer to, themselves included: the layer is new whenever one of these changes.
    changes_with: Set,
    /// The bytes of the members, each rounded to a power of two, so that a new version seldom makes another plan.
    size: u128,
    /// Tells this group from those that were at the same place before.
    generation: u32,
}

/// Two groups that may be joined; the one that costs least comes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Joint {
    vain: u128,
    // Half a word each: of thousands of paths there are hundreds of thousands of joints.
    places: (u32, u32),
    generations: (u32, u32),
    between_owners: bool,
}

/// Distributes these paths over at most `budget` groups; the paths of each are in ascending order.
pub(super) fn group(graph: &Graph<'_>, paths: Vec<usize>, budget: usize) -> Vec<Vec<usize>> {
    let mut row = Row::new(graph, paths);
    row.join_up_to_limit();
    while row.groups.len() > budget && row.raise_limit() {
        row.join_up_to_limit();
    }
    let in_order = |group: Group| {
        let mut members = group.members;
        members.sort_unstable();
        members
    };
    row.groups.into_values().map(in_order).collect()
}

/// All groups, by their places, and the joints between those that are near each other.
struct Row {
    groups: BTreeMap<u32, Group>,
    generations: u32,
    /// What a joint may cost: always doubled, so that a budget that is met by more than it must is seldom met otherwise
    /// when the closure changes a little.
    limit: u128,
    between_owners: bool,
    /// Joints within the limit.
    ready: BinaryHeap<Reverse<Joint>>,
    /// The others.
    later: Vec<Joint>,
    /// With more joints than these, those are dropped whose groups are there no more.
    most: usize,
}

impl Row {
    fn new(graph: &Graph<'_>, paths: Vec<usize>) -> Self {
        let groups = single_paths(graph, paths);
        let generations = groups.last_key_value().map_or(0, |(&last, _)| last + 1);
        let (limit, between_owners) = (NEGLIGIBLE, false);
        let (ready, later, most) = (BinaryHeap::new(), Vec::new(), 0);
        let mut row = Self { groups, generations, limit, between_owners, ready, later, most };
        for place in 0..generations {
            row.offer((place + 1..generations).take(WINDOW).map(|next| (place, next)).collect());
        }
        row.most = row.twice_as_many();
        row
    }

    fn join_up_to_limit(&mut self) {
        while let Some(Reverse(next)) = self.ready.pop() {
            if next.is_current(&self.groups) {
                self.join(next.places.0, next.places.1);
            }
        }
    }

    /// Doubles the limit until some joint is within it; when those of one owner are all joined, owners count no more,
    /// and the limit begins anew. False when nothing is left to join.
    fn raise_limit(&mut self) -> bool {
        self.later.retain(|joint| joint.is_current(&self.groups));
        if !self.between_owners && self.later.iter().all(|joint| joint.between_owners) {
            self.between_owners = true;
            self.limit = NEGLIGIBLE;
        }
        let between_owners = self.between_owners;
        let counts = |joint: &Joint| between_owners || !joint.between_owners;
        let least = self.later.iter().filter(|joint| counts(joint)).map(|joint| joint.vain).min();
        let Some(least) = least else { return false };
        while self.limit < least {
            self.limit = self.limit.saturating_mul(2);
        }
        let limit = self.limit;
        let within = self.later.extract_if(.., |joint| joint.vain <= limit && counts(joint));
        self.ready.extend(within.map(Reverse));
        true
    }

    fn join(&mut self, into: u32, from: u32) {
        let Some(other) = self.groups.remove(&from) else { return };
        let Some(group) = self.groups.get_mut(&into) else { return };
        group.absorb(other, self.generations);
        self.generations += 1;

        let before = self.groups.range(..into).rev().take(WINDOW).map(|(&place, _)| (place, into));
        let after = self.groups.range(into + 1..).take(WINDOW).map(|(&place, _)| (into, place));
        self.offer(before.chain(after).chain(self.brought_near(from)).collect());
        self.drop_what_is_stale();
    }

    fn drop_what_is_stale(&mut self) {
        if self.ready.len() + self.later.len() > self.most {
            self.ready.retain(|Reverse(joint)| joint.is_current(&self.groups));
            self.later.retain(|joint| joint.is_current(&self.groups));
            self.most = self.twice_as_many();
        }
    }

    fn twice_as_many(&self) -> usize {
        2 * (self.ready.len() + self.later.len()).max(FEW)
    }

    /// The groups that came within each other's window when the one at `gone` went.
    fn brought_near(&self, gone: u32) -> Vec<(u32, u32)> {
        let before = self.groups.range(..gone).rev().take(WINDOW).map(|(&place, _)| place);
        let after: Vec<u32> = self.groups.range(gone + 1..).take(WINDOW).map(|(&place, _)| place).collect();
        before.enumerate().filter_map(|(far, place)| Some((place, *after.get(WINDOW - 1 - far)?))).collect()
    }

    fn offer(&mut self, pairs: Vec<(u32, u32)>) {
        for (place, next) in pairs {
            let (group, other) = (&self.groups[&place], &self.groups[&next]);
            self.keep(Joint {
                vain: group.vain(other),
                places: (place, next),
                generations: (group.generation, other.generation),
                between_owners: group.owner != other.owner,
            });
        }
    }

    fn keep(&mut self, joint: Joint) {
        if joint.vain <= self.limit && (self.between_owners || !joint.between_owners) {
            self.ready.push(Reverse(joint));
        } else {
            self.later.push(joint);
        }
    }
}

impl Joint {
    /// Whether both groups are as they were.
    fn is_current(&self, groups: &BTreeMap<u32, Group>) -> bool {
        let is = |place, generation| groups.get(&place).is_some_and(|group| group.generation == generation);
        is(self.places.0, self.generations.0) && is(self.places.1, self.generations.1)
    }
}

/// Every path by itself, in a row in which those of one owner, and of those the ones with closures alike in size, are
/// near each other.
fn single_paths(graph: &Graph<'_>, mut row: Vec<usize>) -> BTreeMap<u32, Group> {
    let owners = owners(graph);
    row.sort_by_cached_key(|&at| (owners[at], graph.closures[at].len(), at));
    let group = |(place, at): (u32, usize)| {
        let (changes_with, size) = (graph.closures[at].clone(), rounded(graph.size(at)));
        (place, Group { owner: owners[at], members: vec![at], changes_with, size, generation: place })
    };
    (0..).zip(row).map(group).collect()
}

fn owners(graph: &Graph<'_>) -> Vec<Owner> {
    let mut largest: Vec<Option<(u32, usize)>> = vec![None; graph.paths.len()];
    for &at in graph.bottom_up.iter().rev() {
        if graph.installed[at] {
            largest[at] = largest[at].max(Some((graph.closure_size(at).max(1).ilog2(), at)));
        }
        for &below in &graph.references[at] {
            largest[below] = largest[below].max(largest[at]);
        }
    }
    let owner = |(&on_top, largest)| Owner { on_top, largest: if on_top { None } else { largest } };
    graph.on_top.iter().zip(largest).map(owner).collect()
}

/// The nearest power of two, 4096 at least: less makes no difference on a disk.
fn rounded(size: u64) -> u128 {
    let square = u128::from(size.max(4096)).pow(2);
    1 << square.ilog2().div_ceil(2)
}

impl Group {
    /// What a layer of both would be sent in vain: the bytes of each that come along when only the other changes,
    /// summed up over every path that may change, times the bytes of both; in square bytes. By their size once more,
    /// because the larger a layer is, the more a single change may cost, and another plan for another closure too.
    fn vain(&self, other: &Self) -> u128 {
        let common = self.changes_with.common(&other.changes_with);
        let along = |group: &Self, other: &Self| group.size.saturating_mul((other.changes_with.len() - common) as u128);
        let vain = along(self, other).saturating_add(along(other, self));
        let weight = if self.owner.on_top || other.owner.on_top { INSTALLED } else { 1 };
        vain.saturating_mul(self.size.saturating_add(other.size)).saturating_mul(weight)
    }

    fn absorb(&mut self, other: Self, generation: u32) {
        self.members.extend(other.members);
        self.changes_with = self.changes_with.union(&other.changes_with);
        self.size = self.size.saturating_add(other.size);
        self.generation = generation;
    }
}
