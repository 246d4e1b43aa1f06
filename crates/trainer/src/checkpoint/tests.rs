//! Faults of every operation of a save, power cuts, flipped bits, retention, and resumes that must be refused.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::TrainError;
use std::path::{Path, PathBuf};

fn identity() -> Identity {
    let text = |s: &str| s.to_owned();
    Identity {
        config: json!({"train": {"lr": 0.1, "seed": 1}}),
        data: text("d"),
        tokenizer: text("t"),
        base_model: text("m"),
    }
}

/// A small checkpoint whose content depends on the step.
fn fill(step: u64) -> impl FnMut(&Path) -> Result<(), TrainError> {
    move |dir| {
        fs::create_dir(dir.join("trainer")).unwrap();
        for name in ["config.json", "model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json"] {
            fs::write(dir.join(name), format!("{name} of step {step}").repeat(9)).unwrap();
        }
        Ok(())
    }
}

fn store(root: &Path) -> CheckpointStore {
    CheckpointStore::open(root, identity(), 2).unwrap()
}

fn save(store: &CheckpointStore, step: u64) -> Result<PathBuf, TrainError> {
    store.save(step, 1000, &mut fill(step))
}

/// Step of the checkpoint that a fresh start would load, with everything in it checked.
fn loads(root: &Path) -> Option<u64> {
    let (path, manifest) = store(root).load_latest(&mut |_| ()).unwrap()?;
    let state = fs::read_to_string(path.join("trainer/state.json")).unwrap();
    assert!(state.starts_with(&format!("trainer/state.json of step {}tr", manifest.step)), "{state}");
    Some(manifest.step)
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What the hook does at the operation that it waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The process is gone.
    Death,
    /// This operation fails, later ones work.
    Once(io::ErrorKind),
    /// This and every later operation fails.
    Forever(io::ErrorKind),
}

/// A panic payload that stands for the death of the process.
struct Died;

/// The operations that were asked for, and the fault.
#[derive(Clone, Default)]
struct Plan {
    log: Arc<Mutex<Vec<(Operation, PathBuf)>>>,
}

impl Plan {
    fn disk(&self, fault_at: usize, fault: Fault) -> Disk {
        let log = Arc::clone(&self.log);
        Disk::hooked(Arc::new(move |operation, path: &Path| {
            let n = {
                let mut log = log.lock().unwrap();
                log.push((operation, path.to_path_buf()));
                log.len() - 1
            };
            match fault {
                Fault::Death if n == fault_at => std::panic::panic_any(Died),
                Fault::Once(kind) if n == fault_at => Err(kind.into()),
                Fault::Forever(kind) if n >= fault_at => Err(kind.into()),
                _ => Ok(()),
            }
        }))
    }

    fn done(&self) -> Vec<(Operation, PathBuf)> {
        self.log.lock().unwrap().clone()
    }
}

/// Saves step 2 over an intact step 1 with a fault at operation `at`; whether the save said that it worked, `None` if it
/// "died", and the operations up to there.
fn faulty_save(root: &Path, at: usize, fault: Fault) -> (Option<bool>, Vec<(Operation, PathBuf)>) {
    save(&store(root), 1).unwrap();
    let plan = Plan::default();
    let store = CheckpointStore::open_on(plan.disk(at, fault), root, identity(), 2).unwrap();
    let ended = catch_unwind(AssertUnwindSafe(|| save(&store, 2)));
    let said = match ended {
        Ok(result) => Some(result.is_ok()),
        Err(payload) if payload.is::<Died>() => None,
        Err(payload) => std::panic::resume_unwind(payload),
    };
    (said, plan.done())
}

