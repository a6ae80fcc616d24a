//! What an image is made of on one platform: its ingredients, their closure, the layers planned of it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::mem;
use std::sync::OnceLock;

use super::Request;
use crate::catalog;
use crate::environment::{
    self, ActivateMode, Basic, Built, ContainerConfig, Environment, FromNixpkgs, InstallEntry, Installed, Lockfile,
    Package, RealiseError, Realised, Service, System,
};
use crate::error::Error;
use crate::event::{Event, Observer, Stage, in_one_line};
use crate::image::{ImageName, ImageSpec};
use crate::nix::{Closure, ClosureError, PathInfo, Source, StorePath};
use crate::pack::LayerContents;
use crate::plan::{self, LayerPlan};
use crate::rootfs::RootFs;
use crate::substitute::Reach;

/// With fewer layers than that none can be spared for what seldom changes among an image's own files.
const FEW_LAYERS: usize = 10;

/// Of the root's links at most one part in so many lies elsewhere than in their layer.
const OTHER_LINKS: usize = 4;

/// How many layers an image's own files get: one for the root's links, which seldom change, and one for the rest.
fn own_layers(max_layers: usize) -> usize {
    if max_layers < FEW_LAYERS { 1 } else { 2 }
}

impl Request<'_> {
    /// Goes through a stage for each platform. What fails says whose image it would be, unless that goes without
    /// saying.
    pub(super) fn for_each<T, U, E: Into<Error>>(
        &self,
        platforms: impl IntoIterator<Item = T>,
        stage: impl Fn(T) -> Result<U, E>,
    ) -> Result<Vec<U>, Error> {
        let named = |(system, platform)| stage(platform).map_err(|error| self.name_platform(system, error.into()));
        self.systems.iter().copied().zip(platforms).map(named).collect()
    }

    fn name_platform(&self, system: System, error: Error) -> Error {
        match self.goes_without_saying(system) {
            true => error,
            false => Error::Platform { system, here: self.this_system == Some(system), error: Box::new(error) },
        }
    }

    /// A message about one platform.
    pub(super) fn of_platform(&self, system: System, message: &dyn Display) -> String {
        match self.goes_without_saying(system) {
            true => message.to_string(),
            false => format!("{}: {message}", system.platform()),
        }
    }

    /// Whether images are made for this machine alone.
    fn goes_without_saying(&self, system: System) -> bool {
        self.this_system == Some(system) && self.systems.len() == 1
    }
}

/// The environment as flox built it, or the packages to render one from.
pub(super) struct Ingredients {
    system: System,
    built: Option<StorePath>,
    packages: Vec<Package>,
    shell: Option<StorePath>,
    services: BTreeMap<String, Service>,
    mode: ActivateMode,
    lockfile: Option<Vec<u8>>,
    from_nixpkgs: Vec<FromNixpkgs>,
    /// What Flox adds to every environment, as far as the environment itself does not have it.
    basics: Vec<StorePath>,
}

impl Ingredients {
    /// What the environment's files say that the image is made of; the store is asked only for what flox built.
    pub(super) fn choose(
        request: &Request<'_>,
        system: System,
        environment: &Environment,
        nix: &Reach<'_>,
        observer: &dyn Observer,
    ) -> Result<Self, Error> {
        let mode = request.mode.or(environment.manifest.activate_mode).unwrap_or_default();
        let lock_of = |path: &StorePath| nix.read_file(path, "manifest.lock");
        let built = environment.built(system, mode, &lock_of);
        observer.event(Event::Detail { message: request.of_platform(system, &built) });
        let built = match built {
            Built::Usable(path) => Some(path),
            Built::Missing | Built::Unusable { .. } => None,
        };
        let packages: Vec<_> = environment.installed(system)?.into_iter().filter_map(package).collect();
        if !request.goes_without_saying(system) {
            warn_of_store_paths(environment, system, &packages, observer);
        }
        let lockfile = environment.lockfile.as_ref().map(Lockfile::to_json);
        let from_nixpkgs =
            environment.lockfile.as_ref().map(|lockfile| lockfile.from_nixpkgs(system)).unwrap_or_default();
        let services = environment.manifest.services.started(request.services, system)?;
        if !services.is_empty() {
            let names: Vec<&str> = services.keys().map(String::as_str).collect();
            let message = request.of_platform(system, &format!("the image starts services: {}", names.join(", ")));
            observer.event(Event::Detail { message });
        }
        let shell = request.shells.get(&system).cloned();
        let basics = Vec::new();
        Ok(Self { system, built, packages, shell, services, mode, lockfile, from_nixpkgs, basics })
    }

