//! Where the image goes: one target or several, one after the other.

use super::Request;
use crate::blob::Digest;
use crate::delivery::{self, Delivered, DeliveryError, Means, Opening, Sink, Spool, Target, TargetError};
use crate::error::Error;
use crate::event::Observer;
use crate::image::{ImageName, Images};
use crate::layers::{self, Layers};
use crate::outlet::Outlet;
use crate::registry::Reference;

/// The targets, asked for what has to be known before layers are made for them.
pub(super) struct Targets {
    targets: Vec<Target>,
    openings: Vec<Option<Opening>>,
}

/// What was done, or would be, for one target.
#[derive(Debug)]
pub struct Delivery {
    /// Where the image is now, or would be.
    pub target: Target,
    /// What that took, or would take.
    pub delivered: Delivered,
    /// In a dry run, the layers that would be sent, by digest.
    pub to_send: Vec<Digest>,
}

impl Targets {
    /// What can be refused is refused before any layer is packed; a runtime is asked while the image is planned.
    pub(super) fn choose(request: &Request<'_>, name: &ImageName, environment: &str) -> Result<Self, Error> {
        let targets = Target::choose_all(request.target.clone(), request.path.as_deref(), name, environment)?;
        targets.iter().try_for_each(|target| target.accepts_platforms(request.systems.len()))?;
        let media_type = layers::media_type(request.compression);
        let openings = targets.iter().map(|target| target.ask(name, media_type)).collect::<Result<_, _>>()?;
        Ok(Self { targets, openings })
    }

    /// One that need not be asked anything.
    pub(super) fn only(target: Target) -> Self {
        Self { targets: vec![target], openings: vec![None] }
    }

    /// Those in registries.
    pub(super) fn in_registries(&self) -> impl Iterator<Item = &Reference> {
        self.targets.iter().filter_map(|target| match target {
            Target::Registry(reference) => Some(reference),
            _ => None,
        })
    }

    /// Whether every target takes that many layers.
    pub(super) fn accept_layers(&self, count: usize) -> Result<(), TargetError> {
        self.targets.iter().try_for_each(|target| target.accepts_layers(count))
    }

    /// Whether every runtime reads such layers.
    pub(super) fn accept_compression(&mut self, observer: &dyn Observer) -> Result<(), DeliveryError> {
        self.openings.iter_mut().flatten().try_for_each(|opening| opening.reads_layers(observer))
    }

    /// Has every runtime get ready for an image that is new, and will soon be made.
    pub(super) fn get_ready(&mut self) {
        self.openings.iter_mut().flatten().for_each(Opening::get_ready);
    }

    /// Whether every runtime answers: waits for what they were asked.
    pub(super) fn hear(&mut self, observer: &dyn Observer) -> Result<(), DeliveryError> {
        self.openings.iter_mut().flatten().try_for_each(|opening| opening.accepts(observer))
    }

    /// The same once more, for another image after one that failed; `None` where some of that may have gone out for good.
    pub(super) fn once_more(&self) -> Option<Self> {
        let openings = self.targets.iter().map(|_| None).collect();
        let is_untouched = self.targets.iter().all(Target::is_untouched_by_failures);
        is_untouched.then(|| Self { targets: self.targets.clone(), openings })
    }

    /// A sink for each.
    pub(super) fn sinks<'a>(self, stdout: &'a mut dyn Outlet, means: &Means<'a>) -> Sinks<'a> {
        let mut stdout = Some(stdout);
        let sink = |(target, opening): (Target, Option<Opening>)| {
            let out: Box<dyn Outlet + 'a> = match (&target, stdout.take()) {
                (Target::Stdout, Some(stdout)) => Box::new(stdout),
                (_, unused) => {
                    stdout = unused;
                    Box::new(std::io::sink())
                }
            };
            let sink = target.sink(opening, out, means);
            (target, sink)
        };
        Sinks(self.targets.into_iter().zip(self.openings).map(sink).collect())
    }
}

/// The targets, ready to take the image.
pub(super) struct Sinks<'a>(Vec<(Target, Box<dyn Sink + 'a>)>);

impl Sinks<'_> {
    /// Whether the first target has places for layers while they are made.
    pub(super) fn have_places(&self) -> bool {
        self.0.first().is_some_and(|(_, sink)| sink.has_places())
    }

    /// Places for layers that are still to be made, at the first target that has some.
    pub(super) fn spool(&mut self, sizes: &[u64]) -> Result<Option<&Spool>, DeliveryError> {
        match self.0.first_mut() {
            Some((_, sink)) => sink.spool(sizes),
            None => Ok(None),
        }
    }

    /// What [`Sinks::deliver`] would do.
    pub(super) fn foresee(self, images: &Images, layers: &Layers<'_>) -> Result<Vec<Delivery>, DeliveryError> {
        let foresee = |(target, mut sink): (Target, Box<dyn Sink + '_>)| {
            let (delivered, missing) = delivery::foresee(images, layers, &mut *sink)?;
            Ok(Delivery { target, delivered, to_send: missing.iter().map(|layer| layer.digest).collect() })
        };
        self.0.into_iter().map(foresee).collect()
    }

    /// Brings the image to every target in turn. Where one fails, the error says which have it by then. A reader that
    /// goes away has what it wanted; the other targets still want the image.
    pub(super) fn deliver(
        self,
        images: &Images,
        layers: &Layers<'_>,
        observer: &dyn Observer,
    ) -> Result<Vec<Delivery>, Error> {
        let mut done: Vec<Delivery> = Vec::new();
        let mut has_left = false;
        for (target, mut sink) in self.0 {
            match delivery::deliver(images, layers, &mut *sink, observer) {
                Ok(delivered) => done.push(Delivery { target, delivered, to_send: Vec::new() }),
                Err(DeliveryError::ClosedPipe) => has_left = true,
                Err(error) if done.is_empty() => return Err(error.into()),
                Err(error) => {
                    let written = done.into_iter().map(|delivery| delivery.target).collect();
                    return Err(Error::NotEverywhere { written, error });
                }
            }
        }
        if done.is_empty() && has_left { Err(DeliveryError::ClosedPipe.into()) } else { Ok(done) }
    }
}
