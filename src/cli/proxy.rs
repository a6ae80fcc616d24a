//! `--proxy`: what the run in the container is told, and what becomes of its end.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::args::{
    Containerize, EnvironmentArgs, ImageArgs, LayerArgs, ModeArg, ProxyArgs, RegistryArgs, ShareArgs, TargetArgs,
};
use super::failure::Failure;
use super::progress::{Progress, Verbosity};
use super::substituters;
use super::surroundings::variable;
use crate::containerize::Previous;
use crate::delivery::{DeliveryError, RuntimeClient, Target, TargetRequest};
use crate::environment::{self, DOT_FLOX, Location, Remote, Selection, Surroundings, System};
use crate::error::Error;
use crate::event::{Event, Observer};
use crate::image::ImageName;
use crate::nix::ClosureError;
use crate::outlet::Outlet;
use crate::proxy::{ARGUMENT, Proxy, ProxyError};
use crate::substitute::Credentials;

/// What was found out before it is known whether there is to be a container.
pub(super) struct Outset<'a> {
    pub(super) selection: Selection,
    pub(super) surroundings: Surroundings<'a>,
    pub(super) target: TargetRequest,
    pub(super) path: Option<OsString>,
    pub(super) systems: Vec<System>,
    /// The image to lay layers out on.
    pub(super) previous: Option<Previous>,
    /// Binary caches that are directories here.
    pub(super) directories: Vec<PathBuf>,
    /// What binary caches are shown of who asks.
    pub(super) logins: Option<String>,
    pub(super) now: SystemTime,
}

/// The variable in which the run in the container finds the logins for its binary caches.
const LOGINS: &str = "LAYERHOLD_PROXY_LOGINS";
/// The one that names a file of certificates (Nix manual, "Environment Variables").
const CERTIFICATES: &str = "NIX_SSL_CERT_FILE";

/// The logins that the run in the container was given.
pub(super) fn handed_logins() -> Option<Credentials> {
    Credentials::handed(&std::env::var(LOGINS).ok()?)
}

/// Whether a run that failed goes on in a container: Flox on macOS has what it builds for Linux in a volume there.
pub(super) fn may_help(os: &str, args: &Containerize, error: &Error) -> bool {
    let error = match error {
        Error::Platform { error, .. } => error,
        error => error,
    };
    let is_missing = matches!(error, Error::Closure(ClosureError::Missing { .. }));
    let ProxyArgs { in_proxy, .. } = args.proxy;
    let other_target = args.target.layout.is_some() || !args.target.push.is_empty();
    let excludes = args.json || args.dry_run || other_target || args.environment.store.is_some();
    os == "macos" && is_missing && !in_proxy && !excludes
}

