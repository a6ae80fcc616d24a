//! A file: the archive, written beside its target and renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::partial::PartialFile;
use super::twin::Twin;
use super::written::{contents, mark, token, token_of};
use super::{Archive, ArchiveNames, DeliveryError, Finish, LayerBytes, Missing, Past, Sink, Spool};
use crate::blob::Digest;
use crate::crash;
use crate::event::{Cancelled, Observer, Silent};
use crate::image::{Images, Layer};
use crate::outlet::{Outlet, Patient};

/// Writes the archive to a file.
///
/// - The bytes go to a temporary file in the same directory, each layer to its place, several at once; the file is then
///   renamed: a failure leaves the old file, and nobody ever sees half an archive. It is not synchronised, as no other
///   tool's is: it can be made again, and after a power failure it should be.
/// - A new file's mode is 0666 less the umask; a file that was there passes on its mode and, where the process may
///   give files away, its owner. A file that the process may not write is not replaced.
/// - Where another file holds the image already, that one is copied.
/// - A symbolic link stays: the file that it leads to is replaced, or made where the link leads nowhere.
/// - What is no regular file (`/dev/null`, a named pipe) is written directly.
pub struct FileSink<'a> {
    path: PathBuf,
    /// Is asked while a named pipe has no reader yet.
    observer: &'a dyn Observer,
    output: Option<Output>,
    archive: Archive,
    /// The places of the layers in the temporary file, where some were written while they were made.
    spool: Option<Spool>,
    /// Whether the file holds the image already.
    is_there: bool,
    /// Whether the temporary file is whole: the copy of another one.
    is_copied: bool,
}

/// What the bytes go to.
pub(super) enum Output {
    /// A temporary file and the path that it will have.
    Beside { temporary: PartialFile, target: PathBuf },
    /// A device or a pipe.
    Direct(File),
}

impl Output {
    /// The open file.
    pub(super) fn file(&mut self) -> &mut File {
        match self {
            Self::Beside { temporary, .. } => temporary.as_file_mut(),
            Self::Direct(file) => file,
        }
    }
}

impl FileSink<'static> {
    /// A sink on the file at `path`. Nothing is touched yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            observer: &Silent,
            output: None,
            archive: Archive::new(),
            spool: None,
            is_there: false,
            is_copied: false,
        }
    }

    /// The same sink, which waits for a named pipe's reader only as long as `observer` wants the run to go on.
    pub fn watched_by(self, observer: &dyn Observer) -> FileSink<'_> {
        FileSink { observer, ..self }
    }
}

