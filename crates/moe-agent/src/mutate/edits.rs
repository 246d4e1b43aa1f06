//! Edits that should not compile: slips of the borrow checker, of types and of names, each with the codes that it is for.
//! Whether the compiler answers with one of them is found out by asking it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::generator::Mutant;
use crate::rust_text::{Kind, Tokens};

/// Integer types that are swapped for each other.
const INTEGERS: [&str; 8] = ["u8", "u16", "u32", "u64", "usize", "i32", "i64", "isize"];
/// Words that are no names of values.
const KEYWORDS: [&str; 36] = [
    "as", "async", "await", "break", "const", "continue", "crate", "dyn", "else", "enum", "extern", "false", "fn",
    "for", "if", "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub", "ref", "return", "self", "static",
    "struct", "super", "trait", "true", "type", "use", "where", "while",
];
/// Names of a value that holds on to another.
const HOLDERS: [&str; 4] = ["view", "current", "kept", "previous"];

/// Every edit of a file, in the order of their places.
pub(crate) fn edits(file: &str, text: &str) -> Vec<Mutant> {
    let tokens = Tokens::new(text);
    let mut edits = Edits { file, text, tokens: &tokens, found: Vec::new(), counts: BTreeMap::new() };
    for i in 0..tokens.len() {
        *edits.counts.entry(tokens.word(i)).or_default() += 1;
    }
    for i in 0..tokens.len() {
        edits.borrows(i);
        edits.types(i);
        edits.names(i);
        edits.calls(i);
    }
    edits.imports();
    edits.arms();
    edits.moves();
    let skip = skipped(&tokens);
    let mut found = edits.found;
    found.retain(|edit| skip.iter().all(|range| edit.to <= range.start || edit.from >= range.end));
    found.sort_by_key(|edit| (edit.from, edit.to, edit.genre.clone()));
    found
}

/// Tests, attributes and macros by example, whose errors say little.
fn skipped(tokens: &Tokens<'_>) -> Vec<Range<usize>> {
    let mut skip = tokens.test_items();
    for i in 0..tokens.len() {
        let open = match tokens.word(i) {
            "#" if tokens.is(i + 1, "[") => i + 1,
            "#" if tokens.run(i + 1, &["!", "["]) => i + 2,
            "macro_rules" if tokens.is(i + 1, "!") => i + 3,
            _ => continue,
        };
        if let Some(end) = tokens.close(open) {
            skip.push(tokens.token(i).at.start..tokens.token(end).at.end);
        }
    }
    skip
}

struct Edits<'a> {
    file: &'a str,
    text: &'a str,
    tokens: &'a Tokens<'a>,
    found: Vec<Mutant>,
    /// How often a word stands in the file.
    counts: BTreeMap<&'a str, usize>,
}

