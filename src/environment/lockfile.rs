//! The lockfile, `manifest.lock`: which store paths an environment's packages are, on every system.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::document::{Cursor, Document, parse_json};
use super::freshness::Written;
use super::install::{DEFAULT_PRIORITY, InstallEntry, PackageSource, SelectedOutputs, read_priority};
use super::invalid_file::{InvalidFile, Problem};
use super::location::Location;
use super::manifest::Manifest;
use super::schema::Schema;
use super::system::System;
use crate::nix::StorePath;

/// The factor between a package's priority and that of its store paths: it leaves room for outputs that nobody asked
/// for by name between two packages' priorities (flox: the environment's builder).
const PRIORITY_STEP: u64 = 1000;

/// The only version of the format.
const LOCKFILE_VERSION: i64 = 1;

/// A store path of an environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Key of the package in `[install]`.
    pub install_id: String,
    /// Name of the output; `None` for a package given as a store path.
    pub output: Option<String>,
    /// Where it lies. (A `log` output may be a single file, which Flox leaves out of the environment.)
    pub path: StorePath,
    /// A lower number wins: 1000 times the package's priority, and a little more for outputs that are installed only
    /// because all are.
    pub priority: u64,
}

/// Where in nixpkgs a package is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromNixpkgs {
    /// The package's attribute.
    pub attribute: String,
    /// Its derivation.
    pub derivation: StorePath,
    /// The commit of nixpkgs.
    pub revision: String,
}

/// A lockfile.
#[derive(Clone, Debug)]
pub struct Lockfile {
    /// The manifest that was locked; in a composed environment, merged with the included ones.
    pub manifest: Manifest,
    packages: Vec<LockedPackage>,
    /// The manifest as the user wrote it, to compare with `manifest.toml`.
    written: Written,
    /// All of it, to compare with a built environment's copy.
    value: serde_json::Value,
}

/// One package on one system.
#[derive(Clone, Debug)]
struct LockedPackage {
    install_id: String,
    system: String,
    priority: u32,
    contents: Contents,
    origin: Option<FromNixpkgs>,
}

#[derive(Clone, Debug)]
enum Contents {
    StorePath(StorePath),
    Outputs {
        all: BTreeMap<String, StorePath>,
        /// What the package's author would install; may name an output twice.
        to_install: Option<Vec<String>>,
    },
}

/// An environment whose packages on a system cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// `options.systems` does not have the system.
    #[error("the environment is not for {system}, only for {}", supported.join(", "))]
    UnsupportedSystem {
        /// The system that the image is for.
        system: System,
        /// `options.systems`.
        supported: Vec<String>,
        /// Where the environment is.
        environment: Location,
    },
    /// The manifest asks for a package that the lockfile does not have.
    #[error("the package '{install_id}' is not locked for {system}, and the manifest asks for it on {}", all_of(.asked))]
    NotLocked {
        /// Key of the package in `[install]`.
        install_id: String,
        /// The system that the image is for.
        system: System,
        /// The package's `systems`, else `options.systems`; every system where neither is given.
        asked: Option<Vec<String>>,
        /// Where the environment is.
        environment: Location,
    },
    /// The lockfile has a package that its own manifest does not ask for.
    #[error("the lockfile has the package '{install_id}', its manifest does not")]
    Unasked {
        /// Key of the package.
        install_id: String,
        /// Where the environment is.
        environment: Location,
    },
    /// The manifest names an output that the package does not have.
    #[error("the package '{install_id}' has no output '{output}', only {}", known.join(", "))]
    UnknownOutput {
        /// Key of the package in `[install]`.
        install_id: String,
        /// The output.
        output: String,
        /// Those that there are.
        known: Vec<String>,
        /// Where the environment is.
        environment: Location,
    },
    /// The lockfile gives no output of a package that would be installed.
    #[error("the lockfile names no store path to install for the package '{install_id}' on {system}")]
    NoOutputs {
        /// Key of the package in `[install]`.
        install_id: String,
        /// The system that the image is for.
        system: System,
        /// Where the environment is.
        environment: Location,
    },
}

fn all_of(systems: &Option<Vec<String>>) -> String {
    systems.as_ref().map_or_else(|| "every system".to_owned(), |systems| systems.join(", "))
}

impl InstallError {
    /// The command that mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnsupportedSystem { system, environment, .. } => {
                Some(format!("add \"{system}\" to options.systems: {}", environment.flox("edit")))
            }
            Self::UnknownOutput { environment, .. } => {
                Some(format!("name other outputs: {}", environment.flox("edit")))
            }
            Self::NotLocked { install_id, system, environment, .. } => Some(format!(
                "resolve the packages again: {}; or do without it there, with {install_id}.systems that lack \
                 \"{system}\": {}",
                environment.flox("upgrade"),
                environment.flox("edit")
            )),
            Self::Unasked { environment, .. } => Some(environment.relock_hint()),
            Self::NoOutputs { environment, .. } => {
                Some(format!("resolve the packages again: {}", environment.flox("upgrade")))
            }
        }
    }
}

