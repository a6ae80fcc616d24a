//! Binary caches: NARs to layers, in bytes of tar per second for each compression; closures over a link on which every
//! answer takes 50 ms, in paths per second.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![allow(clippy::print_stderr, reason = "a codec that cannot be measured is named")]
#![allow(missing_docs, reason = "criterion's macros make public items")]

mod corpus;
#[path = "../tests/fuzz/src/nar_writer.rs"]
#[allow(unreachable_pub, reason = "a crate of its own to the fuzz targets")]
mod nar_writer;

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use layerhold::event::Silent;
use layerhold::nix::{Closure, ContentHash, Hashing, LocalStore, NoMemo, Source, StorePath};
use layerhold::pack::{Compression, LayerContents, Packer};
use layerhold::substitute::{Caches, NoCacheMemory, Settings};
use nar_writer::NarWriter;
use sha2::{Digest as _, Sha256};

/// What each answer takes.
const LATENCY: Duration = Duration::from_millis(50);
/// Questions under way at once, as many as the program has.
const CONNECTIONS: usize = 48;

fn caches(address: &str, connections: usize) -> Caches<'static> {
    let settings = Settings { addresses: vec![address.parse().unwrap()], connections, ..Settings::default() };
    Caches::new(settings, &NoCacheMemory, &Silent, 0).unwrap()
}

/// A narinfo without a signature.
fn narinfo(path: &StorePath, compression: &str, nar: &[u8], references: &[&StorePath]) -> String {
    let hash = ContentHash::Nar(Sha256::digest(nar).into());
    let references: Vec<_> = references.iter().map(|path| path.base_name()).collect();
    format!(
        "StorePath: {path}\nURL: {}.nar\nCompression: {compression}\nNarHash: {hash}\nNarSize: {}\nReferences: {}\n",
        path.hash_part(),
        nar.len(),
        references.join(" ")
    )
}

/// Compressed as Nix does it by default; `None` where there is nothing to compress with.
fn compressed(compression: &str, nar: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match compression {
        "none" => bytes.extend_from_slice(nar),
        "zstd" => bytes = zstd::encode_all(nar, 3).unwrap(),
        "xz" => read_all(liblzma::read::XzEncoder::new(nar, 6), &mut bytes),
        "gzip" => read_all(flate2::read::GzEncoder::new(nar, flate2::Compression::new(6)), &mut bytes),
        "bzip2" => read_all(bzip2::read::BzEncoder::new(nar, bzip2::Compression::new(6)), &mut bytes),
        // Of brotli the product has only the reading half.
        _ => {
            let brotli = Command::new("brotli").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
            let mut brotli = brotli.ok()?;
            let (mut stdin, nar) = (brotli.stdin.take().unwrap(), nar.to_vec());
            let written = thread::spawn(move || stdin.write_all(&nar));
            bytes = brotli.wait_with_output().unwrap().stdout;
            written.join().unwrap().unwrap();
        }
    }
    Some(bytes)
}

fn read_all(mut reader: impl Read, bytes: &mut Vec<u8>) {
    reader.read_to_end(bytes).unwrap();
}

fn nars(criterion: &mut Criterion) {
    let place = tempfile::tempdir().unwrap();
    let paths = corpus::write(&place.path().join("root"), 8);
    let hashing = Hashing { memo: &NoMemo, observer: &Silent, now: std::time::SystemTime::now() };
    let store = LocalStore::open(&place.path().join("root"), hashing).unwrap();
    let nars: Vec<_> = paths
        .iter()
        .map(|path| {
            let mut writer = NarWriter::default();
            store.walk(path, &mut writer).unwrap();
            writer.finish()
        })
        .collect();

    let mut group = criterion.benchmark_group("NAR to layer");
    group.sample_size(10);
    for compression in ["none", "zstd", "xz", "gzip", "bzip2", "br"] {
        let directory = place.path().join(compression);
        fs::create_dir(&directory).unwrap();
        if !fill(&directory, compression, &paths, &nars) {
            eprintln!("NAR to layer/{compression}: not measured, for want of a program that compresses so");
            continue;
        }
        let caches = caches(&format!("file://{}", directory.display()), CONNECTIONS);
        let closure = Closure::compute(&caches, paths.clone()).unwrap();
        let layer = || LayerContents::StorePaths(closure.paths().collect());
        let packer = Packer::new(&caches, Compression::None, &Silent);
        let packed = packer.pack(&layer(), &mut io::sink()).unwrap();
        group.throughput(Throughput::Bytes(packed.tar_size));
        group.bench_function(compression, |bencher| {
            bencher.iter(|| packer.pack(&layer(), &mut io::sink()).unwrap());
        });
    }
    group.finish();
}

/// Writes a cache; says whether it could be compressed.
fn fill(directory: &Path, compression: &str, paths: &[StorePath], nars: &[Vec<u8>]) -> bool {
    paths.iter().zip(nars).all(|(path, nar)| {
        let Some(bytes) = compressed(compression, nar) else { return false };
        fs::write(directory.join(format!("{}.nar", path.hash_part())), bytes).unwrap();
        let text = narinfo(path, compression, nar, &[]);
        fs::write(directory.join(format!("{}.narinfo", path.hash_part())), text).unwrap();
        true
    })
}

/// Serves files from memory, each answer after [`LATENCY`]; for as long as the bench runs.
fn serve(files: HashMap<String, String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files = Arc::new(files);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let files = Arc::clone(&files);
            // A client that goes away is none of the server's concern.
            thread::spawn(move || drop(answer(stream, &files)));
        }
    });
    address
}

fn answer(mut stream: TcpStream, files: &HashMap<String, String>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(question) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
        thread::sleep(LATENCY);
        let name = question.split(' ').nth(1).unwrap_or_default().trim_start_matches('/');
        let (status, body) = files.get(name).map_or(("404 Not Found", ""), |body| ("200 OK", body));
        stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    }
    Ok(())
}

fn closures(criterion: &mut Criterion) {
    let path = |n: usize| StorePath::synthetic(blake3::hash(&n.to_le_bytes()).as_bytes(), "package-1.0").unwrap();
    let mut group = criterion.benchmark_group("closure at 50 ms an answer");
    group.sample_size(10);
    // Each path refers to two others, so that a thousand are ten deep. One question after the other is measured with fewer
    // paths, for a thousand would take a minute.
    for (name, paths, connections) in
        [("1000 paths, 48 questions at once", 1000, CONNECTIONS), ("40 paths, one question at a time", 40, 1)]
    {
        let all: Vec<_> = (0..paths).map(path).collect();
        let files = all.iter().enumerate().map(|(n, path)| {
            let references: Vec<_> = [2 * n + 1, 2 * n + 2].into_iter().filter_map(|n| all.get(n)).collect();
            (format!("{}.narinfo", path.hash_part()), narinfo(path, "none", path.base_name().as_bytes(), &references))
        });
        let address = serve(files.collect());
        group.throughput(Throughput::Elements(paths as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let caches = caches(&address, connections);
                let closure = Closure::compute(&caches, [all[0].clone()]).unwrap();
                assert_eq!(closure.paths().count(), paths);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, nars, closures);
criterion_main!(benches);
