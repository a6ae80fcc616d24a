//! Images for other machines, and indexes over several, as Docker, Podman, containerd, skopeo and umoci take them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::peers::{LoadedImage, Peer, peer, skip, unique_name};
use crate::platforms::{Project, both, here_and_elsewhere};

/// An image for another machine goes straight into a runtime: what its programs are for is the user's affair.
fn takes_an_image_for_another_machine(runtime: Peer) {
    let name = unique_name("foreign");
    let Some(project) = Project::that_runs(&name) else {
        return skip("bash-static and busybox-static", "takes_an_image_for_another_machine");
    };
    project.sandbox.provide(runtime.program);
    let (_, elsewhere) = here_and_elsewhere();
    let image = LoadedImage::new(runtime, format!("{name}:latest"));
    let args = ["--runtime", runtime.program, "--platform", elsewhere.oci];
    let first = project.json(&args);
    assert_eq!(format!("linux/{}", image.inspect("{{.Architecture}}").trim()), elsewhere.oci);
    // The tools are this machine's.
    assert_eq!(image.run(&[], &["cat", "$FLOX_ENV/share/says"]), elsewhere.oci);
    let again = project.json(&args);
    assert_eq!((&again["image_id"], &again["layers_sent"]), (&first["image_id"], &0.into()));
    // This machine's image takes the name.
    let own = project.json(&["--runtime", runtime.program]);
    assert_ne!(own["image_id"], first["image_id"]);
    assert_eq!(image.run(&[], &["cat", "$FLOX_ENV/share/says"]), here_and_elsewhere().0.oci);
}

#[test]
fn docker_takes_an_image_for_another_machine() {
    takes_an_image_for_another_machine(peer!(docker));
}

#[test]
fn podman_takes_an_image_for_another_machine() {
    takes_an_image_for_another_machine(peer!(podman));
}

/// What runs after `load` of an archive for both platforms, this machine's first or last.
fn loaded_from_both(runtime: Peer, this_first: bool) -> Option<String> {
    let name = unique_name("both");
    let project = Project::that_runs(&name)?;
    let (here, elsewhere) = here_and_elsewhere();
    let [first, second] = if this_first { [here, elsewhere] } else { [elsewhere, here] };
    let platforms = format!("{},{}", first.oci, second.oci);
    project.command(&["--platform", &platforms, "-f", "both.tar"]).assert().success();
    let image = LoadedImage::new(runtime, format!("{name}:latest"));
    runtime.run(["load", "-i", project.at("both.tar").to_str().unwrap()]);
    Some(image.run(&[], &["cat", "$FLOX_ENV/share/says"]))
}

#[test]
fn docker_loads_the_first_of_several_platforms() {
    let docker = peer!(docker);
    let (here, elsewhere) = here_and_elsewhere();
    for (this_first, expected) in [(true, here), (false, elsewhere)] {
        let Some(said) = loaded_from_both(docker, this_first) else {
            return skip("bash-static and busybox-static", "docker_loads_the_first_of_several_platforms");
        };
        // With containerd's image store it reads the index, and runs what is for this machine.
        let driver = docker.run(["info", "--format", "{{.Driver}}"]);
        let is_classic = ["overlay2", "vfs"].contains(&driver.trim());
        assert_eq!(said, if is_classic { expected.oci } else { here.oci });
    }
}

#[test]
fn podman_loads_its_own_of_several_platforms() {
    let podman = peer!(podman);
    for this_first in [true, false] {
        let Some(said) = loaded_from_both(podman, this_first) else {
            return skip("bash-static and busybox-static", "podman_loads_its_own_of_several_platforms");
        };
        assert_eq!(said, here_and_elsewhere().0.oci);
    }
}

/// The digests of all blobs in an image layout.
fn blobs_in(layout: &Path) -> BTreeSet<String> {
    fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|entry| format!("sha256:{}", entry.unwrap().file_name().to_str().unwrap()))
        .collect()
}

