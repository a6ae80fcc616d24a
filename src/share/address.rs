//! Where a shared cache is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

use crate::http::{Bucket, without_login};
use crate::registry::{InvalidReference, Reference};

/// The address of a shared cache: a repository of a registry, or a place in an object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareAddress {
    pub(super) place: Place,
    /// As it is shown: without parameters, which may hold secrets.
    text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Registry(Reference),
    Directory(PathBuf),
    Bucket { bucket: Bucket, prefix: String },
    GoogleBucket { name: String, prefix: String, endpoint: Option<String> },
}

/// A text that is no address of a shared cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidShareAddress {
    /// It names nothing in a registry.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// A repository has one cache.
    #[error("'{0}' names a tag or a digest, and a shared cache is a whole repository")]
    Tag(String),
    /// It is an address of another kind, or a part of it is wrong.
    #[error("'{text}' is not the address of a shared cache: {reason}")]
    Malformed {
        /// The text, without its parameters.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl InvalidShareAddress {
    /// What mends it.
    pub fn hint(&self) -> String {
        "name a repository, or a place in an object store: registry.example/team/cache, s3://bucket/prefix, \
         gs://bucket/prefix, file:///directory"
            .to_owned()
    }
}

impl ShareAddress {
    /// Whether it is on this machine, so that nothing goes over the network.
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Directory(_))
    }

    /// The repository, if it is one.
    pub fn reference(&self) -> Option<&Reference> {
        match &self.place {
            Place::Registry(reference) => Some(reference),
            _ => None,
        }
    }
}

impl FromStr for ShareAddress {
    type Err = InvalidShareAddress;

    fn from_str(text: &str) -> Result<Self, InvalidShareAddress> {
        let shown = text.split(['?', '#']).next().unwrap_or_default().to_owned();
        if !text.contains("://") {
            let reference: Reference = text.parse()?;
            if reference.has_own_tag() || reference.digest().is_some() {
                return Err(InvalidShareAddress::Tag(text.to_owned()));
            }
            let text = reference.name();
            return Ok(Self { place: Place::Registry(reference), text });
        }
        let told = without_login(text).split(['?', '#']).next().unwrap_or_default().to_owned();
        let malformed = |reason| InvalidShareAddress::Malformed { text: told.clone(), reason };
        // A comma in a password cuts it into two addresses: of one that is none only the kind is told.
        let of_kind = |reason| InvalidShareAddress::Malformed {
            text: format!("{}://...", told.split("://").next().unwrap_or_default()),
            reason,
        };
        let url = Url::parse(text).map_err(|_| of_kind("it is no address at all"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(of_kind("it has a user in it; keys come from the environment or a file"));
        }
        let prefix = || url.path().trim_matches('/').to_owned();
        let host = || url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| malformed("it names no bucket"));
        let parameters: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let parameter = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let place = match url.scheme() {
            "file" => Place::Directory(url.to_file_path().map_err(|()| malformed("it names no local directory"))?),
            "s3" => Place::Bucket { bucket: Bucket::described(host()?, parameter), prefix: prefix() },
            "gs" => Place::GoogleBucket {
                name: host()?.to_owned(),
                prefix: prefix(),
                endpoint: parameter("endpoint").map(str::to_owned),
            },
            _ => return Err(malformed("s3://, gs:// and file:// are, and repositories of registries")),
        };
        Ok(Self { place, text: shown.trim_end_matches('/').to_owned() })
    }
}

impl fmt::Display for ShareAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_parameters() {
        for (text, shown) in [
            ("registry.example/team/cache", "registry.example/team/cache"),
            ("s3://bucket/team/cache/?endpoint=127.0.0.1:9000&scheme=http", "s3://bucket/team/cache"),
            ("gs://bucket", "gs://bucket"),
            ("gs://bucket/team?endpoint=http://127.0.0.1:9000", "gs://bucket/team"),
            ("file:///var/cache/layers", "file:///var/cache/layers"),
        ] {
            assert_eq!(text.parse::<ShareAddress>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, says) in [
            ("registry.example/cache:v1", "names a tag or a digest"),
            ("https://registry.example/cache", "s3://, gs:// and file:// are"),
            ("s3://", "it names no bucket"),
            ("s3://id:s3cret@bucket", "it has a user in it"),
            ("s3://id:s3cret", "it is no address at all"),
            ("id:s3cret@s3://bucket", "s3://, gs:// and file:// are"),
            ("s3cret@registry.example/cache", "is not a name in a registry"),
            ("registry.example/Cache", "is not a name in a registry"),
        ] {
            let error = text.parse::<ShareAddress>().unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains("s3cret"), "{error}");
        }
    }
}
