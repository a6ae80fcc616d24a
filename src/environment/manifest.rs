//! The manifest: what the user wrote in `manifest.toml`, or what Flox merged of it into `manifest.lock`.

use std::collections::BTreeMap;
use std::path::Path;

use super::container_config::ContainerConfig;
use super::document::{Cursor, Document, Value};
use super::install::{InstallEntry, PackageSource};
use super::invalid_file::InvalidFile;
use super::schema::Schema;
use super::services::Services;

/// How an environment is activated (flox: `options.activate.mode`, `--mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivateMode {
    /// For work on software: also the variables that compilers look at.
    #[default]
    Dev,
    /// For running software: only the search paths of programs.
    Run,
}

impl ActivateMode {
    /// `dev` or `run`, as `--mode` and the manifest have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Run => "run",
        }
    }
}

/// The parts of a manifest that shape the image.
///
/// All else that Flox's own reader knows is checked and let go. Like that reader, this one refuses keys that it does
/// not know: a key with a typing error would otherwise do nothing, in silence. Unlike it, keys newer than the
/// manifest's own schema version are read all the same, but for `outputs`, whose absence means something else there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// `version` or `schema-version`.
    pub schema: Schema,
    /// `[install]`, by install id.
    pub install: BTreeMap<String, InstallEntry>,
    /// `[vars]`: exported at activation, values as written (bash expands them between double quotes).
    pub vars: BTreeMap<String, String>,
    /// `hook.on-activate`.
    pub on_activate: Option<String>,
    /// `profile.common`.
    pub profile_common: Option<String>,
    /// `profile.bash`.
    pub profile_bash: Option<String>,
    /// `options.activate.mode`.
    pub activate_mode: Option<ActivateMode>,
    /// `options.activate.add-sbin`: whether `sbin` belongs to `PATH`.
    pub add_sbin: bool,
    /// `options.systems`; every system where it is not given.
    pub systems: Option<Vec<String>>,
    /// `[services]`.
    pub services: Services,
    /// Whether `include.environments` names other environments, which Flox merges into the lockfile's manifest.
    pub has_includes: bool,
    /// `[containerize.config]`, validated.
    pub containerize: ContainerConfig,
}

impl Manifest {
    /// Reads the text of a `manifest.toml`; `file` is for errors.
    pub fn parse(file: &Path, text: &[u8]) -> Result<Self, InvalidFile> {
        Self::read(&Document::toml(file, text)?.root())
    }

    /// Whether the packages can be told from the manifest alone: store paths, and nothing to merge.
    pub fn needs_no_lockfile(&self) -> bool {
        let resolved = |entry: &InstallEntry| matches!(entry.source, PackageSource::StorePath(_));
        !self.has_includes && self.install.values().all(resolved)
    }

    /// Reads a manifest of either format.
    pub(super) fn read(manifest: &Cursor<'_>) -> Result<Self, InvalidFile> {
        let schema = Schema::read(manifest)?;
        manifest.only(&[
            "version",
            "schema-version",
            "minimum-cli-version",
            "install",
            "vars",
            "hook",
            "profile",
            "options",
            "services",
            "build",
            "containerize",
            "include",
            "plugins",
        ])?;
        let mut read = Self { schema, ..Self::default() };
        manifest.optional("minimum-cli-version", check_minimum_version)?;
        if let Some(install) = manifest.get("install")? {
            for (id, entry) in install.members()? {
                read.install.insert(id.to_owned(), InstallEntry::read(&entry, schema)?);
            }
        }
        read.vars = manifest.optional("vars", read_vars)?.unwrap_or_default();
        if let Some(hook) = manifest.get("hook")? {
            hook.only(&["on-activate", "on-deactivate"])?;
            hook.optional("on-deactivate", Cursor::string)?;
            read.on_activate = hook.optional("on-activate", Cursor::string)?;
        }
        if let Some(profile) = manifest.get("profile")? {
            profile.only(&["common", "bash", "zsh", "fish", "tcsh", "deactivate"])?;
            profile.optional("deactivate", |deactivate| {
                deactivate.only(SHELLS)?;
                SHELLS.iter().try_for_each(|shell| deactivate.optional(shell, Cursor::string).map(drop))
            })?;
            SHELLS.iter().try_for_each(|shell| profile.optional(shell, Cursor::string).map(drop))?;
            read.profile_common = profile.optional("common", Cursor::string)?;
            read.profile_bash = profile.optional("bash", Cursor::string)?;
        }
        if let Some(options) = manifest.get("options")? {
            read.read_options(&options)?;
        }
        read.services = manifest.optional("services", Services::read)?.unwrap_or_default();
        manifest.optional("build", check_builds)?;
        if let Some(containerize) = manifest.get("containerize")? {
            containerize.only(&["config"])?;
            read.containerize = containerize.optional("config", ContainerConfig::read)?.unwrap_or_default();
        }
        read.has_includes = manifest.optional("include", read_includes)?.unwrap_or_default();
        // What stands in a plugin's table is the plugin's own affair.
        manifest.optional("plugins", |plugins| plugins.members().map(drop))?;
        Ok(read)
    }

