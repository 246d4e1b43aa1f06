//! What a finished line leaves: lineage from the first stage to the last, receipts bound to models, Hugging Face files.

use std::fs;
use std::path::Path;

use gates::{Receipt, artifact};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::line::{self, STAGES};
use crate::sandbox::RUN;

/// A stage's `stage.json`.
fn record(stage: &str) -> Value {
    line::finished().json(&format!("{RUN}/{stage}/stage.json"))
}

/// The hash of a model folder of the finished run.
fn model_hash(name: &str) -> String {
    artifact::model_hash(&line::finished().run_path(name)).unwrap()
}

/// Defect S25 was a stage that silently trained on another model than the one before it had made.
#[test]
fn s25_every_stage_starts_from_what_the_one_before_it_made() {
    let mut made = model_hash("init");
    for stage in STAGES {
        let record = record(stage);
        assert_eq!(record["stage"], stage);
        assert_eq!(record["outcome"]["state"], "finished");
        assert_eq!(record["inputs"]["model"]["hash"], made.as_str(), "{stage}");
        made = record["outcome"]["output"]["hash"].as_str().unwrap().to_owned();
        assert_eq!(made, model_hash(&format!("{stage}/final")), "{stage}");
    }
}

/// Defect S4 was one result file for all models: whatever lay there opened the next gate.
#[test]
fn s04_every_gate_is_bound_to_the_model_that_passed_it() {
    let line = line::finished();
    for (stage, next) in [("pretrain", "sft"), ("sft", "dpo"), ("dpo", "lora"), ("lora", "release")] {
        let transition = format!("{stage}-to-{next}");
        let path = line.run_path(&format!("gates/{}", Receipt::file_name(&transition)));
        let receipt = Receipt::require(&path, &transition, &model_hash(&format!("{stage}/final"))).unwrap();
        let report = line.run_path(&format!("evals/eval-{stage}.json"));
        assert_eq!(receipt.report_hashes, [artifact::hash_file(&report).unwrap()]);
        assert_eq!(receipt.policy_hash, artifact::hash_file(&line.path("configs/policy.toml")).unwrap());
        if STAGES.contains(&next) {
            let gate = &record(next)["gate"];
            assert_eq!(gate["decision"], "passed");
            assert_eq!(gate["transition"], transition.as_str());
            assert_eq!(gate["receipt_hash"], receipt.receipt_hash.as_str());
        }
    }
    assert_eq!(record("pretrain")["gate"]["decision"], "not_asked");
}

/// Every input of a stage is named with the hash of its content.
#[test]
fn s08_the_lineage_names_everything_a_stage_has_read() {
    let line = line::finished();
    let roles: [(&str, &[&str]); 4] = [
        ("pretrain", &["eval", "model", "rows-128", "rows-32", "rows-64"]),
        ("sft", &["conversations", "eval", "model"]),
        ("dpo", &["eval", "model", "preferences"]),
        ("lora", &["domain", "eval", "general", "model"]),
    ];
    for (stage, want) in roles {
        let record = record(stage);
        let inputs = record["inputs"].as_object().unwrap();
        assert_eq!(inputs.keys().collect::<Vec<_>>(), want, "{stage}");
        for (role, input) in inputs {
            assert_eq!(input["hash"].as_str().unwrap().len(), 64, "{stage} {role}");
            assert!(line.path(input["path"].as_str().unwrap()).exists(), "{stage} {role}: {input}");
        }
    }
    let file = record("sft")["inputs"]["conversations"].clone();
    assert_eq!(file["hash"], artifact::hash_file(&line.run_path("tasks/sft/train.jsonl")).unwrap());
}

