//! Executes trajectories again, from the crate up, and compares every result with the one that is stored.

use std::path::Path;
use std::sync::Arc;

use eval_rust::judge::find_toolchain;
use eval_rust::sandbox::Run;
use gates::artifact;
use model_core::harmony::{Conversation, Message, Role};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::TrajectoryError;
use super::generate::{Crates, Manifest, libraries};
use super::random::Dice;
use super::record::{CallsLine, ExecutedCall, RecordLine};
use crate::tools::{Executor, Files, Setup, ToolCall};

/// Most bytes of a file of trajectories.
const MAX_BYTES: u64 = 8 << 30;

/// A result that is not the one that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The trajectory.
    pub id: String,
    /// The call, from 1; 0 for what comes before the first.
    pub call: usize,
    /// What is different.
    pub what: String,
    /// What is stored.
    pub stored: String,
    /// What came of it now.
    pub now: String,
}

/// What a replay found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// How many trajectories there are.
    pub trajectories: usize,
    /// How many were executed again.
    pub replayed: usize,
    /// How many calls.
    pub calls: usize,
    /// Whether the toolchain is the one that they were made with.
    pub same_toolchain: bool,
    /// Every difference; at most one of each trajectory.
    pub differences: Vec<Difference>,
}

/// Executes a seeded share of the trajectories of a folder again: at least one, where there is one.
///
/// # Errors
/// [`TrajectoryError::Damaged`] when the files are not what the manifest says they are, and any error of the executor.
pub fn replay(
    input: &Path,
    share: f64,
    seed: u64,
    runner: &(dyn Run + Sync),
    env: &dyn Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<Replayed, TrajectoryError> {
    if !(share > 0.0 && share <= 1.0) {
        return Err(TrajectoryError::Key { key: "share", reason: "expected more than 0 and at most 1".into() });
    }
    let path = input.join("manifest.json");
    let damaged = |path: &Path, reason: String| TrajectoryError::Damaged { path: path.into(), reason };
    let bytes = artifact::read_bounded(&path, 64 << 20)?;
    let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| damaged(&path, error.to_string()))?;
    let records: Vec<(String, RecordLine)> = lines(&input.join("records/records.jsonl"), &manifest.records_hash)?;
    let calls: Vec<(String, CallsLine)> = lines(&input.join("calls.jsonl"), &manifest.calls_hash)?;
    if records.len() != calls.len() {
        return Err(damaged(input, format!("{} records, {} lines of calls", records.len(), calls.len())));
    }
    let config = &manifest.config;
    let toolchain = config.toolchain.clone().map_or_else(|| find_toolchain(env), Ok)?;
    let same_toolchain = libraries(&toolchain) == manifest.toolchain;
    let setup = config.setup(toolchain)?;
    let crates = Crates::load(config)?;

    let mut order: Vec<usize> = (0..records.len()).collect();
    Dice::new(seed, "replay").shuffle(&mut order);
    order.truncate(((records.len() as f64 * share).ceil() as usize).max(1));
    order.sort_unstable();
    let mut found = Replayed {
        trajectories: records.len(),
        replayed: order.len(),
        calls: 0,
        same_toolchain,
        differences: Vec::new(),
    };
    for i in order {
        let ((_, record), (_, stored)) = (&records[i], &calls[i]);
        found.calls += stored.calls.len();
        found.differences.extend(one(runner, &setup, &crates, record, stored)?);
    }
    Ok(found)
}

/// The lines of a file whose hash must be this.
fn lines<T: DeserializeOwned>(path: &Path, hash: &str) -> Result<Vec<(String, T)>, TrajectoryError> {
    let damaged = |reason: String| TrajectoryError::Damaged { path: path.into(), reason };
    let bytes = artifact::read_bounded(path, MAX_BYTES)?;
    if artifact::hash_bytes(&bytes) != hash {
        return Err(damaged("its hash is not the one of the manifest".into()));
    }
    let text = String::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    let line = |(i, line): (usize, &str)| {
        let value = serde_json::from_str(line).map_err(|error| damaged(format!("line {}: {error}", i + 1)))?;
        Ok((line.to_owned(), value))
    };
    text.lines().enumerate().map(line).collect()
}

/// The first difference of one trajectory.
fn one(
    runner: &(dyn Run + Sync),
    setup: &Arc<Setup>,
    crates: &Crates,
    record: &RecordLine,
    stored: &CallsLine,
) -> Result<Option<Difference>, TrajectoryError> {
    let different = |call: usize, what: &str, stored_text: &str, now: &str| {
        let (id, what) = (stored.id.clone(), what.to_owned());
        Ok(Some(Difference { id, call, what, stored: stored_text.into(), now: now.into() }))
    };
    if record.id != stored.id {
        return different(0, "record", &stored.id, &record.id);
    }
    let Some(krate) = crates.get(&stored.krate) else {
        return different(0, "crate", &stored.krate, "not there");
    };
    let mut executor = Executor::new(runner, setup, krate.files.clone())?;
    if executor.workspace_hash() != stored.crate_hash {
        return different(0, "crate", &stored.crate_hash, executor.workspace_hash());
    }
    let Some(start) = start(executor.files(), stored) else {
        return different(0, "start", "edits of the crate", "do not fit its files");
    };
    executor.reset(start)?;
    let conversation = Conversation::try_from(record.messages.clone())?;
    let told = calls_of(&conversation);
    if told.len() != stored.calls.len() {
        return different(0, "calls", &stored.calls.len().to_string(), &told.len().to_string());
    }
    for (i, ((call, answer), want)) in told.into_iter().zip(&stored.calls).enumerate() {
        let number = i + 1;
        let named = ToolCall::new(&want.recipient, &want.arguments);
        if call.as_ref() != Some(&named) {
            let call = call.map_or_else(|| "no call".into(), |call| format!("{} {}", call.recipient, call.arguments));
            return different(number, "call", &call, &format!("{} {}", named.recipient, named.arguments));
        }
        let result = executor.call(&named)?;
        if result.message() != *answer {
            return different(number, "output in the record", &answer.text(false), result.output());
        }
        let now = ExecutedCall::of(&result);
        if now != *want {
            return different(number, "hashes", &format!("{want:?}"), &format!("{now:?}"));
        }
    }
    Ok(None)
}

/// The files at the beginning of a trajectory.
fn start(base: &Files, stored: &CallsLine) -> Option<Files> {
    let mut files = base.clone();
    for edit in &stored.start {
        let text = std::str::from_utf8(files.get(&edit.path)?).ok()?;
        let text = edit.apply(text)?;
        files.insert(edit.path.clone(), text.into_bytes());
    }
    Some(files)
}

/// Every tool's message with the call before it.
fn calls_of(conversation: &Conversation) -> Vec<(Option<ToolCall>, &Message)> {
    let messages = &conversation.messages;
    let answers = messages.iter().enumerate().filter(|(_, message)| message.role == Role::Tool);
    answers.map(|(i, message)| (i.checked_sub(1).and_then(|i| ToolCall::of(&messages[i])), message)).collect()
}
