//! Sheets as texts, and the laws of merging.

use proptest::prelude::*;

use super::super::samples::{entry, image, key};
use super::super::signing::SecretKey;
use super::*;

fn secret(n: u8) -> SecretKey {
    SecretKey::from_seed(&format!("key-{n}"), &[n; 32]).unwrap()
}

fn trust(keys: &[u8]) -> Trust {
    Trust { keys: keys.iter().map(|&n| secret(n).public_text().parse().unwrap()).collect() }
}

/// Entries of few keys, some of them at odds with each other, some signed.
fn entries() -> impl Strategy<Value = Entry> {
    (0..6u8, any::<bool>(), 0..3u64, prop::collection::btree_set(0..3u8, 0..3)).prop_map(
        |(n, has_blob, size, signers)| {
            let mut entry = entry(n, has_blob);
            entry.layer.size += size;
            signers.into_iter().for_each(|signer| entry.sign(&secret(signer)));
            entry
        },
    )
}

fn images() -> impl Strategy<Value = ImageUse> {
    (0..4u8, prop::collection::vec(0..6u8, 0..4), 0..5u64, prop::collection::btree_set("[a-c]", 0..3))
        .prop_map(|(n, layers, used_at, pushed)| ImageUse { pushed, ..image(n, &layers, used_at) })
}

fn contents() -> impl Strategy<Value = Contents> {
    (prop::collection::vec(entries(), 0..8), prop::collection::vec(images(), 0..4)).prop_map(|(entries, images)| {
        let mut contents = Contents::default();
        entries.into_iter().for_each(|entry| contents.insert(entry));
        images.into_iter().for_each(|image| contents.insert_image(image));
        contents
    })
}

fn merged(all: &[&Contents]) -> Contents {
    let mut merged = Contents::default();
    all.iter().for_each(|contents| merged.merge((*contents).clone()));
    merged
}

proptest! {
    #[test]
    fn merging_knows_no_order_and_no_repetition((a, b, c) in (contents(), contents(), contents())) {
        prop_assert_eq!(merged(&[&a, &b]), merged(&[&b, &a]));
        prop_assert_eq!(merged(&[&merged(&[&a, &b]), &c]), merged(&[&a, &merged(&[&b, &c])]));
        prop_assert_eq!(merged(&[&a, &a]), a.clone());
        prop_assert_eq!(merged(&[&merged(&[&a, &b]), &b]), merged(&[&a, &b]));
    }

    #[test]
    fn merging_loses_nothing((a, b) in (contents(), contents())) {
        let both = merged(&[&a, &b]);
        for entry in a.entries().chain(b.entries()) {
            let found: Vec<_> = both.of_key(&entry.key()).filter(|found| found.statement() == entry.statement()).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert!(found[0].layer.has_blob || !entry.layer.has_blob);
            prop_assert!(found[0].signatures.is_superset(&entry.signatures));
        }
        for image in a.images().chain(b.images()) {
            let found = both.image(&image.name, &image.tag, &image.manifest).unwrap();
            prop_assert!(found.keys.is_superset(&image.keys) && found.pushed.is_superset(&image.pushed));
            prop_assert!(found.used_at >= image.used_at);
        }
    }

    #[test]
    fn a_sheet_is_read_as_it_was_written(
        contents in contents(), is_final: bool, time: u64, superseded: [u8; 16], claims: Vec<u8>,
    ) {
        let supersedes = BTreeSet::from([SheetName::new(3, superseded)]);
        let claims = claims.into_iter().map(key).collect();
        let sheet = Sheet { is_final, time, supersedes, claims, is_choosing: !is_final, contents };
        prop_assert_eq!(Sheet::decode(&sheet.encode(&SheetName::new(0, superseded)).unwrap()).unwrap(), sheet);
    }

    #[test]
    fn a_name_has_one_spelling(level: u32, id: [u8; 16]) {
        let name = SheetName::new(level, id);
        prop_assert_eq!(name.to_string().parse(), Ok(name));
        prop_assert!(name.to_string().len() <= 128);
    }

    #[test]
    fn only_what_a_trusted_key_has_signed_counts(entry in entries()) {
        let mut contents = Contents::default();
        contents.insert(entry.clone());
        let is_signed = entry.signatures.iter().any(|signature| signature.starts_with("key-1:"));
        prop_assert_eq!(contents.find(&entry.key(), &trust(&[1])).is_some(), is_signed);
        prop_assert!(contents.find(&entry.key(), &trust(&[])).is_some());
    }
}

#[test]
fn a_forged_entry_is_left_out() {
    let mut honest = entry(1, true);
    honest.sign(&secret(1));
    let mut forged = honest.clone();
    forged.layer.digest = Digest::of(b"something else");
    let mut renamed = entry(1, true);
    renamed.layer.size = 7;
    renamed.sign(&secret(2));
    renamed.signatures = renamed.signatures.iter().map(|text| text.replace("key-2:", "key-1:")).collect();
    let mut contents = Contents::default();
    [&forged, &renamed].into_iter().for_each(|entry| contents.insert(entry.clone()));
    assert_eq!(contents.find(&key(1), &trust(&[1])), None);
    contents.insert(honest.clone());
    assert_eq!(contents.find(&key(1), &trust(&[1])), Some(&honest));
}

