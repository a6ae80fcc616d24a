//! TOML and JSON files read into one kind of tree, every value of which knows its place: file, line, column and key.
//!
//! A Flox manifest stands in `manifest.toml` as TOML and in `manifest.lock` as JSON; one reader serves both, and its
//! errors name the place in either.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::invalid_file::{InvalidFile, Place, Position, Problem};

/// A value and where it begins.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// Offset in bytes of the value, and of its key where it has one. `None` for JSON.
    at: Option<usize>,
    key_at: Option<usize>,
}

/// What both formats can say. JSON's `null` is a key that is not there.
#[derive(Clone, Debug)]
pub(super) enum Value {
    String(String),
    Integer(i128),
    /// A float, or an integer too large for one, as written.
    Float(String),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

/// A file, parsed.
#[derive(Clone, Debug)]
pub(super) struct Document {
    file: PathBuf,
    /// The text, for line numbers; empty for JSON.
    text: String,
    root: Node,
}

impl Document {
    /// Parses TOML.
    pub(super) fn toml(file: &Path, bytes: &[u8]) -> Result<Self, InvalidFile> {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
                let place =
                    Place { file: file.to_owned(), position: Some(position(&good, good.len())), key: String::new() };
                return Err(InvalidFile {
                    place: Box::new(place),
                    problem: Problem::Syntax("the text is not UTF-8".to_owned()),
                });
            }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        let root = Node { value: from_table(table.get_ref()), at: Some(0), key_at: None };
        match errors.into_iter().next() {
            None => Ok(Self { file: file.to_owned(), text: text.to_owned(), root }),
            Some(error) => {
                let span = error.span().unwrap_or(0..0);
                let at = span.start;
                // Of a key that stands there twice, the first is in the tree; of another error's, the text before it.
                let word = text.get(span).unwrap_or_default().trim_matches(['"', '\'']);
                let named = |path: &[&str]| path.last() == Some(&word);
                let key = match error.message() {
                    "duplicate key" => key_before(&root, at, &named).unwrap_or_else(|| join_key("", word)),
                    _ => key_before(&root, at, &|_| true).unwrap_or_default(),
                };
                let place = Place { file: file.to_owned(), position: Some(position(text, at)), key };
                Err(InvalidFile { place: Box::new(place), problem: Problem::Syntax(error.message().to_owned()) })
            }
        }
    }

    /// Takes over parsed JSON.
    pub(super) fn json(file: &Path, value: &serde_json::Value) -> Self {
        let root = from_json(value).unwrap_or(Node { value: Value::Table(BTreeMap::new()), at: None, key_at: None });
        Self { file: file.to_owned(), text: String::new(), root }
    }

    /// The whole file.
    pub(super) fn root(&self) -> Cursor<'_> {
        Cursor { document: self, node: &self.root, key: String::new() }
    }
}

/// Parses JSON, with the place in the error.
pub(super) fn parse_json(file: &Path, bytes: &[u8]) -> Result<serde_json::Value, InvalidFile> {
    serde_json::from_slice(bytes).map_err(|error| {
        let position = Position { line: error.line(), column: error.column() };
        let place = Place { file: file.to_owned(), position: Some(position), key: String::new() };
        // serde_json repeats the position at the end of its message.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message);
        InvalidFile { place: Box::new(place), problem: Problem::Syntax(message.to_owned()) }
    })
}

/// A value on the way through a document, with the keys that led to it.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    document: &'a Document,
    node: &'a Node,
    key: String,
}

