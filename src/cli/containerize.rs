//! `layerhold containerize`: from arguments to a request, from a report to words.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Instant, SystemTime};

use super::args;
use super::cache;
use super::config;
use super::failure::Failure;
use super::interrupt;
use super::platforms;
use super::progress::Progress;
use super::proxy;
use super::registries;
use super::report::{self, Told};
use super::share;
use super::substituters;
use super::surroundings;
use crate::containerize::{Previous, Request, containerize};
use crate::delivery::{DeliveryError, Runtime, TargetRequest};
use crate::environment::{
    ACTIVE_ENVIRONMENTS, Candidate, Choice, Remote, Selection, StartServices, Surroundings, System, parse_label,
};
use crate::error::Error;
use crate::event::{Event, Observer, in_one_line};
use crate::host::widen_pipe;
use crate::image::Timestamp;
use crate::nix::StorePath;
use crate::outlet::Patient;
use crate::pack::Compression;
use crate::store::LayerStore;
use crate::substitute::{CacheAddress, Settings};

/// Runs the command.
pub(super) fn run(args: &args::Containerize, progress: &Progress) -> Result<(), Failure> {
    let started = Instant::now();
    let current_dir = std::env::current_dir()
        .map_err(|error| Failure::new(format!("cannot tell the current directory: {error}"), None))?;
    let active = std::env::var_os(ACTIVE_ENVIRONMENTS).map(|value| value.to_string_lossy().into_owned());
    let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
    let cache = surroundings::open_cache_if_possible(progress);
    let cache_cap = cache.as_ref().map(|cache| config::cache_max_size(cache.root())).transpose()?;
    let to_stdout = args.target.file.as_ref().is_some_and(|file| file.as_os_str() == "-");
    if to_stdout {
        check_stdout(args.json)?;
    }

    if args.proxy.in_proxy {
        interrupt::at_end_of_input();
    }

    let wanted = Wanted::read(args, progress)?;
    let surroundings = || Surroundings {
        current_dir: &current_dir,
        active_environments: active.as_deref(),
        remote: surroundings::remote_access(cache.as_ref(), args.environment.offline),
        choose: if can_ask { Some(&ask) } else { None },
    };
    let outset = wanted.outset(args, surroundings());
    let mut stdout = Patient::new(unbuffered_stdout().map_err(Failure::output)?, progress);
    if args.proxy.proxy {
        return proxy::run(args, outset, &mut stdout, progress);
    }
    let request = wanted.request(args, surroundings(), cache.as_ref(), outset.now, progress)?;

    let report = match containerize(request, &mut stdout, progress) {
        Ok(report) => report,
        // Whoever reads has what they wanted.
        Err(Error::Delivery(DeliveryError::ClosedPipe)) => return Ok(()),
        Err(
            Error::Delivery(DeliveryError::Interrupted)
            | Error::NotEverywhere { error: DeliveryError::Interrupted, .. },
        ) => return Err(Failure::interrupted()),
        Err(error) if proxy::may_help(std::env::consts::OS, args, &error) => {
            let message = format!("{}; going on in a proxy container (--proxy)", in_one_line(&error));
            progress.event(Event::Warning { message });
            return proxy::run(args, outset, &mut stdout, progress);
        }
        Err(error) => {
            let hint = error.hint();
            return Err(Failure::new(error, hint));
        }
    };
    if let (Some(cache), Some(cap), Some(bytes)) = (&cache, cache_cap, report.cache_bytes) {
        cache::collect_if_over(cache, bytes, cap, report.images.id(), progress);
    }
    let told = Told { dry_run: args.dry_run, json: args.json, in_proxy: args.proxy.in_proxy, to_stdout };
    report::tell(&report, &told, started, progress)
}

/// Whether standard output can take the image.
fn check_stdout(json: bool) -> Result<(), Failure> {
    if json {
        return Err(Failure::usage(
            "standard output cannot take both the image and the JSON object",
            Some("write the image to a file: -f image.tar".to_owned()),
        ));
    }
    if io::stdout().is_terminal() {
        return Err(Failure::usage(
            "the image is not text: standard output is a terminal",
            Some("pipe it into a program, or write it to a file: -f image.tar".to_owned()),
        ));
    }
    Ok(())
}

/// What arguments, variables and settings say, whoever makes the image: this run, or one in a proxy container.
struct Wanted {
    systems: Vec<System>,
    shells: BTreeMap<System, StorePath>,
    substituters: Settings,
    target: TargetRequest,
    share: crate::share::Settings,
    previous: Option<Previous>,
}

impl Wanted {
    fn read(args: &args::Containerize, progress: &Progress) -> Result<Self, Failure> {
        let systems = platforms::chosen(&args.image.platforms)?;
        let shells = platforms::shells(&args.environment.shell, &systems)?;
        let handed = if args.proxy.in_proxy { proxy::handed_logins() } else { None };
        let substituters = substituters::settings(&args.environment, handed, progress)?;
        let target = TargetRequest {
            file: args.target.file.clone(),
            runtime: runtime(args.target.runtime.as_deref())?,
            layout: args.target.layout.clone(),
            push: args.target.push.clone(),
        };
        let share = share::settings(&args.share, &args.registries, args.environment.offline)?;
        Ok(Self { systems, shells, substituters, target, share, previous: config::previous(&args.layers)? })
    }