#[test]
fn what_a_repository_had_is_the_word_of_who_signed_it() {
    let repository = "registry.example:5000/team/app";
    let mut contents = Contents::default();
    let mut layer = entry(1, true);
    layer.sign(&secret(1));
    contents.insert(layer.clone());
    contents.insert(entry(2, true));
    let pushed = |tag: &str| ImageUse { pushed: [format!("{repository}:{tag}")].into(), ..image(1, &[1, 2], 20) };
    contents.insert_image(pushed("v1"));
    let wanted = [layer.layer.diff_id, entry(3, true).layer.diff_id].into();
    let found = |contents: &Contents, repository: &str, keys: &[u8]| {
        contents.pushed_to(repository, &wanted, &trust(keys)).into_iter().cloned().collect::<Vec<_>>()
    };
    assert_eq!(found(&contents, repository, &[]), [layer.clone()]);
    assert_eq!(found(&contents, "registry.example:5000/team/other", &[]), []);
    assert_eq!(found(&contents, repository, &[1]), [], "nobody has signed that");
    // Another image, and another repository, are not what was signed.
    let mut other = ImageUse { keys: [key(1)].into(), manifest: Digest::of(b"other"), ..pushed("v2") };
    other.sign(&secret(1));
    contents.insert_image(ImageUse { signatures: other.signatures.clone(), ..pushed("v1") });
    assert_eq!(found(&contents, repository, &[1]), []);
    let mut signed = pushed("v1");
    signed.sign(&secret(1));
    contents.insert_image(ImageUse { pushed: ["registry.example:5000/team/x:1".to_owned()].into(), ..signed.clone() });
    assert_eq!(found(&contents, "registry.example:5000/team/x", &[1]), []);
    contents.insert_image(signed);
    assert_eq!(found(&contents, repository, &[1]), [layer]);
    assert_eq!(found(&contents, repository, &[2]), []);
}

#[test]
fn where_the_bytes_are_is_not_signed() {
    let mut signed = entry(1, false);
    signed.sign(&secret(1));
    signed.layer.has_blob = true;
    assert!(trust(&[1]).accepts(&signed));
}

#[test]
fn an_entry_with_bytes_comes_before_one_without() {
    for other in 0..8 {
        let (mut without, with) = (entry(1, false), entry(1, true));
        without.layer.size += other;
        without.layer.digest = Digest::of(&[other as u8]);
        let mut contents = Contents::default();
        [without, with.clone()].into_iter().for_each(|entry| contents.insert(entry));
        assert_eq!(contents.find(&key(1), &Trust::default()), Some(&with));
    }
}

#[test]
fn names_that_are_none_are_refused() {
    let digits = "00112233445566778899aabbccddeeff";
    assert!(format!("layerhold-cache.0.{digits}").parse::<SheetName>().is_ok());
    let long = format!("layerhold-cache.0.{digits}0");
    let upper = format!("layerhold-cache.0.{}", digits.to_uppercase());
    let level = format!("layerhold-cache.00.{digits}");
    for text in ["latest", "layerhold-cache", "layerhold-cache.0.", &long, &upper, &level] {
        assert!(text.parse::<SheetName>().is_err(), "{text}");
    }
}

fn packed(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), LEVEL).unwrap()
}

#[test]
fn another_version_is_told_from_damage_and_lines_of_unknown_kinds_are_left_out() {
    let newer = Sheet::decode(&packed("{\"layerhold_cache\":2,\"final\":\"so to say\"}\n"));
    assert!(matches!(newer, Err(InvalidSheet::Version { found: 2 })));
    assert!(matches!(Sheet::decode(&packed("{}")), Err(InvalidSheet::Malformed(_))));
    assert!(matches!(Sheet::decode(b"not compressed"), Err(InvalidSheet::Unpack(_))));
    let line = String::from_utf8(canonical_json(&entry(1, true)).unwrap()).unwrap();
    let text = format!("{{\"layerhold_cache\":1,\"more\":1}}\n{{\"weather\":\"fine\"}}\n{line}\nnot JSON\n");
    let sheet = Sheet::decode(&packed(&text)).unwrap();
    assert_eq!(sheet.contents.entries().collect::<Vec<_>>(), [&entry(1, true)]);
}

#[test]
fn a_sheet_is_these_lines() {
    let mut signed = entry(1, true);
    signed.sign(&secret(1));
    let mut contents = Contents::default();
    contents.insert(signed);
    contents
        .insert_image(ImageUse { pushed: ["registry.example/team/app:v1".to_owned()].into(), ..image(1, &[1], 20) });
    let sheet = Sheet {
        is_final: true,
        time: 20,
        supersedes: [SheetName::new(0, [1; 16])].into(),
        contents,
        ..Sheet::default()
    };
    let text = zstd::decode_all(&*sheet.encode(&SheetName::new(1, [2; 16])).unwrap()).unwrap();
    insta::assert_snapshot!(String::from_utf8(text).unwrap(), @r#"
    {"final":true,"layerhold_cache":1,"name":"layerhold-cache.1.02020202020202020202020202020202","supersedes":["layerhold-cache.0.01010101010101010101010101010101"],"time":20}
    {"layer":{"contents":[{"name":"path-1","size":900}],"diff_id":"sha256:4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a","digest":"sha256:df5e7ef8b4a2dcbf2d99a0a0ac4527f9b3967daa799f7e0b7c11b06c4cd56a80","has_blob":true,"key":"43d20a32f1bd921c38f08c415192e15686b64532c88353ed0ddc052fc049d7d5","media_type":"application/vnd.oci.image.layer.v1.tar+zstd","size":101,"tar_size":1000},"signatures":["key-1:vQVvQDQ5Z6SBSwleMH4wds8n81CAwpQfNVqSsxg51cmqiDu/NtKxRTk4aKAqzmKBc7h+5QUwe5LXESaG8H9CBg=="]}
    {"image":{"keys":["43d20a32f1bd921c38f08c415192e15686b64532c88353ed0ddc052fc049d7d5"],"manifest":"sha256:9dcf97a184f32623d11a73124ceb99a5709b083721e878a16d78f596718ba7b2","name":"image-1","pushed":["registry.example/team/app:v1"],"tag":"latest","used_at":20}}
    "#);
}
