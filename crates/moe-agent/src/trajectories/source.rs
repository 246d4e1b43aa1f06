//! Rust text, looked at closely enough to find functions and operators: comments and strings are told from code.

use std::ops::Range;

/// A function with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) is_public: bool,
    /// Whole lines, with documentation and attributes.
    pub(super) item: Range<usize>,
    /// From the line's first word to the body.
    pub(super) signature: Range<usize>,
    /// Braces included.
    pub(super) body: Range<usize>,
    pub(super) in_tests: bool,
}

/// The text with every byte of comments, strings and characters that is no line end replaced by a blank.
pub(super) fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = hidden_end(bytes, at);
        for byte in out[at..end].iter_mut().filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
        at = end.max(at + 1);
    }
    // Bytes of other scripts in code stay; whole characters were replaced elsewhere.
    String::from_utf8(out).unwrap_or_else(|_| " ".repeat(text.len()))
}

/// Where what is no code ends, if it begins here; else `at`.
fn hidden_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let find = |from: usize, what: &[u8]| {
        let found = rest[from..].windows(what.len()).position(|window| window == what);
        found.map_or(bytes.len(), |found| at + from + found + what.len())
    };
    let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => find(2, b"\n"),
        [b'/', b'*', ..] => comment_end(bytes, at),
        [b'"', ..] => string_end(bytes, at + 1),
        [b'r', b'"' | b'#', ..] if !in_word => {
            let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return at;
            }
            find(2 + hashes, &[&b"\""[..], &b"#".repeat(hashes)].concat())
        }
        [b'\'', b'\\', ..] => find(3, b"'"),
        [b'\'', ..] => {
            // A character, not a lifetime: one character and a quote.
            let close = rest.iter().skip(1).take(5).position(|byte| *byte == b'\'').map(|found| found + 1);
            let one = close.is_some_and(|close| {
                close > 1 && std::str::from_utf8(&rest[1..close]).is_ok_and(|c| c.chars().count() == 1)
            });
            close.filter(|_| one).map_or(at, |close| at + close + 1)
        }
        _ => at,
    }
}

fn comment_end(bytes: &[u8], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at < bytes.len() {
        match bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at.min(bytes.len())
}

fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The functions of a file, in order.
pub(super) fn functions(text: &str) -> Vec<Function> {
    let code = mask(text);
    let tests = test_regions(&code);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let line = code[..at].rfind('\n').map_or(0, |end| end + 1);
        let before: Vec<&str> = code[line..at].split_whitespace().collect();
        let is_word =
            |word: &&str| matches!(*word, "pub" | "const" | "unsafe" | "async" | "extern") || word.starts_with("pub(");
        if !before.iter().all(is_word) {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let Some(open) = body_start(&code, at) else { continue };
        let Some(close) = closing(&code, open) else { continue };
        let end = code[close..].find('\n').map_or(code.len(), |end| close + end + 1);
        let Some(start) = item_start(text, line) else { continue };
        found.push(Function {
            name,
            is_public: before.contains(&"pub"),
            item: start..end,
            signature: line..open,
            body: open..close + 1,
            in_tests: tests.iter().any(|region| region.contains(&at)) || text[start..line].contains("#[test]"),
        });
    }
    found
}

/// The first line of documentation and attributes above a line; `None` below an attribute of several lines.
fn item_start(text: &str, line: usize) -> Option<usize> {
    let mut start = line;
    while start > 0 {
        let above = text[..start - 1].rfind('\n').map_or(0, |end| end + 1);
        let words = text[above..start].trim();
        if words.starts_with(")]") || words == "]" || words.ends_with("*/") {
            return None;
        }
        if !(words.starts_with("///") || (words.starts_with("#[") && words.ends_with(']'))) {
            break;
        }
        start = above;
    }
    Some(start)
}

/// The brace that opens the body of a function; `None` for a declaration.
fn body_start(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (i, byte) in code.as_bytes()[from..].iter().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(from + i),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// The brace that closes the one at `open`.
fn closing(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (i, byte) in code.as_bytes()[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(open + i),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// What stands under `#[cfg(test)]`.
fn test_regions(code: &str) -> Vec<Range<usize>> {
    let region = |(at, _): (usize, &str)| {
        let open = body_start(code, at + "#[cfg(test)]".len())?;
        Some(at..closing(code, open)? + 1)
    };
    code.match_indices("#[cfg(test)]").filter_map(region).collect()
}

/// Whether a line, from 1, is test code.
pub(super) fn is_test_line(path: &str, text: &str, line: usize) -> bool {
    let first = path.split('/').next();
    if matches!(first, Some("tests" | "benches" | "examples")) || path.ends_with("tests.rs") || path.contains("/tests/")
    {
        return true;
    }
    let at: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let code = mask(text);
    let tests = functions(text).into_iter().filter(|function| function.in_tests).map(|function| function.item);
    test_regions(&code).into_iter().chain(tests).any(|region| region.contains(&at))
}

/// The line of a byte, from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "//! A { crate.\n\nconst S: &str = \"fn no() {\";\n\n/// Adds.\n#[inline]\npub fn add<'a>(a: &'a u8, c: char) -> u8 {\n    \
        if c == '{' || c == '\\'' { 1 } else { *a } // }\n}\n\n#[cfg(a,\n    b\n)]\nfn many() {}\n\ntrait T {\n    fn declared(&self);\n}\n\n\
        impl T for u8 {\n    fn declared(&self) {\n        r#\"} \" }\"#;\n    }\n}\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() {}\n}\n";

    #[test]
    fn functions_are_found_with_their_documentation() {
        assert_eq!(mask(TEXT).len(), TEXT.len());
        let found = functions(TEXT);
        let names: Vec<(&str, bool, bool)> =
            found.iter().map(|function| (function.name.as_str(), function.is_public, function.in_tests)).collect();
        assert_eq!(names, [("add", true, false), ("declared", false, false), ("t", false, true)]);
        assert!(
            TEXT[found[0].item.clone()].starts_with("/// Adds.\n#[inline]\npub fn")
                && TEXT[found[0].item.clone()].ends_with("// }\n}\n")
        );
        assert_eq!(&TEXT[found[0].signature.clone()], "pub fn add<'a>(a: &'a u8, c: char) -> u8 ");
        assert!(TEXT[found[1].body.clone()].contains("r#"));
    }

    #[test]
    fn test_lines_are_told_from_the_crates_own() {
        let line = |what: &str| line_at(TEXT, TEXT.find(what).unwrap());
        assert!(is_test_line("src/lib.rs", TEXT, line("fn t()")));
        assert!(!is_test_line("src/lib.rs", TEXT, line("if c")));
        assert!(is_test_line("tests/a.rs", "", 1));
    }
}
