//! What Nix's own settings say of binary caches.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How deep files may include files.
const DEEPEST: u32 = 10;

/// The settings of `nix.conf` that matter here, of several files one after the other (Nix manual, "nix.conf").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NixConf {
    /// `substituters` with `extra-substituters`; `None` where nothing is said.
    pub substituters: Option<Vec<String>>,
    /// `trusted-public-keys` with `extra-trusted-public-keys`; `None` where nothing is said.
    pub keys: Option<Vec<String>>,
    /// What `extra-substituters` adds where `substituters` is left as it is.
    pub more_substituters: Vec<String>,
    /// The same of `extra-trusted-public-keys`.
    pub more_keys: Vec<String>,
    /// `substitute`.
    pub substitute: Option<bool>,
    /// `require-sigs`.
    pub require_signatures: Option<bool>,
    /// `netrc-file`.
    pub netrc_file: Option<PathBuf>,
    /// `http-connections`.
    pub connections: Option<usize>,
    /// `narinfo-cache-positive-ttl`, in seconds.
    pub remember_found: Option<u64>,
    /// `narinfo-cache-negative-ttl`, in seconds.
    pub remember_absent: Option<u64>,
}

/// A file of settings that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InvalidNixConf {
    /// It could not be opened or read.
    #[error("cannot read '{}'", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not as Nix wants it.
    #[error("{place}, line {line}: {reason}")]
    Line {
        /// The file, or `NIX_CONFIG`.
        place: String,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

impl NixConf {
    /// Takes what a file says over what was said before; a file that is not there says nothing.
    pub fn read_file(&mut self, file: &Path) -> Result<(), InvalidNixConf> {
        match self.include(file, 0) {
            Err(InvalidNixConf::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            read => read,
        }
    }

    /// Takes what a text says, as that of `NIX_CONFIG`; `place` names it in errors.
    pub fn read_text(&mut self, text: &str, place: &str) -> Result<(), InvalidNixConf> {
        self.read(text, place, None, 0)
    }

    fn include(&mut self, file: &Path, depth: u32) -> Result<(), InvalidNixConf> {
        let text = fs::read_to_string(file);
        let text = text.map_err(|source| InvalidNixConf::Read { file: file.to_owned(), source })?;
        self.read(&text, &format!("'{}'", file.display()), file.parent(), depth)
    }

    fn read(&mut self, text: &str, place: &str, beside: Option<&Path>, depth: u32) -> Result<(), InvalidNixConf> {
        for (number, line) in text.lines().enumerate() {
            let fail = |reason: String| InvalidNixConf::Line { place: place.to_owned(), line: number + 1, reason };
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [include @ ("include" | "!include"), file] => {
                    if depth == DEEPEST {
                        return Err(fail("files include each other".to_owned()));
                    }
                    let file = beside.map_or_else(|| PathBuf::from(file), |beside| beside.join(file));
                    match self.include(&file, depth + 1) {
                        // Nix leaves out what it may not read: a file of secrets that is another user's.
                        Err(InvalidNixConf::Read { .. }) if *include == "!include" => {}
                        included => included?,
                    }
                }
                [name, "=", values @ ..] => self.set(name, values).map_err(fail)?,
                _ => return Err(fail(format!("'{}' is not NAME = VALUE", line.trim()))),
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, values: &[&str]) -> Result<(), String> {
        let list = || values.iter().map(|&value| value.to_owned()).collect::<Vec<_>>();
        let one = || values.join(" ");
        let number = || one().parse().map_err(|_| format!("{name} is '{}', which is not a number", one()));
        let truth = || match one().as_str() {
            "true" | "yes" | "1" => Ok(true),
            "false" | "no" | "0" => Ok(false),
            other => Err(format!("{name} is '{other}', which is neither true nor false")),
        };
        match name {
            "substituters" | "binary-caches" => {
                self.substituters = Some(list());
                self.more_substituters.clear();
            }
            "extra-substituters" | "extra-binary-caches" => self.more_substituters.extend(list()),
            "trusted-public-keys" | "binary-cache-public-keys" => {
                self.keys = Some(list());
                self.more_keys.clear();
            }
            "extra-trusted-public-keys" | "extra-binary-cache-public-keys" => self.more_keys.extend(list()),
            "substitute" | "build-use-substitutes" => self.substitute = Some(truth()?),
            "require-sigs" => self.require_signatures = Some(truth()?),
            "netrc-file" => self.netrc_file = Some(PathBuf::from(one())),
            "http-connections" | "binary-caches-parallel-connections" => self.connections = Some(number()? as usize),
            "narinfo-cache-positive-ttl" => self.remember_found = Some(number()?),
            "narinfo-cache-negative-ttl" => self.remember_absent = Some(number()?),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NixConf, InvalidNixConf> {
        let mut conf = NixConf::default();
        conf.read_text(text, "NIX_CONFIG")?;
        Ok(conf)
    }

    #[test]
    fn the_settings_that_matter_are_read_and_others_left_alone() {
        let conf = read(
            "# a comment\nsubstituters = https://a https://b # and why\nextra-substituters = https://c\n\
             trusted-public-keys = k:x\nsandbox = false\nrequire-sigs = false\nhttp-connections = 7\n\
             netrc-file = /etc/nix/netrc\nnarinfo-cache-negative-ttl = 0\nsubstitute = true\n",
        )
        .unwrap();
        assert_eq!(conf.substituters.unwrap(), ["https://a", "https://b"]);
        assert_eq!(conf.more_substituters, ["https://c"]);
        assert_eq!((conf.keys.unwrap(), conf.more_keys), (vec!["k:x".to_owned()], vec![]));
        assert_eq!((conf.require_signatures, conf.substitute), (Some(false), Some(true)));
        assert_eq!((conf.connections, conf.remember_found, conf.remember_absent), (Some(7), None, Some(0)));
        assert_eq!(conf.netrc_file, Some(PathBuf::from("/etc/nix/netrc")));
    }

    #[test]
    fn a_later_file_wins_and_adds() {
        let mut conf = read("substituters = https://a\nextra-substituters = https://b").unwrap();
        conf.read_text("extra-substituters = https://c", "2").unwrap();
        assert_eq!(
            (conf.substituters.clone().unwrap(), conf.more_substituters.len()),
            (vec!["https://a".to_owned()], 2)
        );
        conf.read_text("substituters =", "3").unwrap();
        assert_eq!((conf.substituters.unwrap().len(), conf.more_substituters.len()), (0, 0));
    }

    #[test]
    fn files_include_files_beside_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        fs::write(file("nix.conf"), "include more.conf\n!include absent.conf\n").unwrap();
        fs::write(file("more.conf"), "substitute = false\n").unwrap();
        let mut conf = NixConf::default();
        conf.read_file(&file("nix.conf")).unwrap();
        assert_eq!(conf.substitute, Some(false));
        conf.read_file(&file("absent.conf")).unwrap();
        fs::write(file("more.conf"), "include nix.conf\n").unwrap();
        assert!(conf.read_file(&file("nix.conf")).unwrap_err().to_string().ends_with("files include each other"));
        fs::write(file("more.conf"), "include absent.conf\n").unwrap();
        assert!(conf.read_file(&file("more.conf")).is_ok(), "as Nix, which says nothing of it either");
    }

    #[rstest::rstest]
    #[case("substitute = perhaps", "NIX_CONFIG, line 1: substitute is 'perhaps', which is neither true nor false")]
    #[case("\nhttp-connections = many", "NIX_CONFIG, line 2: http-connections is 'many', which is not a number")]
    #[case("substituters https://a", "NIX_CONFIG, line 1: 'substituters https://a' is not NAME = VALUE")]
    fn what_nix_would_refuse_is_an_error(#[case] text: &str, #[case] message: &str) {
        assert_eq!(read(text).unwrap_err().to_string(), message);
    }
}
