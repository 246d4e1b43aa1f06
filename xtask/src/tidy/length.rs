//! Functions of at most 100 lines and files of at most 800 without their tests; exceptions are listed and only shrink.

use super::Finding;
use super::source::{Source, closing_brace};

/// Most lines of a function, signature and braces included.
const MAX_FUNCTION: usize = 100;
/// Most lines of a file, tests not counted.
const MAX_FILE: usize = 800;

/// Something that may be longer, up to a number that is only ever lowered.
struct Exception {
    path: &'static str,
    /// Name of the function; empty for the file.
    function: &'static str,
    lines: usize,
}

/// Debts. A new entry needs a reason in its commit; an entry that is no longer needed is a finding.
const EXCEPTIONS: [Exception; 0] = [];

/// Checks the lengths in one file.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = file_lines(source);
    let limit = limit(source, "", MAX_FILE);
    if lines > limit {
        findings.push(Finding::new(
            &source.path,
            0,
            format!("{lines} lines without tests, at most {limit}; split the file"),
        ));
    }
    for (name, line, lines) in functions(source) {
        let limit = self::limit(source, &name, MAX_FUNCTION);
        if lines > limit {
            let message = format!("`{name}` has {lines} lines, at most {limit}; split the function");
            findings.push(Finding::new(&source.path, line, message));
        }
    }
    findings
}

/// Exceptions that are no longer needed or could be lowered.
pub(crate) fn stale_exceptions(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for exception in &EXCEPTIONS {
        let source = sources.iter().find(|source| source.path.as_os_str() == exception.path);
        let lines = source.and_then(|source| match exception.function {
            "" => Some(file_lines(source)),
            function => functions(source).into_iter().find(|(name, ..)| name == function).map(|(_, _, lines)| lines),
        });
        if lines.is_none_or(|lines| lines < exception.lines) {
            let message =
                format!("the length exception of `{}` is too generous: {lines:?} lines now", exception.function);
            findings.push(Finding::new(exception.path, 0, message));
        }
    }
    findings
}

fn limit(source: &Source, function: &str, default: usize) -> usize {
    let found = EXCEPTIONS.iter().find(|e| source.path.as_os_str() == e.path && e.function == function);
    found.map_or(default, |exception| exception.lines)
}

/// Lines that are not part of tests; comments count, since they are read.
fn file_lines(source: &Source) -> usize {
    let is_test = |(code, production): (&str, &str)| !code.trim().is_empty() && production.trim().is_empty();
    let test_lines = source.code.lines().zip(source.production.lines()).filter(|pair| is_test(*pair)).count();
    source.text.lines().count() - test_lines
}

/// Name, first line and number of lines of every function with a body, tests included.
fn functions(source: &Source) -> Vec<(String, usize, usize)> {
    let code = &source.code;
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let begins = at == 0 || !(code.as_bytes()[at - 1].is_ascii_alphanumeric() || code.as_bytes()[at - 1] == b'_');
        let name: String =
            code[at + 3..].trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !begins || name.is_empty() {
            continue;
        }
        if let Some(end) = body(code, at).and_then(|open| closing_brace(code, open)) {
            let (first, last) = (source.line(at), source.line(end - 1));
            found.push((name, first, last - first + 1));
        }
    }
    found
}

/// The opening brace of a function's body; none for a declaration.
fn body(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (i, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(i),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn source(text: String) -> Source {
        Source::new(Path::new("crates/x/src/a.rs"), text)
    }

    fn function(name: &str, lines: usize) -> String {
        format!("fn {name}(x: [u8; 3]) -> u8 {{\n{}}}\n", "    work();\n".repeat(lines - 2))
    }

    #[test]
    fn long_functions_are_found_wherever_they_are() {
        assert_eq!(check(&source(function("fits", MAX_FUNCTION))), []);
        let text = format!("trait T {{ fn f(x: [u8; 2]); }}\n{}", function("grew", MAX_FUNCTION + 1));
        let findings = check(&source(text));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].line, 2);
        assert!(findings[0].message.contains("`grew` has 101 lines"), "{}", findings[0]);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function("long_test", 120));
        assert_eq!(check(&source(tests)).len(), 1);
    }

    #[test]
    fn braces_in_text_do_not_end_a_function() {
        let text = format!("fn f() {{\n    print(\"}}\"); // }}\n{}}}\n", "    work();\n".repeat(120));
        assert_eq!(check(&source(text)).len(), 1);
    }

    #[test]
    fn long_files_are_found_and_tests_do_not_count() {
        let lines = |n: usize| "const A: u8 = 1;\n".repeat(n);
        assert_eq!(check(&source(lines(MAX_FILE))), []);
        assert_eq!(check(&source(lines(MAX_FILE + 1))).len(), 1);
        let tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", lines(MAX_FILE), lines(300));
        assert_eq!(check(&source(tests)), []);
    }
}
