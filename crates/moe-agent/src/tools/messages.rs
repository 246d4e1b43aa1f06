//! What the compiler said, out of cargo's JSON.

use serde_json::Value;

use super::normalise::normalise;

/// Most messages that are kept.
const MAX_DIAGNOSTICS: usize = 100;

/// One message of the compiler or of clippy about a place in the crate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// 0 for an error, 1 for a warning.
    rank: u8,
    /// The file, relative to the crate.
    pub file: String,
    /// 1-based line.
    pub line: u64,
    /// 1-based column.
    pub column: u64,
    /// Code or lint, as `E0308` or `clippy::needless_return`.
    pub code: Option<String>,
    /// The message.
    pub message: String,
    /// What stands under the marked place.
    pub label: Option<String>,
    /// The whole text as the compiler shows it.
    pub rendered: String,
}

impl Diagnostic {
    /// Whether it keeps the crate from compiling.
    pub fn is_error(&self) -> bool {
        self.rank == 0
    }

    /// One line.
    pub(super) fn brief(&self) -> String {
        let level = if self.is_error() { "error" } else { "warning" };
        let code = self.code.as_ref().map_or_else(String::new, |code| format!("[{code}]"));
        let label = self.label.as_ref().filter(|label| !self.message.contains(label.as_str()));
        let label = label.map_or_else(String::new, |label| format!(": {label}"));
        let (file, line, column) = (&self.file, self.line, self.column);
        let text = format!("{level}{code} {file}:{line}:{column}: {}{label}", self.message);
        text.lines().next().unwrap_or_default().to_owned()
    }
}

/// Splits what a cargo command with `--message-format=json` wrote: messages in the order of errors, files and lines, each
/// once, and all other lines.
pub(super) fn split(stdout: &str) -> (Vec<Diagnostic>, String) {
    let mut found = Vec::new();
    let mut rest = String::new();
    for line in stdout.lines() {
        let json = line.strip_prefix("{\"reason\":").and_then(|_| serde_json::from_str::<Value>(line).ok());
        match json {
            Some(value) => found.extend(diagnostic(&value)),
            None => {
                rest += line;
                rest.push('\n');
            }
        }
    }
    found.sort();
    found.dedup();
    found.truncate(MAX_DIAGNOSTICS);
    (found, rest)
}

/// The programs of tests that a cargo command with `--message-format=json` built, in the order in which cargo runs them: the library's, those of
/// programs, then tests by name.
pub(super) fn test_programs(stdout: &str) -> Vec<String> {
    let program = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let is_test = line["reason"] == "compiler-artifact" && line["profile"]["test"] == true;
        let program = line["executable"].as_str().filter(|_| is_test)?;
        let rank = match line["target"]["kind"][0].as_str()? {
            "test" => 2,
            "bin" => 1,
            _ => 0,
        };
        Some((rank, line["target"]["name"].as_str()?.to_owned(), program.to_owned()))
    };
    let mut found: Vec<(u8, String, String)> = stdout.lines().filter_map(program).collect();
    found.sort();
    found.into_iter().map(|(.., program)| program).collect()
}

fn diagnostic(line: &Value) -> Option<Diagnostic> {
    let message = line.get("message").filter(|_| line["reason"] == "compiler-message")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rank = match message["level"].as_str()? {
        "error" => 0,
        "warning" => 1,
        _ => return None,
    };
    let spans = message["spans"].as_array()?;
    let span = spans.iter().find(|span| span["is_primary"] == true)?;
    Some(Diagnostic {
        rank,
        file: normalise(&text(&span["file_name"])).trim_end().to_owned(),
        line: span["line_start"].as_u64().unwrap_or_default(),
        column: span["column_start"].as_u64().unwrap_or_default(),
        code: message["code"]["code"].as_str().map(str::to_owned),
        message: text(&message["message"]),
        label: span["label"].as_str().map(str::to_owned),
        rendered: normalise(&text(&message["rendered"])),
    })
}

/// The messages in words: in full where that fits `limit` bytes and `brief` is not asked for, else a line each.
pub(super) fn describe(diagnostics: &[&Diagnostic], limit: usize, brief: bool) -> String {
    let full: String = diagnostics
        .iter()
        .enumerate()
        .map(|(i, one)| format!("{}. {}", i + 1, one.rendered.trim_end()) + "\n")
        .collect();
    if !brief && full.len() <= limit {
        return full;
    }
    diagnostics.iter().enumerate().map(|(i, one)| format!("{}. {}\n", i + 1, one.brief())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"reason":"compiler-message","message":{"level":"LEVEL","code":{"code":"E0308"},"message":"mismatched types","rendered":"error[E0308]: mismatched types\n --> src/lib.rs:LINE:5\n","spans":[{"is_primary":true,"file_name":"src/lib.rs","line_start":LINE,"column_start":5,"label":"expected `u8`"}]}}"#;

    #[test]
    fn messages_are_sorted_and_told_apart_from_output() {
        let line = |level: &str, at: &str| LINE.replace("LEVEL", level).replace("LINE", at);
        let summary = r#"{"reason":"compiler-message","message":{"level":"error","message":"aborting","spans":[]}}"#;
        let text = format!(
            "{}\n{}\ntest a ... ok\n{}\n{}\n{summary}\n{{\"reason\":no json}}\n",
            line("warning", "1"),
            line("error", "9"),
            line("error", "3"),
            line("error", "9")
        );
        let (found, rest) = split(&text);
        assert_eq!(rest, "test a ... ok\n{\"reason\":no json}\n");
        let places: Vec<(bool, u64)> = found.iter().map(|one| (one.is_error(), one.line)).collect();
        assert_eq!(places, [(true, 3), (true, 9), (false, 1)]);
        let all: Vec<&Diagnostic> = found.iter().collect();
        let brief = describe(&all, 1000, true);
        assert!(brief.starts_with("1. error[E0308] src/lib.rs:3:5: mismatched types: expected `u8`\n2. "), "{brief}");
        assert!(describe(&all, 1000, false).contains(" --> src/lib.rs:9:5"));
        assert_eq!(describe(&all, 10, false), brief);
    }
}
