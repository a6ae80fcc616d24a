//! A registry for tests, in this process: keeps what the distribution specification wants kept, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use crate::blob::Digest;

/// A running registry; it ends with the test.
pub(crate) struct StandIn {
    port: u16,
    kept: Arc<Mutex<Kept>>,
    gate: Arc<Gate>,
}

/// Holds requests of one kind until so many are under way at once: a client that waits for each answer before it asks
/// again gets none for [`Gate::PATIENCE`], and then all of them.
#[derive(Default)]
struct Gate {
    state: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    method: &'static str,
    place: &'static str,
    /// How many requests go by before any is held.
    unheld: usize,
    /// How many have to be under way.
    together: usize,
    now: usize,
    most: usize,
    is_open: bool,
}

impl Gate {
    const PATIENCE: Duration = Duration::from_secs(20);

    fn pass(&self, method: &str, target: &str) {
        let mut held = self.state.lock().unwrap();
        if held.together == 0 || method != held.method || !target.contains(held.place) {
            return;
        }
        if held.unheld > 0 {
            held.unheld -= 1;
            return;
        }
        held.now += 1;
        held.most = held.most.max(held.now);
        held.is_open |= held.now >= held.together;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(held, Self::PATIENCE, |held| !held.is_open);
        let mut held = waited.unwrap().0;
        held.is_open = true;
        held.now -= 1;
        self.changed.notify_all();
    }
}

/// What it keeps, of all repositories together.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// Manifests by tag and by digest.
    pub(crate) manifests: BTreeMap<String, Vec<u8>>,
    uploads: Vec<Vec<u8>>,
    /// What was asked: `PUT /v2/app/manifests/v1`.
    pub(crate) asked: Vec<String>,
}

impl StandIn {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let kept = Arc::<Mutex<Kept>>::default();
        let gate = Arc::<Gate>::default();
        let shared = (Arc::clone(&kept), Arc::clone(&gate));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, gate) = shared.clone();
                // A client that goes away is none of its concern.
                thread::spawn(move || drop(serve(&kept, &gate, stream)));
            }
        });
        Self { port, kept, gate }
    }

    /// Requests of this kind, all but the first `unheld`, are answered once so many of them are under way at once.
    pub(crate) fn hold(&self, method: &'static str, place: &'static str, unheld: usize, together: usize) {
        *self.gate.state.lock().unwrap() = Held { method, place, unheld, together, ..Held::default() };
    }

    /// How many of those that were held were under way at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.gate.state.lock().unwrap().most
    }

    /// `127.0.0.1:PORT/NAME`.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    pub(crate) fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }
}

fn serve(kept: &Mutex<Kept>, gate: &Gate, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            match header.trim().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap_or(0);
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !line.ends_with("HTTP/1.1\r\n") || !target.starts_with('/') {
            // TLS, which it does not speak.
            return Ok(());
        }
        gate.pass(method, target);
        let (status, headers, answer) = kept.lock().unwrap().answer(method, target, body);
        let head = format!("HTTP/1.1 {status} So\r\nContent-Length: {}\r\n{headers}\r\n", answer.len());
        stream.write_all(head.as_bytes())?;
        if method != "HEAD" {
            stream.write_all(&answer)?;
        }
    }
}

impl Kept {
    fn answer(&mut self, method: &str, target: &str, body: Vec<u8>) -> (u16, String, Vec<u8>) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        self.asked.push(format!("{method} {path}"));
        let query: BTreeMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let last = path.rsplit('/').next().unwrap_or_default();
        let no =
            |status, code: &str| (status, String::new(), format!(r#"{{"errors":[{{"code":"{code}"}}]}}"#).into_bytes());
        let session = |number: usize, length: usize| {
            let name = path.split("/blobs/").next().unwrap_or_default();
            format!("Location: {name}/blobs/uploads/{number}\r\nRange: 0-{}\r\n", length.saturating_sub(1))
        };
        if path == "/v2/" {
            return (200, String::new(), Vec::new());
        }
        if path.contains("/blobs/uploads/") {
            if method == "POST" {
                self.uploads.push(Vec::new());
                return (202, session(self.uploads.len() - 1, 0), Vec::new());
            }
            let number = last.parse().unwrap_or(usize::MAX);
            let Some(upload) = self.uploads.get_mut(number) else { return no(404, "BLOB_UPLOAD_UNKNOWN") };
            upload.extend(body);
            let length = upload.len();
            return match method {
                "PATCH" => (202, session(number, length), Vec::new()),
                "PUT" => {
                    let upload = std::mem::take(upload);
                    let digest = Digest::of(&upload).to_string();
                    if query.get("digest") != Some(&digest) {
                        return no(400, "DIGEST_INVALID");
                    }
                    self.blobs.insert(digest.clone(), upload);
                    (201, format!("Docker-Content-Digest: {digest}\r\n"), Vec::new())
                }
                _ => (204, session(number, length), Vec::new()),
            };
        }
        let shown = |bytes: &Vec<u8>| (200, format!("Docker-Content-Digest: {}\r\n", Digest::of(bytes)), bytes.clone());
        if path.contains("/blobs/") {
            return self.blobs.get(last).map_or_else(|| no(404, "BLOB_UNKNOWN"), shown);
        }
        if method != "PUT" {
            return self.manifests.get(last).map_or_else(|| no(404, "MANIFEST_UNKNOWN"), shown);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let named = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
        let digests = |list: Vec<serde_json::Value>| -> BTreeSet<String> {
            list.iter().filter_map(|entry| entry["digest"].as_str().map(str::to_owned)).collect()
        };
        let layers = digests([named("layers"), vec![manifest["config"].clone()]].concat());
        let images = digests(named("manifests"));
        if layers.iter().any(|digest| !self.blobs.contains_key(digest))
            || images.iter().any(|digest| !self.manifests.contains_key(digest))
        {
            return no(400, "MANIFEST_BLOB_UNKNOWN");
        }
        let digest = Digest::of(&body).to_string();
        self.manifests.insert(digest.clone(), body.clone());
        self.manifests.insert(last.to_owned(), body);
        (201, format!("Docker-Content-Digest: {digest}\r\n"), Vec::new())
    }
}
