//! What a training run needs of a device's memory, before anything of it is allocated.

use std::fmt;
use std::path::PathBuf;

use kernels_cubecl::DeviceMemory;
use model_core::generate::ROWS_PER_BATCH;
use model_core::hf::{LeafMap, PackedExperts, leaf_map, read_config};
use model_core::{LoraConfig, ModelConfig, Replay};

use super::step::{AdapterShape, Head, Shapes, StepMemory, replay};
use crate::config::{Arithmetic, MasterKind, MomentsKind};
use crate::scaling::planned_bytes;
use crate::{TrainConfig, TrainError};

/// The device's context, its kernels and the workspace of the matrix library: measured on an H100, where it is what the
/// driver counts beyond the buffers of a run, within some MiB for models from 125M to 7B parameters.
const LIBRARIES: u64 = 625 << 20;
/// Parameters that share the scales of 8-bit moments.
const MOMENT_BLOCK: u64 = 256;

/// What a stage trains, as far as its memory goes.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Folder of the model.
    pub model_dir: PathBuf,
    /// Settings of the loop.
    pub train: TrainConfig,
    /// How the loss reads the hidden states.
    pub head: Head,
    /// Adapters, where only they train.
    pub adapter: Option<AdapterWorkload>,
    /// What it holds to sample, where it does.
    pub sampling: Option<SamplingWorkload>,
}

/// What a stage that samples holds besides what its updates need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplingWorkload {
    /// Sequences that are asked for at a time.
    pub rows: usize,
    /// Tokens of the longest, its prompt included.
    pub max_len: usize,
    /// Whether the policy is measured against the weights of the start; an adapter leaves those alone, and they cost nothing.
    pub reference: bool,
}

/// Adapters as a stage is configured.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterWorkload {
    /// Settings; counted as if every projection outside experts had an adapter of their largest rank, and every projection
    /// of experts one of the largest among those.
    pub lora: LoraConfig,
    /// Whether the rank of experts is divided by their number.
    pub divide_by_experts: bool,
    /// How the frozen weights of experts are kept.
    pub packed_experts: PackedExperts,
}

impl AdapterWorkload {
    /// The settings on a model.
    ///
    /// # Errors
    /// Settings that do not fit the model.
    pub fn lora_for(&self, model: &ModelConfig) -> Result<LoraConfig, TrainError> {
        let lora = self.lora.clone();
        Ok(if self.divide_by_experts { lora.divided_by_experts(model)? } else { lora })
    }

    fn shape(&self, model: &ModelConfig) -> Result<AdapterShape, TrainError> {
        let lora = self.lora_for(model)?;
        let [rank, expert_rank] = lora.largest_ranks(model)?.map(|r| r as u64);
        let (dropout, packed_experts) = (lora.dropout > 0.0, self.packed_experts);
        Ok(AdapterShape { rank, expert_rank, dropout, packed_experts })
    }
}

/// Bytes of a run on a device by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Parameters in the type of the run.
    pub weights: u64,
    /// What is missing to the exact f32 values of bf16 weights.
    pub remainder: u64,
    /// The optimizer's moments.
    pub moments: u64,
    /// Peaks of earlier FP8 passes.
    pub histories: u64,
    /// Summed gradients.
    pub gradients: u64,
    /// What the graph keeps between forward and backward, the head's gradients included.
    pub activations: u64,
    /// Buffers that live for one op: the chunk of logits before all.
    pub passing: u64,
    /// What gradients, activations and passing buffers have in common, because the pool gives a freed buffer to the next one
    /// of its size.
    pub shared: u64,
    /// Weights of the start, where the policy is measured against them and all weights train.
    pub reference: u64,
    /// Keys and values of the sequences that are sampled together. What is sampled has other sizes each time, so that a pool
    /// shares none of it with the updates, and may come to hold more.
    pub cache: u64,
    /// Context, kernels, workspace.
    pub libraries: u64,
    /// Pinned in the host's memory for the inputs of offloaded blocks; no part of the total, which is the device's.
    pub host: u64,
    /// Offloaded blocks.
    pub offloaded: u64,
    /// Pinned in the host's memory for the copy that a checkpoint is written from; where the host has too little for it, the run
    /// waits while a save copies.
    pub saved: u64,
}

