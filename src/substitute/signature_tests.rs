//! Signatures and content addresses made by the real Nix, and forged ones.

use proptest::prelude::*;
use rstest::rstest;

use super::super::narinfo::NarInfo;
use super::*;

/// Two keys of `nix-store --generate-binary-cache-key`, Nix 2.8.
const KEY: &str = "test-1:t8Gci3wU1mfkBPfIxeOYIl0jnvjsE2CGLjLzHb380fk=";
const ANOTHER: &str = "test-2:9VfxroIx+fzou0lQ8AtNuxR3ad1y+1cEpER30WyTtYA=";
/// What `nix copy` signed with them: a path that refers to itself and to another.
const PLAIN: &str = "/nix/store/cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain";
const FIELDS: &str = "\
    NarHash: sha256:1hy1f710jg9l2pzvsy6vdikrdn82wk86ags3mb2ryj2sx9k2nwg6\nNarSize: 216\n\
    References: cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt\n";
const SIGNED: &str = "test-1:f2MWaK+IpNuBsaYJ/ocAPcx0WaQB3N9OA/Q2E99axRhqaTCnW+pAdFnK0XJIOdTZEsClidPFNxDrOBOnkN+/Ag==";
const SIGNED_BY_ANOTHER: &str =
    "test-2:Eeub9SL/jCtrwzQ9IPVCM5fHbJysDxjCZac9FIDxPf1lOnPhRxW0vVqrqasob3dYQsAnNX5wkdPLEV03J+OYBA==";

fn narinfo(path: &str, fields: &str) -> NarInfo {
    let text = format!("StorePath: {path}\nURL: nar/x.nar\nCompression: none\n{fields}");
    NarInfo::parse(&path.parse().unwrap(), text.as_bytes()).unwrap()
}

fn check(fields: &str, signatures: &[&str], keys: &[&str]) -> Result<(), Distrust> {
    let signatures: String = signatures.iter().map(|signature| format!("Sig: {signature}\n")).collect();
    let keys: Vec<PublicKey> = keys.iter().map(|key| key.parse().unwrap()).collect();
    narinfo(PLAIN, &format!("{fields}{signatures}")).check(&keys)
}

#[rstest]
#[case::the_key(&[SIGNED], &[KEY])]
#[case::among_other_keys(&[SIGNED], &[ANOTHER, KEY])]
#[case::the_second_signature(&[SIGNED_BY_ANOTHER, SIGNED], &[KEY])]
#[case::the_other_key(&[SIGNED_BY_ANOTHER, SIGNED], &[ANOTHER])]
#[case::behind_one_that_is_wrong(&["test-1:AAAA", SIGNED], &[KEY])]
// Caches have changed keys and kept the name.
#[case::two_keys_of_one_name(&[SIGNED], &["test-1:9VfxroIx+fzou0lQ8AtNuxR3ad1y+1cEpER30WyTtYA=", KEY])]
fn what_nix_signed_is_trusted(#[case] signatures: &[&str], #[case] keys: &[&str]) {
    assert_eq!(check(FIELDS, signatures, keys), Ok(()));
}

#[rstest]
#[case::unsigned(&[], &[KEY], "it has no signature")]
#[case::no_keys(&[SIGNED], &[], "it is signed by test-1, whose key is not trusted")]
#[case::wrong_key(&[SIGNED, SIGNED_BY_ANOTHER], &[], "it is signed by test-1, test-2, whose key is not trusted")]
#[case::wrong_name(
    &["other:f2MWaK+IpNuBsaYJ/ocAPcx0WaQB3N9OA/Q2E99axRhqaTCnW+pAdFnK0XJIOdTZEsClidPFNxDrOBOnkN+/Ag=="],
    &[KEY],
    "it is signed by other, whose key is not trusted"
)]
#[case::another_key_by_that_name(
    &[SIGNED],
    &["test-1:9VfxroIx+fzou0lQ8AtNuxR3ad1y+1cEpER30WyTtYA="],
    "its signature by test-1 is wrong"
)]
#[case::no_base_64(&["test-1:***"], &[KEY], "its signature by test-1 is wrong")]
#[case::nothing_behind_the_name(&["test-1"], &[KEY], "its signature by test-1 is wrong")]
#[case::no_name(&[":AAAA"], &[KEY], "it is signed by , whose key is not trusted")]
fn nobody_else_is(#[case] signatures: &[&str], #[case] keys: &[&str], #[case] message: &str) {
    assert_eq!(check(FIELDS, signatures, keys).unwrap_err().to_string(), message);
}

