use super::super::samples::{self, Blobs, Remembering, Watcher, image, index};
use super::super::{Delivered, FileSink};
use super::*;
use crate::event::Silent;
use crate::image::{Image, Images};
use rstest::rstest;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A file that was given an image, and what is remembered of it.
struct Bench {
    dir: tempfile::TempDir,
    past: Remembering,
    image: Image,
    whole: Vec<u8>,
}

const LAYERS: [&str; 2] = ["base", "the top, no multiple of a block"];

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bench = Self { dir, past: Remembering::default(), image: image("v1", &LAYERS).0, whole: Vec::new() };
        let (_, asked) = bench.deliver("first.tar", &Silent);
        assert_eq!(asked, 2);
        Self { whole: fs::read(bench.at("first.tar")).unwrap(), ..bench }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Delivers the image to a file; also says how many layers' bytes were asked for.
    fn deliver(&self, name: &str, observer: &dyn Observer) -> (Result<Delivered, DeliveryError>, usize) {
        let (_, blobs) = image("v1", &LAYERS);
        self.deliver_from(&blobs, name, observer)
    }

    fn deliver_from(
        &self,
        blobs: &Blobs,
        name: &str,
        observer: &dyn Observer,
    ) -> (Result<Delivered, DeliveryError>, usize) {
        let mut sink = FileSink::new(self.at(name));
        let delivered = samples::deliver(&self.image, &blobs.with_past(&self.past), &mut sink, observer);
        let asked = blobs.asked.lock().unwrap().len();
        (delivered, asked)
    }

    /// Delivers to a new file, which must get the same bytes, and says whether it was copied.
    fn is_copied(&self) -> bool {
        let (delivered, asked) = self.deliver("second.tar", &Silent);
        assert_eq!(delivered.unwrap().layers_sent, 2, "a copy counts as sent");
        assert!(fs::read(self.at("second.tar")).unwrap() == self.whole);
        fs::remove_file(self.at("second.tar")).unwrap();
        assert!(asked == 0 || asked == 2);
        asked == 0
    }
}

#[test]
fn another_file_is_copied_and_gets_the_same_bytes() {
    let bench = Bench::new();
    fs::set_permissions(bench.at("first.tar"), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!bench.is_copied(), "its times are others than those that it was left with");
    let mode = |name: &str| fs::metadata(bench.at(name)).unwrap().mode();
    let (_, asked) = bench.deliver("first.tar", &Silent);
    assert_eq!(asked, 2);
    let watcher = Watcher::patient_for(usize::MAX);
    let (delivered, asked) = bench.deliver("second.tar", &watcher);
    assert_eq!(asked, 0);
    let bytes = delivered.unwrap().bytes_sent;
    assert_eq!(fs::read(bench.at("second.tar")).unwrap(), bench.whole);
    File::create(bench.at("other")).unwrap();
    assert_eq!(mode("second.tar"), mode("other"), "the mode is not copied");
    let shown = bench.at("first.tar").display().to_string();
    assert_eq!(
        *watcher.seen.lock().unwrap(),
        [
            Event::Started { stage: Stage::Delivering, total_bytes: bytes },
            Event::Advanced { bytes },
            Event::Detail { message: format!("copied from '{shown}', which holds the same image") },
            Event::Finished { stage: Stage::Delivering },
        ]
    );
    // The copy is as good as the first: it needs no copy itself, and is copied when the first is gone.
    assert_eq!(bench.deliver("second.tar", &Silent).0.unwrap().layers_sent, 0);
    fs::remove_file(bench.at("first.tar")).unwrap();
    assert_eq!(bench.deliver("third.tar", &Silent).1, 0);
}

#[test]
fn a_file_that_was_touched_is_not_copied_and_is_forgotten() {
    let first = |bench: &Bench| bench.at("first.tar");
    let touches: &[&dyn Fn(&Bench)] = &[
        &|bench| OpenOptions::new().write(true).open(first(bench)).unwrap().write_all_at(b"x", 600).unwrap(),
        &|bench| OpenOptions::new().append(true).open(first(bench)).unwrap().write_all(b"x").unwrap(),
        &|bench| OpenOptions::new().write(true).open(first(bench)).unwrap().set_len(700).unwrap(),
        &|bench| fs::write(first(bench), &bench.whole).unwrap(),
        &|bench| fs::remove_file(first(bench)).unwrap(),
        &|bench| fs::rename(first(bench), bench.at("renamed.tar")).unwrap(),
        &|bench| {
            // Even a link to the same bytes: who made it may write through it.
            fs::rename(first(bench), bench.at("renamed.tar")).unwrap();
            symlink("renamed.tar", first(bench)).unwrap();
        },
        &|bench| fs::hard_link(first(bench), bench.at("linked.tar")).unwrap(),
        &|bench| {
            fs::remove_file(first(bench)).unwrap();
            assert!(Command::new("mkfifo").arg(first(bench)).status().unwrap().success());
        },
    ];
    for touch in touches {
        let bench = Bench::new();
        assert!(bench.is_copied());
        touch(&bench);
        assert!(!bench.is_copied());
        let known = bench.past.0.lock().unwrap();
        assert!(known.iter().all(|(file, ..)| *file != first(&bench)), "{known:?}");
    }
}

