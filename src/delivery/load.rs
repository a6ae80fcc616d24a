//! A runtime as a sink: asked what it has, given the rest, and asked again what it made of it.

use std::collections::BTreeSet;
use std::io::Write;

use super::child::Child;
use super::runtime::parse_id;
use super::{
    Archive, ArchiveNames, DeliveryError, Finish, Missing, Past, Runtime, RuntimeClient, Sink, docker, podman,
};
use crate::blob::Digest;
use crate::event::Observer;
use crate::image::Image;

/// An image is what was sent if its ID is the digest of the config (Docker's classic store, Podman), or of the manifest
/// (Docker with containerd's image store).
fn is_image(image: &Image, id: &Digest) -> bool {
    *id == image.config_digest || *id == image.manifest_digest
}

/// The image's name in the runtime.
fn name_in(runtime: Runtime, image: &Image) -> String {
    match runtime {
        Runtime::Docker => image.name.to_string(),
        Runtime::Podman => image.name.local_in_full(),
    }
}

/// Whether a name in the runtime's list is the image's.
fn is_name(runtime: Runtime, image: &Image, listed: &str) -> bool {
    match runtime {
        // Docker lists short names; Podman in Docker's place lists full ones.
        Runtime::Docker => [image.name.to_string(), image.name.familiar_in_full(), image.name.local_in_full()]
            .iter()
            .any(|name| name == listed),
        Runtime::Podman => listed == image.name.local_in_full(),
    }
}

/// The names in the archive that the runtime gets.
fn archive_names(runtime: Runtime, image: &Image) -> ArchiveNames {
    match runtime {
        Runtime::Docker => ArchiveNames::portable(image),
        Runtime::Podman => ArchiveNames::local(image),
    }
}

/// Gives a runtime the image.
///
/// - An image that the runtime has under its name is left alone; one that it has under another name gets the name.
/// - Otherwise an archive goes into `docker load` or `podman load`. Layers that the runtime's other images have are
///   left out of it where the runtime can do without them; if it then cannot, everything is sent.
/// - Afterwards the runtime is asked whether the name stands for the image that was sent.
pub struct RuntimeSink<'a> {
    client: RuntimeClient,
    observer: &'a dyn Observer,
    there: There,
    /// The load that is under way.
    load: Option<Load>,
    /// Whether layers are left out of the archive because the runtime has them.
    partial: bool,
}

struct Load {
    child: Child,
    archive: Archive,
}

/// What the runtime has of the image.
#[derive(Clone, Copy)]
enum There {
    /// All of it, under its name.
    Named,
    /// All of it, under other names only.
    Unnamed(Digest),
    /// Not all of it.
    Absent,
}

/// The command that takes an archive from its standard input.
const LOAD: [&str; 2] = ["load", "--quiet"];

impl<'a> RuntimeSink<'a> {
    /// A sink on the runtime. Nothing is asked yet.
    pub fn new(client: RuntimeClient, observer: &'a dyn Observer) -> Self {
        Self { client, observer, there: There::Absent, load: None, partial: false }
    }

    /// Lends the running load's pipe and archive; where the pipe breaks, the child says why.
    fn feed(
        &mut self,
        feed: impl FnOnce(&mut Archive, &mut dyn Write) -> Result<(), DeliveryError>,
    ) -> Result<Load, DeliveryError> {
        let mut load = match self.load.take() {
            Some(load) => load,
            None => Load { child: self.client.spawn(&LOAD, true)?, archive: Archive::new() },
        };
        let Load { child, archive } = &mut load;
        match child.feed(self.observer, |pipe| feed(archive, pipe)) {
            Ok(()) => Ok(load),
            Err(_) if self.observer.cancelled() => Err(DeliveryError::Interrupted),
            Err(DeliveryError::Stream(_)) => {
                let ended = self.client.wait(load.child, self.observer)?;
                Err(self.client.failure(&LOAD, &ended))
            }
            // The child is killed.
            Err(error) => Err(error),
        }
    }

    /// Ends the archive and sees the load through.
    fn load(&mut self, image: &Image) -> Result<(), DeliveryError> {
        let names = archive_names(self.client.runtime(), image);
        let load =
            self.feed(|archive, pipe| std::mem::take(archive).finish(pipe, image, &names, DeliveryError::Stream))?;
        let ended = self.client.wait(load.child, self.observer)?;
        if ended.status.success() { Ok(()) } else { Err(self.client.failure(&LOAD, &ended)) }
    }

