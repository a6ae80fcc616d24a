//! Servers that stall, cut, refuse and lie, on a clock that jumps: no test waits.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::stream;
use rstest::rstest;
use tokio::time::Instant;

use super::super::{Answer, Asked};
use super::*;
use crate::event::{Event, Silent};

/// What a server does with a question.
#[derive(Clone)]
enum Does {
    /// All that was asked for, in pieces of so many bytes, so long after each other.
    Give { piece: usize, every: Duration },
    /// The same up to this byte of the file; then the connection breaks.
    CutAt(usize),
    /// The same; then nothing more comes.
    HangAt(usize),
    /// Nothing comes at all.
    Hang,
    /// A status, with `Retry-After` in seconds.
    Status(u16, Option<u64>),
    /// There is no such file.
    NotFound,
    /// The whole file, whatever was asked for.
    NoRanges,
}

const AT_ONCE: Does = Does::Give { piece: 1000, every: Duration::ZERO };

/// A server of one file that does one thing after the other, and the last for ever.
struct Server {
    file: Vec<u8>,
    does: Vec<Does>,
    /// From which byte on the file was asked for, question by question.
    asked: Arc<Mutex<Vec<u64>>>,
}

impl Server {
    fn new(size: usize, does: &[Does]) -> Self {
        // No two places look the same: a piece in the wrong place shows.
        let file = (0..size.div_ceil(8) as u64).flat_map(u64::to_le_bytes).take(size).collect();
        Self { file, does: does.to_vec(), asked: Arc::default() }
    }

    fn asked(&self) -> Vec<u64> {
        self.asked.lock().unwrap().clone()
    }
}

fn broken() -> FetchError {
    FetchError::Connection { error: "the connection broke".into(), is_passing: true }
}

/// `bytes` in pieces, and what comes behind them.
fn body(bytes: &[u8], piece: usize, every: Duration, end: Option<Result<Bytes, FetchError>>) -> Body {
    let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).chain(end).collect();
    Box::pin(stream::iter(pieces).then(move |piece| async move {
        sleep(every).await;
        piece
    }))
}

impl Transport for Server {
    fn get<'t>(&'t self, _: &'t str, from: u64) -> Asked<'t> {
        let turn = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(from);
            asked.len() - 1
        };
        let does = self.does.get(turn).or(self.does.last()).cloned().unwrap();
        let rest = |to: usize| &self.file[(from as usize).min(to)..to];
        let answer = |body| Ok(Answer { start: from, body });
        let answer = match does {
            Does::Give { piece, every } => answer(body(rest(self.file.len()), piece, every, None)),
            Does::CutAt(to) => answer(body(rest(to), 1000, Duration::ZERO, Some(Err(broken())))),
            Does::HangAt(to) => {
                answer(Box::pin(body(rest(to), 1000, Duration::ZERO, None).chain(stream::pending())) as Body)
            }
            Does::Hang => return Box::pin(std::future::pending()),
            Does::Status(status, after) => {
                Err(FetchError::Status { status, retry_after: after.map(Duration::from_secs) })
            }
            Does::NotFound => Err(FetchError::NotFound),
            Does::NoRanges => Ok(Answer { start: 0, body: body(&self.file, 1000, Duration::ZERO, None) }),
        };
        Box::pin(async move { answer })
    }
}

/// Runs on a clock that jumps to the next thing that is waited for; says how long it took by that clock.
fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let start = Instant::now();
        let result = work.await;
        (result, start.elapsed())
    })
}

/// All of the server's file as a download.
async fn download(server: &Server, most: u64, patience: Patience) -> Result<Vec<u8>, FetchError> {
    let handle = Handle::current();
    let mut download = Download::new(server, "nar/x.nar", most, patience, (&handle, &Silent));
    let mut bytes = Vec::new();
    while !download.is_over {
        download.fill_with_patience().await?;
        download.pieces.drain(..).for_each(|piece| bytes.extend_from_slice(&piece));
    }
    Ok(bytes)
}

fn whole(server: &Server) -> (Result<Vec<u8>, FetchError>, Duration) {
    timed(download(server, server.file.len() as u64, Patience::default()))
}