/// Runs `check` for a fault at every operation, until one save runs through without meeting it.
fn at_every_operation(
    fault: Fault,
    mut check: impl FnMut(&Path, usize, Option<bool>, &[(Operation, PathBuf)]),
) -> usize {
    for at in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("checkpoints");
        let (said, done) = faulty_save(&root, at, fault);
        if done.len() <= at {
            assert_eq!(said, Some(true));
            assert_eq!(loads(&root), Some(2));
            return at;
        }
        check(&root, at, said, &done);
    }
    unreachable!("the range has no end")
}

/// Silences the panics that stand for deaths.
fn quietly<T>(run: impl FnOnce() -> T) -> T {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Died>() {
                before(info);
            }
        }));
    });
    run()
}

#[test]
fn c1_c2_a_death_at_any_operation_leaves_the_old_or_the_new_checkpoint() {
    let n = quietly(|| {
        at_every_operation(Fault::Death, |root, at, said, _| {
            assert_eq!(said, None);
            let step = loads(root);
            assert!(step == Some(1) || step == Some(2), "death at operation {at}: {step:?}");
            // What the death left behind is cleared, and the next save works.
            assert!(!names(root).iter().any(|name| name.contains(".tmp-")), "{:?}", names(root));
            let next = step.unwrap() + 1;
            save(&store(root), next).unwrap();
            assert_eq!(loads(root), Some(next));
        })
    });
    // Create, fill, 4 files, manifest written and synced, 2 folders, rename, parent.
    assert_eq!(n, 12, "the protocol has other operations than this test was written for");
}

/// What a power cut at this moment may leave: nothing that was not synced. Files lose their content, and names in folders
/// that were not synced lose their last change.
fn cut_power(root: &Path, done: &[(Operation, PathBuf)]) {
    // The last operation was announced and not carried out.
    let done = &done[..done.len() - 1];
    let synced: BTreeSet<String> = done
        .iter()
        .filter(|(operation, _)| *operation == Operation::SyncFile)
        .map(|(_, path)| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let parent_synced = done.contains(&(Operation::SyncDir, root.to_path_buf()));
    let Some(name) = names(root).into_iter().find(|name| name.starts_with("step-2")) else { return };
    let folder = root.join(name);
    for dir in [folder.clone(), folder.join("trainer")] {
        for entry in fs::read_dir(&dir).into_iter().flatten().map(Result::unwrap) {
            if entry.path().is_file() && !synced.contains(entry.file_name().to_str().unwrap()) {
                fs::write(entry.path(), b"").unwrap();
            }
        }
    }
    if !parent_synced && folder.file_name().unwrap() == "step-2" {
        fs::rename(&folder, root.join("step-2.tmp-lost")).unwrap();
    }
}

#[test]
fn c4_a_power_cut_at_any_operation_leaves_the_old_or_the_new_checkpoint() {
    quietly(|| {
        at_every_operation(Fault::Death, |root, at, _, done| {
            cut_power(root, done);
            let step = loads(root);
            assert!(step == Some(1) || step == Some(2), "power cut at operation {at}: {step:?}");
        })
    });
}

#[test]
fn c4_everything_is_synced_before_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("checkpoints");
    let (_, done) = faulty_save(&root, usize::MAX, Fault::Death);
    let place = |wanted: Operation, end: &str| {
        done.iter().position(|(operation, path)| *operation == wanted && path.to_string_lossy().ends_with(end))
    };
    let rename = done.iter().position(|(operation, _)| *operation == Operation::Rename).unwrap();
    let manifest = place(Operation::Write, "manifest.json").unwrap();
    for file in ["config.json", "model.safetensors", "optimizer.safetensors", "state.json"] {
        assert!(place(Operation::SyncFile, file).unwrap() < manifest, "{file} is synced after the manifest is written");
    }
    assert!(place(Operation::SyncFile, "manifest.json").unwrap() < rename);
    assert!(place(Operation::SyncDir, "trainer").unwrap() < rename);
    assert_eq!(
        done.last(),
        Some(&(Operation::SyncDir, root.clone())),
        "success is reported before the parent is synced"
    );
}

