//! What a runtime is asked first, while the image is still being made.

use std::path::Path;

use serde::Deserialize;

use super::load::ReadyLoad;
use super::runtime::Listed;
use super::{DeliveryError, Runtime, RuntimeClient, docker};
use crate::blob::{DiffId, Digest};
use crate::child::Child;
use crate::event::Observer;
use crate::image::{ImageName, LayerMediaType};

/// The questions that a delivery into a runtime begins with, on their way: what stands under the image's name, and,
/// where the compression makes that matter, the daemon's version.
///
/// Where nothing has changed since the last delivery, the first answer is all that the delivery needs.
pub struct Opening {
    client: RuntimeClient,
    named: Option<Child>,
    version: Option<Child>,
    /// What stands under the name, once that is known.
    pub(super) found: Option<Inspected>,
    /// Every image of the runtime, where there is none under the name.
    pub(super) listed: Option<Vec<Listed>>,
    /// What will take the image in, where that was begun.
    pub(super) load: Option<ReadyLoad>,
}

impl Opening {
    /// Asks, and does not wait for the answers.
    pub(super) fn ask(
        client: &RuntimeClient,
        name: &ImageName,
        media_type: LayerMediaType,
    ) -> Result<Self, DeliveryError> {
        let named = client.spawn(&inspect(&[client.name_of(name)]), false)?;
        let version = docker::must_tell_version(client.runtime(), media_type)
            .then(|| client.spawn(&docker::VERSION, false))
            .transpose()?;
        Ok(Self { client: client.clone(), named: Some(named), version, found: None, listed: None, load: None })
    }

    /// Has a runtime whose program starts slowly get ready for an image that it will hardly have.
    ///
    /// Podman takes longer to start than a small layer takes to pack. It reads what it loads into a file first, so that
    /// it holds nobody up meanwhile. Docker's program leaves the work to its daemon.
    pub fn get_ready(&mut self) {
        if self.client.runtime() == Runtime::Podman && self.load.is_none() {
            self.load = Some(ReadyLoad::start(&self.client));
        }
    }

    /// Fails where the runtime does not read such layers; waits for its answer only where that matters.
    pub fn reads_layers(&mut self, observer: &dyn Observer) -> Result<(), DeliveryError> {
        let Some(child) = self.version.take() else { return Ok(()) };
        let ended = self.client.wait(child, observer)?;
        docker::reads_zstd(&self.client, &ended, observer)
    }

    /// Waits for all answers, and fails where the runtime does not answer or does not read such layers: to be called
    /// before layers are made for it.
    pub fn accepts(&mut self, observer: &dyn Observer) -> Result<(), DeliveryError> {
        self.reads_layers(observer)?;
        if let Some(child) = self.named.take() {
            let ended = self.client.wait(child, observer)?;
            if ended.status.success() {
                let answer = String::from_utf8_lossy(&ended.stdout).into_owned();
                let found = Inspected::parse(&answer).into_iter().next();
                let command = self.client.shown(&INSPECT);
                self.found = Some(found.ok_or(DeliveryError::Answer { command, answer })?);
            } else {
                // There is none under the name, or the runtime does not answer: this question tells which, and what
                // else there is.
                self.listed = Some(self.client.images(observer)?);
            }
        }
        Ok(())
    }
}

const INSPECT: [&str; 4] = ["image", "inspect", "--format", "{{json .}}"];

fn inspect<S: AsRef<str>>(images: &[S]) -> Vec<&str> {
    INSPECT.into_iter().chain(images.iter().map(AsRef::as_ref)).collect()
}

/// What a runtime says of an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    id: String,
    #[serde(rename = "RootFS")]
    root_fs: RootFs,
    /// Each driver has something else to say.
    #[serde(default)]
    graph_driver: serde_json::Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RootFs {
    layers: Option<Vec<DiffId>>,
}

