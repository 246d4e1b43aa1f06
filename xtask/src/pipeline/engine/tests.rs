//! Skipping, redoing, continuing and stopping, with programs that are shell scripts.

use super::*;
use crate::failure::exit_code;

/// `copy IN OUT` adds a line to the log and copies; `train IN OUT [--resume]` needs two attempts.
const COPY: &str = "echo copy >> calls\ncat \"$1\" > \"$2\"\n";
const TRAIN: &str = r#"echo "train $3" >> calls
mkdir -p "$2"
if [ -f fail ]; then echo part > "$2/part"; exit "$(cat fail)"; fi
cat "$1" > "$2/weights"
echo '{"loss": 1.5}' > "$2/metrics.jsonl"
echo '{"outcome": {"state": "finished"}}' > "$2/stage.json"
"#;

const PIPELINE: &str = r#"
version = 1
name = "t"
[[steps]]
name = "a"
kind = "data"
program = "copy"
args = ["copy.sh", "source.txt", "{run}/a.txt"]
inputs = ["source.txt"]
outputs = ["{run}/a.txt"]
[[steps]]
name = "b"
kind = "stage"
program = "train"
args = ["train.sh", "{run}/a.txt", "{run}/b"]
inputs = ["{run}/a.txt"]
outputs = ["{run}/b"]
resume_args = ["--resume"]
show = ["loss"]
[[steps]]
name = "c"
kind = "data"
program = "copy"
args = ["copy.sh", "{run}/b/weights", "{run}/c.txt"]
inputs = ["{run}/b/weights"]
outputs = ["{run}/c.txt"]
"#;

struct World {
    dir: tempfile::TempDir,
    pipeline: Pipeline,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("source.txt"), "1").unwrap();
        for (name, script) in [("copy.sh", COPY), ("train.sh", TRAIN)] {
            std::fs::write(dir.path().join(name), script).unwrap();
        }
        for folder in ["steps", "logs"] {
            std::fs::create_dir_all(dir.path().join("runs/t").join(folder)).unwrap();
        }
        let pipeline = Pipeline::parse(dir.path(), PIPELINE).unwrap();
        Self { dir, pipeline }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run_with(&self, resume: bool, from: Option<usize>, until: usize) -> Result<()> {
        self.run_program("/bin/sh", resume, from, until)
    }

    fn run_program(&self, copy: &str, resume: bool, from: Option<usize>, until: usize) -> Result<()> {
        let place = Place { root: self.dir.path().into(), run: "runs/t".into(), device: "cpu".into() };
        let programs =
            [("copy", copy), ("train", "/bin/sh")].map(|(name, path)| (name.to_owned(), PathBuf::from(path)));
        Engine::new(place, &self.pipeline, programs.into(), resume).run(&Range { from, until })
    }

    fn run(&self) -> Result<()> {
        self.run_with(false, None, 2)
    }

    /// The programs that ran since the last call.
    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("calls"));
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn summary(&self) -> Summary {
        Summary::load(&self.path("runs/t")).unwrap()
    }
}

#[test]
fn a_second_run_does_nothing_and_a_change_redoes_what_depends_on_it() {
    let world = World::new();
    world.run().unwrap();
    assert_eq!(world.calls(), ["copy", "train", "copy"]);
    let summary = world.summary();
    assert!(summary.complete && summary.steps.iter().all(|row| row.status == Status::Ran), "{summary:?}");
    assert_eq!(summary.steps[1].metrics, [("loss".to_owned(), "1.5000".to_owned())]);
    world.run().unwrap();
    assert_eq!(world.calls(), Vec::<String>::new());
    assert!(world.summary().steps.iter().all(|row| row.status == Status::Unchanged));
    // Other content, same length and possibly the same time stamp.
    std::fs::write(world.path("source.txt"), "2").unwrap();
    world.run().unwrap();
    assert_eq!(world.calls(), ["copy", "train", "copy"]);
    assert_eq!(std::fs::read_to_string(world.path("runs/t/c.txt")).unwrap(), "2");
    assert_eq!(std::fs::read_to_string(world.path("runs/t/replaced/c.txt.1")).unwrap(), "1");
}

