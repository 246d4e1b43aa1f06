//! The objective: rollouts before a step, the policy loss in it, bounds after it.

use std::cell::RefCell;
use std::io::Write;

use burn::backend::Autodiff;
use data_pipeline::Order;
use kernels_cubecl::LmBackend;
use model_core::{Decoder, Harmony, Replay};
use trainer::objective::{
    LossSum, MetricSum, Objective, Policy, RATIO_BEYOND, RATIO_DEVIATION, SAMPLER_BEYOND, SAMPLER_DEVIATION, Sampled,
    advantages, deviation, has_spread, sample_logprobs,
};
use trainer::{MicroBatch, TrainError};

use super::GrpoConfig;
use super::batches::{Packed, Shape, pack};
use super::record::{Group, Rollout, SampleRecord};
use crate::rollout::{
    Ask, Ending, Engine, Episode, Level, Play, RolloutError, Stopwatch, World, Worth, episode_number,
};

/// Share of tokens whose sampler's log-probability may be out of bounds.
const MAX_BEYOND: f64 = 0.05;
/// File of a stage with the speed of its rollouts, one line each.
const TIMING_FILE: &str = "rollout-timing.jsonl";

/// Policy optimisation whose data the model samples itself.
pub struct GrpoObjective<'a, B: LmBackend> {
    config: &'a GrpoConfig,
    policy: Policy,
    harmony: Harmony<'a>,
    world: &'a dyn World,
    reference: Option<Decoder<B>>,
    order: Order,
    shape: Shape,
    state: RefCell<State>,
}

/// What a rollout leaves for the updates that use it.
#[derive(Debug, Default)]
struct State {
    rollout: Option<Rollout>,
    /// Rollouts in a row without anything to learn from.
    idle: u64,
}

impl<'a, B: LmBackend> GrpoObjective<'a, B> {
    /// The objective of a run over `world`; `pad` fills rows, `reference` is the model that the policy is measured against.
    ///
    /// # Errors
    /// Keys out of range, a missing reference, a world without tasks.
    pub fn new(
        config: &'a GrpoConfig,
        harmony: Harmony<'a>,
        pad: u32,
        world: &'a dyn World,
        reference: Option<Decoder<B>>,
    ) -> Result<Self, TrainError> {
        config.check()?;
        trainer::config::require(reference.is_some() || !config.needs_reference(), || {
            "key `kl.monitor`: expected a reference model, since it or `loss.beta` asks for one".into()
        })?;
        let n_tasks = world.ids().len();
        trainer::config::require(n_tasks > 0, || "key `tasks`: expected at least one task, got none".into())?;
        let (_, rows) = config.train.rows(config.seq_len)?;
        Ok(Self {
            policy: config.policy(),
            order: Order::new(config.train.seed, n_tasks),
            shape: Shape { seq_len: config.seq_len, rows, pad },
            state: RefCell::default(),
            reference: reference.filter(|_| config.needs_reference()),
            config,
            harmony,
            world,
        })
    }

    /// Episodes with what they are worth, group after group, for the step that follows `step` completed ones.
    fn play(&self, model: &Decoder<B>, step: u64) -> Result<(Vec<Episode>, Vec<Worth>), RolloutError> {
        let GrpoConfig { prompts_per_step, group_size, sampling, train, .. } = self.config;
        let tasks = self.order.indices(step / self.config.iterations, *prompts_per_step);
        let ask = |(slot, &task): (usize, &usize)| {
            let id = &self.world.ids()[task];
            (0..*group_size).map(move |i| {
                let sample = (slot * group_size + i) as u64;
                let temperature = sampling.temperature;
                Ask { task, sample, number: episode_number(step, id, sample), temperature }
            })
        };
        let asks: Vec<Ask> = tasks.iter().enumerate().flat_map(ask).collect();
        let play = Play {
            seed: train.seed,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            max_new_tokens: self.config.max_new_tokens.at(step) as usize,
            max_turns: self.config.max_turns.at(step),
            max_len: self.config.seq_len,
            jobs: self.config.judge.jobs,
        };
        let clock = Stopwatch::start();
        let episodes = Engine { harmony: self.harmony, tasks: self.world, play }.play(model, &asks)?;
        let played = clock.seconds();
        let worth = self.world.worth(&episodes, episode_number(step, "judge", train.seed))?;
        self.note_speed(step, &episodes, played, clock.seconds() - played)?;
        Ok((episodes, worth))
    }

