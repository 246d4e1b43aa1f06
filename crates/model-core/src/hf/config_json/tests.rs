//! Reading and writing `config.json`, and every way it can be wrong.

use serde_json::{Value, json};

use super::*;
use crate::config::{Experts, GptOss};

fn base() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 56,
        "num_hidden_layers": 3, "num_attention_heads": 4,
    })
}

fn with(changes: Value) -> Result<ModelConfig, ModelError> {
    let mut value = base();
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    for (key, change) in changes {
        value[key] = change;
    }
    ModelConfig::from_hf(&value.to_string())
}

fn refused(changes: Value, part: &str) {
    let error = with(changes.clone()).expect_err(&changes.to_string()).to_string();
    assert!(error.contains(part), "{changes}: `{part}` is not in: {error}");
}

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let config = with(json!({})).unwrap();
    assert_eq!((config.n_kv_heads, config.d_head, config.max_seq_len), (4, 8, 2048));
    assert_eq!((config.rms_norm_eps, config.init_std, config.tied), (1e-6, 0.02, false));
    assert_eq!(config.rope, Rope::plain(10_000.0));
    assert_eq!((config.bos_id, config.eos_ids, config.pad_id), (None, vec![], None));
}

#[test]
fn a_missing_key_is_named() {
    for key in
        ["model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    {
        let mut value = base();
        value.as_object_mut().unwrap().remove(key);
        let error = ModelConfig::from_hf(&value.to_string()).unwrap_err();
        assert!(matches!(&error, ModelError::ConfigMissing { key: named, .. } if *named == key), "{key}: {error}");
    }
}

#[test]
fn what_is_not_computed_is_refused() {
    refused(json!({"model_type": "gpt2"}), "`model_type`: expected \"llama\" or \"gpt_oss\", got \"gpt2\"");
    refused(json!({"hidden_act": "gelu"}), "`hidden_act`: expected \"silu\"");
    refused(json!({"attention_bias": true}), "`attention_bias`: expected false");
    refused(json!({"mlp_bias": true}), "`mlp_bias`: expected false");
    refused(json!({"attention_dropout": 0.1}), "`attention_dropout`");
    refused(json!({"sliding_window": 4096}), "`sliding_window`: expected null or absent");
    refused(
        json!({"quantization_config": {"bits": 4}}),
        "`quantization_config.quant_method`: expected \"bitsandbytes\"",
    );
    refused(
        json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        "`rope_scaling.rope_type`: expected default, linear",
    );
    refused(json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "`partial_rotary_factor`");
}

