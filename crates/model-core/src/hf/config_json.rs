//! `config.json`: reading what a model says of itself, refusing what we do not compute, writing our own.
//!
//! What only GPT-OSS has is in `gpt_oss.rs`. Rotary embedding is read in both spellings, `rope_theta` with `rope_scaling` (transformers 4) and `rope_parameters`
//! (transformers 5), and written in both, so that either version opens the folder.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::json::{MAX_CONFIG_BYTES, parse};
use crate::config::{Family, ModelConfig};
use crate::error::ModelError;
use crate::rope::{Rope, RopeScaling, Yarn};

mod gpt_oss;

/// Element type of a weights file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// 32-bit IEEE floating point.
    F32,
    /// The upper half of an F32, rounded to nearest even.
    Bf16,
}

impl FloatType {
    /// Name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            FloatType::F32 => "float32",
            FloatType::Bf16 => "bfloat16",
        }
    }

    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::Bf16 => 2,
        }
    }
}

/// Largest value of a dimension; larger ones are mistakes, and their products would overflow.
const MAX_DIMENSION: usize = 1 << 28;

/// Keys whose only supported value is the one that changes nothing, in every family.
const NEUTRAL: [(&str, &[&str]); 5] = [
    ("hidden_act", &["\"silu\""]),
    ("mlp_bias", &["false"]),
    ("attention_dropout", &["0.0", "0"]),
    ("pretraining_tp", &["1"]),
    ("partial_rotary_factor", &["1.0", "1"]),
];
/// The same for LLaMA alone.
const NEUTRAL_LLAMA: [(&str, &[&str]); 2] = [("attention_bias", &["false"]), ("sliding_window", &[])];

impl ModelConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// Absent keys take the defaults of transformers where it has one that a real model relies on.
    ///
    /// # Errors
    /// [`ModelError`] naming the key that is missing, unsupported or inconsistent.
    pub fn from_hf(json: &str) -> Result<Self, ModelError> {
        let value = parse("config.json", json.as_bytes(), MAX_CONFIG_BYTES)?;
        let Value::Object(map) = value else {
            return Err(ModelError::Json { what: "config.json", reason: "expected an object".to_owned() });
        };
        let keys = Keys { map: &map, within: "" };
        if gpt_oss::is_original(&keys) {
            return gpt_oss::read_original(&keys);
        }
        let has_experts = keys.expect_family()?;
        let (d_model, n_heads) = (keys.dimension("hidden_size")?, keys.dimension("num_attention_heads")?);
        let max_seq_len = keys.dimension_or("max_position_embeddings", 2048)?;
        let n_layers = keys.dimension("num_hidden_layers")?;
        let config = ModelConfig {
            family: if has_experts { gpt_oss::read(&keys, n_layers)? } else { Family::Llama },
            vocab_size: keys.dimension("vocab_size")?,
            d_model,
            d_ff: keys.dimension("intermediate_size")?,
            n_layers,
            n_heads,
            n_kv_heads: keys.dimension_or("num_key_value_heads", n_heads)?,
            d_head: match keys.whole("head_dim")? {
                Some(d_head) => d_head,
                None => default_d_head(d_model, n_heads)?,
            },
            max_seq_len,
            rope: rope(&keys, max_seq_len, has_experts)?,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            tied: keys.boolean("tie_word_embeddings")?.unwrap_or(false),
            init_std: keys.number("initializer_range")?.unwrap_or(0.02) as f32,
            bos_id: keys.ids("bos_token_id")?.first().copied(),
            eos_ids: keys.ids("eos_token_id")?,
            pad_id: keys.ids("pad_token_id")?.first().copied(),
        };
        config.validate()?;
        Ok(config)
    }

    /// Writes `config.json` for f32 weights; [`ModelConfig::from_hf`] reads the same configuration back.
    pub fn to_hf(&self) -> String {
        self.to_hf_as(FloatType::F32)
    }

    /// Writes `config.json` for weights of the given type.
    pub fn to_hf_as(&self, float: FloatType) -> String {
        pretty(&self.hf_value(float))
    }

    /// As [`ModelConfig::to_hf_as`], for a folder whose experts are in MXFP4.
    pub fn to_hf_packed(&self, float: FloatType) -> String {
        let mut config = self.hf_value(float);
        config["quantization_config"] = gpt_oss::quantisation();
        pretty(&config)
    }

    fn hf_value(&self, float: FloatType) -> Value {
        let scaling = rope_entries(&self.rope);
        let mut parameters = scaling.clone();
        parameters.insert("rope_theta".to_owned(), json!(self.rope.theta));
        let plain = self.rope.scaling == RopeScaling::Default;
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_id,
            "dtype": float.name(),
            "eos_token_id": eos_value(&self.eos_ids),
            "head_dim": self.d_head,
            "hidden_act": "silu",
            "hidden_size": self.d_model,
            "initializer_range": short(self.init_std),
            "intermediate_size": self.d_ff,
            "max_position_embeddings": self.max_seq_len,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.n_heads,
            "num_hidden_layers": self.n_layers,
            "num_key_value_heads": self.n_kv_heads,
            "pad_token_id": self.pad_id,
            "rms_norm_eps": short(self.rms_norm_eps),
            "rope_parameters": parameters,
            "rope_scaling": if plain { Value::Null } else { Value::Object(scaling) },
            "rope_theta": self.rope.theta,
            "tie_word_embeddings": self.tied,
            "torch_dtype": float.name(),
            "use_cache": true,
            "vocab_size": self.vocab_size,
        });
        if let (Family::GptOss(gpt_oss), Value::Object(map)) = (&self.family, &mut config) {
            gpt_oss::write(gpt_oss, self, map);
        }
        config
    }
}

