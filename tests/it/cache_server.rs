//! A binary cache made by the real Nix, and a server for it that fails as it is told to.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::nix_fixture::NixStore;

/// A directory that `nix copy` filled, and the key that its paths are signed with.
pub(crate) struct BinaryCache {
    pub(crate) directory: PathBuf,
    /// `NAME:KEY`.
    pub(crate) key: String,
}

impl BinaryCache {
    /// Everything that `paths` need, out of the store, signed; `compression` as Nix calls it.
    pub(crate) fn make(nix: &NixStore, directory: PathBuf, compression: &str, paths: &[&str]) -> Self {
        let beside = directory.with_extension("keys");
        fs::create_dir_all(&beside).unwrap();
        let (secret, public) = (beside.join("secret"), beside.join("public"));
        let made = nix
            .nix("nix-store")
            .args(["--generate-binary-cache-key", "test-1"])
            .args([&secret, &public])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let to = format!("file://{}?compression={compression}&secret-key={}", directory.display(), secret.display());
        let copied = nix
            .nix("nix")
            .args(["--extra-experimental-features", "nix-command", "copy", "--to", &to])
            .args(paths)
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        Self { directory, key: fs::read_to_string(public).unwrap().trim().to_owned() }
    }

    /// The name of a path's narinfo.
    pub(crate) fn narinfo(path: &str) -> String {
        let base = path.rsplit('/').next().unwrap();
        format!("{}.narinfo", &base[..32])
    }

    /// A field of a path's narinfo.
    pub(crate) fn field(&self, path: &str, field: &str) -> String {
        let text = fs::read_to_string(self.directory.join(Self::narinfo(path))).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}: ")));
        line.unwrap_or_default().to_owned()
    }

    /// Writes a path's narinfo anew.
    pub(crate) fn change(&self, path: &str, change: impl Fn(String) -> String) {
        let file = self.directory.join(Self::narinfo(path));
        let text = change(fs::read_to_string(&file).unwrap());
        fs::write(file, text).unwrap();
    }
}

/// What a server does with a question instead of answering it.
#[derive(Clone)]
pub(crate) enum Fault {
    /// A status, with a header line or none.
    Status(u16, &'static str),
    /// Closes the connection after so many bytes of the body.
    CutAfter(usize),
    /// Says that it has no ranges, whatever it is asked for.
    NoRanges,
    /// Gives another body.
    Body(Arc<Vec<u8>>),
    /// Sends zeros for ever.
    Endless,
    /// Sends so many bytes of the body, and then nothing for as long as the client waits.
    HangAfter(usize),
}

/// A server on 127.0.0.1 for the files of a directory; it ends with the test.
pub(crate) struct CacheServer {
    port: u16,
    state: Arc<State>,
}

struct State {
    directory: PathBuf,
    /// By the end of a file's name: what happens to the first questions for it.
    faults: Mutex<BTreeMap<String, Vec<Fault>>>,
    /// The value of the `Authorization` header that is demanded.
    login: Option<String>,
    /// What was asked, with its range.
    asked: Mutex<Vec<String>>,
    latency: Duration,
}

impl CacheServer {
    pub(crate) fn start(directory: &Path) -> Self {
        Self::start_with(directory, None, Duration::ZERO)
    }

    pub(crate) fn start_with(directory: &Path, login: Option<&str>, latency: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            directory: directory.to_owned(),
            faults: Mutex::default(),
            login: login.map(str::to_owned),
            asked: Mutex::default(),
            latency,
        });
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&served);
                // A client that goes away in the midst of an answer is none of the server's concern.
                thread::spawn(move || drop(state.serve(stream)));
            }
        });
        Self { port, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next questions for files whose names end so meet these faults, one each.
    pub(crate) fn fail(&self, name: &str, faults: &[Fault]) {
        self.state.faults.lock().unwrap().insert(name.to_owned(), faults.iter().rev().cloned().collect());
    }

    /// What was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.asked.lock().unwrap())
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        loop {
            let (mut line, mut headers) = (String::new(), BTreeMap::new());
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            loop {
                let mut header = String::new();
                reader.read_line(&mut header)?;
                match header.trim().split_once(": ") {
                    Some((name, value)) => drop(headers.insert(name.to_lowercase(), value.to_owned())),
                    None => break,
                }
            }
            let name = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
            let range = headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
            let from: usize = range.map_or(0, |from| from.parse().unwrap());
            self.asked.lock().unwrap().push(if from > 0 { format!("{name} from {from}") } else { name.clone() });
            thread::sleep(self.latency);
            if self.login.is_some() && self.login.as_ref() != headers.get("authorization") {
                write!(stream, "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")?;
                continue;
            }
            if !self.answer(&mut stream, &name, from)? {
                return Ok(());
            }
        }
    }

    /// Says whether the connection goes on.
    fn answer(&self, stream: &mut TcpStream, name: &str, from: usize) -> std::io::Result<bool> {
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            let left = faults.iter_mut().find(|(end, _)| name.ends_with(end.as_str())).map(|(_, left)| left);
            left.and_then(Vec::pop)
        };
        let file = fs::read(self.directory.join(name));
        let (mut body, mut from) = match (&fault, file) {
            (Some(Fault::Status(status, header)), _) => {
                write!(stream, "HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\n{header}\r\n")?;
                return Ok(true);
            }
            (Some(Fault::Endless), _) => {
                write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
                loop {
                    stream.write_all(&[0; 64 * 1024])?;
                }
            }
            (Some(Fault::Body(body)), _) => (body.to_vec(), from),
            (_, Ok(body)) => (body, from),
            (_, Err(_)) => {
                write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
                return Ok(true);
            }
        };
        if matches!(fault, Some(Fault::NoRanges)) {
            from = 0;
        }
        let total = body.len();
        body.drain(..from.min(total));
        match from {
            0 => write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")?,
            _ => write!(
                stream,
                "HTTP/1.1 206 Partial\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{total}\r\n\r\n",
                body.len(),
                total - 1
            )?,
        }
        if let Some(Fault::HangAfter(bytes)) = fault {
            stream.write_all(&body[..bytes.min(body.len())])?;
            drop(stream.read_to_end(&mut Vec::new()));
            return Ok(false);
        }
        if let Some(Fault::CutAfter(bytes)) = fault {
            stream.write_all(&body[..bytes.min(body.len())])?;
            stream.flush()?;
            stream.shutdown(std::net::Shutdown::Write)?;
            // What the client still sends is read, lest the reset overtake the bytes.
            drop(stream.read_to_end(&mut Vec::new()));
            return Ok(false);
        }
        stream.write_all(&body)?;
        Ok(true)
    }
}
