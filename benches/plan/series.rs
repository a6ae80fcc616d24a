//! Many changes one after the other, as a team's days bring them.

use std::collections::BTreeSet;

use crate::environments::{Graph, State};

/// How many changes a series has.
const CHANGES: usize = 60;

/// A number below `below`, made from the series' name and the place in it, so that each run measures the same.
fn chosen(name: &str, at: usize, what: &str, below: usize) -> usize {
    let hash = blake3::hash(format!("{name} {at} {what}").as_bytes());
    usize::from(u16::from_le_bytes(*hash.as_bytes().first_chunk().unwrap())) % below
}

/// How many there are for each environment.
const SERIES: usize = 6;

/// The states of an environment through each of its series.
pub(crate) fn all<'a>(name: &str, graph: &'a Graph) -> Vec<Vec<State<'a>>> {
    (0..SERIES).map(|at| states(&format!("{name}{at}"), graph)).collect()
}

/// The states of an environment through a series: of two changes one is to the package that was changed last, for that
/// is what somebody is working on. Of the others six in ten are new versions of what is installed, three of anything
/// else, and in one a package goes, or the one comes back that has gone.
fn states<'a>(name: &str, graph: &'a Graph) -> Vec<State<'a>> {
    let mut states = vec![State::whole(graph)];
    let roots: Vec<&str> = states[0].roots.iter().copied().collect();
    let (mut last, mut gone): (Option<&str>, Option<&str>) = (None, None);
    for at in 0..CHANGES {
        let state = &states[at];
        let there = state.packages();
        let again = last.filter(|package| there.contains(package) && chosen(name, at, "again", 2) == 0);
        let kind = chosen(name, at, "kind", 10);
        let next = match (again, kind) {
            (Some(package), _) => state.upgraded(&[package]),
            (None, 0) => {
                let toggled = gone.unwrap_or_else(|| roots[chosen(name, at, "root", roots.len())]);
                gone = if gone.is_none() { Some(toggled) } else { None };
                state.toggled(toggled)
            }
            (None, kind) => {
                let rest: BTreeSet<&str> = there.difference(&state.roots).copied().collect();
                let among: Vec<&str> = if kind < 7 { &state.roots } else { &rest }.iter().copied().collect();
                let package = among[chosen(name, at, "package", among.len())];
                last = Some(package);
                state.upgraded(&[package])
            }
        };
        states.push(next);
    }
    states
}
