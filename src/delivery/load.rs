//! A runtime as a sink: asked what it has, given the rest, and looked at again for what it made of it.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use super::opening::Inspected;
use super::runtime::{Listed, parse_id};
use super::{
    Archive, ArchiveNames, DeliveryError, Finish, Missing, Opening, Past, Runtime, RuntimeClient, Sink, TargetError,
    docker, podman,
};
use crate::blob::Digest;
use crate::child::Child;
use crate::event::{Event, Observer};
use crate::image::{Image, ImageName, Images, LayerMediaType};
use crate::outlet::Outlet;

/// An image is what was sent if its ID is the digest of the config (Docker's classic store, Podman), or of the manifest
/// (Docker with containerd's image store).
fn is_image(image: &Image, id: &Digest) -> bool {
    *id == image.config_digest || *id == image.manifest_digest
}

/// Whether a name in the runtime's list is the image's.
fn is_name(runtime: Runtime, image: &Image, listed: &str) -> bool {
    match runtime {
        // Docker lists short names; Podman in Docker's place lists full ones.
        Runtime::Docker => [image.name.to_string(), image.name.familiar_in_full(), image.name.local_in_full()]
            .iter()
            .any(|name| name == listed),
        Runtime::Podman => listed == image.name.local_in_full(),
    }
}

/// The names in the archive that the runtime gets.
fn archive_names(runtime: Runtime, name: &ImageName) -> ArchiveNames {
    match runtime {
        Runtime::Docker => ArchiveNames::portable(name),
        Runtime::Podman => ArchiveNames::local(name),
    }
}

/// Gives a runtime the image.
///
/// - An image that the runtime has under its name is left alone; one that it has under another name gets the name.
/// - Otherwise an archive goes into `docker load` or `podman load`. Layers that the runtime's other images have are
///   left out of it where the runtime can do without them; if it then cannot, everything is sent. Which images are
///   looked at depends on how much there is to gain: the one that has had the name until now, and others only where
///   sending the rest takes longer than asking.
/// - Afterwards the runtime, or the list of images in its storage, is asked whether the name stands for the image that
///   was sent.
pub struct RuntimeSink<'a> {
    client: RuntimeClient,
    observer: &'a dyn Observer,
    /// What was asked while the image was made.
    opening: Option<Opening>,
    there: There,
    /// A load that was begun while the image was made.
    ready: Option<ReadyLoad>,
    /// The load that is under way.
    load: Option<Load>,
    /// Whether layers are left out of the archive because the runtime has them.
    partial: bool,
    /// Why the runtime did not take such an archive, where it said so before it had all of it.
    refused: Option<DeliveryError>,
    /// Where the runtime's images are listed in a file, once that is known.
    list: Option<PathBuf>,
}

struct Load {
    child: Child,
    archive: Archive,
}

/// A load that has got nothing yet. Where nothing comes it ends by itself, and leaves nothing behind.
pub(super) struct ReadyLoad(Option<Child>);

impl ReadyLoad {
    /// Starts one; who needs it will say why that is not possible.
    pub(super) fn start(client: &RuntimeClient) -> Self {
        let mut command = client.command(&LOAD);
        // In a group of its own: the terminal's signals are for this run, which ends it by the end of its input.
        command.process_group(0);
        Self(Child::spawn(&mut command, true).ok())
    }

    fn is_running(&mut self) -> bool {
        self.0.as_mut().is_some_and(Child::is_running)
    }

    /// The load, unless it has come to an end meanwhile.
    fn into_child(mut self) -> Option<Child> {
        if self.is_running() { self.0.take() } else { None }
    }
}

impl Drop for ReadyLoad {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            child.dismiss();
        }
    }
}

/// What the runtime has of the image.
#[derive(Clone, Copy)]
enum There {
    /// All of it, under its name.
    Named,
    /// All of it, under other names only.
    Unnamed(Digest),
    /// Not all of it.
    Absent,
}

/// The command that takes an archive from its standard input.
pub(super) const LOAD: [&str; 2] = ["load", "--quiet"];

impl<'a> RuntimeSink<'a> {
    /// A sink on the runtime. Nothing is asked yet.
    pub fn new(client: RuntimeClient, observer: &'a dyn Observer) -> Self {
        let (opening, ready, load) = (None, None, None);
        Self { client, observer, opening, there: There::Absent, ready, load, partial: false, refused: None, list: None }
    }

    /// Uses what was asked while the image was made.
    #[must_use]
    pub fn opened(self, opening: Opening) -> Self {
        Self { opening: Some(opening), ..self }
    }

