//! A file of tests as a program of the judge's own.
//!
//! What libtest prints can be printed by the code under test as well, and its exit code too can be forged by `exit(0)`. So the
//! functions marked `#[test]` become plain functions, and a `main` of ours runs the one that it is told on standard input and
//! says so with a nonce, which it read before any code of the candidate ran and which safe code has no way to.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use super::tokens::{flatten_stream, plain_string};

/// The half of the program that is the same for every file of tests.
pub(crate) const MARKS: &str = include_str!("harness/marks.rs");

/// A test of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TestName {
    pub(crate) name: String,
    /// Must panic, with a message that contains this.
    pub(crate) panics: Option<String>,
}

/// A file of tests and the program made of it.
#[derive(Debug, Clone)]
pub(crate) struct TestFile {
    pub(crate) tests: Vec<TestName>,
    pub(crate) program: String,
}

/// Rewrites a file of tests.
///
/// # Errors
/// What the file has that cannot be judged: no tests, tests in modules or ignored ones, its own `main`, a glob import of the
/// crate (with which it could bring names that mean something else), text that is not Rust.
pub(crate) fn test_file(text: &str, crate_name: &str) -> Result<TestFile, String> {
    let stream: TokenStream = text.parse().map_err(|_| "is not Rust")?;
    let flat = flatten_stream(stream.clone()).ok_or("nests too deeply")?;
    let is = |i: usize, text: &str| flat.get(i).is_some_and(|token| token.is(text));
    let marked = (0..flat.len()).filter(|&i| flat[i].in_attribute && is(i, "test") && is(i + 1, "]")).count();
    if (0..flat.len()).any(|i| is(i, "fn") && is(i + 1, "main")) {
        return Err("has a `main` of its own".into());
    }
    if glob_import(&flat.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(), crate_name) {
        return Err(format!("imports `{crate_name}::*`; name what the tests use"));
    }
    let mut out = Vec::new();
    let mut tests: Vec<TestName> = Vec::new();
    let mut head = 0;
    let (mut is_test, mut panics) = (false, None);
    let mut trees = stream.into_iter().peekable();
    while let Some(tree) = trees.next() {
        let hash = matches!(&tree, TokenTree::Punct(punct) if punct.as_char() == '#');
        match trees.peek() {
            Some(TokenTree::Group(group)) if hash && group.delimiter() == Delimiter::Bracket => match attribute(group)?
            {
                Attribute::Test => is_test = true,
                Attribute::Panics(message) => panics = Some(message),
                Attribute::Other => {
                    out.push(tree);
                    out.extend(trees.next());
                    continue;
                }
            },
            Some(TokenTree::Punct(bang)) if hash && bang.as_char() == '!' => {
                out.push(tree);
                out.extend(trees.next());
                out.extend(trees.next());
                head = out.len();
                continue;
            }
            Some(TokenTree::Ident(name)) if is_test && tree.to_string() == "fn" => {
                tests.push(TestName { name: name.to_string(), panics: panics.take() });
                is_test = false;
                out.push(tree);
                continue;
            }
            _ => {
                out.push(tree);
                continue;
            }
        }
        trees.next();
    }
    if tests.is_empty() || tests.len() != marked {
        return Err(format!("has {marked} tests, {} of them functions at the top of the file", tests.len()));
    }
    let body = out.split_off(head);
    let program = program(&out.into_iter().collect(), &body.into_iter().collect(), &tests);
    Ok(TestFile { tests, program })
}

/// Whether a `use` of the crate ends in `*`.
fn glob_import(words: &[&str], crate_name: &str) -> bool {
    let uses = (0..words.len()).filter(|&i| words[i] == "use");
    uses.into_iter().any(|i| {
        let path = words[i + 1..].iter().take_while(|word| **word != ";");
        let path: Vec<&str> = path.copied().skip_while(|word| *word == ":").collect();
        path.first() == Some(&crate_name) && path.contains(&"*")
    })
}

enum Attribute {
    Test,
    Panics(String),
    Other,
}

fn attribute(group: &Group) -> Result<Attribute, String> {
    let flat = flatten_stream(group.stream()).ok_or("nests too deeply")?;
    let words: Vec<&str> = flat.iter().map(|token| token.text.as_str()).collect();
    match words.as_slice() {
        ["test"] => Ok(Attribute::Test),
        ["should_panic"] => Ok(Attribute::Panics(String::new())),
        ["should_panic", "(", "expected", "=", message, ")"] => {
            let message = plain_string(message).ok_or("expects a panic whose message is not a plain string")?;
            Ok(Attribute::Panics(message.into()))
        }
        ["should_panic" | "ignore", ..] => Err(format!("attribute `{}` is not one that can be judged", words[0])),
        _ => Ok(Attribute::Other),
    }
}

fn program(head: &TokenStream, body: &TokenStream, tests: &[TestName]) -> String {
    let mut text = format!(
        "{head}\n#[allow(unused_imports)]\nuse ::core::{{assert, assert_eq, assert_ne, matches}};\n{body}\n\
         #[path = \"marks.rs\"]\nmod firebrick_marks;\nfn main() {{\n    firebrick_marks::run(&[\n"
    );
    for TestName { name, panics } in tests {
        text += &format!("        ({name:?}, {panics:?}, || firebrick_marks::Ended::good({name}())),\n");
    }
    text + "    ]);\n}\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_become_functions_of_a_program() {
        let text = "#![allow(dead_code)]\n//! Doc.\nuse a::f;\n#[test]\nfn one() { assert_eq!(f(), 1); }\n\
                    #[test]\n#[should_panic(expected = \"zero\")]\nfn two() { f(); }\nfn not() {}\n";
        let got = test_file(text, "a").unwrap();
        let name = |name: &str, panics: Option<&str>| TestName { name: name.into(), panics: panics.map(str::to_owned) };
        assert_eq!(got.tests, [name("one", None), name("two", Some("zero"))]);
        assert!(!got.program.contains("test]") && !got.program.contains("should_panic"), "{}", got.program);
        let at = |what: &str| got.program.find(what).unwrap();
        assert!(at("dead_code") < at("use ::core") && at("use ::core") < at("fn one") && at("fn one") < at("fn main"));
        assert!(got.program.contains("(\"two\", Some(\"zero\"), || firebrick_marks::Ended::good(two()))"));
    }

    #[test]
    fn what_cannot_be_judged_is_refused() {
        for (text, want) in [
            ("fn f() {}", "0 tests"),
            ("mod t { #[test] fn a() {} }", "1 tests, 0 of them"),
            ("#[cfg(test)] mod t { #[test] fn a() {} } #[test] fn b() {}", "2 tests, 1 of them"),
            ("#[test] # [ignore] fn a() {}", "`ignore`"),
            ("#[test] fn a() {} fn main() {}", "main"),
            ("use a::*; #[test] fn b() {}", "a::*"),
            ("use ::a::{x, y::*}; #[test] fn b() {}", "a::*"),
            ("fn (", "not Rust"),
        ] {
            let got = test_file(text, "a").unwrap_err();
            assert!(got.contains(want), "{text}: {got}");
        }
        assert!(test_file("use std::collections::*; #[test] fn b() {}", "a").is_ok());
    }
}
