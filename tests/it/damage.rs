//! A layer cache that was damaged behind our back: the image comes out right all the same.

use std::fs;
use std::path::{Path, PathBuf};

use rstest::rstest;

use crate::containerize::containerize;
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::sandbox::Sandbox;

fn blobs(cache: &Path) -> Vec<PathBuf> {
    let mut blobs: Vec<_> =
        fs::read_dir(cache.join("blobs/sha256")).unwrap().map(|blob| blob.unwrap().path()).collect();
    blobs.sort();
    blobs
}

fn flip_a_bit(blob: &Path) {
    let mut bytes = fs::read(blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(blob, bytes).unwrap();
}

fn cut_short(blob: &Path) {
    let bytes = fs::read(blob).unwrap();
    fs::write(blob, &bytes[..bytes.len() - 1]).unwrap();
}

fn put_a_directory_in_its_place(blob: &Path) {
    fs::remove_file(blob).unwrap();
    fs::create_dir(blob).unwrap();
}

#[rstest]
#[case::flipped(flip_a_bit)]
#[case::cut(cut_short)]
#[case::directory(put_a_directory_in_its_place)]
#[case::gone(|blob: &Path| fs::remove_file(blob).unwrap())]
fn a_damaged_blob_is_never_delivered(#[case] damage: fn(&Path), #[values("file", "stdout", "layout")] target: &str) {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let tool = store.add("tool-1.0", &Tree::new().program("bin/tool", "#!/bin/false\n".repeat(500)));
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "damaged", &[("tool", &tool)], "");
    let build = || {
        let mut command = containerize(&sandbox, store.root(), &environment);
        command.args(["--compression", "zstd"]);
        match target {
            "file" => {
                // A file that holds the image already would be left alone.
                let _ = fs::remove_file(sandbox.path("work/image.tar"));
                let output = command.args(["-f", "image.tar"]).assert().success().get_output().clone();
                (fs::read(sandbox.path("work/image.tar")).unwrap(), output.stderr)
            }
            "stdout" => {
                let output = command.args(["-f", "-"]).assert().success().get_output().clone();
                (output.stdout, output.stderr)
            }
            _ => {
                let layout = sandbox.path("work/layout");
                let _ = fs::remove_dir_all(&layout);
                let output = command.args(["--layout", "layout"]).assert().success().get_output().clone();
                let all = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|blob| blob.unwrap().path());
                let mut all: Vec<_> = all.collect();
                all.sort();
                (all.iter().flat_map(|blob| fs::read(blob).unwrap()).collect(), output.stderr)
            }
        }
    };
    let (whole, _) = build();
    for blob in blobs(&sandbox.path("cache")) {
        damage(&blob);
        let (again, said) = build();
        assert!(again == whole, "{}: {}", blob.display(), String::from_utf8_lossy(&said));
        build();
        sandbox.cmd().args(["cache", "verify"]).assert().success();
    }
    assert_eq!(blobs(&sandbox.path("cache")).len(), 3, "all layers are kept again");
}

/// What a file needs that is copied: nothing of the layer cache but what is known of the other file.
#[test]
fn a_file_is_copied_from_another_as_long_as_nobody_touches_that() {
    let sandbox = Sandbox::new();
    let store = BareStore::new(sandbox.path("root"));
    let tool = store.add("tool-1.0", &Tree::new().program("bin/tool", "#!/bin/false\n".repeat(500)));
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "copied", &[("tool", &tool)], "");
    let build = |file: &str, args: &[&str]| {
        let mut command = sandbox.cmd();
        command.args(["-v", "containerize", "--json", "--compression", "zstd", "-f", file]).args(args);
        command.arg("--store").arg(store.root()).arg("-d").arg(environment.dir());
        let output = command.assert().success().get_output().clone();
        let mut described: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        described.as_object_mut().unwrap().remove("target");
        (described, String::from_utf8(output.stderr).unwrap())
    };
    let file = |name: &str| sandbox.path("work").join(name);
    let copied_from = |name: &str| format!("copied from '{}', which holds the same image", file(name).display());
    build("first.tar", &[]);
    let whole = fs::read(file("first.tar")).unwrap();
    let (written, said) = build("elsewhere.tar", &["--tag", "other"]);
    assert!(written["bytes_sent"].as_u64().unwrap() > 0);
    assert!(!said.contains("copied from"), "another tag is another archive: {said}");

    // No layer is looked at: that they are damaged would be found, and said.
    for blob in blobs(&sandbox.path("cache")) {
        flip_a_bit(&blob);
    }
    let (dry, said) = build("second.tar", &["--dry-run"]);
    assert!(!said.contains("copied from") && !file("second.tar").exists(), "{said}");
    let (copied, said) = build("second.tar", &[]);
    assert!(said.contains(&copied_from("first.tar")) && !said.contains("damaged"), "{said}");
    assert!(fs::read(file("second.tar")).unwrap() == whole);
    for member in ["image_id", "manifest_digest", "layers", "layers_sent", "bytes_sent", "layers_held", "bytes_held"] {
        assert_eq!(copied[member], dry[member], "{member}");
    }
    let (again, said) = build("second.tar", &[]);
    assert!(again["layers_sent"] == 0 && !said.contains("copied from"), "{said}");

    // The link leads to a file that was copied, and the other one is its source.
    std::os::unix::fs::symlink("second.tar", file("link.tar")).unwrap();
    let (again, _) = build("link.tar", &[]);
    assert_eq!(again["layers_sent"], 0, "it holds the image");
    fs::remove_file(file("second.tar")).unwrap();
    let (_, said) = build("link.tar", &[]);
    assert!(said.contains(&copied_from("first.tar")), "{said}");
    assert!(file("link.tar").is_symlink() && fs::read(file("second.tar")).unwrap() == whole);

    // Both are touched, and so the layers are needed.
    for name in ["first.tar", "second.tar"] {
        flip_a_bit(&file(name));
    }
    let (_, said) = build("third.tar", &[]);
    assert!(said.contains("damaged") && !said.contains("copied from"), "{said}");
    assert!(fs::read(file("third.tar")).unwrap() == whole);
}
