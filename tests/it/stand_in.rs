//! Programs that stand in for others, compiled when a test first needs them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use layerhold::blob::Digest;

const PROCESS_COMPOSE: &str = include_str!("stand_in/process-compose.rs");

/// A static program that does what process-compose does, as far as the product needs it. The real one is in no
/// registry that the tests can install from.
pub(crate) fn process_compose() -> Vec<u8> {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let name = format!("process-compose-{}", &Digest::of(PROCESS_COMPOSE.as_bytes()).hex()[..16]);
    let program = directory.join(&name);
    if !program.exists() {
        let own = tempfile::Builder::new().prefix(&name).tempdir_in(&directory).unwrap();
        let (source, made) = (own.path().join("main.rs"), own.path().join("main"));
        fs::write(&source, PROCESS_COMPOSE).unwrap();
        let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
        let mut command = Command::new(rustc);
        command.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"]).arg(&made).arg(&source);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Another test may do the same: whole files take each other's place.
        fs::rename(&made, &program).unwrap();
    }
    fs::read(program).unwrap()
}
