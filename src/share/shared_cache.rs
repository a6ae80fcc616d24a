//! A run's view of shared caches: what they know is looked up, what it makes is given to them.

mod claims;
mod faults;
mod fetching;
mod giving;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rayon::prelude::*;

use super::address::ShareAddress;
use super::depot::{Depot, DepotError};
use super::entry::{Entry, Trust};
use super::hurry::Hurry;
use super::merging;
use super::open::{Keyring, Opener};
use super::sheet::{Contents, Sheet, SheetName};
use super::signing::SecretKey;
use super::waiting::Health;
use crate::blob::{DiffId, Digest, LayerKey};
use crate::event::{Event, Observer, in_one_line};
use crate::store::LayerRecord;
use faults::Damage;
use giving::is_kept;
pub(super) use giving::replace;
pub use giving::{Given, WriteLayer};

/// How often it is looked whether another machine has made a layer.
const GLANCE: Duration = Duration::from_millis(250);
/// So long a build waits for what a cache knows, in all, and as long again for who makes what.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Clone, Default)]
pub struct Settings {
    /// Caches that are read.
    pub from: Vec<ShareAddress>,
    /// Caches that are read and written.
    pub to: Vec<ShareAddress>,
    /// Whose entries count.
    pub trust: Trust,
    /// What entries are signed with.
    pub key: Option<SecretKey>,
    /// Who asks.
    pub keyring: Keyring,
}

impl Settings {
    /// The same, of which no cache is written.
    pub fn read_only(mut self) -> Self {
        self.from.append(&mut self.to);
        self
    }
}

/// What was learned of shared caches; what is forgotten is learned again.
pub trait ShareMemory: Sync {
    /// Of sheets that never change, by cache and name: those of the sheets that are remembered.
    fn sheets(&self, keys: &[String]) -> HashMap<String, Vec<u8>>;

    /// Remembers sheets.
    fn keep_sheets(&self, sheets: Vec<(String, Vec<u8>)>);

    /// What was said of layers and is not believed: their keys and digests.
    fn disbelieved(&self) -> Vec<(LayerKey, Digest)>;

    /// Remembers whether it is believed that the layer with this key has this digest.
    fn keep_belief(&self, key: &LayerKey, digest: &Digest, is_believed: bool);
}

/// The shared caches of a run. Whatever goes wrong with one is said once, and it is done without from then on: a build
/// never fails for it.
pub struct SharedCache<'a> {
    trust: Trust,
    key: Option<SecretKey>,
    /// Whether the key has signed something.
    own: Option<Trust>,
    observer: &'a dyn Observer,
    hurry: &'a Hurry<'a>,
    memory: &'a dyn ShareMemory,
    now: u64,
    shares: Vec<Share<'a>>,
    views: OnceLock<()>,
    /// Keys and digests of layers that come out otherwise here.
    disbelieved: OnceLock<Mutex<BTreeSet<(LayerKey, Digest)>>>,
    /// How often something new was found while others' work was waited for.
    news: AtomicU64,
    /// At which number of news somebody had waited in vain, and one more; 0 for nobody.
    in_vain_at: AtomicU64,
}

/// One cache.
struct Share<'a> {
    address: ShareAddress,
    depot: Box<dyn Depot + 'a>,
    is_written: bool,
    /// Who holds the state may be waiting for an answer, and others look at this meanwhile.
    health: Health,
    state: Mutex<State>,
}

/// What is known of a cache, and what this run adds.
#[derive(Default)]
struct State {
    /// All sheets that were there at the last look.
    listed: BTreeSet<SheetName>,
    /// Those that were read.
    view: BTreeMap<SheetName, Sheet>,
    /// What is believed of all that the sheets say.
    contents: Contents,
    own: Own,
    /// Blobs that it should have and has not.
    damaged: BTreeMap<Digest, Damage>,
}

