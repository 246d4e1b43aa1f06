//! Disks that are full or cannot be written: a typed message, nothing half-written, and the run goes on once there is room.
//!
//! A full disk needs a file system of its own, mounted where only the program of the test sees it. Where the system does
//! not allow that, those tests say so and pass; the limit on the size of a file, which needs no rights, always runs.

use std::fs;
use std::process::Command;

use crate::line::{STAGES, args_of, args_with, assert_same_results, inputs_of};
use crate::process::{Ended, run};
use crate::programs::program;
use crate::sandbox::{RUN, Sandbox};

/// A shell script in a sandbox; `$0` is the first of the arguments.
fn shell(sandbox: &Sandbox, wrapper: &[&str], script: &str, args: &[String]) -> Ended {
    let mut command = match wrapper {
        [] => Command::new("sh"),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg("sh");
            command
        }
    };
    run(command.current_dir(sandbox.path("")).arg("-c").arg(script).args(args))
}

/// A program with its arguments, for a script.
fn words(name: &str, args: &[String]) -> Vec<String> {
    let mut words = vec![program(name).to_str().unwrap().to_owned()];
    words.extend_from_slice(args);
    words
}

/// Runs a program that cannot write larger files than so many KiB; writing more is an error, as on a full disk.
fn with_small_files(sandbox: &Sandbox, kib: u32, name: &str, args: &[String]) -> Ended {
    let blocks = 2 * kib;
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    shell(sandbox, &[], &script, &words(name, args))
}

/// Starts a shell that may mount things that nobody else sees.
const OWN_MOUNTS: [&str; 2] = ["unshare", "--mount"];
const OWN_MOUNTS_AS_USER: [&str; 3] = ["unshare", "--mount", "--map-root-user"];

/// The way in which this system lets a test mount something, if it does.
fn mounts() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&OWN_MOUNTS, &OWN_MOUNTS_AS_USER];
    let sandbox = Sandbox::new();
    let script = "mount -t tmpfs -o size=64k tmpfs runs && mount -o remount,ro runs";
    let way = ways.into_iter().find(|way| {
        let probe = Command::new(way[0]).args(&way[1..]).arg("true").output();
        probe.is_ok_and(|output| output.status.success()) && shell(&sandbox, way, script, &[]).code == Some(0)
    });
    if way.is_none() {
        eprintln!("skipped: this system lets nobody here mount a file system");
    }
    way
}

#[test]
fn data_commands_that_cannot_write_leave_no_part_of_their_output() {
    let sandbox = Sandbox::with(&["text", "tokenizer"]);
    let args = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<String>>();
    let (out, text, tokenizer) = (format!("{RUN}/new"), format!("{RUN}/text/train"), format!("{RUN}/tokenizer"));
    let commands = [
        ("data-pipeline", args(&["ingest", "--config", "configs/text.toml", "--out", &out])),
        ("data-pipeline", args(&["train-tokenizer", "--input", &text, "--vocab-size", "512", "--out", &out])),
        (
            "data-pipeline",
            args(&["pack", "--input", &text, "--tokenizer", &tokenizer, "--seq-len", "32", "--out", &out]),
        ),
        (
            "data-pipeline",
            args(&["derive", "--data", "data", "--sft", "60", "--preference", "60", "--heldout", "60", "--out", &out]),
        ),
        ("model-core", args(&["init", "--depth", "1", "--tokenizer", &tokenizer, "--out", &out])),
    ];
    for (name, args) in commands {
        let before = sandbox.list("");
        let said = with_small_files(&sandbox, 4, name, &args).says(2, &["File too large", "new"]);
        assert_eq!(before, sandbox.list(""), "{said}");
    }
}

/// Saving fails several times, the run stops by its safety rule, and no checkpoint seems to be there.
#[test]
fn a_stage_that_cannot_save_stops_with_exit_code_3_and_no_checkpoint() {
    for stage in STAGES {
        let sandbox = Sandbox::with(inputs_of(stage));
        // Logs and tokenizer fit, weights and moments do not.
        let ended = with_small_files(&sandbox, 32, &format!("stage-{stage}"), &args_of(stage));
        ended.says(3, &["saving failed 3 times in a row", "File too large", "free space", "--resume"]);
        let left = sandbox.list(&format!("{RUN}/{stage}/checkpoints"));
        assert!(left.is_empty(), "{stage}: {left:?}");
        assert!(!sandbox.run_path(stage).join("final").exists());
        let record = sandbox.json(&format!("{RUN}/{stage}/stage.json"));
        assert_eq!((&record["outcome"]["state"], &record["outcome"]["exit_code"]), (&"failed".into(), &3.into()));

        // With room it goes on, and ends as if nothing had been.
        sandbox.run(&format!("stage-{stage}"), &args_with(stage, &["--resume"])).ok();
        assert_same_results(&sandbox, stage, "after a time without room");
    }
}

