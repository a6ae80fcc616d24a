use std::io::{Read, Write};
use std::path::Path;

use super::*;
use crate::blob::{DiffId, LayerKeyBuilder};
use crate::event::Silent;

fn key(name: &str) -> LayerKey {
    LayerKeyBuilder::new("layerhold store tests").field(name.as_bytes()).finish()
}

fn record(name: &str, blob: Option<&[u8]>) -> LayerRecord {
    let bytes = blob.unwrap_or(b"not kept");
    LayerRecord {
        key: key(name),
        digest: Digest::of(bytes),
        diff_id: DiffId(Digest::of(bytes)),
        size: bytes.len() as u64,
        tar_size: 1024,
        media_type: "application/vnd.oci.image.layer.v1.tar".to_owned(),
        has_blob: blob.is_some(),
        is_hearsay: false,
        contents: vec![Content { name: name.to_owned(), size: 512 }],
    }
}

fn record_layers(store: &LayerStore, records: &[LayerRecord]) {
    for record in records {
        store.record_layer(record).unwrap();
    }
    store.index_layers(records).unwrap();
}

fn keep(store: &LayerStore, bytes: &[u8]) {
    let mut writer = store.blob_writer().unwrap();
    writer.write_all(bytes).unwrap();
    writer.commit(&Digest::of(bytes)).unwrap();
}

fn files_below(path: &Path) -> usize {
    std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}

#[test]
fn what_was_recorded_is_found_by_another_opening() {
    let directory = tempfile::tempdir().unwrap();
    let (kept, made) = (record("kept", Some(b"bytes")), record("made", None));
    let store = LayerStore::open(directory.path()).unwrap();
    keep(&store, b"bytes");
    record_layers(&store, &[kept.clone(), made.clone()]);

    let store = LayerStore::open(directory.path()).unwrap();
    let found = store.lookup(&[key("made"), key("unknown"), key("kept")]).unwrap();
    assert_eq!(found, [Some(made), None, Some(kept.clone())]);
    let mut bytes = Vec::new();
    store.read_blob(&kept.digest, kept.size, None).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"bytes");
}

#[test]
fn a_lost_or_damaged_index_is_made_from_the_records() {
    for damage in [
        |index: &Path| std::fs::remove_dir_all(index).unwrap(),
        |index: &Path| std::fs::write(index.join("db"), b"garbage").unwrap(),
        |index: &Path| std::fs::write(index.join("conf"), b"garbage").unwrap(),
        |index: &Path| {
            let db = index.join("db");
            let length = std::fs::metadata(&db).unwrap().len();
            std::fs::write(&db, vec![0xa5; length as usize]).unwrap();
        },
        |index: &Path| {
            std::fs::remove_dir_all(index).unwrap();
            std::fs::write(index, b"a file").unwrap();
        },
    ] {
        let directory = tempfile::tempdir().unwrap();
        let store = LayerStore::open(directory.path()).unwrap();
        let records: Vec<_> = (0..50).map(|n| record(&n.to_string(), None)).collect();
        record_layers(&store, &records);
        damage(&directory.path().join("index"));
        let keys: Vec<_> = records.iter().map(|record| record.key).collect();
        let found: Vec<_> = store.lookup(&keys).unwrap().into_iter().flatten().collect();
        assert!(found == records, "{} of {} found", found.len(), records.len());
        assert_eq!(files_below(&directory.path().join("tmp")), 0);
    }
}

#[test]
fn a_layer_whose_bytes_are_gone_is_unknown() {
    let directory = tempfile::tempdir().unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    let record = record("kept", Some(b"bytes"));
    record_layers(&store, std::slice::from_ref(&record));
    assert_eq!(store.lookup(&[record.key]).unwrap(), [None], "never there");
    keep(&store, b"bytes");
    assert_eq!(store.lookup(&[record.key]).unwrap(), [Some(record.clone())]);
    std::fs::write(store.blob(&record.digest), b"byte").unwrap();
    assert_eq!(store.lookup(&[record.key]).unwrap(), [None], "cut short");
}