#[test]
fn of_several_files_the_latest_that_is_still_good_is_copied() {
    let bench = Bench::new();
    for name in ["b.tar", "c.tar"] {
        bench.deliver(name, &Silent).0.unwrap();
    }
    let copied_from = || {
        let watcher = Watcher::patient_for(usize::MAX);
        bench.deliver("new.tar", &watcher).0.unwrap();
        fs::remove_file(bench.at("new.tar")).unwrap();
        let seen = watcher.seen.lock().unwrap();
        let names = ["first.tar", "b.tar", "c.tar"];
        names.into_iter().find(|name| format!("{seen:?}").contains(&format!("/{name}'")))
    };
    assert_eq!(copied_from(), Some("c.tar"));
    OpenOptions::new().append(true).open(bench.at("c.tar")).unwrap().write_all(b"x").unwrap();
    assert_eq!(copied_from(), Some("b.tar"));
    fs::remove_file(bench.at("b.tar")).unwrap();
    assert_eq!(copied_from(), Some("first.tar"));
    fs::remove_file(bench.at("first.tar")).unwrap();
    assert_eq!(copied_from(), None);
}

#[test]
fn another_image_or_name_is_no_twin() {
    let bench = Bench::new();
    for (tag, layers) in [("v2", LAYERS), ("v1", ["base", "another top"])] {
        let (other, blobs) = image(tag, &layers);
        let bench = Bench { image: other, dir: tempfile::tempdir().unwrap(), ..Bench::new() };
        let (delivered, asked) = bench.deliver_from(&blobs, "second.tar", &Silent);
        assert_eq!((delivered.unwrap().layers_sent, asked), (2, 2));
    }
    assert!(bench.is_copied());
}

#[test]
fn images_of_several_platforms_are_copied_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let past = Remembering::default();
    let deliver = |name: &str, platforms: &[(&str, &[&str])]| {
        let (images, blobs): (Images, _) = index("v1", platforms);
        let mut sink = FileSink::new(dir.path().join(name));
        let delivered = super::super::deliver(&images, &blobs.with_past(&past), &mut sink, &Silent).unwrap();
        let asked = blobs.asked.lock().unwrap().len();
        (delivered.layers_sent, asked)
    };
    let (amd, arm): (&[_], &[_]) = (&["base", "amd", "amd"], &["base", "arm"]);
    assert_eq!(deliver("a.tar", &[("amd64", amd), ("arm64", arm)]), (3, 3));
    assert_eq!(deliver("b.tar", &[("amd64", amd), ("arm64", arm)]), (3, 0));
    assert_eq!(fs::read(dir.path().join("a.tar")).unwrap(), fs::read(dir.path().join("b.tar")).unwrap());
    assert_eq!(deliver("c.tar", &[("arm64", arm), ("amd64", amd)]), (3, 3), "the order is in the archive");
    assert_eq!(deliver("d.tar", &[("amd64", amd)]), (2, 2));
}

/// Does something as soon as something was copied.
struct Meddler<'a> {
    meddle: &'a (dyn Fn() + Sync),
    is_done: AtomicBool,
    said: Mutex<Vec<Event>>,
}

impl Observer for Meddler<'_> {
    fn event(&self, event: Event) {
        if matches!(event, Event::Advanced { .. }) && !self.is_done.swap(true, Ordering::SeqCst) {
            (self.meddle)();
        }
        self.said.lock().unwrap().push(event);
    }
}

