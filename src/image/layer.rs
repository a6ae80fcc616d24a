//! A layer as the image and its targets see it: everything but its bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::blob::{DiffId, Digest};
use crate::nix::StorePath;

/// How a layer's tar is compressed, in the words of a descriptor (OCI image specification, layer.md, "Media Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LayerMediaType {
    /// Not at all.
    #[serde(rename = "application/vnd.oci.image.layer.v1.tar")]
    Tar,
    /// With gzip.
    #[serde(rename = "application/vnd.oci.image.layer.v1.tar+gzip")]
    TarGzip,
    /// With zstd.
    #[serde(rename = "application/vnd.oci.image.layer.v1.tar+zstd")]
    TarZstd,
}

impl LayerMediaType {
    /// The media type as descriptors have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tar => "application/vnd.oci.image.layer.v1.tar",
            Self::TarGzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::TarZstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

impl fmt::Display for LayerMediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A media type that is not one of a layer's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not the media type of a layer")]
pub struct UnknownMediaType(String);

impl FromStr for LayerMediaType {
    type Err = UnknownMediaType;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Tar, Self::TarGzip, Self::TarZstd]
            .into_iter()
            .find(|media_type| media_type.as_str() == text)
            .ok_or_else(|| UnknownMediaType(text.to_owned()))
    }
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// The digest of the blob: of the tar as it is stored and sent, compressed or not.
    pub digest: Digest,
    /// The digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// The length of the blob in bytes.
    pub size: u64,
    /// What kind of blob it is.
    #[serde(skip)]
    pub media_type: LayerMediaType,
    /// The store paths inside; none in layers of the image's own files but those that were made for it.
    pub store_paths: Vec<StorePath>,
    /// Whether the layer store had it already, so that nothing was packed.
    pub reused: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_read_as_they_are_written() {
        for media_type in [LayerMediaType::Tar, LayerMediaType::TarGzip, LayerMediaType::TarZstd] {
            assert_eq!(media_type.as_str().parse(), Ok(media_type));
            assert_eq!(serde_json::to_value(media_type).unwrap(), media_type.as_str());
        }
        assert!("application/vnd.oci.image.config.v1+json".parse::<LayerMediaType>().is_err());
    }

    #[test]
    fn a_layer_in_json_has_the_keys_that_json_output_promises() {
        let layer = Layer {
            digest: Digest::of(b""),
            diff_id: DiffId(Digest::of(b"")),
            size: 0,
            media_type: LayerMediaType::Tar,
            store_paths: vec!["/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3".parse().unwrap()],
            reused: true,
        };
        insta::assert_snapshot!(serde_json::to_string_pretty(&layer).unwrap(), @r#"
        {
          "digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
          "diff_id": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
          "size": 0,
          "store_paths": [
            "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3"
          ],
          "reused": true
        }
        "#);
    }
}