#[test]
fn a_flipped_bit_is_not_read_as_the_blob() {
    let directory = tempfile::tempdir().unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    keep(&store, b"bytes");
    let digest = Digest::of(b"bytes");
    let known = store.verify_blob(&digest, 5, &Silent).unwrap();
    let read = |known: Option<&BlobStamp>| store.read_blob(&digest, 5, known).unwrap();
    assert!(matches!(read(Some(&known)), KeptBlob::Known(_)));
    std::fs::write(store.blob(&digest), b"bytez").unwrap();
    for known in [None, Some(&known)] {
        let error = read(known).read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_blob_that_is_not_committed_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    let before = files_below(directory.path());
    let mut writer = store.blob_writer().unwrap();
    writer.write_all(b"half").unwrap();
    drop(writer);
    assert_eq!(files_below(directory.path()), before);
}

#[test]
fn a_torn_record_is_as_good_as_none() {
    let directory = tempfile::tempdir().unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    let (whole, torn) = (record("whole", None), record("torn", None));
    record_layers(&store, &[whole.clone(), torn.clone()]);
    let path = store.record(&torn.key);
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 10, 66, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(store.lookup(&[whole.key, torn.key]).unwrap(), [Some(whole.clone()), None]);
    }
}

#[test]
fn another_format_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("layerhold-store"), "layerhold layer store, format 2\n").unwrap();
    let error = LayerStore::open(directory.path()).unwrap_err();
    assert!(error.to_string().ends_with(r#"its format is "layerhold layer store, format 2""#), "{error}");
    assert!(error.hint().unwrap().contains("LAYERHOLD_CACHE"));
    assert_eq!(files_below(directory.path()), 1);
}

#[test]
fn many_threads_and_openings_share_one_index() {
    let directory = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let root = directory.path();
            scope.spawn(move || {
                let store = LayerStore::open(root).unwrap();
                for n in 0..5 {
                    let record = record(&format!("{thread}-{n}"), None);
                    record_layers(&store, std::slice::from_ref(&record));
                    assert_eq!(store.lookup(&[record.key]).unwrap(), [Some(record)]);
                }
            });
        }
    });
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    let keys: Vec<_> = (0..8).flat_map(|t| (0..5).map(move |n| key(&format!("{t}-{n}")))).collect();
    assert!(store.lookup(&keys).unwrap().iter().all(Option::is_some));
}

#[test]
fn memories_come_back_or_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    store.remember(Shelf::Files, &[(b"stamp".to_vec(), b"hash".to_vec())]).unwrap();
    assert_eq!(store.recall(Shelf::Files).unwrap(), HashMap::from([(b"stamp".to_vec(), b"hash".to_vec())]));
    std::fs::remove_dir_all(directory.path().join("memory")).unwrap();
    assert!(store.recall(Shelf::Files).unwrap().is_empty());
}

fn image(name: &str, used_at: u64, layers: &[&LayerRecord]) -> ImageRecord {
    ImageRecord {
        name: name.to_owned(),
        tag: "latest".to_owned(),
        image_id: Digest::of(name.as_bytes()),
        manifest_digest: Digest::of(name.as_bytes()),
        platforms: vec![],
        layers: layers.iter().map(|record| record.key).collect(),
        size: layers.iter().map(|record| record.size).sum(),
        made_at: used_at,
        used_at,
        graph: vec![GraphNode { name: name.to_owned(), root: true, references: vec![] }],
    }
}

#[test]
fn of_images_made_in_one_second_the_last_one_has_the_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    let images = [1, 2, 3, 4, 5, 2, 1].map(|n: u8| ImageRecord { image_id: Digest::of(&[n]), ..image("app", 7, &[]) });
    for image in images {
        // Longer than the tick of the system's clock.
        std::thread::sleep(std::time::Duration::from_millis(20));
        store.record_image(&image).unwrap();
        assert_eq!(store.image_named("app").unwrap().map(|found| found.image_id), Some(image.image_id));
    }
}

