//! Vocabulary: where a stream goes that may take a file's pages as they are.

use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::BorrowedFd;
use std::process::ChildStdin;

use crate::event::{Cancelled, Observer};
use crate::host;

/// A writer, and maybe a pipe: on Linux what lies in the page cache goes into a pipe without being copied. Until
/// somebody copies it from there it is the file's: what is written into the file meanwhile, the reader gets.
pub trait Outlet: Write {
    /// Whether [`Outlet::take_pages`] may work.
    fn takes_pages(&self) -> bool {
        false
    }

    /// Whether it takes something now, in pages or written; waits a moment for that.
    fn has_room(&self) -> bool {
        true
    }

    /// Takes at most `length` bytes of `file`, from where it stands, and says how many: none at its end. `None` where
    /// that does not work, now or ever; read and written, the bytes go in all the same, or it turns out why they do not.
    fn take_pages(&mut self, file: BorrowedFd<'_>, length: u64) -> Option<u64> {
        let _ = (file, length);
        None
    }
}

/// What the system knows by a descriptor is a pipe or not.
macro_rules! of_descriptor {
    ($($writer:ty),*) => {$(
        impl Outlet for $writer {
            fn takes_pages(&self) -> bool {
                host::is_pipe(self)
            }

            fn has_room(&self) -> bool {
                host::has_room(self)
            }

            fn take_pages(&mut self, file: BorrowedFd<'_>, length: u64) -> Option<u64> {
                host::move_pages(file, self, length)
            }
        }
    )*};
}

of_descriptor!(File, PipeWriter, ChildStdin);

impl Outlet for Vec<u8> {}

impl Outlet for io::Sink {}

/// What leads to an outlet does as that does.
macro_rules! of_pointer {
    ($($pointer:ty),*) => {$(
        impl<O: Outlet + ?Sized> Outlet for $pointer {
            fn takes_pages(&self) -> bool {
                (**self).takes_pages()
            }

            fn has_room(&self) -> bool {
                (**self).has_room()
            }

            fn take_pages(&mut self, file: BorrowedFd<'_>, length: u64) -> Option<u64> {
                (**self).take_pages(file, length)
            }
        }
    )*};
}

of_pointer!(Box<O>, &mut O);

/// A writer that gets copies.
pub struct Copied<W>(pub W);

impl<W: Write> Write for Copied<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write> Outlet for Copied<W> {}

/// An outlet that is waited for only as long as the user wants the run to go on. A reader may have stopped for good: a
/// call that waits for it would come back only when it reads on, whatever signal comes meanwhile. One that has written
/// something comes back at a signal, with what it has written: so it is begun only where there is room.
pub struct Patient<'a, O> {
    out: O,
    observer: &'a dyn Observer,
}

impl<'a, O: Outlet> Patient<'a, O> {
    /// Waits for `out`, and asks the observer meanwhile.
    pub fn new(out: O, observer: &'a dyn Observer) -> Self {
        Self { out, observer }
    }

    fn wait_for_room(&self) -> io::Result<()> {
        loop {
            Cancelled::check(self.observer)?;
            if self.out.has_room() {
                return Ok(());
            }
        }
    }
}

impl<O: Outlet> Write for Patient<'_, O> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.wait_for_room()?;
        self.out.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<O: Outlet> Outlet for Patient<'_, O> {
    fn takes_pages(&self) -> bool {
        self.out.takes_pages()
    }

    fn has_room(&self) -> bool {
        self.out.has_room()
    }

    fn take_pages(&mut self, file: BorrowedFd<'_>, length: u64) -> Option<u64> {
        // Written, the bytes find out that they are not wanted.
        self.wait_for_room().ok()?;
        self.out.take_pages(file, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Wants the run to end once it was asked so often.
    struct Impatient(AtomicU32);

    impl Observer for Impatient {
        fn event(&self, _: Event) {}

        fn cancelled(&self) -> bool {
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |asked| asked.checked_sub(1)).is_err()
        }
    }

    #[test]
    fn a_pipe_has_room_until_it_is_full_and_where_nobody_reads_any_more() {
        let (reader, mut writer) = io::pipe().unwrap();
        while writer.has_room() {
            writer.write_all(&[0; 4096]).unwrap();
        }
        drop(reader);
        assert!(writer.has_room(), "to write is to fail");
        assert!(tempfile::tempfile().unwrap().has_room());
    }

    #[test]
    fn a_reader_that_has_stopped_is_waited_for_until_the_run_shall_end() {
        let (_reader, writer) = io::pipe().unwrap();
        // As often as it takes to fill a pipe of 64 KiB, and a few times more.
        let observer = Impatient(AtomicU32::new(20));
        let mut patient = Patient::new(writer, &observer);
        let error = loop {
            if let Err(error) = patient.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert!(Cancelled::caused(&error), "{error}");
        let file = tempfile::tempfile().unwrap();
        assert_eq!(patient.take_pages(std::os::fd::AsFd::as_fd(&file), 1), None);
    }
}