#[test]
fn skopeo_copies_every_platform_out_of_archive_and_layout() {
    let skopeo = peer!(skopeo);
    let project = Project::new("hello");
    let (platforms, file) = project.archive_of_both();
    project.command(&["--platform", &both(), "--layout", "layout"]).assert().success();
    let layout = project.at("layout");
    let sources = [
        format!("oci-archive:{file}"),
        format!("oci-archive:{file}:latest"),
        format!("oci:{}:hello:latest", layout.display()),
    ];
    for source in &sources {
        let raw = skopeo.run(["inspect", "--raw", source]);
        assert_eq!(layerhold::blob::Digest::of(raw.as_bytes()).to_string(), platforms.digest, "{source}");
        for (platform, image) in &platforms.images {
            let arch = platform.strip_prefix("linux/").unwrap();
            let config = skopeo.run(["--override-arch", arch, "inspect", "--config", source]);
            assert_eq!(serde_json::from_str::<Value>(&config).unwrap()["rootfs"], image.config["rootfs"], "{source}");
        }
        let copy = project.at("copy");
        let _ = fs::remove_dir_all(&copy);
        skopeo.run([
            "copy",
            "--all",
            "--preserve-digests",
            "--insecure-policy",
            source,
            &format!("oci:{}:copy", copy.display()),
        ]);
        assert_eq!(blobs_in(&copy), blobs_in(&layout), "{source}");
    }
    // As Docker's archive it is the first platform's image, and needs no name.
    let inspected: Value = serde_json::from_str(&skopeo.run(["inspect", &format!("docker-archive:{file}")])).unwrap();
    assert_eq!(format!("linux/{}", inspected["Architecture"].as_str().unwrap()), platforms.images[0].0);
}

#[test]
fn umoci_keeps_an_index_and_unpacks_what_skopeo_takes_out_of_it() {
    let (umoci, skopeo) = (peer!(umoci), peer!(skopeo));
    let project = Project::new("hello");
    project.command(&["--platform", &both(), "--layout", "layout"]).assert().success();
    let layout = project.at("layout");
    assert_eq!(umoci.run(["ls", "--layout", layout.to_str().unwrap()]).trim(), "hello:latest");
    let before = blobs_in(&layout);
    umoci.run(["gc", "--layout", layout.to_str().unwrap()]);
    assert_eq!(blobs_in(&layout), before, "every blob is referred to");
    let (_, elsewhere) = here_and_elsewhere();
    let arch = elsewhere.oci.strip_prefix("linux/").unwrap();
    let (from, to) =
        (format!("oci:{}:hello:latest", layout.display()), format!("oci:{}:one", project.at("one").display()));
    skopeo.run(["--override-arch", arch, "copy", "--insecure-policy", &from, &to]);
    let (image, bundle) = (format!("{}:one", project.at("one").display()), project.at("bundle"));
    umoci.run(["unpack", "--rootless", "--image", &image, bundle.to_str().unwrap()]);
    let store = fs::read_dir(bundle.join("rootfs/nix/store")).unwrap().map(|entry| entry.unwrap().path());
    let says = store.into_iter().find(|path| path.to_str().unwrap().ends_with("says-1")).unwrap();
    assert_eq!(fs::read_to_string(says.join("share/says")).unwrap(), elsewhere.oci);
}

#[test]
fn containerd_imports_its_own_platform_or_all() {
    let ctr = peer!(ctr);
    let project = Project::new(&unique_name("ctr"));
    let (platforms, file) = project.archive_of_both();
    let (here, _) = here_and_elsewhere();
    for (all, namespace) in [(false, unique_name("own")), (true, unique_name("all"))] {
        let ctr = |args: &[&str]| ctr.run([&["--namespace", &namespace][..], args].concat());
        ctr(&[&["images", "import"][..], if all { &["--all-platforms", "--no-unpack"] } else { &[] }, &[&file]]
            .concat());
        let listed = ctr(&["images", "ls"]);
        let reference = format!("docker.io/library/{}:latest", project.name);
        let line = listed.lines().find(|line| line.starts_with(&reference)).unwrap();
        assert!(line.contains(&platforms.digest) && line.contains("linux/amd64,linux/arm64"), "{line}");
        let content = ctr(&["content", "ls", "--quiet"]);
        let wanted = platforms.images.iter().filter(|(platform, _)| all || platform == here.oci);
        for digest in wanted.flat_map(|(_, image)| image.layer_digests()) {
            assert!(content.contains(&digest), "{digest} is not in\n{content}");
        }
        ctr(&["images", "rm", "--sync", &reference]);
        ctr(&["namespaces", "rm", &namespace]);
    }
}
