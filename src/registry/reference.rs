//! What a repository of a registry, and an image in it, are called.

use std::fmt;
use std::str::FromStr;

use crate::blob::Digest;

/// `HOST[:PORT]/NAME[:TAG]`, or with `@DIGEST`; by Docker's rules a name without a host is Docker Hub's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    inner: oci_client::Reference,
    digest: Option<Digest>,
    has_own_tag: bool,
}

/// A text that names nothing in a registry.
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
        let inner = oci_client::Reference::with_tag(registry, repository, tag.to_owned());
        Self { inner, digest: None, has_own_tag: true }
    }

    /// The repository alone: `HOST/NAME`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.inner.registry(), self.repository())
    }

    /// What of the repository has this digest: `HOST/NAME@sha256:...`.
    pub fn at(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |reason: &str| InvalidReference { text: text.to_owned(), reason: reason.to_owned() };
        // What people copy from a browser, or from skopeo.
        if text.contains("://") {
            return Err(invalid("it is an address, with a scheme before it"));
        }
        let inner: oci_client::Reference =
            text.parse().map_err(|error: oci_client::ParseError| invalid(&error.to_string()))?;
        let digest = match inner.digest() {
            None => None,
            Some(digest) => Some(digest.parse().map_err(|_| invalid("digests are sha256 ones"))?),
        };
        let last = text.rsplit('/').next().unwrap_or(text);
        let has_own_tag = last.split('@').next().is_some_and(|name| name.contains(':'));
        Ok(Self { inner, digest, has_own_tag })
    }
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
}
