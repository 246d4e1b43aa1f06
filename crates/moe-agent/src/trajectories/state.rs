//! What has been tried so far, on disk: an interrupted run goes on where it stopped.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{TrajectoryError, io};
use super::record::CallsLine;

/// Most bytes of the file.
const MAX_BYTES: u64 = 8 << 30;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    fingerprint: String,
}

/// What became of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tried {
    pub(super) item: String,
    /// Why there is no trajectory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) dropped: Option<String>,
    /// The line of the record, and what it takes to execute it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) made: Option<(String, CallsLine)>,
    pub(super) runs: u64,
    pub(super) wall_ms: u64,
}

/// The file, open for more lines.
#[derive(Debug)]
pub(super) struct State {
    path: PathBuf,
    file: File,
    done: BTreeMap<String, Tried>,
}

impl State {
    /// Opens or begins the file of a run with this fingerprint. A last line that was cut off is dropped.
    pub(super) fn open(path: &Path, fingerprint: &str) -> Result<Self, TrajectoryError> {
        let head = Head { fingerprint: fingerprint.into() };
        let mut done = BTreeMap::new();
        let mut whole = 0;
        if path.exists() {
            let bytes = gates::artifact::read_bounded(path, MAX_BYTES)?;
            let damaged = |reason: String| TrajectoryError::Damaged { path: path.into(), reason };
            for (i, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
                if !line.ends_with(b"\n") {
                    break;
                }
                let wrong = |error: serde_json::Error| damaged(format!("line {}: {error}", i + 1));
                if i == 0 {
                    if serde_json::from_slice::<Head>(line).map_err(wrong)? != head {
                        return Err(TrajectoryError::OtherRun { path: path.into() });
                    }
                } else {
                    let tried: Tried = serde_json::from_slice(line).map_err(wrong)?;
                    done.insert(tried.item.clone(), tried);
                }
                whole += line.len() as u64;
            }
        }
        let file = File::options().create(true).append(true).open(path).map_err(io("open", path))?;
        file.set_len(whole).map_err(io("cut", path))?;
        let mut this = Self { path: path.into(), file, done };
        if whole == 0 {
            this.write(&head)?;
        }
        Ok(this)
    }

    /// What has been tried, by item.
    pub(super) fn done(&self) -> &BTreeMap<String, Tried> {
        &self.done
    }

    /// Adds what became of an item, on disk before it returns.
    pub(super) fn add(&mut self, tried: Tried) -> Result<(), TrajectoryError> {
        self.write(&tried)?;
        self.done.insert(tried.item.clone(), tried);
        Ok(())
    }

    fn write<T: Serialize>(&mut self, value: &T) -> Result<(), TrajectoryError> {
        let line = serde_json::to_string(value).expect("texts and numbers become JSON") + "\n";
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(item: &str) -> Tried {
        Tried { item: item.into(), dropped: Some("why".into()), made: None, runs: 1, wall_ms: 2 }
    }

    #[test]
    fn a_run_goes_on_after_a_line_that_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.jsonl");
        State::open(&path, "a").unwrap().add(tried("one")).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"item\":\"tw").unwrap();
        let mut state = State::open(&path, "a").unwrap();
        assert_eq!(state.done().len(), 1);
        state.add(tried("two")).unwrap();
        assert_eq!(
            State::open(&path, "a").unwrap().done().values().cloned().collect::<Vec<_>>(),
            [tried("one"), tried("two")]
        );
        assert!(matches!(State::open(&path, "b"), Err(TrajectoryError::OtherRun { .. })));
        File::options().append(true).open(&path).unwrap().write_all(b"{\"item\":1}\n").unwrap();
        assert!(
            matches!(State::open(&path, "a"), Err(TrajectoryError::Damaged { reason, .. }) if reason.starts_with("line 4"))
        );
    }
}