/// The sheet of this run.
struct Own {
    name: Option<SheetName>,
    contents: Contents,
    is_published: bool,
    /// Layers that this run makes, and whether it is just choosing them.
    claims: BTreeSet<LayerKey>,
    is_choosing: bool,
}

impl Default for Own {
    fn default() -> Self {
        let (contents, claims) = (Contents::default(), BTreeSet::new());
        Self { name: None, contents, is_published: true, claims, is_choosing: false }
    }
}

impl<'a> SharedCache<'a> {
    /// Nothing is asked before the first look-up.
    pub fn new(settings: Settings, memory: &'a dyn ShareMemory, hurry: &'a Hurry<'a>, now: SystemTime) -> Option<Self> {
        let Settings { from, to, trust, key, keyring } = settings;
        let read_only = from.into_iter().filter(|address| !to.contains(address)).map(|address| (address, false));
        let all: Vec<_> = to.iter().cloned().map(|address| (address, true)).chain(read_only).collect();
        if all.is_empty() {
            return None;
        }
        let observer = hurry.observer;
        let opener = Opener::new(keyring, hurry);
        let mut shares = Vec::new();
        for (address, is_written) in all {
            match opener.open(&address) {
                Ok(depot) => {
                    let (health, state) = (Health::default(), Mutex::default());
                    shares.push(Share { address, depot, is_written, health, state });
                }
                Err(error) => {
                    let message = format!("the shared cache '{address}' is done without: {}", in_one_line(&error));
                    observer.event(Event::Warning { message });
                }
            }
        }
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Some(Self {
            trust,
            own: key.as_ref().and_then(SecretKey::public).map(|key| Trust { keys: vec![key] }),
            key,
            observer,
            hurry,
            memory,
            now,
            shares,
            views: OnceLock::new(),
            disbelieved: OnceLock::new(),
            news: AtomicU64::new(0),
            in_vain_at: AtomicU64::new(0),
        })
    }

    /// What the caches know of these layers. [`LayerRecord::has_blob`] says whether one of them has the bytes.
    pub fn look_up(&self, keys: &[LayerKey]) -> Vec<Option<LayerRecord>> {
        self.views.get_or_init(|| self.read_views());
        keys.iter().map(|key| self.find(key)).collect()
    }