    /// The image, where it is one: a runtime keeps one under a name.
    fn only<'i>(&self, images: &'i Images) -> Result<&'i Image, TargetError> {
        match images {
            Images::One(image) => Ok(image),
            Images::Several(_) => Err(TargetError::SeveralPlatforms { runtime: self.client.runtime() }),
        }
    }

    /// Lends the running load's pipe and archive; where the pipe breaks, the child says why.
    fn feed(
        &mut self,
        feed: impl FnOnce(&mut Archive, &mut dyn Outlet) -> Result<(), DeliveryError>,
    ) -> Result<Load, DeliveryError> {
        let mut load = match self.load.take() {
            Some(load) => load,
            None => {
                let ready = self.ready.take().and_then(ReadyLoad::into_child);
                let child = ready.map_or_else(|| self.client.spawn(&LOAD, true), Ok)?;
                Load { child, archive: Archive::new() }
            }
        };
        let Load { child, archive } = &mut load;
        match child.feed(self.observer, |pipe| feed(archive, pipe)) {
            Ok(()) => Ok(load),
            Err(_) if self.observer.cancelled() => Err(DeliveryError::Interrupted),
            Err(DeliveryError::Stream(_)) => {
                let ended = self.client.wait(load.child, self.observer)?;
                Err(self.client.failure(&LOAD, &ended))
            }
            // The child is killed.
            Err(error) => Err(error),
        }
    }

    /// Ends the archive and sees the load through.
    fn load(&mut self, images: &Images) -> Result<(), DeliveryError> {
        let names = archive_names(self.client.runtime(), images.name());
        let load =
            self.feed(|archive, pipe| std::mem::take(archive).finish(pipe, images, &names, DeliveryError::Stream))?;
        let ended = self.client.wait(load.child, self.observer)?;
        if ended.status.success() { Ok(()) } else { Err(self.client.failure(&LOAD, &ended)) }
    }

    /// The layers that need not be sent, for these images of the runtime have them.
    fn held(&self, image: &Image, others: &[Inspected], past: &dyn Past) -> Result<BTreeSet<Digest>, DeliveryError> {
        match self.client.runtime() {
            Runtime::Docker => docker::held(&self.client, image, others, past, self.observer),
            Runtime::Podman => Ok(podman::held(image, others)),
        }
    }

    /// The image itself, if the runtime has it, whatever its names.
    fn under_other_names(&self, image: &Image) -> Result<Vec<Listed>, DeliveryError> {
        let ids = [image.config_digest, image.manifest_digest].map(|id| self.client.id_argument(&id));
        let found = self.client.inspect(&ids, self.observer)?;
        Ok(found.iter().filter_map(Inspected::id).map(|id| Listed { id, name: String::new() }).collect())
    }

    /// The short way failed: says why, and that all is sent now.
    fn incomplete(&mut self, image: &Image, error: &DeliveryError) -> Result<Finish, DeliveryError> {
        self.partial = false;
        self.observer.event(Event::Detail { message: error.to_string() });
        // containerd's image store names an image before it finds that a blob of it is missing. The name must not stay,
        // for it would be taken for the whole image if this run ended here.
        let name = self.client.name_of(&image.name);
        let named = self.client.inspect(std::slice::from_ref(&name), self.observer)?;
        if named.first().is_some_and(|named| is_inspected(image, named)) {
            self.client.run(&["image", "rm", &name], self.observer)?;
        }
        Ok(Finish::Incomplete)
    }

    /// Fails unless the name stands for the image.
    fn verify(&self, image: &Image) -> Result<(), DeliveryError> {
        let name = self.client.name_of(&image.name);
        if self.list.as_deref().is_some_and(|list| podman::is_listed(list, image, &name)) {
            return Ok(());
        }
        let answer = self.client.run(&["image", "inspect", "--format", "{{.Id}}", &name], self.observer)?;
        let found = answer.trim().to_owned();
        match parse_id(&found) {
            Some(id) if is_image(image, &id) => Ok(()),
            _ => Err(DeliveryError::WrongImage {
                runtime: self.client.runtime(),
                name,
                expected: image.config_digest,
                found,
            }),
        }
    }
}

