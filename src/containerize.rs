//! The whole way through, stage by stage: a table of contents.
//!
//! ```text
//! environment -> closure -> layer plan -> packing -> layer store -> image -> delivery
//! ```

mod again;
mod attempt;
mod ballast;
mod own_files;
mod platform;
mod previous;
mod record;
mod sources;
mod targets;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::delivery::{Means, TargetRequest};
use crate::environment::{self, ActivateMode, Environment, Selection, StartServices, Surroundings, System};
use crate::error::Error;
use crate::event::Observer;
use crate::image::{Image, ImageName, Images, Timestamp};
use crate::layers::{Layers, MadeBefore, Trouble, Workshop};
use crate::memo::Memo;
use crate::nix::StorePath;
use crate::outlet::Outlet;
use crate::pack::{Compression, Packer};
use crate::registry::{self, Registries};
use crate::share::{self, Hurry, SharedCache};
use crate::store::LayerStore;
use crate::substitute;
pub use again::{AgainRequest, push_again};
use attempt::Attempt;
use platform::{Composed, Ingredients, Platform};
pub use previous::Previous;
pub use targets::Delivery;
use targets::Targets;

/// What is asked for.
pub struct Request<'a> {
    /// Which environment.
    pub environment: Selection,
    /// What there is around the command, to find it.
    pub surroundings: Surroundings<'a>,
    /// The kinds of machine that images are for, each once; several give an image index, the first one foremost.
    pub systems: Vec<System>,
    /// The kind of machine that this is, if images are made for it.
    pub this_system: Option<System>,
    /// How the environment is activated; `None` leaves it to the manifest.
    pub mode: Option<ActivateMode>,
    /// The root of the Nix store; where none is named, `/`, if there is a store.
    pub store: Option<PathBuf>,
    /// The binary caches for what the Nix store does not have.
    pub substituters: substitute::Settings,
    /// Store paths with a bash, for an environment without one.
    pub shells: BTreeMap<System, StorePath>,
    /// Whether images start the environment's services.
    pub services: StartServices,
    /// Where the image goes.
    pub target: TargetRequest,
    /// How registries are reached.
    pub registries: registry::Settings,
    /// The value of `PATH`, on which container runtimes are looked for.
    pub path: Option<OsString>,
    /// The image's tag.
    pub tag: String,
    /// Labels over the manifest's.
    pub labels: BTreeMap<String, String>,
    /// The image's time of creation.
    pub created: Timestamp,
    /// The image that layers are laid out on; without one they are what the environment alone makes them.
    pub previous: Option<Previous>,
    /// The most layers that each image may have, those of its own files included.
    pub max_layers: usize,
    /// How layers are compressed.
    pub compression: Compression,
    /// The layer store; without one everything is made anew.
    pub cache: Option<&'a LayerStore>,
    /// What other machines know of layers, and whom this one tells.
    pub share: share::Settings,
    /// Whether the image is only made and described, and its target left as it is.
    pub dry_run: bool,
    /// Now: when the image was made, for the layer store, and which files are too young to be remembered.
    pub now: SystemTime,
}

/// What was done.
#[derive(Debug)]
pub struct Report {
    /// The image, or the images and their index.
    pub images: Images,
    /// Where it is now, or would be, and what that took.
    pub deliveries: Vec<Delivery>,
    /// How many bytes the layer store takes now; `None` without one, or where it failed.
    pub cache_bytes: Option<u64>,
}

