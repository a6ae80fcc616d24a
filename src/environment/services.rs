//! `[services]` of a manifest: programs that run beside the command, and which of them an image starts.

use std::collections::BTreeMap;

use super::document::{Cursor, Value};
use super::invalid_file::InvalidFile;
use super::manifest::read_vars;
use super::system::System;

/// `[services]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// `services.auto-start`: whether an activation starts them without being told to.
    pub auto_start: bool,
    /// The services themselves.
    pub by_name: BTreeMap<String, Service>,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// A script in bash that starts it.
    pub command: String,
    /// Variables of this service alone, over the activation's; values as written, nothing in them is expanded.
    pub vars: BTreeMap<String, String>,
    /// Whether the command leaves a process behind and ends.
    pub is_daemon: bool,
    /// `shutdown.command`: a script in bash that stops it, instead of SIGTERM.
    pub shutdown: Option<String>,
    /// Nix's names of the systems that it is for; `None` for all.
    pub systems: Option<Vec<String>>,
}

/// Whether an image starts its services (`--services`, `--no-services`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartServices {
    /// As `services.auto-start` says.
    #[default]
    AsManifest,
    /// It does.
    Always,
    /// It does not.
    Never,
}

/// Services that cannot be started.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServicesError {
    /// They were asked for, and the manifest has none.
    #[error("the manifest has no services for {system} to start")]
    NoServices {
        /// The system that the image is for.
        system: System,
    },
    /// Nothing in the image can run them.
    ///
    /// Not a warning, also where only `auto-start` asks for them: an image without the services that its manifest
    /// promises is found out in production.
    #[error("the environment has no process-compose, which its services need ({})", services.join(", "))]
    NoProcessCompose {
        /// Their names.
        services: Vec<String>,
    },
    /// A daemon that could never be stopped.
    #[error("the service '{service}' is a daemon (is-daemon) and has no shutdown.command")]
    Unstoppable {
        /// Its name.
        service: String,
    },
    /// Not a name that the shell has variables for.
    #[error(
        "'{name}' in services.{service}.vars is not a variable's name: letters, digits and '_' only, no digit first"
    )]
    VarName {
        /// The service's name.
        service: String,
        /// The key.
        name: String,
    },
    /// A NUL byte, which neither an argument nor a variable can hold.
    #[error("the service '{service}' has a NUL character in its command or variables")]
    Nul {
        /// The service's name.
        service: String,
    },
}

impl ServicesError {
    /// What mends it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoServices { .. } => "define one: flox edit; or leave --services out".to_owned(),
            Self::NoProcessCompose { .. } => {
                "add it: flox install process-compose; or make the image without services: --no-services".to_owned()
            }
            Self::Unstoppable { service } => {
                format!("say how to stop it, services.{service}.shutdown.command: flox edit")
            }
            Self::VarName { .. } | Self::Nul { .. } => "change it: flox edit".to_owned(),
        }
    }
}

impl Services {
    /// Reads `[services]` of either format.
    pub(super) fn read(services: &Cursor<'_>) -> Result<Self, InvalidFile> {
        let mut read = Self::default();
        for (name, service) in services.members()? {
            // Before schema 1.12.0, a service could have this name.
            if name == "auto-start" && !matches!(service.node().value, Value::Table(_)) {
                read.auto_start = service.boolean()?;
                continue;
            }
            read.by_name.insert(name.to_owned(), Service::read(&service)?);
        }
        Ok(read)
    }

    /// The services that an image for `system` starts, by name; none where it starts none.
    pub fn started(&self, start: StartServices, system: System) -> Result<BTreeMap<String, Service>, ServicesError> {
        let wanted = match start {
            StartServices::AsManifest => self.auto_start,
            StartServices::Always => true,
            StartServices::Never => false,
        };
        if !wanted {
            return Ok(BTreeMap::new());
        }
        let started: BTreeMap<String, Service> = self
            .by_name
            .iter()
            .filter(|(_, service)| service.is_for(system))
            .map(|(name, service)| (name.clone(), service.clone()))
            .collect();
        // With `auto-start` an environment may have services on other systems only.
        if started.is_empty() && start == StartServices::Always {
            return Err(ServicesError::NoServices { system });
        }
        started.iter().try_for_each(|(name, service)| service.check(name))?;
        Ok(started)
    }
}

