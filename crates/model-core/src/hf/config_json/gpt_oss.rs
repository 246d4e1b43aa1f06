//! What `config.json` says of GPT-OSS beyond the common keys, and the configuration beside OpenAI's original weights.

use serde_json::{Map, Value, json};

use super::{Keys, MAX_DIMENSION, invalid, short, unsupported};
use crate::config::{Experts, Family, GptOss, ModelConfig};
use crate::error::ModelError;
use crate::rope::{Rope, RopeScaling};

/// How transformers calls the family.
pub(super) const MODEL_TYPE: &str = "gpt_oss";

/// Keys whose only supported value is the one of the released models.
pub(super) const NEUTRAL: [(&str, &[&str]); 1] = [("attention_bias", &["true"])];

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// The balance loss's weight where a configuration leaves it out: the default of transformers 5.
const DEFAULT_BALANCE_COEF: f64 = 0.001;
/// Key that only OpenAI's own configuration has.
const ORIGINAL_KEY: &str = "rope_scaling_factor";

/// Reads what GPT-OSS has beyond LLaMA.
pub(super) fn read(keys: &Keys<'_>, n_layers: usize) -> Result<Family, ModelError> {
    let released = GptOss::released(n_layers, 1);
    let top_k = match keys.whole("num_experts_per_tok")? {
        Some(top_k) => top_k,
        None => keys.dimension_or("experts_per_token", released.experts.top_k)?,
    };
    let number = |key, default: f64| Ok::<_, ModelError>(keys.number(key)?.unwrap_or(default) as f32);
    let experts = Experts {
        n: keys.dimension("num_local_experts")?,
        top_k,
        limit: number("swiglu_limit", f64::from(released.experts.limit))?,
        alpha: number("swiglu_alpha", 1.702)?,
        balance_coef: number("router_aux_loss_coef", DEFAULT_BALANCE_COEF)?,
    };
    let sliding = match keys.get("layer_types") {
        None => released.sliding,
        Some(value) => layer_types(value)?,
    };
    Ok(Family::GptOss(GptOss { window: keys.dimension_or("sliding_window", released.window)?, sliding, experts }))
}

fn layer_types(value: &Value) -> Result<Vec<bool>, ModelError> {
    let one = |kind: &Value| match kind.as_str() {
        Some(SLIDING) => Ok(true),
        Some(FULL) => Ok(false),
        _ => Err(unsupported("layer_types", format!("a list of \"{SLIDING}\" and \"{FULL}\""), kind)),
    };
    let list = value.as_array().ok_or_else(|| invalid("layer_types", "a list".to_owned(), value.to_string()))?;
    list.iter().map(one).collect()
}

/// Writes those keys over LLaMA's.
pub(super) fn write(gpt_oss: &GptOss, config: &ModelConfig, map: &mut Map<String, Value>) {
    let experts = &gpt_oss.experts;
    let kinds: Vec<&str> = gpt_oss.sliding.iter().map(|slides| if *slides { SLIDING } else { FULL }).collect();
    let original = match &config.rope.scaling {
        RopeScaling::Yarn(yarn) => yarn.original_max_position,
        _ => config.max_seq_len,
    };
    let entries = [
        ("architectures", json!(["GptOssForCausalLM"])),
        ("attention_bias", json!(true)),
        ("experts_per_token", json!(experts.top_k)),
        ("initial_context_length", json!(original)),
        ("layer_types", json!(kinds)),
        ("model_type", json!(MODEL_TYPE)),
        ("num_experts_per_tok", json!(experts.top_k)),
        ("num_local_experts", json!(experts.n)),
        ("output_router_logits", json!(false)),
        ("router_aux_loss_coef", json!(short(experts.balance_coef))),
        ("sliding_window", json!(gpt_oss.window)),
        ("swiglu_alpha", json!(short(experts.alpha))),
        ("swiglu_limit", json!(short(experts.limit))),
    ];
    map.remove("mlp_bias");
    map.extend(entries.into_iter().map(|(key, value)| (key.to_owned(), value)));
}

