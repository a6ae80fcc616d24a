//! The OCI image: its name, its layers' descriptors, its configuration and its manifest, down to the byte.
//!
//! Everything here is pure: the same specification and the same layers give the same bytes, hence the same image ID.

mod config;
mod history;
mod index;
mod layer;
mod name;
mod timestamp;

pub use config::ImageSpec;
pub use history::{ToldLayer, told_layers};
pub use index::{ImageIndex, Images};
pub use layer::{Layer, LayerMediaType, UnknownMediaType};
pub use name::{ImageName, NameError};
pub use timestamp::{Timestamp, TimestampError};

use oci_spec::OciSpecError;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifestBuilder, MediaType, SCHEMA_VERSION, Sha256Digest};

use crate::blob::{Digest, canonical_json};
use crate::nix::StorePath;

/// An image, ready to be delivered: all of it but the bytes of its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// What it is called.
    pub name: ImageName,
    /// The architecture that it runs on, Go's name: `amd64`, `arm64`.
    pub architecture: String,
    /// The image configuration, canonical JSON (OCI image specification, config.md).
    pub config: Vec<u8>,
    /// The digest of `config`: the image ID (config.md, "ImageID").
    pub config_digest: Digest,
    /// The image manifest, canonical JSON (manifest.md).
    pub manifest: Vec<u8>,
    /// The digest of `manifest`: what a registry calls the image.
    pub manifest_digest: Digest,
    /// The layers, the lowest first.
    pub layers: Vec<Layer>,
    /// Store paths that one of the layers holds and the top one hides.
    pub hidden: Vec<StorePath>,
}

/// An image that cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The OCI types refused a value.
    #[error("cannot describe the image")]
    Spec(#[from] OciSpecError),
    /// A configuration names other layers than there are.
    #[error("the image's layers are not those that its configuration names")]
    OtherLayers,
    /// A document could not be written as JSON.
    #[error("cannot write the image's description as JSON")]
    Json(#[from] serde_json::Error),
}

impl Image {
    /// Puts an image together from what is wanted and the layers that make it, the lowest first.
    pub fn assemble(spec: ImageSpec, layers: Vec<Layer>) -> Result<Self, ImageError> {
        let config = canonical_json(&spec.configuration(&layers))?;
        let ImageSpec { name, architecture, hidden, .. } = spec;
        Self::of(name, architecture, config, layers, hidden)
    }

    /// The image that had this configuration before, of the same layers, which may be compressed otherwise now.
    pub fn with_config(
        name: ImageName,
        config: Vec<u8>,
        layers: Vec<Layer>,
        hidden: Vec<StorePath>,
    ) -> Result<Self, ImageError> {
        let described: ImageConfiguration = serde_json::from_slice(&config)?;
        let diff_ids = layers.iter().map(|layer| layer.diff_id.to_string());
        if !described.rootfs().diff_ids().iter().cloned().eq(diff_ids) {
            return Err(ImageError::OtherLayers);
        }
        let architecture = described.architecture().to_string();
        Self::of(name, architecture, config, layers, hidden)
    }

    fn of(
        name: ImageName,
        architecture: String,
        config: Vec<u8>,
        layers: Vec<Layer>,
        hidden: Vec<StorePath>,
    ) -> Result<Self, ImageError> {
        let config_digest = Digest::of(&config);
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(MediaType::ImageConfig, &config_digest, config.len() as u64)?)
            .layers(
                layers
                    .iter()
                    .map(|layer| descriptor(layer.media_type.as_str().into(), &layer.digest, layer.size))
                    .collect::<Result<Vec<_>, _>>()?,
            )
            .build()?;
        let manifest = canonical_json(&manifest)?;
        let manifest_digest = Digest::of(&manifest);
        Ok(Self { name, architecture, config, config_digest, manifest, manifest_digest, layers, hidden })
    }

    /// The platform that it runs on, as runtimes spell it: `linux/arm64`.
    pub fn platform(&self) -> String {
        format!("linux/{}", self.architecture)
    }

    /// The descriptor under which an index lists this image (without annotations).
    pub fn descriptor(&self) -> Result<Descriptor, ImageError> {
        Ok(descriptor(MediaType::ImageManifest, &self.manifest_digest, self.manifest.len() as u64)?)
    }
}

