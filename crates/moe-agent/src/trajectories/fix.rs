//! Repairs: of failing tests, of panics in the crate's own code, of what does not compile.

use super::bench::{Bench, Made, Outcome, around};
use super::change::{Edit, Hunk, alternatives};
use super::random::Dice;
use super::record::{Kind, Trajectory};
use super::source::is_test_line;
use crate::tools::{Arguments, CargoDoc, ExecutorError, ReadError, RepoSearch, Tool};

/// How often a message of the compiler is read in full, a function is searched, and its documentation looked up.
const READ_ERROR: f64 = 0.4;
const SEARCH: f64 = 0.8;
const DOCUMENTATION: f64 = 0.3;

/// A file with a fault, and without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Folder of the crate.
    pub(super) krate: String,
    pub(super) path: String,
    pub(super) buggy: String,
    pub(super) fixed: String,
    /// Other faulty versions of the same file, which were faulty at the same place.
    pub(super) others: Vec<String>,
}

/// Makes a trajectory of a fault.
pub(super) fn make(bench: &mut Bench<'_, '_>, fault: &Fault, dice: &mut Dice) -> Result<Outcome, ExecutorError> {
    let (path, fixed) = (fault.path.as_str(), fault.fixed.as_str());
    let Some(base) = bench.base_text(path) else { return Ok(Outcome::Dropped("file_not_in_crate")) };
    let start = vec![Edit::between(path, base, &fault.buggy)];
    let hunk = Hunk::between(&fault.buggy, fixed);
    bench.begin(path, &fault.buggy)?;
    let mut trajectory = Trajectory::default();

    let first = bench.run_tests()?;
    if first.status().is_success() {
        return Ok(Outcome::Dropped("fault_passes"));
    }
    let kind = kind(bench);
    if !bench.config.kinds.contains(&kind) {
        return Ok(Outcome::Dropped("kind_not_wanted"));
    }
    let compiles = kind != Kind::FixCompilationErrors;
    let mut request = bench.words(dice).request_fix(bench.krate, compiles);
    if !compiles && bench.has(Tool::RunCommand) && dice.happens(0.5) {
        let check = bench.command(&["cargo", "check"])?;
        if check.status().is_success() {
            return Ok(Outcome::Dropped("only_tests_do_not_compile"));
        }
        trajectory.think(bench.words(dice).begin_check());
        trajectory.executed(check);
    } else {
        trajectory.think(bench.words(dice).begin_tests());
        trajectory.executed(first);
    }
    trajectory.think(bench.seen(dice));
    let window = bench.window(path, &fault.buggy, &hunk);
    look_up(
        bench,
        compiles,
        &window.what,
        around(&fault.buggy, hunk.at).is_some_and(|f| f.is_public),
        &mut trajectory,
        dice,
    )?;
    bench.show(&window, &mut trajectory, &mut request, dice)?;

    let wanted = dice.happens(bench.config.multi_step_ratio);
    let candidates = if wanted { candidates(fault, &hunk, dice) } else { Vec::new() };
    let wrong_attempts =
        bench.tell_wrong_attempt(path, &fault.buggy, &candidates, &window.what, &mut trajectory, dice)?;
    let now = bench.executor.text(path).unwrap_or_default().to_owned();
    let right = Hunk::between(&now, fixed);
    let what = bench.words(dice).before_patch(right.line, right.old, right.new, &window.what);
    trajectory.think(what);
    let patched = bench.change(path, fixed)?;
    if !patched.status().is_success() {
        return Ok(Outcome::Dropped("patch_refused"));
    }
    trajectory.executed(patched);
    trajectory.think(bench.words(dice).check_again());
    let last = bench.run_tests()?;
    if !last.status().is_success() || bench.passed() == 0 {
        return Ok(Outcome::Dropped("final_state_fails"));
    }
    trajectory.executed(last);
    let passed = bench.passed();
    let answer = bench.words(dice).done(path, right.line, &window.what, passed);
    Ok(Outcome::Made(Box::new(Made { kind, request, trajectory, answer, start, wrong_attempts })))
}

/// What is looked up before code is read: the compiler's message, or the function and what it should do.
fn look_up(
    bench: &mut Bench<'_, '_>,
    compiles: bool,
    name: &str,
    is_public: bool,
    trajectory: &mut Trajectory,
    dice: &mut Dice,
) -> Result<(), ExecutorError> {
    if !compiles {
        if bench.may(Tool::ReadError, READ_ERROR, dice) {
            let thought = bench.words(dice).read_message();
            bench.consult(&Arguments::ReadError(ReadError { number: 1 }), thought, trajectory)?;
        }
        return Ok(());
    }
    if bench.may(Tool::RepoSearch, SEARCH, dice) && bench.has(Tool::ReadFile) {
        let thought = bench.words(dice).look_for(name);
        let search = RepoSearch { query: format!("fn {name}"), path: None };
        bench.consult(&Arguments::RepoSearch(search), thought, trajectory)?;
    }
    if is_public && bench.may(Tool::CargoDoc, DOCUMENTATION, dice) {
        let thought = bench.words(dice).look_up(name);
        bench.consult(&Arguments::CargoDoc(CargoDoc { item: name.into() }), thought, trajectory)?;
    }
    Ok(())
}

/// What kind of trouble the last run showed.
fn kind(bench: &Bench<'_, '_>) -> Kind {
    if bench.executor.diagnostics().iter().any(|one| one.is_error()) {
        return Kind::FixCompilationErrors;
    }
    let own = |place: Option<(&str, usize)>| {
        place.is_some_and(|(file, line)| {
            let text = bench.executor.text(file);
            text.is_some_and(|text| !is_test_line(file, text, line))
        })
    };
    let failed = bench.executor.tests().map(|report| report.failed.as_slice()).unwrap_or_default();
    if failed.first().is_some_and(|test| own(test.panicked_at())) { Kind::FixPanics } else { Kind::FixFailingTests }
}

/// Wrong versions of the file: other faults of the same place, then other operators there.
fn candidates(fault: &Fault, hunk: &Hunk<'_>, dice: &mut Dice) -> Vec<String> {
    let mut others = fault.others.clone();
    dice.shuffle(&mut others);
    let end = hunk.at + hunk.new.len();
    let mut swapped = alternatives(&fault.fixed, hunk.at, end);
    dice.shuffle(&mut swapped);
    let differs = |text: &String| *text != fault.buggy && *text != fault.fixed;
    others.into_iter().take(1).chain(swapped).filter(differs).collect()
}