#[rstest]
#[case::hash("2nwg6", "2nwg7")]
#[case::size("NarSize: 216", "NarSize: 217")]
#[case::one_reference_less(" w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt", "")]
#[case::not_itself("References: cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain ", "References: ")]
#[case::one_reference_more("inner.txt", "inner.txt b60iikh8l8rhlbzn462wmppl1495y6jb-refers.drv")]
fn what_was_changed_since_is_not_what_was_signed(#[case] from: &str, #[case] to: &str) {
    assert!(FIELDS.contains(from));
    let changed = FIELDS.replace(from, to);
    assert_eq!(check(&changed, &[SIGNED], &[KEY]), Err(Distrust::Wrong { key: "test-1".to_owned() }));
}

#[test]
fn the_order_of_references_does_not_matter() {
    let turned = FIELDS.replace(
        "cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt",
        "w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain",
    );
    assert_eq!(check(&turned, &[SIGNED], &[KEY]), Ok(()));
}

#[rstest]
#[case("", InvalidPublicKey::Nameless)]
#[case("test-1", InvalidPublicKey::Nameless)]
#[case("test-1:", no_key())]
#[case("t8Gci3wU1mfkBPfIxeOYIl0jnvjsE2CGLjLzHb380fk=", InvalidPublicKey::Nameless)]
#[case(":t8Gci3wU1mfkBPfIxeOYIl0jnvjsE2CGLjLzHb380fk=", InvalidPublicKey::Nameless)]
#[case::unpadded("test-1:t8Gci3wU1mfkBPfIxeOYIl0jnvjsE2CGLjLzHb380fk", no_key())]
#[case::bits_beyond_the_end("test-1:t8Gci3wU1mfkBPfIxeOYIl0jnvjsE2CGLjLzHb380fl=", no_key())]
#[case::a_secret_key(
    "test-1:aMQ+xNik/ARHZeSLd8TwCQcpLlq7IxrmtzX6UELkrxa3wZyLfBTWZ+QE98jF45giXSOe+OwTYIYuMvMdvfzR+Q==",
    InvalidPublicKey::Secret { name: "test-1".to_owned() }
)]
#[case::a_secret_key_without_its_name(
    "aMQ+xNik/ARHZeSLd8TwCQcpLlq7IxrmtzX6UELkrxa3wZyLfBTWZ+QE98jF45giXSOe+OwTYIYuMvMdvfzR+Q==",
    InvalidPublicKey::Nameless
)]
fn what_is_no_public_key_is_refused_and_not_repeated(#[case] text: &str, #[case] expected: InvalidPublicKey) {
    let error = text.parse::<PublicKey>().unwrap_err();
    assert_eq!(error, expected);
    let behind_its_name = text.split_once(':').map_or(text, |(_, key)| key);
    let said = format!("{error} {error:?}");
    assert!(behind_its_name.is_empty() || !said.contains(behind_its_name), "{said}");
}

fn no_key() -> InvalidPublicKey {
    InvalidPublicKey::NoKey { name: "test-1".to_owned() }
}

