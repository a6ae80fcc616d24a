//! Shared caches: which are read and written, who is trusted, and their garbage.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::json;

use super::args::{GcArgs, RegistryArgs, ShareArgs};
use super::config::{self, Config};
use super::failure::Failure;
use super::progress::Progress;
use super::surroundings::{now, variable};
use super::table::Table;
use super::{registries, size, substituters};
use crate::event::{Event, Observer};
use crate::share::{
    DepotError, Garbage, GarbagePolicy, Gone, InvalidShareAddress, Keyring, SecretKey, Settings, ShareAddress, Trust,
};
use crate::substitute::PublicKey;

/// The settings of this run: arguments and their variables, else the tool's own file.
pub(super) fn settings(args: &ShareArgs, registries: &RegistryArgs, offline: bool) -> Result<Settings, Failure> {
    let (file, own) = Config::read()?.map_or_else(Default::default, |(file, config)| (file, config.shared_cache));
    let of_file = |texts: &[String]| -> Result<Vec<ShareAddress>, Failure> {
        let parse = |text: &String| {
            text.parse().map_err(|error: InvalidShareAddress| config::invalid(&file, &error.to_string()))
        };
        texts.iter().map(parse).collect()
    };
    let named = !args.cache_from.is_empty() || !args.cache_to.is_empty();
    let (mut from, mut to) = match named {
        true => (of_option("--cache-from", &args.cache_from)?, of_option("--cache-to", &args.cache_to)?),
        false => (of_file(&own.from)?, of_file(&own.to)?),
    };
    if offline {
        from.retain(ShareAddress::is_local);
        to.retain(ShareAddress::is_local);
    }
    let trust = if args.cache_trust.is_empty() { &own.trust } else { &args.cache_trust };
    let keys = trust.iter().map(|text| public_key(text)).collect::<Result<_, _>>()?;
    let key = args.cache_key.as_ref().or(own.key_file.as_ref()).filter(|_| !to.is_empty());
    Ok(Settings {
        trust: Trust { keys },
        key: key.map(|file| secret_key(file)).transpose()?,
        keyring: if from.is_empty() && to.is_empty() { Keyring::default() } else { keyring(registries)? },
        from,
        to,
    })
}

fn of_option(option: &str, texts: &[String]) -> Result<Vec<ShareAddress>, Failure> {
    texts.iter().map(|text| address(option, text)).collect()
}

/// The address that an option, or its variable, has.
fn address(option: &str, text: &str) -> Result<ShareAddress, Failure> {
    text.parse().map_err(|error: InvalidShareAddress| {
        let hint = error.hint();
        Failure::usage(format!("{option}: {error}"), Some(hint))
    })
}

fn keyring(args: &RegistryArgs) -> Result<Keyring, Failure> {
    Ok(Keyring {
        aws: substituters::aws()?,
        google: variable("GOOGLE_APPLICATION_CREDENTIALS").map(|file| file.to_string_lossy().into_owned()),
        registries: registries::settings(args)?,
    })
}

fn public_key(text: &str) -> Result<PublicKey, Failure> {
    let hint = "--cache-trust takes what layerhold cache key prints: NAME:KEY".to_owned();
    text.parse().map_err(|error: crate::substitute::InvalidPublicKey| Failure::usage(error, Some(hint)))
}

fn secret_key(file: &Path) -> Result<SecretKey, Failure> {
    if file.to_str().is_some_and(|text| text.parse::<SecretKey>().is_ok()) {
        let hint = "write it into a file that only you may read, and name that: --cache-key FILE".to_owned();
        return Err(Failure::usage("a key was given where its file is expected", Some(hint)));
    }
    let text = fs::read_to_string(file).map_err(|error| Failure::unreadable(file, &error))?;
    let hint = "make one: layerhold cache key NAME FILE".to_owned();
    text.parse().map_err(|error: crate::share::InvalidSecretKey| {
        Failure::new(format!("'{}': {error}", file.display()), Some(hint))
    })
}

