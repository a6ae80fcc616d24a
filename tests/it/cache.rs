//! The `cache` commands as users call them: their tables, their JSON, what they refuse, and which images stay.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use insta::assert_snapshot;
use layerhold::blob::{DiffId, Digest, LayerKey, LayerKeyBuilder};
use layerhold::store::{Content, GraphNode, ImageRecord, LayerRecord, LayerStore, PlatformRecord};
use rstest::rstest;
use serde_json::{Value, json};

use crate::containerize::containerize;
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::sandbox::Sandbox;

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

/// A cache with three images, of which two share a layer, and one layer that no image has.
struct Filled {
    sandbox: Sandbox,
}

/// Stands in arguments for the digest of the layer that two images have.
const SHARED: &str = "SHARED";

/// A layer of these store paths, or of own files; its bytes are kept where there are any.
fn layer(store: &LayerStore, paths: &[&str], blob: Option<&[u8]>) -> LayerRecord {
    let bytes = blob.unwrap_or(b"made again");
    if blob.is_some() {
        let mut writer = store.blob_writer().unwrap();
        writer.write_all(bytes).unwrap();
        writer.commit(&Digest::of(bytes)).unwrap();
    }
    let record = LayerRecord {
        key: LayerKeyBuilder::new("layerhold cache tests").field(bytes).finish(),
        digest: Digest::of(bytes),
        diff_id: DiffId(Digest::of(bytes)),
        size: bytes.len() as u64,
        tar_size: 4096,
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(),
        has_blob: blob.is_some(),
        is_hearsay: false,
        contents: paths.iter().map(|path| Content { name: (*path).to_owned(), size: 2000 }).collect(),
    };
    store.record_layer(&record).unwrap();
    store.index_layers(std::slice::from_ref(&record)).unwrap();
    record
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn image(store: &LayerStore, name: &str, tag: &str, platforms: &[&str], age: u64, layers: &[&LayerRecord]) {
    let names: Vec<_> = layers.iter().rev().flat_map(|layer| &layer.contents).map(|content| &content.name).collect();
    let node = |(at, name): (usize, &&String)| GraphNode {
        name: (*name).clone(),
        root: at == 0,
        references: (at + 1..names.len().min(at + 2)).collect(),
    };
    let platform = |platform: &&str| PlatformRecord {
        platform: (*platform).to_owned(),
        image_id: Digest::of(format!("{name}:{tag} {platform}").as_bytes()),
        manifest_digest: Digest::of(format!("manifest of {name}:{tag} {platform}").as_bytes()),
        layers: (0..layers.len()).collect(),
        config: String::new(),
    };
    let record = ImageRecord {
        name: name.to_owned(),
        tag: tag.to_owned(),
        image_id: Digest::of(format!("{name}:{tag}").as_bytes()),
        manifest_digest: Digest::of(tag.as_bytes()),
        platforms: platforms.iter().map(platform).collect(),
        layers: layers.iter().map(|layer| layer.key).collect::<Vec<LayerKey>>(),
        size: layers.iter().map(|layer| layer.size).sum(),
        made_at: now() - age - DAY,
        used_at: now() - age,
        graph: names.iter().enumerate().map(node).collect(),
    };
    store.record_image(&record).unwrap();
}

const GLIBC: &str = "00000000000000000000000000000001-glibc-2.40";
const OPENSSL: &str = "00000000000000000000000000000002-openssl-3.3";
const WEB_1: &str = "00000000000000000000000000000003-web-1.0";
const WEB_2: &str = "00000000000000000000000000000004-web-2.0";
const POSTGRESQL: &str = "00000000000000000000000000000005-postgresql-17";
const LOOSE: &str = "00000000000000000000000000000006-loose-1";

impl Filled {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let store = LayerStore::open(&sandbox.path("cache")).unwrap();
        let base = layer(&store, &[GLIBC, OPENSSL], Some(&[1; 30_000]));
        let web_1 = layer(&store, &[WEB_1], Some(&[2; 20_000]));
        let web_2 = layer(&store, &[WEB_2], Some(&[3; 25_000]));
        let own_files = layer(&store, &[], Some(&[4; 1_000]));
        let postgresql = layer(&store, &[POSTGRESQL], None);
        layer(&store, &[LOOSE], Some(&[5; 5_000]));
        image(&store, "web", "v1", &["linux/amd64"], 9 * DAY, &[&base, &web_1, &own_files]);
        image(&store, "web", "v2", &["linux/amd64"], 2 * DAY, &[&base, &web_2]);
        image(&store, "db", "latest", &["linux/amd64", "linux/arm64"], 3 * HOUR, &[&postgresql]);
        Self { sandbox }
    }

    /// Runs `layerhold cache` to a good end: what it prints, and what it says to people.
    fn run(&self, args: &[&str]) -> (String, String) {
        let outcome = self.sandbox.cmd().arg("cache").args(args).assert().success();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (text(&outcome.get_output().stdout), text(&outcome.get_output().stderr))
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[args, &["--json"]].concat()).0).unwrap()
    }

    /// The images that are there, as `NAME:TAG`.
    fn images(&self) -> BTreeSet<String> {
        images(&self.sandbox)
    }

    /// Bytes of everything but the index, which grows as it is used, and the lock.
    fn bytes(&self) -> u64 {
        let index = self.sandbox.path("cache/index");
        bytes_below(&self.sandbox.path("cache")) - if index.exists() { bytes_below(&index) } else { 0 }
    }
}

