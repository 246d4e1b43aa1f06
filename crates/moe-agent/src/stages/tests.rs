//! The line at the size of a test: adapter, merge, trajectories, preferences, with the receipts between them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gates::verdict::{self, Evidence};
use gates::{Direction, EvalReport, Metric, Policy, Receipt, artifact, interval};
use kernels_cubecl::{Cpu, DeviceChoice};
use model_core::adapter::PeftAdapter;
use model_core::{Decoder, Experts, Family, GptOss, ModelConfig};
use tempfile::TempDir;
use trainer::lineage::{GateRecord, StageOutcome, StageRecord};
use trainer::stage::{Stage, execute};
use trainer::{Outcome, StageArgs};

use super::*;

const TRAIN: &str = "
[train]
max_steps = 4
tokens_per_step = 512
tokens_per_micro_batch = 512
lr = 1e-2
min_lr = 1e-3
schedule = 'cosine'
warmup_steps = 1
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.0
grad_clip = 0.5
seed = 3
eval_every = 2
save_every = 2
log_every = 1
keep_last = 2
recompute = false
max_bad_steps = 3
peak_tflops = 0.0
";
const LORA: &str = "
[adapter]
r = 4
alpha = 8.0
dropout = 0.0
rslora = false
targets = ['q_proj', 'v_proj', 'mlp.experts.gate_up_proj', 'mlp.experts.down_proj']
rank_pattern = { 'mlp.experts.gate_up_proj' = 2, 'mlp.experts.down_proj' = 2 }
";

/// A stage with its configuration, settings and whether it goes on.
type Run = dyn Fn(&Path, &[&str], bool) -> Result<Outcome, TrainError>;

