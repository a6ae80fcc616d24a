//! The whole way through, stage by stage: a table of contents.
//!
//! ```text
//! environment -> closure -> layer plan -> packing -> layer store -> image -> delivery
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::delivery::{self, Delivered, Target, TargetRequest};
use crate::environment::{
    self, ActivateMode, Built, ContainerConfig, Environment, Installed, Lockfile, Package, RealiseError, Realised,
    Selection, Service, StartServices, Surroundings, System,
};
use crate::error::Error;
use crate::event::{Event, Observer, Stage};
use crate::image::{Image, ImageName, ImageSpec, Timestamp};
use crate::layers::{self, Layers, Trouble, Workshop};
use crate::memo::Memo;
use crate::nix::{Closure, ClosureError, Hashing, LocalStore, PathInfo, Source, StorePath};
use crate::pack::{Compression, LayerContents, Packer};
use crate::plan::{self, LayerPlan};
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
    /// Whether the image starts the environment's services.
    pub services: StartServices,
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
    let closure = closure(&nix, ingredients.roots(), observer)?;
    memo.save();

    let (realised, plan) = rayon::join(
        || ingredients.realise(&environment, &closure, &nix),
        || plan::plan(&closure, ingredients.installed(), request.max_layers - 1),
    );
    let realised = realised.map_err(|error| error.with_shell(|| shell_at_hand(&nix, request.system)))?;
    target.accepts_layers(plan.layers.len() + 1)?;
    let trouble = Trouble::default();
    let packer = Packer::new(&nix, request.compression, observer);
    let workshop = Workshop { packer: &packer, store: request.cache, observer, trouble: &trouble };
    let sought = Layers::look_up(workshop, contents_of(&plan, &closure, &realised));
    if let (false, Some(opening)) = (sought.is_complete(), &mut opening) {
        opening.accepts(observer)?;
    }
    let mut sink = target.sink(opening, stdout, observer);
    let spool = match sought.sizes()? {
        Some(sizes) if !request.dry_run => sink.spool(&sizes)?,
        _ => None,
    };
    let layers = sought.pack_missing(spool)?;
    let spec = image_spec(&request, name, &environment.manifest.containerize, &realised);
    let image = Image::assemble(spec, layers.descriptors()?)?;
    if request.dry_run {
        let delivered = delivery::foresee(&image, &layers, &mut *sink)?;
        drop(sink);
        return Ok(Report { image, target, delivered, cache_bytes: None });
    }
    let cache_bytes = layers.record_image(&image_record(&request, &image, &layers, &closure));
    let delivered = delivery::deliver(&image, &layers, &mut *sink, observer)?;
    Ok(Report { image, target, delivered, cache_bytes })
}

/// The store paths that the image holds. Without a Nix database that vouches for them they are read and hashed, as far
/// as they are not remembered: who waits for it sees why.
fn closure(nix: &LocalStore<'_>, roots: Vec<StorePath>, observer: &dyn Observer) -> Result<Closure, ClosureError> {
    if nix.has_database() {
        return Closure::compute(nix, roots);
    }
    observer.event(Event::Started { stage: Stage::Hashing, total_bytes: 0 });
    let closure = Closure::compute(nix, roots);
    observer.event(Event::Finished { stage: Stage::Hashing });
    closure
}

/// What the image is made of: the environment as flox built it, or the packages to render one from.
struct Ingredients {
    built: Option<StorePath>,
    packages: Vec<Package>,
    shell: Option<StorePath>,
    services: BTreeMap<String, Service>,
    mode: ActivateMode,
    lockfile: Option<Vec<u8>>,
}

impl Ingredients {
    fn choose(
        request: &Request<'_>,
        environment: &Environment,
        nix: &LocalStore<'_>,
        observer: &dyn Observer,
    ) -> Result<Self, Error> {
        let mode = request.mode.or(environment.manifest.activate_mode).unwrap_or_default();
        let lock_of = |path: &StorePath| nix.read_file(path, "manifest.lock");
        let built = environment.built(request.system, mode, &lock_of);
        observer.event(Event::Detail { message: built.to_string() });
        let built = match built {
            Built::Usable(path) => Some(path),
            Built::Missing | Built::Unusable { .. } => None,
        };
        let packages = environment.installed(request.system)?.into_iter().filter_map(package).collect();
        let lockfile = environment.lockfile.as_ref().map(Lockfile::to_json);
        let services = environment.manifest.services.started(request.services, request.system)?;
        if !services.is_empty() {
            let names: Vec<&str> = services.keys().map(String::as_str).collect();
            observer.event(Event::Detail { message: format!("the image starts services: {}", names.join(", ")) });
        }
        Ok(Self { built, packages, shell: request.shell.clone(), services, mode, lockfile })
    }

