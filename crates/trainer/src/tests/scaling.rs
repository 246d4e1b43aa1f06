//! Delayed FP8 scaling: which peaks the scales come from, and that checkpoints and recomputed blocks know the same ones.
//!
//! The CPU rounds to FP8 on the host and multiplies in f32, so that the loop is the one of a device with FP8 units.

use kernels_cubecl::Cpu;
use model_core::{Decoder, LoraConfig, ModelConfig};

use super::finite::{Poison, Poisoned};
use super::resume::compare;
use super::tiny::{Cut, Lab, Ran, SEQ_LEN, config, leaf_values, model_config, parts, rows, run_from, source, values};
use crate::TrainConfig;
use crate::checkpoint::load_parts;
use crate::config::{Arithmetic, Blocks, Fp8Scaling, HistoryLength};
use crate::objective::{NextToken, Objective, RouterWeights};
use crate::train::Outcome;

const OBJECTIVE: NextToken = NextToken { z_loss: 0.0, router: RouterWeights::NONE };
/// Passes of a history; a step has two, or one where a test says so.
const N: usize = 4;
/// Projections of the model.
const PROJECTIONS: usize = 8;
const ALL_ROWS: u64 = 8 * SEQ_LEN as u64;

/// Widths that the matrix units take, in every projection.
fn model() -> Decoder<Cpu> {
    Decoder::init(&ModelConfig { d_ff: 32, ..model_config() }, 7, &Default::default())
}

fn delayed(max_steps: u64) -> TrainConfig {
    let scaling = Fp8Scaling::Delayed;
    TrainConfig { fp8_scaling: scaling, fp8_history: HistoryLength(N), ..current(max_steps) }
}

fn current(max_steps: u64) -> TrainConfig {
    TrainConfig { precision: Arithmetic::Fp8, ..config(max_steps) }
}

fn run(objective: &dyn Objective<Cpu>, config: &TrainConfig) -> Ran {
    run_from(objective, source(rows(8, 3), config), config, parts(model(), config))
}

/// Abs-max of the weights of all projections.
fn weight_peaks(model: &Decoder<Cpu>) -> Vec<f32> {
    let peak = |values: Vec<f32>| values.iter().fold(0f32, |peak, x| peak.max(x.abs()));
    model
        .linears()
        .into_iter()
        .map(|(_, linear)| peak(leaf_values(kernels_cubecl::Leaf::Matrix(linear.weight.clone()))))
        .collect()
}

/// Column `pass` of row `row` of all histories.
fn column(ran: &Ran, row: usize, pass: usize) -> Vec<f32> {
    assert_eq!(ran.histories.len(), PROJECTIONS);
    ran.histories.iter().map(|history| history[row * N + pass]).collect()
}

/// How many passes every history knows; 0 unless they are the newest columns of all rows.
fn known(ran: &Ran) -> usize {
    let passes =
        (0..N).take_while(|pass| (0..3).all(|row| column(ran, row, *pass).iter().all(|peak| *peak > 0.0))).count();
    let later = (passes..N).flat_map(|pass| (0..3).flat_map(move |row| column(ran, row, pass)));
    if later.into_iter().all(|peak| peak == 0.0) { passes } else { 0 }
}

#[test]
fn the_first_pass_scales_by_its_own_peaks_and_the_next_one_by_those() {
    // One pass a step, and weights that more than double in the first: the scales of the second step come too late for them.
    let jump = |config: TrainConfig| TrainConfig { tokens_per_micro_batch: ALL_ROWS, lr: 0.5, min_lr: 0.5, ..config };
    let first = run(&OBJECTIVE, &TrainConfig { stop_after: Some(1), ..jump(delayed(2)) });
    let now = run(&OBJECTIVE, &TrainConfig { stop_after: Some(1), ..jump(current(2)) });
    let after_first = first.model.as_ref().unwrap();
    assert_eq!(values(after_first), values(now.model.as_ref().unwrap()), "nothing is known in the first pass");
    assert_eq!((known(&first), now.histories.len()), (1, 0));
    let peaks = weight_peaks(&model());
    assert_eq!(column(&first, 1, 0), peaks);
    assert!(weight_peaks(after_first).iter().zip(&peaks).all(|(after, before)| *after > 2.0 * before));

    let [second, now] = [jump(delayed(2)), jump(current(2))].map(|config| run(&OBJECTIVE, &config));
    let losses = |ran: &Ran| ran.seen.steps.iter().map(|step| step.loss).collect::<Vec<_>>();
    assert_eq!(losses(&second)[0], losses(&now)[0]);
    assert_ne!(losses(&second)[1], losses(&now)[1], "the second step does not scale by the first one's peaks");
    assert_eq!(known(&second), 2);
    assert_eq!(column(&second, 1, 0), weight_peaks(after_first), "the newest pass is in front");
    for row in 0..3 {
        assert_eq!(column(&second, row, 1), column(&first, row, 0));
    }
    assert!(second.model.unwrap().linears().iter().all(|(_, linear)| linear.fp8.is_none() && linear.history.is_none()));
}

