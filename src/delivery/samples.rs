//! Images, providers and runtimes for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{BlobError, BlobProvider, Delivered, DeliveryError, Past, Runtime, RuntimeClient, Sink};
use crate::blob::{DiffId, Digest};
use crate::event::{Event, Observer};
use crate::image::{Image, ImageName, ImageSpec, Images, Layer, LayerMediaType};
use crate::outlet::Outlet;

/// A layer that is these bytes.
pub(super) fn layer(bytes: &[u8]) -> Layer {
    Layer {
        digest: Digest::of(bytes),
        diff_id: DiffId(Digest::of(bytes)),
        size: bytes.len() as u64,
        media_type: LayerMediaType::Tar,
        store_paths: vec![],
        reused: true,
    }
}

/// An image of layers that are these texts, named `hello:TAG`, with its blobs.
pub(super) fn image(tag: &str, layers: &[&str]) -> (Image, Blobs) {
    let spec = ImageSpec::new(ImageName::new("hello", tag).unwrap(), "amd64");
    let image = Image::assemble(spec, layers.iter().map(|text| layer(text.as_bytes())).collect()).unwrap();
    let blobs = layers.iter().map(|text| (Digest::of(text.as_bytes()), text.as_bytes().to_vec())).collect();
    let delivered = BTreeMap::new();
    (
        image,
        Blobs {
            blobs,
            ending: Ending::Whole,
            threads: 1,
            made: false,
            pours: false,
            poured: Mutex::default(),
            asked: Mutex::default(),
            delivered,
        },
    )
}

/// Delivers one image.
pub(super) fn deliver(
    image: &Image,
    provider: &dyn BlobProvider,
    sink: &mut dyn Sink,
    observer: &dyn Observer,
) -> Result<Delivered, DeliveryError> {
    super::deliver(&Images::from(image.clone()), provider, sink, observer)
}

/// Images of these layers, one a platform, named `hello:TAG`, with an index and all blobs.
pub(super) fn index(tag: &str, platforms: &[(&str, &[&str])]) -> (Images, Blobs) {
    let (_, mut blobs) = image(tag, &[]);
    let mut images = Vec::new();
    for (architecture, layers) in platforms {
        let spec = ImageSpec::new(ImageName::new("hello", tag).unwrap(), architecture);
        let layers_of = layers.iter().map(|text| layer(text.as_bytes())).collect();
        images.push(Image::assemble(spec, layers_of).unwrap());
        blobs.blobs.append(&mut image(tag, layers).1.blobs);
    }
    (Images::assemble(ImageName::new("hello", tag).unwrap(), images).unwrap(), blobs)
}

/// What a provider does at the end of each blob but the first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// Nothing special.
    Whole,
    /// All bytes were written, but they turn out to be wrong.
    Wrong,
    /// The last byte is missing, and nobody says so.
    Short,
    /// The bytes break off.
    Broken,
}

/// Blobs in memory.
pub(super) struct Blobs {
    blobs: BTreeMap<Digest, Vec<u8>>,
    ending: Ending,
    threads: usize,
    /// Whether their bytes need only be read.
    made: bool,
    /// Whether every other blob, in the order of their digests, can be poured.
    pours: bool,
    /// The blobs that were poured.
    pub(super) poured: Mutex<Vec<Digest>>,
    /// The blobs that were asked for, in order.
    pub(super) asked: Mutex<Vec<Digest>>,
    /// The blobs of images that were delivered before, by their manifests.
    pub(super) delivered: BTreeMap<Digest, BTreeSet<Digest>>,
}

impl Blobs {
    /// The same blobs, with another ending.
    pub(super) fn ending(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    /// The same blobs, with a memory of what was delivered.
    pub(super) fn with_past<'a>(&'a self, past: &'a dyn Past) -> impl BlobProvider + 'a {
        WithPast { blobs: self, past }
    }

    /// The same blobs, every other of which can be poured.
    pub(super) fn pouring(mut self) -> Self {
        self.pours = true;
        self
    }

    /// The same blobs, as a layer store keeps them.
    pub(super) fn made(mut self) -> Self {
        self.made = true;
        self
    }

    /// The same blobs, to be made on so many threads.
    pub(super) fn on_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }
}

