//! Buckets that refuse, say nothing, or lose what they have answered.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::{Error, ObjectStoreExt, PutPayload, PutResult, Result as StoreResult};
use rstest::rstest;

use super::super::depot::{Depot, DepotError};
use super::super::object_depot::ObjectDepot;
use super::*;
use crate::blob::Digest;
use crate::event::{Event, Silent};

/// What a bucket is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Part(usize),
    End,
    Abort,
}

/// What it does instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Refuses,
    Hangs,
    /// It does what it is asked for, and nobody hears of it.
    Silent,
}

/// A bucket in memory, with faults.
struct Bucket {
    inner: Arc<InMemory>,
    /// What the next requests of a kind meet.
    faults: Mutex<BTreeMap<Asked, Vec<Fault>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

type Answer<'t, T> = Pin<Box<dyn Future<Output = StoreResult<T>> + Send + 't>>;

impl Bucket {
    fn new(faults: &[(Asked, &[Fault])]) -> Self {
        let faults = faults.iter().map(|(asked, faults)| (*asked, faults.to_vec())).collect();
        Self { inner: Arc::default(), faults: Mutex::new(faults), asked: Arc::default() }
    }

    async fn answer<T>(&self, asked: Asked, answer: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        self.asked.lock().unwrap().push(asked);
        let fault = self.faults.lock().unwrap().get_mut(&asked).and_then(Vec::pop);
        let refusal = || Error::Generic { store: "tests", source: "503 Slow Down".into() };
        match fault {
            None => answer.await,
            Some(Fault::Refuses) => Err(refusal()),
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::Silent) => answer.await.and(Err(refusal())),
        }
    }
}

// What `async_trait` makes of the trait's methods, without it.
impl MultipartStore for Bucket {
    fn create_multipart<'s, 'p, 't>(&'s self, path: &'p Path) -> Answer<'t, MultipartId>
    where
        's: 't,
        'p: 't,
        Self: 't,
    {
        self.inner.create_multipart(path)
    }

    fn put_part<'s, 'p, 'i, 't>(
        &'s self,
        path: &'p Path,
        id: &'i MultipartId,
        at: usize,
        part: PutPayload,
    ) -> Answer<'t, PartId>
    where
        's: 't,
        'p: 't,
        'i: 't,
        Self: 't,
    {
        Box::pin(self.answer(Asked::Part(at), self.inner.put_part(path, id, at, part)))
    }

    fn complete_multipart<'s, 'p, 'i, 't>(
        &'s self,
        path: &'p Path,
        id: &'i MultipartId,
        parts: Vec<PartId>,
    ) -> Answer<'t, PutResult>
    where
        's: 't,
        'p: 't,
        'i: 't,
        Self: 't,
    {
        Box::pin(self.answer(Asked::End, async move {
            let ended = self.inner.complete_multipart(path, id, parts).await;
            // As buckets have it, and a store in memory has not.
            ended.map_err(|error| Error::NotFound { path: path.to_string(), source: error.into() })
        }))
    }

