//! `cargo xtask plan`: parameters, tokens, arithmetic, memory and disk of a stage, before anything is allocated.
//!
//! Reads a stage's configuration and the model's `config.json`; needs no weights. Counts of parameters and tokens are
//! exact. What a device needs the stage's own program says, where it lies beside this one: it replays a step. Otherwise
//! memory is an estimate of what the loop holds at once:
//!
//! ```text
//! weights            4 bytes per parameter in f32, 2 in bf16 and fp8
//! remainder          2 bytes per trainable parameter where bf16 weights have one
//! gradients          as weights, per trainable parameter
//! optimizer          8 bytes per trainable parameter (two moments), or 2 in 8 bits
//! activations        tokens of a micro-batch x numbers kept per token, see `kept_floats`
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

use crate::args::Args;
use crate::workspace;

/// Bytes of an f32 and of a bf16.
const FLOAT: u64 = 4;
const HALF: u64 = 2;

/// The dimensions of a dense model, from `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
struct Model {
    vocab_size: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// What a stage's configuration says about its size.
#[derive(Clone, Debug, PartialEq)]
struct Stage {
    steps: u64,
    tokens_per_step: u64,
    tokens_per_micro_batch: u64,
    seq_len: u64,
    /// Blocks that run again in the backward pass.
    recompute: u64,
    /// Those of them whose inputs wait in the host's memory.
    offload: u64,
    keep_last: u64,
    adapter_rank: Option<u64>,
    /// Bytes of a weight, an activation, a gradient.
    element: u64,
    /// Bytes of the optimizer's state per trainable parameter: moments and remainder.
    state: u64,
}

/// Runs the command.
pub(crate) fn command(mut args: Args) -> Result<()> {
    let config =
        args.option("--config")?.context("which stage? `cargo xtask plan --config configs/stage/FILE.toml`")?;
    let model = args.option("--model")?;
    args.finish()?;
    let root = workspace::root()?;
    let text = workspace::read(&root, Path::new(&config))?;
    let table: Table = text.parse().with_context(|| format!("cannot read {config}"))?;
    let named = table.get("model").and_then(Value::as_str).map(str::to_owned);
    let model = model.or(named).context("the configuration names no model; give --model DIR")?;
    let stage = stage(&table).with_context(|| format!("cannot plan {config}"))?;
    let path = model;
    let model = read_model(&root.join(&path)).with_context(|| {
        format!("cannot read the model {path}; make it with `model-core init`, or give another with --model DIR")
    })?;
    print!("{}", describe(&model, &stage)?);
    let (program, stage) = program(&table);
    let program = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(program)));
    // The program reads models from folders.
    match program.filter(|program| program.is_file() && root.join(&path).is_dir()) {
        Some(program) => show_device_plan(&program, stage, &root, &config, &path),
        None => Ok(()),
    }
}

/// The program that a configuration is for and the name of its stage, where the program has several, told by the keys that
/// only this stage has.
fn program(table: &Table) -> (&'static str, Option<&'static str>) {
    let has = |key: &str| table.contains_key(key);
    match () {
        () if has("phase") => ("stage-pretrain", None),
        () if has("adapter_run") => ("moe-agent", Some("core-agent")),
        () if has("sources") => ("moe-agent", Some("adapter")),
        () if has("group_size") => ("moe-agent", Some("grpo")),
        () if has("adapter") && has("beta") => ("moe-agent", Some("ipo")),
        () if has("adapter") => ("stage-lora", None),
        () if has("beta") => ("stage-dpo", None),
        () => ("stage-sft", None),
    }
}

/// Has the stage's program print what a device needs.
fn show_device_plan(program: &Path, stage: Option<&str>, root: &Path, config: &str, model: &str) -> Result<()> {
    let mut command = Command::new(program);
    command
        .args(stage)
        .args(["--plan", "--config", config, "--set"])
        .arg(format!("model={}", Value::from(model)))
        .current_dir(root);
    let status = command.status().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(status.success(), "{} --plan failed; its message is above", program.display());
    Ok(())
}