    /// Where the closure begins.
    fn roots(&self) -> Vec<StorePath> {
        let environment = match &self.built {
            Some(built) => vec![built.clone()],
            None => self.packages.iter().map(|package| package.path.clone()).collect(),
        };
        environment.into_iter().chain(self.shell.clone()).chain(self.basics.clone()).collect()
    }

    /// Asks Flox's catalog for those of bash, coreutils and certificates that the closure lacks. Without an answer the
    /// image does without, as far as it can.
    fn add_basics(
        &mut self,
        request: &Request<'_>,
        closure: &Closure,
        nix: &Reach<'_>,
        catalog: &catalog::Access<'_>,
        observer: &dyn Observer,
    ) {
        let wanted = Basic::lacking(closure, self.shell.as_ref());
        if wanted.is_empty() || self.from_nixpkgs.is_empty() {
            return;
        }
        let say = |message: String| request.of_platform(self.system, &message);
        let found = match catalog.find(self.system, &self.from_nixpkgs, &wanted) {
            Ok(found) => found,
            Err(error) => {
                let names: Vec<_> = wanted.iter().map(|basic| basic.name()).collect();
                let (names, why) = (names.join(", "), in_one_line(&error));
                let message = format!("the image goes without {names}: Flox's catalog was not asked: {why}");
                observer.event(Event::Warning { message: say(message) });
                return;
            }
        };
        for basic in wanted {
            let name = basic.name();
            let (message, path) = match found.paths.get(&basic) {
                None => (format!("Flox's catalog has no {name} beside the environment's packages"), None),
                Some(path) => match nix.path_info(path) {
                    Ok(Some(_)) => (format!("{name} beside the environment's packages: '{path}'"), Some(path.clone())),
                    Ok(None) => (format!("{name} would be '{path}', which is nowhere to be had"), None),
                    Err(error) => {
                        let why = in_one_line(&error);
                        (format!("{name} would be '{path}', which cannot be had: {why}"), None)
                    }
                },
            };
            let from = found.other_revisions.get(&basic).filter(|_| path.is_some());
            let from = from.map(|revision| format!(", of nixpkgs {revision}")).unwrap_or_default();
            observer.event(Event::Detail { message: say(message + &from) });
            self.basics.extend(path);
        }
    }

    /// What the user installs, where the closure has it.
    fn installed(&self) -> impl Iterator<Item = &StorePath> {
        self.packages.iter().map(|package| &package.path)
    }
}

/// A package that is given as a store path is what it is: nobody can tell which kind of machine it was built for.
fn warn_of_store_paths(environment: &Environment, system: System, packages: &[Package], observer: &dyn Observer) {
    let entry = |package: &Package| environment.manifest.install.get(&package.name);
    let of_any = |package: &&Package| entry(package).is_some_and(InstallEntry::is_the_same_everywhere);
    let names: Vec<_> = packages.iter().filter(of_any).map(|package| format!("'{}'", package.name)).collect();
    if !names.is_empty() {
        let message = format!(
            "the image for {} gets the store paths of {} as they are, whatever they were built for; \
             say in the manifest what systems they are for",
            system.platform(),
            names.join(", ")
        );
        observer.event(Event::Warning { message });
    }
}

