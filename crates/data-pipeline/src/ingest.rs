//! Sources to cleaned text: read, check licences, clean, filter, deduplicate, decontaminate, split, write.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::clean::{CleanConfig, clean};
use crate::code::{CodeConfig, judge_code};
use crate::decontaminate::{DecontaminateConfig, Measured};
use crate::dedup::{Dedup, content_key};
use crate::documents::TextWriter;
use crate::error::{DataError, Result};
use crate::folder::{OutDir, REPORT, read_bounded};
use crate::licence::LicencePolicy;
use crate::progress;
use crate::quality::{QualityConfig, Reason, judge};
use crate::report::{Report, Step};
use crate::source::{SourceConfig, TextRecord, source_hash};
use crate::split::{SplitConfig, SplitName};

/// Records that are cleaned in parallel before any is written.
const BATCH: usize = 1024;
/// Bytes of text after which a batch ends early.
const BATCH_BYTES: usize = 32 << 20;
/// Largest configuration file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Bytes of a bad line that its error shows.
const SHOWN_BYTES: usize = 80;

/// Everything that `ingest` needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngestConfig {
    /// Where the text comes from, in the order in which duplicates are decided: the first one stays.
    pub source: Vec<SourceConfig>,
    /// What is cleaned.
    #[serde(default)]
    pub clean: CleanConfig,
    /// What prose looks like.
    #[serde(default)]
    pub quality: QualityConfig,
    /// What written code looks like, for sources that are crates.
    #[serde(default)]
    pub code: CodeConfig,
    /// What no document may share text with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decontaminate: Option<DecontaminateConfig>,
    /// Whether equal documents are dropped.
    #[serde(default = "yes")]
    pub dedup: bool,
    /// What is held out.
    #[serde(default)]
    pub split: SplitConfig,
    /// Which licences are allowed.
    #[serde(default)]
    pub licences: LicencePolicy,
}

fn yes() -> bool {
    true
}

impl IngestConfig {
    /// Sources under the default rules.
    pub fn new(source: Vec<SourceConfig>) -> Self {
        Self {
            source,
            clean: CleanConfig::default(),
            quality: QualityConfig::default(),
            code: CodeConfig::default(),
            decontaminate: None,
            dedup: true,
            split: SplitConfig::default(),
            licences: LicencePolicy::default(),
        }
    }

    /// Reads a TOML file; relative paths in it start at the file's folder.
    ///
    /// # Errors
    /// [`DataError::Toml`] names unknown, duplicate, missing and ill-typed keys; [`DataError::BadConfig`] values out of
    /// range.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = read_bounded(path, "file size in bytes", MAX_CONFIG_BYTES)?;
        let toml = |at: usize, message: String| {
            let line = bytes[..at.min(bytes.len())].iter().filter(|&&b| b == b'\n').count();
            let text = bytes.split(|&b| b == b'\n').nth(line).unwrap_or_default();
            let text = String::from_utf8_lossy(&text[..text.len().min(SHOWN_BYTES)]).into_owned();
            DataError::Toml { path: path.to_path_buf(), line: line + 1, text, message }
        };
        let text = std::str::from_utf8(&bytes).map_err(|e| toml(e.valid_up_to(), e.to_string()))?;
        // The parser's own display repeats the line, however long it is.
        let parsed: Result<Self, _> = toml::from_str(text);
        let mut config = parsed.map_err(|e| toml(e.span().map_or(0, |s| s.start), e.message().to_owned()))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        let sources = config.source.iter_mut().flat_map(|source| &mut source.paths);
        let measured = config.decontaminate.iter_mut().flat_map(|d| &mut d.against);
        sources.chain(measured).for_each(|path| *path = dir.join(&path));
        config.check()?;
        Ok(config)
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// [`DataError::BadConfig`].
    pub fn check(&self) -> Result<()> {
        self.quality.check()?;
        self.code.check()?;
        self.split.check()?;
        let bad = |key, expected, found: String| Err(DataError::BadConfig { key, expected, found });
        if self.source.is_empty() {
            return bad("source", "at least one [[source]]", "none".into());
        }
        for source in &self.source {
            if source.name.is_empty() || source.paths.is_empty() {
                return bad("source.name, source.paths", "a name and at least one path", format!("{source:?}"));
            }
            if source.max_line_bytes == 0 {
                return bad("source.max_line_bytes", "at least 1", "0".into());
            }
            if source.crates && (source.hash.is_some() || source.licence.is_some()) {
                let expected = "neither with `crates`: each crate has its own";
                return bad(
                    "source.hash, source.licence",
                    expected,
                    format!("{:?}", source.hash.as_ref().or(source.licence.as_ref())),
                );
            }
            if !source.crates && !source.skip.is_empty() {
                return bad("source.skip", "nothing without `crates`", format!("{:?}", source.skip));
            }
        }
        Ok(())
    }
}

