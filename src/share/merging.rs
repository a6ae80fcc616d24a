//! Which sheets still say something, and how many become few. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::sheet::{Contents, Sheet, SheetName};

/// So many sheets may be there before a writer merges them.
const MOST: usize = 8;
/// More entries than this do not go into one merged sheet: a registry takes no manifest of any length.
const MOST_ENTRIES: usize = 4000;
/// A sheet with so many is left alone: to write it again for a few more costs more than it saves.
const LARGE: usize = 2000;
/// A sheet that was to go on and has not for so long belongs to a run that died, in seconds.
pub(super) const ABANDONED_AFTER: u64 = 24 * 3600;

/// The sheets that no other one supersedes.
pub(super) fn live(sheets: &BTreeMap<SheetName, Sheet>) -> BTreeSet<SheetName> {
    let superseded: BTreeSet<_> = sheets.values().flat_map(|sheet| &sheet.supersedes).collect();
    sheets.keys().filter(|name| !superseded.contains(name)).copied().collect()
}

/// All that the live ones say.
pub(super) fn union(sheets: &BTreeMap<SheetName, Sheet>) -> Contents {
    let mut contents = Contents::default();
    for name in live(sheets) {
        contents.merge(sheets[&name].contents.clone());
    }
    contents
}

/// Whether nobody writes to the sheet any more.
pub(super) fn is_over(sheet: &Sheet, now: u64) -> bool {
    sheet.is_final || sheet.time.saturating_add(ABANDONED_AFTER) < now
}

/// What takes the place of sheets that have become many; `None` where they are few. `listed` are all that are there, those
/// that were not read too.
pub(super) fn merge_if_many(
    sheets: &BTreeMap<SheetName, Sheet>,
    listed: &BTreeSet<SheetName>,
    now: u64,
) -> Option<Replacement> {
    let small = |name: &SheetName| is_over(&sheets[name], now) && sheets[name].contents.len() < LARGE;
    let merged: BTreeSet<_> = live(sheets).into_iter().filter(small).collect();
    if merged.len() <= MOST {
        return None;
    }
    let mut contents = Contents::default();
    for name in &merged {
        contents.merge(sheets[name].contents.clone());
    }
    Some(Replacement::new(contents, with_merged(merged, sheets, listed), now))
}

/// The sheets, and what they had merged before: should that still be there, nobody else says any more that it is superseded.
pub(super) fn with_merged(
    names: BTreeSet<SheetName>,
    sheets: &BTreeMap<SheetName, Sheet>,
    listed: &BTreeSet<SheetName>,
) -> BTreeSet<SheetName> {
    let merged = names.iter().flat_map(|name| &sheets[name].supersedes).filter(|name| listed.contains(name));
    let merged: Vec<_> = merged.copied().collect();
    names.into_iter().chain(merged).collect()
}

/// New sheets for old ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replacement {
    /// The level of the new ones.
    pub(super) level: u32,
    /// To be written in this order: only the last one supersedes, when all that the old ones said is there.
    pub(super) sheets: Vec<Sheet>,
    /// The old ones.
    pub(super) supersedes: BTreeSet<SheetName>,
}

