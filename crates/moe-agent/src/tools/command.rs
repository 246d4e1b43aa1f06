//! The list of commands that `run_command` runs; everything else is refused.

use super::error::{CallError, shown};
use super::files::inside;

/// Most arguments of a command.
const MAX_ARGUMENTS: usize = 32;

/// Flags of cargo commands.
const FLAGS: [&str; 12] = [
    "--lib",
    "--bins",
    "--tests",
    "--examples",
    "--benches",
    "--all-targets",
    "--all-features",
    "--no-default-features",
    "--release",
    "--quiet",
    "-q",
    "--no-fail-fast",
];
/// Options of cargo commands with a name behind them.
const NAMED: [&str; 4] = ["--test", "--bin", "--example", "--features"];

/// A command that may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Allowed {
    /// `cargo check`, `build` or `clippy`, with its arguments.
    Build(Vec<String>),
    /// `cargo test`, with its arguments before and after `--`.
    Test(Vec<String>, Vec<String>),
    /// `cargo fmt`, which changes the files unless it only checks.
    Format { check: bool },
    /// `rustc --explain`.
    Explain(String),
    /// `ls`.
    List(String),
}

/// Reads a command.
pub(super) fn allow(command: &[String]) -> Result<Allowed, CallError> {
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    if words.len() > MAX_ARGUMENTS {
        return Err(refused(format!("{} arguments, at most {MAX_ARGUMENTS}", words.len())));
    }
    match words[..] {
        ["cargo", verb @ ("check" | "build"), ref args @ ..] => {
            plain(args)?;
            Ok(Allowed::Build(owned(&[&[verb], args].concat())))
        }
        ["cargo", "clippy", ref args @ ..] => {
            let (own, lints) = parted(args);
            plain(own)?;
            lint_levels(lints)?;
            let dashes: &[&str] = if lints.is_empty() { &[] } else { &["--"] };
            Ok(Allowed::Build(owned(&[&["clippy"], own, dashes, lints].concat())))
        }
        ["cargo", "test", ref args @ ..] => {
            let (own, harness) = parted(args);
            let (filters, own): (Vec<&str>, Vec<&str>) = own.iter().partition(|word| is_filter(word, own));
            plain(&own)?;
            let flag = |word: &&&str| !matches!(**word, "--exact" | "--nocapture" | "--ignored" | "--include-ignored");
            if let Some(word) = harness.iter().filter(flag).find(|word| !is_name(word)) {
                return Err(refused(format!("`{}` behind `--` of cargo test", shown(word))));
            }
            if filters.len() > 1 {
                return Err(refused("cargo test takes one filter".into()));
            }
            Ok(Allowed::Test(owned(&[&own[..], &filters].concat()), owned(harness)))
        }
        ["cargo", "fmt"] => Ok(Allowed::Format { check: false }),
        ["cargo", "fmt", "--check"] | ["cargo", "fmt", "--", "--check"] => Ok(Allowed::Format { check: true }),
        ["rustc", "--explain", code] if is_code(code) => Ok(Allowed::Explain(code.into())),
        ["ls"] => Ok(Allowed::List(String::new())),
        ["ls", "." | "./"] => Ok(Allowed::List(String::new())),
        ["ls", path] if !path.starts_with('-') => Ok(Allowed::List(inside(path.trim_end_matches('/'))?.to_owned())),
        ["cat" | "head" | "tail" | "less" | "sed", ..] => Err(refused("use read_file to read a file".into())),
        ["grep" | "rg" | "find", ..] => Err(refused("use repo_search to look for a text".into())),
        [] => Err(refused("the list is empty".into())),
        _ => Err(refused(format!("`{}` is not on the list", shown(&words.join(" "))))),
    }
}

fn refused(what: String) -> CallError {
    let reason = format!(
        "{what}; allowed are cargo check, build, test, clippy, fmt with flags like --lib or --test NAME, rustc --explain CODE, ls PATH"
    );
    CallError::Command { reason }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What stands before and behind `--`.
fn parted<'w, 'a>(words: &'w [&'a str]) -> (&'w [&'a str], &'w [&'a str]) {
    match words.iter().position(|word| *word == "--") {
        Some(at) => (&words[..at], &words[at + 1..]),
        None => (words, &[]),
    }
}

/// Checks flags and options of cargo.
fn plain(words: &[&str]) -> Result<(), CallError> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let named = NAMED.contains(word) && words.next().is_some_and(|name| is_name(name));
        if !named && !FLAGS.contains(word) {
            return Err(refused(format!("the argument `{}`", shown(word))));
        }
    }
    Ok(())
}

/// Whether a word is a test's name and not the value of an option.
fn is_filter(word: &&&str, all: &[&str]) -> bool {
    let at = all.iter().position(|other| std::ptr::eq(other, *word));
    let before = at.and_then(|at| at.checked_sub(1)).map(|at| all[at]);
    is_name(word) && before.is_none_or(|before| !NAMED.contains(&before))
}

fn is_name(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_:-,".contains(c);
    !word.is_empty() && word.len() <= 200 && !word.starts_with('-') && word.chars().all(plain)
}

fn is_code(word: &str) -> bool {
    word.len() == 5 && word.starts_with('E') && word[1..].bytes().all(|byte| byte.is_ascii_digit())
}

/// Checks levels of lints.
fn lint_levels(words: &[&str]) -> Result<(), CallError> {
    let level = |pair: &[&str]| {
        let name = pair.get(1).is_some_and(|name| is_name(name));
        name && matches!(pair[0], "-A" | "-W" | "-D")
    };
    if words.chunks(2).all(level) { Ok(()) } else { Err(refused("lints are given as -W, -A or -D and a name".into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Allowed, CallError> {
        allow(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_list_is_all_there_is() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(read("cargo check --lib").unwrap(), Allowed::Build(words("check --lib")));
        let clippy = "clippy --lib -- -A clippy::all -W clippy::needless_return";
        assert_eq!(read(&format!("cargo {clippy}")).unwrap(), Allowed::Build(words(clippy)));
        let test = Allowed::Test(words("--test it a::b"), words("--exact"));
        assert_eq!(read("cargo test a::b --test it -- --exact").unwrap(), test);
        assert_eq!(read("cargo fmt -- --check").unwrap(), Allowed::Format { check: true });
        assert_eq!(read("rustc --explain E0382").unwrap(), Allowed::Explain("E0382".into()));
        assert_eq!(read("ls src/").unwrap(), Allowed::List("src".into()));
        for line in [
            "rm -rf .",
            "sh -c ls",
            "cargo",
            "cargo run",
            "cargo install x",
            "cargo publish",
            "cargo check --config a=b",
            "cargo check --manifest-path /x",
            "cargo build -Zunstable",
            "cargo test --target-dir /x",
            "cargo clippy --fix",
            "cargo clippy -- --emit=link",
            "cargo clippy -- -W",
            "cargo fmt -- --config-path /x",
            "rustc src/lib.rs",
            "rustc --explain x",
            "cat src/lib.rs",
            "ls -R",
            "cargo check --test",
            "cargo check --test --lib",
            "cargo test a b",
            "cargo test -- --logfile=x",
            "cargo +nightly test",
            "",
        ] {
            assert!(matches!(read(line), Err(CallError::Command { .. })), "{line}: {:?}", read(line));
        }
        for line in ["ls ../..", "ls /etc", "ls .cargo"] {
            assert!(matches!(read(line), Err(CallError::Path { .. })), "{line}");
        }
        assert!(allow(&[]).is_err());
        assert!(allow(&vec!["cargo".to_owned(); 1000]).is_err());
    }
}