/// A base model with its data; the stages run in folders beside it.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        let specials = data_pipeline::tokenizer::HARMONY_TOKENS;
        let n = 256 + specials.len();
        let tokenizer = data_pipeline::tokenizer::train(std::iter::empty(), n, &specials).unwrap();
        let experts = Experts { n: 3, top_k: 2, limit: 7.0, alpha: 1.702, balance_coef: 0.0 };
        let family = Family::GptOss(GptOss { window: 8, sliding: vec![true], experts });
        let shape = ModelConfig { family, tied: false, d_ff: 32, max_seq_len: 256, ..ModelConfig::from_depth(1, n) };
        let base = lab.path("base");
        std::fs::create_dir(&base).unwrap();
        Decoder::<Cpu>::init(&shape, 7, &Default::default()).save(&base, 1 << 30).unwrap();
        std::fs::write(base.join("tokenizer.json"), tokenizer.json()).unwrap();
        let said = |question: &str, answer: &str| {
            format!(
                r#"{{"messages":[{{"role":"user","content":"{question}"}},{{"role":"assistant","channel":"final","content":"{answer}"}}]}}"#
            )
        };
        let code: Vec<String> =
            (0..9).map(|i| said(&format!("fn f{i}?"), &format!("fn f{i}() -> u8 {{ {i} }}"))).collect();
        let talk: Vec<String> = (0..9).map(|i| said(&format!("{i} + 1?"), &format!("{}", i + 1))).collect();
        lab.write("code.jsonl", &code.join("\n"));
        lab.write("talk.jsonl", &talk.join("\n"));
        lab.write("heldout.jsonl", &[said("fn g?", "fn g() {}"), said("4 + 5?", "9")].join("\n"));
        let pair = |i: usize| format!(r#"{{"prompt":"{i} + {i}?","chosen":"{}","rejected":"I do not know."}}"#, 2 * i);
        lab.write("pairs.jsonl", &(0..9).map(pair).collect::<Vec<_>>().join("\n"));
        lab.write("heldout-pairs.jsonl", &(9..12).map(pair).collect::<Vec<_>>().join("\n"));
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Puts the lab's folder where a configuration says `@`, and writes it.
    fn config(&self, stage: &str, text: &str) -> PathBuf {
        let path = self.path(&format!("{stage}.toml"));
        let text = text.replace('@', &self.dir.path().display().to_string());
        std::fs::write(&path, format!("dir = '{}'\n{text}", self.path(stage).display())).unwrap();
        path
    }

    fn sources() -> &'static str {
        "[sources]\ncode = { path = '@/code.jsonl', share = 0.5 }\ntalk = { path = '@/talk.jsonl', share = 0.5 }\n"
    }

    fn adapter(&self) -> PathBuf {
        let keys = "model = '@/base'\neval_data = '@/heldout.jsonl'\nseq_len = 128\neval_batch = 1\nmerge_max_diff = 1e-3\nz_loss = 0.0\n";
        self.config("adapter", &format!("{keys}{}{LORA}{TRAIN}", Self::sources()))
    }

    fn merge(&self) -> PathBuf {
        let keys = "model = '@/base'\nadapter_run = '@/adapter'\neval_data = '@/heldout.jsonl'\nseq_len = 128\neval_rows = 2\n\
            eval_batch = 1\nmerge_max_diff = 1e-3\nprecision = 'f32'\n";
        self.config("merge", &format!("{keys}{}", gate("lang-rust-to-core-agent")))
    }

    fn core_agent(&self, lora: &str) -> PathBuf {
        let bound = if lora.is_empty() { "" } else { "merge_max_diff = 1e-3\n" };
        let keys = "model = '@/merge/final'\nadapter_run = '@/adapter'\neval_data = '@/heldout.jsonl'\nseq_len = 128\n\
            eval_batch = 1\nz_loss = 0.0\n";
        let gate = gate("lang-rust-to-core-agent");
        self.config("core-agent", &format!("{keys}{bound}{gate}{}{lora}{TRAIN}", Self::sources()))
    }

    fn ipo(&self, lora: &str) -> PathBuf {
        let bound = if lora.is_empty() { "" } else { "merge_max_diff = 1e-3\n" };
        let keys = "model = '@/core-agent/final'\ndata = '@/pairs.jsonl'\neval_data = '@/heldout-pairs.jsonl'\nseq_len = 256\n\
            eval_batch = 1\nbeta = 0.1\n";
        self.config("ipo", &format!("{keys}{bound}{}{lora}{TRAIN}", gate("core-agent-to-ipo")))
    }

    /// Writes the receipt that lets a model through.
    fn receipt(&self, transition: &str, model: &str) {
        let text = format!(
            "version = 1\n[[transitions.{transition}.rules]]\nmetric = 'x'\nop = '>='\nbound = 'point'\nmin_n = 1\nthreshold = 0.5\n"
        );
        let policy = Policy::parse(Path::new("policy.toml"), text.as_bytes()).unwrap();
        let hash = artifact::model_hash(&self.path(model)).unwrap();
        let mut report = EvalReport::new(&hash, "suite");
        report.metrics.push(Metric::new("x", Direction::Higher, interval::rate(9, 10), "data"));
        let evals = [Evidence { report, hash: "report".into() }];
        let verdict = verdict::check(&policy, transition, &hash, &evals, &[]).unwrap();
        let path = self.path(&Receipt::file_name(transition));
        Receipt::new(verdict, &policy, &hash, &evals, &[]).write(&path).unwrap();
    }

    /// The stages up to the one before trajectories, each let through.
    fn merged() -> Self {
        let lab = Self::new();
        run::<AdapterStage>(&lab.adapter(), &[], false).unwrap();
        lab.receipt("lang-rust-to-core-agent", "adapter/final");
        run::<MergeStage>(&lab.merge(), &[], false).unwrap();
        lab
    }

    fn hash(&self, folder: &str) -> String {
        artifact::model_hash(&self.path(folder)).unwrap()
    }

    fn record(&self, stage: &str) -> StageRecord {
        StageRecord::read(&self.path(stage)).unwrap()
    }
}

fn gate(transition: &str) -> String {
    format!("[gate]\ntransition = '{transition}'\nreceipt = '@/{}'\n", Receipt::file_name(transition))
}

