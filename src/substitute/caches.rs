//! Several binary caches as one source of store paths.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use super::cache::Cache;
use super::error::{SubstituteError, far};
use super::memory::CacheMemory;
use super::nar::{self, NarFailure, Origin};
use super::narinfo::NarInfo;
use super::settings::Settings;
use crate::event::{Event, Observer, in_one_line};
use crate::http::{Client, FetchError, Patience, until_cancelled};
use crate::nix::{ContentHash, Node, PathInfo, Skeleton, Source, SourceError, StorePath, Visitor, WalkError};

/// How skeletons are compressed where they are remembered.
const SKELETON_LEVEL: i32 = 3;

/// Binary caches, asked in the order of their priorities, many questions at once.
pub struct Caches<'a> {
    settings: Settings,
    caches: Vec<Cache>,
    patience: Patience,
    runtime: Runtime,
    memory: &'a dyn CacheMemory,
    observer: &'a dyn Observer,
    /// Seconds after 1970: what is remembered has an age.
    now: u64,
    remembered: OnceLock<HashMap<Vec<u8>, Vec<u8>>>,
    /// The order in which caches are asked; known only once one has to be.
    order: OnceCell<Vec<usize>>,
    known: RwLock<HashMap<StorePath, Known>>,
    /// Compressed, for a closure's together are large.
    skeletons: Mutex<BTreeMap<[u8; 32], Vec<u8>>>,
    /// The NARs whose skeletons the memory was asked for.
    recalled: Mutex<BTreeSet<[u8; 32]>>,
}

/// What is known of a path.
#[derive(Clone)]
enum Known {
    At(Arc<Place>),
    Absent,
    Failed(Arc<SubstituteError>),
}

/// Where a path is.
struct Place {
    cache: usize,
    narinfo: NarInfo,
    /// Whether nobody was asked in this run.
    is_remembered: bool,
}

impl Place {
    fn nar(&self) -> Option<[u8; 32]> {
        match self.narinfo.info.content {
            ContentHash::Nar(nar) => Some(nar),
            ContentHash::Tree(_) => None,
        }
    }
}

