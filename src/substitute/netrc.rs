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
        let starts = match word {
            "machine" => Some(words.next() == Some(host)),
            "default" => Some(true),
            _ => None,
        };
        match (starts, &mut found) {
            (Some(_), Some(_)) => break,
            (Some(true), None) => found = Some(NetrcEntry::default()),
            (Some(false), None) => {}
            (None, entry) => {
                if let "login" | "password" | "account" = word {
                    let value = words.next().unwrap_or_default().to_owned();
                    match (word, entry) {
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
fn words(netrc: &str) -> impl Iterator<Item = &str> {
    let mut is_macro = false;
    let lines = netrc.lines().filter(move |line| {
        let starts = line.trim_start().starts_with("macdef");
        is_macro = starts || (is_macro && !line.trim().is_empty());
        !is_macro && !line.trim_start().starts_with('#')
    });
    lines.flat_map(str::split_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETRC: &str = "\
# for the team
machine cache.example login me password one
machine other.example
    login you
    account x
    password two
macdef init
    machine trap.example login no password no

machine last.example password three
default login anybody password four
machine late.example login late password late
";

    #[rstest::rstest]
    #[case("cache.example", "me", "one")]
    #[case("other.example", "you", "two")]
    #[case("last.example", "", "three")]
    #[case("trap.example", "anybody", "four")]
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
