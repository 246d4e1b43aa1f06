//! Exercises for fine-tuning, derived from the text sample by a seeded recipe.
//!
//! A model of a few million parameters cannot learn facts in minutes, but it can learn to find, copy, inflect and spell.
//! So every exercise is one that carries over to words it was never trained on, and is measured on such words:
//!
//! ```text
//! sample ─ lexicon (dictionary entries, spellings in use) ─ view per part of the words ─ tasks ─▶ exercises
//!            sft words        ─▶ sft/train.jsonl                         chosen = the right answer,
//!            preference words ─▶ preference/train.jsonl                  rejected = a plausible wrong one
//!            held-out words   ─▶ sft/heldout.jsonl, answers/heldout.jsonl, preference/heldout.jsonl
//! ```
//!
//! The part of a word is a pure function of the word (see [`Part::of`]), so no seed can move a held-out word into
//! training. Every answer is worked out twice: by the maker, which knows the words it drew, and by the task's solver,
//! which sees the question only; a disagreement is an error. Questions do not repeat within a set. The same sample,
//! sizes and seed give the same bytes.

mod grammar;
mod inflection;
mod letters;
mod lexicon;
mod lists;
mod rng;
mod task;
mod words;

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use task::Task;
pub use words::{Part, family};

use crate::error::{DataError, Result};
use crate::folder::OutDir;
use crate::records::{Message, PreferenceRecord, Role, SftRecord};
use crate::report::{Report, Step};
use lexicon::{Lexicon, View};
use rng::Rng;
use task::Item;

/// What every record names as its source: definitions and word classes are WordNet's.
const SOURCE: &str = "exercises on dict-wn 3.0-37";
/// Its licence.
const LICENCE: &str = "LicenseRef-WordNet";
/// Draws per wanted exercise before the recipe gives up.
const TRIES: usize = 60;

/// How much to derive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Another seed draws other exercises from the same words.
    pub seed: u64,
    /// Conversations for SFT.
    pub sft: usize,
    /// Pairs for preference training.
    pub preference: usize,
    /// Held-out conversations, and as many held-out pairs.
    pub heldout: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        Self { seed: 0, sft: 30_000, preference: 5_000, heldout: 1_000 }
    }
}

/// What a sample does not allow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeProblem {
    /// A line of the dictionary of another form.
    #[error("line {0}: expected `word (noun|verb|adjective|adverb): definition`, found {1:?}; cut the sample again")]
    Line(usize, String),
    /// A dictionary entry in a document of the other split.
    #[error("line {0}: `{1}` belongs to the {2} words, but not its document; cut the sample again")]
    WrongSide(usize, String, &'static str),
    /// Maker and solver of a task disagree.
    #[error(
        "task {task}: {question:?} was made with the answer {made:?}, its solver says {solved:?}; correct the task"
    )]
    Disagreement {
        /// The task.
        task: &'static str,
        /// The question.
        question: String,
        /// The maker's answer.
        made: String,
        /// The solver's answer.
        solved: Option<String>,
    },
    /// Too few words for the number asked for.
    #[error(
        "set {set}, task {task}: {wanted} exercises asked for, the words give {found}; ask for fewer or use more text"
    )]
    TooFew {
        /// The set.
        set: &'static str,
        /// The task.
        task: &'static str,
        /// Exercises asked for.
        wanted: usize,
        /// Exercises found.
        found: usize,
    },
}

/// A question with its one right answer, for measuring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerRecord {
    /// The conversation so far, a user message last.
    pub prompt: Vec<Message>,
    /// The answer, word for word.
    pub answer: String,
    /// Name of the record.
    pub id: String,
    /// Name of the task.
    pub task: String,
    /// Name of the source.
    pub source: String,
    /// Licence of the source.
    pub licence: String,
}

/// Derives the sets of a sample into the folder `out`, which appears whole or not at all; `report.json` in it holds the
/// counts per set and task.
///
/// # Errors
/// Whatever is wrong with a file of the sample, [`DataError::Recipe`] for a sample that does not fit,
/// [`DataError::Exists`] when `out` is there and `overwrite` is not set.
pub fn derive(sample: &Path, out: &Path, recipe: &Recipe, overwrite: bool) -> Result<Report> {
    let lexicon = Lexicon::read(sample)?;
    let problem = |problem| DataError::Recipe { path: sample.to_path_buf(), problem };
    let make = |set, part, n, weight| exercises(&lexicon, set, part, n, recipe.seed, weight).map_err(problem);
    let sft = make("sft/train", Part::Sft, recipe.sft, Task::sft_weight)?;
    let pairs = make("preference/train", Part::Preference, recipe.preference, Task::preference_weight)?;
    let heldout = make("sft/heldout", Part::Heldout, recipe.heldout, Task::sft_weight)?;
    let heldout_pairs = make("preference/heldout", Part::Heldout, recipe.heldout, Task::preference_weight)?;
    let dir = OutDir::create(out, overwrite)?;
    let steps = vec![
        write(&dir, "sft/train", &sft, sft_record)?,
        write(&dir, "sft/heldout", &heldout, sft_record)?,
        write(&dir, "answers/heldout", &heldout, answer_record)?,
        write(&dir, "preference/train", &pairs, |id, item| pair_record(recipe.seed, id, item))?,
        write(&dir, "preference/heldout", &heldout_pairs, |id, item| pair_record(recipe.seed, id, item))?,
    ];
    let report = Report::new("derive", steps);
    dir.write("report.json", report.to_json(out)?.as_bytes())?;
    dir.commit()?;
    Ok(report)
}

