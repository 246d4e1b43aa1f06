//! GPT-OSS's vocabulary o200k_harmony: the ranks of o200k_base and the control tokens behind them.

use std::borrow::Cow;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use tiktoken_rs::CoreBPE;

use super::Vocabulary;
use crate::error::ModelError;

/// Ordinary tokens; their ids are their ranks.
const N_RANKS: u32 = 199_998;
/// Ids that no text can produce.
const CONTROL_IDS: RangeInclusive<u32> = N_RANKS..=201_087;
/// The control tokens with a meaning.
const NAMED: [(&str, u32); 9] = [
    ("<|startoftext|>", 199_998),
    ("<|endoftext|>", 199_999),
    ("<|return|>", 200_002),
    ("<|constrain|>", 200_003),
    ("<|channel|>", 200_005),
    ("<|start|>", 200_006),
    ("<|end|>", 200_007),
    ("<|message|>", 200_008),
    ("<|call|>", 200_012),
];
/// SHA-256 of the published file `o200k_base.tiktoken`: a line `base64(token) rank` for each rank.
pub(super) const RANKS_SHA256: &str = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d";

/// The vocabulary of GPT-OSS, whose ranks are part of the program.
///
/// # Source
/// OpenAI, `o200k_base.tiktoken` (2024) and the encoding `o200k_harmony` (2025).
pub struct O200kHarmony {
    encoder: CoreBPE,
}

impl std::fmt::Debug for O200kHarmony {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("O200kHarmony").field("ranks_sha256", &RANKS_SHA256).finish_non_exhaustive()
    }
}

impl O200kHarmony {
    /// The one instance, built and checked at the first call.
    ///
    /// # Errors
    /// [`ModelError::VocabularyHash`] when the ranks are not the published ones, at every call.
    pub fn shared() -> Result<&'static Self, ModelError> {
        static SHARED: OnceLock<Result<O200kHarmony, String>> = OnceLock::new();
        let built = SHARED.get_or_init(|| {
            let encoder = tiktoken_rs::o200k_harmony().map_err(|error| error.to_string())?;
            check_ranks(&encoder, RANKS_SHA256).map(|()| Self { encoder })
        });
        built.as_ref().map_err(|got| ModelError::VocabularyHash { expected: RANKS_SHA256, got: got.clone() })
    }

    /// Rows that a model's embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        *CONTROL_IDS.end() as usize + 1
    }
}

/// Writes the ranks as the published file does and compares the hash; the error is what came instead.
fn check_ranks(encoder: &CoreBPE, expected: &str) -> Result<(), String> {
    let mut hasher = Sha256::new();
    let mut line = String::new();
    for id in 0..N_RANKS {
        let bytes = encoder.decode_bytes(&[id]).map_err(|error| error.to_string())?;
        line.clear();
        STANDARD.encode_string(bytes, &mut line);
        writeln!(line, " {id}").expect("a string takes every text");
        hasher.update(line.as_bytes());
    }
    let got = format!("{:x}", hasher.finalize());
    if got == expected { Ok(()) } else { Err(got) }
}

impl Vocabulary for O200kHarmony {
    fn encode(&self, text: &str) -> Vec<u32> {
        self.encoder.encode_ordinary(text)
    }

    fn bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        self.encoder.decode_bytes(&[id]).ok().map(Cow::Owned)
    }

    fn control_id(&self, token: &str) -> Option<u32> {
        NAMED.iter().find(|(name, _)| *name == token).map(|&(_, id)| id)
    }

    fn is_control(&self, id: u32) -> bool {
        CONTROL_IDS.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranks_are_the_published_ones_and_any_other_are_refused() {
        let shared = O200kHarmony::shared().unwrap();
        check_ranks(&shared.encoder, RANKS_SHA256).unwrap();
        assert_eq!(check_ranks(&shared.encoder, "446a").unwrap_err(), RANKS_SHA256);
        let other = tiktoken_rs::cl100k_base().unwrap();
        assert!(check_ranks(&other, RANKS_SHA256).is_err());
    }

    #[test]
    fn every_id_has_bytes_and_only_control_ids_are_control() {
        let shared = O200kHarmony::shared().unwrap();
        for (name, id) in NAMED {
            assert_eq!(shared.bytes(id).as_deref(), Some(name.as_bytes()));
            assert_eq!(shared.control_id(name), Some(id));
            assert!(shared.is_control(id) && !shared.encode(name).iter().any(|&id| shared.is_control(id)));
        }
        for id in [200_000, 200_013, 201_087] {
            assert_eq!(shared.bytes(id).as_deref(), Some(format!("<|reserved_{id}|>").as_bytes()));
        }
        assert!(shared.bytes(0).is_some() && shared.bytes(199_997).is_some() && !shared.is_control(199_997));
        assert_eq!((shared.bytes(201_088), shared.is_control(201_088)), (None, false));
        assert_eq!(shared.vocab_size(), 201_088);
        assert_eq!(shared.control_id("<|reserved_200000|>"), None);
    }
}
