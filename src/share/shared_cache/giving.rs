//! What a run has made is given to the caches that it writes: blobs, entries, and its sheet.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::Duration;

use super::super::depot::{BlobNote, Depot, DepotError};
use super::super::entry::Entry;
use super::super::merging::{self, Replacement};
use super::super::sheet::{Contents, ImageUse, Sheet, SheetName};
use super::faults::Damage;
use super::{Own, Share, SharedCache, State};
use crate::blob::Digest;
use crate::registry::Deletion;
use crate::store::LayerRecord;

/// So long a build waits, once all its layers are made, for what is just being given.
const MOMENT: Duration = Duration::from_secs(5);

/// Writes a layer's bytes.
pub type WriteLayer<'w> = &'w (dyn Fn(&mut dyn Write) -> io::Result<()> + Sync);

/// What was given to a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Entries that it did not have.
    pub entries: usize,
    /// Blobs that were sent.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl<'a> SharedCache<'a> {
    /// Gives a layer to the caches that are written; others find it after [`SharedCache::publish`]. `mount_from` are
    /// repositories that may have its blob.
    pub fn give(&self, record: &LayerRecord, mount_from: &BTreeMap<String, BTreeSet<Digest>>, write: WriteLayer<'_>) {
        // Where every layer was known here nobody has looked yet.
        self.views.get_or_init(|| self.read_views());
        for share in self.usable().filter(|share| share.is_written) {
            if let Err(error) = self.give_to(share, record, mount_from, write) {
                // What was cut short is given another time.
                if self.hurry.is_over() {
                    return;
                }
                self.give_up(share, &error);
            }
        }
    }

    /// Waits for something that gives layers to the caches. What is under way after a moment is cut short.
    pub fn wait_briefly<T>(&self, giving: impl FnOnce() -> T) -> T {
        self.hurry.within(MOMENT, giving)
    }

    /// Shows others what was given so far, while this run goes on.
    pub fn publish(&self) {
        for share in self.usable().filter(|share| share.is_written) {
            if let Err(error) = self.publish_own(share)
                && !self.hurry.is_over()
            {
                self.give_up(share, &error);
            }
        }
    }

    /// The state is not held while the cache is waited for: the build looks things up meanwhile.
    fn publish_own(&self, share: &Share<'a>) -> Result<(), DepotError> {
        let (name, sheet) = {
            let mut state = share.state();
            if state.own.is_published {
                return Ok(());
            }
            let name = state.own.named()?;
            // What is given from now on is not in it.
            state.own.is_published = true;
            (name, self.own_sheet(&state.own, false))
        };
        let written = write_sheet(share, &name, &sheet);
        if written.is_err() {
            share.state().own.is_published = false;
        }
        written
    }

    /// Completes what this run gives: the sheet with the use of the image. Many sheets become one. Says what was given to
    /// each cache.
    pub fn finish(&self, image: &ImageUse) -> Vec<(String, Given)> {
        let mut given = Vec::new();
        for share in self.usable().filter(|share| share.is_written) {
            match self.finish_sheet(share, image) {
                Ok(what) => given.push((share.address.to_string(), what)),
                Err(error) => self.give_up(share, &error),
            }
        }
        given
    }

    fn give_to(
        &self,
        share: &Share<'a>,
        record: &LayerRecord,
        mount_from: &BTreeMap<String, BTreeSet<Digest>>,
        write: WriteLayer<'_>,
    ) -> Result<(), DepotError> {
        let is_kept = is_kept(record);
        // What others have said is passed on, and not vouched for.
        let key = self.key.as_ref().filter(|_| !record.is_hearsay);
        let is_same = |entry: &&Entry| entry.layer.digest == record.digest && (entry.layer.has_blob || !is_kept);
        let is_said = |entry: &Entry| key.is_none() || self.has_signed(entry);
        let (is_known, is_there, damage) = {
            let state = share.state();
            let damage = state.damaged.get(&record.digest).copied();
            let same: Vec<&Entry> = state.contents.of_key(&record.key).filter(is_same).collect();
            // What a sheet names no collection of garbage takes: only the word for it is missing.
            let is_there = same.iter().any(|entry| entry.layer.has_blob && self.trust.accepts(entry));
            (same.into_iter().any(is_said), is_there, damage)
        };
        if is_known && damage.is_none() {
            return Ok(());
        }
        if is_kept {
            let (depot, digest, size) = (&*share.depot, &record.digest, record.size);
            match damage {
                None if is_there => {}
                Some(Damage::Wrong) => depot.replace_blob(digest, size, &mut |out| write(out))?,
                Some(Damage::Lost) | None => {
                    let sources = share.sources(digest, mount_from);
                    depot.write_blob(digest, size, &sources, &mut |out| write(out))?;
                }
            }
        }
        self.believe(record);
        let mut entry = Entry::new(LayerRecord { has_blob: is_kept, ..record.clone() });
        if let Some(key) = key {
            entry.sign(key);
        }
        let mut state = share.state();
        state.damaged.remove(&record.digest);
        state.own.contents.insert(entry.clone());
        state.contents.insert(entry);
        state.own.is_published = false;
        Ok(())
    }

    /// Writes what this run has given so far.
    pub(super) fn write_own(
        &self,
        share: &Share<'a>,
        state: &mut State,
        is_final: bool,
    ) -> Result<SheetName, DepotError> {
        let name = state.own.named()?;
        write_sheet(share, &name, &self.own_sheet(&state.own, is_final))?;
        state.own.is_published = true;
        Ok(name)
    }

    fn own_sheet(&self, own: &Own, is_final: bool) -> Sheet {
        let (contents, claims) = (own.contents.clone(), if is_final { BTreeSet::new() } else { own.claims.clone() });
        let is_choosing = own.is_choosing && !is_final;
        Sheet { is_final, time: self.now, claims, is_choosing, contents, ..Sheet::default() }
    }

    fn finish_sheet(&self, share: &Share<'a>, image: &ImageUse) -> Result<Given, DepotError> {
        let mut image = image.clone();
        if let Some(key) = &self.key {
            image.sign(key);
        }
        let mut state = share.state();
        let known = state.contents.image(&image.name, &image.tag, &image.manifest);
        // A use that is known is written down again once a day, for whoever collects garbage by age.
        let is_news = known.is_none_or(|known| {
            known.used_at.saturating_add(24 * 3600) < image.used_at
                || !image.pushed.is_subset(&known.pushed)
                || !image.signatures.is_subset(&known.signatures)
        });
        let given = Given {
            entries: state.own.contents.len(),
            blobs: state.own.contents.blobs().len(),
            bytes: state.own.contents.blobs().values().sum(),
        };
        // A sheet with claims in it has to become one without.
        if given.entries == 0 && state.own.name.is_none() && !is_news && self.outdone(&state).is_none() {
            return Ok(given);
        }
        state.own.contents.insert_image(image);
        let mut name = self.write_own(share, &mut state, true)?;
        self.refresh(share, &mut state)?;
        // Who has taken this run for dead has merged its sheet: what it says now would not be read under that name.
        if state.view.values().any(|sheet| sheet.supersedes.contains(&name)) {
            state.own.name = None;
            name = self.write_own(share, &mut state, true)?;
        }
        let own = self.own_sheet(&state.own, true);
        state.view.insert(name, own);
        let merged = || merging::merge_if_many(&state.view, &state.listed, self.now);
        let replacement = self.outdone(&state).or_else(merged);
        if let Some(replacement) = replacement {
            replace(&*share.depot, replacement)?;
        }
        Ok(given)
    }
}

