//! The whole way through, stage by stage: a table of contents.
//!
//! ```text
//! environment -> closure -> layer plan -> packing -> layer store -> image -> delivery
//! ```

mod platform;
mod record;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::delivery::{self, Delivered, Target, TargetRequest};
use crate::environment::{self, ActivateMode, Selection, Surroundings, System};
use crate::error::Error;
use crate::event::Observer;
use crate::image::{Image, ImageName, Timestamp};
use crate::layers::{self, Layers, Trouble, Workshop};
use crate::memo::Memo;
use crate::nix::{Hashing, LocalStore, StorePath};
use crate::pack::{Compression, Packer};
use crate::store::LayerStore;
use platform::{Ingredients, Platform};

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
    /// Whether the image is only made and described, and its target left as it is.
    pub dry_run: bool,
    /// Now: when the image was made, for the layer store, and which files are too young to be remembered.
    pub now: SystemTime,
}

/// What was done.
#[derive(Debug)]
pub struct Report {
    /// The image.
    pub image: Image,
    /// Where it is now, or would be.
    pub target: Target,
    /// What its delivery took, or would have taken.
    pub delivered: Delivered,
    /// How many bytes the layer store takes now; `None` without one, or where it failed.
    pub cache_bytes: Option<u64>,
}

/// Exports an environment as an image; an archive for standard output goes to `stdout`.
pub fn containerize(
    request: Request<'_>,
    stdout: &mut (dyn Write + Send),
    observer: &dyn Observer,
) -> Result<Report, Error> {
    // What can be refused is refused before any layer is packed; a runtime is asked while the image is planned.
    let environment = environment::find(&request.environment, &request.surroundings)?;
    let name = ImageName::new(&environment.name, &request.tag)?;
    let target = Target::choose(request.target.clone(), request.path.as_deref(), &environment.name)?;
    let mut opening = target.ask(&name, layers::media_type(request.compression))?;

    let memo = Memo::new(request.cache, observer);
    let nix = LocalStore::open(&request.store, Hashing { memo: &memo, observer, now: request.now })?;
    let ingredients = Ingredients::choose(&request, &environment, &nix, observer)?;
    let platform = Platform::gather(ingredients, &nix, observer)?;
    memo.save();

    let composed = platform.compose(&environment, &nix, request.max_layers)?;
    target.accepts_layers(composed.layer_count())?;
    let trouble = Trouble::default();
    let packer = Packer::new(&nix, request.compression, observer);
    let workshop = Workshop { packer: &packer, store: request.cache, observer, trouble: &trouble };
    let sought = Layers::look_up(workshop, composed.contents());
    if let (false, Some(opening)) = (sought.is_complete(), &mut opening) {
        opening.accepts(observer)?;
    }
    let mut sink = target.sink(opening, stdout, observer);
    let spool = match sought.sizes()? {
        Some(sizes) if !request.dry_run => sink.spool(&sizes)?,
        _ => None,
    };
    let layers = sought.pack_missing(spool)?;
    let spec = composed.spec(&request, name, &environment.manifest.containerize);
    let image = Image::assemble(spec, layers.descriptors()?)?;
    if request.dry_run {
        let delivered = delivery::foresee(&image, &layers, &mut *sink)?;
        drop(sink);
        return Ok(Report { image, target, delivered, cache_bytes: None });
    }
    let cache_bytes = layers.record_image(&record::of(&image, &platform.closure, layers.keys(), request.now));
    let delivered = delivery::deliver(&image, &layers, &mut *sink, observer)?;
    Ok(Report { image, target, delivered, cache_bytes })
}
