//! The whole way through, stage by stage: a table of contents.
//!
//! ```text
//! environment -> closure -> layer plan -> packing -> layer store -> image -> delivery
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::delivery::{self, Delivered, Target, TargetRequest};
use crate::environment::{self, ActivateMode, Environment, Realised, Selection, Surroundings, System};
use crate::error::Error;
use crate::event::{Event, Observer};
use crate::image::{Image, ImageName, ImageSpec, Layer, Timestamp};
use crate::layers::{Layers, Workshop};
use crate::memo::Memo;
use crate::nix::{Closure, Hashing, LocalStore, Source, StorePath, Union};
use crate::pack::{Compression, LayerContents};
use crate::plan;
use crate::store::{GraphNode, ImageRecord, LayerStore};

/// What is asked for.
pub struct Request<'a> {
    /// Which environment.
    pub environment: Selection,
    /// What there is around the command, to find it.
    pub surroundings: Surroundings<'a>,
    /// The kind of machine that the image is for.
    pub system: System,
    /// How the environment is activated; `None` leaves it to the manifest.
    pub mode: Option<ActivateMode>,
    /// The root of the Nix store.
    pub store: PathBuf,
    /// A store path with a bash, for an environment without one.
    pub shell: Option<StorePath>,
    /// Where the image goes.
    pub target: TargetRequest,
    /// The value of `PATH`, on which container runtimes are looked for.
    pub path: Option<OsString>,
    /// The image's tag.
    pub tag: String,
    /// Labels over the manifest's.
    pub labels: BTreeMap<String, String>,
    /// The image's time of creation.
    pub created: Timestamp,
    /// The most layers that the image may have, its top layer included.
    pub max_layers: usize,
    /// How layers are compressed.
    pub compression: Compression,
    /// The layer store; without one everything is made anew.
    pub cache: Option<&'a LayerStore>,
    /// Now: when the image was made, for the layer store, and which files are too young to be remembered.
    pub now: SystemTime,
}

/// What was done.
#[derive(Debug)]
pub struct Report {
    /// The image.
    pub image: Image,
    /// Where it is now.
    pub target: Target,
    /// What its delivery took.
    pub delivered: Delivered,
}

/// Exports an environment as an image; an archive for standard output goes to `stdout`.
pub fn containerize(
    request: Request<'_>,
    stdout: &mut (dyn Write + Send),
    observer: &dyn Observer,
) -> Result<Report, Error> {
    // What can be refused is refused before any work is done.
    let environment = environment::find(&request.environment, &request.surroundings)?;
    let name = ImageName::new(&environment.name, &request.tag)?;
    let target = Target::choose(request.target.clone(), request.path.as_deref(), &environment.name)?;
    target.accepts(request.compression.media_type(), observer)?;

    let memo = Memo::new(request.cache, observer);
    let nix = LocalStore::open(&request.store, Hashing { memo: &memo, observer, now: request.now })?;
    let (closure, realised) = realise(&request, &environment, &nix, observer)?;
    memo.save();
    let sources = Union(vec![&realised.generated, &nix]);

    let plan = plan::plan(&closure, request.max_layers - 1);
    let workshop =
        Workshop { source: &sources, store: request.cache, compression: request.compression, observer };
    let layers = Layers::obtain(workshop, contents_of(&plan, &closure, &realised))?;
    let image = Image::assemble(image_spec(&request, name, &environment, &realised), layers.descriptors()?)?;
    record(&request, &image, &layers, &closure, observer);

    let delivered = delivery::deliver_to(&target, &image, &layers, stdout, observer)?;
    Ok(Report { image, target, delivered })
}
