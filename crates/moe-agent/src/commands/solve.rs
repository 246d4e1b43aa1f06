//! `moe-agent solve`: a model tries tasks; candidates for the judge come out.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use eval_rust::sandbox::Run;
use kernels_cubecl::{DeviceChoice, LmBackend, Precision, on_device};
use model_core::hf::{LoadOptions, PackedExperts};
use model_core::{Decoder, Harmony, Tokenizer};
use moe_agent::rollout::{
    Ask, Engine, Episode, JudgeKeys, Play, PromptKeys, RolloutError, Stopwatch, TaskSet, Tasks, episode_number,
    find_tasks, write_candidate,
};
use moe_agent::tools::{PromptStyle, Tool};
use serde_json::json;

use super::judging::{JudgeArguments, runner, setup, told};

/// Episodes that are played together.
const TOGETHER: usize = 64;

/// The model, the tasks, and how they are played.
#[derive(clap::Args)]
pub(crate) struct Player {
    /// Model folder with its tokenizer.
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Folder of task folders.
    #[arg(long, value_name = "DIR")]
    pub(crate) tasks: PathBuf,
    /// Folder for what comes out; must not exist.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Only the most likely tokens that hold this probability together are chosen among.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Most tokens of one message.
    #[arg(long, default_value_t = 512)]
    max_new_tokens: usize,
    /// Most calls and answers of an episode.
    #[arg(long, default_value_t = 10)]
    max_turns: u64,
    /// Most tokens of an episode, the prompt included; the model's context where that is shorter.
    #[arg(long, default_value_t = 16_384)]
    max_len: usize,
    /// Say little: the tools with their arguments and the task.
    #[arg(long)]
    compact: bool,
    /// A tool of the model; repeat for several, without any it has all.
    #[arg(long, value_name = "NAME")]
    tool: Vec<Tool>,
    /// Lines of the task's sources that are shown.
    #[arg(long, default_value_t = 0)]
    excerpt_lines: usize,
    /// Most bytes of a tool's output, about.
    #[arg(long, default_value_t = 4096)]
    output_bytes: usize,
    /// Give every message of the compiler as one line.
    #[arg(long)]
    brief: bool,
    #[command(flatten)]
    judge: JudgeArguments,
    /// Seed of the choices.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Keep the weights of experts packed: in MXFP4, as the folder must have them, or with =fp8 rounded to FP8.
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_value = "no", default_missing_value = "mxfp4")]
    packed_experts: PackedExperts,
    /// auto, cpu or cuda:N.
    #[arg(long, default_value_t)]
    device: DeviceChoice,
    /// Element type of weights and activations: f32, or bf16 on CUDA.
    #[arg(long, default_value_t)]
    precision: Precision,
}

/// Arguments of `solve`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    player: Player,
    /// Episodes of each task.
    #[arg(long, default_value_t = 1)]
    samples: u64,
    /// Logits are divided by this; 0 takes the most likely token each time.
    #[arg(long, default_value_t = 0.2)]
    temperature: f32,
}

impl Player {
    /// What the model is told and may do.
    pub(crate) fn prompt(&self) -> PromptKeys {
        let tools = if self.tool.is_empty() { Tool::ALL.to_vec() } else { self.tool.clone() };
        let style = if self.compact { PromptStyle::Compact } else { PromptStyle::Full };
        let (excerpt_lines, output_bytes, brief) = (self.excerpt_lines, self.output_bytes, self.brief);
        PromptKeys { style, tools, excerpt_lines, output_bytes, brief }
    }

    /// Where tools and judge work.
    pub(crate) fn keys(&self) -> JudgeKeys {
        self.judge.keys()
    }

