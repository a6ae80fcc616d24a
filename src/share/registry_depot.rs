//! A shared cache in a repository of a registry: a sheet is a manifest with a tag of its own, whose layers are the sheet's
//! bytes and the blobs of its entries, so that the registry's own garbage collection keeps them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::depot::{BlobNote, Depot, DepotError, ReadBlob, UnreadableSheet, WriteBlob};
use super::sheet::{LONGEST, Sheet, SheetName};
use super::waiting::Waiting;
use crate::blob::{Digest, canonical_json};
use crate::registry::{Deletion, LONGEST_MANIFEST, PutManifest, RegistryError, Repository, UploadError};

/// What the sheets are among artifacts (image-spec, manifest.md, "Guidelines for Artifact Usage").
const ARTIFACT: &str = "application/vnd.layerhold.cache.v1";
const SHEET: &str = "application/vnd.layerhold.cache.sheet.v1.jsonl+zstd";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// The empty configuration of artifacts.
const EMPTY_JSON: &[u8] = b"{}";
/// How often a sheet is written where the registry says that it lacks what it was just given.
const ATTEMPTS: u32 = 4;

/// A repository as a depot.
pub(super) struct RegistryDepot<'a> {
    /// For what a build waits for: gives up soon.
    quick: Repository<'a>,
    steady: Repository<'a>,
    /// Whether the empty configuration is known to be there.
    has_config: AtomicBool,
    /// What sheets that were written here are as manifests.
    written: Mutex<BTreeMap<SheetName, Digest>>,
}

impl<'a> RegistryDepot<'a> {
    pub(super) fn new(quick: Repository<'a>, steady: Repository<'a>) -> Self {
        Self { quick, steady, has_config: AtomicBool::new(false), written: Mutex::default() }
    }

    fn put(&self, bytes: &[u8], mount_from: &[String]) -> Result<Digest, DepotError> {
        let digest = Digest::of(bytes);
        self.upload(&digest, bytes.len() as u64, mount_from, &mut |out| out.write_all(bytes))?;
        Ok(digest)
    }

    fn upload(&self, blob: &Digest, size: u64, mount_from: &[String], write: WriteBlob<'_>) -> Result<(), DepotError> {
        match self.steady.upload(blob, size, mount_from, write) {
            Ok(_) => Ok(()),
            Err(UploadError::Registry(error)) => Err(error.into()),
            Err(UploadError::Source(error)) => Err(DepotError::Source(error)),
        }
    }

    fn try_write_sheet(
        &self,
        name: &SheetName,
        bytes: &[u8],
        blobs: &BTreeMap<Digest, BlobNote>,
    ) -> Result<(), DepotError> {
        let config = Digest::of(EMPTY_JSON);
        if !self.has_config.swap(true, Ordering::Relaxed) {
            self.put(EMPTY_JSON, &[])?;
        }
        let sheet = self.put(bytes, &[])?;
        let own = json!({ "mediaType": SHEET, "digest": sheet, "size": bytes.len() });
        let others = blobs.iter();
        let others = others.map(|(digest, BlobNote { size, media_type })| {
            json!({ "mediaType": media_type, "digest": digest, "size": size })
        });
        let layers: Vec<_> = std::iter::once(own).chain(others).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": { "mediaType": EMPTY, "digest": config, "size": EMPTY_JSON.len() },
            "layers": layers,
        });
        let manifest = canonical_json(&manifest).map_err(|error| DepotError::Source(io::Error::other(error)))?;
        match self.steady.put_manifest(&name.to_string(), MANIFEST, &manifest)? {
            PutManifest::Stored => {
                let digest = Digest::of(&manifest);
                let before = self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(*name, digest);
                if let Some(before) = before.filter(|before| *before != digest) {
                    // Without a tag it would stay for ever, and with it all blobs that it names. Where the registry deletes
                    // nothing, it stays as other sheets do, whatever the reason: the sheet itself is there.
                    match self.steady.delete_manifest(&before) {
                        Ok(_) | Err(RegistryError::Refused { .. }) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(())
            }
            PutManifest::LacksBlobs => Err(DepotError::Forgetful),
        }
    }

    /// Removes a tag that leads nowhere, which no request does unless it leads somewhere again: to a sheet that says
    /// nothing.
    fn remove_tag_without_manifest(&self, name: &SheetName) -> Result<(), DepotError> {
        let nothing = Sheet { is_final: true, ..Sheet::default() };
        let nothing = nothing.encode(name).map_err(|error| DepotError::Source(io::Error::other(error)))?;
        for _ in 0..ATTEMPTS {
            if self.steady.manifest_digest(&name.to_string())?.is_some() {
                break;
            }
            self.write_sheet(name, &nothing, &BTreeMap::new())?;
            let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
            // This removal may be cut short as well.
            let Some(Deletion::Absent) = written.map(|written| self.steady.delete_manifest(&written)).transpose()?
            else {
                break;
            };
        }
        Ok(())
    }
}