    /// Adds a line about the speed of a rollout.
    fn note_speed(&self, step: u64, episodes: &[Episode], played: f64, judged: f64) -> Result<(), RolloutError> {
        let path = self.config.dir.join(TIMING_FILE);
        let tokens: usize = episodes.iter().map(Episode::n_sampled).sum();
        let line = serde_json::json!({
            "step": step, "episodes": episodes.len(), "sampled_tokens": tokens, "play_s": played, "judge_s": judged,
            "tokens_per_s": tokens as f64 / played.max(1e-9),
        });
        std::fs::create_dir_all(&self.config.dir).map_err(RolloutError::io("create", &self.config.dir))?;
        let file = std::fs::File::options().create(true).append(true).open(&path);
        file.and_then(|mut file| writeln!(file, "{line}")).map_err(RolloutError::io("write", &path))
    }

    /// A rollout with its advantages and the log-probabilities of what is learnt from.
    fn roll_out(
        &self,
        model: &Decoder<B>,
        step: u64,
        device: &B::Device,
    ) -> Result<(Rollout, Vec<MetricSum>), TrainError> {
        let (episodes, worth) = self.play(model, step)?;
        // The caches of the rollout are of other sizes than anything in training.
        B::memory_cleanup(device);
        let size = self.config.group_size;
        let rewards: Vec<Vec<f64>> = worth.chunks(size).map(|g| g.iter().filter_map(|w| w.reward).collect()).collect();
        let metrics = metrics(&episodes, &worth, &rewards);
        let advantages = advantages(&rewards, self.config.loss.scale);
        let mut groups = Vec::new();
        for (g, values) in advantages.into_iter().enumerate() {
            let range = g * size..(g + 1) * size;
            let mut values = values.into_iter();
            let record = |(episode, worth): (&Episode, &Worth)| {
                let prompt = episode.sampled.iter().position(|on| *on).unwrap_or(0);
                let mut record = SampleRecord::new(episode, worth, self.harmony.decode(&episode.ids[prompt..]));
                if worth.reward.is_some() {
                    record.advantage = values.next().unwrap_or(0.0) as f32;
                }
                record
            };
            let samples = episodes[range.clone()].iter().zip(&worth[range.clone()]).map(record).collect();
            let task = self.world.ids()[episodes[range.start].task].clone();
            groups.push(Group { task, kept: has_spread(&rewards[g]), samples });
        }
        let mut rollout = Rollout::new(step, groups);
        self.score(&mut rollout, model, device)?;
        Ok((rollout, metrics))
    }

