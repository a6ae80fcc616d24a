//! Which entries of a shared cache go: those that no image needs which somebody still has. A plan, then its execution.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::address::ShareAddress;
use super::depot::{Depot, DepotError};
use super::entry::Entry;
use super::merging::{self, Replacement};
use super::open::{Keyring, Opener};
use super::shared_cache::replace;
use super::sheet::{Contents, ImageUse, Sheet, SheetName};
use crate::blob::{Digest, LayerKey};
use crate::event::{Event, Observer};
use crate::registry::Reference;

/// An image that was pushed nowhere is needed for so long after it was made last, in seconds.
const UNPUSHED: u64 = 30 * 24 * 3600;
/// Whatever was used within the last hour stays: a run may be about to rely on it.
const GRACE: u64 = 3600;

/// What may stay and what must go.
#[derive(Clone, Debug, Default)]
pub struct GarbagePolicy {
    /// Images that were not made for this many seconds go.
    pub older_than: Option<u64>,
    /// The images of each name that were made last stay, this many of them.
    pub keep_last: usize,
    /// Images with these names (`NAME` or `NAME:TAG`) stay.
    pub keep: Vec<String>,
    /// Now, in seconds after 1970.
    pub now: u64,
}

/// Why an image's layers are no longer kept for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It was not made for longer than the policy allows.
    Old,
    /// No tag that it was pushed to leads to it any more.
    Replaced,
}

/// What goes.
#[derive(Clone, Debug, Default)]
pub struct Garbage {
    /// Images that layers are no longer kept for.
    pub images: Vec<(ImageUse, Gone)>,
    /// Entries that no kept image needs.
    pub entries: Vec<Entry>,
    /// Blobs that no entry needs any more, with their lengths in bytes.
    pub blobs: BTreeMap<Digest, u64>,
    /// How many entries stay.
    pub kept: usize,
    /// Bytes of blobs that were removed; `None` where that is the registry's own work.
    pub freed: Option<u64>,
    /// Sheets that say nothing any more and are not removed, because the registry does not allow it.
    pub sheets_left: usize,
}

/// Removes what no kept image needs from a cache; or only says what that would be.
pub fn collect(
    address: &ShareAddress,
    keyring: Keyring,
    policy: &GarbagePolicy,
    dry_run: bool,
    observer: &dyn Observer,
) -> Result<Garbage, DepotError> {
    let opener = Opener::new(keyring, observer);
    let depot = opener.open(address)?;
    let sheets = read_all(&*depot, observer)?;
    let is_there = |image: &ImageUse| opener.leads_to(image);
    let all = merging::union(&sheets);
    let gone: Vec<Option<Gone>> = all
        .images()
        .collect::<Vec<_>>()
        .par_iter()
        .map(|image| verdict(image, &all, policy, is_there))
        .collect::<Result<_, _>>()?;
    let (mut garbage, kept) = plan(&sheets, &all, &gone, policy.now);
    let nothing = garbage.images.is_empty() && garbage.entries.is_empty();
    if dry_run || nothing {
        return Ok(garbage);
    }
    let over = sheets.iter().filter(|(_, sheet)| merging::is_over(sheet, policy.now));
    let over: BTreeSet<SheetName> = over.map(|(name, _)| *name).collect();
    garbage.sheets_left = replace(&*depot, Replacement::new(kept, over, policy.now))?;
    garbage.freed = depot.remove_blobs(&garbage.blobs, policy.now.saturating_sub(GRACE))?;
    Ok(garbage)
}

fn read_all(depot: &dyn Depot, observer: &dyn Observer) -> Result<BTreeMap<SheetName, Sheet>, DepotError> {
    let read = |name: &SheetName| -> Result<Option<(SheetName, Sheet)>, DepotError> {
        let Some(bytes) = depot.read_sheet(name)? else { return Ok(None) };
        match Sheet::decode(&bytes) {
            Ok(sheet) => Ok(Some((*name, sheet))),
            // One of another version is another version's to tidy.
            Err(error) => {
                observer.event(Event::Warning { message: format!("sheet {name} stays as it is: {error}") });
                Ok(None)
            }
        }
    };
    let read: Vec<_> = depot.sheets()?.par_iter().map(read).collect::<Result<_, _>>()?;
    Ok(read.into_iter().flatten().collect())
}

impl Opener<'_> {
    /// Whether one of the tags that the image was pushed to still leads to it. A registry that cannot be asked is an error:
    /// nothing goes because somebody is away.
    fn leads_to(&self, image: &ImageUse) -> Result<bool, DepotError> {
        for pushed in &image.pushed {
            let Ok(reference) = pushed.parse::<Reference>() else { continue };
            let found = self.repository(&reference).manifest_digest(reference.tag().unwrap_or("latest"))?;
            if found == Some(image.manifest) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Why an image is not kept; `None` where it is.
fn verdict(
    image: &ImageUse,
    all: &Contents,
    policy: &GarbagePolicy,
    is_there: impl Fn(&ImageUse) -> Result<bool, DepotError>,
) -> Result<Option<Gone>, DepotError> {
    let age = policy.now.saturating_sub(image.used_at);
    let names = [image.name.clone(), format!("{}:{}", image.name, image.tag)];
    let newer = all.images().filter(|other| other.name == image.name && other.used_at > image.used_at).count();
    if age < GRACE || newer < policy.keep_last || policy.keep.iter().any(|kept| names.contains(kept)) {
        return Ok(None);
    }
    let most = match image.pushed.is_empty() {
        true => Some(policy.older_than.unwrap_or(UNPUSHED)),
        false => policy.older_than,
    };
    if most.is_some_and(|most| age > most) {
        return Ok(Some(Gone::Old));
    }
    Ok((!image.pushed.is_empty() && !is_there(image)?).then_some(Gone::Replaced))
}

/// What goes, and what the sheets that nobody writes to any more say without it.
fn plan(sheets: &BTreeMap<SheetName, Sheet>, all: &Contents, gone: &[Option<Gone>], now: u64) -> (Garbage, Contents) {
    let mut garbage = Garbage::default();
    let mut kept = Contents::default();
    let mut needed: BTreeSet<LayerKey> = BTreeSet::new();
    for (image, gone) in all.images().zip(gone) {
        match gone {
            Some(gone) => garbage.images.push((image.clone(), *gone)),
            None => {
                needed.extend(&image.keys);
                kept.insert_image(image.clone());
            }
        }
    }
    // What a run is writing now stays, whoever needs it.
    let mut in_use = Contents::default();
    for sheet in sheets.values().filter(|sheet| !merging::is_over(sheet, now)) {
        in_use.merge(sheet.contents.clone());
    }
    for entry in all.entries() {
        match needed.contains(&entry.key()) || in_use.of_key(&entry.key()).next().is_some() {
            true => kept.insert(entry.clone()),
            false => garbage.entries.push(entry.clone()),
        }
    }
    let stays = kept.blobs();
    let dropped = garbage.entries.iter().map(|entry| &entry.layer).filter(|layer| layer.has_blob);
    let dropped = dropped.filter(|layer| !stays.contains_key(&layer.digest));
    garbage.blobs = dropped.map(|layer| (layer.digest, layer.size)).collect();
    garbage.kept = kept.len();
    (garbage, kept)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{entry, image};
    use super::*;

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
        let verdict = |image: &ImageUse| verdict(image, &all, &policy, |_| Ok(is_there)).unwrap();
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

        let (images, mut entries, garbage) =
            collected(GarbagePolicy { older_than: Some(15 * 24 * 3600), ..policy }, true);
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
}
