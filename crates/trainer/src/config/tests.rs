//! Tests of reading, overriding and checking configurations.

use super::*;

/// A stage's configuration in small.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Demo {
    name: String,
    #[serde(default)]
    packing: bool,
    train: TrainConfig,
}

const TEXT: &str = "
name = 'demo'
packing = true
[train]
max_steps = 100
tokens_per_step = 4096
tokens_per_micro_batch = 1024
lr = 1e-3
min_lr = 1e-4
schedule = 'cosine'
warmup_steps = 10
beta1 = 0.9
beta2 = 0.95
eps = 1e-8
weight_decay = 0.1
grad_clip = 1.0
seed = 1
eval_every = 10
save_every = 10
log_every = 1
keep_last = 2
recompute = false
max_bad_steps = 5
peak_tflops = 0.0
";

fn read(text: &str, sets: &[&str]) -> Result<Demo, TrainError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("demo.toml");
    std::fs::write(&path, text).unwrap();
    load(&path, &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>())
}

fn refused(text: &str, sets: &[&str], wanted: &[&str]) {
    let error = read(text, sets).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    for part in wanted {
        assert!(error.to_string().contains(part), "{error} lacks {part:?}");
    }
}

#[test]
fn s11_the_keys_are_these_and_no_others() {
    let keys = |sets: &[&str]| -> Vec<String> {
        let train = serde_json::to_value(read(TEXT, sets).unwrap().train).unwrap();
        train.as_object().unwrap().keys().cloned().collect()
    };
    let want = "beta1 beta2 decay_steps eps eval_every grad_clip keep_last log_every lr max_bad_steps max_steps min_lr \
        peak_tflops recompute save_every schedule seed stop_after tokens_per_micro_batch tokens_per_step warmup_steps \
        weight_decay";
    let why = "a new key needs a reader, and a line in s11_every_key_of_the_configuration…";
    assert_eq!(keys(&[]).join(" "), want, "{why}");
    // How numbers are kept, and where, is there when it is not the default.
    let sets = [
        "train.precision=fp8",
        "train.master=stochastic",
        "train.moments=8bit",
        "train.fp8_scaling=delayed",
        "train.fp8_history=8",
        "train.offload=3",
    ];
    let keys: Vec<String> = keys(&sets).into_iter().filter(|key| !want.contains(key.as_str())).collect();
    assert_eq!(keys.join(" "), "fp8_history fp8_scaling master moments offload precision", "{why}");
    assert!(want.split(' ').count() + keys.len() <= 40);
}

#[test]
fn s12_cli_set_overrides_only_what_was_given() {
    let plain = read(TEXT, &[]).unwrap();
    let set = read(TEXT, &["train.lr=2e-3", "train.schedule=linear", "name = other name"]).unwrap();
    let mut want = plain;
    want.train.lr = 2e-3;
    want.train.schedule = Schedule::Linear;
    want.name = "other name".into();
    assert_eq!(set, want);
    assert!(set.packing, "an option that was not given has changed a key");
    // The later one wins.
    assert_eq!(read(TEXT, &["train.seed=2", "train.seed=3"]).unwrap().train.seed, 3);
    assert_eq!(read(TEXT, &["train.stop_after=5", "packing=false"]).unwrap().train.stop_after, Some(5));
}

#[test]
fn f15_unknown_and_duplicate_keys_are_errors_by_name() {
    refused(&format!("{TEXT}min_lrr = 1\n"), &[], &["demo.toml", "min_lrr"]);
    refused(&TEXT.replace("name = 'demo'", "nam = 'demo'"), &[], &["nam"]);
    refused(&TEXT.replace("seed = 1", "seed = 1\nseed = 2"), &[], &["seed", "duplicate key"]);
    refused(&TEXT.replace("seed = 1", ""), &[], &["seed", "missing"]);
    refused(TEXT, &["train.lrr=1"], &["lrr", "--set train.lrr=1"]);
    refused(TEXT, &["lr=1"], &["lr"]);
}

#[test]
fn values_of_another_type_are_errors_by_name() {
    refused(&TEXT.replace("seed = 1", "seed = 'one'"), &[], &["train.seed"]);
    refused(&TEXT.replace("seed = 1", "seed = -1"), &[], &["train.seed"]);
    refused(&TEXT.replace("max_steps = 100", "max_steps = 9223372036854775808"), &[], &["demo.toml", "line 5"]);
    refused(&TEXT.replace("'cosine'", "'cosin'"), &[], &["train.schedule", "cosin"]);
    refused(TEXT, &["train.recompute=yes"], &["train.recompute"]);
    refused(TEXT, &["train.recompute=-1"], &["train.recompute"]);
    refused(TEXT, &["train.fp8_scaling=late"], &["train.fp8_scaling", "late", "delayed"]);
    refused(TEXT, &["train.fp8_history=-1"], &["train.fp8_history"]);
    refused(TEXT, &["train.offload=yes"], &["train.offload"]);
}

