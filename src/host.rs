//! What host systems do each in their own way, under one name each: Linux's own calls, or what every Unix has.
//!
//! Both are compiled on Linux for tests, which hold one to the other; the bytes of an image do not depend on which it is.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(not(target_os = "linux"), test))]
mod portable;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
use portable as system;

pub(crate) use system::{
    Listing, boot, device, has_room, is_pipe, link, move_pages, on_one_core, reserve, return_what_is_freed,
    share_blocks, unnamed, widen_pipe,
};

#[cfg(test)]
mod tests;
