//! A file: the archive, written beside its target and renamed.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::partial::PartialFile;
use super::{Archive, ArchiveNames, BlobProvider, DeliveryError, Finish, LayerBytes, Sink};
use crate::blob::Digest;
use crate::crash;
use crate::image::{Image, Layer};

/// Writes the archive to a file.
///
/// - The bytes go to a temporary file in the same directory, which is synchronised and then renamed: a failure leaves
///   the old file, and nobody ever sees half an archive.
/// - A new file's mode is 0666 less the umask; a file that was there passes on its mode and, where the process may
///   give files away, its owner. A file that the process may not write is not replaced.
/// - A symbolic link stays: the file that it leads to is replaced, or made where the link leads nowhere.
/// - What is no regular file (`/dev/null`, a named pipe) is written directly.
pub struct FileSink {
    path: PathBuf,
    output: Option<Output>,
    archive: Archive,
}

enum Output {
    /// A temporary file and the path that it will have.
    Beside { temporary: PartialFile, target: PathBuf },
    /// A device or a pipe.
    Direct(File),
}

impl Output {
    fn file(&mut self) -> &mut File {
        match self {
            Self::Beside { temporary, .. } => temporary.as_file_mut(),
            Self::Direct(file) => file,
        }
    }
}

impl FileSink {
    /// A sink on the file at `path`. Nothing is touched yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), output: None, archive: Archive::new() }
    }

    fn failed(&self) -> impl Fn(io::Error) -> DeliveryError + use<> {
        let path = self.path.clone();
        move |source| match source.kind() {
            io::ErrorKind::BrokenPipe => DeliveryError::ClosedPipe,
            _ => DeliveryError::Write { path: path.clone(), source },
        }
    }

    fn open(&self) -> Result<Output, DeliveryError> {
        let failed = self.failed();
        let target = end_of_links(&self.path).map_err(&failed)?;
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let old = match fs::metadata(&target) {
            Ok(old) if old.is_dir() => return Err(DeliveryError::IsDirectory { path: self.path.clone() }),
            Ok(old) if !old.is_file() => {
                return Ok(Output::Direct(OpenOptions::new().write(true).open(&target).map_err(failed)?));
            }
            Ok(old) => Some(old),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if target.as_os_str().as_encoded_bytes().ends_with(b"/") {
                    return Err(DeliveryError::IsDirectory { path: self.path.clone() });
                }
                if !parent.is_dir() {
                    return Err(DeliveryError::NoParent { path: self.path.clone(), parent });
                }
                None
            }
            Err(error) => return Err(failed(error)),
        };
        if old.is_some() {
            // Renaming over a file asks only its directory; its own write permission shall count too.
            OpenOptions::new().write(true).open(&target).map_err(&failed)?;
        }
        let temporary = PartialFile::new_in(&parent, 0o666).map_err(&failed)?;
        if let Some(old) = old {
            // Only root may give files away; for anybody else the file becomes their own.
            let _ = std::os::unix::fs::fchown(temporary.as_file(), Some(old.uid()), Some(old.gid()));
            temporary.as_file().set_permissions(fs::Permissions::from_mode(old.mode() & 0o777)).map_err(&failed)?;
        }
        Ok(Output::Beside { temporary, target })
    }
}

/// Follows symbolic links, also to where nothing is.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // As many as Linux itself follows.
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(link) => path = path.parent().unwrap_or(Path::new("")).join(link),
            // Not a link, or not there.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(rustix::io::Errno::LOOP))
}

impl Sink for FileSink {
    /// Nothing: whether a file's bytes are still what they were is known only to who reads them all.
    fn has(&mut self, _: &Image, _: &dyn BlobProvider) -> Result<BTreeSet<Digest>, DeliveryError> {
        // Here, so that a file that cannot be written is known before a byte is read.
        self.output = Some(self.open()?);
        Ok(BTreeSet::new())
    }

