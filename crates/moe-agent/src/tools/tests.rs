//! The executor over a runner that plays a program: what it makes of calls, and what of outputs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use eval_rust::sandbox::{Command, End, Outcome, Run, SandboxError};
use model_core::harmony::{Channel, Kind, Message, Role, Supervise};

use super::*;

const LOCK: &str = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"0.1.0\"\n";
const LIB: &str = "//! A.\n\n/// One.\npub fn one() -> u8 {\n    1\n}\n";

/// Gives these outcomes one after the other, then none, and keeps the commands.
#[derive(Default)]
struct Played {
    outcomes: Mutex<Vec<(End, &'static str)>>,
    commands: Mutex<Vec<Command>>,
}

impl Run for Played {
    fn run(&self, command: &Command) -> Result<Outcome, SandboxError> {
        self.commands.lock().unwrap().push(command.clone());
        let mut outcomes = self.outcomes.lock().unwrap();
        if outcomes.is_empty() {
            return Err(SandboxError::Lost("nothing is left to play".into()));
        }
        let (end, text) = outcomes.remove(0);
        Ok(Outcome {
            end,
            stdout: text.into(),
            stderr: Vec::new(),
            truncated: false,
            wall: Duration::from_millis(5),
            cpu: Duration::ZERO,
            peak_memory: 0,
            weaker: Vec::new(),
        })
    }
}

fn files() -> Files {
    let manifest = "[package]\nname = \"a\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    let all = [("Cargo.toml", manifest), ("Cargo.lock", LOCK), ("src/lib.rs", LIB), ("tests/t.rs", "//! T.\n")];
    all.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
}

fn with<T>(
    played: &[(End, &'static str)],
    change: impl Fn(&mut Setup),
    f: impl FnOnce(&mut Executor<'_>, &Played) -> T,
) -> T {
    let runner = Played { outcomes: Mutex::new(played.to_vec()), ..Played::default() };
    let work = tempfile::tempdir().unwrap();
    let mut setup = Setup::new("/toolchain".into(), work.path().into());
    change(&mut setup);
    let mut executor = Executor::new(&runner, &Arc::new(setup), files()).unwrap();
    f(&mut executor, &runner)
}

fn call(executor: &mut Executor<'_>, name: &str, arguments: &str) -> ToolResult {
    executor.call(&ToolCall::new(format!("functions.{name}"), arguments)).unwrap()
}

#[test]
fn wrong_calls_are_results_that_say_what_is_wrong() {
    let long = format!("{{\"path\":\"{}\"}}", "x".repeat(10 << 20));
    let cases = [
        ("run_test", "{}", Refusal::Tool),
        ("", "{}", Refusal::Tool),
        ("read_file", "", Refusal::Json),
        ("read_file", "{\"path\":\"src/lib.rs\"", Refusal::Json),
        ("read_file", "{\"path\":\"a\",\"path\":\"b\"}", Refusal::Json),
        ("read_file", "{\"path\":\"src/lib.rs\"} {}", Refusal::Json),
        ("read_file", "[]", Refusal::Arguments),
        ("read_file", "{}", Refusal::Arguments),
        ("read_file", "{\"path\":7}", Refusal::Arguments),
        ("read_file", "{\"path\":\"src/lib.rs\",\"more\":1}", Refusal::Arguments),
        ("read_file", "{\"path\":\"src/lib.rs\",\"start\":-1}", Refusal::Arguments),
        ("read_file", &long, Refusal::TooLong),
        ("read_file", "{\"path\":\"../etc/passwd\"}", Refusal::Path),
        ("read_file", "{\"path\":\"/etc/passwd\"}", Refusal::Path),
        ("read_file", "{\"path\":\"src/none.rs\"}", Refusal::NotFound),
        ("read_file", "{\"path\":\"src/lib.rs\",\"start\":90}", Refusal::NotFound),
        ("apply_patch", "{\"path\":\"../x.rs\",\"old\":\"\",\"new\":\"x\"}", Refusal::Path),
        ("apply_patch", "{\"path\":\"build.rs\",\"old\":\"\",\"new\":\"fn main() {}\"}", Refusal::Path),
        ("apply_patch", "{\"path\":\".cargo/config.toml\",\"old\":\"\",\"new\":\"x\"}", Refusal::Path),
        ("apply_patch", "{\"path\":\"Cargo.toml\",\"old\":\"0.1.0\",\"new\":\"1\"}", Refusal::Path),
        ("apply_patch", "{\"path\":\"tests/t.rs\",\"old\":\"T\",\"new\":\"U\"}", Refusal::Path),
        ("apply_patch", "{\"path\":\"src/lib.rs\",\"old\":\"two\",\"new\":\"x\"}", Refusal::NotFound),
        ("apply_patch", "{\"path\":\"src/lib.rs\",\"old\":\"1\",\"new\":\"1\"}", Refusal::Patch),
        ("run_command", "{\"command\":[\"rm\",\"-rf\",\".\"]}", Refusal::Command),
        ("run_command", "{\"command\":\"cargo check\"}", Refusal::Arguments),
        ("run_tests", "{\"filter\":\"--nocapture\"}", Refusal::Arguments),
        ("run_tests", "{\"target\":\"none\"}", Refusal::NotFound),
        ("repo_search", "{\"query\":\"\"}", Refusal::Arguments),
        ("repo_search", "{\"query\":\"absent\"}", Refusal::NotFound),
        ("search_crates_io", "{\"query\":\"serde\"}", Refusal::NotFound),
        ("read_error", "{\"number\":1}", Refusal::NotFound),
    ];
    with(
        &[],
        |_| {},
        |executor, played| {
            let before = executor.workspace_hash().to_owned();
            for (name, arguments, want) in cases {
                let result = call(executor, name, arguments);
                assert_eq!(result.status(), Status::Refused(want), "{name} {:.60}: {}", arguments, result.output());
                assert!(result.output().starts_with("error: ") && result.output().len() < 600, "{}", result.output());
                assert_eq!(result.is_bad_call(), want.is_bad_call());
                assert!(result.trouble().is_some() && !result.status().is_success());
            }
            assert_eq!(executor.workspace_hash(), before);
            assert!(played.commands.lock().unwrap().is_empty(), "nothing was run");
            let other = executor.call(&ToolCall::new("browser.open <|x|>", "{}")).unwrap();
            assert_eq!((other.tool(), other.message().name.as_deref()), (None, Some("functions.unknown")));
        },
    );
    with(
        &[],
        |setup| setup.tools = vec![Tool::ReadFile],
        |executor, _| {
            assert_eq!(call(executor, "run_tests", "{}").status(), Status::Refused(Refusal::Tool));
            assert!(call(executor, "read_file", "{\"path\":\"src/lib.rs\"}").status().is_success());
        },
    );
}

#[test]
fn tests_with_a_limit_of_their_own_are_built_first_and_run_as_cargo_would() {
    const BUILT: &str = concat!(
        r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"t"},"profile":{"test":true},"executable":"/agent/target/t-1"}"#,
        "\n",
        r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"profile":{"test":false},"executable":null}"#,
        "\n",
        r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"profile":{"test":true},"executable":"/agent/target/a-2"}"#,
        "\n",
    );
    const PASSED: &str = "\nrunning 1 test\ntest one ... ok\n\ntest result: ok. 1 passed; 0 failed\n";
    const FAILED: &str =
        "\nrunning 1 test\ntest two ... FAILED\n\nfailures:\n\n---- two stdout ----\nno\n\ntest result: FAILED.\n";
    let played = [
        (End::Exit(0), BUILT),
        (End::Exit(101), FAILED),
        (End::Exit(0), PASSED),
        (End::Exit(0), BUILT),
        (End::Exit(0), PASSED),
        (End::WallTime, "\nrunning 1 test\n"),
        (End::WallTime, ""),
    ];
    with(
        &played,
        |setup| setup.test_seconds = Some(4),
        |executor, played| {
            let first = call(executor, "run_tests", "{\"filter\":\"o\"}");
            assert_eq!(
                (first.status(), first.output()),
                (Status::Exit(101), "FAILED: 1 passed, 1 failed\ntwo\n  no\n")
            );
            let second = call(executor, "run_tests", "{}");
            assert_eq!(second.status(), Status::Stopped(End::WallTime), "{}", second.output());
            assert!(second.output().starts_with("stopped") || second.output().starts_with("the tests did not"));
            let slow = call(executor, "run_tests", "{}");
            assert_eq!(slow.status(), Status::Stopped(End::WallTime), "nothing runs that was not built");
            let commands = played.commands.lock().unwrap();
            let line = |command: &Command| {
                let args = command.args.iter().map(|arg| arg.to_str().unwrap());
                [command.program.to_str().unwrap()].into_iter().chain(args).collect::<Vec<_>>().join(" ")
            };
            let lines: Vec<String> = commands.iter().map(line).collect();
            let build = "/agent/toolchain/bin/cargo test --offline --locked --no-run --message-format=json --tests";
            let (lib, tests) = ("/agent/target/a-2", "/agent/target/t-1");
            let run = |program: &str| format!("{program} --test-threads=1");
            let filtered = |program: &str| format!("{program} o --test-threads=1");
            assert_eq!(lines, [build, &filtered(lib), &filtered(tests), build, &run(lib), &run(tests), build]);
            let walls: Vec<u64> = commands.iter().map(|command| command.limits.wall.as_millis() as u64).collect();
            assert_eq!(walls, [120_000, 4000, 3995, 120_000, 4000, 3995, 120_000]);
            assert!(commands.iter().all(|command| command.limits.cpu == command.limits.wall * 2));
        },
    );
}

