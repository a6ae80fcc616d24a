//! What both have to do, held to the same questions.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::fs::FileType;
use rustix::io::Errno;

/// A directory of every kind of entry, with names that are easily got wrong and more of them than one call lists.
fn crowd() -> (tempfile::TempDir, BTreeMap<Vec<u8>, FileType>) {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = BTreeMap::new();
    let mut add = |name: &[u8], kind: FileType| {
        let path = dir.path().join(OsStr::from_bytes(name));
        match kind {
            FileType::Directory => fs::create_dir(path).unwrap(),
            FileType::Symlink => symlink("nowhere", path).unwrap(),
            FileType::Socket => drop(UnixListener::bind(path).unwrap()),
            _ => drop(File::create(path).unwrap()),
        }
        expected.insert(name.to_vec(), kind);
    };
    for at in 0..2000 {
        add(format!("{at}-{}", "n".repeat(40)).as_bytes(), FileType::RegularFile);
    }
    add(b"..hidden", FileType::RegularFile);
    add(b"a name\nof two lines", FileType::RegularFile);
    add(&[b'x'; 255], FileType::RegularFile);
    add(b"directory", FileType::Directory);
    add(b"link", FileType::Symlink);
    add(b"socket", FileType::Socket);
    #[cfg(target_os = "linux")] // macOS has no names outside Unicode.
    add(b"not utf-8 \xff\xfe", FileType::RegularFile);
    (dir, expected)
}