impl Edits<'_> {
    fn add(&mut self, genre: &str, at: Range<usize>, replacement: &str, codes: &[&str]) {
        let line = self.text[..at.start].matches('\n').count() + 1;
        let what: String = self.text[at.clone()].chars().take(40).collect();
        self.found.push(Mutant {
            file: self.file.into(),
            name: format!("{}:{line}: {genre} `{}`", self.file, what.trim().replace('\n', " ")),
            genre: genre.into(),
            function: None,
            from: at.start,
            to: at.end,
            replacement: replacement.into(),
            codes: codes.iter().map(|code| (*code).to_owned()).collect(),
        });
    }

    /// From the start of one token to the start of another, so that the space between goes too.
    fn span(&self, from: usize, to: usize) -> Range<usize> {
        let end = if to < self.tokens.len() { self.tokens.token(to).at.start } else { self.text.len() };
        self.tokens.token(from).at.start..end
    }

    fn borrows(&mut self, i: usize) {
        let t = self.tokens;
        if t.run(i, &["let", "mut"]) {
            self.add("missing mut", self.span(i + 1, i + 2), "", &["E0596", "E0384", "E0594"]);
        }
        let before = i > 0 && ["(", ",", "="].contains(&t.word(i - 1));
        let value = t.is_word(i + 1) && !["self", "mut", "dyn"].contains(&t.word(i + 1));
        if t.is(i, "&") && before && value {
            self.add("missing borrow", self.span(i, i + 1), "", &["E0308", "E0277", "E0507"]);
        }
        if t.run(i, &[".", "clone", "(", ")"]) {
            let codes = ["E0382", "E0505", "E0507", "E0308", "E0502", "E0515", "E0716"];
            self.add("missing clone", t.token(i).at.start..t.token(i + 3).at.end, "", &codes);
        }
        if t.is(i, "*") && i > 0 && ["(", "=", ",", "{", "if", "return"].contains(&t.word(i - 1)) && t.is_word(i + 1) {
            self.add("missing dereference", self.span(i, i + 1), "", &["E0308", "E0277", "E0369", "E0614"]);
        }
    }

    fn types(&mut self, i: usize) {
        let t = self.tokens;
        let after_colon = i > 1 && t.is(i - 1, ":") && !t.is(i - 2, ":");
        let after_arrow = i > 1 && t.is(i - 1, ">") && t.is(i - 2, "-");
        if let Some(n) = INTEGERS.iter().position(|name| t.is(i, name)).filter(|_| after_colon || after_arrow) {
            // The neighbour in the list: close enough to be mistaken.
            let other = INTEGERS[(n + 2) % INTEGERS.len()];
            self.add("wrong integer type", t.token(i).at.clone(), other, &["E0308", "E0277"]);
        }
        if t.is(i, "?") && [";", ")", ".", ","].contains(&t.word(i + 1)) {
            self.add("missing question mark", t.token(i).at.clone(), "", &["E0308", "E0599", "E0277", "E0369"]);
        }
        if t.is(i, "fn") && t.is(i + 2, "<") {
            self.generics(i + 2);
        }
    }

    /// Bounds and lifetimes of a function's generics, which begin at `open`.
    fn generics(&mut self, open: usize) {
        let t = self.tokens;
        let Some(close) = (open..t.len()).take_while(|&i| !t.is(i, "(")).find(|&i| t.is(i, ">")) else { return };
        for i in open..close {
            if t.is_word(i) && t.is(i + 1, ":") && !t.is(i + 2, ":") && t.is_word(i + 2) {
                let end = (i + 2..close).find(|&end| t.is(end, ",")).unwrap_or(close);
                let nested = (i + 2..end).any(|n| t.is(n, "<") || t.is(n, "("));
                if !nested {
                    let at = t.token(i + 1).at.start..t.token(end).at.start;
                    let codes = ["E0277", "E0369", "E0599", "E0382", "E0507", "E0618", "E0220"];
                    self.add("missing trait bound", at, "", &codes);
                }
            }
        }
        if t.token(open + 1).kind == Kind::Lifetime && close == open + 2 {
            self.add("missing lifetime", t.token(open).at.start..t.token(close).at.end, "", &["E0261"]);
        }
    }

    fn names(&mut self, i: usize) {
        let t = self.tokens;
        let word = t.word(i);
        if !t.is_word(i) || KEYWORDS.contains(&word) || word.len() < 3 || INTEGERS.contains(&word) {
            return;
        }
        let before = if i > 0 { t.word(i - 1) } else { "" };
        let known = self.counts.get(word).copied().unwrap_or(0) > 1;
        let at = t.token(i).at.clone();
        let lower = word.starts_with(|c: char| c.is_lowercase());
        if before == "." && t.is(i + 1, "(") {
            self.add("misspelt method", at, &misspell(word), &["E0599"]);
        } else if lower
            && known
            && [")", ";", ".", ",", "]"].contains(&t.word(i + 1))
            && ["(", "=", ",", "[", "{"].contains(&before)
        {
            self.add("misspelt name", at, &misspell(word), &["E0425"]);
        } else if lower && known && t.is(i + 1, "(") && ["=", "{", "(", ";", ","].contains(&before) {
            self.add("misspelt function", at, &misspell(word), &["E0425"]);
        } else if !lower && word.is_ascii() && [":", "<", "&"].contains(&before) && !t.is(i + 1, ":") {
            self.add("misspelt type", at, &misspell(word), &["E0412", "E0433", "E0405", "E0425", "E0432"]);
        }
    }

    /// Calls that lose their last argument.
    fn calls(&mut self, i: usize) {
        let t = self.tokens;
        let name = t.is_word(i) && !KEYWORDS.contains(&t.word(i)) && t.is(i + 1, "(");
        if !name || (i > 0 && (t.is(i - 1, "fn") || t.is(i - 1, "!"))) {
            return;
        }
        let Some(close) = t.close(i + 1) else { return };
        let (mut depth, mut comma) = (0_i32, None);
        for n in i + 2..close {
            match t.word(n) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                "," if depth == 0 && n + 1 < close => comma = Some(n),
                "|" | "<" => return,
                _ => {}
            }
        }
        if let Some(comma) = comma {
            self.add(
                "missing argument",
                t.token(comma).at.start..t.token(close).at.start,
                "",
                &["E0061", "E0023", "E0308"],
            );
        }
    }

    fn imports(&mut self) {
        for line in lines(self.text) {
            let text = &self.text[line.clone()];
            if text.starts_with("use ") && text.trim_end().ends_with(';') {
                let codes = ["E0432", "E0433", "E0425", "E0412", "E0405", "E0404", "E0599"];
                self.add("missing import", line, "", &codes);
            }
        }
    }

    /// Arms of `match` that stand on one line.
    fn arms(&mut self) {
        for line in lines(self.text) {
            let text = &self.text[line.clone()];
            let Some((pattern, _)) = text.split_once("=>") else { continue };
            let balanced = |open: char, close: char| text.matches(open).count() == text.matches(close).count();
            let whole = balanced('(', ')') && balanced('{', '}') && balanced('[', ']');
            if text.starts_with(' ') && text.trim_end().ends_with(',') && whole && !pattern.contains('"') {
                self.add("missing match arm", line, "", &["E0004"]);
            }
        }
    }

    /// Values that are used after they were moved or while they are borrowed.
    fn moves(&mut self) {
        let lines = lines(self.text);
        let mut mutable = BTreeSet::new();
        for (n, line) in lines.iter().enumerate() {
            let text = &self.text[line.clone()];
            let trimmed = text.trim();
            if trimmed.contains("fn ") {
                mutable.clear();
            }
            let indent = &text[..text.len() - text.trim_start().len()];
            let holder = HOLDERS[n % HOLDERS.len()];
            if let Some(rest) = trimmed.strip_prefix("let ").filter(|_| trimmed.ends_with(';')) {
                let rest = rest.strip_prefix("mut ").inspect(|rest| _ = mutable.insert(name_of(rest))).unwrap_or(rest);
                let name = name_of(rest);
                let used = self.counts.get(name).copied().unwrap_or(0) > 1;
                if used && name.len() > 1 && rest[name.len()..].trim_start().starts_with(['=', ':']) {
                    let added = format!("{indent}let {holder} = {name};\n{indent}drop({holder});\n");
                    self.add("use after move", line.end..line.end, &added, &["E0382"]);
                }
            }
            let called = name_of(trimmed);
            let statement = trimmed.ends_with(");") && trimmed[called.len()..].starts_with('.');
            if statement && mutable.contains(called) {
                for (genre, how, code) in
                    [("changed while borrowed", "&", "E0502"), ("borrowed mutably twice", "&mut ", "E0499")]
                {
                    let added = format!("{indent}let {holder} = {how}{called};\n{text}{indent}drop({holder});\n");
                    self.add(genre, line.clone(), &added, &[code, "E0506", "E0505"]);
                }
            }
        }
    }
}

