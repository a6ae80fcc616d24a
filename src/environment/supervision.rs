//! Services as process-compose runs them: its configuration, and the scripts that start it beside the command.
//!
//! What flox generates is the model (`service-config.yaml` in an environment that it built): commands go to bash as
//! they are written, nothing in them is expanded before. Two things differ. Flox adds a process that never ends, for
//! `flox services` to talk to; no container has that program, and one that runs nothing but services ends with them.
//! And commands are no Go templates here (`{{.Names}}` stays), as far as process-compose knows how to be told (from
//! 1.94).

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::rendered::{Nodes, Rendered, RenderedNode};
use super::services::Service;
use crate::nix::InvalidStorePath;

const SERVICES: &str = include_str!("services.bash");
const WITH_SERVICES: &str = include_str!("with_services.bash");

/// Services, and what an image runs them with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Supervision<'a> {
    /// The services, by name.
    pub(super) services: &'a BTreeMap<String, Service>,
    /// The absolute path of bash.
    pub(super) bash: &'a str,
    /// The absolute path of process-compose.
    pub(super) process_compose: &'a str,
    /// The signal that stops a container of the image, where it is not SIGTERM.
    pub(super) stop_signal: Option<&'a str>,
}

impl Supervision<'_> {
    /// process-compose's configuration: JSON, which is YAML, too.
    pub(super) fn config(&self) -> String {
        let processes: BTreeMap<&String, Json> =
            self.services.iter().map(|(name, service)| (name, process(service))).collect();
        let project = json!({
            "disable_env_expansion": true,
            "log_configuration": { "no_color": true },
            "log_level": "info",
            "processes": processes,
            "shell": { "shell_argument": "-c", "shell_command": self.bash },
        });
        format!("{}\n", yaml_safe(&format!("{project:#}")))
    }

    /// The script that an activation sources when all variables are set. It starts the services of the configuration at
    /// `config`, or becomes them where nothing else is to run.
    pub(super) fn script(&self, config: &str) -> String {
        SERVICES
            .replace("@process-compose@", self.process_compose)
            .replace("@config@", config)
            .replace("@stop-signal@", self.stop_signal.unwrap_or("TERM"))
    }

    /// The store path of a program, `bin/with-services`, that runs a command beside the services inside an activation
    /// that is not ours. Its shells begin with `bashrc`.
    pub(super) fn program(&self, bashrc: &str) -> Result<Rendered, InvalidStorePath> {
        let config = self.config();
        Rendered::new("services", Nodes::new(), |path| {
            let script = self.script(&format!("{path}/service-config.yaml"));
            let program = WITH_SERVICES
                .replace("@bash@", self.bash)
                .replace("@services@", &format!("{path}/services"))
                .replace("@bashrc@", &format!("{path}/bashrc"));
            let file = |executable, text: &str| RenderedNode::File { executable, contents: text.into() };
            Ok(Nodes::from(
                [
                    ("", RenderedNode::Directory),
                    ("bashrc", file(false, bashrc)),
                    ("bin", RenderedNode::Directory),
                    ("bin/with-services", file(true, &program)),
                    ("service-config.yaml", file(false, &config)),
                    ("services", file(false, &script)),
                ]
                .map(|(path, node)| (path.as_bytes().to_vec(), node)),
            ))
        })
    }
}

fn process(service: &Service) -> Json {
    let mut process = json!({ "command": service.command, "is_template_disabled": true });
    if !service.vars.is_empty() {
        process["environment"] = service.vars.iter().map(|(name, value)| format!("{name}={value}")).collect();
    }
    if service.is_daemon {
        process["is_daemon"] = true.into();
    }
    if let Some(command) = &service.shutdown {
        process["shutdown"] = json!({ "command": command });
    }
    process
}

/// JSON without the characters that it may have as they are and YAML may not, or takes for the end of a line. They can
/// only be in strings.
fn yaml_safe(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                safe.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ => safe.push(character),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(services: &BTreeMap<String, Service>) -> String {
        Supervision { services, bash: "/B/bin/bash", process_compose: "/P/bin/process-compose", stop_signal: None }
            .config()
    }

    fn service(command: &str) -> Service {
        Service { command: command.to_owned(), ..Service::default() }
    }

    #[test]
    fn the_configuration_says_what_the_manifest_says() {
        let services = BTreeMap::from([
            ("web".to_owned(), service("exec serve -p \"$PORT\"\n# {{.Names}}\n")),
            (
                "a: database".to_owned(),
                Service {
                    vars: BTreeMap::from([("PGPORT".to_owned(), "${PORT} = 'x'".to_owned())]),
                    is_daemon: true,
                    shutdown: Some("pg_ctl stop".to_owned()),
                    ..service("pg_ctl start")
                },
            ),
        ]);
        insta::assert_snapshot!(config(&services), @r##"
        {
          "disable_env_expansion": true,
          "log_configuration": {
            "no_color": true
          },
          "log_level": "info",
          "processes": {
            "a: database": {
              "command": "pg_ctl start",
              "environment": [
                "PGPORT=${PORT} = 'x'"
              ],
              "is_daemon": true,
              "is_template_disabled": true,
              "shutdown": {
                "command": "pg_ctl stop"
              }
            },
            "web": {
              "command": "exec serve -p \"$PORT\"\n# {{.Names}}\n",
              "is_template_disabled": true
            }
          },
          "shell": {
            "shell_argument": "-c",
            "shell_command": "/B/bin/bash"
          }
        }
        "##);
    }

    proptest! {
        #[test]
        fn whatever_a_service_says_it_says_in_the_configuration(
            name in any::<String>(),
            command in any::<String>(),
            value in any::<String>(),
        ) {
            let vars = BTreeMap::from([("A".to_owned(), value.clone())]);
            let services = BTreeMap::from([(name.clone(), Service { vars, ..service(&command) })]);
            let config = config(&services);
            let read: Json = serde_json::from_str(&config).unwrap();
            let process = &read["processes"][&name];
            let variable = format!("A={value}");
            prop_assert_eq!(process["command"].as_str(), Some(command.as_str()));
            prop_assert_eq!(process["environment"][0].as_str(), Some(variable.as_str()));
            // What YAML 1.2 prints, 5.1, and neither of the line ends that JSON does not have.
            let printable = |c: char| matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{fefe}'
                | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..);
            prop_assert!(config.chars().all(printable), "{}", config.escape_debug());
        }
    }

    #[test]
    fn the_scripts_have_no_placeholders_left() {
        let services = BTreeMap::from([("a".to_owned(), service("b"))]);
        let supervision = Supervision {
            services: &services,
            bash: "/B/bin/bash",
            process_compose: "/P/bin/process-compose",
            stop_signal: Some("SIGRTMIN+3"),
        };
        let script = supervision.script("/E/service-config.yaml");
        assert!(script.contains(" TERM USR1 USR2 SIGRTMIN+3;"), "{script}");
        assert_eq!(script.matches('@').count(), script.matches("$@").count() + script.matches("[@]").count());
    }
}
