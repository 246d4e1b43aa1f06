//! What is done of one source: a file of lines that a killed run goes on from.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{MutateError, Result, io};
use super::generator::Mutant;
use crate::MutationRecord;

/// Most bytes of a state file.
const MAX_STATE: u64 = 1 << 30;

/// What came of one mutant or edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fate {
    /// It is a pair.
    Pair,
    /// A mutant that no test notices, or an edit that compiles.
    Missed,
    /// A mutant that does not compile.
    Unviable,
    /// Building or testing it took too long.
    Timeout,
    /// Its tests did not say the same twice, or the unchanged crate failed them.
    Flaky,
    /// It does not change the file, or makes it unreadable.
    Unchanged,
    /// It changes so much of the file that the two are no versions of one file.
    Unfit,
    /// An edit that the compiler refuses for another reason than the wanted one.
    OtherError,
}

/// The first line: what is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Hash of the source, the toolchain and the settings; another one starts anew.
    pub(crate) identity: String,
    /// Mutants that the generator listed, before the choice.
    pub(crate) generated: usize,
    /// Tests of the unchanged crate.
    pub(crate) tests: usize,
    /// What is tried, in this order.
    pub(crate) tries: Vec<Mutant>,
    /// Why nothing can be tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refused: Option<String>,
}

/// A later line: one that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Done {
    /// Place in the plan.
    pub(crate) index: usize,
    pub(crate) fate: Fate,
    /// Milliseconds that the sandbox was busy with it.
    pub(crate) busy_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) record: Option<MutationRecord>,
}

/// The file of one source.
pub(crate) struct State {
    file: File,
    pub(crate) plan: Plan,
    pub(crate) done: Vec<Done>,
}

impl State {
    /// Goes on from a file with this identity, if there is one; a line that was cut off is taken back.
    pub(crate) fn open(path: &Path, identity: &str) -> Result<Option<Self>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&gates::artifact::read_bounded(path, MAX_STATE)?).into_owned();
        let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let first = lines.next().unwrap_or_default();
        let Some(plan) = serde_json::from_str::<Plan>(first).ok().filter(|plan| plan.identity == identity) else {
            return Ok(None);
        };
        let (mut done, mut good) = (Vec::new(), first.len());
        for line in lines {
            let Ok(one) = serde_json::from_str::<Done>(line) else { break };
            good += line.len();
            done.push(one);
        }
        let file = File::options().append(true).open(path).map_err(io("open", path))?;
        file.set_len(good as u64).map_err(io("shorten", path))?;
        Ok(Some(Self { file, plan, done }))
    }

    /// Starts a file.
    pub(crate) fn start(path: &Path, plan: Plan) -> Result<Self> {
        gates::artifact::write_atomic(path, &line(path, &plan)?)?;
        let file = File::options().append(true).open(path).map_err(io("open", path))?;
        Ok(Self { file, plan, done: Vec::new() })
    }

    /// Adds what is done, so that it survives whatever comes next.
    pub(crate) fn add(&mut self, path: &Path, done: Done) -> Result<()> {
        self.file.write_all(&line(path, &done)?).map_err(io("write", path))?;
        self.file.sync_data().map_err(io("sync", path))?;
        self.done.push(done);
        Ok(())
    }

    /// Places of the plan that are not done.
    pub(crate) fn open_places(&self) -> Vec<usize> {
        (0..self.plan.tries.len()).filter(|index| self.done.iter().all(|done| done.index != *index)).collect()
    }
}

fn line<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(value)
        .map_err(|error| MutateError::Settings { path: path.into(), what: error.to_string() })?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(identity: &str) -> Plan {
        let mutant = Mutant {
            file: "src/lib.rs".into(),
            name: "x".into(),
            genre: "y".into(),
            function: None,
            from: 0,
            to: 0,
            replacement: String::new(),
            codes: Vec::new(),
        };
        Plan { identity: identity.into(), generated: 3, tests: 1, tries: vec![mutant; 3], refused: None }
    }

    #[test]
    fn a_cut_line_is_taken_back_and_another_identity_starts_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        assert!(State::open(&path, "1").unwrap().is_none());
        let mut state = State::start(&path, plan("1")).unwrap();
        for index in [0, 2] {
            state.add(&path, Done { index, fate: Fate::Missed, busy_ms: 1, record: None }).unwrap();
        }
        drop(state);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        let mut state = State::open(&path, "1").unwrap().unwrap();
        assert_eq!((state.open_places(), state.plan.clone()), (vec![1, 2], plan("1")));
        state.add(&path, Done { index: 2, fate: Fate::Missed, busy_ms: 1, record: None }).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert!(State::open(&path, "2").unwrap().is_none());
    }
}
