//! How good and how fast the judge is: solutions that it accepts, verdicts that change, time past a limit, time of a step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use gates::interval;
use serde::Serialize;

use crate::judge::{self, Judge, JudgeError, Judgement, Status, Task, in_parallel, write_new};
use crate::sandbox::{Command, End, Outcome, Run, SandboxError};

/// How much is judged.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Judgements of solutions at least, over all tasks.
    pub judgements: usize,
    /// Judgements of each candidate at least.
    pub repeats: usize,
    /// Judgements at a time.
    pub jobs: usize,
    /// The first seed; each judgement has one of its own.
    pub seed: u64,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct BenchReport {
    /// Tasks.
    pub tasks: usize,
    /// Judgements of solutions.
    pub honest: usize,
    /// Those that were accepted.
    pub accepted: usize,
    /// Their share, and the lower end of its interval.
    pub accepted_share: f64,
    /// Wilson, 95 %.
    pub accepted_share_low: f64,
    /// What was said of those that were not.
    pub rejected: Vec<String>,
    /// Candidates that were judged several times: the solution and the start of each task.
    pub candidates: usize,
    /// Candidates of which two judgements differ.
    pub flips: Vec<String>,
    /// Starts that were accepted.
    pub wrong_accepted: Vec<String>,
    /// Errors of the judge.
    pub errors: usize,
    /// Runs that a limit of time ended.
    pub limits_hit: usize,
    /// The longest time past a limit, everything reaped, in milliseconds.
    pub overshoot_ms_max: f64,
    /// Wall time of a judgement, median, in milliseconds.
    pub judgement_ms_p50: f64,
    /// The same of 95 in 100.
    pub judgement_ms_p95: f64,
    /// CPU time of a judgement, mean, in milliseconds.
    pub judgement_cpu_ms_mean: f64,
    /// Judgements a second, all at a time together.
    pub judgements_per_s: f64,
    /// Wall time of each step, mean, in milliseconds, and how often it was run.
    pub steps: BTreeMap<String, (f64, usize)>,
}

impl BenchReport {
    /// Whether the judge is as good as it must be: 99.5 % of honest candidates accepted, no verdict that changes, no wrong
    /// candidate accepted, no error, at most one second past a limit.
    pub fn holds(&self) -> bool {
        let clean = self.flips.is_empty() && self.wrong_accepted.is_empty() && self.errors == 0;
        clean && self.accepted_share >= 0.995 && self.limits_hit > 0 && self.overshoot_ms_max <= 1000.0
    }
}

/// Passes runs on and notes what they took.
pub struct Recorder<'a> {
    inner: &'a (dyn Run + Sync),
    runs: Mutex<Vec<Ran>>,
}

struct Ran {
    step: String,
    wall_ms: f64,
    /// Past a limit of time, where one ended it.
    over_ms: Option<f64>,
}

impl<'a> Recorder<'a> {
    /// A recorder that has nothing yet.
    pub fn new(inner: &'a (dyn Run + Sync)) -> Self {
        Self { inner, runs: Mutex::new(Vec::new()) }
    }

