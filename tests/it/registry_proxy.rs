//! Stands between the product and a registry: counts what is asked and how many bytes go, demands tokens, and fails as
//! it is told to.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::registry_messages::{self, Head};
use crate::registry_server::RegistryServer;
use crate::registry_tokens::Tokens;

/// What a request of the distribution specification is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Request {
    /// `GET /v2/`.
    Ping,
    /// A token is asked for.
    Token,
    HeadManifest,
    GetManifest,
    PutManifest,
    DeleteManifest,
    Tags,
    HeadBlob,
    GetBlob,
    /// The begin of an upload, or a mount.
    PostUpload,
    /// A mount, where faults are concerned: it counts as [`Request::PostUpload`].
    Mount,
    /// A chunk.
    PatchUpload,
    /// How far is it?
    GetUpload,
    /// The end of an upload.
    PutUpload,
    Other,
}

impl Request {
    fn of(method: &str, path: &str) -> Self {
        let path = path.split('?').next().unwrap_or_default();
        match method {
            "GET" if path == "/v2/" => Self::Ping,
            "GET" | "POST" if path == "/token" => Self::Token,
            "GET" if path.ends_with("/tags/list") => Self::Tags,
            "HEAD" if path.contains("/manifests/") => Self::HeadManifest,
            "GET" if path.contains("/manifests/") => Self::GetManifest,
            "PUT" if path.contains("/manifests/") => Self::PutManifest,
            "DELETE" if path.contains("/manifests/") => Self::DeleteManifest,
            "POST" if path.ends_with("/blobs/uploads/") => Self::PostUpload,
            "PATCH" if path.contains("/blobs/uploads/") => Self::PatchUpload,
            "GET" if path.contains("/blobs/uploads/") => Self::GetUpload,
            "PUT" if path.contains("/blobs/uploads/") => Self::PutUpload,
            "HEAD" if path.contains("/blobs/") => Self::HeadBlob,
            "GET" if path.contains("/blobs/") => Self::GetBlob,
            _ => Self::Other,
        }
    }
}

/// What happens to a request instead of the registry's answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// A status, with a header line (`Name: value`) or none; the registry is not asked.
    Status(u16, &'static str),
    /// A status and an error code of the specification; the registry is not asked.
    Refused(u16, &'static str),
    /// The connection ends after so many bytes of the request's body; what arrived is the registry's to judge.
    Cut(u64),
    /// The same, but the registry keeps those bytes and knows how many they are, as the specification has it for chunks.
    CutAndKeep(u64),
    /// The registry does what it is asked for, and the connection ends without a word of that.
    Silence,
    /// The answer ends after so many bytes of its body.
    CutAnswer(u64),
    /// The answer's body comes a byte at a time, for as long as the client waits.
    Trickle,
    /// The answer's body comes steadily, so many bytes a second.
    Slow(u64),
    /// The digest in the answer is another one.
    OtherDigest,
    /// The digest in the answer is left out.
    NoDigest,
    /// One bit of the answer's body is another one.
    Damage,
    /// Nothing is answered for as long as the client waits.
    Hang,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) requests: u64,
    /// Bytes of bodies to the registry.
    pub(crate) sent: u64,
    /// Bytes of bodies from it.
    pub(crate) received: u64,
}

/// What went through since the last look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) counts: BTreeMap<Request, Count>,
    /// One line each, in the order in which they came: `PUT /v2/...: 201`, queries left out.
    pub(crate) log: Vec<String>,
    /// How many requests said who asks.
    pub(crate) authorized: u64,
}

impl Traffic {
    pub(crate) fn of(&self, request: Request) -> Count {
        self.counts.get(&request).copied().unwrap_or_default()
    }

    /// How many there were, over all kinds.
    pub(crate) fn requests(&self) -> u64 {
        self.counts.values().map(|count| count.requests).sum()
    }

    /// Bytes of bodies to the registry, over all kinds.
    pub(crate) fn sent(&self) -> u64 {
        self.counts.values().map(|count| count.sent).sum()
    }
}