    /// The log-probabilities of every kept token under the weights that sampled it and under the reference, in the very
    /// micro-batches that the first update has.
    fn score(&self, rollout: &mut Rollout, model: &Decoder<B>, device: &B::Device) -> Result<(), TrainError> {
        let packed = pack(&rollout.kept(), 0, self.shape)?;
        let mut kept = rollout.kept_mut();
        for Packed { batch, members } in packed {
            let old = sample_logprobs(model, &batch, device)?;
            let reference = self.reference.as_ref().map(|r| sample_logprobs(r, &batch, device)).transpose()?;
            for (i, (&place, old)) in members.iter().zip(old).enumerate() {
                kept[place].old = old;
                kept[place].reference = reference.as_ref().map(|values| values[i].clone()).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Counts rollouts without anything to learn from.
    fn note_idle(&self, step: u64, is_idle: bool) -> Result<(), TrainError> {
        let mut state = self.state.borrow_mut();
        state.idle = if is_idle { state.idle + 1 } else { 0 };
        if state.idle < self.config.max_idle_steps {
            return Ok(());
        }
        let problem = format!(
            "the rewards of every group were equal for {} rollouts in a row, so that nothing was learnt; give other tasks, a higher temperature or larger groups, or raise max_idle_steps",
            state.idle
        );
        Err(TrainError::Guard { step: step + 1, problem })
    }
}

impl<B: LmBackend> Objective<B> for GrpoObjective<'_, B> {
    fn units(&self, batch: &MicroBatch) -> f64 {
        Objective::<B>::units(&self.policy, batch)
    }

    fn loss(
        &self,
        model: &Decoder<Autodiff<B>>,
        batch: &MicroBatch,
        replay: &Replay,
        device: &B::Device,
    ) -> Result<LossSum<B>, TrainError> {
        self.policy.loss(model, batch, replay, device)
    }

    fn evaluate(
        &self,
        model: &Decoder<B>,
        batch: &MicroBatch,
        device: &B::Device,
    ) -> Result<Vec<MetricSum>, TrainError> {
        self.policy.evaluate(model, batch, device)
    }

    fn sample(
        &self,
        model: &Decoder<B>,
        step: u64,
        _given: Vec<MicroBatch>,
        device: &B::Device,
    ) -> Result<Sampled, TrainError> {
        let age = step % self.config.iterations;
        let mut metrics = Vec::new();
        let known = self.state.borrow_mut().rollout.take().filter(|rollout| age > 0 && rollout.step == step - age);
        let rollout = match known {
            Some(rollout) => rollout,
            None if age > 0 => Rollout::read(&self.config.dir, step - age)?,
            None => {
                let (rollout, told) = self.roll_out(model, step, device)?;
                rollout.write(&self.config.dir)?;
                metrics = told;
                rollout
            }
        };
        let packed = pack(&rollout.kept(), age, self.shape)?;
        if age == 0 {
            self.note_idle(step, packed.is_empty())?;
            metrics.push(MetricSum::new("idle_steps", f64::from(u8::from(packed.is_empty())), 1.0));
        }
        self.state.borrow_mut().rollout = Some(rollout);
        Ok(Sampled { batches: packed.into_iter().map(|packed| packed.batch).collect(), metrics })
    }

    fn review(&self, step: u64, metrics: &[MetricSum]) -> Result<Option<String>, TrainError> {
        let of = |name: &str| metrics.iter().find(|metric| metric.name == name);
        let mean = |name: &str| of(name).map_or(0.0, MetricSum::mean);
        let guard = |problem: String| Err(TrainError::Guard { step, problem });
        if let Some(beyond) = of(RATIO_BEYOND).filter(|beyond| beyond.sum > 0.0) {
            return guard(format!(
                "{} of {} tokens have a ratio further than {:e} from 1 although the very weights that are trained sampled them, {:e} on average; sampling and training do not compute the same, which is a defect of this build or device",
                beyond.sum,
                beyond.units,
                self.policy.ratio_bound,
                mean(RATIO_DEVIATION),
            ));
        }
        let share = mean(SAMPLER_BEYOND);
        if share > MAX_BEYOND {
            return guard(format!(
                "for {:.1} % of the tokens the sampler's log-probability is further than {:e} from training's, {:e} on average; decoding with the cache does not compute what training computes",
                share * 100.0,
                self.policy.sampler_bound,
                mean(SAMPLER_DEVIATION),
            ));
        }
        let (kl, limits) = (mean("kl"), self.config.kl);
        if kl.is_nan() || kl >= limits.abort {
            return guard(format!(
                "the policy is {kl:.3} nats a token from the reference, at most kl.abort = {} is allowed; lower the learning rate, or raise loss.beta",
                limits.abort
            ));
        }
        let warning = || format!("step {step}: {kl:.3} nats a token from the reference, kl.warn = {}", limits.warn);
        Ok((kl >= limits.warn).then(warning))
    }
}

/// What a rollout says about the policy.
fn metrics(episodes: &[Episode], worth: &[Worth], rewards: &[Vec<f64>]) -> Vec<MetricSum> {
    let (n, n_groups) = (episodes.len() as f64, rewards.len() as f64);
    let known = rewards.concat();
    let count = |on: &dyn Fn(&Worth) -> bool| worth.iter().filter(|w| on(w)).count() as f64;
    let ended = |on: &dyn Fn(&Ending) -> bool| episodes.iter().filter(|e| on(&e.ending)).count() as f64;
    let sum = |of: &dyn Fn(&Episode) -> f64| episodes.iter().map(of).sum::<f64>();
    let tokens = sum(&|e| e.n_sampled() as f64);
    let entropy = sum(&|e| e.scores.iter().map(|score| f64::from(score.entropy)).sum());
    let flat = rewards.iter().filter(|group| !has_spread(group)).count() as f64;
    vec![
        MetricSum::new("reward", known.iter().sum(), known.len() as f64),
        MetricSum::new("reward_std", rewards.iter().map(|group| deviation(group)).sum(), n_groups),
        MetricSum::new("frac_reward_zero_std", flat, n_groups),
        MetricSum::new("groups_dropped", flat, 1.0),
        MetricSum::new("judge_errors", n - known.len() as f64, 1.0),
        MetricSum::new("cheats", count(&|w| w.cheated), 1.0),
        MetricSum::new("passed", count(&|w| w.level >= Some(Level::Warnings)), n),
        MetricSum::new("clean", count(&|w| w.level == Some(Level::Clean)), n),
        MetricSum::new("compiled", count(&|w| w.level >= Some(Level::TestsFail)), n),
        MetricSum::new("malformed", ended(&|e| matches!(e, Ending::Malformed(_))), n),
        MetricSum::new("cut_off", ended(&|e| *e == Ending::Length), n),
        MetricSum::new("calls_well_formed", sum(&|e| e.calls_well_formed as f64), sum(&|e| e.calls as f64)),
        MetricSum::new("turns", sum(&|e| e.turns as f64), n),
        MetricSum::new("completion_length", tokens, n),
        MetricSum::new("entropy", entropy, tokens),
    ]
}
