//! Reading ahead: several threads make layers' bytes, and hand them out in order.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};

use super::{BlobError, BlobProvider, DeliveryError};
use crate::image::Layer;
use crate::outlet::Outlet;

/// How many bytes of a layer are made before anybody takes them. As much waits for each thread at most.
const AHEAD: usize = 4 << 20;
/// The length of the pieces in which bytes go from thread to thread.
const PIECE: usize = 256 * 1024;

/// Calls `take` for each layer in order, while threads of the provider's number make its bytes and those of the layers
/// behind it. Of a layer that can be poured nobody makes them where whoever takes them `takes_pages`.
pub(super) fn read(
    layers: &[&Layer],
    provider: &dyn BlobProvider,
    takes_pages: bool,
    mut take: impl FnMut(&Layer, Ahead<'_>) -> Result<(), DeliveryError>,
) -> Result<(), DeliveryError> {
    let (senders, receivers): (Vec<_>, Vec<_>) = layers.iter().map(|_| sync_channel(AHEAD / PIECE)).unzip();
    let senders: Vec<_> = senders.into_iter().map(|sender| Mutex::new(Some(sender))).collect();
    let (next, spare) = (AtomicUsize::new(0), Spare::default());
    let window = Window::default();
    let make = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(sender) = senders.get(at) else { return };
            let may_pour = takes_pages && provider.may_pour(layers[at]);
            window.wait_for(at, if may_pour { NEAR } else { provider.threads() });
            let Some(sender) = sender.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
            let last = if may_pour && provider.pours(layers[at]) {
                Piece::Pour
            } else {
                let mut pieces = Pieces { sender: &sender, piece: spare.take(), spare: &spare };
                let made = provider.copy_to(layers[at], &mut pieces);
                Piece::End(made.and_then(|()| pieces.flush().map_err(BlobError::Write)))
            };
            // Whoever should take it may have given up: then the other layers are not wanted either.
            if sender.send(last).is_err() {
                next.store(layers.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        // Half of them: the other cores' time is the taker's, and whoever reads from it.
        for _ in 0..provider.threads().div_ceil(2).min(layers.len()) {
            scope.spawn(make);
        }
        // Whatever happens, those who wait go on; and as the receivers end here, those who send learn that nobody listens.
        let _open = OpenAtEnd(&window);
        let mut in_order = layers.iter().zip(receivers);
        in_order.try_for_each(|(layer, pieces)| {
            take(layer, Ahead { layer, provider, pieces, spare: &spare })?;
            window.move_on(1);
            Ok(())
        })
    })
}

/// Of how many layers it may be asked whether they pour, those that are being taken among them: what is said then has to
/// hold until they are taken.
const NEAR: usize = 2;

/// Holds threads back that are too far ahead: whole small layers would pile up behind a large one.
#[derive(Default)]
struct Window {
    taken: Mutex<usize>,
    moved: Condvar,
}

impl Window {
    /// Waits until the layer is one of the next `length`, that which is being taken among them.
    fn wait_for(&self, at: usize, length: usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while at >= taken.saturating_add(length) {
            taken = self.moved.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn move_on(&self, layers: usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_add(layers);
        self.moved.notify_all();
    }
}

struct OpenAtEnd<'a>(&'a Window);

impl Drop for OpenAtEnd<'_> {
    fn drop(&mut self) {
        self.0.move_on(usize::MAX);
    }
}

/// What goes from thread to thread.
enum Piece {
    Bytes(Vec<u8>),
    /// There are none: whoever takes the layer pours it.
    Pour,
    End(Result<(), BlobError>),
}

/// Buffers that were taken, to be filled again.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| Vec::with_capacity(PIECE))
    }

    fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Collects what a provider writes, and sends it on.
struct Pieces<'a> {
    sender: &'a SyncSender<Piece>,
    piece: Vec<u8>,
    spare: &'a Spare,
}

impl Outlet for Pieces<'_> {}

impl Write for Pieces<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&buf[..taken]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, self.spare.take());
        self.sender.send(Piece::Bytes(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The bytes of one layer, as far as they are made.
pub(super) struct Ahead<'a> {
    layer: &'a Layer,
    provider: &'a dyn BlobProvider,
    pieces: Receiver<Piece>,
    spare: &'a Spare,
}

impl Ahead<'_> {
    /// Copies all of them to `out`, or pours them.
    pub(super) fn copy_to(self, out: &mut dyn Outlet) -> Result<(), BlobError> {
        loop {
            match self.pieces.recv() {
                Ok(Piece::Bytes(piece)) => {
                    out.write_all(&piece).map_err(BlobError::Write)?;
                    self.spare.put(piece);
                }
                Ok(Piece::Pour) => return self.provider.copy_to(self.layer, out),
                Ok(Piece::End(made)) => return made,
                Err(_) => return Err(BlobError::Source("the thread that made the layer came to an end".into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::StreamSink;
    use super::super::samples::{Ending, deliver, image};
    use super::*;
    use crate::event::Silent;

    #[test]
    fn the_archive_is_the_same_for_any_number_of_threads() {
        let texts: Vec<String> = (0..30usize).map(|n| n.to_string().repeat(n * n * 1000 + 1)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let archive = |threads: usize| {
            let (image, blobs) = image("v1", &texts);
            let mut out = Vec::new();
            deliver(&image, &blobs.on_threads(threads), &mut StreamSink::new(&mut out), &Silent).unwrap();
            out
        };
        let one = archive(1);
        assert!(archive(2) == one && archive(8) == one);
    }

    /// Takes pages, if there are any.
    struct Pipe(Vec<u8>);

    impl Write for Pipe {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.write(buf)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Outlet for Pipe {
        fn takes_pages(&self) -> bool {
            true
        }
    }

    #[test]
    fn layers_that_are_poured_have_their_place_among_those_that_are_made_ahead() {
        let texts: Vec<String> = (0..30usize).map(|n| n.to_string().repeat(n * n * 1000 + 1)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (sample, blobs) = image("v1", &texts);
        let mut whole = Vec::new();
        deliver(&sample, &blobs, &mut StreamSink::new(&mut whole), &Silent).unwrap();
        // With one thread there is nobody who would make them ahead.
        for (threads, pours, poured) in [(1, true, 30), (2, true, 15), (8, true, 15), (2, false, 0)] {
            let (_, blobs) = image("v1", &texts);
            let blobs = if pours { blobs.pouring() } else { blobs }.on_threads(threads);
            let mut pipe = Pipe(Vec::new());
            deliver(&sample, &blobs, &mut StreamSink::new(&mut pipe), &Silent).unwrap();
            assert!(pipe.0 == whole, "{threads} {pours}");
            assert_eq!(blobs.poured.into_inner().unwrap().len(), poured, "{threads} {pours}");
        }
    }

    #[test]
    fn a_failure_ends_every_thread() {
        let texts: Vec<String> = (0..30).map(|n| n.to_string().repeat(10_000_000)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (image, blobs) = image("v1", &texts);
        let blobs = blobs.ending(Ending::Broken).on_threads(4);
        let error = deliver(&image, &blobs, &mut StreamSink::new(io::sink()), &Silent).unwrap_err();
        assert!(matches!(error, DeliveryError::Layer { .. }), "{error}");
        blobs.asked.lock().unwrap().clear();
        let blobs = blobs.pouring();
        let error = deliver(&image, &blobs, &mut StreamSink::new(Pipe(Vec::new())), &Silent).unwrap_err();
        assert!(matches!(error, DeliveryError::Layer { .. }), "{error}");
    }
}