/// Writes `generation_config.json`, which tells generators where a text ends.
pub fn generation_config(config: &ModelConfig) -> String {
    let mut map = Map::new();
    map.insert("_from_model_config".to_owned(), json!(true));
    for (key, value) in [
        ("bos_token_id", json!(config.bos_id)),
        ("eos_token_id", eos_value(&config.eos_ids)),
        ("pad_token_id", json!(config.pad_id)),
    ] {
        if !value.is_null() {
            map.insert(key.to_owned(), value);
        }
    }
    pretty(&Value::Object(map))
}

/// See [`ModelConfig::validate`].
pub(crate) fn validate_dimensions(config: &ModelConfig) -> Result<(), ModelError> {
    let dimensions = [
        ("vocab_size", config.vocab_size),
        ("hidden_size", config.d_model),
        ("intermediate_size", config.d_ff),
        ("num_hidden_layers", config.n_layers),
        ("num_attention_heads", config.n_heads),
        ("num_key_value_heads", config.n_kv_heads),
        ("head_dim", config.d_head),
        ("max_position_embeddings", config.max_seq_len),
    ];
    for (key, value) in dimensions {
        if value == 0 || value > MAX_DIMENSION {
            return Err(invalid(key, format!("a number from 1 to {MAX_DIMENSION}"), value.to_string()));
        }
    }
    if !config.n_heads.is_multiple_of(config.n_kv_heads) {
        let expected = format!("a divisor of num_attention_heads {}", config.n_heads);
        return Err(invalid("num_key_value_heads", expected, config.n_kv_heads.to_string()));
    }
    if !config.d_head.is_multiple_of(2) {
        return Err(invalid(
            "head_dim",
            "an even number, heads are rotated in pairs".to_owned(),
            config.d_head.to_string(),
        ));
    }
    if let Family::GptOss(gpt_oss) = &config.family {
        gpt_oss::validate(gpt_oss, config)?;
    }
    for (key, value) in [("rms_norm_eps", config.rms_norm_eps), ("initializer_range", config.init_std)] {
        if !(value > 0.0 && value < 1.0) {
            return Err(invalid(key, "a number between 0 and 1".to_owned(), value.to_string()));
        }
    }
    let ids = [config.bos_id, config.pad_id].into_iter().flatten().chain(config.eos_ids.iter().copied());
    for id in ids {
        if id as usize >= config.vocab_size {
            let expected = format!("special token ids below vocab_size {}", config.vocab_size);
            return Err(invalid("bos_token_id, eos_token_id, pad_token_id", expected, id.to_string()));
        }
    }
    Ok(())
}

/// Typed access to the keys of one object; `within` is its path for messages.
struct Keys<'m> {
    map: &'m Map<String, Value>,
    within: &'static str,
}

