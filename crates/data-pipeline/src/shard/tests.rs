//! Tests of writing and opening token rows.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::rows::{PADDING_SEGMENT, Source};

fn meta(seq_len: u32) -> ShardMeta {
    ShardMeta {
        version: ShardMeta::VERSION,
        tokenizer_hash: "t".repeat(64),
        vocab_size: 50,
        seq_len,
        sources: vec![Source { name: "notes".into(), licence: "MIT".into(), hash: "h".repeat(64) }],
        kind: "pretrain".into(),
        text_bytes: 77,
    }
}

fn rows(n: u32, seq_len: usize) -> Vec<TokenRow> {
    let row = |i: u32| {
        let mut row = TokenRow {
            ids: (0..seq_len as u32).map(|t| (i + t) % 50).collect(),
            segments: vec![0; seq_len],
            weights: vec![1.0; seq_len],
        };
        row.weights[0] = 0.0;
        (row.segments[seq_len - 1], row.weights[seq_len - 1]) = (PADDING_SEGMENT, 0.0);
        row
    };
    (0..n).map(row).collect()
}

fn written(n: u32) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows");
    write_rows(&path, &rows(n, 8), &meta(8)).unwrap();
    (dir, path)
}

fn open_error(path: &Path) -> String {
    RowSet::open(path).unwrap_err().to_string()
}

#[test]
fn rows_come_back_as_they_were_written() {
    let (dir, path) = written(9);
    let set = RowSet::open(&path).unwrap();
    assert_eq!((set.rows(), set.meta()), (&rows(9, 8)[..], &meta(8)));
    set.require_tokenizer(&"t".repeat(64)).unwrap();
    assert!(matches!(set.require_tokenizer("other"), Err(DataError::WrongTokenizer { .. })));
    let again = write_rows(&dir.path().join("again"), &rows(9, 8), &meta(8)).unwrap();
    assert_eq!((again.fingerprint.as_str(), again.n_rows), (set.fingerprint(), 9));
    let shard = |name: &str| fs::read(dir.path().join(name).join("shard-00000.parquet")).unwrap();
    assert_eq!(shard("rows"), shard("again"), "the same rows give the same bytes");
    let other = write_rows(&dir.path().join("other"), &rows(8, 8), &meta(8)).unwrap();
    assert_ne!(other.fingerprint, again.fingerprint);
}

#[test]
fn rows_are_spread_over_bounded_shards() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows");
    // Two rows fill a shard of 4 Mi tokens exactly.
    let seq_len = SHARD_TOKENS / 2;
    write_rows(&path, &rows(3, seq_len), &meta(seq_len as u32)).unwrap();
    assert!(path.join("shard-00001.parquet").is_file() && !path.join("shard-00002.parquet").exists());
    assert_eq!(RowSet::open(&path).unwrap().rows().len(), 3);
}

#[test]
fn what_is_not_whole_and_unchanged_is_refused() {
    let (_keep, path) = written(3);
    let shard = path.join("shard-00000.parquet");
    let good = fs::read(&shard).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&shard, &bad).unwrap();
    assert!(open_error(&path).contains("content hash"));
    fs::write(&shard, &good[..good.len() - 1]).unwrap();
    assert!(open_error(&path).contains("content hash"));
    fs::remove_file(&shard).unwrap();
    assert!(open_error(&path).contains("listed in the manifest but missing"));
    fs::write(&shard, &good).unwrap();
    fs::write(path.join("extra.parquet"), &good).unwrap();
    assert!(open_error(&path).contains("extra.parquet is not listed"));
    fs::remove_file(path.join("extra.parquet")).unwrap();
    RowSet::open(&path).unwrap();
    fs::remove_file(path.join("manifest.json")).unwrap();
    assert!(open_error(&path).contains("manifest.json"));
}

