//! What llama.cpp calls the parts of a model: keys of the architecture, names and rows of the tensors.
//!
//! # Source
//! llama.cpp's converter (`convert_hf_to_gguf.py`) and its loader.

use super::blocks::Kind;
use super::file::{Info, Metadata, Value};
use super::refused;
use crate::config::{Family, GptOss, ModelConfig};
use crate::error::ModelError;
use crate::hf::LeafMap;
use crate::rope::{RopeScaling, Yarn};

/// Clamp and sigmoid factor of the gated unit; llama.cpp has no keys for them.
const UNIT: (f32, f32) = (7.0, 1.702);
/// How far YaRN's factor on cosine and sine may be from the one that llama.cpp derives.
const FACTOR_TOLERANCE: f64 = 1e-6;

/// A tensor of the file and the rows of a leaf that it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Name, shape and type.
    pub(super) info: Info,
    /// Rows of the leaf, in the order of the tensor; elements where the leaf is a vector.
    pub(super) rows: Vec<u32>,
}

/// Element types of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kinds {
    /// Of matrices.
    pub(super) weights: Kind,
    /// Of the matrices of experts.
    pub(super) experts: Kind,
}

/// llama.cpp's name of the architecture.
pub(super) fn name(config: &ModelConfig) -> &'static str {
    match config.family {
        Family::Llama => "llama",
        Family::GptOss(_) => "gpt-oss",
    }
}

/// Refuses what llama.cpp computes otherwise, because no key can say it.
pub(super) fn check(config: &ModelConfig) -> Result<(), ModelError> {
    if let RopeScaling::Yarn(yarn) = &config.rope.scaling {
        let (want, got) = (0.1 * yarn.factor.ln() + 1.0, f64::from(config.rope.attention_factor()));
        let off = (want - got).abs();
        if off > FACTOR_TOLERANCE || off.is_nan() {
            return Err(refused("YaRN attention_factor", format!("{want}, which llama.cpp derives"), got));
        }
    }
    let Some(GptOss { sliding, experts, .. }) = config.as_gpt_oss() else { return Ok(()) };
    if (experts.limit, experts.alpha) != UNIT {
        let expected = format!("{} and {}, which llama.cpp has built in", UNIT.0, UNIT.1);
        return Err(refused("swiglu_limit and alpha", expected, format!("{} and {}", experts.limit, experts.alpha)));
    }
    match sliding.iter().enumerate().position(|(layer, slides)| *slides != layer.is_multiple_of(2)) {
        None => Ok(()),
        Some(layer) => {
            let got = if sliding[layer] { "sliding" } else { "full" };
            let expected = "sliding attention in every other block from the first on".to_owned();
            Err(refused("layer_types", expected, format!("{got} attention in block {layer}")))
        }
    }
}

/// Keys of the architecture.
pub(super) fn metadata(config: &ModelConfig) -> Metadata {
    let arch = name(config);
    let count = |key: &str, n: usize| (format!("{arch}.{key}"), Value::U32(n as u32));
    let number = |key: &str, x: f64| (format!("{arch}.{key}"), Value::F32(x as f32));
    let mut out = vec![
        count("vocab_size", config.vocab_size),
        count("context_length", config.max_seq_len),
        count("embedding_length", config.d_model),
        count("block_count", config.n_layers),
        count("feed_forward_length", config.d_ff),
        count("attention.head_count", config.n_heads),
        count("attention.head_count_kv", config.n_kv_heads),
        count("attention.key_length", config.d_head),
        count("attention.value_length", config.d_head),
        (format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(config.rms_norm_eps)),
        count("rope.dimension_count", config.d_head),
        number("rope.freq_base", config.rope.theta),
    ];
    let scaling = |kind: &str| (format!("{arch}.rope.scaling.type"), Value::Text(kind.to_owned()));
    match &config.rope.scaling {
        // Llama 3's frequencies are a tensor.
        RopeScaling::Default | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => out.extend([scaling("linear"), number("rope.scaling.factor", *factor)]),
        RopeScaling::Yarn(Yarn { factor, original_max_position, beta_fast, beta_slow, .. }) => out.extend([
            scaling("yarn"),
            number("rope.scaling.factor", *factor),
            count("rope.scaling.original_context_length", *original_max_position),
            number("rope.scaling.yarn_beta_fast", *beta_fast),
            number("rope.scaling.yarn_beta_slow", *beta_slow),
        ]),
    }
    if let Some(GptOss { window, experts, .. }) = config.as_gpt_oss() {
        out.extend([
            count("attention.sliding_window", *window),
            count("expert_count", experts.n),
            count("expert_used_count", experts.top_k),
            count("expert_feed_forward_length", config.d_ff),
        ]);
    }
    out
}

/// Divisors of the rotary frequencies of Llama 3; `None` for every other embedding.
pub(super) fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { .. } = config.rope.scaling else { return None };
    let plain = crate::rope::Rope::plain(config.rope.theta).inv_freq(config.d_head);
    let scaled = config.rope.inv_freq(config.d_head);
    Some(std::iter::zip(plain, scaled).map(|(plain, scaled)| plain / scaled).collect())
}

