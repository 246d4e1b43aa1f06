//! Decides for every step whether it has to run, runs it, and remembers what came out.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use gates::artifact;

use super::config::{Kind, Pipeline, Step};
use super::metrics;
use super::place::Place;
use super::record::{Record, key};
use super::summary::{Row, Status, Summary};
use crate::failure::{Failure, USAGE};
use crate::launch::{self, Log};

/// Which steps were asked for.
#[derive(Debug)]
pub(crate) struct Range {
    /// This step and all behind it run even if unchanged; those before it must be up to date.
    pub(crate) from: Option<usize>,
    /// The last step.
    pub(crate) until: usize,
}

/// A pipeline in a place.
pub(crate) struct Engine<'a> {
    place: Place,
    pipeline: &'a Pipeline,
    programs: BTreeMap<String, PathBuf>,
    resume: bool,
    /// Hashes of outputs that were made or verified in this run, by their spelling in the pipeline.
    known: HashMap<String, String>,
}

/// What has to be done about a step.
#[derive(Debug, PartialEq)]
enum Due {
    /// Nothing.
    Nothing(Box<Record>),
    /// It runs; what lies at its outputs is set aside.
    Fresh(&'static str),
    /// It goes on where it was interrupted.
    Continue,
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing(_) => "unchanged",
            Self::Fresh(why) => why,
            Self::Continue => "continued",
        })
    }
}

/// What is asked of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// It runs if it has to.
    Done,
    /// It must not have to run: it stands before `--from`.
    UpToDate,
    /// It runs even if it has not to: it stands at or behind `--from`.
    Anew,
}

impl<'a> Engine<'a> {
    /// An engine whose steps run the given programs.
    pub(crate) fn new(place: Place, pipeline: &'a Pipeline, programs: BTreeMap<String, PathBuf>, resume: bool) -> Self {
        Self { place, pipeline, programs, resume, known: HashMap::new() }
    }

    /// Runs what has to run, prints and writes the table.
    pub(crate) fn run(&mut self, range: &Range) -> Result<()> {
        let mut rows: Vec<Row> = self.pipeline.steps.iter().map(idle_row).collect();
        let mut outcome = Ok(());
        for (i, step) in self.pipeline.steps.iter().enumerate().take(range.until + 1) {
            let wanted = match range.from {
                None => Wanted::Done,
                Some(from) if i < from => Wanted::UpToDate,
                Some(_) => Wanted::Anew,
            };
            println!("\n[{}/{}] {}", i + 1, self.pipeline.steps.len(), step.name);
            let done = self.step(step, wanted, &mut rows[i]);
            if let Err(error) = done {
                outcome = Err(error.context(format!("step `{}`", step.name)));
                break;
            }
        }
        let complete = outcome.is_ok() && range.until + 1 == self.pipeline.steps.len();
        let (version, pipeline) = (Summary::VERSION, self.pipeline.name.clone());
        let summary = Summary { version, pipeline, complete, steps: rows };
        summary.write(&self.place.run_dir())?;
        println!("\n{}", summary.markdown());
        outcome
    }

    fn step(&mut self, step: &Step, wanted: Wanted, row: &mut Row) -> Result<()> {
        let inputs = self.hash_all(&step.inputs).context("cannot hash the inputs")?;
        let key = key(&step.program, &step.args, &inputs);
        let due = self.due(step, &key, wanted)?;
        if let (Wanted::UpToDate, Due::Fresh(_) | Due::Continue) = (wanted, &due) {
            let message = "is not up to date; run without --from, or from this step on";
            return Err(Failure::new(USAGE, message).into());
        }
        let program = self.programs.get(&step.program).context("its program was not built")?.clone();
        let program_hash = artifact::hash_file(&program)?;
        let (mut args, mut log) = (self.fill_all(&step.args), Log::New);
        let record = match due {
            Due::Nothing(record) => {
                println!("unchanged");
                (row.status, row.other_build) = (Status::Unchanged, record.program_hash != program_hash);
                *record
            }
            Due::Fresh(_) | Due::Continue => {
                println!("{due}");
                if due == Due::Continue {
                    args.extend(self.fill_all(&step.resume_args));
                    log = Log::Continued;
                } else {
                    self.set_aside(step)?;
                }
                let record = Record::started(&step.name, &step.program, program_hash, args, key, inputs);
                self.launch(step, &program, record, log, row)?
            }
        };
        self.describe(step, &record, row);
        self.known.extend(record.outputs);
        Ok(())
    }

