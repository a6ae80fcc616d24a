//! Vocabulary: where a stream goes that may take a file's pages as they are.

use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::BorrowedFd;
use std::process::ChildStdin;

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
