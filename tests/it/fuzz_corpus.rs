//! The files that fuzzing starts from, and those that it found something with: read by every run of the tests.

use std::fs;
use std::path::Path;

use rstest::rstest;

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a crate of its own to the fuzz targets")]
mod checks;

/// Files called `good-...` are accepted, files called `bad-...` are refused, and nothing panics.
#[rstest]
#[case::nar("nar", checks::nar)]
#[case::narinfo("narinfo", checks::narinfo)]
#[case::lockfile("lockfile", checks::lockfile)]
#[case::manifest("manifest", checks::manifest)]
fn every_file_of_the_corpus_is_accepted_or_refused_as_its_name_says(
    #[case] target: &str,
    #[case] check: fn(&[u8]) -> bool,
) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz").join(target);
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut good, mut bad) = (0, 0);
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let accepted = check(&fs::read(&file).unwrap());
        match name.split('-').next() {
            Some("good") => good += u32::from(accepted),
            Some("bad") => bad += u32::from(!accepted),
            _ => panic!("{name} is neither good-... nor bad-..."),
        }
        assert_eq!(accepted, name.starts_with("good-"), "{name}");
    }
    assert!(good > 0 && bad > 0, "{target}: {good} good, {bad} bad");
}
