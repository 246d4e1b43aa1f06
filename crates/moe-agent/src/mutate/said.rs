//! What tests and the compiler said, without build noise, paths of a machine, and numbers that change from run to run.

/// Most bytes of a message.
const MAX_MESSAGE: usize = 4000;

/// Names of the tests that libtest reports as failed, in the order of the alphabet: they end in any order.
pub(crate) fn failed_tests(stdout: &str) -> Vec<String> {
    let failed = results(stdout).filter(|(_, result)| *result == "FAILED");
    let mut names: Vec<String> = failed.map(|(name, _)| name.to_owned()).collect();
    names.sort();
    names
}

/// Names of the tests that libtest reports as passed.
pub(crate) fn passed_tests(stdout: &str) -> Vec<String> {
    results(stdout).filter(|(_, result)| *result == "ok").map(|(name, _)| name.to_owned()).collect()
}

fn results(stdout: &str) -> impl Iterator<Item = (&str, &str)> {
    let named = stdout.lines().filter_map(|line| line.strip_prefix("test ")?.rsplit_once(" ... "));
    named.map(|(name, result)| (name.split(" - should panic").next().unwrap_or(name), result.trim()))
}

/// The part of libtest's output that says how tests failed.
pub(crate) fn failure_text(stdout: &str) -> String {
    let from = stdout.find("\n---- ").map_or(0, |at| at + 1);
    let body = &stdout[from..];
    let body = body.find("\nfailures:\n").map_or(body, |end| &body[..end]);
    let mut out = String::new();
    for name in failed_tests(stdout) {
        out += &format!("test {name} ... FAILED\n");
    }
    out += "\n";
    let noise = ["note: run with `RUST_BACKTRACE", "note: test did not panic"];
    for line in body.lines().filter(|line| !line.starts_with(noise[0])) {
        out += &without_thread_number(&clean_paths(line));
        out.push('\n');
    }
    while out.contains("\n\n\n") {
        out = out.replace("\n\n\n", "\n\n");
    }
    bounded(out.trim())
}

/// Messages of the compiler, one after the other.
pub(crate) fn compiler_text<'m>(messages: impl Iterator<Item = &'m str>) -> String {
    let text: Vec<String> = messages.map(|message| clean_paths(message.trim())).collect();
    bounded(&text.join("\n\n"))
}

/// At most `MAX_MESSAGE` bytes, cut at the end of a line.
fn bounded(text: &str) -> String {
    if text.len() <= MAX_MESSAGE {
        return format!("{text}\n");
    }
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        if out.len() + line.len() > MAX_MESSAGE {
            break;
        }
        out += line;
    }
    out + "...\n"
}

/// Takes the number of the thread out of a panic's first line.
fn without_thread_number(line: &str) -> String {
    let Some((head, rest)) = line.split_once("' (").filter(|(head, _)| head.trim_start().starts_with("thread '"))
    else {
        return line.to_owned();
    };
    match rest.split_once(") panicked at ") {
        Some((number, place)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{head}' panicked at {place}")
        }
        _ => line.to_owned(),
    }
}

/// Paths of the sandbox and of the compiler's own sources, cut to what is inside of them.
pub(crate) fn clean_paths(text: &str) -> String {
    let mut text = text.replace("/bench/ws/", "").replace("/bench/vendor/", "");
    for (from, to) in [("/bench/toolchain/lib/rustlib/src/rust/", ""), ("/bench/tmp/", "tmp/")] {
        text = text.replace(from, to);
    }
    while let Some(at) = text.find("/rustc/") {
        let rest = &text[at + 7..];
        let hash = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        let end = at + 7 + hash + usize::from(rest[hash..].starts_with('/'));
        text.replace_range(at..end, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\nrunning 3 tests\ntest tests::a ... FAILED\ntest b - should panic ... ok\ntest c ... ok\n\n\
        failures:\n\n---- tests::a stdout ----\n\nthread 'tests::a' (123) panicked at src/lib.rs:3:5:\n\
        assertion `left == right` failed\n  left: 1\n right: 2\n\
        note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n\n\nfailures:\n    tests::a\n\n\
        test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s\n";

    #[test]
    fn only_the_failure_is_kept() {
        assert_eq!(failed_tests(SAID), ["tests::a"]);
        assert_eq!(passed_tests(SAID), ["b", "c"]);
        let want = "test tests::a ... FAILED\n\n---- tests::a stdout ----\n\n\
                    thread 'tests::a' panicked at src/lib.rs:3:5:\nassertion `left == right` failed\n  left: 1\n right: 2\n";
        assert_eq!(failure_text(SAID), want);
    }

    #[test]
    fn no_path_of_a_machine_is_left() {
        let text = "at /rustc/0a1b2c/library/core/x.rs:1 /bench/ws/src/a.rs /bench/toolchain/lib/rustlib/src/rust/library/y.rs";
        assert_eq!(clean_paths(text), "at library/core/x.rs:1 src/a.rs library/y.rs");
        let long = "0123456789\n".repeat(1000);
        let got = compiler_text([long.as_str()].into_iter());
        assert!(got.len() <= MAX_MESSAGE + 4 && got.ends_with("9\n...\n"));
    }
}
