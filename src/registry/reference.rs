//! What a repository of a registry, and an image in it, are called.

use std::fmt;
use std::str::FromStr;

use crate::blob::Digest;
use crate::http::without_login;

const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub answers.
const ASKED_FOR_DOCKER_HUB: &str = "index.docker.io";
/// The most bytes of a repository's name (distribution's reference grammar).
const LONGEST_REPOSITORY: usize = 255;

/// `HOST[:PORT]/NAME[:TAG]`, or with `@DIGEST`; by Docker's rules a name without a host is Docker Hub's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    inner: oci_spec::distribution::Reference,
    digest: Option<Digest>,
    has_own_tag: bool,
}

/// A text that names nothing in a registry; it is kept without a login, if somebody has put one there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a name in a registry: {reason}")]
pub struct InvalidReference {
    text: String,
    reason: String,
}

impl InvalidReference {
    /// What mends it.
    pub fn hint(&self) -> String {
        "name a host, a repository in lower case and a tag: registry.example/team/app:v1".to_owned()
    }
}

impl Reference {
    /// Where the registry is asked: its host, with its port where it has one.
    pub fn registry(&self) -> &str {
        self.inner.resolve_registry()
    }

    /// The repository.
    pub fn repository(&self) -> &str {
        self.inner.repository()
    }

    /// The tag, if one was given; where neither tag nor digest was, `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.inner.tag()
    }

    /// Whether a tag was given.
    pub fn has_own_tag(&self) -> bool {
        self.has_own_tag
    }

    /// The digest, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Another tag of the same repository.
    pub fn with_tag(&self, tag: &str) -> Self {
        let (registry, repository) = (self.inner.registry().to_owned(), self.repository().to_owned());
        let inner = oci_spec::distribution::Reference::with_tag(registry, repository, tag.to_owned());
        Self { inner, digest: None, has_own_tag: true }
    }

    /// The repository alone: `HOST/NAME`.
    pub fn name(&self) -> String {
        self.names_begin_with() + self.repository()
    }

    /// What the names of all repositories of its registry begin with: `HOST/`. Docker Hub's is not where it is asked.
    pub fn names_begin_with(&self) -> String {
        format!("{}/", self.inner.registry())
    }

    /// What of the repository has this digest: `HOST/NAME@sha256:...`.
    pub fn at(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

/// By distribution's grammar and Docker's rules for hosts. oci-spec's own reader makes eight megabytes of tables for that,
/// and has the allocator hold back as much of all that is freed later.
impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |reason: &str| InvalidReference { text: without_login(text), reason: reason.to_owned() };
        // What people copy from a browser, or from skopeo.
        if text.contains("://") {
            return Err(invalid("it is an address, with a scheme before it"));
        }
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => (name, Some(digest.parse().map_err(|_| invalid("digests are sha256 ones"))?)),
        };
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].find(':') {
            None => (name, None),
            Some(colon) => (&name[..last + colon], Some(&name[last + colon + 1..])),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid(
                "a tag is of at most 128 letters, digits, '_', '.' and '-', not with one of the last two first",
            ));
        }
        let (first, rest) = name.split_once('/').map_or((None, name), |(first, rest)| (Some(first), rest));
        let has_good_start = first.is_none_or(|first| is_host(first) || is_component(first));
        if !has_good_start || !rest.split('/').all(is_component) {
            return Err(invalid(
                "a repository is of lower-case letters and digits, with '/', '.', '_' or '-' between them",
            ));
        }
        let (registry, repository) = match first {
            Some(host) if host.contains(['.', ':']) || host == "localhost" || !is_component(host) => (host, rest),
            _ => (DOCKER_HUB, name),
        };
        let registry = if registry == ASKED_FOR_DOCKER_HUB { DOCKER_HUB } else { registry };
        let repository = match registry == DOCKER_HUB && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository.to_owned(),
        };
        if repository.len() > LONGEST_REPOSITORY {
            return Err(invalid("it is too long"));
        }
        let (registry, has_own_tag) = (registry.to_owned(), tag.is_some());
        let inner = match (tag, &digest) {
            (Some(tag), Some(digest)) => oci_spec::distribution::Reference::with_tag_and_digest(
                registry,
                repository,
                tag.to_owned(),
                Digest::to_string(digest),
            ),
            (None, Some(digest)) => {
                oci_spec::distribution::Reference::with_digest(registry, repository, digest.to_string())
            }
            (tag, None) => {
                oci_spec::distribution::Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned())
            }
        };
        Ok(Self { inner, digest, has_own_tag })
    }
}

