//! How a layer's tar is compressed, and what OCI calls the result.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

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

    /// Every codec at every level.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::None].into_iter().chain((1..=9).map(Self::Gzip)).chain((1..=19).map(Self::Zstd))
    }

    /// The tar in a layer's blob of this OCI media type.
    pub fn reader<'r>(media_type: &str, blob: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
        Ok(match media_type.rsplit(['.', '+']).next() {
            Some("gzip") => Box::new(flate2::read::MultiGzDecoder::new(blob)),
            Some("zstd") => Box::new(zstd::Decoder::new(blob)?),
            _ => Box::new(blob),
        })
    }

    /// The length in bytes of the pieces into which a tar is cut. Compressed pieces are whole by themselves (members of
    /// gzip, frames of zstd) and are made on all cores; where they are cut depends on nothing but the codec.
    pub(super) fn piece(self) -> usize {
        match self {
            // Long enough for reading and hashing, short enough for a core's cache.
            Self::None => 256 * 1024,
            Self::Gzip(_) => 1 << 20,
            Self::Zstd(_) => 2 << 20,
        }
    }

    /// About what each thread that compresses needs beside the pieces, in bytes: tables, which have the same size
    /// whatever is in the pieces.
    pub(super) fn tables(self) -> usize {
        let mib = match self {
            Self::None => 0,
            Self::Gzip(_) | Self::Zstd(..=4) => 2,
            Self::Zstd(5..=6) => 3,
            Self::Zstd(7..=8) => 6,
            Self::Zstd(9) => 11,
            // A table of hashes with four million places, of four bytes each, and a tag to each.
            Self::Zstd(10..=12) => 20,
            // As many hashes, and as large a binary tree; from level 16 on, what was found for the whole of a block, too.
            Self::Zstd(13..) => 34,
        };
        mib << 20
    }

    /// What a layer's key says of the codec. The number changes whenever the bytes do, through another version of a
    /// codec's library for example: golden digests tell.
    pub(super) fn key_field(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Gzip(level) => format!("gzip:{level}, format 2"),
            Self::Zstd(level) => format!("zstd:{level}, format 2"),
        }
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

/// Compresses pieces, one after the other.
pub(super) enum Codec {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Codec {
    /// `None` where nothing is compressed.
    pub(super) fn new(compression: Compression) -> io::Result<Option<Self>> {
        Ok(match compression {
            Compression::None => None,
            Compression::Gzip(level) => {
                // Its levels 1 to 9 are meant like zlib's.
                let level = i32::try_from(level).ok().and_then(|level| libdeflater::CompressionLvl::new(level).ok());
                let level = level.ok_or_else(|| io::Error::other("gzip has no such level"))?;
                Some(Self::Gzip(libdeflater::Compressor::new(level)))
            }
            Compression::Zstd(level) => Some(Self::Zstd(zstd::bulk::Compressor::new(level)?)),
        })
    }

    /// Turns the piece into one gzip member (RFC 1952; no name, no time) or one zstd frame (RFC 8878; no checksum), in the
    /// place of what `out` holds.
    pub(super) fn compress(&mut self, piece: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Gzip(compressor) => {
                out.resize(compressor.gzip_compress_bound(piece.len()), 0);
                let length = compressor.gzip_compress(piece, out).map_err(io::Error::other)?;
                out.truncate(length);
            }
            Self::Zstd(compressor) => {
                out.clear();
                out.reserve_exact(zstd::zstd_safe::compress_bound(piece.len()));
                compressor.compress_to_buffer(piece, out)?;
            }
        }
        Ok(())
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