impl Own {
    /// Its name, which nobody else's sheet has.
    fn named(&mut self) -> Result<SheetName, DepotError> {
        match self.name {
            Some(name) => Ok(name),
            None => Ok(*self.name.insert(SheetName::new(0, random()?))),
        }
    }
}

fn write_sheet(share: &Share<'_>, name: &SheetName, sheet: &Sheet) -> Result<(), DepotError> {
    let bytes = sheet.encode(name).map_err(|error| DepotError::Source(io::Error::other(error)))?;
    share.depot.write_sheet(name, &bytes, &notes(&sheet.contents))
}

/// Whether caches have the layer's bytes: one that is packed again as it is has no blob there, as it has none in the layer
/// store.
pub(super) fn is_kept(record: &LayerRecord) -> bool {
    record.digest != record.diff_id.0
}

/// Puts new sheets in the place of old ones; says how many of those the depot does not remove.
pub(in super::super) fn replace(depot: &dyn Depot, replacement: Replacement) -> Result<usize, DepotError> {
    for sheet in &replacement.sheets {
        let name = SheetName::new(replacement.level, random()?);
        let bytes = sheet.encode(&name).map_err(|error| DepotError::Source(io::Error::other(error)))?;
        depot.write_sheet(&name, &bytes, &notes(&sheet.contents))?;
    }
    let (mut left, mut absent) = (0, Vec::new());
    for name in &replacement.supersedes {
        // Who does not let one be removed is not asked about a thousand.
        let deletion = if left > 0 { Deletion::NotAllowed } else { depot.remove_sheet(name)? };
        match deletion {
            Deletion::Done => {}
            Deletion::Absent => absent.push(*name),
            Deletion::NotAllowed => left += 1,
        }
    }
    if !absent.is_empty() {
        depot.finish_removals(&absent);
    }
    Ok(left)
}

/// The blobs of a sheet's entries.
fn notes(contents: &Contents) -> BTreeMap<Digest, BlobNote> {
    let kept = contents.entries().map(|entry| &entry.layer).filter(|layer| layer.has_blob);
    kept.map(|layer| (layer.digest, BlobNote { size: layer.size, media_type: layer.media_type.clone() })).collect()
}