#[test]
fn c10_c11_an_error_at_any_operation_is_reported_and_harms_nothing() {
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
        at_every_operation(Fault::Once(kind), |root, at, said, _| {
            assert_eq!(said, Some(false), "operation {at} failed and the save says that it worked");
            let left: Vec<_> = names(root).into_iter().filter(|name| name.contains(".tmp-")).collect();
            assert!(left.is_empty(), "operation {at} left {left:?}");
            let step = loads(root).unwrap();
            save(&store(root), step + 1).unwrap();
            assert_eq!(loads(root), Some(step + 1), "the save after the failed one");
        });
        at_every_operation(Fault::Forever(kind), |root, at, said, _| {
            assert_eq!(said, Some(false), "operation {at}");
            assert!(matches!(loads(root), Some(1 | 2)));
        });
    }
}

#[test]
fn c10_a_save_that_cannot_fit_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    save(&store, 1).unwrap();
    let error = store.save(2, u64::MAX / 2, &mut |_| panic!("nothing may be written")).unwrap_err();
    assert!(matches!(error, TrainError::NoSpace { .. }) && error.exit_code() == 4, "{error}");
    assert_eq!(names(dir.path()), ["step-1"]);
}

#[test]
fn c12_a_folder_that_cannot_be_made_is_a_typed_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let error = CheckpointStore::open(&file.join("checkpoints"), identity(), 2).unwrap_err();
    assert!(matches!(error, TrainError::Io { .. }) && error.exit_code() == 2, "{error}");
    assert!(error.to_string().contains("file/checkpoints"), "{error}");
}

/// Every file of a checkpoint.
fn files(dir: &Path) -> Vec<PathBuf> {
    ["config.json", "model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json", "manifest.json"]
        .iter()
        .map(|name| dir.join(name))
        .collect()
}

#[test]
fn g05_any_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = crate::tests::random(3);
    for round in 0..150 {
        let root = dir.path().join(round.to_string());
        let saved = store(&root);
        save(&saved, 1).unwrap();
        save(&saved, 2).unwrap();
        let files = files(&root.join("step-2"));
        let path = &files[random(files.len() as u64) as usize];
        let mut bytes = fs::read(path).unwrap();
        let (at, bit) = (random(bytes.len() as u64) as usize, random(8));
        bytes[at] ^= 1 << bit;
        fs::write(path, bytes).unwrap();
        // A flipped bit may turn the manifest into one of another version, which is refused, not passed over.
        match store(&root).load_latest(&mut |_| ()) {
            Ok(found) => assert_eq!(found.unwrap().1.step, 1, "{path:?} byte {at} bit {bit}"),
            Err(error) => assert!(
                matches!(error, TrainError::CheckpointVersion { .. } | TrainError::ResumeMismatch { .. }),
                "{error}"
            ),
        }
    }
}

#[test]
fn c5_c6_c7_damaged_checkpoints_are_set_aside_and_never_deleted() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("empty weights", |dir| fs::write(dir.join("model.safetensors"), b"").unwrap()),
        ("missing state", |dir| fs::remove_file(dir.join("trainer/state.json")).unwrap()),
        ("an extra file", |dir| fs::write(dir.join("extra"), b"x").unwrap()),
        ("torn manifest", |dir| fs::write(dir.join("manifest.json"), b"{\"version\": 1, ").unwrap()),
        ("no manifest", |dir| fs::remove_file(dir.join("manifest.json")).unwrap()),
        ("no folder", |dir| fs::remove_dir_all(dir.join("trainer")).unwrap()),
        ("a link", |dir| {
            fs::remove_file(dir.join("config.json")).unwrap();
            std::os::unix::fs::symlink("/etc/hostname", dir.join("config.json")).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let saved = store(root);
        save(&saved, 1).unwrap();
        save(&saved, 2).unwrap();
        damage(&root.join("step-2"));
        let mut warnings = Vec::new();
        let (path, manifest) = store(root).load_latest(&mut |text| warnings.push(text)).unwrap().unwrap();
        assert_eq!((manifest.step, path), (1, root.join("step-1")), "{name}");
        assert!(warnings.len() == 1 && warnings[0].contains("step-2.bad-0"), "{name}: {warnings:?}");
        assert_eq!(names(root), ["step-1", "step-2.bad-0"], "{name}");
        // The same step can be saved, go bad and be set aside again.
        save(&store(root), 2).unwrap();
        fs::remove_file(root.join("step-2/config.json")).unwrap();
        assert_eq!(loads(root), Some(1), "{name}");
        assert_eq!(names(root), ["step-1", "step-2.bad-0", "step-2.bad-1"], "{name}");
    }
}

