//! Calls that have a better replacement here, and the few files that may use them.

use super::Finding;
use super::source::Source;

/// Something that is not written here.
struct Ban {
    what: &'static str,
    instead: &'static str,
    /// Path prefixes of the files that may use it, and why.
    allowed: &'static [(&'static str, &'static str)],
}

const SEED: &str = "a generator with a seed from the configuration";
const RELATIVE: &str = "a path relative to the repository";
const CLOCK: &str = "the observers of the loop: nothing that is computed may depend on the clock";

/// Bans in production code.
const CODE: [Ban; 9] = [
    Ban {
        what: "fs::write(",
        instead: "gates::artifact::write_atomic, which leaves the old content or the new after a crash",
        allowed: &[
            ("crates/trainer/src/checkpoint/", "inside a temporary folder that is committed as a whole"),
            ("crates/model-core/src/", "inside a temporary folder that is committed as a whole"),
        ],
    },
    Ban {
        what: "Instant::now",
        instead: CLOCK,
        allowed: &[
            ("crates/trainer/src/observe/", "the observers"),
            ("crates/kernels-cubecl/src/cuda/profile.rs", "the time of each op in a profile"),
            ("crates/trainer/src/train.rs", "the duration of a step, handed to the observers"),
            ("xtask/src/launch.rs", "the wall time of a step in the table"),
            ("xtask/src/ci.rs", "the wall time of a check"),
            ("benches/src/", "what a benchmark measures"),
            ("crates/eval-rust/src/sandbox/", "the limits of a run and what it took"),
            ("crates/moe-agent/src/rollout/stopwatch.rs", "the speed of rollouts, in figures and nowhere else"),
            ("crates/eval-rust/src/bench.rs", "what a benchmark measures"),
        ],
    },
    Ban {
        what: "SystemTime::now",
        instead: CLOCK,
        allowed: &[("crates/trainer/src/observe/", "event files carry it")],
    },
    Ban {
        what: "stdin()",
        instead: "an argument: no program asks a question (defect S29)",
        allowed: &[
            ("crates/moe-agent/src/commands/", "a file given as `-`"),
            ("crates/eval-rust/src/judge/harness/", "what the judge asks a program of its own, which has no arguments"),
            ("crates/eval-rust/src/sandbox/inside.rs", "the socket between the launcher and its helper"),
        ],
    },
    Ban { what: "thread_rng", instead: SEED, allowed: &[] },
    Ban { what: "rand::rng", instead: SEED, allowed: &[] },
    Ban { what: "from_entropy", instead: SEED, allowed: &[] },
    Ban {
        what: "Command::new",
        instead: "a file: only the orchestrator and the sandbox start processes",
        allowed: &[("xtask/src/", "the orchestrator"), ("crates/eval-rust/src/sandbox/", "the sandbox")],
    },
    Ban {
        what: "process::exit(",
        instead: "std::process::ExitCode from main, so that everything is closed",
        allowed: &[],
    },
];

/// Asking whether somebody is there is not asking them.
const NO_QUESTION: &str = "stdin().is_terminal()";

/// Bans anywhere, tests and strings included.
const TEXT: [Ban; 4] = [
    Ban { what: concat!("#[", "ignore"), instead: "a test that runs, or none", allowed: &[] },
    Ban { what: concat!("/wo", "rk/"), instead: RELATIVE, allowed: &[] },
    Ban { what: concat!("/ro", "ot/"), instead: RELATIVE, allowed: &[] },
    Ban { what: concat!("/ho", "me/"), instead: RELATIVE, allowed: &[] },
];

/// Checks one file.
pub(crate) fn check(source: &Source) -> Vec<Finding> {
    let code = CODE.iter().flat_map(|ban| find(ban, source, &source.production));
    let text = TEXT.iter().flat_map(|ban| find(ban, source, &source.text));
    code.chain(text).collect()
}

fn find(ban: &Ban, source: &Source, text: &str) -> Vec<Finding> {
    let path = source.path.to_string_lossy();
    if ban.allowed.iter().any(|(prefix, _)| path.starts_with(prefix)) {
        return Vec::new();
    }
    let message = |_| format!("`{}` is not used here; use {}", ban.what, ban.instead);
    let found = text.match_indices(ban.what).filter(|(at, _)| !text[*at..].starts_with(NO_QUESTION));
    found.map(|(at, what)| Finding::new(&source.path, source.line(at), message(what))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(&Source::new(Path::new(path), text.into())).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn banned_calls_are_found_outside_tests_comments_and_strings() {
        let got = findings("crates/x/src/a.rs", "//! A.\nfn f() {\n    std::fs::write(p, b);\n}\n");
        assert_eq!(got.len(), 1);
        assert!(got[0].starts_with("crates/x/src/a.rs:3: `fs::write(`") && got[0].contains("write_atomic"), "{got:?}");
        for text in [
            "// fs::write(p, b)",
            "const S: &str = \"fs::write(\";",
            "#[cfg(test)]\nmod tests { fn f() { fs::write(a, b) } }",
        ] {
            assert_eq!(findings("crates/x/src/a.rs", text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn every_ban_bites_and_every_exception_holds() {
        for ban in &CODE {
            let text = format!("fn f() {{ {} }}", ban.what);
            assert!(!findings("crates/x/src/a.rs", &text).is_empty(), "{}", ban.what);
            for (path, _) in ban.allowed {
                assert!(findings(&format!("{path}a.rs"), &text).is_empty(), "{} in {path}", ban.what);
            }
        }
        for ban in &TEXT {
            let text = format!("#[cfg(test)]\nmod tests {{ const A: &str = \"{}\"; }}", ban.what);
            assert_eq!(findings("crates/x/src/a.rs", &text).len(), 1, "{}", ban.what);
        }
    }

    #[test]
    fn s29_a_question_is_found() {
        let got = findings("xtask/src/pipeline/mod.rs", "fn f() { std::io::stdin().read_line(&mut answer) }");
        assert!(got.len() == 1 && got[0].contains("S29"), "{got:?}");
        assert!(findings("crates/x/src/a.rs", "fn f() -> bool { std::io::stdin().is_terminal() }").is_empty());
    }
}