/// Runs all steps and writes `out/train` and, unless nothing is held out, `out/heldout`, with `out/report.json`; the
/// folder appears whole or not at all.
///
/// # Errors
/// Whatever is wrong with a source or a record of it; a licence that is not allowed; nothing left in a part.
pub fn ingest(config: &IngestConfig, out: &Path, overwrite: bool) -> Result<Report> {
    config.check()?;
    let dest = out;
    let out = OutDir::create(dest, overwrite)?;
    let mut run = Run::new(config, out.path())?;
    let mut sources = Vec::new();
    for source in &config.source {
        sources.extend(source.expand()?);
    }
    let total = sources.iter().map(total_bytes).sum::<Result<u64>>()?;
    let bar = progress::bytes("ingest", total);
    for source in &sources {
        let hash = source_hash(source)?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        source.read(&mut |record| {
            bytes += record.text.len();
            batch.push(record);
            if batch.len() == BATCH || bytes >= BATCH_BYTES {
                run.batch(source, &hash, std::mem::take(&mut batch))?;
                bar.inc(std::mem::take(&mut bytes) as u64);
            }
            Ok(())
        })?;
        run.batch(source, &hash, batch)?;
        bar.inc(bytes as u64);
    }
    bar.finish_and_clear();
    let report = run.finish(dest)?;
    out.write(REPORT, report.to_json(out.path())?.as_bytes())?;
    out.commit()?;
    Ok(report)
}

/// Size of a source's files; compressed ones are counted as they are, the bar then runs ahead.
fn total_bytes(source: &SourceConfig) -> Result<u64> {
    let size = |path: PathBuf| std::fs::metadata(&path).map(|m| m.len()).map_err(DataError::io("read", &path));
    source.files()?.into_iter().map(|(path, _)| size(path)).sum()
}

/// What the parallel part found out about a record.
struct Checked {
    record: TextRecord,
    bytes_in: usize,
    masked: usize,
    reason: Option<&'static str>,
    key: [u8; 16],
    overlaps: bool,
}

struct Run<'a> {
    config: &'a IngestConfig,
    steps: [Step; 6],
    measured: Option<Measured>,
    ids: HashSet<blake3::Hash>,
    licences: HashSet<(String, String)>,
    dedup: Dedup,
    train: TextWriter,
    heldout: Option<TextWriter>,
    counts: [u64; 2],
}

impl<'a> Run<'a> {
    fn new(config: &'a IngestConfig, dir: &Path) -> Result<Self> {
        let writer = |split: SplitName| {
            let dir = dir.join(split.as_str());
            std::fs::create_dir(&dir).map_err(DataError::io("create", &dir))?;
            TextWriter::new(&dir, split.as_str())
        };
        let holds_out = |s: &SourceConfig| s.split.map_or(config.split.holds_out(), |s| s == SplitName::Heldout);
        let heldout = config.source.iter().any(holds_out);
        Ok(Self {
            config,
            steps: ["clean", "quality", "dedup", "decontaminate", "train", "heldout"].map(Step::new),
            measured: config.decontaminate.as_ref().map(Measured::read).transpose()?,
            ids: HashSet::new(),
            licences: HashSet::new(),
            dedup: Dedup::new(),
            train: writer(SplitName::Train)?,
            heldout: heldout.then(|| writer(SplitName::Heldout)).transpose()?,
            counts: [0; 2],
        })
    }

