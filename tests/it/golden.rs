//! One environment, all of its image as text: what goes into which layer, every entry, configuration, manifest, and
//! only then the digests. Whoever changes a byte sees here which one. `INSTA_UPDATE=always` writes the texts anew.

use std::fmt::Write;

use insta::assert_snapshot;
use serde_json::Value;

use crate::archive::{Archive, EntryKind};
use crate::containerize::archive;
use crate::flox_fixture::{BareStore, FloxEnv, Tree};
use crate::sandbox::Sandbox;

/// An environment of three packages: a shell, a program that refers to a library, and all that a manifest can say.
fn environment(sandbox: &Sandbox) -> (BareStore, FloxEnv) {
    let store = BareStore::new(sandbox.path("root"));
    let shell = Tree::new().program("bin/bash", "#!/bin/false\n").link("bin/sh", "bash");
    let library = Tree::new().file("lib/libgreet.so.1", "greet\n").link("lib/libgreet.so", "libgreet.so.1");
    let library = store.add("greet-lib-1.0", &library);
    let program = Tree::new()
        .program("bin/greet", format!("#!/bin/false\n# needs {library}/lib/libgreet.so\n"))
        .file("share/doc/empty", "")
        .file(format!("share/{}", "long/".repeat(40) + "name"), "deep\n")
        .file(b"share/not-\xff-utf8".as_slice(), "bytes\n")
        .directory("var/empty")
        .file("etc/profile.d/greet.sh", "export GREETING=hello\n");
    let (shell, program) = (store.add("bash-5.2", &shell), store.add("greet-2.0", &program));
    let installs = [("bash", shell.as_str()), ("greet", program.as_str())];
    let rest = r#"
[vars]
NAME = "world"
TEXT = "$NAME and $HOME"

[hook]
on-activate = '''
export HOOKED=1
'''

[profile]
common = '''
alias g=greet
'''

[containerize.config]
user = "www-data:web"
exposed-ports = ["8080", "53/udp"]
cmd = ["greet", "two words"]
volumes = ["/data"]
working-dir = "/srv/app"
stop-signal = "SIGINT"

[containerize.config.labels]
"org.example.kind" = "golden"
"#;
    let environment = FloxEnv::of_store_paths(sandbox.path("project"), "Golden", &installs, rest);
    (store, environment)
}

fn image(args: &[&str]) -> Archive {
    let sandbox = Sandbox::new();
    let (store, environment) = environment(&sandbox);
    archive(&sandbox, store.root(), &environment, args)
}

/// A line an entry, as `tar -tv` has it, contents of small text files below.
fn listing(archive: &Archive, layer: usize) -> String {
    let mut text = String::new();
    for (path, entry) in archive.layer(layer) {
        let path = path.escape_ascii();
        let (mode, (uid, gid), mtime) = (entry.mode, entry.owner, entry.mtime);
        let _ = match &entry.kind {
            EntryKind::Directory => writeln!(text, "d {mode:04o} {uid}/{gid} {mtime} {path}/"),
            EntryKind::File(contents) => {
                writeln!(text, "f {mode:04o} {uid}/{gid} {mtime} {path} ({} bytes)", contents.len())
            }
            EntryKind::Link(target) => {
                writeln!(text, "l {mode:04o} {uid}/{gid} {mtime} {path} -> {}", target.escape_ascii())
            }
            EntryKind::Other(kind) => writeln!(text, "? {kind}"),
        };
    }
    text
}

/// JSON for people, every digest in it replaced by the order of its appearance.
fn without_digests(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap();
    let mut number = 0;
    while let Some(at) = text.find("\"sha256:") {
        let digest = text[at + 1..at + 72].to_owned();
        number += 1;
        text = text.replace(&digest, &format!("<digest {number}>"));
    }
    text
}

#[test]
fn an_image_is_these_bytes() {
    let archive = image(&["--label", "org.example.more=1"]);
    let layers = archive.layer_digests().len();

    let history = archive.config["history"].as_array().unwrap();
    let plan: String = history.iter().map(|entry| format!("{}\n", entry["comment"].as_str().unwrap())).collect();
    assert_snapshot!("plan", plan);
    let listings: Vec<_> = (0..layers).map(|at| format!("layer {at}\n{}", listing(&archive, at))).collect();
    assert_snapshot!("listing", listings.join("\n"));
    let top = archive.layer(layers - 1);
    let scripts: Vec<_> = top
        .iter()
        .filter_map(|(path, entry)| match &entry.kind {
            EntryKind::File(contents) => {
                Some(format!("==> {}\n{}", path.escape_ascii(), String::from_utf8_lossy(contents)))
            }
            _ => None,
        })
        .collect();
    assert_snapshot!("files", scripts.join("\n"));
    assert_snapshot!("config", without_digests(&archive.config));
    assert_snapshot!("manifest", without_digests(&archive.manifest));
    let digests = format!(
        "image ID {}\nmanifest {}\nlayers\n{}\n",
        archive.image_id(),
        archive.manifest_digest,
        archive.layer_digests().join("\n")
    );
    assert_snapshot!("digests", digests);
}

#[test]
fn compressed_layers_are_these_bytes_and_hold_the_same_tar() {
    let plain = image(&[]);
    let mut digests = String::new();
    for codec in ["gzip:1", "gzip:6", "zstd:1", "zstd:3", "zstd:19"] {
        let compressed = image(&["--compression", codec]);
        for at in 0..plain.layer_digests().len() {
            assert!(compressed.layer_tar(at) == plain.layer_tar(at), "{codec}, layer {at}");
        }
        let _ = writeln!(digests, "{codec}\n{}", compressed.layer_digests().join("\n"));
    }
    assert_snapshot!("compressed", digests);
}