#[test]
fn manifests_of_other_formats_versions_and_places_are_refused() {
    let (_keep, path) = written(3);
    let manifest = path.join("manifest.json");
    let good = fs::read_to_string(&manifest).unwrap();
    let check = |from: &str, to: &str, want: &str| {
        assert!(good.contains(from), "{good}");
        fs::write(&manifest, good.replacen(from, to, 1)).unwrap();
        let message = open_error(&path);
        assert!(message.contains(want), "{message}");
    };
    check(
        "\"version\": 1",
        "\"version\": 2",
        "expected firebrick-token-rows version 1, found firebrick-token-rows version 2",
    );
    check("firebrick-token-rows", "firebrick-text", "found firebrick-text version 1");
    check("shard-00000.parquet", "../rows/shard-00000.parquet", "\"shard-00000.parquet\" as shard 0");
    check("\"kind\"", "\"sort\"", "unknown field `sort`");
    check("\"rows\": 3", "\"rows\": 4", "4 rows");
    check("\"seq_len\": 8", "\"seq_len\": 9", "row 0: expected 9 ids");
    check("\"vocab_size\": 50", "\"vocab_size\": 5", "row 0: token 5 has id 5, the vocabulary has 5");
    check("{", "[", "cannot read");
}

#[test]
fn nothing_empty_or_broken_is_written_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows");
    assert!(matches!(write_rows(&path, &[], &meta(8)), Err(DataError::Empty { .. })));
    let mut bad = rows(2, 8);
    bad[1].weights[3] = f32::INFINITY;
    assert!(write_rows(&path, &bad, &meta(8)).unwrap_err().to_string().starts_with("row 1: token 3"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    write_rows(&path, &rows(2, 8), &meta(8)).unwrap();
    assert!(matches!(write_rows(&path, &rows(2, 8), &meta(8)), Err(DataError::Exists { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_interrupted_folder_is_cleared_and_an_old_one_replaced_only_on_request() {
    let (dir, path) = written(3);
    let leftover = dir.path().join(".new.partial");
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("shard-00007.parquet"), "half").unwrap();
    let out = OutDir::create(&dir.path().join("new"), false).unwrap();
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    drop(out);
    assert!(!leftover.exists());
    let out = OutDir::create(&path, true).unwrap();
    write_rows_into(out.path(), &rows(5, 8), &meta(8)).unwrap();
    assert_eq!(RowSet::open(&path).unwrap().rows().len(), 3, "the old folder stays until the commit");
    out.commit().unwrap();
    assert_eq!(RowSet::open(&path).unwrap().rows().len(), 5);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn only_folders_of_ours_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("letters");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("letter.txt"), "dear").unwrap();
    for path in [&own, &own.join("letter.txt")] {
        assert!(matches!(OutDir::create(path, true), Err(DataError::NotOurs { .. })));
    }
    assert_eq!(fs::read(own.join("letter.txt")).unwrap(), b"dear");
    assert!(matches!(OutDir::create(&own.join("letter.txt/out"), false), Err(DataError::Io { .. })));
}

#[test]
fn s10_every_length_has_rows_of_its_own_and_a_missing_length_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for seq_len in [8, 16] {
        write_rows(&seq_len_dir(dir.path(), seq_len), &rows(4, seq_len), &meta(seq_len as u32)).unwrap();
    }
    assert_eq!(available_seq_lens(dir.path()).unwrap(), [8, 16]);
    for seq_len in [8, 16] {
        let set = RowSet::open_seq_len(dir.path(), seq_len).unwrap();
        assert!(set.rows().iter().all(|row| row.len() == seq_len));
    }
    let message = RowSet::open_seq_len(dir.path(), 32).unwrap_err().to_string();
    assert!(message.contains("no rows for seq_len 32, only for [8, 16]"), "{message}");
    // A folder under the wrong name does not pass for another length.
    fs::rename(seq_len_dir(dir.path(), 16), seq_len_dir(dir.path(), 32)).unwrap();
    let message = RowSet::open_seq_len(dir.path(), 32).unwrap_err().to_string();
    assert!(message.contains("expected rows of 32 tokens, found rows of 16"), "{message}");
}