/// Makes the image in a container.
pub(super) fn run(
    args: &Containerize,
    outset: Outset<'_>,
    stdout: &mut (dyn Outlet + Send),
    progress: &Progress,
) -> Result<(), Failure> {
    let place = Place::find(&outset, progress)?;
    let name = ImageName::new(place.name(), &args.image.tag).map_err(|error| {
        let hint = error.hint();
        Failure::new(error, hint)
    })?;
    let failed = |error: crate::delivery::TargetError| {
        let hint = error.hint();
        Failure::new(error, hint)
    };
    let wanted = outset.target.runtime;
    let target = Target::choose(outset.target, outset.path.as_deref(), place.name()).map_err(failed)?;
    target.accepts_platforms(outset.systems.len()).map_err(failed)?;
    let client = client(&target, wanted, outset.path.as_deref()).ok_or_else(|| {
        Failure::new(
            "a proxy container needs Docker or Podman, and neither is on PATH",
            Some("install one of them, or leave --proxy out".to_owned()),
        )
    })?;

    let mut variables = vec![("NIX_CONFIG".to_owned(), substituters::as_nix_config(&args.environment)?.into())];
    let mut shared = outset.directories;
    variables.extend(outset.logins.map(|logins| (LOGINS.to_owned(), logins.into())));
    if let Some(file) = variable(CERTIFICATES) {
        shared.push(absolute(&file)?);
        variables.push((CERTIFICATES.to_owned(), absolute(&file)?.into()));
    }
    match &place {
        Place::Directory { path, .. } => shared.push(path.join(DOT_FLOX)),
        Place::FloxHub(remote) => {
            let told = outset.surroundings.remote.settings.as_variables(remote.hub.as_deref()).map_err(|error| {
                let hint = error.hint();
                Failure::new(error, hint)
            })?;
            variables.extend(told.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        }
    }
    let proxy = Proxy {
        client: &client,
        name: container_name(outset.now),
        image: args.proxy.proxy_image.clone(),
        volume: args.proxy.proxy_volume.clone(),
        shared,
        variables,
        arguments: arguments(args, progress.verbosity(), &place, &outset.systems, outset.previous.as_ref()),
    };
    if let Some(reference) = outset.previous.as_ref().and_then(Previous::reference) {
        let message = format!("layers are not laid out on those of '{reference}': a proxy container asks no registry");
        progress.event(Event::Warning { message });
    }
    progress.event(Event::Detail {
        message: format!("in a container of '{}', with the volume '{}' at /nix", proxy.image, proxy.volume),
    });
    match proxy.run(&target, stdout, progress, &|line| progress.line(line)) {
        Ok(()) => {
            progress.result(&format!("⚡︎ '{name}' written to {target}"));
            Ok(())
        }
        // Whoever reads has what they wanted.
        Err(ProxyError::Delivery(DeliveryError::ClosedPipe)) => Ok(()),
        Err(ProxyError::Delivery(DeliveryError::Interrupted)) => Err(Failure::interrupted()),
        Err(ProxyError::Failed { code }) => Err(Failure::said(ProxyError::Failed { code }, code)),
        Err(error) => {
            let hint = error.hint();
            Err(Failure::new(error, hint))
        }
    }
}

/// The runtime that gets the image; for any other target, the one that was named or is found.
fn client(target: &Target, wanted: Option<crate::delivery::Runtime>, path: Option<&OsStr>) -> Option<RuntimeClient> {
    match (target, wanted) {
        (Target::Runtime(client), _) => Some(client.clone()),
        (_, Some(runtime)) => RuntimeClient::find(runtime, path),
        (_, None) => RuntimeClient::detect(path),
    }
}

/// A name that no other container has.
fn container_name(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("layerhold-{}-{}", std::process::id(), since.as_nanos())
}

/// Where something is that the container is to have in the same place.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .and_then(std::fs::canonicalize)
        .map_err(|error| Failure::new(format!("cannot find '{}': {error}", path.display()), None))
}

/// Where the run in the container finds the environment.
enum Place {
    /// In a directory, under the same path as here.
    Directory { path: PathBuf, name: String },
    /// On FloxHub, whence it fetches it itself.
    FloxHub(Remote),
}

impl Place {
    fn find(outset: &Outset<'_>, observer: &dyn Observer) -> Result<Self, Failure> {
        if let Selection::Remote(remote) = &outset.selection {
            return Ok(Self::FloxHub(remote.clone()));
        }
        let found = environment::find(&outset.selection, &outset.surroundings, observer).map_err(|error| {
            let hint = error.hint();
            Failure::new(error, hint)
        })?;
        let name = found.name;
        let path = match found.location {
            Location::Dir(path) => path,
            // The active one.
            Location::Remote(name) => {
                let (generation, hub) = found.hub.map_or((None, None), |hub| (hub.generation, hub.url));
                return Ok(Self::FloxHub(Remote { name, generation, hub }));
            }
        };
        Ok(Self::Directory { path: absolute(&path)?, name })
    }

    fn name(&self) -> &str {
        match self {
            Self::Directory { name, .. } => name,
            Self::FloxHub(remote) => remote.name.name(),
        }
    }
}