#[rstest]
fn a_file_that_changes_while_it_is_copied_is_not_taken(
    #[values("written", "written back", "cut", "removed", "replaced")] how: &str,
) {
    let bench = Bench::new();
    let first = bench.at("first.tar");
    let write = |bytes: &[u8]| OpenOptions::new().write(true).open(&first).unwrap().write_all_at(bytes, 600).unwrap();
    let meddle = || match how {
        "written" => write(b"x"),
        // The bytes are what they were; what was copied meanwhile nobody knows.
        "written back" => [&b"x"[..], &bench.whole[600..601]].into_iter().for_each(write),
        "cut" => OpenOptions::new().write(true).open(&first).unwrap().set_len(10).unwrap(),
        "removed" => fs::remove_file(&first).unwrap(),
        _ => fs::rename(bench.at("other"), &first).unwrap(),
    };
    fs::write(bench.at("other"), "other").unwrap();
    let meddler = Meddler { meddle: &meddle, is_done: AtomicBool::new(false), said: Mutex::default() };
    let (delivered, asked) = bench.deliver("second.tar", &meddler);
    let delivered = delivered.unwrap();
    assert_eq!((delivered.layers_sent, asked), (2, 2));
    assert!(fs::read(bench.at("second.tar")).unwrap() == bench.whole);
    let said = meddler.said.lock().unwrap();
    assert!(format!("{said:?}").contains("it changed meanwhile"), "{said:?}");
    // Progress begins anew, so that it ends where it was said to.
    let begun = said.iter().rposition(|event| matches!(event, Event::Started { .. })).unwrap();
    let advanced = |event: &Event| if let Event::Advanced { bytes } = event { *bytes } else { 0 };
    assert_eq!(said[begun..].iter().map(advanced).sum::<u64>(), delivered.bytes_sent);
}

#[test]
fn the_user_can_end_a_copy() {
    let bench = Bench::new();
    let before = fs::read_dir(bench.dir.path()).unwrap().count();
    let (delivered, asked) = bench.deliver("second.tar", &Watcher::patient_for(1));
    assert!(matches!(delivered.unwrap_err(), DeliveryError::Interrupted));
    assert_eq!((asked, fs::read_dir(bench.dir.path()).unwrap().count()), (0, before));
    assert!(bench.is_copied());
}

#[test]
fn a_copy_that_fails_is_written_the_ordinary_way_from_an_empty_file() {
    let bench = Bench::new();
    let twin = Twin::find(&super::super::written::contents(&bench.image.clone().into()), &bench.past).unwrap();
    let path = bench.at("read-only");
    fs::write(&path, "").unwrap();
    // Neither a copy nor to make it empty again is possible.
    let target = File::open(&path).unwrap();
    let failed = |source| DeliveryError::Write { path: path.clone(), source };
    let error = twin.copy_to(&target, 7, &Silent, failed).unwrap_err();
    assert!(matches!(error, DeliveryError::Write { .. }), "{error}");

    // What was copied before a failure does not stay: the rest of the file would not be zeros.
    let target = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let cut = Twin { length: twin.length + 1, ..twin };
    (&cut.file).rewind().unwrap();
    assert!(!cut.copy_to(&target, 7, &Silent, failed).unwrap());
    assert_eq!((target.metadata().unwrap().len(), (&target).stream_position().unwrap()), (0, 0));
}

type Way = fn(&Twin, &File, u64, &dyn Observer) -> Result<(), CopyError>;

#[rstest]
#[case::whichever(Twin::copy_pieces)]
#[case::by_kernel(Twin::copy_by_kernel)]
#[case::by_hand(Twin::copy_by_hand)]
fn a_piece_after_the_other_gives_the_whole(#[case] way: Way) {
    let dir = tempfile::tempdir().unwrap();
    let length = 2 * PIECE + 4097;
    let bytes: Vec<u8> = (0..length).map(|at| (at / 4093) as u8).collect();
    let path = dir.path().join("large");
    fs::write(&path, &bytes).unwrap();
    let twin = |length: u64| {
        let file = File::open(&path).unwrap();
        let contents = [1; 32];
        let token = token_of(&file.metadata().unwrap(), &contents).unwrap();
        Twin { path: path.clone(), file, contents, token, length }
    };
    let target = File::create(dir.path().join("copy")).unwrap();
    let watcher = Watcher::patient_for(usize::MAX);
    way(&twin(length), &target, length - 5000, &watcher).unwrap();
    assert!(fs::read(dir.path().join("copy")).unwrap() == bytes);
    let seen = watcher.seen.lock().unwrap();
    let advanced = |event: &Event| if let Event::Advanced { bytes } = event { *bytes } else { 0 };
    assert_eq!(seen.iter().map(advanced).collect::<Vec<_>>(), [PIECE, PIECE - 5000 + 4097, 0]);

    let target = File::create(dir.path().join("ended")).unwrap();
    let error = way(&twin(length), &target, length, &Watcher::patient_for(1)).unwrap_err();
    assert!(matches!(error, CopyError::Interrupted), "{error}");
    let target = File::create(dir.path().join("cut")).unwrap();
    let error = way(&twin(length + 1), &target, length, &Silent).unwrap_err();
    assert!(matches!(error, CopyError::Changed), "{error}");
    let unwritable = File::open(&path).unwrap();
    let error = way(&twin(length), &unwritable, length, &Silent).unwrap_err();
    assert!(matches!(error, CopyError::Io(_)), "{error}");
}