    /// For a run in a proxy container.
    fn outset<'a>(&self, args: &args::Containerize, surroundings: Surroundings<'a>) -> proxy::Outset<'a> {
        let directories = self.substituters.addresses.iter().filter_map(CacheAddress::directory);
        proxy::Outset {
            selection: selection(&args.environment),
            surroundings,
            target: self.target.clone(),
            path: std::env::var_os("PATH"),
            systems: self.systems.clone(),
            previous: self.previous.clone(),
            directories: directories.filter(|directory| directory.is_dir()).map(Into::into).collect(),
            logins: self.substituters.credentials.hand_on(&self.substituters.addresses),
            now: SystemTime::now(),
        }
    }

    /// For this run.
    fn request<'a>(
        self,
        args: &args::Containerize,
        surroundings: Surroundings<'a>,
        cache: Option<&'a LayerStore>,
        now: SystemTime,
        progress: &Progress,
    ) -> Result<Request<'a>, Failure> {
        let previous = self.previous.filter(|previous| may_be_asked(previous, args, progress));
        let registries = registries::settings(&args.registries)?;
        let registries = registries.with_logins_of(&self.share.keyring.registries);
        Ok(Request {
            environment: selection(&args.environment),
            surroundings,
            systems: self.systems,
            this_system: platforms::this_system(),
            mode: args.environment.mode.map(Into::into),
            store: args.environment.store.clone(),
            substituters: self.substituters,
            shells: self.shells,
            services: match (args.environment.services, args.environment.no_services) {
                (true, _) => StartServices::Always,
                (_, true) => StartServices::Never,
                _ => StartServices::AsManifest,
            },
            target: self.target,
            share: self.share,
            registries,
            path: std::env::var_os("PATH"),
            tag: args.image.tag.clone(),
            labels: labels(&args.image.labels)?,
            created: created(args.image.created)?,
            previous,
            max_layers: usize::from(args.layers.max_layers),
            compression: args.layers.compression.unwrap_or(match args.target.push.is_empty() {
                true => Compression::None,
                false => Compression::Zstd(Compression::ZSTD_LEVEL),
            }),
            cache,
            dry_run: args.dry_run,
            now,
        })
    }
}

/// Whether the image to lay layers out on is not where nothing may be asked.
fn may_be_asked(previous: &Previous, args: &args::Containerize, progress: &Progress) -> bool {
    let of_target = args.target.push.first().filter(|_| *previous == Previous::SameName);
    let Some(reference) = previous.reference().or(of_target).filter(|_| args.environment.offline) else { return true };
    let message = format!("layers are not laid out on those of '{reference}': --offline asks no registry");
    progress.event(Event::Warning { message });
    false
}

/// Standard output as a file: the library's own looks for line ends in all that is written to it.
fn unbuffered_stdout() -> io::Result<File> {
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    widen_pipe(&stdout);
    Ok(File::from(stdout))
}

fn selection(args: &args::EnvironmentArgs) -> Selection {
    match (&args.dir, &args.remote) {
        (_, Some(name)) => Selection::Remote(Remote { name: name.clone(), generation: args.generation, hub: None }),
        (Some(dir), None) => Selection::Dir(dir.clone()),
        (None, None) => Selection::Default,
    }
}

fn runtime(name: Option<&str>) -> Result<Option<Runtime>, Failure> {
    name.map(str::parse).transpose().map_err(|error: crate::delivery::InvalidRuntime| Failure::new(error, None))
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    texts.iter().map(|text| parse_label(text)).collect::<Result<_, _>>().map_err(|error| {
        let hint = error.hint();
        Failure::new(error, hint)
    })
}

fn created(seconds: Option<i64>) -> Result<Timestamp, Failure> {
    let Some(seconds) = seconds else { return Ok(Timestamp::default()) };
    Timestamp::from_seconds(seconds).map_err(|error| Failure::usage(error, None))
}

/// Two environments may be meant: asks which.
fn ask(found: &Candidate, active: &Candidate) -> io::Result<Choice> {
    let mut stderr = io::stderr();
    writeln!(stderr, "Do you want to containerize the current directory's environment or the active environment?")?;
    writeln!(stderr, "  1) current directory: {found}")?;
    writeln!(stderr, "  2) active: {active}")?;
    loop {
        write!(stderr, "1 or 2 [1]: ")?;
        stderr.flush()?;
        let mut answer = String::new();
        if io::stdin().lock().read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match answer.trim() {
            "" | "1" => return Ok(Choice::Found),
            "2" => return Ok(Choice::Active),
            _ => {}
        }
    }
}
