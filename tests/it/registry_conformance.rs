//! What of the OCI distribution specification matters to the product, each against a real registry.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use layerhold::blob::Digest;
use layerhold::event::Silent;
use layerhold::registry::{
    Credentials, Deletion, PutManifest, Registries, Repository, Settings, UploadError, Uploaded,
};
use rstest::rstest;

use crate::peers::peer;
use crate::registry_messages::basic;
use crate::registry_proxy::{Fault, RegistryProxy, Request};
use crate::registry_server::{LOGIN, RegistryServer, Setup};
use crate::registry_tokens::Tokens;
use crate::sandbox::Sandbox;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// What the product sends at a time.
const CHUNK: u64 = 8 << 20;

/// A registry, and a proxy before it.
struct Place {
    sandbox: Sandbox,
    server: RegistryServer,
    proxy: RegistryProxy,
}

impl Place {
    fn new(setup: Setup, tokens: Option<Tokens>) -> Option<Self> {
        let program = crate::peers::docker_registry()?;
        let sandbox = Sandbox::new();
        let server = program.start(&sandbox.path("registry"), setup);
        let proxy = RegistryProxy::start_with(&server, tokens);
        Some(Self { sandbox, server, proxy })
    }

    /// Does something with a repository, through the proxy, without credentials.
    fn with<T>(&self, name: &str, work: impl FnOnce(&Repository<'_>) -> T) -> T {
        with(Settings::default(), &self.proxy.reference(name), work)
    }
}

/// Does something with a repository.
fn with<T>(settings: Settings, reference: &str, work: impl FnOnce(&Repository<'_>) -> T) -> T {
    let registries = Registries::new(settings, &Silent);
    work(&registries.repository(&reference.parse().unwrap()))
}

/// Bytes that do not compress, the same for the same name.
fn noise(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Uploads a blob to a good end.
fn upload(repository: &Repository<'_>, blob: &[u8], from: &[&str]) -> (Digest, Uploaded) {
    let digest = Digest::of(blob);
    let from: Vec<_> = from.iter().map(|name| (*name).to_owned()).collect();
    let uploaded = repository.upload(&digest, blob.len() as u64, &from, |out| out.write_all(blob));
    (digest, uploaded.unwrap())
}

/// All of a blob that is there.
fn read(repository: &Repository<'_>, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = repository.read_blob(digest, 1 << 30, |blob| blob.read_to_end(&mut bytes)).unwrap();
    read.unwrap().unwrap();
    bytes
}

/// A manifest over blobs of these digests and sizes: the config first.
fn manifest(blobs: &[(Digest, usize)]) -> Vec<u8> {
    let descriptor = |kind: &str, (digest, size): &(Digest, usize)| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": size});
    let layers: Vec<_> = blobs[1..].iter().map(|blob| descriptor("layer.v1.tar", blob)).collect();
    let config = descriptor("config.v1+json", &blobs[0]);
    serde_json::to_vec(
        &serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}),
    )
    .unwrap()
}

/// Ends the test where there is no registry.
macro_rules! place {
    ($($argument:expr),*) => {{
        peer!(docker_registry);
        Place::new($($argument),*).unwrap()
    }};
}

#[test]
fn a_repository_that_is_not_there_has_nothing() {
    let place = place!(Setup::default(), None);
    place.with("team/none", |repository| {
        let digest = Digest::of(b"nothing");
        assert_eq!(repository.tags().unwrap(), Vec::<String>::new());
        assert_eq!(repository.manifest_digest("latest").unwrap(), None);
        assert_eq!(repository.manifest("latest", 1 << 20).unwrap(), None);
        assert_eq!(repository.has_blobs(&[digest]).unwrap(), BTreeSet::new());
        assert!(repository.read_blob(&digest, 7, |_| ()).unwrap().is_none());
    });
}

#[test]
fn small_blobs_go_in_one_piece_and_large_ones_in_chunks() {
    let place = place!(Setup::default(), None);
    place.with("team/web", |repository| {
        for (blob, chunks) in [(noise("none", 0), 0), (noise("small", 70_000), 0), (noise("large", 2 * CHUNK + 5), 3)] {
            place.proxy.traffic();
            let (digest, uploaded) = upload(repository, &blob, &[]);
            assert_eq!(uploaded, Uploaded::Sent);
            let traffic = place.proxy.traffic();
            assert_eq!(traffic.of(Request::PostUpload).requests, 1, "{:#?}", traffic.log);
            assert_eq!(traffic.of(Request::PatchUpload).requests, chunks, "{:#?}", traffic.log);
            assert_eq!(traffic.of(Request::PutUpload).requests, 1, "{:#?}", traffic.log);
            assert_eq!(traffic.sent(), blob.len() as u64, "every byte goes once");
            assert!(read(repository, &digest) == blob, "{} bytes came back as others", blob.len());
        }
    });
}

#[test]
fn presence_is_asked_with_one_request_a_blob() {
    let place = place!(Setup::default(), None);
    place.with("team/web", |repository| {
        let here: Vec<_> = (0..20).map(|n| upload(repository, format!("blob {n}").as_bytes(), &[]).0).collect();
        let absent: Vec<_> = (0..20).map(|n| Digest::of(format!("absent {n}").as_bytes())).collect();
        place.proxy.traffic();
        let found = repository.has_blobs(&[here.clone(), absent].concat()).unwrap();
        assert_eq!(found, here.into_iter().collect());
        let traffic = place.proxy.traffic();
        assert_eq!(traffic.of(Request::HeadBlob).requests, 40);
        // Whether to log in was asked for pushes until now.
        assert_eq!((traffic.requests(), traffic.of(Request::Ping).requests), (41, 1), "{:#?}", traffic.log);
    });
}

#[test]
fn a_blob_of_another_repository_is_mounted() {
    let place = place!(Setup::default(), None);
    let blob = noise("shared", 2 * CHUNK);
    place.with("team/base", |base| upload(base, &blob, &[]));
    place.proxy.traffic();
    place.with("team/web", |web| {
        let (digest, uploaded) = upload(web, &blob, &["team/base"]);
        assert_eq!(uploaded, Uploaded::Mounted);
        assert!(web.has_blobs(&[digest]).unwrap().contains(&digest));
    });
    let traffic = place.proxy.traffic();
    assert_eq!((traffic.of(Request::PostUpload).requests, traffic.sent()), (1, 0), "{:#?}", traffic.log);

    // Where there is nothing to mount, the session that the question has begun is used.
    place.with("team/web", |web| {
        assert_eq!(upload(web, b"not there", &["team/base"]).1, Uploaded::Sent);
    });
    let traffic = place.proxy.traffic();
    assert_eq!(traffic.of(Request::PutUpload).requests, 1, "{:#?}", traffic.log);
    assert_eq!(traffic.of(Request::PostUpload).requests, 1, "{:#?}", traffic.log);
}

#[test]
fn a_few_repositories_are_asked_before_a_blob_is_sent() {
    let place = place!(Setup::default(), None);
    for (name, blob) in [("base", "shared"), ("gone", "another"), ("old", "another"), ("new", "another")] {
        place.with(&format!("team/{name}"), |other| upload(other, blob.as_bytes(), &[]));
    }
    place.proxy.traffic();
    place.with("team/web", |web| {
        let asked = |from: &[&str]| {
            let uploaded = upload(web, b"shared", from).1;
            (uploaded, place.proxy.traffic().of(Request::PostUpload).requests)
        };
        assert_eq!(asked(&["team/gone", "team/web", "team/old", "team/new", "team/base"]), (Uploaded::Sent, 3));
        assert_eq!(asked(&["team/gone", "team/old", "team/base"]), (Uploaded::Mounted, 3));
    });
}

#[rstest]
// In the midst of a chunk, the second one.
#[case(Fault::CutAndKeep(3 << 20))]
// Before its first byte.
#[case(Fault::CutAndKeep(0))]
fn a_cut_upload_goes_on_where_the_registry_is(#[case] fault: Fault) {
    let place = place!(Setup::default(), None);
    place.proxy.fail_after(1, Request::PatchUpload, fault);
    let blob = noise("resumed", 3 * CHUNK);
    place.with("team/web", |repository| {
        let (digest, _) = upload(repository, &blob, &[]);
        assert!(repository.has_blobs(&[digest]).unwrap().contains(&digest));
    });
    let traffic = place.proxy.traffic();
    assert_eq!(traffic.of(Request::PostUpload).requests, 1, "{:#?}", traffic.log);
    assert!(traffic.of(Request::GetUpload).requests >= 1, "{:#?}", traffic.log);
    assert_eq!(traffic.sent(), blob.len() as u64, "what had arrived is not sent again: {:#?}", traffic.log);
}

#[test]
fn a_source_is_read_again_only_where_something_has_to_be_sent_again() {
    let place = place!(Setup::default(), None);
    let blob = noise("read again", 2 * CHUNK + 1);
    place.with("team/web", |repository| {
        for (name, fault, expected) in [("whole", None, 1), ("cut", Some(Fault::CutAndKeep(1 << 20)), 2)] {
            place.proxy.fail(Request::PatchUpload, fault.as_slice());
            let blob = [name.as_bytes(), &blob].concat();
            let mut passes = 0;
            let written = repository.upload(&Digest::of(&blob), blob.len() as u64, &[], |out| {
                passes += 1;
                // Pieces of any length.
                blob.chunks(777_777).try_for_each(|piece| out.write_all(piece))
            });
            assert_eq!((written.unwrap(), passes), (Uploaded::Sent, expected), "{name}");
            assert!(read(repository, &Digest::of(&blob)) == blob);
        }
        // One that says too late that it was wrong has not become a blob.
        let failed = repository.upload(&Digest::of(b"wrong"), 5, &[], |out| {
            out.write_all(b"wrong")?;
            Err(std::io::Error::other("it changed meanwhile"))
        });
        assert!(matches!(failed, Err(UploadError::Source(_))), "{failed:?}");
        // One that comes to an end too early is not waited for.
        let failed = repository.upload(&Digest::of(b"short"), 5, &[], |out| out.write_all(b"sho")).unwrap_err();
        assert!(matches!(failed, UploadError::Registry(_)), "{failed:?}");
        assert_eq!(repository.has_blobs(&[Digest::of(b"wrong"), Digest::of(b"short")]).unwrap(), BTreeSet::new());
    });
}

#[rstest]
// docker-registry 2.8 loses a session in which a chunk was cut.
#[case(Request::PatchUpload, Fault::Cut(3 << 20))]
#[case(Request::PatchUpload, Fault::Silence)]
#[case(Request::PatchUpload, Fault::Status(416, ""))]
#[case(Request::PatchUpload, Fault::Status(404, ""))]
#[case(Request::PatchUpload, Fault::Status(503, ""))]
#[case(Request::PutUpload, Fault::Silence)]
#[case(Request::PutUpload, Fault::Status(500, ""))]
#[case(Request::PostUpload, Fault::Status(429, "Retry-After: 0"))]
fn an_upload_survives(#[case] request: Request, #[case] fault: Fault) {
    let place = place!(Setup::default(), None);
    place.proxy.fail_after(usize::from(request == Request::PatchUpload), request, fault);
    let blob = noise("survives", 2 * CHUNK + 1);
    place.with("team/web", |repository| {
        let (digest, _) = upload(repository, &blob, &[]);
        assert!(read(repository, &digest) == blob);
    });
    let traffic = place.proxy.traffic();
    assert!(traffic.sent() <= 2 * blob.len() as u64 + CHUNK, "{:#?}", traffic.log);
}

#[test]
fn addresses_in_answers_may_be_relative() {
    let place = place!(Setup { relative: true, ..Setup::default() }, None);
    place.with("team/web", |repository| {
        let (digest, _) = upload(repository, &noise("relative", CHUNK + 1), &[]);
        assert!(repository.has_blobs(&[digest]).unwrap().contains(&digest));
    });
}

#[test]
fn a_blob_that_is_not_what_it_was_said_to_be_is_refused() {
    let place = place!(Setup::default(), None);
    place.with("team/web", |repository| {
        for size in [100, CHUNK + 100] {
            let (said, is) = (noise("said", size), noise("is", size));
            let digest = Digest::of(&said);
            let refused = repository.upload(&digest, size, &[], |out| out.write_all(&is)).unwrap_err();
            let UploadError::Registry(refused) = refused else { panic!("{refused:?}") };
            assert!(refused.to_string().contains(&digest.to_string()), "{refused}");
            assert_eq!(repository.has_blobs(&[digest]).unwrap(), BTreeSet::new());
        }
    });
    assert_eq!(place.server.blobs("team/web"), Vec::<String>::new());
}

#[test]
fn a_source_that_fails_is_told_apart_from_a_registry_that_does() {
    let place = place!(Setup::default(), None);
    place.with("team/web", |repository| {
        let failed = repository.upload(&Digest::of(b"whole"), 5, &[], |_| Err(std::io::Error::other("no such layer")));
        assert!(matches!(failed, Err(UploadError::Source(error)) if error.to_string() == "no such layer"));
    });
}

#[test]
fn a_manifest_is_stored_once_its_blobs_are_there() {
    let place = place!(Setup::default(), None);
    place.with("team/web", |repository| {
        let (config, layer) = (Digest::of(b"{}"), Digest::of(b"layer"));
        let bytes = manifest(&[(config, 2), (layer, 5)]);
        assert_eq!(repository.put_manifest("v1", MANIFEST, &bytes).unwrap(), PutManifest::LacksBlobs);
        assert_eq!(place.server.tags("team/web"), Vec::<String>::new());
        upload(repository, b"{}", &[]);
        assert_eq!(repository.put_manifest("v1", MANIFEST, &bytes).unwrap(), PutManifest::LacksBlobs);
        upload(repository, b"layer", &[]);
        assert_eq!(repository.put_manifest("v1", MANIFEST, &bytes).unwrap(), PutManifest::Stored);
        let digest = Digest::of(&bytes);
        for name in ["v1", &digest.to_string()] {
            assert_eq!(repository.manifest_digest(name).unwrap(), Some(digest));
            assert_eq!(repository.manifest(name, 1 << 20).unwrap().as_ref(), Some(&bytes));
        }
        assert!(repository.manifest("v1", 10).is_err(), "it is longer than that");
        // The collection of garbage has taken a blob.
        place.server.lose("team/web", &layer.to_string());
        assert_eq!(repository.put_manifest("v2", MANIFEST, &bytes).unwrap(), PutManifest::LacksBlobs);
        assert_eq!(repository.has_blobs(&[config, layer]).unwrap(), [config].into());
        assert_eq!(place.server.tags("team/web"), ["v1"]);
    });
}

#[test]
fn an_index_is_stored_once_its_manifests_are_there() {
    let place = place!(Setup::default(), None);
    place.with("team/web", |repository| {
        let manifests = ["amd64", "arm64"].map(|architecture| {
            let (config, _) = upload(repository, architecture.as_bytes(), &[]);
            (architecture, manifest(&[(config, architecture.len())]))
        });
        let entries = manifests.each_ref().map(|(architecture, bytes)| {
            serde_json::json!({"mediaType": MANIFEST, "digest": Digest::of(bytes).to_string(), "size": bytes.len(),
                "platform": {"os": "linux", "architecture": architecture}})
        });
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        let index = serde_json::to_vec(&index).unwrap();
        assert_eq!(repository.put_manifest("both", INDEX, &index).unwrap(), PutManifest::LacksBlobs);
        for (_, bytes) in &manifests {
            let digest = Digest::of(bytes).to_string();
            assert_eq!(repository.put_manifest(&digest, MANIFEST, bytes).unwrap(), PutManifest::Stored);
        }
        assert_eq!(place.server.tags("team/web"), Vec::<String>::new());
        assert_eq!(repository.put_manifest("both", INDEX, &index).unwrap(), PutManifest::Stored);
        assert_eq!(repository.manifest("both", 1 << 20).unwrap(), Some(index));
        assert_eq!(repository.tags().unwrap(), ["both"]);
    });
}

/// A repository with a tagged manifest; its digest.
fn tagged(repository: &Repository<'_>, tags: &[&str]) -> Digest {
    let (config, _) = upload(repository, b"{}", &[]);
    let bytes = manifest(&[(config, 2)]);
    for tag in tags {
        assert_eq!(repository.put_manifest(tag, MANIFEST, &bytes).unwrap(), PutManifest::Stored);
    }
    Digest::of(&bytes)
}

#[test]
fn all_pages_of_tags_are_read() {
    let place = place!(Setup::default(), None);
    let tags = ["a", "b", "c", "d", "e", "f", "g"];
    place.with("team/web", |repository| {
        tagged(repository, &tags);
        for page in [2, 3, 7, 100] {
            place.proxy.page_tags(page);
            place.proxy.traffic();
            let mut listed = repository.tags().unwrap();
            listed.sort();
            assert_eq!(listed, tags, "pages of {page}");
            assert_eq!(place.proxy.traffic().of(Request::Tags).requests, 7_u64.div_ceil(page as u64));
        }
    });
}

#[rstest]
#[case(true, Deletion::Done)]
#[case(false, Deletion::NotAllowed)]
fn a_manifest_is_deleted_where_that_is_allowed(#[case] deletes: bool, #[case] expected: Deletion) {
    let place = place!(Setup { deletes, ..Setup::default() }, None);
    place.with("team/web", |repository| {
        let digest = tagged(repository, &["v1", "v2"]);
        assert_eq!(repository.delete_manifest(&digest).unwrap(), expected);
        assert_eq!(repository.manifest_digest("v1").unwrap(), (!deletes).then_some(digest));
        if deletes {
            assert_eq!(repository.delete_manifest(&digest).unwrap(), Deletion::Absent);
        }
    });
}

#[rstest]
#[case(Fault::Refused(400, "DIGEST_INVALID"))]
#[case(Fault::Status(405, ""))]
#[case(Fault::Status(501, ""))]
fn a_registry_may_say_in_several_ways_that_it_does_not_delete(#[case] fault: Fault) {
    let place = place!(Setup { deletes: true, ..Setup::default() }, None);
    place.proxy.fail_always(Request::DeleteManifest, fault);
    place.with("team/web", |repository| {
        let digest = tagged(repository, &["v1"]);
        assert_eq!(repository.delete_manifest(&digest).unwrap(), Deletion::NotAllowed);
    });
    assert_eq!(place.proxy.traffic().of(Request::DeleteManifest).requests, 1, "it is asked once");
}

#[test]
fn a_manifest_whose_digest_is_not_said_is_there_all_the_same() {
    let place = place!(Setup::default(), None);
    place.proxy.fail_always(Request::HeadManifest, Fault::NoDigest);
    place.with("team/web", |repository| {
        let digest = tagged(repository, &["v1"]);
        assert_eq!(repository.manifest_digest("v1").unwrap(), Some(digest));
        assert_eq!(repository.manifest_digest("v2").unwrap(), None);
    });
    assert_eq!(place.proxy.traffic().of(Request::GetManifest).requests, 1);
}

#[test]
fn a_blob_is_read_on_where_the_connection_broke() {
    let place = place!(Setup::default(), None);
    let blob = noise("read", 3 << 20);
    place.with("team/web", |repository| {
        let (digest, _) = upload(repository, &blob, &[]);
        place.proxy.traffic();
        place.proxy.fail(Request::GetBlob, &[Fault::CutAnswer(1 << 20), Fault::Status(500, ""), Fault::CutAnswer(0)]);
        assert!(read(repository, &digest) == blob);
    });
    assert_eq!(place.proxy.traffic().of(Request::GetBlob).received, 3 << 20);
}

#[test]
fn another_manifest_than_the_one_asked_for_is_no_answer() {
    let place = place!(Setup::default(), None);
    place.with("team/web", |repository| {
        let digest = tagged(repository, &["v1"]);
        place.proxy.fail_always(Request::GetManifest, Fault::Damage);
        let error = repository.manifest(&digest.to_string(), 1 << 20).unwrap_err();
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
        place.proxy.fail_always(Request::PutManifest, Fault::OtherDigest);
        let error = repository.put_manifest("v2", MANIFEST, &manifest(&[(Digest::of(b"{}"), 2)])).unwrap_err();
        assert!(error.to_string().contains(&"0".repeat(64)), "{error}");
    });
}

#[test]
fn a_registry_that_always_fails_is_not_asked_for_ever() {
    let place = place!(Setup::default(), None);
    place.with("team/web", |repository| {
        for request in [Request::HeadManifest, Request::Tags] {
            place.proxy.fail_always(request, Fault::Status(500, "Retry-After: 0"));
        }
        repository.manifest_digest("v1").unwrap_err();
        repository.tags().unwrap_err();
    });
    let traffic = place.proxy.traffic();
    for request in [Request::HeadManifest, Request::Tags] {
        let asked = traffic.of(request).requests;
        assert!((2..=5).contains(&asked), "{request:?} was sent {asked} times");
    }
}

/// With a file of logins as `docker login` leaves it.
fn logged_in(file: &Path, host: &str) -> Settings {
    let login = basic(LOGIN.0, LOGIN.1);
    let auth = login.strip_prefix("Basic ").unwrap();
    fs::write(file, serde_json::json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
    let mut settings = Settings::default();
    settings.credentials = Credentials { files: vec![file.to_owned()], path: None };
    settings
}

#[test]
fn a_login_is_used_where_one_is_demanded() {
    let place = place!(Setup { login: true, ..Setup::default() }, None);
    with(
        logged_in(&place.sandbox.path("auth.json"), &place.proxy.host()),
        &place.proxy.reference("team/web"),
        |repository| {
            let digest = tagged(repository, &["v1"]);
            assert_eq!(repository.manifest_digest("v1").unwrap(), Some(digest));
        },
    );
    place.with("team/web", |repository| {
        let refused = repository.manifest_digest("v1").unwrap_err();
        assert!(refused.to_string().ends_with("to somebody who has not logged in"), "{refused}");
        repository.tags().unwrap_err();
        repository.upload(&Digest::of(b"x"), 1, &[], |out| out.write_all(b"x")).unwrap_err();
    });
}

#[rstest]
#[case::of_everybody(Tokens::for_all())]
#[case::of_who_logs_in(Tokens::for_login())]
#[case::that_are_soon_used_up(Tokens::for_login().good_for(4))]
fn tokens_are_asked_for_and_used(#[case] tokens: Tokens) {
    let place = place!(Setup::default(), Some(tokens));
    let settings = || logged_in(&place.sandbox.path("auth.json"), &place.proxy.host());
    let blob = noise("with tokens", 2 * CHUNK + 1);
    with(settings(), &place.proxy.reference("team/base"), |repository| upload(repository, &blob, &[]));
    with(settings(), &place.proxy.reference("team/web"), |repository| {
        let (digest, uploaded) = upload(repository, &blob, &["team/base"]);
        assert_eq!(uploaded, Uploaded::Mounted, "a token is asked for that reads in the other repository too");
        assert!(repository.has_blobs(&[digest]).unwrap().contains(&digest));
        tagged(repository, &["v1"]);
        assert_eq!(repository.tags().unwrap(), ["v1"]);
    });
}

#[rstest]
// Where the upload goes on is said at its begin.
#[case(Request::PostUpload, 1000)]
#[case(Request::PostUpload, CHUNK + 1)]
// Each request is sent on, its body with it.
#[case(Request::PatchUpload, CHUNK + 1)]
#[case(Request::PutUpload, 1000)]
#[case(Request::PutUpload, CHUNK + 1)]
fn an_upload_may_go_on_elsewhere_where_nobody_learns_who_asks(#[case] request: Request, #[case] size: u64) {
    let place = place!(Setup::default(), Some(Tokens::for_all()));
    let other = RegistryProxy::start(&place.server);
    place.proxy.lead(request, &other);
    let blob = noise("elsewhere", size);
    place.with("team/web", |repository| {
        let (digest, uploaded) = upload(repository, &blob, &[]);
        assert_eq!(uploaded, Uploaded::Sent);
        assert!(read(repository, &digest) == blob);
    });
    let (traffic, elsewhere) = (place.proxy.traffic(), other.traffic());
    assert!(elsewhere.sent() > 0 || elsewhere.of(Request::PutUpload).requests > 0, "{:#?}", elsewhere.log);
    assert!(traffic.authorized > 0, "{:#?}", traffic.log);
    assert_eq!(elsewhere.authorized, 0, "{:#?}", elsewhere.log);
    assert!(traffic.sent() + elsewhere.sent() <= 2 * size, "{:#?} {:#?}", traffic.log, elsewhere.log);
}

#[test]
fn addresses_that_lead_round_in_a_circle_come_to_an_end() {
    let place = place!(Setup::default(), None);
    place.proxy.lead(Request::PutUpload, &place.proxy);
    place.with("team/web", |repository| {
        let refused = repository.upload(&Digest::of(b"x"), 1, &[], |out| out.write_all(b"x")).unwrap_err();
        let UploadError::Registry(refused) = refused else { panic!("{refused:?}") };
        assert!(refused.to_string().ends_with("(status 307)"), "{refused}");
    });
}

#[test]
fn a_blob_may_lie_elsewhere_where_nobody_learns_who_asks() {
    let place = place!(Setup::default(), Some(Tokens::for_all()));
    let storage = RegistryProxy::start(&place.server);
    place.proxy.lead(Request::GetBlob, &storage);
    // The connection breaks there too.
    storage.fail(Request::GetBlob, &[Fault::CutAnswer(100_000)]);
    let blob = noise("in storage", 300_000);
    place.with("team/web", |repository| {
        let (digest, _) = upload(repository, &blob, &[]);
        assert!(read(repository, &digest) == blob);
    });
    let elsewhere = storage.traffic();
    assert_eq!(elsewhere.of(Request::GetBlob).requests, 2, "{:#?}", elsewhere.log);
    assert_eq!(elsewhere.authorized, 0, "{:#?}", elsewhere.log);
    assert_eq!(place.proxy.traffic().of(Request::GetBlob).received, 0);
}

#[test]
fn what_must_not_be_read_elsewhere_is_sent() {
    let place = place!(Setup { deletes: true, ..Setup::default() }, Some(Tokens::for_all().but_for("team/closed")));
    let blobs = [noise("first", 3000), noise("second", 3000)];
    place.with("team/web", |repository| {
        for blob in &blobs {
            assert_eq!(upload(repository, blob, &["team/closed"]).1, Uploaded::Sent);
        }
        let traffic = place.proxy.traffic();
        assert_eq!(traffic.sent(), 6000, "{:#?}", traffic.log);
        // It is tried once with the usual token, and once with one that was to be good for it.
        assert_eq!(traffic.of(Request::PostUpload).requests, 2 + 2, "{:#?}", traffic.log);
        // To delete is a right of its own.
        let digest = tagged(repository, &["v1"]);
        assert_eq!(repository.delete_manifest(&digest).unwrap(), Deletion::Done);
    });
}

#[test]
fn whoever_gets_no_token_is_told_so() {
    let place = place!(Setup::default(), Some(Tokens::for_login()));
    place.with("team/web", |repository| {
        repository.manifest_digest("v1").unwrap_err();
    });
    let asked = place.proxy.traffic().of(Request::Token).requests;
    assert!(asked <= 2, "{asked} questions for a token");
}

#[test]
fn a_registry_behind_tls_is_reached_with_its_authority_alone() {
    let place = place!(Setup { tls: true, ..Setup::default() }, None);
    let reference = place.server.reference("team/web");
    let mut trusting = Settings::default();
    trusting.certificates = fs::read(place.server.authority()).unwrap();
    with(trusting, &reference, |repository| {
        let digest = tagged(repository, &["v1"]);
        assert_eq!(repository.manifest_digest("v1").unwrap(), Some(digest));
    });
    with(Settings::default(), &reference, |repository| {
        let refused = repository.manifest_digest("v1").unwrap_err();
        let whole = format!("{refused}: {:?}", std::error::Error::source(&refused));
        assert!(whole.contains("ertificate"), "{whole}");
    });
}
