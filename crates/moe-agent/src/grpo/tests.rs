//! Runs of a tiny model whose rewards are a rule: that it learns, that it resumes, and what stops it.

use std::path::{Path, PathBuf};

use kernels_cubecl::Cpu;
use model_core::{Decoder, Harmony};
use tempfile::TempDir;
use trainer::objective::{MetricSum, Objective, RATIO_BEYOND, SAMPLER_BEYOND};
use trainer::{Outcome, StageArgs, TrainError};

use super::record::Rollout;
use super::*;
use crate::rollout::Episode;
use crate::rollout::tests::{Toy, model, tokenizer, toy};

/// Share of the sampled tokens that are lower-case letters.
fn letters(episode: &Episode) -> Option<f64> {
    let sampled = episode.ids.iter().zip(&episode.sampled).filter(|(_, on)| **on).map(|(id, _)| *id);
    let letters: std::collections::HashSet<u32> = tokenizer_letters();
    Some(sampled.filter(|id| letters.contains(id)).count() as f64 / episode.n_sampled() as f64)
}

fn tokenizer_letters() -> std::collections::HashSet<u32> {
    static LETTERS: std::sync::OnceLock<std::collections::HashSet<u32>> = std::sync::OnceLock::new();
    LETTERS.get_or_init(|| tokenizer().encode("abcdefghijklmnopqrstuvwxyz").into_iter().collect()).clone()
}

struct Lab {
    dir: TempDir,
    world: Toy,
    args: StageArgs,
}

const CONFIG: &str = r#"
dir = "{dir}/{name}"
model = "{dir}/model"
tasks = "{dir}/tasks"
prompts_per_step = 3
group_size = 6
seq_len = 64
max_new_tokens = [{ from = 0, value = 6 }, { from = 4, value = 10 }]
max_turns = 2
sampling = { temperature = 1.0 }
loss = { aggregation = "dapo", clip_low = 0.2, clip_high = 0.28, beta = 0.0 }
kl = { monitor = true, warn = 50.0, abort = 100.0 }
max_idle_steps = 3
[judge]
work = "{dir}/judge"
jobs = 1
[gate]
transition = "ipo-to-grpo"
receipt = "{dir}/none.json"
[train]
max_steps = 10
tokens_per_step = 1152
tokens_per_micro_batch = 128
lr = 1e-2
min_lr = 1e-2
schedule = "constant"
warmup_steps = 0
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.0
grad_clip = 1.0
seed = 3
eval_every = 0
save_every = 4
log_every = 1000
keep_last = 3
recompute = false
max_bad_steps = 3
peak_tflops = 0.0
"#;

impl Lab {
    fn new(rule: fn(&Episode) -> Option<f64>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(dir.path().join("tasks")).unwrap();
        model().save(&folder, 1 << 30).unwrap();
        std::fs::write(folder.join("tokenizer.json"), tokenizer().json()).unwrap();
        let args = StageArgs {
            config: PathBuf::new(),
            sets: Vec::new(),
            resume: false,
            device: "cpu".parse().unwrap(),
            plain: true,
            plan: false,
            override_gate: Some("a test".into()),
        };
        Self { dir, world: toy(rule), args }
    }

