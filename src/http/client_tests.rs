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
