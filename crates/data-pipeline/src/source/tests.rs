//! Tests of the readers: every format, every bad input.

use std::fs;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow_array::{ArrayRef, Int64Array, LargeStringArray, RecordBatch, StringArray};
use tempfile::TempDir;

use super::*;

/// A folder with files in it.
fn dir(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn source(dir: &TempDir, name: &str) -> SourceConfig {
    SourceConfig::new("src", vec![dir.path().join(name)], Some("MIT"))
}

fn read(source: &SourceConfig) -> Result<Vec<TextRecord>> {
    let mut records = Vec::new();
    source.read(&mut |record| {
        records.push(record);
        Ok(())
    })?;
    Ok(records)
}

fn texts(source: &SourceConfig) -> Vec<(String, String)> {
    read(source).unwrap().into_iter().map(|r| (r.id, r.text)).collect()
}

/// The error of reading one file, which must name the file.
fn error(name: &str, bytes: &[u8], change: impl FnOnce(&mut SourceConfig)) -> String {
    let dir = dir(&[(name, bytes)]);
    let mut source = source(&dir, name);
    change(&mut source);
    let message = read(&source).unwrap_err().to_string();
    assert!(message.contains(name), "{message}");
    message
}

fn parquet_bytes(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn strings(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

#[test]
fn text_files_are_one_document_each_or_cut_at_separators() {
    let dir = dir(&[("b.txt", b"two\n%\n\n%\nthree\n"), ("a.txt", b"\xef\xbb\xbfone"), ("c.bin", b"x")]);
    let pair = |id: &str, text: &str| (id.to_owned(), text.to_owned());
    let mut source = source(&dir, "");
    assert_eq!(texts(&source), [pair("a", "one"), pair("b", "two\n%\n\n%\nthree\n")]);
    source.separator = Some("%\n".into());
    assert_eq!(texts(&source)[1..], [pair("b:1", "two\n"), pair("b:3", "three\n")]);
    let record = &read(&source).unwrap()[0];
    assert_eq!((record.source.as_str(), record.licence.as_str()), ("src", "MIT"));
}

#[test]
fn bad_text_is_refused_by_file_and_line() {
    assert!(error("a.txt", b"good\nba\xffd", |_| ()).contains("a.txt:2: not UTF-8 from byte 2 of the line"));
    assert!(error("a.txt", b"a\0b", |_| ()).contains("a NUL byte at offset 1"));
    assert!(error("a.txt", b"\x1f\x8b\x08", |_| ()).contains("expected plain text, found a gzip file"));
    assert!(error("a.dat", b"x", |_| ()).contains("no input"));
    let empty = dir(&[]);
    assert!(read(&source(&empty, "")).unwrap_err().to_string().contains("no input"));
    assert!(read(&source(&empty, "gone.txt")).unwrap_err().to_string().contains("gone.txt"));
}

#[test]
fn json_lines_carry_their_own_provenance_or_the_source_s() {
    let lines = b"{\"text\":\"one\"}\n\r\n{\"id\":\"x\",\"text\":\"two\",\"source\":\"own\",\"licence\":\"CC0-1.0\"}";
    let dir = dir(&[("a.jsonl", lines)]);
    let records = read(&source(&dir, "a.jsonl")).unwrap();
    let parts: Vec<_> = records.iter().map(|r| [&*r.id, &*r.text, &*r.source, &*r.licence]).collect();
    assert_eq!(parts, [["a:1", "one", "src", "MIT"], ["x", "two", "own", "CC0-1.0"]]);
}

#[test]
fn fields_can_be_named_and_others_ignored() {
    let dir = dir(&[("a.jsonl", br#"{"body":"one","key":"k","score":[1,{"text":2}]}"#)]);
    let mut source = source(&dir, "a.jsonl");
    (source.text_column, source.id_column) = ("body".into(), "key".into());
    assert!(read(&source).unwrap_err().to_string().contains("a.jsonl:1: unknown field `score`"));
    source.extra_fields = ExtraFields::Ignore;
    assert_eq!(texts(&source), [("k".to_owned(), "one".to_owned())]);
}

#[test]
fn bad_json_lines_are_refused_by_file_and_line() {
    let second = |line: &str| error("a.jsonl", format!("{{\"text\":\"good\"}}\n{line}\n").as_bytes(), |_| ());
    let check = |line: &str, want: &str| {
        let message = second(line);
        assert!(message.contains("a.jsonl:2: ") && message.contains(want), "{message}");
    };
    check("{\"text\":\"cut", "EOF while parsing");
    check("{\"text\":\"a\",\"text\":\"b\"}", "duplicate field `text`");
    check("{\"id\":\"a\"}", "missing field `text`");
    check("{\"text\":5}", "invalid type: integer `5`, expected a string");
    check("[\"text\"]", "expected an object with the field `text`");
    check("{\"text\":\"a\"} {\"text\":\"b\"}", "trailing characters");
    check("{\"text\":\"\\ud800\"}", "unexpected end of hex escape");
    check("{\"text\":\" \\n\"}", "`text` is empty");
    check("{\"text\":null}", "invalid type: null");
    let deep = format!("{}1{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    check(&format!("{{\"text\":{deep}}}"), "invalid type: sequence, expected a string");
    // Skipping takes no stack.
    let skipped = dir(&[("a.jsonl", format!("{{\"text\":\"a\",\"x\":{deep}}}").as_bytes())]);
    let ignoring = SourceConfig { extra_fields: ExtraFields::Ignore, ..source(&skipped, "a.jsonl") };
    assert_eq!(texts(&ignoring), [("a:1".to_owned(), "a".to_owned())]);
    assert!(
        error("a.jsonl", b"{\"text\":\"a\"}\n{\"text\":\"\xff\"}", |_| ()).contains("a.jsonl:2: not UTF-8 from byte 9")
    );
}

#[test]
fn a_line_beyond_the_cap_is_refused_before_it_is_in_memory() {
    let line = format!("{{\"text\":\"{}\"}}", "x".repeat(89));
    assert_eq!(line.len(), 100);
    let at = |max: usize, end: &str| {
        let dir = dir(&[("a.jsonl", format!("{line}{end}").as_bytes())]);
        let mut source = source(&dir, "a.jsonl");
        source.max_line_bytes = max;
        read(&source).map(|r| r.len()).map_err(|e| e.to_string())
    };
    for end in ["", "\n"] {
        assert_eq!(at(100, end), Ok(1));
        assert!(at(99, end).unwrap_err().contains("a.jsonl:1: the line is longer than 99 bytes"));
    }
}

#[test]
fn parquet_columns_are_read_in_every_text_layout() {
    let large: ArrayRef = Arc::new(LargeStringArray::from(vec!["one", "two"]));
    let other: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let bytes = parquet_bytes(vec![("text", large), ("n", other), ("source", strings(&["p", "q"]))]);
    let dir = dir(&[("a.parquet", &bytes)]);
    let records = read(&source(&dir, "")).unwrap();
    let parts: Vec<_> = records.iter().map(|r| [&*r.id, &*r.text, &*r.source, &*r.licence]).collect();
    assert_eq!(parts, [["a:1", "one", "p", "MIT"], ["a:2", "two", "q", "MIT"]]);
}

#[test]
fn bad_parquet_is_refused_by_file_column_and_row() {
    let good = parquet_bytes(vec![("text", strings(&["one", "two"]))]);
    let check = |bytes: &[u8], want: &str| {
        let message = error("a.parquet", bytes, |_| ());
        assert!(message.contains(want), "{message}");
    };
    check(b"plain text, much longer than a footer", "cannot open the Parquet file");
    check(b"PAR1", "cannot open the Parquet file");
    check(b"", "cannot open the Parquet file");
    check(&good[..good.len() / 2], "cannot open the Parquet file");
    check(&parquet_bytes(vec![("body", strings(&["x"]))]), "column `text` is missing, the file has [\"body\"]");
    check(&parquet_bytes(vec![("text", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]), "must be text, it is Int64");
    check(&parquet_bytes(vec![("text", strings(&["x", " "]))]), "a.parquet:2: `text` is empty");
    // arrow-rs#9874: a few bytes whose Thrift list claims to be enormous.
    check(b"PAR1\x19\xfc\xff\xff\xff\xff\x07\x07\x00\x00\x00PAR1", "cannot open the Parquet file");
}

#[test]
fn no_byte_of_a_parquet_file_can_be_changed_into_a_crash() {
    let good = parquet_bytes(vec![("text", strings(&["one", "two", "three"])), ("id", strings(&["a", "b", "c"]))]);
    let dir = dir(&[]);
    let path = dir.path().join("a.parquet");
    let source = source(&dir, "a.parquet");
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        fs::write(&path, &bytes).unwrap();
        // Some changes go unnoticed by Parquet itself; what counts is that none panics. Our own folders have hashes.
        let _ = read(&source);
    }
}

#[test]
fn the_hash_of_a_source_covers_names_and_contents() {
    let one = dir(&[("a.txt", b"1"), ("b.txt", b"2")]);
    let hash = |dir: &TempDir| source_hash(&source(dir, "")).unwrap();
    assert_eq!(hash(&one), hash(&dir(&[("a.txt", b"1"), ("b.txt", b"2")])));
    assert_ne!(hash(&one), hash(&dir(&[("a.txt", b"1"), ("b.txt", b"3")])));
    assert_ne!(hash(&one), hash(&dir(&[("a.txt", b"1"), ("c.txt", b"2")])));
    let mut pinned = source(&one, "");
    pinned.hash = Some(hash(&one));
    source_hash(&pinned).unwrap();
    fs::write(one.path().join("a.txt"), "x").unwrap();
    assert!(matches!(source_hash(&pinned), Err(DataError::HashMismatch { .. })));
}

#[test]
fn folders_in_folders_are_read_when_asked_for() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("a/b")).unwrap();
    for (name, text) in [("lib.rs", "fn a() {}"), ("a/lib.rs", "fn b() {}"), ("a/b/c.md", "text"), ("a/x.bin", "no")] {
        fs::write(root.join(name), text).unwrap();
    }
    let ids = |recursive| {
        let source = SourceConfig { recursive, ..SourceConfig::new("s", vec![root.clone()], Some("MIT")) };
        let mut ids = Vec::new();
        let mut push = |record: TextRecord| {
            ids.push(record.id);
            Ok(())
        };
        source.read(&mut push).unwrap();
        ids
    };
    assert_eq!(ids(false), ["lib"]);
    assert_eq!(ids(true), ["root/a/b/c", "root/a/lib", "root/lib"]);
}

#[test]
fn crates_are_sources_of_their_own_under_their_own_licences() {
    let root = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("b-1.0.0/Cargo.toml", "[package]\nname = \"b\"\nlicense = \"MIT/Apache-2.0\"\n");
    put("b-1.0.0/src/lib.rs", "pub fn b() {}");
    put("b-1.0.0/README.md", "b");
    put("a-0.2.0/Cargo.toml", "[package]\nname = \"a\"\nlicense = \"MIT\"\n");
    put("a-0.2.0/tests/all.rs", "// tests");
    put("a-0.2.0/src/lib.rs", "// lib");
    put("a-0.1.0/Cargo.toml", "[package]\nname = \"a\"\nlicense-file = \"OWN\"\n");
    put("a-0.1.0/src/lib.rs", "// old");
    put("none-1.0.0/Cargo.toml", "[package]\nname = \"none\"\nlicense = \"MIT\"\n");
    put("none-1.0.0/notes.txt", "no code");
    put("notes.txt", "no crate");
    let all = SourceConfig { crates: true, ..SourceConfig::new("crates", vec![root.path().into()], None) };
    let records = |skip: &[&str]| -> Result<Vec<[String; 4]>> {
        let source = SourceConfig { skip: skip.iter().map(ToString::to_string).collect(), ..all.clone() };
        let each = source.expand()?.iter().map(read).collect::<Result<Vec<_>>>()?;
        Ok(each.concat().into_iter().map(|r| [r.source, r.licence, r.id, r.text]).collect())
    };
    let old = ["a", "", "a-0.1.0/src/lib", "// old"];
    let b = ["b", "MIT OR Apache-2.0", "b-1.0.0/src/lib", "pub fn b() {}"];
    let new = [["a", "MIT", "a-0.2.0/src/lib", "// lib"], ["a", "MIT", "a-0.2.0/tests/all", "// tests"]];
    assert_eq!(records(&[]).unwrap(), [old, new[0], new[1], b]);
    assert_eq!(records(&["a-0.1.0", "none"]).unwrap(), [new[0], new[1], b]);
    assert_eq!(records(&["a*"]).unwrap(), [b]);
    assert_eq!(records(&["a"]).unwrap(), [b]);
    let message = records(&["a", "c-*"]).unwrap_err().to_string();
    assert!(message.contains("`source.skip`") && message.contains("found c-*"), "{message}");
    put("c/Cargo.toml", "[workspace]\n");
    assert!(records(&[]).unwrap_err().to_string().contains("a manifest of a crate with a name"));
    let empty = SourceConfig { paths: vec![root.path().join("b-1.0.0")], ..all.clone() };
    assert!(empty.expand().unwrap_err().to_string().contains("folders with a Cargo.toml"));
}
