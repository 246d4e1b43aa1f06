//! Baseline: what `xz -9e` needs for the held-out text when it has just read the training text.
//!
//! The compressor is primed by putting the training text in front; the dictionary covers all of it, so every phrase of
//! the training text can be pointed at. A language model that needs more bits has learnt less than a search for
//! repeated strings.
//!
//! # Numerics
//! Exact: sizes of files in whole bytes.

use std::io::{Read, Write};

use liblzma::stream::{Check, Filters, LzmaOptions, PRESET_EXTREME, Stream};
use liblzma::write::XzEncoder;

/// Preset of `xz -9e`.
const PRESET: u32 = 9 | PRESET_EXTREME;
/// Dictionary of that preset.
const PRESET_DICTIONARY: u64 = 64 << 20;
/// Largest dictionary of the format that a 32-bit size can name.
const MAX_DICTIONARY: u64 = 1536 << 20;

/// Why no size came out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XzError {
    /// There is no text to measure.
    #[error("the held-out text is empty, so it has no bits per byte; give held-out text")]
    Empty,
    /// More text than a dictionary can cover.
    #[error("training and held-out text have {0} bytes, the largest dictionary covers {MAX_DICTIONARY}; use less text")]
    TooLarge(u64),
    /// The compressor refused its options.
    #[error("cannot set up the xz encoder: {0}; more memory may be needed")]
    Setup(liblzma::stream::Error),
    /// The compressor failed while running.
    #[error("cannot compress: {0}; more memory may be needed")]
    Compress(std::io::Error),
}

/// The score of a held-out text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XzScore {
    /// Bytes that the held-out text adds to the compressed training text.
    pub added_bytes: u64,
    /// Bytes of the held-out text itself.
    pub text_bytes: u64,
}

impl XzScore {
    /// Bits per byte of held-out text.
    pub fn bits_per_byte(&self) -> f64 {
        8.0 * self.added_bytes as f64 / self.text_bytes as f64
    }
}

/// size(xz(train ++ heldout)) - size(xz(train)).
///
/// # Errors
/// [`XzError`]: no held-out text, too much text, or the compressor's own refusal.
pub fn score(train: &[u8], heldout: &[u8]) -> Result<XzScore, XzError> {
    if heldout.is_empty() {
        return Err(XzError::Empty);
    }
    let total = (train.len() + heldout.len()) as u64;
    if total > MAX_DICTIONARY {
        return Err(XzError::TooLarge(total));
    }
    let dictionary = u32::try_from(total.max(PRESET_DICTIONARY)).expect("below MAX_DICTIONARY");
    let (alone, together) =
        rayon::join(|| compressed_size(train, dictionary), || compressed_size(train.chain(heldout), dictionary));
    Ok(XzScore { added_bytes: together?.saturating_sub(alone?), text_bytes: heldout.len() as u64 })
}

/// Length of the `.xz` file of a text.
fn compressed_size(mut text: impl Read, dictionary: u32) -> Result<u64, XzError> {
    let mut options = LzmaOptions::new_preset(PRESET).map_err(XzError::Setup)?;
    options.dict_size(dictionary);
    let stream = Stream::new_stream_encoder(Filters::new().lzma2(&options), Check::Crc64).map_err(XzError::Setup)?;
    let mut encoder = XzEncoder::new_stream(Counter(0), stream);
    std::io::copy(&mut text, &mut encoder).map_err(XzError::Compress)?;
    Ok(encoder.finish().map_err(XzError::Compress)?.0)
}

/// Counts what is written to it.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize, mut state: u64) -> Vec<u8> {
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn text_that_training_holds_costs_almost_nothing() {
        let train = noise(20_000, 7);
        let known = score(&train, &train[2_000..12_000]).unwrap();
        // A match reaches 273 bytes, so 10 000 bytes are at least 37 of them.
        assert!(known.added_bytes < 400, "{known:?}");
        let unknown = score(&train, &noise(10_000, 8)).unwrap();
        assert!((7.9..8.1).contains(&unknown.bits_per_byte()), "{unknown:?}");
    }

    #[test]
    fn without_a_primer_the_size_is_that_of_the_program() {
        // `head -c 3000 /dev/zero | xz -9e | wc -c` of XZ Utils 5.4.1 gives 88; the empty file takes 32.
        let zeros = score(&[], &[0; 3000]).unwrap();
        assert_eq!(zeros.added_bytes, 88 - 32);
    }

    #[test]
    fn no_held_out_text_is_an_error() {
        assert!(matches!(score(b"abc", b""), Err(XzError::Empty)));
    }
}