/// A proxy that runs until the end of the test program.
pub(crate) struct RegistryProxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    port: u16,
    /// The registry, or whatever else there is, at `127.0.0.1:PORT`.
    upstream: String,
    tokens: Option<Tokens>,
    traffic: Mutex<Traffic>,
    /// What the next requests of a kind meet, `None` for nothing.
    faults: Mutex<BTreeMap<Request, Vec<Option<Fault>>>>,
    always: Mutex<BTreeMap<Request, Fault>>,
    /// How many tags a page of their list has.
    page: Mutex<Option<usize>>,
    /// What requests of a kind are sent on to: `HOST:PORT`.
    elsewhere: Mutex<BTreeMap<Request, String>>,
    /// Where an upload goes on that was cut and kept: its path, and the registry's newest address of it.
    uploads: Mutex<BTreeMap<String, String>>,
    /// How many connections are being served.
    connections: AtomicUsize,
}

impl RegistryProxy {
    /// In front of a registry without TLS.
    pub(crate) fn start(registry: &RegistryServer) -> Self {
        Self::start_with(registry, None)
    }

    /// The same, for clients that bring tokens.
    pub(crate) fn start_with(registry: &RegistryServer, tokens: Option<Tokens>) -> Self {
        Self::start_at(registry.host(), tokens)
    }

