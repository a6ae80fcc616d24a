//! `[containerize.config]`: what the user wants in the image's configuration, validated.

use std::collections::BTreeMap;

use super::document::Cursor;
use super::invalid_file::{InvalidFile, Problem};
use super::signal::StopSignal;
use super::user::UserSpec;

/// The table's keys, each in the form that the image configuration wants (OCI image specification, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerConfig {
    /// `user`.
    pub user: Option<UserSpec>,
    /// `exposed-ports`: always `PORT/tcp` or `PORT/udp`, by number, none twice.
    pub exposed_ports: Vec<String>,
    /// `cmd`; never an empty list.
    pub cmd: Option<Vec<String>>,
    /// `volumes`: absolute paths without `.`, `..`, `//` or a slash at the end, sorted, none twice.
    pub volumes: Vec<String>,
    /// `working-dir`: an absolute path, cleaned like those of `volumes`.
    pub working_dir: Option<String>,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `stop-signal`: `SIGNAME` or a number.
    pub stop_signal: Option<String>,
}

/// A value that no container runtime could use.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidConfig {
    /// `user`.
    #[error("'{text}' is not a user: {reason}")]
    User {
        /// The value.
        text: String,
        /// Why not.
        reason: &'static str,
    },
    /// An element of `exposed-ports`.
    #[error("'{text}' is not a port: {reason}")]
    Port {
        /// The element.
        text: String,
        /// Why not.
        reason: &'static str,
    },
    /// An element of `volumes`, or `working-dir`.
    #[error("'{text}' is not a directory in the container: {reason}")]
    Directory {
        /// The value.
        text: String,
        /// Why not.
        reason: &'static str,
    },
    /// `stop-signal`.
    #[error("'{text}' is not a signal that container runtimes know")]
    Signal {
        /// The value.
        text: String,
    },
    /// `cmd` or an element of it.
    #[error("no program can be started so: {reason}")]
    Command {
        /// Why not.
        reason: &'static str,
    },
    /// A label without a key.
    #[error("the label '{text}' has no key")]
    Label {
        /// The label, as given.
        text: String,
    },
}

impl InvalidConfig {
    /// What to write instead, where an example says more than the message.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::User { .. } => "the forms are user, uid, user:group, uid:gid, uid:group and user:gid",
            Self::Port { .. } => "the forms are 8080, 8080/tcp and 8080/udp",
            Self::Directory { .. } => return None,
            Self::Signal { .. } => "signals are names such as SIGTERM and SIGRTMIN+3, or numbers from 1 to 64",
            Self::Command { .. } => return None,
            Self::Label { .. } => "the form is KEY=VALUE",
        };
        Some(hint.to_owned())
    }
}

impl ContainerConfig {
    const KEYS: &[&str] = &["user", "exposed-ports", "cmd", "volumes", "working-dir", "labels", "stop-signal"];

    /// Reads the table.
    pub(super) fn read(table: &Cursor<'_>) -> Result<Self, InvalidFile> {
        table.only(Self::KEYS)?;
        let mut ports = table.optional("exposed-ports", |list| each(list, parse_port))?.unwrap_or_default();
        ports.sort();
        ports.dedup();
        let mut volumes = table.optional("volumes", |list| each(list, parse_volume))?.unwrap_or_default();
        volumes.sort();
        volumes.dedup();
        Ok(Self {
            user: table.optional("user", |value| parsed(value, UserSpec::parse))?,
            exposed_ports: ports.into_iter().map(|(port, protocol)| format!("{port}/{protocol}")).collect(),
            cmd: table.optional("cmd", read_command)?.filter(|words| !words.is_empty()),
            volumes,
            working_dir: table.optional("working-dir", |value| parsed(value, parse_directory))?,
            labels: table.optional("labels", read_labels)?.unwrap_or_default(),
            stop_signal: table
                .optional("stop-signal", |value| parsed(value, StopSignal::parse))?
                .map(|signal| signal.to_string()),
        })
    }
}

/// Reads `KEY=VALUE` of the option `--label`; without `=`, the value is empty, as in flox.
///
/// Only the key must not be empty (OCI image specification, annotations.md, "Rules"); that it should be a reverse
/// domain name is a recommendation.
pub fn parse_label(text: &str) -> Result<(String, String), InvalidConfig> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err(InvalidConfig::Label { text: text.to_owned() }),
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    }
}