/// The name that a text begins with.
fn name_of(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The bytes of every line, with its end.
fn lines(text: &str) -> Vec<Range<usize>> {
    let mut from = 0;
    let next = |line: &str| {
        let range = from..from + line.len();
        from = range.end;
        range
    };
    text.split_inclusive('\n').map(next).collect()
}

/// A slip of the fingers: two letters swapped, or one lost where they are the same.
fn misspell(word: &str) -> String {
    let mut chars: Vec<char> = word.chars().collect();
    let at = chars.len() / 2;
    if chars[at] == chars[at - 1] || chars.contains(&'_') {
        let lost = chars.iter().rposition(|c| *c != '_').unwrap_or(0);
        chars.remove(lost);
    } else {
        chars.swap(at, at - 1);
    }
    chars.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "use std::collections::BTreeMap;\n\nfn longest<'a>(all: &'a [String], least: usize) -> &'a str {\n    \
        let mut best = String::new();\n    best.push_str(&all[0].clone());\n    match least {\n        0 => \"\",\n        \
        _ => all[0].as_str(),\n    }\n}\n\nfn most<T: Ord>(count: BTreeMap<u8, T>) -> usize {\n    \
        let total = count.len();\n    compare(total, count.len())\n}\n\n#[cfg(test)]\nmod tests {\n    \
        use super::*;\n    fn x() { let mut y = 1; }\n}\n";

    #[test]
    fn every_kind_of_slip_is_made_at_its_place() {
        let found = edits("src/lib.rs", TEXT);
        let after = |genre: &str| {
            let edit = found.iter().find(|edit| edit.genre == genre).unwrap_or_else(|| panic!("{genre}: {found:#?}"));
            edit.apply(TEXT).unwrap()
        };
        assert!(after("missing mut").contains("    let best = "));
        assert!(after("missing clone").contains("&all[0])"));
        assert!(after("missing borrow").contains("push_str(all[0]"));
        assert!(after("wrong integer type").contains("least: i64"));
        assert!(after("missing import").starts_with("\nfn longest"));
        assert!(after("missing match arm").contains("least {\n        _ =>"));
        assert!(after("missing trait bound").contains("most<T>("));
        assert!(after("missing lifetime").contains("longest(all"));
        assert!(after("missing argument").contains("compare(total)"));
        assert!(
            after("misspelt method").contains(".push_st(") || !after("misspelt method").contains("&all[0].clone()")
        );
        assert!(after("misspelt name").contains("all"));
        assert!(after("use after move").contains("= best;\n    drop("));
        assert!(after("changed while borrowed").contains("= &best;\n    best.push_str"));
        assert!(after("borrowed mutably twice").contains("= &mut best;\n    best.push_str"));
        let tests = TEXT.find("#[cfg(test)]").unwrap();
        assert!(found.iter().all(|edit| edit.to <= tests && !edit.codes.is_empty()), "tests are left alone");
    }

    #[test]
    fn a_slip_changes_the_word() {
        for word in ["abc", "total", "all", "is_ok", "BTreeMap", "aaa"] {
            assert_ne!(misspell(word), word);
        }
    }
}
