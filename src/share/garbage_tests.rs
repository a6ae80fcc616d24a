//! What goes and what stays, and what others may do meanwhile.

use std::time::{Duration, UNIX_EPOCH};

use rstest::rstest;

use super::super::depot::{BlobNote, ReadBlob, WriteBlob};
use super::super::hurry::Hurry;
use super::super::samples::{Forgetful, bytes, entry, image, key};
use super::super::shared_cache::{Settings, SharedCache};
use super::super::waiting::Waiting;
use super::*;
use crate::event::Silent;
use crate::registry::Deletion;

const NOW: u64 = 100 * 24 * 3600;

fn sheets() -> BTreeMap<SheetName, Sheet> {
    let mut contents = Contents::default();
    (1..=5).for_each(|n| contents.insert(entry(n, n != 2)));
    contents.insert_image(image(1, &[1, 2], NOW - 10 * 24 * 3600));
    contents.insert_image(image(2, &[2, 3], NOW - 20 * 24 * 3600));
    let pushed = BTreeSet::from(["registry.example/app:v1".to_owned()]);
    contents.insert_image(ImageUse { pushed, ..image(3, &[4], NOW - 20 * 24 * 3600) });
    let sheet = Sheet { is_final: true, time: NOW - 3600, contents, ..Sheet::default() };
    BTreeMap::from([(SheetName::new(0, [1; 16]), sheet)])
}

fn collected(policy: GarbagePolicy, is_there: bool) -> (Vec<String>, Vec<String>, Garbage) {
    let sheets = sheets();
    let all = merging::union(&sheets);
    let tag = |image: &ImageUse| if is_there { Tag::LeadsTo(image.manifest) } else { Tag::Absent };
    let verdict = |image: &ImageUse| verdict(image, &all, &policy, |_| Ok(tag(image))).unwrap();
    let gone: Vec<_> = all.images().map(verdict).collect();
    let (garbage, _) = plan(&sheets, &all, &gone, NOW);
    let images = garbage.images.iter().map(|(image, gone)| format!("{} {gone:?}", image.name)).collect();
    let entries = garbage.entries.iter().map(|entry| entry.layer.contents[0].name.clone()).collect();
    (images, entries, garbage)
}

#[test]
fn what_no_kept_image_needs_goes() {
    let policy = GarbagePolicy { now: NOW, ..GarbagePolicy::default() };
    let (images, mut entries, garbage) = collected(policy.clone(), true);
    // Nobody has ever said to need the fifth.
    assert_eq!((images, std::mem::take(&mut entries)), (vec![], vec!["path-5".to_owned()]));
    assert_eq!((garbage.kept, garbage.blobs.len()), (4, 1));

    let (images, mut entries, _) = collected(policy.clone(), false);
    entries.sort();
    assert_eq!(images, ["image-3 Replaced"]);
    assert_eq!(entries, ["path-4", "path-5"]);

    let (images, mut entries, garbage) = collected(GarbagePolicy { older_than: Some(15 * 24 * 3600), ..policy }, true);
    entries.sort();
    assert_eq!(images, ["image-2 Old", "image-3 Old"]);
    assert_eq!(entries, ["path-3", "path-4", "path-5"]);
    assert_eq!(garbage.blobs.len(), 3);
}

#[test]
fn kept_names_the_last_ones_and_what_is_new_stay() {
    let strict = GarbagePolicy { now: NOW, older_than: Some(1), ..GarbagePolicy::default() };
    let policy = GarbagePolicy { keep: vec!["image-2:latest".to_owned()], ..strict.clone() };
    assert_eq!(collected(policy, true).0, ["image-1 Old", "image-3 Old"]);
    assert!(collected(GarbagePolicy { keep_last: 1, ..strict.clone() }, true).0.is_empty());
    let soon = GarbagePolicy { now: NOW - 10 * 24 * 3600 + 60, ..strict };
    assert_eq!(collected(soon, true).0, ["image-2 Old", "image-3 Old"]);
}

#[test]
fn what_a_run_is_writing_stays() {
    let mut sheets = sheets();
    let mut contents = Contents::default();
    contents.insert(entry(5, true));
    let growing = Sheet { time: NOW - 10, contents, ..Sheet::default() };
    sheets.insert(SheetName::new(0, [2; 16]), growing);
    let all = merging::union(&sheets);
    let (garbage, _) = plan(&sheets, &all, &[None, None, None], NOW);
    assert!(garbage.entries.is_empty());
}

