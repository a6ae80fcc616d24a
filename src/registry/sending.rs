//! A request whose body is sent while it is made: only a few pieces of it are in memory at a time.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::stream;
use reqwest::{Body, Method, RequestBuilder, Response, header};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::sleep;
use url::Url;

use super::session::{Refusal, Scope};
use super::{RegistryError, Repository};

/// The length of a piece in bytes.
pub(super) const PIECE: usize = 128 * 1024;
/// How many pieces wait for the connection.
const WAITING: usize = 3;

/// What becomes of a request.
pub(super) type Answer = Result<Result<Response, Refusal>, RegistryError>;

/// A request under way. It goes on while its pieces are made, and is looked after whenever one is given to it.
pub(super) struct Sending<'r> {
    pub(super) method: Method,
    pieces: Sender<Bytes>,
    answer: Pin<Box<dyn Future<Output = Answer> + 'r>>,
    flow: Arc<Flow>,
}

impl<'r> Sending<'r> {
    /// Begins a request with a body of `length` bytes, of a blob's from its byte `first` on.
    pub(super) fn begin(
        repository: &'r Repository<'_>,
        what: &str,
        (method, url): (Method, &Url),
        (first, length): (u64, u64),
    ) -> Self {
        let (pieces, taken) = channel(WAITING);
        let flow = Arc::new(Flow { length, given: AtomicU64::new(0), taken: AtomicU64::new(0) });
        let answer = Box::pin({
            let (what, method, url, flow) = (what.to_owned(), method.clone(), url.clone(), Arc::clone(&flow));
            async move {
                let session = &repository.session;
                let body = Mutex::new(Some(body(taken, Arc::clone(&flow))));
                let with_body = |request: RequestBuilder| {
                    let request = request.header(header::CONTENT_TYPE, "application/octet-stream");
                    let request = match method == Method::PATCH {
                        true => request.header(header::CONTENT_RANGE, format!("{first}-{}", first + length - 1)),
                        false => request,
                    };
                    let body = body.lock().unwrap_or_else(PoisonError::into_inner).take().filter(|_| length > 0);
                    request.header(header::CONTENT_LENGTH, length).body(body.unwrap_or_default())
                };
                let stalled = flow.stalls(session.patience.stalled_after);
                let question = repository.question(Scope::Push, &what, method.clone(), &url);
                session.attempt_until(stalled, &question, with_body).await
            }
        });
        Self { method, pieces, answer, flow }
    }

    /// Gives it a piece, as soon as there is room for one. Says what was answered, where that came before.
    pub(super) async fn give(&mut self, piece: Bytes) -> Option<Answer> {
        let length = piece.len() as u64;
        let room = std::pin::pin!(self.pieces.reserve());
        match select(&mut self.answer, room).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right((Ok(room), _)) => {
                room.send(piece);
                self.flow.given.fetch_add(length, Ordering::Relaxed);
                None
            }
            // Nobody takes any more: there is a reason.
            Either::Right((Err(_), _)) => Some((&mut self.answer).await),
        }
    }

    /// Waits for the answer. All pieces have been given by then.
    pub(super) async fn answer(self) -> Answer {
        drop(self.pieces);
        self.answer.await
    }
}

fn body(mut pieces: Receiver<Bytes>, flow: Arc<Flow>) -> Body {
    let pieces = stream::poll_fn(move |context| {
        let piece = pieces.poll_recv(context);
        piece.map(|piece| {
            let piece = piece?;
            flow.taken.fetch_add(piece.len() as u64, Ordering::Relaxed);
            Some(Ok::<_, Infallible>(piece))
        })
    });
    Body::wrap_stream(pieces)
}

/// How far a body is.
struct Flow {
    length: u64,
    /// Bytes that were given to the request.
    given: AtomicU64,
    /// Bytes that the connection took.
    taken: AtomicU64,
}

impl Flow {
    /// Comes to an end when the other side has done nothing for so long. A slow line is none of its faults, nor is a slow
    /// source.
    async fn stalls(&self, after: Duration) {
        loop {
            let (given, taken) = (self.given.load(Ordering::Relaxed), self.taken.load(Ordering::Relaxed));
            let is_waited_for = taken < given || taken == self.length || given == 0;
            sleep(after).await;
            if is_waited_for && self.taken.load(Ordering::Relaxed) == taken {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_nothing_has_stalled_and_who_is_slow_has_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let after = Duration::from_secs(30);
        let flow = |given, taken| Flow { length: 10, given: AtomicU64::new(given), taken: AtomicU64::new(taken) };
        let stalls = async |flow: Flow| tokio::time::timeout(3 * after, flow.stalls(after)).await.is_ok();
        let slow = flow(10, 0);
        let taking = async {
            for _ in 0..9 {
                sleep(after / 2).await;
                slow.taken.fetch_add(1, Ordering::Relaxed);
            }
        };
        runtime.block_on(async {
            assert!(stalls(flow(0, 0)).await, "nobody accepts the connection");
            assert!(stalls(flow(7, 3)).await, "nobody takes what there is");
            assert!(stalls(flow(10, 10)).await, "nobody answers");
            assert!(!stalls(flow(7, 7)).await, "there is nothing to take");
            let stalls = std::pin::pin!(slow.stalls(after));
            assert!(matches!(select(std::pin::pin!(taking), stalls).await, Either::Left(_)), "the line is slow");
        });
    }
}
