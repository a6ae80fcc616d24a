//! An OCI image layout: a directory that holds any number of images, each blob once.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::image::{ANNOTATION_REF_NAME, ImageIndex, OciLayout};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::archive::{ANNOTATION_IMAGE_NAME, OCI_LAYOUT, blob_path};
use super::file::sync_parent;
use super::partial::{self, PartialFile};
use super::{DeliveryError, Finish, Missing, Past, Sink};
use crate::blob::{Digest, canonical_json};
use crate::event::Observer;
use crate::image::{ImageError, Images};

/// Adds an image, or several with their index, to the OCI image layout in a directory, which is made where it is missing or empty.
///
/// - A blob that is there with the right length is not written again. Blobs become visible whole, synchronised and
///   renamed, before `index.json` names them.
/// - `index.json` is read, changed and replaced under an advisory lock on `oci-layout`, so that of two processes
///   neither loses the other's image. An entry with the same reference name (`name:tag`) is replaced; whatever else
///   the index holds stays as it is.
/// - skopeo and Podman read only reference names of OCI's grammar (image-layout.md, "Annotations"): `a__b:v1`, which
///   Docker allows, is written as it is, but not found by them under that name.
pub struct LayoutSink<'a> {
    dir: PathBuf,
    observer: &'a dyn Observer,
}

/// How long to wait before another look at a lock that somebody holds.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

impl<'a> LayoutSink<'a> {
    /// A sink on the directory. Nothing is touched yet. The observer is asked while the sink waits for a lock.
    pub fn new(dir: impl Into<PathBuf>, observer: &'a dyn Observer) -> Self {
        Self { dir: dir.into(), observer }
    }

    fn foreign(&self, reason: impl Into<String>) -> DeliveryError {
        DeliveryError::NotALayout { dir: self.dir.clone(), reason: reason.into() }
    }