fn descriptor(media_type: MediaType, digest: &Digest, size: u64) -> Result<Descriptor, OciSpecError> {
    Ok(Descriptor::new(media_type, size, digest.hex().parse::<Sha256Digest>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::DiffId;

    fn spec() -> ImageSpec {
        let mut spec = ImageSpec::new(ImageName::new("Hello", "v1").unwrap(), "amd64");
        spec.entrypoint = vec!["/init".to_owned()];
        spec.cmd = Some(vec!["hello".to_owned(), "a b".to_owned()]);
        spec.env = vec!["PATH=/bin".to_owned()];
        spec.user = Some("flox:1000".to_owned());
        spec.exposed_ports = vec!["80/tcp".to_owned(), "53/udp".to_owned()];
        spec.volumes = vec!["/data".to_owned()];
        spec.working_dir = Some("/work".to_owned());
        spec.labels = [("b", "2"), ("a", "1")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        spec.stop_signal = Some("SIGINT".to_owned());
        spec
    }

    fn layers() -> Vec<Layer> {
        vec![
            Layer {
                digest: Digest::of(b"compressed"),
                diff_id: DiffId(Digest::of(b"plain")),
                size: 10,
                media_type: LayerMediaType::TarGzip,
                store_paths: vec!["/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3".parse().unwrap()],
                reused: true,
            },
            Layer {
                digest: Digest::of(b"top"),
                diff_id: DiffId(Digest::of(b"top")),
                size: 3,
                media_type: LayerMediaType::Tar,
                store_paths: vec![],
                reused: false,
            },
        ]
    }

    #[test]
    fn config_and_manifest_are_these_bytes() {
        let image = Image::assemble(spec(), layers()).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&image.config).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&config).unwrap(), @r#"
        {
          "architecture": "amd64",
          "config": {
            "Cmd": [
              "hello",
              "a b"
            ],
            "Entrypoint": [
              "/init"
            ],
            "Env": [
              "PATH=/bin"
            ],
            "ExposedPorts": {
              "53/udp": {},
              "80/tcp": {}
            },
            "Labels": {
              "a": "1",
              "b": "2"
            },
            "StopSignal": "SIGINT",
            "User": "flox:1000",
            "Volumes": {
              "/data": {}
            },
            "WorkingDir": "/work"
          },
          "created": "1970-01-01T00:00:01Z",
          "history": [
            {
              "comment": "nm7p8wxflggcwxfzayhysq4z6a1wg373-hello-2.12.3",
              "created": "1970-01-01T00:00:01Z",
              "created_by": "layerhold containerize"
            },
            {
              "comment": "the image's own files",
              "created": "1970-01-01T00:00:01Z",
              "created_by": "layerhold containerize"
            }
          ],
          "os": "linux",
          "rootfs": {
            "diff_ids": [
              "sha256:a116c9ed46d6207734a43317d30fd88f52ac8634c37d904bbf4e41d865f90475",
              "sha256:28720365c5e7476a011e4f43ac003ee5f16247a263b9d623aa85ed311d73bf39"
            ],
            "type": "layers"
          }
        }
        "#);
        let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&manifest).unwrap(), @r#"
        {
          "config": {
            "digest": "sha256:1e105f36d2c44e871de98169b7d3a1ab22c9e3778e8ea15d0ea80b1addd89c8e",
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "size": 737
          },
          "layers": [
            {
              "digest": "sha256:9da308c2e4bc33afa72df5c088b5fc5673c477f3ef21d6bdaa358393834f9804",
              "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
              "size": 10
            },
            {
              "digest": "sha256:28720365c5e7476a011e4f43ac003ee5f16247a263b9d623aa85ed311d73bf39",
              "mediaType": "application/vnd.oci.image.layer.v1.tar",
              "size": 3
            }
          ],
          "mediaType": "application/vnd.oci.image.manifest.v1+json",
          "schemaVersion": 2
        }
        "#);
        insta::assert_snapshot!(image.manifest_digest, @"sha256:ea3ea115f0eeb3f26f8ba4f858722a953a292fd1c40211684b0aa85f66fa64bc");
    }

    #[test]
    fn the_same_input_gives_the_same_image_id() {
        let first = Image::assemble(spec(), layers()).unwrap();
        for _ in 0..20 {
            assert_eq!(Image::assemble(spec(), layers()).unwrap(), first);
        }
        let mut other = spec();
        other.labels.insert("a".to_owned(), "2".to_owned());
        assert_ne!(Image::assemble(other, layers()).unwrap().config_digest, first.config_digest);
    }

    #[test]
    fn whether_a_layer_was_reused_does_not_show_in_the_image() {
        let mut other = layers();
        other[0].reused = false;
        assert_eq!(
            Image::assemble(spec(), other).unwrap().manifest_digest,
            Image::assemble(spec(), layers()).unwrap().manifest_digest
        );
    }
}
