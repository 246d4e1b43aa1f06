//! What of a candidate is taken over, what is refused unseen, and what is counted.
//!
//! Only `src/**/*.rs` of a candidate is ever used. Every other file comes from the task: what the candidate has there is
//! ignored where it is harmless (its own new tests, notes, `Cargo.lock`) and refused where it would steer the build or take
//! back what the task tests. The rules on source text are hygiene that keeps a process from lying about itself in the
//! simple ways; the boundary is the sandbox, and for functions the comparison outside.

use super::collect::Files;
use super::diff::changed_lines;
use super::task::Task;
use super::tokens::{Kind, Token, flatten, plain_string};

/// Macros that tests and drivers use; a crate's own macro must not be taken for one.
const STD_MACROS: [&str; 20] = [
    "assert",
    "assert_eq",
    "assert_ne",
    "debug_assert",
    "debug_assert_eq",
    "debug_assert_ne",
    "panic",
    "matches",
    "vec",
    "format",
    "print",
    "println",
    "eprint",
    "eprintln",
    "write",
    "writeln",
    "todo",
    "unreachable",
    "unimplemented",
    "test",
];
/// Attributes that reach the linker, the runtime or other files.
const ATTRIBUTES: [&str; 15] = [
    "no_mangle",
    "export_name",
    "link_section",
    "link",
    "link_name",
    "link_args",
    "naked",
    "global_allocator",
    "panic_handler",
    "used",
    "no_core",
    "no_main",
    "feature",
    "proc_macro",
    "proc_macro_derive",
];
/// Macros that write machine code.
const ASSEMBLY: [&str; 3] = ["asm", "global_asm", "naked_asm"];
/// Macros that read files.
pub(crate) const INCLUDES: [&str; 3] = ["include", "include_str", "include_bytes"];
/// Files and folders that steer cargo, rustc, clippy or rustfmt, by their first or last part.
const STEERING: [&str; 9] = [
    ".cargo",
    "rust-toolchain",
    "rust-toolchain.toml",
    "clippy.toml",
    ".clippy.toml",
    "rustfmt.toml",
    ".rustfmt.toml",
    "build.rs",
    ".gitmodules",
];

/// What was found in a candidate that is not refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// The files that are compiled: the candidate's sources, all else from the task.
    pub(crate) files: Files,
    pub(crate) unsafe_added: u64,
    pub(crate) lint_attributes_added: u64,
    pub(crate) format_attributes_added: u64,
    pub(crate) diff_lines: u64,
    pub(crate) files_changed: u64,
}

/// Compares a candidate with the task's start.
///
/// # Errors
/// The reason for which the candidate is refused.
pub(crate) fn admit(task: &Task, candidate: &Files) -> Result<Admitted, String> {
    refuse_files(task, candidate)?;
    let mut admitted = Admitted::default();
    for (path, bytes) in &task.start {
        if !is_source(path) {
            admitted.files.insert(path.clone(), bytes.clone());
        }
    }
    let mut before = Counts::default();
    for (path, bytes) in task.start.iter().filter(|(path, _)| is_source(path)) {
        before.add(&flatten(&text(path, bytes)?).ok_or_else(|| format!("start: {path} is not Rust"))?);
        if candidate.get(path).is_none() {
            admitted.diff_lines += changed_lines(&text(path, bytes)?, "");
            admitted.files_changed += 1;
        }
    }
    let mut after = Counts::default();
    for (path, bytes) in candidate.iter().filter(|(path, _)| is_source(path)) {
        let new = text(path, bytes)?;
        let tokens = flatten(&new).ok_or_else(|| format!("{path} does not fall into tokens, or nests too deeply"))?;
        after.add(&tokens);
        let old = task.start.get(path);
        if old != Some(bytes) {
            refuse_tokens(task, path, &tokens)?;
            let old = old.map_or(Ok(String::new()), |old| text(path, old))?;
            admitted.diff_lines += changed_lines(&old, &new);
            admitted.files_changed += 1;
        }
        admitted.files.insert(path.clone(), bytes.clone());
    }
    admitted.unsafe_added = after.unsafes.saturating_sub(before.unsafes);
    admitted.lint_attributes_added = after.lints.saturating_sub(before.lints);
    admitted.format_attributes_added = after.formats.saturating_sub(before.formats);
    if after.unsafes > 0 && !task.file.allow_unsafe {
        return Err(format!("`unsafe` where the task allows none ({} more than before)", admitted.unsafe_added));
    }
    Ok(admitted)
}

pub(crate) fn is_source(path: &str) -> bool {
    path.starts_with("src/") && path.ends_with(".rs")
}

pub(crate) fn text(path: &str, bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| format!("{path} is not UTF-8"))
}

