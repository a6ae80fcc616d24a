//! The archive: one tar that Docker, Podman, containerd, skopeo and umoci all read.
//!
//! It is an OCI image layout (`oci-layout`, `index.json`, `blobs/sha256/`; OCI image specification, image-layout.md)
//! with `docker save`'s `manifest.json` beside it, whose paths lead to the same blobs. The blobs come first and
//! `manifest.json` last: what was cut off is no image to any reader.

use std::collections::BTreeSet;
use std::io::{self, Write};

use oci_spec::image::{ANNOTATION_REF_NAME, ImageIndexBuilder, MediaType, SCHEMA_VERSION};
use serde_json::json;

use super::{DeliveryError, LayerBytes};
use crate::blob::{Digest, canonical_json};
use crate::image::{Image, ImageError, ImageName, Images, Layer};
use crate::outlet::Outlet;

/// The annotation under which containerd, and Podman after it, look for an image's full name.
pub(super) const ANNOTATION_IMAGE_NAME: &str = "io.containerd.image.name";

/// The contents of `oci-layout` (image-layout.md, "oci-layout file").
pub(super) const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The size of a tar block.
const BLOCK: u64 = 512;

/// What an archive calls its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveNames {
    /// `io.containerd.image.name` in `index.json`: containerd and Podman.
    pub full: String,
    /// `RepoTags` in `manifest.json`: Docker.
    pub repo_tag: String,
}

impl ArchiveNames {
    /// The names for an archive that anybody may read.
    pub fn portable(name: &ImageName) -> Self {
        Self { full: name.familiar_in_full(), repo_tag: name.to_string() }
    }

    /// The names for Podman on this machine.
    ///
    /// Podman resolves `name:tag` to `localhost/name:tag` first: under another name an older image of the user's own
    /// would be run instead.
    pub fn local(name: &ImageName) -> Self {
        Self { full: name.local_in_full(), repo_tag: name.local_in_full() }
    }
}

/// An archive on its way to some writer, front to back; every call gets the same writer.
///
/// The same image gives the same bytes: headers are plain ustar, owner 0, time 0, mode 0644.
#[derive(Debug, Default)]
pub struct Archive {
    written: BTreeSet<Digest>,
}

/// A blob's place in an archive whose blobs are written in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Where its header begins, in bytes from the archive's beginning. Its bytes follow the header, zeros follow them.
    pub(super) header: u64,
    /// Where the next entry begins.
    pub(super) end: u64,
}

impl Place {
    /// Where the blob's bytes begin.
    pub(super) fn bytes(self) -> u64 {
        self.header + BLOCK
    }

    /// The places of blobs with these sizes, in their order.
    pub(super) fn of_all(sizes: impl IntoIterator<Item = u64>) -> Vec<Self> {
        let places = sizes.into_iter().scan(0, |end, size| {
            let header = *end;
            *end += BLOCK + size.next_multiple_of(BLOCK);
            Some(Self { header, end: *end })
        });
        places.collect()
    }
}

/// The header of a layer's blob.
pub(super) fn header(layer: &Layer) -> io::Result<Vec<u8>> {
    let mut header = Vec::with_capacity(BLOCK as usize);
    write_header(&mut header, &blob_path(&layer.digest), layer.size)?;
    Ok(header)
}

impl Archive {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a layer's blob; a blob that is there already is not written again.
    ///
    /// `describe` says what a failure of the writer means.
    pub fn put(
        &mut self,
        out: &mut dyn Outlet,
        layer: &Layer,
        bytes: LayerBytes<'_>,
        describe: impl Fn(io::Error) -> DeliveryError,
    ) -> Result<(), DeliveryError> {
        if !self.written.insert(layer.digest) {
            return Ok(());
        }
        write_header(out, &blob_path(&layer.digest), layer.size).map_err(&describe)?;
        bytes.pour_into(out, &describe)?;
        write_padding(out, layer.size).map_err(&describe)
    }

    /// Appends everything but the layers, closes the archive, and flushes the writer.
    pub fn finish(
        self,
        out: &mut dyn Write,
        images: &Images,
        names: &ArchiveNames,
        describe: impl Fn(io::Error) -> DeliveryError,
    ) -> Result<(), DeliveryError> {
        let (index, manifest) = (index_json(images, names)?, manifest_json(images.all(), names)?);
        let documents = images.documents().into_iter().map(|(digest, contents)| (blob_path(&digest), contents));
        let entries = documents.chain([
            ("oci-layout".to_owned(), OCI_LAYOUT),
            ("index.json".to_owned(), &index),
            ("manifest.json".to_owned(), &manifest),
        ]);
        let write = || {
            for (path, contents) in entries {
                write_header(out, &path, contents.len() as u64)?;
                out.write_all(contents)?;
                write_padding(out, contents.len() as u64)?;
            }
            // Two empty blocks end a tar.
            out.write_all(&[0; 2 * BLOCK as usize])?;
            out.flush()
        };
        write().map_err(describe)
    }
}

