//! The codecs that binary caches compress NARs with.

use std::io::{self, Read};

/// Compressed NARs are read in pieces of this many bytes.
const BUFFER: usize = 64 * 1024;
/// The most memory that an xz file may ask for: `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 128 << 20;

/// How a NAR is compressed, by narinfo's `Compression`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Not at all.
    None,
    /// xz, which most caches use.
    Xz,
    /// Zstandard.
    Zstd,
    /// gzip.
    Gzip,
    /// bzip2, Nix's default where a narinfo names none.
    Bzip2,
    /// Brotli.
    Brotli,
}

impl Codec {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Self::None,
            "xz" | "lzma" => Self::Xz,
            "zstd" => Self::Zstd,
            "gzip" => Self::Gzip,
            "bzip2" => Self::Bzip2,
            "br" => Self::Brotli,
            _ => return None,
        })
    }

    /// The bytes that `compressed` holds. What its memory is depends on the codec, and is bounded for each.
    pub(super) fn reader<'r>(self, compressed: impl Read + 'r) -> io::Result<Box<dyn Read + 'r>> {
        let compressed = io::BufReader::with_capacity(BUFFER, compressed);
        Ok(match self {
            Self::None => Box::new(compressed),
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_auto_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(compressed, stream))
            }
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(compressed)?),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(compressed)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(compressed)),
            Self::Brotli => Box::new(brotli_decompressor::Decompressor::new(compressed, BUFFER)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn compressed(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match codec {
            Codec::None => out.extend_from_slice(bytes),
            Codec::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(&mut out, 3);
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap();
            }
            Codec::Zstd => out = zstd::encode_all(bytes, 3).unwrap(),
            Codec::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::new(6));
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap();
            }
            Codec::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(&mut out, bzip2::Compression::new(6));
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap();
            }
            // `printf hello | brotli -c`, of Debian's brotli 1.0.9.
            Codec::Brotli => out.extend_from_slice(b"\x0b\x02\x80hello\x03"),
        }
        out
    }

    #[rstest::rstest]
    #[case("none", Codec::None)]
    #[case("xz", Codec::Xz)]
    #[case("zstd", Codec::Zstd)]
    #[case("gzip", Codec::Gzip)]
    #[case("bzip2", Codec::Bzip2)]
    #[case("br", Codec::Brotli)]
    fn every_codec_is_read_and_a_cut_file_is_an_error(#[case] name: &str, #[case] codec: Codec) {
        assert_eq!(Codec::named(name), Some(codec));
        let whole = compressed(codec, b"hello");
        let read = |bytes: &[u8]| {
            let mut out = Vec::new();
            codec.reader(bytes).and_then(|mut reader| reader.read_to_end(&mut out)).map(|_| out)
        };
        assert_eq!(read(&whole).unwrap(), b"hello");
        // What is not compressed shows no cut: its reader knows the NAR's end.
        if codec != Codec::None {
            for at in 1..whole.len() {
                assert!(read(&whole[..at]).is_err(), "{at}");
            }
        }
    }

    #[test]
    fn several_streams_in_one_file_are_one() {
        for codec in [Codec::Xz, Codec::Zstd, Codec::Gzip, Codec::Bzip2] {
            let twice = [compressed(codec, b"hello "), compressed(codec, b"world")].concat();
            let mut out = String::new();
            codec.reader(&twice[..]).unwrap().read_to_string(&mut out).unwrap();
            assert_eq!(out, "hello world", "{codec:?}");
        }
    }

    #[test]
    fn another_codec_is_none() {
        assert_eq!(Codec::named("lzip"), None);
    }
}
