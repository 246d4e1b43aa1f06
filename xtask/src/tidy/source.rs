//! A source file with its comments and strings blanked out, so that checks see code and nothing else.

use std::path::{Path, PathBuf};

/// Files that only tests use, by name or by a folder above them.
const TEST_NAMES: [&str; 2] = ["tests.rs", "fixture.rs"];
const TEST_FOLDERS: [&str; 3] = ["tests", "benches", "examples"];

/// One Rust file.
#[derive(Debug)]
pub(crate) struct Source {
    /// Relative to the repository.
    pub(crate) path: PathBuf,
    /// As it is.
    pub(crate) text: String,
    /// The same without comments and contents of literals, byte for byte in the same place.
    pub(crate) code: String,
    /// `code` without what only tests use.
    pub(crate) production: String,
}

impl Source {
    /// Reads the structure of a file.
    pub(crate) fn new(path: &Path, text: String) -> Self {
        let code = blank_literals(&text);
        let in_tests = path.components().any(|part| TEST_FOLDERS.iter().any(|folder| part.as_os_str() == *folder))
            || path.file_name().is_some_and(|name| TEST_NAMES.iter().any(|test| name == *test));
        let production = if in_tests { blank(&code, 0..code.len()) } else { blank_tests(&code) };
        Self { path: path.into(), text, code, production }
    }

    /// The line of a byte offset, from 1.
    pub(crate) fn line(&self, offset: usize) -> usize {
        self.code.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// Replaces everything but line ends by spaces.
fn blank(text: &str, range: std::ops::Range<usize>) -> String {
    let mut bytes = text.as_bytes().to_vec();
    bytes[range].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    String::from_utf8(bytes).expect("a range between two ASCII characters cuts no character")
}

/// Blanks comments and the insides of strings and characters.
fn blank_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        match end {
            Some(end) => {
                out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
                at = end;
            }
            None => at += 1,
        }
    }
    String::from_utf8(out).expect("whole literals were blanked, so no character was cut")
}

/// The end of the comment or literal that begins at `at`, if one does.
fn literal_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let after_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => Some(at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())),
        [b'/', b'*', ..] => Some(at + block_comment(rest)),
        [b'"', ..] => Some(at + string(rest)),
        [b'r' | b'b' | b'c', ..] if !after_word => raw_string(rest).map(|len| at + len),
        [b'\'', ..] => character(rest).map(|len| at + len),
        _ => None,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of `r"…"`, `r#"…"#`, and the same behind `b` or `c`.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let r = rest.iter().take(2).position(|b| *b == b'r')?;
    let hashes = rest[r + 1..].iter().take_while(|b| **b == b'#').count();
    let open = r + 1 + hashes;
    if rest.get(open) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let body = &rest[open + 1..];
    let end = body.windows(close.len()).position(|window| window == close).map_or(body.len(), |i| i + close.len());
    Some(open + 1 + end)
}

/// The length of a character literal; a lifetime is none.
fn character(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        let end = rest.iter().skip(3).position(|b| *b == b'\'')?;
        return Some(end + 4);
    }
    // The first byte of a character tells how many it has.
    let width = match rest.get(1)? {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0.. => 4,
    };
    (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

/// Blanks every item behind `#[cfg(test)]` and the like.
fn blank_tests(code: &str) -> String {
    let mut out = code.to_owned();
    let mut at = 0;
    while let Some(found) = out[at..].find("#[cfg(") {
        let start = at + found;
        let Some(close) = out[start..].find(']') else { break };
        let condition = &out[start..start + close];
        at = start + close + 1;
        if is_test(condition) {
            let end = item_end(&out, at);
            out = blank(&out, start..end);
            at = end;
        }
    }
    out
}

fn is_test(condition: &str) -> bool {
    let word = condition.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == "test");
    word && !condition.contains("not(test")
}

/// The end of the item that begins at `at`: its closing brace, or its semicolon.
fn item_end(code: &str, at: usize) -> usize {
    match code[at..].find(['{', ';']) {
        Some(found) if code.as_bytes()[at + found] == b'{' => closing_brace(code, at + found).unwrap_or(code.len()),
        Some(found) => at + found + 1,
        None => code.len(),
    }
}

/// The offset behind the brace that closes the one at `open`.
pub(crate) fn closing_brace(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (i, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new(Path::new("crates/x/src/a.rs"), text.into())
    }

    #[test]
    fn literals_and_comments_are_blanked_in_place() {
        for (text, want) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x\"y{") + g"#, "f(       ) + g"),
            ("r#\"a\"b{\"#;x", "         ;x"),
            ("b\"a\";br\"c\";", "b   ;     ;"),
            ("'{' '\\'' '\\u{7d}' 'é' x", "                       x"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("bar\"s\"", "bar   "),
        ] {
            assert_eq!(source(text).code, want, "{text}");
        }
        let text = "let s = \"ünïcode — {\";\n";
        assert_eq!(source(text).code.len(), text.len());
    }

    #[test]
    fn tests_are_not_production() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { {} }\n}\nfn c() {}\n#[cfg(all(test, unix))]\nmod t;\nfn d() {}\n#[cfg(not(test))]\nfn e() {}\n";
        let got = source(text);
        for (name, production) in [("a", true), ("b", false), ("c", true), ("d", true), ("e", true)] {
            assert_eq!(got.production.contains(&format!("fn {name}()")), production, "{name}");
            assert!(got.code.contains(&format!("fn {name}()")));
        }
        assert!(!got.production.contains("mod t;"));
        for path in ["crates/x/src/a/tests.rs", "tests/it/main.rs", "benches/src/main.rs"] {
            assert!(Source::new(Path::new(path), "fn a() {}".into()).production.trim().is_empty(), "{path}");
        }
    }

    #[test]
    fn lines_and_braces_are_found() {
        let got = source("a\nb { c { } \n } d");
        assert_eq!((got.line(0), got.line(2)), (1, 2));
        assert_eq!(closing_brace(&got.code, 4), Some(15));
        assert_eq!(closing_brace("{ {", 0), None);
    }
}