/// A store with two images that share a layer, and a layer that nobody has.
fn filled_store(directory: &Path) -> (LayerStore, [LayerRecord; 4]) {
    let store = LayerStore::open(directory).unwrap();
    let records = [&b"shared"[..], b"old", b"new", b"loose"]
        .map(|bytes| record(std::str::from_utf8(bytes).unwrap(), Some(bytes)));
    for bytes in [&b"shared"[..], b"old", b"new", b"loose"] {
        keep(&store, bytes);
    }
    record_layers(&store, &records);
    store.record_image(&image("first", 1, &[&records[0], &records[1]])).unwrap();
    store.record_image(&image("second", 2, &[&records[0], &records[2]])).unwrap();
    (store, records)
}

#[test]
fn images_of_an_index_are_found_by_any_of_their_digests_and_go_together() {
    let directory = tempfile::tempdir().unwrap();
    let (store, [shared, amd, arm, _]) = filled_store(directory.path());
    let platform = |name: &str, layers: &[usize]| PlatformRecord {
        platform: format!("linux/{name}"),
        image_id: Digest::of(format!("image {name}").as_bytes()),
        manifest_digest: Digest::of(format!("manifest {name}").as_bytes()),
        layers: layers.to_vec(),
        config: String::new(),
    };
    let platforms = vec![platform("amd64", &[0, 1]), platform("arm64", &[2, 0])];
    store
        .record_image(&ImageRecord { platforms: platforms.clone(), ..image("index", 3, &[&shared, &amd, &arm]) })
        .unwrap();

    let blobs = |digest: Digest| store.blobs_of_image(&digest).unwrap();
    assert_eq!(blobs(Digest::of(b"index")), [shared.digest, amd.digest, arm.digest].into());
    assert_eq!(blobs(platforms[0].manifest_digest), [shared.digest, amd.digest].into());
    assert_eq!(blobs(platforms[1].manifest_digest), [shared.digest, arm.digest].into());
    assert_eq!(blobs(platforms[0].image_id), BTreeSet::new(), "an image ID is no manifest's digest");
    for digest in platforms.iter().flat_map(|platform| [platform.image_id, platform.manifest_digest]) {
        let rows = store.why(&Wanted::Digest(digest)).unwrap();
        assert_eq!(rows.iter().map(|row| &*row.image).collect::<Vec<_>>(), ["index:latest"]);
    }
    let rows = store.image_rows().unwrap();
    assert_eq!(
        (&*rows[0].name, &rows[0].platforms[..]),
        ("index", &["linux/amd64", "linux/arm64"].map(str::to_owned)[..])
    );

    // The others go first, then it goes whole.
    let gone = |max_size| {
        let plan = store.gc(&GcPolicy { max_size: Some(max_size), now: 4, ..GcPolicy::default() }).unwrap();
        plan.images.into_iter().map(|image| image.image.name).collect::<Vec<_>>()
    };
    assert!(store.pin("index").unwrap());
    assert_eq!(gone(0), ["first", "second"]);
    assert_eq!(store.lookup(&[shared.key, amd.key, arm.key]).unwrap().iter().flatten().count(), 3);
    assert!(store.unpin("index").unwrap());
    assert_eq!(gone(0), ["index"]);
    assert_eq!(store.lookup(&[shared.key, amd.key, arm.key]).unwrap().iter().flatten().count(), 0);
}

#[test]
fn a_collection_does_exactly_what_its_plan_says() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled_store(directory.path());
    std::fs::write(directory.path().join("tmp/left"), vec![0; 100]).unwrap();
    keep(&store, b"blob without a record");
    let policy = GcPolicy { older_than: Some(5), now: 7, ..GcPolicy::default() };
    let planned = store.plan_gc(&policy).unwrap();
    assert_eq!(store.plan_gc(&policy).unwrap(), planned, "planning changes nothing");
    let before = inventory::tree_bytes(directory.path()).unwrap()
        - inventory::tree_bytes(&directory.path().join("index")).unwrap();
    let done = store.gc(&policy).unwrap();
    assert_eq!(done, planned);
    let after = inventory::tree_bytes(directory.path()).unwrap()
        - inventory::tree_bytes(&directory.path().join("index")).unwrap();
    assert_eq!(before - after, planned.freed());
    assert_eq!(planned.images.len(), 1);
    assert_eq!(planned.orphans.len(), 2);

    let keys = records.each_ref().map(|record| record.key);
    let found = store.lookup(&keys).unwrap();
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true, false]);
    assert_eq!(store.verify(&crate::event::Silent).unwrap().damage, []);
    assert_eq!(store.gc(&policy).unwrap().freed(), 0);
}