fn images(sandbox: &Sandbox) -> BTreeSet<String> {
    let output = sandbox.cmd().args(["cache", "ls", "--json"]).assert().success().get_output().stdout.clone();
    let rows: Value = serde_json::from_slice(&output).unwrap();
    let title = |row: &Value| format!("{}:{}", row["name"].as_str().unwrap(), row["tag"].as_str().unwrap());
    rows.as_array().unwrap().iter().map(title).collect()
}

fn bytes_below(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap();
    if !metadata.is_dir() {
        return metadata.len();
    }
    fs::read_dir(path).unwrap().map(|entry| bytes_below(&entry.unwrap().path())).sum()
}

#[rstest]
#[case::ls("ls", &["ls"])]
#[case::layers("layers", &["ls", "--layers"])]
#[case::du("du", &["du"])]
#[case::why_path("why_path", &["why", "/nix/store/00000000000000000000000000000001-glibc-2.40/lib/libc.so.6"])]
#[case::why_digest("why_digest", &["why", SHARED])]
#[case::gc("gc", &["gc", "--dry-run", "--older-than", "5d"])]
fn tables_for_people(#[case] name: &str, #[case] args: &[&str]) {
    let filled = Filled::new();
    filled.run(&["pin", "web:v2"]);
    let shared = Digest::of(&[1; 30_000]).to_string();
    let args: Vec<_> = args.iter().map(|&arg| if arg == SHARED { &*shared } else { arg }).collect();
    assert_snapshot!(format!("table_{name}"), filled.run(&args).0);
}

#[rstest]
#[case::ls("ls", &["ls"])]
#[case::layers("layers", &["ls", "--layers"])]
#[case::du("du", &["du"])]
#[case::why("why", &["why", "00000000000000000000000000000002-openssl-3.3"])]
#[case::gc("gc", &["gc", "--dry-run", "--older-than", "5d"])]
#[case::verify("verify", &["verify"])]
fn json_for_programs(#[case] name: &str, #[case] args: &[&str]) {
    let mut value = Filled::new().json(args);
    // What differs from run to run: the time, and how much sled wrote for its index.
    for row in value.as_array_mut().into_iter().flatten() {
        for (field, ages) in
            [("made_at", [10 * DAY, 3 * DAY, DAY + 3 * HOUR]), ("used_at", [9 * DAY, 2 * DAY, 3 * HOUR])]
        {
            if let Some(time) = row[field].as_u64() {
                let age = now() - time;
                assert!(ages.iter().any(|&expected| (expected..expected + 60).contains(&age)), "{field}: {age}");
                row[field] = json!("TIME");
            }
        }
    }
    if let Some(before) = value["bytes_before"].as_u64() {
        assert_eq!(before - value["bytes_after"].as_u64().unwrap(), value["bytes_freed"].as_u64().unwrap());
        (value["bytes_before"], value["bytes_after"]) = (json!("BYTES"), json!("BYTES"));
    }
    assert_snapshot!(format!("json_{name}"), serde_json::to_string_pretty(&value).unwrap());
}

#[rstest]
#[case::a_size(&["gc", "--max-size", "lots"], 2, &["'lots' is not a size such as"])]
#[case::an_age_without_a_unit(&["gc", "--older-than", "7"], 2, &["'7' is not an age such as"])]
#[case::a_number(&["gc", "--keep-last", "few"], 2, &["--keep-last"])]
#[case::an_option(&["ls", "--sideways"], 2, &["--sideways"])]
#[case::a_path_that_is_none(&["why", "nonsense"], 2, &["'nonsense' is neither a store path nor a digest", "hint: "])]
#[case::an_absent_path(&["why", "/nix/store/00000000000000000000000000000009-absent"], 1, &["no image", "hint: "])]
#[case::an_absent_image(&["pin", "absent"], 1, &["no image in the layer cache is called 'absent'", "hint: "])]
#[case::two_names_in_one(&["pin", "web\ndb"], 1, &["no image", "hint: "])]
#[case::what_is_not_pinned(&["unpin", "web"], 1, &["'web' is not pinned", "hint: nothing is pinned"])]
fn what_is_refused_is_said(#[case] args: &[&str], #[case] status: i32, #[case] parts: &[&str]) {
    let filled = Filled::new();
    let before = filled.bytes();
    let outcome = filled.sandbox.cmd().arg("cache").args(args).assert().code(status);
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
    assert!(outcome.get_output().stdout.is_empty());
    assert_eq!(filled.bytes(), before, "nothing is changed");
}

