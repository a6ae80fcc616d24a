//! Ports of 127.0.0.1: servers that are programs of their own, and one where nobody listens.

use std::fs;
use std::io::{Read as _, Seek as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::peers::{find_program, skip_this};

/// Starts a server at a port that nobody has, and waits until it listens there: the process, and the port.
pub(crate) fn serve(command: impl Fn(u16) -> Command) -> (Child, u16) {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut log = tempfile::tempfile().unwrap();
        let into_log = || Stdio::from(log.try_clone().unwrap());
        let mut command = command(port);
        let mut server = command.stdin(Stdio::null()).stdout(into_log()).stderr(into_log()).spawn().unwrap();
        loop {
            if server.try_wait().unwrap().is_some() {
                let mut said = Vec::new();
                log.rewind().unwrap();
                log.read_to_end(&mut said).unwrap();
                let said = String::from_utf8_lossy(&said).to_lowercase();
                assert!(said.contains("address already in use"), "the server has ended: {said}");
                break;
            }
            // Another program may have taken the port meanwhile, and answer in this one's place.
            if listens(server.id(), port) && TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return (server, port);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Whether it is this process that listens at the port of 127.0.0.1 (proc_pid_net(5), proc_pid_fd(5)).
fn listens(process: u32, port: u16) -> bool {
    let sockets = fs::read_to_string(format!("/proc/{process}/net/tcp")).unwrap_or_default();
    let address = format!("0100007F:{port:04X}");
    let listening = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = listening.filter(|fields| fields.get(1) == Some(&address.as_str()) && fields.get(3) == Some(&"0A"));
    let names: Vec<_> =
        listening.filter_map(|fields| fields.get(9).map(|inode| PathBuf::from(format!("socket:[{inode}]")))).collect();
    let Ok(mut open) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    open.any(|file| file.and_then(|file| fs::read_link(file.path())).is_ok_and(|name| names.contains(&name)))
}

/// A port that refuses connections for as long as this is there, for nobody else can have it: it is the near end of a
/// connection.
pub(crate) struct ClosedPort {
    end: TcpStream,
    _other_end: TcpListener,
}

impl ClosedPort {
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { end: TcpStream::connect(listener.local_addr().unwrap()).unwrap(), _other_end: listener }
    }

    pub(crate) fn number(&self) -> u16 {
        self.end.local_addr().unwrap().port()
    }
}

#[test]
fn a_port_is_a_server_s_own_or_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(listens(std::process::id(), port));
    let mut another = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let is_anothers = listens(another.id(), port);
    let _ = (another.kill(), another.wait());
    assert!(!is_anothers);
    drop(listener);
    assert!(!listens(std::process::id(), port));
}

#[test]
fn a_server_whose_port_another_one_has_taken_gets_another() {
    let Some(python) = find_program("python3") else { return skip_this("python3") };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listener = TcpListener::bind(("127.0.0.1", taken)).unwrap();
    let tries = std::cell::Cell::new(0);
    let (mut server, port) = serve(|port| {
        tries.set(tries.get() + 1);
        let port = if tries.get() == 1 { taken } else { port };
        let mut command = Command::new(&python);
        command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]).current_dir("/proc/self");
        command
    });
    let is_its_own = listens(server.id(), port);
    let _ = (server.kill(), server.wait());
    assert!(is_its_own && port != taken && tries.get() == 2);
    drop(listener);
}

#[test]
fn a_closed_port_refuses_and_cannot_be_taken() {
    let closed = ClosedPort::new();
    let address = ("127.0.0.1", closed.number());
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(TcpListener::bind(address).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}
