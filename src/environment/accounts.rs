//! `/etc/passwd`, `/etc/group` and `/etc/nsswitch.conf` of the image.

use super::UserSpec;

/// Where looked-up names come from: the files of the image, and DNS for hosts.
pub(super) const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n";

/// The contents of `/etc/passwd`: root, nobody, and the user that the container runs as. An entry of that user's name
/// replaces the one of ours; one with the number of another comes first, so that the number has its name.
pub(super) fn passwd(user: Option<&UserSpec>) -> String {
    let entry = |name: &str, uid: u32, gid: u32, comment: &str| {
        (name.to_owned(), uid, format!("{name}:x:{uid}:{gid}:{comment}:/var/empty:/bin/sh\n"))
    };
    let fixed = [entry("root", 0, 0, "root"), entry("nobody", 65534, 65534, "nobody")];
    joined(fixed, user.map(|user| entry(&user.name, user.uid, user.gid, "container user")))
}

/// The contents of `/etc/group`, made the same way.
pub(super) fn group(user: Option<&UserSpec>) -> String {
    let entry = |name: &str, gid: u32| (name.to_owned(), gid, format!("{name}:x:{gid}:\n"));
    joined([entry("root", 0), entry("nobody", 65534)], user.map(|user| entry(&user.group, user.gid)))
}

type Entry = (String, u32, String);

fn joined(fixed: [Entry; 2], own: Option<Entry>) -> String {
    let mut entries: Vec<Entry> = fixed.into();
    if let Some(own) = own {
        entries.retain(|entry| entry.0 != own.0);
        let at = entries.iter().position(|entry| entry.1 == own.1).unwrap_or(entries.len());
        entries.insert(at, own);
    }
    entries.into_iter().map(|entry| entry.2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, uid: u32, group: &str, gid: u32) -> UserSpec {
        UserSpec { text: String::new(), name: name.into(), uid, group: group.into(), gid }
    }

    #[test]
    fn root_and_nobody_are_always_there() {
        insta::assert_snapshot!(passwd(None), @r"
        root:x:0:0:root:/var/empty:/bin/sh
        nobody:x:65534:65534:nobody:/var/empty:/bin/sh
        ");
        insta::assert_snapshot!(group(None), @r"
        root:x:0:
        nobody:x:65534:
        ");
    }

    #[test]
    fn the_containers_user_has_an_entry() {
        let user = user("www-data", 33, "web", 10000);
        insta::assert_snapshot!(passwd(Some(&user)), @r"
        root:x:0:0:root:/var/empty:/bin/sh
        nobody:x:65534:65534:nobody:/var/empty:/bin/sh
        www-data:x:33:10000:container user:/var/empty:/bin/sh
        ");
        insta::assert_snapshot!(group(Some(&user)), @r"
        root:x:0:
        nobody:x:65534:
        web:x:10000:
        ");
    }

    #[test]
    fn no_name_stands_twice_and_a_number_has_the_users_name() {
        assert_eq!(passwd(Some(&user("root", 0, "root", 0))).matches("root:x:").count(), 1);
        let passwd = passwd(Some(&user("nobody", 10000, "nobody", 10000)));
        assert!(passwd.contains("nobody:x:10000:10000:") && !passwd.contains("65534"), "{passwd}");
        let group = group(Some(&user("me", 65534, "mine", 65534)));
        assert!(group.find("mine:x:65534").unwrap() < group.find("nobody:x:65534").unwrap(), "{group}");
    }
}
