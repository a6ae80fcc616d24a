//! The blocks of several streams in turns, with the SHA instructions of x86-64.
//!
//! The operations on a stream are those of Intel's paper on these instructions (Gulley et al., "Intel SHA Extensions",
//! 2013), though words are scheduled further ahead; those of the other streams stand between them and fill the time that
//! each would wait.
#![allow(unsafe_code, reason = "whether a CPU has the instructions is known at run time alone; memory is not touched")]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_cvtsi128_si64, _mm_extract_epi64, _mm_set_epi32, _mm_set_epi64x,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
};

use super::BLOCK;

/// The round constants (FIPS 180-4, section 4.2.2), four rounds a line.
#[rustfmt::skip]
pub(super) const ROUND_CONSTANTS: [[u32; 4]; 16] = [
    [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
    [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
    [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
    [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
    [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
    [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
    [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
    [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
    [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
    [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
    [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
    [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
    [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
    [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
    [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
    [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
];

/// Whether the CPU has the instructions.
pub(super) fn is_possible() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
}

/// Applies the compression function to all streams, block by block in turns; they have the same number of blocks. Does
/// nothing and says so on a CPU that lacks the instructions.
pub(super) fn try_compress<const N: usize>(states: [&mut [u32; 8]; N], blocks: [&[[u8; BLOCK]]; N]) -> bool {
    let has_them = is_possible();
    if has_them {
        // SAFETY: the CPU has every feature that the function is compiled for.
        unsafe { compress(states, blocks) };
    }
    has_them
}

#[target_feature(enable = "sha,ssse3,sse4.1")]
fn compress<const N: usize>(states: [&mut [u32; 8]; N], blocks: [&[[u8; BLOCK]]; N]) {
    let mut lanes = [Lane { abef: four_words(&[0; 4]), cdgh: four_words(&[0; 4]) }; N];
    for (lane, state) in lanes.iter_mut().zip(&states) {
        *lane = Lane::load(state);
    }
    let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    for at in 0..count {
        let before = lanes;
        let mut words = [[four_words(&[0; 4]); 4]; N];
        for (words, blocks) in words.iter_mut().zip(&blocks) {
            *words = load_words(&blocks[at]);
        }
        sixteen_rounds::<N, 0>(&mut lanes, &mut words);
        sixteen_rounds::<N, 4>(&mut lanes, &mut words);
        sixteen_rounds::<N, 8>(&mut lanes, &mut words);
        sixteen_rounds::<N, 12>(&mut lanes, &mut words);
        for (lane, before) in lanes.iter_mut().zip(&before) {
            lane.add(before);
        }
    }
    for (lane, state) in lanes.iter().zip(states) {
        lane.store(state);
    }
}

/// Sixteen rounds, with the constants from line `FIRST` on. Words that were used are replaced at once by those that come
/// sixteen later, if there are any: twelve rounds before they are wanted, so that no round waits for them.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn sixteen_rounds<const N: usize, const FIRST: usize>(lanes: &mut [Lane; N], words: &mut [[__m128i; 4]; N]) {
    for at in 0..4 {
        let constants = four_words(&ROUND_CONSTANTS[FIRST + at]);
        for (lane, words) in lanes.iter_mut().zip(words.iter_mut()) {
            lane.four_rounds(words[at], constants);
            if FIRST < 12 {
                words[at] = schedule(words, at);
            }
        }
    }
}

/// The working variables of one stream, in the instructions' order.
#[derive(Clone, Copy)]
struct Lane {
    abef: __m128i,
    cdgh: __m128i,
}

impl Lane {
    #[inline]
    #[target_feature(enable = "ssse3,sse4.1")]
    fn load(state: &[u32; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = *state;
        Self { abef: four_words(&[f, e, b, a]), cdgh: four_words(&[h, g, d, c]) }
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn store(&self, state: &mut [u32; 8]) {
        let [f, e, b, a] = to_words(self.abef);
        let [h, g, d, c] = to_words(self.cdgh);
        *state = [a, b, c, d, e, f, g, h];
    }

    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn four_rounds(&mut self, words: __m128i, constants: __m128i) {
        let sum = _mm_add_epi32(words, constants);
        self.cdgh = _mm_sha256rnds2_epu32(self.cdgh, self.abef, sum);
        self.abef = _mm_sha256rnds2_epu32(self.abef, self.cdgh, _mm_shuffle_epi32(sum, 0x0e));
    }

    #[inline]
    #[target_feature(enable = "sse4.1")]
    fn add(&mut self, before: &Self) {
        self.abef = _mm_add_epi32(self.abef, before.abef);
        self.cdgh = _mm_add_epi32(self.cdgh, before.cdgh);
    }
}

/// The next four words of the message schedule, which replace those at `at`.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn schedule(words: &[__m128i; 4], at: usize) -> __m128i {
    let [w0, w1, w2, w3] = [words[at], words[(at + 1) % 4], words[(at + 2) % 4], words[(at + 3) % 4]];
    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
    _mm_sha256msg2_epu32(sum, w3)
}

/// A block as sixteen big-endian words.
#[inline]
#[target_feature(enable = "ssse3,sse4.1")]
fn load_words(block: &[u8; BLOCK]) -> [__m128i; 4] {
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let half = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&block[at * 8..at * 8 + 8]);
        i64::from_le_bytes(bytes)
    };
    [0, 1, 2, 3].map(|at| _mm_shuffle_epi8(_mm_set_epi64x(half(2 * at + 1), half(2 * at)), swap))
}

/// Four words, the first the lowest.
#[inline]
#[target_feature(enable = "sse4.1")]
fn four_words(words: &[u32; 4]) -> __m128i {
    let [a, b, c, d] = words.map(u32::cast_signed);
    _mm_set_epi32(d, c, b, a)
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn to_words(words: __m128i) -> [u32; 4] {
    let (low, high) = (_mm_cvtsi128_si64(words) as u64, _mm_extract_epi64(words, 1) as u64);
    [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
}
