//! Images delivered to real runtimes, and archives and layouts read by real tools.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use layerhold::blob::{DiffId, Digest};
use layerhold::delivery::{
    BlobError, BlobProvider, Delivered, DeliveryError, FileSink, LayoutSink, Runtime, RuntimeClient, Sink, deliver,
};
use layerhold::event::Silent;
use layerhold::image::{Image, ImageName, ImageSpec, Images, Layer, LayerMediaType};
use layerhold::outlet::Outlet;

use crate::peers::skip_this;

/// Blobs in memory.
#[derive(Default)]
pub(crate) struct Blobs(BTreeMap<Digest, Vec<u8>>);

impl BlobProvider for Blobs {
    fn copy_to(&self, layer: &Layer, out: &mut dyn Outlet) -> Result<(), BlobError> {
        let blob = self.0.get(&layer.digest).ok_or_else(|| BlobError::Source("no such blob".into()))?;
        out.write_all(blob).map_err(BlobError::Write)
    }
}

impl Blobs {
    /// A layer of these files, each with its mode and contents.
    fn layer(&mut self, media_type: LayerMediaType, files: &[(&str, u32, &[u8])]) -> Layer {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, mode, contents) in files {
            let mut header = tar::Header::new_ustar();
            header.set_mode(*mode);
            header.set_size(contents.len() as u64);
            header.set_mtime(1);
            builder.append_data(&mut header, path, *contents).unwrap();
        }
        let tar = builder.into_inner().unwrap();
        let diff_id = DiffId(Digest::of(&tar));
        let blob = match media_type {
            LayerMediaType::Tar => tar,
            LayerMediaType::TarGzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar).unwrap();
                encoder.finish().unwrap()
            }
            LayerMediaType::TarZstd => zstd::encode_all(tar.as_slice(), 1).unwrap(),
        };
        let layer = Layer {
            digest: Digest::of(&blob),
            diff_id,
            size: blob.len() as u64,
            media_type,
            store_paths: vec![],
            reused: false,
        };
        self.0.insert(layer.digest, blob);
        layer
    }

    /// An image that prints `says`: busybox below, a data layer, the words on top.
    pub(crate) fn image(&mut self, name: &str, tag: &str, media_type: LayerMediaType, says: &str) -> Image {
        let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
        let layers = vec![
            self.layer(media_type, &[("bin/busybox", 0o555, &busybox)]),
            self.layer(media_type, &[("data/middle", 0o444, &[b'x'; 100_000])]),
            self.layer(media_type, &[("says", 0o444, says.as_bytes())]),
        ];
        let mut spec = ImageSpec::new(ImageName::new(name, tag).unwrap(), "amd64");
        spec.entrypoint = ["/bin/busybox", "cat", "/says"].map(str::to_owned).into();
        spec.env = vec!["GREETING=hello".to_owned()];
        spec.labels = [("from".to_owned(), "layerhold".to_owned())].into();
        Image::assemble(spec, layers).unwrap()
    }

    pub(crate) fn deliver(&self, image: &Image, sink: &mut dyn Sink) -> Result<Delivered, DeliveryError> {
        deliver(&Images::from(image.clone()), self, sink, &Silent)
    }
}

/// Whether these programs are there; else the test is skipped.
pub(crate) fn have(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &&str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    let absent: Vec<&str> = programs.iter().copied().filter(|program| !is_there(program)).collect();
    if !absent.is_empty() {
        skip_this(&absent.join(" and no "));
    }
    absent.is_empty()
}

fn accepts(client: &RuntimeClient, media_type: LayerMediaType) -> Result<(), DeliveryError> {
    client.ask(&ImageName::new("hello", "v1").unwrap(), media_type)?.accepts(&Silent)
}

pub(crate) fn ok(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}

fn run(program: &str, arguments: &[&str]) -> String {
    ok(Command::new(program).args(arguments).output().unwrap())
}

/// A Docker daemon of the test's own.
pub(crate) struct Dockerd {
    process: Child,
    dir: tempfile::TempDir,
}

