//! A file that nobody sees before it is whole, and that a killed process does not leave behind.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{crash, host};

/// What the names of files begin with that could not be written without one.
pub(super) const PREFIX: &str = ".layerhold-";

/// A file on its way to its name. Dropped before [`PartialFile::persist`] it leaves nothing behind.
pub(super) struct PartialFile {
    file: Kind,
    directory: PathBuf,
}

enum Kind {
    /// Without a name: the system frees it with the process, by whatever end.
    Unnamed(File),
    /// Where the file system or the system has no such files. A killed process leaves it there.
    Named(NamedTempFile),
}

impl PartialFile {
    /// A new file on the file system of `directory`, with this mode less the umask.
    pub(super) fn new_in(directory: &Path, mode: u32) -> io::Result<Self> {
        let file = match host::unnamed(directory, mode) {
            Some(file) => Kind::Unnamed(file),
            None => Kind::Named(builder().permissions(Permissions::from_mode(mode)).tempfile_in(directory)?),
        };
        Ok(Self { file, directory: directory.to_owned() })
    }

    /// The open file.
    pub(super) fn as_file(&self) -> &File {
        match &self.file {
            Kind::Unnamed(file) => file,
            Kind::Named(file) => file.as_file(),
        }
    }

    /// The open file.
    pub(super) fn as_file_mut(&mut self) -> &mut File {
        match &mut self.file {
            Kind::Unnamed(file) => file,
            Kind::Named(file) => file.as_file_mut(),
        }
    }

    /// Gives the file its name, in the directory that it was made in; a file that has it is replaced. The file itself
    /// comes back: another process may have given the name to one of its own since.
    pub(super) fn persist(self, target: &Path) -> io::Result<File> {
        let named = self.named()?;
        crash::point("output.written");
        let file = named.persist(target).map_err(|error| error.error)?;
        crash::point("output.in-place");
        Ok(file)
    }

    /// As [`PartialFile::persist`], but a file that has the name is left alone: that is an error then.
    pub(super) fn persist_new(self, target: &Path) -> io::Result<()> {
        self.named()?.persist_noclobber(target).map_err(|error| error.error)?;
        Ok(())
    }

    /// A link cannot replace a file, so the way to a name leads through another one, for a moment.
    fn named(self) -> io::Result<NamedTempFile> {
        match self.file {
            Kind::Unnamed(file) => {
                let named = builder().make_in(&self.directory, |name| host::link(&file, name))?;
                let (_, path) = named.into_parts();
                Ok(NamedTempFile::from_parts(file, path))
            }
            Kind::Named(file) => Ok(file),
        }
    }
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(".partial");
    builder
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::fs;
    use std::io::Write;

    /// Both kinds, where the file system has both.
    fn partial(directory: &Path, named: bool) -> PartialFile {
        let file = match host::unnamed(directory, 0o666) {
            Some(file) if !named => Kind::Unnamed(file),
            _ => Kind::Named(builder().tempfile_in(directory).unwrap()),
        };
        PartialFile { file, directory: directory.to_owned() }
    }

    #[rstest]
    fn a_file_appears_whole_and_replaces_the_old_one(#[values(false, true)] named: bool) {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("image.tar");
        for contents in ["first", "second"] {
            let mut file = partial(dir.path(), named);
            file.as_file_mut().write_all(contents.as_bytes()).unwrap();
            assert!(fs::read_to_string(&target).map_or(true, |old| old == "first"));
            file.persist(&target).unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), contents);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[rstest]
    fn a_file_that_shall_be_new_replaces_none(#[values(false, true)] named: bool) {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("marker");
        partial(dir.path(), named).persist_new(&target).unwrap();
        let error = partial(dir.path(), named).persist_new(&target).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[rstest]
    fn a_file_that_is_given_up_leaves_nothing(#[values(false, true)] named: bool) {
        let dir = tempfile::tempdir().unwrap();
        partial(dir.path(), named).as_file_mut().write_all(b"half").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
