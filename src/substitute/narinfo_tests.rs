//! Narinfos as the real Nix writes them, and as it never would.

use proptest::prelude::*;
use rstest::rstest;

use super::*;

/// What `nix copy --to file://...?compression=xz` of Nix 2.8 writes; caches that serve the world write the same.
const PLAIN: &str = "\
StorePath: /nix/store/cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain
URL: nar/0ds85nn3d9lj00r4qhx5r5wd8ws8vsrrzvyw1z9nyb03gbclymi4.nar.xz
Compression: xz
FileHash: sha256:0ds85nn3d9lj00r4qhx5r5wd8ws8vsrrzvyw1z9nyb03gbclymi4
FileSize: 212
NarHash: sha256:1hy1f710jg9l2pzvsy6vdikrdn82wk86ags3mb2ryj2sx9k2nwg6
NarSize: 216
References: cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt
Deriver: vz7xyb52j96sry1nkm5c7mgmsijislcj-plain.drv
Sig: test-1:f2MWaK+IpNuBsaYJ/ocAPcx0WaQB3N9OA/Q2E99axRhqaTCnW+pAdFnK0XJIOdTZEsClidPFNxDrOBOnkN+/Ag==
";

fn path(base: &str) -> StorePath {
    StorePath::from_base_name(base).unwrap()
}

fn plain() -> StorePath {
    path("cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain")
}

fn parse(text: &str) -> Result<NarInfo, InvalidNarInfo> {
    NarInfo::parse(&plain(), text.as_bytes())
}

/// `PLAIN` with this line in the place of a field's own, or without the field.
fn with(field: &str, line: &str) -> String {
    let own = format!("{field}:");
    assert!(PLAIN.lines().any(|line| line.starts_with(&own)), "{field}");
    let lines = PLAIN.lines().map(|whole| if whole.starts_with(&own) { line } else { whole });
    lines.filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

#[test]
fn what_nix_writes_is_read() {
    let narinfo = parse(PLAIN).unwrap();
    let inner = path("w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt");
    let content = "sha256:1hy1f710jg9l2pzvsy6vdikrdn82wk86ags3mb2ryj2sx9k2nwg6";
    assert_eq!(
        narinfo,
        NarInfo {
            info: PathInfo {
                path: plain(),
                content: ContentHash::from_nar_hash(content).unwrap(),
                nar_size: 216,
                references: [inner.clone()].into_iter().collect(),
            },
            url: "nar/0ds85nn3d9lj00r4qhx5r5wd8ws8vsrrzvyw1z9nyb03gbclymi4.nar.xz".to_owned(),
            codec: Codec::Xz,
            file_size: Some(212),
            all_references: [plain(), inner].into_iter().collect(),
            signatures: vec![
                "test-1:f2MWaK+IpNuBsaYJ/ocAPcx0WaQB3N9OA/Q2E99axRhqaTCnW+pAdFnK0XJIOdTZEsClidPFNxDrOBOnkN+/Ag=="
                    .to_owned()
            ],
            ca: None,
        }
    );
}

#[rstest]
#[case::lines_of_windows(&PLAIN.replace('\n', "\r\n"))]
#[case::no_last_newline(PLAIN.trim_end())]
#[case::spaces_around_values(&PLAIN.replace(": ", ":   ").replace('\n', "  \n"))]
#[case::empty_lines(&PLAIN.replace('\n', "\n\n"))]
#[case::fields_that_are_not_known(&format!("Weather: fine\nSystem: x86_64-linux\n{PLAIN}"))]
#[case::another_order(&PLAIN.lines().rev().collect::<Vec<_>>().join("\n"))]
#[case::the_last_of_two(&format!("NarSize: 1\nURL: elsewhere\nNarHash: sha1:x\n{PLAIN}"))]
#[case::no_deriver(&with("Deriver", ""))]
#[case::the_hash_in_hexadecimal(&with(
    "NarHash",
    "NarHash: sha256:e6712b66ea5a489fc5aa433f65d0e402d996676cdb78bdff15343d09c271c1c3",
))]
fn what_says_the_same_is_the_same(#[case] text: &str) {
    let (read, expected) = (parse(text), parse(PLAIN));
    assert_eq!(read, expected);
}

#[rstest]
#[case::no_compression("Compression", "", |narinfo: &NarInfo| narinfo.codec == Codec::Bzip2)]
#[case::an_empty_one("Compression", "Compression: ", |narinfo: &NarInfo| narinfo.codec == Codec::Bzip2)]
#[case::none("Compression", "Compression: none", |narinfo: &NarInfo| narinfo.codec == Codec::None)]
#[case::no_length("FileSize", "", |narinfo: &NarInfo| narinfo.file_size.is_none())]
#[case::a_length_that_nobody_knows("FileSize", "FileSize: 0", |narinfo: &NarInfo| narinfo.file_size.is_none())]
#[case::no_references("References", "", |narinfo: &NarInfo| narinfo.info.references.is_empty())]
#[case::empty_references("References", "References: ", |narinfo: &NarInfo| narinfo.info.references.is_empty())]
#[case::no_signature("Sig", "", |narinfo: &NarInfo| narinfo.check(&[]) == Err(Distrust::Unsigned))]
#[case::two_signatures("Sig", "Sig: a:x\nSig: b:y", |narinfo: &NarInfo| narinfo.signatures == ["a:x", "b:y"])]
#[case::a_large_nar("NarSize", "NarSize: 18446744073709551615", |narinfo: &NarInfo| narinfo.info.nar_size == u64::MAX)]
fn what_need_not_be_there_has_a_meaning(
    #[case] field: &str,
    #[case] line: &str,
    #[case] holds: impl Fn(&NarInfo) -> bool,
) {
    let narinfo = parse(&with(field, line)).unwrap();
    assert!(holds(&narinfo), "{narinfo:#?}");
}