impl Depot for RegistryDepot<'_> {
    fn sheets(&self) -> Result<Vec<SheetName>, DepotError> {
        Ok(self.quick.tags()?.iter().filter_map(|tag| tag.parse().ok()).collect())
    }

    fn read_whole_sheet(&self, name: &SheetName) -> Result<Option<Vec<u8>>, DepotError> {
        let unreadable = |why| DepotError::Sheet { name: *name, why };
        let Some(manifest) = self.quick.manifest(&name.to_string(), LONGEST_MANIFEST)? else { return Ok(None) };
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap_or_default();
        let first = &manifest["layers"][0];
        let digest = first["digest"].as_str().and_then(|digest| digest.parse().ok());
        let size = first["size"].as_u64().filter(|size| *size <= LONGEST);
        let (true, Some(digest), Some(size)) = (first["mediaType"] == SHEET, digest, size) else {
            return Err(unreadable(UnreadableSheet::Foreign));
        };
        let mut bytes = Vec::new();
        match self.quick.read_blob(&digest, size, |blob| blob.read_to_end(&mut bytes).map(drop))? {
            Some(Ok(())) if Digest::of(&bytes) == digest => Ok(Some(bytes)),
            Some(Ok(())) => Err(unreadable(UnreadableSheet::Damaged)),
            Some(Err(error)) => Err(unreadable(UnreadableSheet::Broken(error))),
            None => Err(unreadable(UnreadableSheet::Lost)),
        }
    }

    fn write_sheet(
        &self,
        name: &SheetName,
        bytes: &[u8],
        blobs: &BTreeMap<Digest, BlobNote>,
    ) -> Result<(), DepotError> {
        // A registry to which several send the same blob at once may forget it again.
        for _ in 1..ATTEMPTS {
            match self.try_write_sheet(name, bytes, blobs) {
                Err(DepotError::Forgetful) => self.has_config.store(false, Ordering::Relaxed),
                written => return written,
            }
        }
        self.try_write_sheet(name, bytes, blobs)
    }

    fn remove_sheet(&self, name: &SheetName) -> Result<Deletion, DepotError> {
        let tag = name.to_string();
        let Some(digest) = self.steady.manifest_digest(&tag)? else { return Ok(Deletion::Absent) };
        let deletion = self.steady.delete_manifest(&digest)?;
        // Some have no other word for what they do not do.
        if deletion == Deletion::Absent && self.steady.manifest_digest(&tag)? == Some(digest) {
            return Ok(Deletion::NotAllowed);
        }
        Ok(deletion)
    }

    /// distribution 2.8 removes a manifest and then the tags that lead to it, and fails between the two if another tag
    /// is just being written, or if whoever asked has gone (distribution/distribution, issues 2514 and 3191). Such a
    /// tag is listed.
    fn finish_removals(&self, absent: &[SheetName]) {
        let listed = self.steady.tags().unwrap_or_default();
        for name in absent.iter().filter(|name| listed.contains(&name.to_string())) {
            // It says nothing as it is.
            let _ = self.remove_tag_without_manifest(name);
        }
    }

    fn has_blobs(&self, blobs: &[Digest]) -> Result<BTreeSet<Digest>, DepotError> {
        Ok(self.quick.has_blobs(blobs)?)
    }

    fn read_blob(
        &self,
        blob: &Digest,
        size: u64,
        waiting: &Waiting<'_>,
        read: ReadBlob<'_>,
    ) -> Result<Option<io::Result<()>>, DepotError> {
        Ok(self.quick.read_blob_while(blob, size, (waiting.patience(), waiting), read)?)
    }

    fn write_blob(
        &self,
        blob: &Digest,
        size: u64,
        mount_from: &[String],
        write: WriteBlob<'_>,
    ) -> Result<(), DepotError> {
        // It may have come with an image that was pushed to the same repository.
        match self.steady.has_blobs(&[*blob])?.is_empty() {
            true => self.upload(blob, size, mount_from, write),
            false => Ok(()),
        }
    }

    fn replace_blob(&self, blob: &Digest, size: u64, write: WriteBlob<'_>) -> Result<(), DepotError> {
        self.upload(blob, size, &[], write)
    }

    fn remove_blobs(&self, _: &BTreeMap<Digest, u64>, _: u64) -> Result<Option<u64>, DepotError> {
        // A registry's own garbage collection does, and nobody else may.
        Ok(None)
    }
}
