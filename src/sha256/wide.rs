//! The blocks of sixteen streams side by side, in the registers of AVX-512: each holds one word of every stream.
//!
//! The rounds are those of FIPS 180-4, section 6.2.2, as they stand there; a rotation is one instruction, and so is a
//! function of three words (section 4.1.2).
#![allow(unsafe_code, reason = "whether a CPU has the instructions is known at run time alone; a register is an array")]

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_loadu_si512, _mm512_ror_epi32, _mm512_set1_epi32,
    _mm512_set4_epi32, _mm512_shuffle_epi8, _mm512_shuffle_i32x4, _mm512_srli_epi32, _mm512_storeu_si512,
    _mm512_ternarylogic_epi32, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

use super::interleaved::ROUND_CONSTANTS;
use super::{BLOCK, LANES};

/// How many blocks ahead of those in work the next ones are wanted: a core does not look so far ahead by itself, for one of
/// each stream takes some thousand instructions.
const AHEAD: usize = 2;

/// What [`_mm512_ternarylogic_epi32`] calls the functions of FIPS 180-4, section 4.1.2: the value for each of the eight
/// combinations of three bits.
const PARITY: i32 = 0x96;
const CHOICE: i32 = 0xca;
const MAJORITY: i32 = 0xe8;

/// Whether the CPU has the instructions.
pub(super) fn is_possible() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// Applies the compression function to all streams, which have the same number of blocks. Does nothing and says so on a
/// CPU that lacks the instructions.
pub(super) fn try_compress(states: &mut [[u32; 8]; LANES], blocks: [&[[u8; BLOCK]]; LANES]) -> bool {
    let has_them = is_possible();
    if has_them {
        // SAFETY: the CPU has every feature that the function is compiled for.
        unsafe { compress(states, blocks) };
    }
    has_them
}

#[target_feature(enable = "avx512f,avx512bw")]
fn compress(states: &mut [[u32; 8]; LANES], blocks: [&[[u8; BLOCK]]; LANES]) {
    // Loops: what is called for each element of an array by somebody else is compiled without the instructions.
    let mut state = [from_words(&[0; 16]); 8];
    for (word, of_all) in state.iter_mut().enumerate() {
        *of_all = from_words(&states.each_ref().map(|state| state[word]));
    }
    let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
    for at in 0..count {
        let mut words = [from_words(&[0; 16]); 16];
        for (row, blocks) in words.iter_mut().zip(&blocks) {
            *row = from_bytes(&blocks[at]);
            if let Some(ahead) = blocks.get(at + AHEAD) {
                #[allow(unused_unsafe, reason = "Rust 1.89 takes it for unsafe, later ones do not")]
                // SAFETY: nothing is read that anybody sees.
                unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.as_ptr().cast());
                }
            }
        }
        transpose(&mut words);
        let before = state;
        sixteen_rounds::<0>(&mut state, &mut words);
        sixteen_rounds::<4>(&mut state, &mut words);
        sixteen_rounds::<8>(&mut state, &mut words);
        sixteen_rounds::<12>(&mut state, &mut words);
        for (word, before) in state.iter_mut().zip(before) {
            *word = _mm512_add_epi32(*word, before);
        }
    }
    for (word, of_all) in state.into_iter().enumerate() {
        for (state, value) in states.iter_mut().zip(to_words(of_all)) {
            state[word] = value;
        }
    }
}

