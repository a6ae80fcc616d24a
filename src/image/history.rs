//! The history in an image's configuration: one entry a layer, which names the store paths in it.
//!
//! It is for people (`docker history`), and it is what the next image learns the layers of this one from.

use oci_spec::image::{History, ImageConfiguration};

use super::layer::Layer;
use crate::blob::DiffId;
use crate::nix::StorePath;

/// What an entry says made its layer.
const CREATED_BY: &str = "layerhold containerize";
/// What it says of a layer without store paths.
const OWN_FILES: &str = "the image's own files";

/// How long all comments may be together, in bytes: readers refuse configurations beyond 4 MiB (containers/image) or
/// 8 MiB (containerd). It is enough for some 40,000 store paths.
const ALL_COMMENTS: usize = 2 << 20;
/// How long each may be where they are longer than that: 127 of them fit.
const ONE_COMMENT: usize = 16 << 10;

/// The history of an image of these layers.
pub(super) fn of(layers: &[Layer], created: &str) -> Vec<History> {
    let names = layers.iter().flat_map(|layer| &layer.store_paths).map(|path| path.base_name().len() + 1);
    let limit = if names.sum::<usize>() > ALL_COMMENTS { ONE_COMMENT } else { usize::MAX };
    let entry = |layer: &Layer| {
        let mut entry = History::default();
        entry
            .set_created(Some(created.to_owned()))
            .set_created_by(Some(CREATED_BY.to_owned()))
            .set_comment(Some(comment(&layer.store_paths, limit)));
        entry
    };
    layers.iter().map(entry).collect()
}

/// A layer as the configuration of an image tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldLayer {
    /// The digest of its uncompressed tar.
    pub diff_id: DiffId,
    /// The store paths in it; none where not all of them are named, or it holds none.
    pub store_paths: Vec<StorePath>,
}

/// The layers of an image that was made here, the bottom one first, as its configuration tells of them; `None` for any
/// other image.
pub fn told_layers(config: &ImageConfiguration) -> Option<Vec<ToldLayer>> {
    let history = config.history().as_ref()?;
    let is_ours = |entry: &History| entry.created_by().as_deref() == Some(CREATED_BY);
    let diff_ids = config.rootfs().diff_ids();
    if history.len() != diff_ids.len() || !history.iter().all(is_ours) {
        return None;
    }
    let layer = |(entry, diff_id): (&History, &String)| {
        let comment = entry.comment().as_deref().unwrap_or_default();
        let store_paths = store_paths(comment).unwrap_or_default();
        Some(ToldLayer { diff_id: DiffId(diff_id.parse().ok()?), store_paths })
    };
    history.iter().zip(diff_ids).map(layer).collect()
}

/// The base names of a layer's store paths, as many as fit.
fn comment(store_paths: &[StorePath], limit: usize) -> String {
    if store_paths.is_empty() {
        return OWN_FILES.to_owned();
    }
    let mut comment = String::new();
    for (shown, path) in store_paths.iter().enumerate() {
        // Room is left for the closing words.
        if comment.len() + path.base_name().len() + 32 > limit {
            comment.push_str(&format!(" and {} more", store_paths.len() - shown));
            break;
        }
        if shown > 0 {
            comment.push(' ');
        }
        comment.push_str(path.base_name());
    }
    comment
}

/// What a comment names, if that is store paths and nothing else.
fn store_paths(comment: &str) -> Option<Vec<StorePath>> {
    comment.split(' ').map(|name| StorePath::from_base_name(name).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Digest;
    use crate::image::{ImageName, ImageSpec, LayerMediaType};
    use rstest::rstest;

    fn paths(count: usize) -> Vec<StorePath> {
        (0..count)
            .map(|n| StorePath::from_base_name(&format!("nm7p8wxflggcwxfzayhysq4z6a1wg373-package-{n}")).unwrap())
            .collect()
    }

    fn layer(store_paths: Vec<StorePath>) -> Layer {
        let digest = Digest::of(b"");
        Layer { digest, diff_id: DiffId(digest), size: 0, media_type: LayerMediaType::Tar, store_paths, reused: false }
    }

    fn config(layers: &[Layer]) -> ImageConfiguration {
        ImageSpec::new(ImageName::new("hello", "latest").unwrap(), "arm64").configuration(layers)
    }

    fn told_paths(config: &ImageConfiguration) -> Option<Vec<Vec<StorePath>>> {
        Some(told_layers(config)?.into_iter().map(|layer| layer.store_paths).collect())
    }

    #[test]
    fn a_comment_names_the_store_paths() {
        assert_eq!(
            comment(&paths(2), usize::MAX),
            "nm7p8wxflggcwxfzayhysq4z6a1wg373-package-0 nm7p8wxflggcwxfzayhysq4z6a1wg373-package-1"
        );
        assert_eq!(comment(&[], usize::MAX), "the image's own files");
    }

    #[test]
    fn a_long_comment_says_how_many_it_leaves_out() {
        let comment = comment(&paths(5000), ONE_COMMENT);
        assert!(comment.len() <= ONE_COMMENT);
        let shown = comment.matches("-package-").count();
        assert!(comment.ends_with(&format!(" and {} more", 5000 - shown)), "{comment}");
    }

    #[test]
    fn what_the_layers_hold_is_read_again() {
        let layers = [layer(paths(5000)), layer(paths(1)), layer(Vec::new())];
        assert_eq!(told_paths(&config(&layers)), Some(vec![paths(5000), paths(1), Vec::new()]));
        let told = told_layers(&config(&layers)).unwrap();
        assert!(told.iter().zip(&layers).all(|(told, layer)| told.diff_id == layer.diff_id));
    }

    #[test]
    fn of_more_paths_than_readers_take_nothing_is_known_of_the_layers_with_most() {
        let layers: Vec<Layer> = (0..100).map(|n| layer(paths(if n == 7 { 200 } else { 1000 }))).collect();
        let config = config(&layers);
        let length = serde_json::to_vec(&config).unwrap().len();
        assert!(length < 3 << 20, "{length}");
        let named = told_paths(&config).unwrap();
        assert_eq!(named.len(), 100);
        assert_eq!(named[7], paths(200));
        assert_eq!(named.iter().filter(|layer| layer.is_empty()).count(), 99);
    }

    #[rstest]
    #[case::no_history(r#"[]"#, r#""history":[]"#)]
    #[case::without_one(r#"[DIGEST]"#, r#""author":"somebody""#)]
    #[case::of_others(r#"[DIGEST]"#, r#""history":[{"created_by":"/bin/sh -c #(nop) ADD file","comment":""}]"#)]
    #[case::with_a_layer_on_top(r#"[DIGEST,DIGEST]"#, r#""history":[{"created_by":"layerhold containerize"}]"#)]
    fn of_other_images_nothing_is_known(#[case] diff_ids: &str, #[case] rest: &str) {
        let diff_ids = diff_ids.replace("DIGEST", &format!(r#""{}""#, Digest::of(b"")));
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":{diff_ids}}},{rest}}}"#
        );
        let expected = (diff_ids == "[]").then(Vec::new);
        assert_eq!(told_layers(&serde_json::from_str(&config).unwrap()), expected);
    }
}
