//! Finds the store paths that a file refers to, by the hash parts in its bytes.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::store_path::is_base32_digit;
use super::{HashPart, STORE_DIR, StorePath};

/// Length of a hash part.
const LEN: usize = StorePath::HASH_LEN;

/// How many bytes before a window tell where it stands: `/nix/store/`.
const BEFORE: usize = STORE_DIR.len() + 1;

/// What of a buffer must be seen again with the next one: the windows not yet looked at, and what precedes them.
pub(super) const OVERLAP: usize = BEFORE + LEN;

/// A file with more hash parts than this that are in no store is not remembered: it is made of such digits.
const MOST_CANDIDATES: usize = 4096;

/// The store paths that a store holds, by their hash parts.
#[derive(Debug, Default)]
pub(super) struct KnownPaths {
    paths: HashMap<HashPart, Vec<StorePath>>,
    /// One bit for each three digits that a known hash part begins with. Most windows fail here, so that a file of
    /// digits alone costs little more than another.
    beginnings: Vec<u64>,
}

impl KnownPaths {
    pub(super) fn new(paths: impl IntoIterator<Item = StorePath>) -> Self {
        let mut known = Self { paths: HashMap::new(), beginnings: vec![0; (1 << 15) / 64] };
        for path in paths {
            let Some(&hash) = path.hash_part().as_bytes().first_chunk::<LEN>() else { continue };
            let bit = beginning(&hash);
            known.beginnings[bit / 64] |= 1 << (bit % 64);
            known.paths.entry(hash).or_default().push(path);
        }
        for siblings in known.paths.values_mut().filter(|siblings| siblings.len() > 1) {
            // Nix keeps `<path>.lock`, `.chroot` and `.check` beside a path that it builds; none is a store path.
            let names: Vec<StorePath> = siblings.clone();
            siblings.retain(|path| {
                let of = |suffix| path.base_name().strip_suffix(suffix);
                let beside = [".lock", ".chroot", ".check"].into_iter().find_map(of);
                !beside.is_some_and(|base| names.iter().any(|path| path.base_name() == base))
            });
        }
        known
    }

    /// The paths with this hash part: none or one in any store that Nix made.
    pub(super) fn get(&self, hash: &HashPart) -> &[StorePath] {
        self.paths.get(hash).map_or(&[], Vec::as_slice)
    }

    fn contains(&self, hash: &HashPart) -> bool {
        let bit = beginning(hash);
        self.beginnings.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1) && self.paths.contains_key(hash)
    }
}

/// Fifteen bits of the first three digits: five are told apart by ASCII's low ones well enough.
fn beginning(hash: &HashPart) -> usize {
    hash[..3].iter().fold(0, |bits, &digit| bits << 5 | usize::from(digit & 31))
}

/// Hash parts found in some bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// Those of known paths, and those that stand where a store path would: behind `/nix/store/` or before a dash.
    pub(super) hashes: BTreeSet<HashPart>,
    candidates: usize,
}

impl Found {
    /// Whether `hashes` is all there is to know of the file.
    pub(super) fn is_complete(&self) -> bool {
        self.candidates <= MOST_CANDIDATES
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.candidates += other.candidates;
        self.hashes.extend(other.hashes);
    }

    /// Looks at the windows of 32 bytes that begin in `windows`; all of each must be in `data`.
    ///
    /// As Nix does (libstore/references.cc): wherever 32 base-32 digits stand in a row, whatever is around them. From
    /// the end of a window backwards, so that one wrong byte rules out up to 32 windows.
    pub(super) fn scan(&mut self, known: &KnownPaths, data: &[u8], windows: Range<usize>) {
        let mut at = windows.start;
        // Everything from `at` to here is digits.
        let mut digits_to = at;
        'windows: while at < windows.end {
            for byte in (digits_to..at + LEN).rev() {
                if !IS_DIGIT[usize::from(data[byte])] {
                    at = byte + 1;
                    digits_to = at;
                    continue 'windows;
                }
            }
            digits_to = at + LEN;
            if let Some(hash) = data[at..].first_chunk::<LEN>() {
                self.window(known, hash, &data[..at], data.get(at + LEN));
            }
            at += 1;
        }
    }

    /// Takes note of the hash parts in a name or a link target.
    pub(super) fn scan_whole(&mut self, known: &KnownPaths, data: &[u8]) {
        if data.len() >= LEN {
            self.scan(known, data, 0..data.len() - LEN + 1);
        }
    }

    fn window(&mut self, known: &KnownPaths, hash: &HashPart, before: &[u8], after: Option<&u8>) {
        if known.contains(hash) {
            self.hashes.insert(*hash);
            return;
        }
        let in_store = || before.strip_suffix(b"/").is_some_and(|before| before.ends_with(STORE_DIR.as_bytes()));
        if self.is_complete() && (after == Some(&b'-') || in_store()) && self.hashes.insert(*hash) {
            self.candidates += 1;
        }
    }
}

