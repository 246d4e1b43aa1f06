//! What a model is: its family, its dimensions, its rotary embedding, its special ids; and the named sizes.

use kernels_cubecl::HeadLayout;

use crate::error::ModelError;
use crate::rope::{Rope, RopeScaling, Yarn};

/// What the blocks are made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Family {
    /// LLaMA: projections without biases, attention over the whole document, one gated MLP.
    Llama,
    /// GPT-OSS: biases, attention sinks, windows in some blocks, and a mixture of experts.
    GptOss(GptOss),
}

/// What GPT-OSS has beyond LLaMA.
#[derive(Clone, Debug, PartialEq)]
pub struct GptOss {
    /// Keys that a query of a sliding block sees, its own included.
    pub window: usize,
    /// Per block, whether it slides; the others see the whole document.
    pub sliding: Vec<bool>,
    /// The experts that stand in the place of the MLP.
    pub experts: Experts,
}

/// A mixture of gated experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    /// How many there are in a block; each is `d_ff` wide.
    pub n: usize,
    /// How many a token goes through.
    pub top_k: usize,
    /// Where gate and up are clamped.
    pub limit: f32,
    /// Factor on the gate inside its sigmoid.
    pub alpha: f32,
    /// Weight of the load balancing loss that the model's own configuration names; training has an option of its own.
    pub balance_coef: f32,
}

impl GptOss {
    /// The released models' shape: every other block slides, beginning with the first.
    pub fn released(n_layers: usize, n_experts: usize) -> Self {
        GptOss {
            window: 128,
            sliding: (0..n_layers).map(|i| i % 2 == 0).collect(),
            experts: Experts { n: n_experts, top_k: 4, limit: 7.0, alpha: 1.702, balance_coef: 0.9 },
        }
    }

    /// The released models' rotary embedding.
    pub fn released_rope() -> Rope {
        let yarn = Yarn {
            factor: 32.0,
            original_max_position: 4096,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
        };
        Rope { theta: 150_000.0, scaling: RopeScaling::Yarn(yarn) }
    }
}

/// The architecture of one model. Hugging Face spelling exists only in [`crate::hf`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What the blocks are made of.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the gated MLP, or of one expert.
    pub d_ff: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even, because it is rotated in pairs.
    pub d_head: usize,
    /// Context the model was made for.
    pub max_seq_len: usize,
    /// Rotary embedding.
    pub rope: Rope,
    /// Added to the mean square before its root.
    pub rms_norm_eps: f32,
    /// Whether the output head is the embedding.
    pub tied: bool,
    /// Standard deviation of a fresh weight.
    pub init_std: f32,
    /// Token that begins a text, where the tokenizer has one.
    pub bos_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_ids: Vec<u32>,
    /// Token that fills short rows.
    pub pad_id: Option<u32>,
}

/// Dimensions of one named size.
struct Preset {
    name: &'static str,
    n_layers: usize,
    d_model: usize,
    d_ff: usize,
    n_heads: usize,
    n_kv_heads: usize,
    max_seq_len: usize,
}

/// Vocabulary of the named sizes: a multiple of 128, so that GEMM tiles divide the head.
pub const PRESET_VOCAB_SIZE: usize = 50_304;

const fn preset(name: &'static str, dims: [usize; 6]) -> Preset {
    let [n_layers, d_model, d_ff, n_heads, n_kv_heads, max_seq_len] = dims;
    Preset { name, n_layers, d_model, d_ff, n_heads, n_kv_heads, max_seq_len }
}

const PRESETS: [Preset; 6] = [
    preset("125m", [12, 768, 2048, 12, 12, 2048]),
    preset("350m", [24, 1024, 2816, 16, 16, 2048]),
    preset("1b", [24, 2048, 5504, 16, 4, 4096]),
    preset("3b", [26, 3072, 8192, 24, 8, 4096]),
    preset("7b", [32, 4096, 11_008, 32, 8, 4096]),
    preset("7b-wide", [32, 4096, 14_336, 32, 8, 4096]),
];

/// The released GPT-OSS models; only blocks and experts differ.
const GPT_OSS: [(&str, usize, usize); 2] = [("gpt-oss-20b", 24, 32), ("gpt-oss-120b", 36, 128)];

/// Head width of models made by [`ModelConfig::from_depth`].
const DEPTH_D_HEAD: usize = 64;

impl ModelConfig {
    /// One of the named sizes.
    ///
    /// # Errors
    /// [`ModelError::UnknownPreset`] lists the names there are.
    pub fn preset(name: &str) -> Result<Self, ModelError> {
        if let Some((_, n_layers, n_experts)) = GPT_OSS.iter().find(|(known, ..)| *known == name) {
            return Ok(Self::gpt_oss(*n_layers, *n_experts));
        }
        let Some(p) = PRESETS.iter().find(|p| p.name == name) else {
            let known = Self::preset_names().collect::<Vec<_>>().join(", ");
            return Err(ModelError::UnknownPreset { name: name.escape_debug().to_string(), known });
        };
        Ok(ModelConfig {
            n_layers: p.n_layers,
            d_model: p.d_model,
            d_ff: p.d_ff,
            n_heads: p.n_heads,
            n_kv_heads: p.n_kv_heads,
            d_head: p.d_model / p.n_heads,
            max_seq_len: p.max_seq_len,
            ..Self::frame(PRESET_VOCAB_SIZE)
        })
    }

