//! Finds documents that share a run of words with texts that models are measured on.
//!
//! # Source
//! Brown et al., "Language Models are Few-Shot Learners", arXiv 2005.14165, appendix C: overlap by 13-grams. Ours differs: a
//! document that overlaps is dropped whole.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{DataError, Result};
use crate::source::jsonl::JsonLines;
use crate::source::{SourceConfig, SourceFormat};

/// What documents are compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecontaminateConfig {
    /// Files of text, Rust or JSONL, and folders with such files at any depth. Relative to the configuration file. Of a
    /// line of JSONL every string of its object counts, as a text of its own.
    pub against: Vec<PathBuf>,
    /// Words of a run; texts with fewer words are not compared.
    #[serde(default = "words_of_a_run")]
    pub words: usize,
}

fn words_of_a_run() -> usize {
    13
}

/// The runs of words of the texts that models are measured on, as 64-bit hashes.
#[derive(Debug)]
pub struct Measured {
    runs: HashSet<u64>,
    words: usize,
}

impl Measured {
    /// Reads all texts of the configuration.
    ///
    /// # Errors
    /// [`DataError::BadConfig`] for a run of no words or nothing to compare with; what is wrong with a file or a line.
    pub fn read(config: &DecontaminateConfig) -> Result<Self> {
        let bad = |key, expected, found: &str| Err(DataError::BadConfig { key, expected, found: found.into() });
        if config.words == 0 {
            return bad("decontaminate.words", "at least 1", "0");
        }
        let mut measured = Self { runs: HashSet::new(), words: config.words };
        for path in &config.against {
            let mut source = SourceConfig::new("measured", vec![path.clone()], None);
            source.recursive = true;
            for (file, format) in source.files()? {
                measured.add_file(&file, format)?;
            }
        }
        if measured.runs.is_empty() {
            return bad("decontaminate.against", "texts of at least `words` words", "none");
        }
        Ok(measured)
    }

    fn add_file(&mut self, file: &Path, format: SourceFormat) -> Result<()> {
        if format == SourceFormat::Jsonl {
            for line in JsonLines::<serde_json::Map<String, Value>>::open(file)? {
                let texts = line?.1;
                texts.values().filter_map(Value::as_str).for_each(|text| self.add(text));
            }
            return Ok(());
        }
        let mut one = SourceConfig::new("measured", vec![file.to_path_buf()], None);
        one.format = Some(format);
        one.read(&mut |record| {
            self.add(&record.text);
            Ok(())
        })
    }

    fn add(&mut self, text: &str) {
        self.runs.extend(runs(without_terms(text), self.words));
    }

    /// Whether the document shares a run with a measured text.
    pub fn overlaps(&self, text: &str) -> bool {
        runs(text, self.words).any(|run| self.runs.contains(&run))
    }
}

/// The text after a head of plain comments that states a licence: such heads say the same in thousands of files.
fn without_terms(text: &str) -> &str {
    let lines = text.split_inclusive('\n').take_while(|line| line.starts_with("//") && !line.starts_with("//!"));
    let head = &text[..lines.map(str::len).sum()];
    let lower = head.to_lowercase();
    if lower.contains("licen") || lower.contains("copyright") { &text[head.len()..] } else { text }
}

/// A hash of every run of `n` words; a word is letters, digits and underscores in a row.
fn runs(text: &str, n: usize) -> impl Iterator<Item = u64> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    let words: Vec<u64> = words.map(|word| hash(&word)).collect();
    let last = (words.len() + 1).saturating_sub(n);
    (0..last).map(move |at| hash(&words[at..at + n]))
}

fn hash<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen";

    fn measured(files: &[(&str, &str)], words: usize) -> Result<Measured> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Measured::read(&DecontaminateConfig { against: vec![dir.path().into()], words })
    }

    #[test]
    fn a_document_with_a_run_of_a_measured_text_is_found() {
        let tasks =
            measured(&[("a/lib.rs", TASK), ("tasks.jsonl", "{\"n\":1,\"code\":\"let x = 1;\\nlet y = 2;\"}\n")], 13)
                .unwrap();
        for (text, want) in [
            ("one, two: three(four) { five.six[seven] } eight + nine; ten eleven twelve == thirteen!", true),
            ("zero two three four five six seven eight nine ten eleven twelve thirteen fourteen", true),
            ("one two three four five six seven EIGHT nine ten eleven twelve thirteen fourteen", false),
            ("one two three", false),
            ("let x = 1; let y = 2;", false),
            ("", false),
        ] {
            assert_eq!(tasks.overlaps(text), want, "{text}");
        }
        let short = measured(&[("tasks.jsonl", "{\"n\":1,\"code\":\"let x = 1;\\nlet y = 2;\"}\n")], 6).unwrap();
        assert!(short.overlaps("fn f() { let x = 1;\n    let y = 2; }"));
    }

    #[test]
    fn terms_at_the_head_of_a_file_are_no_overlap() {
        let terms =
            "// Copyright of nobody.\n// Licensed to everybody who reads this line to its end and no further.\n";
        let tasks = measured(&[("lib.rs", &format!("{terms}{TASK}"))], 13).unwrap();
        assert!(tasks.overlaps(TASK) && !tasks.overlaps(&terms.repeat(2)));
        let spoken = "// The prompt of a task says what its function is for, in words of its own.\nfn f() {}\n";
        assert!(measured(&[("lib.rs", spoken)], 13).unwrap().overlaps(spoken));
    }

    #[test]
    fn nothing_to_compare_with_is_refused() {
        assert!(measured(&[("lib.rs", "too short")], 13).unwrap_err().to_string().contains("decontaminate.against"));
        assert!(measured(&[("lib.rs", TASK)], 0).unwrap_err().to_string().contains("decontaminate.words"));
        assert!(measured(&[("lib.toml", TASK)], 13).unwrap_err().to_string().contains("no input"));
        assert!(measured(&[("a.jsonl", "[1]\n")], 13).unwrap_err().to_string().contains("a.jsonl:1"));
    }
}