/// What a folder with experts in MXFP4 says of them.
pub(super) fn quantisation() -> Value {
    let kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"];
    json!({ "modules_to_not_convert": kept, "quant_method": "mxfp4" })
}

/// Checks the numbers against each other.
pub(super) fn validate(gpt_oss: &GptOss, config: &ModelConfig) -> Result<(), ModelError> {
    let experts = &gpt_oss.experts;
    for (key, value) in [("num_local_experts", experts.n), ("sliding_window", gpt_oss.window)] {
        if value == 0 || value > MAX_DIMENSION {
            return Err(invalid(key, format!("a number from 1 to {MAX_DIMENSION}"), value.to_string()));
        }
    }
    if !(1..=experts.n).contains(&experts.top_k) {
        let expected = format!("a number from 1 to num_local_experts {}", experts.n);
        return Err(invalid("num_experts_per_tok", expected, experts.top_k.to_string()));
    }
    if gpt_oss.sliding.len() != config.n_layers {
        let expected = format!("one entry for each of the num_hidden_layers {}", config.n_layers);
        return Err(invalid("layer_types", expected, gpt_oss.sliding.len().to_string()));
    }
    for (key, value) in [("swiglu_limit", experts.limit), ("swiglu_alpha", experts.alpha)] {
        if !(value > 0.0 && value.is_finite()) {
            return Err(invalid(key, "a finite number above 0".to_owned(), value.to_string()));
        }
    }
    if !(experts.balance_coef >= 0.0 && experts.balance_coef.is_finite()) {
        let expected = "a finite number of at least 0".to_owned();
        return Err(invalid("router_aux_loss_coef", expected, experts.balance_coef.to_string()));
    }
    Ok(())
}

/// Whether the object is the configuration that OpenAI put beside the original weights.
pub(super) fn is_original(keys: &Keys<'_>) -> bool {
    keys.get("model_type").is_none() && keys.get(ORIGINAL_KEY).is_some()
}

/// Reads OpenAI's own configuration; what it leaves out is fixed in their model.
pub(super) fn read_original(keys: &Keys<'_>) -> Result<ModelConfig, ModelError> {
    let n_layers = keys.dimension("num_hidden_layers")?;
    let released = GptOss::released(n_layers, keys.dimension("num_experts")?);
    let mut rope = GptOss::released_rope();
    rope.theta = keys.positive("rope_theta")?;
    let context = keys.dimension("initial_context_length")?;
    if let RopeScaling::Yarn(yarn) = &mut rope.scaling {
        yarn.original_max_position = context;
        yarn.factor = keys.positive(ORIGINAL_KEY)?;
        yarn.beta_slow = keys.positive("rope_ntk_alpha")?;
        yarn.beta_fast = keys.positive("rope_ntk_beta")?;
    }
    let max_seq_len = max_seq_len(&rope, context);
    let experts = Experts {
        top_k: keys.dimension("experts_per_token")?,
        limit: keys.number("swiglu_limit")?.map_or(released.experts.limit, |limit| limit as f32),
        ..released.experts
    };
    let config = ModelConfig {
        family: Family::GptOss(GptOss { window: keys.dimension("sliding_window")?, experts, ..released }),
        d_model: keys.dimension("hidden_size")?,
        d_ff: keys.dimension("intermediate_size")?,
        n_layers,
        n_heads: keys.dimension("num_attention_heads")?,
        n_kv_heads: keys.dimension("num_key_value_heads")?,
        d_head: keys.dimension("head_dim")?,
        max_seq_len,
        rope,
        ..ModelConfig::frame(keys.dimension("vocab_size")?)
    };
    config.validate()?;
    Ok(config)
}

/// The context that the stretched embedding reaches.
fn max_seq_len(rope: &Rope, context: usize) -> usize {
    match &rope.scaling {
        RopeScaling::Yarn(yarn) => (context as f64 * yarn.factor) as usize,
        _ => context,
    }
}
