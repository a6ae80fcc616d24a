//! Pushes through a proxy of the environment's, to a registry that only the proxy knows.

use std::io::{self, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use rstest::rstest;

use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_messages::{Head, basic};
use crate::registry_server::{RegistryServer, Setup};
use crate::sandbox::Sandbox;

/// Who may use the proxy.
const USER: (&str, &str) = ("carrier", "opensesame-0815");

/// A proxy for `CONNECT`, and for what goes in the open; it runs until the end of the test program. Whatever host it is
/// asked for, it connects to a port of this machine's.
struct Tunnels {
    port: u16,
    /// `HOST:PORT: STATUS`, and `in the open: HOST:PORT: STATUS`, in the order in which they were asked for.
    log: Arc<Mutex<Vec<String>>>,
}

impl Tunnels {
    /// A proxy to a registry, for everybody or for [`USER`].
    fn start(registry: &RegistryServer, is_open: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, upstream) = (listener.local_addr().unwrap().port(), registry.port());
        let log = Arc::<Mutex<Vec<String>>>::default();
        let written = Arc::clone(&log);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = Arc::clone(&written);
                // A client that goes away is none of its concern.
                thread::spawn(move || drop(serve(stream, upstream, is_open, &log)));
            }
        });
        Self { port, log }
    }

    fn address(&self, login: &str) -> String {
        format!("http://{login}127.0.0.1:{}", self.port)
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

fn serve(client: TcpStream, upstream: u16, is_open: bool, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut from_client = BufReader::new(client.try_clone()?);
    let mut client = client;
    let Some(mut head) = Head::read(&mut from_client)? else { return Ok(()) };
    let mut words = head.first.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    // In the open the whole address is asked for (RFC 9112, 3.2.2).
    let in_the_open = target.strip_prefix("http://").and_then(|target| target.split_once('/'));
    let host = in_the_open.map_or(target.as_str(), |(host, _)| host);
    let is_known = head.get("proxy-authorization") == Some(&basic(USER.0, USER.1));
    let is_for_it = method == "CONNECT" || in_the_open.is_some();
    let (status, header) = match (is_for_it, is_open || is_known) {
        (true, true) => (200, ""),
        (true, false) => (407, "Proxy-Authenticate: Basic realm=\"tests\"\r\nContent-Length: 0\r\n"),
        _ => (405, "Content-Length: 0\r\n"),
    };
    let way = if in_the_open.is_some() { "in the open: " } else { "" };
    log.lock().unwrap().push(format!("{way}{host}: {status}"));
    if status != 200 || in_the_open.is_none() {
        write!(client, "HTTP/1.1 {status} Proxy\r\n{header}\r\n")?;
    }
    if status != 200 {
        return Ok(());
    }
    let mut registry = TcpStream::connect(("127.0.0.1", upstream))?;
    if let Some((_, path)) = in_the_open {
        head.first = format!("{method} /{path} HTTP/1.1");
        head.set("Connection", "close");
        registry.write_all(&head.bytes())?;
    }
    let mut from_registry = registry.try_clone()?;
    thread::spawn(move || {
        let _ = io::copy(&mut from_registry, &mut client);
        let _ = client.shutdown(Shutdown::Both);
    });
    io::copy(&mut from_client, &mut registry)?;
    registry.shutdown(Shutdown::Write)
}

/// A registry, in TLS unless it is said otherwise, and an environment.
struct Place {
    sandbox: Sandbox,
    store: BareStore,
    environment: FloxEnv,
    server: RegistryServer,
}

impl Place {
    fn new(program: &crate::registry_server::DockerRegistry) -> Self {
        Self::with(program, true)
    }

    /// The same, with TLS or without.
    fn with(program: &crate::registry_server::DockerRegistry, tls: bool) -> Self {
        let sandbox = Sandbox::new();
        let server = program.start(&sandbox.path("registry"), Setup { tls, ..Setup::default() });
        let store = BareStore::new(sandbox.path("root"));
        let one = store.add("one", &Tree::new().program("bin/one", vec![7; 300_000]));
        let environment = FloxEnv::of_store_paths(sandbox.path("project"), "web", &[("one", &one)], "");
        Self { sandbox, store, environment, server }
    }

    /// `registry.example:PORT`, which no resolver knows.
    fn host(&self) -> String {
        format!("registry.example:{}", self.server.port())
    }

    /// A push to a host; all that was said, on standard output and on standard error.
    fn push(&self, host: &str, variables: &[(&str, &str)]) -> (bool, String) {
        self.push_with(host, variables, &[])
    }

    fn push_with(&self, host: &str, variables: &[(&str, &str)], args: &[&str]) -> (bool, String) {
        let mut command = self.sandbox.cmd();
        command.env("DOCKER_CONFIG", self.sandbox.path("home")).envs(variables.iter().copied());
        command.args(["-vv", "containerize", "--push", &format!("{host}/team/web:v1"), "--store"]);
        command.arg(self.store.root()).arg("-d").arg(self.environment.dir()).args(args);
        let authority = self.server.authority();
        if authority.exists() {
            command.arg("--registry-ca").arg(authority);
        }
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }
}

#[test]
fn a_push_goes_through_the_proxy_of_the_environment() {
    let place = Place::new(&peer!(docker_registry));
    let tunnels = Tunnels::start(&place.server, true);
    for variable in ["HTTPS_PROXY", "https_proxy"] {
        let (is_done, said) = place.push(&place.host(), &[(variable, &tunnels.address(""))]);
        assert!(is_done, "{said}");
        let log = tunnels.log();
        assert!(!log.is_empty() && log.iter().all(|line| *line == format!("{}: 200", place.host())), "{log:#?}");
    }
    assert_eq!(place.server.tags("team/web"), ["v1"]);
}

#[test]
fn a_proxy_is_shown_its_login_and_nobody_else_is() {
    let place = Place::new(&peer!(docker_registry));
    let tunnels = Tunnels::start(&place.server, false);
    let proxy = tunnels.address(&format!("{}:{}@", USER.0, USER.1));
    let (is_done, said) = place.push(&place.host(), &[("HTTPS_PROXY", &proxy)]);
    assert!(is_done, "{said}");
    assert!(!said.contains(USER.0) && !said.contains(USER.1), "{said}");
    assert_eq!(place.server.tags("team/web"), ["v1"]);
}

#[rstest]
#[case::with_another_login(true)]
#[case::away(false)]
fn a_proxy_that_does_not_serve_is_told_of_without_its_login(#[case] is_there: bool) {
    let place = Place::new(&peer!(docker_registry));
    let tunnels = Tunnels::start(&place.server, false);
    let proxy = match is_there {
        true => tunnels.address(&format!("{}:wrong-pass@", USER.0)),
        false => format!("http://{}:{}@127.0.0.1:1", USER.0, USER.1),
    };
    let (is_done, said) = place.push(&place.host(), &[("HTTPS_PROXY", &proxy)]);
    assert!(!is_done, "{said}");
    assert!(!said.contains(USER.0) && !said.contains("wrong-pass") && !said.contains(USER.1), "{said}");
    assert!(said.contains(&format!("the registry '{}' could not be asked", place.host())), "{said}");
    assert_eq!(!tunnels.log().is_empty(), is_there);
    assert_eq!(place.server.tags("team/web"), [""; 0]);
}

#[test]
fn a_registry_that_needs_no_proxy_is_asked_without() {
    let place = Place::new(&peer!(docker_registry));
    let tunnels = Tunnels::start(&place.server, true);
    let proxy = tunnels.address("");
    for variable in ["NO_PROXY", "no_proxy"] {
        let variables = [("HTTPS_PROXY", proxy.as_str()), (variable, "elsewhere.example,127.0.0.1")];
        let (is_done, said) = place.push(&place.server.host(), &variables);
        assert!(is_done, "{said}");
    }
    assert_eq!(tunnels.log(), [""; 0]);
    assert_eq!(place.server.tags("team/web"), ["v1"]);
}

#[rstest]
fn a_registry_on_this_machine_is_asked_without_a_proxy_whatever_the_environment_says(
    #[values("127.0.0.1", "localhost")] host: &str,
    #[values(true, false)] tls: bool,
) {
    let place = Place::with(&peer!(docker_registry), tls);
    // Nobody listens there.
    let proxies = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"].map(|variable| (variable, "http://127.0.0.1:1"));
    let variables = [&proxies[..], &[("NO_PROXY", "elsewhere.example")]].concat();
    let (is_done, said) = place.push(&format!("{host}:{}", place.server.port()), &variables);
    assert!(is_done, "{said}");
    assert_eq!(place.server.tags("team/web"), ["v1"]);
}

#[test]
fn a_registry_elsewhere_is_pushed_to_in_the_open_only_where_the_user_says_so() {
    let place = Place::with(&peer!(docker_registry), false);
    let tunnels = Tunnels::start(&place.server, true);
    let proxy = tunnels.address("");
    let variables = [("HTTPS_PROXY", proxy.as_str()), ("HTTP_PROXY", &proxy)];
    let other = format!("registry.example:{}", place.server.port() ^ 1);
    let (is_done, said) = place.push_with(&place.host(), &variables, &["--insecure-registry", &other]);
    assert!(!is_done, "{said}");
    assert!(said.contains(&format!("--insecure-registry {}", place.host())), "{said}");
    let log = tunnels.log();
    assert!(!log.is_empty() && log.iter().all(|line| *line == format!("{}: 200", place.host())), "{log:#?}");
    assert_eq!(place.server.tags("team/web"), [""; 0]);

    let (is_done, said) = place.push_with(&place.host(), &variables, &["--insecure-registry", &place.host()]);
    assert!(is_done, "{said}");
    let log = tunnels.log();
    assert!(log.iter().all(|line| *line == format!("in the open: {}: 200", place.host())), "{log:#?}");
    assert_eq!(place.server.tags("team/web"), ["v1"]);
}
