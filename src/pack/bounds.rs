//! How many threads compress at once and how many pieces are under way, so that a run's memory stays bounded.

use super::Compression;

/// What a run may take on two cores, or on one.
const MOST: usize = 64 << 20;
/// What each further core may add.
const MOST_OF_A_CORE: usize = 16 << 20;
/// What is kept for the rest of a run: 13 MiB of the program itself; closure, plan, records, requests.
const REST: usize = 16 << 20;

/// What a packer may have at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// How many threads compress.
    pub(super) compressors: usize,
    /// How many pieces are compressed, or wait for that or for being written; and how many layers are packed.
    pub(super) places: usize,
}

impl Bounds {
    /// On so many cores. Threads come first: with fewer pieces under way each of them only waits a little.
    pub(super) fn new(compression: Compression, cores: usize) -> Self {
        let most = MOST + MOST_OF_A_CORE * cores.saturating_sub(2) - REST;
        // One is filled, one is compressed, and what it compresses to.
        let place = 3 * compression.piece();
        // One at least is read while another one is compressed.
        let fewest = |compressors: usize| compressors.max(2);
        let fits = |compressors| compressors * compression.tables() + fewest(compressors) * place <= most;
        let compressors = (1..=cores).rev().find(|&compressors| fits(compressors)).unwrap_or(1);
        let room = most.saturating_sub(compressors * compression.tables()) / place;
        Self { compressors, places: room.min(2 * cores).max(fewest(compressors)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cores_compress_at_levels_with_small_tables() {
        for cores in [1, 2, 4, 8, 16] {
            for compression in ["gzip:1", "gzip:6", "gzip:9", "zstd:1", "zstd:3", "zstd:6", "zstd:8"] {
                let bounds = Bounds::new(compression.parse().unwrap(), cores);
                // With many cores fewer pieces wait, from level 7 on.
                let places = if (compression, cores) == ("zstd:8", 16) { 29 } else { 2 * cores };
                assert_eq!(bounds, Bounds { compressors: cores, places }, "{compression}, {cores}");
            }
        }
    }

    #[test]
    fn fewer_threads_compress_where_each_needs_much() {
        for (level, cores, compressors, places) in [
            (9, 2, 2, 4),
            (9, 4, 4, 6),
            (9, 8, 8, 9),
            (9, 17, 16, 18),
            (12, 2, 1, 4),
            (12, 4, 3, 3),
            (12, 16, 10, 12),
            (13, 1, 1, 2),
            (13, 2, 1, 2),
            (19, 2, 1, 2),
            (19, 4, 2, 2),
            (19, 8, 3, 7),
        ] {
            let bounds = Bounds::new(Compression::Zstd(level), cores);
            assert_eq!(bounds, Bounds { compressors, places }, "{level}, {cores}");
        }
    }

    #[test]
    fn no_codec_takes_more_than_a_run_may() {
        for (compression, cores) in Compression::all().flat_map(|codec| (1..=64).map(move |cores| (codec, cores))) {
            let Bounds { compressors, places } = Bounds::new(compression, cores);
            assert!((1..=cores).contains(&compressors) && (compressors.max(2)..=2 * cores).contains(&places));
            let taken = REST + compressors * compression.tables() + places * 3 * compression.piece();
            assert!(taken <= MOST + MOST_OF_A_CORE * cores.saturating_sub(2), "{compression}, {cores}");
        }
    }
}
