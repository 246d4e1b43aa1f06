//! One crate under work: an executor over it, and what the kinds of trajectories need to know of it.

use super::change::{Edit, Hunk, patch};
use super::config::Config;
use super::random::Dice;
use super::record::{Kind, Trajectory};
use super::source::{Function, functions, line_at};
use super::words::Words;
use crate::tools::{
    ApplyPatch, Arguments, Executor, ExecutorError, Files, PromptStyle, ReadFile, RunCommand, RunTests, Tool,
    ToolResult,
};

/// Most wrong attempts that are tried for one.
const MAX_TRIED: usize = 3;

/// What became of one thing that was tried.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A trajectory.
    Made(Box<Made>),
    /// None, for this reason.
    Dropped(&'static str),
}

/// A trajectory without its opening and answer.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) kind: Kind,
    pub(super) request: String,
    pub(super) trajectory: Trajectory,
    pub(super) answer: String,
    pub(super) start: Vec<Edit>,
    pub(super) wrong_attempts: usize,
}

/// A crate with its executor.
#[derive(Debug)]
pub(super) struct Bench<'b, 'a> {
    pub(super) executor: &'b mut Executor<'a>,
    /// The crate as it is.
    pub(super) base: &'b Files,
    /// Its name for people.
    pub(super) krate: &'b str,
    pub(super) config: &'b Config,
}

/// Code that is shown to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) path: String,
    /// First and last line, from 1.
    pub(super) lines: (usize, usize),
    /// The function around the place, or the file.
    pub(super) what: String,
}

impl Bench<'_, '_> {
    pub(super) fn call(&mut self, arguments: &Arguments) -> Result<ToolResult, ExecutorError> {
        self.executor.call(&arguments.call())
    }

    pub(super) fn run_tests(&mut self) -> Result<ToolResult, ExecutorError> {
        self.call(&Arguments::RunTests(RunTests::default()))
    }

    pub(super) fn command(&mut self, words: &[&str]) -> Result<ToolResult, ExecutorError> {
        let command = words.iter().map(|word| (*word).to_owned()).collect();
        self.call(&Arguments::RunCommand(RunCommand { command }))
    }

    /// Replaces what differs between the file as it is and `to`.
    pub(super) fn change(&mut self, path: &str, to: &str) -> Result<ToolResult, ExecutorError> {
        let (old, new) = patch(self.executor.text(path).unwrap_or_default(), to);
        self.call(&Arguments::ApplyPatch(ApplyPatch { path: path.into(), old, new }))
    }

    pub(super) fn has(&self, tool: Tool) -> bool {
        self.config.tools.contains(&tool)
    }

