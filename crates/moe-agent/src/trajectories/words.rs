//! What the model of a trajectory says: a few sentences with the facts of the case put in.

use super::random::Dice;
use crate::tools::{PromptStyle, TestReport};

/// Chooses sentences.
#[derive(Debug)]
pub(super) struct Words<'d> {
    pub(super) dice: &'d mut Dice,
    pub(super) style: PromptStyle,
}

/// Compact requests.
const SHORT_TESTS_FAIL: &str = "Tests of {crate} fail. Fix the bug.";
const SHORT_NO_COMPILE: &str = "{crate} does not compile. Fix it.";

/// The compact request to repair a crate, given as name and version.
pub(crate) fn short_request(krate: &str, compiles: bool) -> String {
    fill(if compiles { SHORT_TESTS_FAIL } else { SHORT_NO_COMPILE }, &[("crate", krate)])
}

/// Most characters of a line of code in a sentence.
const MAX_CODE: usize = 70;

impl Words<'_> {
    /// One of the sentences, or the short one in the compact style, with `{name}` replaced by its value.
    pub(super) fn say(&mut self, short: &str, full: &[&str], facts: &[(&str, &str)]) -> String {
        let chosen = match self.style {
            PromptStyle::Compact => short,
            PromptStyle::Full => self.dice.pick(full),
        };
        fill(chosen, facts)
    }

    pub(super) fn request_fix(&mut self, krate: &str, compiles: bool) -> String {
        let facts = [("crate", krate)];
        if compiles {
            self.say(
                SHORT_TESTS_FAIL,
                &[
                    "The tests of the crate `{crate}` fail. Find the bug and fix it.",
                    "Some tests of `{crate}` do not pass any more. Please repair the code.",
                    "`cargo test` fails for `{crate}`. Find out why and fix it.",
                ],
                &facts,
            )
        } else {
            self.say(
                SHORT_NO_COMPILE,
                &[
                    "The crate `{crate}` does not compile. Fix it.",
                    "`cargo check` fails for `{crate}`. Please repair the code.",
                    "After the last change `{crate}` no longer builds. Make it compile and pass its tests.",
                ],
                &facts,
            )
        }
    }

    pub(super) fn begin_tests(&mut self) -> String {
        self.say(
            "Run the tests.",
            &["I run the tests first.", "Let me see which tests fail.", "First the tests, to see what is wrong."],
            &[],
        )
    }

    pub(super) fn begin_check(&mut self) -> String {
        self.say("Check it.", &["I let the compiler say what is wrong.", "First `cargo check`."], &[])
    }

    /// After a failing run: which test, where, what.
    pub(super) fn seen_failure(&mut self, report: &TestReport) -> String {
        let Some(test) = report.failed.first() else {
            return self.say("The run stops.", &["The tests stop in the middle."], &[]);
        };
        let place = test.panicked_at().map_or_else(String::new, |(file, line)| format!(" at {file}:{line}"));
        let message = clip(test.message().unwrap_or("it fails"));
        let n = report.failed.len().to_string();
        self.say(
            "`{test}` fails{place}.",
            &[
                "`{test}` fails{place}: {message}.",
                "{n} failing, first `{test}`{place}: {message}.",
                "The first failure is `{test}`{place} with \"{message}\".",
            ],
            &[("test", &test.name), ("place", &place), ("message", message), ("n", &n)],
        )
    }

    pub(super) fn seen_error(&mut self, place: &str, message: &str) -> String {
        self.say(
            "Error at {place}.",
            &["The compiler stops at {place}: {message}.", "{place} has an error: {message}."],
            &[("place", place), ("message", clip(message))],
        )
    }

    pub(super) fn look_for(&mut self, name: &str) -> String {
        self.say("Find `{name}`.", &["This leads to `{name}`; where is it?", "I look for `{name}`."], &[("name", name)])
    }

    pub(super) fn read_message(&mut self) -> String {
        self.say("Read it.", &["I read the whole message.", "What does the compiler say exactly?"], &[])
    }

    pub(super) fn look_up(&mut self, name: &str) -> String {
        self.say(
            "What is `{name}`?",
            &[
                "What should `{name}` do? I look at its documentation.",
                "The documentation of `{name}` says what it is for.",
            ],
            &[("name", name)],
        )
    }

    pub(super) fn search_crates(&mut self) -> String {
        self.say(
            "Any crate?",
            &[
                "Is there a crate that does this? I only want to know how it is called.",
                "I look what crates there are for this.",
            ],
            &[],
        )
    }

    pub(super) fn read(&mut self, place: &str) -> String {
        self.say("Read {place}.", &["I read {place}.", "Now the code at {place}."], &[("place", place)])
    }

    /// Before a patch: the line and what it should be.
    pub(super) fn before_patch(&mut self, line: usize, old: &str, new: &str, what: &str) -> String {
        let line = line.to_string();
        match (one_line(old), one_line(new)) {
            (Some(old), Some(new)) => self.say(
                "Line {line}: `{old}` -> `{new}`.",
                &[
                    "Line {line} has `{old}`; it should be `{new}`.",
                    "The cause is line {line}: `{old}`. I change it to `{new}`.",
                    "`{old}` in line {line} is wrong, `{new}` is right.",
                ],
                &[("line", &line), ("old", clip(old)), ("new", clip(new))],
            ),
            _ => self.say(
                "`{what}` is wrong at line {line}.",
                &[
                    "`{what}` is wrong from line {line} on; I write that part anew.",
                    "The code of `{what}` at line {line} must change.",
                ],
                &[("line", &line), ("what", what)],
            ),
        }
    }

    pub(super) fn check_again(&mut self) -> String {
        self.say("Test.", &["Now the tests again.", "I check it with the tests."], &[])
    }

    /// After a wrong attempt.
    pub(super) fn still_wrong(&mut self, seen: &str) -> String {
        self.say(
            "Still wrong. {seen}",
            &["That was not it. {seen}", "My change was wrong: {seen}", "It still fails. {seen}"],
            &[("seen", seen)],
        )
    }

    /// The answer.
    pub(super) fn done(&mut self, path: &str, line: usize, what: &str, passed: usize) -> String {
        let (line, passed) = (line.to_string(), tests_pass(passed));
        self.say(
            "Fixed `{what}` in {path}:{line}; {passed}.",
            &[
                "I fixed `{what}` in {path}, line {line}. Now {passed}.",
                "The bug was in `{what}` ({path}:{line}). It is repaired and {passed}.",
                "Done: {path}:{line}, in `{what}`, is corrected; {passed}.",
            ],
            &[("path", path), ("line", &line), ("what", what), ("passed", &passed)],
        )
    }
}

