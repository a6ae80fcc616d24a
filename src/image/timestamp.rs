//! A point in time as image configurations write it.

use std::fmt;

/// Seconds since 1970-01-01T00:00:00Z, within the years 1970 to 9999; displayed as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

/// A time outside the years 1970 to 9999.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} seconds since 1970 is not within the years 1970 to 9999")]
pub struct TimestampError(i64);

impl Timestamp {
    /// The last second of the year 9999: RFC 3339 has four digits for a year.
    const MAX: u64 = 253_402_300_799;

    /// The time of an image that nobody gave another one: as all files of a Nix store have it, one second after the
    /// epoch.
    pub const NIX_EPOCH: Self = Self(1);

    /// A time in seconds since the epoch.
    pub fn from_seconds(seconds: i64) -> Result<Self, TimestampError> {
        u64::try_from(seconds).ok().filter(|seconds| *seconds <= Self::MAX).map(Self).ok_or(TimestampError(seconds))
    }
}

impl Default for Timestamp {
    fn default() -> Self {
        Self::NIX_EPOCH
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut day, second) = (self.0 / 86_400, self.0 % 86_400);
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut year = 1970;
        while day >= 365 + u64::from(leap(year)) {
            day -= 365 + u64::from(leap(year));
            year += 1;
        }
        let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 1;
        for length in lengths {
            if day < length {
                break;
            }
            day -= length;
            month += 1;
        }
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    // The right column is `date -u -d @SECONDS +%FT%TZ`.
    #[rstest]
    #[case(0, "1970-01-01T00:00:00Z")]
    #[case(1, "1970-01-01T00:00:01Z")]
    #[case(951_782_399, "2000-02-28T23:59:59Z")]
    #[case(951_782_400, "2000-02-29T00:00:00Z")]
    #[case(1_709_251_199, "2024-02-29T23:59:59Z")]
    #[case(1_735_689_599, "2024-12-31T23:59:59Z")]
    #[case(4_107_542_400, "2100-03-01T00:00:00Z")]
    #[case(253_402_300_799, "9999-12-31T23:59:59Z")]
    fn seconds_become_rfc_3339(#[case] seconds: i64, #[case] text: &str) {
        assert_eq!(Timestamp::from_seconds(seconds).unwrap().to_string(), text);
    }

    #[test]
    fn years_without_four_digits_are_refused() {
        assert!(Timestamp::from_seconds(-1).is_err());
        assert!(Timestamp::from_seconds(253_402_300_800).is_err());
        assert!(Timestamp::from_seconds(i64::MIN).is_err());
    }
}
