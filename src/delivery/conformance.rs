//! What every sink owes, whatever it writes to: one suite over all of them.

use std::cell::RefCell;
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;

use rstest::rstest;

use super::samples::{Blobs, Ending, Watcher, deliver, fake, image, index};
use super::{DeliveryError, FileSink, LayoutSink, NoPast, RegistrySink, Runtime, Sink, StreamSink};
use crate::blob::Digest;
use crate::event::{Event, Observer, Silent, Stage};
use crate::image::{Image, Images};
use crate::outlet::Copied;
use crate::registry::stand_in::StandIn;
use crate::registry::{Registries, Settings};

/// A target of one kind, new and empty.
trait Bench {
    /// A sink on the target.
    fn sink<'a>(&'a self, observer: &'a dyn Observer) -> Box<dyn Sink + 'a>;
    /// All that others see of the target.
    fn visible(&self) -> Vec<(String, Vec<u8>)>;
    /// Whether the target knows what it has, so that nothing is sent twice.
    fn keeps(&self) -> bool;
}

struct FileBench(tempfile::TempDir);

impl Bench for FileBench {
    fn sink<'a>(&'a self, _: &'a dyn Observer) -> Box<dyn Sink + 'a> {
        Box::new(FileSink::new(self.0.path().join("image.tar")))
    }

    fn visible(&self) -> Vec<(String, Vec<u8>)> {
        files(self.0.path())
    }

    fn keeps(&self) -> bool {
        false
    }
}

/// Standard output, as a reader takes it who goes by what a tar reader says of the last stream.
#[derive(Default)]
struct StreamBench(Rc<RefCell<Vec<u8>>>);

struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Bench for StreamBench {
    fn sink<'a>(&'a self, _: &'a dyn Observer) -> Box<dyn Sink + 'a> {
        self.0.borrow_mut().clear();
        Box::new(StreamSink::new(Copied(Shared(self.0.clone()))))
    }

    fn visible(&self) -> Vec<(String, Vec<u8>)> {
        let entries = whole_archive(&self.0.borrow());
        entries.into_iter().flatten().collect()
    }

    fn keeps(&self) -> bool {
        false
    }
}

struct LayoutBench(tempfile::TempDir);

impl Bench for LayoutBench {
    fn sink<'a>(&'a self, observer: &'a dyn Observer) -> Box<dyn Sink + 'a> {
        Box::new(LayoutSink::new(self.0.path().join("layout"), observer))
    }

    /// The images: blobs that no index names are seen by nobody.
    fn visible(&self) -> Vec<(String, Vec<u8>)> {
        let left: Vec<_> = files(self.0.path()).into_iter().filter(|(path, _)| path.contains(".layerhold-")).collect();
        assert!(left.is_empty(), "temporary files stay behind");
        fs::read(self.0.path().join("layout/index.json")).into_iter().map(|index| ("index".to_owned(), index)).collect()
    }

    fn keeps(&self) -> bool {
        true
    }
}

struct RuntimeBench(tempfile::TempDir, super::RuntimeClient);

impl RuntimeBench {
    fn new(runtime: Runtime) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let client = fake(runtime, dir.path());
        Self(dir, client)
    }
}

impl Bench for RuntimeBench {
    fn sink<'a>(&'a self, observer: &'a dyn Observer) -> Box<dyn Sink + 'a> {
        Box::new(self.1.sink(observer))
    }

    fn visible(&self) -> Vec<(String, Vec<u8>)> {
        vec![("images".to_owned(), fs::read(self.0.path().join("images")).unwrap())]
    }

    fn keeps(&self) -> bool {
        true
    }
}

/// A repository of a registry.
struct RegistryBench(StandIn);

impl Bench for RegistryBench {
    fn sink<'a>(&'a self, observer: &'a dyn Observer) -> Box<dyn Sink + 'a> {
        let registries = Registries::new(Settings::default(), observer);
        let repository = registries.repository(&self.0.reference("team/app:v1").parse().unwrap());
        Box::new(RegistrySink::new(repository, observer))
    }

    /// What the tag leads to: blobs that no manifest names are seen by nobody.
    fn visible(&self) -> Vec<(String, Vec<u8>)> {
        let kept = self.0.kept();
        kept.manifests.get("v1").map(|manifest| ("v1".to_owned(), manifest.clone())).into_iter().collect()
    }

    fn keeps(&self) -> bool {
        true
    }
}