impl Dockerd {
    /// One that keeps images in its classic store, as the tests want it; else the test is skipped.
    pub(crate) fn classic() -> Option<Self> {
        if !have(&["docker", "dockerd"]) {
            return None;
        }
        let daemon = Self::start();
        let is_classic = !ok(daemon.docker(&["info", "--format", "{{json .DriverStatus}}"])).contains("containerd");
        if !is_classic {
            skip_this("Docker with its classic store");
        }
        is_classic.then_some(daemon)
    }

    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("lh-").tempdir_in("/tmp").unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let log = fs::File::create(at("log")).unwrap();
        let process = Command::new("dockerd")
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["--host", &format!("unix://{}", at("sock")), "--bridge", "none", "--iptables=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Self { process, dir };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !daemon.docker(&["version"]).status.success() {
            let log = || fs::read_to_string(daemon.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "dockerd does not answer: {}", log());
            assert!(daemon.process.try_wait().unwrap().is_none(), "dockerd ended: {}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
        daemon
    }

    fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("sock").display())
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> Output {
        Command::new("docker").args(arguments).env("DOCKER_HOST", self.host()).output().unwrap()
    }

    pub(crate) fn client(&self) -> RuntimeClient {
        RuntimeClient::find(Runtime::Docker, std::env::var_os("PATH").as_deref())
            .unwrap()
            .with_env("DOCKER_HOST", self.host())
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let pid = self.process.id().to_string();
        let _ = Command::new("kill").arg(&pid).status();
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Podman with storage and configuration of the test's own.
pub(crate) struct Podman {
    dir: tempfile::TempDir,
}

impl Podman {
    pub(crate) fn new() -> Self {
        // Podman 4 names an image pulled from a layout after the directory: it must be lower-case.
        let name = format!("lh-podman-{}", std::process::id());
        let dir = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir_in("/tmp").unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(
            at("containers.conf"),
            "[containers]\nnetns = \"none\"\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\nruntime = \"runc\"\n",
        )
        .unwrap();
        fs::write(
            at("storage.conf"),
            format!("[storage]\ndriver = \"vfs\"\ngraphroot = {:?}\nrunroot = {:?}\n", at("root"), at("run")),
        )
        .unwrap();
        Self { dir }
    }

    fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [
            ("CONTAINERS_CONF", self.dir.path().join("containers.conf")),
            ("CONTAINERS_STORAGE_CONF", self.dir.path().join("storage.conf")),
        ]
    }

    pub(crate) fn podman(&self, arguments: &[&str]) -> Output {
        Command::new("podman").args(arguments).envs(self.environment()).output().unwrap()
    }

    pub(crate) fn client(&self) -> RuntimeClient {
        let client = RuntimeClient::find(Runtime::Podman, std::env::var_os("PATH").as_deref()).unwrap();
        self.environment().into_iter().fold(client, |client, (name, value)| client.with_env(name, value))
    }
}

fn archive_of(blobs: &Blobs, image: &Image, dir: &Path) -> String {
    let path = dir.join("image.tar");
    blobs.deliver(image, &mut FileSink::new(&path)).unwrap();
    path.display().to_string()
}

const LAYERS: [LayerMediaType; 2] = [LayerMediaType::Tar, LayerMediaType::TarGzip];

#[test]
fn docker_gets_what_it_lacks_and_nothing_else() {
    let Some(daemon) = Dockerd::classic() else { return };
    let client = daemon.client();
    let mut blobs = Blobs::default();
    let first = blobs.image("hello", "v1", LayerMediaType::Tar, "first");
    let sizes = |image: &Image| image.layers.iter().map(|layer| layer.size).collect::<Vec<_>>();

    let sent = blobs.deliver(&first, &mut client.sink(&Silent)).unwrap();
    assert_eq!((sent.layers_sent, sent.bytes_sent), (3, sizes(&first).iter().sum()));
    assert_eq!(ok(daemon.docker(&["run", "--rm", "--network", "none", "hello:v1"])), "first");
    let id = ok(daemon.docker(&["image", "inspect", "--format", "{{.Id}}", "hello:v1"]));
    assert_eq!(id, first.config_digest.to_string());

    // From here on the blobs that must not be asked for are gone.
    let nothing = Blobs::default();
    let again = nothing.deliver(&first, &mut client.sink(&Silent)).unwrap();
    assert_eq!((again.layers_sent, again.layers_held), (0, 3));

    // Another name for the same image.
    let renamed = blobs.image("other", "v1", LayerMediaType::Tar, "first");
    assert_eq!(nothing.deliver(&renamed, &mut client.sink(&Silent)).unwrap().layers_sent, 0);
    assert_eq!(ok(daemon.docker(&["image", "inspect", "--format", "{{.Id}}", "other:v1"])), id);

    // Another layer on top: it alone is sent, and the tag moves.
    let second = blobs.image("hello", "v1", LayerMediaType::Tar, "second");
    let top = Blobs([(second.layers[2].digest, blobs.0[&second.layers[2].digest].clone())].into());
    let sent = top.deliver(&second, &mut client.sink(&Silent)).unwrap();
    assert_eq!((sent.layers_sent, sent.layers_held), (1, 2));
    assert_eq!(ok(daemon.docker(&["run", "--rm", "--network", "none", "hello:v1"])), "second");

    // Compressed layers have the same diff IDs, so only the top one is sent.
    let gzip = blobs.image("hello", "gzip", LayerMediaType::TarGzip, "third");
    assert_eq!(blobs.deliver(&gzip, &mut client.sink(&Silent)).unwrap().layers_sent, 1);
    assert_eq!(ok(daemon.docker(&["run", "--rm", "--network", "none", "hello:gzip"])), "third");

    // What Docker 20.10 cannot read is known before anything is done.
    let version = ok(daemon.docker(&["version", "--format", "{{.Server.Version}}"]));
    let old = version.split('.').next().unwrap().parse::<u32>().unwrap() < 23;
    accepts(&client, LayerMediaType::TarGzip).unwrap();
    match accepts(&client, LayerMediaType::TarZstd) {
        Err(error) => {
            assert!(old, "{error}");
            assert_eq!(error.to_string(), format!("Docker {version} cannot load layers compressed with zstd"));
            assert!(error.hint().unwrap().contains("--compression gzip"));
        }
        Ok(()) => assert!(!old),
    }

    // As many layers as Docker takes, and one more.
    let many = |blobs: &mut Blobs, count: usize| {
        let layers =
            (0..count).map(|n| blobs.layer(LayerMediaType::Tar, &[(&format!("file-{n}"), 0o444, b"")])).collect();
        let spec = ImageSpec::new(ImageName::new(&format!("many{count}"), "latest").unwrap(), "amd64");
        Image::assemble(spec, layers).unwrap()
    };
    let most = many(&mut blobs, Runtime::Docker.max_layers());
    blobs.deliver(&most, &mut client.sink(&Silent)).unwrap();
    let more = many(&mut blobs, Runtime::Docker.max_layers() + 1);
    let error = blobs.deliver(&more, &mut client.sink(&Silent)).unwrap_err();
    assert!(error.to_string().contains("max depth exceeded"), "{error}");
    assert!(error.hint().unwrap().contains("--max-layers"), "{:?}", error.hint());

    // A layer that is not what it promises: nothing stays behind.
    let images = || {
        // Docker's order among images of one age is its own.
        let list = ok(daemon.docker(&["image", "ls", "--all", "--no-trunc"]));
        list.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let before = images();
    let broken = blobs.image("broken", "latest", LayerMediaType::Tar, "never seen");
    let error = nothing.deliver(&broken, &mut client.sink(&Silent)).unwrap_err();
    assert!(matches!(error, DeliveryError::Layer { .. }), "{error}");
    let mut wrong = Blobs(blobs.0.clone());
    let top = &broken.layers[2];
    wrong.0.insert(top.digest, vec![0; top.size as usize]);
    let error = wrong.deliver(&broken, &mut client.sink(&Silent)).unwrap_err();
    assert!(error.to_string().starts_with("'docker load' failed with exit status 1: "), "{error}");
    assert_eq!(images(), before);

    // The archive in a file is the same to Docker.
    for media_type in LAYERS {
        let image = blobs.image("fromfile", "v2", media_type, "from a file");
        let archive = archive_of(&blobs, &image, daemon.dir.path());
        ok(daemon.docker(&["load", "-i", &archive]));
        assert_eq!(ok(daemon.docker(&["run", "--rm", "--network", "none", "fromfile:v2"])), "from a file");
        assert_eq!(
            ok(daemon.docker(&["image", "inspect", "--format", "{{.Id}}", "fromfile:v2"])),
            image.config_digest.to_string()
        );
    }
}

#[test]
fn an_absent_docker_daemon_is_named_with_a_hint() {
    if !have(&["docker"]) {
        return;
    }
    let client = RuntimeClient::find(Runtime::Docker, std::env::var_os("PATH").as_deref())
        .unwrap()
        .with_env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    let mut blobs = Blobs::default();
    let image = blobs.image("hello", "v1", LayerMediaType::Tar, "first");
    for error in [
        accepts(&client, LayerMediaType::Tar).unwrap_err(),
        blobs.deliver(&image, &mut client.sink(&Silent)).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("failed with exit status 1") && text.contains("/nonexistent/docker.sock"), "{text}");
        assert!(error.hint().unwrap().contains("is the daemon running?"), "{:?}", error.hint());
    }
}

#[test]
fn podman_gets_what_it_lacks_and_nothing_else() {
    if !have(&["podman", "runc"]) {
        return;
    }
    let podman = Podman::new();
    let client = podman.client();
    let mut blobs = Blobs::default();
    let nothing = Blobs::default();
    accepts(&client, LayerMediaType::TarZstd).unwrap();

    for (media_type, tag) in
        [(LayerMediaType::Tar, "tar"), (LayerMediaType::TarGzip, "gzip"), (LayerMediaType::TarZstd, "zstd")]
    {
        let first = blobs.image("hello", tag, media_type, &format!("first {tag}"));
        blobs.deliver(&first, &mut client.sink(&Silent)).unwrap();
        let name = format!("hello:{tag}");
        assert_eq!(ok(podman.podman(&["run", "--rm", &name])), format!("first {tag}"));
        assert_eq!(ok(podman.podman(&["image", "inspect", "--format", "{{.Id}}", &name])), first.config_digest.hex());

        let again = nothing.deliver(&first, &mut client.sink(&Silent)).unwrap();
        assert_eq!((again.layers_sent, again.layers_held), (0, 3), "{tag}");

        let renamed = blobs.image("other", tag, media_type, &format!("first {tag}"));
        assert_eq!(nothing.deliver(&renamed, &mut client.sink(&Silent)).unwrap().layers_sent, 0, "{tag}");

        let second = blobs.image("hello", tag, media_type, &format!("second {tag}"));
        let sent = blobs.deliver(&second, &mut client.sink(&Silent)).unwrap();
        assert_eq!(ok(podman.podman(&["run", "--rm", &name])), format!("second {tag}"));
        assert_eq!((sent.layers_sent, sent.layers_held), (1, 2), "{tag}");
    }

    let before = ok(podman.podman(&["image", "ls", "--no-trunc"]));
    let broken = blobs.image("broken", "latest", LayerMediaType::Tar, "never seen");
    let error = nothing.deliver(&broken, &mut client.sink(&Silent)).unwrap_err();
    assert!(matches!(error, DeliveryError::Layer { .. }), "{error}");
    assert_eq!(ok(podman.podman(&["image", "ls", "--no-trunc"])), before);

    // The archive in a file, and a layout, are the same to Podman.
    for media_type in LAYERS {
        let image = blobs.image("fromfile", "v2", media_type, "from a file");
        let archive = archive_of(&blobs, &image, podman.dir.path());
        ok(podman.podman(&["load", "-i", &archive]));
        assert_eq!(ok(podman.podman(&["run", "--rm", "fromfile:v2"])), "from a file");

        let image = blobs.image("fromlayout", "v3", media_type, "from a layout");
        let layout = podman.dir.path().join("layout");
        blobs.deliver(&image, &mut LayoutSink::new(&layout, &Silent)).unwrap();
        let id = ok(podman.podman(&["pull", "-q", &format!("oci:{}:fromlayout:v3", layout.display())]));
        assert_eq!(id, image.config_digest.hex());
        assert_eq!(ok(podman.podman(&["run", "--rm", &id])), "from a layout");
    }

    // A tag that OCI's grammar of reference names does not have.
    let image = blobs.image("hello", "_v1__2.", LayerMediaType::Tar, "odd tag");
    blobs.deliver(&image, &mut client.sink(&Silent)).unwrap();
    assert_eq!(ok(podman.podman(&["run", "--rm", "hello:_v1__2."])), "odd tag");
    // An image of the same short name in another registry is not in the way.
    ok(podman.podman(&["tag", &image.config_digest.hex(), "docker.io/library/hello:shadow"]));
    let image = blobs.image("hello", "shadow", LayerMediaType::Tar, "from the shadow");
    blobs.deliver(&image, &mut client.sink(&Silent)).unwrap();
    assert_eq!(ok(podman.podman(&["run", "--rm", "hello:shadow"])), "from the shadow");
}

#[test]
fn skopeo_reads_the_archive_as_docker_and_as_oci_archive() {
    if !have(&["skopeo"]) {
        return;
    }
    for media_type in [LayerMediaType::Tar, LayerMediaType::TarGzip, LayerMediaType::TarZstd] {
        let dir = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::default();
        let image = blobs.image("hello", "v1", media_type, "hello");
        let archive = archive_of(&blobs, &image, dir.path());
        for source in [
            format!("docker-archive:{archive}"),
            format!("docker-archive:{archive}:hello:v1"),
            format!("oci-archive:{archive}"),
            format!("oci-archive:{archive}:v1"),
        ] {
            let config = run("skopeo", &["inspect", "--config", "--raw", &source]);
            assert_eq!(config.as_bytes(), image.config, "{source}");
            let copy = dir.path().join("copy");
            let _ = fs::remove_dir_all(&copy);
            run("skopeo", &["copy", "--insecure-policy", &source, &format!("dir:{}", copy.display())]);
            for layer in &image.layers {
                // skopeo's docker-archive hands layers over uncompressed.
                let whole =
                    fs::read(copy.join(layer.digest.hex())).or_else(|_| fs::read(copy.join(layer.diff_id.0.hex())));
                assert!(whole.is_ok(), "{source}: {}", layer.digest);
            }
        }
    }
}

#[test]
fn skopeo_and_umoci_read_the_layout() {
    if !have(&["skopeo", "umoci"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let mut blobs = Blobs::default();
    let mut images = Vec::new();
    for (name, media_type) in [("a_b.c", LayerMediaType::Tar), ("hello", LayerMediaType::TarGzip)] {
        let image = blobs.image(name, "v1", media_type, name);
        blobs.deliver(&image, &mut LayoutSink::new(&layout, &Silent)).unwrap();
        images.push(image);
    }
    for image in &images {
        let source = format!("oci:{}:{}", layout.display(), image.name);
        assert_eq!(run("skopeo", &["inspect", "--config", "--raw", &source]).as_bytes(), image.config);
        assert_eq!(run("skopeo", &["inspect", "--raw", &source]).as_bytes(), image.manifest);
        let bundle = dir.path().join(image.name.repository());
        let bundle = bundle.to_str().unwrap();
        run("umoci", &["unpack", "--image", &format!("{}:{}", layout.display(), image.name), bundle]);
        let says = fs::read_to_string(Path::new(bundle).join("rootfs/says")).unwrap();
        assert_eq!(says, image.name.repository());
    }
    // umoci's collection finds nothing to throw away: every blob is referred to.
    let blobs_in = || fs::read_dir(layout.join("blobs/sha256")).unwrap().count();
    let before = blobs_in();
    run("umoci", &["gc", "--layout", layout.to_str().unwrap()]);
    assert_eq!(blobs_in(), before);
}

/// A small file system of the test's own.
struct SmallDisk(tempfile::TempDir);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    let disk = SmallDisk(tempfile::tempdir().unwrap());
    let dir = disk.0.path();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(dir).output().unwrap();
    if !mount.status.success() {
        return skip_this("right to mount");
    }
    let mut blobs = Blobs::default();
    // busybox alone is larger.
    let image = blobs.image("hello", "v1", LayerMediaType::Tar, "hello");
    let file = dir.join("image.tar");
    fs::write(&file, "old").unwrap();
    let error = blobs.deliver(&image, &mut FileSink::new(&file)).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot write '{}'", file.display()));
    assert!(error.hint().unwrap().starts_with("free some space"), "{:?}", error.hint());
    assert_eq!(fs::read(&file).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "the temporary file is gone");

    let layout = dir.join("layout");
    let error = blobs.deliver(&image, &mut LayoutSink::new(&layout, &Silent)).unwrap_err();
    assert!(error.hint().unwrap().starts_with("free some space"), "{error}");
    assert!(!layout.join("index.json").exists());
    assert_eq!(fs::read_dir(layout.join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn umoci_reads_the_unpacked_archive() {
    if !have(&["umoci"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut blobs = Blobs::default();
    let image = blobs.image("hello", "v1", LayerMediaType::Tar, "hello");
    let archive = archive_of(&blobs, &image, dir.path());
    let layout = dir.path().join("layout");
    fs::create_dir(&layout).unwrap();
    run("tar", &["-xf", &archive, "-C", layout.to_str().unwrap()]);
    let bundle = dir.path().join("bundle");
    run("umoci", &["unpack", "--image", &format!("{}:v1", layout.display()), bundle.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(bundle.join("rootfs/says")).unwrap(), "hello");
}

#[test]
fn containerd_imports_the_archive() {
    if !have(&["containerd", "ctr"]) {
        return;
    }
    let dir = tempfile::Builder::new().prefix("lh-").tempdir_in("/tmp").unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::write(at("config.toml"), "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n").unwrap();
    let mut containerd = Command::new("containerd")
        .args([
            "--root",
            &at("root"),
            "--state",
            &at("state"),
            "--address",
            &at("sock"),
            "--config",
            &at("config.toml"),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(at("log")).unwrap())
        .spawn()
        .unwrap();
    let ctr =
        |arguments: &[&str]| Command::new("ctr").args(["--address", &at("sock")]).args(arguments).output().unwrap();
    let imported = std::panic::catch_unwind(|| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !ctr(&["version"]).status.success() {
            assert!(
                Instant::now() < deadline,
                "containerd does not answer: {}",
                fs::read_to_string(at("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        for media_type in [LayerMediaType::Tar, LayerMediaType::TarGzip, LayerMediaType::TarZstd] {
            let mut blobs = Blobs::default();
            let image = blobs.image("hello", "v1", media_type, "hello");
            let archive = archive_of(&blobs, &image, dir.path());
            ok(ctr(&["images", "import", "--no-unpack", &archive]));
            let list = ok(ctr(&["images", "ls"]));
            let line = list.lines().find(|line| line.starts_with("docker.io/library/hello:v1 ")).expect(&list);
            assert!(line.contains(&image.manifest_digest.to_string()), "{list}");
            assert_eq!(list.lines().count(), 2, "one name, no other: {list}");
            let content = ok(ctr(&["content", "ls", "-q"]));
            for digest in image.layers.iter().map(|layer| layer.digest).chain([image.config_digest]) {
                assert!(content.contains(&digest.to_string()), "{content}");
            }
        }
    });
    let _ = Command::new("kill").arg(containerd.id().to_string()).status();
    containerd.wait().unwrap();
    imported.unwrap();
}