#[test]
fn what_a_run_is_making_stays() {
    let mut sheets = sheets();
    let making = Sheet { time: NOW - 10, claims: BTreeSet::from([key(5)]), ..Sheet::default() };
    sheets.insert(SheetName::new(0, [2; 16]), making);
    let all = merging::union(&sheets);
    let (garbage, _) = plan(&sheets, &all, &[None, None, None], NOW);
    assert!(garbage.entries.is_empty());
}

#[test]
fn what_may_have_been_made_since_it_was_written_down_counts_as_made() {
    let used = |n: u8, hours: u64| ImageUse { name: "app".to_owned(), ..image(n, &[n], NOW - hours * 3600) };
    let mut all = Contents::default();
    for (n, hours) in [(1, 10), (2, 30), (3, 40), (4, 60)] {
        all.insert_image(used(n, hours));
    }
    let gone = |policy: GarbagePolicy, n: u8, hours: u64| {
        verdict(&used(n, hours), &all, &policy, |_| Ok(Tag::Absent)).unwrap() == Some(Gone::Old)
    };
    let policy = GarbagePolicy { now: NOW, older_than: Some(12 * 3600), ..GarbagePolicy::default() };
    assert_eq!(
        [(1, 10), (2, 30), (3, 40), (4, 60)].map(|(n, hours)| gone(policy.clone(), n, hours)),
        [false, false, true, true]
    );
    // The third may have been made after the second, and not after the first.
    let policy = GarbagePolicy { keep_last: 1, ..policy };
    assert_eq!([(3, 40), (4, 60)].map(|(n, hours)| gone(policy.clone(), n, hours)), [true, true]);
    let policy = GarbagePolicy { keep_last: 2, older_than: Some(1), ..policy };
    assert_eq!([(2, 30), (3, 40), (4, 60)].map(|(n, hours)| gone(policy.clone(), n, hours)), [false, false, true]);
}

#[test]
fn the_longest_that_a_run_leaves_a_use_unwritten_is_what_is_allowed_for() {
    let directory = tempfile::tempdir().unwrap();
    let address: ShareAddress = format!("file://{}", directory.path().display()).parse().unwrap();
    let hurry = Hurry::new(&Silent);
    let made = |now: u64| {
        let settings = Settings { to: vec![address.clone()], ..Settings::default() };
        let machine = SharedCache::new(settings, &Forgetful, &hurry, UNIX_EPOCH + Duration::from_secs(now)).unwrap();
        machine.give(&entry(1, true).layer, &BTreeMap::new(), &|out| out.write_all(&bytes(1)));
        machine.finish(&image(1, &[1], now));
    };
    let collected = |now: u64| {
        let policy = GarbagePolicy { older_than: Some(1), now, ..GarbagePolicy::default() };
        collect(&address, Keyring::default(), &policy, true, &Silent).unwrap()
    };
    made(NOW);
    made(NOW + WRITTEN_AGAIN_AFTER);
    let garbage = collected(NOW + WRITTEN_AGAIN_AFTER + GRACE - 1);
    assert_eq!((garbage.images.len(), garbage.kept), (0, 1));
    assert_eq!(collected(NOW + WRITTEN_AGAIN_AFTER + GRACE).images.len(), 1);
    // From then on it is written down.
    made(NOW + WRITTEN_AGAIN_AFTER + 1);
    assert_eq!(collected(NOW + WRITTEN_AGAIN_AFTER + GRACE).images.len(), 0);
}

#[test]
fn an_image_is_replaced_where_its_repository_shows_other_tags() {
    let pushed = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let image = ImageUse { pushed: pushed(&["here/app:v1", "there/app:v1"]), ..image(1, &[1], NOW - 10 * 24 * 3600) };
    let verdict = |here: Tag, there: Tag, policy: &GarbagePolicy| {
        let tag = |pushed: &str| Ok(if pushed.starts_with("here") { here } else { there });
        verdict(&image, &Contents::default(), policy, tag).unwrap()
    };
    let policy = GarbagePolicy { now: NOW, ..GarbagePolicy::default() };
    let (own, another) = (Tag::LeadsTo(image.manifest), Tag::LeadsTo(Digest::of(b"another")));
    assert_eq!(verdict(another, own, &policy), None);
    assert_eq!(verdict(another, Tag::Absent, &policy), Some(Gone::Replaced));
    // It may be there for others.
    assert_eq!(verdict(another, Tag::Unseen, &policy), None);
    assert_eq!(verdict(Tag::Unseen, Tag::Unseen, &policy), None);
    assert_eq!(verdict(Tag::Unseen, own, &policy), None);
    let later = GarbagePolicy { now: NOW + UNPUSHED, ..policy };
    assert_eq!(verdict(Tag::Unseen, another, &later), Some(Gone::Old));
    assert_eq!(verdict(Tag::Unseen, own, &later), None);
}