impl Sink for RuntimeSink<'_> {
    fn has(&mut self, images: &Images, past: &dyn Past) -> Result<BTreeSet<Digest>, DeliveryError> {
        let image = self.only(images)?;
        self.list = None;
        // Only an answer from before the image was made can be out of date.
        let was_made_meanwhile = self.opening.is_some() && image.layers.iter().any(|layer| !layer.reused);
        let mut opening = match self.opening.take() {
            Some(opening) => opening,
            None => self.client.ask(&image.name, LayerMediaType::Tar)?,
        };
        opening.accepts(self.observer)?;
        let Opening { mut found, listed, load: ready, .. } = opening;
        if was_made_meanwhile && found.as_ref().is_some_and(|found| is_inspected(image, found)) {
            found = self.client.inspect(&[self.client.name_of(&image.name)], self.observer)?.pop();
        }
        let all = || image.layers.iter().map(|layer| layer.digest).collect();
        if found.as_ref().is_some_and(|found| is_inspected(image, found)) {
            self.there = There::Named;
            return Ok(all());
        }

        let mut others: Vec<_> = found.into_iter().collect();
        let mut held = self.held(image, &others, past)?;
        let listed = match listed {
            Some(listed) => listed,
            None if missing_bytes(image, &held) >= WORTH_A_LIST => self.client.images(self.observer)?,
            // Others were known before, and this one was not: there can hardly be an image of it, and to load that again
            // does no harm.
            None if has_a_new_layer(image) => Vec::new(),
            None => self.under_other_names(image)?,
        };
        self.there = there(self.client.runtime(), image, &listed);
        if !matches!(self.there, There::Absent) {
            return Ok(all());
        }
        let further = worth_asking(image, &held, &others, &listed);
        if !further.is_empty() {
            let ids: Vec<_> = further.iter().map(|id| self.client.id_argument(id)).collect();
            others.extend(self.client.inspect(&ids, self.observer)?);
            held = self.held(image, &others, past)?;
        }
        if self.client.runtime() == Runtime::Podman {
            let name = self.client.name_of(&image.name);
            self.list = podman::list_of(&others, image, &name);
        }
        self.partial = !held.is_empty();
        self.ready = ready;
        Ok(held)
    }

    fn put(&mut self, missing: &Missing<'_>) -> Result<(), DeliveryError> {
        if missing.layers().is_empty() {
            return Ok(());
        }
        let load = self.feed(|archive, pipe| {
            missing.in_order(pipe.takes_pages(), |layer, bytes| archive.put(pipe, layer, bytes, DeliveryError::Stream))
        });
        match load {
            Ok(load) => self.load = Some(load),
            Err(error @ DeliveryError::Command { .. }) if self.partial => self.refused = Some(error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn finish(&mut self, images: &Images, _: &dyn Past) -> Result<Finish, DeliveryError> {
        let image = self.only(images)?;
        let is_short = self.partial || matches!(self.there, There::Unnamed(_));
        match std::mem::replace(&mut self.there, There::Absent) {
            There::Named => return Ok(Finish::Committed),
            There::Unnamed(id) => {
                match self
                    .client
                    .run(&["tag", &self.client.id_argument(&id), &self.client.name_of(&image.name)], self.observer)
                {
                    Ok(_) => {}
                    // Removed since it was listed.
                    Err(error @ DeliveryError::Command { .. }) => return self.incomplete(image, &error),
                    Err(error) => return Err(error),
                }
            }
            There::Absent => match self.refused.take().map_or_else(|| self.load(images), Err) {
                Ok(()) => {}
                // Whatever the reason, the runtime did without some layers before and gets them all now.
                Err(error @ DeliveryError::Command { .. }) if self.partial => return self.incomplete(image, &error),
                Err(error) => return Err(error),
            },
        }
        match self.verify(image) {
            Ok(()) => Ok(Finish::Committed),
            Err(error @ (DeliveryError::Command { .. } | DeliveryError::WrongImage { .. })) if is_short => {
                self.incomplete(image, &error)
            }
            Err(error) => Err(error),
        }
    }
}

/// How many bytes must be missing for a list of all images to be worth its time. Runtimes take in some 50 MB/s and answer
/// a question about one image in 40 to 60 ms (docs/benchmarks.md, cold and unchanged): sending this takes as long as half
/// a dozen such questions. How the time of a list grows with the number of images was not measured.
const WORTH_A_LIST: u64 = 16 << 20;
/// For how many missing bytes one more image is described, in the same question: sending them takes some 20 ms.
const WORTH_AN_IMAGE: u64 = 1 << 20;

fn is_inspected(image: &Image, found: &Inspected) -> bool {
    found.id().is_some_and(|id| is_image(image, &id))
}

/// Whether a layer was made just now, where others of the image were made before.
fn has_a_new_layer(image: &Image) -> bool {
    let is_reused = |reused: bool| image.layers.iter().any(|layer| layer.reused == reused);
    is_reused(true) && is_reused(false)
}

fn missing_bytes(image: &Image, held: &BTreeSet<Digest>) -> u64 {
    image.layers.iter().filter(|layer| !held.contains(&layer.digest)).map(|layer| layer.size).sum()
}

/// What a list of images says of the image.
fn there(runtime: Runtime, image: &Image, listed: &[Listed]) -> There {
    let mut same = listed.iter().filter(|listed| is_image(image, &listed.id));
    match (same.clone().find(|listed| is_name(runtime, image, &listed.name)), same.next()) {
        (Some(_), _) => There::Named,
        (None, Some(listed)) => There::Unnamed(listed.id),
        (None, None) => There::Absent,
    }
}

/// The images that may have layers which are missing: those of the same repository first, then in the runtime's order,
/// the newest first; a few, and as many more as it is worth to ask about.
fn worth_asking(image: &Image, held: &BTreeSet<Digest>, asked: &[Inspected], listed: &[Listed]) -> Vec<Digest> {
    let most = usize::try_from(missing_bytes(image, held) / WORTH_AN_IMAGE).unwrap_or(usize::MAX).max(4);
    let is_relative = |listed: &Listed| {
        let repository = listed.name.rsplit_once(':').map_or(&*listed.name, |(repository, _)| repository);
        repository.rsplit('/').next() == Some(image.name.repository())
    };
    let (relatives, strangers): (Vec<_>, Vec<_>) = listed.iter().partition(|listed| is_relative(listed));
    let mut seen: BTreeSet<_> = asked.iter().filter_map(Inspected::id).collect();
    let ids = relatives.into_iter().chain(strangers).map(|listed| listed.id);
    ids.filter(|id| seen.insert(*id)).take(most).collect()
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