fn read_labels(table: &Cursor<'_>) -> Result<BTreeMap<String, String>, InvalidFile> {
    let label = |(key, value): (&str, Cursor<'_>)| {
        if key.is_empty() {
            return Err(value.fail(Problem::Config(InvalidConfig::Label { text: String::new() })));
        }
        Ok((key.to_owned(), value.string()?))
    };
    table.members()?.map(label).collect()
}

fn read_command(list: &Cursor<'_>) -> Result<Vec<String>, InvalidFile> {
    let words = each(list, |word| {
        if word.contains('\0') {
            return Err(InvalidConfig::Command { reason: "an argument contains a NUL byte" });
        }
        Ok(word.to_owned())
    })?;
    if words.first().is_some_and(String::is_empty) {
        let error = InvalidConfig::Command { reason: "the first word, the program's name, is empty" };
        return Err(list.fail(Problem::Config(error)));
    }
    Ok(words)
}

fn parsed<T>(value: &Cursor<'_>, parse: impl Fn(&str) -> Result<T, InvalidConfig>) -> Result<T, InvalidFile> {
    value.parsed(|text| parse(text).map_err(Problem::Config))
}

fn each<T>(list: &Cursor<'_>, parse: impl Fn(&str) -> Result<T, InvalidConfig>) -> Result<Vec<T>, InvalidFile> {
    list.elements()?.iter().map(|element| parsed(element, &parse)).collect()
}

/// `port`, `port/tcp` or `port/udp`; the specification has no other protocols and no ranges.
fn parse_port(text: &str) -> Result<(u16, &'static str), InvalidConfig> {
    let fail = |reason| Err(InvalidConfig::Port { text: text.to_owned(), reason });
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => "tcp",
        "udp" => "udp",
        _ => return fail("the protocol must be tcp or udp"),
    };
    if number.contains('-') && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        return fail("a range of ports must be written as single ports");
    }
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return fail("it must begin with a number");
    }
    match number.parse::<u16>() {
        Ok(port @ 1..) => Ok((port, protocol)),
        _ => fail("the number must be between 1 and 65535"),
    }
}

fn parse_volume(text: &str) -> Result<String, InvalidConfig> {
    let path = parse_directory(text)?;
    if path == "/" {
        let reason = "a volume cannot cover the whole image";
        return Err(InvalidConfig::Directory { text: text.to_owned(), reason });
    }
    Ok(path)
}

