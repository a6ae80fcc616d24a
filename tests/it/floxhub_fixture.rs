//! A FloxHub of our own: git's own server program behind HTTP on 127.0.0.1, which lets in whom it is told to.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;

use crate::flox_fixture::FloxEnv;
use crate::peers::find_program;
use crate::sandbox::Sandbox;

/// What it lets in.
pub(crate) const TOKEN: &str = "flox_s3cretT0ken";

/// `oauth:` and the token, as HTTP's basic authentication has it.
const AUTHORIZATION: &str = "Basic b2F1dGg6ZmxveF9zM2NyZXRUMGtlbg==";

/// How it behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Who has the token gets what there is.
    Login,
    /// Everybody gets what there is.
    Open,
    /// Nobody gets anything, whoever they are.
    Status(&'static str),
    /// Every answer ends in the middle.
    Cut,
    /// No answer ever comes.
    Silent,
    /// Every answer is a page for people, as networks have it that want a login of their own.
    Page,
    /// Somebody else is to be asked.
    Redirect(String),
}

/// A running FloxHub.
pub(crate) struct FloxHub {
    root: PathBuf,
    address: String,
    state: Arc<State>,
}

struct State {
    backend: PathBuf,
    root: PathBuf,
    behaviour: Mutex<Behaviour>,
    /// The first line of each request, and what it said about who asks.
    asked: Mutex<Vec<(String, Option<String>)>>,
    /// How many requests are being answered.
    serving: AtomicUsize,
}

impl FloxHub {
    /// Starts one without environments; it ends with the test's process.
    pub(crate) fn start(sandbox: &Sandbox, name: &str) -> Self {
        let exec_path = Command::new("git").arg("--exec-path").output().unwrap().stdout;
        let backend = PathBuf::from(String::from_utf8(exec_path).unwrap().trim()).join("git-http-backend");
        let root = sandbox.path(name);
        fs::create_dir(&root).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (behaviour, asked) = (Mutex::new(Behaviour::Login), Mutex::default());
        let serving = AtomicUsize::new(0);
        let state = Arc::new(State { backend, root: root.clone(), behaviour, asked, serving });
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&served);
                thread::spawn(move || {
                    state.serving.fetch_add(1, Ordering::Relaxed);
                    // A client that goes away is none of the server's business.
                    let _ = stream.and_then(|stream| state.serve(&stream));
                    state.serving.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { root, address, state }
    }

    /// What `FLOX_FLOXHUB_URL` takes.
    pub(crate) fn url(&self) -> &str {
        &self.address
    }

    /// From now on it behaves so.
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().unwrap() = behaviour;
    }

    /// What it was asked since the last time that this was looked at.
    pub(crate) fn asked(&self) -> Vec<(String, Option<String>)> {
        std::mem::take(&mut self.state.asked.lock().unwrap())
    }

    /// Whether a request is being answered.
    pub(crate) fn is_asked_now(&self) -> bool {
        self.state.serving.load(Ordering::Relaxed) > 0
    }

    /// An environment's repository and branch, made if need be.
    pub(crate) fn environment(&self, owner: &str, name: &str) -> HubEnvironment {
        let repository = self.root.join(owner).join("floxmeta");
        if !repository.exists() {
            git(None, &["init", "--quiet", "--bare", &repository.display().to_string()]);
        }
        let checkout = self.root.join(format!("checkout-{owner}-{name}"));
        git(None, &["init", "--quiet", "-b", name, &checkout.display().to_string()]);
        let environment = HubEnvironment { repository, checkout, name: name.to_owned() };
        environment.write("metadata.json", r#"{"version":2,"total_generations":0,"history":[]}"#);
        environment
    }
}

/// An environment on it.
pub(crate) struct HubEnvironment {
    repository: PathBuf,
    checkout: PathBuf,
    name: String,
}

impl HubEnvironment {
    /// Makes a generation of a directory's environment, without a lockfile where that has none.
    pub(crate) fn add(&self, generation: u64, environment: &FloxEnv) -> &Self {
        let dir = self.checkout.join(format!("{generation}/env"));
        fs::create_dir_all(&dir).unwrap();
        for file in ["manifest.toml", "manifest.lock"] {
            let from = environment.dot_flox("env").join(file);
            if from.exists() {
                fs::copy(from, dir.join(file)).unwrap();
            }
        }
        self
    }

    /// Lets these have been the current generations one after the other, and pushes.
    pub(crate) fn history(&self, generations: &[u64]) {
        let history: Vec<_> = generations
            .iter()
            .map(|number| json!({ "kind": "edit", "author": "me", "current_generation": number.to_string() }))
            .collect();
        let total = generations.iter().max();
        self.write(
            "metadata.json",
            &json!({ "version": 2, "total_generations": total, "history": history }).to_string(),
        );
    }

