//! Outputs without what differs from run to run, and cut to a length.

use super::cargo::{TARGET, TOOLCHAIN, WORKSPACE};

/// Lines of cargo that say what it does, not what it found.
const PROGRESS: [&str; 13] = [
    "Compiling",
    "Checking",
    "Finished",
    "Running",
    "Blocking",
    "Updating",
    "Locking",
    "Documenting",
    "Generated",
    "Doc-tests",
    "Fresh",
    "Adding",
    "Dirty",
];

/// Text of a program: paths of the sandbox, times, thread ids and addresses taken out.
pub(super) fn normalise(text: &str) -> String {
    let mut out = String::new();
    let text = text.replace(&format!("{WORKSPACE}/"), "").replace(WORKSPACE, ".");
    let text = text.replace(TARGET, "target").replace(TOOLCHAIN, "toolchain");
    for line in text.lines() {
        let words = line.trim_start();
        let progress = PROGRESS.iter().any(|word| words.strip_prefix(word).is_some_and(|rest| rest.starts_with(' ')));
        if (progress && words.len() < line.len()) || words.starts_with("note: run with `RUST_BACKTRACE=1`") {
            continue;
        }
        out += line_of(line).trim_end();
        out.push('\n');
    }
    out
}

/// One line.
fn line_of(line: &str) -> String {
    let mut line = line.to_owned();
    if line.starts_with("test result: ")
        && let Some(at) = line.find("; finished in ")
    {
        line.truncate(at);
    }
    if let Some(rest) = line.strip_prefix("thread '")
        && let Some((name, rest)) = rest.split_once("' ")
    {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let id = rest.strip_prefix('(').and_then(|rest| rest.split_once(") "));
        let rest = id.filter(|(id, _)| digits(id)).map_or(rest, |(_, rest)| rest);
        line = format!("thread '{name}' {rest}");
    }
    without_hex(&line)
}

/// The line with addresses and the hashes behind file names of the target folder replaced.
fn without_hex(line: &str) -> String {
    let bytes = line.as_bytes();
    let mut out = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &line[at..];
        let run = |from: &str| from.bytes().take_while(u8::is_ascii_hexdigit).count();
        if rest.starts_with("0x") && run(&rest[2..]) >= 11 {
            out += "0x…";
            at += 2 + run(&rest[2..]);
        } else if rest.starts_with('-') && run(&rest[1..]) == 16 && line.contains("target/") {
            at += 17;
        } else {
            let c = rest.chars().next().unwrap_or_default();
            out.push(c);
            at += c.len_utf8();
        }
    }
    out
}

/// At most about `limit` bytes of a text: two thirds from its beginning, one from its end, cut between lines.
pub(super) fn cap(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let boundary = |mut at: usize| {
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let head = boundary(limit * 2 / 3);
    let head = text[..head].rfind('\n').map_or(head, |at| at + 1);
    let tail = boundary(text.len() - limit / 3);
    let tail = text[tail..].find('\n').map_or(tail, |at| tail + at + 1);
    let line = if head == 0 || text[..head].ends_with('\n') { "" } else { "\n" };
    format!("{}{line}({} bytes left out)\n{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_is_gone() {
        let text = "   Compiling a v0.1.0 (/agent/ws)\n\nthread 'a::b' (8123) panicked at /agent/ws/src/lib.rs:1:2:\n\
                    test result: ok. 1 passed; 0 failed; finished in 0.07s\nat 0x7ffd12345678\n\
                    bin target/debug/deps/a-0123456789abcdef x\nnote: run with `RUST_BACKTRACE=1` environment\n";
        let want = "\nthread 'a::b' panicked at src/lib.rs:1:2:\ntest result: ok. 1 passed; 0 failed\nat 0x…\n\
                    bin target/debug/deps/a x\n";
        assert_eq!(normalise(text), want);
        let kept = "let mask = 0xdeadbeef; // Finished (early)\nFinished here\nthread 'x' (a) y\n";
        assert_eq!(normalise(kept), kept);
    }

    #[test]
    fn long_texts_keep_both_ends() {
        let text: String = (0..1000).map(|i| format!("line {i} ä\n")).collect();
        let cut = cap(&text, 300);
        assert!(cut.len() < 340 && cut.starts_with("line 0") && cut.ends_with("line 999 ä\n"), "{cut}");
        assert!(cut.contains("bytes left out)\nline 9"), "{cut}");
        assert_eq!(cap("short", 300), "short");
        let one = "ä".repeat(1000);
        assert!(cap(&one, 300).contains("bytes left out"));
    }
}