/// A bash of the store that runs on `system`, for whoever learns that the environment has none: an interactive one
/// rather than another, and of those the newest.
fn shell_at_hand(nix: &Reach<'_>, system: System) -> Option<StorePath> {
    let mut shells = nix.local_paths(|name| name.starts_with("bash-")).ok()?;
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

/// The ingredients with every store path that the image holds.
pub(super) struct Platform {
    ingredients: Ingredients,
    pub(super) closure: Closure,
    /// The image before.
    previous: plan::Previous,
    /// What layers of it hold and the closure does not.
    gone: BTreeMap<StorePath, PathInfo>,
    /// The links in its root.
    links: Option<RootFs>,
    plan: OnceLock<LayerPlan>,
}

impl Platform {
    /// Computes the closure. Without a Nix database that vouches for the paths they are read and hashed, as far as they
    /// are not remembered: who waits for it sees why.
    ///
    /// What Flox adds to every environment is added where the lockfile's own nixpkgs has it and the paths can be had.
    pub(super) fn gather(
        request: &Request<'_>,
        mut ingredients: Ingredients,
        nix: &Reach<'_>,
        catalog: &catalog::Access<'_>,
        observer: &dyn Observer,
    ) -> Result<Self, ClosureError> {
        let mut closure = Self::closure(&ingredients, nix, observer)?;
        if ingredients.built.is_none() && !request.substituters.addresses.is_empty() {
            ingredients.add_basics(request, &closure, nix, catalog, observer);
            if !ingredients.basics.is_empty() {
                closure = Self::closure(&ingredients, nix, observer)?;
            }
        }
        Ok(Self {
            ingredients,
            closure,
            previous: plan::Previous::default(),
            gone: BTreeMap::new(),
            links: None,
            plan: OnceLock::new(),
        })
    }

    fn closure(ingredients: &Ingredients, nix: &Reach<'_>, observer: &dyn Observer) -> Result<Closure, ClosureError> {
        let closure = || Closure::compute(nix, ingredients.roots());
        if nix.is_vouched_for() {
            return closure();
        }
        observer.event(Event::Started { stage: Stage::Hashing, total_bytes: 0 });
        let closure = closure();
        observer.event(Event::Finished { stage: Stage::Hashing });
        closure
    }

    /// Plans the layers, laid out on these of the image before; `gone` is what they hold and the closure does not, as
    /// far as it can be had.
    pub(super) fn lay_out_on(
        &mut self,
        layers: Vec<Vec<StorePath>>,
        gone: BTreeMap<StorePath, PathInfo>,
        max_layers: usize,
    ) -> LaidOut {
        let sizes = gone.iter().map(|(path, info)| (path.clone(), info.nar_size)).collect();
        self.previous = plan::Previous { layers, gone: sizes };
        self.gone = gone;
        let plan = self.plan(max_layers);
        let ballast = plan.hidden.iter().filter_map(|path| self.gone.get(path)).map(|info| info.nar_size).sum();
        LaidOut { kept: plan.kept, hidden: plan.hidden.len(), ballast }
    }

    /// Whether all layers of the image before stay, below those of its own files, and nothing comes on top of them.
    pub(super) fn keeps_all_below(&self, max_layers: usize) -> bool {
        let plan = self.plan(max_layers);
        // That of the links and the top layer are the image's before as well.
        plan.kept == plan.layers.len() && plan.kept == self.previous.layers.len().saturating_sub(2)
    }

    /// What the root's links of the image before are. Their layer may stay, but only if all below stays as well: a
    /// chained store would unpack it again all the same, and another machine would make another image for nothing.
    pub(super) fn keep_links(&mut self, links: Option<RootFs>) {
        self.links = links;
    }

    /// The planned layers in which something of the closure lies far away; an environment is rendered of what is known
    /// of them once they are made. Where nothing does, nothing is planned yet.
    pub(super) fn far_layers(&self, source: &dyn Source, max_layers: usize) -> Vec<LayerContents<'_>> {
        if !self.closure.paths().any(|info| source.is_far(&info.path)) {
            return Vec::new();
        }
        let is_far = |path: &StorePath| source.is_far(path) && self.closure.get(path).is_some();
        let has_any = |paths: &&Vec<StorePath>| paths.iter().any(is_far);
        self.plan(max_layers).layers.iter().filter(has_any).map(|paths| self.layer(paths)).collect()
    }

    /// How many layers the image will have, where that is known before its environment is rendered.
    pub(super) fn layer_count(&self, max_layers: usize) -> Option<usize> {
        Some(self.plan.get()?.layers.len() + own_layers(max_layers))
    }

    /// Renders the environment and plans the layers, at once.
    pub(super) fn compose(
        &self,
        environment: &Environment,
        source: &Reach<'_>,
        max_layers: usize,
    ) -> Result<Composed<'_>, RealiseError> {
        let (realised, plan) = rayon::join(|| self.realise(environment, source), || self.plan(max_layers));
        let mut realised =
            realised.map_err(|error| error.with_shell(|| shell_at_hand(source, self.ingredients.system)))?;
        let (links, mut own) = (mem::take(&mut realised.links), mem::take(&mut realised.own));
        plan.hidden.iter().for_each(|path| own.whiteout(format!("nix/store/{}", path.base_name()).as_bytes()));
        let own = match own_layers(max_layers) {
            1 => vec![own.over(links)],
            _ => self.over_the_links_before(links, own),
        };
        Ok(Composed { platform: self, plan, realised, own })
    }

    /// The layers of own files. Where most of the root's links are those of the image before, their layer stays as it
    /// is, and the top layer has what is different.
    fn over_the_links_before(&self, links: RootFs, own: RootFs) -> Vec<RootFs> {
        if let Some(before) = self.links.as_ref().filter(|before| **before != links)
            && let Some(top) = own.clone().over(links.clone()).changes_from(before)
            && top.count() <= own.count() + links.count() / OTHER_LINKS
        {
            return vec![before.clone(), top];
        }
        vec![links, own]
    }

    /// The image's own files: the environment's tree, its activation, accounts.
    fn realise(&self, environment: &Environment, source: &dyn Source) -> Result<Realised, RealiseError> {
        let Ingredients { built, packages, shell, services, mode, lockfile, .. } = &self.ingredients;
        environment::realise(&environment::RealiseRequest {
            name: &environment.name,
            manifest: &environment.manifest,
            lockfile: lockfile.as_deref(),
            packages,
            built: built.as_ref(),
            closure: &self.closure,
            source,
            mode: *mode,
            shell: shell.as_ref(),
            services,
        })
    }

    /// The layers below those of own files.
    fn plan(&self, max_layers: usize) -> &LayerPlan {
        self.plan.get_or_init(|| {
            let budget = max_layers - own_layers(max_layers);
            plan::plan(&self.closure, self.ingredients.installed(), &self.previous, budget)
        })
    }

    fn layer(&self, paths: &[StorePath]) -> LayerContents<'_> {
        LayerContents::StorePaths(
            paths.iter().filter_map(|path| self.closure.get(path).or_else(|| self.gone.get(path))).collect(),
        )
    }
}

