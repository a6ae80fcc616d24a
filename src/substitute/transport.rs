//! How the files of a binary cache are had: from a server, a directory or a bucket, one answer a question.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use reqwest::header;
use url::Url;

use super::credentials::Login;
use crate::http::{Answer, Asked, Body, Client, FetchError, Transport, answered};

/// Files are read in pieces of this many bytes.
const PIECE: usize = 256 * 1024;

/// A cache on an HTTP server.
pub(super) struct Http {
    client: Arc<Client>,
    base: Url,
    login: Option<Login>,
}

impl Http {
    pub(super) fn new(client: Arc<Client>, mut base: Url, login: Option<Login>) -> Self {
        // The client would send what stands in the address beside the login: servers refuse two.
        let _ = (base.set_username(""), base.set_password(None));
        Self { client, base, login }
    }
}

impl Transport for Http {
    fn get<'t>(&'t self, name: &'t str, from: u64) -> Asked<'t> {
        Box::pin(async move {
            let url = self.base.join(name).map_err(|error| FetchError::connection(error, false))?;
            let is_own = url.origin() == self.base.origin();
            let mut request = self.client.get(&url)?.get(url);
            if from > 0 {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            // A narinfo may name a file on another host: that one is not told any secret.
            request = match &self.login {
                Some(Login::Basic { user, password }) if is_own => request.basic_auth(user, Some(password)),
                Some(Login::Bearer(token)) if is_own => request.bearer_auth(token),
                _ => request,
            };
            let response = answered(self.client.send(request).await?)?;
            Ok(Answer::of(response, from))
        })
    }
}

/// A cache in a directory.
pub(super) struct Directory(pub(super) PathBuf);

impl Transport for Directory {
    fn get<'t>(&'t self, name: &'t str, from: u64) -> Asked<'t> {
        let open = || {
            let relative = Path::new(name);
            if !relative.components().all(|component| matches!(component, Component::Normal(_))) {
                return Err(FetchError::NotFound);
            }
            let mut file = File::open(self.0.join(relative)).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FetchError::NotFound,
                _ => FetchError::File(error),
            })?;
            file.seek(SeekFrom::Start(from)).map_err(FetchError::File)?;
            let pieces = stream::unfold(file, |mut file| async move {
                let mut piece = vec![0; PIECE];
                match file.read(&mut piece) {
                    Ok(0) => None,
                    Ok(read) => {
                        piece.truncate(read);
                        Some((Ok(Bytes::from(piece)), file))
                    }
                    Err(error) => Some((Err(FetchError::File(error)), file)),
                }
            });
            Ok(Answer { start: from, body: Box::pin(pieces) as Body })
        };
        let answer = open();
        Box::pin(async move { answer })
    }
}
