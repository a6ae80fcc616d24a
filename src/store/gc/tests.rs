use super::*;
use crate::blob::LayerKeyBuilder;
use proptest::prelude::*;

fn key(n: usize) -> LayerKey {
    LayerKeyBuilder::new("layerhold gc tests").field(&n.to_le_bytes()).finish()
}

/// Layers of 1000 bytes and records of 10; images of 1 byte, named `image<n>`, used at second `n`.
fn inventory(layers: usize, images: &[&[usize]]) -> Inventory {
    let image = |(n, layers): (usize, &&[usize])| StoredImage {
        record: ImageRecord {
            name: format!("image{n}"),
            tag: "latest".to_owned(),
            image_id: Digest::of(&n.to_le_bytes()),
            manifest_digest: Digest::of(b""),
            platforms: vec![],
            layers: layers.iter().map(|&n| key(n)).collect(),
            size: 0,
            made_at: 0,
            used_at: n as u64,
            graph: Vec::new(),
        },
        path: format!("images/{n:03}").into(),
        bytes: 1,
        pinned: false,
    };
    let layer = |n: usize| {
        let digest = Digest::of(&n.to_le_bytes());
        (key(n), StoredLayer { digest, record_bytes: 10, blob_bytes: 1000, contents: vec![n.to_string()] })
    };
    Inventory {
        layers: (0..layers).map(layer).collect(),
        images: images.iter().enumerate().map(image).collect(),
        ..Inventory::default()
    }
}

fn names(plan: &GcPlan) -> Vec<&str> {
    plan.images.iter().map(|image| image.image.name.as_str()).collect()
}

fn contents(plan: &GcPlan) -> Vec<&str> {
    let mut contents: Vec<_> = plan.layers.iter().map(|layer| layer.contents[0].as_str()).collect();
    contents.sort();
    contents
}

#[test]
fn without_rules_only_what_nothing_holds_goes() {
    let plan = plan(&inventory(3, &[&[0], &[0, 1]]), &GcPolicy::default());
    assert_eq!((names(&plan), contents(&plan)), (vec![], vec!["2"]));
    assert_eq!((plan.bytes_before, plan.freed(), plan.over), (3032, 1010, 0));
}

#[test]
fn the_least_recently_made_image_goes_first_and_shared_layers_stay() {
    let policy = GcPolicy { max_size: Some(2100), ..GcPolicy::default() };
    let plan = plan(&inventory(3, &[&[0, 1], &[1, 2], &[1]]), &policy);
    assert_eq!((names(&plan), contents(&plan)), (vec!["image0"], vec!["0"]));
    assert_eq!(plan.bytes_after, 2022);
}

#[test]
fn the_cap_beats_every_keep_rule_but_takes_those_last() {
    let policy = GcPolicy { max_size: Some(1100), keep: vec!["image0".to_owned()], ..GcPolicy::default() };
    let plan = plan(&inventory(3, &[&[0], &[1], &[2]]), &policy);
    assert_eq!(names(&plan), ["image1", "image2"]);
    let policy = GcPolicy { max_size: Some(0), keep_last: 9, keep: vec!["image0:latest".to_owned()], ..policy };
    let plan = super::plan(&inventory(3, &[&[0], &[1], &[2]]), &policy);
    assert_eq!(names(&plan), ["image0", "image1", "image2"]);
    assert_eq!((plan.bytes_after, plan.over), (0, 0));
}

#[test]
fn pins_leases_and_what_was_just_made_beat_the_cap_and_that_is_said() {
    let mut inventory = inventory(4, &[&[0], &[1], &[2], &[3]]);
    inventory.images[0].pinned = true;
    inventory.leased.insert(key(1));
    let policy =
        GcPolicy { max_size: Some(100), just_made: Some(Digest::of(&2usize.to_le_bytes())), ..GcPolicy::default() };
    let plan = plan(&inventory, &policy);
    assert_eq!((names(&plan), contents(&plan)), (vec!["image1", "image3"], vec!["3"]));
    assert_eq!((plan.bytes_after, plan.over), (3032, 2932));
}

#[test]
fn age_respects_keep_rules() {
    let policy = GcPolicy { older_than: Some(5), now: 7, keep: vec!["image0".to_owned()], ..GcPolicy::default() };
    assert_eq!(names(&plan(&inventory(3, &[&[0], &[1], &[2]]), &policy)), ["image1"]);
    let mut inventory = inventory(3, &[&[0], &[1], &[2]]);
    for image in &mut inventory.images {
        image.record.name = "same".to_owned();
    }
    let policy = GcPolicy { older_than: Some(1), now: 100, keep_last: 2, ..GcPolicy::default() };
    assert_eq!(plan(&inventory, &policy).images.len(), 1);
}

#[test]
fn space_is_made_free_by_taking_as_much_as_is_missing() {
    let mut inventory = inventory(3, &[&[0], &[1], &[2]]);
    inventory.free = 5000;
    let policy = GcPolicy { min_free: Some(5000), ..GcPolicy::default() };
    assert_eq!(names(&plan(&inventory, &policy)), [""; 0]);
    let policy = GcPolicy { min_free: Some(5001), ..GcPolicy::default() };
    assert_eq!(names(&plan(&inventory, &policy)), ["image0"]);
}

#[test]
fn a_blob_goes_with_the_last_layer_that_has_it() {
    let mut inventory = inventory(2, &[&[0], &[1]]);
    let digest = Digest::of(b"same");
    for layer in inventory.layers.values_mut() {
        layer.digest = digest;
    }
    let half = plan(&inventory, &GcPolicy { max_size: Some(1020), ..GcPolicy::default() });
    assert_eq!(half.bytes_before, 1022);
    assert_eq!((half.layers.len(), half.layers[0].blob_goes, half.layers[0].bytes), (1, false, 10));
    let all = plan(&inventory, &GcPolicy { max_size: Some(0), ..GcPolicy::default() });
    assert_eq!(all.layers.iter().filter(|layer| layer.blob_goes).count(), 1);
    assert_eq!(all.bytes_after, 0);
}

