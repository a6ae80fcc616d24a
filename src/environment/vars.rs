//! `[vars]`: in which order they are set, how bash is given them, and which are known before anything runs.
//!
//! A value is what bash makes of it between double quotes. Unlike flox, which pastes it there as it is, a double quote
//! in a value is a double quote: it ends nothing.

use std::collections::{BTreeMap, BTreeSet};

/// A value, or a variable's name, that bash could not take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VarError {
    /// Not a name that the shell has variables for.
    #[error("'{name}' in [vars] is not a variable's name: letters, digits and '_' only, no digit first")]
    Name {
        /// The key.
        name: String,
    },
    /// A substitution that the value does not end.
    #[error("the value of '{name}' in [vars] begins '{open}' and does not end it")]
    Open {
        /// The key.
        name: String,
        /// What is left open: `$(`, `${` or a backtick.
        open: &'static str,
    },
    /// A NUL byte, which no variable can hold.
    #[error("the value of '{name}' in [vars] has a NUL character")]
    Nul {
        /// The key.
        name: String,
    },
}

/// `export NAME="VALUE"` for every variable, in dependency order: what a value uses is set before it.
pub(super) fn exports(vars: &BTreeMap<String, String>) -> Result<String, VarError> {
    let mut script = String::new();
    for name in in_order(vars) {
        if !is_name(name) {
            return Err(VarError::Name { name: name.to_owned() });
        }
        let value = &vars[name];
        if value.contains('\0') {
            return Err(VarError::Nul { name: name.to_owned() });
        }
        let quoted = quote(value).map_err(|open| VarError::Open { name: name.to_owned(), open })?;
        script.push_str(&format!("export {name}=\"{quoted}\"\n"));
    }
    Ok(script)
}

/// Adds to `known` each variable whose value follows from it, in dependency order, and takes out of it those whose
/// value now depends on something unknown. Returns the names whose values are not known.
pub(super) fn evaluate_all(vars: &BTreeMap<String, String>, known: &mut BTreeMap<String, String>) -> Vec<String> {
    let mut dynamic = Vec::new();
    for name in in_order(vars) {
        match evaluate(&vars[name], known) {
            Some(value) => {
                known.insert(name.to_owned(), value);
            }
            None => {
                known.remove(name);
                dynamic.push(name.to_owned());
            }
        }
    }
    dynamic
}

/// The names so that what a value uses comes before it; otherwise, and within a circle, in byte order.
pub(super) fn in_order(vars: &BTreeMap<String, String>) -> Vec<&str> {
    let uses: BTreeMap<&str, BTreeSet<&str>> = vars
        .iter()
        .map(|(name, value)| {
            let value = join_lines(value);
            let used = references(&value).into_iter().filter(|used| used != name);
            (name.as_str(), used.filter_map(|used| vars.get_key_value(used)).map(|(used, _)| used.as_str()).collect())
        })
        .collect();
    // All that each leads to, itself only by way of a circle.
    let reach: BTreeMap<&str, BTreeSet<&str>> = uses
        .keys()
        .map(|&name| {
            let mut reached = BTreeSet::new();
            let mut pending: Vec<&str> = uses[name].iter().copied().collect();
            while let Some(next) = pending.pop() {
                if reached.insert(next) {
                    pending.extend(&uses[next]);
                }
            }
            (name, reached)
        })
        .collect();
    let mut ordered = Vec::with_capacity(vars.len());
    let mut waiting: BTreeSet<&str> = uses.keys().copied().collect();
    while !waiting.is_empty() {
        // The first that waits for nobody but those who also wait for it. There is one: circles contracted, what is
        // left has no circle.
        let ready = waiting
            .iter()
            .copied()
            .find(|name| reach[name].iter().all(|used| !waiting.contains(used) || reach[used].contains(name)));
        let Some(ready) = ready else { break };
        let circle: Vec<&str> = waiting
            .iter()
            .copied()
            .filter(|&name| name == ready || reach[ready].contains(name) && reach[name].contains(ready))
            .collect();
        waiting.retain(|name| !circle.contains(name));
        ordered.extend(circle);
    }
    ordered
}

/// A value without backslashes at the ends of lines: bash joins such lines before it looks for names, which may reach
/// across them.
fn join_lines(value: &str) -> String {
    let mut joined = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('\\') {
        joined.push_str(&rest[..at]);
        let pair = rest[at + 1..].chars().next().map_or(1, |next| 1 + next.len_utf8());
        if &rest[at..at + pair] != "\\\n" {
            joined.push_str(&rest[at..at + pair]);
        }
        rest = &rest[at + pair..];
    }
    joined + rest
}