    pub(super) fn words<'d>(&self, dice: &'d mut Dice) -> Words<'d> {
        Words { dice, style: self.config.style }
    }

    /// The text of one of the crate's own files.
    pub(super) fn base_text(&self, path: &str) -> Option<&str> {
        std::str::from_utf8(self.base.get(path)?).ok()
    }

    /// Begins with `text` in place of a file.
    pub(super) fn begin(&mut self, path: &str, text: &str) -> Result<(), ExecutorError> {
        let mut files = self.base.clone();
        files.insert(path.into(), text.as_bytes().to_vec());
        self.executor.reset(files)
    }

    /// The lines to look at for a change: the function around it, or as much of it as may be read.
    pub(super) fn window(&self, path: &str, text: &str, hunk: &Hunk<'_>) -> Window {
        let n = text.lines().count().max(1);
        let last = hunk.line + hunk.old.lines().count().max(1) - 1;
        let around = around(text, hunk.at);
        let (mut start, mut end) = around.as_ref().map_or((1, n), |function| {
            (line_at(text, function.item.start), line_at(text, function.item.end.saturating_sub(1)))
        });
        let most = self.config.read_lines.max(last + 3 - hunk.line);
        if end + 1 - start > most {
            let before = (most - (last + 1 - hunk.line)) / 2;
            start = start.max(hunk.line.saturating_sub(before).max(1));
            end = end.min(start + most - 1);
        }
        let what = around.map_or_else(|| path.to_owned(), |function| function.name);
        Window { path: path.into(), lines: (start, end.min(n)), what }
    }

    /// Has the model read a window, or puts it into the request where it has no tool to read.
    pub(super) fn show(
        &mut self,
        window: &Window,
        trajectory: &mut Trajectory,
        request: &mut String,
        dice: &mut Dice,
    ) -> Result<(), ExecutorError> {
        let (start, end) = window.lines;
        let path = window.path.clone();
        if !self.has(Tool::ReadFile) {
            let text = self.executor.text(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().skip(start - 1).take(end + 1 - start).collect();
            *request += &format!("\n\n{path}:{start}\n```\n{}\n```", lines.join("\n"));
            return Ok(());
        }
        let place = format!("{path}:{start}");
        trajectory.think(self.words(dice).read(&place));
        let read = ReadFile { path, start: Some(start), end: Some(end) };
        let result = self.call(&Arguments::ReadFile(read))?;
        trajectory.executed(result);
        Ok(())
    }

    /// Has the model look something up, where there is something to find, and goes on as before where there is not.
    pub(super) fn consult(
        &mut self,
        arguments: &Arguments,
        thought: String,
        trajectory: &mut Trajectory,
    ) -> Result<(), ExecutorError> {
        let before = self.executor.snapshot();
        let result = self.call(arguments)?;
        if !result.status().is_success() {
            return self.executor.restore(before);
        }
        trajectory.think(thought);
        trajectory.executed(result);
        Ok(())
    }

    /// Whether a tool is there, the style leaves room for it, and the dice say so.
    pub(super) fn may(&self, tool: Tool, probability: f64, dice: &mut Dice) -> bool {
        self.has(tool) && self.config.style == PromptStyle::Full && dice.happens(probability)
    }

    /// Tries wrong versions of a file until one fails for real, and leaves it in place: the patch and the run that shows
    /// it. `None`, with everything as it was, when none fails.
    pub(super) fn wrong_attempt(
        &mut self,
        path: &str,
        candidates: &[String],
    ) -> Result<Option<(ToolResult, ToolResult)>, ExecutorError> {
        let before = self.executor.snapshot();
        for text in candidates.iter().take(MAX_TRIED) {
            let patched = self.change(path, text)?;
            if patched.status().is_success() {
                let run = self.run_tests()?;
                if !run.status().is_success() {
                    return Ok(Some((patched, run)));
                }
            }
            self.executor.restore(before.clone())?;
        }
        Ok(None)
    }

    /// [`Self::wrong_attempt`] from the text `from`, told: the patch, the tests that fail with it, and what they show. Gives
    /// how many attempts there were.
    pub(super) fn tell_wrong_attempt(
        &mut self,
        path: &str,
        from: &str,
        candidates: &[String],
        what: &str,
        trajectory: &mut Trajectory,
        dice: &mut Dice,
    ) -> Result<usize, ExecutorError> {
        let Some((patched, run)) = self.wrong_attempt(path, candidates)? else { return Ok(0) };
        let wrong = self.executor.text(path).unwrap_or_default().to_owned();
        let tried = Hunk::between(from, &wrong);
        let thought = self.words(dice).before_patch(tried.line, tried.old, tried.new, what);
        trajectory.wrong_attempt(thought, patched, self.config.supervise_wrong);
        trajectory.think(self.words(dice).check_again());
        trajectory.executed(run);
        let seen = self.seen(dice);
        trajectory.think(self.words(dice).still_wrong(&seen));
        Ok(1)
    }

    /// What the last run showed, as a thought.
    pub(super) fn seen(&self, dice: &mut Dice) -> String {
        let mut words = self.words(dice);
        if let Some(error) = self.executor.diagnostics().iter().find(|one| one.is_error()) {
            return words.seen_error(&format!("{}:{}", error.file, error.line), &error.message);
        }
        words.seen_failure(self.executor.tests().unwrap_or(&crate::tools::TestReport::default()))
    }

    /// How many tests the last run passed.
    pub(super) fn passed(&self) -> usize {
        self.executor.tests().map_or(0, |report| report.passed)
    }
}

/// The innermost function around a byte.
pub(super) fn around(text: &str, at: usize) -> Option<Function> {
    let mut found = functions(text);
    found.retain(|function| function.item.contains(&at));
    found.into_iter().min_by_key(|function| function.item.len())
}