impl BlobProvider for Blobs {
    fn past(&self) -> &dyn Past {
        self
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn is_made(&self, _: &Layer) -> bool {
        self.made
    }

    fn may_pour(&self, _: &Layer) -> bool {
        self.pours
    }

    fn pours(&self, layer: &Layer) -> bool {
        self.pours && self.blobs.keys().position(|digest| *digest == layer.digest).is_some_and(|at| at % 2 == 0)
    }

    fn copy_to(&self, layer: &Layer, out: &mut dyn Outlet) -> Result<(), BlobError> {
        let blob = self.blobs.get(&layer.digest).ok_or_else(|| BlobError::Source("no such blob".into()))?;
        let first = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(layer.digest);
            asked.len() == 1
        };
        let (bytes, end) = match self.ending {
            Ending::Short if !first => (&blob[..blob.len() - 1], Ok(())),
            Ending::Broken if !first => (&blob[..1], Err(BlobError::Source("it broke off".into()))),
            Ending::Wrong if !first => (&blob[..], Err(BlobError::Source("wrong digest".into()))),
            _ => (&blob[..], Ok(())),
        };
        if out.takes_pages() {
            self.poured.lock().unwrap().push(layer.digest);
        }
        // In pieces, as real ones come.
        for piece in bytes.chunks(4096) {
            out.write_all(piece).map_err(BlobError::Write)?;
        }
        end
    }
}

impl Past for Blobs {
    fn blobs_of(&self, manifest: &Digest) -> BTreeSet<Digest> {
        self.delivered.get(manifest).cloned().unwrap_or_default()
    }
}

/// Remembers files in memory.
#[derive(Default)]
pub(super) struct Remembering(pub(super) Mutex<Vec<Remembered>>);

/// A file, what it was given, and the token of how it was left.
pub(super) type Remembered = (PathBuf, [u8; 32], [u8; 32]);

impl Past for Remembering {
    fn knows_output(&self, file: &Path, token: &[u8; 32]) -> bool {
        self.0.lock().unwrap().iter().any(|known| known.0 == file && known.2 == *token)
    }

    fn outputs_with(&self, contents: &[u8; 32]) -> Vec<PathBuf> {
        let known = self.0.lock().unwrap();
        known.iter().rev().filter(|known| known.1 == *contents).map(|known| known.0.clone()).collect()
    }

    fn remember_output(&self, file: &Path, contents: &[u8; 32], token: &[u8; 32]) {
        self.forget_output(file);
        self.0.lock().unwrap().push((file.to_owned(), *contents, *token));
    }

    fn forget_output(&self, file: &Path) {
        self.0.lock().unwrap().retain(|known| known.0 != file);
    }
}

struct WithPast<'a> {
    blobs: &'a Blobs,
    past: &'a dyn Past,
}

impl BlobProvider for WithPast<'_> {
    fn past(&self) -> &dyn Past {
        self.past
    }

    fn copy_to(&self, layer: &Layer, out: &mut dyn Outlet) -> Result<(), BlobError> {
        self.blobs.copy_to(layer, out)
    }
}

/// Keeps events, and wants the run to end once it has seen so many of them.
pub(super) struct Watcher {
    pub(super) seen: Mutex<Vec<Event>>,
    patience: AtomicUsize,
}

impl Watcher {
    pub(super) fn patient_for(events: usize) -> Self {
        Self { seen: Default::default(), patience: AtomicUsize::new(events) }
    }
}

impl Observer for Watcher {
    fn event(&self, event: Event) {
        self.seen.lock().unwrap().push(event);
        let _ = self.patience.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    }

