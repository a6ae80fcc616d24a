//! Addresses that somebody gave, as they may be repeated.

/// A text that was to be an address, right or wrong, as it may be repeated: what stands before an `@` may be a login,
/// which is nobody's to read. It is told by its place alone, for what is no address cannot be taken apart.
pub(crate) fn without_login(text: &str) -> String {
    let is_scheme = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let (scheme, rest) = match text.find("://").filter(|&end| is_scheme(&text[..end])) {
        Some(end) => text.split_at(end + "://".len()),
        None => ("", text),
    };
    // The digest of an image stands behind an `@` as well.
    let is_digest = |digest: &str| digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    let named = rest.rsplit_once("@sha256:").filter(|(_, digest)| is_digest(digest));
    match named.map_or(rest, |(name, _)| name).rfind('@') {
        Some(at) => format!("{scheme}...{}", &rest[at..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_left_out_and_nothing_else() {
        for (text, shown) in [
            ("s3://id:s3cret@bucket/team?endpoint=e", "s3://...@bucket/team?endpoint=e"),
            ("s3://id:s3/cr@et@bucket", "s3://...@bucket"),
            ("s3cret@registry.example/app", "...@registry.example/app"),
            ("id:s3cret@s3://bucket", "...@s3://bucket"),
            ("id:s3cret@registry.example/app@sha256:0a", "...@registry.example/app@sha256:0a"),
            ("id:s3@sha256:cret@registry.example/app", "...@registry.example/app"),
            ("registry.example:5000/team/app:v1@sha256:0a", "registry.example:5000/team/app:v1@sha256:0a"),
            ("https://registry.example/app", "https://registry.example/app"),
            ("", ""),
        ] {
            assert_eq!(without_login(text), shown);
        }
    }
}