#[test]
fn what_a_living_build_uses_is_not_garbage() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled_store(directory.path());
    let lease = store.lease(&[records[3].key]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    keep(&store, b"not recorded yet");
    assert_eq!(store.gc(&GcPolicy::default()).unwrap().freed(), 0);
    assert!(store.lookup(&[records[3].key]).unwrap()[0].is_some());
    drop(lease);
    let plan = store.gc(&GcPolicy::default()).unwrap();
    assert_eq!((plan.layers.len(), plan.orphans.len()), (1, 1));
}

#[test]
fn the_lease_of_a_dead_build_is_an_orphan() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled_store(directory.path());
    std::fs::write(directory.path().join("leases/dead"), records[3].key.hex() + "\n").unwrap();
    let plan = store.gc(&GcPolicy::default()).unwrap();
    assert_eq!((plan.layers.len(), plan.orphans.len()), (1, 1));
    assert_eq!(files_below(&directory.path().join("leases")), 0);
}

#[test]
fn a_claim_is_held_by_one_at_a_time_and_released_by_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    let claim = store.try_claim(&key("a")).unwrap();
    assert!(claim.is_some());
    assert!(store.try_claim(&key("a")).unwrap().is_none());
    assert!(store.try_claim(&key("b")).unwrap().is_some());
    drop(claim);
    assert!(store.try_claim(&key("a")).unwrap().is_some());
    assert_eq!(files_below(&directory.path().join("claims")), 0);
}

#[test]
fn verify_finds_every_kind_of_damage_and_repair_mends_it() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled_store(directory.path());
    assert_eq!(store.verify(&crate::event::Silent).unwrap().damage, []);
    std::fs::write(store.blob(&records[0].digest), b"sharee").unwrap();
    std::fs::remove_file(store.blob(&records[1].digest)).unwrap();
    std::fs::write(store.record(&records[2].key), b"torn").unwrap();

    let damage = store.verify(&crate::event::Silent).unwrap().damage;
    assert!(matches!(&damage[0], Damage::Record { path } if *path == store.record(&records[2].key)));
    assert_eq!(damage[1], Damage::Index { key: records[2].key });
    assert!(damage.contains(&Damage::MissingBlob { digest: records[1].digest }));
    assert!(damage.iter().any(|damage| matches!(damage, Damage::Blob { digest, .. } if *digest == records[0].digest)));
    assert_eq!(damage.len(), 4);

    store.repair(&damage).unwrap();
    assert_eq!(store.verify(&crate::event::Silent).unwrap().damage, []);
    let found = store.lookup(&records.clone().map(|record| record.key)).unwrap();
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, false, true]);
}

#[test]
fn pins_hold_against_any_cap() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = filled_store(directory.path());
    assert!(store.pin("first:latest").unwrap());
    assert!(!store.pin("no-such-image").unwrap());
    let plan = store.gc(&GcPolicy { max_size: Some(0), ..GcPolicy::default() }).unwrap();
    assert_eq!(plan.images.iter().map(|image| image.image.name.as_str()).collect::<Vec<_>>(), ["second"]);
    assert!(plan.over > 0);
    assert!(store.unpin("first:latest").unwrap());
    assert!(!store.unpin("first:latest").unwrap());
    store.gc(&GcPolicy { max_size: Some(0), ..GcPolicy::default() }).unwrap();
    assert_eq!(files_below(&directory.path().join("blobs")), 0);
}

