//! An image archive taken apart and checked: every blob against its digest, every reference against what is there.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use layerhold::blob::Digest;
use serde_json::Value;

/// An image of an archive that both `docker load` and readers of image layouts understand.
pub(crate) struct Archive {
    files: Rc<BTreeMap<String, Vec<u8>>>,
    /// The image's configuration.
    pub(crate) config: Value,
    /// The OCI manifest.
    pub(crate) manifest: Value,
    /// The manifest's digest, as `index.json` has it.
    pub(crate) manifest_digest: String,
}

/// An archive of images for several platforms.
pub(crate) struct Platforms {
    /// The digest of their index, as `index.json` has it.
    pub(crate) digest: String,
    /// The images by platform, in the order of the index.
    pub(crate) images: Vec<(String, Archive)>,
}

/// A node of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerEntry {
    /// Permission bits, with setuid, setgid and sticky.
    pub(crate) mode: u32,
    /// Numeric owner and group.
    pub(crate) owner: (u64, u64),
    /// Seconds after 1970-01-01.
    pub(crate) mtime: u64,
    /// What it is.
    pub(crate) kind: EntryKind,
}

/// What a node of a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Directory,
    File(Vec<u8>),
    Link(Vec<u8>),
    Other(u8),
}

impl Archive {
    /// Reads an archive and checks all that ties its parts together.
    pub(crate) fn open(file: &Path) -> Self {
        Self::read(std::fs::read(file).unwrap())
    }

    /// The same, of bytes.
    pub(crate) fn read(bytes: impl AsRef<[u8]>) -> Self {
        let files = Rc::new(files(bytes.as_ref()));
        let archive = Self::of(&files, &only_entry(&files));
        archive.check_dockers_list();
        archive
    }

    /// The image with this manifest.
    fn of(files: &Rc<BTreeMap<String, Vec<u8>>>, manifest_digest: &str) -> Self {
        let blob_json = |digest: &str| -> Value { serde_json::from_slice(&files[&blob_path(digest)]).unwrap() };
        let manifest = blob_json(manifest_digest);
        let config = blob_json(manifest["config"]["digest"].as_str().unwrap());
        let archive = Self { files: files.clone(), config, manifest, manifest_digest: manifest_digest.to_owned() };
        archive.check();
        archive
    }

    fn check(&self) {
        let descriptors = self.manifest["layers"].as_array().unwrap();
        for descriptor in descriptors.iter().chain([&self.manifest["config"]]) {
            let blob = &self.files[&blob_path(descriptor["digest"].as_str().unwrap())];
            assert_eq!(descriptor["size"].as_u64(), Some(blob.len() as u64), "of {descriptor}");
        }
        let diff_ids = self.config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!(diff_ids.len(), descriptors.len());
        for (at, diff_id) in diff_ids.iter().enumerate() {
            assert_eq!(diff_id.as_str().unwrap(), Digest::of(&self.layer_tar(at)).to_string(), "of layer {at}");
        }
        let history = self.config["history"].as_array().unwrap();
        let filled = history.iter().filter(|entry| entry["empty_layer"] != true).count();
        assert_eq!(filled, diff_ids.len(), "one entry of the history a layer");
    }

    /// Docker's own list names the same files.
    fn check_dockers_list(&self) {
        let descriptors = self.manifest["layers"].as_array().unwrap();
        let docker: Value = serde_json::from_slice(&self.files["manifest.json"]).unwrap();
        assert_eq!(docker.as_array().unwrap().len(), 1);
        let image = &docker[0];
        assert_eq!(image["Config"].as_str().unwrap(), blob_path(&self.image_id()));
        let layers: Vec<_> =
            descriptors.iter().map(|descriptor| blob_path(descriptor["digest"].as_str().unwrap())).collect();
        assert_eq!(image["Layers"], serde_json::to_value(layers).unwrap());
    }

    /// `name:tag`, as Docker will call it.
    pub(crate) fn docker_tag(&self) -> String {
        let docker: Value = serde_json::from_slice(&self.files["manifest.json"]).unwrap();
        docker[0]["RepoTags"][0].as_str().unwrap().to_owned()
    }

    /// The image's ID: the digest of its configuration.
    pub(crate) fn image_id(&self) -> String {
        self.manifest["config"]["digest"].as_str().unwrap().to_owned()
    }

    /// The digests of the layers, lowest first.
    pub(crate) fn layer_digests(&self) -> Vec<String> {
        let layers = self.manifest["layers"].as_array().unwrap();
        layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
    }

    /// One layer's tar, uncompressed.
    pub(crate) fn layer_tar(&self, at: usize) -> Vec<u8> {
        let descriptor = &self.manifest["layers"][at];
        let blob = &self.files[&blob_path(descriptor["digest"].as_str().unwrap())];
        let mut tar = Vec::new();
        match descriptor["mediaType"].as_str().unwrap().rsplit_once('+').map(|(_, codec)| codec) {
            None => tar.clone_from(blob),
            Some("gzip") => drop(flate2::read::MultiGzDecoder::new(&**blob).read_to_end(&mut tar).unwrap()),
            Some("zstd") => drop(zstd::Decoder::new(&**blob).unwrap().read_to_end(&mut tar).unwrap()),
            Some(codec) => panic!("a layer compressed with {codec}"),
        }
        tar
    }

