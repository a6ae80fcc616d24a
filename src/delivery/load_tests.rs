use std::fs;
use std::time::{Duration, Instant};

use rstest::rstest;

use super::super::Delivered;
use super::super::samples::{self, Blobs, Watcher, deliver, fake, image, sabotage};
use super::*;
use crate::event::{Event, Silent};
use crate::image::ImageName;

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

    fn accepts(&self, media_type: LayerMediaType) -> Result<(), DeliveryError> {
        self.client.ask(&ImageName::new("hello", "v1").unwrap(), media_type)?.accepts(&Silent)
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
    for runtime in [Runtime::Docker, Runtime::Podman] {
        let bench = Bench::new(runtime);
        let (first, blobs) = image("v1", &["base", "top"]);
        bench.deliver(&first, &blobs).unwrap();
        assert_eq!(bench.calls(), ["image inspect", "image ls", "load", "image inspect"]);
        bench.deliver(&first, &blobs).unwrap();
        assert_eq!(bench.calls(), ["image inspect"]);
        // The image that had the name says what need not be sent.
        let (second, blobs) = image("v1", &["base", "new top"]);
        assert_eq!(bench.deliver(&second, &blobs).unwrap().layers_sent, 1);
        assert_eq!(bench.calls(), ["image inspect", "image inspect", "load", "image inspect"]);
        // Of which there may be another one; of a layer that is new there is none.
        let (mut third, blobs) = image("v1", &["base", "newer top"]);
        third.layers[1].reused = false;
        assert_eq!(bench.deliver(&third, &blobs).unwrap().layers_sent, 1);
        assert_eq!(bench.calls(), ["image inspect", "load", "image inspect"]);
        // Where none was known before, nothing was known.
        let (mut fourth, blobs) = image("v1", &["base", "newest top"]);
        fourth.layers.iter_mut().for_each(|layer| layer.reused = false);
        assert_eq!(bench.deliver(&fourth, &blobs).unwrap().layers_sent, 1);
        assert_eq!(bench.calls(), ["image inspect", "image inspect", "load", "image inspect"]);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_load_reads_a_pipe_into_which_layers_are_poured() {
    for runtime in [Runtime::Docker, Runtime::Podman] {
        let bench = Bench::new(runtime);
        let (image, blobs) = image("v1", &["base", "top"]);
        let blobs = blobs.pouring().on_threads(2);
        bench.deliver(&image, &blobs).unwrap();
        assert_eq!(blobs.poured.into_inner().unwrap().len(), 1, "the other is made ahead");
    }
}

#[test]
fn an_answer_from_before_the_layers_were_packed_is_not_enough() {
    let bench = Bench::new(Runtime::Docker);
    let (mut image, blobs) = image("v1", &["base"]);
    bench.deliver(&image, &blobs).unwrap();
    let deliver_late = |image: &Image| {
        let mut opening = bench.client.ask(&image.name, LayerMediaType::Tar).unwrap();
        opening.accepts(&Silent).unwrap();
        fs::write(bench.dir.path().join("images"), "").unwrap();
        deliver(image, &blobs, &mut bench.client.sink(&Silent).opened(opening), &Silent).unwrap()
    };
    assert_eq!(deliver_late(&image).layers_sent, 0, "nothing took time");
    bench.deliver(&image, &blobs).unwrap();
    image.layers[0].reused = false;
    assert_eq!(deliver_late(&image).layers_sent, 1);
    assert!(bench.images().contains("hello:v1"));
}

#[test]
fn podman_gets_ready_while_the_image_is_made() {
    for (runtime, early) in [(Runtime::Docker, 0), (Runtime::Podman, 1)] {
        let bench = Bench::new(runtime);
        let loads = |calls: &[String]| calls.iter().filter(|call| *call == "load").count();
        let (first, blobs) = image("v1", &["base"]);
        bench.deliver(&first, &blobs).unwrap();
        bench.calls();
        let (second, blobs) = image("v1", &["base", "top"]);
        let mut opening = bench.client.ask(&second.name, LayerMediaType::Tar).unwrap();
        opening.get_ready();
        opening.get_ready();
        opening.accepts(&Silent).unwrap();
        let start = Instant::now();
        let has_begun = || fs::read_to_string(bench.dir.path().join("calls")).unwrap().contains("load");
        while early == 1 && !has_begun() && start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(loads(&bench.calls()), early);
        let sent = deliver(&second, &blobs, &mut bench.client.sink(&Silent).opened(opening), &Silent).unwrap();
        assert_eq!((sent.layers_sent, loads(&bench.calls())), (1, 1 - early));
        assert!(bench.images().contains(&second.config_digest.hex()));
    }
}

/// Podman has written what it reads into a file, which stays if it is killed.
#[test]
fn a_load_that_got_ready_in_vain_ends_by_itself() {
    let bench = Bench::new(Runtime::Podman);
    let (image, blobs) = image("v1", &["base"]);
    bench.deliver(&image, &blobs).unwrap();
    let ended = bench.dir.path().join("ended");
    bench.sabotage("load", &format!("cat >/dev/null; echo >>'{}'; exit 1", ended.display()));
    let ready = || {
        let mut opening = bench.client.ask(&image.name, LayerMediaType::Tar).unwrap();
        opening.get_ready();
        opening
    };
    // The image is there.
    let mut sink = bench.client.sink(&Silent).opened(ready());
    assert_eq!(deliver(&image, &blobs, &mut sink, &Silent).unwrap().layers_sent, 0);
    assert_eq!(fs::read_to_string(&ended).unwrap(), "\n");
    // The image cannot be made.
    drop(bench.client.sink(&Silent).opened(ready()));
    assert_eq!(fs::read_to_string(&ended).unwrap(), "\n\n");
}

#[test]
fn a_load_that_got_ready_and_died_meanwhile_is_begun_anew() {
    let bench = Bench::new(Runtime::Podman);
    let (image, blobs) = image("v1", &["base"]);
    bench.sabotage("load", "exit 1");
    let mut opening = bench.client.ask(&image.name, LayerMediaType::Tar).unwrap();
    opening.get_ready();
    opening.accepts(&Silent).unwrap();
    let start = Instant::now();
    let load = opening.load.as_mut().unwrap();
    while load.is_running() && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::remove_file(bench.dir.path().join("fail-load")).unwrap();
    let sent = deliver(&image, &blobs, &mut bench.client.sink(&Silent).opened(opening), &Silent).unwrap();
    assert_eq!(sent.layers_sent, 1);
}

/// What the list of images in Podman's storage says when.
enum Lists {
    Nothing,
    /// The image, before it was loaded: it is another's list.
    Already,
    /// The image, once it was loaded.
    Loaded,
    /// Another one.
    Other,
}

#[rstest]
#[case(Runtime::Podman, "overlay", Lists::Loaded, false)]
#[case(Runtime::Podman, "overlay", Lists::Already, true)]
#[case(Runtime::Podman, "overlay", Lists::Other, true)]
#[case(Runtime::Podman, "overlay", Lists::Nothing, true)]
#[case(Runtime::Docker, "overlay2", Lists::Loaded, true)]
fn podman_need_not_start_to_say_what_its_list_says(
    #[case] runtime: Runtime,
    #[case] driver: &str,
    #[case] lists: Lists,
    #[case] asks: bool,
    // Whether the image that had the name before says where the list is, or another one.
    #[values(true, false)] has_name: bool,
) {
    let bench = Bench::new(runtime);
    let root = bench.dir.path().join("root");
    fs::write(bench.dir.path().join("driver"), driver).unwrap();
    let upper_dir = root.join(driver).join("0a1b/diff");
    fs::write(bench.dir.path().join("driver-data"), serde_json::json!({"UpperDir": upper_dir}).to_string()).unwrap();
    let (first, blobs) = image(if has_name { "v1" } else { "v0" }, &["base"]);
    bench.deliver(&first, &blobs).unwrap();
    bench.calls();
    let (second, blobs) = image("v1", &["base", "top"]);
    let list = root.join(format!("{driver}-images/images.json"));
    fs::create_dir_all(list.parent().unwrap()).unwrap();
    let name = bench.client.name_of(&second.name);
    let entry = |image: &Image, name: &str| serde_json::json!({"id": image.config_digest.hex(), "names": [name]});
    let before = serde_json::json!([entry(&first, &bench.client.name_of(&first.name))]);
    let after = serde_json::json!([entry(&first, "localhost/hello:old"), entry(&second, &name)]);
    let write = |contents: &serde_json::Value| fs::write(&list, contents.to_string()).unwrap();
    match lists {
        Lists::Nothing => {}
        Lists::Already => write(&after),
        Lists::Other => write(&before),
        Lists::Loaded => {
            write(&before);
            bench.sabotage("load", &format!("echo '{after}' >'{}'", list.display()));
        }
    }
    assert_eq!(bench.deliver(&second, &blobs).unwrap().layers_sent, 1);
    let calls = bench.calls();
    let since_load: Vec<_> = calls.iter().skip_while(|call| *call != "load").collect();
    assert_eq!(since_load, ["load", "image inspect"][..if asks { 2 } else { 1 }], "{calls:?}");
}

/// Where the list says that another image has the name, Podman is asked, and then that is an error.
#[test]
fn a_list_without_the_image_is_no_proof() {
    let bench = Bench::new(Runtime::Podman);
    fs::write(bench.dir.path().join("driver"), "overlay").unwrap();
    let data = serde_json::json!({"UpperDir": bench.dir.path().join("overlay/0a1b/diff")});
    fs::write(bench.dir.path().join("driver-data"), data.to_string()).unwrap();
    let (first, blobs) = image("v1", &["base"]);
    bench.deliver(&first, &blobs).unwrap();
    fs::create_dir(bench.dir.path().join("overlay-images")).unwrap();
    let list = serde_json::json!([{"id": first.config_digest.hex(), "names": ["localhost/hello:v1"]}]);
    fs::write(bench.dir.path().join("overlay-images/images.json"), list.to_string()).unwrap();
    bench.sabotage("load", "cat >/dev/null; exit");
    let (second, blobs) = image("v1", &["new base"]);
    let error = bench.deliver(&second, &blobs).unwrap_err();
    assert!(matches!(error, DeliveryError::WrongImage { .. }), "{error}");
}

#[test]
fn other_images_are_asked_about_only_where_that_is_worth_it() {
    let bench = Bench::new(Runtime::Podman);
    let large = "large".repeat(4 << 20);
    let (sibling, blobs) = image("sibling", &["base", &large]);
    bench.deliver(&sibling, &blobs).unwrap();
    let (first, blobs) = image("v1", &["base"]);
    bench.deliver(&first, &blobs).unwrap();
    bench.calls();
    let (second, blobs) = image("v1", &["base", &large]);
    let second = Image { name: first.name.clone(), ..second };
    // The same layers as the sibling's: another name is all that it takes.
    assert_eq!(bench.deliver(&second, &blobs).unwrap().layers_sent, 0);
    assert_eq!(bench.calls()[..2], ["image inspect", "image ls"]);
    let (third, blobs) = image("v1", &["base", "new", &large]);
    assert_eq!(bench.deliver(&third, &blobs).unwrap().layers_sent, 1);
    let (fourth, blobs) = image("v3", &["new", &large, "small"]);
    assert_eq!(bench.deliver(&fourth, &blobs).unwrap().layers_sent, 1);
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
        let calls = bench.calls();
        assert_eq!(calls, ["image inspect", "image ls", &format!("tag {id} {name}"), "image inspect"]);
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
fn a_runtime_that_refuses_the_short_way_gets_the_whole_image_and_that_is_said() {
    // Far more than a pipe holds: who does not read it breaks the pipe.
    let large = "x".repeat(8 << 20);
    // Before the runtime has read anything, or when it has read all.
    for (reads, layer) in [("", large.as_str()), ("cat >/dev/null;", "new top")] {
        for runtime in [Runtime::Docker, Runtime::Podman] {
            let bench = Bench::new(runtime);
            let (first, blobs) = image("v1", &["base", "top"]);
            bench.deliver(&first, &blobs).unwrap();
            bench.calls();
            bench.sabotage("load", &format!(r#"rm "$FAKE/fail-load"; {reads} echo 'no such layer' >&2; exit 1"#));
            let (second, blobs) = image("v1", &["base", layer]);
            let observer = Watcher::patient_for(usize::MAX);
            let delivered = deliver(&second, &blobs, &mut bench.client.sink(&observer), &observer).unwrap();
            assert_eq!(delivered.layers_sent, 2);
            assert!(bench.images().contains(&second.config_digest.to_string()));
            assert_eq!(bench.calls().iter().filter(|call| *call == "load").count(), 2);
            let seen = observer.seen.lock().unwrap();
            let said = |word: &str| {
                seen.iter().any(|event| matches!(event, Event::Detail { message } if message.contains(word)))
            };
            assert!(said("no such layer") && said("sending the whole image"), "{seen:?}");
        }
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
fn containerds_image_store_is_spared_the_blobs_of_images_that_came_from_here() {
    let bench = Bench::new(Runtime::Docker);
    fs::write(bench.dir.path().join("driver"), "overlayfs").unwrap();
    let (first, blobs) = image("v1", &["base", "top"]);
    bench.deliver(&first, &blobs).unwrap();
    let listed = bench.images().replace(&first.config_digest.to_string(), &first.manifest_digest.to_string());
    fs::write(bench.dir.path().join("images"), listed).unwrap();
    let (second, mut blobs) = image("v1", &["new base", "top"]);
    let observer = Watcher::patient_for(usize::MAX);
    let deliver = |blobs: &Blobs| deliver(&second, blobs, &mut bench.client.sink(&observer), &observer).unwrap();

    bench.sabotage("load", "cat >/dev/null; echo 'no space left on device' >&2; exit 1");
    blobs.delivered.insert(first.manifest_digest, first.layers.iter().map(|layer| layer.digest).collect());
    let error = samples::deliver(&second, &blobs, &mut bench.client.sink(&observer), &observer).unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
    let said = || format!("{:?}", observer.seen.lock().unwrap());
    assert!(said().contains("sending the whole image"), "{}", said());

    bench.sabotage("load", r#"rm "$FAKE/fail-load"; cat >/dev/null; echo 'content digest not found' >&2; exit 1"#);
    assert_eq!(deliver(&blobs).layers_sent, 2, "the whole image, after it was refused with less");
    let listed = bench.images().replace(&second.config_digest.to_string(), &first.manifest_digest.to_string());
    fs::write(bench.dir.path().join("images"), listed).unwrap();

    assert_eq!(deliver(&blobs).layers_sent, 1);
}

#[test]
fn containerds_image_store_gets_every_layer_where_it_is_not_known_what_it_has() {
    let bench = Bench::new(Runtime::Docker);
    let (first, blobs) = image("v1", &["base", "top"]);
    bench.deliver(&first, &blobs).unwrap();
    fs::write(bench.dir.path().join("driver"), "unheard-of").unwrap();
    bench.sabotage("info", r#"echo '[["driver-type","io.containerd.snapshotter.v1"]]'; exit"#);
    let (second, blobs) = image("v1", &["base", "new top"]);
    let observer = Watcher::patient_for(usize::MAX);
    let delivered = deliver(&second, &blobs, &mut bench.client.sink(&observer), &observer).unwrap();
    assert_eq!(delivered.layers_sent, 2);
    assert!(format!("{:?}", observer.seen.lock().unwrap()).contains("not known: sending all"));
}

#[test]
fn a_name_that_a_failed_short_load_leaves_is_removed() {
    let bench = Bench::new(Runtime::Docker);
    let (first, blobs) = image("v1", &["base", "top"]);
    bench.deliver(&first, &blobs).unwrap();
    let (second, blobs) = image("v1", &["base", "new top"]);
    let named =
        format!("cat >/dev/null; echo '{} hello:v1' > images; echo 'not found' >&2; exit 1", second.config_digest);
    bench.sabotage("load", &named);
    bench.calls();
    bench.deliver(&second, &blobs).unwrap_err();
    let expected = ["image inspect", "image inspect", "load", "image inspect", "image rm hello:v1", "load"];
    assert_eq!(bench.calls(), expected);
}

#[test]
fn containerds_image_store_knows_an_image_by_its_manifest() {
    let bench = Bench::new(Runtime::Docker);
    let (image, blobs) = image("v1", &["base"]);
    fs::write(bench.dir.path().join("images"), format!("{} hello:v1\n", image.manifest_digest)).unwrap();
    assert_eq!(bench.deliver(&image, &blobs).unwrap().layers_sent, 0);
    assert_eq!(bench.calls(), ["image inspect"]);
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
    let (image, blobs) = image("v1", &["base", &"large".repeat(1_000_000)]);
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
    assert!(error.to_string().starts_with("'podman image inspect' gave an answer"), "{error}");
}

#[test]
fn a_list_in_which_an_image_goes_is_asked_for_again() {
    let bench = Bench::new(Runtime::Podman);
    let went = "echo 'Error: retrieving label for image \"577e\": locating image: image not known' >&2; exit 125";
    let script = |times: u32| format!("[ $2 != ls ] || [ $(grep -c 'image ls' calls) -gt {times} ] || {{ {went}; }}");
    bench.sabotage("image", &script(2));
    let (image, blobs) = image("v1", &["base"]);
    bench.deliver(&image, &blobs).unwrap();
    assert_eq!(bench.calls(), ["image inspect", "image ls", "image ls", "image ls", "load", "image inspect"]);
    let bench = Bench::new(Runtime::Podman);
    bench.sabotage("image", &script(3));
    let error = bench.deliver(&image, &blobs).unwrap_err();
    assert!(error.to_string().starts_with("'podman image ls' failed with exit status 125"), "{error}");
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
    bench.accepts(LayerMediaType::TarZstd).unwrap();
    assert!(before.elapsed() < Duration::from_secs(20));
}

#[test]
fn docker_without_zstd_is_known_before_any_work() {
    let bench = Bench::new(Runtime::Docker);
    bench.accepts(LayerMediaType::TarGzip).unwrap();
    let error = bench.accepts(LayerMediaType::TarZstd).unwrap_err();
    assert_eq!(error.to_string(), "Docker 20.10.24+dfsg1 cannot load layers compressed with zstd");
    assert!(error.hint().unwrap().contains("--compression none"));
    fs::write(bench.dir.path().join("version"), "28.2.2\n").unwrap();
    bench.accepts(LayerMediaType::TarZstd).unwrap();
}

#[test]
fn podman_in_dockers_place_is_recognised() {
    let bench = Bench::new(Runtime::Docker);
    bench.sabotage("version", r#"case "$*" in *Server*) exit 125 ;; *) echo 4.3.1; exit ;; esac"#);
    bench.sabotage("--version", "echo podman version 4.3.1; exit");
    bench.accepts(LayerMediaType::TarZstd).unwrap();
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    let bench = Bench::new(Runtime::Docker);
    fs::remove_file(bench.dir.path().join("docker")).unwrap();
    let (image, blobs) = image("v1", &["base"]);
    let error = bench.deliver(&image, &blobs).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot start '{}/docker'", bench.dir.path().display()));
}