/// Sixteen rounds, written out: so no word moves from one register to another.
#[inline]
#[target_feature(enable = "avx512f")]
fn sixteen_rounds<const FIRST: usize>(state: &mut [__m512i; 8], words: &mut [__m512i; 16]) {
    macro_rules! rounds {
        ($($at:literal)*) => { $(round::<FIRST, $at>(state, words);)* };
    }
    rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

/// The round `AT` after the sixteen before, or the first of all; constants are from line `FIRST` on. It takes in one word of
/// the message schedule, and puts the one that comes sixteen rounds later in its place.
#[inline]
#[target_feature(enable = "avx512f")]
fn round<const FIRST: usize, const AT: usize>(state: &mut [__m512i; 8], words: &mut [__m512i; 16]) {
    let [a, b, c, d, e, f, g, h] = *state;
    let constant = _mm512_set1_epi32(ROUND_CONSTANTS[FIRST + AT / 4][AT % 4].cast_signed());
    let sum = _mm512_add_epi32(h, _mm512_add_epi32(words[AT], constant));
    let one = _mm512_ternarylogic_epi32::<PARITY>(
        _mm512_ror_epi32::<6>(e),
        _mm512_ror_epi32::<11>(e),
        _mm512_ror_epi32::<25>(e),
    );
    let first = _mm512_add_epi32(sum, _mm512_add_epi32(one, _mm512_ternarylogic_epi32::<CHOICE>(e, f, g)));
    let zero = _mm512_ternarylogic_epi32::<PARITY>(
        _mm512_ror_epi32::<2>(a),
        _mm512_ror_epi32::<13>(a),
        _mm512_ror_epi32::<22>(a),
    );
    let second = _mm512_add_epi32(zero, _mm512_ternarylogic_epi32::<MAJORITY>(a, b, c));
    *state = [_mm512_add_epi32(first, second), a, b, c, _mm512_add_epi32(d, first), e, f, g];
    if FIRST < 12 {
        words[AT] = scheduled(words, AT);
    }
}

/// The word that comes sixteen after the one at `at`.
#[inline]
#[target_feature(enable = "avx512f")]
fn scheduled(words: &[__m512i; 16], at: usize) -> __m512i {
    let [near, far] = [words[(at + 1) % 16], words[(at + 14) % 16]];
    let zero = _mm512_ternarylogic_epi32::<PARITY>(
        _mm512_ror_epi32::<7>(near),
        _mm512_ror_epi32::<18>(near),
        _mm512_srli_epi32::<3>(near),
    );
    let one = _mm512_ternarylogic_epi32::<PARITY>(
        _mm512_ror_epi32::<17>(far),
        _mm512_ror_epi32::<19>(far),
        _mm512_srli_epi32::<10>(far),
    );
    _mm512_add_epi32(_mm512_add_epi32(words[at], zero), _mm512_add_epi32(words[(at + 9) % 16], one))
}

/// Makes sixteen streams' blocks the sixteen big-endian words of all: rows are merged by one word, by two, and by four.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(words: &mut [__m512i; 16]) {
    let swap = _mm512_set4_epi32(0x0c0d_0e0f, 0x0809_0a0b, 0x0405_0607, 0x0001_0203);
    for four in words.as_chunks_mut().0 {
        *four = merged(*four);
    }
    // A register has four words of four streams now; `words[4 * four + word]` those at `word`, four further, and so on.
    for word in 0..4 {
        let [a, b, c, d] = [words[word], words[4 + word], words[8 + word], words[12 + word]];
        let [even, odd] = [_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<ODD>(a, b)];
        let [even_too, odd_too] = [_mm512_shuffle_i32x4::<EVEN>(c, d), _mm512_shuffle_i32x4::<ODD>(c, d)];
        words[word] = _mm512_shuffle_i32x4::<EVEN>(even, even_too);
        words[8 + word] = _mm512_shuffle_i32x4::<ODD>(even, even_too);
        words[4 + word] = _mm512_shuffle_i32x4::<EVEN>(odd, odd_too);
        words[12 + word] = _mm512_shuffle_i32x4::<ODD>(odd, odd_too);
    }
    for of_all in words {
        *of_all = _mm512_shuffle_epi8(*of_all, swap);
    }
}

/// What [`_mm512_shuffle_i32x4`] calls the first and third, the second and fourth quarters of two registers.
const EVEN: i32 = 0x88;
const ODD: i32 = 0xdd;

/// Of four rows the words at one place of each quarter, side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn merged([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let [low, high] = [_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)];
    let [low_too, high_too] = [_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d)];
    [
        _mm512_unpacklo_epi64(low, low_too),
        _mm512_unpackhi_epi64(low, low_too),
        _mm512_unpacklo_epi64(high, high_too),
        _mm512_unpackhi_epi64(high, high_too),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn from_bytes(block: &[u8; BLOCK]) -> __m512i {
    // SAFETY: a block is as long as a register, and need not be aligned.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn from_words(words: &[u32; 16]) -> __m512i {
    // SAFETY: so many words are as long as a register, and need not be aligned.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_words(register: __m512i) -> [u32; 16] {
    let mut words = [0; 16];
    // SAFETY: so many words are as long as a register, and need not be aligned.
    unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), register) };
    words
}