#[rstest]
#[case("StorePath", "", "it has no StorePath")]
#[case("StorePath", "StorePath: ", "its StorePath is '': it is not a store path")]
#[case(
    "StorePath",
    "StorePath: /nix/store/cgpp-plain",
    "its StorePath is '/nix/store/cgpp-plain': it is not a store path"
)]
#[case(
    "StorePath",
    "StorePath: /nix/store/cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain/bin",
    "its StorePath is '/nix/store/cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain/bin': it is not a store path"
)]
#[case(
    "StorePath",
    "StorePath: /gnu/store/cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain",
    "its StorePath is '/gnu/store/cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-plain': it is not a store path"
)]
#[case(
    "StorePath",
    "StorePath: /nix/store/w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt",
    "it is about '/nix/store/w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt'"
)]
#[case(
    "StorePath",
    "StorePath: /nix/store/cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-other",
    "it is about '/nix/store/cgpp4r8nkcaaw68gcjfxp1vdm8d4jagc-other'"
)]
#[case("URL", "", "it has no URL")]
#[case("URL", "URL: ", "it has no URL")]
#[case("NarHash", "", "it has no NarHash")]
#[case("NarHash", "NarHash: sha1:x", "its NarHash is 'sha1:x': it does not begin with sha256: or sha256-")]
#[case("NarHash", "NarHash: sha256:x", "its NarHash is 'sha256:x': it has the wrong number of digits")]
#[case("NarSize", "", "it has no NarSize")]
#[case("NarSize", "NarSize: 0", "its NarSize is '0': it is not a number of bytes")]
#[case("NarSize", "NarSize: -1", "its NarSize is '-1': it is not a number of bytes")]
#[case(
    "NarSize",
    "NarSize: 18446744073709551616",
    "its NarSize is '18446744073709551616': it is not a number of bytes"
)]
#[case("FileSize", "FileSize: much", "its FileSize is 'much': it is not a number of bytes")]
#[case("Compression", "Compression: lzip", "its Compression is 'lzip': this tool does not know it")]
#[case(
    "References",
    "References: w7b71064bk9d6z5fpdyii2ir79hsnyzy-inner.txt nonsense",
    "its References is 'nonsense': its last part must be 32 digits, a dash and a name"
)]
#[case(
    "References",
    "References: ../../../../../../../etc/passwd-00000",
    "its References is '../../../../../../../etc/passwd-00000': its last part must be 32 digits, a dash and a name"
)]
#[case("Deriver", "Deriver", "line 9 is not 'Field: value'")]
fn what_is_missing_or_wrong_is_named(#[case] field: &str, #[case] line: &str, #[case] message: &str) {
    assert_eq!(parse(&with(field, line)).unwrap_err().to_string(), message);
}

#[test]
fn what_is_no_text_is_no_narinfo_and_what_is_long_is_shown_short() {
    assert_eq!(NarInfo::parse(&plain(), b"StorePath: \xff"), Err(InvalidNarInfo::NotText));
    assert_eq!(parse(""), Err(InvalidNarInfo::Missing { field: "StorePath" }));
    let long = parse(&with("NarHash", &format!("NarHash: {}", "ä".repeat(10_000)))).unwrap_err();
    assert!(long.to_string().chars().count() < 300);
}

/// A line of a narinfo, whole or damaged.
fn line() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        prop::sample::select(
            &["StorePath", "URL", "Compression", "FileSize", "NarHash", "NarSize", "References", "Sig", "CA"][..]
        )
        .prop_map(str::to_owned),
        ".{0,10}",
    ];
    let value = prop_oneof![
        prop::sample::select(PLAIN.lines().filter_map(|line| line.split_once(": ")).collect::<Vec<_>>())
            .prop_map(|(_, value)| value.to_owned()),
        prop::sample::select(&["fixed:r:sha256:", "fixed:sha256:", "text:sha256:", "fixed:", "text:", ""][..])
            .prop_map(str::to_owned),
        ".{0,80}",
    ];
    (name, value).prop_map(|(name, value)| format!("{name}: {value}\n"))
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index) {
        let _ = NarInfo::parse(&plain(), &bytes);
        let mut damaged = PLAIN.as_bytes().to_vec();
        let at = at.index(damaged.len());
        damaged.splice(at..at + 1, bytes);
        if let Ok(narinfo) = NarInfo::parse(&plain(), &damaged) {
            let _ = narinfo.check(&[]);
        }
    }

    #[test]
    fn no_lines_make_it_panic_and_none_are_trusted(lines in prop::collection::vec(line(), 0..12)) {
        let text: String = [PLAIN.to_owned()].into_iter().chain(lines).collect();
        if let Ok(narinfo) = parse(&text) {
            prop_assert!(narinfo.check(&[]).is_err());
            prop_assert_eq!(&narinfo.info.path, &plain());
        }
    }
}