impl FileSink<'_> {
    fn failed(&self) -> impl Fn(io::Error) -> DeliveryError + use<> {
        let path = self.path.clone();
        move |source| FileSink::failure(path.clone(), source)
    }

    /// A write to the file at `path` that failed.
    pub(super) fn failure(path: PathBuf, source: io::Error) -> DeliveryError {
        match source.kind() {
            io::ErrorKind::BrokenPipe => DeliveryError::ClosedPipe,
            _ if Cancelled::caused(&source) => DeliveryError::Interrupted,
            _ => DeliveryError::Write { path, source },
        }
    }

    /// Opens what the bytes go to.
    pub(super) fn open(&self) -> Result<Output, DeliveryError> {
        let failed = self.failed();
        let target = end_of_links(&self.path).map_err(&failed)?;
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let old = match fs::metadata(&target) {
            Ok(old) if old.is_dir() => return Err(DeliveryError::IsDirectory { path: self.path.clone() }),
            Ok(old) if old.file_type().is_fifo() => return Ok(Output::Direct(self.open_pipe(&target)?)),
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

    /// Opens a named pipe, and waits until somebody reads from it. A call that waits for that would come back only then,
    /// whatever signal comes meanwhile.
    fn open_pipe(&self, target: &Path) -> Result<File, DeliveryError> {
        let failed = self.failed();
        let at_once = OFlags::NONBLOCK.bits().cast_signed();
        loop {
            if self.observer.cancelled() {
                return Err(DeliveryError::Interrupted);
            }
            match OpenOptions::new().write(true).custom_flags(at_once).open(target) {
                Ok(pipe) => {
                    // Writes are to wait for room again.
                    let flags = rustix::fs::fcntl_getfl(&pipe).map_err(|error| failed(error.into()))?;
                    let flags = flags.difference(OFlags::NONBLOCK);
                    rustix::fs::fcntl_setfl(&pipe, flags).map_err(|error| failed(error.into()))?;
                    return Ok(pipe);
                }
                // Nobody has it open for reading (fifo(7)).
                Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
                    std::thread::sleep(READER_INTERVAL);
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// How long to wait before another look for a named pipe's reader.
const READER_INTERVAL: Duration = Duration::from_millis(20);

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
    Err(io::Error::from(Errno::LOOP))
}

impl Sink for FileSink<'_> {
    /// Nothing is opened: whoever reads from a pipe would see its end.
    fn has_places(&self) -> bool {
        !fs::metadata(&self.path).is_ok_and(|old| !old.is_file())
    }

    fn spool(&mut self, sizes: &[u64]) -> Result<Option<&Spool>, DeliveryError> {
        let output = self.open()?;
        if let Output::Beside { temporary, .. } = &output {
            self.spool = Some(new_spool(temporary, sizes.iter().copied()).map_err(self.failed())?);
        }
        self.output = Some(output);
        Ok(self.spool.as_ref())
    }

    /// All, where the file was given this very image when it was written last and has not been touched since; else
    /// nothing.
    fn has(&mut self, images: &Images, past: &dyn Past) -> Result<BTreeSet<Digest>, DeliveryError> {
        // They do not fit where two of the layers turned out to be one blob, which has one place in an archive.
        if self.spool.as_ref().is_some_and(|spool| spool.fits(images.layers().iter().map(|layer| layer.size))) {
            return Ok(BTreeSet::new());
        }
        self.spool = None;
        let output = match self.output.take() {
            // Whoever reads from a pipe would see its end.
            Some(direct @ Output::Direct(_)) => direct,
            // Here, so that a file that cannot be written is known before a byte is read.
            _ => self.open()?,
        };
        if let Output::Beside { target, .. } = &output
            && let Ok(target) = target.canonicalize()
            && let Some(token) = token(&target, &contents(images))
            && past.knows_output(&target, &token)
        {
            self.is_there = true;
            return Ok(images.layers().iter().map(|layer| layer.digest).collect());
        }
        self.output = Some(output);
        Ok(BTreeSet::new())
    }

    /// From another file that was given this very image, and has not been touched since.
    fn copy(&mut self, images: &Images, past: &dyn Past, observer: &dyn Observer) -> Result<bool, DeliveryError> {
        // With a spool some layers are in the file already.
        let (Some(Output::Beside { temporary, .. }), None) = (&self.output, &self.spool) else { return Ok(false) };
        let Some(twin) = Twin::find(&contents(images), past) else { return Ok(false) };
        let bytes = images.layers().iter().map(|layer| layer.size).sum();
        self.is_copied = twin.copy_to(temporary.as_file(), bytes, observer, self.failed())?;
        Ok(self.is_copied)
    }

    fn put(&mut self, missing: &Missing<'_>) -> Result<(), DeliveryError> {
        if self.is_there {
            return Ok(());
        }
        let failed = self.failed();
        let mut output = match self.output.take() {
            Some(output) => output,
            None => self.open()?,
        };
        match &mut output {
            Output::Beside { temporary, .. } => {
                let layers = missing.layers();
                let spool = match self.spool.take() {
                    Some(spool) => spool,
                    None => new_spool(temporary, layers.iter().map(|layer| layer.size)).map_err(&failed)?,
                };
                let places: BTreeMap<_, _> = layers.iter().enumerate().map(|(at, layer)| (layer.digest, at)).collect();
                missing.at_once(|layer, bytes| put_in_place(&spool, places[&layer.digest], layer, bytes, &failed))?;
                temporary.as_file_mut().seek(SeekFrom::Start(spool.end())).map_err(&failed)?;
            }
            Output::Direct(file) => {
                let mut out = Patient::new(file, self.observer);
                missing
                    .in_order(out.takes_pages(), |layer, bytes| self.archive.put(&mut out, layer, bytes, &failed))?;
            }
        }
        self.output = Some(output);
        Ok(())
    }

    fn finish(&mut self, images: &Images, past: &dyn Past) -> Result<Finish, DeliveryError> {
        if self.is_there {
            return Ok(Finish::Committed);
        }
        let failed = self.failed();
        let mut output = match self.output.take() {
            Some(output) => output,
            None => self.open()?,
        };
        if !self.is_copied {
            let names = ArchiveNames::portable(images.name());
            let mut out = Patient::new(output.file(), self.observer);
            std::mem::take(&mut self.archive).finish(&mut out, images, &names, &failed)?;
        }
        if let Output::Beside { temporary, target } = output {
            let marked = mark(temporary.as_file());
            let written = temporary.persist(&target).map_err(&failed)?;
            if marked {
                remember(&written, &target, images, past);
            }
        }
        Ok(Finish::Committed)
    }
}

/// Remembers that the file at a path is this one, and holds the images. A kill before this leaves the memory of what was
/// there before: that fits no longer. The file itself is asked, not its path: what another process has put there since is
/// none of ours, and what is remembered then fits nothing.
fn remember(written: &File, target: &Path, images: &Images, past: &dyn Past) {
    let contents = contents(images);
    if let (Ok(target), Ok(metadata)) = (target.canonicalize(), written.metadata())
        && let Some(token) = token_of(&metadata, &contents)
    {
        past.remember_output(&target, &contents, &token);
    }
}

fn new_spool(temporary: &PartialFile, sizes: impl IntoIterator<Item = u64>) -> io::Result<Spool> {
    Spool::new(temporary.as_file().try_clone()?, sizes)
}

/// Writes a layer's header, and its bytes unless they are there.
fn put_in_place(
    spool: &Spool,
    at: usize,
    layer: &Layer,
    bytes: LayerBytes<'_>,
    failed: &(impl Fn(io::Error) -> DeliveryError + Sync),
) -> Result<(), DeliveryError> {
    spool.write_header(at, layer).map_err(failed)?;
    if spool.holds(at, layer) {
        bytes.skip();
    } else {
        let mut out = spool.writer(at).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        bytes.copy_to(&mut out, failed)?;
    }
    crash::point("output.layer");
    Ok(())
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
    use super::super::Delivered;
    use super::super::conformance::{files, whole_archive};
    use super::super::samples::{self, Ending, Remembering, deliver, image};
    use super::*;
    use crate::event::Silent;
    use std::io::Write;
    use std::os::unix::fs::{FileExt, symlink};

    fn write(path: &Path) -> Result<Delivered, DeliveryError> {
        let (image, blobs) = image("v1", &["base", "top"]);
        deliver(&image, &blobs, &mut FileSink::new(path), &Silent)
    }

    fn is_image(path: &Path) -> bool {
        whole_archive(&fs::read(path).unwrap()).is_some()
    }

    #[test]
    fn a_file_that_holds_the_image_is_not_written_again_unless_it_was_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let past = Remembering::default();
        let deliver = |tag: &str, layers: &[&str]| {
            let (image, blobs) = image(tag, layers);
            samples::deliver(&image, &blobs.with_past(&past), &mut FileSink::new(&path), &Silent).unwrap()
        };
        let sent = |delivered: Delivered| delivered.layers_sent;
        assert_eq!(sent(deliver("v1", &["base", "top"])), 2);
        let inode = fs::metadata(&path).unwrap().ino();
        assert_eq!(sent(deliver("v1", &["base", "top"])), 0);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert_eq!(sent(deliver("v2", &["base", "top"])), 2, "the name is in the archive");
        assert_eq!(sent(deliver("v2", &["base", "other"])), 2);

        let whole = fs::read(&path).unwrap();
        let touches: [&dyn Fn(); 4] = [
            // Within the tick of the last write, as a rule.
            &|| OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"x", 600).unwrap(),
            &|| OpenOptions::new().append(true).open(&path).unwrap().write_all(b"x").unwrap(),
            &|| fs::write(&path, &whole).unwrap(),
            &|| fs::remove_file(&path).unwrap(),
        ];
        for touch in touches {
            touch();
            assert_eq!(sent(deliver("v2", &["base", "other"])), 2);
            assert_eq!(fs::read(&path).unwrap(), whole);
            assert_eq!(sent(deliver("v2", &["base", "other"])), 0);
        }
    }

    #[test]
    fn what_another_process_has_put_there_meanwhile_is_not_taken_for_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let past = Remembering::default();
        let deliver = |tag: &str| {
            let (image, blobs) = image(tag, &["base", "top"]);
            samples::deliver(&image, &blobs.with_past(&past), &mut FileSink::new(&path), &Silent).unwrap().layers_sent
        };
        assert_eq!(deliver("v1"), 2);
        let ours = File::open(&path).unwrap();
        // Between the moment at which one process has given its file the name and that at which it remembers it, another
        // one does the same.
        let theirs = fs::read(write_elsewhere(dir.path())).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &theirs).unwrap();
        remember(&ours, &path, &Images::One(image("v1", &["base", "top"]).0), &past);
        assert_eq!(deliver("v1"), 2, "the file holds another image");
        assert_eq!(deliver("v1"), 0);
    }

    /// A file with another image.
    fn write_elsewhere(dir: &Path) -> PathBuf {
        let path = dir.join("other.tar");
        let (image, blobs) = image("v2", &["base", "other"]);
        deliver(&image, &blobs, &mut FileSink::new(&path), &Silent).unwrap();
        path
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

    #[test]
    fn a_pipe_has_no_places_and_is_opened_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || {
                let mut pipe = File::open(&fifo).unwrap();
                // Nobody can open it a second time.
                fs::remove_file(&fifo).unwrap();
                let mut read = Vec::new();
                io::Read::read_to_end(&mut pipe, &mut read).unwrap();
                read
            }
        });
        let (image, blobs) = image("v1", &["base", "top"]);
        let mut sink = FileSink::new(&fifo);
        assert!(!sink.has_places() && FileSink::new(dir.path().join("new")).has_places());
        assert!(sink.spool(&[4, 3]).unwrap().is_none());
        while fifo.exists() {
            std::thread::yield_now();
        }
        deliver(&image, &blobs, &mut sink, &Silent).unwrap();
        drop(sink);
        assert!(whole_archive(&reader.join().unwrap()).is_some());
    }
}
