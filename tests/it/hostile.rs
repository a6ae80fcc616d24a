//! Store paths that mean ill: names and links that lead astray, files that change or vanish while they are read.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rstest::rstest;

use crate::archive::{Archive, EntryKind};
use crate::containerize::{archive, containerize};
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::peer;
use crate::sandbox::Sandbox;
use crate::surroundings::Mounted;

const NAMES: &[&[u8]] = &[
    b"new\nline",
    b"..foo",
    b"...",
    b" lead and trail ",
    b"-rf",
    b"back\\slash",
    b"\x1b[31mred",
    b"not-\xff-utf8",
    b"*",
    b".wh.whited-out",
];
const TARGETS: &[&str] = &["/etc/passwd", "../../../../../../etc/passwd", "nowhere", "..", ".", "/", "a\nb", "self"];

/// The files and links of the image below one store path.
fn nodes_below(image: &Archive, store_path: &str) -> BTreeMap<Vec<u8>, EntryKind> {
    let lead = format!("{}/", store_path.trim_start_matches('/')).into_bytes();
    let below =
        |(path, entry): (Vec<u8>, crate::archive::LayerEntry)| Some((path.strip_prefix(&*lead)?.to_vec(), entry.kind));
    image.root().into_iter().filter_map(below).filter(|(_, kind)| *kind != EntryKind::Directory).collect()
}

#[rstest]
#[case::plain(&[])]
#[case::compressed(&["--compression", "zstd"])]
fn odd_names_and_links_arrive_as_they_are_and_nothing_is_followed(#[case] args: &[&str]) {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let mut tree = Tree::new();
    let mut expected = BTreeMap::new();
    for &name in NAMES {
        let path = [b"share/", name].concat();
        tree = tree.file(&path, name);
        expected.insert(path, EntryKind::File(name.to_vec()));
    }
    for (at, target) in TARGETS.iter().enumerate() {
        let path = format!("links/{at}");
        tree = tree.link(&path, target);
        expected.insert(path.into_bytes(), EntryKind::Link(target.as_bytes().to_vec()));
    }
    let odd = store.add("odd-1", &tree);
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "odd", &[("odd", &odd)], "");
    let image = archive(&sandbox, store.root(), &environment, args);
    assert_eq!(nodes_below(&image, &odd), expected);
    for path in image.root().keys() {
        let is_plain = |part: &[u8]| part != b".." && part != b"." && !part.is_empty();
        assert!(path.split(|&byte| byte == b'/').all(is_plain), "{}", path.escape_ascii());
    }
    sandbox.cmd().args(["cache", "verify"]).assert().success();
}

#[test]
fn a_store_path_that_is_a_link_out_of_the_store_brings_nothing_from_there() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    fs::create_dir(sandbox.path("outside")).unwrap();
    fs::write(sandbox.path("outside/file"), "a secret of this machine").unwrap();
    let tool = store.add("tool-1", &Tree::new().file("share/tool", "tool").link("share/out", "@out@/../../../outside"));
    let link = store.add("link-1", &Tree::new());
    fs::remove_dir(store.real(&link)).unwrap();
    symlink(sandbox.path("outside"), store.real(&link)).unwrap();
    let installs = [("tool", tool.as_str()), ("link", &link)];
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "astray", &installs, "");
    let outcome = containerize(&sandbox, store.root(), &environment).args(["-f", "image.tar"]).output().unwrap();
    let said = String::from_utf8_lossy(&outcome.stderr);
    // It may be refused; what it may not is to give the file away.
    assert!(outcome.status.success() || said.contains("✘ ERROR: "), "{said}");
    let image = fs::read(sandbox.path("work/image.tar")).unwrap_or_default();
    assert_eq!(outcome.status.success(), !image.is_empty());
    assert!(!image.windows(24).any(|window| window == b"a secret of this machine"));
}

/// Larger than all buffers between the program and the reader of its output.
const LARGE: usize = 16 << 20;

/// After so long a file's times tell every later change.
pub(crate) const SETTLING: Duration = Duration::from_millis(2100);