impl Keys<'_> {
    /// A value that is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn path(&self, key: &str) -> String {
        if self.within.is_empty() { key.to_owned() } else { format!("{}.{key}", self.within) }
    }

    /// Checks that the model is of a family that is computed here; true for the one with experts.
    fn expect_family(&self) -> Result<bool, ModelError> {
        let expected = "\"llama\" or \"gpt_oss\"";
        let Some(family) = self.get("model_type") else {
            return Err(ModelError::ConfigMissing { key: "model_type", expected });
        };
        let has_experts = match family.as_str() {
            Some("llama") => false,
            Some(gpt_oss::MODEL_TYPE) => true,
            _ => return Err(unsupported("model_type", expected.to_owned(), family)),
        };
        let own: &[(&str, &[&str])] = if has_experts { &gpt_oss::NEUTRAL } else { &NEUTRAL_LLAMA };
        for (key, allowed) in NEUTRAL.iter().chain(own) {
            let Some(value) = self.get(key) else { continue };
            if !allowed.contains(&value.to_string().as_str()) {
                let expected = allowed.first().map_or("null or absent".to_owned(), |a| format!("{a} or absent"));
                return Err(unsupported(key, expected, value));
            }
        }
        self.expect_quantisation(if has_experts { "mxfp4" } else { "bitsandbytes" })?;
        Ok(has_experts)
    }

    /// Quantised weights are read where they are told by their tensors; here only the method must be one that is read.
    fn expect_quantisation(&self, method: &str) -> Result<(), ModelError> {
        let Some(value) = self.get("quantization_config") else { return Ok(()) };
        let got = value.get("quant_method").unwrap_or(value);
        if got == method {
            return Ok(());
        }
        Err(unsupported("quantization_config.quant_method", format!("\"{method}\", or no quantization_config"), got))
    }

    fn dimension(&self, key: &'static str) -> Result<usize, ModelError> {
        let expected = "a positive whole number";
        self.whole(key)?.ok_or(ModelError::ConfigMissing { key, expected })
    }

    fn dimension_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        Ok(self.whole(key)?.unwrap_or(default))
    }

    fn whole(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let whole = value.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=MAX_DIMENSION).contains(v));
        let fail = || invalid(&self.path(key), format!("a whole number from 1 to {MAX_DIMENSION}"), value.to_string());
        whole.map(Some).ok_or_else(fail)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let fail = || invalid(&self.path(key), "a number".to_owned(), value.to_string());
        value.as_f64().filter(|v| v.is_finite()).map(Some).ok_or_else(fail)
    }

    /// A number above zero that must be there.
    fn positive(&self, key: &str) -> Result<f64, ModelError> {
        let got = self.number(key)?;
        let shown = got.map_or("none".to_owned(), |v| v.to_string());
        got.filter(|v| *v > 0.0).ok_or_else(|| invalid(&self.path(key), "a number above 0".to_owned(), shown))
    }

    fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let fail = || invalid(&self.path(key), "true or false".to_owned(), value.to_string());
        value.as_bool().map(Some).ok_or_else(fail)
    }

    /// One token id or a list of them; a negative id means none, as in older files.
    fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let one = |value: &Value| -> Result<Option<u32>, ModelError> {
            let fail = || invalid(&self.path(key), "a token id or a list of them".to_owned(), value.to_string());
            let id = value.as_i64().ok_or_else(fail)?;
            if id < 0 { Ok(None) } else { u32::try_from(id).map(Some).map_err(|_| fail()) }
        };
        let ids: Result<Vec<_>, _> = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            single => one(single).map(|id| vec![id]),
        };
        Ok(ids?.into_iter().flatten().collect())
    }
}

fn default_d_head(d_model: usize, n_heads: usize) -> Result<usize, ModelError> {
    if d_model.is_multiple_of(n_heads) {
        return Ok(d_model / n_heads);
    }
    let expected = format!("a multiple of num_attention_heads {n_heads}, or the key head_dim");
    Err(invalid("hidden_size", expected, d_model.to_string()))
}

/// Reads the rotary embedding from whichever spelling is there; both must agree.
///
/// Without either, GPT-OSS takes the embedding of its released models.
fn rope(keys: &Keys<'_>, max_seq_len: usize, has_experts: bool) -> Result<Rope, ModelError> {
    let top_theta = keys.number("rope_theta")?;
    let old = rope_object(keys, "rope_scaling", top_theta, max_seq_len)?;
    let new = rope_object(keys, "rope_parameters", top_theta, max_seq_len)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            Err(invalid("rope_parameters", format!("the same as rope_scaling, {old:?}"), format!("{new:?}")))
        }
        (Some(rope), _) | (None, Some(rope)) => Ok(rope),
        (None, None) if has_experts && top_theta.is_none() => Ok(crate::config::GptOss::released_rope()),
        (None, None) => Ok(Rope::plain(top_theta.unwrap_or(10_000.0))),
    }
    .and_then(|rope| {
        let in_range = rope.theta.is_finite() && rope.theta > 1.0;
        if in_range {
            Ok(rope)
        } else {
            Err(invalid("rope_theta", "a number above 1".to_owned(), rope.theta.to_string()))
        }
    })
}