/// Sixteen bytes that no other writer has.
fn random() -> Result<[u8; 16], DepotError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| DepotError::Source(io::Error::other(error)))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::SystemTime;

    use super::super::super::depot::{ReadBlob, WriteBlob};
    use super::super::super::hurry::Hurry;
    use super::super::super::samples::{Forgetful, bytes, entry, image, key};
    use super::super::super::waiting::Waiting;
    use super::super::Settings;
    use super::*;
    use crate::event::Silent;

    /// A depot without sheets that says when one is to be written, and does so when it is told to.
    struct Held {
        begun: Sender<()>,
        may_end: Mutex<Receiver<()>>,
    }

    impl Depot for Held {
        fn sheets(&self) -> Result<Vec<SheetName>, DepotError> {
            Ok(Vec::new())
        }

        fn write_sheet(&self, _: &SheetName, _: &[u8], _: &BTreeMap<Digest, BlobNote>) -> Result<(), DepotError> {
            self.begun.send(()).unwrap();
            self.may_end.lock().unwrap().recv().unwrap();
            Ok(())
        }

        fn write_blob(&self, _: &Digest, _: u64, _: &[String], _: WriteBlob<'_>) -> Result<(), DepotError> {
            Ok(())
        }

        fn read_whole_sheet(&self, _: &SheetName) -> Result<Option<Vec<u8>>, DepotError> {
            unreachable!()
        }

        fn remove_sheet(&self, _: &SheetName) -> Result<Deletion, DepotError> {
            unreachable!()
        }

        fn has_blobs(&self, _: &[Digest]) -> Result<BTreeSet<Digest>, DepotError> {
            unreachable!()
        }

        fn read_blob(
            &self,
            _: &Digest,
            _: u64,
            _: &Waiting<'_>,
            _: ReadBlob<'_>,
        ) -> Result<Option<io::Result<()>>, DepotError> {
            unreachable!()
        }

        fn replace_blob(&self, _: &Digest, _: u64, _: WriteBlob<'_>) -> Result<(), DepotError> {
            unreachable!()
        }

        fn remove_blobs(&self, _: &BTreeMap<Digest, u64>, _: u64) -> Result<Option<u64>, DepotError> {
            unreachable!()
        }
    }

    #[test]
    fn a_build_does_not_wait_for_what_it_shows_others() {
        let directory = tempfile::tempdir().unwrap();
        let hurry = Hurry::new(&Silent);
        let to = vec![format!("file://{}", directory.path().display()).parse().unwrap()];
        let settings = Settings { to, ..Settings::default() };
        let mut machine = SharedCache::new(settings, &Forgetful, &hurry, SystemTime::now()).unwrap();
        let ((begun, has_begun), (end, may_end)) = (channel(), channel());
        machine.shares[0].depot = Box::new(Held { begun, may_end: Mutex::new(may_end) });
        machine.give(&entry(1, true).layer, &BTreeMap::new(), &|out| out.write_all(&bytes(1)));
        let machine = &machine;
        std::thread::scope(|scope| {
            scope.spawn(|| machine.publish());
            has_begun.recv().unwrap();
            let (found, is_found) = channel();
            scope.spawn(move || found.send(machine.look_up(&[key(1), key(2)])));
            let known = is_found.recv_timeout(Duration::from_secs(60));
            // What is given while the sheet is written is in the next one.
            machine.give(&entry(2, true).layer, &BTreeMap::new(), &|out| out.write_all(&bytes(2)));
            end.send(()).unwrap();
            let known = known.expect("it waits").into_iter().map(|record| record.is_some()).collect::<Vec<_>>();
            assert_eq!(known, [true, false]);
        });
        std::thread::scope(|scope| {
            scope.spawn(|| machine.publish());
            let again = has_begun.recv_timeout(Duration::from_secs(60));
            end.send(()).unwrap();
            assert_eq!(again, Ok(()), "the second layer is not shown");
        });
    }

    #[test]
    fn a_run_that_was_taken_for_dead_is_heard_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let hurry = Hurry::new(&Silent);
        let machine = |now: SystemTime| {
            let to = vec![format!("file://{}", directory.path().display()).parse().unwrap()];
            SharedCache::new(Settings { to, ..Settings::default() }, &Forgetful, &hurry, now).unwrap()
        };
        let make = |machine: &SharedCache<'_>, n: u8| {
            machine.give(&entry(n, true).layer, &BTreeMap::new(), &|out| out.write_all(&bytes(n)));
            machine.finish(&image(n, &[n], 10));
        };
        let now = SystemTime::now();
        let later = now + Duration::from_secs(merging::ABANDONED_AFTER + 3600);
        let slow = machine(now);
        assert!(slow.claim(&[key(1)]).is_empty());
        (2..12).for_each(|n| make(&machine(later), n));
        let sheets = std::fs::read_dir(directory.path().join("sheets")).unwrap().count();
        assert!(sheets < 10, "nobody has merged: {sheets} sheets");
        make(&slow, 1);
        let known = machine(later).look_up(&(1..12).map(key).collect::<Vec<_>>());
        assert!(known.iter().all(Option::is_some), "{known:?}");
    }
}
