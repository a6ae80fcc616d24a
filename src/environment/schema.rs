//! Versions of the manifest's format: `version = 1`, or `schema-version`.

use super::document::Cursor;
use super::invalid_file::{InvalidFile, Problem};

/// The version of a manifest's format.
///
/// What each added (flox: manifest.toml(5)): 1.10.0 `outputs`, 1.11.0 `minimum-cli-version`, 1.12.0
/// `services.auto-start`, 1.13.0 `profile.deactivate` and `sandbox-allow`, 1.14.0 `plugins`, 1.15.0
/// `hook.on-deactivate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Schema {
    /// `version = 1`: all outputs of every package are installed.
    #[default]
    V1,
    /// `schema-version = "1.10.0"`.
    V1_10,
    /// `schema-version = "1.11.0"`.
    V1_11,
    /// `schema-version = "1.12.0"`.
    V1_12,
    /// `schema-version = "1.13.0"`.
    V1_13,
    /// `schema-version = "1.14.0"`.
    V1_14,
    /// `schema-version = "1.15.0"`.
    V1_15,
}

const KNOWN: [(&str, Schema); 6] = [
    ("1.10.0", Schema::V1_10),
    ("1.11.0", Schema::V1_11),
    ("1.12.0", Schema::V1_12),
    ("1.13.0", Schema::V1_13),
    ("1.14.0", Schema::V1_14),
    ("1.15.0", Schema::V1_15),
];

/// A version that is not among those.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the version {found} of the manifest's format is not known")]
pub struct UnknownSchema {
    /// The version, as written.
    pub found: String,
}

impl UnknownSchema {
    /// What to write instead.
    pub fn hint(&self) -> String {
        "'version = 1' and 'schema-version' from \"1.10.0\" to \"1.15.0\" are known; lower it and leave out what newer \
         versions added"
            .to_owned()
    }
}

impl Schema {
    /// Reads `version` or `schema-version` out of a manifest.
    pub(super) fn read(manifest: &Cursor<'_>) -> Result<Self, InvalidFile> {
        if let Some(version) = manifest.get("schema-version")? {
            return version.parsed(|text| {
                let known = KNOWN.iter().find(|(name, _)| *name == text);
                let unknown = || Problem::Schema(UnknownSchema { found: format!("\"{text}\"") });
                known.map(|&(_, schema)| schema).ok_or_else(unknown)
            });
        }
        match manifest.get("version")? {
            None => Err(manifest.fail(Problem::MissingKey("schema-version"))),
            Some(version) => match version.integer()? {
                1 => Ok(Self::V1),
                found => Err(version.fail(Problem::Schema(UnknownSchema { found: found.to_string() }))),
            },
        }
    }
}
