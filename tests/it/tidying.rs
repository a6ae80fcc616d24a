//! Garbage of caches where it lies as a rule: in registries, which free the bytes themselves, and in buckets.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use layerhold::blob::Digest;
use layerhold::event::Silent;
use layerhold::registry::{PutManifest, Registries, Settings};
use rstest::rstest;
use serde_json::Value;

use crate::bucket_server::Readers;
use crate::flox_fixture::{FloxEnv, Tree};
use crate::peers::peer;
use crate::registry_proxy::{Fault, RegistryProxy, Request};
use crate::registry_server::{RegistryServer, Setup};
use crate::share::{Project, age, older};

const HOUR: u64 = 3600;

/// The environment `app` with this program.
fn app(project: &Project, program: &[u8]) -> FloxEnv {
    let path = project.store.add("app", &Tree::new().program("bin/app", program));
    FloxEnv::of_store_paths(project.sandbox.path("app"), "app", &[("app", path.as_str())], "")
}

/// `cache gc --remote`, to a good end: all that it says.
fn collect(project: &Project, share: &str, args: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = project.sandbox.cmd();
    command.args(["cache", "gc", "--remote", share]).args(args).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = project.sandbox.tidy(&String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{text}");
    text
}

/// The digests of the layers that would go.
fn going(project: &Project, share: &str, args: &[&str], variables: &[(&str, &str)]) -> BTreeSet<String> {
    let mut command = project.sandbox.cmd();
    command.args(["cache", "gc", "--remote", share, "--dry-run", "--json"]).args(args).envs(variables.iter().copied());
    let object: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let layers = object["layers"].as_array().unwrap().iter();
    layers.map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

/// Makes all that a cache in a repository says so many seconds older.
pub(crate) fn age_in(server: &RegistryServer, name: &str, seconds: u64) {
    let registries = Registries::new(Settings::default(), &Silent);
    let repository = registries.repository(&server.reference(name).parse().unwrap());
    for tag in repository.tags().unwrap() {
        let before = repository.manifest(&tag, 1 << 20).unwrap().unwrap();
        let mut manifest: Value = serde_json::from_slice(&before).unwrap();
        let kind = manifest["mediaType"].as_str().unwrap().to_owned();
        let own = &mut manifest["layers"][0];
        let digest: Digest = own["digest"].as_str().unwrap().parse().unwrap();
        let mut sheet = Vec::new();
        let read =
            repository.read_blob(&digest, own["size"].as_u64().unwrap(), |blob| blob.read_to_end(&mut sheet)).unwrap();
        read.unwrap().unwrap();
        let sheet = older(&sheet, seconds);
        repository.upload(&Digest::of(&sheet), sheet.len() as u64, &[], |out| out.write_all(&sheet)).unwrap();
        own["digest"] = Digest::of(&sheet).to_string().into();
        own["size"] = sheet.len().into();
        let manifest = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(repository.put_manifest(&tag, &kind, &manifest).unwrap(), PutManifest::Stored);
        repository.delete_manifest(&Digest::of(&before)).unwrap();
    }
}

#[rstest]
#[case::that_deletes(true)]
#[case::that_does_not_delete(false)]
fn a_registry_frees_the_bytes_once_it_has_collected_its_own_garbage(#[case] deletes: bool) {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let setup = Setup { deletes, ..Setup::default() };
    let server = registry.start(&project.sandbox.path("registry"), setup);
    let (share, target) = (server.reference("team/cache"), server.reference("team/app:v1"));
    let push = |program: &[u8]| {
        let machine = project.machine("pushing");
        let mut command = machine.command(&app(&project, program));
        command.args(["--compression", "zstd", "--cache-to", &share, "--push", &target]);
        let outcome = command.assert().success();
        String::from_utf8(outcome.get_output().stdout.clone()).unwrap().trim().split_once('@').unwrap().1.to_owned()
    };
    let first = push(b"first");
    push(b"second");
    assert!(collect(&project, &share, &[], &[]).contains("0 layers gone"), "what is new stays");
    age_in(&server, "team/cache", 26 * HOUR);

    let sheets = server.tags("team/cache");
    assert_eq!(sheets.len(), 2);
    let said = collect(&project, &share, &["--dry-run"], &[]);
    assert!(said.contains("no tag leads to it  app:latest"), "{said}");
    assert!(said.contains("2 layers would go, ") && said.contains("; 3 stay"), "{said}");
    let gone = going(&project, &share, &[], &[]);
    assert_eq!((gone.len(), server.tags("team/cache")), (2, sheets.clone()), "nothing has gone yet");

    let said = collect(&project, &share, &[], &[]);
    let tags = server.tags("team/cache");
    if deletes {
        assert!(said.contains("2 layers gone, 3 stay; "), "{said}");
        assert!(said.contains(" are free once the registry has collected its own garbage"), "{said}");
        assert!(!said.contains("! "), "{said}");
        assert_eq!(tags.len(), 1);
        // The image before goes from its repository, as its keeper would have it.
        assert_eq!(server.ask("DELETE", &format!("/v2/team/app/manifests/{first}")).status, 202);
    } else {
        assert!(said.contains("2 layers gone, 3 stay; "), "{said}");
        assert!(said.contains(" of what is gone stay with the sheets that name them"), "{said}");
        assert!(said.contains("! the registry does not let 2 sheets be removed"), "{said}");
        assert!(tags.len() == 3 && sheets.iter().all(|sheet| tags.contains(sheet)), "{tags:?}");
    }
    assert!(collect(&project, &share, &[], &[]).contains("0 layers gone"));
    assert!(gone.iter().all(|digest| server.blob_file(digest).exists()), "they are the registry's to remove");
    server.collect_garbage();
    for digest in &gone {
        assert_eq!(server.blob_file(digest).exists(), !deletes, "{digest}");
    }
    // What an image still needs is whole, and what it does not is not known any more.
    let reader =
        |name: &str, program: &[u8]| project.machine(name).image(&app(&project, program), &["--cache-from", &share]).1;
    let said = reader("late", b"second");
    assert!(said.contains(" 0 new") && !said.contains("! "), "{said}");
    let said = reader("later", b"first");
    assert!(!said.contains(" 0 new") && !said.contains("! "), "{said}");
}

#[rstest]
#[case::to_a_tag_that_the_cache_is_told_of(true)]
#[case::to_one_that_it_does_not_know(false)]
fn an_image_that_was_promoted_stays_for_the_tag_that_it_has_now(#[case] is_told: bool) {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let (share, machine) = (project.directory(), project.machine("pushing"));
    let mut command = machine.command(&app(&project, b"first"));
    command.args(["--cache-to", &share, "--push", &server.reference("team/app:commit")]).assert().success();
    let to: &[&str] = if is_told { &["--cache-to", &share] } else { &[] };
    let said = machine.push("app", &server.reference("team/live:prod"), to);
    assert!(said.contains("sent: 0 of 3 layers"), "{said}");
    assert_eq!(said.contains("given to the shared cache 'file://[SANDBOX]/share': 0 layers"), is_told, "{said}");
    // The tag of the commit goes, and others of its repository stay.
    server.lead_nowhere("team/app", "commit");
    age(&project.sandbox.path("share"), 26 * HOUR);
    let said = collect(&project, &share, &[], &[]);
    let expected = if is_told { "0 layers gone, 3 stay" } else { "3 layers gone" };
    assert!(said.contains(expected), "{said}");
    assert_eq!(said.contains("no tag leads to it  app:latest"), !is_told, "{said}");
}

#[rstest]
#[case::of_amazons(false)]
#[case::of_googles(true)]
fn what_goes_from_a_bucket_is_gone(#[case] is_googles: bool) {
    let moto = peer!(moto);
    let project = Project::new();
    let (local, directory) = (project.directory(), project.sandbox.path("share"));
    let make = |program: &[u8]| drop(project.machine("making").image(&app(&project, program), &["--cache-to", &local]));
    make(b"first");
    age(&directory, 48 * HOUR);
    make(b"second");
    age(&directory, 27 * HOUR);
    // The first may have been made 51 hours ago for the last time, the second three.
    let server = moto.start_behind(Duration::from_secs(2 * HOUR), &directory, Readers::of(is_googles));
    let (id, secret) = server.keys.clone();
    let share = match is_googles {
        true => server.google_share(&project.sandbox, &peer!(openssl), ""),
        false => server.url(),
    };
    let variables = [("AWS_ACCESS_KEY_ID", id.as_str()), ("AWS_SECRET_ACCESS_KEY", &secret)];
    let blobs = || server.names().into_iter().filter(|name| name.starts_with("blobs/")).collect::<BTreeSet<_>>();
    let before = blobs();
    assert_eq!(before.len(), 5);
    let older = ["--older-than", "24h"];
    let gone = going(&project, &share, &older, &variables);
    assert_eq!((gone.len(), blobs()), (2, before.clone()), "nothing has gone yet");

    let said = collect(&project, &share, &older, &variables);
    assert!(said.contains("2 layers gone, ") && said.contains(" freed; 3 stay"), "{said}");
    assert!(!said.contains(" 0 bytes freed"), "{said}");
    let names = gone.iter().map(|digest| digest.replacen("sha256:", "blobs/sha256/", 1)).collect();
    assert_eq!(blobs(), before.difference(&names).cloned().collect());
    assert_eq!(server.names().iter().filter(|name| name.starts_with("sheets/")).count(), 1);
    let machine = project.machine("late");
    let mut command = machine.command(&app(&project, b"second"));
    command.envs(variables).args(["--compression", "zstd", "--cache-from", &share, "-f", "late.tar"]);
    let said = String::from_utf8(command.assert().success().get_output().stderr.clone()).unwrap();
    assert!(said.contains("fetched from a shared cache: 1 layers"), "{said}");
}

#[test]
fn a_sheet_that_is_damaged_or_lost_stops_a_collection_and_no_build() {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let share = server.reference("team/cache");
    project.fill(&share);
    let [tag]: [String; 1] = server.tags("team/cache").try_into().unwrap();
    let manifest = server.ask("GET", &format!("/v2/team/cache/manifests/{tag}")).body;
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let digest = manifest["layers"][0]["digest"].as_str().unwrap();
    let failure = || {
        let outcome = project.sandbox.cmd().args(["cache", "gc", "--remote", &share]).assert().failure();
        let said = String::from_utf8(outcome.get_output().stderr.clone()).unwrap();
        said.replace(&share, "[CACHE]").replace(&tag, "[SHEET]")
    };
    let file = server.blob_file(digest);
    let length = fs::read(&file).unwrap().len();
    fs::write(&file, vec![0; length]).unwrap();
    insta::assert_snapshot!(failure(), @r"
    ✘ ERROR: the shared cache '[CACHE]' was not tidied
      caused by: the sheet [SHEET] cannot be read
      caused by: its bytes do not have their digest
      hint: if it cannot be had back, remove '[SHEET]' there: layers that only its images need go then
    ");
    let said = project.newcomer("damaged", &share, &[]);
    assert!(!said.contains("fetched") && !said.contains("! "), "{said}");
    server.lose("team/cache", digest);
    insta::assert_snapshot!(failure(), @r"
    ✘ ERROR: the shared cache '[CACHE]' was not tidied
      caused by: the sheet [SHEET] cannot be read
      caused by: it is listed, and its bytes are not there
      hint: if it cannot be had back, remove '[SHEET]' there: layers that only its images need go then
    ");
    let said = project.newcomer("lost", &share, &[]);
    assert!(!said.contains("fetched") && !said.contains("! "), "{said}");
    assert_eq!(server.tags("team/cache").first(), Some(&tag));
}

#[test]
fn what_a_registry_does_not_say_is_not_taken_for_a_no() {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let proxy = RegistryProxy::start(&server);
    let share = project.directory();
    let machine = project.machine("pushing");
    let mut command = machine.command(&project.environment);
    command.args(["--cache-to", &share, "--push", &proxy.reference("team/app:v1")]).assert().success();
    age(&project.sandbox.path("share"), 26 * HOUR);
    let would_go = |layers: usize| {
        let said = collect(&project, &share, &["--dry-run"], &[]);
        assert!(said.contains(&format!("{layers} layers would go")), "{said}");
    };
    would_go(0);
    // It says that the manifest is there, and not which one.
    proxy.fail_always(Request::HeadManifest, Fault::NoDigest);
    would_go(0);
    // It hides its repository from whoever has no right to it.
    proxy.fail_always(Request::HeadManifest, Fault::Refused(404, "MANIFEST_UNKNOWN"));
    proxy.fail_always(Request::Tags, Fault::Refused(404, "NAME_UNKNOWN"));
    would_go(0);
    // It shows others of the repository's tags.
    proxy.mend();
    proxy.fail_always(Request::HeadManifest, Fault::Refused(404, "MANIFEST_UNKNOWN"));
    would_go(3);
}

#[rstest]
#[case::bad_request(Fault::Refused(400, "DIGEST_INVALID"))]
#[case::no_such_method(Fault::Status(405, ""))]
#[case::not_implemented(Fault::Status(501, ""))]
#[case::a_reason_of_its_own(Fault::Refused(409, "IN_USE"))]
fn a_registry_that_does_not_delete_is_a_cache_all_the_same(#[case] fault: Fault) {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup::default());
    let proxy = RegistryProxy::start(&server);
    let share = proxy.reference("team/cache");
    proxy.fail_always(Request::DeleteManifest, fault);
    let (_, said) = project.machine("first").image(&project.environment, &["--cache-to", &share]);
    assert!(said.contains("given to the shared cache") && !said.contains("! "), "{said}");
    let traffic = proxy.traffic();
    let (asked, written) = (traffic.of(Request::DeleteManifest).requests, traffic.of(Request::PutManifest).requests);
    assert!((1..written).contains(&asked), "none is asked for twice: {:#?}", traffic.log);
    assert!(project.newcomer("second", &share, &[]).contains("fetched from a shared cache: 1 layers"));
}

#[test]
fn a_collection_trusts_the_registries_of_images_with_authorities_of_their_own() {
    let registry = peer!(docker_registry);
    let project = Project::new();
    let server = registry.start(&project.sandbox.path("registry"), Setup { tls: true, ..Setup::default() });
    let certificates = project.sandbox.path("home/.config/containers/certs.d").join(server.host());
    fs::create_dir_all(&certificates).unwrap();
    fs::copy(server.authority(), certificates.join("ca.crt")).unwrap();
    let (share, target) = (project.directory(), server.reference("team/app:v1"));
    let machine = project.machine("pushing");
    let mut command = machine.command(&project.environment);
    command.args(["--cache-to", &share, "--push", &target]).assert().success();
    age(&project.sandbox.path("share"), 26 * HOUR);
    // Only the sheets know of that registry.
    let said = collect(&project, &share, &[], &[]);
    assert!(said.contains("0 layers gone, 3 stay"), "{said}");
}