/// The tensors that a leaf becomes.
pub(super) fn targets(config: &ModelConfig, leaf: &LeafMap, kinds: Kinds) -> Result<Vec<Target>, ModelError> {
    let kind = if leaf.dims.len() == 1 { Kind::F32 } else { kinds.weights };
    let whole = |name: &str, kind| vec![target(leaf, name.to_owned(), kind, 0..leaf.dims[0])];
    let found = match leaf.leaf.as_str() {
        "model.embed_tokens.weight" => {
            let mut both = whole("token_embd.weight", kind);
            // llama.cpp takes the embedding for the head of a tied LLaMA by itself.
            if config.tied && config.as_gpt_oss().is_some() {
                both.extend(whole("output.weight", kind));
            }
            both
        }
        "model.norm.weight" => whole("output_norm.weight", Kind::F32),
        "lm_head.weight" => whole("output.weight", kind),
        name => {
            let of_block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
            let (layer, part) = of_block.expect("every other leaf is of a block");
            block_targets(config, leaf, &format!("blk.{layer}"), part, kinds)
        }
    };
    match found.iter().find(|target| !target.info.columns().is_multiple_of(target.info.kind.block())) {
        None => Ok(found),
        Some(Target { info, .. }) => {
            let expected = format!("rows of a multiple of {} numbers for {}", info.kind.block(), info.kind.name());
            Err(refused("tensor width", expected, format!("{} in `{}`", info.columns(), info.name)))
        }
    }
}

fn block_targets(config: &ModelConfig, leaf: &LeafMap, block: &str, part: &str, kinds: Kinds) -> Vec<Target> {
    let whole = |name: &str, kind| vec![target(leaf, format!("{block}.{name}"), kind, 0..leaf.dims[0])];
    match part {
        "input_layernorm.weight" => whole("attn_norm.weight", Kind::F32),
        "post_attention_layernorm.weight" if config.as_gpt_oss().is_some() => {
            whole("post_attention_norm.weight", Kind::F32)
        }
        "post_attention_layernorm.weight" => whole("ffn_norm.weight", Kind::F32),
        "self_attn.qkv_proj.weight" => qkv(config, leaf, block, "weight", kinds.weights),
        "self_attn.qkv_proj.bias" => qkv(config, leaf, block, "bias", Kind::F32),
        "self_attn.o_proj.weight" => whole("attn_output.weight", kinds.weights),
        "self_attn.o_proj.bias" => whole("attn_output.bias", Kind::F32),
        "self_attn.sinks" => whole("attn_sinks.weight", Kind::F32),
        "mlp.gate_up_proj.weight" => {
            let d_ff = config.d_ff;
            let half = |name: &str, from| target(leaf, format!("{block}.{name}"), kinds.weights, from..from + d_ff);
            vec![half("ffn_gate.weight", 0), half("ffn_up.weight", d_ff)]
        }
        "mlp.down_proj.weight" => whole("ffn_down.weight", kinds.weights),
        "mlp.router.weight" => whole("ffn_gate_inp.weight", Kind::F32),
        "mlp.router.bias" => whole("ffn_gate_inp.bias", Kind::F32),
        _ => experts(config, leaf, block, part, kinds.experts),
    }
}

/// Query, key and value. LLaMA's rotation pairs neighbours there, so its rows are interleaved; GPT-OSS' pairs halves, as here.
fn qkv(config: &ModelConfig, leaf: &LeafMap, block: &str, end: &str, kind: Kind) -> Vec<Target> {
    let (heads, half) = (config.heads(), config.d_head / 2);
    let (q, kv) = (heads.q_width(), heads.kv_width());
    let rotates = config.as_gpt_oss().is_none();
    let one = |name: &str, from: usize, n: usize, rotated: bool| {
        let row = |at: usize| {
            let (head, at) = (at / (2 * half), at % (2 * half));
            from + head * 2 * half + if rotated { at % 2 * half + at / 2 } else { at }
        };
        target(leaf, format!("{block}.{name}.{end}"), kind, (0..n).map(row))
    };
    vec![one("attn_q", 0, q, rotates), one("attn_k", q, kv, rotates), one("attn_v", q + kv, kv, false)]
}

/// Matrices and biases of experts; gate and up are interleaved in the leaf.
fn experts(config: &ModelConfig, leaf: &LeafMap, block: &str, part: &str, kind: Kind) -> Vec<Target> {
    let n = config.experts().map_or(1, |experts| experts.n);
    let (end, kind) = if part.ends_with("_bias") { ("bias", Kind::F32) } else { ("weight", kind) };
    let every = |name: &str, from: usize, step: usize| {
        let rows = (from..leaf.dims[0]).step_by(step);
        let mut made = target(leaf, format!("{block}.{name}.{end}"), kind, rows);
        let per_expert = made.rows.len() / n;
        made.info.shape.splice(..1, [n, per_expert]);
        made
    };
    match part.trim_end_matches("_bias") {
        "mlp.experts.gate_up_proj" => vec![every("ffn_gate_exps", 0, 2), every("ffn_up_exps", 1, 2)],
        "mlp.experts.down_proj" => vec![every("ffn_down_exps", 0, 1)],
        part => unreachable!("leaf {part} of a block has no name"),
    }
}

fn target(leaf: &LeafMap, name: String, kind: Kind, rows: impl IntoIterator<Item = usize>) -> Target {
    let rows: Vec<u32> = rows.into_iter().map(|row| row as u32).collect();
    let mut shape = vec![rows.len()];
    shape.extend(&leaf.dims[1..]);
    Target { info: Info { name, shape, kind }, rows }
}