/// Draws the exercises of one set, each task with its share, in random order.
fn exercises(
    lexicon: &Lexicon,
    set: &'static str,
    part: Part,
    n: usize,
    seed: u64,
    weight: fn(Task) -> u32,
) -> Result<Vec<Item>, RecipeProblem> {
    let view = lexicon.view(part);
    let mut items = Vec::with_capacity(n);
    for (task, wanted) in shares(n, weight) {
        items.extend(draw_task(lexicon, &view, set, task, wanted, seed)?);
    }
    Rng::new(seed, set).shuffle(&mut items);
    Ok(items)
}

/// Splits a number among the tasks by weight; the sum is exact.
fn shares(n: usize, weight: fn(Task) -> u32) -> Vec<(Task, usize)> {
    let total: usize = Task::all().map(|t| weight(t) as usize).sum();
    let mut before = 0;
    let mut found = Vec::new();
    for task in Task::all() {
        let after = before + weight(task) as usize;
        found.push((task, n * after / total - n * before / total));
        before = after;
    }
    found
}

fn draw_task(
    lexicon: &Lexicon,
    view: &View,
    set: &'static str,
    task: Task,
    wanted: usize,
    seed: u64,
) -> Result<Vec<Item>, RecipeProblem> {
    let mut rng = Rng::new(seed, &format!("{set} {}", task.name()));
    let (mut items, mut asked) = (Vec::with_capacity(wanted), HashSet::new());
    for _ in 0..wanted * TRIES {
        if items.len() == wanted {
            break;
        }
        let Some(item) = task.make(view, &mut rng) else { continue };
        let solved = task.solve(&item.question, lexicon);
        if solved.is_none() && task.may_be_ambiguous() {
            continue;
        }
        if solved.as_ref() != Some(&item.answer) {
            let Item { question, answer: made, .. } = item;
            return Err(RecipeProblem::Disagreement { task: task.name(), question, made, solved });
        }
        if asked.insert(item.question.clone()) {
            items.push(item);
        }
    }
    if items.len() < wanted {
        return Err(RecipeProblem::TooFew { set, task: task.name(), wanted, found: items.len() });
    }
    Ok(items)
}

/// Writes one set as JSON lines and counts it.
fn write<R: Serialize>(dir: &OutDir, set: &str, items: &[Item], record: impl Fn(String, &Item) -> R) -> Result<Step> {
    let mut step = Step::new(set);
    let mut text = String::new();
    let path = dir.path().join(set).with_extension("jsonl");
    for (number, item) in items.iter().enumerate() {
        let id = format!("{}/{number:05}", set);
        let line = serde_json::to_string(&record(id, item));
        text += &line.map_err(|source| DataError::Json { path: path.clone(), source })?;
        text.push('\n');
        step.keep(item.question.len(), item.question.len() + item.answer.len());
        *step.notes.entry(item.task.name().to_owned()).or_default() += 1;
    }
    let parent = path.parent().unwrap_or(dir.path());
    std::fs::create_dir_all(parent).map_err(DataError::io("create", parent))?;
    dir.write(&format!("{set}.jsonl"), text.as_bytes())?;
    Ok(step)
}

fn sft_record(id: String, item: &Item) -> SftRecord {
    let answer = Message::new(Role::Assistant, &item.answer);
    let mut messages = prompt(item);
    messages.push(answer);
    SftRecord { messages, id, task: item.task.name().into(), source: SOURCE.into(), licence: LICENCE.into() }
}

fn answer_record(id: String, item: &Item) -> AnswerRecord {
    let task = item.task.name().into();
    let (source, licence) = (SOURCE.into(), LICENCE.into());
    AnswerRecord { prompt: prompt(item), answer: item.answer.clone(), id, task, source, licence }
}

fn pair_record(seed: u64, id: String, item: &Item) -> PreferenceRecord {
    let mut rng = Rng::new(seed, &item.question);
    let rejected = rng.pick(&item.wrong).expect("an item has a wrong answer").clone();
    PreferenceRecord {
        prompt: prompt(item),
        chosen: item.answer.clone(),
        rejected,
        id,
        task: item.task.name().into(),
        source: SOURCE.into(),
        licence: LICENCE.into(),
    }
}

fn prompt(item: &Item) -> Vec<Message> {
    vec![Message::new(Role::User, &item.question)]
}

#[cfg(test)]
mod tests;
