//! `layerhold containerize`: from arguments to a request, from a report to words.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Instant, SystemTime};

use serde_json::{Map, Value, json};

use super::args;
use super::cache;
use super::failure::Failure;
use super::interrupt;
use super::platforms;
use super::progress::Progress;
use super::proxy;
use super::registries;
use super::share;
use super::size;
use super::substituters;
use super::surroundings;
use crate::containerize::{Delivery, Report, Request, containerize};
use crate::delivery::{Delivered, DeliveryError, Runtime, Target, TargetRequest};
use crate::environment::{
    ACTIVE_ENVIRONMENTS, Candidate, Choice, Remote, Selection, StartServices, Surroundings, parse_label,
};
use crate::error::Error;
use crate::event::{Event, Observer};
use crate::host::widen_pipe;
use crate::image::{Image, Images, Layer, Timestamp};
use crate::nix::StorePath;
use crate::pack::Compression;
use crate::substitute::CacheAddress;

/// Runs the command.
pub(super) fn run(args: &args::Containerize, progress: &Progress) -> Result<(), Failure> {
    let started = Instant::now();
    let current_dir = std::env::current_dir()
        .map_err(|error| Failure::new(format!("cannot tell the current directory: {error}"), None))?;
    let active = std::env::var_os(ACTIVE_ENVIRONMENTS).map(|value| value.to_string_lossy().into_owned());
    let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
    let cache = surroundings::open_cache_if_possible(progress);
    let cache_cap = cache.as_ref().map(|cache| surroundings::cache_max_size(cache.root())).transpose()?;
    let to_stdout = args.target.file.as_ref().is_some_and(|file| file.as_os_str() == "-");
    if args.json && to_stdout {
        return Err(Failure::usage(
            "standard output cannot take both the image and the JSON object",
            Some("write the image to a file: -f image.tar".to_owned()),
        ));
    }
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "the image is not text: standard output is a terminal",
            Some("pipe it into a program, or write it to a file: -f image.tar".to_owned()),
        ));
    }

    if args.proxy.in_proxy {
        interrupt::at_end_of_input();
    }

    let systems = platforms::chosen(&args.image.platforms)?;
    let shells = platforms::shells(&args.environment.shell, &systems)?;
    let surroundings = || Surroundings {
        current_dir: &current_dir,
        active_environments: active.as_deref(),
        remote: surroundings::remote_access(cache.as_ref(), args.environment.offline),
        choose: if can_ask { Some(&ask) } else { None },
    };
    let substituters = substituters::settings(&args.environment, progress)?;
    let target = TargetRequest {
        file: args.target.file.clone(),
        runtime: runtime(args.target.runtime.as_deref())?,
        layout: args.target.layout.clone(),
        push: args.target.push.clone(),
    };
    let directories = substituters.addresses.iter().filter_map(CacheAddress::directory);
    let outset = proxy::Outset {
        selection: selection(&args.environment),
        surroundings: surroundings(),
        target: target.clone(),
        path: std::env::var_os("PATH"),
        systems: systems.clone(),
        directories: directories.filter(|directory| directory.is_dir()).map(Into::into).collect(),
        now: SystemTime::now(),
    };
    let mut stdout = unbuffered_stdout().map_err(Failure::output)?;
    if args.proxy.proxy {
        return proxy::run(args, outset, &mut stdout, progress);
    }
    let request = Request {
        environment: selection(&args.environment),
        surroundings: surroundings(),
        systems,
        this_system: platforms::this_system(),
        mode: args.environment.mode.map(Into::into),
        store: args.environment.store.clone(),
        substituters,
        shells,
        services: match (args.environment.services, args.environment.no_services) {
            (true, _) => StartServices::Always,
            (_, true) => StartServices::Never,
            _ => StartServices::AsManifest,
        },
        target,
        share: share::settings(&args.share, &args.registries, args.environment.offline)?,
        registries: registries::settings(&args.registries, args.target.push.iter())?,
        path: outset.path.clone(),
        tag: args.image.tag.clone(),
        labels: labels(&args.image.labels)?,
        created: created(args.image.created)?,
        max_layers: usize::from(args.layers.max_layers),
        compression: args.layers.compression.unwrap_or(match args.target.push.is_empty() {
            true => Compression::None,
            false => Compression::Zstd(Compression::ZSTD_LEVEL),
        }),
        cache: cache.as_ref(),
        dry_run: args.dry_run,
        now: outset.now,
    };

    let report = match containerize(request, &mut stdout, progress) {
        Ok(report) => report,
        // Whoever reads has what they wanted.
        Err(Error::Delivery(DeliveryError::ClosedPipe)) => return Ok(()),
        Err(
            Error::Delivery(DeliveryError::Interrupted)
            | Error::NotEverywhere { error: DeliveryError::Interrupted, .. },
        ) => return Err(Failure::interrupted()),
        Err(error) if proxy::may_help(std::env::consts::OS, args, &error) => {
            progress.event(Event::Warning { message: format!("{error}; going on in a proxy container (--proxy)") });
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
    summarise(&report, args.dry_run, started, progress);
    let title = title(&report.images);
    for delivery in &report.deliveries {
        if args.dry_run {
            foretell(&title, &report.images, delivery, progress);
        } else if !args.proxy.in_proxy {
            progress.result(&format!("⚡︎ {title} written to {}", delivery.target));
        }
    }
    say_references(&report, args, to_stdout, progress)?;
    if args.json {
        print_json(&report, args.dry_run)?;
    }
    Ok(())
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

/// What a delivery would send, and which packages make that necessary.
fn foretell(title: &str, images: &Images, delivery: &Delivery, progress: &Progress) {
    let Delivered { layers_sent, layers_held, bytes_sent, .. } = delivery.delivered;
    progress.result(&format!(
        "{title} would be written to {}: {layers_sent} of {} layers, {}",
        delivery.target,
        layers_sent + layers_held,
        size::human(bytes_sent)
    ));
    let Target::Registry(_) = delivery.target else { return };
    for layer in images.layers().into_iter().filter(|layer| delivery.to_send.contains(&layer.digest)) {
        progress.result(&format!("  {:>9}  {}", size::human(layer.size), names(layer)));
    }
}

/// What a layer holds, for people.
fn names(layer: &Layer) -> String {
    const SHOWN: usize = 3;
    let names: Vec<_> = layer.store_paths.iter().map(StorePath::name).collect();
    match names.len() {
        0 => "the image's own files".to_owned(),
        count if count > SHOWN => format!("{} and {} more", names[..SHOWN].join(", "), count - SHOWN),
        _ => names.join(", "),
    }
}

/// What the image is called in each registry that it was pushed to, whatever becomes of the tag: for scripts.
fn say_references(
    report: &Report,
    args: &args::Containerize,
    to_stdout: bool,
    progress: &Progress,
) -> Result<(), Failure> {
    for delivery in report.deliveries.iter().filter(|_| !args.dry_run && !args.json) {
        let Target::Registry(reference) = &delivery.target else { continue };
        let reference = reference.at(&report.images.digest());
        if to_stdout {
            progress.result(&reference);
        } else {
            writeln!(io::stdout(), "{reference}").map_err(Failure::output)?;
        }
    }
    Ok(())
}

/// What was made: `'hello:latest'`, and of several platforms, which.
fn title(images: &Images) -> String {
    match images {
        Images::One(image) => format!("'{}'", image.name),
        Images::Several(index) => {
            let platforms: Vec<_> = index.images.iter().map(Image::platform).collect();
            format!("'{}' ({})", index.name, platforms.join(", "))
        }
    }
}

/// The closing lines at `-v`: what was reused, what is new, what was sent, how long it took.
fn summarise(report: &Report, dry_run: bool, started: Instant, progress: &Progress) {
    let (reused, new): (Vec<_>, Vec<_>) = report.images.layers().into_iter().partition(|layer| layer.reused);
    let bytes = |layers: &[&crate::image::Layer]| size::human(layers.iter().map(|layer| layer.size).sum());
    let say = |message: String| progress.event(Event::Detail { message });
    say(format!("layers: {} reused ({}), {} new ({})", reused.len(), bytes(&reused), new.len(), bytes(&new)));
    for Delivery { target, delivered, .. } in &report.deliveries {
        let to = if report.deliveries.len() > 1 { format!(" to {target}") } else { String::new() };
        say(format!(
            "{}{to}: {} of {} layers, {}",
            if dry_run { "to send" } else { "sent" },
            delivered.layers_sent,
            delivered.layers_sent + delivered.layers_held,
            size::human(delivered.bytes_sent)
        ));
    }
    if let Images::Several(index) = &report.images {
        say(format!("index: {}", index.digest));
    }
    for image in report.images.all() {
        say(format!("image: {} ({})", image.config_digest, image.platform()));
    }
    say(format!("time: {:.2} s", started.elapsed().as_secs_f64()));
}

fn print_json(report: &Report, dry_run: bool) -> Result<(), Failure> {
    let mut object = match &report.images {
        Images::One(image) => image_json(image),
        Images::Several(index) => {
            let of_platform = |image: &Image| {
                let mut object = image_json(image);
                object.insert("platform".to_owned(), image.platform().into());
                Value::Object(object)
            };
            let platforms: Vec<_> = index.images.iter().map(of_platform).collect();
            object([("index_digest", json!(index.digest)), ("platforms", platforms.into())])
        }
    };
    object.extend(self::object([
        ("name", json!(report.images.name().repository())),
        ("tag", json!(report.images.name().tag())),
        ("dry_run", json!(dry_run)),
    ]));
    let deliveries: Vec<_> = report.deliveries.iter().map(|delivery| delivery_json(delivery, &report.images)).collect();
    // The first one's own keys are those of the whole, as they were when there was only one.
    object.extend(deliveries.first().cloned().unwrap_or_default());
    object.insert("targets".to_owned(), json!(deliveries));
    writeln!(io::stdout(), "{:#}", Value::Object(object)).map_err(Failure::output)
}

/// What is said of one target.
fn delivery_json(Delivery { target, delivered, to_send }: &Delivery, images: &Images) -> Map<String, Value> {
    let target = match target {
        Target::File(path) => json!({ "kind": "file", "path": path.to_string_lossy() }),
        Target::Stdout => json!({ "kind": "stdout" }),
        Target::Runtime(client) => json!({ "kind": client.runtime().program() }),
        Target::Layout(dir) => json!({ "kind": "layout", "path": dir.to_string_lossy() }),
        Target::Registry(reference) => json!({
            "kind": "registry", "name": reference.to_string(), "reference": reference.at(&images.digest()),
            "to_send": to_send,
        }),
    };
    object([
        ("target", target),
        ("layers_sent", json!(delivered.layers_sent)),
        ("bytes_sent", json!(delivered.bytes_sent)),
        ("layers_held", json!(delivered.layers_held)),
        ("bytes_held", json!(delivered.bytes_held)),
    ])
}

/// What is said of one image.
fn image_json(image: &Image) -> Map<String, Value> {
    object([
        ("image_id", json!(image.config_digest)),
        ("manifest_digest", json!(image.manifest_digest)),
        ("layers", json!(image.layers)),
    ])
}

fn object<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
