//! Which machine makes which layer, where several begin at the same time: agreed upon through their sheets.
//!
//! No depot has a lock that all kinds have. So it is done as in Lamport's bakery ("A New Solution of Dijkstra's Concurrent
//! Programming Problem", 1974): a run says that it is choosing, looks who claims what, claims what nobody does, and then
//! waits until nobody is choosing any more. Who chooses later sees the claim and leaves it alone; of those who chose at the
//! same time each sees all others, and they agree on whose a layer is by the layer's key and the names of their sheets.

use std::collections::BTreeSet;

use super::super::depot::DepotError;
use super::super::sheet::{Sheet, SheetName};
use super::{GLANCE, PATIENCE, Share, SharedCache, State};
use crate::blob::LayerKey;
use crate::event::Observer;

/// A claim counts for so many seconds after its run began: whoever holds it longer may be dead.
const CLAIM_HOLDS: u64 = 600;
/// So often it is looked whether another run is still choosing, before it is taken for dead.
const LOOKS: u32 = 12;

impl<'a> SharedCache<'a> {
    /// Claims these layers, and says which of them another machine makes: they are to be waited for.
    pub fn claim(&self, keys: &[LayerKey]) -> BTreeSet<LayerKey> {
        let mut elsewhere = BTreeSet::new();
        for share in self.usable().filter(|share| share.is_written) {
            let wanted: BTreeSet<LayerKey> = keys.iter().filter(|key| !elsewhere.contains(*key)).copied().collect();
            let claiming = || {
                let mut state = share.state();
                let lost = self.claim_in(share, &mut state, &wanted);
                drop(state);
                lost.inspect_err(|error| self.give_up(share, error)).unwrap_or_default()
            };
            elsewhere.extend(self.hurry.within(PATIENCE, claiming));
        }
        elsewhere
    }

    fn claim_in(
        &self,
        share: &Share<'a>,
        state: &mut State,
        wanted: &BTreeSet<LayerKey>,
    ) -> Result<BTreeSet<LayerKey>, DepotError> {
        state.own.is_choosing = true;
        let own = self.write_own(share, state, false)?;
        self.refresh(share, state)?;
        let is_taken =
            |key: &&LayerKey| state.contents.find(key, &self.trust).is_some() || !self.claimants(state, key).is_empty();
        let mut lost: BTreeSet<LayerKey> = wanted.iter().filter(is_taken).copied().collect();
        state.own.claims = wanted.difference(&lost).copied().collect();
        state.own.is_choosing = false;
        self.write_own(share, state, false)?;
        for _ in 0..LOOKS {
            self.refresh(share, state)?;
            if !self.others(state).any(|(_, sheet)| sheet.is_choosing) || self.hurry.cancelled() {
                break;
            }
            std::thread::sleep(GLANCE);
        }
        let is_lost = |key: &&LayerKey| !is_first(key, &own, &self.claimants(state, key));
        let outdone: BTreeSet<LayerKey> = state.own.claims.iter().filter(is_lost).copied().collect();
        state.own.claims.retain(|key| !outdone.contains(key));
        lost.extend(outdone);
        Ok(lost)
    }

    /// The runs that are at work, as far as is known, but for this one.
    fn others<'s>(&self, state: &'s State) -> impl Iterator<Item = (&'s SheetName, &'s Sheet)> {
        let now = self.now;
        let is_at_work = move |sheet: &Sheet| !sheet.is_final && sheet.time.saturating_add(CLAIM_HOLDS) >= now;
        state.view.iter().filter(move |(_, sheet)| is_at_work(sheet))
    }

    /// The other runs that claim the layer.
    fn claimants(&self, state: &State, key: &LayerKey) -> BTreeSet<SheetName> {
        self.others(state).filter(|(_, sheet)| sheet.claims.contains(key)).map(|(name, _)| *name).collect()
    }
}