/// Defect S12 was a flag that overwrote the file without having been given.
#[test]
fn s12_the_lineage_holds_the_file_with_only_what_set_has_changed() {
    let config = record("sft")["config"].clone();
    let text = fs::read_to_string(line::finished().path("configs/stage/sft.toml")).unwrap();
    for (key, value) in config["train"].as_object().unwrap() {
        let written = text.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
        match written {
            Some(written) => {
                let same = written.trim_matches('"') == value.as_str().unwrap_or_default()
                    || written.parse::<f64>().ok().is_some_and(|number| value.as_f64() == Some(number))
                    || written.parse::<bool>().ok().is_some_and(|is| value.as_bool() == Some(is));
                assert!(same, "{key}: {written} in the file, {value} in the lineage");
            }
            None => assert!(value.is_null() || *value == 0, "{key} is not in the file, the lineage says {value}"),
        }
    }
    let set = |key: &str| config.pointer(key).unwrap().as_str().unwrap().to_owned();
    assert_eq!(set("/dir"), format!("{RUN}/sft"));
    assert_eq!(set("/gate/receipt"), format!("{RUN}/gates/gate-pretrain-to-sft.json"));
    assert_eq!(set("/gate/transition"), "pretrain-to-sft");
}

/// Names and shapes of the tensors of a file; every value must be finite.
fn tensors(path: &Path) -> Vec<(String, Vec<usize>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    for (name, tensor) in file.iter() {
        assert_eq!(tensor.dtype(), safetensors::Dtype::F32, "{name}");
        let finite = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().unwrap()).is_finite();
        assert!(tensor.data().chunks_exact(4).all(finite), "{name} in {}", path.display());
        found.push((name.to_owned(), tensor.shape().to_vec()));
    }
    found.sort();
    found
}

#[test]
fn the_final_folder_holds_the_files_that_hugging_face_reads() {
    let line = line::finished();
    let folder = line.run_path("lora/final");
    let json = |name: &str| line.json(&format!("{RUN}/lora/final/{name}"));
    let config = json("config.json");
    assert_eq!((&config["model_type"], &config["architectures"][0]), (&"llama".into(), &"LlamaForCausalLM".into()));
    let vocab_size = config["vocab_size"].as_u64().unwrap() as usize;
    let d_model = config["hidden_size"].as_u64().unwrap() as usize;
    let weights = tensors(&folder.join("model.safetensors"));
    let shape = |name: &str| weights.iter().find(|(found, _)| found == name).map(|(_, shape)| shape.clone());
    assert_eq!(shape("model.embed_tokens.weight"), Some(vec![vocab_size, d_model]));
    assert_eq!(shape("model.norm.weight"), Some(vec![d_model]));
    let block = weights.iter().filter(|(name, _)| name.starts_with("model.layers.0.")).count();
    assert_eq!((block, weights.len()), (9, 11), "{weights:?}");
    // The tokenizer is the one that was trained at the start of the line, byte for byte.
    let file = |path: &str| artifact::hash_file(&line.run_path(path)).unwrap();
    assert_eq!(file("lora/final/tokenizer.json"), file("tokenizer/tokenizer.json"));
    assert!(json("tokenizer_config.json")["chat_template"].is_string());
    assert!(json("generation_config.json")["eos_token_id"].is_array());
}

#[test]
fn the_adapter_folder_holds_the_files_that_peft_reads() {
    let line = line::finished();
    let config = line.json(&format!("{RUN}/lora/adapter/adapter_config.json"));
    assert_eq!((&config["peft_type"], &config["task_type"]), (&"LORA".into(), &"CAUSAL_LM".into()));
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(4), Some(8.0)));
    let weights = tensors(&line.run_path("lora/adapter/adapter_model.safetensors"));
    // Seven projections of one block, two matrices each.
    assert_eq!(weights.len(), 14, "{weights:?}");
    let known = |name: &str| {
        name.starts_with("base_model.model.model.layers.0.")
            && (name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight"))
    };
    assert!(weights.iter().all(|(name, _)| known(name)), "{weights:?}");
}

/// The programs of the next user read the folder too, and greedy text does not depend on who asks.
#[test]
fn the_final_folder_is_one_that_the_programs_read() {
    let line = line::finished();
    let folder = format!("{RUN}/lora/final");
    let shown = line.run("model-core", &["inspect", "--model", &folder, "--tensors"]).ok();
    assert!(shown.contains("model.embed_tokens.weight"), "{shown}");
    let say = || {
        let args =
            ["generate", "--model", &folder, "--chat", "Spell the word: lamp", "--max-new-tokens", "8", "--json"];
        line.run("model-core", &args).ok()
    };
    let answer = say();
    assert!(serde_json::from_str::<Value>(&answer).unwrap().is_object(), "{answer}");
    assert_eq!(answer, say());
}