    fn config(&self, name: &str, sets: &[&str]) -> Result<GrpoConfig, TrainError> {
        let path = self.dir.path().join(format!("{name}.toml"));
        let text = CONFIG.replace("{dir}", &self.dir.path().display().to_string()).replace("{name}", name);
        std::fs::write(&path, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let config: GrpoConfig = trainer::config::load(&path, &sets)?;
        config.check().map(|()| config)
    }

    fn run(&self, config: &GrpoConfig, resume: bool) -> Result<Outcome, TrainError> {
        let args = StageArgs { resume, ..self.args.clone() };
        run::<Cpu>(config, &self.world, &args, &Default::default())
    }

    /// Metrics of every step.
    fn metrics(&self, name: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.dir.path().join(name).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn value(step: &serde_json::Value, name: &str) -> f64 {
    step["metrics"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {step}"))
}

#[test]
fn s16_the_reward_rises() {
    let lab = Lab::new(letters);
    let sets = ["train.max_steps=30", "train.save_every=0", "train.lr=5e-3", "train.min_lr=5e-3", "max_idle_steps=30"];
    let config = lab.config("rise", &sets).unwrap();
    assert_eq!(lab.run(&config, false).unwrap(), Outcome::Finished);
    let steps = lab.metrics("rise");
    let mean = |range: std::ops::Range<usize>| {
        let n = range.len() as f64;
        steps[range].iter().map(|step| value(step, "reward")).sum::<f64>() / n
    };
    let (before, after) = (mean(0..5), mean(25..30));
    assert!(after > before + 0.25, "{before} before, {after} after");
    for step in &steps {
        // The weights that train are those that sampled, and the sampler computes what training computes.
        assert_eq!((value(step, RATIO_BEYOND), value(step, SAMPLER_BEYOND)), (0.0, 0.0), "{step}");
        assert!(value(step, "entropy") > 0.0 && value(step, "kl") >= 0.0 && value(step, "judge_errors") == 0.0);
    }
    assert!(value(&steps[29], "kl") > value(&steps[0], "kl"));
    // Right after sampling nothing is clipped, and the curriculum of lengths holds.
    assert!(value(&steps[0], "clip_low") == 0.0 && value(&steps[0], "clip_high") == 0.0);
    assert!(value(&steps[3], "completion_length") <= 2.0 * 2.0 * 7.0);
    // What came out is a model with everything that another program needs of it.
    let last = lab.dir.path().join("rise/final");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
        assert!(last.join(file).is_file(), "{file}");
    }
    Decoder::<Cpu>::load(&last, &Default::default()).unwrap();
    let timing = std::fs::read_to_string(lab.dir.path().join("rise/rollout-timing.jsonl")).unwrap();
    assert_eq!(timing.lines().count(), 30);
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one_also_between_updates_of_a_rollout() {
    let lab = Lab::new(letters);
    for (iterations, kl) in [("1", "0.0"), ("3", "0.05")] {
        let sets = [format!("iterations={iterations}"), format!("loss.beta={kl}")];
        let mut sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let names = [format!("whole-{iterations}"), format!("parts-{iterations}")];
        lab.run(&lab.config(&names[0], &sets).unwrap(), false).unwrap();
        sets.push("train.stop_after=5");
        let stopped = lab.run(&lab.config(&names[1], &sets).unwrap(), false).unwrap();
        assert_eq!(stopped, Outcome::StoppedEarly);
        sets.pop();
        lab.run(&lab.config(&names[1], &sets).unwrap(), true).unwrap();
        let [whole, parts] = names.each_ref().map(|name| lab.dir.path().join(name));
        let mut files = vec!["metrics.jsonl".to_owned()];
        files.extend(
            ["model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json"]
                .map(|file| format!("checkpoints/step-10/{file}")),
        );
        let steps = if iterations == "1" { [0, 4, 5, 9] } else { [0, 3, 6, 9] };
        files.extend(steps.map(|step| format!("rollouts/step-{step:08}.json")));
        for file in files {
            let read = |dir: &Path| std::fs::read(dir.join(&file)).unwrap();
            assert!(read(&whole) == read(&parts), "{iterations} updates: {file} differs");
        }
        if iterations == "3" {
            // Later updates have ratios of their own, and a rollout that is gone is an error.
            let metrics = lab.metrics(&names[0]);
            assert!(value(&metrics[2], "clip_high") + value(&metrics[2], "clip_low") > 0.0, "{}", metrics[2]);
            assert!(metrics[1]["metrics"].get("reward").is_none(), "{}", metrics[1]);
            let error = Rollout::read(&whole, 1).unwrap_err().to_string();
            assert!(error.contains("step-00000001.json"), "{error}");
        }
    }
}

#[test]
fn equal_rewards_teach_nothing_and_end_the_run_at_the_limit() {
    let lab = Lab::new(|_| Some(0.1));
    let config = lab.config("flat", &[]).unwrap();
    let error = lab.run(&config, false).unwrap_err();
    assert!(matches!(error, TrainError::Guard { step: 3, .. }) && error.exit_code() == 3, "{error}");
    let steps = lab.metrics("flat");
    assert_eq!(steps.len(), 2, "a rollout without spread is a step without an update, up to the limit");
    for step in &steps {
        assert_eq!(step["units"].as_f64(), Some(0.0));
        assert_eq!((value(step, "idle_steps"), value(step, "groups_dropped")), (1.0, 3.0));
        assert_eq!(value(step, "frac_reward_zero_std"), 1.0);
        assert_eq!(step["loss"].as_f64(), Some(0.0));
    }
}

#[test]
fn episodes_that_cannot_be_judged_are_dropped_and_counted() {
    // Every group keeps some, and what is dropped is never a reward.
    let lab = Lab::new(|episode| letters(episode).filter(|_| episode.sample % 6 != 1));
    let config = lab.config("dropped", &["train.max_steps=1"]).unwrap();
    lab.run(&config, false).unwrap();
    assert_eq!(value(&lab.metrics("dropped")[0], "judge_errors"), 3.0);
    let rollout = Rollout::read(&config.dir, 0).unwrap();
    for group in &rollout.groups {
        let dropped: Vec<usize> =
            group.samples.iter().enumerate().filter(|(_, s)| s.reward.is_none()).map(|(i, _)| i).collect();
        assert_eq!(dropped, [1]);
        let sum: f32 = group.samples.iter().map(|sample| sample.advantage).sum();
        assert!(sum.abs() < 1e-4 && group.samples[1].advantage == 0.0 && group.samples[1].old.is_empty());
    }
    let n_kept = rollout.groups.iter().filter(|group| group.kept).count();
    assert!(n_kept > 0 && rollout.kept().len() == 5 * n_kept);
    assert_eq!(Rollout::read(&config.dir, 0).unwrap(), rollout);
}

/// The reference of an adapter is the model without it, and the result is a merged model.
#[test]
fn an_adapter_trains_against_the_model_without_it_and_is_merged() {
    let lab = Lab::new(letters);
    let sets = [
        "adapter={ r = 4, alpha = 8.0, dropout = 0.0, rslora = false, targets = ['all-linear'] }",
        "merge_max_diff=1e-3",
        "loss.beta=0.01",
        "train.max_steps=6",
    ];
    let config = lab.config("adapter", &sets).unwrap();
    assert_eq!(lab.run(&config, false).unwrap(), Outcome::Finished);
    let steps = lab.metrics("adapter");
    // A fresh adapter changes nothing, so that the policy is the reference in the first step and no longer in the last.
    assert!(value(&steps[0], "kl") < 1e-9 && value(&steps[5], "kl") > 1e-5, "{} {}", steps[0], steps[5]);
    assert!(steps.iter().all(|step| value(step, RATIO_BEYOND) == 0.0));
    let merged = Decoder::<Cpu>::load(&config.dir.join("final"), &Default::default()).unwrap();
    assert!(!merged.has_adapter() && config.dir.join("adapter/adapter_model.safetensors").is_file());
    let dropout = sets[0].replace("dropout = 0.0", "dropout = 0.1");
    let error = lab.config("dropout", &[&dropout, sets[1]]).unwrap_err().to_string();
    assert!(error.contains("adapter.dropout"), "{error}");
}

fn objective<'a>(config: &'a GrpoConfig, harmony: Harmony<'a>, world: &'a Toy) -> GrpoObjective<'a, Cpu> {
    GrpoObjective::new(config, harmony, 0, world, Some(model())).unwrap()
}

#[test]
fn a_ratio_away_from_one_a_wrong_sampler_and_a_far_policy_stop_the_run() {
    let lab = Lab::new(letters);
    let config = lab.config("guards", &["kl.warn=0.3", "kl.abort=0.5"]).unwrap();
    let tokenizer = tokenizer();
    let objective = objective(&config, Harmony::new(&tokenizer).unwrap(), &lab.world);
    let review = |metrics: &[MetricSum]| objective.review(7, metrics);
    assert_eq!(review(&[MetricSum::new(RATIO_BEYOND, 0.0, 9.0), MetricSum::new("kl", 0.1, 1.0)]).unwrap(), None);
    for (metric, says) in [
        (MetricSum::new(RATIO_BEYOND, 1.0, 500.0), "ratio further than 1e-6"),
        (MetricSum::new(SAMPLER_BEYOND, 30.0, 500.0), "the sampler's log-probability"),
        (MetricSum::new("kl", 5.0, 10.0), "kl.abort = 0.5"),
        (MetricSum::new("kl", f64::NAN, 10.0), "from the reference"),
    ] {
        let error = review(&[metric]).unwrap_err();
        assert!(matches!(error, TrainError::Guard { step: 7, .. }) && error.exit_code() == 3, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    let note = review(&[MetricSum::new("kl", 4.0, 10.0)]).unwrap().unwrap();
    assert!(note.contains("0.400 nats") && note.contains("kl.warn = 0.3"), "{note}");
}

/// The whole path: a model that is another one in training than in sampling is found out in the first step.
#[test]
fn other_weights_in_training_than_in_sampling_are_found_in_the_first_step() {
    let lab = Lab::new(letters);
    let config = lab.config("weights", &[]).unwrap();
    let tokenizer = tokenizer();
    let objective = objective(&config, Harmony::new(&tokenizer).unwrap(), &lab.world);
    let device = Default::default();
    let sampled = objective.sample(&model(), 0, Vec::new(), &device).unwrap();
    let review = |trained: &Decoder<Cpu>| {
        let mut metrics = Vec::new();
        for batch in &sampled.batches {
            MetricSum::merge(&mut metrics, objective.evaluate(trained, batch, &device).unwrap());
        }
        objective.review(1, &metrics)
    };
    review(&model()).unwrap();
    let mut other = model();
    other.final_norm.gamma = other.final_norm.gamma.clone() * 1.0001;
    let error = review(&other).unwrap_err().to_string();
    assert!(error.contains("sampling and training do not compute the same"), "{error}");
}

#[test]
fn keys_that_do_not_fit_are_refused() {
    let lab = Lab::new(letters);
    for (set, says) in [
        ("group_size=1", "group_size"),
        ("prompts_per_step=0", "prompts_per_step"),
        ("iterations=0", "iterations"),
        ("sampling.temperature=0.0", "sampling.temperature"),
        ("sampling.top_p=0.0", "sampling.top_p"),
        ("kl.warn=200.0", "kl"),
        ("train.tokens_per_step=1024", "group_size · seq_len = 1152"),
        ("loss.clip_low=1.5", "loss.clip_low"),
        ("max_turns=0", "max_turns"),
        ("max_new_tokens=[{from=1,value=2}]", "max_new_tokens"),
        ("loss.aggregation=mean", "aggregation"),
        ("train.precision=fp8", "train.precision"),
        ("surprise=1", "surprise"),
    ] {
        let error = lab.config("keys", &[set]).unwrap_err().to_string();
        assert!(error.contains(says), "{set}: {error}");
    }
}