    /// Writes a file at the top, and pushes everything.
    pub(crate) fn write(&self, file: &str, text: &str) {
        fs::write(self.checkout.join(file), text).unwrap();
        git(Some(&self.checkout), &["add", "--all"]);
        git(Some(&self.checkout), &["commit", "--quiet", "--allow-empty", "-m", "a change"]);
        let repository = self.repository.display().to_string();
        git(Some(&self.checkout), &["push", "--quiet", &repository, &self.name]);
    }

    /// Removes a file, and pushes.
    pub(crate) fn remove(&self, file: &str) {
        fs::remove_file(self.checkout.join(file)).unwrap();
        self.write("removed", file);
    }
}

fn git(dir: Option<&Path>, args: &[&str]) {
    let mut command = Command::new("git");
    if let Some(dir) = dir {
        command.arg("-C").arg(dir);
    }
    for person in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{person}_NAME"), "me").env(format!("GIT_{person}_EMAIL"), "me@example.invalid");
    }
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env_remove("GIT_DIR");
    let output = command.args(args).output().unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Request {
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn read(stream: &TcpStream) -> std::io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(Self { method, target, headers, body })
    }
}

impl State {
    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        let request = Request::read(stream)?;
        let authorization = request.headers.get("authorization").cloned();
        let asked = (format!("{} {}", request.method, request.target), authorization.clone());
        self.asked.lock().unwrap().push(asked);
        let answer = |status: &str, headers: &str, body: &[u8]| {
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
            { stream }.write_all(&[head.as_bytes(), body].concat())
        };
        let behaviour = self.behaviour.lock().unwrap().clone();
        match behaviour {
            Behaviour::Login if authorization.as_deref() != Some(AUTHORIZATION) => {
                answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"FloxHub\"\r\n", b"")
            }
            Behaviour::Login | Behaviour::Open => {
                let (status, headers, body) = self.backend(&request)?;
                answer(&status, &headers, &body)
            }
            Behaviour::Status(status) => answer(status, "", b""),
            Behaviour::Cut => {
                let (status, headers, body) = self.backend(&request)?;
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
                { stream }.write_all(&[head.as_bytes(), &body[..body.len() / 2]].concat())?;
                stream.shutdown(Shutdown::Both)
            }
            // Until the other side has had enough.
            Behaviour::Silent => { stream }.read(&mut [0]).map(drop),
            Behaviour::Page => {
                answer("200 OK", "Content-Type: text/html\r\n", b"<html>\n<h1>Welcome to the hotel</h1>\n</html>\n")
            }
            Behaviour::Redirect(url) => answer("302 Found", &format!("Location: {url}{}\r\n", request.target), b""),
        }
    }

    /// Asks git's server program (git-http-backend(1)): status, headers and body of the answer.
    fn backend(&self, request: &Request) -> std::io::Result<(String, String, Vec<u8>)> {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
        let mut process = Command::new(&self.backend)
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("PATH_INFO", path.strip_prefix("/git").unwrap_or(path))
            .env("QUERY_STRING", query)
            .env("REQUEST_METHOD", &request.method)
            .env("CONTENT_TYPE", header("content-type"))
            .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
            .env("HTTP_GIT_PROTOCOL", header("git-protocol"))
            .env("REMOTE_ADDR", "127.0.0.1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // What it does not read it does not want.
        let _ = process.stdin.take().unwrap().write_all(&request.body);
        let output = process.wait_with_output()?.stdout;
        let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(0);
        let (mut status, mut headers) = ("200 OK".to_owned(), String::new());
        for line in String::from_utf8_lossy(&output[..end]).lines() {
            match line.strip_prefix("Status: ") {
                Some(found) => found.clone_into(&mut status),
                None => headers += &format!("{line}\r\n"),
            }
        }
        Ok((status, headers, output[(end + 4).min(output.len())..].to_vec()))
    }
}

/// Puts a `git` on the sandbox's `PATH`, and all that it starts in turn behind it, which note their arguments in the
/// file that is returned.
pub(crate) fn provide_noting_git(sandbox: &Sandbox) -> PathBuf {
    let notes = sandbox.path("git-arguments");
    let exec_path = Command::new("git").arg("--exec-path").output().unwrap().stdout;
    let exec_path = PathBuf::from(String::from_utf8(exec_path).unwrap().trim());
    let noting = sandbox.path("git-core");
    fs::create_dir(&noting).unwrap();
    let script =
        |real: &Path| format!("printf '%s\\n' \"$0 $*\" >> '{}'\nexec '{}' \"$@\"\n", notes.display(), real.display());
    for program in fs::read_dir(&exec_path).unwrap() {
        let (name, real) = program.map(|program| (program.file_name(), program.path())).unwrap();
        let name = name.to_str().unwrap();
        if ["git", "git-remote-http"].contains(&name) {
            sandbox.script(&format!("../git-core/{name}"), &script(&real));
        } else {
            std::os::unix::fs::symlink(real, noting.join(name)).unwrap();
        }
    }
    sandbox.script("git", &script(&find_program("git").unwrap()));
    notes
}