    /// What has to be done about a step, from its record and what lies on the disk.
    fn due(&self, step: &Step, key: &str, wanted: Wanted) -> Result<Due> {
        let Some(record) = Record::load(&self.place.run_dir(), &step.name) else {
            return Ok(Due::Fresh("not run yet"));
        };
        if record.key != key {
            return Ok(Due::Fresh("inputs or arguments changed"));
        }
        if !record.done {
            return match (step.resume_args.is_empty(), self.resume, wanted) {
                (false, true, _) => Ok(Due::Continue),
                (true, ..) | (_, _, Wanted::Anew) => Ok(Due::Fresh("was interrupted or failed")),
                (false, false, _) => {
                    let name = &step.name;
                    let message = format!("was interrupted; `--resume` continues it, `--from {name}` starts it anew");
                    Err(Failure::new(USAGE, message).into())
                }
            };
        }
        if wanted == Wanted::Anew {
            return Ok(Due::Fresh("asked for with --from"));
        }
        for (output, hash) in &record.outputs {
            if self.place.hash(output).ok().as_ref() != Some(hash) {
                return Ok(Due::Fresh("outputs are missing or were changed"));
            }
        }
        Ok(Due::Nothing(Box::new(record)))
    }

    fn launch(&self, step: &Step, program: &Path, mut record: Record, kind: Log, row: &mut Row) -> Result<Record> {
        let run_dir = self.place.run_dir();
        record.write(&run_dir)?;
        println!("$ {} {}", step.program, record.args.join(" "));
        let log = run_dir.join("logs").join(format!("{}.log", step.name));
        let outcome = launch::run(program, &record.args, &self.place.root, &log, kind)?;
        record.exit_code = Some(outcome.code);
        (record.seconds, record.peak_rss_bytes) = (outcome.seconds, outcome.peak_rss_bytes);
        (row.exit_code, row.status) = (Some(outcome.code), Status::Failed);
        if outcome.code != 0 {
            record.write(&run_dir)?;
            self.describe(step, &record, row);
            let log = log.strip_prefix(&self.place.root).unwrap_or(&log).display();
            let message = format!("`{}` ended with exit code {}; see {log}", step.program, outcome.code);
            return Err(Failure::new(outcome.code, message).into());
        }
        if step.kind == Kind::Stage {
            metrics::require_finished(&step.outputs.iter().map(|output| self.place.path(output)).collect::<Vec<_>>())?;
        }
        for output in &step.outputs {
            let hash = self.place.hash(output).context("the program succeeded but an output cannot be read")?;
            record.outputs.insert(output.clone(), hash);
        }
        record.done = true;
        record.write(&run_dir)?;
        row.status = Status::Ran;
        Ok(record)
    }

    fn describe(&self, step: &Step, record: &Record, row: &mut Row) {
        let outputs: Vec<PathBuf> = step.outputs.iter().map(|output| self.place.path(output)).collect();
        row.passed = metrics::verdict(&outputs);
        row.metrics = metrics::shown(&outputs, &step.show);
        (row.exit_code, row.seconds, row.peak_rss_bytes) = (record.exit_code, record.seconds, record.peak_rss_bytes);
        let artifact = |(output, hash): (&String, &String)| (self.place.fill(output), hash.clone());
        row.artifacts = record.outputs.iter().map(artifact).collect();
    }

    fn hash_all(&self, names: &[String]) -> Result<BTreeMap<String, String>> {
        let hash = |name: &String| {
            let hash = match self.known.get(name) {
                Some(hash) => hash.clone(),
                None => self.place.hash(name)?,
            };
            Ok((name.clone(), hash))
        };
        names.iter().map(hash).collect()
    }

    fn fill_all(&self, texts: &[String]) -> Vec<String> {
        texts.iter().map(|text| self.place.fill(text)).collect()
    }

    /// Moves what lies at a step's outputs to `replaced/`, so that the step starts from nothing and nothing is lost.
    fn set_aside(&self, step: &Step) -> Result<()> {
        let replaced = self.place.run_dir().join("replaced");
        for output in &step.outputs {
            let path = self.place.path(output);
            if path.symlink_metadata().is_ok() {
                std::fs::create_dir_all(&replaced).with_context(|| format!("cannot create {}", replaced.display()))?;
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                let free = (1..).map(|i| replaced.join(format!("{name}.{i}"))).find(|p| p.symlink_metadata().is_err());
                let to = free.context("no free name")?;
                std::fs::rename(&path, &to).with_context(|| format!("cannot move {} away", path.display()))?;
                println!("moved {} to {}", self.place.fill(output), to.strip_prefix(&self.place.root)?.display());
            }
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
            }
        }
        Ok(())
    }
}

fn idle_row(step: &Step) -> Row {
    Row { step: step.name.clone(), kind: step.kind.name().into(), ..Row::default() }
}

#[cfg(test)]
mod tests;
