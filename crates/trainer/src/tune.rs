//! Fine-tuning of a model that is there already, by an adapter or as a whole: what the stages after pretraining share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data_pipeline::TokenRow;
use kernels_cubecl::LmBackend;
use model_core::Decoder;
use model_core::hf::LoadOptions;
use serde::Serialize;

use crate::adapter::{Adapted, Publish};
use crate::batch::{BatchSource, EvalSet};
use crate::checkpoint::ModelFiles;
use crate::lineage::{EntryGate, Input};
use crate::memory::{AdapterWorkload, Head, Workload};
use crate::objective::Objective;
use crate::run::{AfterRun, StagePlan, run_stage};
use crate::{Outcome, StageArgs, TrainConfig, TrainError};

/// A fine-tuning stage as it is configured.
#[derive(Clone, Debug)]
pub struct Tuning<'a> {
    /// Name of the stage.
    pub name: &'static str,
    /// Folder of the stage.
    pub dir: &'a Path,
    /// Folder of the model that it starts from.
    pub model_dir: &'a Path,
    /// The gate that the model must have passed.
    pub gate: Option<&'a EntryGate>,
    /// The adapter; without one all weights train.
    pub adapter: Option<AdapterTuning>,
    /// Loop and optimizer.
    pub train: &'a TrainConfig,
}

/// How an adapter is attached, and how near its merged model must be to it.
#[derive(Clone, Debug)]
pub struct AdapterTuning {
    /// The adapter.
    pub workload: AdapterWorkload,
    /// Largest logit difference between adapter and merged model, in f32.
    pub merge_max_diff: f64,
}

/// What a stage trains and evaluates on.
pub struct TuningData {
    /// Training batches.
    pub source: Box<dyn BatchSource + Send>,
    /// Evaluation batches.
    pub eval: EvalSet,
    /// The tokens of the evaluation, on which a merged model is compared with its adapter.
    pub heldout: Vec<TokenRow>,
    /// What was read, by role.
    pub inputs: BTreeMap<String, Input>,
}

impl Tuning<'_> {
    /// What is trained, for the memory plan.
    pub fn workload(&self, head: Head) -> Workload {
        let adapter = self.adapter.as_ref().map(|adapter| adapter.workload.clone());
        Workload { model_dir: self.model_dir.to_path_buf(), train: self.train.clone(), head, adapter, sampling: None }
    }

    /// The model that the stage starts from, with the weights of experts in the form that its adapter asks for.
    ///
    /// # Errors
    /// A folder that is no model.
    pub fn load<B: LmBackend>(&self, device: &B::Device) -> Result<Decoder<B>, TrainError> {
        let packed_experts = self.adapter.as_ref().map(|adapter| adapter.workload.packed_experts).unwrap_or_default();
        let options = LoadOptions { packed_experts, ..LoadOptions::default() };
        Ok(Decoder::load_with(self.model_dir, options, device)?)
    }

    /// Runs the stage on `base`, the model of its folder. With an adapter the result is the merged model, and the adapter lies
    /// beside it.
    ///
    /// # Errors
    /// As [`Adapted::attach`], [`run_stage`] and [`Adapted::publish`].
    pub fn run<B: LmBackend, C: Serialize>(
        self,
        config: &C,
        base: Decoder<B>,
        data: TuningData,
        objective: &dyn Objective<B>,
        args: &StageArgs,
        device: &B::Device,
    ) -> Result<Outcome, TrainError> {
        let TuningData { source, eval, heldout, inputs } = data;
        let Self { name, dir, model_dir, train, .. } = self;
        let (model, files, after): (_, _, Option<AfterRun<'_>>) = match &self.adapter {
            None => (base, ModelFiles::Full, None),
            Some(AdapterTuning { workload, merge_max_diff }) => {
                let adapted = Adapted::attach(name, base, model_dir, workload, train.seed)?;
                let (model, files, merge_max_diff) = (adapted.model(), adapted.files(), *merge_max_diff);
                let after = move |checkpoint: &Path| -> Result<PathBuf, TrainError> {
                    let arithmetic = train.precision;
                    let to = Publish { stage: name, dir, model_dir, arithmetic, merge_max_diff, heldout: &heldout };
                    adapted.publish(to, checkpoint)
                };
                (model, files, Some(Box::new(after)))
            }
        };
        let plan = StagePlan {
            name,
            dir: dir.to_path_buf(),
            config,
            train,
            model_dir: model_dir.to_path_buf(),
            gate: self.gate.cloned(),
            inputs,
            model,
            files,
            objective,
            source,
            eval,
            after,
        };
        run_stage(plan, args, device)
    }
}
