//! Which entries of a shared cache go: those that no image needs which somebody still has. A plan, then its execution.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rayon::prelude::*;

use super::address::ShareAddress;
use super::depot::{Depot, DepotError, UnreadableSheet};
use super::entry::Entry;
use super::merging::{self, Replacement};
use super::open::{Keyring, Opener};
use super::shared_cache::replace;
use super::sheet::{Contents, ImageUse, Sheet, SheetName};
use crate::blob::{Digest, LayerKey};
use crate::event::Observer;
use crate::registry::Reference;

/// An image that was pushed nowhere, or nowhere where tags can be seen, is needed for so long after it was made last, in
/// seconds.
const UNPUSHED: u64 = 30 * 24 * 3600;
/// Whatever was used or written within the last hour stays: a run may be about to rely on it.
pub(super) const GRACE: u64 = 3600;
/// A run that makes an image anew writes that down no sooner than so long after it was written down last
/// (`SharedCache::finish`), in seconds. So what a sheet says of an image counts for so much longer.
const WRITTEN_AGAIN_AFTER: u64 = 24 * 3600;
/// How often sheets are looked at again because they were others at the look before.
const LOOKS: usize = 5;
/// So long nobody looks again where a sheet was listed and not there: its removal is under way, as a rule.
const PAUSE: Duration = Duration::from_millis(250);

/// What may stay and what must go.
#[derive(Clone, Debug, Default)]
pub struct GarbagePolicy {
    /// Images that were not made for this many seconds go.
    pub older_than: Option<u64>,
    /// The images of each name that were made last stay, this many of them, and those that may be among them.
    pub keep_last: usize,
    /// Images with these names (`NAME` or `NAME:TAG`) stay.
    pub keep: Vec<String>,
    /// Now, in seconds after 1970.
    pub now: u64,
}

/// Why an image's layers are no longer kept for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It was not made for longer than the policy allows, or for 30 days where no tag can say more.
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
    let shown = Mutex::default();
    collect_from(&*depot, policy, dry_run, |pushed| opener.tag(pushed, &shown))
}

/// The same, where `ask` says what tags lead to.
fn collect_from(
    depot: &dyn Depot,
    policy: &GarbagePolicy,
    dry_run: bool,
    ask: impl Fn(&str) -> Result<Tag, DepotError> + Sync,
) -> Result<Garbage, DepotError> {
    let tags = Mutex::default();
    let tag = |pushed: &str| remembered(&tags, pushed, || ask(pushed));
    let mut sheets = Sheets::default();
    for _ in 0..LOOKS {
        sheets.settle(depot)?;
        let all = merging::union(&sheets.read);
        let gone: Vec<Option<Gone>> = all
            .images()
            .collect::<Vec<_>>()
            .par_iter()
            .map(|image| verdict(image, &all, policy, tag))
            .collect::<Result<_, _>>()?;
        let (mut garbage, kept) = plan(&sheets.read, &all, &gone, policy.now);
        let nothing = garbage.images.is_empty() && garbage.entries.is_empty();
        if dry_run || nothing {
            return Ok(garbage);
        }
        // Registries took their time to answer.
        if !sheets.look(depot)? {
            continue;
        }
        if let Err(error) = take(depot, &mut sheets, kept, &mut garbage, policy.now) {
            // It is the first error that is told.
            let _ = say_again(depot, &garbage.entries, policy.now);
            return Err(error);
        }
        return Ok(garbage);
    }
    Err(DepotError::Restless)
}

/// Takes the garbage: first what is said of it, then its bytes.
fn take(
    depot: &dyn Depot,
    sheets: &mut Sheets,
    kept: Contents,
    garbage: &mut Garbage,
    now: u64,
) -> Result<(), DepotError> {
    garbage.sheets_left = replace(depot, Replacement::new(kept, sheets.over(now), now))?;
    // Whoever has merged the same sheets meanwhile names once more what was in them.
    sheets.settle(depot)?;
    let named = merging::union(&sheets.read).blobs();
    garbage.blobs.retain(|blob, _| !named.contains_key(blob));
    garbage.freed = depot.remove_blobs(&garbage.blobs, now.saturating_sub(GRACE))?;
    Ok(())
}

