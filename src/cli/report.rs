//! What was done, in words and as JSON.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::progress::Progress;
use super::size;
use crate::containerize::{Delivery, Report};
use crate::delivery::{Delivered, Target};
use crate::event::{Event, Observer};
use crate::image::{Image, Images, Layer};
use crate::nix::StorePath;

/// How it is told.
pub(super) struct Told {
    pub(super) dry_run: bool,
    pub(super) json: bool,
    /// Another run says where the image went.
    pub(super) in_proxy: bool,
    /// Standard output has the image.
    pub(super) to_stdout: bool,
}

/// Tells it: where the image went, what it is called there, what a push took, and at `-v` what all of it took.
pub(super) fn tell(report: &Report, told: &Told, started: Instant, progress: &Progress) -> Result<(), Failure> {
    summarise(report, told.dry_run, started, progress);
    let title = title(&report.images);
    let last_push = report.deliveries.iter().rposition(|delivery| matches!(delivery.target, Target::Registry(_)));
    for (at, delivery) in report.deliveries.iter().enumerate() {
        if told.dry_run {
            foretell(&title, &report.images, delivery, progress);
        } else if !told.in_proxy {
            // The time is the whole run's, so it is said once.
            let took = (last_push == Some(at)).then(|| started.elapsed());
            progress.result(&format!("⚡︎ {title} written to {}{}", delivery.target, cost(delivery, took)));
        }
    }
    say_references(report, told, progress)?;
    if told.json {
        print_json(report, told.dry_run, started.elapsed())?;
    }
    Ok(())
}

/// What a push sent, and how long the run took; nothing of other targets, whose lines are those of flox.
fn cost(delivery: &Delivery, took: Option<Duration>) -> String {
    let Target::Registry(_) = delivery.target else { return String::new() };
    let Delivered { layers_sent, layers_held, bytes_sent, .. } = delivery.delivered;
    let took = took.map_or_else(String::new, |took| format!(", {:.1} s", took.as_secs_f64()));
    format!(": {layers_sent} of {} layers sent, {}{took}", layers_sent + layers_held, size::human(bytes_sent))
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
fn say_references(report: &Report, told: &Told, progress: &Progress) -> Result<(), Failure> {
    let mut said = BTreeSet::new();
    for delivery in report.deliveries.iter().filter(|_| !told.dry_run && !told.json) {
        let Target::Registry(reference) = &delivery.target else { continue };
        let reference = reference.at(&report.images.digest());
        // Several tags of one repository lead to the same image.
        if !said.insert(reference.clone()) {
            continue;
        }
        if told.to_stdout {
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

fn print_json(report: &Report, dry_run: bool, took: Duration) -> Result<(), Failure> {
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
        ("seconds", json!(took.as_millis() as f64 / 1000.0)),
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
        ("hidden", json!(image.hidden)),
    ])
}

fn object<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
