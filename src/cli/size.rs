//! Sizes and ages as people write and read them.

/// A text that is no size or age.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is not {what}")]
pub(super) struct Invalid {
    text: String,
    what: &'static str,
}

/// Reads a size: a number with an optional unit, `20GiB`, `20G` and `20g` alike; `20GB` is a thousand million each.
pub(super) fn parse(text: &str) -> Result<u64, Invalid> {
    let invalid = || Invalid { text: text.to_owned(), what: "a size such as 500MiB, 20G or 1.5TB" };
    let (number, unit) = split(text).ok_or_else(invalid)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(invalid()),
    };
    scaled(number, factor).ok_or_else(invalid)
}

/// Reads an age: a number with a unit, `90s`, `30m`, `12h`, `7d` or `4w`; in seconds.
pub(super) fn parse_age(text: &str) -> Result<u64, Invalid> {
    let invalid = || Invalid { text: text.to_owned(), what: "an age such as 12h, 7d or 4w" };
    let (number, unit) = split(text).ok_or_else(invalid)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(invalid()),
    };
    scaled(number, factor).ok_or_else(invalid)
}

fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (!number.is_empty()).then_some((number, unit.trim_start()))
}

/// Whole numbers exactly; fractions as near as a double comes.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    (value.is_finite() && value < u64::MAX as f64).then_some(value as u64)
}

/// A size in bytes as people read it.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// How long ago something was, from its age in seconds.
pub(super) fn human_age(seconds: u64) -> String {
    match seconds {
        0..60 => "just now".to_owned(),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..86_400 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1k", 1024),
            ("1KB", 1000),
            ("20GiB", 20 << 30),
            ("20 g", 20 << 30),
            ("1.5M", 3 << 19),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1x", "1.2.3", "99999999999999999999", "20000000T"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_need_a_unit() {
        assert_eq!(parse_age("7d"), Ok(604_800));
        assert_eq!(parse_age("1.5h"), Ok(5_400));
        assert_eq!(parse_age("7").unwrap_err().to_string(), "'7' is not an age such as 12h, 7d or 4w");
    }

    #[test]
    fn sizes_are_short_to_read() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_300_000_000, "1.2 GiB")] {
            assert_eq!(human(bytes), text);
        }
        assert_eq!(human_age(59), "just now");
        assert_eq!(human_age(7_300), "2 h ago");
        assert_eq!(human_age(200_000), "2 d ago");
    }
}