/// Every file below a directory.
pub(super) fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.display().to_string(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

/// The entries of a tar, if it is whole and names an image to any reader.
pub(super) fn whole_archive(bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut entries = Vec::new();
    for entry in tar::Archive::new(bytes).entries().ok()? {
        let mut entry = entry.ok()?;
        let path = entry.path().ok()?.display().to_string();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).ok()?;
        if contents.len() as u64 != entry.size() {
            return None;
        }
        entries.push((path, contents));
    }
    entries.iter().any(|(path, _)| path == "index.json" || path == "manifest.json").then_some(entries)
}

fn bench(kind: &str) -> Box<dyn Bench> {
    match kind {
        "file" => Box::new(FileBench(tempfile::tempdir().unwrap())),
        "stream" => Box::new(StreamBench::default()),
        "layout" => Box::new(LayoutBench(tempfile::tempdir().unwrap())),
        "docker" => Box::new(RuntimeBench::new(Runtime::Docker)),
        "registry" => Box::new(RegistryBench(StandIn::start())),
        "podman" => Box::new(RuntimeBench::new(Runtime::Podman)),
        other => panic!("no such sink: {other}"),
    }
}

/// Larger than a pipe, so that a failure comes while the other side reads.
fn sample() -> (Image, Blobs) {
    let (large, top) = ("large".repeat(100_000), "top".repeat(100_000));
    image("v1", &["base", &large, &top, &large])
}

#[rstest]
fn an_image_arrives_whole_and_each_blob_once(
    #[values("file", "stream", "layout", "docker", "podman", "registry")] kind: &str,
) {
    let bench = bench(kind);
    let (image, blobs) = sample();
    let watcher = Watcher::patient_for(usize::MAX);
    let before = bench.visible();
    let delivered = deliver(&image, &blobs, &mut *bench.sink(&watcher), &watcher).unwrap();
    assert_ne!(bench.visible(), before);
    assert_eq!((delivered.layers_sent, delivered.layers_held), (3, 0));
    assert_eq!(delivered.bytes_sent, image.layers[..3].iter().map(|layer| layer.size).sum::<u64>());
    let lowest_first: Vec<_> = image.layers[..3].iter().map(|layer| layer.digest).collect();
    assert_eq!(*blobs.asked.lock().unwrap(), lowest_first);

    let seen = watcher.seen.lock().unwrap();
    let advanced: u64 = seen.iter().map(|event| if let Event::Advanced { bytes } = event { *bytes } else { 0 }).sum();
    assert_eq!(advanced, delivered.bytes_sent);
    assert_eq!(seen.first(), Some(&Event::Started { stage: Stage::Delivering, total_bytes: delivered.bytes_sent }));
    assert_eq!(seen.last(), Some(&Event::Finished { stage: Stage::Delivering }));
}

#[rstest]
fn a_second_delivery_sends_nothing(#[values("layout", "docker", "podman", "registry")] kind: &str) {
    let bench = bench(kind);
    assert!(bench.keeps());
    let (image, blobs) = sample();
    deliver(&image, &blobs, &mut *bench.sink(&Silent), &Silent).unwrap();
    let held = bench.sink(&Silent).has(&image.clone().into(), &NoPast).unwrap();
    assert_eq!(held, image.layers.iter().map(|layer| layer.digest).collect());
    let (before, asked) = (bench.visible(), blobs.asked.lock().unwrap().len());
    let again = deliver(&image, &blobs, &mut *bench.sink(&Silent), &Silent).unwrap();
    assert_eq!((again.layers_sent, again.layers_held, again.bytes_sent), (0, 3, 0));
    assert_eq!(blobs.asked.lock().unwrap().len(), asked);
    assert_eq!(bench.visible(), before);
}

#[rstest]
fn only_what_changed_is_sent(#[values("layout", "docker", "podman", "registry")] kind: &str) {
    let bench = bench(kind);
    let (first, blobs) = image("v1", &["base", "middle", "top"]);
    deliver(&first, &blobs, &mut *bench.sink(&Silent), &Silent).unwrap();
    let (second, blobs) = image("v1", &["base", "middle", "new top"]);
    let delivered = deliver(&second, &blobs, &mut *bench.sink(&Silent), &Silent).unwrap();
    assert_eq!((delivered.layers_sent, delivered.layers_held), (1, 2));
    assert_eq!(*blobs.asked.lock().unwrap(), [second.layers[2].digest]);
}