/// The same tests of each.
macro_rules! conformance {
    ($system:ident) => {
        mod $system {
            use super::super::$system as system;
            use super::*;

            fn listed(listing: &mut system::Listing, dir: &std::path::Path) -> BTreeMap<Vec<u8>, FileType> {
                let mut found = BTreeMap::new();
                let directory = File::open(dir).unwrap();
                let mut again = Vec::new();
                listing
                    .list(directory.as_fd(), |name, kind| {
                        let name = name.to_vec();
                        // A file system need not tell; the walk asks then.
                        let kind = match kind {
                            FileType::Unknown => {
                                let stat = rustix::fs::lstat(dir.join(OsStr::from_bytes(&name))).unwrap();
                                FileType::from_raw_mode(stat.st_mode)
                            }
                            known => known,
                        };
                        if found.insert(name.clone(), kind).is_some() {
                            again.push(name);
                        }
                    })
                    .unwrap();
                assert_eq!(again, Vec::<Vec<u8>>::new(), "listed twice");
                found
            }

            #[test]
            fn a_directory_is_listed_whole() {
                let (dir, expected) = crowd();
                let mut listing = system::Listing::default();
                assert_eq!(listed(&mut listing, dir.path()), expected);
                assert_eq!(listed(&mut listing, &dir.path().join("directory")), BTreeMap::new());
                assert_eq!(listed(&mut listing, dir.path()), expected, "a second time");
            }

            #[test]
            fn what_is_no_directory_is_not_listed() {
                let file = tempfile::tempfile().unwrap();
                let listed = system::Listing::default().list(file.as_fd(), |_, _| panic!("a name in a file"));
                assert_eq!(listed, Err(Errno::NOTDIR));
            }

            #[test]
            fn a_directory_is_opened_where_it_is_and_never_through_a_link() {
                let dir = tempfile::tempdir().unwrap();
                std::fs::create_dir_all(dir.path().join("real/inner")).unwrap();
                std::fs::write(dir.path().join("real/file"), "").unwrap();
                std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
                std::os::unix::fs::symlink("inner", dir.path().join("real/link")).unwrap();
                let directory = File::open(dir.path()).unwrap();
                let open = |path: &str| system::open_directory_below(directory.as_fd(), path.as_bytes());
                for wrong in ["link", "link/inner", "real/link", "real/file", "real/none", "../", "/"] {
                    assert!(open(wrong).is_err(), "{wrong}");
                }
                match open("real/inner") {
                    Ok(inner) => {
                        let expected = rustix::fs::stat(dir.path().join("real/inner")).unwrap();
                        assert_eq!(rustix::fs::fstat(inner).unwrap().st_ino, expected.st_ino);
                    }
                    // There may be no call for it, or none for this process.
                    Err(errno) => assert!(matches!(errno, Errno::NOSYS | Errno::PERM), "{errno}"),
                }
            }

            #[test]
            fn files_of_one_file_system_have_its_number() {
                let dir = tempfile::tempdir().unwrap();
                let number = system::device(&rustix::fs::stat(dir.path()).unwrap());
                let file = tempfile::tempfile_in(dir.path()).unwrap();
                assert_eq!(system::device(&rustix::fs::fstat(&file).unwrap()), number);
                assert_eq!(number, dir.path().metadata().unwrap().dev(), "as the standard library has it");
            }

            #[test]
            fn a_file_without_a_name_takes_one_that_is_free() {
                let dir = tempfile::tempdir().unwrap();
                let Some(mut file) = system::unnamed(dir.path(), 0o666) else {
                    let named = tempfile::tempfile_in(dir.path()).unwrap();
                    let refused = system::link(&named, &dir.path().join("name")).unwrap_err();
                    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
                    return;
                };
                file.write_all(b"whole").unwrap();
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
                system::link(&file, &dir.path().join("name")).unwrap();
                assert_eq!(fs::read(dir.path().join("name")).unwrap(), b"whole");
                let taken = system::link(&file, &dir.path().join("name")).unwrap_err();
                assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
            }

            #[test]
            fn a_file_gets_its_length_and_is_empty_there() {
                let mut file = tempfile::tempfile().unwrap();
                system::reserve(&file, 100_000).unwrap();
                let mut contents = Vec::new();
                file.read_to_end(&mut contents).unwrap();
                assert_eq!(contents, [0; 100_000]);
            }

            #[test]
            fn blocks_are_shared_as_a_whole_or_nothing_is_done() {
                let (mut file, mut target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
                file.write_all(b"whole").unwrap();
                let is_shared = system::share_blocks(&file, &target);
                let mut contents = Vec::new();
                target.read_to_end(&mut contents).unwrap();
                assert_eq!(contents, if is_shared { &b"whole"[..] } else { b"" });
            }

            #[test]
            fn a_pipe_works_widened_or_not_and_a_file_is_left_alone() {
                let (mut reader, mut writer) = io::pipe().unwrap();
                system::widen_pipe(&writer);
                writer.write_all(b"through").unwrap();
                drop(writer);
                assert_eq!(io::read_to_string(&mut reader).unwrap(), "through");
                let file = tempfile::tempfile().unwrap();
                system::widen_pipe(&file);
                assert_eq!(file.metadata().unwrap().len(), 0);
            }

            #[test]
            fn a_files_pages_go_into_a_pipe_from_where_it_stands_or_nothing_does() {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(b"not this, that").unwrap();
                file.seek(SeekFrom::Start(10)).unwrap();
                let (mut reader, writer) = io::pipe().unwrap();
                let moved = system::move_pages(&file, &writer, 3);
                assert_eq!(moved, system::is_pipe(&writer).then_some(3));
                if moved.is_some() {
                    assert_eq!(system::move_pages(&file, &writer, 99), Some(1));
                    assert_eq!(system::move_pages(&file, &writer, 99), Some(0), "its end");
                }
                drop(writer);
                assert_eq!(io::read_to_string(&mut reader).unwrap(), if moved.is_some() { "that" } else { "" });

                let (_reader, mut full) = io::pipe().unwrap();
                if system::is_pipe(&full) {
                    full.write_all(&[0; 64 << 10]).unwrap();
                    file.seek(SeekFrom::Start(0)).unwrap();
                    assert_eq!(system::move_pages(&file, &full, 1), None, "nobody waits");
                }

                let target = tempfile::tempfile().unwrap();
                assert!(!system::is_pipe(&target));
                file.seek(SeekFrom::Start(0)).unwrap();
                assert_eq!(system::move_pages(&file, &target, 3), None);
                assert_eq!(file.stream_position().unwrap(), 0);
            }

            #[test]
            fn the_mark_of_a_start_stays_until_the_next() {
                assert_eq!(system::boot(), system::boot());
                assert!(system::boot().is_none_or(|mark| !mark.is_empty()));
            }
        }
    };
}

#[cfg(target_os = "linux")]
conformance!(linux);
conformance!(portable);

#[cfg(target_os = "linux")]
#[test]
fn who_may_copy_in_a_way_of_its_own_is_left_to_it() {
    let [shared_memory, processes] = ["/dev/null", "/proc/version"].map(|path| File::open(path).unwrap());
    assert!(super::linux::is_copied_by_hand(&shared_memory) && !super::linux::is_copied_by_hand(&processes));
    assert!(super::portable::is_copied_by_hand(&processes), "nobody is asked to");
}

#[cfg(target_os = "linux")]
#[test]
fn work_on_one_core_is_done_and_the_others_are_given_back() {
    assert_eq!(super::portable::on_one_core(|| 7), 7);
    let cores = || rustix::thread::sched_getaffinity(None).unwrap();
    let before = cores();
    let (here, of_a_thread) = super::linux::on_one_core(|| (cores(), std::thread::spawn(cores).join().unwrap()));
    assert_eq!((here.count(), of_a_thread.count()), (1, 1));
    assert_eq!(cores(), before);
    assert!(std::panic::catch_unwind(|| super::linux::on_one_core(|| panic!("in the midst of it"))).is_err());
    assert_eq!(cores(), before);
}

/// In a process of its own, where nothing else takes and frees memory meanwhile.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn what_is_freed_goes_back_to_the_system() {
    let alone = "LAYERHOLD_TEST_ALONE";
    if std::env::var_os(alone).is_none() {
        let name = "host::tests::what_is_freed_goes_back_to_the_system";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let output = again.args([name, "--exact"]).env(alone, "1").output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    };
    super::return_what_is_freed();
    drop(std::hint::black_box(vec![1u8; 16 << 20]));
    let before = resident();
    let pieces: Vec<_> = (0..64).map(|_| std::hint::black_box(vec![1u8; 256 << 10])).collect();
    assert!(resident() > before + (12 << 20));
    drop(pieces);
    assert!(resident() < before + (4 << 20), "{before} bytes before, {} after", resident());
}

/// Without it the kernel makes room for some more at a time, while all threads that open files wait.
#[cfg(target_os = "linux")]
#[test]
fn there_is_room_for_many_open_files_before_they_are_opened() {
    super::make_room_for_open_files();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("FDSize:")).unwrap();
    let room: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    assert!(room >= limit.min(4096), "room for {room} of {limit}");
    let open = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().file_name());
    let last = open.map(|name| name.to_str().unwrap().parse::<u64>().unwrap()).max().unwrap();
    assert!(last < limit.min(4096) - 1, "nothing stays open for it");
}
