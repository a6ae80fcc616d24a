//! Whether a lockfile was made from the manifest beside it, told by their contents and never by their times.
//!
//! Flox writes the manifest into the lockfile, but not letter by letter: empty tables go, lists that are sets are
//! sorted, and a manifest of `version = 1` may be carried over to a newer schema. Both sides are brought to one form.

use serde_json::{Map, Number, Value as Json};

use super::document::{Cursor, Node, Value};
use super::schema::Schema;

/// A manifest as far as it matters for what is installed and what the image is.
#[derive(Clone, Debug)]
pub(super) struct Written {
    schema: Schema,
    manifest: Json,
}

impl Written {
    /// The manifest at `manifest`, of either format.
    pub(super) fn new(manifest: &Cursor<'_>, schema: Schema) -> Self {
        let mut manifest = to_json(manifest.node());
        tidy(&mut manifest);
        Self { schema, manifest: prune(manifest) }
    }

    /// Whether `locked`, of a lockfile, is this manifest of a `manifest.toml`.
    pub(super) fn is_what_was_locked(&self, locked: &Self) -> bool {
        match (self.schema, locked.schema) {
            (Schema::V1, Schema::V1) => self.manifest == locked.manifest,
            // Flox carries `version = 1`, where all outputs are installed, over to a newer schema by `outputs = "all"`,
            // and leaves that out where a package has no other outputs than those it installs anyway.
            (Schema::V1, _) => self.manifest == with_outputs(&locked.manifest, None),
            (_, Schema::V1) => self.manifest == with_outputs(&locked.manifest, Some("all")),
            _ => self.manifest == locked.manifest,
        }
    }
}

/// Takes `outputs = "all"` out of all packages, or puts it into those that can have it.
fn with_outputs(manifest: &Json, outputs: Option<&str>) -> Json {
    let mut manifest = manifest.clone();
    let entries = manifest.get_mut("install").and_then(Json::as_object_mut);
    for entry in entries.into_iter().flat_map(Map::values_mut).filter_map(Json::as_object_mut) {
        match outputs {
            None if entry.get("outputs").is_some_and(|outputs| outputs == "all") => {
                entry.remove("outputs");
            }
            Some(outputs) if !entry.contains_key("store-path") => {
                entry.insert("outputs".to_owned(), outputs.into());
            }
            _ => {}
        }
    }
    manifest
}

/// Brings what can be said in two ways to one.
fn tidy(manifest: &mut Json) {
    let Some(tables) = manifest.as_object_mut() else { return };
    tables.remove("version");
    tables.remove("schema-version");
    for entry in members(tables, "install") {
        if let Some(Json::Array(parts)) = entry.get("pkg-path") {
            let parts: Vec<&str> = parts.iter().filter_map(Json::as_str).collect();
            let joined = parts.join(".");
            entry.insert("pkg-path".to_owned(), joined.into());
        }
    }
    for service in members(tables, "services") {
        // Flox rewrites it to systemd's own spelling, and no container has it.
        service.remove("systemd");
    }
    for config in members(tables, "containerize") {
        for key in ["exposed-ports", "volumes"] {
            if let Some(Json::Array(set)) = config.get_mut(key) {
                set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
                set.dedup();
            }
        }
    }
    if let Some(Json::Array(environments)) =
        tables.get_mut("include").and_then(|include| include.get_mut("environments"))
    {
        for environment in environments.iter_mut().filter_map(Json::as_object_mut) {
            if let Some(remote) = environment.remove("reference") {
                environment.insert("remote".to_owned(), remote);
            }
        }
        if environments.is_empty() {
            tables.remove("include");
        }
    }
}

/// The tables in the table `name`.
fn members<'a>(tables: &'a mut Map<String, Json>, name: &str) -> impl Iterator<Item = &'a mut Map<String, Json>> {
    let members = tables.get_mut(name).and_then(Json::as_object_mut);
    members.into_iter().flat_map(Map::values_mut).filter_map(Json::as_object_mut)
}

/// Takes out tables in which nothing stands, from within.
fn prune(value: Json) -> Json {
    match value {
        Json::Object(table) => {
            let members = table.into_iter().map(|(name, member)| (name, prune(member)));
            Json::Object(
                members.filter(|(_, member)| member.as_object().is_none_or(|table| !table.is_empty())).collect(),
            )
        }
        other => other,
    }
}

