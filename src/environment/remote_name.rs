//! What an environment on FloxHub is called: `OWNER/NAME`.

use std::fmt;
use std::str::FromStr;

use crate::http::without_login;

/// The longest owner or name: each becomes a part of a file's name.
const LONGEST: usize = 100;

/// An owner and the name of one of their environments.
///
/// Both are words that are safe in a URL, in the name of a branch and in that of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemoteName {
    owner: String,
    name: String,
}

/// A text that is no such name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' does not name a remote environment: it must have the form OWNER/NAME, of letters, digits, '.', '_' and '-'"
)]
pub struct InvalidRemoteName(pub String);

impl RemoteName {
    /// A name from its parts.
    pub fn new(owner: &str, name: &str) -> Result<Self, InvalidRemoteName> {
        if is_word(owner) && is_word(name) {
            Ok(Self { owner: owner.to_owned(), name: name.to_owned() })
        } else {
            Err(InvalidRemoteName(format!("{owner}/{name}")))
        }
    }

    /// Whose it is.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Its name among the owner's.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Whether git takes the text for a branch (git-check-ref-format(1)), and nothing takes it for more than a name.
fn is_word(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=LONGEST).contains(&text.len())
        && text.chars().all(is_letter)
        && !text.starts_with(['.', '-'])
        && !text.ends_with('.')
        && !text.ends_with(".lock")
        && !text.contains("..")
}

impl FromStr for RemoteName {
    type Err = InvalidRemoteName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Where somebody took it for an address, a login may stand in it.
        let invalid = || InvalidRemoteName(if text.contains("://") { without_login(text) } else { text.to_owned() });
        let (owner, name) = text.split_once('/').ok_or_else(invalid)?;
        Self::new(owner, name).map_err(|_| invalid())
    }
}

impl fmt::Display for RemoteName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    fn an_owner_and_a_name(#[values("me/web", "a.b_c-1/X", "0/0")] text: &str) {
        let name: RemoteName = text.parse().unwrap();
        assert_eq!(format!("{}/{}", name.owner(), name.name()), text);
        assert_eq!(name.to_string(), text);
    }

    #[rstest]
    fn anything_else_is_none(
        #[values(
            "",
            "web",
            "/web",
            "me/",
            "a/b/c",
            "../web",
            "me/..",
            "me/.web",
            "me/a..b",
            "me/a.lock",
            "me/web.",
            "me/-w",
            "m e/web",
            "me/web\n",
            "me@host/web",
            "me/w\u{e9}b",
            "me/web:x"
        )]
        text: &str,
    ) {
        let error = text.parse::<RemoteName>().unwrap_err();
        assert!(error.to_string().starts_with(&format!("'{text}' does not name a remote environment")), "{error}");
    }

    #[test]
    fn what_no_file_can_be_called_is_none() {
        assert!(format!("me/{}", "a".repeat(LONGEST)).parse::<RemoteName>().is_ok());
        assert!(format!("me/{}", "a".repeat(LONGEST + 1)).parse::<RemoteName>().is_err());
    }

    proptest::proptest! {
        /// Against git itself there is a test of the branch's name; here: nothing leads out of a directory or a URL.
        #[test]
        fn no_name_leads_elsewhere(text in "[a./\\-@:%?#]{0,8}") {
            if let Ok(name) = text.parse::<RemoteName>() {
                for word in [name.owner(), name.name()] {
                    assert!(std::path::Path::new(word).components().count() == 1 && !word.contains(['@', ':', '%', '?', '#', '/']));
                    assert!(![".", ".."].contains(&word));
                }
            }
        }
    }
}
