//! Changes of a text: what differs between two versions, as a patch whose old text stands once, and other changes there.

use serde::{Deserialize, Serialize};

use super::source::mask;

/// One piece of a file that is another: how a start differs from its crate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    pub(super) path: String,
    /// First byte.
    pub(super) at: usize,
    pub(super) old: String,
    pub(super) new: String,
}

impl Edit {
    /// The edit that makes `new` of `old`.
    pub(super) fn between(path: &str, old: &str, new: &str) -> Self {
        let hunk = Hunk::between(old, new);
        Self { path: path.into(), at: hunk.at, old: hunk.old.into(), new: hunk.new.into() }
    }

    /// The text with the edit; `None` where the old text is not there.
    pub(super) fn apply(&self, text: &str) -> Option<String> {
        let rest = text.get(self.at..)?.strip_prefix(&self.old)?;
        Some(format!("{}{}{rest}", &text[..self.at], self.new))
    }
}

/// The lines that differ between two texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hunk<'a> {
    /// First byte in both.
    pub(super) at: usize,
    /// First line in both, from 1.
    pub(super) line: usize,
    pub(super) old: &'a str,
    pub(super) new: &'a str,
}

impl<'a> Hunk<'a> {
    pub(super) fn between(old: &'a str, new: &'a str) -> Self {
        let lines = |text: &'a str| text.split_inclusive('\n').collect::<Vec<_>>();
        let (a, b) = (lines(old), lines(new));
        let head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
        let tail = a[head..].iter().rev().zip(b[head..].iter().rev()).take_while(|(x, y)| x == y).count();
        let at: usize = a[..head].iter().map(|line| line.len()).sum();
        let end = |lines: &[&str]| lines[..lines.len() - tail].iter().map(|line| line.len()).sum::<usize>();
        Self { at, line: head + 1, old: &old[at..end(&a)], new: &new[at..end(&b)] }
    }

    /// Whether two hunks over the same text share a line, or stand at the same place.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let end = |hunk: &Self| hunk.at + hunk.new.len().max(1);
        self.at < end(other) && other.at < end(self)
    }
}

/// A replacement that makes `to` of `from`: old text, which stands once in `from`, and new text.
pub(super) fn patch(from: &str, to: &str) -> (String, String) {
    let hunk = Hunk::between(from, to);
    let (mut start, mut end) = (hunk.at, hunk.at + hunk.old.len());
    let mut up = true;
    loop {
        let old = &from[start..end];
        if !old.trim().is_empty() && from.match_indices(old).nth(1).is_none() {
            break;
        }
        if start == 0 && end == from.len() {
            break;
        }
        if (up && start > 0) || end == from.len() {
            start = from[..start - 1].rfind('\n').map_or(0, |at| at + 1);
        } else {
            end = from[end..].find('\n').map_or(from.len(), |at| end + at + 1);
        }
        up = !up;
    }
    let new = format!("{}{}{}", &from[start..hunk.at], hunk.new, &from[hunk.at + hunk.old.len()..end]);
    (from[start..end].to_owned(), new)
}

/// What may stand in another's place.
const SWAPS: [(&str, &str); 26] = [
    (" <= ", " < "),
    (" >= ", " > "),
    (" < ", " <= "),
    (" > ", " >= "),
    (" == ", " != "),
    (" != ", " == "),
    (" + ", " - "),
    (" - ", " + "),
    (" * ", " + "),
    (" / ", " * "),
    (" % ", " / "),
    (" && ", " || "),
    (" || ", " && "),
    (" += ", " -= "),
    (" -= ", " += "),
    (" & ", " | "),
    (" | ", " & "),
    (" << ", " >> "),
    (" >> ", " << "),
    ("..=", ".."),
    (".min(", ".max("),
    (".max(", ".min("),
    (".is_some()", ".is_none()"),
    ("&mut ", "&"),
    (".clone()", ""),
    ("true", "false"),
];

/// Other versions of `text` that differ from it in one operator or number within the bytes `at..end`, in the order of
/// their places.
pub(super) fn alternatives(text: &str, at: usize, end: usize) -> Vec<String> {
    let code = mask(text);
    let Some(part) = code.get(at..end) else { return Vec::new() };
    let mut found: Vec<(usize, String)> = Vec::new();
    for (what, instead) in SWAPS {
        for (found_at, _) in part.match_indices(what) {
            let place = at + found_at;
            found.push((place, format!("{}{instead}{}", &text[..place], &text[place + what.len()..])));
        }
    }
    for (found_at, digits) in numbers(part) {
        let place = at + found_at;
        if let Some(next) = digits.parse::<u32>().ok().and_then(|n| n.checked_add(1)) {
            found.push((place, format!("{}{next}{}", &text[..place], &text[place + digits.len()..])));
        }
    }
    found.sort();
    found.dedup();
    found.into_iter().map(|(_, text)| text).collect()
}

/// Plain decimal numbers that stand alone.
fn numbers(code: &str) -> Vec<(usize, &str)> {
    let bytes = code.as_bytes();
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if end == at {
            at += 1;
            continue;
        }
        let alone = (at == 0 || !word(bytes[at - 1])) && bytes.get(end).is_none_or(|byte| !word(*byte));
        if alone {
            found.push((at, &code[at..end]));
        }
        at = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "fn f() {\n    x();\n}\n\nfn g(a: u8) -> u8 {\n    x();\n    a + 1\n}\n";

    #[test]
    fn an_edit_makes_one_text_of_the_other() {
        for (from, to) in [
            (A.to_owned(), A.replace("a + 1", "a - 1")),
            (A.to_owned(), A.replacen("    x();\n", "", 1)),
            (A.replacen("    x();\n", "", 1), A.to_owned()),
            (A.to_owned(), format!("{A}// end\n")),
            (String::new(), A.to_owned()),
        ] {
            let edit = Edit::between("a", &from, &to);
            assert_eq!(edit.apply(&from).as_deref(), Some(to.as_str()));
            assert!(Edit { at: 10_000, ..edit.clone() }.apply(&from).is_none());
            if !from.is_empty() {
                let (old, new) = patch(&from, &to);
                assert_eq!(from.matches(&old).count(), 1, "{old:?}");
                assert_eq!(from.replacen(&old, &new, 1), to);
            }
        }
        let to = A.replace("    x();\n    a", "    y();\n    a");
        assert_eq!(Hunk::between(A, &to).line, 6);
        assert_eq!(patch(A, &to).0, "fn g(a: u8) -> u8 {\n    x();\n");
        let one = A.replace("a + 1", "a * 1");
        let two = A.replace("a + 1", "a - 1");
        assert!(Hunk::between(&one, A).meets(&Hunk::between(&two, A)));
        assert!(!Hunk::between(&one, A).meets(&Hunk::between(&to, A)));
    }

    #[test]
    fn alternatives_change_one_thing_of_the_code() {
        let at = A.find("a + 1").unwrap();
        let got = alternatives(A, at, at + 5);
        assert_eq!(got, [A.replace("a + 1", "a - 1"), A.replace("a + 1", "a + 2")]);
        let text = "let s = \"a + 1\"; // 3 < 4\nlet t: [u8; 2] = x.0;\n";
        assert_eq!(alternatives(text, 0, text.len()), [text.replace("; 2", "; 3")]);
    }
}