#[test]
fn files_are_read_searched_and_changed() {
    with(
        &[],
        |_| {},
        |executor, _| {
            assert_eq!(call(executor, "read_file", "{\"path\":\"src/lib.rs\"}").output(), LIB);
            let part = call(executor, "read_file", "{\"path\":\"src/lib.rs\",\"start\":4,\"end\":5}");
            assert_eq!(part.output(), "pub fn one() -> u8 {\n    1\n(lines 4-5 of 6)\n");
            let found = call(executor, "repo_search", "{\"query\":\"fn one\"}");
            assert_eq!(found.output(), "src/lib.rs:4: pub fn one() -> u8 {\n");
            assert_eq!(
                call(executor, "run_command", "{\"command\":[\"ls\"]}").output(),
                "Cargo.lock\nCargo.toml\nsrc/\ntests/\n"
            );
            let patched =
                call(executor, "apply_patch", "{\"path\":\"src/lib.rs\",\"old\":\"    1\\n\",\"new\":\"    2\\n\"}");
            assert_eq!((patched.status(), patched.output()), (Status::Done, "src/lib.rs: patched at line 5\n"));
            assert!(executor.text("src/lib.rs").unwrap().contains("    2\n"));
        },
    );
}

#[test]
fn hashes_tell_calls_arguments_workspaces_and_outputs_apart() {
    with(
        &[],
        |_| {},
        |executor, _| {
            let read = |executor: &mut Executor<'_>| call(executor, "read_file", "{\"path\":\"src/lib.rs\"}");
            let first = read(executor);
            assert_eq!(first, read(executor));
            let spaced = call(executor, "read_file", "{ \"path\" : \"src/lib.rs\" }");
            assert_eq!((spaced.call_hash(), spaced.hash()), (first.call_hash(), first.hash()), "canonical arguments");
            let ranged = call(executor, "read_file", "{\"path\":\"src/lib.rs\",\"start\":1}");
            assert_eq!(ranged.output(), first.output());
            assert_ne!(ranged.call_hash(), first.call_hash());
            let snapshot = executor.snapshot();
            call(executor, "apply_patch", "{\"path\":\"src/new.rs\",\"old\":\"\",\"new\":\"//! N.\\n\"}");
            let after = read(executor);
            assert_eq!(after.output(), first.output());
            assert_ne!(after.call_hash(), first.call_hash(), "another workspace");
            executor.restore(snapshot).unwrap();
            assert_eq!(read(executor), first);
        },
    );
}

