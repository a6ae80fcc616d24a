//! Sets of numbers that lie near each other, as bits.

use std::cmp::Ordering;

/// A set of numbers. Only the words that have a bit are kept, so that what a set costs depends on what is in it, and
/// not on the largest number there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    /// `(number / 64, a bit for each number % 64)`, ascending.
    words: Vec<(usize, u64)>,
    len: usize,
}

impl Set {
    /// The set of one number.
    pub(super) fn of(number: usize) -> Self {
        Self { words: vec![(number / 64, 1 << (number % 64))], len: 1 }
    }

    /// The numbers of both.
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut words = Vec::with_capacity(self.words.len() + other.words.len());
        let (mut left, mut right) = (self.words.as_slice(), other.words.as_slice());
        while let ([one, left_rest @ ..], [two, right_rest @ ..]) = (left, right) {
            match one.0.cmp(&two.0) {
                Ordering::Less => {
                    words.push(*one);
                    left = left_rest;
                }
                Ordering::Greater => {
                    words.push(*two);
                    right = right_rest;
                }
                Ordering::Equal => {
                    words.push((one.0, one.1 | two.1));
                    (left, right) = (left_rest, right_rest);
                }
            }
        }
        words.extend(left.iter().chain(right));
        let len = words.iter().map(|(_, bits)| bits.count_ones() as usize).sum();
        Self { words, len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many numbers are in both.
    pub(super) fn common(&self, other: &Self) -> usize {
        let (mut left, mut right) = (self.words.as_slice(), other.words.as_slice());
        let mut common = 0;
        while let ([one, left_rest @ ..], [two, right_rest @ ..]) = (left, right) {
            match one.0.cmp(&two.0) {
                Ordering::Less => left = left_rest,
                Ordering::Greater => right = right_rest,
                Ordering::Equal => {
                    common += (one.1 & two.1).count_ones() as usize;
                    (left, right) = (left_rest, right_rest);
                }
            }
        }
        common
    }

    /// The numbers, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.words
            .iter()
            .flat_map(|&(word, bits)| (0..64).filter(move |bit| bits & (1 << bit) != 0).map(move |bit| word * 64 + bit))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_is_what_the_standard_library_has(
            one in prop::collection::btree_set(0usize..300, 0..40), two in prop::collection::btree_set(0usize..300, 0..40),
        ) {
            let set = |numbers: &BTreeSet<usize>| numbers.iter().fold(Set::default(), |set, &n| set.union(&Set::of(n)));
            let both = set(&one).union(&set(&two));
            prop_assert_eq!(both.iter().collect::<BTreeSet<_>>(), &one | &two);
            prop_assert_eq!(both.len(), (&one | &two).len());
            prop_assert_eq!(set(&one).common(&set(&two)), (&one & &two).len());
        }
    }
}
