//! What only Podman does: any layer that it has, under whatever chain, can be left out of an archive; and its storage is
//! a directory that can be read without it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::opening::Inspected;
use super::runtime::parse_id;
use crate::blob::Digest;
use crate::image::Image;

/// The layers that `podman load` does without: those whose diff ID any of its images has.
///
/// It reads the archive as an image layout and opens only the blobs of layers that it does not find in its storage
/// (containers/image: `TryReusingBlob`). A compressed layer is found only if it came with the same compression; if not,
/// the load fails and everything is sent.
pub(super) fn held(image: &Image, others: &[Inspected]) -> BTreeSet<Digest> {
    let known: BTreeSet<_> = others.iter().flat_map(Inspected::diff_ids).collect();
    image.layers.iter().filter(|layer| known.contains(&layer.diff_id)).map(|layer| layer.digest).collect()
}

/// The file in which its storage lists all images, as far as that follows from where it keeps a layer of this one:
/// `ROOT/DRIVER-images/images.json` beside `ROOT/DRIVER/LAYER/diff` (containers/storage: store.go, images.go). Nowhere
/// here, where the image is on another machine.
pub(super) fn list_of(image: &Inspected) -> Option<PathBuf> {
    let driver = image.driver()?;
    let layers = image.upper_dir()?.ancestors().nth(2).filter(|layers| layers.ends_with(driver))?;
    Some(layers.parent()?.join(format!("{driver}-images/images.json")))
}

/// Whether the list says that the name stands for the image. It is replaced as a whole whenever it changes.
///
/// Who cannot read it, or reads something else there, knows nothing, and has to ask Podman: it reads the same list, once
/// it has started, which takes longer than all else that a load of a small layer takes beside the load.
pub(super) fn is_listed(list: &Path, image: &Image, name: &str) -> bool {
    #[derive(Deserialize)]
    struct Stored {
        id: String,
        names: Option<Vec<String>>,
    }
    let Ok(contents) = fs::read(list) else { return false };
    let stored: Vec<Stored> = serde_json::from_slice(&contents).unwrap_or_default();
    let mut named = stored.iter().filter(|stored| stored.names.iter().flatten().any(|known| known == name));
    match (named.next(), named.next()) {
        (Some(stored), None) => parse_id(&stored.id) == Some(image.config_digest),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::image;
    use super::*;

    #[test]
    fn the_list_lies_beside_the_layers() {
        let list = |graph_driver: &str| {
            let id = "0".repeat(64);
            let answer = format!(r#"[{{"Id":"{id}","RootFS":{{}},"GraphDriver":{graph_driver}}}]"#);
            list_of(&Inspected::parse(&answer)[0])
        };
        let in_dir = |driver: &str, dir: &str| list(&format!(r#"{{"Name":"{driver}","Data":{{"UpperDir":"{dir}"}}}}"#));
        let of_overlay = in_dir("overlay", "/var/lib/containers/storage/overlay/0a1b/diff");
        assert_eq!(of_overlay.as_deref(), Some(Path::new("/var/lib/containers/storage/overlay-images/images.json")));
        assert_eq!(in_dir("overlay", "/var/lib/containers/storage/overlay2/0a1b/diff"), None);
        assert_eq!(in_dir("overlay", "overlay"), None);
        assert_eq!(list(r#"{"Name":"vfs","Data":null}"#), None);
        assert_eq!(list(r#"{"Name":"vfs"}"#), None);
        assert_eq!(list("null"), None);
    }

    #[test]
    fn only_what_the_list_says_for_certain_counts() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("images.json");
        let (image, _) = image("v1", &["base"]);
        let name = "localhost/hello:v1";
        assert!(!is_listed(&list, &image, name), "there is none");
        let entry = |id: &str, names: &[&str]| serde_json::json!({"id": id, "names": names, "created": "unknown"});
        let says = |entries: &[serde_json::Value]| {
            fs::write(&list, serde_json::to_vec(entries).unwrap()).unwrap();
            is_listed(&list, &image, name)
        };
        let (id, other) = (image.config_digest.hex(), Digest::of(b"other").hex());
        assert!(says(&[entry(&other, &["localhost/hello:v2"]), entry(&id, &["localhost/hello:old", name])]));
        assert!(says(&[serde_json::json!({"id": other, "names": null}), entry(&id, &[name])]));
        assert!(!says(&[entry(&id, &["localhost/hello:v2"])]), "under another name only");
        assert!(!says(&[entry(&id, &[]), entry(&other, &[name])]), "another image has the name");
        assert!(!says(&[entry(&id, &[name]), entry(&other, &[name])]), "two have it");
        assert!(!says(&[entry("nonsense", &[name])]));
        assert!(!says(&[serde_json::json!({"ID": id, "Names": [name]})]), "of another kind");
        assert!(!says(&[]));
        fs::write(&list, format!(r#"[{{"id":"{id}","names":["{name}"]}}"#)).unwrap();
        assert!(!is_listed(&list, &image, name), "cut off");
    }
}
