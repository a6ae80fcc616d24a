//! Trees as no packager makes them, and trees that change while they are walked.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use rstest::rstest;
use rustix::fs::{CWD, Dev, Mode, OFlags, mkdirat, mknodat, openat, unlinkat};

use super::*;
use crate::nix::testing::{TestStore, record, store_path};
use crate::nix::{Glimpse, MemoryNode, MemoryTree, Source};

/// When every file is old.
const LATER: i128 = 1 << 100;

fn a() -> StorePath {
    store_path('1', "a")
}

/// A store with the tree `a`: `d/f`, `f`, `l`.
fn store() -> TestStore {
    let store = TestStore::new();
    let mut tree = MemoryTree::new();
    tree.file(b"d/f", false, *b"inner").unwrap();
    tree.file(b"f", true, *b"contents").unwrap();
    tree.symlink(b"l", *b"f").unwrap();
    store.write(&a(), &tree);
    store
}

/// Removes the directories `d/d/d/...` below `at`, as `remove_dir_all` needs a descriptor for each.
struct Chain {
    at: PathBuf,
    levels: usize,
}

impl Chain {
    fn descend(&self, levels: usize) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        (0..levels).fold(openat(CWD, &self.at, flags, Mode::empty()).unwrap(), |parent, _| {
            openat(&parent, "d", flags, Mode::empty()).unwrap()
        })
    }

    fn make(at: PathBuf, levels: usize) -> Self {
        let chain = Self { at, levels };
        let mut parent = chain.descend(0);
        for _ in 0..levels {
            mkdirat(&parent, "d", Mode::RWXU).unwrap();
            parent = openat(&parent, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let file = openat(&parent, "f", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap();
        rustix::io::write(file, b"at the bottom").unwrap();
        chain
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let mut parent = self.descend(self.levels);
        unlinkat(&parent, "f", AtFlags::empty()).unwrap();
        for _ in 0..self.levels {
            parent = openat(&parent, "..", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            unlinkat(&parent, "d", AtFlags::REMOVEDIR).unwrap();
        }
    }
}

#[test]
fn a_tree_of_ten_thousand_levels_is_walked_hashed_and_left_again() {
    let store = TestStore::new();
    store.write(&a(), &MemoryTree::new());
    let chain = Chain::make(store.path(&a()), 10_000);
    fs::write(store.path(&a()).join("e"), "after the way back").unwrap();
    let open = fs::read_dir("/proc/self/fd").unwrap().count();
    let source = store.open();
    let mut most_open = 0;
    let mut seen = Vec::new();
    source
        .walk(&a(), &mut |path: &[u8], node: Node<'_>| {
            if seen.len() % 1000 == 0 {
                most_open = most_open.max(fs::read_dir("/proc/self/fd")?.count());
            }
            let mut bytes = Vec::new();
            if let Node::Regular { contents, .. } = node {
                contents.read_to_end(&mut bytes)?;
            }
            seen.push((path.len(), bytes));
            Ok(())
        })
        .unwrap();
    assert_eq!(seen.len(), 10_003);
    assert_eq!(seen[10_001], (20_001, b"at the bottom".to_vec()));
    assert_eq!(seen[10_002], (1, b"after the way back".to_vec()));
    assert!(most_open < open + OPEN_DIRECTORIES + 16, "{open} {most_open}");
    // Hashing opens the file by its path, which is longer than the system's limit.
    let info = source.path_info(&a()).unwrap().unwrap();
    assert_eq!(info.nar_size, crate::nix::testing::nar(&source, &a()).len() as u64);
    // So is the bottom's.
    let bottom = vec![b"d".as_slice(); 10_000].join(&b'/');
    let Glimpse::Level(level) = source.glimpse(&a(), &bottom).unwrap() else { panic!("the whole tree") };
    assert!(level.children(&bottom).eq([(b"f".as_slice(), &EntryKind::Regular)]));
    assert_eq!(source.read(&a(), &[&bottom, &b"/f"[..]].concat()).unwrap(), b"at the bottom");
    drop(chain);
}

#[test]
fn one_level_is_seen_through_no_link_and_changes_of_it_are_errors() {
    let store = store();
    let source = store.open();
    let level = |at: &str| source.glimpse(&a(), at.as_bytes());
    let Ok(Glimpse::Level(root)) = level("") else { panic!("the root") };
    let shown: Vec<_> = root.iter().map(|(path, kind)| (path, kind.clone())).collect();
    let link = EntryKind::Symlink(b"f".to_vec());
    let [d, f, l] = [(&b"d"[..], EntryKind::Directory), (b"f", EntryKind::Regular), (b"l", link)];
    assert_eq!(shown, [(&b""[..], EntryKind::Directory), d, f, l]);
    // They were directories when they were listed.
    symlink("d", store.path(&a()).join("e")).unwrap();
    for at in ["e", "f", "none", "d/f"] {
        let path = store.path(&a()).join(at);
        assert!(matches!(level(at), Err(WalkError::Changed { path: named }) if named == path), "{at}");
    }
    fs::rename(store.path(&a()), store.root().join("aside")).unwrap();
    fs::write(store.path(&a()), "a file now").unwrap();
    let root = store.path(&a());
    assert!(matches!(level("d"), Err(WalkError::Changed { path }) if path == root));
}

#[test]
fn a_file_is_executable_when_its_owner_may_execute_it() {
    for (mode, expected) in [(0o444, false), (0o455, false), (0o544, true), (0o100, true), (0o4755, true)] {
        let store = TestStore::new();
        fs::write(store.path(&a()), "x").unwrap();
        fs::set_permissions(store.path(&a()), Permissions::from_mode(mode)).unwrap();
        let seen = record(&store.open(), &a()).unwrap();
        let MemoryNode::Regular { executable, .. } = seen[0].node else { panic!() };
        assert_eq!(executable, expected, "{mode:o}");
    }
}

#[rstest]
#[case::fifo("FIFO", |at: &Path| mknodat(CWD, at, FileType::Fifo, Mode::RUSR, 0).is_ok())]
#[case::socket("socket", |at: &Path| UnixListener::bind(at).is_ok())]
#[case::device("character device", |at: &Path| mknodat(CWD, at, FileType::CharacterDevice, Mode::RUSR, Dev::from(0x103u32)).is_ok())]
fn what_a_store_path_cannot_hold_is_named(#[case] kind: &str, #[case] make: fn(&Path) -> bool) {
    let store = store();
    let at = store.path(&a()).join("d/odd");
    if !make(&at) {
        // Only root makes devices.
        assert_eq!(kind, "character device");
        return;
    }
    for error in
        [record(&store.open(), &a()).unwrap_err().to_string(), store.open().path_info(&a()).unwrap_err().to_string()]
    {
        assert_eq!(
            error,
            format!(
                "'{}' is a {kind}; a store path holds only directories, regular files and symbolic links",
                at.display()
            )
        );
    }
}

#[rstest]
#[case::grew("f", |f: &Path| fs::write(f, "contents and more").unwrap())]
#[case::shrank("f", |f: &Path| fs::write(f, "cont").unwrap())]
#[case::rewritten("f", |f: &Path| fs::write(f, "CONTENTS").unwrap())]
#[case::replaced("f", |f: &Path| { fs::write(f.with_extension("new"), "contents").unwrap(); fs::rename(f.with_extension("new"), f).unwrap() })]
#[case::removed("f", |f: &Path| fs::remove_file(f).unwrap())]
#[case::now_a_link("f", |f: &Path| { fs::remove_file(f).unwrap(); symlink("d/f", f).unwrap() })]
#[case::now_a_directory("f", |f: &Path| { fs::remove_file(f).unwrap(); fs::create_dir(f).unwrap() })]
#[case::now_a_fifo("f", |f: &Path| { fs::remove_file(f).unwrap(); mknodat(CWD, f, FileType::Fifo, Mode::RUSR, 0).unwrap() })]
fn a_file_that_changed_since_it_was_shown_is_an_error(#[case] file: &str, #[case] change: fn(&Path)) {
    let store = store();
    let at = store.path(&a()).join(file);
    let walked = store.open().walk(&a(), &mut |path: &[u8], node: Node<'_>| {
        if let Node::Regular { contents, .. } = node
            && path == file.as_bytes()
        {
            // Not within the same tick of the file system's clock as the file's making.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change(&at);
            contents.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    });
    assert!(matches!(walked, Err(WalkError::Changed { path }) if path == at));
}

#[rstest]
#[case::to_the_last_byte(8)]
#[case::to_the_end(9)]
fn a_file_that_changes_while_it_is_read_is_an_error(#[case] wanted: usize) {
    let store = store();
    let at = store.path(&a()).join("f");
    let walked = store.open().walk(&a(), &mut |path: &[u8], node: Node<'_>| {
        if let Node::Regular { contents, .. } = node
            && path == b"f"
        {
            contents.read_exact(&mut [0; 4])?;
            std::thread::sleep(std::time::Duration::from_millis(20));
            fs::write(&at, "CONTENTS")?;
            let mut rest = vec![0; wanted - 4];
            let mut got = 0;
            while got < rest.len() {
                match contents.read(&mut rest[got..])? {
                    0 => break,
                    read => got += read,
                }
            }
        }
        Ok(())
    });
    assert!(matches!(walked, Err(WalkError::Changed { path }) if path == at));
}

#[test]
fn the_state_of_a_store_path_that_is_a_link_is_where_it_leads() {
    let store = TestStore::new();
    let at = store.path(&a());
    let directory = fs::File::open(at.parent().unwrap()).unwrap();
    let path = a();
    let location = Location { directory: directory.as_fd(), store: at.parent().unwrap(), path: &path };
    let state = |target: &str| {
        let _ = fs::remove_file(&at);
        symlink(target, &at).unwrap();
        walk(location, &mut |_: &[u8], _: Node<'_>| Ok(()), LATER).unwrap().unwrap()
    };
    assert_eq!(state("here"), state("here"));
    assert!(state("here") != state("there"));
}

/// Takes files' pages, as far as they are there.
#[derive(Default)]
struct Pages(Vec<u8>);

impl io::Write for Pages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outlet for Pages {
    fn take_pages(&mut self, file: BorrowedFd<'_>, length: u64) -> Option<u64> {
        let mut bytes = vec![0; length as usize];
        let read = rustix::io::read(file, &mut bytes).unwrap();
        self.0.extend_from_slice(&bytes[..read]);
        Some(read as u64)
    }
}

#[rstest]
#[case::not_at_all(None)]
#[case::rewritten(Some("CONTENTS"))]
#[case::cut(Some("con"))]
#[case::grown(Some("contents and more"))]
fn a_file_whose_pages_are_taken_is_checked_as_one_that_is_read(#[case] change: Option<&str>) {
    let store = store();
    let at = store.path(&a()).join("f");
    let mut pages = Pages::default();
    let walked = store.open().walk(&a(), &mut |path: &[u8], node: Node<'_>| {
        if let Node::Regular { contents, .. } = node
            && path == b"f"
        {
            assert_eq!(contents.give_pages(&mut pages, 4)?, Some(4));
            if let Some(contents) = change {
                std::thread::sleep(std::time::Duration::from_millis(20));
                fs::write(&at, contents)?;
            }
            // A file that was cut ends too early, which reading tells.
            assert_eq!(contents.give_pages(&mut pages, 99)?, (change != Some("con")).then_some(4));
            assert_eq!(contents.give_pages(&mut pages, 99)?, None);
            assert_eq!(contents.read(&mut [0])?, 0);
        }
        Ok(())
    });
    match change {
        None => {
            walked.unwrap();
            assert_eq!(pages.0, b"contents");
        }
        Some(_) => assert!(matches!(walked, Err(WalkError::Changed { path }) if path == at)),
    }
}

#[rstest]
#[case::entry_added("d", |d: &Path| fs::write(d.join("new"), "").unwrap())]
#[case::entry_removed("d", |d: &Path| fs::remove_file(d.join("f")).unwrap())]
#[case::next_file_removed("f", |f: &Path| fs::remove_file(f).unwrap())]
#[case::next_link_removed("l", |l: &Path| fs::remove_file(l).unwrap())]
#[case::next_link_now_a_file("l", |l: &Path| { fs::remove_file(l).unwrap(); fs::write(l, "").unwrap() })]
fn a_tree_that_changes_while_it_is_walked_is_an_error(#[case] at: &str, #[case] change: fn(&Path)) {
    let store = store();
    let at = store.path(&a()).join(at);
    let walked = store.open().walk(&a(), &mut |path: &[u8], _: Node<'_>| {
        if path == b"d/f" {
            std::thread::sleep(std::time::Duration::from_millis(20));
            change(&at);
        }
        Ok(())
    });
    assert!(matches!(walked, Err(WalkError::Changed { path }) if at.starts_with(&path)));
}