/// What stays of an image before.
pub(super) struct LaidOut {
    /// How many of its layers.
    pub(super) kept: usize,
    /// How many store paths in them are hidden.
    pub(super) hidden: usize,
    /// Their length in bytes, as NARs.
    pub(super) ballast: u64,
}

/// All that the image's layers and its configuration are made of.
pub(super) struct Composed<'a> {
    platform: &'a Platform,
    plan: &'a LayerPlan,
    realised: Realised,
    /// The image's own files, by layer.
    own: Vec<RootFs>,
}

impl Composed<'_> {
    /// How many layers the image has.
    pub(super) fn layer_count(&self) -> usize {
        self.plan.layers.len() + self.own.len()
    }

    /// The planned layers with what goes into them, and the thin layers of own files above.
    pub(super) fn contents(&self) -> Vec<LayerContents<'_>> {
        let below = self.plan.layers.iter().map(|paths| self.platform.layer(paths));
        let generated = self.realised.generated.as_slice();
        let own = self.own.iter().enumerate().map(|(at, root)| {
            let store_paths = if at + 1 == self.own.len() { generated } else { &[] };
            LayerContents::RootFs { root, store_paths }
        });
        below.chain(own).collect()
    }

    /// What the image is to be, its layers left out.
    pub(super) fn spec(&self, request: &Request<'_>, name: ImageName, config: &ContainerConfig) -> ImageSpec {
        let realised = &self.realised;
        let mut spec = ImageSpec::new(name, self.platform.ingredients.system.architecture());
        spec.hidden = self.plan.hidden.clone();
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
}
