//! Where the layer cache lies may be full, read-only, somebody else's or nowhere, and what lies there of another
//! version or broken: nothing is lost, the build goes on where it can, and it is said.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rstest::rstest;
use rustix::fs::FlockOperation;

use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::peers::{find_program, peer};
use crate::sandbox::Sandbox;

/// A file system mounted at a place until the end of the test.
pub(crate) struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Mounts as mount(8) does with these arguments, the last of which is what is mounted.
    pub(crate) fn over(at: &Path, args: &[&str]) -> Self {
        assert!(Command::new("mount").args(args).arg(at).status().unwrap().success());
        Self { at: at.to_owned() }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

/// An environment of incompressible packages, and the image that it should give.
struct Place {
    sandbox: Sandbox,
    store: BareStore,
    environment: FloxEnv,
    whole: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let store = BareStore::new(sandbox.path("root"));
        let tool = |name: &str| {
            let mut noise = vec![0; 700_000];
            blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut noise);
            store.add(name, &Tree::new().program(format!("bin/{name}"), noise))
        };
        let (a, b, c) = (tool("a-1"), tool("b-1"), tool("c-1"));
        let installs = [("a", a.as_str()), ("b", &b), ("c", &c)];
        let environment = FloxEnv::of_store_paths(sandbox.path("project"), "place", &installs, "");
        let mut place = Self { sandbox, store, environment, whole: Vec::new() };
        place.build(place.command().env("LAYERHOLD_CACHE", place.sandbox.path("another-cache")));
        place.whole = fs::read(place.image()).unwrap();
        place
    }

    fn image(&self) -> PathBuf {
        self.sandbox.path("work/image.tar")
    }

    fn cache(&self) -> PathBuf {
        self.sandbox.path("cache")
    }

    fn command(&self) -> Command {
        self.sandboxed(Command::new(env!("CARGO_BIN_EXE_layerhold")))
    }

    /// The same as another user, to whom the sandbox's directory is opened.
    fn command_of_nobody(&self) -> Command {
        for open in ["", "work", "home"] {
            fs::set_permissions(self.sandbox.path(open), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let mut command = Command::new(find_program("setpriv").unwrap());
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", env!("CARGO_BIN_EXE_layerhold")]);
        self.sandboxed(command)
    }

    fn sandboxed(&self, mut command: Command) -> Command {
        command.env_clear().envs(self.sandbox.environment()).current_dir(self.sandbox.path("work"));
        command.env("TMPDIR", "/tmp").stdin(Stdio::null());
        command
    }

    /// Adds a build's arguments; compressed, so that the cache keeps the bytes.
    fn build_args(&self, command: &mut Command) {
        command.args(["-v", "containerize", "--compression", "zstd:1", "-f", "image.tar", "--store"]);
        command.arg(self.store.root()).arg("-d").arg(self.environment.dir());
    }

    /// Runs a build to a good end: what it says.
    fn build(&self, command: &mut Command) -> String {
        let _ = fs::remove_file(self.image());
        self.build_args(command);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert!(self.whole.is_empty() || fs::read(self.image()).unwrap() == self.whole, "another image: {said}");
        said
    }

    /// A build that cannot use its cache, says so, and says what mends it.
    fn build_without_cache(&self, command: &mut Command, parts: &[&str]) {
        let said = self.build(command);
        let went_on = said.contains("going on without");
        assert!(went_on && said.contains("hint: "), "{said}");
        says(&said, parts);
    }

    /// A build that finds every layer in the cache.
    fn build_from_cache(&self) {
        let said = self.build(&mut self.command());
        assert!(said.contains(" 0 new") && !said.contains("without"), "{said}");
    }

    fn cache_command(&self, mut command: Command, args: &[&str]) -> (Output, String) {
        let output = command.arg("cache").args(args).output().unwrap();
        let said = self.sandbox.tidy(&String::from_utf8_lossy(&output.stderr));
        (output, said)
    }

    /// A `cache` command that ends well: what it prints.
    fn run(&self, args: &[&str]) -> String {
        let (output, said) = self.cache_command(self.command(), args);
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Fills the cache's file system to the last byte.
    fn fill_up(&self) {
        let mut fill = vec![b'x'; 4096];
        while fs::File::options().create(true).append(true).open(self.cache().join("tmp/fill")).is_ok_and(|mut file| {
            use std::io::Write;
            file.write_all(&fill).is_ok()
        }) {
            fill.extend_from_within(..);
            fill.truncate(65_536);
        }
    }

    /// Collects everything, and exactly what was planned: how many bytes of the index went.
    fn collect_all_as_planned(&self) -> u64 {
        let collect = |args: &[&str]| {
            let mut plan: serde_json::Value = serde_json::from_str(&self.run(args)).unwrap();
            plan.as_object_mut().unwrap().remove("dry_run");
            plan
        };
        let planned = collect(&["gc", "--dry-run", "--max-size", "0", "--json"]);
        let index = self.cache().join("index");
        let files = if index.exists() { files_below(&index) } else { Vec::new() };
        let index_bytes: u64 = files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
        assert_eq!(collect(&["gc", "--max-size", "0", "--json"]), planned);
        assert_eq!(planned["index_bytes"], index_bytes);
        assert!(index_bytes == 0 || !index.exists());
        index_bytes
    }

    /// A `cache` command that ends with this status, and says these parts.
    fn fail(&self, command: Command, args: &[&str], status: i32, parts: &[&str]) {
        let (output, said) = self.cache_command(command, args);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        says(&said, parts);
    }
}

#[track_caller]
fn says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

#[rstest]
#[case::that_never_had_room("64k")]
#[case::that_fills_up("2m")]
fn a_full_disk(#[case] size: &str) {
    peer!(root);
    let place = Place::new();
    let _disk = Mounted::over(&place.cache(), &["-t", "tmpfs", "-o", &format!("size={size}"), "none"]);
    place.build_without_cache(&mut place.command(), &["No space left on device"]);
    place.fill_up();
    place.build_without_cache(&mut place.command(), &["No space left on device"]);
    place.run(&["ls"]);
    place.run(&["gc", "--dry-run"]);
    place.collect_all_as_planned();
    assert!(!place.cache().join("tmp/fill").exists());
    assert_eq!(files_below(&place.cache().join("blobs")), Vec::<PathBuf>::new());
    place.run(&["verify"]);
}

#[test]
fn a_disk_that_is_full_when_there_is_an_index() {
    peer!(root);
    let place = Place::new();
    let _disk = Mounted::over(&place.cache(), &["-t", "tmpfs", "-o", "size=8m", "none"]);
    place.build(&mut place.command());
    place.fill_up();
    assert!(place.collect_all_as_planned() > 0, "the index goes, and that is said");
    place.build(&mut place.command());
    place.build_from_cache();
    place.run(&["verify"]);
}

#[test]
fn a_file_system_that_is_read_only() {
    peer!(root);
    let place = Place::new();
    place.build(&mut place.command());
    let before = files_below(&place.cache());
    let cache = place.cache();
    let _mounted = Mounted::over(&cache, &["--bind", &cache.display().to_string()]);
    let status = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&cache).status().unwrap();
    assert!(status.success());
    place.build_without_cache(&mut place.command(), &["Read-only file system", "LAYERHOLD_CACHE="]);
    assert!(place.run(&["ls"]).contains("place"));
    assert_eq!(place.run(&["ls", "--layers"]).lines().count(), 6);
    place.run(&["du"]);
    place.run(&["verify"]);
    place.run(&["gc", "--dry-run"]);
    for args in [&["gc"][..], &["clear"], &["pin", "place"]] {
        place.fail(place.command(), args, 1, &["Read-only file system", "hint: ", "LAYERHOLD_CACHE="]);
    }
    assert_eq!(files_below(&cache), before);
}

#[test]
fn a_cache_of_another_user() {
    peer!(root);
    let place = Place::new();
    place.build(&mut place.command());
    let before = files_below(&place.cache());
    // The image goes to a directory that the other user may write to; only the cache is not theirs.
    place.build_without_cache(&mut place.command_of_nobody(), &["Permission denied", "LAYERHOLD_CACHE="]);
    for args in [&["ls"][..], &["gc"], &["clear"], &["verify"]] {
        let parts = ["✘ ERROR: ", "[SANDBOX]/cache", "Permission denied", "hint: ", "LAYERHOLD_CACHE="];
        place.fail(place.command_of_nobody(), args, 1, &parts);
    }
    assert_eq!(files_below(&place.cache()), before);
    place.build_from_cache();
}

#[test]
fn no_home_and_no_cache_directory() {
    let place = Place::new();
    let homeless = || {
        let mut command = place.command();
        command.env_remove("HOME").env_remove("LAYERHOLD_CACHE");
        command
    };
    let missing = "neither LAYERHOLD_CACHE, XDG_CACHE_HOME nor HOME is set";
    place.build_without_cache(&mut homeless(), &[missing]);
    for args in [&["ls"][..], &["path"], &["gc"]] {
        place.fail(homeless(), args, 1, &[missing, "hint: ", "LAYERHOLD_CACHE=/path"]);
    }
}

#[rstest]
#[case::older("layerhold layer store, format 0\n")]
#[case::newer("layerhold layer store, format 2\n")]
#[case::garbage("\u{0}\u{1}")]
fn a_cache_of_another_version_is_left_alone(#[case] format: &str) {
    let place = Place::new();
    place.build(&mut place.command());
    fs::write(place.cache().join("layerhold-store"), format).unwrap();
    let before = files_below(&place.cache());
    place.build_without_cache(&mut place.command(), &["is not a layer store of this version"]);
    for args in [&["ls"][..], &["gc", "--max-size", "0"], &["clear"], &["verify", "--repair"]] {
        place.fail(
            place.command(),
            args,
            1,
            &["is not a layer store of this version", "hint: ", "rm -r '[SANDBOX]/cache'"],
        );
    }
    assert_eq!(files_below(&place.cache()), before);
}

#[test]
fn a_directory_that_is_somebody_elses_is_left_alone() {
    let place = Place::new();
    fs::write(place.cache().join("thesis.txt"), "years of work").unwrap();
    place.build_without_cache(&mut place.command(), &["it holds", "thesis.txt"]);
    place.fail(place.command(), &["clear"], 1, &["is not a layer store", "hint: "]);
    assert_eq!(files_below(&place.cache()), [place.cache().join("thesis.txt")]);
}

fn truncate(index: &Path) {
    let db = fs::read(index.join("db")).unwrap();
    fs::write(index.join("db"), &db[..db.len() / 2]).unwrap();
}

fn fill_with_garbage(index: &Path) {
    for file in ["db", "conf"] {
        let length = fs::metadata(index.join(file)).unwrap().len();
        fs::write(index.join(file), vec![0xa5; usize::try_from(length).unwrap()]).unwrap();
    }
}

fn put_a_file_in_its_place(index: &Path) {
    fs::remove_dir_all(index).unwrap();
    fs::write(index, "garbage").unwrap();
}

#[rstest]
#[case::deleted(|index: &Path| fs::remove_dir_all(index).unwrap())]
#[case::truncated(truncate)]
#[case::garbage(fill_with_garbage)]
#[case::a_file(put_a_file_in_its_place)]
fn a_damaged_index_costs_nothing(#[case] damage: fn(&Path), #[values("index", "memory")] database: &str) {
    let place = Place::new();
    place.build(&mut place.command());
    let layers = place.run(&["ls", "--layers"]);
    if database == "memory" && !place.cache().join("memory").exists() {
        // Files that were made just now are not remembered yet.
        fs::create_dir(place.cache().join("memory")).unwrap();
        for file in ["db", "conf"] {
            fs::copy(place.cache().join("index").join(file), place.cache().join("memory").join(file)).unwrap();
        }
    }
    damage(&place.cache().join(database));
    assert_eq!(place.run(&["ls", "--layers"]), layers);
    damage_again_and_build(&place, damage, database);
    assert_eq!(place.run(&["ls", "--layers"]), layers);
    place.run(&["verify"]);
    place.run(&["gc"]);
    assert_eq!(files_below(&place.cache().join("tmp")), Vec::<PathBuf>::new());
}

fn damage_again_and_build(place: &Place, damage: fn(&Path), database: &str) {
    if place.cache().join(database).is_dir() {
        damage(&place.cache().join(database));
    }
    place.build_from_cache();
}

#[test]
fn an_index_that_a_stranger_has_open() {
    let place = Place::new();
    place.build(&mut place.command());
    let layers = place.run(&["ls", "--layers"]);
    let db = fs::File::open(place.cache().join("index/db")).unwrap();
    rustix::fs::flock(&db, FlockOperation::LockExclusive).unwrap();
    // A build that adds nothing does not need it.
    place.build_from_cache();
    // As it is while somebody changes the index.
    fs::remove_file(place.cache().join("index/bytes")).unwrap();
    // Found in the records all the same; only that the image was made again is not noted.
    place.build_without_cache(&mut place.command(), &["index/db", "fuser -v"]);
    assert_eq!(place.run(&["ls", "--layers"]), layers);
    drop(db);
    place.build_from_cache();
}

#[test]
fn directories_that_somebody_tidied_away() {
    let place = Place::new();
    place.build(&mut place.command());
    for directory in ["tmp", "claims", "leases"] {
        fs::remove_dir_all(place.cache().join(directory)).unwrap();
    }
    place.build_from_cache();
    fs::remove_dir_all(place.cache().join("records")).unwrap();
    place.build(&mut place.command());
    place.build_from_cache();
    place.run(&["gc"]);
    place.run(&["verify"]);
}

#[test]
fn a_record_without_its_blob_and_a_blob_without_its_record() {
    let place = Place::new();
    place.build(&mut place.command());
    let blobs = files_below(&place.cache().join("blobs"));
    fs::remove_file(&blobs[0]).unwrap();
    place.fail(place.command(), &["verify"], 3, &["1 damaged", "hint: ", "--repair"]);
    place.run(&["verify", "--repair"]);
    place.run(&["verify"]);
    place.build(&mut place.command());
    place.build_from_cache();

    let records = files_below(&place.cache().join("records"));
    records.iter().for_each(|record| fs::remove_file(record).unwrap());
    place.run(&["gc"]);
    assert_eq!(files_below(&place.cache().join("blobs")), Vec::<PathBuf>::new());
    place.build(&mut place.command());
    assert_eq!(files_below(&place.cache().join("blobs")), blobs);
}

#[test]
fn records_that_the_disk_does_not_give_back() {
    let place = Place::new();
    place.build(&mut place.command());
    let unreadable = |directory: &str| {
        let record = files_below(&place.cache().join(directory)).remove(0);
        fs::remove_file(&record).unwrap();
        // The memory of a process begins at no address that can be read.
        symlink("/proc/self/mem", &record).unwrap();
        assert_eq!(fs::read(&record).unwrap_err().raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    };
    for directory in ["records", "images"] {
        unreadable(directory);
        place.fail(place.command(), &["verify"], 3, &["damaged", "--repair"]);
        place.build(&mut place.command());
        place.build_from_cache();
        place.run(&["verify"]);
        unreadable(directory);
        place.run(&["verify", "--repair"]);
        place.run(&["verify"]);
        place.build(&mut place.command());
    }
    place.build_from_cache();
}

#[test]
fn a_blob_that_the_disk_does_not_give_back() {
    peer!(root);
    let place = Place::new();
    place.build(&mut place.command());
    let blob = files_below(&place.cache().join("blobs")).remove(0);
    let memory = format!("/proc/{}/mem", std::process::id());
    let mounted = Mounted::over(&blob, &["--bind", &memory]);
    place.fail(place.command(), &["verify"], 3, &["1 damaged", "--repair"]);
    place.build(&mut place.command());
    drop(mounted);
    place.build(&mut place.command());
    place.build_from_cache();
}

/// On many cores many layers are packed at once, each with a directory and its parents open; macOS allows 256 files.
#[test]
fn a_low_limit_of_open_files() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let packages: Vec<_> = (0..64)
        .map(|at| {
            let deep = format!("p{at}/{}file", "directory/".repeat(10));
            (format!("p{at}"), store.add(&format!("p{at}-1"), &Tree::new().file(deep, vec![at; 1 << 20])))
        })
        .collect();
    let installs: Vec<_> = packages.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect();
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "deep", &installs, "");
    for compression in ["none", "zstd:1"] {
        let mut command = Command::new(find_program("bash").unwrap());
        command.args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_layerhold")]);
        command.args(["containerize", "-f", "image", "--compression", compression, "--store"]).arg(store.root());
        command.arg("-d").arg(environment.dir()).current_dir(sandbox.path("work"));
        command.env_clear().envs(sandbox.environment()).env("RAYON_NUM_THREADS", "16");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
