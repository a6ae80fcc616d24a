//! The layers that a target lacks: their bytes in order, or at once.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use super::ahead::{self, Ahead};
use super::{BlobError, BlobProvider, DeliveryError};
use crate::event::{Event, Observer};
use crate::image::Layer;
use crate::outlet::{Copied, Outlet, Patient};
use crate::parallel;

/// The layers that a sink is given, the lowest first, and where their bytes come from.
pub struct Missing<'a> {
    layers: Vec<&'a Layer>,
    provider: &'a dyn BlobProvider,
    observer: &'a dyn Observer,
}

impl<'a> Missing<'a> {
    pub(super) fn new(layers: Vec<&'a Layer>, provider: &'a dyn BlobProvider, observer: &'a dyn Observer) -> Self {
        Self { layers, provider, observer }
    }

    /// The layers, each once.
    pub fn layers(&self) -> &[&'a Layer] {
        &self.layers
    }

    /// Calls `put` for each layer in order. The bytes of those to come are made ahead, but for those that can be poured into
    /// an outlet which takes pages.
    pub fn in_order(
        &self,
        takes_pages: bool,
        mut put: impl FnMut(&Layer, LayerBytes<'_>) -> Result<(), DeliveryError>,
    ) -> Result<(), DeliveryError> {
        if self.provider.threads() > 1 {
            return ahead::read(&self.layers, self.provider, takes_pages, |layer, ahead| {
                self.keep_going()?;
                put(layer, LayerBytes { layer, bytes: Bytes::Ahead(ahead), observer: self.observer, told: 0 })
            });
        }
        self.layers.iter().try_for_each(|layer| {
            self.keep_going()?;
            put(layer, self.bytes(layer))
        })
    }

    /// Calls `put` for each layer, from several threads, in any order.
    pub fn at_once(
        &self,
        put: impl Fn(&Layer, LayerBytes<'_>) -> Result<(), DeliveryError> + Sync,
    ) -> Result<(), DeliveryError> {
        self.on_threads(self.provider.threads(), self.layers.clone(), &put)
    }

    /// The same for a target that is far away. Layers whose bytes need only be read go first, at least `least` at once:
    /// their way takes time there and no processor here.
    pub fn at_once_from_afar(
        &self,
        least: usize,
        put: impl Fn(&Layer, LayerBytes<'_>) -> Result<(), DeliveryError> + Sync,
    ) -> Result<(), DeliveryError> {
        let threads = self.provider.threads();
        let (made, others) = self.layers.iter().copied().partition(|layer| self.provider.is_made(layer));
        self.on_threads(threads.max(least), made, &put)?;
        self.on_threads(threads, others, &put)
    }

    fn on_threads(
        &self,
        threads: usize,
        mut layers: Vec<&Layer>,
        put: &(impl Fn(&Layer, LayerBytes<'_>) -> Result<(), DeliveryError> + Sync),
    ) -> Result<(), DeliveryError> {
        if threads > 1 {
            // Each thread takes the largest that is left, so that all of them end at about the same time.
            layers.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        }
        parallel::for_each(threads, &layers, |layer| {
            self.keep_going()?;
            put(layer, self.bytes(layer))
        })
    }

    fn bytes<'b>(&'b self, layer: &'b Layer) -> LayerBytes<'b> {
        LayerBytes { layer, bytes: Bytes::Provider(self.provider), observer: self.observer, told: 0 }
    }

    fn keep_going(&self) -> Result<(), DeliveryError> {
        if self.observer.cancelled() { Err(DeliveryError::Interrupted) } else { Ok(()) }
    }
}

/// One layer's bytes, to be copied once: counted, stopped when the user wants it, and of the promised length.
pub struct LayerBytes<'a> {
    layer: &'a Layer,
    bytes: Bytes<'a>,
    observer: &'a dyn Observer,
    /// Of how many bytes the observer has been told: those that are copied once more do not count twice.
    told: u64,
}

enum Bytes<'a> {
    Provider(&'a dyn BlobProvider),
    Ahead(Ahead<'a>),
    Gone,
}

impl LayerBytes<'_> {
    /// Has the bytes prepared that were not before, because they might never have been wanted
    /// ([`Sink::may_find`](super::Sink::may_find)).
    pub fn prepare(&self) {
        if let Bytes::Provider(provider) = &self.bytes {
            provider.prepare(&[self.layer]);
        }
    }

    /// Does without the bytes, which are at the target already: only tells the observer of them.
    pub fn skip(self) {
        self.observer.event(Event::Advanced { bytes: self.layer.size.saturating_sub(self.told) });
    }

    /// Copies the bytes to `out`; `describe` says what a failure of `out` means.
    pub fn copy_to(
        mut self,
        out: &mut dyn Write,
        describe: impl FnOnce(io::Error) -> DeliveryError,
    ) -> Result<(), DeliveryError> {
        self.copy_once_more_to(out, describe)
    }

    /// The same, for whoever may want the bytes again: [`Missing::at_once`] can give them any number of times.
    pub fn copy_once_more_to(
        &mut self,
        out: &mut dyn Write,
        describe: impl FnOnce(io::Error) -> DeliveryError,
    ) -> Result<(), DeliveryError> {
        self.write_to(&mut Copied(out), describe)
    }

    /// As [`LayerBytes::copy_to`], where `out` may take files' pages as they are.
    pub fn pour_into(
        mut self,
        out: &mut dyn Outlet,
        describe: impl FnOnce(io::Error) -> DeliveryError,
    ) -> Result<(), DeliveryError> {
        self.write_to(out, describe)
    }

    fn write_to(
        &mut self,
        out: &mut dyn Outlet,
        describe: impl FnOnce(io::Error) -> DeliveryError,
    ) -> Result<(), DeliveryError> {
        let out = Patient::new(out, self.observer);
        let mut metered = Metered { out, observer: self.observer, bytes: 0, told: &mut self.told, failure: None };
        let copied = match std::mem::replace(&mut self.bytes, Bytes::Gone) {
            Bytes::Provider(provider) => {
                self.bytes = Bytes::Provider(provider);
                provider.copy_to(self.layer, &mut metered)
            }
            Bytes::Ahead(ahead) => ahead.copy_to(&mut metered),
            Bytes::Gone => Err(BlobError::Source("its bytes have been given away".into())),
        };
        let Metered { bytes, failure, .. } = metered;
        // Who failed is known here, however the provider wraps it: `out`, the user, or the provider itself.
        match failure {
            Some(_) if self.observer.cancelled() => return Err(DeliveryError::Interrupted),
            Some(error) => return Err(describe(error)),
            None => {}
        }
        match copied {
            Err(_) if self.observer.cancelled() => Err(DeliveryError::Interrupted),
            Err(BlobError::Write(error)) => Err(describe(error)),
            Err(BlobError::Source(source)) => Err(DeliveryError::Layer { digest: self.layer.digest, source }),
            Ok(()) if bytes != self.layer.size => {
                Err(DeliveryError::LayerSize { digest: self.layer.digest, expected: self.layer.size, found: bytes })
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Tells the observer of every buffer, and remembers why its writer failed.
struct Metered<'a, 'o> {
    out: Patient<'a, &'o mut (dyn Outlet + 'o)>,
    observer: &'a dyn Observer,
    bytes: u64,
    told: &'a mut u64,
    failure: Option<io::Error>,
}

impl Metered<'_, '_> {
    fn count(&mut self, bytes: u64) {
        self.bytes += bytes;
        let news = self.bytes.saturating_sub(*self.told);
        if news > 0 {
            self.observer.event(Event::Advanced { bytes: news });
            *self.told = self.bytes;
        }
    }
}

impl Outlet for Metered<'_, '_> {
    fn takes_pages(&self) -> bool {
        self.out.takes_pages()
    }

    fn take_pages(&mut self, file: BorrowedFd<'_>, length: u64) -> Option<u64> {
        let taken = self.out.take_pages(file, length);
        self.count(taken.unwrap_or(0));
        taken
    }
}

impl Write for Metered<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.out.write(buf) {
            Ok(written) => {
                self.count(written as u64);
                Ok(written)
            }
            // Not a failure: whoever writes tries again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.failure = Some(error);
                Err(copy)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
