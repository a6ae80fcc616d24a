//! `layerhold cache ...`: what the layer store holds, and what goes.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::args::{CacheCommand, GcArgs};
use super::failure::Failure;
use super::progress::Progress;
use super::table::Table;
use super::{config, share, size, surroundings};
use crate::blob::Digest;
use crate::event::{Event, Observer};
use crate::nix::StorePath;
use crate::store::{Damage, GcPlan, GcPolicy, IndexReason, LayerStore, Reason, StoreError, Wanted};

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let hint = error.hint();
        Self::new(error, hint)
    }
}

/// Runs one of the commands.
pub(super) fn run(command: &CacheCommand, progress: &Progress) -> Result<(), Failure> {
    if let CacheCommand::Path = command {
        let path = surroundings::cache_directory().ok_or_else(surroundings::no_cache_directory)?;
        return print_line(&path.display().to_string());
    }
    match command {
        CacheCommand::Key { name, file } => return share::make_key(name, file),
        CacheCommand::Gc(args) => {
            if let Some(remote) = &args.remote {
                return share::gc(remote, args, progress);
            }
        }
        _ => {}
    }
    let store = surroundings::open_cache()?;
    match command {
        CacheCommand::Gc(args) => gc(&store, args, progress),
        CacheCommand::Ls { layers: false, json } => list_images(&store, *json),
        CacheCommand::Ls { layers: true, json } => list_layers(&store, *json),
        CacheCommand::Du { json } => list_paths(&store, *json),
        CacheCommand::Why { wanted, json } => why(&store, wanted, *json),
        CacheCommand::Verify { repair, json } => verify(&store, *repair, *json, progress),
        CacheCommand::Pin { name } => pin(&store, name, progress),
        CacheCommand::Unpin { name } => unpin(&store, name, progress),
        CacheCommand::Clear => {
            let bytes = store.clear()?;
            progress.result(&format!("{} freed", size::human(bytes)));
            Ok(())
        }
        CacheCommand::Path | CacheCommand::Key { .. } => Ok(()),
    }
}

/// After a build: collects garbage if the store has grown over its cap, in no noticeable time if it has not.
pub(super) fn collect_if_over(store: &LayerStore, bytes: u64, max_size: u64, just_made: Digest, progress: &Progress) {
    if bytes <= max_size {
        return;
    }
    let policy = GcPolicy {
        max_size: Some(max_size),
        just_made: Some(just_made),
        now: surroundings::now(),
        ..GcPolicy::default()
    };
    match store.gc(&policy) {
        Ok(plan) => {
            let (freed, images) = (size::human(plan.freed()), plan.images.len());
            let message = format!("layer cache over {}: {freed} freed, {images} images gone", size::human(max_size));
            progress.event(Event::Detail { message });
            warn_if_over(&plan, progress);
        }
        // The image is made and delivered; a store that cannot be tidied now is tidied another time.
        Err(error) => {
            let message = format!("the layer cache was not tidied: {}", Failure::from(error).as_warning());
            progress.event(Event::Warning { message });
        }
    }
}

fn warn_if_over(plan: &GcPlan, progress: &Progress) {
    if plan.over > 0 {
        let message = format!(
            "the layer cache stays {} above its cap: what is left is pinned, in use, was just made, or is the index",
            size::human(plan.over)
        );
        progress.event(Event::Warning { message });
    }
}

fn gc(store: &LayerStore, args: &GcArgs, progress: &Progress) -> Result<(), Failure> {
    let max_size = match args.max_size {
        Some(size) => size,
        None => config::cache_max_size(store.root())?,
    };
    let policy = GcPolicy {
        max_size: Some(max_size),
        min_free: args.min_free,
        older_than: args.older_than,
        keep_last: args.keep_last,
        keep: args.keep.clone(),
        just_made: None,
        now: surroundings::now(),
    };
    let plan = if args.dry_run { store.plan_gc(&policy)? } else { store.gc(&policy)? };
    if args.json {
        return print_json(&plan_json(&plan, args.dry_run));
    }
    let mut table = Table::new(&["WHAT", "BYTES", "WHY", "NAME"]);
    for image in &plan.images {
        let why = match image.reason {
            Reason::Old => "old",
            Reason::Size => "over --max-size",
            Reason::Free => "under --min-free",
        };
        table.row(["image", &size::human(image.bytes), why, &format!("{}:{}", image.image.name, image.image.tag)]);
    }
    for layer in &plan.layers {
        table.row(["layer", &size::human(layer.bytes), "in no image", &holds(&layer.contents, &layer.digest)]);
    }
    for orphan in &plan.orphans {
        table.row(["file", &size::human(orphan.bytes), "left over", &below(store.root(), &orphan.path)]);
    }
    if let Some(index) = &plan.index {
        let why = match index.reason {
            IndexReason::OutOfReach => "cannot be written to",
            IndexReason::Emptied => "mostly of what goes",
            IndexReason::Outgrown => "outgrown",
        };
        table.row(["index", &size::human(index.bytes), why, "made anew when it is wanted"]);
    }
    if plan.memory > 0 {
        table.row(["memory", &size::human(plan.memory), "over the cap", "of files hashed or written"]);
    }
    table.print()?;
    warn_if_over(&plan, progress);
    let verb = if args.dry_run { "would be freed" } else { "freed" };
    let (freed, left) = (size::human(plan.freed()), size::human(plan.bytes_after));
    progress.result(&format!("{freed} {verb}, {left} left"));
    Ok(())
}