impl<'a> Caches<'a> {
    /// Asks nothing yet. `now` is in seconds after 1970.
    pub fn new(
        settings: Settings,
        memory: &'a dyn CacheMemory,
        observer: &'a dyn Observer,
        now: u64,
    ) -> Result<Self, SubstituteError> {
        let unanswered = |source| SubstituteError::Unanswered {
            cache: settings.addresses.first().map(ToString::to_string).unwrap_or_default(),
            what: "anything".to_owned(),
            source,
        };
        let client = Arc::new(Client::new(settings.connections, settings.certificates.clone()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| unanswered(FetchError::File(error)))?;
        let caches =
            settings.addresses.iter().map(|address| Cache::new(address.clone(), &client, &settings.credentials));
        Ok(Self {
            caches: caches.collect::<Result<_, _>>()?,
            patience: Patience::default(),
            runtime,
            memory,
            observer,
            now,
            remembered: OnceLock::new(),
            order: OnceCell::new(),
            known: RwLock::default(),
            skeletons: Mutex::default(),
            recalled: Mutex::default(),
            settings,
        })
    }

    /// Learns of `paths` and of all that they refer to, as far as `is_here` does not have it: many questions at once,
    /// and no path waits for another than the one that refers to it.
    pub(super) fn resolve(
        &self,
        paths: &[StorePath],
        is_here: &(dyn Fn(&StorePath) -> bool + Sync),
        patience: Patience,
    ) {
        let mut met: BTreeSet<StorePath> = BTreeSet::new();
        let mut waiting: Vec<StorePath> = paths.iter().filter(|path| !self.knows(path)).cloned().collect();
        met.extend(waiting.iter().cloned());
        let work = async {
            let mut asked = FuturesUnordered::new();
            loop {
                while asked.len() < self.settings.connections.max(1) {
                    let Some(path) = waiting.pop() else { break };
                    asked.push(async move {
                        let known = self.look_up(&path, 0, patience).await;
                        (path, known)
                    });
                }
                let Some((path, known)) = asked.next().await else { return Ok(()) };
                if let Known::At(place) = &known {
                    for reference in &place.narinfo.info.references {
                        if !self.knows(reference) && met.insert(reference.clone()) && !is_here(reference) {
                            waiting.push(reference.clone());
                        }
                    }
                }
                self.known_mut().insert(path, known);
            }
        };
        // Whoever is asked next for a path that is still unknown fails with the user's wish to stop.
        let _: Result<(), FetchError> = self.runtime.block_on(until_cancelled(self.observer, work));
    }

    /// How much a cache is given as a rule.
    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// Whether the network would have to be asked, and may not be.
    fn may_not_ask(&self, cache: &Cache) -> bool {
        self.settings.offline && !cache.address.is_local()
    }

    fn knows(&self, path: &StorePath) -> bool {
        self.known().contains_key(path)
    }

    fn known(&self) -> std::sync::RwLockReadGuard<'_, HashMap<StorePath, Known>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<StorePath, Known>> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn skeletons(&self) -> MutexGuard<'_, BTreeMap<[u8; 32], Vec<u8>>> {
        self.skeletons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for a path: among what is remembered, then in the caches from the `first` one on.
    async fn look_up(&self, path: &StorePath, first: usize, patience: Patience) -> Known {
        if first == 0 {
            for (at, cache) in self.caches.iter().enumerate() {
                let answer = self.recall(cache, path.hash_part());
                let narinfo = answer.flatten().and_then(|text| self.read(cache, path, &text).ok());
                if let Some(narinfo) = narinfo {
                    return Known::At(Arc::new(Place { cache: at, narinfo, is_remembered: true }));
                }
            }
        }
        let mut failure = None;
        for &at in self.order(patience).await.iter().skip(first) {
            let cache = &self.caches[at];
            if self.recall(cache, path.hash_part()) == Some(None) {
                continue;
            }
            // It may have the path: where nobody else has, this is why it cannot be had.
            if let Some(error) = cache.failure() {
                failure.get_or_insert_with(|| Arc::clone(error));
                continue;
            }
            let found = match cache.narinfo(path, patience).await {
                Ok(None) => {
                    self.remember(cache, path.hash_part(), None);
                    continue;
                }
                Ok(Some(text)) => self.read(cache, path, &text).inspect(|_| {
                    self.remember(cache, path.hash_part(), Some(&text));
                }),
                Err(error) => {
                    let error = self.give_up(cache, error);
                    failure.get_or_insert(error);
                    continue;
                }
            };
            match found {
                Ok(narinfo) => return Known::At(Arc::new(Place { cache: at, narinfo, is_remembered: false })),
                Err(error) => drop(failure.get_or_insert_with(|| Arc::new(error))),
            }
        }
        if self.caches.iter().any(|cache| self.may_not_ask(cache)) {
            failure.get_or_insert_with(|| Arc::new(SubstituteError::Offline { path: path.clone() }));
        }
        failure.map_or(Known::Absent, Known::Failed)
    }

    /// Reads a narinfo that a cache gave, and checks who vouches for it.
    fn read(&self, cache: &Cache, path: &StorePath, text: &[u8]) -> Result<NarInfo, SubstituteError> {
        let name = || cache.address.to_string();
        let narinfo = NarInfo::parse(path, text).map_err(|source| SubstituteError::NarInfo {
            cache: name(),
            path: path.clone(),
            source,
        })?;
        if self.settings.require_signatures && !cache.address.is_trusted {
            narinfo.check(&self.settings.keys).map_err(|source| SubstituteError::Distrusted {
                cache: name(),
                path: path.clone(),
                source,
            })?;
        }
        Ok(narinfo)
    }

    /// The caches that answer, by their priorities.
    async fn order(&self, patience: Patience) -> &[usize] {
        let ask = || async {
            let asked = self.caches.iter().enumerate().filter(|(_, cache)| !self.may_not_ask(cache));
            let names: Vec<String> = asked.clone().map(|(_, cache)| cache.address.to_string()).collect();
            let message = format!("asking for what the Nix store does not have: {}", names.join(", "));
            self.observer.event(Event::Detail { message });
            let infos = asked.map(|(at, cache)| async move {
                if let Some(priority) = cache.address.priority {
                    return (priority, at);
                }
                match cache.info(patience).await {
                    Ok(info) => (info.map_or(u32::MAX, |info| info.priority), at),
                    Err(error) => {
                        self.give_up(cache, error);
                        (u32::MAX, at)
                    }
                }
            });
            let mut order = futures_util::future::join_all(infos).await;
            order.sort_unstable();
            order.into_iter().map(|(_, at)| at).collect()
        };
        self.order.get_or_init(ask).await
    }

    /// A cache that does not answer is not asked again; that is said once.
    fn give_up(&self, cache: &Cache, error: SubstituteError) -> Arc<SubstituteError> {
        let error = Arc::new(error);
        if cache.give_up(&error) && self.caches.len() > 1 {
            let message = format!("{}; going on without it", in_one_line(&*error));
            self.observer.event(Event::Warning { message });
        }
        error
    }

    /// What a cache is remembered to have answered, while that is young enough: `Some(None)`, that it has nothing.
    fn recall(&self, cache: &Cache, hash_part: &str) -> Option<Option<Vec<u8>>> {
        let answers = self.remembered.get_or_init(|| self.memory.answers());
        let (when, answer) = answers.get(&key(cache, hash_part))?.split_first_chunk::<8>()?;
        let age = self.now.saturating_sub(u64::from_le_bytes(*when));
        let most = if answer.is_empty() { self.settings.remember_absent } else { self.settings.remember_found };
        (self.settings.offline || age < most).then(|| Some(answer.to_vec()).filter(|answer| !answer.is_empty()))
    }

    fn remember(&self, cache: &Cache, hash_part: &str, answer: Option<&[u8]>) {
        let value = [&self.now.to_le_bytes()[..], answer.unwrap_or_default()].concat();
        self.memory.keep_answer(key(cache, hash_part), value);
    }

    fn place(&self, path: &StorePath) -> Result<Option<Arc<Place>>, Arc<SubstituteError>> {
        match self.known().get(path).cloned() {
            Some(Known::At(place)) => Ok(Some(place)),
            Some(Known::Absent) => Ok(None),
            Some(Known::Failed(error)) => Err(error),
            None => Err(Arc::new(SubstituteError::Unanswered {
                cache: String::new(),
                what: format!("'{path}'"),
                source: FetchError::Cancelled(crate::event::Cancelled),
            })),
        }
    }

    /// Shows a path's NAR. Where a cache fails, the next one that has it goes on.
    fn show(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<Skeleton, WalkError> {
        let fail = |error: Arc<SubstituteError>| WalkError::Far(far(error));
        let first = self.place(path).map_err(fail)?.ok_or_else(|| WalkError::Absent { path: path.to_absolute() })?;
        let mut asked: Option<Arc<Place>> = None;
        let mut origins = || {
            let place = match &asked {
                None => Arc::clone(&first),
                Some(failed) => self.next_place(path, failed)?,
            };
            let (cache, narinfo) = (&self.caches[place.cache], place.narinfo.clone());
            asked = Some(place);
            Some(match self.may_not_ask(cache) {
                true => Err(SubstituteError::Offline { path: path.clone() }),
                false => Ok(Origin { cache, narinfo }),
            })
        };
        let around = (self.runtime.handle(), self.observer);
        match nar::show(path, &mut origins, self.patience, around, visitor) {
            Ok(skeleton) => {
                first.nar().into_iter().for_each(|nar| self.keep(nar, &skeleton));
                Ok(skeleton)
            }
            Err(NarFailure::Visitor(error)) => Err(WalkError::Visitor(error)),
            Err(NarFailure::Cache(error)) => Err(fail(Arc::new(error))),
        }
    }

    /// Where else the same NAR is: another one would belong to another layer.
    fn next_place(&self, path: &StorePath, failed: &Place) -> Option<Arc<Place>> {
        match self.runtime.block_on(self.look_further(path, failed)) {
            Known::At(next) if next.narinfo.info == failed.narinfo.info => {
                let (from, to) = (&self.caches[failed.cache].address, &self.caches[next.cache].address);
                let message = format!("'{from}' failed to give '{path}'; '{to}' is asked for the rest of it");
                self.observer.event(Event::Detail { message });
                Some(next)
            }
            _ => None,
        }
    }

    /// The place after one that failed. What was only remembered may be out of date: then everybody is asked anew.
    async fn look_further(&self, path: &StorePath, failed: &Place) -> Known {
        let order = self.order(self.patience).await;
        let after = order.iter().position(|&at| at == failed.cache).map_or(0, |position| position + 1);
        if !failed.is_remembered {
            return self.look_up(path, after, self.patience).await;
        }
        for &at in order {
            let cache = &self.caches[at];
            if cache.failure().is_none()
                && let Ok(Some(text)) = cache.narinfo(path, self.patience).await
                && let Ok(narinfo) = self.read(cache, path, &text)
            {
                self.remember(cache, path.hash_part(), Some(&text));
                return Known::At(Arc::new(Place { cache: at, narinfo, is_remembered: false }));
            }
        }
        Known::Absent
    }

    fn keep(&self, nar: [u8; 32], skeleton: &Skeleton) {
        if let Ok(compressed) = zstd::encode_all(skeleton.to_bytes().as_slice(), SKELETON_LEVEL)
            && self.skeletons().insert(nar, compressed.clone()).is_none()
        {
            self.memory.keep_skeleton(nar, compressed);
        }
    }

    /// The skeleton of a NAR, where it was seen in this run or is remembered.
    fn kept_skeleton(&self, nar: &[u8; 32]) -> Option<Skeleton> {
        self.recall_skeletons(nar);
        let compressed = self.skeletons().get(nar).cloned()?;
        Skeleton::from_bytes(&zstd::decode_all(compressed.as_slice()).ok()?)
    }

    /// What is remembered of all paths that are known by now: it is asked for together.
    fn recall_skeletons(&self, wanted: &[u8; 32]) {
        let mut asked = self.recalled.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.contains(wanted) || self.skeletons().contains_key(wanted) {
            return;
        }
        let nar = |known: &Known| match known {
            Known::At(place) => place.nar(),
            Known::Absent | Known::Failed(_) => None,
        };
        let nars: Vec<_> = self.known().values().filter_map(nar).filter(|nar| asked.insert(*nar)).collect();
        let remembered = self.memory.skeletons(&nars);
        let mut skeletons = self.skeletons();
        for (nar, compressed) in remembered {
            skeletons.entry(nar).or_insert(compressed);
        }
    }
}

/// Under what an answer is remembered.
fn key(cache: &Cache, hash_part: &str) -> Vec<u8> {
    format!("{}\n{hash_part}", cache.address).into_bytes()
}

impl Source for Caches<'_> {
    fn path_info(&self, path: &StorePath) -> Result<Option<PathInfo>, SourceError> {
        if !self.knows(path) {
            self.resolve(std::slice::from_ref(path), &|_| false, self.patience);
        }
        match self.place(path) {
            Ok(place) => Ok(place.map(|place| place.narinfo.info.clone())),
            Err(error) => Err(SourceError::Far(far(error))),
        }
    }

    fn walk(&self, path: &StorePath, visitor: &mut dyn Visitor) -> Result<(), WalkError> {
        if !self.knows(path) {
            self.resolve(std::slice::from_ref(path), &|_| false, self.patience);
        }
        self.show(path, visitor).map(drop)
    }

    fn prepare(&self, paths: &[StorePath]) {
        self.resolve(paths, &|_| false, self.patience);
    }

    fn asks(&self) -> Vec<String> {
        self.settings.addresses.iter().map(ToString::to_string).collect()
    }

    fn is_far(&self, path: &StorePath) -> bool {
        matches!(self.known().get(path), Some(Known::At(_)))
    }

    fn skeleton(&self, path: &StorePath) -> Result<Option<Arc<Skeleton>>, WalkError> {
        let place = match self.place(path) {
            Ok(Some(place)) => place,
            Ok(None) | Err(_) => return Ok(None),
        };
        let kept = place.nar().and_then(|nar| self.kept_skeleton(&nar));
        let skeleton = kept.map_or_else(|| self.show(path, &mut |_: &[u8], _: Node<'_>| Ok(())), Ok)?;
        Ok(Some(Arc::new(skeleton)))
    }

    fn learn(&self, path: &StorePath, skeleton: &Skeleton) {
        if let Ok(Some(nar)) = self.place(path).map(|place| place.and_then(|place| place.nar())) {
            self.keep(nar, skeleton);
        }
    }
}

#[cfg(test)]
#[path = "caches_tests.rs"]
mod tests;