/// Every `$NAME` and `${NAME` in a value, also within a command's text.
fn references(value: &str) -> BTreeSet<&str> {
    let bytes = value.as_bytes();
    let mut found = BTreeSet::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'$' => {
                let from = at + 1 + usize::from(bytes.get(at + 1) == Some(&b'{'));
                let length = name_length(&bytes[from.min(bytes.len())..]);
                if length > 0 {
                    found.insert(&value[from..from + length]);
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    found
}

/// The length of the variable's name that `bytes` begins with; 0 for none.
fn name_length(bytes: &[u8]) -> usize {
    match bytes.first() {
        Some(first) if first.is_ascii_alphabetic() || *first == b'_' => {
            bytes.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count()
        }
        _ => 0,
    }
}

/// Whether the shell has variables of that name.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && name_length(text.as_bytes()) == text.len()
}

/// The value as it stands between double quotes: double quotes outside of substitutions escaped, a backslash at the
/// end doubled. The error names what is left open.
fn quote(value: &str) -> Result<String, &'static str> {
    let mut quoted = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find(['\\', '"', '`', '$']) {
        quoted.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match rest.as_bytes() {
            [b'"', ..] => {
                quoted.push('\\');
                1
            }
            [b'\\'] => {
                quoted.push('\\');
                1
            }
            [b'\\', ..] => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            [b'`', ..] => 1 + until_backtick(&rest.as_bytes()[1..]).ok_or("`")?,
            [b'$', b'(', ..] => 2 + until_close(&rest.as_bytes()[2..], b'(', b')').ok_or("$(")?,
            [b'$', b'{', ..] => 2 + until_close(&rest.as_bytes()[2..], b'{', b'}').ok_or("${")?,
            _ => 1,
        };
        quoted.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    quoted.push_str(rest);
    Ok(quoted)
}

fn until_backtick(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            b'`' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// How many bytes there are up to and with the `close` that ends what was opened before `bytes`.
fn until_close(bytes: &[u8], open: u8, close: u8) -> Option<usize> {
    let mut depth = 1;
    let mut at = 0;
    while depth > 0 {
        let byte = *bytes.get(at)?;
        at += 1;
        match byte {
            b'\\' => at += 1,
            // Bash looks for the other one in `${...}` between double quotes too.
            b'\'' => at += bytes.get(at..)?.iter().position(|&byte| byte == b'\'')? + 1,
            b'"' => at += until_double_quote(bytes.get(at..)?)?,
            b'`' => at += until_backtick(bytes.get(at..)?)?,
            _ if byte == close => depth -= 1,
            _ if byte == open => depth += 1,
            _ => {}
        }
    }
    Some(at)
}

fn until_double_quote(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            b'$' if bytes.get(at + 1) == Some(&b'(') => at += 2 + until_close(&bytes[at + 2..], b'(', b')')?,
            _ => at += 1,
        }
    }
}

/// What bash makes of a value between double quotes, if that follows from `known` alone: `$NAME`, `${NAME}` and
/// backslashes are understood; whatever runs a command, computes or has a default is not.
pub(super) fn evaluate(value: &str, known: &BTreeMap<String, String>) -> Option<String> {
    let value = &join_lines(value);
    let mut result = String::with_capacity(value.len());
    let mut rest = value.as_str();
    while let Some(at) = rest.find(['\\', '`', '$']) {
        result.push_str(&rest[..at]);
        rest = &rest[at..];
        let taken = match rest.as_bytes() {
            [b'\\', next @ (b'$' | b'`' | b'"' | b'\\'), ..] => {
                result.push(char::from(*next));
                2
            }
            [b'$', b'{', name @ ..] => {
                let length = name_length(name);
                if length == 0 || name.get(length) != Some(&b'}') {
                    return None;
                }
                result.push_str(known.get(&rest[2..2 + length])?);
                length + 3
            }
            [b'$', name @ ..] if name_length(name) > 0 => {
                let length = name_length(name);
                result.push_str(known.get(&rest[1..1 + length])?);
                length + 1
            }
            // Commands, old arithmetic, positional and special parameters.
            [b'`', ..] | [b'$', b'(' | b'[' | b'0'..=b'9' | b'@' | b'*' | b'#' | b'?' | b'-' | b'!' | b'$', ..] => {
                return None;
            }
            _ => {
                result.push_str(&rest[..1]);
                1
            }
        };
        rest = &rest[taken..];
    }
    result.push_str(rest);
    Some(result)
}

/// `text` as one word of a shell, whatever is in it.
pub(super) fn single_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
#[path = "vars_tests.rs"]
mod tests;