const SECOND: Duration = Duration::from_secs(1);
const SIZE: usize = 300_000;

#[rstest]
#[case::at_once(&[AT_ONCE], &[0])]
#[case::cut_once(&[Does::CutAt(100_000), AT_ONCE], &[0, 100_000])]
#[case::cut_before_anything(&[Does::CutAt(0), AT_ONCE], &[0, 0])]
#[case::cut_again_and_again(
    &[Does::CutAt(50_000), Does::CutAt(100_000), Does::CutAt(100_000), Does::CutAt(200_000), AT_ONCE],
    &[0, 50_000, 100_000, 100_000, 200_000]
)]
#[case::refused_now_and_then(
    &[Does::Status(503, None), Does::CutAt(150_500), Does::Status(429, None), Does::Status(500, None), AT_ONCE],
    &[0, 0, 150_500, 150_500, 150_500]
)]
#[case::hung(&[Does::Hang, Does::HangAt(70_000), AT_ONCE], &[0, 0, 70_000])]
#[case::without_ranges(&[Does::CutAt(123_456), Does::NoRanges], &[0, 123_456])]
fn a_file_arrives_whole_and_goes_on_where_it_broke(#[case] does: &[Does], #[case] asked: &[u64]) {
    let server = Server::new(SIZE, does);
    let (bytes, _) = whole(&server);
    assert!(bytes.unwrap() == server.file);
    assert_eq!(server.asked(), asked);
}

#[test]
fn a_slow_server_is_waited_for_and_one_that_gives_next_to_nothing_is_not() {
    // A window of 64 KiB has to come in 30 s.
    let slow = Server::new(SIZE, &[Does::Give { piece: 64 * 1024, every: 29 * SECOND }]);
    let (bytes, took) = whole(&slow);
    assert!(bytes.unwrap() == slow.file);
    assert!(took >= 5 * 29 * SECOND);
    assert_eq!(slow.asked(), [0]);

    let trickle = Server::new(SIZE, &[Does::Give { piece: 10, every: SECOND }]);
    let (bytes, took) = whole(&trickle);
    assert!(matches!(bytes, Err(FetchError::Stalled { after }) if after == 30 * SECOND));
    assert_eq!(trickle.asked().len(), 5);
    assert!(took >= 5 * 30 * SECOND);

    // A small file is one window, however small it is.
    let last = Server::new(20, &[Does::Give { piece: 10, every: 10 * SECOND }]);
    assert!(whole(&last).0.unwrap() == last.file);
}

#[test]
fn attempts_are_counted_while_nothing_is_gained_and_waits_grow() {
    let server = Server::new(SIZE, &[Does::Status(502, None)]);
    let (bytes, took) = whole(&server);
    assert!(matches!(bytes, Err(FetchError::Status { status: 502, .. })));
    assert_eq!(server.asked().len(), 5);
    assert_eq!(took, Duration::from_millis(250 + 500 + 1000 + 2000));

    // Every attempt gains more than a megabyte: there may be any number of them.
    let cuts: Vec<_> = (1..=20).map(|n| Does::CutAt(n * 1_100_000)).chain([AT_ONCE]).collect();
    let server = Server::new(23_000_000, &cuts);
    let (bytes, took) = whole(&server);
    assert!(bytes.unwrap() == server.file);
    assert_eq!(server.asked().len(), 21);
    assert_eq!(took, 20 * Duration::from_millis(250));

    // A few bytes each time are nothing.
    let cuts: Vec<_> = (1..=20).map(|n| Does::CutAt(n * 1000)).collect();
    let server = Server::new(SIZE, &cuts);
    assert!(matches!(whole(&server).0, Err(FetchError::Connection { .. })));
    assert_eq!(server.asked(), [0, 1000, 2000, 3000, 4000]);
}

#[rstest]
#[case::no_such_file(Does::NotFound)]
#[case::a_status_that_says_no(Does::Status(400, None))]
#[case::longer_than_anybody_waits(Does::Status(429, Some(61)))]
fn what_another_attempt_will_not_mend_is_asked_once(#[case] does: Does) {
    let server = Server::new(SIZE, &[does]);
    let (bytes, took) = whole(&server);
    assert!(bytes.is_err());
    assert_eq!((server.asked().len(), took), (1, Duration::ZERO));
}

