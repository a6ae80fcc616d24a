//! `[install]`: the packages that an environment asks for.

use super::document::{Cursor, Value};
use super::invalid_file::{InvalidFile, Problem};
use super::schema::Schema;
use crate::nix::StorePath;

/// flox: `DEFAULT_PRIORITY`.
pub(super) const DEFAULT_PRIORITY: u32 = 5;

/// An entry of `[install]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallEntry {
    /// Where the package comes from.
    pub source: PackageSource,
    /// `priority`: a lower number wins; 5 where it is not given.
    pub priority: Option<u32>,
    /// `systems`: only there is the package installed.
    pub systems: Option<Vec<String>>,
    /// `outputs`.
    pub outputs: Option<SelectedOutputs>,
}

/// Where a package comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackageSource {
    /// `pkg-path`: the Flox catalog, which the lockfile resolves.
    Catalog {
        /// The path of attributes, joined by dots.
        pkg_path: String,
    },
    /// `flake`: an installable, which the lockfile resolves.
    Flake {
        /// The flake reference and attribute path.
        installable: String,
    },
    /// `store-path`: what stands there, which needs no lockfile.
    StorePath(StorePath),
}

/// `outputs` of an install entry (since schema 1.10.0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectedOutputs {
    /// `"all"`.
    All,
    /// These, by name.
    Named(Vec<String>),
}

/// A priority outside of what Flox's builder reckons with.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{found} is not a priority: it must be between 0 and {max}", max = u32::MAX)]
pub struct InvalidPriority {
    /// The number.
    pub found: i128,
}

impl InstallEntry {
    /// Whether the package is to be installed on `system`, given `options.systems` for entries that name none.
    pub(super) fn is_for(&self, system: &str, all: Option<&[String]>) -> bool {
        self.systems.as_deref().or(all).is_none_or(|systems| systems.iter().any(|candidate| candidate == system))
    }

    /// Whether it is one store path for several systems, though a program is built for one.
    pub fn is_the_same_everywhere(&self) -> bool {
        matches!(self.source, PackageSource::StorePath(_))
            && self.systems.as_ref().is_none_or(|systems| systems.len() > 1)
    }

    /// Reads one entry.
    pub(super) fn read(entry: &Cursor<'_>, schema: Schema) -> Result<Self, InvalidFile> {
        let [pkg_path, flake, store_path] = [entry.get("pkg-path")?, entry.get("flake")?, entry.get("store-path")?];
        let source = match (pkg_path, flake, store_path) {
            (Some(path), None, None) => {
                entry.only(&["pkg-path", "pkg-group", "version", "systems", "outputs", "priority"])?;
                entry.optional("pkg-group", Cursor::string)?;
                entry.optional("version", Cursor::string)?;
                PackageSource::Catalog { pkg_path: read_pkg_path(&path)? }
            }
            (None, Some(flake), None) => {
                entry.only(&["flake", "systems", "outputs", "priority"])?;
                PackageSource::Flake { installable: flake.string()? }
            }
            (None, None, Some(path)) => {
                entry.only(&["store-path", "systems", "priority"])?;
                PackageSource::StorePath(path.parsed(|text| text.parse().map_err(Problem::StorePath))?)
            }
            _ => return Err(entry.fail(Problem::PackageKind)),
        };
        if schema == Schema::V1
            && let Some(outputs) = entry.get("outputs")?
        {
            return Err(outputs.fail(Problem::OutputsInVersion1));
        }
        Ok(Self {
            source,
            priority: entry.optional("priority", read_priority)?,
            systems: entry.optional("systems", Cursor::strings)?,
            outputs: entry.optional("outputs", SelectedOutputs::read)?,
        })
    }
}

impl SelectedOutputs {
    fn read(outputs: &Cursor<'_>) -> Result<Self, InvalidFile> {
        if let Value::String(_) = outputs.node().value {
            return outputs.parsed(|text| match text {
                "all" => Ok(Self::All),
                other => Err(Problem::Outputs(other.to_owned())),
            });
        }
        outputs.strings().map(Self::Named)
    }
}

/// A priority, of a manifest or a lockfile.
pub(super) fn read_priority(number: &Cursor<'_>) -> Result<u32, InvalidFile> {
    let found = number.integer()?;
    u32::try_from(found).map_err(|_| number.fail(Problem::Priority(InvalidPriority { found })))
}

/// `"python3Packages.pip"` or `["python3Packages", "pip"]`.
fn read_pkg_path(path: &Cursor<'_>) -> Result<String, InvalidFile> {
    match path.node().value {
        Value::Array(_) => Ok(path.strings()?.join(".")),
        _ => path.string(),
    }
}