const PASSES: &str = "\nrunning 1 test\ntest one ... ok\n\ntest result: ok. 1 passed; 0 failed; finished in 0.01s\n";

#[test]
fn tests_pass_only_when_they_ran_to_their_end() {
    let cut = "\nrunning 2 tests\ntest one ... ok\n";
    let failing = "\nrunning 1 test\ntest one ... FAILED\n\nfailures:\n\n---- one stdout ----\n\nthread 'one' (77) panicked at \
                   src/lib.rs:9:5:\nno\n\n\nfailures:\n    one\n\ntest result: FAILED. 0 passed; 1 failed; finished in 0.02s\n";
    let played = [
        (End::Exit(0), PASSES),
        (End::Exit(0), cut),
        (End::Exit(101), failing),
        (End::WallTime, cut),
        (End::Exit(0), failing),
    ];
    with(
        &played,
        |_| {},
        |executor, played| {
            let run = |executor: &mut Executor<'_>| call(executor, "run_tests", "{}");
            let first = run(executor);
            assert_eq!((first.status(), first.output()), (Status::Exit(0), "ok: 1 passed\n"));
            let second = run(executor);
            assert_eq!(second.status(), Status::Stopped(End::Exit(0)), "it left in the middle: {}", second.output());
            let third = run(executor);
            assert_eq!(
                (third.status(), third.output()),
                (Status::Exit(101), "FAILED: 0 passed, 1 failed\none\n  panicked at src/lib.rs:9:5:\n  no\n")
            );
            assert_eq!(executor.tests().unwrap().failed[0].panicked_at(), Some(("src/lib.rs", 9)));
            assert_eq!(run(executor).status(), Status::Stopped(End::WallTime));
            assert!(!run(executor).status().is_success(), "a failure is one whatever the exit code");
            let commands = played.commands.lock().unwrap();
            let args: Vec<&str> = commands[0].args.iter().map(|arg| arg.to_str().unwrap()).collect();
            assert!(
                args.starts_with(&["test", "--offline", "--locked"]) && args.ends_with(&["--", "--test-threads=1"]),
                "{args:?}"
            );
            let writable: Vec<_> =
                commands[0].mounts.iter().filter(|mount| mount.writable).map(|mount| &mount.inside).collect();
            assert_eq!(writable, ["/agent/target"], "the crate itself is not writable");
        },
    );
}