impl Lockfile {
    /// Reads the text of a `manifest.lock`; `file` is for errors.
    pub fn parse(file: &Path, text: &[u8]) -> Result<Self, InvalidFile> {
        let value = parse_json(file, text)?;
        let document = Document::json(file, &value);
        let root = document.root();
        let version = root.need("lockfile-version")?;
        match version.integer()? {
            found if found == i128::from(LOCKFILE_VERSION) => {}
            found => {
                let problem = Problem::UnknownVersion { found: found.to_string(), known: &[LOCKFILE_VERSION] };
                return Err(version.fail(problem));
            }
        }
        let locked = root.need("manifest")?;
        let manifest = Manifest::read(&locked)?;
        let packages = root.need("packages")?.elements()?.iter().map(LockedPackage::read).collect::<Result<_, _>>()?;
        let written = match root.get("compose")? {
            Some(compose) => {
                let composer = compose.need("composer")?;
                Written::new(&composer, Schema::read(&composer)?)
            }
            None => Written::new(&locked, manifest.schema),
        };
        Ok(Self { manifest, packages, written, value })
    }

    /// Whether this lockfile was made from `manifest_toml`.
    pub(super) fn belongs_to(&self, manifest_toml: &Written) -> bool {
        manifest_toml.is_what_was_locked(&self.written)
    }

    /// The lockfile as one line of JSON: what an environment rendered from it carries as its `manifest.lock`.
    pub fn to_json(&self) -> Vec<u8> {
        format!("{}\n", self.value).into_bytes()
    }

    /// Whether `text` is the JSON of this very lockfile, however it is laid out.
    pub(super) fn equals(&self, text: &[u8]) -> bool {
        serde_json::from_slice::<serde_json::Value>(text).is_ok_and(|value| value == self.value)
    }

    /// Where in nixpkgs the packages on `system` are from, as far as they are, each once: from the commit that most of
    /// them are from.
    pub fn from_nixpkgs(&self, system: System) -> Vec<FromNixpkgs> {
        let of_system = self.packages.iter().filter(|package| package.system == system.as_str());
        let origins: Vec<_> = of_system.filter_map(|package| package.origin.as_ref()).collect();
        let mut counts = BTreeMap::<&str, usize>::new();
        for origin in &origins {
            *counts.entry(&origin.revision).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(revision, _)| revision);
        let mut found: Vec<FromNixpkgs> = Vec::new();
        for origin in origins.into_iter().filter(|origin| Some(origin.revision.as_str()) == most) {
            if !found.iter().any(|known| known.derivation == origin.derivation) {
                found.push(origin.clone());
            }
        }
        found
    }

    /// The store paths of the environment on `system`, in the lockfile's order; `environment` is for errors.
    pub fn installed(&self, system: System, environment: &Location) -> Result<Vec<Installed>, InstallError> {
        self.manifest.check_system(system, environment)?;
        let mut installed = Vec::new();
        let mut found = BTreeSet::new();
        // One counter for the whole environment: two packages' minor outputs never meet at one priority.
        let mut minor = 0;
        for package in self.packages.iter().filter(|package| package.system == system.as_str()) {
            let install_id = &package.install_id;
            let Some(entry) = self.manifest.install.get(install_id) else {
                let (install_id, environment) = (install_id.clone(), environment.clone());
                return Err(InstallError::Unasked { install_id, environment });
            };
            if !entry.is_for(system.as_str(), self.manifest.systems.as_deref()) {
                continue;
            }
            found.insert(install_id.as_str());
            let priority = u64::from(package.priority) * PRIORITY_STEP;
            let mut install = |output: Option<&str>, path: &StorePath, priority| {
                let (install_id, output) = (install_id.clone(), output.map(str::to_owned));
                installed.push(Installed { install_id, output, path: path.clone(), priority });
            };
            let (all, to_install) = match &package.contents {
                Contents::StorePath(path) => {
                    install(None, path, priority);
                    continue;
                }
                Contents::Outputs { all, to_install } => (all, to_install.as_deref()),
            };
            let every = self.manifest.schema == Schema::V1 || entry.outputs == Some(SelectedOutputs::All);
            let major = major_outputs(entry, all, to_install).map_err(|output| InstallError::UnknownOutput {
                install_id: install_id.clone(),
                output,
                known: all.keys().cloned().collect(),
                environment: environment.clone(),
            })?;
            let mut any = false;
            for (output, path) in all {
                if major.contains(output.as_str()) {
                    install(Some(output), path, priority);
                } else if every && output != "stubs" {
                    minor += 1;
                    install(Some(output), path, priority + minor);
                } else {
                    continue;
                }
                any = true;
            }
            if !any {
                let (install_id, environment) = (install_id.clone(), environment.clone());
                return Err(InstallError::NoOutputs { install_id, system, environment });
            }
        }
        for (install_id, entry) in &self.manifest.install {
            if entry.is_for(system.as_str(), self.manifest.systems.as_deref()) && !found.contains(install_id.as_str()) {
                let (install_id, environment) = (install_id.clone(), environment.clone());
                let asked = entry.systems.clone().or_else(|| self.manifest.systems.clone());
                return Err(InstallError::NotLocked { install_id, system, asked, environment });
            }
        }
        Ok(installed)
    }
}