    /// Fails unless the name stands for the image.
    fn verify(&self, image: &Image) -> Result<(), DeliveryError> {
        let name = name_in(self.client.runtime(), image);
        let answer = self.client.run(&["image", "inspect", "--format", "{{.Id}}", &name], self.observer)?;
        let found = answer.trim().to_owned();
        match parse_id(&found) {
            Some(id) if is_image(image, &id) => Ok(()),
            _ => Err(DeliveryError::WrongImage {
                runtime: self.client.runtime(),
                name,
                expected: image.config_digest,
                found,
            }),
        }
    }
}

impl Sink for RuntimeSink<'_> {
    fn has(&mut self, image: &Image, _: &dyn Past) -> Result<BTreeSet<Digest>, DeliveryError> {
        let images = self.client.images(self.observer)?;
        let mut same = images.iter().filter(|listed| is_image(image, &listed.id));
        self.there =
            match (same.clone().find(|listed| is_name(self.client.runtime(), image, &listed.name)), same.next()) {
                (Some(_), _) => There::Named,
                (None, Some(listed)) => There::Unnamed(listed.id),
                (None, None) => There::Absent,
            };
        let held = match self.there {
            There::Named | There::Unnamed(_) => return Ok(image.layers.iter().map(|layer| layer.digest).collect()),
            There::Absent => {
                let others = self.client.diff_ids(&images, self.observer)?;
                match self.client.runtime() {
                    Runtime::Docker => docker::held(&self.client, image, &others, self.observer)?,
                    Runtime::Podman => podman::held(image, &others),
                }
            }
        };
        self.partial = !held.is_empty();
        Ok(held)
    }

    fn put(&mut self, missing: &Missing<'_>) -> Result<(), DeliveryError> {
        if missing.layers().is_empty() {
            return Ok(());
        }
        let load = self.feed(|archive, pipe| {
            missing.in_order(|layer, bytes| archive.put(pipe, layer, bytes, DeliveryError::Stream))
        })?;
        self.load = Some(load);
        Ok(())
    }

    fn finish(&mut self, image: &Image, _: &dyn Past) -> Result<Finish, DeliveryError> {
        match std::mem::replace(&mut self.there, There::Absent) {
            There::Named => return Ok(Finish::Committed),
            There::Unnamed(id) => {
                match self
                    .client
                    .run(&["tag", &self.client.id_argument(&id), &name_in(self.client.runtime(), image)], self.observer)
                {
                    Ok(_) => {}
                    // Removed since it was listed.
                    Err(DeliveryError::Command { .. }) => return Ok(Finish::Incomplete),
                    Err(error) => return Err(error),
                }
            }
            There::Absent => match self.load(image) {
                Ok(()) => {}
                // Whatever the reason, the runtime did without some layers before and gets them all now.
                Err(DeliveryError::Command { .. }) if self.partial => {
                    self.partial = false;
                    return Ok(Finish::Incomplete);
                }
                Err(error) => return Err(error),
            },
        }
        self.verify(image)?;
        Ok(Finish::Committed)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use rstest::rstest;

    use super::super::samples::{Blobs, fake, image, sabotage};
    use super::super::{Delivered, deliver};
    use super::*;
    use crate::event::{Event, Silent};
    use crate::image::LayerMediaType;

    struct Bench {
        dir: tempfile::TempDir,
        client: RuntimeClient,
    }

    impl Bench {
        fn new(runtime: Runtime) -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { client: fake(runtime, dir.path()), dir }
        }

        fn deliver(&self, image: &Image, blobs: &Blobs) -> Result<Delivered, DeliveryError> {
            deliver(image, blobs, &mut self.client.sink(&Silent), &Silent)
        }

        fn calls(&self) -> Vec<String> {
            let calls = fs::read_to_string(self.dir.path().join("calls")).unwrap();
            fs::write(self.dir.path().join("calls"), "").unwrap();
            calls.lines().map(|line| line.split(" --").next().unwrap_or_default().to_owned()).collect()
        }

        fn images(&self) -> String {
            fs::read_to_string(self.dir.path().join("images")).unwrap()
        }

        fn sabotage(&self, command: &str, script: &str) {
            sabotage(self.dir.path(), command, script);
        }
    }

    #[test]
    fn an_image_that_is_there_costs_one_question() {
        let bench = Bench::new(Runtime::Docker);
        let (image, blobs) = image("v1", &["base", "top"]);
        bench.deliver(&image, &blobs).unwrap();
        assert_eq!(bench.calls(), ["image ls", "load", "image inspect"]);
        bench.deliver(&image, &blobs).unwrap();
        assert_eq!(bench.calls(), ["image ls"]);
    }

    #[test]
    fn an_image_under_another_name_gets_a_name() {
        for (runtime, name) in [(Runtime::Docker, "hello:v2"), (Runtime::Podman, "localhost/hello:v2")] {
            let bench = Bench::new(runtime);
            let (first, blobs) = image("v1", &["base", "top"]);
            bench.deliver(&first, &blobs).unwrap();
            bench.calls();
            let second = image("v2", &["base", "top"]).0;
            assert_eq!(bench.deliver(&second, &blobs).unwrap().layers_sent, 0);
            let id = bench.client.id_argument(&second.config_digest);
            assert_eq!(bench.calls(), ["image ls".to_owned(), format!("tag {id} {name}"), "image inspect".to_owned()]);
            assert!(bench.images().contains(&format!("{} {name}\n", second.config_digest)));
        }
    }

    #[test]
    fn layers_that_vanish_meanwhile_are_sent_after_all() {
        for runtime in [Runtime::Docker, Runtime::Podman] {
            let bench = Bench::new(runtime);
            let (first, blobs) = image("v1", &["base", "top"]);
            bench.deliver(&first, &blobs).unwrap();
            fs::remove_file(bench.dir.path().join("blobs").join(Digest::of(b"base").hex())).unwrap();
            let (second, blobs) = image("v1", &["base", "new top"]);
            assert_eq!(bench.deliver(&second, &blobs).unwrap().layers_sent, 2);
            assert!(bench.images().contains(&second.config_digest.to_string()));
        }
    }

    #[test]
    fn an_image_that_vanishes_before_it_is_named_is_sent_after_all() {
        let bench = Bench::new(Runtime::Docker);
        let (first, blobs) = image("v1", &["base"]);
        bench.deliver(&first, &blobs).unwrap();
        bench.sabotage("tag", "echo 'No such image' >&2; exit 1");
        let (second, blobs) = image("v2", &["base"]);
        assert_eq!(bench.deliver(&second, &blobs).unwrap().layers_sent, 1);
        assert!(bench.images().contains("hello:v2"));
    }

    #[test]
    fn docker_reuses_layers_only_under_an_unchanged_chain() {
        let bench = Bench::new(Runtime::Docker);
        let (first, blobs) = image("v1", &["a", "b", "c"]);
        bench.deliver(&first, &blobs).unwrap();
        // "a" is wanted again on top, where its chain is another one.
        let (second, blobs) = image("v2", &["a", "b", "x", "c", "a"]);
        bench.deliver(&second, &blobs).unwrap();
        assert_eq!(*blobs.asked.lock().unwrap(), [b"a", b"x", b"c"].map(|layer| Digest::of(layer)));
    }

    #[test]
    fn docker_with_containerds_image_store_gets_every_layer() {
        let bench = Bench::new(Runtime::Docker);
        let (first, blobs) = image("v1", &["base", "top"]);
        bench.deliver(&first, &blobs).unwrap();
        bench.sabotage("info", r#"echo '[["driver-type","io.containerd.snapshotter.v1"]]'; exit"#);
        let (second, blobs) = image("v1", &["base", "new top"]);
        assert_eq!(bench.deliver(&second, &blobs).unwrap().layers_sent, 2);
    }

    #[test]
    fn containerds_image_store_knows_an_image_by_its_manifest() {
        let bench = Bench::new(Runtime::Docker);
        let (image, blobs) = image("v1", &["base"]);
        fs::write(bench.dir.path().join("images"), format!("{} hello:v1\n", image.manifest_digest)).unwrap();
        assert_eq!(bench.deliver(&image, &blobs).unwrap().layers_sent, 0);
        assert_eq!(bench.calls(), ["image ls"]);
    }

    #[rstest]
    #[case(
        "cat >/dev/null; echo 'no space left on device' >&2; exit 1",
        "'docker load' failed with exit status 1: no space left on device"
    )]
    #[case(
        "head -c 1000 >/dev/null; echo 'unexpected EOF' >&2; exit 3",
        "'docker load' failed with exit status 3: unexpected EOF"
    )]
    #[case("echo 'only on stdout'; exit 1", "'docker load' failed with exit status 1: only on stdout")]
    #[case("kill -KILL $$", "'docker load' was killed by signal 9")]
    #[case("exit 1", "'docker load' failed with exit status 1")]
    fn a_load_that_fails_says_why_in_the_runtimes_words(#[case] script: &str, #[case] text: &str) {
        let bench = Bench::new(Runtime::Docker);
        bench.sabotage("load", script);
        let (image, blobs) = image("v1", &["base", &"large".repeat(100_000)]);
        let error = bench.deliver(&image, &blobs).unwrap_err();
        assert_eq!(error.to_string(), text);
        assert_eq!(bench.images(), "");
    }

    #[test]
    fn a_load_that_stops_reading_but_claims_success_is_not_believed() {
        let bench = Bench::new(Runtime::Docker);
        bench.sabotage("load", "exit 0");
        let (image, blobs) = image("v1", &["base", &"large".repeat(100_000)]);
        let error = bench.deliver(&image, &blobs).unwrap_err();
        assert_eq!(error.to_string(), "'docker load' ended before it had read the whole image");
    }

    #[test]
    fn what_stands_under_the_name_afterwards_is_checked() {
        let bench = Bench::new(Runtime::Docker);
        let other = Digest::of(b"other");
        bench.sabotage("load", &format!("cat > /dev/null; echo '{other} hello:v1' > images; exit"));
        let (image, blobs) = image("v1", &["base"]);
        let error = bench.deliver(&image, &blobs).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("Docker has {other} under 'hello:v1', not the image {} that it was given", image.config_digest)
        );
        assert!(error.hint().is_some());
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_named_before_a_layer_is_read() {
        let bench = Bench::new(Runtime::Docker);
        let words = "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?";
        bench.sabotage("image", &format!("echo '{words}' >&2; exit 1"));
        let (image, blobs) = image("v1", &["base"]);
        let error = bench.deliver(&image, &blobs).unwrap_err();
        assert_eq!(error.to_string(), format!("'docker image ls' failed with exit status 1: {words}"));
        assert!(error.hint().unwrap().contains("systemctl start docker"));
        assert!(blobs.asked.lock().unwrap().is_empty());
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_shown() {
        let bench = Bench::new(Runtime::Podman);
        bench.sabotage("image", "echo nonsense; exit");
        let (image, blobs) = image("v1", &["base"]);
        let error = bench.deliver(&image, &blobs).unwrap_err();
        assert!(error.to_string().starts_with("'podman image ls' gave an answer"), "{error}");
    }

    /// Wants the run to end after a while.
    struct Impatient(Instant);

    impl Observer for Impatient {
        fn event(&self, _: Event) {}

        fn cancelled(&self) -> bool {
            self.0.elapsed() > Duration::from_millis(300)
        }
    }

    #[rstest]
    #[case("load", "exec sleep 1000")]
    #[case("load", "cat >/dev/null; exec sleep 1000")]
    #[case("image", "exec sleep 1000")]
    fn a_runtime_that_hangs_can_be_stopped(#[case] command: &str, #[case] script: &str) {
        let bench = Bench::new(Runtime::Docker);
        bench.sabotage(command, script);
        let (image, blobs) = image("v1", &["base", &"large".repeat(100_000)]);
        let observer = Impatient(Instant::now());
        let error = deliver(&image, &blobs, &mut bench.client.sink(&observer), &observer).unwrap_err();
        assert!(matches!(error, DeliveryError::Interrupted), "{error}");
        assert!(observer.0.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_grandchild_that_keeps_the_output_open_is_not_waited_for() {
        let bench = Bench::new(Runtime::Docker);
        bench.sabotage("version", "sleep 30 & echo 28.2.2; exit");
        let before = Instant::now();
        bench.client.accepts(LayerMediaType::TarGzip, &Silent).unwrap();
        assert!(before.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn docker_without_zstd_is_known_before_any_work() {
        let bench = Bench::new(Runtime::Docker);
        bench.client.accepts(LayerMediaType::TarGzip, &Silent).unwrap();
        let error = bench.client.accepts(LayerMediaType::TarZstd, &Silent).unwrap_err();
        assert_eq!(error.to_string(), "Docker 20.10.24+dfsg1 cannot load layers compressed with zstd");
        assert!(error.hint().unwrap().contains("--compression none"));
        fs::write(bench.dir.path().join("version"), "28.2.2\n").unwrap();
        bench.client.accepts(LayerMediaType::TarZstd, &Silent).unwrap();
    }

    #[test]
    fn podman_in_dockers_place_is_recognised() {
        let bench = Bench::new(Runtime::Docker);
        bench.sabotage("version", r#"case "$*" in *Server*) exit 125 ;; *) echo 4.3.1; exit ;; esac"#);
        bench.sabotage("--version", "echo podman version 4.3.1; exit");
        bench.client.accepts(LayerMediaType::TarZstd, &Silent).unwrap();
    }

    #[test]
    fn a_program_that_cannot_be_started_is_named() {
        let bench = Bench::new(Runtime::Docker);
        fs::remove_file(bench.dir.path().join("docker")).unwrap();
        let (image, blobs) = image("v1", &["base"]);
        let error = bench.deliver(&image, &blobs).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot start '{}/docker'", bench.dir.path().display()));
    }
}
