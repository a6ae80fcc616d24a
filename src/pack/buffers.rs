//! Buffers of one length that go from hand to hand and are used again: new ones cost the system a page at a time.

use std::sync::{Mutex, PoisonError};

/// The buffers that nobody has now.
pub(super) struct Buffers {
    length: usize,
    spare: Mutex<Vec<Box<[u8]>>>,
}

impl Buffers {
    /// Buffers of `length` bytes; none is made yet.
    pub(super) fn new(length: usize) -> Self {
        Self { length, spare: Mutex::default() }
    }

    /// A buffer with any contents.
    pub(super) fn take(&self) -> Box<[u8]> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| vec![0; self.length].into_boxed_slice())
    }

    /// Gives a buffer back.
    pub(super) fn put(&self, buffer: Box<[u8]>) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    /// Frees the buffers that nobody has.
    pub(super) fn free(&self) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