    fn cancelled(&self) -> bool {
        self.patience.load(Ordering::SeqCst) == 0
    }
}

/// A program that behaves as a runtime does, as far as delivery can see. Its state lies in `$FAKE`:
/// `images` is what it lists, `blobs` what layers it has, `calls` what was asked of it. A file `fail-COMMAND` there is
/// a script that runs first, in the same shell.
const FAKE: &str = r#"#!/bin/sh
set -eu
cd "$FAKE"
echo "$*" >> calls
[ ! -e "fail-$1" ] || . "./fail-$1"
case "$1" in
image)
    case "$2" in
    ls) cat images ;;
    inspect)
        format=$4
        shift 4
        for image; do
            id=$(grep -e " $image\$" -e "$image " images | head -n 1 | cut -d ' ' -f 1)
            [ -n "$id" ] || { echo "no such image: $image" >&2; missing=1; continue; }
            case "$format" in
            *json*)
                layers=$(cat "layers-$id" 2>/dev/null || echo null)
                driver="{\"Name\":\"$(cat driver)\",\"Data\":$(cat driver-data 2>/dev/null || echo null)}"
                echo "{\"Id\":\"$id\",\"RootFS\":{\"Layers\":$layers},\"GraphDriver\":$driver}" ;;
            *) echo "$id" ;;
            esac
        done
        exit "${missing:-0}" ;;
    esac ;;
load)
    rm -rf in
    mkdir in
    tar -x -C in
    config=$(sed 's/.*"Config":"blobs.sha256.\([0-9a-f]*\)".*/\1/' in/manifest.json)
    name=$(sed 's/.*"RepoTags":\["\([^"]*\)".*/\1/' in/manifest.json)
    for blob in $(sed 's/.*"Layers":\[\([^]]*\)\].*/\1/; s/[",]/ /g' in/manifest.json); do
        [ -e "in/$blob" ] || [ -e "blobs/${blob##*/}" ] || { echo "no such layer: $blob" >&2; exit 1; }
    done
    cp in/blobs/sha256/* blobs
    sed 's/.*"diff_ids":\(\[[^]]*\]\).*/\1/' "blobs/$config" > "layers-sha256:$config"
    echo >> "layers-sha256:$config"
    sed -i "s|^\([^ ]*\) $name\$|\1 <none>:<none>|" images
    echo "sha256:$config $name" >> images ;;
tag)
    grep -q "$2" images || { echo "no such image: $2" >&2; exit 1; }
    sed -i "s|^\([^ ]*\) $3\$|\1 <none>:<none>|" images
    echo "sha256:${2#sha256:} $3" >> images ;;
info) echo '[["Backing Filesystem","extfs"]]' ;;
version) cat version ;;
esac
"#;

/// Puts a fake runtime into `dir` and gives a client of it.
pub(super) fn fake(runtime: Runtime, dir: &Path) -> RuntimeClient {
    fs::create_dir_all(dir.join("blobs")).unwrap();
    fs::write(dir.join("images"), "").unwrap();
    fs::write(dir.join("calls"), "").unwrap();
    fs::write(dir.join("driver"), "overlay2").unwrap();
    fs::write(dir.join("version"), "20.10.24+dfsg1\n").unwrap();
    let program = dir.join(runtime.program());
    // Written by another process: a descriptor that is open for writing in a forked child of another test's thread
    // would make the program "busy".
    let script = dir.join("script");
    fs::write(&script, FAKE).unwrap();
    let copied = std::process::Command::new("cp").arg(&script).arg(&program).status().unwrap();
    assert!(copied.success());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    RuntimeClient::find(runtime, Some(dir.as_os_str())).unwrap().with_env("FAKE", dir)
}

/// Makes a command of a fake runtime run this script instead.
pub(super) fn sabotage(dir: &Path, command: &str, script: &str) {
    fs::write(dir.join(format!("fail-{command}")), script).unwrap();
}