#[test]
fn only_recomputed_blocks_can_be_offloaded() {
    for (recompute, offload, want) in [
        ("false", "false", Some((0, 0))),
        ("false", "0", Some((0, 0))),
        ("true", "true", Some((32, 32))),
        ("true", "5", Some((32, 5))),
        ("true", "99", Some((32, 32))),
        ("8", "true", Some((8, 8))),
        ("8", "8", Some((8, 8))),
        ("8", "9", None),
        ("0", "true", None),
        ("false", "true", None),
        ("false", "1", None),
    ] {
        let sets = [&format!("train.recompute={recompute}")[..], &format!("train.offload={offload}")];
        let train = read(TEXT, &sets).unwrap().train;
        match (train.check(), want) {
            (Ok(()), Some(want)) => {
                let replay = train.replay(32);
                assert_eq!((replay.blocks, replay.offloaded), want, "{sets:?}");
            }
            (Err(error), None) => {
                let text = error.to_string();
                assert_eq!(error.exit_code(), 2);
                assert!(text.contains("train.offload") && text.contains("set train.recompute = true"), "{text}");
            }
            (got, want) => panic!("{sets:?}: {got:?}, expected {want:?}"),
        }
    }
}

#[test]
fn set_wants_key_and_value() {
    for set in ["train.lr", "=1", "train lr=1", "[train]\nlr=1", "train.lr=1\ntrain.seed=9"] {
        refused(TEXT, &[set], &["--set"]);
    }
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    refused("", &[], &["missing"]);
    refused("name = ", &[], &["demo.toml"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("demo.toml");
    let error = |path: &Path| load::<Demo>(path, &[]).unwrap_err();
    assert!(error(&path).to_string().contains("demo.toml"));
    std::fs::write(&path, [0x66, 0xff, 0xfe]).unwrap();
    assert!(error(&path).to_string().contains("UTF-8"));
    std::fs::write(&path, vec![b'#'; MAX_CONFIG_BYTES as usize + 1]).unwrap();
    assert!(error(&path).to_string().contains("limit"));
    std::fs::write(&path, format!("a = {}1{}", "[".repeat(100_000), "]".repeat(100_000))).unwrap();
    assert_eq!(error(&path).exit_code(), 2);
}

fn delay(config: &mut TrainConfig, n: usize) {
    (config.precision, config.fp8_scaling) = (Arithmetic::Fp8, Fp8Scaling::Delayed);
    config.fp8_history = HistoryLength(n);
}

#[test]
fn f15_values_out_of_range_are_errors_by_name() {
    let good = read(TEXT, &[]).unwrap().train;
    good.check().unwrap();
    type Change = fn(&mut TrainConfig);
    let changes: [(&str, Change); 30] = [
        ("train.lr", |c| c.lr = -1.0),
        ("train.lr", |c| c.lr = 0.0),
        ("train.lr", |c| c.lr = f64::INFINITY),
        ("train.lr", |c| c.lr = f64::NAN),
        ("train.min_lr", |c| c.min_lr = 1.0),
        ("train.min_lr", |c| c.min_lr = -0.1),
        ("train.beta1", |c| c.beta1 = 1.0),
        ("train.beta2", |c| c.beta2 = -0.1),
        ("train.eps", |c| c.eps = 0.0),
        ("train.weight_decay", |c| c.weight_decay = -1.0),
        ("train.grad_clip", |c| c.grad_clip = 0.0),
        ("train.peak_tflops", |c| c.peak_tflops = f64::NAN),
        ("train.max_steps", |c| c.max_steps = 0),
        ("train.max_steps", |c| c.max_steps = 1 << 63),
        ("train.warmup_steps", |c| c.warmup_steps = 100),
        ("train.decay_steps", |c| c.decay_steps = 91),
        ("train.decay_steps", |c| c.schedule = Schedule::Wsd),
        ("train.tokens_per_micro_batch", |c| c.tokens_per_micro_batch = 1000),
        ("train.tokens_per_micro_batch", |c| c.tokens_per_micro_batch = 0),
        ("train.log_every", |c| c.log_every = 0),
        ("train.keep_last", |c| c.keep_last = 0),
        ("train.max_bad_steps", |c| c.max_bad_steps = 0),
        ("train.stop_after", |c| c.stop_after = Some(101)),
        ("train.stop_after", |c| c.stop_after = Some(0)),
        ("train.fp8_scaling", |c| c.fp8_scaling = Fp8Scaling::Delayed),
        ("train.fp8_scaling", |c| (c.precision, c.fp8_scaling) = (Arithmetic::Bf16, Fp8Scaling::Delayed)),
        ("train.fp8_history", |c| c.fp8_history = HistoryLength(8)),
        ("train.fp8_history", |c| (c.precision, c.fp8_history) = (Arithmetic::Fp8, HistoryLength(8))),
        ("train.fp8_history", |c| delay(c, 0)),
        ("train.fp8_history", |c| delay(c, HistoryLength::MAX + 1)),
    ];
    for n in [1, 16, HistoryLength::MAX] {
        let mut config = good.clone();
        delay(&mut config, n);
        config.check().unwrap();
        assert_eq!(config.history(), Some(n));
    }
    for (i, (key, change)) in changes.iter().enumerate() {
        let mut config = good.clone();
        change(&mut config);
        let error = config.check().expect_err(&format!("change {i} of {key} passes"));
        assert!(error.to_string().contains(&format!("`{key}`")) && error.exit_code() == 2, "change {i}: {error}");
    }
}

#[test]
fn rows_follow_from_the_tokens_so_that_every_row_length_gives_steps_of_one_size() {
    let config = read(TEXT, &[]).unwrap().train;
    for (seq_len, want) in [(64, (64, 16)), (128, (32, 8)), (1024, (4, 1))] {
        assert_eq!(config.rows(seq_len).unwrap(), want);
    }
    for seq_len in [0, 100, 2048] {
        assert!(config.rows(seq_len).unwrap_err().to_string().contains("train.tokens_per_micro_batch"), "{seq_len}");
    }
}
