//! Adapters on experts: counts, peft's files and numbers, merging, and what does not fit.

use kernels_cubecl::Packed;

use super::*;
use crate::hf::tensor_file::Values;
use crate::hf::{FloatType, LoadOptions, PackedExperts, SaveOptions, names};

const ATTENTION: [&str; 4] = ["q_proj", "k_proj", "v_proj", "o_proj"];
const EXPERTS: [&str; 2] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"];

fn config(r: usize, targets: &[&str]) -> LoraConfig {
    let targets = targets.iter().map(|target| (*target).to_owned()).collect();
    LoraConfig { r, alpha: 6.0, dropout: 0.0, rslora: false, targets, rank_pattern: Default::default() }
}

fn gpt_oss() -> Decoder<Cpu> {
    Decoder::load(&fixture("gptoss"), &Default::default()).unwrap()
}

/// The fixture's model with peft's adapter, and the case that goes with it.
fn with_pefts() -> (Decoder<Cpu>, TensorFile, Rows) {
    let mut model = gpt_oss();
    model.load_peft(&fixture("gptoss_lora"), &weights_hash(&fixture("gptoss")).unwrap()).unwrap();
    let case = TensorFile::open(&fixture("gptoss_lora/case.safetensors")).unwrap();
    let ids = case.read_i64("in.input_ids").unwrap().into_iter().map(|id| id as i32).collect();
    (model, case, Rows::from_segments(2, 11, ids, vec![0; 22]).unwrap())
}

#[test]
fn the_released_models_have_the_published_counts() {
    let both = [&ATTENTION[..], &EXPERTS].concat();
    let table: [(&str, usize, &[&str], u64); 9] = [
        ("gpt-oss-20b", 64, &ATTENTION, 31_850_496),
        ("gpt-oss-20b", 64, &EXPERTS, 707_788_800),
        ("gpt-oss-20b", 64, &both, 739_639_296),
        ("gpt-oss-20b", 16, &ATTENTION, 7_962_624),
        ("gpt-oss-20b", 16, &EXPERTS, 176_947_200),
        ("gpt-oss-20b", 16, &both, 184_909_824),
        ("gpt-oss-20b", 128, &both, 1_479_278_592),
        ("gpt-oss-20b", 4, &[ALL_LINEAR], 46_227_456),
        ("gpt-oss-120b", 16, &both, 1_073_627_136),
    ];
    for (name, r, targets, want) in table {
        let model = ModelConfig::preset(name).unwrap();
        assert_eq!(config(r, targets).n_params(&model).unwrap(), want, "{name} rank {r} on {targets:?}");
    }
    let cookbook = ["7", "15", "23"].map(|i| EXPERTS.map(|target| format!("{i}.{target}"))).concat();
    let cookbook: Vec<&str> = ATTENTION.into_iter().chain(cookbook.iter().map(String::as_str)).collect();
    let count = config(8, &cookbook).n_params(&ModelConfig::preset("gpt-oss-20b").unwrap()).unwrap();
    assert_eq!(count, 15_040_512, "experts of three layers");
}

#[test]
fn the_count_is_that_of_the_attached_adapter() {
    for targets in [&ATTENTION[..], &EXPERTS, &[ALL_LINEAR], &EXPERTS[..1], &EXPERTS[1..]] {
        let (mut model, config) = (gpt_oss(), config(3, targets));
        model.attach_lora(&config, 1).unwrap();
        assert_eq!(model.n_adapter_params(), config.n_params(&model.config).unwrap(), "{targets:?}");
        let before = gpt_oss();
        let rows = rows(2, 9, 96);
        assert_eq!(logits(&model, &rows), logits(&before, &rows), "a fresh adapter changes nothing");
    }
}

#[test]
fn pefts_numbers_come_out_of_experts() {
    let (model, case, rows) = with_pefts();
    let difference = largest_difference(&logits(&model, &rows), &case.read_f32("out.logits").unwrap());
    assert!(difference <= 2e-5, "logits differ by {difference}");
    assert_pefts_gradients(&model, &case, &rows);
}