#[rstest]
#[case::as_it_wants(Some(7), 7 * SECOND)]
#[case::at_most(Some(60), 60 * SECOND)]
#[case::never_less_than_our_own(Some(0), Duration::from_millis(250))]
#[case::of_its_own(None, Duration::from_millis(250))]
fn a_server_is_left_alone_for_as_long_as_it_wants(#[case] after: Option<u64>, #[case] expected: Duration) {
    let server = Server::new(SIZE, &[Does::Status(503, after), AT_ONCE]);
    let (bytes, took) = whole(&server);
    assert!(bytes.unwrap() == server.file);
    assert_eq!(took, expected);
    let (bytes, took) =
        timed(small_file(&Server::new(10, &[Does::Status(503, after), AT_ONCE]), "x", 10, Patience::default()));
    assert_eq!((bytes.unwrap().len(), took), (10, expected));
}

#[test]
fn a_file_may_have_its_length_and_not_a_byte_more() {
    let server = Server::new(SIZE, &[AT_ONCE]);
    let (bytes, _) = timed(download(&server, SIZE as u64 - 1, Patience::default()));
    assert!(matches!(bytes, Err(FetchError::TooLong { most }) if most == SIZE as u64 - 1));
    assert_eq!(server.asked(), [0], "it would be too long again");

    let small = |most| timed(small_file(&Server::new(5000, &[AT_ONCE]), "x", most, Patience::default())).0;
    assert_eq!(small(5000).unwrap().len(), 5000);
    assert!(matches!(small(4999), Err(FetchError::TooLong { most: 4999 })));
}

#[rstest]
#[case::hung(&[Does::Hang, AT_ONCE], 2)]
#[case::hung_in_the_midst(&[Does::HangAt(2000), AT_ONCE], 2)]
#[case::cut(&[Does::CutAt(2000), Does::CutAt(2000), AT_ONCE], 3)]
fn a_small_file_is_begun_anew(#[case] does: &[Does], #[case] attempts: usize) {
    let server = Server::new(5000, does);
    let (bytes, _) = timed(small_file(&server, "x", 5000, Patience::default()));
    assert!(bytes.unwrap() == server.file);
    assert_eq!(server.asked(), vec![0; attempts]);
}

#[test]
fn a_small_file_that_never_comes_is_given_up() {
    let server = Server::new(5000, &[Does::Hang]);
    let (bytes, took) = timed(small_file(&server, "x", 5000, Patience::default()));
    assert!(matches!(bytes, Err(FetchError::Stalled { .. })));
    assert_eq!((server.asked().len(), took), (5, 5 * 30 * SECOND + Duration::from_millis(3750)));
}

/// Ends the run when it is asked for the second time.
#[derive(Default)]
struct Impatient {
    questions: AtomicUsize,
    is_over: AtomicBool,
}

impl Observer for Impatient {
    fn event(&self, _: Event) {}

    fn cancelled(&self) -> bool {
        let is_over = self.questions.fetch_add(1, Ordering::Relaxed) > 0;
        self.is_over.fetch_or(is_over, Ordering::Relaxed) || is_over
    }
}

#[test]
fn what_is_read_is_the_file_and_the_user_may_end_it_while_a_server_is_waited_for() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let server = Server::new(SIZE, &[Does::CutAt(200_000), AT_ONCE]);
    let patience = Patience { first_wait: Duration::ZERO, ..Patience::default() };
    let around: (&Handle, &dyn Observer) = (runtime.handle(), &Silent);
    let mut download = Download::start(&server, "x", SIZE as u64, patience, around).unwrap();
    let mut bytes = Vec::new();
    download.read_to_end(&mut bytes).unwrap();
    assert!(bytes == server.file);

    let impatient = Impatient::default();
    let around: (&Handle, &dyn Observer) = (runtime.handle(), &impatient);
    let server = Server::new(SIZE, &[Does::HangAt(100_000)]);
    let mut download = Download::start(&server, "x", SIZE as u64, patience, around).unwrap();
    let error = download.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(Cancelled::caused(&error), "{error}");
    assert!(impatient.is_over.load(Ordering::Relaxed));
}