    /// In front of any server at `127.0.0.1:PORT`.
    pub(crate) fn start_at(upstream: String, tokens: Option<Tokens>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            port,
            upstream,
            tokens,
            traffic: Mutex::default(),
            faults: Mutex::default(),
            always: Mutex::default(),
            page: Mutex::default(),
            elsewhere: Mutex::default(),
            uploads: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&served);
                state.connections.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    // A client that goes away in the midst of an answer is none of the proxy's concern.
                    let _ = state.serve(stream);
                    state.connections.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, state }
    }

    /// `127.0.0.1:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A reference through it: `name` is `NAME[:TAG|@DIGEST]`.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// The next requests of a kind meet these faults, one each.
    pub(crate) fn fail(&self, request: Request, faults: &[Fault]) {
        let faults = faults.iter().rev().cloned().map(Some).collect();
        self.state.faults.lock().unwrap().insert(request, faults);
    }

    /// The request of a kind that comes after so many others meets a fault.
    pub(crate) fn fail_after(&self, others: usize, request: Request, fault: Fault) {
        let faults = [vec![Some(fault)], vec![None; others]].concat();
        self.state.faults.lock().unwrap().insert(request, faults);
    }

    /// All requests of a kind meet this fault from now on.
    pub(crate) fn fail_always(&self, request: Request, fault: Fault) {
        self.state.always.lock().unwrap().insert(request, fault);
    }

    /// All requests of a kind but the first ones meet this fault.
    pub(crate) fn fail_always_after(&self, others: usize, request: Request, fault: Fault) {
        self.state.faults.lock().unwrap().insert(request, vec![None; others]);
        self.fail_always(request, fault);
    }

    /// Lists of tags come in pages of so many, which this registry does not do by itself.
    pub(crate) fn page_tags(&self, most: usize) {
        *self.state.page.lock().unwrap() = Some(most);
    }

    /// Requests of a kind are answered with an address at another proxy: those that begin an upload with where that goes
    /// on, others with 307.
    pub(crate) fn lead(&self, request: Request, other: &RegistryProxy) {
        self.state.elsewhere.lock().unwrap().insert(request, other.host());
    }

    /// No request meets a fault any more.
    pub(crate) fn mend(&self) {
        self.state.faults.lock().unwrap().clear();
        self.state.always.lock().unwrap().clear();
    }

    /// Waits until what clients that are gone have sent is over: the registry has answered what came whole.
    pub(crate) fn wait_for_the_last(&self) {
        // Whoever came before this one has been let in, too.
        registry_messages::ask(self.port, "GET", "/v2/", &[]);
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.state.connections.load(Ordering::SeqCst) > 0 {
            assert!(Instant::now() < deadline, "a client is still there: {:#?}", self.traffic().log);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What went through since the last time.
    pub(crate) fn traffic(&self) -> Traffic {
        std::mem::take(&mut *self.state.traffic.lock().unwrap())
    }
}

/// A request as its first line has it.
struct Asked {
    method: String,
    /// With its query.
    path: String,
    request: Request,
}

impl State {
    fn serve(&self, client: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut client = client;
        while let Some(mut head) = Head::read(&mut reader)? {
            let mut words = head.first.split(' ').map(str::to_owned);
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let asked = Asked { request: Request::of(&method, &path), method, path };
            if head.get("expect").is_some() {
                client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                head.remove("expect");
            }
            self.count(asked.request, 1, 0, 0);
            self.traffic.lock().unwrap().authorized += u64::from(head.get("authorization").is_some());
            if !self.answer(&asked, head, &mut reader, &mut client)? {
                return client.shutdown(Shutdown::Both);
            }
        }
        Ok(())
    }

    /// Says whether the connection goes on.
    fn answer(
        &self,
        asked: &Asked,
        mut head: Head,
        reader: &mut BufReader<TcpStream>,
        client: &mut TcpStream,
    ) -> io::Result<bool> {
        let of_mount = asked.path.contains("mount=").then(|| self.next_fault(Request::Mount)).flatten();
        let fault = of_mount.or_else(|| self.next_fault(asked.request));
        match &fault {
            Some(Fault::Status(status, header)) => {
                let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
                return self.refuse(asked, head, reader, client, *status, &header, "");
            }
            Some(Fault::Refused(status, code)) => {
                let body = format!(r#"{{"errors":[{{"code":"{code}","message":"said the proxy"}}]}}"#);
                return self.refuse(asked, head, reader, client, *status, "", &body);
            }
            Some(Fault::Hang) => {
                self.log(asked, "hangs");
                io::copy(reader, &mut io::sink())?;
                return Ok(false);
            }
            _ => {}
        }
        if let Some(tokens) = &self.tokens {
            if asked.request == Request::Token {
                let mut form = Vec::new();
                reader.take(head.length().unwrap_or(0)).read_to_end(&mut form)?;
                head.remove("content-length");
                let (status, body) = match asked.method.as_str() {
                    "POST" => tokens.exchange(&form),
                    _ => tokens.give(&asked.path, head.get("authorization")),
                };
                if let Some(Fault::Silence) = fault {
                    self.log(asked, "silence");
                    return Ok(false);
                }
                return self.refuse(asked, head, reader, client, status, "", &body);
            }
            let is_there = |repository: &str| self.has(repository);
            if let Err(scope) = tokens.check(&asked.method, &asked.path, head.get("authorization"), is_there) {
                let realm = tokens.realm(self.port);
                let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"tests\"{scope}\r\n");
                let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"a token is needed"}]}"#;
                return self.refuse(asked, head, reader, client, 401, &challenge, body);
            }
        }
        let page = *self.page.lock().unwrap();
        if let Some(most) = page.filter(|_| asked.request == Request::Tags) {
            let (link, body) = self.page_of_tags(&asked.path, most);
            return self.refuse(asked, head, reader, client, 200, &link, &body);
        }
        let elsewhere = self.elsewhere.lock().unwrap().get(&asked.request).cloned();
        if let Some(host) = elsewhere.filter(|_| asked.request != Request::PostUpload) {
            let location = format!("Location: http://{host}{}\r\n", asked.path);
            return self.refuse(asked, head, reader, client, 307, &location, "");
        }
        self.forward(asked, head, reader, client, fault)
    }

    /// Whether the registry has a repository of this name.
    fn has(&self, repository: &str) -> bool {
        let port = self.upstream.rsplit(':').next().unwrap().parse().unwrap();
        registry_messages::ask(port, "GET", &format!("/v2/{repository}/tags/list"), &[]).status != 404
    }

    /// A part of the list of tags, and the header that names the next one (distribution specification, "Content
    /// Discovery").
    fn page_of_tags(&self, path: &str, most: usize) -> (String, String) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let port = self.upstream.rsplit(':').next().unwrap().parse().unwrap();
        let all = registry_messages::ask(port, "GET", path, &[]).body;
        let mut list: serde_json::Value = serde_json::from_slice(&all).unwrap();
        let mut tags: Vec<String> = serde_json::from_value(list["tags"].take()).unwrap();
        tags.sort();
        let last = query.split('&').find_map(|field| field.strip_prefix("last=")).unwrap_or_default();
        let left: Vec<_> = tags.into_iter().filter(|tag| tag.as_str() > last).collect();
        let page = &left[..most.min(left.len())];
        list["tags"] = page.into();
        let link = match page.last() {
            Some(last) if page.len() < left.len() => format!("Link: <{path}?n={most}&last={last}>; rel=\"next\"\r\n"),
            _ => String::new(),
        };
        (link, list.to_string())
    }

    /// An answer of the proxy's own. What is left of the request's body is read, so that the connection can go on.
    #[expect(clippy::too_many_arguments, reason = "a message has this many parts")]
    fn refuse(
        &self,
        asked: &Asked,
        head: Head,
        reader: &mut BufReader<TcpStream>,
        client: &mut TcpStream,
        status: u16,
        header: &str,
        body: &str,
    ) -> io::Result<bool> {
        self.log(asked, &status.to_string());
        let length = head.length().unwrap_or(0);
        io::copy(&mut reader.take(length), &mut io::sink())?;
        let kind = "Content-Type: application/json\r\n";
        write!(client, "HTTP/1.1 {status} Proxy\r\n{kind}Content-Length: {}\r\n{header}\r\n", body.len())?;
        if asked.method != "HEAD" {
            client.write_all(body.as_bytes())?;
        }
        // A body without a length cannot be skipped.
        Ok(head.get("transfer-encoding").is_none())
    }

    fn forward(
        &self,
        asked: &Asked,
        mut head: Head,
        reader: &mut BufReader<TcpStream>,
        client: &mut TcpStream,
        fault: Option<Fault>,
    ) -> io::Result<bool> {
        let mut registry = TcpStream::connect(&self.upstream)?;
        let path = asked.path.split('?').next().unwrap_or_default();
        let newest = self.uploads.lock().unwrap().get(path).cloned();
        if let Some(newest) = newest {
            head.first = format!("{} {} HTTP/1.1", asked.method, with_query_of(&asked.path, &newest));
        }
        if self.tokens.is_some() {
            head.remove("authorization");
        }
        head.set("Connection", "close");
        let length = head.length().unwrap_or(0);
        let goes = match fault {
            Some(Fault::Cut(most) | Fault::CutAndKeep(most)) => length.min(most),
            _ => length,
        };
        if let Some(Fault::CutAndKeep(_)) = fault {
            head.set("Content-Length", &goes.to_string());
            head.remove("Content-Range");
        }
        registry.write_all(&head.bytes())?;
        let gone = if head.get("transfer-encoding").is_some() {
            copy_chunks(reader, &mut registry)?
        } else {
            io::copy(&mut reader.take(goes), &mut registry)?
        };
        self.count(asked.request, 0, gone, 0);
        if let Some(Fault::Cut(_)) = fault {
            registry.shutdown(Shutdown::Both)?;
            self.log(asked, "cut");
            return Ok(false);
        }
        if head.get("transfer-encoding").is_none() && gone < goes {
            // The client is gone, and the registry need not wait for the rest.
            registry.shutdown(Shutdown::Both)?;
            self.log(asked, "ended in its midst");
            return Ok(false);
        }
        let mut from_registry = BufReader::new(registry);
        let Some(mut answer) = Head::read(&mut from_registry)? else { return Ok(false) };
        if let Some(location) = answer.get("location").filter(|_| asked.path.contains("/blobs/uploads/")) {
            let mut uploads = self.uploads.lock().unwrap();
            if let Some(Fault::CutAndKeep(_)) = fault {
                uploads.insert(path.to_owned(), location.to_owned());
            } else if let Some(newest) = uploads.get_mut(path) {
                location.clone_into(newest);
            }
        }
        self.log(asked, &answer.status().to_string());
        match fault {
            Some(Fault::CutAndKeep(_) | Fault::Silence) => {
                // What the registry says is read, for it to be done.
                io::copy(&mut from_registry, &mut io::sink())?;
                return Ok(false);
            }
            Some(Fault::OtherDigest) => answer.set("Docker-Content-Digest", &format!("sha256:{}", "0".repeat(64))),
            Some(Fault::NoDigest) => answer.remove("Docker-Content-Digest"),
            _ => {}
        }
        if let Some(host) = self.elsewhere.lock().unwrap().get(&asked.request) {
            let location = answer.get("location").unwrap_or_default();
            let location = location.replacen(&format!("127.0.0.1:{}", self.port), host, 1);
            answer.set("Location", &location);
        }
        answer.remove("connection");
        client.write_all(&answer.bytes())?;
        let has_body = asked.method != "HEAD" && ![204, 304].contains(&answer.status());
        let mut body = Vec::new();
        if has_body {
            match answer.length() {
                Some(length) => from_registry.take(length).read_to_end(&mut body)?,
                None => from_registry.read_to_end(&mut body)?,
            };
        }
        match fault {
            Some(Fault::CutAnswer(most)) => body.truncate(usize::try_from(most).unwrap()),
            Some(Fault::Damage) => body.iter_mut().take(1).for_each(|byte| *byte ^= 1),
            _ => {}
        }
        self.count(asked.request, 0, 0, body.len() as u64);
        if matches!(fault, Some(Fault::Trickle)) {
            for byte in &body {
                client.write_all(&[*byte])?;
                thread::sleep(Duration::from_millis(200));
            }
            return Ok(false);
        }
        if let Some(Fault::Slow(each_second)) = fault {
            for piece in body.chunks(usize::try_from(each_second / 20).unwrap()) {
                client.write_all(piece)?;
                thread::sleep(Duration::from_millis(50));
            }
            return Ok(false);
        }
        client.write_all(&body)?;
        client.flush()?;
        let is_delimited = answer.length().is_some() || answer.get("transfer-encoding").is_some() || !has_body;
        Ok(is_delimited && !matches!(fault, Some(Fault::CutAnswer(_))))
    }

    fn next_fault(&self, request: Request) -> Option<Fault> {
        let next = self.faults.lock().unwrap().get_mut(&request).and_then(Vec::pop);
        next.unwrap_or_else(|| self.always.lock().unwrap().get(&request).cloned())
    }

    fn count(&self, request: Request, requests: u64, sent: u64, received: u64) {
        let mut traffic = self.traffic.lock().unwrap();
        let count = traffic.counts.entry(request).or_default();
        count.requests += requests;
        count.sent += sent;
        count.received += received;
    }

    fn log(&self, asked: &Asked, outcome: &str) {
        let path = asked.path.split('?').next().unwrap_or_default();
        self.traffic.lock().unwrap().log.push(format!("{} {path}: {outcome}", asked.method));
    }
}