/// Where nothing changes from pass to pass, the delay changes nothing either.
#[test]
fn scales_of_equal_peaks_are_equal() {
    let still =
        |config: TrainConfig| TrainConfig { tokens_per_micro_batch: ALL_ROWS, lr: 1e-30, min_lr: 0.0, ..config };
    let [late, now] = [still(delayed(6)), still(current(6))].map(|config| run(&OBJECTIVE, &config));
    let numbers = |ran: &Ran| ran.seen.steps.iter().map(|step| (step.loss, step.grad_norm)).collect::<Vec<_>>();
    assert_eq!(numbers(&late), numbers(&now));
    assert_eq!(known(&late), N, "old passes drop out");
}

#[test]
fn every_micro_batch_is_a_pass() {
    let ran = run(&OBJECTIVE, &delayed(1));
    assert_eq!(known(&ran), 2);
    assert_eq!(column(&ran, 1, 0), column(&ran, 1, 1), "the weights change between steps alone");
    assert_ne!(column(&ran, 0, 0), column(&ran, 0, 1));
}

#[test]
fn recomputed_blocks_scale_as_they_did_the_first_time() {
    let plain = run(&OBJECTIVE, &delayed(4));
    let want = values(plain.model.as_ref().unwrap());
    for recompute in [Blocks::All(true), Blocks::First(1)] {
        let again = run(&OBJECTIVE, &TrainConfig { recompute, ..delayed(4) });
        assert_eq!(values(again.model.as_ref().unwrap()), want, "{recompute:?}");
        assert_eq!(again.histories, plain.histories, "{recompute:?}");
    }
}

#[test]
fn a_step_that_is_left_out_leaves_the_histories_alone() {
    for poison in [Poison::LossNan, Poison::LossInfinite, Poison::GradientNan] {
        let none = run(&Poisoned::new(poison, |call| call == 1), &delayed(1));
        assert_eq!((none.state.skipped, known(&none)), (1, 0), "{poison:?}");
        let one = run(&Poisoned::new(poison, |call| call == 3), &delayed(2));
        let want = run(&OBJECTIVE, &TrainConfig { stop_after: Some(1), ..delayed(2) });
        assert_eq!((one.state.skipped, &one.histories), (1, &want.histories), "{poison:?}");
        assert_eq!(known(&one), 2);
    }
}

#[test]
fn projections_of_a_frozen_base_have_histories_too() {
    let targets = vec!["q_proj".into(), "down_proj".into()];
    let lora = LoraConfig { r: 2, alpha: 4.0, dropout: 0.2, rslora: false, targets, rank_pattern: Default::default() };
    let mut model = model();
    model.attach_lora(&lora, 3).unwrap();
    let settings = delayed(1);
    let ran = run_from(&OBJECTIVE, source(rows(8, 3), &settings), &settings, parts(model, &settings));
    assert_eq!(known(&ran), 2);
}

#[test]
fn an_interrupted_run_goes_on_with_the_same_scales_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TrainConfig { eval_every: 9, save_every: 7, ..delayed(20) };
    let [whole, cut] = ["whole", "cut"].map(|name| {
        let mut lab = Lab::new(&dir.path().join(name), settings.clone());
        lab.model = model();
        lab
    });
    assert_eq!(whole.go(Cut::Never), Some(Outcome::Finished));
    // One step after a save, so that the histories differ from those of the checkpoint.
    assert_eq!(cut.go(Cut::Death(8)), None);
    assert_eq!(cut.go(Cut::Signal(12)), Some(Outcome::Interrupted));
    assert_eq!(cut.go(Cut::Never), Some(Outcome::Finished));
    compare(&whole, &cut, "death at 8, signal at 12");

    let results = whole.results();
    let file = |name: &str| &results.iter().find(|(path, _)| path.ends_with(name)).unwrap().1;
    let text = |name: &str| String::from_utf8_lossy(file(name)).into_owned();
    assert!(text("trainer/scaling.safetensors").contains("[8,3,4]"));
    assert!(text("manifest.json").contains("trainer/scaling.safetensors"));
    assert!(!text("/model.safetensors").contains("fp8"), "histories are no part of a model");
}

#[test]
fn histories_of_another_length_or_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::new(dir.path(), delayed(2));
    lab.model = model();
    lab.go(Cut::Never);
    let path = dir.path().join("checkpoints/step-2");
    let load = |config: &TrainConfig| load_parts(&path, &lab.files, model(), config, Default::default());
    let (parts, _) = load(&lab.config).unwrap();
    assert_eq!(parts.scaling.histories.len(), PROJECTIONS);
    assert!(load(&current(2)).unwrap().0.scaling.histories.is_empty());
    let longer = TrainConfig { fp8_history: HistoryLength(N + 1), ..delayed(2) };
    let error = load(&longer).unwrap_err();
    assert!(["fp8.histories", "[8, 3, 5]", "[8, 3, 4]"].iter().all(|part| error.to_string().contains(part)), "{error}");
    std::fs::remove_file(path.join("trainer/scaling.safetensors")).unwrap();
    let error = load(&lab.config).unwrap_err();
    assert!(error.to_string().contains("scaling.safetensors") && error.exit_code() == 2, "{error}");
}
