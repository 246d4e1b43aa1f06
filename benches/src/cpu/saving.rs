//! Checkpoints of the demo's model: saved by the commit protocol, loaded with every hash verified.

use std::path::Path;

use anyhow::{Context, Result};
use data_pipeline::tokenizer::TOKENIZER_FILE;
use kernels_cubecl::Cpu;
use model_core::hf::FloatType;
use serde_json::Value;
use trainer::checkpoint::{CheckpointStore, CheckpointWriter, Checkpointer, Identity, ModelFiles, load_parts};
use trainer::optim::Optimizer;
use trainer::train::Save;
use trainer::{Parts, TrainState};

use super::demo::{self, Demo};
use super::measure::{Plan, Spread, once};
use super::table::{Row, Table};

/// Saves weights and optimizer again and again, reads each back.
pub(super) fn measure(plan: Plan, demo: &Demo, table: &mut Table) -> Result<()> {
    let tmp = tempfile::tempdir().context("cannot make a temporary folder")?;
    gates::artifact::write_atomic(&tmp.path().join(TOKENIZER_FILE), demo.tokenizer.json())?;
    let root = tmp.path().join("checkpoints");
    let name = || String::from("perf");
    let identity = Identity { config: Value::Null, data: name(), tokenizer: name(), base_model: name() };
    let store = CheckpointStore::open(&root, identity, demo.stage.train.keep_last)?;
    let mut checkpointer = Checkpointer::new(CheckpointWriter {
        store,
        files: ModelFiles::Full,
        float: FloatType::F32,
        tokenizer_dir: tmp.path().to_path_buf(),
    });
    let model = demo::model();
    let (config, device) = (&demo.stage.train, Default::default());
    let optimizer = Optimizer::new(&model, config, &device);
    let parts = Parts::new(model, optimizer, config, device);
    let (mut stalls, mut saves, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for rep in 1..=plan.warmup + plan.reps {
        let state = TrainState { step: rep as u64, ..TrainState::default() };
        let mut stall = 0.0;
        let (save, saved) = once(|| -> Result<()> {
            let (copy, begun) = once(|| checkpointer.save(&parts, &state));
            stall = copy;
            begun?;
            Save::<Cpu>::finish(&mut checkpointer, true).context("a save was begun")??;
            Ok(())
        });
        saved?;
        let (load, loaded) = once(|| -> Result<_> {
            let (path, _) =
                checkpointer.writer().store.load_latest(&mut |_| ())?.context("a checkpoint was just saved")?;
            Ok(load_parts(&path, &checkpointer.writer().files, parts.model.clone(), config, Default::default())?)
        });
        anyhow::ensure!(loaded?.1.step == state.step, "another checkpoint than the one just saved came back");
        if rep > plan.warmup {
            stalls.push(stall);
            saves.push(save);
            loads.push(load);
        }
    }
    let bytes = folder_bytes(&checkpointer.writer().store.path((plan.warmup + plan.reps) as u64))? as f64;
    for (name, seconds) in
        [("what the loop waits for", stalls), ("save, hash, sync, prune", saves), ("verify, load", loads)]
    {
        let name = format!("{name} ({:.1} MB)", bytes / 1e6);
        let (time, rate) = (seconds.iter().map(|s| 1e3 * s).collect(), Spread::rate(bytes / 1e6, &seconds));
        let row = |unit, value| Row { part: "checkpoint", name: name.clone(), unit, value, share: None };
        table.add(row("ms", Spread::of(time)));
        table.add(row("MB/s", rate));
    }
    Ok(())
}

/// Bytes of all files below a folder.
fn folder_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_dir() { folder_bytes(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}
