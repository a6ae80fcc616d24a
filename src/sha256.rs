//! Vocabulary: sha256 (FIPS 180-4) of one stream, or of two at once on one core.
//!
//! A core with SHA instructions waits for each round of a stream before it can begin the next: it could do twice the
//! work. So two streams that have bytes at the same time are hashed in turns, block by block ([`update_two`]);
//! [`Partners`] brings the streams of several threads together. What is hashed, and what comes out, is plain sha256.

#[cfg(target_arch = "x86_64")]
mod interleaved;
mod partners;

pub use partners::{Partner, Partners};

/// The bytes that one application of the compression function takes.
const BLOCK: usize = 64;

/// The initial hash value (FIPS 180-4, section 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The sha256 of a stream, so far.
#[derive(Clone, Debug)]
pub struct Sha256 {
    state: [u32; 8],
    /// The beginning of a block that is not whole yet.
    tail: [u8; BLOCK],
    tail_len: usize,
    bytes: u64,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self { state: INITIAL, tail: [0; BLOCK], tail_len: 0, bytes: 0 }
    }
}

impl Sha256 {
    /// The sha256 of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes were hashed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes in more of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, rest) = self.begin(bytes).as_chunks();
        sha2::block_api::compress256(&mut self.state, blocks);
        self.end(rest);
    }

    /// The hash of all that was taken in (FIPS 180-4, section 5.1.1: a one bit, zeros, the length in bits).
    pub fn finish(mut self) -> [u8; 32] {
        let length = self.bytes.wrapping_mul(8).to_be_bytes();
        let zeros = (2 * BLOCK - 1 - length.len() - self.tail_len) % BLOCK;
        self.update(&[0x80]);
        self.update(&[0; BLOCK][..zeros]);
        self.update(&length);
        let mut hash = [0; 32];
        for (bytes, word) in hash.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        hash
    }

    /// Completes the block that was begun before, where `bytes` suffice for it: what is left of them.
    fn begin<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        self.bytes += bytes.len() as u64;
        if self.tail_len == 0 {
            return bytes;
        }
        let (completing, rest) = bytes.split_at(bytes.len().min(BLOCK - self.tail_len));
        self.tail[self.tail_len..][..completing.len()].copy_from_slice(completing);
        self.tail_len += completing.len();
        if self.tail_len == BLOCK {
            sha2::block_api::compress256(&mut self.state, &[self.tail]);
            self.tail_len = 0;
        }
        rest
    }

    /// Keeps less than a block for later.
    fn end(&mut self, rest: &[u8]) {
        self.tail[self.tail_len..][..rest.len()].copy_from_slice(rest);
        self.tail_len += rest.len();
    }
}

/// Takes in more of two streams at once: on a core with SHA instructions in little more than half the time that one
/// after the other would take, as far as both have bytes.
pub fn update_two(a: &mut Sha256, a_bytes: &[u8], b: &mut Sha256, b_bytes: &[u8]) {
    let (a_blocks, a_rest) = a.begin(a_bytes).as_chunks();
    let (b_blocks, b_rest) = b.begin(b_bytes).as_chunks();
    let both = a_blocks.len().min(b_blocks.len());
    let (a_both, a_alone) = a_blocks.split_at(both);
    let (b_both, b_alone) = b_blocks.split_at(both);
    compress_two(&mut a.state, a_both, &mut b.state, b_both);
    sha2::block_api::compress256(&mut a.state, a_alone);
    sha2::block_api::compress256(&mut b.state, b_alone);
    a.end(a_rest);
    b.end(b_rest);
}

/// Applies the compression function to two streams, which have the same number of blocks.
fn compress_two(a: &mut [u32; 8], a_blocks: &[[u8; BLOCK]], b: &mut [u32; 8], b_blocks: &[[u8; BLOCK]]) {
    #[cfg(target_arch = "x86_64")]
    if interleaved::try_compress(a, a_blocks, b, b_blocks) {
        return;
    }
    sha2::block_api::compress256(a, a_blocks);
    sha2::block_api::compress256(b, b_blocks);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest as _;

    fn reference(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    /// Bytes that differ from place to place.
    fn sample(length: usize, seed: u8) -> Vec<u8> {
        (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
    }

    #[test]
    fn every_length_around_the_blocks_is_padded_right() {
        for length in (0..300).chain([4096, 65_537]) {
            let bytes = sample(length, 1);
            let mut hasher = Sha256::new();
            hasher.update(&bytes);
            assert_eq!(hasher.bytes(), length as u64);
            assert_eq!(hasher.finish(), reference(&bytes), "{length}");
        }
    }

    proptest! {
        #[test]
        fn streams_cut_anywhere_and_hashed_together_or_alone_are_sha256(
            pieces in prop::collection::vec((0usize..400, 0usize..400, any::<bool>()), 0..12),
        ) {
            let (mut a, mut b) = (Sha256::new(), Sha256::new());
            let (mut whole_a, mut whole_b) = (Vec::new(), Vec::new());
            for (n, (in_a, in_b, together)) in pieces.into_iter().enumerate() {
                let (more_a, more_b) = (sample(in_a, n as u8), sample(in_b, 99 - n as u8));
                if together {
                    update_two(&mut a, &more_a, &mut b, &more_b);
                } else {
                    a.update(&more_a);
                    b.update(&more_b);
                }
                whole_a.extend(more_a);
                whole_b.extend(more_b);
            }
            prop_assert_eq!(a.finish(), reference(&whole_a));
            prop_assert_eq!(b.finish(), reference(&whole_b));
        }
    }
}
