//! Clippy's warnings: places where code can be written in a way that clippy complains of, and their repair.

use super::bench::{Bench, Made, Outcome};
use super::change::{Edit, Hunk, alternatives};
use super::random::Dice;
use super::record::{Kind, Trajectory};
use super::source::{functions, mask};
use crate::tools::ExecutorError;

/// A file with one place written in a worse way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Site {
    pub(super) path: String,
    /// The lint that should complain.
    pub(super) lint: &'static str,
    pub(super) text: String,
}

/// Every place of a file, in order.
pub(super) fn sites(path: &str, text: &str) -> Vec<Site> {
    let code = mask(text);
    let mut found: Vec<(usize, Site)> = Vec::new();
    let mut add = |at: usize, end: usize, new: String, lint| {
        let text = format!("{}{new}{}", &text[..at], &text[end..]);
        found.push((at, Site { path: path.into(), lint, text }));
    };
    for function in functions(text).into_iter().filter(|function| !function.in_tests) {
        let body = function.body.clone();
        let mut at = body.start;
        let lines: Vec<&str> = code[body.clone()].split_inclusive('\n').collect();
        for (i, line) in lines.iter().enumerate() {
            let (start, words) = (at + line.len() - line.trim_start().len(), line.trim());
            let end = start + words.len();
            let original = &text[start..end];
            // The value of the function: its last line, an expression by itself.
            if i + 2 == lines.len() && is_value(words, lines.get(i.wrapping_sub(1)).copied()) {
                add(start, end, format!("return {original};"), "clippy::needless_return");
                let indent = " ".repeat(line.len() - line.trim_start().len());
                add(start, end, format!("let value = {original};\n{indent}value"), "clippy::let_and_return");
            }
            if let Some((left, operator, right)) = assigned(words) {
                let left = &text[start..start + left.len()];
                let right = &text[end - 1 - right.len()..end - 1];
                add(start, end, format!("{left} = {left} {operator} {right};"), "clippy::assign_op_pattern");
            }
            at += line.len();
        }
        for (found_at, what) in code[body.clone()].match_indices(".is_empty()") {
            let place = body.start + found_at;
            let line = code[..place].rfind('\n').map_or(0, |line| line + 1);
            let negated = code[line..place].contains('!');
            if !negated {
                add(place, place + what.len(), ".len() == 0".into(), "clippy::len_zero");
            }
        }
        for (found_at, what) in code[body.clone()].match_indices(".is_none()") {
            let place = body.start + found_at;
            let value = code[..place].rfind(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'));
            let from = value.map_or(0, |at| at + 1);
            if from < place && !code[..from].ends_with('!') {
                let new = format!("!{}.is_some()", &text[from..place]);
                add(from, place + what.len(), new, "clippy::nonminimal_bool");
            }
        }
    }
    found.sort_by(|(a, x), (b, y)| (a, x.lint).cmp(&(b, y.lint)));
    found.into_iter().map(|(_, site)| site).collect()
}

/// Whether a line is an expression of its own, given the line before it.
fn is_value(words: &str, before: Option<&str>) -> bool {
    let before = before.map(str::trim_end).unwrap_or_default();
    let begins = before.ends_with([';', '{', '}']) || before.trim().is_empty();
    let plain = words.starts_with(|c: char| c.is_alphanumeric() || "_(!*&".contains(c));
    let keyword = ["let ", "return", "match ", "if ", "for ", "while ", "loop", "unsafe"];
    let whole = words.matches(['(', '[', '{']).count() == words.matches([')', ']', '}']).count();
    begins
        && plain
        && whole
        && !words.ends_with([';', '{', '}', ','])
        && !keyword.iter().any(|word| words.starts_with(word))
}

/// The parts of `a += b;`.
fn assigned(words: &str) -> Option<(&str, &'static str, &str)> {
    let words = words.strip_suffix(';')?;
    let (left, operator, right) =
        [(" += ", "+"), (" -= ", "-"), (" *= ", "*")].into_iter().find_map(|(what, operator)| {
            let (left, right) = words.split_once(what)?;
            Some((left, operator, right))
        })?;
    let name = left.chars().all(|c| c.is_alphanumeric() || "_.".contains(c)) && !left.is_empty();
    let simple = right.chars().all(|c| c.is_alphanumeric() || "_.()".contains(c));
    (name && simple).then_some((left, operator, right))
}

/// Makes a trajectory of a place.
pub(super) fn make(bench: &mut Bench<'_, '_>, site: &Site, dice: &mut Dice) -> Result<Outcome, ExecutorError> {
    let path = site.path.as_str();
    let Some(base) = bench.base_text(path).map(str::to_owned) else { return Ok(Outcome::Dropped("file_not_in_crate")) };
    let only = ["cargo", "clippy", "--", "-A", "clippy::all", "-W", site.lint];
    bench.begin(path, &base)?;
    // A crate with warnings of its own is asked for this lint alone.
    let mut command: &[&str] = &["cargo", "clippy"];
    bench.command(command)?;
    if !bench.executor.diagnostics().is_empty() {
        command = &only;
        bench.command(command)?;
        if !bench.executor.diagnostics().is_empty() {
            return Ok(Outcome::Dropped("crate_has_warnings"));
        }
    }
    bench.begin(path, &site.text)?;
    let mut trajectory = Trajectory::default();
    let said = bench.command(command)?;
    let warned = bench.executor.diagnostics().iter().any(|one| one.code.as_deref() == Some(site.lint));
    if !said.status().is_success() || !warned {
        return Ok(Outcome::Dropped("clippy_says_nothing"));
    }
    let lint = site.lint.trim_start_matches("clippy::");
    let mut request = bench.words(dice).say(
        "Clippy warns in {crate}. Fix it.",
        &[
            "`{command}` warns about the crate `{crate}`. Repair what it says and keep the tests green.",
            "Clippy has something to say about `{crate}` (run `{command}`). Please fix it.",
        ],
        &[("crate", bench.krate), ("command", &command.join(" "))],
    );
    if command.len() > 2 {
        request += &bench.words(dice).say(" Lint: {lint}.", &[" The lint is `{lint}`."], &[("lint", site.lint)]);
    }
    trajectory.think(bench.words(dice).say("Run clippy.", &["I run clippy first.", "What does clippy say?"], &[]));
    trajectory.executed(said);
    let hunk = Hunk::between(&site.text, &base);
    let window = bench.window(path, &site.text, &hunk);
    bench.show(&window, &mut trajectory, &mut request, dice)?;

    let mut swapped = if dice.happens(bench.config.multi_step_ratio) {
        alternatives(&base, hunk.at, hunk.at + hunk.new.len())
    } else {
        Vec::new()
    };
    dice.shuffle(&mut swapped);
    let wrong_attempts = bench.tell_wrong_attempt(path, &site.text, &swapped, &window.what, &mut trajectory, dice)?;
    let now = bench.executor.text(path).unwrap_or_default().to_owned();
    let right = Hunk::between(&now, &base);
    trajectory.think(bench.words(dice).say(
        "{lint} at line {line}.",
        &["Clippy's {lint} at line {line}: I write it as it says.", "Line {line} is {lint}; that is easy to change."],
        &[("lint", lint), ("line", &right.line.to_string())],
    ));
    let patched = bench.change(path, &base)?;
    if !patched.status().is_success() {
        return Ok(Outcome::Dropped("patch_refused"));
    }
    trajectory.executed(patched);
    trajectory.think(bench.words(dice).say("Clippy.", &["Clippy again.", "Is clippy content now?"], &[]));
    let clean = bench.command(command)?;
    if !clean.status().is_success() || !bench.executor.diagnostics().is_empty() {
        return Ok(Outcome::Dropped("final_state_warns"));
    }
    trajectory.executed(clean);
    trajectory.think(bench.words(dice).check_again());
    let last = bench.run_tests()?;
    if !last.status().is_success() || bench.passed() == 0 {
        return Ok(Outcome::Dropped("final_state_fails"));
    }
    trajectory.executed(last);
    let passed = bench.passed();
    let answer = bench.words(dice).done(path, right.line, &window.what, passed);
    let start = vec![Edit::between(path, &base, &site.text)];
    let kind = Kind::FixClippyWarnings;
    Ok(Outcome::Made(Box::new(Made { kind, request, trajectory, answer, start, wrong_attempts })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_in_the_worse_way() {
        let text = "pub fn f(mut a: usize, v: &[u8], o: Option<u8>) -> usize {\n    a += v.len();\n    \
                    if v.is_empty() || o.is_none() {\n        a -= 1;\n    }\n    a + 1\n}\n\n\
                    fn g(v: &[u8]) -> bool {\n    !v.is_empty()\n}\n\nfn h(x: u8) -> u8 {\n    x\n        .max(1)\n}\n";
        let got: Vec<(&str, String)> = sites("src/lib.rs", text)
            .into_iter()
            .map(|site| (site.lint, Hunk::between(text, &site.text).new.trim().to_owned()))
            .collect();
        assert_eq!(
            got,
            [
                ("clippy::assign_op_pattern", "a = a + v.len();".to_owned()),
                ("clippy::len_zero", "if v.len() == 0 || o.is_none() {".to_owned()),
                ("clippy::nonminimal_bool", "if v.is_empty() || !o.is_some() {".to_owned()),
                ("clippy::assign_op_pattern", "a = a - 1;".to_owned()),
                ("clippy::let_and_return", "let value = a + 1;\n    value".to_owned()),
                ("clippy::needless_return", "return a + 1;".to_owned()),
                ("clippy::let_and_return", "let value = !v.is_empty();\n    value".to_owned()),
                ("clippy::needless_return", "return !v.is_empty();".to_owned()),
            ]
        );
    }
}