/// An absolute path, without what means nothing in it. `..` is refused: runtimes resolve it differently from a shell
/// where a link is on the way.
fn parse_directory(text: &str) -> Result<String, InvalidConfig> {
    let fail = |reason| Err(InvalidConfig::Directory { text: text.to_owned(), reason });
    if !text.starts_with('/') {
        return fail("the path must be absolute");
    }
    if text.contains('\0') {
        return fail("it contains a NUL byte");
    }
    let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if names.contains(&"..") {
        return fail("'..' has no place in it");
    }
    Ok(format!("/{}", names.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::path::Path;

    fn read(text: &str) -> Result<ContainerConfig, InvalidFile> {
        let document = super::super::document::Document::toml(Path::new("manifest.toml"), text.as_bytes())?;
        ContainerConfig::read(&document.root())
    }

    fn error(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn every_key_is_read() {
        let config = read(
            r#"
            user = "www-data:web"
            exposed-ports = ["8080", "53/udp", "80/tcp", "80"]
            cmd = ["serve", "--name", "a b", ""]
            volumes = ["/var/lib//data/", "/srv/./www"]
            working-dir = "/srv/www/"
            labels = { "org.opencontainers.image.title" = "Web", empty = "" }
            stop-signal = "int"
            "#,
        )
        .unwrap();
        assert_eq!(config.user, Some(UserSpec::parse("www-data:web").unwrap()));
        assert_eq!(config.exposed_ports, ["53/udp", "80/tcp", "8080/tcp"]);
        assert_eq!(config.cmd.unwrap(), ["serve", "--name", "a b", ""]);
        assert_eq!(config.volumes, ["/srv/www", "/var/lib/data"]);
        assert_eq!(config.working_dir.as_deref(), Some("/srv/www"));
        assert_eq!(config.labels["org.opencontainers.image.title"], "Web");
        assert_eq!(config.labels["empty"], "");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    }

    #[test]
    fn nothing_is_needed_and_an_empty_cmd_is_none() {
        assert_eq!(read("").unwrap(), ContainerConfig::default());
        assert_eq!(read("cmd = []").unwrap(), ContainerConfig::default());
    }

    #[test]
    fn the_root_is_a_working_directory_but_no_volume() {
        assert_eq!(read("working-dir = '//'").unwrap().working_dir.as_deref(), Some("/"));
        assert_eq!(
            error("volumes = ['/.']"),
            "manifest.toml:1:12: volumes[0]: '/.' is not a directory in the container: a volume cannot cover the \
             whole image"
        );
    }

    #[rstest]
    #[case("users = 'a'", "1:1: users: unknown key")]
    #[case("user = 1000", "1:8: user: expected a string, found an integer")]
    #[case("user = 'a:'", "1:8: user: 'a:' is not a user: a part of it is empty")]
    #[case("exposed-ports = '80'", "1:17: exposed-ports: expected an array, found a string")]
    #[case("exposed-ports = [80]", "1:18: exposed-ports[0]: expected a string, found an integer")]
    #[case(
        "exposed-ports = ['1', '0']",
        "1:23: exposed-ports[1]: '0' is not a port: the number must be between 1 and 65535"
    )]
    #[case(
        "exposed-ports = ['65536/udp']",
        "1:18: exposed-ports[0]: '65536/udp' is not a port: the number must be between 1 and 65535"
    )]
    #[case(
        "exposed-ports = ['80/sctp']",
        "1:18: exposed-ports[0]: '80/sctp' is not a port: the protocol must be tcp or udp"
    )]
    #[case("exposed-ports = ['80/']", "1:18: exposed-ports[0]: '80/' is not a port: the protocol must be tcp or udp")]
    #[case(
        "exposed-ports = ['80-90']",
        "1:18: exposed-ports[0]: '80-90' is not a port: a range of ports must be written as single ports"
    )]
    #[case("exposed-ports = ['+80']", "1:18: exposed-ports[0]: '+80' is not a port: it must begin with a number")]
    #[case("exposed-ports = ['/tcp']", "1:18: exposed-ports[0]: '/tcp' is not a port: it must begin with a number")]
    #[case("cmd = 'serve'", "1:7: cmd: expected an array, found a string")]
    #[case("cmd = ['']", "1:7: cmd: no program can be started so: the first word, the program's name, is empty")]
    #[case("cmd = ['a', \"\\u0000\"]", "1:13: cmd[1]: no program can be started so: an argument contains a NUL byte")]
    #[case(
        "volumes = ['data']",
        "1:12: volumes[0]: 'data' is not a directory in the container: the path must be absolute"
    )]
    #[case(
        "working-dir = '/a/../b'",
        "1:15: working-dir: '/a/../b' is not a directory in the container: '..' has no place in it"
    )]
    #[case("working-dir = ''", "1:15: working-dir: '' is not a directory in the container: the path must be absolute")]
    #[case("labels.a = 1", "1:12: labels.a: expected a string, found an integer")]
    #[case("labels.'' = 'x'", "1:13: labels.\"\": the label '' has no key")]
    #[case("labels = ['a']", "1:10: labels: expected a table, found an array")]
    #[case("stop-signal = 'SIGFOO'", "1:15: stop-signal: 'SIGFOO' is not a signal that container runtimes know")]
    fn what_is_not_allowed_names_line_column_and_key(#[case] text: &str, #[case] message: &str) {
        assert_eq!(error(text), format!("manifest.toml:{message}"));
    }

    #[test]
    fn hints_say_what_to_write() {
        let hint = |text| read(text).unwrap_err().hint().unwrap();
        assert_eq!(
            hint("users = 'a'"),
            "the keys here are user, exposed-ports, cmd, volumes, working-dir, labels, stop-signal"
        );
        assert_eq!(hint("user = ''"), "the forms are user, uid, user:group, uid:gid, uid:group and user:gid");
        assert_eq!(hint("exposed-ports = ['x']"), "the forms are 8080, 8080/tcp and 8080/udp");
        assert_eq!(
            hint("stop-signal = '0'"),
            "signals are names such as SIGTERM and SIGRTMIN+3, or numbers from 1 to 64"
        );
    }

    #[test]
    fn a_label_on_the_command_line_may_lack_its_value_but_not_its_key() {
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(parse_label("a=b=c"), pair("a", "b=c"));
        assert_eq!(parse_label("a"), pair("a", ""));
        assert_eq!(parse_label("a="), pair("a", ""));
        assert_eq!(parse_label("=b").unwrap_err().to_string(), "the label '=b' has no key");
        assert_eq!(parse_label("").unwrap_err().hint().as_deref(), Some("the form is KEY=VALUE"));
    }
}