#[test]
fn a_cache_that_holds_nothing_says_nothing() {
    let sandbox = Sandbox::new();
    for args in [&["ls"][..], &["ls", "--layers"], &["du"], &["gc"], &["verify"], &["clear"]] {
        sandbox.cmd().arg("cache").args(args).assert().success().stdout("");
    }
    for args in [&["ls"][..], &["ls", "--layers"], &["du"]] {
        sandbox.cmd().arg("cache").args(args).arg("--json").assert().success().stdout("[]\n");
    }
}

#[rstest]
#[case::nothing_wanted(&[])]
#[case::old(&["--older-than", "5d"])]
#[case::all(&["--max-size", "0"])]
#[case::free(&["--min-free", "1000000T"])]
#[case::some(&["--older-than", "1h", "--keep-last", "1", "--keep", "db"])]
fn the_real_run_frees_exactly_what_the_dry_run_names(#[case] args: &[&str]) {
    let filled = Filled::new();
    fs::write(filled.sandbox.path("cache/tmp/left-over"), [0; 777]).unwrap();
    let before = filled.bytes();
    let mut planned = filled.json(&[&["gc", "--dry-run"], args].concat());
    assert_eq!(filled.bytes(), before, "a dry run changes nothing");
    let mut done = filled.json(&[&["gc"], args].concat());
    let number = |value: &Value| value.as_u64().unwrap();
    let without_index = |plan: &Value| number(&plan["bytes_freed"]) - number(&plan["index_bytes"]);
    assert_eq!(before - filled.bytes(), without_index(&planned));
    assert_eq!(filled.sandbox.path("cache/index").exists(), done["index_bytes"] == 0);
    let named = |plan: &Value| -> u64 {
        let lists = ["images", "layers", "orphans"].iter().flat_map(|list| plan[list].as_array().unwrap());
        lists.map(|entry| number(&entry["bytes"])).sum()
    };
    assert_eq!(named(&done) + number(&done["memory_bytes"]), without_index(&done));
    for plan in [&mut planned, &mut done] {
        // The index may have been written to between the two.
        plan["bytes_freed"] = without_index(plan).into();
        plan["index_bytes"] = (plan["index_bytes"] != 0).into();
        for field in ["dry_run", "bytes_before", "bytes_after", "bytes_over"] {
            plan[field] = Value::Null;
        }
    }
    assert_eq!(planned, done);
    assert_eq!(filled.json(&[&["gc"], args].concat())["bytes_freed"], 0, "nothing is left to do");
    filled.run(&["verify"]);
}

#[rstest]
#[case::no_rule(&[], &["db:latest", "web:v1", "web:v2"])]
#[case::older_than(&["--older-than", "5d"], &["db:latest", "web:v2"])]
#[case::keep_last(&["--older-than", "1h", "--keep-last", "1"], &["db:latest", "web:v2"])]
#[case::keep_name(&["--older-than", "1h", "--keep", "web"], &["web:v1", "web:v2"])]
#[case::keep_tag(&["--older-than", "1h", "--keep", "web:v1", "--keep", "db"], &["db:latest", "web:v1"])]
#[case::a_roomy_cap(&["--max-size", "1G"], &["db:latest", "web:v1", "web:v2"])]
#[case::a_cap_beats_what_keeps(&["--max-size", "0", "--keep", "web", "--keep-last", "9"], &[])]
#[case::enough_free(&["--min-free", "1"], &["db:latest", "web:v1", "web:v2"])]
#[case::never_enough_free(&["--min-free", "1000000T"], &[])]
fn rules_say_which_images_stay(#[case] args: &[&str], #[case] staying: &[&str]) {
    let filled = Filled::new();
    filled.run(&[&["gc"], args].concat());
    assert_eq!(filled.images(), staying.iter().map(|&name| name.to_owned()).collect());
}

#[rstest]
#[case::what_was_not_made_for_longest(&[], &["db:latest", "web:v2"])]
#[case::what_no_rule_keeps(&["--keep", "web:v1"], &["db:latest", "web:v1"])]
fn a_cap_that_is_a_little_too_small_takes_one_image(#[case] args: &[&str], #[case] staying: &[&str]) {
    let filled = Filled::new();
    filled.run(&["gc"]);
    let size = filled.json(&["gc", "--dry-run"])["bytes_after"].as_u64().unwrap();
    filled.run(&[&["gc", "--max-size", &(size - 1).to_string()], args].concat());
    assert_eq!(filled.images(), staying.iter().map(|&name| name.to_owned()).collect());
}