#[test]
fn c9_when_none_is_intact_nothing_starts_from_scratch() {
    let dir = tempfile::tempdir().unwrap();
    save(&store(dir.path()), 1).unwrap();
    fs::write(dir.path().join("step-1/model.safetensors"), b"").unwrap();
    // The second attempt finds only the one that was set aside, and must not take that for a fresh folder.
    for attempt in 0..2 {
        let error = store(dir.path()).load_latest(&mut |_| ()).unwrap_err();
        assert!(matches!(error, TrainError::NoIntactCheckpoint { found: 1, .. }), "{attempt}: {error}");
    }
}

#[test]
fn a_checkpoint_under_the_name_of_another_step_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    save(&store(dir.path()), 1).unwrap();
    save(&store(dir.path()), 2).unwrap();
    fs::rename(dir.path().join("step-2"), dir.path().join("step-9")).unwrap();
    assert_eq!(loads(dir.path()), Some(1));
}

#[test]
fn c19_the_order_is_by_step_and_not_by_time_or_text() {
    let dir = tempfile::tempdir().unwrap();
    for step in [100, 20, 3] {
        save(&store(dir.path()), step).unwrap();
    }
    assert_eq!(store(dir.path()).steps().unwrap(), [3, 20, 100]);
    assert_eq!(loads(dir.path()), Some(100));
}

#[test]
fn c16_c18_a_resume_with_anything_else_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    save(&store(dir.path()), 1).unwrap();
    let refused = |change: &dyn Fn(&mut Identity), wanted: &[&str]| {
        let mut other = identity();
        change(&mut other);
        let store = CheckpointStore::open(dir.path(), other, 2).unwrap();
        let error = store.load_latest(&mut |_| ()).unwrap_err();
        assert!(matches!(error, TrainError::ResumeMismatch { .. }) && error.exit_code() == 2, "{error}");
        for part in wanted {
            assert!(error.to_string().contains(part), "{error} lacks {part}");
        }
        // Another run's checkpoint is not a bad one.
        assert_eq!(names(dir.path()), ["step-1"]);
    };
    refused(&|i| i.data = "e".into(), &["the data was d, now it is e"]);
    refused(&|i| i.tokenizer = "u".into(), &["the tokenizer was t, now it is u"]);
    refused(&|i| i.base_model = "n".into(), &["the initial model was m, now it is n"]);
    refused(&|i| i.config["train"]["lr"] = json!(0.2), &["train.lr = 0.1", "train.lr = 0.2"]);
    refused(&|i| i.config["train"]["new"] = json!(true), &["train.new = null", "train.new = true"]);
    refused(&|i| i.config = json!({}), &["train = {"]);
    assert_eq!(loads(dir.path()), Some(1));
}

#[test]
fn c17_another_format_is_refused_with_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    save(&store(dir.path()), 1).unwrap();
    save(&store(dir.path()), 2).unwrap();
    let path = dir.path().join("step-2/manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"version\": 1", "\"version\": 7", 1)).unwrap();
    let error = store(dir.path()).load_latest(&mut |_| ()).unwrap_err();
    assert!(matches!(error, TrainError::CheckpointVersion { found: 7, expected: 1, .. }), "{error}");
    assert_eq!(names(dir.path()), ["step-1", "step-2"]);
}