impl MemoryPlan {
    /// The plan of a workload for a model.
    pub fn new(model: &ModelConfig, train: &TrainConfig, head: Head, adapter: Option<AdapterShape>) -> Self {
        let half = train.precision != Arithmetic::F32;
        let element = if half { 2 } else { 4 };
        let adapters = adapter.map_or(0, |adapter| adapter_params(model, &adapter));
        let all = model.n_params() + adapters;
        let trainable = if adapter.is_some() { adapters } else { all };
        let Replay { blocks, offloaded, .. } = train.replay(model.n_layers);
        let shapes = Shapes {
            element,
            fp8: train.precision == Arithmetic::Fp8,
            tokens: train.tokens_per_micro_batch,
            recomputed: blocks as u64,
            offloaded: offloaded as u64,
            accumulate: train.tokens_per_step > train.tokens_per_micro_batch,
            head,
            adapter,
        };
        let StepMemory { gradients, kept, apart, together } = replay(model, &shapes);
        let remainder = if half && train.master == MasterKind::Remainder { 2 * trainable } else { 0 };
        let moments = match train.moments {
            MomentsKind::Full => 8 * trainable,
            MomentsKind::Packed => 2 * (trainable + 4 * trainable.div_ceil(MOMENT_BLOCK)),
        };
        let packed = adapter.map_or(PackedExperts::No, |adapter| adapter.packed_experts);
        Self {
            weights: all * element - packing_saves(model, element, packed),
            remainder,
            moments,
            histories: planned_bytes(model, train),
            gradients,
            activations: kept,
            passing: apart.saturating_sub(gradients + kept),
            shared: (gradients + kept).max(apart) - together,
            reference: 0,
            cache: 0,
            libraries: LIBRARIES,
            host: offloaded_bytes(model, train),
            offloaded: shapes.offloaded,
            saved: trainable * element + remainder + moments,
        }
    }

    /// The plan of a run that samples too, with elements of this many bytes.
    fn sampling(self, model: &ModelConfig, element: u64, sampling: &SamplingWorkload, adapter: bool) -> Self {
        let tokens = sampling.rows.min(ROWS_PER_BATCH) * sampling.max_len.min(model.max_seq_len);
        let cache = 2 * (tokens * model.heads().kv_width() * model.n_layers) as u64 * element;
        Self { cache, reference: if sampling.reference && !adapter { self.weights } else { 0 }, ..self }
    }

    /// Everything together on the device.
    pub fn total(&self) -> u64 {
        let step = self.gradients + self.activations + self.passing - self.shared;
        let sampling = self.reference + self.cache;
        self.weights + self.remainder + self.moments + self.histories + step + sampling + self.libraries
    }

    /// The plan, where the host has memory enough for its part; where it does not say how much it has, it has.
    ///
    /// # Errors
    /// [`TrainError::NoHostMemory`] with how many blocks would fit.
    pub fn require_host(self, available: Option<u64>) -> Result<Self, TrainError> {
        match available {
            Some(available) if available < self.host => {
                let block = self.host / self.offloaded.max(1);
                Err(TrainError::NoHostMemory { needed: self.host, available, fit: available / block.max(1) })
            }
            _ => Ok(self),
        }
    }
}

impl Workload {
    /// The plan for the model in the folder.
    ///
    /// # Errors
    /// A folder without a readable configuration.
    pub fn plan(&self) -> Result<MemoryPlan, TrainError> {
        self.plan_for(&read_config(&self.model_dir)?, &self.train)
    }