fn run<S: Stage>(config: &Path, sets: &[&str], resume: bool) -> Result<Outcome, TrainError> {
    let sets = sets.iter().map(|set| (*set).to_owned()).collect();
    let (config, device) = (config.to_path_buf(), DeviceChoice::Cpu);
    execute::<S>(&StageArgs { config, sets, resume, device, plain: true, plan: false, override_gate: None })
}

fn refused<S: Stage>(config: &Path, sets: &[&str], code: u8, says: &str) {
    let error = run::<S>(config, sets, false).unwrap_err();
    assert!(error.exit_code() == code && error.to_string().contains(says), "{sets:?}: {} {error}", error.exit_code());
}

#[test]
fn the_line_runs_from_the_base_to_preferences() {
    let lab = Lab::merged();
    // The merge of the same adapter into the same base is the model that the gate has measured.
    assert_eq!(lab.hash("merge/final"), lab.hash("adapter/final"));
    assert_ne!(lab.hash("adapter/final"), lab.hash("base"));
    run::<CoreAgentStage>(&lab.core_agent(LORA), &[], false).unwrap();
    lab.receipt("core-agent-to-ipo", "core-agent/final");
    run::<IpoStage>(&lab.ipo(LORA), &[], false).unwrap();

    let (mut before, mut hashes) = (lab.hash("base"), vec![lab.hash("base")]);
    for stage in ["adapter", "merge", "core-agent", "ipo"] {
        let record = lab.record(stage);
        let base = if stage == "merge" { lab.hash("base") } else { before };
        assert_eq!((record.stage.as_str(), &record.inputs["model"].hash), (stage, &base), "{stage}");
        let StageOutcome::Finished { output, .. } = &record.outcome else { panic!("{stage}: {:?}", record.outcome) };
        before = lab.hash(&format!("{stage}/final"));
        assert_eq!(output.hash, before, "{stage}");
        let asked = matches!(record.gate, GateRecord::Passed { .. });
        assert_eq!(asked, stage != "adapter", "{stage}: {:?}", record.gate);
        Decoder::<Cpu>::load(&lab.path(stage).join("final"), &Default::default()).unwrap();
        if stage != "merge" {
            assert_eq!(PeftAdapter::read(&lab.path(stage).join("adapter")).unwrap().config.r, 4);
            hashes.push(before.clone());
        }
    }
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 4, "every stage changes the model");
    assert_eq!(lab.record("core-agent").inputs["adapter"].hash, lab.record("merge").inputs["adapter"].hash);
    let references = std::fs::read_dir(lab.path("ipo")).unwrap();
    let references =
        references.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("reference-"));
    assert_eq!(references.count(), 2, "of the training pairs and of the held-out ones");
}

#[test]
fn all_weights_train_without_an_adapter() {
    let lab = Lab::merged();
    run::<CoreAgentStage>(&lab.core_agent(""), &[], false).unwrap();
    lab.receipt("core-agent-to-ipo", "core-agent/final");
    run::<IpoStage>(&lab.ipo(""), &[], false).unwrap();
    let weights = |folder: &str| Decoder::<Cpu>::load(&lab.path(folder), &Default::default()).unwrap().leaves();
    for (before, after) in [("merge/final", "core-agent/final"), ("core-agent/final", "ipo/final")] {
        for (old, new) in weights(before).into_iter().zip(weights(after)) {
            let same = old.leaf.clone().into_data() == new.leaf.into_data();
            assert!(!same, "{after}: {} has not moved", old.name);
        }
        assert!(!lab.path(after).with_file_name("adapter").exists());
    }
    let text = std::fs::read_to_string(lab.core_agent("")).unwrap();
    std::fs::write(lab.path("core-agent.toml"), format!("merge_max_diff = 1e-3\n{text}")).unwrap();
    refused::<CoreAgentStage>(&lab.path("core-agent.toml"), &[], 2, "key `merge_max_diff`: expected none");
    refused::<IpoStage>(&lab.ipo(""), &["packed_experts=fp8"], 2, "key `packed_experts`: expected false");
}