/// As `3 tests pass`.
pub(super) fn tests_pass(passed: usize) -> String {
    if passed == 1 { "1 test passes".into() } else { format!("{passed} tests pass") }
}

fn fill(text: &str, facts: &[(&str, &str)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out += &rest[..at];
        let end = rest[at..].find('}').map_or(rest.len(), |end| at + end);
        let value = facts.iter().find(|(name, _)| *name == &rest[at + 1..end]);
        out += value.expect("every fact of a sentence is given").1;
        rest = &rest[end + 1..];
    }
    out + rest
}

/// The beginning of a text.
fn clip(text: &str) -> &str {
    let text = text.trim().trim_end_matches('.');
    let end = text.char_indices().nth(MAX_CODE).map_or(text.len(), |(at, _)| at);
    &text[..end]
}

/// The text where it is one line that can be quoted.
fn one_line(text: &str) -> Option<&str> {
    let text = text.trim();
    (!text.is_empty() && !text.contains('\n') && !text.contains('`')).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_put_in_once() {
        assert_eq!(fill("`{a}` and {b}.", &[("a", "{b}"), ("b", "x")]), "`{b}` and x.");
        let mut dice = Dice::new(1, "a");
        let mut words = Words { dice: &mut dice, style: PromptStyle::Full };
        let said = words.before_patch(3, "  a + 1\n", "a - 1\n", "f");
        assert!(said.contains("a + 1") && said.contains("a - 1") && said.contains('3'), "{said}");
        assert!(words.before_patch(3, "a\nb", "c", "f").contains("`f`"));
        let mut again = Dice::new(1, "a");
        let other = Words { dice: &mut again, style: PromptStyle::Full }.before_patch(3, "  a + 1\n", "a - 1\n", "f");
        assert_eq!(said, other, "the same seed says the same");
    }
}