    /// The tasks as the model is told of them.
    pub(crate) fn task_set<'a>(&self, runner: &'a (dyn Run + Sync)) -> Result<TaskSet<'a>, RolloutError> {
        let (keys, prompt) = (self.keys(), self.prompt());
        TaskSet::load(&find_tasks(&self.tasks)?, &prompt, runner, setup(&keys, &prompt)?)
    }

    /// The tokenizer of the model.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, RolloutError> {
        Ok(Tokenizer::load(&self.model)?)
    }

    /// Makes the folder of the output.
    pub(crate) fn make_out(&self) -> Result<()> {
        ensure!(!self.out.exists(), "{} is there already; choose another folder", self.out.display());
        std::fs::create_dir_all(&self.out).with_context(|| format!("creating {}", self.out.display()))
    }

    /// Plays what is asked for, some of it at a time, and says how fast.
    pub(crate) fn play(&self, tasks: &TaskSet<'_>, tokenizer: &Tokenizer, asks: &[Ask]) -> Result<Vec<Episode>> {
        let device = self.device.resolve()?.with(self.precision)?;
        let played = on_device!(device, B, device => self.play_on::<B>(tasks, tokenizer, asks, &device))?;
        told(played)
    }

    fn play_on<B: LmBackend>(
        &self,
        tasks: &TaskSet<'_>,
        tokenizer: &Tokenizer,
        asks: &[Ask],
        device: &B::Device,
    ) -> Result<Vec<Episode>, RolloutError> {
        let options = LoadOptions { packed_experts: self.packed_experts, ..LoadOptions::default() };
        let model = Decoder::<B>::load_with(&self.model, options, device)?;
        tokenizer.check_vocab(model.config.vocab_size)?;
        let play = Play {
            seed: self.seed,
            top_p: self.top_p,
            top_k: 0,
            max_new_tokens: self.max_new_tokens,
            max_turns: self.max_turns,
            max_len: self.max_len,
            jobs: self.keys().jobs,
        };
        let engine = Engine { harmony: Harmony::new(tokenizer)?, tasks, play };
        let (clock, mut episodes) = (Stopwatch::start(), Vec::new());
        for asks in asks.chunks(TOGETHER) {
            episodes.extend(engine.play(&model, asks)?);
            let tokens: usize = episodes.iter().map(Episode::n_sampled).sum();
            let speed = tokens as f64 / clock.seconds().max(1e-9);
            eprintln!("{} episodes, {tokens} tokens sampled, {speed:.0} tokens/s", episodes.len());
        }
        Ok(episodes)
    }

    /// Writes candidates as folders, the list that `eval-rust judge` takes, what was used up, and what was said.
    pub(crate) fn write(&self, tasks: &TaskSet<'_>, tokenizer: &Tokenizer, episodes: &[Episode]) -> Result<()> {
        let harmony = Harmony::new(tokenizer)?;
        let (mut list, mut lines, mut said) = (String::new(), String::new(), String::new());
        for episode in episodes {
            let id = &tasks.ids()[episode.task];
            let folder = Path::new("candidates").join(id).join(episode.sample.to_string());
            told(write_candidate(&self.out.join(&folder), &episode.candidate))?;
            list += &format!("{}\n", json!({ "task": tasks.folder(episode.task), "candidate": folder }));
            let used = eval_rust::Episode {
                task: id.clone(),
                sample: episode.sample,
                iterations: episode.turns,
                tool_calls: episode.calls,
                tool_calls_well_formed: episode.calls_well_formed,
                tokens: episode.n_sampled() as u64,
                seconds: episode.seconds,
            };
            lines += &format!("{}\n", serde_json::to_string(&used)?);
            let prompt = episode.sampled.iter().position(|on| *on).unwrap_or(0);
            let transcript = json!({
                "task": id, "sample": episode.sample, "temperature": episode.temperature, "ending": episode.ending,
                "prompt_tokens": prompt, "text": harmony.decode(&episode.ids[prompt..]),
            });
            said += &format!("{transcript}\n");
        }
        for (name, text) in [("candidates.jsonl", list), ("episodes.jsonl", lines), ("transcripts.jsonl", said)] {
            let path = self.out.join(name);
            let written = std::fs::File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes()));
            written.with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let player = &arguments.player;
    ensure!(arguments.samples > 0, "--samples: expected at least 1, got 0");
    let runner = told(runner(&player.keys(), &player.prompt()))?;
    let (tasks, tokenizer) = (told(player.task_set(&*runner))?, told(player.tokenizer())?);
    player.make_out()?;
    let ask = |(task, id): (usize, &String)| {
        let id = id.clone();
        let number = move |sample| episode_number(0, &id, sample);
        let temperature = arguments.temperature;
        (0..arguments.samples).map(move |sample| Ask { task, sample, number: number(sample), temperature })
    };
    let asks: Vec<Ask> = tasks.ids().iter().enumerate().flat_map(ask).collect();
    let episodes = player.play(&tasks, &tokenizer, &asks)?;
    player.write(&tasks, &tokenizer, &episodes)?;
    let sum = |of: fn(&Episode) -> u64| episodes.iter().map(of).sum::<u64>();
    println!(
        "solve: {} candidates of {} tasks, {} of {} calls well formed",
        episodes.len(),
        tasks.ids().len(),
        sum(|episode| episode.calls_well_formed),
        sum(|episode| episode.calls)
    );
    Ok(())
}