#[test]
fn an_interrupted_stage_ends_where_an_undisturbed_one_ends() {
    let (whole, cut) = (Lab::new(), Lab::new());
    let twice = |of: &dyn Fn(&Lab) -> PathBuf, run: &Run, stage: &str| {
        assert_eq!(run(&of(&whole), &[], false).unwrap(), Outcome::Finished);
        assert_eq!(run(&of(&cut), &["train.stop_after=2"], false).unwrap(), Outcome::StoppedEarly);
        assert!(matches!(run(&of(&cut), &[], false), Err(TrainError::RunExists { .. })));
        assert_eq!(run(&of(&cut), &[], true).unwrap(), Outcome::Finished);
        assert_eq!(whole.hash(&format!("{stage}/final")), cut.hash(&format!("{stage}/final")), "{stage}");
    };
    let receipts = |transition: &str, model: &str| [&whole, &cut].iter().for_each(|lab| lab.receipt(transition, model));
    twice(&|lab| lab.adapter(), &run::<AdapterStage>, "adapter");
    receipts("lang-rust-to-core-agent", "adapter/final");
    for lab in [&whole, &cut] {
        run::<MergeStage>(&lab.merge(), &[], false).unwrap();
    }
    let merged = cut.hash("merge/final");
    assert!(matches!(run::<MergeStage>(&cut.merge(), &[], false), Err(TrainError::RunExists { .. })));
    std::fs::write(cut.path("merge/merged/model.safetensors"), "torn").unwrap();
    run::<MergeStage>(&cut.merge(), &[], true).unwrap();
    assert_eq!(cut.hash("merge/final"), merged);
    twice(&|lab| lab.core_agent(LORA), &run::<CoreAgentStage>, "core-agent");
    receipts("core-agent-to-ipo", "core-agent/final");
    twice(&|lab| lab.ipo(LORA), &run::<IpoStage>, "ipo");
}

#[test]
fn s25_a_base_that_is_not_the_merge_of_the_adapter_is_refused() {
    let lab = Lab::merged();
    let config = lab.core_agent(LORA);
    let try_model = |model: &str, sets: &[&str], says: &str| {
        lab.receipt("lang-rust-to-core-agent", model);
        let model = format!("model={}", lab.path(model).display());
        refused::<CoreAgentStage>(&config, &[&[model.as_str()], sets].concat(), 2, says);
        assert!(!lab.path("core-agent/checkpoints").exists());
    };
    // The unmerged base, which the original system trained on without a word.
    try_model("base", &[], "expected a merged model with its merge.json");
    // A merged model without a record, and the unmerged base with the record of another folder.
    try_model("adapter/final", &[], "expected a merged model with its merge.json");
    std::fs::copy(lab.path("merge/final/merge.json"), lab.path("base/merge.json")).unwrap();
    try_model("base", &[], "as merge.json says");
    // The merge of another adapter on the same base.
    let other = lab.config("other", &std::fs::read_to_string(lab.adapter()).unwrap().replacen("dir = ", "# ", 1));
    run::<AdapterStage>(&other, &["train.seed=9"], false).unwrap();
    let of_other = format!("adapter_run={}", lab.path("other").display());
    try_model("merge/final", &[&of_other], "which was merged into");
    // An adapter that forgot its base.
    std::fs::remove_file(lab.path("adapter/adapter/firebrick.json")).unwrap();
    try_model("merge/final", &[], "no record of one");
}

