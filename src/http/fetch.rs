//! Files in spite of servers that fail: attempts, waits, resumption, bounds.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::{Body, FetchError, Transport};
use crate::event::{Cancelled, Observer};

/// How often the user's wish to stop is looked at while a server is waited for.
const GLANCE: Duration = Duration::from_millis(100);

/// How much a server is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Attempts in all, while nothing is gained by them.
    pub(crate) attempts: u32,
    /// The wait after the first attempt that failed; each later one is twice as long.
    pub(crate) first_wait: Duration,
    /// The longest wait: a server that wants to be left alone for longer counts as one that does not answer.
    pub(crate) longest_wait: Duration,
    /// In this time [`Patience::window`] bytes must come, or all there are.
    pub(crate) stalled_after: Duration,
    /// How many bytes.
    pub(crate) window: usize,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(60),
            stalled_after: Duration::from_secs(30),
            window: 64 * 1024,
        }
    }
}

impl Patience {
    /// For what a run goes on without.
    pub(crate) fn brief() -> Self {
        let soon = Duration::from_secs(5);
        Self { attempts: 3, longest_wait: soon, stalled_after: soon, ..Self::default() }
    }

    /// How long to wait after the `failures`-th failure; none where it is of no use.
    pub(crate) fn wait(&self, error: &FetchError, failures: u32) -> Option<Duration> {
        if !error.is_passing() || failures >= self.attempts {
            return None;
        }
        let own = self.first_wait * 2u32.saturating_pow(failures - 1).min(1 << 10);
        match error {
            FetchError::Status { retry_after: Some(after), .. } => {
                (*after <= self.longest_wait).then(|| own.max(*after))
            }
            _ => Some(own.min(self.longest_wait)),
        }
    }
}

/// All of a small file, of at most `most` bytes.
pub(crate) async fn small_file(
    transport: &dyn Transport,
    name: &str,
    most: u64,
    patience: Patience,
) -> Result<Vec<u8>, FetchError> {
    let mut failures = 0;
    loop {
        let attempt = async {
            let mut body = transport.get(name, 0).await?.body;
            let mut bytes = Vec::new();
            while let Some(piece) = body.next().await.transpose()? {
                if (bytes.len() + piece.len()) as u64 > most {
                    return Err(FetchError::TooLong { most });
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes)
        };
        let after = patience.stalled_after;
        let error = match timeout(after, attempt).await {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(error)) => error,
            Err(_) => FetchError::Stalled { after },
        };
        failures += 1;
        match patience.wait(&error, failures) {
            Some(wait) => sleep(wait).await,
            None => return Err(error),
        }
    }
}

/// A large file, read as it comes. A connection that breaks is taken up again where it broke.
pub(crate) struct Download<'c> {
    transport: &'c dyn Transport,
    runtime: &'c Handle,
    observer: &'c dyn Observer,
    patience: Patience,
    name: String,
    /// More bytes than these are an error.
    most: u64,
    /// How many bytes have come.
    at: u64,
    failures: u32,
    /// Where the last failure was: only what was gained since shows that going on is of use.
    failed_at: u64,
    body: Option<Body>,
    pieces: VecDeque<Bytes>,
    is_over: bool,
}

impl<'c> Download<'c> {
    /// Asks for the file, and waits for its first bytes.
    pub(crate) fn start(
        transport: &'c dyn Transport,
        name: &str,
        most: u64,
        patience: Patience,
        (runtime, observer): (&'c Handle, &'c dyn Observer),
    ) -> Result<Self, FetchError> {
        let mut download = Self::new(transport, name, most, patience, (runtime, observer));
        download.fill()?;
        Ok(download)
    }

    fn new(
        transport: &'c dyn Transport,
        name: &str,
        most: u64,
        patience: Patience,
        (runtime, observer): (&'c Handle, &'c dyn Observer),
    ) -> Self {
        Self {
            transport,
            runtime,
            observer,
            patience,
            name: name.to_owned(),
            most,
            at: 0,
            failures: 0,
            failed_at: 0,
            body: None,
            pieces: VecDeque::new(),
            is_over: false,
        }
    }

    /// Gets more pieces, unless the file is over.
    fn fill(&mut self) -> Result<(), FetchError> {
        let (runtime, observer) = (self.runtime, self.observer);
        runtime.block_on(until_cancelled(observer, self.fill_with_patience()))
    }

    async fn fill_with_patience(&mut self) -> Result<(), FetchError> {
        loop {
            let after = self.patience.stalled_after;
            let error = match timeout(after, self.try_fill()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => FetchError::Stalled { after },
            };
            self.body = None;
            // What came before the failure is as good as any; and a megabyte gained is worth another series of attempts.
            if self.at > self.failed_at + (1 << 20) {
                self.failures = 0;
            }
            self.failed_at = self.at;
            self.failures += 1;
            match self.patience.wait(&error, self.failures) {
                Some(wait) => sleep(wait).await,
                None => return Err(error),
            }
            if !self.pieces.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reads until there is a window of bytes, or the file is over.
    async fn try_fill(&mut self) -> Result<(), FetchError> {
        let mut gained = 0;
        while gained < self.patience.window && !self.is_over {
            let body = match &mut self.body {
                Some(body) => body,
                None => {
                    let answer = self.transport.get(&self.name, self.at).await?;
                    self.body.insert(skip_to(answer.body, self.at.saturating_sub(answer.start)))
                }
            };
            match body.next().await.transpose()? {
                None => self.is_over = true,
                Some(piece) => {
                    self.at += piece.len() as u64;
                    gained += piece.len();
                    if self.at > self.most {
                        return Err(FetchError::TooLong { most: self.most });
                    }
                    if !piece.is_empty() {
                        self.pieces.push_back(piece);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Leaves out the first bytes.
fn skip_to(body: Body, mut left_out: u64) -> Body {
    if left_out == 0 {
        return body;
    }
    Box::pin(body.map(move |piece| {
        let mut piece = piece?;
        let skip = left_out.min(piece.len() as u64);
        piece.advance(skip as usize);
        left_out -= skip;
        Ok(piece)
    }))
}

impl Read for Download<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(piece) = self.pieces.front_mut() {
                let read = piece.len().min(bytes.len());
                piece.copy_to_slice(&mut bytes[..read]);
                if piece.is_empty() {
                    self.pieces.pop_front();
                }
                return Ok(read);
            }
            if self.is_over {
                return Ok(0);
            }
            self.fill().map_err(|error| match error {
                FetchError::Cancelled(cancelled) => io::Error::other(cancelled),
                other => io::Error::other(other),
            })?;
        }
    }
}

/// Waits for `work`, unless the user wants the run to end.
pub(crate) async fn until_cancelled<T>(
    observer: &dyn Observer,
    work: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, FetchError> {
    let mut work = std::pin::pin!(work);
    loop {
        if let Ok(done) = timeout(GLANCE, &mut work).await {
            return done;
        }
        if observer.cancelled() {
            return Err(FetchError::Cancelled(Cancelled));
        }
    }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