    fn plan_for(&self, model: &ModelConfig, train: &TrainConfig) -> Result<MemoryPlan, TrainError> {
        let adapter = self.adapter.as_ref().map(|adapter| adapter.shape(model)).transpose()?;
        let plan = MemoryPlan::new(model, train, self.head, adapter);
        let element = if train.precision == Arithmetic::F32 { 4 } else { 2 };
        Ok(match &self.sampling {
            Some(sampling) => plan.sampling(model, element, sampling, self.adapter.is_some()),
            None => plan,
        })
    }

    /// The plan, where the device has memory enough for it, and the host for its part.
    ///
    /// # Errors
    /// [`TrainError::NoDeviceMemory`] with what would need less, when the device has too little; as
    /// [`MemoryPlan::require_host`]; as [`Workload::plan`].
    pub fn require(&self, memory: DeviceMemory, host: Option<u64>) -> Result<MemoryPlan, TrainError> {
        self.require_for(&read_config(&self.model_dir)?, memory)?.require_host(host)
    }

    fn require_for(&self, model: &ModelConfig, memory: DeviceMemory) -> Result<MemoryPlan, TrainError> {
        let plan = self.plan_for(model, &self.train)?;
        if plan.total() <= memory.free {
            return Ok(plan);
        }
        let plan_of = |(what, train): (String, TrainConfig)| Ok((what, self.plan_for(model, &train)?.total()));
        let cheaper = cheaper(&self.train).into_iter().map(plan_of).collect::<Result<Vec<_>, TrainError>>()?;
        let advice: Vec<String> = cheaper
            .into_iter()
            .filter(|(_, needs)| *needs < plan.total())
            .map(|(what, needs)| format!("{what} needs {}", gib(needs)))
            .collect();
        let advice = match &advice[..] {
            [] => "use a device with more memory or a smaller model".to_owned(),
            some => some.join(", "),
        };
        Err(TrainError::NoDeviceMemory { plan: Box::new(plan), free: memory.free, advice })
    }
}

/// Settings that need less memory, one change each.
fn cheaper(train: &TrainConfig) -> Vec<(String, TrainConfig)> {
    let half = train.tokens_per_micro_batch / 2;
    vec![
        ("precision = \"bf16\"".to_owned(), TrainConfig { precision: Arithmetic::Bf16, ..train.clone() }),
        ("moments = \"8bit\"".to_owned(), TrainConfig { moments: MomentsKind::Packed, ..train.clone() }),
        ("recompute = true".to_owned(), TrainConfig { recompute: true.into(), ..train.clone() }),
        (
            "recompute = true with offload = true".to_owned(),
            TrainConfig { recompute: true.into(), offload: true.into(), ..train.clone() },
        ),
        (
            format!("tokens_per_micro_batch = {half}"),
            TrainConfig { tokens_per_micro_batch: half.max(1), ..train.clone() },
        ),
    ]
}

/// Bytes of the host's memory that the inputs of offloaded blocks need.
pub(crate) fn offloaded_bytes(model: &ModelConfig, train: &TrainConfig) -> u64 {
    let element = if train.precision == Arithmetic::F32 { 4 } else { 2 };
    train.replay(model.n_layers).offloaded as u64 * train.tokens_per_micro_batch * model.d_model as u64 * element
}

/// Parameters of an adapter on every projection.
fn adapter_params(model: &ModelConfig, adapter: &AdapterShape) -> u64 {
    let sides = |map: LeafMap| match (map.n_experts, &map.dims[..]) {
        (Some(n), [rows, columns]) => adapter.expert_rank * (rows + n * columns) as u64,
        // Each part of a fused projection has an adapter of its own.
        (None, [rows, columns]) => adapter.rank * (rows + map.parts.len() * columns) as u64,
        _ => 0,
    };
    let is_projection = |map: &LeafMap| map.leaf.starts_with("model.layers.") && !map.leaf.contains(".router.");
    leaf_map(model).into_iter().filter(is_projection).map(sides).sum()
}

