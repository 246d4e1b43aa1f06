//! Tests of reading, checking and writing fine-tuning records.

use std::fs;

use super::*;
use crate::record_columns::write_records;
use crate::rows::Source;

const SFT: &str = r#"{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}],"task":"sum"}"#;
const PAIR: &str = r#"{"prompt":"2+2?","chosen":"4","rejected":"5","id":"a","source":"s","licence":"MIT"}"#;

/// Reads lines as a JSONL file named `data.jsonl`.
fn lines<R: Record>(lines: &[&str]) -> Result<RecordSet<R>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    read_records(&path)
}

/// The message for a second line that must be refused by file and line.
fn refused<R: Record + fmt::Debug>(good: &str, bad: &str, want: &str) {
    let message = lines::<R>(&[good, bad]).unwrap_err().to_string();
    assert!(message.contains("data.jsonl:2: ") && message.contains(want), "{message}");
}

#[test]
fn conversations_and_pairs_are_read() {
    let sft = lines::<SftRecord>(&[SFT, "", SFT]).unwrap();
    assert_eq!(sft.records.len(), 2);
    assert_eq!(sft.records[0].messages[2], Message::new(Role::Assistant, "4"));
    assert_eq!((sft.records[0].task.as_str(), sft.records[0].id.as_str()), ("sum", ""));
    let list =
        r#"{"prompt":[{"role":"system","content":"x"},{"role":"user","content":"2+2?"}],"chosen":"4","rejected":"5"}"#;
    let pairs = lines::<PreferenceRecord>(&[PAIR, list]).unwrap().records;
    assert_eq!(pairs[0].prompt, [Message::new(Role::User, "2+2?")]);
    assert_eq!(pairs[1].prompt.len(), 2);
}

#[test]
fn bad_conversations_are_refused_by_file_and_line() {
    let check = |bad: &str, want: &str| refused::<SftRecord>(SFT, bad, want);
    check(&SFT.replace("assistant", "user"), "no message has the role `assistant`");
    check(
        &SFT.replace("\"assistant\"", "\"robot\""),
        "unknown variant `robot`, expected one of `system`, `user`, `assistant`",
    );
    check(&SFT.replace("\"4\"", "\" \""), "`content` is empty");
    check(&SFT.replace("\"user\"", "\"system\""), "message 1 has the role `system`");
    check(&SFT.replace("task", "text"), "unknown field `text`");
    check(&SFT.replace("\"content\":\"4\"", "\"content\":\"4\",\"weight\":1"), "unknown field `weight`");
    check(r#"{"messages":[]}"#, "`messages` is empty");
    check(r#"{"text":"all of it"}"#, "unknown field `text`");
    check(&SFT[..40], "EOF");
}

#[test]
fn bad_pairs_are_refused_by_file_and_line() {
    let check = |bad: &str, want: &str| refused::<PreferenceRecord>(PAIR, bad, want);
    check(&PAIR.replace("\"5\"", "\"4\""), "`chosen` equals `rejected`");
    check(&PAIR.replace("\"5\"", "\"\""), "`rejected` is empty");
    check(&PAIR.replace("\"4\"", "\"\\n\""), "`chosen` is empty");
    check(&PAIR.replace("\"2+2?\"", "\"\""), "`content` is empty");
    check(&PAIR.replace("\"2+2?\"", "[]"), "`prompt` is empty");
    check(&PAIR.replace("\"2+2?\"", "7"), "expected a string or a list of messages");
    let answered = r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#;
    check(&PAIR.replace("\"2+2?\"", answered), "it ends with `assistant`");
    check(&PAIR.replace("\"chosen\":\"4\",", ""), "missing field `chosen`");
    check(&PAIR.replace("\"id\":\"a\"", "\"chosen\":\"6\""), "duplicate field `chosen`");
}

#[test]
fn nothing_to_read_is_an_error() {
    assert!(matches!(lines::<SftRecord>(&[]), Err(DataError::Empty { .. })));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read_sft(dir.path()), Err(DataError::NoInput { .. })));
    assert!(matches!(read_sft(&dir.path().join("gone")), Err(DataError::Io { .. })));
    let path = dir.path().join("data.csv");
    fs::write(&path, "x").unwrap();
    assert!(matches!(read_sft(&path), Err(DataError::NoInput { .. })));
}

#[test]
fn parquet_folders_give_back_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [Source { name: "s".into(), licence: "MIT".into(), hash: "h".into() }];
    let sft = lines::<SftRecord>(&[SFT, SFT]).unwrap().records;
    let pairs = lines::<PreferenceRecord>(&[PAIR]).unwrap().records;
    write_records(&dir.path().join("sft"), &sft, &sources, "seed 1").unwrap();
    write_records(&dir.path().join("pairs"), &pairs, &sources, "").unwrap();
    assert_eq!(read_sft(&dir.path().join("sft")).unwrap().records, sft);
    assert_eq!(read_preferences(&dir.path().join("pairs")).unwrap().records, pairs);
    // One kind does not pass for the other.
    let message = read_preferences(&dir.path().join("sft")).unwrap_err().to_string();
    assert!(message.contains("column `messages`"), "{message}");
    let coloured = vec![SftRecord { task: "\u{1b}[31mred".into(), ..sft[0].clone() }];
    write_records(&dir.path().join("red"), &coloured, &sources, "").unwrap();
    let message = crate::inspect::inspect(&dir.path().join("red"), 0).unwrap();
    assert!(message.contains("task = \u{fffd}[31mred") && !message.contains('\u{1b}'), "{message}");
    let message = crate::inspect::inspect(&dir.path().join("sft"), 1).unwrap();
    for part in ["sft records", "s (MIT) h", "seed 1", "assistant: 4", "task = sum"] {
        assert!(message.contains(part), "{message}");
    }
    let shard = dir.path().join("sft/shard-00000.parquet");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[50] ^= 1;
    fs::write(&shard, bytes).unwrap();
    assert!(matches!(read_sft(&dir.path().join("sft")), Err(DataError::HashMismatch { .. })));
}

#[test]
fn records_in_parquet_are_checked_by_row() {
    let dir = tempfile::tempdir().unwrap();
    let pair = lines::<PreferenceRecord>(&[PAIR]).unwrap().records.remove(0);
    let same = PreferenceRecord { rejected: pair.chosen.clone(), ..pair.clone() };
    let error = write_records(&dir.path().join("bad"), &[pair, same], &[], "").unwrap_err();
    assert!(error.to_string().contains(":2: `chosen` equals `rejected`"), "{error}");
    assert!(!dir.path().join("bad").exists());
}

#[test]
fn the_fingerprint_follows_the_content_and_licences_are_checked() {
    let one = lines::<PreferenceRecord>(&[PAIR]).unwrap();
    assert_eq!(one.fingerprint, lines::<PreferenceRecord>(&[PAIR]).unwrap().fingerprint);
    assert_ne!(one.fingerprint, lines::<PreferenceRecord>(&[PAIR, PAIR]).unwrap().fingerprint);
    one.require_licences(&LicencePolicy::default()).unwrap();
    let closed = lines::<PreferenceRecord>(&[PAIR, &PAIR.replace("MIT", "CC-BY-NC-4.0")]).unwrap();
    assert!(closed.require_licences(&LicencePolicy::default()).unwrap_err().to_string().contains("CC-BY-NC-4.0"));
}