/// Where a blob lies in an image layout.
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn write_header(out: &mut dyn Write, path: &str, size: u64) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    // Beyond 8 GiB in base 256, which GNU tar and Go's archive/tar read.
    header.set_size(size);
    header.set_cksum();
    out.write_all(header.as_bytes())
}

fn write_padding(out: &mut dyn Write, size: u64) -> io::Result<()> {
    let padding = size.next_multiple_of(BLOCK) - size;
    out.write_all(&[0; BLOCK as usize][..padding as usize])
}

fn index_json(images: &Images, names: &ArchiveNames) -> Result<Vec<u8>, ImageError> {
    let mut descriptor = images.descriptor()?;
    descriptor.set_annotations(Some(
        [(ANNOTATION_IMAGE_NAME, names.full.as_str()), (ANNOTATION_REF_NAME, images.name().tag())]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    ));
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![descriptor])
        .build()
        .map_err(ImageError::Spec)?;
    Ok(canonical_json(&index)?)
}

/// `docker save`'s list of images (moby: image/spec, v1.2, "Combined Image JSON + Filesystem Changeset Format").
///
/// It knows no platforms, and a name stands for one image: the first one, of the platform that the user named first. Of
/// two entries with one name Docker's classic store would keep the last, and skopeo would take neither unasked.
fn manifest_json(images: &[Image], names: &ArchiveNames) -> Result<Vec<u8>, ImageError> {
    let entry = |image: &Image| {
        let layers: Vec<_> = image.layers.iter().map(|layer| blob_path(&layer.digest)).collect();
        json!({ "Config": blob_path(&image.config_digest), "RepoTags": [names.repo_tag], "Layers": layers })
    };
    Ok(canonical_json(&images.iter().take(1).map(entry).collect::<Vec<_>>())?)
}

#[cfg(test)]
mod tests {
    use super::super::StreamSink;
    use super::super::conformance::whole_archive;
    use super::super::samples::{deliver, image, index};
    use super::*;
    use crate::event::Silent;

    fn archive(tag: &str, layers: &[&str]) -> Vec<u8> {
        let (image, blobs) = image(tag, layers);
        let mut out = Vec::new();
        deliver(&image, &blobs, &mut StreamSink::new(&mut out), &Silent).unwrap();
        out
    }