/// The arguments of the run in the container: those of this run, with the target and the environment's place as they are
/// there. Every argument is named here, so that none is forgotten.
fn arguments(
    args: &Containerize,
    verbosity: Verbosity,
    place: &Place,
    systems: &[System],
    previous: Option<&Previous>,
) -> Vec<OsString> {
    let Containerize { environment, target, registries, share, image, layers, proxy, dry_run: _, json: _ } = args;
    // The binary caches and their keys are in NIX_CONFIG, for their addresses may hold passwords.
    let EnvironmentArgs { dir: _, remote: _, generation: _, mode, store: _, substituters: _, keys: _, .. } =
        environment;
    let EnvironmentArgs { offline, shell, services, no_services, .. } = environment;
    let TargetArgs { file: _, runtime: _, layout: _, push: _ } = target;
    let RegistryArgs { insecure_registry: _, registry_ca: _ } = registries;
    // Shared caches are not asked in the container, which has none of this machine's logins.
    let ShareArgs { cache_from: _, cache_to: _, cache_trust: _, cache_key: _ } = share;
    let ImageArgs { platforms: _, tag, labels, created } = image;
    let LayerArgs { previous: _, no_previous: _, max_layers, compression } = layers;
    let ProxyArgs { proxy: _, proxy_image: _, proxy_volume: _, in_proxy: _ } = proxy;

    let mut arguments: Vec<OsString> = Vec::new();
    match verbosity {
        Verbosity::Quiet => arguments.push("--quiet".into()),
        Verbosity::Normal => {}
        Verbosity::Verbose(level) => arguments.extend((0..level).map(|_| "--verbose".into())),
    }
    arguments.extend(["containerize", ARGUMENT, "--file=-"].map(Into::into));
    let mut option = |name: &str, value: &OsStr| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        arguments.push(argument);
    };
    match place {
        Place::Directory { path, .. } => option("dir", path.as_os_str()),
        Place::FloxHub(remote) => {
            option("remote", remote.name.to_string().as_ref());
            if let Some(generation) = remote.generation {
                option("generation", generation.to_string().as_ref());
            }
        }
    }
    // Named, for the container may run on another kind of machine than this one.
    systems.iter().for_each(|system| option("platform", system.platform().as_ref()));
    match mode {
        Some(ModeArg::Dev) => option("mode", "dev".as_ref()),
        Some(ModeArg::Run) => option("mode", "run".as_ref()),
        None => {}
    }
    shell.iter().for_each(|shell| option("shell", shell.as_ref()));
    option("tag", tag.as_ref());
    labels.iter().for_each(|label| option("label", label.as_ref()));
    if let Some(created) = created {
        option("created", created.to_string().as_ref());
    }
    // The layer cache is the one in the volume. Registries are not asked there either.
    match previous {
        Some(Previous::SameName) => option("previous", ".".as_ref()),
        Some(Previous::InStore(image)) => option("previous", image.as_ref()),
        Some(Previous::InRegistry(_)) | None => {}
    }
    option("max-layers", max_layers.to_string().as_ref());
    option("compression", compression.unwrap_or_default().to_string().as_ref());
    let flags = [("--offline", offline), ("--services", services), ("--no-services", no_services)];
    arguments.extend(flags.into_iter().filter(|(_, is_set)| **is_set).map(|(flag, _)| flag.into()));
    arguments
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser;
    use rstest::rstest;

    fn parse(words: &str) -> Containerize {
        let words = words.split_whitespace();
        match Cli::try_parse_from(["layerhold", "containerize"].into_iter().chain(words)).unwrap().command {
            Command::Containerize(args) => *args,
            _ => unreachable!("containerize was asked for"),
        }
    }

    fn inner(words: &str, verbosity: Verbosity, place: &Place) -> String {
        let args = parse(words);
        let systems = match args.image.platforms.is_empty() {
            true => vec![System::Aarch64Linux],
            false => args.image.platforms.clone(),
        };
        let arguments = arguments(&args, verbosity, place, &systems, args.layers.previous.as_ref());
        arguments.iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn here() -> Place {
        Place::Directory { path: "/home/me/project".into(), name: "project".to_owned() }
    }

    const ALWAYS: &str = "containerize --in-proxy --file=- --dir=/home/me/project";

    #[rstest]
    #[case("", "--platform=linux/arm64 --tag=latest --max-layers=100 --compression=none")]
    #[case("-f image.tar -d project", "--platform=linux/arm64 --tag=latest --max-layers=100 --compression=none")]
    #[case(
        "--runtime podman -m run -t v1 --label a=b --label c=d --created 7 --max-layers 9 --compression zstd:3 --offline",
        "--platform=linux/arm64 --mode=run --tag=v1 --label=a=b --label=c=d --created=7 --max-layers=9 \
         --compression=zstd:3 --offline"
    )]
    #[case(
        "--platform amd64,arm64 --shell amd64=/nix/store/x --substituter https://user:secret@cache",
        "--platform=linux/amd64 --platform=linux/arm64 --shell=amd64=/nix/store/x --tag=latest --max-layers=100 \
         --compression=none"
    )]
    #[case("--previous", "--platform=linux/arm64 --tag=latest --previous=. --max-layers=100 --compression=none")]
    #[case(
        "--previous project:v1",
        "--platform=linux/arm64 --tag=latest --previous=project:v1 --max-layers=100 --compression=none"
    )]
    #[case(
        "--previous registry.example/project:v1",
        "--platform=linux/arm64 --tag=latest --max-layers=100 --compression=none"
    )]
    #[case(
        "-t -odd --label=-x=y --created -1",
        "--platform=linux/arm64 --tag=-odd --label=-x=y --created=-1 \
         --max-layers=100 --compression=none"
    )]
    fn the_run_in_the_container_is_told_what_this_one_was(#[case] words: &str, #[case] expected: &str) {
        let words = words.replace("-t -odd", "--tag=-odd").replace("--created -1", "--created=-1");
        assert_eq!(inner(&words, Verbosity::Normal, &here()), format!("{ALWAYS} {expected}"));
    }

    #[rstest]
    #[case(Verbosity::Quiet, "--quiet containerize")]
    #[case(Verbosity::Normal, "containerize")]
    #[case(Verbosity::Verbose(2), "--verbose --verbose containerize")]
    fn it_says_as_much(#[case] verbosity: Verbosity, #[case] expected: &str) {
        assert!(inner("", verbosity, &here()).starts_with(expected));
    }

    #[test]
    fn what_it_is_told_is_understood_and_means_the_same() {
        let words = "-m dev -t v1 --label a=b --platform amd64,arm64 --shell amd64=/nix/store/x --created 7 --max-layers 9 \
                     --compression gzip:2 --offline --previous";
        let told = inner(words, Verbosity::Normal, &here());
        let (outer, inner) = (parse(words), parse(told.strip_prefix("containerize ").unwrap()));
        let meaning = |args: &Containerize| {
            let (environment, image, layers) = (&args.environment, &args.image, &args.layers);
            format!("{:?} {:?} {} {image:?} {layers:?}", environment.mode, environment.shell, environment.offline)
        };
        assert_eq!(meaning(&inner), meaning(&outer));
        assert!(inner.proxy.in_proxy);
        assert_eq!(inner.environment.dir.as_deref(), Some(Path::new("/home/me/project")));
    }

    #[test]
    fn an_environment_on_floxhub_is_fetched_there() {
        let name = "me/project".parse().unwrap();
        let hub = Place::FloxHub(Remote { name, generation: Some(3), hub: None });
        let told = inner("--services", Verbosity::Normal, &hub);
        assert!(told.starts_with("containerize --in-proxy --file=- --remote=me/project --generation=3 "), "{told}");
        assert!(told.ends_with(" --services"), "{told}");
    }

    #[rstest]
    #[case("macos", "", true)]
    #[case("macos", "-f image.tar --runtime docker", true)]
    #[case("linux", "", false)]
    #[case("macos", "--json", false)]
    #[case("macos", "--dry-run", false)]
    #[case("macos", "--layout images", false)]
    #[case("macos", "--store root", false)]
    #[case("macos", "--in-proxy", false)]
    fn what_is_missing_on_macos_may_be_in_the_volume(#[case] os: &str, #[case] words: &str, #[case] expected: bool) {
        let path: crate::nix::StorePath = "/nix/store/nm7p8wxflggcwxfzayhysq4z6a1wg373-hello".parse().unwrap();
        let missing =
            || Error::Closure(ClosureError::Missing { path: path.clone(), chain: Vec::new(), asked: Vec::new() });
        assert_eq!(may_help(os, &parse(words), &missing()), expected);
        let system = System::Aarch64Linux;
        let named = Error::Platform { system, here: false, error: Box::new(missing()) };
        assert_eq!(may_help(os, &parse(words), &named), expected);
        let other = Error::Name(ImageName::new("", "latest").unwrap_err());
        assert!(!may_help(os, &parse(words), &other));
    }
}
