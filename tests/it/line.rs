//! The tiny pipeline, run once for all tests: what they compare with and copy from.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

use crate::process::{Running, command};
use crate::sandbox::{Listing, RUN, Sandbox};

/// The training stages in their order.
pub(crate) const STAGES: [&str; 4] = ["pretrain", "sft", "dpo", "lora"];

/// The sandbox in which the whole tiny pipeline has run; nobody changes it.
pub(crate) fn finished() -> &'static Sandbox {
    static FINISHED: OnceLock<Sandbox> = OnceLock::new();
    FINISHED.get_or_init(|| {
        let sandbox = Sandbox::new();
        sandbox.pipeline(&[]).ok();
        sandbox
    })
}

/// What a stage reads, as parts of the run's folder.
pub(crate) fn inputs_of(stage: &str) -> &'static [&'static str] {
    match stage {
        "pretrain" => &["init", "rows"],
        "sft" => &["pretrain", "tasks", "gates"],
        "dpo" => &["sft", "tasks", "gates"],
        "lora" => &["dpo", "rows", "gates"],
        other => panic!("no stage {other}"),
    }
}

/// The arguments with which the pipeline started a step.
pub(crate) fn args_of(step: &str) -> Vec<String> {
    let record = finished().json(&format!("{RUN}/steps/{step}.json"));
    record["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap().to_owned()).collect()
}

/// The arguments of a stage with more behind them.
pub(crate) fn args_with(stage: &str, more: &[&str]) -> Vec<String> {
    args_of(stage).into_iter().chain(more.iter().map(|arg| (*arg).to_owned())).collect()
}

/// How long a stage took when nobody disturbed it.
pub(crate) fn duration_of(stage: &str) -> Duration {
    let record = finished().json(&format!("{RUN}/steps/{stage}.json"));
    Duration::from_secs_f64(record["seconds"].as_f64().unwrap())
}

/// Starts a stage of the tiny pipeline in a sandbox, as the pipeline does.
pub(crate) fn start(sandbox: &Sandbox, stage: &str, more: &[&str]) -> Running {
    let args = args_with(stage, more);
    let root = sandbox.path("");
    Running::start(&mut command(&root, &format!("stage-{stage}"), &args), &sandbox.path("said"))
}

/// What a stage's folder holds of the result: lineage, metrics, the last checkpoint with optimizer and cursor, adapter
/// and merged model, the link to the result. Left out is what a clock decides, what is older than the last checkpoint,
/// and the lock.
pub(crate) fn results(sandbox: &Sandbox, stage: &str) -> Listing {
    let newest = newest_step(sandbox, stage).map(|step| format!("checkpoints/step-{step}/"));
    let mut listing = sandbox.list(&format!("{RUN}/{stage}"));
    listing.retain(|path, _| {
        let is_result = ["adapter/", "merged/"].iter().any(|folder| path.starts_with(folder))
            || newest.as_ref().is_some_and(|newest| path.starts_with(newest))
            || ["stage.json", "metrics.jsonl", "final"].contains(&path.as_str());
        is_result && !path.ends_with('/')
    });
    listing
}

/// The newest committed checkpoint.
pub(crate) fn newest_step(sandbox: &Sandbox, stage: &str) -> Option<u64> {
    let entries = fs::read_dir(sandbox.run_path(stage).join("checkpoints")).ok()?;
    let step = |name: String| name.strip_prefix("step-")?.parse().ok();
    entries.filter_map(|entry| step(entry.unwrap().file_name().into_string().unwrap())).max()
}

/// Lines of the stage's metrics that are complete.
pub(crate) fn n_metrics(sandbox: &Sandbox, stage: &str) -> usize {
    let text = fs::read(sandbox.run_path(stage).join("metrics.jsonl")).unwrap_or_default();
    text.iter().filter(|byte| **byte == b'\n').count()
}

/// Asserts that a stage in this sandbox left exactly what it left in the undisturbed run.
pub(crate) fn assert_same_results(sandbox: &Sandbox, stage: &str, how: &str) {
    let (want, got) = (results(finished(), stage), results(sandbox, stage));
    assert!(
        want.keys().any(|path| path.ends_with("optimizer.safetensors")),
        "the comparison sees too little: {want:?}"
    );
    assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>(), "{stage}, {how}");
    let different: Vec<&String> = want.keys().filter(|path| want[*path] != got[*path]).collect();
    assert!(different.is_empty(), "{stage}, {how}: {different:?} differ");
}
