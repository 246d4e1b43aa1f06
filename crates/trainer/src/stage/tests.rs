//! Tests of the parts that all stage programs share.

use serde::Deserialize;

use super::*;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    ends: String,
    #[serde(default)]
    packing: bool,
}

struct Demo;

impl Stage for Demo {
    const NAME: &'static str = "demo";
    type Config = Config;

    fn check(config: &Config) -> Result<(), TrainError> {
        config::require(config.ends != "never", || "key `ends`: expected an end, got never".into())
    }

    fn arithmetic(_: &Config) -> Arithmetic {
        Arithmetic::F32
    }

    fn workload(_: &Config) -> Option<Workload> {
        None
    }

    fn run<B: LmBackend>(config: Config, args: &StageArgs, _: &B::Device) -> Result<Outcome, TrainError> {
        match config.ends.as_str() {
            "signal" => Ok(Outcome::Interrupted),
            "nan" => Err(TrainError::NotFinite { step: 7, loss: f64::NAN, grad_norm: 1.0, bad_steps: 3 }),
            "packed" => {
                config::require(config.packing && !args.resume, || "packing is off".into()).map(|()| Outcome::Finished)
            }
            _ => Ok(Outcome::Finished),
        }
    }
}

fn args(dir: &Path, text: &str, more: &[&str]) -> StageArgs {
    let path = dir.join("demo.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    let words = ["demo", "--config", &path].into_iter().chain(more.iter().copied());
    Cli::try_parse_from(words).unwrap().args
}

#[test]
fn every_end_has_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let end = |text: &str, more: &[&str]| execute::<Demo>(&args(dir.path(), text, more));
    let code = |text: &str, more: &[&str]| end(text, more).unwrap_err().exit_code();
    assert_eq!(end("ends = 'well'", &[]).unwrap(), Outcome::Finished);
    assert_eq!(end("ends = 'signal'", &["--device", "cpu"]).unwrap(), Outcome::Interrupted);
    assert_eq!(code("ends = 'never'", &[]), 2);
    assert_eq!(code("ends = 'well'\nlr = 1", &[]), 2);
    assert_eq!(code("ends = 'nan'", &[]), 3);
    assert_eq!(code("ends = 'well'", &["--device", "cuda:0"]), 4);
}

#[test]
fn s12_a_flag_that_was_not_given_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let args = args(dir.path(), "ends = 'packed'\npacking = true", &[]);
    assert!(!args.resume && args.sets.is_empty() && args.override_gate.is_none());
    execute::<Demo>(&args).unwrap();
}

#[test]
fn usage_errors_are_refused_by_the_parser() {
    for words in [&["demo"][..], &["demo", "--config", "x", "--lr", "1"], &["demo", "--config", "x", "--device", "gpu"]]
    {
        let error = Cli::try_parse_from(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{words:?}");
    }
}

fn model(dir: &Path) {
    std::fs::write(dir.join("config.json"), "{}").unwrap();
    std::fs::write(dir.join("model.safetensors"), "weights").unwrap();
}

#[test]
fn the_record_says_running_then_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, config) = (dir.path(), Config { ends: "well".into(), packing: false });
    model(dir);
    let begin = || RecordedRun::begin(dir, "demo", &config, BTreeMap::new(), GateRecord::NotAsked).unwrap();
    let outcome = || StageRecord::read(dir).unwrap().outcome;
    let run = begin();
    assert_eq!(outcome(), StageOutcome::Running);

    let finish = |outcome| Ok(Finish { outcome, steps: 9, model: dir.to_path_buf() });
    assert_eq!(run.finish(|| finish(Outcome::Finished)).unwrap(), Outcome::Finished);
    assert_eq!(outcome(), StageOutcome::Finished { steps: 9, output: Input::model(dir).unwrap() });

    assert_eq!(begin().finish(|| finish(Outcome::Interrupted)).unwrap(), Outcome::Interrupted);
    assert!(matches!(outcome(), StageOutcome::Stopped { steps: 9, .. }));

    let nan = TrainError::NotFinite { step: 7, loss: f64::NAN, grad_norm: 1.0, bad_steps: 3 };
    assert_eq!(begin().finish(|| Err(nan)).unwrap_err().exit_code(), 3);
    assert!(matches!(outcome(), StageOutcome::Failed { exit_code: 3, error } if error.contains("step 7")));
}