    /// Where the closure begins.
    fn roots(&self) -> Vec<StorePath> {
        let environment = match &self.built {
            Some(built) => vec![built.clone()],
            None => self.packages.iter().map(|package| package.path.clone()).collect(),
        };
        environment.into_iter().chain(self.shell.clone()).collect()
    }

    /// What the user installs, where the closure has it.
    fn installed(&self) -> impl Iterator<Item = &StorePath> {
        self.packages.iter().map(|package| &package.path)
    }

    /// The image's own files: the environment's tree, its activation, accounts.
    fn realise(
        &self,
        environment: &Environment,
        closure: &Closure,
        source: &dyn Source,
    ) -> Result<Realised, RealiseError> {
        environment::realise(&environment::RealiseRequest {
            name: &environment.name,
            manifest: &environment.manifest,
            lockfile: self.lockfile.as_deref(),
            packages: &self.packages,
            built: self.built.as_ref(),
            closure,
            source,
            mode: self.mode,
            shell: self.shell.as_ref(),
            services: &self.services,
        })
    }
}

/// A bash of the store that runs on `system`, for whoever learns that the environment has none: an interactive one
/// rather than another, and of those the newest.
fn shell_at_hand(nix: &LocalStore<'_>, system: System) -> Option<StorePath> {
    let mut shells = nix.named(|name| name.starts_with("bash-")).ok()?;
    shells.sort_by_key(|path| path.name().starts_with("bash-interactive-"));
    let runs = |path: &StorePath| {
        let program = nix.read_file(path, "bin/bash").ok().flatten();
        program.is_some_and(|program| system.runs(&program)) && matches!(nix.path_info(path), Ok(Some(_)))
    };
    shells.into_iter().rev().find(runs)
}

/// A `log` output is a package's build log: a single file, which flox leaves out of environments.
fn package(installed: Installed) -> Option<Package> {
    let Installed { install_id, output, path, priority } = installed;
    (output.as_deref() != Some("log")).then_some(Package { name: install_id, path, priority })
}

/// The planned layers with what goes into them, and the thin layer of own files above.
fn contents_of<'a>(plan: &LayerPlan, closure: &'a Closure, realised: &'a Realised) -> Vec<LayerContents<'a>> {
    let store_paths = |paths: &Vec<StorePath>| paths.iter().filter_map(|path| closure.get(path)).collect();
    let below = plan.layers.iter().map(|paths| LayerContents::StorePaths(store_paths(paths)));
    let top = LayerContents::RootFs { root: &realised.rootfs, store_paths: &realised.generated };
    below.chain([top]).collect()
}

fn image_spec(request: &Request<'_>, name: ImageName, config: &ContainerConfig, realised: &Realised) -> ImageSpec {
    let mut spec = ImageSpec::new(name, request.system.architecture());
    spec.created = request.created;
    spec.entrypoint = realised.entrypoint.clone();
    spec.cmd = Some(realised.cmd.clone()).filter(|cmd| !cmd.is_empty());
    spec.env = realised.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    spec.user = config.user.as_ref().map(|user| user.text.clone());
    spec.exposed_ports = config.exposed_ports.clone();
    spec.volumes = config.volumes.clone();
    spec.working_dir = config.working_dir.clone();
    spec.labels = config.labels.clone();
    spec.labels.extend(request.labels.clone());
    spec.stop_signal = config.stop_signal.clone();
    spec
}

/// What the layer store remembers of the image: its layers, and who refers to what in it.
fn image_record(request: &Request<'_>, image: &Image, layers: &Layers<'_>, closure: &Closure) -> ImageRecord {
    let place: BTreeMap<&StorePath, usize> = closure.paths().enumerate().map(|(at, info)| (&info.path, at)).collect();
    let node = |info: &PathInfo| GraphNode {
        name: info.path.base_name().to_owned(),
        root: closure.roots().contains(&info.path),
        references: info.references.iter().filter_map(|path| place.get(path).copied()).collect(),
    };
    let now = request.now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    ImageRecord {
        name: image.name.repository().to_owned(),
        tag: image.name.tag().to_owned(),
        image_id: image.config_digest,
        manifest_digest: image.manifest_digest,
        layers: layers.keys().to_vec(),
        size: image.layers.iter().map(|layer| layer.size).sum(),
        made_at: now,
        used_at: now,
        graph: closure.paths().map(node).collect(),
    }
}
