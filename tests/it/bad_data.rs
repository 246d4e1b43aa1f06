//! Broken data: refused with exit code 2, by file and line; nothing half-written is left.

use std::fs;
use std::path::Path;

use crate::line::{args_of, args_with, inputs_of};
use crate::sandbox::{RUN, Sandbox, copy_tree};

/// Replaces line `number` (from 1) of a file.
fn replace_line(path: &Path, number: usize, with: &[u8]) {
    let bytes = fs::read(path).unwrap();
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    lines[number - 1] = with;
    fs::write(path, lines.join(&b'\n')).unwrap();
}

/// Refuses a stage whose records have this as line 3.
fn refuses_line(stage: &str, file: &str, line: &[u8], words: &[&str]) {
    let sandbox = Sandbox::with(inputs_of(stage));
    replace_line(&sandbox.run_path(file), 3, line);
    let place = format!("{RUN}/{file}:3");
    let mut all = vec![place.as_str()];
    all.extend(words);
    sandbox.refuses(2, &format!("stage-{stage}"), &args_of(stage), &all);
    assert!(!sandbox.run_path(stage).join("stage.json").exists());
}

/// Defect S19 was a loss on everything; a conversation in which nothing is learnt is a mistake of the data.
#[test]
fn s19_a_conversation_without_a_supervised_token_is_refused_by_file_and_line() {
    for file in ["tasks/sft/train.jsonl", "tasks/sft/heldout.jsonl"] {
        refuses_line(
            "sft",
            file,
            br#"{"messages": [{"role": "user", "content": "Hello?"}]}"#,
            &["no message has the role `assistant`", "add the answer or remove the record"],
        );
    }
    let silent = br#"{"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": " "}]}"#;
    refuses_line("sft", "tasks/sft/train.jsonl", silent, &["`content` is empty"]);
}

#[test]
fn records_that_are_no_records_are_refused_by_file_and_line() {
    let sft = "tasks/sft/train.jsonl";
    refuses_line("sft", sft, b"{\"messages\": \"caf\xe9\"}", &["not UTF-8 from byte 17", "convert the file to UTF-8"]);
    refuses_line("sft", sft, b"{\"messages\": [", &["EOF"]);
    refuses_line("sft", sft, b"{\"messages\": [], \"message\": 1}", &["unknown field `message`"]);
    refuses_line("sft", sft, b"{\"messages\": []}", &["`messages` is empty"]);
    let shout = br#"{"messages": [{"role": "root", "content": "x"}]}"#;
    refuses_line("sft", sft, shout, &["unknown variant `root`", "`assistant`"]);
}

