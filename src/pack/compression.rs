//! How a layer's tar is compressed, and what OCI calls the result.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use flate2::GzBuilder;
use flate2::write::GzEncoder;

/// A codec with its level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// The tar as it is.
    #[default]
    None,
    /// gzip, level 1 to 9.
    Gzip(u32),
    /// Zstandard, level 1 to 19.
    Zstd(i32),
}

impl Compression {
    /// gzip's own default level.
    pub const GZIP_LEVEL: u32 = 6;
    /// zstd's own default level.
    pub const ZSTD_LEVEL: i32 = 3;

    /// An encoder that writes to `out`.
    pub(super) fn encoder<W: Write>(self, out: W) -> io::Result<Encoder<W>> {
        Ok(match self {
            Self::None => Encoder::None(out),
            // No name and no time in the header; the operating system byte says "unknown", as it is no input.
            Self::Gzip(level) => Encoder::Gzip(
                GzBuilder::new().mtime(0).operating_system(255).write(out, flate2::Compression::new(level)),
            ),
            Self::Zstd(level) => Encoder::Zstd(zstd::stream::write::Encoder::new(out, level)?),
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Gzip(level) => write!(f, "gzip:{level}"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// A text that names no codec or a level that the codec has not.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not one of none, gzip, gzip:1 to gzip:9, zstd, zstd:1 to zstd:19")]
pub struct InvalidCompression(String);

impl FromStr for Compression {
    type Err = InvalidCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (codec, level) = match text.split_once(':') {
            Some((codec, level)) => (codec, Some(level)),
            None => (text, None),
        };
        let level_in = |default: u32, range: std::ops::RangeInclusive<u32>| match level {
            None => Some(default),
            Some(level) => level.parse().ok().filter(|level| range.contains(level)),
        };
        match codec {
            "none" if level.is_none() => Some(Self::None),
            "gzip" => level_in(Self::GZIP_LEVEL, 1..=9).map(Self::Gzip),
            "zstd" => level_in(Self::ZSTD_LEVEL as u32, 1..=19).map(|level| Self::Zstd(level as i32)),
            _ => None,
        }
        .ok_or_else(|| InvalidCompression(text.to_owned()))
    }
}

/// One of the codecs, writing.
pub(super) enum Encoder<W: Write> {
    None(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Ends the stream and gives the writer back.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::None(out) => Ok(out),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(buf),
            Self::Gzip(encoder) => encoder.write(buf),
            Self::Zstd(encoder) => encoder.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(out) => out.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_and_written() {
        for (text, compression) in [
            ("none", Compression::None),
            ("gzip:1", Compression::Gzip(1)),
            ("gzip:6", Compression::Gzip(6)),
            ("zstd:19", Compression::Zstd(19)),
        ] {
            assert_eq!(text.parse::<Compression>().unwrap(), compression);
            assert_eq!(compression.to_string(), text);
        }
        assert_eq!("gzip".parse::<Compression>().unwrap(), Compression::Gzip(6));
        assert_eq!("zstd".parse::<Compression>().unwrap(), Compression::Zstd(3));
    }

    #[test]
    fn other_codecs_and_levels_are_refused() {
        for text in ["", "xz", "none:1", "gzip:0", "gzip:10", "zstd:0", "zstd:20", "zstd:-1", "gzip:", "GZIP"] {
            assert!(text.parse::<Compression>().is_err(), "{text}");
        }
    }
}