#[test]
fn outputs_are_capped_and_a_sandbox_that_fails_is_no_result() {
    let noise: &'static str = Box::leak(format!("running 1 test\n{}", "x".repeat(100_000)).into_boxed_str());
    let played = [(End::Exit(1), noise)];
    with(
        &played,
        |setup| setup.output_bytes = 500,
        |executor, _| {
            let result = call(executor, "run_tests", "{}");
            assert!(result.output().len() < 600 && result.output().contains("left out"), "{}", result.output().len());
            assert!(matches!(
                executor.call(&ToolCall::new("functions.run_tests", "{}")),
                Err(ExecutorError::Sandbox(SandboxError::Lost(_)))
            ));
        },
    );
}

#[test]
fn compiler_messages_are_listed_and_read_by_number() {
    let message = r#"{"reason":"compiler-message","message":{"level":"error","code":{"code":"E0425"},"message":"cannot find value `x`","rendered":"error[E0425]: cannot find value `x`\n --> src/lib.rs:5:5\n  |\n5 |     x\n","spans":[{"is_primary":true,"file_name":"src/lib.rs","line_start":5,"column_start":5,"label":"not found"}]}}"#;
    let played = [(End::Exit(101), message), (End::Exit(101), message)];
    with(
        &played,
        |setup| setup.brief = true,
        |executor, _| {
            let tests = call(executor, "run_tests", "{}");
            assert_eq!(
                tests.output(),
                "does not compile, 1 error\n1. error[E0425] src/lib.rs:5:5: cannot find value `x`: not found\n"
            );
            assert!(call(executor, "read_error", "{\"number\":1}").output().contains("5 |     x"));
            assert_eq!(call(executor, "read_error", "{\"number\":2}").status(), Status::Refused(Refusal::NotFound));
            let check = call(executor, "run_command", "{\"command\":[\"cargo\",\"check\"]}");
            assert!(check.output().starts_with("exit code 101\n1. error"), "{}", check.output());
        },
    );
}

#[test]
fn s20_tools_are_declared_and_called_in_harmony() {
    let prompt = opening(PromptStyle::Full, &[Tool::RunTests, Tool::ApplyPatch], "Fix it.");
    let mut conversation = prompt.clone();
    with(
        &[(End::Exit(0), PASSES)],
        |_| {},
        |executor, _| {
            let asked = Message::call("functions.run_tests", "{}");
            let result = executor.call(&ToolCall::of(&asked).unwrap()).unwrap();
            conversation.messages.extend([asked, result.message()]);
        },
    );
    conversation.messages.push(Message::assistant(Channel::Final, "Done."));
    assert!(ToolCall::of(&conversation.messages[2]).is_none(), "a request is no call");
    let harmony = model_core::Harmony::o200k().unwrap();
    let rendered = harmony.render(&conversation, Kind::Training, false, &Supervise::All).unwrap();
    let text = harmony.decode(&rendered.ids);
    assert!(text.contains("type run_tests = (_: {\nfilter?: string,\ntarget?: string,\n}) => any;"), "{text}");
    assert!(
        text.ends_with(
            "<|start|>assistant to=functions.run_tests<|channel|>commentary <|constrain|>json<|message|>{}<|call|>\
             <|start|>functions.run_tests to=assistant<|channel|>commentary<|message|>ok: 1 passed\n<|end|>\
             <|start|>assistant<|channel|>final<|message|>Done.<|return|>"
        ),
        "{text}"
    );
    let supervised = rendered.spans.iter().filter(|span| span.supervised.is_some());
    assert!(supervised.clone().all(|span| conversation.messages[span.message].role == Role::Assistant));
    assert_eq!(supervised.count(), 2);
    let compact = opening(PromptStyle::Compact, &Tool::ALL, "Fix it.");
    assert_eq!(compact.messages.len(), 2);
    assert!(harmony.render(&compact, Kind::Completion(Role::Assistant), false, &Supervise::Nothing).is_ok());
}