#[test]
fn a_pattern_means_a_name_or_a_name_and_a_tag() {
    let image = &inventory(0, &[&[]]).images[0].record;
    assert!(means("image0", image) && means("image0:latest", image));
    assert!(!means("image", image) && !means("image0:v1", image) && !means("image0:", image));
}

proptest! {
    #[test]
    fn every_plan_keeps_its_word(
        images in prop::collection::vec(prop::collection::btree_set(0usize..20, 0..6), 0..12),
        pinned in prop::collection::btree_set(0usize..12, 0..3),
        leased in prop::collection::btree_set(0usize..20, 0..3),
        max_size in prop::option::of(0u64..25_000),
        older_than in prop::option::of(0u64..12),
        keep_last in 0usize..3,
    ) {
        let images: Vec<Vec<usize>> = images.into_iter().map(|layers| layers.into_iter().collect()).collect();
        let slices: Vec<&[usize]> = images.iter().map(Vec::as_slice).collect();
        let mut inventory = inventory(20, &slices);
        inventory.leased = leased.iter().map(|&n| key(n)).collect();
        for n in pinned {
            if let Some(image) = inventory.images.get_mut(n) {
                image.pinned = true;
            }
        }
        let policy = GcPolicy { max_size, older_than, keep_last, now: 12, ..GcPolicy::default() };
        let plan = plan(&inventory, &policy);

        // The bytes of what goes are the difference between before and after.
        let named: u64 = plan.images.iter().map(|image| image.bytes).sum::<u64>()
            + plan.layers.iter().map(|layer| layer.bytes).sum::<u64>();
        prop_assert_eq!(named, plan.freed());
        // What stays is whole: no layer of an image that stays goes, and nothing in use.
        let going: BTreeSet<_> = plan.layers.iter().map(|layer| layer.key).collect();
        let doomed: BTreeSet<_> = plan.images.iter().map(|image| &image.path).collect();
        for image in inventory.images.iter().filter(|image| !doomed.contains(&image.path)) {
            prop_assert!(image.record.layers.iter().all(|key| !going.contains(key)));
        }
        prop_assert!(inventory.leased.iter().all(|key| !going.contains(key)));
        prop_assert!(inventory.images.iter().filter(|image| image.pinned).all(|image| !doomed.contains(&image.path)));
        // Nothing that could still go stays above the cap.
        if plan.over > 0 {
            let free_to_go = inventory.images.iter().filter(|image| !image.pinned);
            prop_assert!(free_to_go.into_iter().all(|image| doomed.contains(&image.path)));
        }
        // A second look at what is left finds nothing more to do.
        let mut left = inventory.clone();
        left.images.retain(|image| !doomed.contains(&image.path));
        left.layers.retain(|key, _| !going.contains(key));
        let again = super::plan(&left, &policy);
        prop_assert_eq!((again.freed(), again.bytes_before), (0, plan.bytes_after));
    }
}

#[test]
fn the_memory_of_files_goes_last_and_only_for_a_cap() {
    let inventory = Inventory { memory: 500, ..inventory(1, &[&[0]]) };
    let at_most = |cap| plan(&inventory, &GcPolicy { max_size: Some(cap), ..GcPolicy::default() });
    let [roomy, tight, none] = [1511, 500, 499].map(at_most);
    assert_eq!((names(&roomy), roomy.memory, roomy.over), (vec![], 0, 0));
    assert_eq!((names(&tight), tight.memory, tight.bytes_after), (vec!["image0"], 0, 500));
    assert_eq!((names(&none), none.memory, none.bytes_after), (vec!["image0"], 500, 0));
}

#[test]
fn the_index_goes_where_it_would_not_learn_what_goes_is_mostly_of_it_or_has_outgrown_what_is_left() {
    let inventory = Inventory { index: 3 << 20, ..inventory(4, &[&[0, 1], &[2, 3]]) };
    let reason = |inventory: &Inventory, policy: &GcPolicy| {
        let plan = plan(inventory, policy);
        assert_eq!(plan.bytes_before - plan.bytes_after, plan.freed());
        plan.index.map(|index| {
            assert_eq!(index.bytes, inventory.index);
            index.reason
        })
    };
    let nothing_to_do = GcPolicy::default();
    assert_eq!(reason(&inventory, &nothing_to_do), Some(IndexReason::Outgrown));
    let small = Inventory { index: 1 << 20, ..inventory };
    assert_eq!(reason(&small, &nothing_to_do), None);
    let lost = Inventory { index_is_out_of_reach: true, ..small.clone() };
    assert_eq!(reason(&lost, &nothing_to_do), Some(IndexReason::OutOfReach));
    let capped = |layers: u64| GcPolicy { max_size: Some((1 << 20) + 1010 * layers + 2), ..GcPolicy::default() };
    assert_eq!(plan(&small, &capped(2)).layers.len(), 2);
    assert_eq!(reason(&small, &capped(2)), None, "half of it goes");
    let mut three_go = small;
    three_go.images[0].record.layers.push(key(2));
    three_go.images[1].record.layers.remove(0);
    assert_eq!(plan(&three_go, &capped(1)).layers.len(), 3);
    assert_eq!(reason(&three_go, &capped(1)), Some(IndexReason::Emptied));
    let none = Inventory { index: 0, index_is_out_of_reach: true, ..three_go };
    assert_eq!(plan(&none, &nothing_to_do).index, None, "there is none");
}
