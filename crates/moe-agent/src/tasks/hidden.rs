//! Tests of a crate as the judge takes them: files of `tests/`, and unit tests moved out of the library, which loses them.

use std::collections::{BTreeMap, BTreeSet};

use crate::mutate::source::{Source, is_code, module_files};
use crate::rust_text::{Tokens, without};

/// Words before which an item begins.
const ITEMS: [&str; 8] = ["fn", "struct", "enum", "trait", "const", "static", "type", "union"];

/// A library without its tests, and the tests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parted {
    /// Files of `src/`, without tests.
    pub(crate) code: BTreeMap<String, String>,
    /// Names of test files without `.rs`, and their texts.
    pub(crate) tests: BTreeMap<String, String>,
}

/// Takes a crate apart. Whether a file of tests can be judged is found out by the judge.
pub(crate) fn part(source: &Source, crate_name: &str) -> Parted {
    let mut parted = Parted::default();
    for (name, text) in source.code() {
        parted.code.insert(name.clone(), text.to_owned());
    }
    let names = Names::new(&parted.code, crate_name);
    let test_files = source.test_modules();
    for (name, text) in parted.code.clone().into_iter().filter(|(name, _)| !test_files.contains(name)) {
        let (stripped, bodies) = strip(&text);
        parted.code.insert(name.clone(), stripped);
        let stem = format!("unit_{}", name.trim_start_matches("src/").trim_end_matches(".rs").replace(['/', '-'], "_"));
        let mut body = String::new();
        for one in bodies {
            match one {
                Body::Text(text) => body += &text,
                // The tests are in a file of their own.
                Body::File(module) => {
                    for path in module_files(&name, &module) {
                        body += &parted.code.remove(&path).unwrap_or_default();
                    }
                }
            }
        }
        if !body.is_empty() {
            let text = moved(&body, &name, &text, &names);
            parted.tests.insert(stem, text);
        }
    }
    for (name, bytes) in &source.files {
        let stem = name.strip_prefix("tests/").and_then(|name| name.strip_suffix(".rs"));
        if let (Some(stem), Ok(text)) = (stem.filter(|stem| !stem.contains('/')), std::str::from_utf8(bytes)) {
            parted.tests.insert(stem.replace('-', "_"), text.to_owned());
        }
    }
    parted
}

/// A file without its tests; the same for a file with a mutant.
pub(crate) fn code_of(text: &str) -> String {
    strip(text).0
}

enum Body {
    Text(String),
    File(String),
}

/// The file without what only tests use, and the insides of what was taken out.
fn strip(text: &str) -> (String, Vec<Body>) {
    let tokens = Tokens::new(text);
    let items = tokens.test_items();
    let mut bodies = Vec::new();
    for item in &items {
        let inner = &text[item.clone()];
        let inside = Tokens::new(inner);
        let module = (0..inside.len()).take_while(|&i| !inside.is(i, "{")).find(|&i| inside.is(i, "mod"));
        match module {
            Some(at) if inside.is(at + 2, "{") => {
                let from = inside.token(at + 2).at.end;
                bodies.push(Body::Text(inner[from..inner.len() - 1].to_owned()));
            }
            Some(at) => bodies.push(Body::File(inside.word(at + 1).to_owned())),
            // Bare `#[test]` functions stand beside what they test.
            None if inside.run(0, &["#", "[", "test", "]"]) => bodies.push(Body::Text(format!("{inner}\n"))),
            None => {}
        }
    }
    (without(text, &items), bodies)
}

/// What a crate shows, and from where.
struct Names<'a> {
    crate_name: &'a str,
    /// Words in `pub use` of the root, and public items of it.
    root: BTreeSet<String>,
    /// Public modules of the root.
    modules: BTreeSet<String>,
}

impl<'a> Names<'a> {
    fn new(code: &BTreeMap<String, String>, crate_name: &'a str) -> Self {
        let text = code.get("src/lib.rs").map(|text| strip(text).0).unwrap_or_default();
        let tokens = Tokens::new(&text);
        let (mut root, mut modules) = (public_items(&tokens), BTreeSet::new());
        for i in 0..tokens.len() {
            if tokens.run(i, &["pub", "mod"]) {
                modules.insert(tokens.word(i + 2).to_owned());
            }
            if tokens.run(i, &["pub", "use"]) {
                let words = (i + 2..tokens.len()).take_while(|&n| !tokens.is(n, ";"));
                root.extend(words.filter(|&n| tokens.is_word(n)).map(|n| tokens.word(n).to_owned()));
            }
            if tokens.is(i, "macro_rules") {
                root.insert(tokens.word(i + 2).to_owned());
            }
        }
        Self { crate_name, root, modules }
    }

    /// The path under which an item of a file can be named from outside.
    fn path(&self, file: &str, item: &str) -> Option<String> {
        let inner = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let parts: Vec<&str> = inner.split('/').collect();
        if file != "src/lib.rs" && parts.first().is_some_and(|first| self.modules.contains(*first)) {
            return Some(format!("{}::{}::{item}", self.crate_name, parts.join("::")));
        }
        self.root.contains(item).then(|| format!("{}::{item}", self.crate_name))
    }
}

