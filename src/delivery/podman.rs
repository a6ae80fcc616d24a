//! What only Podman does: any layer that it has, under whatever chain, can be left out of an archive; and what its names
//! stand for can be read without it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
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

/// The file in which Podman's storage lists its images, where that follows from where it keeps a layer of one of `others`,
/// which it has just described: `ROOT/DRIVER-images/images.json` beside `ROOT/DRIVER/LAYER/diff` (containers/storage:
/// store.go, images.go).
///
/// There may be another list at that place, another machine's or another store's. So it counts only if it has one of those
/// images, and does not say yet that `name` stands for `image`, which Podman has denied.
pub(super) fn list_of(others: &[Inspected], image: &Image, name: &str) -> Option<PathBuf> {
    let list = others.iter().find_map(place_of_list)?;
    let stored = read(&list);
    let is_known =
        |stored: &Stored| parse_id(&stored.id).is_some_and(|id| others.iter().any(|other| other.id() == Some(id)));
    (stored.iter().any(is_known) && !says(&stored, image, name)).then_some(list)
}

fn place_of_list(other: &Inspected) -> Option<PathBuf> {
    let driver = other.driver().filter(|driver| !driver.is_empty())?;
    let upper_dir = other.upper_dir().filter(|dir| dir.is_absolute())?;
    let layers = upper_dir.ancestors().nth(2).filter(|layers| layers.ends_with(driver))?;
    Some(layers.parent()?.join(format!("{driver}-images/images.json")))
}

/// Whether the list says that the name stands for the image; it is replaced as a whole whenever it changes.
///
/// Who cannot read it, or reads something else there, knows nothing, and has to ask Podman. That reads the same list, but
/// has to start for it: some 60 ms (docs/benchmarks.md, `podman image inspect`). It would look at the layers, too; those
/// are what it has just put together, by a load that ended well.
pub(super) fn is_listed(list: &Path, image: &Image, name: &str) -> bool {
    says(&read(list), image, name)
}

/// An image in the list.
#[derive(Deserialize)]
struct Stored {
    id: String,
    names: Option<Vec<String>>,
}

/// More bytes than a list of ten thousand images has: one takes some 1.5 kB.
const LIST_LIMIT: u64 = 32 << 20;

/// The images in the list; none where it cannot be read to its end or is of another kind.
fn read(list: &Path) -> Vec<Stored> {
    let mut contents = Vec::new();
    // A pipe there would be waited for until somebody writes to it.
    if fs::metadata(list).is_ok_and(|metadata| metadata.is_file())
        && let Ok(file) = File::open(list)
        && file.take(LIST_LIMIT).read_to_end(&mut contents).is_ok()
    {
        return serde_json::from_slice(&contents).unwrap_or_default();
    }
    Vec::new()
}

fn says(stored: &[Stored], image: &Image, name: &str) -> bool {
    let mut named = stored.iter().filter(|stored| stored.names.iter().flatten().any(|known| known == name));
    match (named.next(), named.next()) {
        (Some(stored), None) => parse_id(&stored.id) == Some(image.config_digest),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::samples::image;
    use super::*;

    const NAME: &str = "localhost/hello:v1";

    fn entry(id: &str, names: &[&str]) -> Value {
        json!({"id": id, "names": names, "created": "unknown"})
    }

    /// An image of Podman's, as it describes it.
    fn described(id: &Digest, graph_driver: &Value) -> Inspected {
        let answer = json!([{"Id": id.hex(), "RootFS": {}, "GraphDriver": graph_driver}]).to_string();
        Inspected::parse(&answer).remove(0)
    }

    #[test]
    fn the_list_lies_beside_the_layers() {
        let dir = tempfile::tempdir().unwrap();
        let (image, _) = image("v1", &["base"]);
        let old = Digest::of(b"old");
        let lists = dir.path().join("overlay-images");
        fs::create_dir(&lists).unwrap();
        let says = |entries: &[Value]| fs::write(lists.join("images.json"), json!(entries).to_string()).unwrap();
        says(&[entry(&old.hex(), &[NAME])]);
        let list = |graph_driver: Value| list_of(&[described(&old, &graph_driver)], &image, NAME);
        let layer_in = |driver: &str, layers: &str| {
            let upper_dir = dir.path().join(layers).join("0a1b/diff");
            list(json!({"Name": driver, "Data": {"UpperDir": upper_dir}}))
        };
        assert_eq!(layer_in("overlay", "overlay"), Some(lists.join("images.json")));
        assert_eq!(layer_in("overlay", "overlay2"), None);
        assert_eq!(layer_in("overlay2", "overlay2"), None, "there is none");
        assert_eq!(layer_in("", "overlay"), None);
        assert_eq!(list(json!({"Name": "overlay", "Data": {"UpperDir": "overlay/0a1b/diff"}})), None);
        assert_eq!(list(json!({"Name": "overlay", "Data": {"UpperDir": "/overlay"}})), None);
        assert_eq!(list(json!({"Name": "vfs", "Data": null})), None);
        assert_eq!(list(Value::Null), None);

        // Such a place may be another machine's.
        says(&[entry(&Digest::of(b"other").hex(), &[NAME])]);
        assert_eq!(layer_in("overlay", "overlay"), None, "it does not have what Podman has");
        says(&[entry(&old.hex(), &[]), entry(&image.config_digest.hex(), &[NAME])]);
        assert_eq!(layer_in("overlay", "overlay"), None, "it says what Podman denies");
        says(&[entry(&old.hex(), &[NAME]), entry(&image.config_digest.hex(), &["localhost/hello:v2"])]);
        assert!(layer_in("overlay", "overlay").is_some());
    }

    #[test]
    fn only_what_the_list_says_for_certain_counts() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("images.json");
        let (image, _) = image("v1", &["base"]);
        assert!(!is_listed(&list, &image, NAME), "there is none");
        let says = |entries: &[Value]| {
            fs::write(&list, json!(entries).to_string()).unwrap();
            is_listed(&list, &image, NAME)
        };
        let (id, other) = (image.config_digest.hex(), Digest::of(b"other").hex());
        assert!(says(&[entry(&other, &["localhost/hello:v2"]), entry(&id, &["localhost/hello:old", NAME])]));
        assert!(says(&[json!({"id": other, "names": null}), entry(&id, &[NAME])]));
        assert!(!says(&[entry(&id, &["localhost/hello:v2"])]), "under another name only");
        assert!(!says(&[entry(&id, &[]), entry(&other, &[NAME])]), "another image has the name");
        assert!(!says(&[entry(&id, &[NAME]), entry(&other, &[NAME])]), "two have it");
        assert!(!says(&[entry("nonsense", &[NAME])]));
        assert!(!says(&[json!({"ID": id, "Names": [NAME]})]), "of another kind");
        assert!(!says(&[]));
        fs::write(&list, format!(r#"[{{"id":"{id}","names":["{NAME}"]}}"#)).unwrap();
        assert!(!is_listed(&list, &image, NAME), "cut off");
    }
}
