//! What a name stands for: one image, or an image index over several, one a platform.

use std::collections::BTreeSet;

use oci_spec::image::{Arch, Descriptor, ImageIndexBuilder, MediaType, Os, Platform, SCHEMA_VERSION};

use super::{Image, ImageError, ImageName, Layer, descriptor};
use crate::blob::{Digest, canonical_json};

/// The image of a name, or the images of its platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Images {
    /// One image, of whatever platform.
    One(Image),
    /// Several, with an index that says which is whose.
    Several(ImageIndex),
}

/// An OCI image index over the images of one name (OCI image specification, image-index.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageIndex {
    /// What it is called.
    pub name: ImageName,
    /// The images, in the order in which the user named their platforms. Readers take the first that fits.
    pub images: Vec<Image>,
    /// The index, canonical JSON.
    pub index: Vec<u8>,
    /// The digest of `index`.
    pub digest: Digest,
}

impl Images {
    /// One image as it is; an index over several.
    pub fn assemble(name: ImageName, images: Vec<Image>) -> Result<Self, ImageError> {
        match <[Image; 1]>::try_from(images) {
            Ok([image]) => Ok(Self::One(image)),
            Err(images) => Ok(Self::Several(ImageIndex::assemble(name, images)?)),
        }
    }

    /// What they are called.
    pub fn name(&self) -> &ImageName {
        match self {
            Self::One(image) => &image.name,
            Self::Several(index) => &index.name,
        }
    }

    /// The images, in the order of the index.
    pub fn all(&self) -> &[Image] {
        match self {
            Self::One(image) => std::slice::from_ref(image),
            Self::Several(index) => &index.images,
        }
    }

    /// The layers of all images, each blob once: those of the first image, the lowest first, then what the others have
    /// beside them.
    pub fn layers(&self) -> Vec<&Layer> {
        let mut seen = BTreeSet::new();
        self.all().iter().flat_map(|image| &image.layers).filter(|layer| seen.insert(layer.digest)).collect()
    }

    /// Everything but the layers that a target has to hold, each after what it refers to.
    pub fn documents(&self) -> Vec<(Digest, &[u8])> {
        let mut documents: Vec<(Digest, &[u8])> = Vec::new();
        for image in self.all() {
            documents.push((image.config_digest, &image.config));
            documents.push((image.manifest_digest, &image.manifest));
        }
        if let Self::Several(index) = self {
            documents.push((index.digest, &index.index));
        }
        documents
    }

    /// The digest of what the name stands for: the image's manifest, or the index.
    pub fn digest(&self) -> Digest {
        match self {
            Self::One(image) => image.manifest_digest,
            Self::Several(index) => index.digest,
        }
    }

    /// What tells it from all others: the image's ID, or the digest of the index.
    pub fn id(&self) -> Digest {
        match self {
            Self::One(image) => image.config_digest,
            Self::Several(index) => index.digest,
        }
    }

    /// The descriptor under which a layout's `index.json` lists it (without annotations).
    pub fn descriptor(&self) -> Result<Descriptor, ImageError> {
        match self {
            Self::One(image) => image.descriptor(),
            Self::Several(ImageIndex { index, digest, .. }) => {
                Ok(descriptor(MediaType::ImageIndex, digest, index.len() as u64)?)
            }
        }
    }
}

impl From<Image> for Images {
    fn from(image: Image) -> Self {
        Self::One(image)
    }
}

impl ImageIndex {
    fn assemble(name: ImageName, images: Vec<Image>) -> Result<Self, ImageError> {
        let mut manifests = Vec::new();
        for image in &images {
            let mut platform = Platform::default();
            platform.set_os(Os::Linux);
            platform.set_architecture(Arch::from(image.architecture.as_str()));
            let mut descriptor = image.descriptor()?;
            descriptor.set_platform(Some(platform));
            manifests.push(descriptor);
        }
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageIndex)
            .manifests(manifests)
            .build()?;
        let index = canonical_json(&index)?;
        Ok(Self { name, images, digest: Digest::of(&index), index })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ImageSpec, LayerMediaType};
    use super::*;
    use crate::blob::DiffId;

    fn name() -> ImageName {
        ImageName::new("hello", "v1").unwrap()
    }

    fn image(architecture: &str, layers: &[&str]) -> Image {
        let layer = |text: &&str| Layer {
            digest: Digest::of(text.as_bytes()),
            diff_id: DiffId(Digest::of(text.as_bytes())),
            size: text.len() as u64,
            media_type: LayerMediaType::Tar,
            store_paths: vec![],
            reused: false,
        };
        Image::assemble(ImageSpec::new(name(), architecture), layers.iter().map(layer).collect()).unwrap()
    }

    #[test]
    fn an_index_is_these_bytes() {
        let images = Images::assemble(name(), vec![image("amd64", &["base", "x"]), image("arm64", &["base", "y"])]);
        let Images::Several(index) = images.unwrap() else { panic!("two images are no index") };
        let value: serde_json::Value = serde_json::from_slice(&index.index).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&value).unwrap(), @r#"
        {
          "manifests": [
            {
              "digest": "sha256:680f92ebc2f86b1e4f4eb6947700ffb2d7ed7be498ad73b4ce0646673f33fbbe",
              "mediaType": "application/vnd.oci.image.manifest.v1+json",
              "platform": {
                "architecture": "amd64",
                "os": "linux"
              },
              "size": 541
            },
            {
              "digest": "sha256:fa22c0909d736df0120464b4bcc92171f7c1d321ee77cf1609aa78252309e990",
              "mediaType": "application/vnd.oci.image.manifest.v1+json",
              "platform": {
                "architecture": "arm64",
                "os": "linux"
              },
              "size": 541
            }
          ],
          "mediaType": "application/vnd.oci.image.index.v1+json",
          "schemaVersion": 2
        }
        "#);
        insta::assert_snapshot!(index.digest, @"sha256:810543f848b7a3fa0e1caa49c8777b9fcdfd3f6d4dda7cd92ff10cde9016f064");
    }

    #[test]
    fn one_image_needs_no_index_and_keeps_its_digests() {
        let image = image("arm64", &["base"]);
        let images = Images::assemble(name(), vec![image.clone()]).unwrap();
        assert_eq!(images, Images::from(image.clone()));
        assert_eq!((images.id(), images.digest()), (image.config_digest, image.manifest_digest));
        assert_eq!(images.descriptor().unwrap(), image.descriptor().unwrap());
        assert_eq!(images.documents().len(), 2);
    }

    #[test]
    fn a_layer_of_two_platforms_counts_once_and_documents_stand_behind_what_they_name() {
        let (first, second) = (image("amd64", &["base", "x", "base"]), image("arm64", &["y", "base"]));
        let images = Images::assemble(name(), vec![first.clone(), second.clone()]).unwrap();
        let digests: Vec<_> = images.layers().iter().map(|layer| layer.digest).collect();
        assert_eq!(digests, ["base", "x", "y"].map(|text| Digest::of(text.as_bytes())));
        let documents: Vec<_> = images.documents().iter().map(|(digest, _)| *digest).collect();
        let expected = [first.config_digest, first.manifest_digest, second.config_digest, second.manifest_digest];
        assert_eq!(documents, [&expected[..], &[images.digest()]].concat());
        for (digest, bytes) in images.documents() {
            assert_eq!(Digest::of(bytes), digest);
        }
    }
}
