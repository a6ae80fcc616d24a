//! Flox's catalog: what else is in the revision of nixpkgs that an environment's packages are from.
//!
//! A lockfile names store paths of what is installed, and of nothing else. Which bash belongs to them follows from
//! evaluating nixpkgs, or is known to the service that the lockfile is from. That one is asked for a page of its catalog
//! which has these very derivations, and bash beside them.

mod question;

use std::sync::Arc;
use std::time::Duration;

use crate::blob::Digest;
use crate::environment::{Basic, FloxHubError, FloxHubSettings, FromNixpkgs, System};
use crate::event::Observer;
use crate::http::{Client, FetchError, answered, from_reqwest, until_cancelled};
use futures_util::StreamExt;
pub use question::Found;
use question::{Answer, Question};
use reqwest::header;
use tokio::time::timeout;
use url::Url;

/// How long the catalog may take, in all: whoever waits for it can do without.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer in bytes: a page has some kilobytes a package.
const LONGEST: usize = 8 << 20;

/// How the catalog is reached.
pub struct Access<'a> {
    /// Where Flox's services are, and what they let this user in by. Everybody may ask for what nixpkgs has.
    pub hub: &'a FloxHubSettings,
    /// Certificates to trust beside the system's, in PEM.
    pub certificates: &'a [u8],
    /// Whether nothing is asked over the network.
    pub offline: bool,
    /// What was answered before.
    pub memory: &'a dyn CatalogMemory,
    /// Who waits.
    pub observer: &'a dyn Observer,
}

/// Remembers what the catalog answered, by the sha256 of the question. What is forgotten is asked for again.
pub trait CatalogMemory: Sync {
    /// The answer to a question.
    fn answer_to(&self, question: &Digest) -> Option<Vec<u8>>;

    /// Remembers an answer.
    fn keep_answer_to(&self, question: &Digest, answer: Vec<u8>);
}

/// The catalog did not answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Nothing may be asked, and nothing is remembered.
    #[error("it is not asked with --offline, and has not been asked before")]
    Offline,
    /// Nobody can tell where it is.
    #[error(transparent)]
    FloxHub(#[from] FloxHubError),
    /// It could not be asked.
    #[error(transparent)]
    Unanswered(#[from] FetchError),
    /// The question could not be written, or the answer not be read.
    #[error("its answer cannot be read")]
    Answer(#[from] serde_json::Error),
}

impl Access<'_> {
    /// Asks for what is `wanted` beside these packages, which are from one revision of nixpkgs. Nothing is asked where
    /// there are none. An answer holds for ever: images do not change because the catalog does.
    pub fn find(&self, system: System, packages: &[FromNixpkgs], wanted: &[Basic]) -> Result<Found, CatalogError> {
        let Some(first) = packages.first() else { return Ok(Found::default()) };
        let question = Question::new(system, packages, wanted).to_json()?;
        let key = Digest::of(&question);
        let found =
            |answer: &[u8]| Ok::<_, CatalogError>(Answer::parse(answer)?.found(system, &first.revision, wanted));
        if let Some(found) = self.memory.answer_to(&key).and_then(|answer| found(&answer).ok()) {
            return Ok(found);
        }
        if self.offline {
            return Err(CatalogError::Offline);
        }
        let answer = self.ask(question)?;
        let found = found(&answer)?;
        self.memory.keep_answer_to(&key, answer);
        Ok(found)
    }

    fn ask(&self, question: Vec<u8>) -> Result<Vec<u8>, CatalogError> {
        let (services, token) = self.hub.services()?;
        let client = Arc::new(Client::new(1, self.certificates.to_vec()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(FetchError::File)?;
        let asking = async {
            let address = Url::parse(&format!("{services}/api/v1/catalog/resolve"));
            let address = address.map_err(|error| FetchError::connection(error, false))?;
            let request = client.get(&address)?.post(address);
            let request = match &token {
                Some(token) => request.bearer_auth(token.reveal()),
                None => request,
            };
            let request = request.header(header::CONTENT_TYPE, "application/json").body(question);
            let response = answered(client.send(request).await?)?;
            let (mut pieces, mut answer) = (response.bytes_stream(), Vec::new());
            while let Some(piece) = pieces.next().await {
                answer.extend_from_slice(&piece.map_err(from_reqwest)?);
                if answer.len() > LONGEST {
                    return Err(FetchError::TooLong { most: LONGEST as u64 });
                }
            }
            Ok(answer)
        };
        let asking = async { timeout(PATIENCE, asking).await.unwrap_or(Err(FetchError::Stalled { after: PATIENCE })) };
        Ok(runtime.block_on(until_cancelled(self.observer, asking))?)
    }
}