#[test]
fn what_is_said_when_an_image_is_recorded_is_the_size() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled_store(directory.path());
    let blobs_records_images = ["blobs", "records", "images"]
        .map(|part| inventory::tree_bytes(&directory.path().join(part)).unwrap())
        .iter()
        .sum::<u64>();
    let said = || {
        let said = store.record_image(&image("first", 1, &[&records[0], &records[1]])).unwrap();
        said - inventory::tree_bytes(&directory.path().join("index")).unwrap()
    };
    assert_eq!(said(), blobs_records_images);
    std::fs::write(directory.path().join("tmp/left"), [0; 1000]).unwrap();
    assert_eq!(said(), blobs_records_images + 1000, "what a killed process left counts");
    store.clear().unwrap();
    assert_eq!(files_below(&directory.path().join("blobs")), 0);
    assert!(store.lookup(&[key("shared")]).unwrap()[0].is_none());
}

#[test]
fn what_an_image_would_free_is_what_a_collection_of_it_frees() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = filled_store(directory.path());
    store.gc(&GcPolicy::default()).unwrap();
    let rows = store.image_rows().unwrap();
    assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["second", "first"]);
    let policy = GcPolicy { older_than: Some(5), now: 7, ..GcPolicy::default() };
    assert_eq!(store.plan_gc(&policy).unwrap().freed(), rows[1].would_free);
    assert!(rows[1].on_disk > rows[1].would_free, "a layer is shared");
}

#[test]
fn layers_and_paths_are_listed_with_who_has_them() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = filled_store(directory.path());
    let layers = store.layer_rows().unwrap();
    let shared = layers.iter().find(|row| row.store_paths == ["shared"]).unwrap();
    assert_eq!(shared.images, ["first:latest", "second:latest"]);
    assert!(layers.iter().any(|row| row.images.is_empty()));
    let paths = store.path_rows().unwrap();
    assert_eq!(paths.len(), 4);
    assert!(paths.is_sorted_by_key(|row| std::cmp::Reverse(row.on_disk)));
}

#[test]
fn why_shows_the_shortest_way_through_references() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled_store(directory.path());
    let node = |name: &str, root, references: &[usize]| GraphNode {
        name: name.to_owned(),
        root,
        references: references.to_vec(),
    };
    let mut third = image("third", 3, &[&records[0]]);
    third.graph = vec![
        node("app", true, &[1]),
        node("lib", false, &[2, 1]),
        node("shared", false, &[0]),
        node("tool", true, &[1, 2]),
        node("alone", false, &[]),
    ];
    store.record_image(&third).unwrap();
    let why = |name: &str| store.why(&Wanted::StorePath(name.to_owned())).unwrap();
    assert_eq!(why("shared")[0].through, ["tool", "shared"]);
    assert_eq!(why("shared")[0].layer, Some(records[0].digest));
    assert_eq!(why("lib")[0].through, ["app", "lib"]);
    assert_eq!(why("alone")[0].through, ["alone"]);
    assert!(why("absent").is_empty());
    let holders = store.why(&Wanted::Digest(records[0].digest)).unwrap();
    assert_eq!(
        holders.iter().map(|row| row.image.as_str()).collect::<Vec<_>>(),
        ["first:latest", "second:latest", "third:latest"]
    );
}

#[test]
fn a_directory_that_somebody_removed_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    drop(filled_store(directory.path()));
    for name in DIRECTORIES {
        std::fs::remove_dir_all(directory.path().join(name)).unwrap();
        let store = LayerStore::open_to_write(directory.path()).unwrap();
        record_layers(&store, &[record(name, None)]);
        store.gc(&GcPolicy::default()).unwrap();
    }
}

#[test]
fn a_record_that_the_disk_does_not_give_back_is_as_good_as_none() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled_store(directory.path());
    let path = store.record(&records[0].key);
    std::fs::remove_file(&path).unwrap();
    // The memory of a process begins at no address that can be read: EIO.
    std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(store.lookup(&[records[0].key]).unwrap(), [None]);
    let damage = store.verify(&crate::event::Silent).unwrap().damage;
    assert!(damage.contains(&Damage::Record { path }), "{damage:?}");
    store.repair(&damage).unwrap();
    assert_eq!(store.verify(&crate::event::Silent).unwrap().damage, []);
}