/// A run into a pipe.
pub(crate) fn streaming(sandbox: &Sandbox, root: &Path, environment: &FloxEnv) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command.env_clear().envs(sandbox.environment()).current_dir(sandbox.path("work"));
    command.args(["containerize", "-f", "-", "-d"]).arg(environment.dir()).arg("--store").arg(root);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// What is known before the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    /// The files are old enough for their times to tell every change.
    Times,
    /// The layers' records.
    Layers,
    /// The layers' records, and by now the files are old enough.
    LayersThenTimes,
    /// In what states the layers' trees were, too.
    Trees,
}

fn rewrite(file: &Path) {
    fs::write(file, vec![b'b'; LARGE]).unwrap();
}

fn append(file: &Path) {
    fs::write(file, vec![b'a'; LARGE + 1]).unwrap();
}

fn cut(file: &Path) {
    fs::write(file, vec![b'a'; LARGE - 1]).unwrap();
}

fn remove(file: &Path) {
    fs::remove_file(file).unwrap();
}

fn replace_by_a_link(file: &Path) {
    fs::remove_file(file).unwrap();
    symlink("/etc/passwd", file).unwrap();
}

#[rstest]
#[case::rewritten(rewrite)]
#[case::grown(append)]
#[case::cut(cut)]
#[case::removed(remove)]
#[case::now_a_link(replace_by_a_link)]
fn a_file_that_changes_while_it_streams_is_an_error_and_never_a_whole_image(
    #[case] change: fn(&Path),
    #[values(Known::Nothing, Known::Times, Known::Layers, Known::LayersThenTimes, Known::Trees)] known: Known,
) {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    // Two files, so that one is still to be opened when the other is being read.
    let tree = Tree::new().file("share/a", vec![b'a'; LARGE]).file("share/b", vec![b'a'; LARGE]);
    let tool = store.add("tool-1", &tree);
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "changing", &[("tool", &tool)], "");
    if known == Known::Trees {
        std::thread::sleep(SETTLING);
    }
    if matches!(known, Known::Layers | Known::LayersThenTimes | Known::Trees) {
        containerize(&sandbox, store.root(), &environment).args(["-f", "image.tar"]).assert().success();
    }
    if matches!(known, Known::Times | Known::LayersThenTimes) {
        // Old enough for their times to tell every change: layers are hashed once, and not again on their way out.
        std::thread::sleep(SETTLING);
    }
    let mut child = streaming(&sandbox, store.root(), &environment).stderr(Stdio::piped()).spawn().unwrap();
    let mut stream = child.stdout.take().unwrap();
    let mut image = vec![0; 1 << 20];
    stream.read_exact(&mut image).unwrap();
    change(&store.real(&tool).join("share/b"));
    stream.read_to_end(&mut image).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    // The file's name where the walk sees it change; where it opens what is there now, the layer's digest does not fit,
    // or the state in which the store path was.
    let causes = ["share/b", "caused by: expected sha256:", "caused by: its store paths changed while they were read"];
    assert!(causes.iter().any(|cause| said.contains(cause)), "{said}");
    if matches!(known, Known::Times | Known::Trees) {
        assert!(!said.contains("expected sha256:"), "nothing was hashed on its way out: {said}");
    }
    assert!(said.contains("✘ ERROR: ") && said.contains("hint: something else is writing to the store"), "{said}");
    let ends_whole = std::panic::catch_unwind(|| Archive::read(image)).is_ok();
    assert!(!ends_whole, "a reader takes the stream for an image");
    sandbox.cmd().args(["cache", "verify"]).assert().success();
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_that_names_it() {
    peer!(root);
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let tool = store.add("tool-1", &Tree::new().file("share/tool", "tool"));
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "unreadable", &[("tool", &tool)], "");
    let file = store.real(&tool).join("share/tool");
    // A regular file whose every read fails; it is the kernel's, and the loopback device has no speed.
    let _mounted = Mounted::over(&file, &["--bind", "/sys/class/net/lo/speed"]);
    let outcome = containerize(&sandbox, store.root(), &environment).args(["-f", "image.tar"]).assert().code(1);
    let said = String::from_utf8_lossy(&outcome.get_output().stderr);
    assert!(said.contains("share/tool") && said.contains("Invalid argument"), "{said}");
    assert!(!sandbox.path("work/image.tar").exists());
}