/// Paths whose names Nix 2.8 made from their contents: `nix-store --add`, `--add-fixed sha256`, `builtins.toFile`, a
/// derivation, which refers to that file, and `nix store make-content-addressed` of one that refers to another.
const SOURCE: (&str, &str) = (
    "/nix/store/xjaphzrfqn1gg7whwbaxi5kyjly9vw43-tree",
    "NarHash: sha256:1rymk3g5v2bmw1gf281adgwgbzl2q961mjwld851w73qbj0z28nn\nNarSize: 488\nReferences: \n\
     CA: fixed:r:sha256:1rymk3g5v2bmw1gf281adgwgbzl2q961mjwld851w73qbj0z28nn\n",
);
const SOURCE_THAT_REFERS: (&str, &str) = (
    "/nix/store/s1vy3p6m0s0hy11s23g1yvw0sm7ry0s8-refers",
    "NarHash: sha256:1kg4pj9nbpqiw1rxqwdi0p8hfjhfc9jbs3qgnp7d5gxkaiqpkx01\nNarSize: 168\n\
     References: i79hvi8wfikald8n938iq0y1qscgag8c-inner.txt\n\
     CA: fixed:r:sha256:1kg4pj9nbpqiw1rxqwdi0p8hfjhfc9jbs3qgnp7d5gxkaiqpkx01\n",
);
const FIXED: (&str, &str) = (
    "/nix/store/gy454w1cxaq731grqwylhzf4pp9r5izh-hello.txt",
    "NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw\nNarSize: 120\nReferences: \n\
     CA: fixed:sha256:00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq\n",
);
const TEXT: (&str, &str) = (
    "/nix/store/w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt",
    "NarHash: sha256:08x3z2q6vqxw2yvn791qi082r7zqfl9a3k78smvsaaapb6584ydi\nNarSize: 120\nReferences: \n\
     CA: text:sha256:116n0nnvfd7qqb0q8z8jfjhj2ix1n2af6jrz8m108s9v9l86h2ll\n",
);
const TEXT_THAT_REFERS: (&str, &str) = (
    "/nix/store/vz7xyb52j96sry1nkm5c7mgmsijislcj-plain.drv",
    "NarHash: sha256:1w9lm6g8x9kn4402cgqc38qab14y6jr06w8mx3fi7vkx8p0naj44\nNarSize: 496\n\
     References: w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt\n\
     CA: text:sha256:0mi3f0y6myp5lwydzq7pcwvyxcb4xh294p9ikmq3f8dk5f13fw2g\n",
);

fn promised((path, fields): (&str, &str)) -> Option<ContentAddress> {
    narinfo(path, fields).content_address()
}