/// Names of items behind `pub`.
fn public_items(tokens: &Tokens<'_>) -> BTreeSet<String> {
    items(tokens).into_iter().filter(|(_, public)| *public).map(|(name, _)| name).collect()
}

/// Names of items, and whether everybody may use them.
fn items(tokens: &Tokens<'_>) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for i in (0..tokens.len()).filter(|&i| ITEMS.iter().any(|item| tokens.is(i, item)) && tokens.is_word(i + 1)) {
        // `pub const fn`, `pub unsafe fn`.
        let from = (1..=3).find(|back| i >= *back && tokens.is(i - back, "pub"));
        let between = |back: usize| (i - back + 1..i).all(|n| ["const", "unsafe", "async"].contains(&tokens.word(n)));
        let name = if tokens.is(i + 1, "fn") { continue } else { tokens.word(i + 1) };
        found.push((name.to_owned(), from.is_some_and(between)));
    }
    found
}

/// Unit tests as a file of `tests/`: what they took from the module around them is imported by name, and functions that
/// need what is private are left out.
fn moved(body: &str, file: &str, around: &str, names: &Names<'_>) -> String {
    let outer = Tokens::new(around);
    let public = public_items(&outer);
    let private: BTreeSet<String> = items(&Tokens::new(&strip(around).0))
        .into_iter()
        .filter(|(name, is_public)| !is_public && !public.contains(name))
        .map(|(name, _)| name)
        .collect();
    let body = without_private(body, &private);
    let tokens = Tokens::new(&body);
    let (mut out, mut from) = (String::new(), 0);
    let mut i = 0;
    while i < tokens.len() {
        let is_use = tokens.run(i, &["use", "super"]) || tokens.run(i, &["use", "crate"]);
        let end = (i..tokens.len()).find(|&n| tokens.is(n, ";"));
        if let Some(end) = end.filter(|_| is_use) {
            out += &body[from..tokens.token(i).at.start];
            from = tokens.token(end).at.end;
            i = end;
        } else if tokens.run(i, &["super", ":", ":"]) || tokens.run(i, &["crate", ":", ":"]) {
            out += &body[from..tokens.token(i).at.start];
            from = tokens.token(i + 2).at.end;
        }
        i += 1;
    }
    out += &body[from..];
    let used: BTreeSet<&str> = (0..tokens.len()).filter(|&i| tokens.is_word(i)).map(|i| tokens.word(i)).collect();
    let own: BTreeSet<String> = items(&tokens).into_iter().map(|(name, _)| name).collect();
    let wanted = used.into_iter().filter(|word| !own.contains(*word));
    let imports: Vec<String> = wanted.filter_map(|word| names.path(file, word)).collect();
    let mut head = format!("//! Tests of `{}`.\n#![allow(unused_imports)]\n", names.crate_name);
    for line in around.lines().filter(|line| {
        ["use std::", "use core::", "use alloc::"].iter().any(|start| line.starts_with(start)) && line.ends_with(';')
    }) {
        head += &format!("{}\n", line.replace("use alloc::", "use std::"));
    }
    for import in imports {
        head += &format!("use {import};\n");
    }
    format!("{head}\n{out}")
}

/// The text without the functions that use a private name.
fn without_private(body: &str, private: &BTreeSet<String>) -> String {
    let tokens = Tokens::new(body);
    let mut out = Vec::new();
    for (_, range) in tokens.functions() {
        let inner = Tokens::new(&body[range.clone()]);
        let uses =
            (2..inner.len()).any(|i| inner.is_word(i) && !inner.is(i - 1, ".") && private.contains(inner.word(i)));
        // The attributes above go too.
        let head = body[..range.start].trim_end();
        let mut from = head.len();
        while let Some(open) = head[..from].trim_end().rfind("#[").filter(|_| head[..from].trim_end().ends_with(']')) {
            from = open;
        }
        if uses && out.last().is_none_or(|last: &std::ops::Range<usize>| last.end <= from) {
            out.push(from..range.end);
        }
    }
    without(body, &out)
}

/// Names of the tests at the top of a file.
pub(crate) fn test_names(text: &str) -> Vec<String> {
    let tokens = Tokens::new(text);
    let marks = (0..tokens.len()).filter(|&i| tokens.run(i, &["#", "[", "test", "]"]));
    let named = marks.filter_map(|i| (i + 4..tokens.len()).find(|&n| tokens.is(n, "fn")));
    named.map(|at| tokens.word(at + 1).to_owned()).collect()
}

/// Public functions at the root: path, types of the arguments, type of the result.
pub(crate) fn functions(code: &BTreeMap<String, String>) -> Vec<(String, Vec<String>, String)> {
    let Some(text) = code.get("src/lib.rs") else { return Vec::new() };
    let tokens = Tokens::new(text);
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if tokens.is(i, "{") {
            i = tokens.close(i).unwrap_or(tokens.len());
        } else if tokens.run(i, &["pub", "fn"]) && tokens.is(i + 3, "(") {
            found.extend(signature(text, &tokens, i + 2));
        }
        i += 1;
    }
    found
}