    fn put(&mut self, layer: &Layer, bytes: LayerBytes<'_>) -> Result<(), DeliveryError> {
        let failed = self.failed();
        let mut output = match self.output.take() {
            Some(output) => output,
            None => self.open()?,
        };
        self.archive.put(output.file(), layer, bytes, failed)?;
        crash::point("output.layer");
        self.output = Some(output);
        Ok(())
    }

    fn finish(&mut self, image: &Image) -> Result<Finish, DeliveryError> {
        let failed = self.failed();
        let mut output = match self.output.take() {
            Some(output) => output,
            None => self.open()?,
        };
        std::mem::take(&mut self.archive).finish(output.file(), image, &ArchiveNames::portable(image), &failed)?;
        if let Output::Beside { temporary, target } = output {
            temporary.as_file().sync_all().map_err(&failed)?;
            temporary.persist(&target).map_err(&failed)?;
            sync_parent(&target).map_err(&failed)?;
        }
        Ok(Finish::Committed)
    }
}

/// Makes a rename last (fsync(2): the directory's entry is its own).
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    match File::open(parent)?.sync_all() {
        // Some file systems cannot synchronise a directory; they have nothing to lose either.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{files, whole_archive};
    use super::super::samples::{Ending, image};
    use super::super::{Delivered, deliver};
    use super::*;
    use crate::event::Silent;
    use std::os::unix::fs::symlink;

    fn write(path: &Path) -> Result<Delivered, DeliveryError> {
        let (image, blobs) = image("v1", &["base", "top"]);
        deliver(&image, &blobs, &mut FileSink::new(path), &Silent)
    }

    fn is_image(path: &Path) -> bool {
        whole_archive(&fs::read(path).unwrap()).is_some()
    }

    #[test]
    fn an_old_file_is_replaced_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write(&path).unwrap();
        assert!(is_image(&path));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(files(dir.path()).len(), 1);
    }

    #[test]
    fn a_new_file_has_the_mode_that_any_program_would_give_it() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("image.tar")).unwrap();
        File::create(dir.path().join("other")).unwrap();
        let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode();
        assert_eq!(mode("image.tar"), mode("other"));
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        fs::write(&path, "old").unwrap();
        let (image, blobs) = image("v1", &["base", "top"]);
        deliver(&image, &blobs.ending(Ending::Wrong), &mut FileSink::new(&path), &Silent).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(files(dir.path()).len(), 1, "the temporary file is gone");
    }

    #[test]
    fn a_link_stays_and_its_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        symlink("sub/real.tar", at("link")).unwrap();
        symlink(at("link"), at("link2")).unwrap();
        // The link leads nowhere at first.
        for _ in 0..2 {
            write(&at("link2")).unwrap();
            assert!(at("link").is_symlink() && at("link2").is_symlink());
            assert!(!at("sub/real.tar").is_symlink() && is_image(&at("sub/real.tar")));
        }
        symlink("loop", at("loop")).unwrap();
        assert!(write(&at("loop")).unwrap_err().to_string().ends_with("loop'"));
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display();
        let error = write(dir.path()).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write '{shown}': it is a directory"));
        assert_eq!(error.hint().unwrap(), format!("name a file in it: --file {shown}/image.tar"));

        let error = write(&dir.path().join("no/image.tar")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot write '{shown}/no/image.tar': there is no directory '{shown}/no'")
        );
        assert_eq!(error.hint().unwrap(), format!("make it: mkdir -p {shown}/no"));

        fs::write(dir.path().join("file"), "").unwrap();
        let error = write(&dir.path().join("file/image.tar")).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write '{shown}/file/image.tar'"));

        let error = write(Path::new("/dev/full")).unwrap_err();
        assert_eq!(error.to_string(), "cannot write '/dev/full'");
        assert!(error.hint().unwrap().starts_with("free some space"));
    }

    #[test]
    fn devices_and_pipes_are_written_directly() {
        write(Path::new("/dev/null")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());

        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        write(&fifo).unwrap();
        assert!(whole_archive(&reader.join().unwrap()).is_some());
    }
}
