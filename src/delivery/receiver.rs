//! An archive that was made elsewhere, on its way to a target: there as a whole, or not at all.

use std::io::{self, Write};
use std::path::PathBuf;

use super::file::Output;
use super::load::LOAD;
use super::{DeliveryError, FileSink, RuntimeClient, Target, TargetError};
use crate::child::Child;
use crate::event::Observer;
use crate::outlet::{Outlet, Patient};

/// Takes an archive piece by piece. Dropped before [`Receiver::finish`], it leaves the target as it was; what went out
/// into a stream cannot be taken back, but is no whole archive.
pub struct Receiver<'a> {
    to: To<'a>,
    observer: &'a dyn Observer,
}

enum To<'a> {
    File { path: PathBuf, output: Output },
    Stdout(&'a mut dyn Outlet),
    Load { client: RuntimeClient, child: Child },
}

impl<'a> Receiver<'a> {
    /// A receiver on the target. What cannot be written is known here.
    pub fn new(target: &Target, stdout: &'a mut dyn Outlet, observer: &'a dyn Observer) -> Result<Self, DeliveryError> {
        let to = match target {
            Target::File(path) => {
                To::File { path: path.clone(), output: FileSink::new(path).watched_by(observer).open()? }
            }
            Target::Stdout => To::Stdout(stdout),
            Target::Runtime(client) => To::Load { client: client.clone(), child: client.spawn(&LOAD, true)? },
            Target::Layout(_) | Target::Registry(_) => return Err(TargetError::ArchiveForLayout.into()),
        };
        Ok(Self { to, observer })
    }

    /// Takes the next bytes.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), DeliveryError> {
        // A reader that has stopped must not keep a run that shall end.
        let write = |out: &mut dyn Outlet| Patient::new(out, self.observer).write_all(bytes);
        match &mut self.to {
            To::File { path, output } => write(output.file()).map_err(|error| FileSink::failure(path.clone(), error)),
            To::Stdout(out) => write(out).map_err(DeliveryError::of_stream),
            To::Load { child, .. } => child.write_all(bytes, self.observer).map_err(DeliveryError::Stream),
        }
    }

    /// Why a write failed: a runtime whose pipe broke has said it itself.
    pub fn explain(self, error: DeliveryError) -> DeliveryError {
        match (self.to, error) {
            (To::Load { client, child }, DeliveryError::Stream(_)) => match client.wait(child, self.observer) {
                Ok(ended) => client.failure(&LOAD, &ended),
                Err(error) => error,
            },
            (_, error) => error,
        }
    }

    /// Makes the archive visible, now that it is whole.
    pub fn finish(self) -> Result<(), DeliveryError> {
        match self.to {
            To::File { output: Output::Beside { temporary, target }, path } => {
                temporary.persist(&target).map(drop).map_err(|error| FileSink::failure(path, error))
            }
            To::File { output: Output::Direct(_), .. } => Ok(()),
            To::Stdout(out) => out.flush().map_err(DeliveryError::of_stream),
            To::Load { client, child } => {
                let ended = client.wait(child, self.observer)?;
                if ended.status.success() { Ok(()) } else { Err(client.failure(&LOAD, &ended)) }
            }
        }
    }
}

impl DeliveryError {
    /// A reader that went away is no failure of this tool's.
    pub(super) fn of_stream(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Stream(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Runtime;
    use super::super::samples::{fake, sabotage};
    use super::*;
    use crate::event::Silent;
    use std::fs;

    fn receive(target: &Target, pieces: &[&[u8]], whole: bool) -> Result<Vec<u8>, DeliveryError> {
        let mut stdout = Vec::new();
        let mut receiver = Receiver::new(target, &mut stdout, &Silent)?;
        for piece in pieces {
            if let Err(error) = receiver.write_all(piece) {
                return Err(receiver.explain(error));
            }
        }
        if whole {
            receiver.finish()?;
        } else {
            drop(receiver);
        }
        Ok(stdout)
    }

    #[test]
    fn a_file_is_there_when_the_archive_is_whole_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image.tar");
        let target = Target::File(file.clone());
        receive(&target, &[b"half"], false).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        receive(&target, &[b"who", b"le"], true).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"whole");
        receive(&target, &[b"half"], false).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"whole");
        let nowhere = Target::File(dir.path().join("no/image.tar"));
        assert!(matches!(receive(&nowhere, &[], true), Err(DeliveryError::NoParent { .. })));
    }

    #[test]
    fn standard_output_gets_what_comes() {
        assert_eq!(receive(&Target::Stdout, &[b"a", b"b"], true).unwrap(), b"ab");
        assert_eq!(receive(&Target::Stdout, &[b"a"], false).unwrap(), b"a");
    }

    #[test]
    fn a_runtime_loads_the_whole_and_says_why_it_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = dir.path().join("loaded");
        let target = Target::Runtime(fake(Runtime::Docker, dir.path()));
        // A file for each run: the shell is killed in the first one, and its cat may go on for a moment.
        sabotage(dir.path(), "load", "cat > part.$$; mv part.$$ loaded; exit 0");
        receive(&target, &[b"half"], false).unwrap();
        assert!(!loaded.exists(), "a load that is given up is killed before it sees the end");
        receive(&target, &[b"who", b"le"], true).unwrap();
        assert_eq!(fs::read(&loaded).unwrap(), b"whole");
        sabotage(dir.path(), "load", "echo no room >&2; exit 3");
        let large = vec![0; 4 << 20];
        for pieces in [&[&large[..]][..], &[]] {
            let error = receive(&target, pieces, true).unwrap_err().to_string();
            assert_eq!(error, "'docker load' failed with exit status 3: no room");
        }
    }

    #[test]
    fn whoever_does_not_read_keeps_no_run_that_shall_end() {
        struct Stopped;
        impl Observer for Stopped {
            fn event(&self, _: crate::event::Event) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let client = fake(Runtime::Docker, dir.path());
        sabotage(dir.path(), "load", "sleep 60");
        // More than a pipe holds.
        let large = vec![0; 4 << 20];
        let (_reader, mut pipe) = io::pipe().unwrap();
        for target in [Target::Stdout, Target::Runtime(client)] {
            let mut receiver = Receiver::new(&target, &mut pipe, &Stopped).unwrap();
            receiver.write_all(&large).unwrap_err();
        }
    }

    #[test]
    fn a_layout_takes_images_not_archives() {
        let error = receive(&Target::Layout("images".into()), &[], true).unwrap_err();
        assert!(error.hint().unwrap().contains("skopeo copy oci-archive:image.tar"), "{error}");
    }
}