#[test]
fn a_stage_asks_its_gate_about_its_model() {
    let lab = Lab::merged();
    let core_agent = lab.core_agent(LORA);
    // Merged already, but for another run of the adapter stage the receipt says nothing.
    std::fs::remove_dir_all(lab.path("merge")).unwrap();
    lab.receipt("lang-rust-to-core-agent", "base");
    refused::<MergeStage>(&lab.merge(), &[], 1, "lang-rust-to-core-agent");
    assert!(!lab.path("merge").exists());
    lab.receipt("lang-rust-to-core-agent", "adapter/final");
    run::<MergeStage>(&lab.merge(), &[], false).unwrap();
    refused::<CoreAgentStage>(&core_agent, &["gate.transition=core-agent-to-ipo"], 1, "core-agent-to-ipo");
    std::fs::remove_file(lab.path("gate-lang-rust-to-core-agent.json")).unwrap();
    refused::<CoreAgentStage>(&core_agent, &[], 1, "lang-rust-to-core-agent");
    lab.receipt("lang-rust-to-core-agent", "merge/final");
    run::<CoreAgentStage>(&core_agent, &["train.max_steps=2"], false).unwrap();
    // The receipt of the model before is none for this one.
    lab.receipt("core-agent-to-ipo", "merge/final");
    refused::<IpoStage>(&lab.ipo(LORA), &[], 1, "core-agent-to-ipo");
    assert!(!lab.path("ipo").exists(), "no reference pass for a refused model");
    // The first stage asks where it is told to.
    let adapter = lab.adapter();
    let gate = format!("gate={{ transition = 'a-to-b', receipt = '{}' }}", lab.path("none.json").display());
    refused::<AdapterStage>(&adapter, &[&gate], 1, "a-to-b");
}

#[test]
fn s11_every_key_of_a_stage_is_read() {
    let lab = Lab::merged();
    lab.receipt("core-agent-to-ipo", "merge/final");
    let model = format!("model={}", lab.path("merge/final").display());
    let result = |of: &Run, config: &Path, sets: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let out = format!("dir={}", dir.path().join("s").display());
        let sets = [&[out.as_str(), "train.max_steps=2"], sets].concat();
        of(config, &sets, false).unwrap();
        artifact::model_hash(&dir.path().join("s/final")).unwrap()
    };
    let differ = |hashes: BTreeMap<&str, String>| {
        let mut seen: BTreeMap<&String, &str> = BTreeMap::new();
        for (key, hash) in &hashes {
            assert_eq!(seen.insert(hash, key), None, "`{key}` is not read");
        }
    };
    let sets = [
        "z_loss=0.1",
        "router.balance=0.5",
        "seq_len=256",
        "sources.talk.share=0.5",
        "adapter.r=3",
        "adapter.alpha=4.0",
        "adapter.rslora=true",
        "adapter.targets=['q_proj', 'mlp.experts.gate_up_proj', 'mlp.experts.down_proj']",
        "chat.keep_analysis=true",
        "eval_batch=2",
        "train.grad_clip=1e-3",
    ];
    // Keys that decide how work is done, or that mean nothing for this data, leave the result as it is.
    let same = ["sources.talk.share=0.5", "chat.keep_analysis=true", "eval_batch=2"];
    for (run, config) in [(&run::<AdapterStage> as &Run, lab.adapter()), (&run::<CoreAgentStage>, lab.core_agent(LORA))]
    {
        let base = result(run, &config, &[]);
        let mut hashes = BTreeMap::from([("nothing", base.clone())]);
        for set in sets {
            let hash = result(run, &config, &[set]);
            if same.contains(&set) { assert_eq!(hash, base, "{set}") } else { drop(hashes.insert(set, hash)) }
        }
        let shares = ["sources.code.share=0.25", "sources.talk.share=0.75"];
        hashes.insert("share", result(run, &config, &shares));
        differ(hashes);
    }
    let sets = [
        "beta=0.5",
        "loss.kind=hinge",
        "loss={ kind = 'sigmoid', label_smoothing = 0.0 }",
        "router.balance=0.5",
        "adapter.r=3",
        "train.lr=1e-3",
    ];
    let ipo = lab.ipo(LORA);
    let mut hashes = BTreeMap::from([("nothing", result(&run::<IpoStage>, &ipo, &[&model]))]);
    hashes.extend(sets.map(|set| (set, result(&run::<IpoStage>, &ipo, &[&model, set]))));
    differ(hashes);
    let spelled = "loss={ kind = 'ipo', length_normalised = true }";
    let (default, spelled) =
        (result(&run::<IpoStage>, &ipo, &[&model]), result(&run::<IpoStage>, &ipo, &[&model, spelled]));
    assert_eq!(default, spelled, "IPO over averages is the default");
}

