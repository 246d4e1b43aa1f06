//! Functions written against tests that are there: a public function is taken out, its tests stay.

use super::bench::{Bench, Made, Outcome, Window};
use super::change::{Edit, Hunk, alternatives};
use super::random::Dice;
use super::record::{Kind, Trajectory};
use super::source::{Function, functions, line_at};
use super::words::tests_pass;
use crate::tools::{Arguments, ExecutorError, SearchCratesIo, Tool};

/// Lines of a function that is taken out, at least and at most; `read_lines` is a bound too.
const LINES: (usize, usize) = (3, 60);

/// How often the index of crates is searched first.
const SEARCH_CRATES: f64 = 0.3;

/// Functions that can be taken out of a file.
pub(super) fn sites(text: &str, read_lines: usize) -> Vec<Function> {
    let fits = |function: &Function| {
        let n = text[function.item.clone()].lines().count();
        function.is_public && !function.in_tests && (LINES.0..=LINES.1.min(read_lines)).contains(&n)
    };
    functions(text).into_iter().filter(fits).collect()
}

/// Makes a trajectory of a function.
pub(super) fn make(
    bench: &mut Bench<'_, '_>,
    path: &str,
    function: &Function,
    dice: &mut Dice,
) -> Result<Outcome, ExecutorError> {
    let Some(base) = bench.base_text(path).map(str::to_owned) else { return Ok(Outcome::Dropped("file_not_in_crate")) };
    let name = function.name.as_str();
    let without = format!("{}{}", &base[..function.item.start], &base[function.item.end..]);
    bench.begin(path, &without)?;
    let first = bench.run_tests()?;
    if first.status().is_success() {
        return Ok(Outcome::Dropped("function_has_no_test"));
    }
    let errors: Vec<_> = bench.executor.diagnostics().iter().filter(|one| one.is_error()).collect();
    let about = format!("`{name}`");
    if errors.is_empty() || !errors.iter().all(|one| one.rendered.contains(&about)) {
        return Ok(Outcome::Dropped("more_than_the_function_is_missing"));
    }
    let mut trajectory = Trajectory::default();
    let head = base[function.item.start..function.body.start].trim_end();
    let head: Vec<&str> = head.lines().map(str::trim).collect();
    let mut request = bench.words(dice).say(
        "Add to {path}:\n{head}",
        &[
            "Write this function in {path} of the crate `{crate}`; its tests are there already.\n\n{head}",
            "`{crate}` has tests for a function that is not written yet. Add it to {path}:\n\n{head}",
        ],
        &[("path", path), ("crate", bench.krate), ("head", &head.join("\n"))],
    );
    trajectory.think(bench.words(dice).begin_tests());
    trajectory.executed(first);
    let seen = bench.seen(dice);
    let at = function.item.start;
    let window = place(bench, path, &without, at);
    trajectory.think(bench.words(dice).say(
        "{seen}",
        &["{seen} As expected, `{name}` is missing.", "{seen} So `{name}` is to be written."],
        &[("seen", &seen), ("name", name)],
    ));
    if bench.may(Tool::SearchCratesIo, SEARCH_CRATES, dice) {
        let thought = bench.words(dice).search_crates();
        let query = name.replace('_', " ");
        bench.consult(&Arguments::SearchCratesIo(SearchCratesIo { query }), thought, &mut trajectory)?;
    }
    bench.show(&window, &mut trajectory, &mut request, dice)?;

    let mut wrong_attempts = 0;
    let mut thought = bench.words(dice).say(
        "Write `{name}`.",
        &["Now I write `{name}` at line {line}.", "`{name}` belongs at line {line}; I write it."],
        &[("name", name), ("line", &line_at(&without, at).to_string())],
    );
    let wanted = dice.happens(bench.config.multi_step_ratio);
    let mut swapped = if wanted { alternatives(&base, function.body.start, function.body.end) } else { Vec::new() };
    dice.shuffle(&mut swapped);
    if let Some((patched, run)) = bench.wrong_attempt(path, &swapped)? {
        trajectory.wrong_attempt(thought, patched, bench.config.supervise_wrong);
        trajectory.think(bench.words(dice).check_again());
        trajectory.executed(run);
        let seen = bench.seen(dice);
        let now = bench.executor.text(path).unwrap_or_default().to_owned();
        let right = Hunk::between(&now, &base);
        let what = bench.words(dice).before_patch(right.line, right.old, right.new, name);
        thought = format!("{} {what}", bench.words(dice).still_wrong(&seen));
        wrong_attempts = 1;
    }
    trajectory.think(thought);
    let patched = bench.change(path, &base)?;
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
    let passed = tests_pass(bench.passed());
    let answer = bench.words(dice).say(
        "Wrote `{name}` in {path}; {passed}.",
        &["`{name}` is written in {path}; {passed}.", "I added `{name}` to {path}. Now {passed}."],
        &[("name", name), ("path", path), ("passed", &passed)],
    );
    let start = vec![Edit::between(path, &base, &without)];
    let kind = Kind::AddFeatureWithTdd;
    Ok(Outcome::Made(Box::new(Made { kind, request, trajectory, answer, start, wrong_attempts })))
}

/// The lines before and behind the place where the function belongs.
fn place(bench: &Bench<'_, '_>, path: &str, without: &str, at: usize) -> Window {
    let line = line_at(without, at);
    let n = without.lines().count().max(1);
    let half = (bench.config.read_lines / 2).clamp(3, 12);
    Window {
        path: path.into(),
        lines: (line.saturating_sub(half).max(1).min(n), (line + half / 2).min(n)),
        what: path.into(),
    }
}