#[test]
fn what_is_no_images_name_leaves_no_pin() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = filled_store(directory.path());
    assert!(!store.pin("first\nsecond").unwrap());
    assert!(store.pins().unwrap().is_empty());
    assert!(store.pin("first").unwrap());
    assert_eq!(store.pins().unwrap(), BTreeSet::from(["first".to_owned()]));
}

#[test]
fn an_index_most_of_whose_layers_go_goes_with_them_and_a_new_one_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    let records: Vec<_> = (0..3000).map(|n| record(&format!("{n}-{}", "x".repeat(200)), None)).collect();
    record_layers(&store, &records);
    store.record_image(&image("all", 1, &records.iter().collect::<Vec<_>>())).unwrap();
    let index = directory.path().join("index");
    assert_eq!(store.plan_gc(&GcPolicy::default()).unwrap().index, None, "grown by one batch");
    std::fs::remove_dir_all(&index).unwrap();
    assert_eq!(store.plan_gc(&GcPolicy::default()).unwrap().index, None, "new");

    let all = GcPolicy { max_size: Some(0), ..GcPolicy::default() };
    let planned = store.plan_gc(&all).unwrap();
    assert!(planned.index.is_some_and(|index| index.reason == IndexReason::Emptied && index.bytes > 1 << 20));
    assert_eq!(store.gc(&all).unwrap(), planned);
    assert!(!index.exists());
    assert!(planned.over == 0 && planned.bytes_after == 0);
    assert_eq!(store.plan_gc(&all).unwrap().freed(), 0, "what is made anew is small");
    record_layers(&store, &records[..1]);
    assert_eq!(store.lookup(&[records[0].key]).unwrap(), [Some(records[0].clone())]);
}

#[test]
fn collections_at_the_same_time_do_not_disturb_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let store = LayerStore::open(directory.path()).unwrap();
    let records: Vec<_> = (0..500).map(|n| record(&n.to_string(), None)).collect();
    record_layers(&store, &records);
    let all = GcPolicy { max_size: Some(0), ..GcPolicy::default() };
    let plans: Vec<_> = (0..4).into_par_iter().map(|_| store.gc(&all).unwrap()).collect();
    assert_eq!(plans.iter().map(|plan| plan.layers.len()).sum::<usize>(), 500);
    assert!(inventory::list(&directory.path().join("tmp")).unwrap().is_empty());
    assert_eq!(store.plan_gc(&all).unwrap().freed(), 0);
}

#[test]
fn an_image_that_is_made_again_needs_no_index_and_the_count_stays_right() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled_store(directory.path());
    let again = |used_at: u64| image("first", used_at, &[&records[0], &records[1]]);
    let at_hand = || index::bytes_at_hand(&store.root, &store.hold().unwrap());
    let counted = store.with_index(|index| Ok(index.bytes()?)).unwrap();
    assert_eq!(at_hand(), Some(counted));
    std::fs::write(directory.path().join("index/db"), "garbage").unwrap();
    let size = store.record_image(&again(7)).unwrap();
    assert_eq!(size, counted + store.bytes_beside_records().unwrap());
    assert_eq!(std::fs::read(directory.path().join("index/db")).unwrap(), b"garbage", "nobody opened it");
    assert!(store.image_rows().unwrap().iter().any(|row| row.name == "first" && row.used_at == 7));

    // A longer record, and a number that is cut: both are counted anew.
    store.record_image(&again(1000)).unwrap();
    let counted = store.with_index(|index| Ok(index.bytes()?)).unwrap();
    assert_eq!(at_hand(), Some(counted));
    std::fs::write(directory.path().join("index/bytes"), "12").unwrap();
    assert_eq!(at_hand(), None);
    store.record_image(&again(1001)).unwrap();
    assert_eq!(at_hand(), Some(counted));
}