fn plan_json(plan: &GcPlan, dry_run: bool) -> serde_json::Value {
    let images: Vec<_> = plan
        .images
        .iter()
        .map(|image| {
            let reason = match image.reason {
                Reason::Old => "older-than",
                Reason::Size => "max-size",
                Reason::Free => "min-free",
            };
            let (name, tag, id) = (&image.image.name, &image.image.tag, image.image.image_id);
            json!({ "name": name, "tag": tag, "image_id": id, "bytes": image.bytes, "reason": reason })
        })
        .collect();
    let layers: Vec<_> = plan
        .layers
        .iter()
        .map(|layer| json!({ "digest": layer.digest, "bytes": layer.bytes, "store_paths": layer.contents }))
        .collect();
    let orphans: Vec<_> = plan
        .orphans
        .iter()
        .map(|orphan| json!({ "path": orphan.path.to_string_lossy(), "bytes": orphan.bytes }))
        .collect();
    json!({
        "dry_run": dry_run,
        "images": images,
        "layers": layers,
        "orphans": orphans,
        "index_bytes": plan.index.map_or(0, |index| index.bytes),
        "memory_bytes": plan.memory,
        "bytes_before": plan.bytes_before,
        "bytes_after": plan.bytes_after,
        "bytes_freed": plan.freed(),
        "bytes_over": plan.over,
    })
}

fn list_images(store: &LayerStore, json: bool) -> Result<(), Failure> {
    let rows = store.image_rows()?;
    if json {
        return print_json(&rows);
    }
    let now = surroundings::now();
    let mut table = Table::new(&[
        "NAME",
        "TAG",
        "PLATFORM",
        "IMAGE ID",
        "CREATED",
        "LAST USED",
        "SIZE",
        "ON DISK",
        "WOULD FREE",
        "",
    ]);
    for row in &rows {
        table.row([
            &row.name,
            &row.tag,
            &row.platforms.join(","),
            &row.image_id.hex()[..12],
            &size::human_age(now.saturating_sub(row.made_at)),
            &size::human_age(now.saturating_sub(row.used_at)),
            &size::human(row.size),
            &size::human(row.on_disk),
            &size::human(row.would_free),
            if row.pinned { "pinned" } else { "" },
        ]);
    }
    table.print()
}

fn list_layers(store: &LayerStore, json: bool) -> Result<(), Failure> {
    let rows = store.layer_rows()?;
    if json {
        return print_json(&rows);
    }
    let mut table = Table::new(&["DIGEST", "SIZE", "ON DISK", "KEPT", "IMAGES", "HOLDS"]);
    for row in &rows {
        table.row([
            &row.digest.hex()[..12],
            &size::human(row.size),
            &size::human(row.on_disk),
            if row.kept { "bytes" } else { "record" },
            &row.images.len().to_string(),
            &holds(&row.store_paths, &row.digest),
        ]);
    }
    table.print()
}

fn list_paths(store: &LayerStore, json: bool) -> Result<(), Failure> {
    let rows = store.path_rows()?;
    if json {
        return print_json(&rows);
    }
    let mut table = Table::new(&["SIZE", "ON DISK", "IMAGES", "LAYERS", "STORE PATH"]);
    for row in &rows {
        let images = match row.images {
            0 => "none".to_owned(),
            1 => "1".to_owned(),
            shared => format!("{shared} (shared)"),
        };
        table.row([
            &size::human(row.size),
            &size::human(row.on_disk),
            &images,
            &row.layers.to_string(),
            &row.store_path,
        ]);
    }
    table.print()
}