/// The disk is full after the first checkpoints; these stay, and the run goes on from them.
#[test]
fn a_disk_that_fills_up_stops_the_run_and_keeps_what_is_saved() {
    let Some(way) = mounts() else { return };
    let sandbox = Sandbox::with(inputs_of("pretrain"));
    let script = format!(
        "set -e\nmkdir -p {RUN}/pretrain saved\nmount -t tmpfs -o size=16m tmpfs {RUN}/pretrain\n\
         \"$0\" \"$@\" --set train.stop_after=8\n\
         head -c 100m /dev/zero > {RUN}/pretrain/filler || true\n\
         truncate -s -300000 {RUN}/pretrain/filler\n\
         set +e\n\"$0\" \"$@\" --resume\necho \"full: $?\"\nset -e\n\
         ls {RUN}/pretrain/checkpoints\nrm {RUN}/pretrain/filler\n\
         \"$0\" \"$@\" --resume\ncp -a {RUN}/pretrain saved/\n"
    );
    let ended = shell(&sandbox, way, &script, &words("stage-pretrain", &args_of("pretrain")));
    let (code, out, err) = (ended.code, &ended.out, &ended.err);
    assert_eq!(code, Some(0), "{out}\n{err}");
    assert!(out.contains("full: 3\nstep-4\nstep-8\n"), "{out}\n{err}");
    let wanted = ["a checkpoint needs about", "bytes, ", "free space or point the run elsewhere"];
    assert!(wanted.iter().all(|word| err.contains(word)), "{err}");
    fs::remove_dir_all(sandbox.run_path("pretrain")).unwrap();
    fs::rename(sandbox.path("saved/pretrain"), sandbox.run_path("pretrain")).unwrap();
    assert_same_results(&sandbox, "pretrain", "after a full disk");
}

#[test]
fn a_full_disk_leaves_no_part_of_a_data_folder() {
    let Some(way) = mounts() else { return };
    let sandbox = Sandbox::new();
    let script = "set -e\nmount -t tmpfs -o size=64k tmpfs runs\nset +e\n\"$0\" \"$@\"\ncode=$?\nfind runs -mindepth 1\n\
                  exit $code";
    let args = ["ingest", "--config", "configs/text.toml", "--out", "runs/new/text"].map(str::to_owned);
    let ended = shell(&sandbox, way, script, &words("data-pipeline", &args));
    assert_eq!(ended.out, "", "left behind: {}", ended.out);
    ended.says(2, &["No space left on device", "runs/new", "free space"]);
}

#[test]
fn a_read_only_folder_is_refused_before_the_first_step() {
    let Some(way) = mounts() else { return };
    for stage in STAGES {
        let sandbox = Sandbox::with(inputs_of(stage));
        let before = sandbox.list("");
        let script = "mount --bind runs runs && mount -o remount,ro,bind runs && exec \"$0\" \"$@\"";
        let ended = shell(&sandbox, way, script, &words(&format!("stage-{stage}"), &args_of(stage)));
        ended.says(2, &["Read-only file system", &format!("{RUN}/{stage}"), "check permissions"]);
        assert_eq!(before, sandbox.list(""), "{stage}");
    }
}

/// Without any rights: a folder that cannot be made, because a part of its path is a file.
#[test]
fn an_output_below_a_file_is_refused() {
    for stage in STAGES {
        let sandbox = Sandbox::with(inputs_of(stage));
        let args = args_with(stage, &["--set", &format!("dir=Cargo.lock/{stage}")]);
        sandbox.refuses(2, &format!("stage-{stage}"), &args, &[&format!("Cargo.lock/{stage}"), "Not a directory"]);
    }
    let sandbox = Sandbox::with(&["sft"]);
    let args = ["ingest", "--config", "configs/text.toml", "--out", "Cargo.lock/text"];
    sandbox.refuses(2, "data-pipeline", &args, &["Cargo.lock", "Not a directory"]);
    let model = format!("{RUN}/sft/final");
    let export = ["export", "--model", &model, "--out", "Cargo.lock/model"];
    sandbox.refuses(2, "model-core", &export, &["Cargo.lock/model"]);
}