#[test]
fn a_file_that_cannot_be_read_is_named_even_when_the_visitor_hides_the_error() {
    let store = store();
    let at = store.path(&a()).join("f");
    for hide in [true, false] {
        let walked = store.open().walk(&a(), &mut |path: &[u8], node: Node<'_>| {
            if let Node::Regular { contents, .. } = node
                && path == b"f"
            {
                let _ = fs::remove_file(&at);
                let error = contents.read_to_end(&mut Vec::new()).unwrap_err();
                if !hide {
                    return Err(io::Error::other(format!("the archive: {error}")));
                }
            }
            Ok(())
        });
        assert!(matches!(walked, Err(WalkError::Changed { path }) if path == at), "{hide}");
        fs::write(&at, "contents").unwrap();
    }
}

#[test]
fn links_are_never_followed() {
    let store = TestStore::new();
    let outside = store.root().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, store.path(&a())).unwrap();
    let seen = record(&store.open(), &a()).unwrap();
    assert_eq!(seen.len(), 1);
    assert!(matches!(&seen[0].node, MemoryNode::Symlink(target) if **target == *outside.as_os_str().as_bytes()));
}

#[test]
fn the_state_of_a_tree_tells_every_change_that_its_times_tell() {
    let store = store();
    let directory = fs::File::open(store.root().join("nix/store")).unwrap();
    let location = Location { directory: directory.as_fd(), store: store.root(), path: &a() };
    let state = |now| walk(location, &mut |_: &[u8], _: Node<'_>| Ok(()), now).unwrap();
    assert_eq!(state(0), None, "they are too young");
    let before = state(LATER).unwrap();
    assert_eq!(state(LATER), Some(before));
    let root = store.path(&a());
    let changes: [&dyn Fn(); 4] = [
        &|| fs::write(root.join("d/f"), "other").unwrap(),
        &|| fs::write(root.join("new"), "").unwrap(),
        &|| fs::rename(root.join("f"), root.join("g")).unwrap(),
        &|| {
            fs::remove_file(root.join("l")).unwrap();
            symlink("g", root.join("l")).unwrap();
        },
    ];
    let mut before = before;
    for change in changes {
        // Past the tick in which the last change was made.
        std::thread::sleep(std::time::Duration::from_millis(20));
        change();
        let after = state(LATER).unwrap();
        assert_ne!(after, before);
        before = after;
    }
}
