//! Where a binary cache is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;

use crate::http::{Bucket, without_login};

/// The address of a binary cache, with what its parameters say of it (Nix manual, "Store types").
#[derive(Clone, PartialEq, Eq)]
pub struct CacheAddress {
    pub(super) place: Place,
    /// Instead of what the cache says of itself: the lower, the earlier it is asked.
    pub(super) priority: Option<u32>,
    /// Whether its paths need no signatures.
    pub(super) is_trusted: bool,
    /// As it is shown and remembered: without parameters and without secrets.
    text: String,
}

/// The kinds of caches.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// An HTTP server; the address ends with a slash.
    Http(Url),
    /// A directory.
    File(PathBuf),
    /// A bucket of an object store with Amazon's protocol.
    S3(Bucket),
}

/// A text that is no address of a binary cache.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidAddress {
    /// It is no address at all, or a part of it is wrong.
    #[error("'{text}' is not the address of a binary cache: {reason}")]
    Malformed {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is a store of Nix's, but of another kind: a daemon, another machine.
    #[error("'{text}' is not a binary cache: https://, http://, file:// and s3:// are")]
    Kind {
        /// The text.
        text: String,
    },
}

impl FromStr for CacheAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let malformed = |reason: String| InvalidAddress::Malformed { text: without_secrets(text), reason };
        if !text.contains("://") {
            return Err(InvalidAddress::Kind { text: without_secrets(text) });
        }
        let mut url = Url::parse(text).map_err(|error| malformed(error.to_string()))?;
        let parameters: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let parameter = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let priority = parameter("priority").map(str::parse).transpose();
        let priority = priority.map_err(|_| malformed("its priority is not a number".to_owned()))?;
        let is_trusted = parameter("trusted") == Some("true");
        url.set_query(None);
        url.set_fragment(None);
        let place = match url.scheme() {
            "http" | "https" => {
                if !url.path().ends_with('/') {
                    let path = format!("{}/", url.path());
                    url.set_path(&path);
                }
                Place::Http(url.clone())
            }
            "file" => {
                Place::File(url.to_file_path().map_err(|()| malformed("it names no local directory".to_owned()))?)
            }
            "s3" => {
                let name = url.host_str().ok_or_else(|| malformed("it names no bucket".to_owned()))?;
                Place::S3(Bucket::described(name, parameter))
            }
            _ => return Err(InvalidAddress::Kind { text: without_secrets(text) }),
        };
        let mut shown = without_secrets(url.as_str());
        if let Place::S3(Bucket { endpoint: Some(endpoint), .. }) = &place {
            shown = format!("{shown}?endpoint={endpoint}");
        }
        let text = shown.trim_end_matches('/').to_owned();
        Ok(Self { place, priority, is_trusted, text })
    }
}

impl CacheAddress {
    /// Whether it is a directory, so that nothing goes over the network.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.place, Place::File(_))
    }

    /// The directory of a cache that is one on this machine.
    pub fn directory(&self) -> Option<&Path> {
        match &self.place {
            Place::File(directory) => Some(directory),
            Place::Http(_) | Place::S3(_) => None,
        }
    }
}

/// A user and a password in an address are nobody's to read.
fn without_secrets(text: &str) -> String {
    match Url::parse(text) {
        Ok(mut url) if !url.username().is_empty() || url.password().is_some() => {
            let _ = (url.set_username(""), url.set_password(None));
            url.to_string()
        }
        Ok(url) if !url.cannot_be_a_base() => text.to_owned(),
        _ => without_login(text),
    }
}

impl fmt::Display for CacheAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for CacheAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("https://cache.example", "https://cache.example", None, false)]
    #[case("https://cache.example/team/?priority=7&trusted=true", "https://cache.example/team", Some(7), true)]
    #[case("http://127.0.0.1:8080", "http://127.0.0.1:8080", None, false)]
    #[case("https://user:secret@cache.example", "https://cache.example", None, false)]
    #[case("file:///var/cache/nars?compression=zstd", "file:///var/cache/nars", None, false)]
    #[case("s3://bucket?region=eu-west-1", "s3://bucket", None, false)]
    #[case(
        "s3://bucket?endpoint=127.0.0.1:9000&scheme=http",
        "s3://bucket?endpoint=http://127.0.0.1:9000",
        None,
        false
    )]
    #[case("file:///var/cache@home", "file:///var/cache@home", None, false)]
    fn addresses_are_read_and_shown(
        #[case] text: &str,
        #[case] shown: &str,
        #[case] priority: Option<u32>,
        #[case] is_trusted: bool,
    ) {
        let address: CacheAddress = text.parse().unwrap();
        assert_eq!((address.to_string().as_str(), address.priority, address.is_trusted), (shown, priority, is_trusted));
        assert!(!format!("{address:?}").contains("secret"));
    }

    #[rstest::rstest]
    #[case("daemon", "'daemon' is not a binary cache: https://, http://, file:// and s3:// are")]
    #[case("/nix/store", "'/nix/store' is not a binary cache: https://, http://, file:// and s3:// are")]
    #[case("ssh://host", "'ssh://host' is not a binary cache: https://, http://, file:// and s3:// are")]
    #[case("https://", "'https://' is not the address of a binary cache: empty host")]
    #[case("s3:///key", "'s3:///key' is not the address of a binary cache: it names no bucket")]
    #[case(
        "https://h?priority=first",
        "'https://h?priority=first' is not the address of a binary cache: its priority is not a number"
    )]
    fn what_is_no_address_says_why(#[case] text: &str, #[case] message: &str) {
        assert_eq!(text.parse::<CacheAddress>().unwrap_err().to_string(), message);
    }

    #[rstest::rstest]
    fn a_login_in_what_is_no_address_is_not_repeated(
        #[values("https://me:s3cret@cache.example:port", "me:s3cret@cache.example", "ssh://me:s3cret@cache.example")]
        text: &str,
    ) {
        let error = text.parse::<CacheAddress>().unwrap_err();
        let said = format!("{error} {error:?}");
        assert!(said.contains("cache.example") && !said.contains("s3cret"), "{said}");
    }
}
