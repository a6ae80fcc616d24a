use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use tokio::runtime::Runtime;

use super::*;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// The head of a request.
fn head(stream: &TcpStream) -> io::Result<String> {
    let (mut reader, mut head) = (BufReader::new(stream.try_clone()?), String::new());
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    Ok(head)
}

/// A server that gives everybody the same answer: where it is, and the heads of the requests.
fn server(answer: &'static str) -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (send, asked) = channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            send.send(head(&stream).unwrap()).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (port, asked)
}

#[test]
fn this_machine_is_told_by_dockers_rule() {
    for (address, is_here) in [
        ("http://localhost:5000/v2/", true),
        ("https://127.0.0.1/", true),
        ("https://127.255.0.9:5000/", true),
        ("https://[::1]:5000/", true),
        ("https://registry.example/127.0.0.1", false),
        ("https://localhost.example/", false),
        ("http://10.0.0.1/", false),
        ("http://0.0.0.0/", false),
    ] {
        assert_eq!(is_loopback(&Url::parse(address).unwrap()), is_here, "{address}");
    }
}

#[test]
fn what_is_sent_on_from_this_machine_to_another_one_goes_through_the_proxy_and_shows_no_login() {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfile";
    const ELSEWHERE: &str = "HTTP/1.1 307 Elsewhere\r\nLocation: http://storage.example/file\r\n\
                             Content-Length: 0\r\nConnection: close\r\n\r\n";
    let ((here, asked_here), (proxy, asked_proxy)) = (server(ELSEWHERE), server(OK));
    let client = Client::new(1, Vec::new());
    // In the place of the environment's.
    let proxy = reqwest::Proxy::all(format!("http://127.0.0.1:{proxy}")).unwrap();
    client.elsewhere.set(Ok(client.builder(false).proxy(proxy).build().unwrap())).unwrap();
    let url = Url::parse(&format!("http://127.0.0.1:{here}/file")).unwrap();
    let text = runtime().block_on(async {
        let request = client.get(&url).unwrap().get(url).basic_auth("id", Some("s3cret")).header("Range", "bytes=7-");
        client.send(request).await.unwrap().text().await.unwrap()
    });
    assert_eq!(text, "file");
    let first = asked_here.recv().unwrap().to_lowercase();
    assert!(first.starts_with("get /file ") && first.contains("authorization: basic"), "{first}");
    let second = asked_proxy.recv().unwrap().to_lowercase();
    assert!(second.starts_with("get http://storage.example/file ") && second.contains("range: bytes=7-"), "{second}");
    assert!(!second.contains("authorization"), "{second}");
}

/// Kinds of frames and their flags (RFC 9113, 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200`, as HPACK has it in its table.
const OK: u8 = 0x88;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A server of HTTP/2 without TLS: answers every question with so many bytes, as soon as the client lets it.
fn serve_http2(mut client: TcpStream, size: usize) -> io::Result<()> {
    use std::io::Read;
    let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap()) & 0x7fff_ffff;
    client.read_exact(&mut [0; 24])?;
    client.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let (mut of_connection, mut of_stream) = (65_535, 65_535);
    // What may still be sent on a stream, and what is left to send.
    let mut streams: std::collections::BTreeMap<u32, (usize, usize)> = Default::default();
    loop {
        let mut head = [0; 9];
        client.read_exact(&mut head)?;
        let (kind, flags, stream) = (head[3], head[4], number(&head[5..]));
        let mut payload = vec![0; number(&[0, head[0], head[1], head[2]]) as usize];
        client.read_exact(&mut payload)?;
        match kind {
            SETTINGS if flags & ACK == 0 => {
                let initial = payload.chunks_exact(6).find(|setting| setting[..2] == [0, 4]);
                of_stream = initial.map_or(of_stream, |setting| number(&setting[2..]) as usize);
                client.write_all(&frame(SETTINGS, ACK, 0, &[]))?;
            }
            PING if flags & ACK == 0 => client.write_all(&frame(PING, ACK, 0, &payload))?,
            HEADERS => {
                streams.insert(stream, (of_stream, size));
                client.write_all(&frame(HEADERS, END_HEADERS, stream, &[OK]))?;
            }
            WINDOW_UPDATE if stream == 0 => of_connection += number(&payload) as usize,
            WINDOW_UPDATE => {
                if let Some((window, _)) = streams.get_mut(&stream) {
                    *window += number(&payload) as usize;
                }
            }
            _ => {}
        }
        for (stream, (window, left)) in &mut streams {
            while let length @ 1.. = (*left).min(*window).min(of_connection).min(16 << 10) {
                (*left, *window, of_connection) = (*left - length, *window - length, of_connection - length);
                let flags = if *left == 0 { END_STREAM } else { 0 };
                client.write_all(&frame(DATA, flags, *stream, &vec![7; length]))?;
            }
        }
    }
}

#[test]
fn files_that_nobody_reads_do_not_hold_up_the_one_that_somebody_reads() {
    const SIZE: usize = 3 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    // The client that goes away ends it.
    thread::spawn(move || serve_http2(listener.accept().unwrap().0, SIZE));
    let client = Client::new(1, Vec::new()).builder(true).http2_prior_knowledge().build().unwrap();
    runtime().block_on(async {
        let mut open = Vec::new();
        for _ in 0..16 {
            open.push(client.get(&url).send().await.unwrap());
        }
        let reading = async { client.get(&url).send().await.unwrap().bytes().await.unwrap() };
        let file = tokio::time::timeout(Duration::from_secs(30), reading).await.expect("it waits for the others");
        assert_eq!(file.len(), SIZE);
    });
}