    #[test]
    fn an_archive_is_these_entries_in_this_order() {
        let archive = archive("v1", &["base", "top", "base"]);
        let mut listing = String::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut contents = String::new();
            io::Read::read_to_string(&mut entry, &mut contents).unwrap();
            let header = entry.header();
            let (mode, mtime, uid) = (header.mode().unwrap(), header.mtime().unwrap(), header.uid().unwrap());
            let path = entry.path().unwrap().display().to_string();
            listing += &format!("{mode:o} {uid} {mtime} {path}\n{contents}\n");
        }
        insta::assert_snapshot!(listing, @r#"
        644 0 0 blobs/sha256/cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2
        base
        644 0 0 blobs/sha256/28720365c5e7476a011e4f43ac003ee5f16247a263b9d623aa85ed311d73bf39
        top
        644 0 0 blobs/sha256/913f81c43c8edde2c9da87bd59da026c2361b0d5b181d485bf2997d403244c26
        {"architecture":"amd64","config":{},"created":"1970-01-01T00:00:01Z","history":[{"comment":"the image's own files","created":"1970-01-01T00:00:01Z","created_by":"layerhold containerize"},{"comment":"the image's own files","created":"1970-01-01T00:00:01Z","created_by":"layerhold containerize"},{"comment":"the image's own files","created":"1970-01-01T00:00:01Z","created_by":"layerhold containerize"}],"os":"linux","rootfs":{"diff_ids":["sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","sha256:28720365c5e7476a011e4f43ac003ee5f16247a263b9d623aa85ed311d73bf39","sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2"],"type":"layers"}}
        644 0 0 blobs/sha256/8d15a4a610464e328b2cd1fd560216e66f467e8d0062839744c8ebb30d8dde6b
        {"config":{"digest":"sha256:913f81c43c8edde2c9da87bd59da026c2361b0d5b181d485bf2997d403244c26","mediaType":"application/vnd.oci.image.config.v1+json","size":677},"layers":[{"digest":"sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","mediaType":"application/vnd.oci.image.layer.v1.tar","size":4},{"digest":"sha256:28720365c5e7476a011e4f43ac003ee5f16247a263b9d623aa85ed311d73bf39","mediaType":"application/vnd.oci.image.layer.v1.tar","size":3},{"digest":"sha256:cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","mediaType":"application/vnd.oci.image.layer.v1.tar","size":4}],"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}
        644 0 0 oci-layout
        {"imageLayoutVersion":"1.0.0"}
        644 0 0 index.json
        {"manifests":[{"annotations":{"io.containerd.image.name":"docker.io/library/hello:v1","org.opencontainers.image.ref.name":"v1"},"digest":"sha256:8d15a4a610464e328b2cd1fd560216e66f467e8d0062839744c8ebb30d8dde6b","mediaType":"application/vnd.oci.image.manifest.v1+json","size":688}],"mediaType":"application/vnd.oci.image.index.v1+json","schemaVersion":2}
        644 0 0 manifest.json
        [{"Config":"blobs/sha256/913f81c43c8edde2c9da87bd59da026c2361b0d5b181d485bf2997d403244c26","Layers":["blobs/sha256/cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2","blobs/sha256/28720365c5e7476a011e4f43ac003ee5f16247a263b9d623aa85ed311d73bf39","blobs/sha256/cae662172fd450bb0cd710a769079c05bfc5d8e35efa6576edc7d0377afdd4a2"],"RepoTags":["hello:v1"]}]
        "#);
    }

    #[test]
    fn an_archive_of_two_platforms_has_one_index_and_shows_docker_the_first() {
        let (images, blobs) = index("v1", &[("arm64", &["base", "arm"]), ("amd64", &["base", "amd"])]);
        let mut out = Vec::new();
        super::super::deliver(&images, &blobs, &mut StreamSink::new(&mut out), &Silent).unwrap();
        let entries = whole_archive(&out).unwrap();
        let paths: Vec<_> = entries.iter().map(|(path, _)| path.clone()).collect();
        let layers = ["base", "arm", "amd"].map(|text| blob_path(&Digest::of(text.as_bytes())));
        let documents: Vec<_> = images.documents().iter().map(|(digest, _)| blob_path(digest)).collect();
        let descriptions = ["oci-layout", "index.json", "manifest.json"].map(str::to_owned);
        assert_eq!(paths, [&layers[..], &documents, &descriptions].concat());
        let json = |path: &str| -> serde_json::Value {
            let (_, contents) = entries.iter().find(|(entry, _)| entry == path).unwrap();
            serde_json::from_slice(contents).unwrap()
        };
        insta::assert_snapshot!(serde_json::to_string_pretty(&json("index.json")).unwrap(), @r#"
        {
          "manifests": [
            {
              "annotations": {
                "io.containerd.image.name": "docker.io/library/hello:v1",
                "org.opencontainers.image.ref.name": "v1"
              },
              "digest": "sha256:cfc7481cbd55dfaeddcee93adac21174a6abc778303e27da623ec093f52a8768",
              "mediaType": "application/vnd.oci.image.index.v1+json",
              "size": 491
            }
          ],
          "mediaType": "application/vnd.oci.image.index.v1+json",
          "schemaVersion": 2
        }
        "#);
        let first = &images.all()[0];
        assert_eq!(json("manifest.json")[0]["Config"], blob_path(&first.config_digest));
        assert_eq!(json("manifest.json").as_array().unwrap().len(), 1);
    }

    #[test]
    fn the_same_image_gives_the_same_bytes() {
        assert_eq!(archive("v1", &["base", "top"]), archive("v1", &["base", "top"]));
    }

    #[test]
    fn an_archive_cut_off_anywhere_in_its_blobs_is_no_image() {
        let whole = archive("v1", &["base", "top"]);
        let entries = whole_archive(&whole).unwrap();
        let blobs = entries.iter().take_while(|(path, _)| path != "index.json");
        let end: usize = blobs.map(|(_, contents)| 512 + contents.len().next_multiple_of(512)).sum();
        // The end of the last blob's entry is where a careless reader might stop.
        for length in (0..=end).step_by(64) {
            assert!(whole_archive(&whole[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn a_blob_beyond_8_gib_has_a_header_that_says_so() {
        let mut block = Vec::new();
        write_header(&mut block, &blob_path(&Digest::of(b"")), (8 << 30) + 1).unwrap();
        assert_eq!(block.len(), 512);
        assert_eq!(tar::Header::from_byte_slice(&block).entry_size().unwrap(), (8 << 30) + 1);
    }
}