#[test]
fn merged_experts_are_pefts() {
    let (model, case, rows) = with_pefts();
    let mut merged = model.clone();
    assert_eq!(merged.merge().unwrap(), 24);
    let difference = largest_difference(&logits(&merged, &rows), &case.read_f32("out.merged_logits").unwrap());
    assert!(difference <= 2e-5, "merged logits differ by {difference}");
    merge_check(&model, &merged, &[rows], &MergeBounds::F32).unwrap();
    let mut n_changed = 0;
    let base = gpt_oss().leaves();
    for (map, (leaf, old)) in std::iter::zip(crate::hf::leaf_map(&model.config), std::iter::zip(merged.leaves(), base))
    {
        let (values, old) = (names::leaf_values(leaf.leaf), names::leaf_values(old.leaf));
        n_changed += usize::from(map.n_experts.is_some() && values != old);
        for (name, shape, got) in crate::hf::split_leaf(&map, &values) {
            if case.contains(&format!("merged.{name}")) {
                let want = case.read_weight(&format!("merged.{name}"), &shape, false).unwrap();
                assert!(largest_difference(&got, &want) <= 1e-6, "{name}");
            }
        }
    }
    assert_eq!(n_changed, 8, "every matrix of experts is another one");
}

#[test]
fn what_is_saved_is_pefts_file() {
    let (model, _, _) = with_pefts();
    let config = config(2, &[&ATTENTION[..], &EXPERTS].concat());
    let dir = tempfile::tempdir().unwrap();
    model.save_peft(dir.path(), &config, "base").unwrap();
    let (got, want) = (dir.path().join("adapter_model.safetensors"), fixture("gptoss_lora/adapter_model.safetensors"));
    assert!(std::fs::read(got).unwrap() == std::fs::read(want).unwrap(), "the tensors of the file differ");
    let text = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let mut parameters = EXPERTS;
    parameters.sort_unstable();
    assert_eq!(json["target_parameters"], serde_json::json!(parameters));
    assert_eq!(json["target_modules"], serde_json::json!(["k_proj", "o_proj", "q_proj", "v_proj"]));
    let mut again = gpt_oss();
    let read = again.load_peft(dir.path(), "base").unwrap();
    assert_eq!((read.config.r, read.config.targets.len()), (2, 6));
}

#[test]
fn one_projection_of_experts_alone_has_no_base_layer() {
    for (target, rows) in [(EXPERTS[0], 128), (EXPERTS[1], 32)] {
        let mut model = gpt_oss();
        let config = config(2, &[target]);
        model.attach_lora(&config, 1).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save_peft(dir.path(), &config, "base").unwrap();
        let file = TensorFile::open(&dir.path().join("adapter_model.safetensors")).unwrap();
        assert_eq!(file.shape("base_model.model.model.layers.3.mlp.experts.lora_B.weight").unwrap(), [rows, 12]);
        assert!(file.names().all(|name| !name.contains("base_layer")), "{target}");
        gpt_oss().load_peft(dir.path(), "base").unwrap();
    }
}