/// What a depot has.
#[derive(Clone, Default)]
struct Kept {
    sheets: BTreeMap<SheetName, Vec<u8>>,
    /// Sheets that are listed and not there.
    listed: BTreeSet<SheetName>,
    blobs: BTreeSet<Digest>,
    /// After so many blobs the next removal breaks off.
    removes_only: Option<usize>,
}

impl Kept {
    fn put(&mut self, name: SheetName, sheet: &Sheet) {
        self.sheets.insert(name, sheet.encode(&name).unwrap());
    }

    /// Does what a writer does who sees many sheets.
    fn merge(&mut self) {
        let sheets: BTreeMap<_, _> =
            self.sheets.iter().map(|(name, bytes)| (*name, Sheet::decode(bytes).unwrap())).collect();
        let merged = Replacement::new(merging::union(&sheets), sheets.keys().copied().collect(), NOW);
        for (at, sheet) in merged.sheets.iter().enumerate() {
            self.put(SheetName::new(merged.level, [100 + at as u8; 16]), sheet);
        }
        self.sheets.retain(|name, _| !merged.supersedes.contains(name));
    }
}

/// What is asked of a depot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    List,
    Read(SheetName),
    Write,
    Remove,
}

/// A depot in memory at which somebody else is at work: before each answer to a list or a question for a sheet, after each
/// sheet that was written, and before blobs are removed.
struct Busy<W> {
    kept: Mutex<Kept>,
    others: W,
}

impl<W: Fn(Asked, &mut Kept) + Send + Sync> Busy<W> {
    fn asked(&self, asked: Asked) -> std::sync::MutexGuard<'_, Kept> {
        let mut kept = self.kept.lock().unwrap();
        (self.others)(asked, &mut kept);
        kept
    }

    fn collected(&self) -> Result<Garbage, DepotError> {
        let policy = GarbagePolicy { now: NOW, ..GarbagePolicy::default() };
        collect_from(self, &policy, false, |_| panic!("no image was pushed"))
    }
}

impl<W: Fn(Asked, &mut Kept) + Send + Sync> Depot for Busy<W> {
    fn sheets(&self) -> Result<Vec<SheetName>, DepotError> {
        let kept = self.asked(Asked::List);
        Ok(kept.sheets.keys().chain(&kept.listed).copied().collect())
    }

    fn read_whole_sheet(&self, name: &SheetName) -> Result<Option<Vec<u8>>, DepotError> {
        Ok(self.asked(Asked::Read(*name)).sheets.get(name).cloned())
    }

    fn write_sheet(&self, name: &SheetName, bytes: &[u8], _: &BTreeMap<Digest, BlobNote>) -> Result<(), DepotError> {
        self.kept.lock().unwrap().sheets.insert(*name, bytes.to_owned());
        drop(self.asked(Asked::Write));
        Ok(())
    }

    fn remove_sheet(&self, name: &SheetName) -> Result<Deletion, DepotError> {
        let removed = self.kept.lock().unwrap().sheets.remove(name);
        Ok(removed.map_or(Deletion::Absent, |_| Deletion::Done))
    }

    fn has_blobs(&self, blobs: &[Digest]) -> Result<BTreeSet<Digest>, DepotError> {
        let kept = self.kept.lock().unwrap();
        Ok(blobs.iter().copied().filter(|blob| kept.blobs.contains(blob)).collect())
    }

    fn read_blob(
        &self,
        _: &Digest,
        _: u64,
        _: &Waiting<'_>,
        _: ReadBlob<'_>,
    ) -> Result<Option<std::io::Result<()>>, DepotError> {
        unreachable!()
    }

    fn write_blob(&self, _: &Digest, _: u64, _: &[String], _: WriteBlob<'_>) -> Result<(), DepotError> {
        unreachable!()
    }

    fn replace_blob(&self, _: &Digest, _: u64, _: WriteBlob<'_>) -> Result<(), DepotError> {
        unreachable!()
    }