    /// Checks the layout that is there, or makes an empty one.
    fn prepare(&self) -> Result<(), DeliveryError> {
        match fs::metadata(&self.dir) {
            Ok(metadata) if !metadata.is_dir() => return Err(self.foreign("it is not a directory")),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.dir).map_err(failed("create", &self.dir))?;
            }
            Err(error) => return Err(failed("read", &self.dir)(error)),
        }
        let marker = self.dir.join("oci-layout");
        match fs::read(&marker) {
            Ok(contents) => {
                let layout: OciLayout = serde_json::from_slice(&contents)
                    .map_err(|error| self.foreign(format!("its file oci-layout is invalid: {error}")))?;
                // image-layout.md: the version of the layout as a whole; 1.x is read by readers of 1.0.
                if !layout.image_layout_version().starts_with("1.") {
                    return Err(self.foreign(format!("its version is '{}'", layout.image_layout_version())));
                }
                self.read_index().map(drop)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut entries = fs::read_dir(&self.dir).map_err(failed("read", &self.dir))?;
                // A process that makes the layout at the same time may have its temporary file here.
                let foreign = entries.find_map(|entry| match entry {
                    Ok(entry) if entry.file_name().as_encoded_bytes().starts_with(partial::PREFIX.as_bytes()) => None,
                    Ok(entry) => Some(entry.file_name()),
                    Err(_) => None,
                });
                // Looked at again, for such a process may be done by now.
                if let Some(name) = foreign.filter(|_| !marker.exists()) {
                    return Err(self.foreign(format!(
                        "it has no file oci-layout, but is not empty: there is '{}'",
                        name.display()
                    )));
                }
                // First of all, so that a run that is cut off leaves a layout, if an empty one.
                let temporary = self.temporary(OCI_LAYOUT)?;
                match temporary.persist_new(&marker) {
                    Ok(()) => {}
                    // Another process was faster, and wrote the same.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => return Err(failed("create", &marker)(error)),
                }
            }
            Err(error) => return Err(failed("read", &marker)(error)),
        }
        let blobs = self.dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(failed("create", &blobs))
    }

    /// The index; an empty one where there is none yet (a process may be between `oci-layout` and `index.json`).
    fn read_index(&self) -> Result<Value, DeliveryError> {
        let path = self.dir.join("index.json");
        let contents = match fs::read(&path) {
            Ok(contents) => contents,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(json!({
                    "schemaVersion": 2,
                    "mediaType": "application/vnd.oci.image.index.v1+json",
                    "manifests": [],
                }));
            }
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let invalid = |error: serde_json::Error| self.foreign(format!("its file index.json is invalid: {error}"));
        let value: Value = serde_json::from_slice(&contents).map_err(invalid)?;
        // Checked with OCI's types, but kept as it is: fields that those do not know shall stay.
        serde_json::from_value::<ImageIndex>(value.clone()).map_err(invalid)?;
        Ok(value)
    }

    /// A file in the layout's directory, synchronised, that is gone unless it is renamed.
    fn temporary(&self, contents: &[u8]) -> Result<PartialFile, DeliveryError> {
        let mut temporary = self.open_temporary()?;
        let write = |file: &mut File| {
            file.write_all(contents)?;
            file.sync_all()
        };
        write(temporary.as_file_mut()).map_err(failed("write", &self.dir))?;
        Ok(temporary)
    }

    /// Beside `blobs`, not in it: other tools take whatever lies there for blobs.
    fn open_temporary(&self) -> Result<PartialFile, DeliveryError> {
        PartialFile::new_in(&self.dir, 0o644).map_err(failed("write", &self.dir))
    }

    /// Whether a blob is there. Its length tells a whole one from one that another tool began and never finished.
    fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool, DeliveryError> {
        let path = self.dir.join(blob_path(digest));
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file() && metadata.len() == size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    fn put_bytes(&self, digest: &Digest, contents: &[u8]) -> Result<(), DeliveryError> {
        if self.has_blob(digest, contents.len() as u64)? {
            return Ok(());
        }
        self.commit(self.temporary(contents)?, &blob_path(digest))
    }

    fn commit(&self, temporary: PartialFile, path: &str) -> Result<(), DeliveryError> {
        let path = self.dir.join(path);
        temporary.persist(&path).map(drop).map_err(failed("write", &path))?;
        sync_parent(&path).map_err(failed("write", &path))
    }

    /// Holds the layout's lock until the file is closed.
    fn lock(&self) -> Result<File, DeliveryError> {
        let path = self.dir.join("oci-layout");
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("lock", &path))?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if self.observer.cancelled() => {
                    return Err(DeliveryError::Interrupted);
                }
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => std::thread::sleep(LOCK_INTERVAL),
                Err(error) => return Err(failed("lock", &path)(error.into())),
            }
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> DeliveryError + use<> {
    let path = path.to_owned();
    move |source| DeliveryError::Layout { action, path: path.clone(), source }
}