#[test]
fn a_changed_or_missing_output_is_made_again() {
    let world = World::new();
    world.run().unwrap();
    world.calls();
    std::fs::write(world.path("runs/t/c.txt"), "tampered").unwrap();
    world.run().unwrap();
    assert_eq!(world.calls(), ["copy"]);
    std::fs::remove_dir_all(world.path("runs/t/b")).unwrap();
    world.run().unwrap();
    // `c` reads what `b` made again, byte for byte, so it stays.
    assert_eq!(world.calls(), ["train"]);
}

#[test]
fn a_failure_stops_with_the_steps_name_and_its_exit_code() {
    let world = World::new();
    for code in [1, 2, 3, 4] {
        std::fs::write(world.path("fail"), code.to_string()).unwrap();
        let error = world.run_with(true, None, 2).unwrap_err();
        let message = format!("{error:#}");
        assert_eq!(exit_code(&error), code, "{message}");
        assert!(message.contains("step `b`") && message.contains("logs/b.log"), "{message}");
        let summary = world.summary();
        let states: Vec<Status> = summary.steps.iter().map(|row| row.status).collect();
        assert_eq!(states[1..], [Status::Failed, Status::NotReached]);
        assert!(!summary.complete && summary.steps[1].exit_code == Some(code));
    }
}

#[test]
fn an_interrupted_stage_is_continued_only_when_asked() {
    let world = World::new();
    std::fs::write(world.path("fail"), "3").unwrap();
    world.run().unwrap_err();
    assert_eq!(world.calls(), ["copy", "train"]);
    std::fs::remove_file(world.path("fail")).unwrap();
    let message = format!("{:#}", world.run().unwrap_err());
    assert!(message.contains("`--resume` continues it"), "{message}");
    assert_eq!(world.calls(), Vec::<String>::new());
    world.run_with(true, None, 2).unwrap();
    assert_eq!(world.calls(), ["train --resume", "copy"]);
    // What it had made was still there when it went on.
    assert!(world.path("runs/t/b/part").exists());
}

#[test]
fn from_starts_an_interrupted_stage_anew() {
    let world = World::new();
    std::fs::write(world.path("fail"), "3").unwrap();
    world.run().unwrap_err();
    std::fs::remove_file(world.path("fail")).unwrap();
    world.calls();
    world.run_with(false, Some(1), 2).unwrap();
    assert_eq!(world.calls(), ["train", "copy"]);
    assert!(!world.path("runs/t/b/part").exists() && world.path("runs/t/replaced/b.1/part").exists());
}

#[test]
fn from_redoes_and_until_stops() {
    let world = World::new();
    world.run_with(false, None, 0).unwrap();
    assert_eq!(world.calls(), ["copy"]);
    assert!(!world.summary().complete);
    let message = format!("{:#}", world.run_with(false, Some(2), 2).unwrap_err());
    assert!(message.contains("step `b`") && message.contains("not up to date"), "{message}");
    world.run().unwrap();
    world.calls();
    world.run_with(false, Some(1), 1).unwrap();
    assert_eq!(world.calls(), ["train"]);
    assert!(world.path("runs/t/replaced/b.1/weights").exists());
}

#[test]
fn a_program_that_succeeds_without_its_output_fails_the_step() {
    let mut world = World::new();
    world.pipeline.steps[0].outputs.push("{run}/promised".into());
    let message = format!("{:#}", world.run().unwrap_err());
    assert!(message.contains("an output cannot be read") && message.contains("promised"), "{message}");
    assert_eq!(world.summary().steps[0].status, Status::Failed);
}

#[test]
fn another_build_of_a_program_is_told() {
    let world = World::new();
    world.run().unwrap();
    world.calls();
    // Nothing runs, so any other program will do.
    world.run_program("/bin/cat", false, None, 2).unwrap();
    assert_eq!(world.calls(), Vec::<String>::new());
    let flags: Vec<bool> = world.summary().steps.iter().map(|row| row.other_build).collect();
    assert_eq!(flags, [true, false, true]);
}