    fn abort_multipart<'s, 'p, 'i, 't>(&'s self, path: &'p Path, id: &'i MultipartId) -> Answer<'t, ()>
    where
        's: 't,
        'p: 't,
        'i: 't,
        Self: 't,
    {
        Box::pin(self.answer(Asked::Abort, self.inner.abort_multipart(path, id)))
    }
}

/// Three parts.
fn blob() -> Vec<u8> {
    (0..20 << 20).map(|at| (at / PART) as u8).collect()
}

/// Gives a bucket a blob; what came of it, what was asked, and what the bucket has then. It must come to an end by
/// itself.
fn give(
    faults: &[(Asked, &[Fault])],
    patience: Patience,
    observer: &'static dyn Observer,
) -> (Result<(), DepotError>, Vec<Asked>, Option<Bytes>) {
    let bucket = Bucket::new(faults);
    let (inner, asked) = (Arc::clone(&bucket.inner), Arc::clone(&bucket.asked));
    let (send, given) = channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (runtime, store) = (Arc::new(runtime), Arc::clone(&bucket.inner));
        let patience = (patience, patience);
        let depot = ObjectDepot::new((store, Some(Arc::new(bucket))), "", Arc::clone(&runtime), observer, patience);
        let (blob, digest) = (blob(), Digest::of(&blob()));
        let given = depot.write_blob(&digest, blob.len() as u64, &[], &mut |out| out.write_all(&blob));
        let path = Path::from(format!("blobs/sha256/{}", digest.hex()));
        let there = runtime.block_on(async { Some(inner.get(&path).await.ok()?.bytes().await.unwrap()) });
        send.send((given, there)).unwrap();
    });
    let (given, there) = given.recv_timeout(Duration::from_secs(100)).expect("it waits for ever");
    let asked = asked.lock().unwrap().clone();
    (given, asked, there)
}

/// No waits between attempts.
fn hurry() -> Patience {
    Patience { first_wait: Duration::ZERO, ..Patience::default() }
}

#[test]
fn parts_that_are_refused_are_sent_again_and_no_others() {
    let twice = [Fault::Refuses; 2];
    let faults = [(Asked::Part(0), &twice[..1]), (Asked::Part(2), &twice), (Asked::End, &twice)];
    let (given, mut asked, there) = give(&faults, hurry(), &Silent);
    given.unwrap();
    assert!(there.unwrap() == blob());
    asked.sort();
    let [part0, part1, part2] = [0, 1, 2].map(Asked::Part);
    assert_eq!(asked, [part0, part0, part1, part2, part2, part2, Asked::End, Asked::End, Asked::End]);
}

#[test]
fn an_answer_that_was_lost_is_not_missed() {
    let (given, asked, there) = give(&[(Asked::End, &[Fault::Silent])], hurry(), &Silent);
    given.unwrap();
    assert!(there.unwrap() == blob());
    assert_eq!(asked.iter().filter(|asked| **asked == Asked::End).count(), 2, "{asked:?}");
}

#[rstest]
#[case::a_part(Asked::Part(1))]
#[case::the_end(Asked::End)]
fn who_says_nothing_is_given_up_after_a_few_attempts(#[case] hangs: Asked, #[values(false, true)] for_good: bool) {
    let always = [Fault::Hangs; 9];
    let abort = if for_good { &always[..] } else { &[] };
    let patience = Patience { attempts: 2, stalled_after: Duration::from_millis(300), ..hurry() };
    let (given, asked, there) = give(&[(hangs, &always), (Asked::Abort, abort)], patience, &Silent);
    let error = given.unwrap_err();
    assert!(matches!(error, DepotError::Objects { source: FetchError::Stalled { .. }, .. }), "{error:?}");
    assert_eq!(asked.iter().filter(|asked| **asked == hangs).count(), 2, "{asked:?}");
    assert_eq!((asked.last(), there), (Some(&Asked::Abort), None));
}

/// Wants the run to end as soon as a bucket hangs.
struct Leaving;

static LEAVES: AtomicBool = AtomicBool::new(false);

impl Observer for Leaving {
    fn event(&self, _: Event) {}

    fn cancelled(&self) -> bool {
        // Asked only while something is waited for: here that is the end.
        LEAVES.swap(true, Ordering::Relaxed)
    }
}

#[test]
fn the_user_is_heard_while_a_bucket_says_nothing() {
    let hang = [Fault::Hangs; 9];
    let patience = Patience { stalled_after: Duration::from_secs(3600), ..hurry() };
    let (given, _, there) = give(&[(Asked::End, &hang), (Asked::Abort, &hang)], patience, &Leaving);
    let error = given.unwrap_err();
    assert!(matches!(error, DepotError::Objects { source: FetchError::Cancelled(_), .. }), "{error:?}");
    assert_eq!(there, None);
}