    fn remove_blobs(&self, blobs: &BTreeMap<Digest, u64>, _: u64) -> Result<Option<u64>, DepotError> {
        let mut kept = self.asked(Asked::Remove);
        let most = std::mem::take(&mut kept.removes_only).unwrap_or(usize::MAX);
        let removed = blobs.iter().filter(|(blob, _)| kept.blobs.remove(*blob)).take(most);
        let removed = removed.map(|(_, size)| size).sum();
        if most < blobs.len() { Err(DepotError::Forgetful) } else { Ok(Some(removed)) }
    }
}

fn name(n: u8) -> SheetName {
    SheetName::new(0, [n; 16])
}

fn blob(n: u8) -> Digest {
    entry(n, true).layer.digest
}

/// Nine sheets, each with an entry that the image of the next one needs, the ninth's none; and what an image of old had.
fn nine() -> Kept {
    let mut kept = Kept::default();
    for n in 1..=9 {
        let mut contents = Contents::default();
        contents.insert(entry(n, true));
        contents.insert_image(image(n, &[n - 1], NOW - 3600));
        kept.put(name(n), &Sheet { is_final: true, time: NOW - 3600, contents, ..Sheet::default() });
        kept.blobs.insert(blob(n));
    }
    kept
}

#[test]
fn what_is_merged_while_it_is_read_is_read_where_it_went() {
    let quiet = Busy { kept: Mutex::new(nine()), others: |_: Asked, _: &mut Kept| {} };
    assert_eq!(quiet.collected().unwrap().entries, [entry(9, true)]);
    let at_once = Mutex::new(true);
    let merges = |asked: Asked, kept: &mut Kept| {
        if asked == Asked::Read(name(5)) && std::mem::take(&mut *at_once.lock().unwrap()) {
            kept.merge();
        }
    };
    let busy = Busy { kept: Mutex::new(nine()), others: merges };
    let garbage = busy.collected().unwrap();
    assert_eq!((garbage.entries, garbage.kept), (vec![entry(9, true)], 8));
    assert_eq!(busy.kept.into_inner().unwrap().blobs, (1..=8).map(blob).collect());
}

#[test]
fn what_others_merge_behind_the_last_look_keeps_its_bytes() {
    let before = nine();
    let once = Mutex::new(Some(before.clone()));
    let merges = |asked: Asked, kept: &mut Kept| {
        if asked == Asked::Write
            && let Some(mut before) = once.lock().unwrap().take()
        {
            // By somebody who had read the same sheets.
            before.merge();
            kept.sheets.extend(before.sheets);
        }
    };
    let busy = Busy { kept: Mutex::new(before), others: merges };
    busy.collected().unwrap();
    assert_eq!(busy.kept.into_inner().unwrap().blobs, (1..=9).map(blob).collect());
}

#[test]
fn what_a_sheet_grows_by_while_others_are_read_is_seen() {
    let looks = Mutex::new(0);
    let grows = |asked: Asked, kept: &mut Kept| {
        let mut looks = looks.lock().unwrap();
        *looks += u32::from(asked == Asked::List);
        // It was there at the first two looks, and said nothing.
        let mut contents = Contents::default();
        if *looks > 2 {
            contents.insert(entry(9, true));
        }
        kept.put(name(10), &Sheet { time: NOW - 10, contents, ..Sheet::default() });
    };
    let busy = Busy { kept: Mutex::new(nine()), others: grows };
    assert_eq!(busy.collected().unwrap().entries, []);
    assert_eq!(busy.kept.into_inner().unwrap().blobs.len(), 9);
}

#[test]
fn nothing_goes_where_sheets_never_rest() {
    let number = Mutex::new(100);
    let writes = |asked: Asked, kept: &mut Kept| {
        if asked == Asked::List {
            let mut number = number.lock().unwrap();
            *number += 1;
            kept.put(name(*number), &Sheet { is_final: true, time: NOW, ..Sheet::default() });
        }
    };
    let busy = Busy { kept: Mutex::new(nine()), others: writes };
    let error = busy.collected().unwrap_err();
    assert!(matches!(error, DepotError::Restless), "{error}");
    let kept = busy.kept.into_inner().unwrap();
    assert!(nine().sheets.keys().all(|name| kept.sheets.contains_key(name)) && kept.blobs.len() == 9);
}

/// Nine sheets, the ninth with two entries that no image needs.
fn with_two_to_take() -> Kept {
    let mut kept = nine();
    let mut contents = Contents::default();
    [9, 10].into_iter().for_each(|n| contents.insert(entry(n, true)));
    contents.insert_image(image(9, &[8], NOW - 3600));
    kept.put(name(9), &Sheet { is_final: true, time: NOW - 3600, contents, ..Sheet::default() });
    kept.blobs.insert(blob(10));
    kept
}