fn to_json(node: &Node) -> Json {
    match &node.value {
        Value::String(text) | Value::Datetime(text) => text.clone().into(),
        Value::Boolean(value) => (*value).into(),
        Value::Integer(value) => Number::from_i128(*value).map_or_else(|| value.to_string().into(), Json::Number),
        Value::Float(text) => {
            let number = text.parse().ok().and_then(Number::from_f64);
            number.map_or_else(|| text.clone().into(), Json::Number)
        }
        Value::Array(array) => array.iter().map(to_json).collect(),
        Value::Table(table) => {
            Json::Object(table.iter().map(|(name, member)| (name.clone(), to_json(member))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::Document;
    use super::*;
    use rstest::rstest;
    use std::path::Path;

    fn written(document: &Document) -> Written {
        Written::new(&document.root(), Schema::read(&document.root()).unwrap())
    }

    fn belongs(toml: &str, locked: &str) -> bool {
        let locked = Document::json(Path::new("manifest.lock"), &serde_json::from_str(locked).unwrap());
        let toml = Document::toml(Path::new("manifest.toml"), toml.as_bytes()).unwrap();
        written(&toml).is_what_was_locked(&written(&locked))
    }

    #[rstest]
    #[case::empty_tables("version = 1\n[hook]\n[options.allow]", r#"{"version":1,"options":{},"profile":{}}"#)]
    #[case::null("version = 1", r#"{"version":1,"hook":{"on-activate":null}}"#)]
    #[case::newer_schema("schema-version = '1.10.0'\nvars.A = '1'", r#"{"schema-version":"1.14.0","vars":{"A":"1"}}"#)]
    #[case::migrated(
        "version = 1\ninstall.a.pkg-path = 'a'\ninstall.b.pkg-path = 'b'",
        r#"{"schema-version":"1.14.0","install":{"a":{"pkg-path":"a","outputs":"all"},"b":{"pkg-path":"b"}}}"#
    )]
    #[case::migrated_afterwards(
        "schema-version = '1.10.0'\ninstall.a = { pkg-path = 'a', outputs = 'all' }\n\
         install.b.store-path = '/nix/store/x'",
        r#"{"version":1,"install":{"a":{"pkg-path":"a"},"b":{"store-path":"/nix/store/x"}}}"#
    )]
    #[case::sets(
        "version = 1\ncontainerize.config = { volumes = ['/b', '/a', '/b'], exposed-ports = ['80', '8'] }",
        r#"{"version":1,"containerize":{"config":{"volumes":["/a","/b"],"exposed-ports":["8","80"]}}}"#
    )]
    #[case::includes(
        "version = 1\ninclude.environments = [{ reference = 'o/n' }]",
        r#"{"version":1,"include":{"environments":[{"remote":"o/n"}]}}"#
    )]
    #[case::no_includes("version = 1\ninclude.environments = []", r#"{"version":1}"#)]
    #[case::numbers(
        "version = 1\n[install.a]\npkg-path = ['p', 'a']\npriority = 0x10",
        r#"{"version":1,"install":{"a":{"pkg-path":"p.a","priority":16}}}"#
    )]
    #[case::units(
        "version = 1\n[services.s]\ncommand = 'c'\nsystemd.service.exec-start = 'x'",
        r#"{"version":1,"services":{"s":{"command":"c","systemd":{"Service":{"ExecStart":"x"}}}}}"#
    )]
    fn what_means_the_same_belongs_together(#[case] toml: &str, #[case] locked: &str) {
        assert!(belongs(toml, locked));
    }

    #[rstest]
    #[case::changed("version = 1\nvars.A = '1'", r#"{"version":1,"vars":{"A":"2"}}"#)]
    #[case::added("version = 1\nvars.A = '1'", r#"{"version":1}"#)]
    #[case::removed("version = 1", r#"{"version":1,"install":{"a":{"pkg-path":"a"}}}"#)]
    #[case::outputs(
        "schema-version = '1.10.0'\ninstall.a.pkg-path = 'a'",
        r#"{"schema-version":"1.10.0","install":{"a":{"pkg-path":"a","outputs":"all"}}}"#
    )]
    #[case::fewer_outputs(
        "schema-version = '1.10.0'\ninstall.a.pkg-path = 'a'",
        r#"{"version":1,"install":{"a":{"pkg-path":"a"}}}"#
    )]
    #[case::named_outputs(
        "version = 1\ninstall.a.pkg-path = 'a'",
        r#"{"schema-version":"1.10.0","install":{"a":{"pkg-path":"a","outputs":["out"]}}}"#
    )]
    #[case::order_of_a_list(
        "version = 1\ncontainerize.config.cmd = ['a', 'b']",
        r#"{"version":1,"containerize":{"config":{"cmd":["b","a"]}}}"#
    )]
    #[case::an_empty_list_of_systems("version = 1\noptions.systems = []", r#"{"version":1}"#)]
    fn what_means_something_else_does_not(#[case] toml: &str, #[case] locked: &str) {
        assert!(!belongs(toml, locked));
    }
}