impl Service {
    fn read(service: &Cursor<'_>) -> Result<Self, InvalidFile> {
        service.only(&["command", "vars", "is-daemon", "shutdown", "systemd", "systems"])?;
        // A unit file in TOML's clothes; its hundreds of keys are systemd's.
        service.optional("systemd", |unit| unit.members().map(drop))?;
        Ok(Self {
            command: service.need("command")?.string()?,
            vars: service.optional("vars", read_vars)?.unwrap_or_default(),
            is_daemon: service.optional("is-daemon", Cursor::boolean)?.unwrap_or_default(),
            shutdown: service.optional("shutdown", |shutdown| {
                shutdown.only(&["command"])?;
                shutdown.need("command")?.string()
            })?,
            systems: service.optional("systems", Cursor::strings)?,
        })
    }

    fn is_for(&self, system: System) -> bool {
        self.systems.as_ref().is_none_or(|systems| systems.iter().any(|name| name == system.as_str()))
    }

    fn check(&self, name: &str) -> Result<(), ServicesError> {
        let service = || name.to_owned();
        if self.is_daemon && self.shutdown.is_none() {
            return Err(ServicesError::Unstoppable { service: service() });
        }
        if let Some(name) = self.vars.keys().find(|name| !super::vars::is_name(name)) {
            return Err(ServicesError::VarName { service: service(), name: name.clone() });
        }
        let texts = self.vars.values().chain([&self.command]).chain(&self.shutdown);
        if texts.into_iter().any(|text| text.contains('\0')) {
            return Err(ServicesError::Nul { service: service() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::document::Document;
    use super::*;
    use rstest::rstest;

    fn services(text: &str) -> Services {
        Services::read(&Document::toml(Path::new("m"), text.as_bytes()).unwrap().root()).unwrap()
    }

    fn started(text: &str, start: StartServices) -> Result<String, String> {
        let started = services(text).started(start, System::X86_64Linux).map_err(|error| error.to_string())?;
        Ok(started.into_keys().collect::<Vec<_>>().join(" "))
    }

    const TWO: &str = "a.command = 'a'\nb = { command = 'b', systems = ['aarch64-linux'] }\n";

    #[rstest]
    #[case::nobody_asked("", StartServices::AsManifest, "")]
    #[case::auto_start("auto-start = true\n", StartServices::AsManifest, "a")]
    #[case::no_auto_start("auto-start = false\n", StartServices::AsManifest, "")]
    #[case::asked_for("auto-start = false\n", StartServices::Always, "a")]
    #[case::declined("auto-start = true\n", StartServices::Never, "")]
    fn services_of_the_system_start_where_that_is_wanted(
        #[case] auto_start: &str,
        #[case] start: StartServices,
        #[case] expected: &str,
    ) {
        assert_eq!(started(&format!("{auto_start}{TWO}"), start).as_deref(), Ok(expected));
    }

    #[test]
    fn none_to_start_is_an_error_only_where_they_were_asked_for() {
        let other = "auto-start = true\nb = { command = 'b', systems = ['aarch64-linux'] }\n";
        assert_eq!(started(other, StartServices::AsManifest).as_deref(), Ok(""));
        assert_eq!(
            started(other, StartServices::Always).unwrap_err(),
            "the manifest has no services for x86_64-linux to start"
        );
        assert!(started("", StartServices::Always).is_err());
    }

    #[rstest]
    #[case::daemon(
        "a = { command = 'a', is-daemon = true }",
        "the service 'a' is a daemon (is-daemon) and has no shutdown.command"
    )]
    #[case::name("a = { command = 'a', vars = { 'A=B' = 'c' } }", "'A=B' in services.a.vars is not a variable's name")]
    #[case::nul("a.command = \"a\\u0000\"", "the service 'a' has a NUL character")]
    #[case::nul_in_a_variable("a = { command = 'a', vars = { A = \"\\u0000\" } }", "the service 'a' has a NUL")]
    fn what_could_not_run_is_an_error_where_it_would_run(#[case] text: &str, #[case] message: &str) {
        let error = started(text, StartServices::Always).unwrap_err();
        assert!(error.starts_with(message), "{error}");
        assert_eq!(started(text, StartServices::AsManifest).as_deref(), Ok(""), "nothing starts, nothing is wrong");
    }

    #[test]
    fn a_service_may_be_called_auto_start() {
        let services = services("[auto-start]\ncommand = 'x'\n");
        assert!(!services.auto_start);
        assert_eq!(services.by_name["auto-start"].command, "x");
    }
}