impl<'a> Cursor<'a> {
    /// The value itself.
    pub(super) fn node(&self) -> &'a Node {
        self.node
    }

    /// An error at this value.
    pub(super) fn fail(&self, problem: Problem) -> InvalidFile {
        self.fail_at(self.node.at, &self.key, problem)
    }

    fn fail_at(&self, at: Option<usize>, key: &str, problem: Problem) -> InvalidFile {
        let position = at.map(|at| position(&self.document.text, at));
        let place = Place { file: self.document.file.clone(), position, key: key.to_owned() };
        InvalidFile { place: Box::new(place), problem }
    }

    fn wrong_type(&self, expected: &'static str) -> InvalidFile {
        self.fail(Problem::WrongType { expected, found: self.node.value.type_name() })
    }

    fn below(&self, name: &str, node: &'a Node) -> Cursor<'a> {
        Cursor { document: self.document, node, key: join_key(&self.key, name) }
    }

    /// The members of a table whose keys the user chooses.
    pub(super) fn members(&self) -> Result<impl Iterator<Item = (&'a str, Cursor<'a>)> + use<'a>, InvalidFile> {
        let Value::Table(table) = &self.node.value else { return Err(self.wrong_type("a table")) };
        let parent = self.clone();
        Ok(table.iter().map(move |(name, node)| (name.as_str(), parent.below(name, node))))
    }

    /// Checks that this is a table with no other keys than these.
    pub(super) fn only(&self, known: &[&'static str]) -> Result<(), InvalidFile> {
        for (name, member) in self.members()? {
            if !known.contains(&name) {
                let at = member.node.key_at.or(member.node.at);
                return Err(self.fail_at(at, &member.key, Problem::UnknownKey { known: known.to_vec() }));
            }
        }
        Ok(())
    }

    /// A member of a table, if it is there.
    pub(super) fn get(&self, name: &str) -> Result<Option<Cursor<'a>>, InvalidFile> {
        let Value::Table(table) = &self.node.value else { return Err(self.wrong_type("a table")) };
        Ok(table.get(name).map(|node| self.below(name, node)))
    }

    /// A member of a table that must be there.
    pub(super) fn need(&self, name: &'static str) -> Result<Cursor<'a>, InvalidFile> {
        self.get(name)?.ok_or_else(|| self.fail(Problem::MissingKey(name)))
    }

    /// A member's value, read by `read`, if it is there.
    pub(super) fn optional<T>(
        &self,
        name: &str,
        read: impl FnOnce(&Cursor<'a>) -> Result<T, InvalidFile>,
    ) -> Result<Option<T>, InvalidFile> {
        self.get(name)?.map(|member| read(&member)).transpose()
    }

    /// The elements of an array.
    pub(super) fn elements(&self) -> Result<Vec<Cursor<'a>>, InvalidFile> {
        let Value::Array(array) = &self.node.value else { return Err(self.wrong_type("an array")) };
        let element = |(n, node)| Cursor { document: self.document, node, key: format!("{}[{n}]", self.key) };
        Ok(array.iter().enumerate().map(element).collect())
    }

    /// A string.
    pub(super) fn string(&self) -> Result<String, InvalidFile> {
        match &self.node.value {
            Value::String(text) => Ok(text.clone()),
            _ => Err(self.wrong_type("a string")),
        }
    }

    /// An array of strings.
    pub(super) fn strings(&self) -> Result<Vec<String>, InvalidFile> {
        let Value::Array(_) = &self.node.value else { return Err(self.wrong_type("an array of strings")) };
        self.elements()?.iter().map(Cursor::string).collect()
    }

    /// A boolean.
    pub(super) fn boolean(&self) -> Result<bool, InvalidFile> {
        match &self.node.value {
            Value::Boolean(value) => Ok(*value),
            _ => Err(self.wrong_type("a boolean")),
        }
    }

    /// An integer.
    pub(super) fn integer(&self) -> Result<i128, InvalidFile> {
        match &self.node.value {
            Value::Integer(value) => Ok(*value),
            _ => Err(self.wrong_type("an integer")),
        }
    }

    /// One of a few texts.
    pub(super) fn one_of(&self, known: &'static [&'static str]) -> Result<&'static str, InvalidFile> {
        let found = self.string()?;
        match known.iter().find(|&&text| text == found) {
            Some(text) => Ok(text),
            None => Err(self.fail(Problem::UnknownValue { found, known })),
        }
    }

    /// A string that `parse` understands.
    pub(super) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, Problem>) -> Result<T, InvalidFile> {
        parse(&self.string()?).map_err(|problem| self.fail(problem))
    }
}

impl Value {
    /// The type, with its article.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date or time",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
        }
    }
}

fn from_table(table: &DeTable<'_>) -> Value {
    let mut members = BTreeMap::new();
    for (key, value) in table {
        let (at, key_at) = (Some(value.span().start), Some(key.span().start));
        members.insert(key.get_ref().clone().into_owned(), Node { value: from_toml(value.get_ref()), at, key_at });
    }
    Value::Table(members)
}

fn from_toml(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.clone().into_owned()),
        DeValue::Integer(integer) => match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) => Value::Integer(value),
            Err(_) => Value::Float(integer.as_str().to_owned()),
        },
        DeValue::Float(float) => Value::Float(float.as_str().to_owned()),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(value) => Value::Datetime(value.to_string()),
        DeValue::Array(array) => {
            let element = |value: &toml::Spanned<DeValue<'_>>| Node {
                value: from_toml(value.get_ref()),
                at: Some(value.span().start),
                key_at: None,
            };
            Value::Array(array.iter().map(element).collect())
        }
        DeValue::Table(table) => from_table(table),
    }
}

fn from_json(value: &serde_json::Value) -> Option<Node> {
    let value = match value {
        serde_json::Value::Null => return None,
        serde_json::Value::Bool(value) => Value::Boolean(*value),
        serde_json::Value::Number(number) => match number.as_i128() {
            Some(value) => Value::Integer(value),
            None => Value::Float(number.to_string()),
        },
        serde_json::Value::String(text) => Value::String(text.clone()),
        serde_json::Value::Array(array) => Value::Array(array.iter().filter_map(from_json).collect()),
        serde_json::Value::Object(object) => {
            let member = |(name, value): (&String, _)| Some((name.clone(), from_json(value)?));
            Value::Table(object.iter().filter_map(member).collect())
        }
    };
    Some(Node { value, at: None, key_at: None })
}