#[test]
fn a_pair_whose_answers_are_equal_is_refused_by_file_and_line() {
    let file = "tasks/preference/train.jsonl";
    let equal = br#"{"prompt": "Hello?", "chosen": "Yes.", "rejected": "Yes."}"#;
    refuses_line("dpo", file, equal, &["`chosen` equals `rejected`", "remove it"]);
    refuses_line("dpo", file, br#"{"prompt": "Hello?", "chosen": "", "rejected": "Yes."}"#, &["`chosen` is empty"]);
    refuses_line("dpo", file, b"{\"prompt\": \"\xff\"}", &["not UTF-8 from byte 12"]);
}

/// A record that is longer than a row is not cut: it would teach half an answer.
#[test]
fn a_record_that_fits_no_row_is_refused_by_file_and_record() {
    let sandbox = Sandbox::with(inputs_of("sft"));
    let long = "word ".repeat(600);
    let record = serde_json::json!({ "messages": [
        { "role": "user", "content": "Hello?" }, { "role": "assistant", "content": long } ] });
    replace_line(&sandbox.run_path("tasks/sft/train.jsonl"), 3, record.to_string().as_bytes());
    let words = ["tasks/sft/train.jsonl", "record 3", "a row holds 256", "raise seq_len or shorten"];
    sandbox.refuses(2, "stage-sft", &args_of("sft"), &words);
}

#[test]
fn missing_cut_and_unlisted_shards_are_refused() {
    let shard = "rows/text-train/seq-64/shard-00000.parquet";
    for stage in ["pretrain", "lora"] {
        let length = if stage == "pretrain" { "64" } else { "128" };
        let shard = shard.replace("64", length);
        let sandbox = Sandbox::with(inputs_of(stage));
        let program = format!("stage-{stage}");
        let whole = fs::read(sandbox.run_path(&shard)).unwrap();

        fs::write(sandbox.run_path(&shard), &whole[..whole.len() / 2]).unwrap();
        sandbox.refuses(2, &program, &args_of(stage), &[&shard, "differs from the recorded", "restore the file"]);
        fs::remove_file(sandbox.run_path(&shard)).unwrap();
        sandbox.refuses(2, &program, &args_of(stage), &[&shard, "listed in the manifest but missing"]);
        fs::write(sandbox.run_path(&shard), &whole).unwrap();
        fs::write(sandbox.run_path(&shard.replace("00000", "00001")), &whole).unwrap();
        sandbox.refuses(2, &program, &args_of(stage), &["shard-00001.parquet", "not listed"]);
        assert!(!sandbox.run_path(stage).join("stage.json").exists());
    }
}

/// Defect S10: the rows of a phase were not there, so the default rows were taken, silently.
#[test]
fn s10_a_phase_without_rows_of_its_length_is_refused() {
    let sandbox = Sandbox::with(inputs_of("pretrain"));
    fs::remove_dir_all(sandbox.run_path("rows/text-train/seq-64")).unwrap();
    let words = ["rows/text-train", "no rows for seq_len 64", "32, 128", "data-pipeline pack --seq-len 64"];
    sandbox.refuses(2, "stage-pretrain", &args_of("pretrain"), &words);
    fs::remove_dir_all(sandbox.run_path("rows/text-train")).unwrap();
    sandbox.refuses(2, "stage-pretrain", &args_of("pretrain"), &["rows/text-train"]);
}

/// Defect S18: tokenizer, rows and model were of three different vocabularies.
#[test]
fn s18_a_tokenizer_that_is_not_the_checkpoints_is_refused() {
    let sandbox = Sandbox::with(&["init", "rows", "text", "pretrain", "tasks", "gates"]);
    let text = format!("{RUN}/text/train");
    let other = format!("{RUN}/other");
    let train = ["train-tokenizer", "--input", &text, "--vocab-size", "600", "--out", &other];
    sandbox.run("data-pipeline", &train).ok();

    // Rows of one tokenizer, a model of another.
    let init = ["init", "--depth", "1", "--tokenizer", &other, "--out", &format!("{RUN}/other-init")];
    sandbox.run("model-core", &init).ok();
    let args = args_with("pretrain", &["--set", &format!("model={RUN}/other-init")]);
    let words = ["rows/text-train/seq-32", "were made with tokenizer", "pack again with the run's tokenizer"];
    sandbox.refuses(2, "stage-pretrain", &args, &words);

    // A model that has not as many rows in its embedding as its tokenizer has ids.
    let small =
        ["init", "--depth", "1", "--tokenizer", &other, "--vocab-size", "512", "--out", &format!("{RUN}/small")];
    sandbox.refuses(2, "model-core", &small, &["vocabulary mismatch", "600", "512"]);

    // The same by exchanging the tokenizer afterwards, in a run that tokenizes by itself.
    fs::copy(sandbox.path(&other).join("tokenizer.json"), sandbox.run_path("pretrain/final/tokenizer.json")).unwrap();
    let args = args_with("sft", &["--override-gate", "a test"]);
    sandbox.refuses(2, "stage-sft", &args, &["tasks/sft/train.jsonl", "512"]);
    let (model, out) = (format!("{RUN}/pretrain/final"), format!("{RUN}/eval.json"));
    let eval = ["eval", "--model", &model, "--suite", "configs/suite.toml", "--data", RUN, "--out", &out];
    sandbox.refuses(2, "gates", &eval, &["okenizer"]);
}

/// The commands before training: the folder that was to be made is not there, and neither is a part of it.
#[test]
fn data_commands_leave_nothing_behind_when_their_input_is_broken() {
    let sandbox = Sandbox::with(&["text", "tokenizer"]);
    fs::write(sandbox.path("notes.jsonl"), b"{\"text\": \"one\"}\n{\"text\": \"tw\xff\"}\n").unwrap();
    let (out, text) = (format!("{RUN}/new/folder"), format!("{RUN}/text/train"));
    let ingest =
        ["ingest", "--input", "notes.jsonl", "--source", "notes", "--licence", "CC0-1.0", "--out", out.as_str()];
    sandbox.refuses(2, "data-pipeline", &ingest, &["notes.jsonl:2", "not UTF-8 from byte 12"]);
    let train = ["train-tokenizer", "--input", &text, "--vocab-size", "100", "--out", &out];
    sandbox.refuses(2, "data-pipeline", &train, &["vocab_size 100 is too small"]);
    let tokenizer = format!("{RUN}/tokenizer");
    fs::write(sandbox.run_path("tokenizer/tokenizer.json"), "{\"model\": ").unwrap();
    let pack = ["pack", "--input", &text, "--tokenizer", &tokenizer, "--seq-len", "32", "--out", &out];
    sandbox.refuses(2, "data-pipeline", &pack, &["tokenizer.json", "not a tokenizer.json"]);
    let parquet = sandbox.path("data/text/train/dictionary.parquet");
    let whole = fs::read(&parquet).unwrap();
    fs::write(&parquet, &whole[..whole.len() / 2]).unwrap();
    let derive = ["derive", "--data", "data", "--sft", "10", "--preference", "10", "--heldout", "10", "--out", &out];
    sandbox.refuses(2, "data-pipeline", &derive, &["dictionary.parquet", "make the file again from its source"]);
    fs::write(&parquet, &whole).unwrap();
    // A folder that is there is not replaced, and one that is none of ours not even when asked.
    copy_tree(&sandbox.path("configs"), &sandbox.path(&out));
    sandbox.refuses(2, "data-pipeline", &derive, &["already exists", "--overwrite"]);
    let mut args = derive.to_vec();
    args.push("--overwrite");
    sandbox.refuses(2, "data-pipeline", &args, &["no output of this program"]);
}