fn read_model(path: &Path) -> Result<Model> {
    let file: PathBuf = if path.is_dir() { path.join("config.json") } else { path.into() };
    let bytes = gates::artifact::read_bounded(&file, 1 << 20)?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn stage(table: &Table) -> Result<Stage> {
    let train = table.get("train").and_then(Value::as_table).context("it has no table `train`")?;
    let number = |table: &Table, key: &str| {
        let value = table.get(key).and_then(Value::as_integer).and_then(|value| u64::try_from(value).ok());
        value.filter(|value| *value > 0).with_context(|| format!("`{key}` must be a number above 0"))
    };
    let phases = table.get("phase").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table);
    let longest = phases.map(|phase| number(phase, "seq_len")).collect::<Result<Vec<_>>>()?.into_iter().max();
    let seq_len = match longest {
        Some(longest) => longest,
        None => number(table, "seq_len")?,
    };
    let adapter = table.get("adapter").and_then(Value::as_table);
    let word = |key: &str| train.get(key).and_then(Value::as_str).unwrap_or_default();
    let blocks = |key: &str| match train.get(key) {
        Some(Value::Boolean(true)) => u64::MAX,
        Some(Value::Integer(n)) => u64::try_from(*n).unwrap_or_default(),
        _ => 0,
    };
    let half = matches!(word("precision"), "bf16" | "fp8");
    let moments = if word("moments") == "8bit" { 2 } else { 2 * FLOAT };
    let remainder = if half && word("master") != "stochastic" { HALF } else { 0 };
    Ok(Stage {
        steps: number(train, "max_steps")?,
        tokens_per_step: number(train, "tokens_per_step")?,
        tokens_per_micro_batch: number(train, "tokens_per_micro_batch")?,
        seq_len,
        recompute: blocks("recompute"),
        offload: blocks("offload"),
        keep_last: number(train, "keep_last")?,
        adapter_rank: adapter.map(|adapter| number(adapter, "r")).transpose()?,
        element: if half { HALF } else { FLOAT },
        state: moments + remainder,
    })
}

impl Model {
    fn kv_heads(&self) -> u64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head(&self) -> u64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// (in, out) of the projections of one block: q, k, v, o, gate, up, down.
    fn projections(&self) -> [(u64, u64); 7] {
        let (d, f, q) = (self.hidden_size, self.intermediate_size, self.num_attention_heads * self.head());
        let kv = self.kv_heads() * self.head();
        [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)]
    }

    /// Parameters in matrices that multiply activations: the blocks' and the head's, not the embedding table.
    fn matmul_parameters(&self) -> u64 {
        let block: u64 = self.projections().iter().map(|(rows, columns)| rows * columns).sum();
        self.num_hidden_layers * block + self.vocab_size * self.hidden_size
    }

    fn parameters(&self) -> u64 {
        let table = if self.tie_word_embeddings { 0 } else { self.vocab_size * self.hidden_size };
        self.matmul_parameters() + table + (2 * self.num_hidden_layers + 1) * self.hidden_size
    }

    /// Parameters of an adapter of this rank on every projection.
    fn adapter_parameters(&self, rank: u64) -> u64 {
        let block: u64 = self.projections().iter().map(|(rows, columns)| rank * (rows + columns)).sum();
        self.num_hidden_layers * block
    }

    /// Floats that the backward pass of one block needs per token: inputs of both norms and their results, the fused
    /// q, k, v before and after rotation, attention's result, gate and up, their product.
    fn block_floats(&self) -> u64 {
        let (d, q) = (self.hidden_size, self.num_attention_heads * self.head());
        let qkv = q + 2 * self.kv_heads() * self.head();
        4 * d + 2 * qkv + q + 3 * self.intermediate_size
    }

    /// Floats kept per token until the backward pass. With recompute a block keeps its input, and one block at a time
    /// is whole. Of the inputs that wait on the host two are there at once.
    fn kept_floats(&self, recompute: u64, offload: u64) -> u64 {
        let blocks = self.num_hidden_layers;
        let again = recompute.min(blocks);
        let inputs = again - offload.min(again).saturating_sub(2);
        let kept = inputs * self.hidden_size + (blocks - again).max(1) * self.block_floats();
        // The final norm's input and result, and the gradient that the head's op makes in its forward pass.
        kept + 3 * self.hidden_size
    }

    /// Arithmetic of forward and backward per token: 6 per multiplied parameter, and attention over half a row.
    fn flops_per_token(&self, seq_len: u64) -> u64 {
        let attention = 6 * self.num_hidden_layers * self.num_attention_heads * self.head() * seq_len;
        6 * self.matmul_parameters() + attention
    }
}