/// The path of the key that stands last before `at`, of those that `wanted` wants: what an error there belongs to.
fn key_before(root: &Node, at: usize, wanted: &dyn Fn(&[&str]) -> bool) -> Option<String> {
    fn visit<'a>(node: &'a Node, path: &mut Vec<&'a str>, visitor: &mut dyn FnMut(&Node, &[&str])) {
        match &node.value {
            Value::Table(table) => {
                for (name, member) in table {
                    path.push(name);
                    visitor(member, path);
                    visit(member, path, visitor);
                    path.pop();
                }
            }
            Value::Array(array) => array.iter().for_each(|element| visit(element, path, visitor)),
            _ => {}
        }
    }
    let mut best: Option<(usize, String)> = None;
    visit(root, &mut Vec::new(), &mut |member, path| {
        let Some(key_at) = member.key_at.filter(|&key_at| key_at <= at) else { return };
        if best.as_ref().is_none_or(|(best_at, _)| *best_at <= key_at) && wanted(path) {
            best = Some((key_at, path.iter().fold(String::new(), |parent, name| join_key(&parent, name))));
        }
    });
    best.map(|(_, path)| path)
}

fn join_key(parent: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let name = if bare { name.to_owned() } else { format!("{name:?}") };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

fn position(text: &str, at: usize) -> Position {
    let at = (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str) -> String {
        Document::toml(Path::new("manifest.toml"), text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn broken_toml_names_file_line_column_and_key() {
        assert_eq!(
            broken("version = 1\n[install]\nhello.pkg-path = \"hello\n"),
            "manifest.toml:3:24: install.hello.pkg-path: invalid basic string, expected `\"`"
        );
        assert_eq!(broken("[vars]\nA = \"1\"\nA = \"2\"\n"), "manifest.toml:3:1: vars.A: duplicate key");
    }

    #[test]
    fn a_key_that_stands_twice_is_named_even_behind_others() {
        assert_eq!(broken("a.b = 1\na = 1\n"), "manifest.toml:2:1: a: duplicate key");
        assert_eq!(broken("[x]\n'a b' = 1\nc = 1\n'a b' = 1\n"), "manifest.toml:4:1: x.\"a b\": duplicate key");
    }

    #[test]
    fn a_text_that_is_not_utf8_names_the_line() {
        let error = Document::toml(Path::new("manifest.toml"), b"version = 1\nx = \"\xff\"\n").unwrap_err();
        assert_eq!(error.to_string(), "manifest.toml:2:6: the text is not UTF-8");
    }

    #[test]
    fn broken_json_names_file_line_and_column() {
        let error = parse_json(Path::new("manifest.lock"), b"{\n  \"a\": ,\n}").unwrap_err();
        assert_eq!(error.to_string(), "manifest.lock:2:8: expected value");
    }

    #[test]
    fn keys_that_are_not_bare_are_quoted_in_a_path() {
        let document = Document::toml(Path::new("m"), b"[vars]\n\"a b\" = 1\n").unwrap();
        let vars = document.root().need("vars").unwrap();
        let (_, member) = vars.members().unwrap().next().unwrap();
        assert_eq!(
            member.string().unwrap_err().to_string(),
            "m:2:9: vars.\"a b\": expected a string, found an integer"
        );
    }

    #[test]
    fn an_unknown_key_is_placed_at_the_key_and_a_wrong_type_at_the_value() {
        let document = Document::toml(Path::new("m"), b"[hook]\n  wrong = 1\n").unwrap();
        let hook = document.root().need("hook").unwrap();
        let error = hook.only(&["on-activate"]).unwrap_err();
        assert_eq!(error.to_string(), "m:2:3: hook.wrong: unknown key");
        assert_eq!(error.hint().as_deref(), Some("the keys here are on-activate"));
        let error = hook.need("wrong").unwrap().boolean().unwrap_err();
        assert_eq!(error.to_string(), "m:2:11: hook.wrong: expected a boolean, found an integer");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes: Vec<u8>) {
            let _ = Document::toml(Path::new("m"), &bytes);
            if let Ok(value) = parse_json(Path::new("m"), &bytes) {
                Document::json(Path::new("m"), &value);
            }
        }

        #[test]
        fn no_text_of_toml_like_characters_makes_the_parser_panic(text in "[\\[\\]{}=.,\"'#a-c0-9é \n-]{0,60}") {
            let _ = Document::toml(Path::new("m"), text.as_bytes());
        }
    }
}