impl Replacement {
    /// Sheets with these contents in the place of `supersedes`.
    pub(super) fn new(contents: Contents, supersedes: BTreeSet<SheetName>, now: u64) -> Self {
        let level = supersedes.iter().map(|name| name.level + 1).max().unwrap_or(0);
        let sheet = |contents| Sheet { is_final: true, time: now, contents, ..Sheet::default() };
        let mut sheets = Vec::new();
        let mut filling = Contents::default();
        for entry in contents.entries() {
            if filling.len() >= MOST_ENTRIES {
                sheets.push(sheet(std::mem::take(&mut filling)));
            }
            filling.insert(entry.clone());
        }
        contents.images().for_each(|image| filling.insert_image(image.clone()));
        sheets.push(Sheet { supersedes: supersedes.clone(), ..sheet(filling) });
        Self { level, sheets, supersedes }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{entry, image};
    use super::*;

    fn name(level: u32, n: u8) -> SheetName {
        SheetName::new(level, [n; 16])
    }

    /// The same where whoever merges has read all that is listed.
    fn merge_if_many(sheets: &BTreeMap<SheetName, Sheet>, now: u64) -> Option<Replacement> {
        super::merge_if_many(sheets, &sheets.keys().copied().collect(), now)
    }

    fn sheet(n: u8) -> Sheet {
        let mut contents = Contents::default();
        contents.insert(entry(n, true));
        contents.insert_image(image(n, &[n], 10));
        Sheet { is_final: true, time: 10, contents, ..Sheet::default() }
    }

    /// The new sheets beside the old ones, as a depot has them before anything is removed.
    fn with(sheets: &BTreeMap<SheetName, Sheet>, new: &Replacement, id: u8) -> BTreeMap<SheetName, Sheet> {
        let new = new.sheets.iter().enumerate();
        let new = new.map(|(at, sheet)| (SheetName::new(9, [id + at as u8; 16]), sheet.clone()));
        sheets.clone().into_iter().chain(new).collect()
    }

    #[test]
    fn few_sheets_stay_and_many_become_one_that_says_the_same() {
        let sheets: BTreeMap<_, _> = (0..8).map(|n| (name(0, n), sheet(n))).collect();
        assert_eq!(merge_if_many(&sheets, 20), None);
        let sheets: BTreeMap<_, _> = (0..9).map(|n| (name(u32::from(n == 3), n), sheet(n))).collect();
        let new = merge_if_many(&sheets, 20).unwrap();
        assert_eq!((new.level, new.sheets.len(), new.supersedes.len()), (2, 1, 9));
        let after = with(&sheets, &new, 100);
        assert_eq!(live(&after).len(), 1);
        assert_eq!(union(&after), union(&sheets));
    }

    #[test]
    fn a_sheet_that_a_run_goes_on_with_is_not_merged_unless_the_run_has_died() {
        let mut sheets: BTreeMap<_, _> = (0..9).map(|n| (name(0, n), sheet(n))).collect();
        sheets.get_mut(&name(0, 4)).unwrap().is_final = false;
        assert_eq!(merge_if_many(&sheets, 20), None);
        assert!(merge_if_many(&sheets, 20 + ABANDONED_AFTER).is_some());
    }

    #[test]
    fn two_that_merge_at_once_lose_nothing() {
        let sheets: BTreeMap<_, _> = (0..10).map(|n| (name(0, n), sheet(n))).collect();
        let mut seen_by_first = sheets.clone();
        seen_by_first.remove(&name(0, 9));
        let first = merge_if_many(&seen_by_first, 20).unwrap();
        let second = merge_if_many(&sheets, 20).unwrap();
        let mut after = with(&with(&sheets, &first, 100), &second, 200);
        for gone in first.supersedes.union(&second.supersedes) {
            after.remove(gone);
        }
        assert_eq!(union(&after), union(&sheets));
    }

    #[test]
    fn what_was_merged_before_stays_superseded_where_it_could_not_be_removed() {
        let sheets: BTreeMap<_, _> = (0..9).map(|n| (name(0, n), sheet(n))).collect();
        let once = with(&sheets, &merge_if_many(&sheets, 20).unwrap(), 100);
        let more: BTreeMap<_, _> = once.into_iter().chain((20..28).map(|n| (name(0, n), sheet(n)))).collect();
        let twice = with(&more, &merge_if_many(&more, 20).unwrap(), 200);
        let reread: BTreeMap<_, _> =
            twice.clone().into_iter().filter(|(at, _)| *at != SheetName::new(9, [100; 16])).collect();
        assert_eq!(live(&reread), BTreeSet::from([SheetName::new(9, [200; 16])]));
        // Whoever comes anew does not read what is superseded.
        let listed: BTreeSet<_> = twice.keys().copied().collect();
        let seen: BTreeMap<_, _> = twice.into_iter().filter(|(name, _)| live(&reread).contains(name)).collect();
        let seen: BTreeMap<_, _> = seen.into_iter().chain((40..48).map(|n| (name(0, n), sheet(n)))).collect();
        let third = super::merge_if_many(&seen, &listed, 20).unwrap();
        assert!(listed.is_subset(&third.supersedes), "{:?}", third.supersedes);
    }

    #[test]
    fn many_entries_are_several_sheets_and_only_the_last_supersedes() {
        let mut all = Contents::default();
        for n in 0..=MOST_ENTRIES {
            let mut entry = entry(1, true);
            entry.layer.size = n as u64;
            all.insert(entry);
        }
        let old = BTreeSet::from([name(0, 1)]);
        let new = Replacement::new(all.clone(), old.clone(), 20);
        assert_eq!(new.sheets.len(), 2);
        assert!(new.sheets[0].supersedes.is_empty() && new.sheets[1].supersedes == old);
        let mut together = new.sheets[0].contents.clone();
        together.merge(new.sheets[1].contents.clone());
        assert_eq!(together, all);
    }
}
