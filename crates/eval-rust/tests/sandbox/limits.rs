//! S1-S5: more processes, memory, files, time and output than a run may have.

use std::time::{Duration, Instant};

use eval_rust::sandbox::{End, Layer, Run};

use crate::{SCRATCH, attack, has, run, sandbox, text};

/// How late a limit may act.
const OVERSHOOT: Duration = Duration::from_secs(1);

const ENOSPC: &str = "28";

#[test]
fn s01_fork_and_thread_bombs_stop_at_the_limit() {
    let Some(sandbox) = sandbox() else { return };
    for bomb in ["fork-bomb", "thread-bomb"] {
        let outcome = run(&sandbox, &attack(bomb, &[bomb]));
        assert_eq!(outcome.end, End::Exit(0));
        let made: u32 = text(&outcome).parse().unwrap();
        // The program itself is one of sixteen.
        assert!((8..=15).contains(&made), "{bomb} made {made}");
    }
}

#[test]
fn s02_memory_bomb_is_stopped_inside() {
    if !has(Layer::MemoryGroup) {
        return;
    }
    let outcome = run(&sandbox().unwrap(), &attack("memory-bomb", &["memory-bomb"]));
    assert_eq!(outcome.end, End::Memory);
    assert!(outcome.peak_memory <= 64 << 20, "{}", outcome.peak_memory);
    assert!(outcome.peak_memory >= 60 << 20, "{}", outcome.peak_memory);
}

#[test]
fn s02_full_scratch_folder_is_the_attackers_problem() {
    let Some(sandbox) = sandbox() else { return };
    let file = format!("{SCRATCH}/x");
    let outcome = run(&sandbox, &attack("fill", &["fill", &file]));
    let got = text(&outcome);
    let (written, error) = got.split_once(' ').unwrap();
    assert_eq!((outcome.end, error), (End::Exit(0), ENOSPC), "{got}");
    assert!(written.parse::<u64>().unwrap() <= 8 << 20, "{got}");
    assert_eq!(text(&run(&sandbox, &attack("inodes", &["inodes", SCRATCH]))), format!("100 {ENOSPC}"));
}

#[test]
fn s02_scratch_folders_count_towards_memory() {
    if !has(Layer::MemoryGroup) {
        return;
    }
    let mut command = attack("fill-memory", &["fill", &format!("{SCRATCH}/x")]);
    command.scratch[0].bytes = 1 << 30;
    command.limits.file_size = 1 << 30;
    assert_eq!(run(&sandbox().unwrap(), &command).end, End::Memory);
}

#[test]
fn s02_one_file_has_its_own_limit() {
    let Some(sandbox) = sandbox() else { return };
    let mut command = attack("big-file", &["big-file", &format!("{SCRATCH}/x")]);
    command.limits.file_size = 1 << 20;
    assert_eq!(run(&sandbox, &command).end, End::Signal(25), "SIGXFSZ");
}

#[test]
fn s03_wall_limit_is_prompt() {
    let Some(sandbox) = sandbox() else { return };
    let mut command = attack("sleep", &["sleep"]);
    command.limits.wall = Duration::from_millis(500);
    let start = Instant::now();
    let outcome = run(&sandbox, &command);
    let took = start.elapsed();
    assert_eq!(outcome.end, End::WallTime);
    assert!(took >= command.limits.wall && took <= command.limits.wall + OVERSHOOT, "{took:?}");
}

#[test]
fn s03_processor_limit_counts_all_processes() {
    let Some(sandbox) = sandbox() else { return };
    let together = has(Layer::CpuGroup);
    for name in ["spin", "spin-many"] {
        if name == "spin-many" && !together {
            continue;
        }
        let mut command = attack(name, &[name]);
        command.limits.cpu = Duration::from_secs(1);
        let outcome = run(&sandbox, &command);
        assert_eq!(outcome.end, End::CpuTime, "{name}");
        // The clock of one process runs a little ahead of the sum that is reported where no group counts.
        let least = command.limits.cpu - Duration::from_millis(if together { 0 } else { 50 });
        assert!(outcome.cpu >= least && outcome.cpu <= command.limits.cpu + OVERSHOOT, "{outcome:?}");
    }
}

#[test]
fn s04_daemon_that_holds_the_output_goes_with_the_run() {
    let Some(sandbox) = sandbox() else { return };
    let start = Instant::now();
    let outcome = run(&sandbox, &attack("daemon", &["daemon"]));
    assert_eq!((outcome.end, text(&outcome).as_str()), (End::Exit(0), "parent done"));
    assert!(start.elapsed() < Duration::from_secs(5), "the reader waited for the daemon");
}

#[test]
fn s05_output_is_capped_and_marked() {
    let Some(sandbox) = sandbox() else { return };
    let outcome = run(&sandbox, &attack("flood", &["flood"]));
    assert_eq!((outcome.end, outcome.truncated, outcome.stdout.len()), (End::Output, true, 1 << 20));
    // One byte too many at the very end is a flood too; the exact limit is none.
    for (bytes, end) in [(1 << 20, End::Exit(0)), ((1 << 20) + 1, End::Output)] {
        let outcome = run(&sandbox, &attack("line", &["line", &bytes.to_string()]));
        assert_eq!((outcome.end, outcome.truncated, outcome.stdout.len()), (end, end == End::Output, 1 << 20));
    }
    assert_eq!(run(&sandbox, &attack("not-utf8", &["not-utf8"])).stdout, b"a\xff\xfe\0b");
}

#[test]
fn input_arrives_whole_or_is_left_unread() {
    let Some(sandbox) = sandbox() else { return };
    let mut command = attack("echo", &["echo"]);
    command.stdin = (0..900_000u32).map(|i| i as u8).collect();
    let outcome = run(&sandbox, &command);
    assert!(outcome.stdout == command.stdin, "{} of {} bytes", outcome.stdout.len(), command.stdin.len());
    command.args = vec!["exit".into(), "3".into()];
    assert_eq!(run(&sandbox, &command).end, End::Exit(3));
    command.args = vec!["crash".into()];
    assert_eq!(run(&sandbox, &command).end, End::Signal(6), "SIGABRT");
}

#[test]
fn runs_side_by_side_keep_apart() {
    let Some(sandbox) = sandbox() else { return };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8)
            .map(|i| {
                let sandbox = &sandbox;
                scope.spawn(move || sandbox.run(&attack(&format!("side-{i}"), &["exit", &i.to_string()])).unwrap().end)
            })
            .collect();
        for (i, run) in runs.into_iter().enumerate() {
            assert_eq!(run.join().unwrap(), End::Exit(i32::try_from(i).unwrap()));
        }
    });
}