#[test]
fn a_pin_holds_against_the_cap_and_that_is_said() {
    let filled = Filled::new();
    filled.run(&["pin", "web:v1"]);
    let (_, said) = filled.run(&["gc", "--max-size", "0"]);
    assert!(said.contains("above its cap") && said.contains("pinned"), "{said}");
    assert_eq!(filled.images(), BTreeSet::from(["web:v1".to_owned()]));
    filled.run(&["verify"]);
    filled.run(&["unpin", "web:v1"]);
    filled.run(&["gc", "--max-size", "0"]);
    assert_eq!(filled.images(), BTreeSet::new());
}

#[test]
fn clearing_leaves_an_empty_cache() {
    let filled = Filled::new();
    let (_, said) = filled.run(&["clear"]);
    assert!(said.contains("freed"), "{said}");
    assert_eq!(filled.images(), BTreeSet::new());
    assert_eq!(filled.json(&["ls", "--layers"]), json!([]));
}

#[rstest]
#[case::named(&[("LAYERHOLD_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")], "/a\n")]
#[case::xdg(&[("XDG_CACHE_HOME", "/b"), ("HOME", "/c")], "/b/layerhold\n")]
#[case::a_relative_xdg_is_none(&[("XDG_CACHE_HOME", "b"), ("HOME", "/c")], "/c/.cache/layerhold\n")]
#[case::home(&[("LAYERHOLD_CACHE", ""), ("HOME", "/c")], "/c/.cache/layerhold\n")]
fn the_directory_is_where_variables_say(#[case] variables: &[(&str, &str)], #[case] path: &str) {
    let sandbox = Sandbox::new();
    let mut command = sandbox.cmd();
    command
        .env_clear()
        .envs(variables.iter().copied())
        .args(["cache", "path"])
        .assert()
        .success()
        .stdout(path.to_owned());
}

/// How the cap is set.
#[derive(Clone, Copy)]
enum Cap {
    Variable,
    ConfigFile,
    /// The variable beats the file.
    Both,
}

#[rstest]
#[case::of_the_variable(Cap::Variable, &["second:latest"])]
#[case::of_the_config_file(Cap::ConfigFile, &["second:latest"])]
#[case::of_the_variable_before_the_file(Cap::Both, &["first:latest", "second:latest"])]
fn a_build_keeps_the_cache_under_its_cap(#[case] cap: Cap, #[case] staying: &[&str]) {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    if matches!(cap, Cap::ConfigFile | Cap::Both) {
        let config = sandbox.path("home/.config/layerhold");
        fs::create_dir_all(&config).unwrap();
        fs::write(config.join("config.toml"), "[cache]\nmax-size = \"1 KiB\"\n").unwrap();
    }
    let mut said = String::new();
    for name in ["first", "second"] {
        let tool = store.add(&format!("{name}-1"), &Tree::new().program(format!("bin/{name}"), name.repeat(5_000)));
        let environment = FloxEnv::of_store_paths(sandbox.path(name), name, &[("tool", &tool)], "");
        let mut command = containerize(&sandbox, store.root(), &environment);
        match cap {
            Cap::Variable => drop(command.env("LAYERHOLD_CACHE_MAX_SIZE", "1k")),
            Cap::ConfigFile => {}
            Cap::Both => drop(command.env("LAYERHOLD_CACHE_MAX_SIZE", "1GiB")),
        }
        let outcome = command.args(["--compression", "zstd", "-f", "image.tar"]).assert().success();
        said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    }
    assert_eq!(images(&sandbox), staying.iter().map(|&name| name.to_owned()).collect());
    assert_eq!(
        said.contains("above its cap"),
        staying.len() == 1,
        "what was just made stays, and that is said: {said}"
    );
    sandbox.cmd().args(["cache", "verify"]).assert().success();
}

#[rstest]
#[case::a_size("[cache]\nmax-size = \"lots\"\n", &["cache.max-size", "'lots' is not a size"])]
#[case::a_key("[cache]\nmax-sise = \"1G\"\n", &["max-sise", "max-size"])]
#[case::toml("[cache\n", &["line 1"])]
fn a_config_file_that_is_wrong_is_named(#[case] text: &str, #[case] parts: &[&str]) {
    let filled = Filled::new();
    let config = filled.sandbox.path("home/.config/layerhold");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("config.toml"), text).unwrap();
    let outcome = filled.sandbox.cmd().args(["cache", "gc"]).assert().code(1);
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    for part in parts.iter().chain(&["config.toml", "hint: "]) {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
    assert_eq!(filled.images().len(), 3);
}
