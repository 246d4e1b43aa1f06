//! What is known of a step from an earlier run: `runs/RUN/steps/STEP.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gates::artifact;
use serde::{Deserialize, Serialize};

/// Records beyond this size are not ours.
const MAX_BYTES: u64 = 1 << 20;

/// The record of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) step: String,
    /// Whether it ended well; a record is written before the program starts, too.
    pub(crate) done: bool,
    /// Hash over arguments and inputs, see [`key`].
    pub(crate) key: String,
    /// The program as it was started.
    pub(crate) program: String,
    /// BLAKE3 (hex) of the program; not part of the key, see [`key`].
    pub(crate) program_hash: String,
    pub(crate) args: Vec<String>,
    /// Hash of every input.
    pub(crate) inputs: BTreeMap<String, String>,
    /// Hash of every output, empty until it is done.
    pub(crate) outputs: BTreeMap<String, String>,
    pub(crate) exit_code: Option<u8>,
    pub(crate) seconds: f64,
    pub(crate) peak_rss_bytes: u64,
}

impl Record {
    /// The version that this build writes and reads.
    pub(crate) const VERSION: u32 = 1;

    /// The record of a step whose program is about to start.
    pub(crate) fn started(
        step: &str,
        program: &str,
        program_hash: String,
        args: Vec<String>,
        key: String,
        inputs: BTreeMap<String, String>,
    ) -> Self {
        let (step, program, outputs) = (step.into(), program.into(), BTreeMap::new());
        let (version, done, exit_code, seconds, peak_rss_bytes) = (Self::VERSION, false, None, 0.0, 0);
        Self {
            version,
            step,
            done,
            key,
            program,
            program_hash,
            args,
            inputs,
            outputs,
            exit_code,
            seconds,
            peak_rss_bytes,
        }
    }

    /// Where the record of a step lies.
    pub(crate) fn path(run_dir: &Path, step: &str) -> PathBuf {
        run_dir.join("steps").join(format!("{step}.json"))
    }

    /// Reads the record of a step; a record that cannot be read counts as none, so that the step runs again.
    pub(crate) fn load(run_dir: &Path, step: &str) -> Option<Self> {
        let bytes = artifact::read_bounded(&Self::path(run_dir, step), MAX_BYTES).ok()?;
        let record: Self = serde_json::from_slice(&bytes).ok()?;
        (record.version == Self::VERSION && record.step == step).then_some(record)
    }

    /// Writes the record atomically.
    pub(crate) fn write(&self, run_dir: &Path) -> Result<()> {
        let path = Self::path(run_dir, &self.step);
        let text = serde_json::to_string_pretty(self).context("a record always serialises")? + "\n";
        Ok(artifact::write_atomic(&path, text.as_bytes())?)
    }
}

/// The identity of a step's work: program name, arguments as written in the pipeline file, and the content of every
/// input. A step with an unchanged key and unchanged outputs is not run again.
///
/// Not part of it: the name of the run and the device (they do not say what is computed), and the program's own bytes.
/// A rebuilt program would otherwise throw away days of training; the table says when a step was made by another build,
/// and `--from` runs it again.
pub(crate) fn key(program: &str, args: &[String], inputs: &BTreeMap<String, String>) -> String {
    let parts = std::iter::once(program)
        .chain(args.iter().map(String::as_str))
        .chain(std::iter::once("inputs"))
        .chain(inputs.iter().flat_map(|(name, hash)| [name.as_str(), hash.as_str()]));
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    artifact::hash_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_depends_on_program_arguments_and_inputs() {
        let inputs = |hash: &str| BTreeMap::from([("a".to_owned(), hash.to_owned())]);
        let args = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let base = key("p", &args("x y"), &inputs("1"));
        assert_eq!(key("p", &args("x y"), &inputs("1")), base);
        for other in [
            key("q", &args("x y"), &inputs("1")),
            key("p", &args("x"), &inputs("1")),
            key("p", &args("xy"), &inputs("1")),
            key("p", &args("x y"), &inputs("2")),
            key("p", &args("x y"), &BTreeMap::new()),
            key("p", &args("x y inputs a 1"), &BTreeMap::new()),
        ] {
            assert_ne!(other, base);
        }
    }

    #[test]
    fn a_damaged_record_is_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("steps")).unwrap();
        let mut record = Record::started("ingest", "p", "h".into(), vec!["x".into()], "k".into(), BTreeMap::new());
        (record.exit_code, record.seconds) = (Some(0), 0.1 + 0.2);
        assert_eq!(Record::load(dir.path(), "ingest"), None);
        record.write(dir.path()).unwrap();
        assert_eq!(Record::load(dir.path(), "ingest"), Some(record));
        std::fs::write(Record::path(dir.path(), "ingest"), "{\"version\": 1").unwrap();
        assert_eq!(Record::load(dir.path(), "ingest"), None);
    }
}