/// The outputs that stand at the package's own priority; the error is the name of one that does not exist.
fn major_outputs<'a>(
    entry: &'a InstallEntry,
    all: &'a BTreeMap<String, StorePath>,
    to_install: Option<&'a [String]>,
) -> Result<BTreeSet<&'a str>, String> {
    if let Some(SelectedOutputs::Named(names)) = &entry.outputs {
        return match names.iter().find(|name| !all.contains_key(*name)) {
            Some(unknown) => Err(unknown.clone()),
            None => Ok(names.iter().map(String::as_str).collect()),
        };
    }
    // `stubs` are empty libraries to link against (CUDA); Flox never installs them unasked. `log` is a build's log.
    Ok(match to_install {
        Some(names) => names.iter().map(String::as_str).filter(|name| *name != "stubs").collect(),
        None => all.keys().map(String::as_str).filter(|name| !["stubs", "log"].contains(name)).collect(),
    })
}

impl Manifest {
    /// The store paths of an environment that needs no lockfile, by install id; entries of other kinds are left out.
    pub(super) fn installed_store_paths(
        &self,
        system: System,
        environment: &Location,
    ) -> Result<Vec<Installed>, InstallError> {
        self.check_system(system, environment)?;
        let installed = |(install_id, entry): (&String, &InstallEntry)| match &entry.source {
            PackageSource::StorePath(path) if entry.is_for(system.as_str(), self.systems.as_deref()) => {
                let priority = u64::from(entry.priority.unwrap_or(DEFAULT_PRIORITY)) * PRIORITY_STEP;
                Some(Installed { install_id: install_id.clone(), output: None, path: path.clone(), priority })
            }
            _ => None,
        };
        Ok(self.install.iter().filter_map(installed).collect())
    }

    fn check_system(&self, system: System, environment: &Location) -> Result<(), InstallError> {
        match &self.systems {
            Some(systems) if !systems.iter().any(|candidate| candidate == system.as_str()) => {
                let (supported, environment) = (systems.clone(), environment.clone());
                Err(InstallError::UnsupportedSystem { system, supported, environment })
            }
            _ => Ok(()),
        }
    }
}

impl LockedPackage {
    /// Reads an entry of `packages`. Its other keys describe the package to people; they are not looked at.
    fn read(package: &Cursor<'_>) -> Result<Self, InvalidFile> {
        let store_path = |value: &Cursor<'_>| value.parsed(|text| text.parse().map_err(Problem::StorePath));
        let contents = match package.optional("store_path", store_path)? {
            Some(path) => Contents::StorePath(path),
            None => {
                let output = |(name, path): (&str, Cursor<'_>)| Ok((name.to_owned(), store_path(&path)?));
                let all = package.need("outputs")?.members()?.map(output).collect::<Result<_, _>>()?;
                // Catalog packages have the one spelling, flakes the other.
                let to_install = match package.optional("outputs_to_install", Cursor::strings)? {
                    Some(names) => Some(names),
                    None => package.optional("outputs-to-install", Cursor::strings)?,
                };
                Contents::Outputs { all, to_install }
            }
        };
        Ok(Self {
            install_id: package.need("install_id")?.string()?,
            system: package.need("system")?.string()?,
            priority: package.optional("priority", read_priority)?.unwrap_or(DEFAULT_PRIORITY),
            contents,
            origin: Self::read_origin(package),
        })
    }

    /// Packages that somebody published are from a revision of that one's own repository, flakes from any. What is not
    /// as Flox writes it tells nothing.
    fn read_origin(package: &Cursor<'_>) -> Option<FromNixpkgs> {
        let text = |key| package.optional(key, Cursor::string).ok().flatten();
        let url = text("locked_url")?;
        let is_nixpkgs = url.split(['?', '#']).next()?.trim_end_matches('/').ends_with("/nixpkgs");
        let derivation = text("derivation")?.parse().ok()?;
        let (attribute, revision) = (text("attr_path")?, text("rev")?);
        is_nixpkgs.then_some(FromNixpkgs { attribute, derivation, revision })
    }
}

#[cfg(test)]
#[path = "lockfile_tests.rs"]
mod tests;