const IS_DIGIT: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_base32_digit(byte as u8);
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "nm7p8wxflggcwxfzayhysq4z6a1wg373";

    fn path(base: &str) -> StorePath {
        StorePath::from_base_name(base).unwrap()
    }

    fn known() -> KnownPaths {
        KnownPaths::new([path(&format!("{HASH}-hello-2.12.3"))])
    }

    fn found(known: &KnownPaths, text: &str) -> Vec<String> {
        let mut found = Found::default();
        found.scan_whole(known, text.as_bytes());
        found.hashes.iter().map(|hash| String::from_utf8_lossy(hash).into_owned()).collect()
    }

    #[test]
    fn a_known_hash_is_found_whatever_stands_around_it() {
        for text in [HASH, &format!("0{HASH}0"), &format!("\u{1}{HASH}\u{1}"), &format!("/nix/store/{HASH}-hello/bin")]
        {
            assert_eq!(found(&known(), text), [HASH], "{text}");
        }
        assert!(found(&known(), &HASH[1..]).is_empty());
        assert!(found(&known(), &HASH.to_uppercase()).is_empty());
    }

    #[test]
    fn of_unknown_hashes_those_that_stand_like_store_paths_are_kept() {
        let other = HASH.replace("nm7p", "0000");
        assert_eq!(found(&known(), &format!("/nix/store/{other}")), [other.as_str()]);
        assert_eq!(found(&known(), &format!("{other}-name")), [other.as_str()]);
        assert!(found(&known(), &format!("/nix/shop/{other}.")).is_empty());
    }

    #[test]
    fn files_that_nix_keeps_beside_a_path_are_not_references() {
        let names = ["hello", "hello.lock", "hello.chroot", "hello.check"];
        let beside = KnownPaths::new(names.map(|name| path(&format!("{HASH}-{name}"))));
        assert_eq!(beside.get(HASH.as_bytes().first_chunk().unwrap()), [path(&format!("{HASH}-hello"))]);
        let alone = KnownPaths::new([path(&format!("{HASH}-Cargo.lock"))]);
        assert_eq!(alone.get(HASH.as_bytes().first_chunk().unwrap()).len(), 1);
    }

    #[test]
    fn a_file_full_of_candidates_is_not_remembered_but_its_references_are_found() {
        let mut text: String = (0..MOST_CANDIDATES + 9).map(|n| format!("{n:032}-")).collect();
        text.push_str(HASH);
        let mut found = Found::default();
        found.scan_whole(&known(), text.as_bytes());
        assert!(!found.is_complete());
        assert!(found.hashes.contains(HASH.as_bytes()));
        assert!(found.hashes.len() <= MOST_CANDIDATES + 2);
    }

    proptest! {
        #[test]
        fn the_scan_finds_what_looking_at_every_window_finds(
            text in "[0-9a-dnm7p/-]{0,80}",
            at in 0usize..80,
            real: bool,
        ) {
            let mut text = text;
            if real {
                text.insert_str(at.min(text.len()), HASH);
            }
            let known = known();
            let expected: BTreeSet<String> = (0..text.len().saturating_sub(LEN - 1))
                .filter(|&at| text.as_bytes()[at..at + LEN].iter().all(|&byte| is_base32_digit(byte)))
                .filter(|&at| {
                    let window = &text[at..at + LEN];
                    window == HASH || text[..at].ends_with("/nix/store/") || text[at + LEN..].starts_with('-')
                })
                .map(|at| text[at..at + LEN].to_owned())
                .collect();
            prop_assert_eq!(found(&known, &text), Vec::from_iter(expected));
        }
    }
}