fn describe(model: &Model, stage: &Stage) -> Result<String> {
    ensure!(model.num_attention_heads > 0 && model.kv_heads() > 0, "the model has no attention heads");
    let parameters = model.parameters();
    let trainable = stage.adapter_rank.map_or(parameters, |rank| model.adapter_parameters(rank));
    let all = parameters + stage.adapter_rank.map_or(0, |_| trainable);
    let tokens = stage.steps * stage.tokens_per_step;
    let flops = tokens as f64 * model.flops_per_token(stage.seq_len) as f64;
    let (weights, gradients) = (stage.element * all, stage.element * trainable);
    let optimizer = stage.state * trainable;
    let activations = stage.element * stage.tokens_per_micro_batch * model.kept_floats(stage.recompute, stage.offload);
    let checkpoint = stage.element * (if stage.adapter_rank.is_some() { trainable } else { parameters }) + optimizer;
    let offloaded = stage.offload.min(stage.recompute).min(model.num_hidden_layers);
    let inputs = stage.element * stage.tokens_per_micro_batch * model.hidden_size * offloaded;
    let mut rows = vec![
        ("parameters", grouped(parameters)),
        ("trainable", grouped(trainable)),
        ("steps", grouped(stage.steps)),
        ("tokens", format!("{} ({} per step)", grouped(tokens), grouped(stage.tokens_per_step))),
        ("tokens per parameter", format!("{:.1}", tokens as f64 / parameters as f64)),
        ("arithmetic", format!("{flops:.2e} floating-point operations")),
        ("weights", mib(weights)),
        ("gradients", mib(gradients)),
        ("optimizer", mib(optimizer)),
        (
            "activations",
            format!(
                "{} (recompute {})",
                mib(activations),
                match stage.recompute {
                    0 => "off".to_owned(),
                    n if n >= model.num_hidden_layers => "on".to_owned(),
                    n => format!("of {n} blocks"),
                }
            ),
        ),
        ("memory together", mib(weights + gradients + optimizer + activations)),
        ("disk", format!("{} in {} checkpoints", mib(checkpoint * (stage.keep_last + 1)), stage.keep_last + 1)),
    ];
    if inputs > 0 {
        rows.push(("host memory", format!("{} for the inputs of {offloaded} blocks", mib(inputs))));
    }
    Ok(rows.iter().map(|(name, value)| format!("{name:<22}{value}\n")).collect())
}