/// Exports an environment as an image, or as images for several platforms with their index; an archive for standard
/// output goes to `stdout`.
pub fn containerize(
    request: Request<'_>,
    stdout: &mut (dyn Outlet + Send),
    observer: &dyn Observer,
) -> Result<Report, Error> {
    let environment = environment::find(&request.environment, &request.surroundings, observer)?;
    let name = ImageName::new(&environment.name, &request.tag)?;
    let mut targets = Targets::choose(&request, &name, &environment.name)?;
    targets.accept_compression(observer)?;

    let memo = Memo::new(request.cache, observer);
    let nix = request.reach(&memo, observer)?;
    let ingredients = request
        .for_each(&request.systems, |&system| Ingredients::choose(&request, system, &environment, &nix, observer))?;
    let catalog = request.catalog(&memo, observer);
    let mut platforms = request
        .for_each(ingredients, |ingredients| Platform::gather(&request, ingredients, &nix, &catalog, observer))?;
    let share = if request.dry_run { request.share.clone().read_only() } else { request.share.clone() };
    let hurry = Hurry::new(observer);
    let shared = SharedCache::new(share, &memo, &hurry, request.now);
    let in_registries = targets.in_registries();
    request.lay_out_on_previous(&mut platforms, &name, in_registries, &nix, shared.as_ref(), observer);
    memo.save();

    let trouble = Trouble::default();
    let packer = Packer::new(&nix, request.compression, observer);
    let workshop = Workshop {
        packer: &packer,
        store: request.cache,
        observer,
        trouble: &trouble,
        shared: shared.as_ref(),
        now: request.now,
    };
    let far = platforms.iter().map(|platform| platform.far_layers(&nix, request.max_layers)).collect();
    let mut counts = platforms.iter().filter_map(|platform| platform.layer_count(request.max_layers));
    counts.try_for_each(|count| targets.accept_layers(count))?;
    let far = Layers::look_up_far(workshop, far);
    if !far.is_complete() {
        targets.hear(observer)?;
    }
    let mut made_before = far.make_before()?;

    let composed = request.for_each(&platforms, |platform| platform.compose(&environment, &nix, request.max_layers))?;
    memo.save();
    composed.iter().try_for_each(|composed| targets.accept_layers(composed.layer_count()))?;
    let making = Making {
        request: &request,
        environment: &environment,
        name,
        platforms: &platforms,
        composed: &composed,
        workshop,
    };
    attempt::make(targets, &memo, observer, |targets| {
        making.attempt(targets, std::mem::take(&mut made_before), &mut *stdout)
    })
}

/// An image whose layers are planned.
struct Making<'m> {
    request: &'m Request<'m>,
    environment: &'m Environment,
    name: ImageName,
    platforms: &'m [Platform],
    composed: &'m [Composed<'m>],
    workshop: Workshop<'m>,
}

impl Making<'_> {
    /// Makes the layers that are not known, puts the image together and brings it to its targets.
    fn attempt(
        &self,
        mut targets: Targets,
        made_before: MadeBefore,
        stdout: &mut (dyn Outlet + Send),
    ) -> Result<Attempt, Error> {
        let Self { request, environment, platforms, composed, workshop, .. } = self;
        let observer = workshop.observer;
        let contents = composed.iter().map(Composed::contents).collect();
        let sought = Layers::look_up(*workshop, contents, made_before);
        if !sought.is_complete() {
            if sought.is_begun() && !request.dry_run {
                targets.get_ready();
            }
            targets.hear(observer)?;
        }
        let registries = Registries::new(request.registries.clone(), observer);
        let means = Means { registries: &registries, observer, asks_for_all: false, dry_run: request.dry_run };
        let mut sinks = targets.sinks(stdout, &means);
        let sizes = if request.dry_run || !sinks.have_places() { None } else { sought.sizes()? };
        let spool = match sizes {
            Some(sizes) => sinks.spool(&sizes)?,
            None => None,
        };
        let layers = sought.pack_missing(spool)?;
        let images = request.for_each(composed.iter().zip(layers.descriptors()?), |(composed, layers)| {
            Image::assemble(composed.spec(request, self.name.clone(), &environment.manifest.containerize), layers)
        })?;
        let images = Images::assemble(self.name.clone(), images)?;
        if request.dry_run {
            layers.remember_states();
            let deliveries = sinks.foresee(&images, &layers)?;
            return Ok(Attempt::Made(Report { images, deliveries, cache_bytes: None }));
        }
        let closures: Vec<_> = platforms.iter().map(|platform| &platform.closure).collect();
        let cache_bytes = layers.record_image(&record::of(&images, &closures, &layers, request.now));
        let deliveries = sinks.deliver(&images, &layers, observer);
        layers.remember_states();
        match deliveries {
            Ok(deliveries) => {
                layers.share(&record::use_of(&images, &layers, &deliveries, request.now));
                Ok(Attempt::Made(Report { images, deliveries, cache_bytes }))
            }
            Err(error) => Ok(Attempt::Failed { error, wrong: layers.count_wrong() }),
        }
    }
}
