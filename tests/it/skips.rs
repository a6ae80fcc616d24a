//! Tests for which something is not there: one rule for those of the program and those of its modules
//! (`src/nix/testing.rs`). In CI, where the variable `CI` is set, such a test fails; elsewhere it says that it did nothing,
//! and `scripts/test` lists it.

use std::io::Write;

/// Says that the test on this thread did nothing, for want of something; fails it in CI.
pub(crate) fn skip_this(want: &str) {
    skip(want, std::thread::current().name().unwrap_or("a test"));
}

/// The same, of the test with this name, or of the one that a closure of this name is in.
#[expect(clippy::print_stderr, reason = "a skipped test is to be seen")]
pub(crate) fn skip(want: &str, place: &str) {
    let test = place.trim_end_matches("::{{closure}}");
    assert!(std::env::var_os("CI").is_none(), "{test} needs {want}, and it is not there; run scripts/test");
    eprintln!("SKIPPED: no {want}");
    if let Some(list) = std::env::var_os("LAYERHOLD_TEST_SKIPS") {
        let mut list = std::fs::File::options().append(true).create(true).open(list).unwrap();
        // One write, so that lines of processes do not mix.
        list.write_all(format!("  {test}: no {want}\n").as_bytes()).unwrap();
    }
}