impl Inspected {
    /// Reads an object an image, as Docker prints them, or a list of them, as Podman does. Images that are not understood
    /// are left out.
    pub(super) fn parse(answer: &str) -> Vec<Self> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Answer {
            Images(Vec<Inspected>),
            Image(Inspected),
        }
        let answers = serde_json::Deserializer::from_str(answer).into_iter::<Answer>();
        let images = answers.map_while(Result::ok).flat_map(|answer| match answer {
            Answer::Images(images) => images,
            Answer::Image(image) => vec![image],
        });
        images.filter(|image| image.id().is_some()).collect()
    }

    /// The image ID.
    pub(super) fn id(&self) -> Option<Digest> {
        super::runtime::parse_id(&self.id)
    }

    /// Its layers, the bottom one first.
    pub(super) fn diff_ids(&self) -> &[DiffId] {
        self.root_fs.layers.as_deref().unwrap_or_default()
    }

    /// What keeps its layers: `overlay2`, `overlayfs`.
    pub(super) fn driver(&self) -> Option<&str> {
        self.graph_driver.get("Name")?.as_str()
    }

    /// Where the driver keeps the topmost layer, if it is one that says so.
    pub(super) fn upper_dir(&self) -> Option<&Path> {
        Some(Path::new(self.graph_driver.get("Data")?.get("UpperDir")?.as_str()?))
    }
}

impl RuntimeClient {
    /// Those of these images, given by name or ID, that the runtime has.
    pub(super) fn inspect(&self, images: &[String], observer: &dyn Observer) -> Result<Vec<Inspected>, DeliveryError> {
        let mut found = Vec::new();
        // As many as fit a command line easily.
        for images in images.chunks(256) {
            // It fails where one of them is missing, but says what it knows of the others.
            let ended = self.wait(self.spawn(&inspect(images), false)?, observer)?;
            found.extend(Inspected::parse(&String::from_utf8_lossy(&ended.stdout)));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_as_either_runtime_prints_them() {
        let id = Digest::of(b"config");
        let docker =
            format!(r#"{{"Id":"{id}","RootFS":{{"Type":"layers","Layers":["{id}"]}},"GraphDriver":{{"Name":"vfs"}}}}"#);
        let found = Inspected::parse(&format!("{docker}\n{docker}\n"));
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].id(), found[1].driver(), found[1].diff_ids()), (Some(id), Some("vfs"), &[DiffId(id)][..]));
        let podman = format!("[\n  {{\"Id\": \"{}\", \"RootFS\": {{\"Layers\": null}}}}\n]\n", id.hex());
        let found = Inspected::parse(&podman);
        assert_eq!((found[0].id(), found[0].driver(), found[0].diff_ids().len()), (Some(id), None, 0));
        for (data, upper_dir) in [
            ("null", None),
            ("[]", None),
            (r#""x""#, None),
            (r#"{"UpperDir":1}"#, None),
            (r#"{"LowerDir":"/l","UpperDir":"/u"}"#, Some(Path::new("/u"))),
        ] {
            let image = format!(r#"{{"Id":"{id}","RootFS":{{}},"GraphDriver":{{"Name":"n","Data":{data}}}}}"#);
            let found = Inspected::parse(&image);
            assert_eq!((found[0].driver(), found[0].upper_dir()), (Some("n"), upper_dir), "{data}");
        }
        assert_eq!(Inspected::parse(&docker)[0].upper_dir(), None);
        for graph_driver in ["null", "{}", r#"{"Name":null}"#, r#""x""#] {
            let found = Inspected::parse(&format!(r#"{{"Id":"{id}","RootFS":{{}},"GraphDriver":{graph_driver}}}"#));
            assert_eq!((found[0].driver(), found[0].upper_dir()), (None, None), "{graph_driver}");
        }
        assert!(Inspected::parse("nonsense").is_empty());
        assert!(Inspected::parse(r#"{"Id":"nonsense","RootFS":{}}"#).is_empty());
    }
}
