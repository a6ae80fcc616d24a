//! `layerhold push`: an image that was made before, to a registry.

use std::time::{Instant, SystemTime};

use super::args::{EnvironmentArgs, Push};
use super::failure::Failure;
use super::progress::Progress;
use super::report::{self, Told};
use super::{registries, share, substituters, surroundings};
use crate::containerize::{AgainRequest, push_again};
use crate::delivery::DeliveryError;
use crate::error::Error;

/// Runs the command.
pub(super) fn run(args: &Push, progress: &Progress) -> Result<(), Failure> {
    let started = Instant::now();
    let cache = surroundings::open_cache()?;
    let share = share::settings(&args.share, &args.registries, false)?;
    let registries = registries::settings(&args.registries)?.with_logins_of(&share.keyring.registries);
    let request = AgainRequest {
        image: args.image.clone(),
        push: args.reference.clone(),
        cache: &cache,
        compression: args.compression,
        store: args.store.clone(),
        substituters: substituters::settings(&EnvironmentArgs::default(), None, progress)?,
        share,
        registries,
        dry_run: args.dry_run,
        now: SystemTime::now(),
    };
    let report = match push_again(request, progress) {
        Ok(report) => report,
        Err(Error::Delivery(DeliveryError::Interrupted)) => return Err(Failure::interrupted()),
        Err(error) => {
            let hint = error.hint();
            return Err(Failure::new(error, hint));
        }
    };
    let told = Told { dry_run: args.dry_run, json: args.json, in_proxy: false, to_stdout: false };
    report::tell(&report, &told, started, progress)
}
