//! Why a layer's bytes could not be had while it was delivered, and what mends that.

use std::error::Error;
use std::io;
use std::path::Path;

use crate::blob::DigestMismatch;
use crate::nix::WalkError;
use crate::store::StoreError;

/// A layer's store paths were not left alone while its bytes were made again.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("its store paths changed while they were read")]
pub(super) struct PathsChanged;

/// Where somebody writes to the store, or the disk has not kept what was written.
const CHANGED: &str = "something else is writing to the store: wait for it, then run this again; if that does not help: \
                       nix-store --verify --check-contents";

/// What mends a delivery that failed because a layer's bytes did not come; `None` where nobody knows.
pub fn hint_of_cause(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(walk) = cause.downcast_ref::<WalkError>() {
        return of_walk(walk);
    }
    if cause.is::<PathsChanged>() {
        return Some(CHANGED.to_owned());
    }
    // What a kept blob's reader finds comes in an io::Error: in the layer cache, then, and not in the Nix store.
    if cause.is::<io::Error>() || cause.is::<StoreError>() {
        return Some("have the layer cache looked through: layerhold cache verify --repair".to_owned());
    }
    cause.is::<DigestMismatch>().then(|| CHANGED.to_owned())
}

fn of_walk(error: &WalkError) -> Option<String> {
    match error {
        WalkError::Changed { .. } => Some(CHANGED.to_owned()),
        WalkError::Read { path, source } => Some(of_read(path, source)),
        WalkError::Absent { path } => Some(format!(
            "something has removed it: let Nix fetch or build it again: nix-store --realise {}",
            path.display()
        )),
        WalkError::Far(far) => far
            .hint
            .clone()
            .or_else(|| Some("see whether the network and the binary cache work, and run this again".to_owned())),
        WalkError::Unsupported { .. } => error.hint(),
        WalkError::Visitor(_) => None,
    }
}

fn of_read(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("run this as a user who may read it: ls -ld {}", path.display())
        }
        io::ErrorKind::NotFound => CHANGED.to_owned(),
        _ => "see what the system says of the disk: dmesg; then let Nix mend what cannot be read: \
              nix-store --verify --check-contents --repair"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::blob::Digest;
    use crate::nix::Far;

    fn hint(cause: impl Into<Box<dyn Error + Send + Sync>>) -> String {
        hint_of_cause(&*cause.into()).unwrap_or_default()
    }

    #[test]
    fn each_cause_has_a_hint_of_its_own() {
        let path = || std::path::PathBuf::from("/nix/store/x/bin/tool");
        let read = |kind: io::ErrorKind| WalkError::Read { path: path(), source: kind.into() };
        let mismatch =
            || DigestMismatch { expected: Digest::of(b"a"), expected_size: 1, found: Digest::of(b"b"), found_size: 1 };
        for changed in [
            hint(WalkError::Changed { path: path() }),
            hint(PathsChanged),
            hint(mismatch()),
            hint(read(io::ErrorKind::NotFound)),
        ] {
            assert!(changed.starts_with("something else is writing to the store"), "{changed}");
        }
        let failing_disk = WalkError::Read { path: path(), source: io::Error::from_raw_os_error(5) };
        assert!(hint(failing_disk).contains("dmesg"));
        assert!(hint(read(io::ErrorKind::PermissionDenied)).ends_with("ls -ld /nix/store/x/bin/tool"));
        assert!(hint(WalkError::Absent { path: path() }).ends_with("nix-store --realise /nix/store/x/bin/tool"));
        let far = |hint: Option<&str>| {
            let failure = Arc::new(io::Error::from(io::ErrorKind::UnexpectedEof));
            WalkError::Far(Far { failure, hint: hint.map(str::to_owned) })
        };
        assert_eq!(hint(far(Some("another cache: --substituter URL"))), "another cache: --substituter URL");
        assert!(hint(far(None)).contains("binary cache"));
        assert!(hint(io::Error::other(mismatch())).contains("layerhold cache verify --repair"));
        assert_eq!(hint("its bytes have been given away"), "");
    }
}
