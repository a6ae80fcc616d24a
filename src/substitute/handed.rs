//! Logins for a run of this tool elsewhere: what the caches that it will ask are to be shown, and nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::address::{CacheAddress, Place};
use super::credentials::{AwsCredentials, Credentials, Login};
use crate::http::BucketKeys;

/// The text's contents.
#[derive(Default, Serialize, Deserialize)]
struct Handed {
    /// By the caches' addresses.
    logins: BTreeMap<String, Login>,
    /// By the profiles that buckets' addresses name; under no name, those for all others.
    keys: BTreeMap<String, BucketKeys>,
}

impl Credentials {
    /// What the caches at these addresses are shown, beside what the addresses themselves say: a text full of secrets,
    /// for [`Credentials::handed`]. `None` where they are shown nothing.
    pub fn hand_on(&self, addresses: &[CacheAddress]) -> Option<String> {
        let mut handed = Handed::default();
        for address in addresses {
            match &address.place {
                Place::Http(url) if url.password().is_none() => {
                    handed.logins.extend(self.login(url).map(|login| (url.to_string(), login)));
                }
                Place::S3(bucket) => {
                    let keys = self.aws.keys(bucket.profile.as_deref());
                    handed.keys.extend(keys.map(|keys| (bucket.profile.clone().unwrap_or_default(), keys)));
                }
                Place::Http(_) | Place::File(_) => {}
            }
        }
        let is_empty = handed.logins.is_empty() && handed.keys.is_empty();
        if is_empty { None } else { serde_json::to_string(&handed).ok() }
    }

    /// Reads what [`Credentials::hand_on`] wrote; `None` for any other text, of which nothing may be repeated.
    pub fn handed(text: &str) -> Option<Self> {
        let Handed { logins, keys } = serde_json::from_str(text).ok()?;
        let mut aws = AwsCredentials::default();
        let mut file = String::new();
        for (profile, BucketKeys { id, secret, token }) in keys {
            let names = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];
            let values = [Some(id), Some(secret), token];
            let fields = names.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?)));
            if profile.is_empty() {
                aws.variables.extend(fields.map(|(name, value)| (name.to_uppercase(), value)));
            } else {
                file.push_str(&format!("[{profile}]\n"));
                fields.for_each(|(name, value)| file += &format!("{name} = {value}\n"));
            }
        }
        aws.file = Some(file);
        Some(Self { netrc: None, logins, aws })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETRC: &str =
        "machine cache.example login alice password \"o ne\\\"\"\nmachine other.example login b password c\n";
    const AWS_FILE: &str = "[ci]\naws_access_key_id = C\naws_secret_access_key = cs\naws_session_token = ct\n\
                            [unused]\naws_access_key_id = U\naws_secret_access_key = us\n";

    fn addresses(texts: &[&str]) -> Vec<CacheAddress> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn all() -> Credentials {
        let bearer = |token: &str| Login::Bearer(token.to_owned());
        let variables = [("AWS_ACCESS_KEY_ID", "V"), ("AWS_SECRET_ACCESS_KEY", "vs"), ("AWS_PROFILE", "unused")];
        Credentials {
            netrc: Some(NETRC.to_owned()),
            logins: [
                ("https://token.example/".to_owned(), bearer("t")),
                ("https://far.example".to_owned(), bearer("f")),
            ]
            .into(),
            aws: AwsCredentials {
                variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
                file: Some(AWS_FILE.to_owned()),
            },
        }
    }

    #[test]
    fn each_cache_is_shown_elsewhere_what_it_is_shown_here() {
        let addresses = addresses(&[
            "https://cache.example/team",
            "https://token.example/a/b",
            "https://carol:three@cache.example/own",
            "https://unknown.example",
            "s3://one?profile=ci",
            "s3://two",
            "file:///srv/cache",
        ]);
        let (here, text) = (all(), all().hand_on(&addresses).unwrap());
        let there = Credentials::handed(&text).unwrap();
        for address in &addresses {
            match &address.place {
                Place::Http(url) => assert!(there.login(url) == here.login(url), "{address}"),
                Place::S3(bucket) => {
                    let profile = bucket.profile.as_deref();
                    assert!(there.aws.keys(profile) == here.aws.keys(profile), "{address}");
                }
                Place::File(_) => {}
            }
        }
        for useless in ["other.example", "far.example", "three", "unused", "\"U\"", "\"us\""] {
            assert!(!text.contains(useless), "{useless} is of no use there: {text}");
        }
    }

    #[test]
    fn where_no_cache_wants_a_login_there_is_nothing_to_hand_on() {
        assert_eq!(all().hand_on(&addresses(&["https://unknown.example", "file:///srv/cache"])), None);
        assert_eq!(Credentials::default().hand_on(&addresses(&["https://cache.example", "s3://one"])), None);
    }

    #[test]
    fn another_text_is_refused() {
        for text in ["", "{}", "[]", "{\"logins\": {\"a\": \"b\"}, \"keys\": {}}"] {
            assert!(Credentials::handed(text).is_none(), "{text}");
        }
    }
}
