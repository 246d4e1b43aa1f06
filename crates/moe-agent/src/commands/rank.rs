//! `moe-agent rank`: candidates at four temperatures, ranked by the judge; pairs for preference training come out.

use std::path::Path;

use anyhow::{Result, ensure};
use eval_rust::judge::Status;
use model_core::Harmony;
use moe_agent::rollout::ranking::{Gates, PairRecord, Ranked, Soft, offences, pairs, rank};
use moe_agent::rollout::{Ask, Episode, JudgedWorld, Planted, TaskSet, Tasks, episode_number};
use serde_json::json;

use super::judging::{runner, told, with_judge};
use super::solve::Player;

/// Temperatures of the candidates, two of each.
const TEMPERATURES: [f32; 4] = [0.2, 0.4, 0.6, 0.8];
/// Candidates of a task.
const CANDIDATES: usize = 2 * TEMPERATURES.len();

/// Arguments of `rank`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    player: Player,
    /// Most pairs of a task, each with another rejected answer.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pairs: usize,
    /// The pairs of every N-th task that has any are held out, in `pairs-heldout.jsonl`; 0 holds out none.
    #[arg(long, value_name = "N", default_value_t = 0)]
    heldout_every: usize,
}

/// Pairs as lines, those that are held out apart.
#[derive(Default)]
struct Pairs {
    lines: [String; 2],
    counts: [usize; 2],
    tasks: usize,
}

impl Pairs {
    fn add(&mut self, made: &[PairRecord], heldout_every: usize) -> Result<()> {
        self.tasks += usize::from(!made.is_empty());
        let side = usize::from(heldout_every > 0 && self.tasks.is_multiple_of(heldout_every));
        self.counts[side] += made.len();
        for record in made {
            self.lines[side] += &format!("{}\n", serde_json::to_string(record)?);
        }
        Ok(())
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let player = &arguments.player;
    let keys = player.keys();
    ensure!(arguments.pairs > 0, "--pairs: expected at least 1, got 0");
    let runner = told(runner(&keys, &player.prompt()))?;
    let (tasks, tokenizer) = (told(player.task_set(&*runner))?, told(player.tokenizer())?);
    player.make_out()?;
    let ask = |(task, id): (usize, &String)| {
        let id = id.clone();
        let number = move |sample| episode_number(0, &id, sample);
        (0..CANDIDATES).map(move |i| {
            let sample = i as u64;
            Ask { task, sample, number: number(sample), temperature: TEMPERATURES[i / 2] }
        })
    };
    let asks: Vec<Ask> = tasks.ids().iter().enumerate().flat_map(ask).collect();
    let episodes = player.play(&tasks, &tokenizer, &asks)?;
    player.write(&tasks, &tokenizer, &episodes)?;
    let judgements = told(with_judge(&keys, |judge| {
        let world = JudgedWorld::new(judge, &tasks, Planted::default(), Path::new(""), &keys.work, keys.jobs)?;
        world.judgements(&episodes, episode_number(0, "rank", player.seed))
    }))?;
    let harmony = Harmony::new(&tokenizer)?;
    let (mut made, mut ranking, mut errors) = (Pairs::default(), String::new(), 0);
    for (task, id) in tasks.ids().iter().enumerate() {
        let mut candidates = Vec::new();
        for (episode, judgement) in episodes.iter().zip(&judgements).filter(|(episode, _)| episode.task == task) {
            let judgement = judgement.as_ref();
            if judgement.is_some_and(|judgement| judgement.status == Status::Error) {
                errors += 1;
                continue;
            }
            let soft = soft(&tasks, episode, judgement);
            candidates.push(Ranked { episode, gates: Gates::of(episode, judgement), soft });
        }
        let ranked = rank(candidates);
        for (place, it) in ranked.iter().enumerate() {
            let line = json!({
                "task": id, "place": place, "sample": it.episode.sample, "temperature": it.episode.temperature,
                "gates": it.gates, "soft": it.soft,
            });
            ranking += &format!("{line}\n");
        }
        made.add(&pairs(&harmony, id, tasks.prompt(task), &ranked, arguments.pairs), arguments.heldout_every)?;
    }
    gates::artifact::write_atomic(&player.out.join("ranking.jsonl"), ranking.as_bytes())?;
    gates::artifact::write_atomic(&player.out.join("pairs.jsonl"), made.lines[0].as_bytes())?;
    if arguments.heldout_every > 0 {
        gates::artifact::write_atomic(&player.out.join("pairs-heldout.jsonl"), made.lines[1].as_bytes())?;
    }
    let n_tasks = tasks.ids().len();
    println!(
        "rank: {} pairs and {} held out of {n_tasks} tasks, {} without a pair, {errors} errors of the judge",
        made.counts[0],
        made.counts[1],
        n_tasks - made.tasks
    );
    Ok(())
}

fn soft(tasks: &TaskSet<'_>, episode: &Episode, judgement: Option<&eval_rust::judge::Judgement>) -> Soft {
    let (diff_lines, files_changed) = judgement.map_or((0, 0), |it| (it.diff_lines, it.files_changed));
    Soft { diff_lines, files_changed, offences: offences(tasks.files(episode.task), &episode.candidate) }
}