/// A collection that came to no end may have taken what was said of blobs, and not the blobs: of those that are there it is
/// said again, so that the next collection finds them.
fn say_again(depot: &dyn Depot, entries: &[Entry], now: u64) -> Result<(), DepotError> {
    let blobs: Vec<Digest> =
        entries.iter().filter(|entry| entry.layer.has_blob).map(|entry| entry.layer.digest).collect();
    let there = depot.has_blobs(&blobs)?;
    let mut contents = Contents::default();
    let is_whole = |entry: &&Entry| !entry.layer.has_blob || there.contains(&entry.layer.digest);
    entries.iter().filter(is_whole).for_each(|entry| contents.insert(entry.clone()));
    replace(depot, Replacement::new(contents, BTreeSet::new(), now)).map(drop)
}

/// The sheets of a cache, while others write to it. What cannot be read is an error: it may be all that keeps an entry.
#[derive(Default, PartialEq, Eq)]
struct Sheets {
    read: BTreeMap<SheetName, Sheet>,
    /// Those that another one supersedes: what they say is in that one.
    superseded: BTreeSet<SheetName>,
    /// Those that were listed, and not there any more when they were to be read.
    missed: BTreeSet<SheetName>,
}

impl Sheets {
    /// Looks until two looks say the same.
    fn settle(&mut self, depot: &dyn Depot) -> Result<(), DepotError> {
        let mut lost: Option<BTreeSet<SheetName>> = None;
        for _ in 0..LOOKS {
            if self.look(depot)? {
                return Ok(());
            }
            // Whoever is removing something is let come on with it.
            if !self.missed.is_empty() {
                thread::sleep(PAUSE);
            }
            // One that is missed at one look was merged into another one, as a rule.
            lost = Some(lost.map_or_else(|| self.missed.clone(), |lost| &lost & &self.missed));
        }
        Err(match lost.unwrap_or_default().first() {
            Some(name) => DepotError::Sheet { name: *name, why: UnreadableSheet::Lost },
            None => DepotError::Restless,
        })
    }

    /// Reads what is new, or may have grown; says whether all is as it was at the look before, and was read. Sheets that
    /// were merged into another one between the list and the reading are gone, and only the next list has the other one.
    fn look(&mut self, depot: &dyn Depot) -> Result<bool, DepotError> {
        let before = std::mem::take(self);
        let read = |name: &SheetName| match before.read.get(name) {
            Some(known) if known.is_final => Ok((*name, Some(known.clone()))),
            _ => match depot.read_whole_sheet(name)?.map(|bytes| Sheet::decode(&bytes)).transpose() {
                Ok(sheet) => Ok((*name, sheet)),
                Err(why) => Err(DepotError::Sheet { name: *name, why: why.into() }),
            },
        };
        let mut levels: BTreeMap<u32, Vec<SheetName>> = BTreeMap::new();
        depot.sheets()?.into_iter().for_each(|name| levels.entry(name.level).or_default().push(name));
        // The merged ones first.
        let mut superseded: BTreeSet<SheetName> = BTreeSet::new();
        for names in levels.into_values().rev() {
            let (dead, live): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| superseded.contains(name));
            self.superseded.extend(dead);
            let found: Vec<(SheetName, Option<Sheet>)> =
                live.par_iter().map(read).collect::<Result<_, DepotError>>()?;
            for (name, sheet) in found {
                match sheet {
                    Some(sheet) => {
                        superseded.extend(&sheet.supersedes);
                        self.read.insert(name, sheet);
                    }
                    None => drop(self.missed.insert(name)),
                }
            }
        }
        Ok(self.missed.is_empty() && *self == before)
    }

    /// Those that nobody writes to any more.
    fn over(&self, now: u64) -> BTreeSet<SheetName> {
        let over = self.read.iter().filter(|(_, sheet)| merging::is_over(sheet, now)).map(|(name, _)| name);
        over.chain(&self.superseded).copied().collect()
    }
}