    /// All nodes of one layer, by path from the root without a leading or trailing slash.
    pub(crate) fn layer(&self, at: usize) -> BTreeMap<Vec<u8>, LayerEntry> {
        let tar = self.layer_tar(at);
        let mut nodes = BTreeMap::new();
        for entry in tar::Archive::new(&*tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path_bytes();
            let path = path.strip_prefix(b"./").unwrap_or(&path);
            let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
            let kind = match entry.header().entry_type() {
                tar::EntryType::Directory => EntryKind::Directory,
                tar::EntryType::Symlink => EntryKind::Link(entry.link_name_bytes().unwrap().into_owned()),
                tar::EntryType::Regular => {
                    let mut contents = Vec::new();
                    entry.read_to_end(&mut contents).unwrap();
                    EntryKind::File(contents)
                }
                other => EntryKind::Other(other.as_byte()),
            };
            let header = entry.header();
            let entry = LayerEntry {
                mode: header.mode().unwrap() & 0o7777,
                owner: (header.uid().unwrap(), header.gid().unwrap()),
                mtime: header.mtime().unwrap(),
                kind,
            };
            nodes.insert(path, entry);
        }
        nodes
    }

    /// The image's file system: the layers over each other, without what whiteouts hide.
    pub(crate) fn root(&self) -> BTreeMap<Vec<u8>, LayerEntry> {
        let mut root: BTreeMap<Vec<u8>, LayerEntry> = BTreeMap::new();
        for at in 0..self.layer_digests().len() {
            let (whiteouts, nodes): (Vec<_>, Vec<_>) =
                self.layer(at).into_iter().partition(|(path, _)| hidden_by(path).is_some());
            for (path, whiteout) in whiteouts {
                assert_eq!(whiteout.kind, EntryKind::File(Vec::new()));
                let hidden = hidden_by(&path).unwrap();
                let is_hidden =
                    |path: &[u8]| path.strip_prefix(&*hidden).is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
                let before = root.len();
                root.retain(|path, _| !is_hidden(path));
                assert!(root.len() < before, "{} hides nothing", String::from_utf8_lossy(&path));
            }
            root.extend(nodes);
        }
        root
    }

    /// What whiteouts hide, by path from the root.
    pub(crate) fn hidden(&self) -> Vec<String> {
        let layers = (0..self.layer_digests().len()).flat_map(|at| self.layer(at));
        layers.filter_map(|(path, _)| String::from_utf8(hidden_by(&path)?).ok()).collect()
    }

    /// The store paths that the image holds, in full.
    pub(crate) fn store_paths(&self) -> std::collections::BTreeSet<String> {
        let root = self.root();
        let names = root.keys().filter_map(|path| path.strip_prefix(b"nix/store/"));
        let names = names.filter(|name| !name.contains(&b'/'));
        names.map(|name| format!("/nix/store/{}", String::from_utf8_lossy(name))).collect()
    }
}

impl Platforms {
    /// Reads an archive and checks all that ties its parts together.
    pub(crate) fn open(file: &Path) -> Self {
        let files = Rc::new(files(&std::fs::read(file).unwrap()));
        let digest = only_entry(&files);
        let index: Value = serde_json::from_slice(&files[&blob_path(&digest)]).unwrap();
        assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
        let image = |entry: &Value| {
            let platform = &entry["platform"];
            let image = Archive::of(&files, entry["digest"].as_str().unwrap());
            assert_eq!(image.config["architecture"], platform["architecture"]);
            assert_eq!(image.config["os"], platform["os"]);
            (format!("{}/{}", platform["os"].as_str().unwrap(), platform["architecture"].as_str().unwrap()), image)
        };
        let images: Vec<_> = index["manifests"].as_array().unwrap().iter().map(image).collect();
        images[0].1.check_dockers_list();
        Self { digest, images }
    }

    /// The image for a platform.
    pub(crate) fn image(&self, platform: &str) -> &Archive {
        &self.images.iter().find(|(found, _)| found == platform).unwrap().1
    }

    /// The digests of all layers, each once.
    pub(crate) fn layer_digests(&self) -> std::collections::BTreeSet<String> {
        self.images.iter().flat_map(|(_, image)| image.layer_digests()).collect()
    }
}

/// What a path hides if it is a whiteout's. Inside a store path there is none of ours: a package may have odd names.
fn hidden_by(path: &[u8]) -> Option<Vec<u8>> {
    if path.strip_prefix(b"nix/store/").is_some_and(|inside| inside.contains(&b'/')) {
        return None;
    }
    let name = path.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    Some([&path[..name], path[name..].strip_prefix(b".wh.")?].concat())
}

/// The files of an archive, every blob what its name says.
fn files(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        if entry.header().entry_type().is_file() {
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).unwrap();
            assert!(files.insert(path.clone(), contents).is_none(), "{path} stands in the archive twice");
        }
    }
    for (path, contents) in &files {
        if let Some(hex) = path.strip_prefix("blobs/sha256/") {
            assert_eq!(Digest::of(contents).hex(), hex, "a blob is what its name says");
        }
    }
    let json = |path: &str| -> Value { serde_json::from_slice(&files[path]).unwrap() };
    assert_eq!(json("oci-layout")["imageLayoutVersion"], "1.0.0");
    files
}

/// The digest of the one entry of `index.json`.
fn only_entry(files: &BTreeMap<String, Vec<u8>>) -> String {
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 1);
    let (digest, size) = (entries[0]["digest"].as_str().unwrap(), entries[0]["size"].as_u64());
    assert_eq!(size, Some(files[&blob_path(digest)].len() as u64));
    digest.to_owned()
}

fn blob_path(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}
