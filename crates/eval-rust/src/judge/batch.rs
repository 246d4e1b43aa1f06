//! Many candidates at a time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use super::error::{JudgeError, Result};
use super::{Judge, Judgement, Task};

/// Most bytes of a list.
const MAX_BYTES: u64 = 256 << 20;

/// A candidate for a task.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The task's folder.
    pub task: PathBuf,
    /// The candidate's folder.
    pub candidate: PathBuf,
}

/// Reads a list of candidates, one JSON object a line; relative folders are below the list's own.
///
/// # Errors
/// [`JudgeError::List`] with the line that is none.
pub fn read_list(path: &Path) -> Result<Vec<Entry>> {
    let bytes = gates::artifact::read_bounded(path, MAX_BYTES)?;
    let text = String::from_utf8_lossy(&bytes);
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut entries = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad =
            |error: serde_json::Error| JudgeError::List { path: path.into(), line: i + 1, what: error.to_string() };
        let Entry { task, candidate } = serde_json::from_str(line).map_err(bad)?;
        entries.push(Entry { task: folder.join(task), candidate: folder.join(candidate) });
    }
    if entries.is_empty() {
        return Err(JudgeError::List { path: path.into(), line: 0, what: "nothing to judge".into() });
    }
    Ok(entries)
}

impl Judge<'_> {
    /// Judges a list with at most `jobs` at a time; the judgements come in the list's order.
    ///
    /// Entry `i` gets the seed `seed + i`. A task that cannot be read is a judgement with `Status::Error`.
    pub fn judge_all(&self, entries: &[Entry], jobs: usize, seed: u64) -> Vec<Judgement> {
        let one = |i: usize| {
            let (entry, seed) = (&entries[i], seed.wrapping_add(i as u64));
            match Task::load(&entry.task) {
                Ok(task) => self.judge(&task, &entry.candidate, seed),
                Err(error) => unread(&entry.task, seed, &error),
            }
        };
        let done = in_parallel(entries.len(), jobs, one).into_iter().enumerate();
        done.map(|(i, one)| one.unwrap_or_else(|| unread(&entries[i].task, seed, &"was not judged"))).collect()
    }
}

/// Does `n` things with at most `jobs` at a time; the results come in order, `None` for what did not come to an end.
pub(crate) fn in_parallel<T: Send>(n: usize, jobs: usize, one: impl Fn(usize) -> T + Sync) -> Vec<Option<T>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Option<T>>> = Mutex::new((0..n).map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, n.max(1)) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        return;
                    }
                    let result = one(i);
                    done.lock().unwrap_or_else(PoisonError::into_inner)[i] = Some(result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn unread(task: &Path, seed: u64, error: &dyn std::fmt::Display) -> Judgement {
    let mut judgement = Judgement::new(&task.display().to_string(), seed);
    judgement.because(error.to_string());
    judgement
}
