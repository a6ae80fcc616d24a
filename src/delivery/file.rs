//! A file: the archive, written beside its target and renamed.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::{Archive, ArchiveNames, DeliveryError, Finish, LayerBytes, Sink};
use crate::blob::Digest;
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
    Beside { temporary: NamedTempFile, target: PathBuf },
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
        let temporary = tempfile::Builder::new()
            .prefix(".layerhold-")
            .suffix(".partial")
            // The umask takes its part when the file is opened.
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(&parent)
            .map_err(&failed)?;
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
    fn has(&mut self, _: &Image) -> Result<BTreeSet<Digest>, DeliveryError> {
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
            temporary.persist(&target).map_err(|error| failed(error.error))?;
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