    /// The names that [`ModelConfig::preset`] knows, smallest first in each family.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|p| p.name).chain(GPT_OSS.iter().map(|(name, ..)| *name))
    }

    /// A released GPT-OSS model; the special ids are those of its tokenizer.
    fn gpt_oss(n_layers: usize, n_experts: usize) -> Self {
        ModelConfig {
            family: Family::GptOss(GptOss::released(n_layers, n_experts)),
            d_model: 2880,
            d_ff: 2880,
            n_layers,
            n_heads: 64,
            n_kv_heads: 8,
            d_head: 64,
            max_seq_len: 131_072,
            rope: GptOss::released_rope(),
            eos_ids: vec![200_002],
            pad_id: Some(199_999),
            ..Self::frame(201_088)
        }
    }

    /// A small model from one dial: every dimension follows from the number of blocks.
    ///
    /// The width is one head per block, keys and values share heads in groups of two where the count is even, the MLP is
    /// 8/3 as wide as the model rounded up to a multiple of 64, and the head is the embedding, which otherwise would
    /// outweigh the blocks at this size.
    ///
    /// # Panics
    /// When `depth` or `vocab_size` is 0.
    pub fn from_depth(depth: usize, vocab_size: usize) -> Self {
        assert!(depth > 0 && vocab_size > 0, "depth {depth} and vocab_size {vocab_size} must be positive");
        let d_model = depth * DEPTH_D_HEAD;
        ModelConfig {
            n_layers: depth,
            d_model,
            d_ff: (d_model * 8).div_ceil(3).next_multiple_of(64),
            n_heads: depth,
            n_kv_heads: if depth.is_multiple_of(2) { depth / 2 } else { depth },
            d_head: DEPTH_D_HEAD,
            max_seq_len: 1024,
            tied: true,
            ..Self::frame(vocab_size)
        }
    }

    /// What all our own sizes share; the dimensions are left at zero for the caller to fill.
    pub(crate) fn frame(vocab_size: usize) -> Self {
        ModelConfig {
            family: Family::Llama,
            vocab_size,
            d_model: 0,
            d_ff: 0,
            n_layers: 0,
            n_heads: 0,
            n_kv_heads: 0,
            d_head: 0,
            max_seq_len: 0,
            rope: Rope::plain(10_000.0),
            rms_norm_eps: 1e-5,
            tied: false,
            init_std: 0.02,
            bos_id: None,
            eos_ids: Vec::new(),
            pad_id: None,
        }
    }

    /// How one row of the fused query, key and value projection is laid out.
    pub fn heads(&self) -> HeadLayout {
        HeadLayout { n_heads: self.n_heads, n_kv_heads: self.n_kv_heads, d_head: self.d_head }
    }

    /// Factor on the attention scores.
    pub fn attention_scale(&self) -> f32 {
        (self.d_head as f64).powf(-0.5) as f32
    }

    /// Width of the concatenated attention heads.
    pub fn attention_width(&self) -> usize {
        self.n_heads * self.d_head
    }

    /// What GPT-OSS has beyond LLaMA, where the model is of that family.
    pub fn as_gpt_oss(&self) -> Option<&GptOss> {
        match &self.family {
            Family::Llama => None,
            Family::GptOss(gpt_oss) => Some(gpt_oss),
        }
    }

    /// The experts, where the model has some.
    pub fn experts(&self) -> Option<&Experts> {
        self.as_gpt_oss().map(|gpt_oss| &gpt_oss.experts)
    }

    /// Keys that a query of block `layer` sees, its own included; `None` where it sees the whole document.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.as_gpt_oss().filter(|gpt_oss| gpt_oss.sliding[layer]).map(|gpt_oss| gpt_oss.window)
    }

    /// Checks the dimensions against each other. Keys are named as in `config.json`, where the values come from.
    ///
    /// # Errors
    /// [`ModelError::ConfigInvalid`] names the first key that does not fit.
    pub fn validate(&self) -> Result<(), ModelError> {
        crate::hf::validate_dimensions(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_published_counts() {
        let want: [(&str, u64); 8] = [
            ("125m", 162_220_800),
            ("350m", 411_354_112),
            ("1b", 1_269_401_600),
            ("3b", 2_926_476_288),
            ("7b", 6_083_055_616),
            ("7b-wide", 7_391_678_464),
            ("gpt-oss-20b", 20_914_757_184),
            ("gpt-oss-120b", 116_829_156_672),
        ];
        assert_eq!(ModelConfig::preset_names().collect::<Vec<_>>(), want.map(|(name, _)| name));
        for (name, count) in want {
            let config = ModelConfig::preset(name).unwrap();
            config.validate().unwrap();
            assert_eq!(config.n_params(), count, "{name}");
        }
    }

    #[test]
    fn an_unknown_preset_lists_the_known_ones() {
        let error = ModelConfig::preset("13b").unwrap_err().to_string();
        assert!(error.contains("`13b`") && error.contains("7b-wide"), "{error}");
    }

    #[test]
    fn every_depth_gives_a_valid_model_that_grows() {
        let mut last = 0;
        for depth in 1..=32 {
            let config = ModelConfig::from_depth(depth, 4096);
            config.validate().unwrap();
            assert!(config.n_params() > last, "depth {depth}");
            last = config.n_params();
        }
    }
}
