//! Whether this machine can hold a command, tried out, and what a launch costs.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::error::{Layer, SandboxError};
use super::launch::{Sandbox, system_mounts};
use super::probe::{Finding, QUIET};
use super::types::{Command, End, Limits, Mount, Run};

/// Where the helper appears as the command of a check.
const INSIDE: &str = "/probe";

/// What a check found.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// Every layer is there, or allowed to be missing, and every probe was refused.
    pub holds: bool,
    /// Layers that are missing and were allowed to be.
    pub weaker: Vec<Layer>,
    /// What was tried inside.
    pub findings: Vec<Finding>,
    /// Launches measured.
    pub n_launches: usize,
    /// Median time from the call to the end of a program that does nothing, in milliseconds.
    pub launch_ms_p50: f64,
    /// The time that 99 of 100 launches keep.
    pub launch_ms_p99: f64,
}

/// Runs the probes of `helper` inside a sandbox of it, then measures `n_launches` launches.
///
/// # Errors
/// Any [`SandboxError`], above all the layer that is missing and is not in `allow_weaker`.
pub fn check(helper: &Path, allow_weaker: &[Layer], n_launches: usize) -> Result<CheckReport, SandboxError> {
    let sandbox = Sandbox::new(helper, allow_weaker)?;
    let outcome = sandbox.run(&probe(helper, &[]))?;
    if outcome.end != End::Exit(0) {
        return Err(SandboxError::Lost(format!("the probes ended with {:?}", outcome.end)));
    }
    let text = String::from_utf8_lossy(&outcome.stdout);
    let findings: Result<Vec<Finding>, _> = text.lines().map(serde_json::from_str).collect();
    let findings = findings.map_err(|error| SandboxError::Lost(format!("what the probes wrote: {error}")))?;
    let mut times = Vec::new();
    for _ in 0..n_launches.max(1) {
        times.push(sandbox.run(&probe(helper, &[QUIET]))?.wall);
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    Ok(CheckReport {
        holds: !findings.is_empty() && findings.iter().all(|finding| finding.holds),
        weaker: outcome.weaker,
        findings,
        n_launches: times.len(),
        launch_ms_p50: at(50),
        launch_ms_p99: at(99),
    })
}

fn probe(helper: &Path, args: &[&str]) -> Command {
    let mut mounts = system_mounts();
    mounts.push(Mount { host: helper.into(), inside: INSIDE.into(), writable: false });
    Command {
        program: INSIDE.into(),
        args: std::iter::once(&super::PROBE).chain(args).map(Into::into).collect(),
        env: Vec::new(),
        cwd: "/".into(),
        stdin: Vec::new(),
        mounts,
        scratch: Vec::new(),
        limits: Limits {
            wall: Duration::from_secs(20),
            cpu: Duration::from_secs(10),
            memory: 256 << 20,
            pids: 8,
            output: 1 << 20,
            file_size: 1 << 20,
            open_files: 64,
        },
    }
}
