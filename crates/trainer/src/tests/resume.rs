//! Interrupted and resumed equals uninterrupted, bit for bit.

use model_core::LoraConfig;

use super::tiny::{Cut, Lab, config, random, rows, run, values};
use crate::TrainConfig;
use crate::checkpoint::{ModelFiles, load_parts};
use crate::config::MomentsKind;
use crate::objective::{NextToken, RouterWeights};
use crate::train::Outcome;

fn settings() -> TrainConfig {
    TrainConfig { eval_every: 9, save_every: 7, ..config(100) }
}

pub(super) fn compare(want: &Lab, got: &Lab, how: &str) {
    let (want, got) = (want.results(), got.results());
    let names = |results: &[(String, Vec<u8>)]| results.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&want), names(&got), "{how}");
    for ((name, want), (_, got)) in want.iter().zip(&got) {
        assert!(want == got, "{how}: {name} differs");
    }
}

#[test]
fn g02_resumed_runs_equal_the_uninterrupted_one_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Lab::new(&dir.path().join("whole"), settings());
    assert_eq!(whole.go(Cut::Never), Some(Outcome::Finished));
    let results = whole.results();
    assert!(results.iter().any(|(name, _)| name.ends_with("optimizer.safetensors")), "the comparison sees too little");
    let lines = String::from_utf8(results.iter().find(|(name, _)| name == "metrics.jsonl").unwrap().1.clone()).unwrap();
    assert_eq!(lines.lines().count(), 100 + 12, "one line a step and one an evaluation");

    let mut random = random(11);
    for attempt in 0..4 {
        let lab = Lab::new(&dir.path().join(format!("cut-{attempt}")), settings());
        let mut cuts = Vec::new();
        let mut at = 0;
        loop {
            at += 1 + random(60);
            if at > 100 {
                break;
            }
            cuts.push(if random(2) == 0 { Cut::Signal(at) } else { Cut::Death(at) });
        }
        for &cut in &cuts {
            let outcome = lab.go(cut);
            let wanted = match cut {
                Cut::Death(_) => None,
                Cut::Signal(100) | Cut::Never => Some(Outcome::Finished),
                Cut::Signal(_) => Some(Outcome::Interrupted),
            };
            assert_eq!(outcome, wanted, "{cut:?} of {cuts:?}");
        }
        assert_eq!(lab.go(Cut::Never), Some(Outcome::Finished));
        compare(&whole, &lab, &format!("{cuts:?}"));
    }
}

#[test]
fn moments_in_8_bits_survive_an_interruption_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let packed =
        TrainConfig { moments: MomentsKind::Packed, ..TrainConfig { eval_every: 9, save_every: 7, ..config(20) } };
    let [whole, cut] = ["whole", "cut"].map(|name| Lab::new(&dir.path().join(name), packed.clone()));
    assert_eq!(whole.go(Cut::Never), Some(Outcome::Finished));
    assert_eq!(cut.go(Cut::Signal(10)), Some(Outcome::Interrupted));
    assert_eq!(cut.go(Cut::Never), Some(Outcome::Finished));
    compare(&whole, &cut, "packed moments");
    // Rounded as they are, the moments still train.
    let losses: Vec<f64> = run(&NextToken { z_loss: 0.0, router: RouterWeights::NONE }, rows(24, 3), &packed)
        .seen
        .steps
        .iter()
        .map(|s| s.loss)
        .collect();
    assert!(losses[19] < 0.9 * losses[0], "{losses:?}");
}

#[test]
fn stop_after_ends_early_and_leaves_the_schedule_and_the_metrics_alone() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Lab::new(&dir.path().join("whole"), TrainConfig { eval_every: 9, save_every: 7, ..config(30) });
    whole.go(Cut::Never);
    let mut lab = Lab::new(&dir.path().join("parts"), whole.config.clone());
    lab.config.stop_after = Some(10);
    assert_eq!(lab.go(Cut::Never), Some(Outcome::StoppedEarly));
    lab.config.stop_after = None;
    assert_eq!(lab.go(Cut::Never), Some(Outcome::Finished));
    compare(&whole, &lab, "stop_after 10");
}

#[test]
fn a_run_that_is_finished_does_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::new(dir.path(), config(8));
    lab.go(Cut::Never);
    let before = lab.results();
    assert_eq!(lab.go(Cut::Never), Some(Outcome::Finished));
    assert_eq!(lab.results(), before);
}

#[test]
fn s08_an_adapter_run_resumes_bit_for_bit_and_keeps_the_base_out_of_its_checkpoints() {
    let lora = LoraConfig {
        r: 2,
        alpha: 4.0,
        dropout: 0.2,
        rslora: false,
        targets: vec!["q_proj".into(), "down_proj".into()],
        rank_pattern: [("down_proj".to_owned(), 3)].into(),
    };
    let dir = tempfile::tempdir().unwrap();
    let lab = |name: &str| {
        let mut lab = Lab::new(&dir.path().join(name), TrainConfig { save_every: 5, ..config(20) });
        lab.model.attach_lora(&lora, 3).unwrap();
        lab.files = ModelFiles::Adapter { config: lora.clone(), base_hash: "base".into() };
        lab
    };
    let (whole, cut) = (lab("whole"), lab("cut"));
    whole.go(Cut::Never);
    for at in [Cut::Death(7), Cut::Signal(11)] {
        cut.go(at);
    }
    cut.go(Cut::Never);
    compare(&whole, &cut, "death at 7, signal at 11");

    let names: Vec<String> = whole.results().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|name| name.ends_with("step-20/adapter_model.safetensors")), "{names:?}");
    assert!(!names.iter().any(|name| name.ends_with("/model.safetensors")), "{names:?}");
    let path = whole.dir.join("checkpoints/step-20");
    let (parts, _) = load_parts(&path, &whole.files, whole.model.clone(), &whole.config, Default::default()).unwrap();
    for ((before, after), named) in values(&whole.model).iter().zip(values(&parts.model)).zip(whole.model.leaves()) {
        assert_eq!(*before == after, !named.trainable, "{}", named.name);
    }
}