    fn take(&self) -> Vec<Ran> {
        std::mem::take(&mut self.runs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Run for Recorder<'_> {
    fn run(&self, command: &Command) -> Result<Outcome, SandboxError> {
        let start = Instant::now();
        let outcome = self.inner.run(command)?;
        let wall = start.elapsed();
        let over = match outcome.end {
            End::WallTime => Some(wall.saturating_sub(command.limits.wall)),
            End::CpuTime => Some(outcome.cpu.saturating_sub(command.limits.cpu)),
            _ => None,
        };
        let name = command.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let step = match name.as_str() {
            "cargo" => format!("cargo {}", command.args.first().map(|arg| arg.to_string_lossy()).unwrap_or_default()),
            "rustfmt" => name,
            _ => "program".into(),
        };
        let millis = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        let ran = Ran { step, wall_ms: millis(wall), over_ms: over.map(millis) };
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).push(ran);
        Ok(outcome)
    }
}

/// Measures a judge that runs through `recorder`; `scratch` is an empty folder for tasks of its own.
///
/// # Errors
/// [`JudgeError`] when the tasks of its own cannot be made or the first judgement is an error of the judge.
pub fn bench(
    judge: &Judge<'_>,
    recorder: &Recorder<'_>,
    tasks: &[Task],
    plan: &Plan,
    scratch: &Path,
) -> Result<BenchReport, JudgeError> {
    // The cache is made first, so that no step holds what only the first judgement does.
    for task in tasks.iter().take(1) {
        let first = judge.judge(task, &task.solution(), plan.seed);
        if first.status == Status::Error {
            return Err(JudgeError::Own { step: "bench", what: first.reason });
        }
    }
    recorder.take();
    let rounds = plan.judgements.div_ceil(tasks.len().max(1)).max(plan.repeats);
    let mut work: Vec<(usize, bool)> = Vec::new();
    for round in 0..rounds {
        work.extend((0..tasks.len()).map(|task| (task, true)));
        if round < plan.repeats {
            work.extend((0..tasks.len()).map(|task| (task, false)));
        }
    }
    let start = Instant::now();
    let one = |i: usize| {
        let (task, honest) = (&tasks[work[i].0], work[i].1);
        let candidate = if honest { task.solution() } else { task.start() };
        judge.judge(task, &candidate, plan.seed.wrapping_add(i as u64))
    };
    let judged: Vec<Judgement> = in_parallel(work.len(), plan.jobs, one).into_iter().flatten().collect();
    let seconds = start.elapsed().as_secs_f64();
    let mut report = summary(tasks, &work, &judged, seconds);
    report.steps = steps(&recorder.take());
    limits(judge, plan, scratch)?;
    let over: Vec<f64> = recorder.take().iter().filter_map(|ran| ran.over_ms).collect();
    report.limits_hit = over.len();
    report.overshoot_ms_max = over.into_iter().fold(0.0, f64::max);
    Ok(report)
}

/// What of a judgement must not depend on the seed or on chance.
fn verdict(one: &Judgement) -> (Status, bool, bool, &[String], bool, bool, &[String]) {
    (one.status, one.passed, one.compiled, &one.tests_failed, one.clippy_clean, one.formatted, &one.error_codes)
}

fn summary(tasks: &[Task], work: &[(usize, bool)], judged: &[Judgement], seconds: f64) -> BenchReport {
    let both = || work.iter().zip(judged);
    let honest = both().filter(|(work, _)| work.1);
    let rejected = honest.clone().filter(|(_, one)| !one.passed);
    let mut first: BTreeMap<(usize, bool), &Judgement> = BTreeMap::new();
    let mut flips = BTreeSet::new();
    for (work, one) in both() {
        if verdict(first.entry(*work).or_insert(one)) != verdict(one) {
            flips.insert(format!("{} {}", tasks[work.0].file.id, if work.1 { "solution" } else { "start" }));
        }
    }
    let mut walls: Vec<u64> = judged.iter().map(|one| one.wall_ms).collect();
    walls.sort_unstable();
    let at =
        |share: f64| walls.get((share * (walls.len().max(1) - 1) as f64) as usize).map_or(f64::NAN, |&ms| ms as f64);
    let n = honest.clone().count();
    let accepted = n - rejected.clone().count();
    let share = interval::rate(accepted as u64, n as u64);
    BenchReport {
        tasks: tasks.len(),
        honest: n,
        accepted,
        accepted_share: share.value,
        accepted_share_low: share.ci_low,
        rejected: rejected.map(|(_, one)| format!("{}: {}", one.task, one.reason)).collect(),
        candidates: first.len(),
        flips: flips.into_iter().collect(),
        wrong_accepted: both().filter(|(work, one)| !work.1 && one.passed).map(|(_, one)| one.task.clone()).collect(),
        errors: judged.iter().filter(|one| one.status == Status::Error).count(),
        limits_hit: 0,
        overshoot_ms_max: 0.0,
        judgement_ms_p50: at(0.5),
        judgement_ms_p95: at(0.95),
        judgement_cpu_ms_mean: judged.iter().map(|one| one.cpu_ms as f64).sum::<f64>() / judged.len() as f64,
        judgements_per_s: judged.len() as f64 / seconds,
        steps: BTreeMap::new(),
    }
}

fn steps(runs: &[Ran]) -> BTreeMap<String, (f64, usize)> {
    let mut steps: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for ran in runs {
        let step = steps.entry(ran.step.clone()).or_default();
        step.0 += ran.wall_ms;
        step.1 += 1;
    }
    steps.values_mut().for_each(|step| step.0 /= step.1 as f64);
    steps
}

/// Judges candidates that never end, in sleep, at work, and in threads.
fn limits(judge: &Judge<'_>, plan: &Plan, scratch: &Path) -> Result<(), JudgeError> {
    let manifest = "[package]\nname = \"endless\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    let source = |body: &str| format!("//! Endless.\n\n/// Is one.\npub fn one() -> u32 {{\n    {body}\n}}\n");
    let bodies = [
        ("start", "0"),
        ("solution", "1"),
        ("sleeps", "loop {\n        std::thread::sleep(std::time::Duration::from_secs(1));\n    }"),
        ("works", "loop {\n        std::hint::spin_loop();\n    }"),
        (
            "threads",
            "std::thread::scope(|s| {\n        for _ in 0..8 {\n            s.spawn(|| loop { std::hint::spin_loop(); });\n        }\n    });\n    0",
        ),
    ];
    let task = "id = \"endless\"\ndescription = \"One.\"\nkind = \"tests\"\nfail_to_pass = [\"hidden::one\"]\n[limits]\ntest_s = 1\n";
    let test = "#[test]\nfn one() { let r: u32 = endless::one(); assert_eq!(r, 1); }\n";
    let put = |name: String, text: &str| {
        let path = scratch.join(name);
        let folder = path.parent().unwrap_or(scratch);
        std::fs::create_dir_all(folder).map_err(judge::io("create", folder))?;
        write_new(&path, text.as_bytes())
    };
    put("task.toml".into(), task)?;
    put("hidden/tests/hidden.rs".into(), test)?;
    for (name, body) in bodies {
        put(format!("{name}/Cargo.toml"), manifest)?;
        put(format!("{name}/src/lib.rs"), &source(body))?;
    }
    let task = Task::load(scratch)?;
    let endless = &bodies[2..];
    let one = |i: usize| judge.judge(&task, &scratch.join(endless[i % endless.len()].0), plan.seed);
    in_parallel(plan.repeats.max(1) * endless.len(), plan.jobs, one);
    Ok(())
}
