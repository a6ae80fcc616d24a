//! What an image is called.

use std::fmt;

/// A repository and a tag, valid for every OCI tool; displayed `repository:tag`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageName {
    repository: String,
    tag: String,
}

/// A name that no image can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    /// Nothing of the environment's name is left.
    #[error("'{0}' cannot name an image: it has no letter or digit")]
    Repository(String),
    /// The tag breaks the grammar of tags.
    #[error("'{0}' is not a valid tag")]
    Tag(String),
}

impl NameError {
    /// What mends it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Repository(_) => Some("give the environment a name with letters: flox edit --name NAME".to_owned()),
            Self::Tag(_) => Some(
                "a tag is a letter, digit or '_', then up to 127 letters, digits, '_', '.' or '-': --tag v1".to_owned(),
            ),
        }
    }
}

impl ImageName {
    /// The image name for an environment of that name.
    ///
    /// A repository is one path component, `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (OCI distribution specification,
    /// "Pulling manifests"): letters become lower-case, what it cannot have becomes a dash, separators at the ends
    /// fall away. The tag must be valid as it is: `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
    pub fn new(environment: &str, tag: &str) -> Result<Self, NameError> {
        let repository = component(environment);
        if repository.is_empty() {
            return Err(NameError::Repository(environment.to_owned()));
        }
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let valid = match tag.as_bytes() {
            [first, rest @ ..] => {
                word(*first) && rest.len() < 128 && rest.iter().all(|&byte| word(byte) || b".-".contains(&byte))
            }
            [] => false,
        };
        if !valid {
            return Err(NameError::Tag(tag.to_owned()));
        }
        Ok(Self { repository, tag: tag.to_owned() })
    }

    /// The repository: one path component, without a registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name in full, as containerd and Docker resolve the short one: `docker.io/library/repository:tag`.
    pub fn familiar_in_full(&self) -> String {
        format!("docker.io/library/{self}")
    }

    /// The name in full as Podman gives it to images made on the machine: `localhost/repository:tag`.
    ///
    /// Podman looks for a short name there first.
    pub fn local_in_full(&self) -> String {
        format!("localhost/{self}")
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// The longest repository: the limit of 255 characters holds for the name with its registry and path.
const REPOSITORY_LIMIT: usize = 128;

fn component(name: &str) -> String {
    let mut component = String::with_capacity(name.len());
    // The separators since the last letter or digit; they count only where another letter or digit follows.
    let mut separators = String::new();
    for character in name.chars() {
        let character = character.to_ascii_lowercase();
        if !character.is_ascii_alphanumeric() {
            separators.push(if "._".contains(character) { character } else { '-' });
            continue;
        }
        if !component.is_empty() {
            match separators.as_str() {
                "" | "." | "_" | "__" => component.push_str(&separators),
                dashes if dashes.bytes().all(|byte| byte == b'-') => component.push_str(dashes),
                _ => component.push('-'),
            }
        }
        separators.clear();
        component.push(character);
    }
    if component.len() > REPOSITORY_LIMIT {
        component.truncate(REPOSITORY_LIMIT);
        component.truncate(component.trim_end_matches(['.', '_', '-']).len());
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("hello", "hello")]
    #[case("My Project", "my-project")]
    #[case("a__b.c_d---e", "a__b.c_d---e")]
    #[case("-.hello_.", "hello")]
    #[case("a..b", "a-b")]
    #[case("a___b", "a-b")]
    #[case("a_-b", "a-b")]
    #[case("owner/name", "owner-name")]
    #[case("Größe", "gr--e")]
    fn a_repository_is_made_from_an_environments_name(#[case] name: &str, #[case] repository: &str) {
        assert_eq!(ImageName::new(name, "latest").unwrap().repository(), repository);
    }

    #[test]
    fn a_name_without_letters_is_refused() {
        for name in ["", "-", "..", "日本"] {
            assert_eq!(ImageName::new(name, "latest"), Err(NameError::Repository(name.to_owned())));
        }
    }

    #[rstest]
    #[case("latest", true)]
    #[case("_V1.0-rc", true)]
    #[case("", false)]
    #[case(".v1", false)]
    #[case("-v1", false)]
    #[case("a:b", false)]
    #[case("a b", false)]
    #[case("ä", false)]
    fn a_tag_is_taken_as_it_is_or_refused(#[case] tag: &str, #[case] valid: bool) {
        assert_eq!(ImageName::new("hello", tag).is_ok(), valid);
    }

    #[test]
    fn a_tag_has_at_most_128_characters() {
        assert!(ImageName::new("hello", &"x".repeat(128)).is_ok());
        assert!(ImageName::new("hello", &"x".repeat(129)).is_err());
    }

    /// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, read by hand.
    fn is_component(text: &str) -> bool {
        let mut rest = text;
        loop {
            let word =
                rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase()).len();
            if word == 0 {
                return false;
            }
            rest = &rest[word..];
            if rest.is_empty() {
                return true;
            }
            let dashes = rest.len() - rest.trim_start_matches('-').len();
            let separator = match rest.as_bytes() {
                _ if dashes > 0 => dashes,
                [b'_', b'_', ..] => 2,
                [b'_' | b'.', ..] => 1,
                _ => return false,
            };
            rest = &rest[separator..];
        }
    }

    proptest! {
        #[test]
        fn whatever_the_name_the_repository_is_valid(name in "[a-zA-Z0-9._ /ä-]{0,300}") {
            match ImageName::new(&name, "latest") {
                Ok(image) => {
                    prop_assert!(is_component(image.repository()), "{}", image.repository());
                    prop_assert!(image.repository().len() <= REPOSITORY_LIMIT);
                }
                Err(_) => prop_assert!(!name.bytes().any(|byte| byte.is_ascii_alphanumeric())),
            }
        }

        #[test]
        fn a_valid_repository_is_left_alone(name in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,5}){0,5}") {
            let image = ImageName::new(&name, "latest").unwrap();
            prop_assert_eq!(image.repository(), name);
        }
    }
}