fn why(store: &LayerStore, wanted: &str, json: bool) -> Result<(), Failure> {
    let asked_for = parse_wanted(wanted)?;
    let rows = store.why(&asked_for)?;
    if json {
        print_json(&rows)?;
    } else {
        for row in &rows {
            let through = match (&asked_for, row.through.as_slice()) {
                (Wanted::StorePath(_), []) => ", hidden: nothing in it needs it any more".to_owned(),
                (Wanted::Digest(_), []) => String::new(),
                (_, through) => format!(" through {}", through.join(" -> ")),
            };
            let layer = row.layer.map(|digest| format!(" in layer {}", &digest.hex()[..12])).unwrap_or_default();
            print_line(&format!("{}{layer}{through}", row.image))?;
        }
    }
    if rows.is_empty() {
        return Err(Failure::new(
            format!("no image in the layer cache holds '{wanted}'"),
            Some("see what there is: layerhold cache ls, layerhold cache du".to_owned()),
        ));
    }
    Ok(())
}

/// A digest with or without its algorithm, or a store path: in full, something in it, or its base name.
fn parse_wanted(text: &str) -> Result<Wanted, Failure> {
    if let Ok(digest) = text.parse().or_else(|_| format!("sha256:{text}").parse()) {
        return Ok(Wanted::Digest(digest));
    }
    let path = StorePath::from_base_name(text).or_else(|_| StorePath::containing(Path::new(text)));
    path.map(|path| Wanted::StorePath(path.base_name().to_owned())).map_err(|_| {
        Failure::usage(
            format!("'{text}' is neither a store path nor a digest"),
            Some("layerhold cache why /nix/store/...-name, or: layerhold cache why sha256:...".to_owned()),
        )
    })
}

fn verify(store: &LayerStore, repair: bool, json: bool, progress: &Progress) -> Result<(), Failure> {
    let seen = store.verify(progress)?;
    if repair {
        store.repair(&seen.damage)?;
    }
    let lines: Vec<_> = seen
        .damage
        .iter()
        .map(|damage| match damage {
            Damage::Blob { digest, reason } => ("blob", digest.to_string(), reason.clone()),
            Damage::MissingBlob { digest } => ("blob", digest.to_string(), "is missing".to_owned()),
            Damage::Record { path } => {
                ("record", below(store.root(), path), "is torn, cannot be read, or is of another version".to_owned())
            }
            Damage::Index { key } => ("index", key.hex(), "differs from the record".to_owned()),
        })
        .collect();
    if json {
        let damage: Vec<_> =
            lines.iter().map(|(kind, name, reason)| json!({ "kind": kind, "name": name, "reason": reason })).collect();
        print_json(&json!({
            "layers": seen.layers, "blobs": seen.blobs, "bytes": seen.bytes, "damage": damage, "repaired": repair,
        }))?;
    } else {
        for (kind, name, reason) in &lines {
            print_line(&format!("{kind} {name}: {reason}"))?;
        }
    }
    let read = format!("{} layers, {} blobs, {} read", seen.layers, seen.blobs, size::human(seen.bytes));
    match (seen.damage.len(), repair) {
        (0, _) => {
            progress.result(&format!("{read}: no damage"));
            Ok(())
        }
        (count, true) => {
            progress.result(&format!("{read}: {count} damaged, thrown away; they are made again when they are wanted"));
            Ok(())
        }
        (count, false) => Err(Failure::damage(
            format!("{read}: {count} damaged"),
            Some("throw away what is damaged: layerhold cache verify --repair".to_owned()),
        )),
    }
}

fn pin(store: &LayerStore, name: &str, progress: &Progress) -> Result<(), Failure> {
    if store.pin(name)? {
        progress.result(&format!("'{name}' is pinned"));
        return Ok(());
    }
    Err(Failure::new(
        format!("no image in the layer cache is called '{name}'"),
        Some("see what there is: layerhold cache ls".to_owned()),
    ))
}

fn unpin(store: &LayerStore, name: &str, progress: &Progress) -> Result<(), Failure> {
    if store.unpin(name)? {
        progress.result(&format!("'{name}' is no longer pinned"));
        return Ok(());
    }
    let pins: Vec<_> = store.pins()?.into_iter().collect();
    let hint = if pins.is_empty() { "nothing is pinned".to_owned() } else { format!("pinned: {}", pins.join(", ")) };
    Err(Failure::new(format!("'{name}' is not pinned"), Some(hint)))
}

/// A layer by what it holds: its first store path and how many more.
fn holds(contents: &[String], digest: &Digest) -> String {
    match contents {
        [] => format!("own files ({})", &digest.hex()[..12]),
        [only] => only.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

fn below(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

fn print_line(line: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{line}").map_err(Failure::output)
}

fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(error, None))?;
    print_line(&text)
}