impl Sink for LayoutSink<'_> {
    fn has(&mut self, images: &Images, _: &dyn Past) -> Result<BTreeSet<Digest>, DeliveryError> {
        let is_new = fs::read_dir(&self.dir)
            .map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |mut entries| entries.next().is_none());
        let mut held = BTreeSet::new();
        if is_new {
            // Made when there is something to put.
            return Ok(held);
        }
        self.prepare()?;
        for layer in images.layers() {
            if self.has_blob(&layer.digest, layer.size)? {
                held.insert(layer.digest);
            }
        }
        Ok(held)
    }

    fn put(&mut self, missing: &Missing<'_>) -> Result<(), DeliveryError> {
        self.prepare()?;
        missing.at_once(|layer, bytes| {
            let mut temporary = self.open_temporary()?;
            let path = self.dir.join(blob_path(&layer.digest));
            bytes.copy_to(temporary.as_file_mut(), failed("write", &path))?;
            temporary.as_file().sync_all().map_err(failed("write", &path))?;
            self.commit(temporary, &blob_path(&layer.digest))
        })
    }

    fn finish(&mut self, images: &Images, _: &dyn Past) -> Result<Finish, DeliveryError> {
        for (digest, contents) in images.documents() {
            self.put_bytes(&digest, contents)?;
        }
        let name = images.name();
        let mut descriptor = images.descriptor()?;
        descriptor.set_annotations(Some(
            [
                // The whole name, so that one layout holds many images: podman pull oci:DIR:NAME:TAG.
                (ANNOTATION_REF_NAME, name.to_string()),
                (ANNOTATION_IMAGE_NAME, name.familiar_in_full()),
            ]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
        ));
        let entry = serde_json::to_value(&descriptor).map_err(ImageError::Json)?;

        let _lock = self.lock()?;
        let before = self.read_index()?;
        let mut index = before.clone();
        let Some(manifests) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
            return Err(self.foreign("its file index.json has no list of manifests"));
        };
        let names_it = |entry: &Value| entry["annotations"][ANNOTATION_REF_NAME] == name.to_string();
        match manifests.iter().position(names_it) {
            Some(at) => {
                manifests[at] = entry.clone();
                let mut position = 0;
                manifests.retain(|entry| {
                    position += 1;
                    position - 1 == at || !names_it(entry)
                });
            }
            None => manifests.push(entry),
        }
        if index != before {
            let contents = canonical_json(&index).map_err(ImageError::Json)?;
            self.commit(self.temporary(&contents)?, "index.json")?;
        }
        Ok(Finish::Committed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Delivered;
    use super::super::samples::{deliver, image};
    use super::*;
    use crate::event::Silent;

    fn add(dir: &Path, tag: &str, layers: &[&str]) -> Result<Delivered, DeliveryError> {
        let (image, blobs) = image(tag, layers);
        deliver(&image, &blobs, &mut LayoutSink::new(dir, &Silent), &Silent)
    }

    fn index(dir: &Path) -> Value {
        serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let index: ImageIndex = serde_json::from_value(index(dir)).unwrap();
        let name = |descriptor: &oci_spec::image::Descriptor| {
            descriptor.annotations().clone().unwrap_or_default().get(ANNOTATION_REF_NAME).cloned().unwrap_or_default()
        };
        index.manifests().iter().map(name).collect()
    }

    #[test]
    fn images_share_blobs_and_replace_only_their_own_name() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("made/for/this");
        assert_eq!(add(&dir, "v1", &["base", "one"]).unwrap().layers_sent, 2);
        assert_eq!(add(&dir, "v2", &["base", "two"]).unwrap().layers_sent, 1);
        assert_eq!(add(&dir, "v1", &["base", "three"]).unwrap().layers_sent, 1);
        assert_eq!(names(&dir), ["hello:v1", "hello:v2"]);
        let three = image("v1", &["base", "three"]).0;
        assert_eq!(index(&dir)["manifests"][0]["digest"], three.manifest_digest.to_string());
        assert_eq!(fs::read(dir.join(blob_path(&three.config_digest))).unwrap(), three.config);
        assert_eq!(fs::read(dir.join("oci-layout")).unwrap(), OCI_LAYOUT);
    }

    #[test]
    fn a_blob_of_the_wrong_length_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        add(dir.path(), "v1", &["base", "one"]).unwrap();
        let blob = dir.path().join(blob_path(&Digest::of(b"one")));
        fs::write(&blob, "on").unwrap();
        assert_eq!(add(dir.path(), "v1", &["base", "one"]).unwrap().layers_sent, 1);
        assert_eq!(fs::read(&blob).unwrap(), b"one");
    }

    #[test]
    fn what_others_put_into_the_index_stays() {
        let dir = tempfile::tempdir().unwrap();
        add(dir.path(), "v1", &["base"]).unwrap();
        let mut theirs = index(dir.path());
        let foreign = json!({
            "mediaType": "application/vnd.example+json", "digest": Digest::of(b"x").to_string(), "size": 1,
            "annotations": {"org.opencontainers.image.ref.name": "theirs"}, "unknown": [1],
        });
        theirs["manifests"].as_array_mut().unwrap().insert(0, foreign.clone());
        theirs["unknown"] = json!({"kept": true});
        fs::write(dir.path().join("index.json"), theirs.to_string()).unwrap();
        add(dir.path(), "v2", &["base"]).unwrap();
        assert_eq!(names(dir.path()), ["theirs", "hello:v1", "hello:v2"]);
        assert_eq!(index(dir.path())["manifests"][0], foreign);
        assert_eq!(index(dir.path())["unknown"], json!({"kept": true}));
    }

    #[test]
    fn a_layout_that_was_cut_off_at_its_beginning_is_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("oci-layout"), OCI_LAYOUT).unwrap();
        add(dir.path(), "v1", &["base"]).unwrap();
        assert_eq!(names(dir.path()), ["hello:v1"]);
    }

    #[test]
    fn what_is_no_layout_is_left_alone() {
        let reason = |prepare: &dyn Fn(&Path)| {
            let dir = tempfile::tempdir().unwrap();
            prepare(dir.path());
            let before = super::super::conformance::files(dir.path());
            let error = add(dir.path(), "v1", &["base"]).unwrap_err();
            assert_eq!(super::super::conformance::files(dir.path()), before);
            assert!(error.hint().is_some());
            error.to_string().replace(&dir.path().display().to_string(), "DIR")
        };
        let write = |dir: &Path, name: &str, contents: &str| fs::write(dir.join(name), contents).unwrap();
        assert_eq!(
            reason(&|dir| write(dir, "notes", "")),
            "'DIR' is not an OCI image layout: it has no file oci-layout, but is not empty: there is 'notes'"
        );
        assert_eq!(
            reason(&|dir| write(dir, "oci-layout", r#"{"imageLayoutVersion":"2.0.0"}"#)),
            "'DIR' is not an OCI image layout: its version is '2.0.0'"
        );
        assert!(reason(&|dir| write(dir, "oci-layout", "{")).contains("its file oci-layout is invalid: "));
        for index in ["", "[]", r#"{"schemaVersion":2}"#, r#"{"schemaVersion":2,"manifests":[{}]}"#] {
            let reason = reason(&|dir| {
                write(dir, "oci-layout", std::str::from_utf8(OCI_LAYOUT).unwrap());
                write(dir, "index.json", index);
            });
            assert!(reason.contains("its file index.json is invalid: "), "{reason}");
        }

        let file = tempfile::NamedTempFile::new().unwrap();
        let error = add(file.path(), "v1", &["base"]).unwrap_err();
        assert!(error.to_string().ends_with("is not an OCI image layout: it is not a directory"), "{error}");
    }

    #[test]
    fn processes_that_write_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layout");
        std::thread::scope(|scope| {
            for n in 0..12 {
                let path = &path;
                scope.spawn(move || add(path, &format!("v{n}"), &["base", &format!("layer {n}")]).unwrap());
            }
        });
        let mut found = names(&path);
        found.sort();
        let mut expected: Vec<_> = (0..12).map(|n| format!("hello:v{n}")).collect();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn who_waits_for_a_lock_can_be_stopped() {
        let dir = tempfile::tempdir().unwrap();
        add(dir.path(), "v1", &["base"]).unwrap();
        let held = File::open(dir.path().join("oci-layout")).unwrap();
        rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
        struct Impatient(std::time::Instant);
        impl Observer for Impatient {
            fn event(&self, _: crate::event::Event) {}
            fn cancelled(&self) -> bool {
                self.0.elapsed() > Duration::from_millis(200)
            }
        }
        let observer = Impatient(std::time::Instant::now());
        let (image, blobs) = image("v2", &["base"]);
        let error = deliver(&image, &blobs, &mut LayoutSink::new(dir.path(), &observer), &observer).unwrap_err();
        assert!(matches!(error, DeliveryError::Interrupted), "{error}");
        assert_eq!(names(dir.path()), ["hello:v1"]);
    }
}
