//! One problem as the files of a task.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use toml::Table;

use super::Problem;
use crate::judge::flatten;

/// Package of every task, so that all share what is built before.
const PACKAGE: &str = "answer";
/// Name of the file of hidden tests.
const TESTS: &str = "hidden";
/// Rust of every problem.
pub(super) const EDITION: &str = "2024";
/// First words of a line that declares an item at the top of a file.
const ITEMS: [&str; 8] = ["fn", "struct", "enum", "trait", "const", "static", "type", "union"];

/// The parts of a task before they are formatted.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) id: String,
    pub(super) task: String,
    pub(super) manifest: String,
    pub(super) hidden: String,
    start: String,
    solution: String,
}

impl Parts {
    /// `src/lib.rs` to begin with and that of the solution, in which these lints are allowed.
    pub(super) fn sources(&self, lints: &[String]) -> [String; 2] {
        let allow = if lints.is_empty() { String::new() } else { format!("#![allow({})]\n\n", lints.join(", ")) };
        [&self.start, &self.solution].map(|text| format!("{allow}{text}"))
    }
}

/// Makes the parts.
///
/// # Errors
/// Why the problem cannot be a task.
pub(super) fn convert(problem: &Problem) -> Result<Parts, String> {
    let Problem { task_id, prompt, canonical_solution, test, entry_point, .. } = problem;
    let tests: TokenStream = test.parse().map_err(|_| "its tests are cut off or not Rust")?;
    let prompt = public(prompt);
    let (start, solution) = (format!("{prompt}\n    todo!()\n}}\n"), format!("{prompt}\n    {canonical_solution}\n"));
    let flat = flatten(&start).ok_or("its prompt is not the beginning of a function")?;
    if flatten(&solution).is_none() {
        return Err("its solution is not Rust".into());
    }
    let tests = inside_module(tests).ok_or("its tests are not one module")?;
    let words: BTreeSet<String> =
        flatten(&tests.to_string()).ok_or("its tests nest too deeply")?.into_iter().map(|token| token.text).collect();
    let used: Vec<&str> = declared(&start).filter(|name| words.contains(*name)).collect();
    if !used.contains(&entry_point.as_str()) {
        return Err(format!("its tests do not call `{entry_point}`"));
    }
    let names = test_names(&tests);
    let imports: String = prompt.lines().filter(|line| line.starts_with("use ")).map(|l| format!("{l}\n")).collect();
    let same = signature(&flat.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(), entry_point)
        .map_or(String::new(), |signature| format!("const _: {signature} = {entry_point};\n"));
    let hidden = format!(
        "#![allow(unused_imports)]\n{imports}use {PACKAGE}::{{{}}};\n{same}{}\n",
        used.join(", "),
        without_super(tests)
    );
    let id = format!("he-{}", task_id.to_lowercase().replace('/', "-"));
    let about: Vec<&str> = prompt
        .lines()
        .filter_map(|line| line.strip_prefix("//"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect();
    let mut task = Table::new();
    task.insert("id".into(), id.clone().into());
    let description =
        format!("Write the body of `{entry_point}` in src/lib.rs, in place of `todo!()`.\n{}", about.join("\n"));
    task.insert("description".into(), description.into());
    task.insert("kind".into(), "tests".into());
    let expected: Vec<toml::Value> = names.iter().map(|name| format!("{TESTS}::{name}").into()).collect();
    task.insert("fail_to_pass".into(), expected.into());
    task.insert("limits".into(), Table::from_iter([("test_s".to_owned(), 20.into())]).into());
    let manifest =
        format!("[package]\nname = \"{PACKAGE}\"\nversion = \"0.1.0\"\nedition = \"{EDITION}\"\npublish = false\n");
    Ok(Parts { id, task: task.to_string(), manifest, hidden, start, solution })
}

/// The prompt with its items public, so that tests outside can use them.
fn public(prompt: &str) -> String {
    let line = |line: &str| match line.split_whitespace().next() {
        Some(word) if line.starts_with(word) && ITEMS.contains(&word) => format!("pub {line}"),
        _ => line.to_owned(),
    };
    prompt.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Names of the public items at the top of a file.
fn declared(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(item_name)
}

fn item_name(line: &str) -> Option<&str> {
    let (word, rest) = line.strip_prefix("pub ")?.split_once(' ')?;
    let end = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
    ITEMS.contains(&word).then_some(&rest[..end])
}

/// What `mod tests { … }` holds, if nothing else but attributes is there.
fn inside_module(tests: TokenStream) -> Option<TokenStream> {
    let mut modules = tests.into_iter().filter_map(|tree| match tree {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group.stream()),
        _ => None,
    });
    let module = modules.next()?;
    modules.next().is_none().then_some(module)
}

/// Without `use super::*;`.
fn without_super(tests: TokenStream) -> TokenStream {
    let trees: Vec<TokenTree> = tests.into_iter().collect();
    let words: Vec<String> = trees.iter().map(ToString::to_string).collect();
    let is = |i: usize| words[i..].starts_with(&["use", "super", ":", ":", "*", ";"].map(str::to_owned));
    let mut out = Vec::new();
    let mut i = 0;
    while i < trees.len() {
        if is(i) {
            i += 6;
        } else {
            out.push(trees[i].clone());
            i += 1;
        }
    }
    out.into_iter().collect()
}

/// Names of the functions marked `#[test]`.
fn test_names(tests: &TokenStream) -> Vec<String> {
    let words: Vec<String> = tests.clone().into_iter().map(|tree| tree.to_string().replace(' ', "")).collect();
    let mut names = Vec::new();
    let mut marked = false;
    for pair in words.windows(2) {
        marked |= pair[0] == "#" && pair[1] == "[test]";
        if marked && pair[0] == "fn" {
            names.push(pair[1].clone());
            marked = false;
        }
    }
    names
}

/// The type of a function as a pointer, which holds a candidate to what it was given; `None` where it cannot be written.
fn signature(words: &[&str], name: &str) -> Option<String> {
    let at = words.windows(3).position(|w| w[0] == "fn" && w[1] == name && w[2] == "(")? + 2;
    let (mut depth, mut angles) = (0, 0);
    let mut args: Vec<Vec<&str>> = vec![Vec::new()];
    let mut end = at;
    for (i, word) in words.iter().enumerate().skip(at) {
        match *word {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            "<" => angles += 1,
            ">" if words[i - 1] != "-" => angles -= 1,
            "," if depth == 1 && angles == 0 => {
                args.push(Vec::new());
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            end = i;
            break;
        }
        if i > at {
            args.last_mut()?.push(word);
        }
    }
    let of = |arg: &Vec<&str>| Some(spaced(&arg[arg.iter().position(|word| *word == ":")? + 1..]));
    let args = args.iter().filter(|arg| !arg.is_empty()).map(of).collect::<Option<Vec<_>>>()?;
    let returns: Vec<&str> =
        words[end + 1..].iter().take_while(|word| **word != "{" && **word != "where").copied().collect();
    // A type that only the caller knows cannot be written.
    let open = words[at..end].iter().chain(&returns).any(|word| *word == "impl");
    (!open).then(|| format!("fn({}){}", args.join(", "), spaced(&returns)))
}

/// Tokens as text; the halves of `::` and `->` stay together, a lifetime keeps its name.
fn spaced(words: &[&str]) -> String {
    let mut text = String::new();
    for word in words {
        text += word;
        if ![":", "-", "'"].contains(word) {
            text.push(' ');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem() -> Problem {
        Problem {
            task_id: "CodeGen/1a".into(),
            category: "codegen".into(),
            prompt: "// Adds.\n// Twice.\nuse std::collections::HashMap;\n\nfn half(x: u8) -> u8 { x / 2 }\n\n\
                     fn add(mut a: &[HashMap<u8, Vec<u8>>], f: fn(u8) -> u8) -> Option<u8> {"
                .into(),
            canonical_solution: "None\n}\n".into(),
            test: "#[cfg(test)]\nmod tests {\n    use super::*;\n    #[test]\n    fn adds() { assert_eq!(add(&[], half), None); }\n\
                   #[test]\n    fn again() {}\n}"
                .into(),
            entry_point: "add".into(),
        }
    }

    #[test]
    fn a_problem_becomes_the_files_of_a_task() {
        let got = convert(&problem()).unwrap();
        assert_eq!(got.id, "he-codegen-1a");
        let [start, solution] = got.sources(&["clippy::x".into()]);
        assert!(
            start.starts_with("#![allow(clippy::x)]\n") && start.ends_with("Option<u8> {\n    todo!()\n}\n"),
            "{start}"
        );
        assert!(
            start.contains("\npub fn half(") && solution.contains("\npub fn add(") && solution.ends_with("None\n}\n\n")
        );
        assert!(got.task.contains("hidden::adds") && got.task.contains("hidden::again") && got.task.contains("Twice."));
        assert!(!got.hidden.contains("super") && got.hidden.contains("use answer::{half, add};"), "{}", got.hidden);
        let same = "const _: fn(& [HashMap < u8 , Vec < u8 > > ] , fn (u8 ) ->u8 ) ->Option < u8 >  = add;";
        let bare = |text: &str| text.replace(' ', "");
        assert!(bare(&got.hidden).contains(&bare(same)), "{}", got.hidden);
        assert!(got.hidden.parse::<TokenStream>().is_ok());
    }

    #[test]
    fn what_cannot_be_a_task_says_why() {
        let cut = Problem { test: "#[cfg(test)] mod tests { use super::*;".into(), ..problem() };
        let elsewhere = Problem { entry_point: "sub".into(), ..problem() };
        let broken = Problem { canonical_solution: "None }}".into(), ..problem() };
        for (problem, want) in [(cut, "cut off"), (elsewhere, "do not call `sub`"), (broken, "solution is not Rust")] {
            let got = convert(&problem).unwrap_err();
            assert!(got.contains(want), "{got}");
        }
        let words = |text: &str| flatten(text).unwrap().into_iter().map(|t| t.text).collect::<Vec<_>>();
        for text in ["fn f(x: impl Fn()) {}", "fn f<T>(x: T) {}"] {
            assert_eq!(signature(&words(text).iter().map(String::as_str).collect::<Vec<_>>(), "f"), None, "{text}");
        }
    }
}