#[rstest]
fn what_a_collection_came_to_no_end_with_is_found_by_the_next(
    #[values("no rest", "a sheet lost", "a removal broken off")] how: &str,
) {
    let number = Mutex::new(100);
    let others = |asked: Asked, kept: &mut Kept| {
        let mut number = number.lock().unwrap();
        match (how, asked) {
            // Only once something was written.
            ("no rest", Asked::Write) if *number == 100 => *number = 101,
            ("no rest", Asked::List) if *number > 100 => {
                *number += 1;
                kept.put(name(*number), &Sheet { is_final: true, time: NOW, ..Sheet::default() });
            }
            ("a sheet lost", Asked::Write) => drop(kept.listed.insert(name(99))),
            ("a removal broken off", Asked::Remove) => kept.removes_only = Some(1),
            _ => {}
        }
    };
    let busy = Busy { kept: Mutex::new(with_two_to_take()), others };
    let error = busy.collected().unwrap_err();
    let expected = match how {
        "no rest" => matches!(error, DepotError::Restless),
        "a sheet lost" => matches!(error, DepotError::Sheet { why: UnreadableSheet::Lost, .. }),
        _ => matches!(error, DepotError::Forgetful),
    };
    assert!(expected, "{error}");
    let mut kept = busy.kept.into_inner().unwrap();
    kept.listed.clear();
    let left = [9, 10].into_iter().filter(|n| kept.blobs.contains(&blob(*n))).count();
    assert_eq!(left, if how == "a removal broken off" { 1 } else { 2 });

    let quiet = Busy { kept: Mutex::new(kept), others: |_: Asked, _: &mut Kept| {} };
    assert_eq!(quiet.collected().unwrap().entries.len(), left, "of what is gone nothing is said");
    assert_eq!(quiet.kept.into_inner().unwrap().blobs, (1..=8).map(blob).collect());
}

#[test]
fn sheets_that_are_merged_at_every_look_are_not_said_to_be_lost() {
    let number = Mutex::new(50);
    let merges = |asked: Asked, kept: &mut Kept| {
        // Of those that are listed one is merged before it is read, another one at each look.
        if asked == Asked::List {
            let mut number = number.lock().unwrap();
            *number += 1;
            kept.put(name(*number), &Sheet { is_final: true, time: NOW, ..Sheet::default() });
            kept.listed = BTreeSet::from([name(*number + 100)]);
        }
    };
    let busy = Busy { kept: Mutex::new(nine()), others: merges };
    let error = busy.collected().unwrap_err();
    assert!(matches!(error, DepotError::Restless), "{error}");
}

#[test]
fn nothing_goes_where_a_sheet_cannot_be_read() {
    let version = zstd::encode_all(&b"{\"layerhold_cache\":7}\n"[..], 3).unwrap();
    let mut cut = nine().sheets[&name(1)].clone();
    cut.truncate(40);
    for (bytes, says) in [
        (Some(b"no sheet".to_vec()), "it cannot be unpacked"),
        (Some(cut), "it cannot be unpacked"),
        (Some(version), "it has format 7, and this version reads 1"),
        (None, "it is listed, and its bytes are not there"),
    ] {
        let mut kept = nine();
        match bytes {
            Some(bytes) => drop(kept.sheets.insert(name(10), bytes)),
            None => drop(kept.listed.insert(name(10))),
        }
        let before = kept.clone();
        let busy = Busy { kept: Mutex::new(kept), others: |_: Asked, _: &mut Kept| {} };
        let error = busy.collected().unwrap_err();
        assert_eq!(error.to_string(), format!("the sheet {} cannot be read", name(10)));
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), says);
        assert!(error.hint().is_some());
        let after = busy.kept.into_inner().unwrap();
        assert!(after.sheets == before.sheets && after.blobs == before.blobs, "{says}");
    }
}

#[test]
fn a_sheet_that_another_one_supersedes_need_not_be_whole() {
    let mut kept = nine();
    kept.merge();
    kept.sheets.insert(name(3), b"no sheet".to_vec());
    let busy = Busy { kept: Mutex::new(kept), others: |_: Asked, _: &mut Kept| {} };
    assert_eq!(busy.collected().unwrap().entries, [entry(9, true)]);
    let after = busy.kept.into_inner().unwrap();
    assert_eq!((after.sheets.len(), after.sheets.contains_key(&name(3))), (1, false));
}