#[test]
fn all_linear_means_experts_here_and_not_in_pefts_files() {
    let mut model = gpt_oss();
    let config = config(2, &[ALL_LINEAR]);
    model.attach_lora(&config, 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.save_peft(dir.path(), &config, "base").unwrap();
    let read = PeftAdapter::read(dir.path()).unwrap().config.targets;
    assert_eq!(read, [&ATTENTION[..], &EXPERTS].concat());
    let edited = edited_config(|json| {
        json["target_modules"] = serde_json::json!("all-linear");
        json["target_parameters"] = serde_json::json!(null);
    });
    let error = gpt_oss().load_peft(edited.path(), "base").unwrap_err();
    let ModelError::TensorUnexpected { n_unexpected: 16, .. } = error else { panic!("{error}") };
}

/// The update of experts transposed, as peft writes it beside an older transformers: A and B of `ΔWᵀ = Aᵀ·Bᵀ`.
#[test]
fn the_transposed_layout_is_the_same_adapter() {
    let (n, r) = (6, 2);
    let file = TensorFile::open(&fixture("gptoss_lora/adapter_model.safetensors")).unwrap();
    let mut tensors = Vec::new();
    for name in file.names() {
        let (shape, values) = (file.shape(name).unwrap().to_vec(), file.read_f32(name).unwrap());
        if !name.contains(".experts.") {
            tensors.push((name.to_owned(), shape, values));
            continue;
        }
        let rank_of = |column: usize| [column % n, column / n];
        let mut other = vec![0.0; values.len()];
        for (at, value) in values.iter().enumerate() {
            let (row, column) = (at / shape[1], at % shape[1]);
            let to = match name.contains("lora_A") {
                // A[e·r + j, i] is B'[i, j·n + e].
                true => column * n * r + (row % r) * n + row / r,
                // B[o, j·n + e] is A'[e·r + j, o].
                false => {
                    let [expert, rank] = rank_of(column);
                    (expert * r + rank) * shape[0] + row
                }
            };
            other[to] = *value;
        }
        let new = match name.contains("lora_A") {
            true => name.replace("lora_A", "lora_B"),
            false => name.replace("lora_B", "lora_A"),
        };
        tensors.push((new, vec![shape[1], shape[0]], other));
    }
    let dir = edited_config(|_| ());
    let path = dir.path().join("adapter_model.safetensors");
    std::fs::remove_file(&path).unwrap();
    let tensors = tensors.iter().map(|(name, shape, values)| (name.clone(), shape.clone(), Values::Float(values)));
    crate::hf::write_tensors(&path, tensors.collect(), FloatType::F32).unwrap();
    let mut model = gpt_oss();
    model.load_peft(dir.path(), "base").unwrap();
    let of = |model: Decoder<Cpu>| model.leaves().into_iter().map(|l| names::leaf_values(l.leaf)).collect::<Vec<_>>();
    assert_eq!(of(model), of(with_pefts().0));
}

/// A copy of peft's adapter with another configuration.
fn edited_config(edit: impl Fn(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut json = serde_json::from_slice(&std::fs::read(fixture("gptoss_lora/adapter_config.json")).unwrap()).unwrap();
    edit(&mut json);
    std::fs::write(dir.path().join("adapter_config.json"), json.to_string()).unwrap();
    let weights = "adapter_model.safetensors";
    std::fs::copy(fixture("gptoss_lora").join(weights), dir.path().join(weights)).unwrap();
    dir
}

#[test]
fn adapters_that_do_not_fit_are_refused_and_change_nothing() {
    let (rows, want) = (rows(1, 7, 96), logits(&gpt_oss(), &rows(1, 7, 96)));
    let refused = |mut model: Decoder<Cpu>, dir: &Path, part: &str| {
        let before = model.leaves().len();
        let error = model.load_peft(dir, "base").unwrap_err().to_string();
        assert!(error.contains(part), "`{part}` is not in: {error}");
        assert!(!model.has_adapter() && model.leaves().len() == before);
    };
    let other_rank = edited_config(|json| json["r"] = serde_json::json!(3));
    refused(gpt_oss(), other_rank.path(), "expected shape [3, 32], got [2, 32]");
    let dropout = edited_config(|json| json["lora_dropout"] = serde_json::json!(0.1));
    refused(gpt_oss(), dropout.path(), "mlp.experts.gate_up_proj is of experts");
    let target = edited_config(|json| json["target_parameters"] = serde_json::json!(["mlp.experts.up_proj"]));
    refused(gpt_oss(), target.path(), "mlp.experts.up_proj");
    let pattern = edited_config(|json| json["rank_pattern"] = serde_json::json!({"experts": 4}));
    refused(gpt_oss(), pattern.path(), "rank_pattern");
    let llama = Decoder::<Cpu>::load(&fixture("llama"), &Default::default()).unwrap();
    refused(llama, &fixture("gptoss_lora"), "mlp.experts.gate_up_proj");
    let more = ModelConfig {
        family: match gpt_oss().config.family {
            crate::config::Family::GptOss(mut family) => {
                family.experts.n = 7;
                crate::config::Family::GptOss(family)
            }
            llama => llama,
        },
        ..gpt_oss().config
    };
    let more = Decoder::<Cpu>::init(&more, 1, &Default::default());
    refused(more, &fixture("gptoss_lora"), "expected shape [14, 32], got [12, 32]");
    let saved = tempfile::tempdir().unwrap();
    let config = config(2, &[&ATTENTION[..], &EXPERTS].concat());
    with_pefts().0.save_peft(saved.path(), &config, "of another base").unwrap();
    let error = gpt_oss().load_peft(saved.path(), "base").unwrap_err();
    assert!(matches!(error, ModelError::AdapterBase { .. }), "{error}");
    assert_eq!(logits(&gpt_oss(), &rows), want);
}

#[test]
fn packed_experts_train_the_same_adapter_as_unpacked_ones() {
    let dir = tempfile::tempdir().unwrap();
    let options = SaveOptions { max_shard_bytes: u64::MAX, float: FloatType::F32, packed_experts: true };
    gpt_oss().save_with(dir.path(), options).unwrap();
    let load = |packed_experts| {
        let options = LoadOptions { packed_experts, ..LoadOptions::default() };
        let mut model = Decoder::<Cpu>::load_with(dir.path(), options, &Default::default()).unwrap();
        model.load_peft(&fixture("gptoss_lora"), "base").unwrap();
        model
    };
    let [dense, packed, fp8] = [PackedExperts::No, PackedExperts::Mxfp4, PackedExperts::Fp8].map(load);
    let rows = rows(2, 11, 96);
    for recompute in [false, true] {
        let want = loss_and_gradients(&dense, &rows, recompute);
        assert_eq!(loss_and_gradients(&packed, &rows, recompute), want);
        // What was in MXFP4 is in FP8 without loss.
        assert_eq!(loss_and_gradients(&fp8, &rows, recompute), want);
    }
    let [mut merged, mut want] = [packed.clone(), dense];
    merged.merge().unwrap();
    want.merge().unwrap();
    assert!(merged.packed().is_empty());
    assert_eq!(logits(&merged, &rows), logits(&want, &rows));
    merge_check(&packed, &merged, std::slice::from_ref(&rows), &MergeBounds::F32).unwrap();
    let hollow =
        packed.map_backend::<Cpu>(&mut |named| named.leaf.clone(), &mut |_| Packed::empty(&Default::default()));
    let saved = tempfile::tempdir().unwrap();
    hollow.save_peft(saved.path(), &config(2, &[&ATTENTION[..], &EXPERTS].concat()), "base").unwrap();
}

/// How far from the numbers they stand for, in the sense of a root mean square.
#[test]
fn fp8_and_bf16_cost_experts_what_their_bits_say() {
    let error = |got: &[f32], want: &[f32]| {
        let sum = |f: &dyn Fn((&f32, &f32)) -> f64| got.iter().zip(want).map(f).sum::<f64>();
        (sum(&|(g, w)| f64::from(g - w).powi(2)) / sum(&|(_, w)| f64::from(*w).powi(2))).sqrt()
    };
    let options = LoadOptions { packed_experts: PackedExperts::Fp8, ..LoadOptions::default() };
    let (whole, fp8) =
        (gpt_oss(), Decoder::<Cpu>::load_with(&fixture("gptoss"), options, &Default::default()).unwrap());
    assert_eq!(fp8.packed().len(), 8);
    for (name, packed) in fp8.packed() {
        let want = names::leaf_values(whole.leaves().into_iter().find(|leaf| leaf.name == name).unwrap().leaf);
        let got = names::leaf_values(Leaf::Matrix(packed.decode()));
        let bf16: Vec<f32> = want.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        let (fp8, bf16) = (error(&got, &want), error(&bf16, &want));
        assert!((0.02..0.03).contains(&fp8) && (0.0012..0.002).contains(&bf16), "{name}: {fp8} {bf16}");
    }
    let (rows, saved) = (rows(2, 11, 96), tempfile::tempdir().unwrap());
    let apart =
        std::iter::zip(logits(&fp8, &rows), logits(&whole, &rows)).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart > 1e-3 && apart < 1.0, "{apart}");
    fp8.save(saved.path(), u64::MAX).unwrap();
    let again = Decoder::<Cpu>::load(saved.path(), &Default::default()).unwrap();
    assert_eq!(logits(&again, &rows), logits(&fp8, &rows), "it is saved as the floats that it stands for");
}

#[test]
fn every_leaf_of_experts_adapters_trains() {
    let mut before = gpt_oss();
    before.attach_lora(&config(2, &[ALL_LINEAR]), 1).unwrap();
    let (after, norms) = train_on(&before, &rows(4, 16, 96), 2);
    check_liveness(&before.leaves(), &after.leaves(), &norms).unwrap();
}

#[test]
fn ranks_of_experts_are_their_own() {
    let pattern = [("down_proj".to_owned(), 1), ("1.mlp.experts.gate_up_proj".to_owned(), 5)];
    let config = LoraConfig { rank_pattern: pattern.into(), ..config(3, &[ALL_LINEAR]) };
    let mut model = gpt_oss();
    model.attach_lora(&config, 1).unwrap();
    assert_eq!(model.n_adapter_params(), config.n_params(&model.config).unwrap());
    assert_eq!(config.largest_ranks(&model.config).unwrap(), [3, 5]);
    for attached in model.loras() {
        let want = match attached.name.as_str() {
            name if name.ends_with("down_proj") => 1,
            "model.layers.1.mlp.experts.gate_up_proj" => 5,
            _ => 3,
        };
        assert_eq!((attached.r, attached.scale), (want, 6.0 / want as f32), "{}", attached.name);
    }
    let (trained, _) = train_on(&model, &rows(2, 9, 96), 2);
    let dir = tempfile::tempdir().unwrap();
    trained.save_peft(dir.path(), &config, "base").unwrap();
    let uniform = LoraConfig { rank_pattern: Default::default(), ..config.clone() };
    let error = trained.save_peft(tempfile::tempdir().unwrap().path(), &uniform, "base").unwrap_err();
    assert!(matches!(error, ModelError::LoraInvalid { key: "r", .. }), "{error}");
    let mut again = gpt_oss();
    assert_eq!(again.load_peft(dir.path(), "base").unwrap().config.rank_pattern, config.rank_pattern);
    let rows = rows(2, 11, 96);
    assert_eq!(logits(&again, &rows), logits(&trained, &rows));
    let mut merged = trained.clone();
    merged.merge().unwrap();
    merge_check(&trained, &merged, &[rows], &MergeBounds::F32).unwrap();
}

#[test]
fn the_rank_of_experts_may_be_divided_by_their_number() {
    let model = ModelConfig::preset("gpt-oss-20b").unwrap();
    let divided = config(64, &[ALL_LINEAR]).divided_by_experts(&model).unwrap();
    let want = EXPERTS.map(|name| (name.to_owned(), 2));
    assert_eq!(divided.rank_pattern, want.into());
    assert_eq!(divided.n_params(&model).unwrap(), 31_850_496 + 22_118_400);
    let mixed = [(EXPERTS[0].to_owned(), 16), (EXPERTS[1].to_owned(), 16)];
    let mixed = LoraConfig { rank_pattern: mixed.into(), ..config(64, &[ALL_LINEAR]) };
    assert_eq!(mixed.n_params(&model).unwrap(), 208_797_696);
    let refused = |config: LoraConfig, model: &ModelConfig| config.divided_by_experts(model).unwrap_err().to_string();
    assert!(refused(config(8, &[ALL_LINEAR]), &ModelConfig::preset("125m").unwrap()).contains("no experts"));
    assert!(refused(config(8, &ATTENTION), &model).contains("among the experts"));
    assert!(refused(mixed, &model).contains("rank_pattern"));
    let wrong = |pattern: &[(&str, usize)]| {
        let rank_pattern = pattern.iter().map(|(name, r)| ((*name).to_owned(), *r)).collect();
        LoraConfig { rank_pattern, ..config(8, &["q_proj"]) }.n_params(&model).unwrap_err().to_string()
    };
    for pattern in [&[("v_proj", 2)][..], &[("q_proj", 0)], &[("q_proj", 2), ("0.self_attn.q_proj", 3)]] {
        assert!(wrong(pattern).contains("`rank_pattern`"), "{pattern:?}");
    }
}

/// As in the released models, where experts are as wide as the model, so that the shapes of `down_proj` tell no layout.
#[test]
fn an_adapter_of_square_experts_is_read_as_it_was_saved() {
    let shape = ModelConfig { d_ff: gpt_oss().config.d_model, ..gpt_oss().config };
    let fresh = || Decoder::<Cpu>::init(&shape, 1, &Default::default());
    for targets in [&EXPERTS[..], &EXPERTS[1..], &[ALL_LINEAR]] {
        let config = config(2, targets);
        let mut model = fresh();
        model.attach_lora(&config, 1).unwrap();
        let (model, _) = train_on(&model, &rows(4, 16, 96), 2);
        let dir = tempfile::tempdir().unwrap();
        model.save_peft(dir.path(), &config, "base").unwrap();
        let mut again = fresh();
        again.load_peft(dir.path(), "base").unwrap();
        let rows = rows(2, 11, 96);
        assert_eq!(logits(&again, &rows), logits(&model, &rows), "{targets:?}");
    }
}