/// The address that was asked for, with the state of the upload out of another address of the same upload.
fn with_query_of(asked: &str, newest: &str) -> String {
    let (path, query) = asked.split_once('?').unwrap_or((asked, ""));
    let state = newest.split_once('?').map_or("", |(_, state)| state);
    let digest = query.split('&').filter(|field| field.starts_with("digest="));
    let query: Vec<_> = std::iter::once(state).chain(digest).collect();
    format!("{path}?{}", query.join("&"))
}

/// Passes a body on whose length is not known before (RFC 9112, 7.1); how many bytes it has.
fn copy_chunks(from: &mut BufReader<TcpStream>, to: &mut TcpStream) -> io::Result<u64> {
    let mut total = 0;
    loop {
        let mut line = String::new();
        io::BufRead::read_line(from, &mut line)?;
        to.write_all(line.as_bytes())?;
        let length = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        // The end of the line behind it goes along.
        io::copy(&mut from.take(length + 2), to)?;
        total += length;
        if length == 0 {
            return Ok(total);
        }
    }
}

#[test]
fn what_goes_through_is_counted_and_faults_come_in_their_order() {
    let program = crate::peers::peer!(docker_registry);
    let sandbox = crate::sandbox::Sandbox::new();
    let registry = program.start(&sandbox.path("registry"), crate::registry_server::Setup::default());
    let proxy = RegistryProxy::start_with(&registry, Some(Tokens::for_all()));
    let ask =
        |path: &str, token: &str| crate::registry_messages::ask(proxy.port, "GET", path, &[("Authorization", token)]);
    let tags = "/v2/team/web/tags/list";
    let refused = ask(tags, "");
    let challenge = refused.head.get("www-authenticate").unwrap();
    assert!(challenge.ends_with("scope=\"repository:team/web:pull\""), "{challenge}");
    assert_eq!(ask("/token?scope=repository:team/web:pull", "").status, 200);
    proxy.fail(Request::Tags, &[Fault::Status(500, ""), Fault::Refused(429, "TOOMANYREQUESTS")]);
    proxy.fail_after(1, Request::Ping, Fault::Status(503, "Retry-After: 1"));
    let statuses = [tags, tags, tags, "/v2/", "/v2/"].map(|path| ask(path, "Bearer token-0").status);
    assert_eq!(statuses, [500, 429, 404, 200, 503]);
    let traffic = proxy.traffic();
    assert_eq!((traffic.requests(), traffic.of(Request::Tags).requests), (7, 4));
    assert_eq!(traffic.log[4], "GET /v2/team/web/tags/list: 404");
    assert_eq!(proxy.traffic().requests(), 0);
    proxy.fail_always_after(2, Request::Tags, Fault::Status(500, ""));
    assert_eq!([tags; 4].map(|path| ask(path, "Bearer token-0").status), [404, 404, 500, 500]);
}
