//! `layerhold containerize`: from arguments to a request, from a report to words.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Instant, SystemTime};

use serde_json::json;

use super::args;
use super::cache;
use super::failure::Failure;
use super::progress::Progress;
use super::size;
use super::surroundings;
use crate::containerize::{Report, Request, containerize};
use crate::delivery::{Delivered, DeliveryError, Runtime, Target, TargetRequest, widen_pipe};
use crate::environment::{
    ACTIVE_ENVIRONMENTS, Candidate, Choice, Selection, StartServices, Surroundings, System, parse_label,
};
use crate::error::Error;
use crate::event::{Event, Observer};
use crate::image::Timestamp;

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

    let request = Request {
        environment: selection(&args.environment),
        surroundings: Surroundings {
            current_dir: &current_dir,
            active_environments: active.as_deref(),
            choose: if can_ask { Some(&ask) } else { None },
        },
        system: this_system()?,
        mode: args.environment.mode.map(Into::into),
        store: args.environment.store.clone(),
        shell: args.environment.shell.as_deref().map(str::parse).transpose().map_err(|error| {
            Failure::usage(error, Some("name a store path that has bin/bash: --shell /nix/store/...-bash-5.2".into()))
        })?,
        services: match (args.environment.services, args.environment.no_services) {
            (true, _) => StartServices::Always,
            (_, true) => StartServices::Never,
            _ => StartServices::AsManifest,
        },
        target: TargetRequest {
            file: args.target.file.clone(),
            runtime: runtime(args.target.runtime.as_deref())?,
            layout: args.target.layout.clone(),
        },
        path: std::env::var_os("PATH"),
        tag: args.image.tag.clone(),
        labels: labels(&args.image.labels)?,
        created: created(args.image.created)?,
        max_layers: usize::from(args.layers.max_layers),
        compression: args.layers.compression,
        cache: cache.as_ref(),
        dry_run: args.dry_run,
        now: SystemTime::now(),
    };

    let mut stdout = unbuffered_stdout().map_err(Failure::output)?;
    let report = match containerize(request, &mut stdout, progress) {
        Ok(report) => report,
        // Whoever reads has what they wanted.
        Err(Error::Delivery(DeliveryError::ClosedPipe)) => return Ok(()),
        Err(Error::Delivery(DeliveryError::Interrupted)) => return Err(Failure::interrupted()),
        Err(error) => {
            let hint = error.hint();
            return Err(Failure::new(error, hint));
        }
    };
    if let (Some(cache), Some(cap), Some(bytes)) = (&cache, cache_cap, report.cache_bytes) {
        cache::collect_if_over(cache, bytes, cap, report.image.config_digest, progress);
    }
    summarise(&report, args.dry_run, started, progress);
    if args.dry_run {
        let Delivered { layers_sent, layers_held, bytes_sent, .. } = report.delivered;
        progress.result(&format!(
            "'{}' would be written to {}: {layers_sent} of {} layers, {}",
            report.image.name,
            report.target,
            layers_sent + layers_held,
            size::human(bytes_sent)
        ));
    } else {
        progress.result(&format!("⚡︎ '{}' written to {}", report.image.name, report.target));
    }
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
        (_, Some(remote)) => Selection::Remote(remote.clone()),
        (Some(dir), None) => Selection::Dir(dir.clone()),
        (None, None) => Selection::Default,
    }
}

fn this_system() -> Result<System, Failure> {
    System::of_machine(std::env::consts::ARCH).ok_or_else(|| {
        Failure::new(format!("images cannot be made for this machine's architecture, {}", std::env::consts::ARCH), None)
    })
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

/// The closing lines at `-v`: what was reused, what is new, what was sent, how long it took.
fn summarise(report: &Report, dry_run: bool, started: Instant, progress: &Progress) {
    let (reused, new): (Vec<_>, Vec<_>) = report.image.layers.iter().partition(|layer| layer.reused);
    let bytes = |layers: &[&crate::image::Layer]| size::human(layers.iter().map(|layer| layer.size).sum());
    let say = |message: String| progress.event(Event::Detail { message });
    say(format!("layers: {} reused ({}), {} new ({})", reused.len(), bytes(&reused), new.len(), bytes(&new)));
    say(format!(
        "{}: {} of {} layers, {}",
        if dry_run { "to send" } else { "sent" },
        report.delivered.layers_sent,
        report.delivered.layers_sent + report.delivered.layers_held,
        size::human(report.delivered.bytes_sent)
    ));
    say(format!("image: {}", report.image.config_digest));
    say(format!("time: {:.2} s", started.elapsed().as_secs_f64()));
}

fn print_json(report: &Report, dry_run: bool) -> Result<(), Failure> {
    let target = match &report.target {
        Target::File(path) => json!({ "kind": "file", "path": path.to_string_lossy() }),
        Target::Stdout => json!({ "kind": "stdout" }),
        Target::Runtime(client) => json!({ "kind": client.runtime().program() }),
        Target::Layout(dir) => json!({ "kind": "layout", "path": dir.to_string_lossy() }),
    };
    let object = json!({
        "name": report.image.name.repository(),
        "tag": report.image.name.tag(),
        "image_id": report.image.config_digest,
        "manifest_digest": report.image.manifest_digest,
        "layers": report.image.layers,
        "target": target,
        "dry_run": dry_run,
        "layers_sent": report.delivered.layers_sent,
        "bytes_sent": report.delivered.bytes_sent,
        "layers_held": report.delivered.layers_held,
        "bytes_held": report.delivered.bytes_held,
    });
    writeln!(io::stdout(), "{object:#}").map_err(Failure::output)
}
