//! Passwords by host, as `ftp` had them first and as curl, git and Nix read them (netrc(5)).

/// A user's name and password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NetrcEntry {
    pub(super) login: String,
    pub(super) password: String,
}

/// What a netrc file has for a host: the first entry that is for it or for all.
pub(super) fn entry_for(netrc: &str, host: &str) -> Option<NetrcEntry> {
    let mut found: Option<NetrcEntry> = None;
    let mut words = words(netrc);
    while let Some(word) = words.next() {
        let starts = match word.as_str() {
            "machine" => Some(words.next().as_deref() == Some(host)),
            "default" => Some(true),
            _ => None,
        };
        match (starts, &mut found) {
            (Some(_), Some(_)) => break,
            (Some(true), None) => found = Some(NetrcEntry::default()),
            (Some(false), None) => {}
            (None, entry) => {
                if let "login" | "password" | "account" = word.as_str() {
                    let value = words.next().unwrap_or_default();
                    match (word.as_str(), entry) {
                        ("login", Some(entry)) => entry.login = value,
                        ("password", Some(entry)) => entry.password = value,
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

/// The words that count: comments and macros, which end with an empty line, do not.
fn words(netrc: &str) -> impl Iterator<Item = String> {
    let mut is_macro = false;
    let lines = netrc.lines().filter(move |line| {
        let starts = line.trim_start().starts_with("macdef");
        is_macro = starts || (is_macro && !line.trim().is_empty());
        !is_macro && !line.trim_start().starts_with('#')
    });
    lines.flat_map(words_of_line)
}

/// Words are parted by white space. One in quotes may have some in it, and quotes and the like behind a backslash (curl:
/// netrc.c).
fn words_of_line(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start().chars().peekable();
    while let Some(first) = rest.peek().copied() {
        let mut word = String::new();
        if first == '"' {
            rest.next();
            while let Some(c) = rest.next().filter(|c| *c != '"') {
                word.push(match (c, rest.peek()) {
                    ('\\', Some(_)) => match rest.next() {
                        Some('n') => '\n',
                        Some('r') => '\r',
                        Some('t') => '\t',
                        escaped => escaped.unwrap_or(c),
                    },
                    _ => c,
                });
            }
        } else {
            while let Some(c) = rest.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
        }
        words.push(word);
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETRC: &str = r#"# for the team
machine cache.example login me password one
machine other.example
    login you
    account x
    password two
macdef init
    machine trap.example login no password no

machine last.example password three
machine quoted.example login "a user" password "a\"b\\c \n"d
default login anybody password four
machine late.example login late password late
"#;

    #[rstest::rstest]
    #[case("cache.example", "me", "one")]
    #[case("other.example", "you", "two")]
    #[case("last.example", "", "three")]
    #[case("trap.example", "anybody", "four")]
    #[case::in_quotes("quoted.example", "a user", "a\"b\\c \n")]
    #[case::behind_the_default("late.example", "anybody", "four")]
    fn the_first_entry_for_a_host_counts(#[case] host: &str, #[case] login: &str, #[case] password: &str) {
        let expected = NetrcEntry { login: login.to_owned(), password: password.to_owned() };
        assert_eq!(entry_for(NETRC, host), Some(expected));
    }

    #[rstest::rstest]
    #[case("")]
    #[case("machine")]
    #[case("machine a.example login")]
    #[case("login password machine")]
    fn what_ends_early_has_nothing_for_others(#[case] text: &str) {
        assert_eq!(entry_for(text, "cache.example"), None);
    }
}