fn signature(text: &str, tokens: &Tokens<'_>, name: usize) -> Option<(String, Vec<String>, String)> {
    let close = tokens.close(name + 1)?;
    let body = (close..tokens.len()).find(|&i| tokens.is(i, "{"))?;
    let returns = match tokens.run(close + 1, &["-", ">"]) {
        true => text[tokens.token(close + 2).at.end..tokens.token(body).at.start].trim().to_owned(),
        false => "()".to_owned(),
    };
    let mut args = Vec::new();
    let (mut depth, mut from) = (0_i32, None);
    for i in name + 2..=close {
        match tokens.word(i) {
            "(" | "[" | "<" => depth += 1,
            "]" | ">" => depth -= 1,
            ")" if i < close => depth -= 1,
            ":" if depth == 0 && from.is_none() => from = Some(tokens.token(i).at.end),
            _ => {}
        }
        if let Some(start) = from.filter(|_| depth == 0 && (i == close || tokens.is(i, ","))) {
            args.push(text[start..tokens.token(i).at.start].trim().to_owned());
            from = None;
        }
    }
    Some((tokens.word(name).to_owned(), args, returns))
}

/// Whether any file uses `unsafe`.
pub(crate) fn has_unsafe(code: &BTreeMap<String, String>) -> bool {
    code.iter().filter(|(name, _)| is_code(name)).any(|(_, text)| {
        let tokens = Tokens::new(text);
        (0..tokens.len()).any(|i| tokens.is(i, "unsafe"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate::source::Split;

    fn source(files: &[(&str, &str)]) -> Source {
        Source {
            name: "a-b".into(),
            version: "1.0.0".into(),
            licence: "MIT".into(),
            split: Split::Heldout,
            edition: "2021".into(),
            manifest: toml::Table::new(),
            files: files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect(),
        }
    }

    #[test]
    fn unit_tests_become_files_that_import_by_name() {
        let lib = "use std::fmt;\npub mod part;\nmod inner;\npub use inner::deep;\npub fn f(x: u8) -> u8 {\n    g(x)\n}\n\
                   fn g(x: u8) -> u8 {\n    x\n}\n#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn one() {\n        \
                   assert_eq!(f(1), super::f(1));\n    }\n    #[test]\n    fn two() {\n        assert_eq!(g(1), 1);\n    }\n}\n";
        let part = "pub struct S;\n#[test]\nfn bare() {\n    let _ = S;\n}\n";
        let inner = "pub fn deep() {}\n#[cfg(test)]\nmod tests;\n";
        let tests = "use super::deep;\n#[test]\nfn three() {\n    deep();\n}\n";
        let got = super::part(
            &source(&[
                ("src/lib.rs", lib),
                ("src/part.rs", part),
                ("src/inner.rs", inner),
                ("src/inner/tests.rs", tests),
                ("tests/more-tests.rs", "#[test]\nfn four() {}\n"),
            ]),
            "a_b",
        );
        assert_eq!(got.code.keys().collect::<Vec<_>>(), ["src/inner.rs", "src/lib.rs", "src/part.rs"]);
        assert!(got.code.values().all(|text| !text.contains("test")), "{:?}", got.code);
        assert_eq!(got.tests.keys().collect::<Vec<_>>(), ["more_tests", "unit_inner", "unit_lib", "unit_part"]);
        let unit = &got.tests["unit_lib"];
        assert!(
            unit.contains("use a_b::f;\n") && unit.contains("use std::fmt;") && unit.contains("f(1), f(1)"),
            "{unit}"
        );
        assert!(!unit.contains("super") && !unit.contains("fn two"), "private functions cannot be tested: {unit}");
        assert_eq!(test_names(unit), ["one"]);
        assert!(got.tests["unit_part"].contains("use a_b::part::S;"), "{}", got.tests["unit_part"]);
        assert!(got.tests["unit_inner"].contains("use a_b::deep;"), "{}", got.tests["unit_inner"]);
    }

    #[test]
    fn functions_of_the_root_are_found_with_their_types() {
        let lib = "pub fn f(a: &str, mut b: Vec<(u8, u8)>) -> Option<u8> {\n    None\n}\npub fn g<T>(t: T) {}\nfn h() {}\n\
                   impl X {\n    pub fn i(self) {}\n}\npub fn j() {}\n";
        let code = BTreeMap::from([("src/lib.rs".to_owned(), lib.to_owned())]);
        let want = [
            ("f".to_owned(), vec!["&str".to_owned(), "Vec<(u8, u8)>".to_owned()], "Option<u8>".to_owned()),
            ("j".to_owned(), Vec::new(), "()".to_owned()),
        ];
        assert_eq!(functions(&code), want);
        assert!(!has_unsafe(&code));
    }
}