fn rope_object(
    keys: &Keys<'_>,
    key: &'static str,
    top_theta: Option<f64>,
    max_seq_len: usize,
) -> Result<Option<Rope>, ModelError> {
    let Some(value) = keys.get(key) else { return Ok(None) };
    let Value::Object(map) = value else {
        return Err(invalid(key, "an object or null".to_owned(), value.to_string()));
    };
    let inner = Keys { map, within: key };
    let theta = inner.number("rope_theta")?;
    if let (Some(inner), Some(top)) = (theta, top_theta)
        && inner != top
    {
        return Err(invalid("rope_theta", format!("the {inner} of {key}"), top.to_string()));
    }
    if let Some(factor) = inner.number("partial_rotary_factor")?.filter(|f| *f != 1.0) {
        return Err(unsupported("partial_rotary_factor", "1.0 or absent".to_owned(), &json!(factor)));
    }
    let original = match inner.whole("original_max_position_embeddings")? {
        Some(original) => original,
        None => keys.dimension_or("original_max_position_embeddings", max_seq_len)?,
    };
    let variant = inner.get("rope_type").or_else(|| inner.get("type"));
    let scaling = match variant.and_then(Value::as_str) {
        _ if variant.is_none() => RopeScaling::Default,
        Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear { factor: inner.positive("factor")? },
        Some("llama3") => llama3(&inner, original)?,
        Some("yarn") => RopeScaling::Yarn(yarn(&inner, original)?),
        _ => {
            let expected = "default, linear, llama3 or yarn".to_owned();
            return Err(unsupported(&inner.path("rope_type"), expected, variant.unwrap_or(&Value::Null)));
        }
    };
    Ok(Some(Rope { theta: theta.or(top_theta).unwrap_or(10_000.0), scaling }))
}

fn llama3(keys: &Keys<'_>, original_max_position: usize) -> Result<RopeScaling, ModelError> {
    let factor = keys.positive("factor")?;
    let (low_freq_factor, high_freq_factor) = (keys.positive("low_freq_factor")?, keys.positive("high_freq_factor")?);
    if low_freq_factor >= high_freq_factor {
        let expected = format!("less than high_freq_factor {high_freq_factor}");
        return Err(invalid(&keys.path("low_freq_factor"), expected, low_freq_factor.to_string()));
    }
    Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position })
}

fn yarn(keys: &Keys<'_>, original_max_position: usize) -> Result<Yarn, ModelError> {
    let or = |key: &str, default: f64| -> Result<f64, ModelError> {
        // A zero counts as absent, as it does in transformers.
        Ok(keys.number(key)?.filter(|v| *v != 0.0).unwrap_or(default))
    };
    let yarn = Yarn {
        factor: keys.positive("factor")?,
        original_max_position,
        attention_factor: keys.number("attention_factor")?,
        mscale: keys.number("mscale")?,
        mscale_all_dim: keys.number("mscale_all_dim")?,
        beta_fast: or("beta_fast", 32.0)?,
        beta_slow: or("beta_slow", 1.0)?,
        truncate: keys.boolean("truncate")?.unwrap_or(true),
    };
    if yarn.beta_slow <= 0.0 || yarn.beta_fast < yarn.beta_slow {
        let expected = format!("at least beta_slow {} and both above 0", yarn.beta_slow);
        return Err(invalid(&keys.path("beta_fast"), expected, yarn.beta_fast.to_string()));
    }
    Ok(yarn)
}

/// The entries of one rotary object without its base.
fn rope_entries(rope: &Rope) -> Map<String, Value> {
    let value = match &rope.scaling {
        RopeScaling::Default => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position,
        }),
        RopeScaling::Yarn(yarn) => json!({
            "rope_type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position,
            "attention_factor": yarn.attention_factor,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "truncate": yarn.truncate,
        }),
    };
    let Value::Object(map) = value else { unreachable!("the entries of a rotary embedding are an object") };
    map.into_iter().filter(|(_, value)| !value.is_null()).collect()
}

/// The shortest decimal that reads back as the same f32.
fn short(value: f32) -> f64 {
    value.to_string().parse().expect("a printed f32 is a number")
}

fn eos_value(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

pub(super) fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(&sorted(value)).expect("a JSON value prints");
    text.push('\n');
    text
}

/// Objects with sorted keys, because the bytes must not depend on how the JSON library was built.
fn sorted(value: &Value) -> Value {
    let Value::Object(map) = value else { return value.clone() };
    let ordered: BTreeMap<_, _> = map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
    Value::Object(ordered.into_iter().collect())
}

fn unsupported(key: &str, expected: String, got: &Value) -> ModelError {
    ModelError::ConfigUnsupported { key: key.to_owned(), expected, got: got.to_string() }
}

fn invalid(key: &str, expected: String, got: String) -> ModelError {
    ModelError::ConfigInvalid { key: key.to_owned(), expected, got }
}

#[cfg(test)]
mod tests;