    /// Cleans and judges records in parallel, then decides about each in order.
    fn batch(&mut self, source: &SourceConfig, hash: &str, records: Vec<TextRecord>) -> Result<()> {
        let (config, measured) = (self.config, self.measured.as_ref());
        let check = |mut record: TextRecord| {
            let bytes_in = record.text.len();
            let cleaned = clean(&record.text, &config.clean);
            let reason = match source {
                SourceConfig { quality: false, .. } => None,
                SourceConfig { crates: true, .. } => judge_code(&cleaned.text, &config.code),
                _ => judge(&cleaned.text, &config.quality).map(Reason::as_str),
            };
            let key = content_key(&cleaned.text);
            let overlaps = measured.is_some_and(|measured| measured.overlaps(&cleaned.text));
            record.text = cleaned.text;
            Checked { record, bytes_in, masked: cleaned.masked, reason, key, overlaps }
        };
        let checked: Vec<Checked> = records.into_par_iter().map(check).collect();
        checked.into_iter().try_for_each(|record| self.decide(source, hash, record))
    }

    fn decide(&mut self, source: &SourceConfig, hash: &str, checked: Checked) -> Result<()> {
        let Checked { record, bytes_in, masked, reason, key, overlaps } = checked;
        self.require_licence_and_new_id(&record)?;
        let [cleaned, quality, dedup, decontaminate, train, heldout] = &mut self.steps;
        let bytes = record.text.len();
        if record.text.is_empty() {
            cleaned.drop_row(bytes_in, "nothing left");
            return Ok(());
        }
        cleaned.keep(bytes_in, bytes);
        if masked > 0 {
            *cleaned.notes.entry("pieces of personal data masked".into()).or_default() += masked as u64;
        }
        if let Some(reason) = reason {
            quality.drop_row(bytes, reason);
            return Ok(());
        }
        quality.keep(bytes, bytes);
        if self.config.dedup && !self.dedup.insert(key) {
            dedup.drop_row(bytes, "duplicate");
            return Ok(());
        }
        dedup.keep(bytes, bytes);
        if overlaps {
            decontaminate.drop_row(bytes, "shares a run of words with a measured text");
            return Ok(());
        }
        decontaminate.keep(bytes, bytes);
        let by_id = || self.config.split.is_heldout(&record.source, &record.id);
        let is_heldout = source.split.map_or_else(by_id, |split| split == SplitName::Heldout);
        match self.heldout.as_mut().filter(|_| is_heldout) {
            Some(writer) => {
                heldout.keep(bytes, bytes);
                self.counts[1] += 1;
                writer.push(record, hash)
            }
            None => {
                train.keep(bytes, bytes);
                self.counts[0] += 1;
                self.train.push(record, hash)
            }
        }
    }

    fn require_licence_and_new_id(&mut self, record: &TextRecord) -> Result<()> {
        let terms = (record.source.clone(), record.licence.clone());
        if !self.licences.contains(&terms) {
            self.config.licences.check(&terms.0, &terms.1)?;
            self.licences.insert(terms);
        }
        // Parquet and JSONL ids come from others; one id for two documents would tie their split together.
        if !self.ids.insert(blake3::hash(format!("{:?} {:?}", record.source, record.id).as_bytes())) {
            return Err(DataError::DuplicateId { name: record.source.clone(), id: record.id.clone() });
        }
        Ok(())
    }

    fn finish(self, dest: &Path) -> Result<Report> {
        let unknown = |name: &&String| !self.licences.iter().any(|(source, _)| source == *name);
        if let Some(name) = self.config.split.sources.iter().find(unknown) {
            let (key, expected) = ("split.sources", "names of sources that have documents");
            return Err(DataError::BadConfig { key, expected, found: name.clone() });
        }
        let wanted = [Some(&self.train), self.heldout.as_ref()];
        for ((split, count), writer) in [SplitName::Train, SplitName::Heldout].iter().zip(self.counts).zip(wanted) {
            if writer.is_some() && count == 0 {
                return Err(DataError::Empty { path: dest.join(split.as_str()) });
            }
        }
        self.train.finish()?;
        if let Some(heldout) = self.heldout {
            heldout.finish()?;
        }
        let decontaminated = self.measured.is_some();
        let steps = self.steps.into_iter().filter(|step| decontaminated || step.name != "decontaminate");
        Ok(Report::new("ingest", steps.collect()))
    }
}