/// `[a-zA-Z0-9]`, and `-` within, with dots between; then perhaps a port.
fn is_host(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, "0"), |(host, port)| (host, port));
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && label.bytes().all(is_inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    host.split('.').all(is_label) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// `[a-z0-9]+`, again and again behind `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_word = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_between =
        |between: &str| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
    text.starts_with(is_word) && text.ends_with(is_word) && text.split(is_word).all(is_between)
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
        && !text.starts_with(['.', '-'])
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())?;
        if let Some(tag) = self.tag() {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_by_dockers_rules() {
        let digest = Digest::of(b"");
        for (text, registry, repository, tag, shown) in [
            (
                "registry.example/team/app:v1",
                "registry.example",
                "team/app",
                Some("v1"),
                "registry.example/team/app:v1",
            ),
            ("localhost:5000/app", "localhost:5000", "app", Some("latest"), "localhost:5000/app:latest"),
            ("app:v1", "index.docker.io", "library/app", Some("v1"), "docker.io/library/app:v1"),
            ("team/app", "index.docker.io", "team/app", Some("latest"), "docker.io/team/app:latest"),
            ("[::1]:5000/app:v1", "[::1]:5000", "app", Some("v1"), "[::1]:5000/app:v1"),
        ] {
            let Ok(reference) = text.parse::<Reference>() else {
                assert_eq!(text, "[::1]:5000/app:v1", "only numeric addresses of version 6 are not understood");
                continue;
            };
            assert_eq!((reference.registry(), reference.repository(), reference.tag()), (registry, repository, tag));
            assert_eq!(reference.to_string(), shown);
        }
        let pinned: Reference = format!("registry.example/app@{digest}").parse().unwrap();
        assert_eq!((pinned.digest(), pinned.tag()), (Some(digest), None));
        assert_eq!(pinned.at(&digest), format!("registry.example/app@{digest}"));
        assert_eq!(pinned.with_tag("v2").to_string(), "registry.example/app:v2");
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for text in ["", "https://registry.example/app", "registry.example/App", "registry.example/app:", "a b"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_login_in_what_names_nothing_is_not_repeated() {
        for text in ["https://id:s3cret@registry.example/app", "id:s3cret@registry.example/app", "s3cret@app"] {
            let error = text.parse::<Reference>().unwrap_err();
            let said = format!("{error} {error:?}");
            assert!(said.contains("...@") && !said.contains("s3cret"), "{said}");
        }
    }

    proptest::proptest! {
        #[test]
        fn names_are_what_they_are_to_the_library(text in "[a-cA0.:_/@-]{0,12}|(a\\.b|a:0|localhost|index\\.docker\\.io)(/[a0._-]{1,4}){1,3}(:[aA0._-]{1,4})?(@sha256:[0-9a]{64})?") {
            let theirs = text.parse::<oci_spec::distribution::Reference>().ok();
            // A name in capitals is a host's to Docker, and a repository's to the library.
            let first = text.split_once('/').map_or("", |(first, _)| first);
            proptest::prop_assume!(first.to_lowercase() == first);
            match (text.parse::<Reference>(), theirs) {
                (Ok(ours), Some(theirs)) => proptest::prop_assert_eq!(ours.inner, theirs),
                (ours, theirs) => proptest::prop_assert_eq!(ours.is_ok(), theirs.is_some(), "{:?} {:?}", ours, theirs),
            }
        }
    }
}