#[rstest]
fn bad_bytes_leave_the_target_as_it_was(
    #[values("file", "stream", "layout", "docker", "podman", "registry")] kind: &str,
    #[values(Ending::Wrong, Ending::Short, Ending::Broken)] ending: Ending,
    #[values(false, true)] with_an_older_image: bool,
) {
    let bench = bench(kind);
    if with_an_older_image && kind != "stream" {
        let (older, blobs) = image("v1", &["base", "older"]);
        deliver(&older, &blobs, &mut *bench.sink(&Silent), &Silent).unwrap();
    }
    let before = bench.visible();
    // "base" is the first blob asked for, or it is there already; "extra" takes its place then.
    let (image, blobs) = image("v1", &["base", "extra", &"wrong".repeat(100_000)]);
    let error = deliver(&image, &blobs.ending(ending), &mut *bench.sink(&Silent), &Silent).unwrap_err();
    match ending {
        Ending::Short => assert!(matches!(error, DeliveryError::LayerSize { .. }), "{error}"),
        _ => assert!(matches!(error, DeliveryError::Layer { .. }), "{error}"),
    }
    assert_eq!(bench.visible(), before);
}

#[rstest]
fn an_interruption_leaves_the_target_as_it_was(
    #[values("file", "stream", "layout", "docker", "podman", "registry")] kind: &str,
    #[values(1, 5, 150)] events: usize,
) {
    let bench = bench(kind);
    let before = bench.visible();
    let (image, blobs) = sample();
    let watcher = Watcher::patient_for(events);
    let error = deliver(&image, &blobs, &mut *bench.sink(&watcher), &watcher).unwrap_err();
    assert!(matches!(error, DeliveryError::Interrupted), "{error}");
    assert_eq!(bench.visible(), before);
}

#[rstest]
fn an_image_without_layers_arrives(#[values("file", "stream", "layout", "docker", "podman", "registry")] kind: &str) {
    let bench = bench(kind);
    let before = bench.visible();
    let (image, blobs) = image("v1", &[]);
    deliver(&image, &blobs, &mut *bench.sink(&Silent), &Silent).unwrap();
    assert_ne!(bench.visible(), before);
}

/// Two platforms that share a layer; the second has one twice.
fn two_platforms(tag: &str) -> (Images, Blobs) {
    index(tag, &[("amd64", &["base", "for amd64"]), ("arm64", &["for arm64", "base", "for arm64"])])
}

#[rstest]
fn images_of_two_platforms_arrive_whole_and_each_blob_once(
    #[values("file", "stream", "layout", "registry")] kind: &str,
) {
    let bench = bench(kind);
    let (images, blobs) = two_platforms("v1");
    let before = bench.visible();
    let delivered = super::deliver(&images, &blobs, &mut *bench.sink(&Silent), &Silent).unwrap();
    assert_ne!(bench.visible(), before);
    assert_eq!((delivered.layers_sent, delivered.layers_held), (3, 0));
    let expected: Vec<_> = ["base", "for amd64", "for arm64"].map(|text| Digest::of(text.as_bytes())).into();
    assert_eq!(*blobs.asked.lock().unwrap(), expected);
    if bench.keeps() {
        let before = bench.visible();
        let again = super::deliver(&images, &blobs, &mut *bench.sink(&Silent), &Silent).unwrap();
        assert_eq!((again.layers_sent, again.layers_held), (0, 3));
        assert_eq!(bench.visible(), before);
    }
}

#[rstest]
fn bad_bytes_of_a_second_platform_leave_the_target_as_it_was(
    #[values("file", "stream", "layout", "registry")] kind: &str,
    #[values(Ending::Wrong, Ending::Short, Ending::Broken)] ending: Ending,
) {
    let bench = bench(kind);
    let before = bench.visible();
    let (images, blobs) = two_platforms("v1");
    super::deliver(&images, &blobs.ending(ending), &mut *bench.sink(&Silent), &Silent).unwrap_err();
    assert_eq!(bench.visible(), before);
}

#[rstest]
fn a_runtime_is_not_even_asked_for_several_platforms(#[values(Runtime::Docker, Runtime::Podman)] runtime: Runtime) {
    let bench = RuntimeBench::new(runtime);
    let (images, blobs) = two_platforms("v1");
    let error = super::deliver(&images, &blobs, &mut *bench.sink(&Silent), &Silent).unwrap_err();
    assert_eq!(error.to_string(), format!("{runtime} takes an image for one platform, not for several at once"));
    assert!(error.hint().unwrap().contains("--file image.tar"));
    assert_eq!(fs::read(bench.0.path().join("calls")).unwrap(), b"");
    assert!(blobs.asked.lock().unwrap().is_empty());
}