    fn read_options(&mut self, options: &Cursor<'_>) -> Result<(), InvalidFile> {
        options.only(&["systems", "allow", "semver", "cuda-detection", "sandbox", "activate"])?;
        self.systems = options.optional("systems", Cursor::strings)?;
        options.optional("allow", |allow| {
            allow.only(&["unfree", "broken", "licenses"])?;
            allow.optional("unfree", Cursor::boolean)?;
            allow.optional("broken", Cursor::boolean)?;
            allow.optional("licenses", Cursor::strings)
        })?;
        options.optional("semver", |semver| {
            semver.only(&["allow-pre-releases"])?;
            semver.optional("allow-pre-releases", Cursor::boolean)
        })?;
        options.optional("cuda-detection", Cursor::boolean)?;
        options.optional("sandbox", |mode| mode.one_of(&["off", "warn", "enforce", "prompt"]))?;
        if let Some(activate) = options.get("activate")? {
            activate.only(&["mode", "add-sbin"])?;
            self.add_sbin = activate.optional("add-sbin", Cursor::boolean)?.unwrap_or_default();
            self.activate_mode = activate.optional("mode", |mode| {
                let mode = mode.one_of(&["dev", "run"])?;
                Ok(if mode == "run" { ActivateMode::Run } else { ActivateMode::Dev })
            })?;
        }
        Ok(())
    }
}

const SHELLS: &[&str] = &["common", "bash", "zsh", "fish", "tcsh"];

pub(super) fn read_vars(vars: &Cursor<'_>) -> Result<BTreeMap<String, String>, InvalidFile> {
    vars.members()?.map(|(name, value)| Ok((name.to_owned(), value.string()?))).collect()
}

fn check_minimum_version(version: &Cursor<'_>) -> Result<(), InvalidFile> {
    if let Value::Table(_) = version.node().value {
        version.only(&["version", "reason"])?;
        version.need("version")?.string()?;
        version.need("reason")?.string()?;
    } else {
        version.string()?;
    }
    Ok(())
}

fn check_builds(builds: &Cursor<'_>) -> Result<(), InvalidFile> {
    for (_, build) in builds.members()? {
        build.only(&[
            "command",
            "runtime-packages",
            "sandbox",
            "sandbox-allow",
            "version",
            "description",
            "license",
        ])?;
        build.need("command")?.string()?;
        build.optional("runtime-packages", Cursor::strings)?;
        build.optional("sandbox", |mode| mode.one_of(&["off", "warn", "enforce", "prompt", "pure"]))?;
        build.optional("sandbox-allow", Cursor::strings)?;
        build.optional("version", |version| {
            if let Value::Table(_) = version.node().value {
                version.only(&["file", "command"])?;
                version.optional("file", Cursor::string)?;
                version.optional("command", Cursor::string).map(drop)
            } else {
                version.string().map(drop)
            }
        })?;
        build.optional("description", Cursor::string)?;
        build.optional("license", Cursor::strings)?;
    }
    Ok(())
}

/// Whether there are any.
fn read_includes(include: &Cursor<'_>) -> Result<bool, InvalidFile> {
    include.only(&["environments"])?;
    let Some(environments) = include.get("environments")? else { return Ok(false) };
    let environments = environments.elements()?;
    for environment in &environments {
        if environment.get("dir")?.is_some() {
            environment.only(&["dir", "name"])?;
            environment.need("dir")?.string()?;
        } else {
            environment.only(&["remote", "reference", "name", "generation"])?;
            // `reference` is another spelling of `remote`.
            let remote = environment.get("reference")?;
            remote.map_or_else(|| environment.need("remote"), Ok)?.string()?;
            environment.optional("generation", Cursor::integer)?;
        }
        environment.optional("name", Cursor::string)?;
    }
    Ok(!environments.is_empty())
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
