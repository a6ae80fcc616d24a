//! Images out of binary caches in buckets, of a server that checks signatures.

use std::fs;

use crate::bucket_server::{BucketServer, Readers};
use crate::peers::peer;
use crate::substitute::Project;

/// What a run says that may not read the bucket.
fn denied(project: &Project, server: &BucketServer, secret: Option<&str>) -> String {
    let mut command = project.command(&server.url());
    if let Some(secret) = secret {
        command.env("AWS_ACCESS_KEY_ID", &server.keys.0).env("AWS_SECRET_ACCESS_KEY", secret);
    }
    let outcome = command.assert().failure();
    let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
    assert!(!said.contains(&server.keys.1) && secret.is_none_or(|secret| !said.contains(secret)), "{said}");
    assert!(!project.file().exists());
    project.sandbox.tidy(&said).replace(&server.url(), "[CACHE]")
}

#[test]
fn a_bucket_serves_whoever_has_its_keys_with_the_image_of_the_store() {
    let (nix, moto) = (peer!(nix), peer!(moto));
    let project = Project::new(nix, "xz");
    let server = moto.start(&project.cache.directory, Readers::Owner);
    let expected = project.image_of_the_store(&[]);
    let (id, secret) = &server.keys;

    insta::assert_snapshot!("bucket_denied", denied(&project, &server, Some("not the secret")));

    let mut command = project.command(&server.url());
    command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret).assert().success();
    assert!(fs::read(project.file()).unwrap() == expected);

    project.sandbox.cmd().args(["cache", "clear"]).assert().success();
    fs::remove_file(project.file()).unwrap();
    fs::create_dir_all(project.sandbox.path("home/.aws")).unwrap();
    let profile = format!("[team]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    fs::write(project.sandbox.path("home/.aws/credentials"), profile).unwrap();
    project.command(&format!("{}&profile=team", server.url())).assert().success();
    assert!(fs::read(project.file()).unwrap() == expected);
}

#[test]
fn a_public_bucket_serves_whoever_asks() {
    let (nix, moto) = (peer!(nix), peer!(moto));
    let project = Project::new(nix, "xz");
    let server = moto.start(&project.cache.directory, Readers::All);
    let expected = project.image_of_the_store(&[]);
    project.command(&server.url()).assert().success();
    assert!(fs::read(project.file()).unwrap() == expected);
}

#[test]
fn a_path_that_a_bucket_lacks_is_missing_and_not_denied() {
    let (nix, moto) = (peer!(nix), peer!(moto));
    let project = Project::new(nix, "zstd");
    let hello = crate::cache_server::BinaryCache::narinfo(nix.out("hello"));
    fs::remove_file(project.cache.directory.join(hello)).unwrap();
    let server = moto.start(&project.cache.directory, Readers::All);
    insta::assert_snapshot!("bucket_without_a_path", denied(&project, &server, None));
}
