//! `containerize.config.user`: the user and the group that a container runs as.

use super::InvalidConfig;

/// The name of a user or group that the manifest gives by number alone (flox: `mkContainer`).
const DEFAULT_NAME: &str = "flox";

/// The number of a user or group that the manifest gives by name alone.
const DEFAULT_NUMBER: u32 = 10000;

/// The largest number that is a user: the one above, `(uid_t) -1`, means "no user" to the kernel (chown(2)).
const MAX_NUMBER: u32 = u32::MAX - 1;

/// The user that the container runs as, with the entries that `/etc/passwd` and `/etc/group` need for it.
///
/// A missing name is `flox`, a missing number 10000 (`root` and 0 stand for each other). Without a group, `root` has
/// the group `root`, every other user the group `flox`, 10000.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserSpec {
    /// `config.User` of the image, as the manifest has it.
    pub text: String,
    /// Name of the user.
    pub name: String,
    /// Number of the user.
    pub uid: u32,
    /// Name of the group.
    pub group: String,
    /// Number of the group.
    pub gid: u32,
}

impl UserSpec {
    /// Reads `user`, `uid`, `user:group`, `uid:gid`, `uid:group` or `user:gid` (OCI image specification, config.md,
    /// `User`).
    pub fn parse(text: &str) -> Result<Self, InvalidConfig> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let (name, uid) = identity(text, user)?;
        let (group, gid) = match group {
            Some(group) => identity(text, group)?,
            None if uid == 0 => ("root".to_owned(), 0),
            None => (DEFAULT_NAME.to_owned(), DEFAULT_NUMBER),
        };
        Ok(Self { text: text.to_owned(), name, uid, group, gid })
    }
}

/// The name and the number of one half of `text`.
fn identity(text: &str, part: &str) -> Result<(String, u32), InvalidConfig> {
    let fail = |reason| Err(InvalidConfig::User { text: text.to_owned(), reason });
    if part.is_empty() {
        return fail("a part of it is empty");
    }
    if part.bytes().all(|byte| byte.is_ascii_digit()) {
        return match part.parse::<u32>() {
            Ok(0) => Ok(("root".to_owned(), 0)),
            Ok(number) if number <= MAX_NUMBER => Ok((DEFAULT_NAME.to_owned(), number)),
            _ => fail("a number must be between 0 and 4294967294"),
        };
    }
    // Stricter than the field separators of passwd(5) demand, so that no name reads as an option or a path.
    if !part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) || part.starts_with('-') {
        return fail("a name has letters, digits, '.', '_' and '-', and does not begin with '-'");
    }
    Ok((part.to_owned(), if part == "root" { 0 } else { DEFAULT_NUMBER }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::user("alice", "alice", 10000, "flox", 10000)]
    #[case::uid("1000", "flox", 1000, "flox", 10000)]
    #[case::user_group("alice:users", "alice", 10000, "users", 10000)]
    #[case::uid_gid("1000:100", "flox", 1000, "flox", 100)]
    #[case::uid_group("1000:users", "flox", 1000, "users", 10000)]
    #[case::user_gid("alice:100", "alice", 10000, "flox", 100)]
    #[case::dash("www-data", "www-data", 10000, "flox", 10000)]
    #[case::dash_in_group("www-data:www-data", "www-data", 10000, "www-data", 10000)]
    #[case::digit_at_the_end("user1", "user1", 10000, "flox", 10000)]
    #[case::underscore("my_user", "my_user", 10000, "flox", 10000)]
    #[case::group_with_a_digit("u:g1", "u", 10000, "g1", 10000)]
    #[case::digit_in_front("1a", "1a", 10000, "flox", 10000)]
    #[case::root("root", "root", 0, "root", 0)]
    #[case::zero("0", "root", 0, "root", 0)]
    #[case::zeros("0:0", "root", 0, "root", 0)]
    #[case::root_group("alice:root", "alice", 10000, "root", 0)]
    #[case::root_with_a_group("root:users", "root", 0, "users", 10000)]
    #[case::the_largest("4294967294:4294967294", "flox", 4294967294, "flox", 4294967294)]
    fn every_form_of_user_is_read(
        #[case] text: &str,
        #[case] name: &str,
        #[case] uid: u32,
        #[case] group: &str,
        #[case] gid: u32,
    ) {
        let user = UserSpec::parse(text).unwrap();
        assert_eq!(user, UserSpec { text: text.to_owned(), name: name.to_owned(), uid, group: group.to_owned(), gid });
    }

    #[rstest]
    #[case("", "'' is not a user: a part of it is empty")]
    #[case(":", "':' is not a user: a part of it is empty")]
    #[case("alice:", "'alice:' is not a user: a part of it is empty")]
    #[case(":users", "':users' is not a user: a part of it is empty")]
    #[case("4294967295", "'4294967295' is not a user: a number must be between 0 and 4294967294")]
    #[case(
        "1:99999999999999999999",
        "'1:99999999999999999999' is not a user: a number must be between 0 and 4294967294"
    )]
    #[case("-1", "'-1' is not a user: a name has letters, digits, '.', '_' and '-', and does not begin with '-'")]
    #[case("a b", "'a b' is not a user: a name has letters, digits, '.', '_' and '-', and does not begin with '-'")]
    #[case("a:b:c", "'a:b:c' is not a user: a name has letters, digits, '.', '_' and '-', and does not begin with '-'")]
    #[case("a\nb", "'a\nb' is not a user: a name has letters, digits, '.', '_' and '-', and does not begin with '-'")]
    fn what_is_no_user_says_why(#[case] text: &str, #[case] message: &str) {
        assert_eq!(UserSpec::parse(text).unwrap_err().to_string(), message);
    }
}