fn sha256_of(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[rstest]
#[case::source(SOURCE, ContentAddress::Nar)]
#[case::source_that_refers(SOURCE_THAT_REFERS, ContentAddress::Nar)]
#[case::fixed(FIXED, ContentAddress::Flat(sha256_of(b"hello\n")))]
#[case::text(TEXT, ContentAddress::Flat(sha256_of(b"inner\n")))]
fn a_path_named_after_its_contents_needs_no_signature(
    #[case] (path, fields): (&str, &str),
    #[case] expected: ContentAddress,
) {
    assert_eq!(promised((path, fields)), Some(expected));
    assert_eq!(narinfo(path, fields).check(&[]), Ok(()));
}

#[test]
fn a_derivation_is_a_text_that_refers() {
    assert!(matches!(promised(TEXT_THAT_REFERS), Some(ContentAddress::Flat(_))));
}

#[rstest]
#[case::another_name(SOURCE, "-tree", "-trea")]
#[case::another_nar(SOURCE, "NarHash: sha256:1r", "NarHash: sha256:0r")]
#[case::another_address(SOURCE, "CA: fixed:r:sha256:1r", "CA: fixed:r:sha256:0r")]
#[case::both(SOURCE, "sha256:1r", "sha256:0r")]
#[case::a_reference_more(SOURCE, "References: ", "References: w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt")]
#[case::itself(SOURCE, "References: ", "References: xjaphzrfqn1gg7whwbaxi5kyjly9vw43-tree")]
#[case::a_reference_less(SOURCE_THAT_REFERS, "i79hvi8wfikald8n938iq0y1qscgag8c-inner.txt", "")]
#[case::not_recursive(SOURCE, "fixed:r:", "fixed:")]
#[case::recursive(FIXED, "CA: fixed:", "CA: fixed:r:")]
#[case::fixed_with_references(FIXED, "References: ", "References: w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt")]
#[case::text_as_fixed(TEXT, "CA: text:", "CA: fixed:")]
#[case::fixed_as_text(FIXED, "CA: fixed:", "CA: text:")]
#[case::another_text(TEXT, "CA: text:sha256:1", "CA: text:sha256:0")]
#[case::a_text_that_refers_to_less(TEXT_THAT_REFERS, "w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt", "")]
#[case::no_kind(TEXT, "CA: text:", "CA: ")]
#[case::nothing(TEXT, "CA: text:sha256:116n0nnvfd7qqb0q8z8jfjhj2ix1n2af6jrz8m108s9v9l86h2ll", "CA: ")]
fn a_forged_address_promises_nothing(#[case] (path, fields): (&str, &str), #[case] from: &str, #[case] to: &str) {
    assert!(path.contains(from) || fields.contains(from));
    let (path, fields) = (path.replace(from, to), fields.replace(from, to));
    assert_eq!(promised((&path, &fields)), None);
    assert_eq!(narinfo(&path, &fields).check(&[]), Err(Distrust::Unsigned));
}

/// What Nix makes too, and what needs a signature here: other hashes, a tree that refers to itself.
#[rstest]
#[case::md5(
    "/nix/store/dra1cz5vbrhclpv4y1q0psnbkxz581bk-hello.txt",
    "NarHash: sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw\nNarSize: 120\n\
     CA: fixed:md5:4425hx5d1mc9y39llj4k4nm55i\n"
)]
#[case::sha1(
    "/nix/store/g289ibpds781fmd460jvbn3x12qshngb-tree",
    "NarHash: sha256:1rymk3g5v2bmw1gf281adgwgbzl2q961mjwld851w73qbj0z28nn\nNarSize: 488\n\
     CA: fixed:r:sha1:7cp4rjl0js7y0a2lnnd2fggf446pwsqf\n"
)]
#[case::itself(
    "/nix/store/7hdj3hcns9z13225b251n78dmm01d64g-plain",
    "NarHash: sha256:0jha2m7mngh2f5rna1aai8pwc6qay79091jk1yk0fciz1hs1p3fv\nNarSize: 216\n\
     References: 7hdj3hcns9z13225b251n78dmm01d64g-plain i79hvi8wfikald8n938iq0y1qscgag8c-inner.txt\n\
     CA: fixed:r:sha256:1zdzvsp4fqll1iw78jbilgbnpdpdddgpz9x44dxmb1z62pf724d8\n"
)]
fn other_addresses_need_a_signature(#[case] path: &str, #[case] fields: &str) {
    assert_eq!(promised((path, fields)), None);
}

proptest! {
    #[test]
    fn base64_is_read_as_it_is_written(bytes: [u8; 32]) {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let written: String = bytes
            .chunks(3)
            .flat_map(|chunk| {
                let mut three = [0; 4];
                three[1..=chunk.len()].copy_from_slice(chunk);
                let number = u32::from_be_bytes(three);
                (0..4).map(move |digit| match digit <= chunk.len() {
                    true => char::from(DIGITS[(number >> (18 - 6 * digit) & 63) as usize]),
                    false => '=',
                })
            })
            .collect();
        prop_assert_eq!(from_base64(&written), Some(bytes));
    }

    #[test]
    fn no_text_makes_it_panic(text in ".{0,100}") {
        let _ = (from_base64::<32>(&text), from_base64::<64>(&text), text.parse::<PublicKey>());
    }
}