/// Whether the layer is `own`'s among all that claim it. Each layer is somebody else's, so that the work is shared.
fn is_first(key: &LayerKey, own: &SheetName, others: &BTreeSet<SheetName>) -> bool {
    let rank = |name: &SheetName| *blake3::hash(format!("{} {name}", key.hex()).as_bytes()).as_bytes();
    others.iter().all(|other| rank(own) < rank(other))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::channel;
    use std::time::{Duration, SystemTime};

    use super::super::super::hurry::Hurry;
    use super::super::super::samples::{Forgetful, entry, image, key};
    use super::super::Settings;
    use super::*;
    use crate::event::Silent;

    fn machine(directory: &tempfile::TempDir) -> SharedCache<'static> {
        let to = vec![format!("file://{}", directory.path().display()).parse().unwrap()];
        let settings = Settings { to, ..Settings::default() };
        let hurry = Box::leak(Box::new(Hurry::new(&Silent)));
        SharedCache::new(settings, &Forgetful, hurry, SystemTime::now()).unwrap()
    }

    #[test]
    fn machines_that_begin_at_once_divide_the_work_and_none_is_done_twice() {
        const MACHINES: usize = 6;
        let keys: Vec<LayerKey> = (0..40).map(key).collect();
        for _ in 0..5 {
            let directory = tempfile::tempdir().unwrap();
            let barrier = Barrier::new(MACHINES);
            let mine: Vec<BTreeSet<LayerKey>> = std::thread::scope(|scope| {
                let work = || {
                    let machine = machine(&directory);
                    barrier.wait();
                    let elsewhere = machine.claim(&keys);
                    keys.iter().filter(|key| !elsewhere.contains(*key)).copied().collect()
                };
                let machines: Vec<_> = (0..MACHINES).map(|_| scope.spawn(work)).collect();
                machines.into_iter().map(|machine| machine.join().unwrap()).collect()
            });
            let all: Vec<LayerKey> = mine.iter().flatten().copied().collect();
            let different: BTreeSet<_> = all.iter().collect();
            assert_eq!((all.len(), different.len()), (keys.len(), keys.len()), "{mine:?}");
        }
    }

    #[test]
    fn who_comes_later_leaves_alone_what_is_claimed_or_made_until_the_run_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let first = machine(&directory);
        assert!(first.claim(&[key(1), key(2)]).is_empty());
        let second = machine(&directory);
        assert_eq!(second.claim(&[key(2), key(3)]), BTreeSet::from([key(2)]));
        first.give(&entry(1, true).layer, &Default::default(), &|out| out.write_all(&[1; 101]));
        first.finish(&image(1, &[1], 10));
        let third = machine(&directory);
        assert_eq!(third.claim(&[key(1), key(2), key(3)]), BTreeSet::from([key(1), key(3)]));
    }

    #[test]
    fn runs_that_say_the_same_in_one_second_write_different_sheets() {
        let directory = tempfile::tempdir().unwrap();
        let (now, hurry) = (SystemTime::now(), Hurry::new(&Silent));
        for _ in 0..3 {
            let to = vec![format!("file://{}", directory.path().display()).parse().unwrap()];
            let settings = Settings { to, ..Settings::default() };
            let machine = SharedCache::new(settings, &Forgetful, &hurry, now).unwrap();
            assert!(machine.claim(&[]).is_empty());
        }
        let sheets = std::fs::read_dir(directory.path().join("sheets")).unwrap();
        let sheets: Vec<_> = sheets.map(|sheet| std::fs::read(sheet.unwrap().path()).unwrap()).collect();
        assert_eq!((sheets.len(), sheets.iter().collect::<BTreeSet<_>>().len()), (3, 3));
        assert!(sheets.iter().all(|sheet| Sheet::decode(sheet).unwrap().contents.is_empty()));
    }

    #[test]
    fn nobody_waits_for_another_machine_in_a_cache_that_is_done_without() {
        let directory = tempfile::tempdir().unwrap();
        assert!(machine(&directory).claim(&[key(1)]).is_empty());
        let second = machine(&directory);
        assert_eq!(second.claim(&[key(1)]), BTreeSet::from([key(1)]));
        second.give_up(&second.shares[0], &DepotError::Forgetful);
        let (send, waited) = channel();
        std::thread::spawn(move || send.send(second.wait_for(&key(1), Duration::from_secs(600))));
        assert_eq!(waited.recv_timeout(Duration::from_secs(60)), Ok(None), "it waits for news");
    }

    #[test]
    fn a_layer_has_one_first_claimant_whoever_asks() {
        let names: Vec<SheetName> = (0..9).map(|n| SheetName::new(0, [n; 16])).collect();
        let winner = |key: LayerKey| {
            let others = |own: &SheetName| names.iter().filter(|name| *name != own).copied().collect();
            let first: Vec<_> = names.iter().filter(|own| is_first(&key, own, &others(own))).collect();
            assert_eq!(first.len(), 1);
            *first[0]
        };
        assert!((0..40).map(|n| winner(key(n))).collect::<BTreeSet<_>>().len() > 3, "the work is not shared");
    }
}