#[test]
fn values_that_make_no_model_are_refused() {
    refused(
        json!({"num_key_value_heads": 3}),
        "`num_key_value_heads`: expected a divisor of num_attention_heads 4, got 3",
    );
    refused(json!({"hidden_size": 30}), "`hidden_size`: expected a multiple of num_attention_heads 4");
    refused(json!({"head_dim": 7}), "`head_dim`: expected an even number");
    refused(json!({"vocab_size": 0}), "`vocab_size`");
    refused(json!({"vocab_size": -5}), "`vocab_size`");
    refused(json!({"vocab_size": 1.5}), "`vocab_size`");
    refused(json!({"vocab_size": u64::MAX}), "`vocab_size`");
    refused(json!({"rms_norm_eps": 0}), "`rms_norm_eps`");
    refused(json!({"rms_norm_eps": "x"}), "`rms_norm_eps`: expected a number");
    refused(json!({"tie_word_embeddings": 1}), "`tie_word_embeddings`: expected true or false");
    refused(json!({"eos_token_id": 96}), "eos_token_id");
    refused(json!({"eos_token_id": [2, "x"]}), "`eos_token_id`");
    refused(json!({"rope_theta": 0}), "`rope_theta`");
    refused(json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling.factor`: expected a number above 0, got none");
    refused(json!({"rope_scaling": 3}), "`rope_scaling`: expected an object");
}

#[test]
fn texts_that_are_not_a_configuration_are_refused() {
    for text in ["", "[]", "{", "{\"vocab_size\": 1, \"vocab_size\": 2}", "{\"vocab_size\": 1e999}"] {
        let error = ModelConfig::from_hf(text).unwrap_err();
        assert!(matches!(error, ModelError::Json { .. }), "{text}: {error}");
    }
}

#[test]
fn both_spellings_of_the_rotary_embedding_say_the_same() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024});
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500_000.0);
    let mut legacy = scaling.clone();
    legacy["type"] = legacy.as_object_mut().unwrap().remove("rope_type").unwrap();
    let new = with(json!({"rope_parameters": parameters.clone()})).unwrap();
    assert_eq!(with(json!({"rope_theta": 500_000.0, "rope_scaling": scaling.clone()})).unwrap(), new);
    assert_eq!(with(json!({"rope_theta": 500_000.0, "rope_scaling": legacy})).unwrap(), new);
    assert_eq!(
        with(json!({"rope_theta": 500_000.0, "rope_scaling": scaling, "rope_parameters": parameters.clone()})).unwrap(),
        new
    );
    refused(json!({"rope_theta": 10_000.0, "rope_parameters": parameters.clone()}), "`rope_theta`");
    refused(
        json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": parameters}),
        "`rope_parameters`",
    );
}

#[test]
fn special_ids_come_in_three_forms() {
    assert_eq!(with(json!({"eos_token_id": 2})).unwrap().eos_ids, [2]);
    assert_eq!(with(json!({"eos_token_id": [2, 5]})).unwrap().eos_ids, [2, 5]);
    assert_eq!(with(json!({"pad_token_id": -1})).unwrap().pad_id, None);
    assert_eq!(with(json!({"pad_token_id": 3})).unwrap().pad_id, Some(3));
}

#[test]
fn what_is_written_reads_back() {
    let yarn = Yarn {
        factor: 8.0,
        original_max_position: 512,
        attention_factor: Some(1.25),
        mscale: None,
        mscale_all_dim: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: false,
    };
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position: 1024 };
    let variants = [RopeScaling::Default, RopeScaling::Linear { factor: 2.5 }, llama3, RopeScaling::Yarn(yarn)];
    for scaling in variants {
        let config = ModelConfig {
            rope: Rope { theta: 500_000.0, scaling },
            eos_ids: vec![1, 2],
            pad_id: Some(0),
            ..ModelConfig::from_depth(3, 97)
        };
        let text = config.to_hf();
        assert_eq!(ModelConfig::from_hf(&text).unwrap(), config, "{text}");
        assert_eq!(ModelConfig::from_hf(&text).unwrap().to_hf(), text);
    }
    for name in ModelConfig::preset_names() {
        let config = ModelConfig::preset(name).unwrap();
        assert_eq!(ModelConfig::from_hf(&config.to_hf_as(FloatType::Bf16)).unwrap(), config);
    }
}

fn gpt_oss() -> Value {
    json!({
        "model_type": "gpt_oss", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 6,
    })
}

fn gpt_oss_with(changes: Value) -> Result<ModelConfig, ModelError> {
    let (mut value, Value::Object(changes)) = (gpt_oss(), changes) else { panic!("changes are an object") };
    value.as_object_mut().unwrap().extend(changes);
    ModelConfig::from_hf(&value.to_string())
}

#[test]
fn absent_keys_of_gpt_oss_are_those_of_the_released_models() {
    let config = gpt_oss_with(json!({})).unwrap();
    let gpt_oss = config.as_gpt_oss().unwrap();
    assert_eq!((gpt_oss.window, &gpt_oss.sliding[..]), (128, &[true, false, true][..]));
    assert_eq!(config.window(0).zip(config.window(1)), None);
    let Experts { n, top_k, limit, alpha, balance_coef } = gpt_oss.experts;
    assert_eq!((n, top_k, limit, alpha, balance_coef), (6, 4, 7.0, 1.702, 0.001));
    assert_eq!(config.rope, GptOss::released_rope());
    let older = gpt_oss_with(json!({"experts_per_token": 2})).unwrap();
    assert_eq!(older.experts().unwrap().top_k, 2);
}

#[test]
fn both_spellings_of_yarn_are_the_released_embedding() {
    let yarn = json!({"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 4096});
    let mut new = yarn.clone();
    new["rope_theta"] = json!(150_000.0);
    for changes in [json!({"rope_theta": 150_000, "rope_scaling": yarn}), json!({"rope_parameters": new})] {
        assert_eq!(gpt_oss_with(changes).unwrap().rope, GptOss::released_rope());
    }
}

#[test]
fn values_that_make_no_mixture_are_refused() {
    let refused = |changes: Value, part: &str| {
        let error = gpt_oss_with(changes.clone()).expect_err(&changes.to_string()).to_string();
        assert!(error.contains(part), "{changes}: `{part}` is not in: {error}");
    };
    refused(json!({"num_local_experts": null}), "`num_local_experts`");
    refused(
        json!({"num_experts_per_tok": 7}),
        "`num_experts_per_tok`: expected a number from 1 to num_local_experts 6, got 7",
    );
    refused(json!({"sliding_window": 0}), "`sliding_window`");
    refused(json!({"layer_types": ["sliding_attention"]}), "`layer_types`: expected one entry for each");
    refused(json!({"layer_types": ["chunked_attention"]}), "`layer_types`");
    refused(json!({"layer_types": "full_attention"}), "`layer_types`: expected a list");
    refused(json!({"swiglu_limit": 0.0}), "`swiglu_limit`");
    refused(json!({"swiglu_alpha": "x"}), "`swiglu_alpha`");
    refused(json!({"router_aux_loss_coef": -1.0}), "`router_aux_loss_coef`");
    refused(json!({"attention_bias": false}), "`attention_bias`: expected true");
    refused(json!({"quantization_config": {"quant_method": "gptq"}}), "expected \"mxfp4\"");
    gpt_oss_with(json!({"quantization_config": {"quant_method": "mxfp4"}})).unwrap();
}

/// `configs/model` holds every named size as a file, for plans and for other programs.
#[test]
fn the_named_sizes_as_files_are_the_named_sizes() {
    for name in ModelConfig::preset_names() {
        let path = format!("{}/../../configs/model/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let config = ModelConfig::preset(name).unwrap();
        assert_eq!(ModelConfig::from_hf(&text).unwrap(), config, "{name}");
        assert_eq!(config.to_hf(), text, "{name}");
    }
}