/// A number with a comma every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", grouped(bytes.div_ceil(1 << 20)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEVEN_B: Model = Model {
        vocab_size: 50_304,
        hidden_size: 4096,
        intermediate_size: 11_008,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: Some(8),
        head_dim: None,
        tie_word_embeddings: false,
    };

    const CONFIG: &str = "\
model = \"runs/demo/init\"
[[phase]]
seq_len = 128
until_step = 10
[[phase]]
seq_len = 512
until_step = 20
[train]
max_steps = 20
tokens_per_step = 4096
tokens_per_micro_batch = 2048
keep_last = 2
recompute = true
";

    #[test]
    fn parameters_are_counted_exactly() {
        // original-system.md, section 1.2: the 7b preset, and the same with the wider MLP.
        assert_eq!(SEVEN_B.parameters(), 6_083_055_616);
        assert_eq!(Model { intermediate_size: 14_336, ..SEVEN_B }.parameters(), 7_391_678_464);
        let tied = Model { tie_word_embeddings: true, ..SEVEN_B };
        assert_eq!(SEVEN_B.parameters() - tied.parameters(), 50_304 * 4096);
        // Rank 1 on every projection is the sum of all their sides.
        assert_eq!(SEVEN_B.adapter_parameters(1), 32 * (8192 + 2 * 5120 + 8192 + 3 * 15_104));
    }

    #[test]
    fn a_stage_is_read_and_described() {
        let stage = stage(&CONFIG.parse().unwrap()).unwrap();
        assert_eq!((stage.seq_len, stage.steps, stage.recompute, stage.adapter_rank), (512, 20, u64::MAX, None));
        let text = describe(&SEVEN_B, &stage).unwrap();
        for want in ["6,083,055,616", "81,920 (4,096 per step)", "23,206 MiB", "recompute on", "3 checkpoints"] {
            assert!(text.contains(want), "{want} in\n{text}");
        }
        let off = describe(&SEVEN_B, &Stage { recompute: 0, ..stage.clone() }).unwrap();
        assert_ne!(off, text);
        let some = describe(&SEVEN_B, &Stage { recompute: 8, ..stage.clone() }).unwrap();
        assert!(some.contains("recompute of 8 blocks"), "{some}");
        // 2048 tokens of 4096 f32 are 32 MiB; two inputs stay.
        let away = describe(&SEVEN_B, &Stage { offload: 32, ..stage.clone() }).unwrap();
        let kept = |stage: &Stage| SEVEN_B.kept_floats(stage.recompute, stage.offload);
        assert_eq!(kept(&stage) - kept(&Stage { offload: 32, ..stage.clone() }), 30 * 4096);
        assert!(away.contains("1,024 MiB for the inputs of 32 blocks") && !text.contains("host memory"), "{away}");
        let adapter = describe(&SEVEN_B, &Stage { adapter_rank: Some(8), ..stage }).unwrap();
        assert!(
            adapter.contains(&format!("trainable             {}", grouped(SEVEN_B.adapter_parameters(8)))),
            "{adapter}"
        );
    }

    #[test]
    fn the_arithmetic_decides_the_bytes() {
        let bytes = |more: &str| {
            let stage = stage(&format!("{CONFIG}{more}").parse().unwrap()).unwrap();
            (stage.element, stage.state)
        };
        assert_eq!(bytes(""), (4, 8));
        assert_eq!(bytes("precision = 'bf16'"), (2, 10));
        assert_eq!(bytes("precision = 'fp8'\nmoments = '8bit'"), (2, 4));
        assert_eq!(bytes("precision = 'bf16'\nmaster = 'stochastic'\nmoments = '8bit'"), (2, 2));
    }

    #[test]
    fn the_keys_tell_the_program() {
        for (text, want) in [
            (CONFIG, ("stage-pretrain", None)),
            ("beta = 0.1", ("stage-dpo", None)),
            ("seq_len = 1\n[adapter]", ("stage-lora", None)),
            ("seq_len = 1", ("stage-sft", None)),
            ("[sources]\n[adapter]", ("moe-agent", Some("adapter"))),
            ("adapter_run = 'x'\n[sources]", ("moe-agent", Some("core-agent"))),
            ("beta = 0.1\n[adapter]", ("moe-agent", Some("ipo"))),
            ("group_size = 8\n[adapter]", ("moe-agent", Some("grpo"))),
        ] {
            assert_eq!(program(&text.parse().unwrap()), want, "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (line, want) in [
            ("max_steps = 20\n", "`max_steps`"),
            ("tokens_per_step = 4096\n", "`tokens_per_step`"),
            ("seq_len = 512\n", "`seq_len`"),
            ("[train]\n", "no table `train`"),
        ] {
            let message = format!("{:#}", stage(&CONFIG.replace(line, "").parse().unwrap()).unwrap_err());
            assert!(message.contains(want), "{line}: {message}");
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([grouped(7), grouped(999), grouped(1000), grouped(12_345_678)], ["7", "999", "1,000", "12,345,678"]);
    }
}
