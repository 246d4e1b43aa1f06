//! Tests of the lineage file and of the entry gate.

use std::fs;

use gates::Policy;
use gates::interval::rate;
use gates::report::{Direction, EvalReport, Metric};
use gates::verdict::{self, Evidence};

use super::*;

fn model(dir: &Path, weights: &str) -> PathBuf {
    let dir = dir.join("model");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("config.json"), "{}").unwrap();
    fs::write(dir.join("model.safetensors"), weights).unwrap();
    dir
}

/// A receipt for `sft-to-dpo` of the model; passed when `hits` of 300 is enough for the rule.
fn receipt(path: &Path, model_dir: &Path, hits: u64) {
    let policy = "version = 1\n[[transitions.sft-to-dpo.rules]]\nmetric = 'accuracy'\nop = '>='\nbound = 'lower'\n\
        min_n = 100\nthreshold = 0.3\n";
    let policy = Policy::parse(Path::new("p.toml"), policy.as_bytes()).unwrap();
    let hash = artifact::model_hash(model_dir).unwrap();
    let mut report = EvalReport::new(&hash, "suite");
    report.metrics.push(Metric::new("accuracy", Direction::Higher, rate(hits, 300), "data"));
    let evals = [Evidence { report, hash: "report".into() }];
    let verdict = verdict::check(&policy, "sft-to-dpo", &hash, &evals, &[]).unwrap();
    Receipt::new(verdict, &policy, &hash, &evals, &[]).write(path).unwrap();
}

#[test]
fn the_gate_before_a_stage_opens_only_with_a_receipt_of_this_model_or_a_recorded_override() {
    let dir = tempfile::tempdir().unwrap();
    let model_dir = model(dir.path(), "a");
    let gate = EntryGate { transition: "sft-to-dpo".into(), receipt: dir.path().join("gate-sft-to-dpo.json") };

    // No receipt; a reason of blanks is no reason.
    for reason in [None, Some(""), Some("  ")] {
        let error = gate.enter(&model_dir, reason).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
    }
    receipt(&gate.receipt, &model_dir, 0);
    assert!(gate.enter(&model_dir, None).unwrap_err().to_string().contains("gate failed"));
    match gate.enter(&model_dir, Some("a bisection")).unwrap() {
        GateRecord::Overridden { reason, refusal, .. } => {
            assert_eq!(reason, "a bisection");
            assert!(refusal.contains("gate failed"), "{refusal}");
        }
        other => panic!("{other:?}"),
    }

    receipt(&gate.receipt, &model_dir, 200);
    assert!(matches!(gate.enter(&model_dir, None).unwrap(), GateRecord::Passed { .. }));
    // Where the gate agrees, an override is not an override.
    assert!(matches!(gate.enter(&model_dir, Some("why not")).unwrap(), GateRecord::Passed { .. }));

    // S4: the receipt of another model is worth nothing.
    model(dir.path(), "b");
    assert!(gate.enter(&model_dir, None).unwrap_err().to_string().contains("is for the model"));
}

#[test]
fn an_override_needs_a_model_like_everybody_else() {
    let dir = tempfile::tempdir().unwrap();
    let gate = EntryGate { transition: "sft-to-dpo".into(), receipt: dir.path().join("gate.json") };
    assert!(matches!(gate.enter(dir.path(), Some("because")), Err(TrainError::Artifact(_))));
}

fn record(dir: &Path) -> StageRecord {
    let inputs = BTreeMap::from([("data".to_owned(), Input::new(Path::new("data/rows"), "abc"))]);
    let record = StageRecord::start("sft", &serde_json::json!({"lr": 0.1}), inputs, GateRecord::NotAsked).unwrap();
    record.write(dir).unwrap();
    record
}

#[test]
fn a_record_reads_as_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut record = record(dir.path());
    assert_eq!(StageRecord::read(dir.path()).unwrap(), record);
    let output = Input::new(Path::new("checkpoints/step-4"), "def");
    record.outcome = StageOutcome::Finished { steps: 4, output };
    record.gate = GateRecord::Overridden { transition: "t".into(), reason: "r".into(), refusal: "f".into() };
    record.write(dir.path()).unwrap();
    assert_eq!(StageRecord::read(dir.path()).unwrap(), record);
}

#[test]
fn records_that_are_not_ours_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let path = dir.path().join(STAGE_FILE);
    let text = fs::read_to_string(&path).unwrap();
    let check = |text: &str, want: &str| {
        fs::write(&path, text).unwrap();
        let error = StageRecord::read(dir.path()).unwrap_err();
        assert!(error.to_string().contains(want) && error.to_string().contains(STAGE_FILE), "{error}");
        assert_eq!(error.exit_code(), 2);
    };
    check(&text.replace("\"version\": 1", "\"version\": 2"), "expected version 1, found 2");
    check(&text.replace("\"stage\"", "\"stag\""), "stag");
    check(&text.replace("\"stage\": \"sft\",", "\"stage\": \"sft\", \"stage\": \"dpo\","), "duplicate field");
    check(&text[..text.len() / 2], "EOF");
    check("", "EOF");
}

#[test]
fn the_configuration_hash_ignores_the_order_of_keys_and_nothing_else() {
    let hash = |text: &str| config_hash(&toml::from_str::<toml::Table>(text).unwrap()).unwrap();
    assert_eq!(hash("a = 1\nb = 2"), hash("b = 2\na = 1"));
    assert_ne!(hash("a = 1\nb = 2"), hash("a = 1\nb = 3"));
    assert_ne!(hash("a = 1"), hash("b = 1"));
}