/// `layerhold cache key`.
pub(super) fn make_key(name: &str, file: &Path) -> Result<(), Failure> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Failure::new(format!("there is no randomness: {error}"), None))?;
    let Some(key) = SecretKey::from_seed(name, &seed) else {
        // It is not repeated: it may be a key.
        return Err(Failure::usage("that is no name of a key: it must have neither colons nor spaces", None));
    };
    // Nobody else may read it, and none that is in use is lost.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let written = made.and_then(|mut out| writeln!(out, "{}", key.secret_text()));
    written.map_err(|error| Failure::new(format!("cannot write '{}': {error}", file.display()), None))?;
    writeln!(io::stdout(), "{}", key.public_text()).map_err(Failure::output)
}

/// A shared cache in which nothing, or not all that could, has gone.
#[derive(Debug, thiserror::Error)]
#[error("the shared cache '{address}' was not tidied")]
struct NotTidied {
    address: ShareAddress,
    #[source]
    source: DepotError,
}

/// `layerhold cache gc --remote`.
pub(super) fn gc(remote: &str, args: &GcArgs, progress: &Progress) -> Result<(), Failure> {
    let address = address("--remote", remote)?;
    let policy =
        GarbagePolicy { older_than: args.older_than, keep_last: args.keep_last, keep: args.keep.clone(), now: now() };
    let keyring = keyring(&args.registries)?;
    let garbage = crate::share::collect(&address, keyring, &policy, args.dry_run, progress).map_err(|source| {
        let hint = source.hint();
        Failure::new(NotTidied { address: address.clone(), source }, hint)
    })?;
    if args.json {
        return print_json(&garbage, args.dry_run);
    }
    let mut table = Table::new(&["WHAT", "BYTES", "WHY", "NAME"]);
    for (image, gone) in &garbage.images {
        table.row(["image", "", why(*gone), &format!("{}:{}", image.name, image.tag)]);
    }
    for entry in &garbage.entries {
        let names: Vec<_> = entry.layer.contents.iter().take(3).map(|content| content.name.as_str()).collect();
        let names = if names.is_empty() { entry.layer.digest.to_string() } else { names.join(" ") };
        let bytes = if entry.layer.has_blob { size::human(entry.layer.size) } else { String::new() };
        table.row(["layer", &bytes, "in no image", &names]);
    }
    table.print()?;
    let bytes = size::human(garbage.blobs.values().sum());
    let (gone, kept) = (garbage.entries.len(), garbage.kept);
    progress.result(&match (args.dry_run, garbage.freed) {
        (true, _) => format!("{gone} layers would go, {bytes}; {kept} stay"),
        (false, Some(freed)) => format!("{gone} layers gone, {} freed; {kept} stay", size::human(freed)),
        (false, None) if garbage.sheets_left > 0 => {
            format!("{gone} layers gone, {kept} stay; {bytes} of what is gone stay with the sheets that name them")
        }
        (false, None) => {
            format!("{gone} layers gone, {kept} stay; {bytes} are free once the registry has collected its own garbage")
        }
    });
    if garbage.sheets_left > 0 {
        let message = format!(
            "the registry does not let {} sheets be removed: they are left out when the cache is read, and stay there; \
             allow deletion (storage.delete.enabled), and they go with the next layers that do",
            garbage.sheets_left
        );
        progress.event(Event::Warning { message });
    }
    Ok(())
}

fn why(gone: Gone) -> &'static str {
    match gone {
        Gone::Old => "old",
        Gone::Replaced => "no tag leads to it",
    }
}

fn print_json(garbage: &Garbage, dry_run: bool) -> Result<(), Failure> {
    let images = garbage.images.iter().map(|(image, gone)| {
        json!({ "name": image.name, "tag": image.tag, "manifest_digest": image.manifest, "reason": why(*gone) })
    });
    let layers = garbage.entries.iter().map(|entry| {
        let contents: Vec<_> = entry.layer.contents.iter().map(|content| &content.name).collect();
        json!({ "digest": entry.layer.digest, "size": entry.layer.size, "contents": contents })
    });
    let object = json!({
        "dry_run": dry_run,
        "images": images.collect::<Vec<_>>(),
        "layers": layers.collect::<Vec<_>>(),
        "layers_kept": garbage.kept,
        "bytes": garbage.blobs.values().sum::<u64>(),
        "bytes_freed": garbage.freed,
        "sheets_left": garbage.sheets_left,
    });
    writeln!(io::stdout(), "{object:#}").map_err(Failure::output)
}
