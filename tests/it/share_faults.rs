//! Shared caches that have lost something, or are wrong, or have a stranger's word: nothing of that lasts, and none of it is
//! passed on as one's own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use layerhold::blob::{DiffId, Digest};
use layerhold::store::{LayerRecord, LayerStore, Shelf};
use rstest::rstest;
use serde_json::Value;

use crate::flox_fixture::{FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_server::Setup;
use crate::share::{Project, is_of_packages, lines, rewrite};

#[rstest]
#[case::lost(|blob: &Path| fs::remove_file(blob).unwrap())]
#[case::cut(|blob: &Path| fs::write(blob, [7; 10]).unwrap())]
#[case::longer(|blob: &Path| fs::write(blob, vec![7; 1 << 20]).unwrap())]
#[case::another(|blob: &Path| fs::write(blob, vec![7; fs::metadata(blob).unwrap().len() as usize]).unwrap())]
fn a_blob_that_a_cache_has_not_is_given_again(#[case] damage: fn(&Path)) {
    let project = Project::new();
    let share = project.directory();
    project.fill(&share);
    let blob = project.sandbox.path("share/blobs/sha256").join(project.packages());
    let good = fs::read(&blob).unwrap();
    damage(&blob);
    let said = project.newcomer("reading", &share, &[]);
    assert!(said.contains("! the shared cache 'file://[SANDBOX]/share' "), "{said}");
    assert!(fs::read(&blob).ok().as_ref() != Some(&good), "who reads has written");
    let (image, said) = project.machine("writing").image(&project.environment, &["--cache-to", &share]);
    assert!(image == project.expected && said.contains("': 1 layers, 1 blobs"), "{said}");
    assert!(fs::read(&blob).unwrap() == good);
    let said = project.newcomer("later", &share, &[]);
    assert!(said.contains("fetched from a shared cache: 1 layers") && !said.contains("! "), "{said}");
}

#[test]
fn a_blob_that_a_registry_has_lost_is_given_again() {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let setup = Setup { deletes: true, ..Setup::default() };
    let server = registry.start(&project.sandbox.path("registry"), setup);
    let share = server.reference("team/cache");
    project.fill(&project.directory());
    project.fill(&share);
    let blob = format!("/v2/team/cache/blobs/sha256:{}", project.packages());
    assert_eq!(server.ask("DELETE", &blob).status, 202);
    let said = project.newcomer("reading", &share, &[]);
    assert!(said.contains("has lost sha256:[DIGEST]"), "{said}");
    let (image, said) = project.machine("writing").image(&project.environment, &["--cache-to", &share]);
    assert!(image == project.expected && said.contains("': 1 layers, 1 blobs"), "{said}");
    let said = project.newcomer("later", &share, &[]);
    assert!(said.contains("fetched from a shared cache: 1 layers") && !said.contains("! "), "{said}");
}

/// Has the cache say that layers of packages are others, as a machine does whose store files are not what they should be.
/// Says how many there are.
fn lie(share: &Path) -> usize {
    let wrong = |line: &Value| Digest::of(line["layer"]["key"].as_str().unwrap().as_bytes()).to_string();
    rewrite(share, |line| {
        if is_of_packages(line) {
            let wrong = wrong(line);
            line["layer"]["digest"] = wrong.as_str().into();
            line["layer"]["diff_id"] = wrong.as_str().into();
        }
    });
    lines(share).iter().filter(|line| is_of_packages(line)).count()
}

/// Layers that are not compressed, of which a cache has no bytes: what it says of them shows only when they are made.
struct Plain {
    project: Project,
    environment: FloxEnv,
    share: String,
}

impl Plain {
    fn new() -> Self {
        let project = Project::new();
        let tools: Vec<_> = (0..4u8)
            .map(|n| {
                let name = format!("tool-{n}");
                let path = project.store.add(&name, &Tree::new().program(format!("bin/{name}"), vec![n; 2_000_000]));
                (name, path)
            })
            .collect();
        let installs: Vec<_> = tools.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect();
        let environment = FloxEnv::of_store_paths(project.sandbox.path("plain"), "plain", &installs, "");
        let share = project.directory();
        Self { project, environment, share }
    }

    /// Whether that went well, the image as far as there is one, and what was said.
    fn run(&self, machine: &str, target: &str, args: &[&str]) -> (bool, Vec<u8>, String) {
        let file = self.project.sandbox.path("work/plain.tar");
        let _ = fs::remove_file(&file);
        let mut command = self.project.machine(machine).command(&self.environment);
        let output = command.args(["-f", target]).args(args).output().unwrap();
        let image = if target == "-" { output.stdout } else { fs::read(&file).unwrap_or_default() };
        let said = self.project.sandbox.tidy(&String::from_utf8(output.stderr).unwrap());
        (output.status.success(), image, said)
    }

    fn file(&self, machine: &str, args: &[&str]) -> (Vec<u8>, String) {
        let (is_done, image, said) = self.run(machine, "plain.tar", args);
        assert!(is_done, "{said}");
        (image, said)
    }
}

#[test]
fn what_this_machine_has_made_itself_and_comes_out_otherwise_is_no_caches_mistake() {
    let plain = Plain::new();
    let to = ["--cache-to", &plain.share];
    let (expected, _) = plain.file("first", &to);
    let share = plain.project.sandbox.path("share");
    let said_there = || {
        let lines = lines(&share).into_iter().filter(is_of_packages);
        lines.map(|line| line["layer"].to_string()).collect::<BTreeSet<_>>()
    };
    let before = said_there();
    // As if its store paths had been others when it made the layers.
    let store = LayerStore::open(&plain.project.machine("first").cache).unwrap();
    let records = before.iter().map(|layer| serde_json::from_str::<LayerRecord>(layer).unwrap());
    let wrong: Vec<_> = records
        .map(|record| {
            let digest = Digest::of(record.digest.to_string().as_bytes());
            LayerRecord { digest, diff_id: DiffId(digest), ..record }
        })
        .collect();
    wrong.iter().for_each(|record| store.record_layer(record).unwrap());
    store.index_layers(&wrong).unwrap();
    let (is_done, _, said) = plain.run("first", "plain.tar", &to);
    assert!(!is_done && said.contains("expected sha256:"), "{said}");
    assert!(!said.contains("than a shared cache has said"), "{said}");
    assert_eq!(said_there(), before);
    // Each such run forgets what it has found wrong.
    let mut later = wrong.iter().map(|_| plain.run("first", "plain.tar", &to));
    let image = later.find_map(|(is_done, image, _)| is_done.then_some(image));
    assert!(image.is_some_and(|image| image == expected));
    assert_eq!(said_there(), before);
}

#[test]
fn a_wrong_entry_costs_work_and_neither_image_nor_anybody_for_long() {
    let plain = Plain::new();
    let (from, to) = (["--cache-from", &plain.share], ["--cache-to", &plain.share]);
    let (expected, _) = plain.file("alone", &[]);
    plain.file("first", &to);
    let share = plain.project.sandbox.path("share");
    let count = lie(&share);
    assert!(count > 1, "{count}");
    let doubt = format!("! {count} layers come out otherwise here than a shared cache has said");

    // Into a file the right image goes at once, and what was wrong is not asked for again.
    let (image, said) = plain.file("reading", &from);
    assert!(image == expected && said.contains(&format!("{doubt}: the image is made again")), "{said}");
    let (image, said) = plain.file("reading", &from);
    assert!(image == expected && !said.contains("! "), "{said}");
    // What is out in a stream cannot be taken back; the next run is right, even if all that is known here is that.
    let (is_done, _, said) = plain.run("streaming", "-", &from);
    assert!(!is_done && said.contains(&doubt) && said.contains("hint: run this again"), "{said}");
    let (is_done, image, said) = plain.run("streaming", "-", &from);
    assert!(is_done && image == expected && !said.contains("! "), "{said}");

    // Whoever writes there puts it right for all who come later.
    let (image, said) = plain.file("writing", &to);
    assert!(image == expected && said.contains(&doubt), "{said}");
    assert!(said.contains(&format!("': {count} layers, 0 blobs")), "{said}");
    let (image, said) = plain.file("late", &from);
    assert!(image == expected && said.contains(" 0 new") && !said.contains("! "), "{said}");
    let digests = lines(&share).iter().filter(|line| is_of_packages(line)).count();
    assert_eq!(digests, count, "what was wrong is gone");
}

#[test]
fn who_has_found_an_entry_wrong_puts_it_right_when_it_may_write() {
    let plain = Plain::new();
    plain.file("first", &["--cache-to", &plain.share]);
    let share = plain.project.sandbox.path("share");
    let count = lie(&share);
    let (expected, _) = plain.file("machine", &["--cache-from", &plain.share]);
    // All layers are known here by now.
    let (image, said) = plain.file("machine", &["--cache-to", &plain.share]);
    assert!(image == expected && !said.contains("! "), "{said}");
    let (image, said) = plain.file("late", &["--cache-from", &plain.share]);
    assert!(image == expected && !said.contains("! "), "{said}");
    assert_eq!(lines(&share).iter().filter(|line| is_of_packages(line)).count(), count);
    // It is over then: nothing is written any more.
    let (_, said) = plain.file("machine", &["--cache-to", &plain.share]);
    assert!(said.contains("': 0 layers, 0 blobs"), "{said}");
}

#[test]
fn an_entry_that_is_right_after_all_is_believed_again() {
    let plain = Plain::new();
    let to = ["--cache-to", &plain.share];
    let (expected, _) = plain.file("first", &to);
    // Its store files were not what they should be, and are again.
    let text = |line: &Value, name: &str| line["layer"][name].as_str().unwrap().to_owned();
    let lines = lines(&plain.project.sandbox.path("share"));
    let entries = lines.iter().filter(|line| is_of_packages(line));
    let entries = entries.map(|line| format!("{} {}", text(line, "key"), text(line, "digest")).into_bytes());
    let disbelieved: Vec<_> = entries.map(|entry| (entry, b"no".to_vec())).collect();
    let store = LayerStore::open(&plain.project.machine("machine").cache).unwrap();
    store.remember(Shelf::Disbelieved, &disbelieved).unwrap();
    let given = format!("': {} layers, 0 blobs", disbelieved.len());
    let (image, said) = plain.file("machine", &to);
    assert!(image == expected && said.contains(&given) && !said.contains("! "), "{said}");
    let (_, said) = plain.file("machine", &to);
    assert!(said.contains("': 0 layers, 0 blobs"), "{said}");
}

#[rstest]
#[case::compressed(&["--compression", "zstd"])]
#[case::as_they_are(&[])]
fn an_image_that_a_cache_knew_is_pushed_later_without_it(#[case] options: &[&str]) {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let share = project.directory();
    let run = |name: &str, args: &[&str]| {
        let file = project.sandbox.path(format!("work/{name}.tar"));
        let _ = fs::remove_file(&file);
        let mut command = project.machine(name).command(&project.environment);
        let outcome = command.args(options).args(args).arg("-f").arg(&file).assert().success();
        (fs::read(file).unwrap(), String::from_utf8(outcome.get_output().stderr.clone()).unwrap())
    };
    let push = |tag: &str| {
        let mut command = project.sandbox.cmd();
        command.env("LAYERHOLD_CACHE", project.machine("second").cache).args(["push", "pair"]);
        command.arg(server.reference(&format!("team/pair:{tag}"))).arg("--store").arg(project.store.root());
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let (first, _) = run("first", &["--cache-to", &share]);
    let (second, said) = run("second", &["--cache-from", &share]);
    assert!(first == second && said.contains("3 reused") && said.contains(" 0 new"), "{said}");
    fs::remove_dir_all(project.sandbox.path("share")).unwrap();
    let (is_done, said) = push("1");
    assert!(is_done, "{said}");

    // An earlier version left the bytes where they were: what it says to do helps.
    let store = LayerStore::open(&project.machine("second").cache).unwrap();
    let image = store.image_named("pair").unwrap().unwrap();
    let known = store.lookup(&image.layers).unwrap().into_iter().flatten();
    let own: Vec<_> = known.filter(|record| record.contents.is_empty()).collect();
    assert_eq!(own.len(), 2);
    let without: Vec<_> = own.into_iter().map(|record| LayerRecord { has_blob: false, ..record }).collect();
    without.iter().for_each(|record| store.record_layer(record).unwrap());
    store.index_layers(&without).unwrap();
    let (is_done, said) = push("2");
    assert!(!is_done && said.contains("the layer of its own files is not kept"), "{said}");
    assert!(said.contains("hint: make it again, and push it at once: layerhold containerize --push"), "{said}");
    let (again, _) = run("second", &[]);
    let (is_done, said) = push("2");
    assert!(again == second && is_done, "{said}");
}

#[rstest]
#[case::of_what_is_in_it(&["digest", "diff_id"])]
#[case::of_how_it_is_compressed(&["digest"])]
fn a_wrong_entry_costs_a_push_work_and_not_its_end(#[case] fields: &[&str]) {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let share = project.directory();
    project.fill(&share);
    let machine = project.machine("second");
    machine.command(&project.environment).args(["-f", "plain.tar"]).assert().success();
    rewrite(&project.sandbox.path("share"), |line| {
        if is_of_packages(line) {
            fields.iter().for_each(|field| line["layer"][*field] = Digest::of(b"another").to_string().into());
        }
    });
    let doubt = "! 1 layers come out otherwise here than a shared cache has said: the image is made again";
    let said = machine.push("pair", &server.reference("team/pair:v1"), &["--cache-to", &share]);
    assert!(said.contains(doubt) && said.contains("': 1 layers, 1 blobs"), "{said}");
    // It is right for all who come later.
    let said = project.newcomer("late", &share, &[]);
    assert!(said.contains("fetched from a shared cache: 1 layers") && !said.contains("! "), "{said}");
    let said = machine.push("pair", &server.reference("team/pair:v2"), &["--cache-from", &share]);
    assert!(said.contains(" 0 new") && !said.contains("! "), "{said}");
}

#[test]
fn nobody_signs_what_a_stranger_has_said() {
    let project = Project::new();
    let (secret, public) = project.key("team");
    let strangers = project.directory();
    project.fill(&strangers);
    let signed = format!("file://{}", project.sandbox.path("signed").display());
    let sign = |name: &str, args: &[&str]| {
        let args = [&["--cache-to", &signed, "--cache-key", &secret], args].concat();
        let (image, said) = project.machine(name).image(&project.environment, &args);
        assert!(image == project.expected, "{said}");
        said
    };
    let is_signed = || -> Vec<bool> {
        let lines = lines(&project.sandbox.path("signed"));
        lines.iter().filter(|line| is_of_packages(line)).map(|line| line.get("signatures").is_some()).collect()
    };
    // What it has heard it passes on, and so it does when it has it out of its layer store; its own files it has made.
    sign("signer", &["--cache-from", &strangers]);
    assert_eq!(is_signed(), [false]);
    let own = lines(&project.sandbox.path("signed"));
    let own: Vec<_> = own.iter().filter(|line| line.get("layer").is_some() && !is_of_packages(line)).collect();
    assert!(own.len() == 2 && own.iter().all(|line| line.get("signatures").is_some()), "{own:#?}");
    fs::remove_dir_all(project.sandbox.path("signed")).unwrap();
    sign("signer", &[]);
    assert_eq!(is_signed(), [false]);
    let said = project.newcomer("careful", &signed, &["--cache-trust", &public]);
    assert!(!said.contains("fetched"), "{said}");

    // Who is told whose word counts does not take what it has heard from others, and signs what it makes.
    let said = sign("signer", &["--cache-trust", &public]);
    assert!(said.contains("': 1 layers"), "{said}");
    let said = project.newcomer("trusting", &signed, &["--cache-trust", &public]);
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");
    // What a trusted key has signed is vouched for, here and wherever it is passed on.
    fs::remove_dir_all(project.sandbox.path("share")).unwrap();
    let pass_on = ["--cache-from", &signed, "--cache-to", &strangers, "--cache-trust", &public, "--cache-key", &secret];
    project.machine("third").image(&project.environment, &pass_on);
    let said = project.newcomer("last", &strangers, &["--cache-trust", &public]);
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");
}