    /// Those of the layers that images had which were pushed to this repository, `HOST/NAME`, and whose bytes the caches
    /// still have.
    pub fn pushed_to(&self, repository: &str, layers: &BTreeSet<DiffId>) -> Vec<LayerRecord> {
        self.views.get_or_init(|| self.read_views());
        let of = |share: &Share<'a>| -> Vec<LayerRecord> {
            let state = share.state();
            let said = state.contents.pushed_to(repository, layers, &self.trust).into_iter().map(|entry| &entry.layer);
            let mut records: Vec<LayerRecord> =
                said.filter(|layer| layer.has_blob && is_kept(layer)).cloned().collect();
            drop(state);
            let blobs: Vec<Digest> = records.iter().map(|record| record.digest).collect();
            // Whoever does not answer this is done without here, and asked again for what a build cannot do without.
            let asking = || share.depot.has_blobs(&blobs).unwrap_or_default();
            let there = if blobs.is_empty() { BTreeSet::new() } else { self.hurry.within(PATIENCE, asking) };
            records.retain(|record| there.contains(&record.digest));
            records
        };
        self.usable().flat_map(of).collect()
    }

    /// Waits until another machine has made the layer: for as long as others' layers come in, and then for as long as
    /// `patience` says. Who has waited in vain once does not wait again before there is something new, and nobody waits
    /// for news from caches that are done without.
    pub fn wait_for(&self, key: &LayerKey, patience: Duration) -> Option<LayerRecord> {
        let (mut news, mut quiet) = (self.news.load(Ordering::Relaxed), Duration::ZERO);
        loop {
            let found = self.look_again(key);
            let can_come = self.usable().any(|share| share.is_written);
            if found.is_some() || !can_come || self.observer.cancelled() {
                return found;
            }
            let now = self.news.load(Ordering::Relaxed);
            quiet = if now == news { quiet + GLANCE } else { Duration::ZERO };
            news = now;
            if quiet > patience || self.in_vain_at.load(Ordering::Relaxed) == news + 1 {
                self.in_vain_at.store(news + 1, Ordering::Relaxed);
                return None;
            }
            std::thread::sleep(GLANCE);
        }
    }

    /// What the caches know of a layer now.
    fn look_again(&self, key: &LayerKey) -> Option<LayerRecord> {
        for share in self.usable().filter(|share| share.is_written) {
            // One at a time: whoever waits for another's look has its result.
            let mut state = share.state();
            if let Some(found) = state.contents.find(key, &self.trust) {
                return Some(self.told(found));
            }
            let before = state.contents.len();
            let refreshed = self.refresh(share, &mut state);
            if state.contents.len() > before {
                self.news.fetch_add(1, Ordering::Relaxed);
            }
            drop(state);
            if let Err(error) = refreshed {
                self.give_up(share, &error);
            }
        }
        self.find(key)
    }

    /// Repositories, `HOST/NAME`, whose registry has the blob in a cache: a push may mount it from there.
    pub fn repositories(&self) -> BTreeMap<String, BTreeSet<Digest>> {
        let of = |share: &Share<'a>| {
            let blobs = share.state().contents.blobs().into_keys().collect::<BTreeSet<_>>();
            Some((share.address.reference()?.name(), blobs))
        };
        self.usable().filter_map(of).collect()
    }

    /// Whether some cache is a repository of this registry, which may mount its blobs.
    pub fn concerns(&self, registry: &str) -> bool {
        let is_there = |share: &Share<'_>| share.address.reference().is_some_and(|of| of.registry() == registry);
        self.usable().any(is_there)
    }

    /// Whether some cache is to be given what this run makes.
    pub fn is_written(&self) -> bool {
        self.shares.iter().any(|share| share.is_written)
    }

    fn usable(&self) -> impl Iterator<Item = &Share<'a>> {
        self.shares.iter().filter(|share| !share.health.has_failed.load(Ordering::Relaxed))
    }

    fn find(&self, key: &LayerKey) -> Option<LayerRecord> {
        let found = self.usable().filter_map(|share| share.state().contents.find(key, &self.trust).cloned());
        let found: Vec<Entry> = found.collect();
        let with_bytes = found.iter().find(|entry| entry.layer.has_blob);
        with_bytes.or(found.first()).map(|entry| self.told(entry))
    }

    /// What an entry that counts says, for the layer store. Where everybody's entries count, it is hearsay unless this run's
    /// own key has signed it.
    fn told(&self, entry: &Entry) -> LayerRecord {
        let is_vouched_for = !self.trust.keys.is_empty() || self.has_signed(entry);
        LayerRecord { is_hearsay: !is_vouched_for, ..entry.layer.clone() }
    }

    fn has_signed(&self, entry: &Entry) -> bool {
        self.own.as_ref().is_some_and(|own| own.accepts(entry))
    }

    /// Whether the layer store's record of a layer counts: hearsay does not where it is said whose word does.
    pub fn counts(&self, record: &LayerRecord) -> bool {
        self.trust.keys.is_empty() || !record.is_hearsay
    }

    fn read_views(&self) {
        let read = |share: &Share<'a>| {
            let mut state = share.state();
            let read = self.refresh(share, &mut state);
            drop(state);
            if let Err(error) = read {
                self.give_up(share, &error);
            }
        };
        self.hurry.within(PATIENCE, || self.shares.par_iter().for_each(read));
    }

    /// Reads the sheets that are new, the merged ones first: what they supersede is not read.
    fn refresh(&self, share: &Share<'a>, state: &mut State) -> Result<(), DepotError> {
        let depot = &*share.depot;
        let listed: BTreeSet<SheetName> = depot.sheets()?.into_iter().collect();
        state.view.retain(|name, sheet| listed.contains(name) && sheet.is_final);
        let mut levels: BTreeMap<u32, Vec<SheetName>> = BTreeMap::new();
        for name in listed.iter().filter(|name| !state.view.contains_key(name) && state.own.name != Some(**name)) {
            levels.entry(name.level).or_default().push(*name);
        }
        let mut superseded: BTreeSet<_> = state.view.values().flat_map(|sheet| &sheet.supersedes).copied().collect();
        for names in levels.into_values().rev() {
            let names: Vec<_> = names.into_iter().filter(|name| !superseded.contains(name)).collect();
            for (name, sheet) in self.read_sheets(share, depot, &names)? {
                superseded.extend(&sheet.supersedes);
                state.view.insert(name, sheet);
            }
        }
        state.listed = listed;
        state.contents = merging::union(&state.view);
        state.contents.merge(state.own.contents.clone());
        state.contents.leave_out(&self.disbelieved());
        Ok(())
    }

    fn read_sheets(
        &self,
        share: &Share<'a>,
        depot: &dyn Depot,
        names: &[SheetName],
    ) -> Result<Vec<(SheetName, Sheet)>, DepotError> {
        let key = |name: &SheetName| format!("{} {name}", share.address);
        let remembered = self.memory.sheets(&names.iter().map(key).collect::<Vec<_>>());
        let read = |name: &SheetName| match remembered.get(&key(name)) {
            Some(bytes) => Ok(Some((*name, bytes.clone()))),
            // Merged into another one since it was listed: that one is found the next time.
            None => Ok(depot.read_sheet(name)?.map(|bytes| (*name, bytes))),
        };
        let read: Vec<_> = names.par_iter().map(read).collect::<Result<_, DepotError>>()?;
        let mut sheets = Vec::new();
        let mut to_keep = Vec::new();
        for (name, bytes) in read.into_iter().flatten() {
            match Sheet::decode(&bytes) {
                Ok(sheet) => {
                    if sheet.is_final && !remembered.contains_key(&key(&name)) {
                        to_keep.push((key(&name), bytes));
                    }
                    sheets.push((name, sheet));
                }
                Err(error) => {
                    let message = format!("the shared cache '{}': sheet {name}: {error}", share.address);
                    self.observer.event(Event::Detail { message });
                }
            }
        }
        if !to_keep.is_empty() {
            self.memory.keep_sheets(to_keep);
        }
        Ok(sheets)
    }

    fn give_up(&self, share: &Share<'a>, error: &DepotError) {
        let why = match self.hurry.is_over() {
            true => format!("its answers take longer than {} s", PATIENCE.as_secs()),
            false => in_one_line(error),
        };
        self.do_without(share, &why);
    }

    /// Asks nothing more of a cache, and says so once. Who ends the run does not want to read of that.
    fn do_without(&self, share: &Share<'a>, why: &str) {
        if !share.health.has_failed.swap(true, Ordering::Relaxed) && !self.observer.cancelled() {
            self.warn_of(share, &format!("is done without: {why}"));
        }
    }

    fn warn_of(&self, share: &Share<'a>, what: &str) {
        let message = format!("the shared cache '{}' {what}", share.address);
        self.observer.event(Event::Warning { message });
    }
}

impl<'a> Share<'a> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Repositories of the cache's own registry that may have the blob, by their names there.
    fn sources(&self, blob: &Digest, repositories: &BTreeMap<String, BTreeSet<Digest>>) -> Vec<String> {
        let Some(reference) = self.address.reference() else { return Vec::new() };
        let registry = reference.names_begin_with();
        let holders = repositories.iter().filter(|(_, blobs)| blobs.contains(blob));
        holders.filter_map(|(name, _)| name.strip_prefix(&registry)).map(str::to_owned).collect()
    }
}