/// Bytes that packed experts take less than in `element` bytes; every row's scales fill whole words.
fn packing_saves(model: &ModelConfig, element: u64, packed: PackedExperts) -> u64 {
    let one = |map: LeafMap| match (map.n_experts, &map.dims[..]) {
        (Some(_), &[rows, columns]) => {
            let whole = columns as u64 * element;
            let packed = match packed {
                PackedExperts::No => whole,
                PackedExperts::Mxfp4 => (columns / 2 + columns.div_ceil(128) * 4) as u64,
                PackedExperts::Fp8 => columns as u64 + 4,
            };
            rows as u64 * (whole - packed)
        }
        _ => 0,
    };
    leaf_map(model).into_iter().map(one).sum()
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1u32 << 30))
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "memory plan: {}", gib(self.total()))?;
        for (sign, name, bytes) in [
            (' ', "weights", self.weights),
            (' ', "remainder to f32", self.remainder),
            (' ', "moments", self.moments),
            (' ', "FP8 histories", self.histories),
            (' ', "gradients", self.gradients),
            (' ', "activations", self.activations),
            (' ', "passing buffers", self.passing),
            ('-', "shared by the three", self.shared),
            (' ', "reference", self.reference),
            (' ', "cache of sampling", self.cache),
            (' ', "context and libraries", self.libraries),
        ] {
            if bytes > 0 {
                writeln!(f, "  {name:<22}{sign}{}", gib(bytes))?;
            }
        }
        if self.host > 0 {
            writeln!(f, "host memory: {} pinned for the inputs of {} blocks", gib(self.host), self.offloaded)?;
        }
        writeln!(f, "host memory: {} pinned for checkpoints, where there is enough of it", gib(self.saved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Blocks, Fp8Scaling, HistoryLength};
    use crate::tests::tiny;

    const CASES: [(&str, Arithmetic, MomentsKind, u64, f64); 9] = {
        use Arithmetic::{Bf16, F32, Fp8};
        use MomentsKind::{Full, Packed};
        [
            ("7b", Bf16, Packed, 1, 52.05),
            ("7b-wide", Bf16, Packed, 1, 61.93),
            ("7b-wide", Bf16, Packed, 4, 75.21),
            ("1b", Bf16, Packed, 1, 16.36),
            ("7b", Fp8, Packed, 1, 53.27),
            ("7b-wide", Fp8, Packed, 4, 73.49),
            ("125m", Bf16, Full, 1, 4.74),
            ("125m", Bf16, Packed, 4, 3.99),
            ("125m", F32, Full, 1, 6.27),
        ]
    };

    fn settings(precision: Arithmetic, moments: MomentsKind, micro_batches: u64) -> TrainConfig {
        let tokens = 4096;
        TrainConfig {
            precision,
            moments,
            tokens_per_micro_batch: tokens,
            tokens_per_step: tokens * micro_batches,
            ..tiny::config(10)
        }
    }

    fn plan(model: &ModelConfig, train: &TrainConfig) -> MemoryPlan {
        MemoryPlan::new(model, train, Head::CrossEntropy, None)
    }

    /// The reference is a copy only where all weights train; no more rows are sampled together than one batch has.
    #[test]
    fn sampling_needs_its_cache_and_what_it_is_measured_against() {
        let model = ModelConfig::preset("125m").unwrap();
        let train = settings(Arithmetic::Bf16, MomentsKind::Full, 1);
        let bytes = |sampling, adapter| {
            let lora = all_linear(8);
            let adapter = Some(AdapterWorkload { lora, divide_by_experts: false, packed_experts: PackedExperts::No })
                .filter(|_| adapter);
            let workload =
                Workload { model_dir: PathBuf::new(), train: train.clone(), head: Head::Logprobs, adapter, sampling };
            let plan = workload.plan_for(&model, &train).unwrap();
            (plan.total(), plan.reference, plan.cache)
        };
        let some = |rows, max_len, reference| Some(SamplingWorkload { rows, max_len, reference });
        let row = 2 * 2 * (model.n_layers * model.heads().kv_width()) as u64;
        let weights = 2 * model.n_params();
        for (adapter, copy) in [(false, weights), (true, 0)] {
            let (plain, ..) = bytes(None, adapter);
            let cache = 48 * 512 * row;
            assert_eq!(bytes(some(48, 512, true), adapter), (plain + copy + cache, copy, cache));
            assert_eq!(bytes(some(48, 512, false), adapter), (plain + cache, 0, cache));
            let full = ROWS_PER_BATCH as u64 * model.max_seq_len as u64 * row;
            assert_eq!(bytes(some(1000, usize::MAX, false), adapter), (plain + full, 0, full));
        }
    }

    /// What `perf train` measured on an H100 with 80 GB, everything in use included: GiB with 4 rows of 1024 tokens.
    #[test]
    fn the_plan_is_what_was_measured() {
        for (name, precision, moments, micro_batches, measured) in CASES {
            let model = ModelConfig::preset(name).unwrap();
            let plan = plan(&model, &settings(precision, moments, micro_batches));
            let planned = plan.total() as f64 / f64::from(1u32 << 30);
            assert!((planned / measured - 1.0).abs() < 0.05, "{name} {precision:?}: measured {measured} GiB\n{plan}");
        }
    }

    /// The same of adapters of rank 16 on GPT-OSS-20B: packed, tokens, recomputed, GiB.
    #[test]
    fn the_plan_of_experts_is_what_was_measured() {
        let model = ModelConfig::preset("gpt-oss-20b").unwrap();
        for (packed_experts, tokens, recompute, measured) in [
            (PackedExperts::No, 4096, false, 56.08),
            (PackedExperts::Mxfp4, 4096, false, 30.83),
            (PackedExperts::No, 8192, false, 70.52),
            (PackedExperts::Mxfp4, 8192, true, 19.71),
            (PackedExperts::No, 32_768, true, 54.77),
            (PackedExperts::Mxfp4, 32_768, true, 29.49),
        ] {
            let train = TrainConfig {
                tokens_per_micro_batch: tokens,
                tokens_per_step: tokens,
                recompute: recompute.into(),
                ..settings(Arithmetic::Bf16, MomentsKind::Packed, 1)
            };
            let adapter = AdapterShape { rank: 16, expert_rank: 16, dropout: false, packed_experts };
            let plan = MemoryPlan::new(&model, &train, Head::CrossEntropy, Some(adapter));
            let planned = plan.total() as f64 / f64::from(1u32 << 30);
            assert!(
                (planned / measured - 1.0).abs() < 0.05,
                "{packed_experts:?}, {tokens}: measured {measured} GiB\n{plan}"
            );
        }
    }

    #[test]
    fn parts_are_exact_where_they_are_counts() {
        let model = ModelConfig::preset("7b").unwrap();
        let n = model.n_params();
        let with = |train: &TrainConfig| plan(&model, train);
        let base = settings(Arithmetic::Bf16, MomentsKind::Packed, 4);
        let planned = with(&base);
        assert_eq!((planned.weights, planned.remainder, planned.gradients), (2 * n, 2 * n, 2 * n));
        assert_eq!(planned.moments, 2 * n + 8 * n.div_ceil(256));
        assert_eq!(planned.saved, 4 * n + planned.moments);
        assert_eq!(planned.shared, 0, "later micro-batches find all gradients there");
        let stochastic = with(&TrainConfig { master: MasterKind::Stochastic, ..base.clone() });
        assert_eq!((stochastic.remainder, planned.total() - stochastic.total()), (0, 2 * n));
        let full = with(&TrainConfig { precision: Arithmetic::F32, moments: MomentsKind::Full, ..base });
        assert_eq!((full.weights, full.remainder, full.moments, full.gradients), (4 * n, 0, 8 * n, 4 * n));
    }

    #[test]
    fn histories_are_counted_and_are_next_to_nothing() {
        let model = ModelConfig::preset("7b").unwrap();
        let current = settings(Arithmetic::Fp8, MomentsKind::Packed, 4);
        let fp8_history = HistoryLength(100);
        let delayed = TrainConfig { fp8_scaling: Fp8Scaling::Delayed, fp8_history, ..current.clone() };
        let [current, delayed] = [current, delayed].map(|train| plan(&model, &train));
        assert_eq!((current.histories, delayed.histories), (0, 3 * 4 * 3 * 100 * 4 * model.n_layers as u64));
        assert_eq!(delayed.total() - current.total(), delayed.histories);
        assert!(delayed.histories < 1 << 20);
    }

    fn all_linear(r: usize) -> LoraConfig {
        let targets = vec!["all-linear".to_owned()];
        LoraConfig { r, alpha: 16.0, dropout: 0.0, rslora: false, targets, rank_pattern: Default::default() }
    }

    /// Attention and experts of GPT-OSS-20B, from their shapes alone.
    #[test]
    fn the_plan_counts_the_adapter_that_will_be_attached() {
        let model = ModelConfig::preset("gpt-oss-20b").unwrap();
        let train = settings(Arithmetic::Bf16, MomentsKind::Full, 1);
        let of = |lora: &LoraConfig, divide_by_experts| {
            let adapter =
                AdapterWorkload { lora: lora.clone(), divide_by_experts, packed_experts: PackedExperts::Mxfp4 };
            let want = adapter.lora_for(&model).unwrap().n_params(&model).unwrap();
            let head = Head::CrossEntropy;
            let workload = Workload {
                model_dir: PathBuf::new(),
                train: train.clone(),
                head,
                adapter: Some(adapter),
                sampling: None,
            };
            let plan = workload.plan_for(&model, &train).unwrap();
            assert_eq!((plan.gradients, plan.moments, plan.remainder), (2 * want, 8 * want, 2 * want));
            (want, plan.total())
        };
        let (same, all) = of(&all_linear(64), false);
        assert_eq!(same, 31_850_496 + 707_788_800);
        assert_eq!(of(&all_linear(128), false).0, 1_479_278_592);
        let experts = [("gate_up_proj", 16), ("down_proj", 16)].map(|(name, r)| (name.to_owned(), r));
        let (smaller, less) = of(&LoraConfig { rank_pattern: experts.into(), ..all_linear(64) }, false);
        assert_eq!(smaller, 31_850_496 + 176_947_200);
        let (divided, least) = of(&all_linear(64), true);
        assert_eq!(divided, 31_850_496 + 707_788_800 / 32);
        assert!(least < less && less < all);
        assert!(of(&all_linear(4), true).0 > 1_990_656, "a rank is never 0");
    }

    /// The head always works in chunks; there is no option that would turn it off, and none that excludes another.
    #[test]
    fn s13_logits_are_never_there_as_a_whole() {
        let model = ModelConfig::preset("gpt-oss-20b").unwrap();
        for (head, precision) in [(Head::CrossEntropy, Arithmetic::Bf16), (Head::Logprobs, Arithmetic::F32)] {
            let train = settings(precision, MomentsKind::Full, 1);
            let train =
                TrainConfig { tokens_per_step: 8192, tokens_per_micro_batch: 8192, recompute: true.into(), ..train };
            // The head stays as it is, so that its gradient, which grows with the vocabulary, is not there.
            let adapter =
                AdapterShape { rank: 8, expert_rank: 8, dropout: false, packed_experts: PackedExperts::Mxfp4 };
            let passing = |vocab_size| {
                let model = ModelConfig { vocab_size, ..model.clone() };
                MemoryPlan::new(&model, &train, head, Some(adapter)).passing
            };
            let (one, four) = (passing(model.vocab_size), passing(4 * model.vocab_size));
            let more_logits = 3 * 8192 * model.vocab_size as u64 * 4;
            assert!(four.abs_diff(one) < more_logits / 100, "{head:?}: {one} and {four}, whole logits {more_logits}");
        }
        let keys = serde_json::to_value(tiny::config(1)).unwrap();
        for key in keys.as_object().unwrap().keys() {
            let about_the_head = ["chunk", "fused", "liger", "cce", "logits"].iter().any(|word| key.contains(word));
            assert!(!about_the_head, "`{key}` chooses what must not be a choice");
        }
    }

    #[test]
    fn adapters_have_gradients_and_moments_of_their_own_size_only() {
        let model = ModelConfig::preset("125m").unwrap();
        let train = settings(Arithmetic::Bf16, MomentsKind::Full, 1);
        let adapter = |dropout| {
            MemoryPlan::new(
                &model,
                &train,
                Head::CrossEntropy,
                Some(AdapterShape { rank: 8, expert_rank: 0, dropout, packed_experts: PackedExperts::No }),
            )
        };
        let n = all_linear(8).n_params(&model).unwrap();
        let plain = adapter(false);
        assert_eq!((plain.gradients, plain.moments, plain.remainder), (2 * n, 8 * n, 2 * n));
        assert_eq!(plain.saved, 12 * n, "nothing of the base");
        assert!(plain.total() < plan(&model, &train).total() && plain.total() < adapter(true).total());
        let preference = MemoryPlan::new(&model, &train, Head::Logprobs, None);
        assert!(preference.total() > 3 << 30, "{preference}");
    }

    #[test]
    fn a_mixture_of_experts_is_counted_to_the_last_parameter() {
        let model = ModelConfig::preset("gpt-oss-20b").unwrap();
        let train = settings(Arithmetic::Bf16, MomentsKind::Packed, 1);
        let n = model.n_params();
        let full = plan(&model, &train);
        assert_eq!((full.weights, full.gradients), (2 * n, 2 * n));
        let adapter = |rank, packed_experts| {
            let adapter = AdapterShape { rank, expert_rank: rank, dropout: false, packed_experts };
            MemoryPlan::new(&model, &train, Head::CrossEntropy, Some(adapter))
        };
        let of_adapter = 184_909_824;
        assert_eq!(all_linear(16).n_params(&model).unwrap(), of_adapter);
        assert_eq!(
            (adapter(16, PackedExperts::No).weights, adapter(16, PackedExperts::No).gradients),
            (2 * (n + of_adapter), 2 * of_adapter)
        );
        // 13.76 GB are the released files, whose scales are not padded: a row of 90 has 23 words.
        let padding = 24 * 32 * (5760 + 2880) * (23 * 4 - 90);
        assert_eq!(adapter(16, PackedExperts::Mxfp4).weights, 13_761_264_768 + 2 * of_adapter + padding);
        let in_fp8 = 2 * 1_804_459_584 + 19_110_297_600 + 24 * 32 * (5760 + 2880) * 4;
        assert_eq!(adapter(16, PackedExperts::Fp8).weights, in_fp8 + 2 * of_adapter);
        let again = MemoryPlan::new(&model, &TrainConfig { recompute: true.into(), ..train }, Head::CrossEntropy, None);
        assert!(again.activations < full.activations / 4, "{again}");
    }

    #[test]
    fn too_little_memory_is_an_error_that_says_what_to_change() {
        let model = ModelConfig::preset("7b-wide").unwrap();
        let train = settings(Arithmetic::Bf16, MomentsKind::Full, 4);
        let workload = Workload {
            model_dir: PathBuf::new(),
            train: train.clone(),
            head: Head::CrossEntropy,
            adapter: None,
            sampling: None,
        };
        let check = |free: u64| workload.require_for(&model, DeviceMemory { free, total: 80 << 30 });
        let error = check(79 << 30).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let text = error.to_string();
        for want in [
            "8bit",
            "recompute = true needs",
            "offload = true needs",
            "tokens_per_micro_batch = 2048",
            "moments",
            "bytes of device memory",
        ] {
            assert!(text.contains(want), "{want} in {text}");
        }
        assert!(!text.contains("bf16"), "it is bf16 already: {text}");
        let enough = plan(&model, &train);
        assert_eq!(check(enough.total()).unwrap(), enough);
    }

    /// Recomputing must leave one block's activations and the blocks' inputs.
    #[test]
    fn recomputing_keeps_the_inputs_of_the_blocks() {
        let model = ModelConfig::preset("7b").unwrap();
        let train = settings(Arithmetic::Bf16, MomentsKind::Packed, 4);
        let (kept, again) =
            (plan(&model, &train), plan(&model, &TrainConfig { recompute: true.into(), ..train.clone() }));
        let stream = 4096 * 4096 * 2;
        assert!(again.activations < kept.activations / 8, "{again}");
        assert!(again.activations > 32 * stream, "{again}");
        assert!(again.total() < kept.total());
        // Block by block the kept activations shrink; the last one has to be whole once more in any case.
        let first = |n| plan(&model, &TrainConfig { recompute: Blocks::First(n), ..train.clone() });
        assert_eq!((first(0), first(32), first(99)), (kept, again, again));
        let activations: Vec<u64> = (0..=32).map(|n| first(n).activations).collect();
        assert!(activations.windows(2).all(|pair| pair[1] < pair[0]), "{activations:?}");
    }
    /// Offloading must leave none of the inputs on the device between the passes, and two of them at most in the backward pass.
    #[test]
    fn offloading_moves_the_inputs_of_the_blocks_to_the_host() {
        let model = ModelConfig::preset("7b").unwrap();
        let tokens = 32_768;
        let train = TrainConfig {
            recompute: true.into(),
            tokens_per_micro_batch: tokens,
            tokens_per_step: 2 * tokens,
            ..settings(Arithmetic::Bf16, MomentsKind::Packed, 1)
        };
        let stream = tokens * 4096 * 2;
        let first = |n| plan(&model, &TrainConfig { offload: Blocks::First(n), ..train.clone() });
        let (kept, all) = (first(0), first(32));
        assert_eq!((kept.host, all.host, all.offloaded), (0, 32 * stream, 32));
        assert_eq!(kept.activations - all.activations, 32 * stream);
        let saved = kept.total() - all.total();
        assert!((30 * stream..=32 * stream).contains(&saved), "saved {saved} of {}\n{all}", 32 * stream);
        for n in 1..=32 {
            let (fewer, more) = (first(n - 1), first(n));
            assert_eq!(fewer.activations - more.activations, stream, "{n}");
            assert!(more.total() <= fewer.total(), "{n}: {} and {}", fewer.total(), more.total());
        }
        let text = all.to_string();
        assert!(text.contains("host memory: 8.00 GiB pinned for the inputs of 32 blocks"), "{text}");
        assert!(!kept.to_string().contains("inputs"));
    }

    #[test]
    fn too_little_host_memory_is_an_error_that_says_what_fits() {
        let model = ModelConfig::preset("125m").unwrap();
        let train = TrainConfig {
            recompute: true.into(),
            offload: true.into(),
            ..settings(Arithmetic::Bf16, MomentsKind::Packed, 1)
        };
        let planned = plan(&model, &train);
        let block = planned.host / planned.offloaded;
        let error = planned.require_host(Some(planned.host - 1)).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let fit = format!("offload = {}", planned.offloaded - 1);
        let text = error.to_string();
        assert!(text.contains(&fit) && text.contains("bytes of host memory"), "{text}");
        assert!(planned.require_host(Some(block / 2)).unwrap_err().to_string().contains("offload = 0"));
        for enough in [Some(planned.host), None] {
            assert_eq!(planned.require_host(enough).unwrap(), planned);
        }
        assert!(plan(&model, &TrainConfig { offload: false.into(), ..train }).require_host(Some(0)).is_ok());
    }
}