#[test]
fn a_key_written_twice_makes_a_manifest_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    save(&store(dir.path()), 1).unwrap();
    let path = dir.path().join("step-1/manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("\"step\": 1", "\"step\": 5, \"step\": 1", 1)).unwrap();
    let error = Manifest::read(&dir.path().join("step-1")).unwrap_err();
    assert!(error.to_string().contains("duplicate field"), "{error}");
}

#[test]
fn retention_keeps_the_last_ones_and_the_best() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for step in 1..=5 {
        save(&store, step).unwrap();
        store.prune(Some(2)).unwrap();
    }
    assert_eq!(store.steps().unwrap(), [2, 4, 5]);
}

#[test]
fn retention_removes_nothing_while_the_newest_is_bad() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    for step in 1..=4 {
        save(&store, step).unwrap();
    }
    fs::write(dir.path().join("step-4/config.json"), b"").unwrap();
    assert!(store.prune(None).unwrap_err().to_string().contains("config.json has 0 bytes"));
    assert_eq!(store.steps().unwrap(), [1, 2, 3, 4]);
}

#[test]
fn c3_a_death_while_old_ones_are_removed_keeps_the_newest() {
    quietly(|| {
        for at in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            for step in 1..=4 {
                save(&store(dir.path()), step).unwrap();
            }
            let plan = Plan::default();
            let pruning = CheckpointStore::open_on(plan.disk(at, Fault::Death), dir.path(), identity(), 2).unwrap();
            let died = catch_unwind(AssertUnwindSafe(|| pruning.prune(None))).is_err();
            assert_eq!(died, at < plan.done().len());
            assert!(died, "two checkpoints are renamed and removed");
            assert_eq!(loads(dir.path()), Some(4));
            assert!(!names(dir.path()).iter().any(|name| name.contains(".tmp-")));
        }
    });
}

/// One thing that can happen to a run's checkpoints.
#[derive(Clone, Debug)]
enum Event {
    Save,
    FailingSave(usize),
    DeathInSave(usize),
    DeathInPrune(usize),
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Save),
        1 => (0usize..12).prop_map(Event::FailingSave),
        1 => (0usize..12).prop_map(Event::DeathInSave),
        1 => (0usize..3).prop_map(Event::DeathInPrune),
        1 => Just(Event::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn g08_whatever_happens_the_last_success_survives(events in prop::collection::vec(event(), 1..14)) {
        quietly(|| {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path();
            let (mut last, mut step) = (None, 0);
            for event in events {
                step += 1;
                let (at, fault) = match event {
                    Event::FailingSave(at) => (at, Fault::Once(io::ErrorKind::StorageFull)),
                    Event::DeathInSave(at) => (at, Fault::Death),
                    _ => (usize::MAX, Fault::Death),
                };
                let opened = CheckpointStore::open_on(Plan::default().disk(at, fault), root, identity(), 2).unwrap_or_else(|_| store(root));
                let saved = match event {
                    Event::Restart | Event::DeathInPrune(_) => None,
                    _ => catch_unwind(AssertUnwindSafe(|| save(&opened, step))).ok().and_then(Result::ok),
                };
                if saved.is_some() {
                    last = Some(step);
                    let _ = opened.prune(last.filter(|step| step % 3 == 0));
                }
                if let Event::DeathInPrune(at) = event {
                    let hooked = CheckpointStore::open_on(Plan::default().disk(at, Fault::Death), root, identity(), 1);
                    let _ = catch_unwind(AssertUnwindSafe(|| hooked.map(|store| store.prune(None))));
                }
                // A save that failed in its very last sync may be there all the same.
                let found = loads(root);
                assert!(found >= last, "{found:?} after {last:?}");
                last = found;
            }
        });
    }
}