#[test]
fn values_out_of_range_are_refused_before_anything_is_read() {
    let lab = Lab::new();
    for (set, says) in [
        ("sources.talk.share=0.6", "with the sum 1"),
        ("sources.talk.share=0.0", "with the sum 1"),
        ("z_loss=-1.0", "key `z_loss`"),
        ("merge_max_diff=0.0", "key `merge_max_diff`"),
        ("eval_batch=0", "key `eval_batch`"),
        ("adapter.r=0", "`r`"),
        ("seq_len=100", "train.tokens_per_micro_batch"),
        ("sources.eval={ path = 'x', share = 0.0 }", "a share above 0"),
        ("gats=1", "gats"),
    ] {
        refused::<AdapterStage>(&lab.adapter(), &[set], 2, says);
    }
    let name = ["sources.eval={ path = 'x', share = 0.25 }", "sources.talk.share=0.25"];
    refused::<AdapterStage>(&lab.adapter(), &name, 2, "a name that no other input has");
    for (set, says) in [
        ("precision=fp8", "key `precision`"),
        ("eval_rows=0", "key `eval_rows`"),
        ("max_packed_kl=0.0", "key `max_packed_kl`"),
    ] {
        refused::<MergeStage>(&lab.merge(), &[set], 2, says);
    }
    for (set, says) in [
        ("loss={ kind = 'ipo', length_normalised = false }", "averages over an answer's tokens"),
        ("beta=0.0", "beta"),
        ("loss.kind=ppo", "ppo"),
    ] {
        refused::<IpoStage>(&lab.ipo(LORA), &[set], 2, says);
    }
    let without = std::fs::read_to_string(lab.ipo(LORA)).unwrap().replace("merge_max_diff = 1e-3\n", "");
    std::fs::write(lab.path("ipo.toml"), without).unwrap();
    refused::<IpoStage>(&lab.path("ipo.toml"), &[], 2, "expected one beside the table `adapter`");
}

#[test]
fn the_configurations_of_the_repository_are_in_range_and_adapt_what_they_say() {
    let load = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../configs/stage/{name}.toml"));
    let model = ModelConfig::preset("gpt-oss-20b").unwrap();
    let n_params =
        |tuning: Option<AdapterTuning>| tuning.unwrap().workload.lora_for(&model).unwrap().n_params(&model).unwrap();
    for line in ["agent", "agent-demo"] {
        let adapter: AdapterConfig = trainer::config::load(&load(&format!("{line}-adapter")), &[]).unwrap();
        let merge: MergeConfig = trainer::config::load(&load(&format!("{line}-merge")), &[]).unwrap();
        let core_agent: CoreAgentConfig = trainer::config::load(&load(&format!("{line}-core-agent")), &[]).unwrap();
        let ipo: IpoConfig = trainer::config::load(&load(&format!("{line}-ipo")), &[]).unwrap();
        adapter.check().unwrap();
        merge.check().unwrap();
        core_agent.check().unwrap();
        ipo.check().unwrap();
        let gates = [&merge.gate, &core_agent.gate, &ipo.gate].map(|gate| gate.transition.as_str());
        assert_eq!(gates, ["lang-rust-to-core-agent", "lang-rust-to-core-agent", "core-agent-to-ipo"]);
        if line == "agent" {
            let tuning = |keys: &AdapterKeys, packed| adapter_tuning(Some(keys), packed, Some(1.0));
            assert_eq!(n_params(tuning(&adapter.adapter, adapter.packed_experts)), 739_639_296);
            for (keys, packed) in [(core_agent.adapter, core_agent.packed_experts), (ipo.adapter, ipo.packed_experts)] {
                assert_eq!(n_params(tuning(&keys.unwrap(), packed)), 1_479_278_592);
            }
        }
    }
}