pub(crate) fn refuse_files(task: &Task, candidate: &Files) -> Result<(), String> {
    for (path, bytes) in candidate {
        let same = task.start.get(path) == Some(bytes);
        let mut parts = path.split('/');
        let steers = |part: Option<&str>| part.is_some_and(|part| STEERING.contains(&part));
        if !same && (steers(parts.next()) || steers(parts.next_back())) {
            return Err(format!("{path} steers the build; it belongs to the task"));
        }
        if path != "Cargo.toml" && path.ends_with("Cargo.toml") {
            return Err(format!("{path} would be a second package"));
        }
    }
    if !candidate.contains_key("src/lib.rs") {
        return Err("src/lib.rs is missing".into());
    }
    let manifest = candidate.get("Cargo.toml").ok_or("Cargo.toml is missing")?;
    let parsed: toml::Table = text("Cargo.toml", manifest)?.parse().map_err(|_| "Cargo.toml is not TOML".to_owned())?;
    let keys = task.manifest.keys().chain(parsed.keys());
    if let Some(key) = keys.into_iter().find(|key| task.manifest.get(*key) != parsed.get(*key)) {
        return Err(format!("Cargo.toml changed in `{key}`; it belongs to the task"));
    }
    for (path, bytes) in &task.start {
        let folder = path.split('/').next().unwrap_or_default();
        let fixed = ["tests", "benches", "examples"].contains(&folder) && !task.asks_for(path);
        if fixed && candidate.get(path) != Some(bytes) {
            return Err(format!("{path} was changed or removed; tests belong to the task"));
        }
    }
    Ok(())
}

pub(crate) fn refuse_tokens(task: &Task, path: &str, tokens: &[Token]) -> Result<(), String> {
    let refuse = |what: &str| Err(format!("{path}: {what}"));
    let is = |i: usize, text: &str| tokens.get(i).is_some_and(|token| token.is(text));
    for (i, token) in tokens.iter().enumerate().filter(|(_, token)| token.kind == Kind::Ident) {
        let name = token.text.trim_start_matches("r#");
        if INCLUDES.contains(&name) && !is_own_file(task, path, &tokens[i + 1..]) {
            return refuse(&format!("`{name}` of something else than a file of the task"));
        }
        if token.in_attribute && (ATTRIBUTES.contains(&name) || (name == "path" && is(i + 1, "="))) {
            return refuse(&format!("attribute `{name}`"));
        }
        if ASSEMBLY.contains(&name) && is(i + 1, "!") {
            return refuse("machine code");
        }
        let declares = i >= 2 && is(i - 1, "!") && is(i - 2, "macro_rules");
        let renames = i >= 1 && is(i - 1, "as");
        if STD_MACROS.contains(&name) && (declares || renames) {
            return refuse(&format!("a macro named `{name}`, as in the standard library"));
        }
        let abi = tokens.get(i + 1).is_some_and(|next| next.kind == Kind::Literal);
        if name == "extern" && (is(i + 1, "{") || (abi && is(i + 2, "{"))) {
            return refuse("foreign functions");
        }
    }
    Ok(())
}

/// `!("…")` with a relative path to a file of the task.
fn is_own_file(task: &Task, path: &str, rest: &[Token]) -> bool {
    let [bang, open, name, close, ..] = rest else { return false };
    if !(bang.is("!") && open.kind == Kind::Open && name.kind == Kind::Literal && close.kind == Kind::Close) {
        return false;
    }
    let Some(name) = plain_string(&name.text) else { return false };
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in name.split('/') {
        match part {
            ".." if parts.pop().is_none() => return false,
            ".." | "." => {}
            part => parts.push(part),
        }
    }
    task.start.contains_key(&parts.join("/"))
}

/// Words of a crate that are counted.
#[derive(Default)]
pub(crate) struct Counts {
    unsafes: u64,
    pub(crate) lints: u64,
    pub(crate) formats: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, tokens: &[Token]) {
        let silences = |i: usize| tokens.get(i + 1).is_some_and(|next| next.is("("));
        for (i, token) in tokens.iter().enumerate().filter(|(_, token)| token.kind == Kind::Ident) {
            match token.text.as_str() {
                "unsafe" => self.unsafes += 1,
                "allow" | "expect" if token.in_attribute && silences(i) => self.lints += 1,
                // A name of clippy that is no path asks whether it is clippy that reads this.
                "clippy" if token.in_attribute && !tokens.get(i + 1).is_some_and(|next| next.is(":")) => {
                    self.lints += 1
                }
                "rustfmt" if token.in_attribute => self.formats += 1,
                _ => {}
            }
        }
    }
}
