//! Ctrl-C: the first asks the stages to stop and clean up, the second ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// What a process that was interrupted exits with (128 + SIGINT).
pub(super) const EXIT_CODE: u8 = 130;

/// Set once the user wants the run to end; the handlers are in place from the first call on.
pub(super) fn flag() -> &'static AtomicBool {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the second signal finds the flag set and ends the process, the first one sets it.
            // Where a handler cannot be set the signal keeps its default, which ends the process too.
            let _ = signal_hook::flag::register_conditional_shutdown(signal, i32::from(EXIT_CODE), Arc::clone(&flag));
            let _ = signal_hook::flag::register(signal, Arc::clone(&flag));
        }
        flag
    })
}

/// Takes the end of standard input for a wish to end, too.
pub(super) fn at_end_of_input() {
    std::thread::spawn(|| {
        // One that cannot be read is at its end.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        flag().store(true, Ordering::Relaxed);
    });
}

/// Whether the user wants the run to end.
pub(super) fn happened() -> bool {
    flag().load(Ordering::Relaxed)
}
