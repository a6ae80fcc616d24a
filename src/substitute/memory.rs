//! What is remembered of binary caches from run to run.

use std::collections::HashMap;

/// Remembers answers of caches, and the skeletons of NARs. Whatever it forgets is asked for again.
pub trait CacheMemory: Sync {
    /// All answers that are remembered.
    fn answers(&self) -> HashMap<Vec<u8>, Vec<u8>>;

    /// Remembers an answer.
    fn keep_answer(&self, key: Vec<u8>, answer: Vec<u8>);

    /// The skeletons that are remembered of these NARs, by their sha256.
    fn skeletons(&self, nars: &[[u8; 32]]) -> HashMap<[u8; 32], Vec<u8>>;

    /// Remembers a skeleton.
    fn keep_skeleton(&self, nar: [u8; 32], skeleton: Vec<u8>);
}

/// Remembers nothing.
pub struct NoCacheMemory;

impl CacheMemory for NoCacheMemory {
    fn answers(&self) -> HashMap<Vec<u8>, Vec<u8>> {
        HashMap::new()
    }

    fn keep_answer(&self, _: Vec<u8>, _: Vec<u8>) {}

    fn skeletons(&self, _: &[[u8; 32]]) -> HashMap<[u8; 32], Vec<u8>> {
        HashMap::new()
    }

    fn keep_skeleton(&self, _: [u8; 32], _: Vec<u8>) {}
}
