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
    assert_eq!(blobs(&sandbox.path("cache")).len(), 2, "both layers are kept again");
}