/// What a tag that an image was pushed to leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    /// To this manifest or index.
    LeadsTo(Digest),
    /// It is not there, while others of its repository are.
    Absent,
    /// Its repository shows none at all: it is not there, or not for everybody.
    Unseen,
}

impl Opener<'_> {
    /// What a tag leads to. A registry that cannot be asked is an error: nothing goes because somebody is away. `shown` is
    /// which repositories show tags, as far as that was asked.
    fn tag(&self, pushed: &str, shown: &Mutex<BTreeMap<String, bool>>) -> Result<Tag, DepotError> {
        let Ok(reference) = pushed.parse::<Reference>() else { return Ok(Tag::Unseen) };
        let repository = self.repository(&reference);
        if let Some(digest) = repository.manifest_digest(reference.tag().unwrap_or("latest"))? {
            return Ok(Tag::LeadsTo(digest));
        }
        // Some registries say of what is not for everybody that it is not there.
        let shows_tags = remembered(shown, &reference.name(), || Ok(!repository.tags()?.is_empty()))?;
        Ok(if shows_tags { Tag::Absent } else { Tag::Unseen })
    }
}

/// What is asked for only where it is not known yet.
fn remembered<T: Copy>(
    known: &Mutex<BTreeMap<String, T>>,
    name: &str,
    ask: impl FnOnce() -> Result<T, DepotError>,
) -> Result<T, DepotError> {
    let known = || known.lock().unwrap_or_else(PoisonError::into_inner);
    let found = known().get(name).copied();
    if let Some(found) = found {
        return Ok(found);
    }
    let answer = ask()?;
    known().insert(name.to_owned(), answer);
    Ok(answer)
}

/// Why an image is not kept; `None` where it is.
fn verdict(
    image: &ImageUse,
    all: &Contents,
    policy: &GarbagePolicy,
    tag: impl Fn(&str) -> Result<Tag, DepotError>,
) -> Result<Option<Gone>, DepotError> {
    // It may have been made once more since then, and nobody has written it down.
    let made_last = image.used_at.saturating_add(WRITTEN_AGAIN_AFTER);
    let age = policy.now.saturating_sub(made_last);
    let names = [image.name.clone(), format!("{}:{}", image.name, image.tag)];
    let newer = all.images().filter(|other| other.name == image.name && other.used_at > made_last).count();
    if age < GRACE || newer < policy.keep_last || policy.keep.iter().any(|kept| names.contains(kept)) {
        return Ok(None);
    }
    if policy.older_than.is_some_and(|most| age > most) {
        return Ok(Some(Gone::Old));
    }
    let mut is_unseen = image.pushed.is_empty();
    for pushed in &image.pushed {
        match tag(pushed)? {
            Tag::LeadsTo(manifest) if manifest == image.manifest => return Ok(None),
            Tag::LeadsTo(_) | Tag::Absent => {}
            Tag::Unseen => is_unseen = true,
        }
    }
    Ok(match is_unseen {
        true => (policy.older_than.is_none() && age > UNPUSHED).then_some(Gone::Old),
        false => Some(Gone::Replaced),
    })
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
    // What a run is writing now, or making, stays, whoever needs it.
    for sheet in sheets.values().filter(|sheet| !merging::is_over(sheet, now)) {
        needed.extend(sheet.contents.entries().map(Entry::key));
        needed.extend(&sheet.claims);
    }
    for entry in all.entries() {
        match needed.contains(&entry.key()) {
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
#[path = "garbage_tests.rs"]
mod tests;
