//! The program end to end: text in, token rows out, every refusal with its exit code.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use data_pipeline::tokenizer::SPECIAL_TOKENS;
use data_pipeline::{RowSet, TextFolder, TokenDocuments, seq_len_dir};
use tempfile::TempDir;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_data-pipeline")).args(args).output().unwrap()
}

/// Runs the program, which must succeed, and returns what it printed to standard output.
fn ok(args: &[&str]) -> String {
    let output = run(args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {message}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, which must refuse with exit code 2, and returns its message.
fn refused(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A document of ordinary sentences; different for every number.
fn document(i: usize) -> String {
    let words = "the river and a garden with old windows that letter to mountain of teacher morning market bridge have \
                 walked slowly under grey clouds while children sang about winter apples near wooden houses before";
    let words: Vec<&str> = words.split(' ').collect();
    let mut state = i * 7919 + 17;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        words[(state >> 33) % words.len()]
    };
    (0..6 + i % 40).map(|_| (0..12).map(|_| next()).collect::<Vec<_>>().join(" ") + ".\n").collect()
}

struct Work {
    dir: TempDir,
}

impl Work {
    /// A folder with a JSONL file of 60 documents, one of them twice, one of them too short, and a configuration.
    fn new() -> Self {
        let work = Self { dir: tempfile::tempdir().unwrap() };
        let line =
            |i: usize, text: &str| serde_json::json!({ "id": format!("doc-{i}"), "text": text }).to_string() + "\n";
        let mut lines: String = (0..60).map(|i| line(i, &document(i))).collect();
        lines += &line(60, &document(7).to_uppercase());
        lines += &line(61, "Too short.");
        fs::write(work.path("docs.jsonl"), lines).unwrap();
        work.config("licence = \"CC0-1.0\"");
        work
    }

    fn config(&self, line: &str) {
        let config = format!(
            "[[source]]\nname = \"notes\"\npaths = [\"docs.jsonl\"]\n{line}\n\n\
             [quality]\nmax_duplicate_ngrams = [1, 1, 1, 1, 1, 1]\nmax_top_ngram = [1.0, 1, 1]\n\n\
             [split]\nheldout = 0.1\nseed = 1\n"
        );
        fs::write(self.path("ingest.toml"), config).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn str(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn ingest(&self, out: &str) -> Output {
        run(&["ingest", "--config", &self.str("ingest.toml"), "--out", &self.str(out)])
    }

    /// Everything up to token rows of 32 and 64 tokens, below `root`.
    fn all(&self, root: &str) {
        let at = |name: &str| self.str(&format!("{root}/{name}"));
        fs::create_dir(self.path(root)).unwrap();
        assert!(self.ingest(&format!("{root}/text")).status.success());
        ok(&["train-tokenizer", "--input", &at("text/train"), "--vocab-size", "330", "--out", &at("tokenizer")]);
        ok(&["tokenize", "--input", &at("text/train"), "--tokenizer", &at("tokenizer"), "--out", &at("tokens")]);
        ok(&["pack", "--input", &at("tokens"), "--seq-len", "32,64", "--out", &at("rows")]);
    }
}

/// All files below a folder with their contents, by relative name.
fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut waiting = vec![dir.to_path_buf()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => waiting.push(path),
                false => files.push((path.strip_prefix(dir).unwrap().to_path_buf(), fs::read(&path).unwrap())),
            }
        }
    }
    files.sort();
    files
}

#[test]
fn s17_every_token_of_every_document_is_in_the_rows_exactly_once_with_its_end_token() {
    let work = Work::new();
    work.all("run");
    let tokens = TokenDocuments::open(&work.path("run/tokens")).unwrap();
    let end = tokens.tokenizer().end_of_text();
    let texts = TextFolder::open(&work.path("run/text/train")).unwrap().records().unwrap();
    for (ids, record) in tokens.documents().iter().zip(&texts) {
        assert_eq!(tokens.tokenizer().decode(ids), record.text);
    }
    for seq_len in [32, 64] {
        let set = RowSet::open(&seq_len_dir(&work.path("run/rows"), seq_len)).unwrap();
        set.require_tokenizer(tokens.tokenizer().hash()).unwrap();
        // Pieces of a document are cut at multiples of seq_len, so documents can be put together again.
        let mut pieces: Vec<Vec<u32>> = Vec::new();
        let (mut bytes, mut rows_of_full) = (0, 0);
        for row in set.rows() {
            for range in row.segment_ranges() {
                let ids = row.ids[range.clone()].to_vec();
                rows_of_full += usize::from(ids.len() == seq_len);
                assert_eq!(row.weights[range.start], 0.0);
                let predicted = ids[1..].iter().filter(|&&id| id != end);
                bytes += predicted.map(|&id| tokens.tokenizer().token_bytes(id).unwrap().len() as u64).sum::<u64>();
                pieces.push(ids);
            }
        }
        let mut want: Vec<Vec<u32>> = Vec::new();
        for ids in tokens.documents() {
            let with_end: Vec<u32> = ids.iter().copied().chain([end]).collect();
            want.extend(with_end.chunks(seq_len).map(<[u32]>::to_vec));
        }
        pieces.sort();
        want.sort();
        assert_eq!(pieces, want);
        assert!(rows_of_full > 0, "some documents are longer than a row");
        assert_eq!(set.meta().text_bytes, bytes);
    }
}

#[test]
fn every_output_is_the_same_byte_for_byte_on_any_number_of_threads() {
    let work = Work::new();
    work.all("one");
    // The second run sees another number of threads through rayon's own variable.
    let at = |name: &str| work.str(&format!("two/{name}"));
    fs::create_dir(work.path("two")).unwrap();
    let single = |args: &[&str]| {
        let program = env!("CARGO_BIN_EXE_data-pipeline");
        assert!(Command::new(program).args(args).env("RAYON_NUM_THREADS", "1").output().unwrap().status.success());
    };
    single(&["ingest", "--config", &work.str("ingest.toml"), "--out", &at("text")]);
    single(&["train-tokenizer", "--input", &at("text/train"), "--vocab-size", "330", "--out", &at("tokenizer")]);
    single(&["tokenize", "--input", &at("text/train"), "--tokenizer", &at("tokenizer"), "--out", &at("tokens")]);
    single(&["pack", "--input", &at("tokens"), "--seq-len", "32,64", "--out", &at("rows")]);
    let (one, two) = (tree(&work.path("one")), tree(&work.path("two")));
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&one), names(&two));
    for ((name, one), (_, two)) in one.iter().zip(&two) {
        assert!(one == two, "{}", name.display());
    }
    // Packing text directly gives the rows that packing its token documents gives.
    let (text, tokenizer, direct) = (work.str("one/text/train"), work.str("one/tokenizer"), work.str("direct"));
    ok(&["pack", "--input", &text, "--tokenizer", &tokenizer, "--seq-len", "64", "--out", &direct]);
    assert_eq!(
        fs::read(work.path("direct/seq-64/manifest.json")).unwrap(),
        fs::read(work.path("one/rows/seq-64/manifest.json")).unwrap()
    );
}

#[test]
fn ingest_reports_every_document_and_splits_by_id() {
    let work = Work::new();
    let output = work.ingest("text");
    let table = String::from_utf8(output.stderr).unwrap();
    for part in ["dropped: too few words", "dropped: duplicate"] {
        assert!(table.contains(part), "{table}");
    }
    let report: serde_json::Value = serde_json::from_slice(&fs::read(work.path("text/report.json")).unwrap()).unwrap();
    let rows = |i: usize, key: &str| report["steps"][i][key].as_u64().unwrap();
    assert_eq!((rows(0, "rows_in"), rows(0, "rows_out")), (62, 62));
    assert_eq!((rows(1, "rows_out"), rows(2, "rows_out")), (61, 60));
    assert_eq!(rows(3, "rows_out") + rows(4, "rows_out"), 60);
    let train = TextFolder::open(&work.path("text/train")).unwrap();
    let heldout = TextFolder::open(&work.path("text/heldout")).unwrap();
    assert_eq!((train.n_documents() as u64, heldout.n_documents() as u64), (rows(3, "rows_out"), rows(4, "rows_out")));
    assert_eq!((&*train.meta().split, &*heldout.meta().split), ("train", "heldout"));
    let source = &train.meta().sources[0];
    assert_eq!((&*source.name, &*source.licence, source.hash.len()), ("notes", "CC0-1.0", 64));
    let split = data_pipeline::split::SplitConfig { heldout: 0.1, seed: 1, ..Default::default() };
    assert!(heldout.records().unwrap().iter().all(|r| split.is_heldout("notes", &r.id)));
    assert!(train.records().unwrap().iter().all(|r| !split.is_heldout("notes", &r.id)));
}

#[test]
fn s30_licence_of_every_source_is_checked_before_anything_is_written() {
    let work = Work::new();
    for (line, named) in [("licence = \"CC-BY-NC-4.0\"", "`CC-BY-NC-4.0`"), ("", "``")] {
        work.config(line);
        let message = refused(&["ingest", "--config", &work.str("ingest.toml"), "--out", &work.str("text")]);
        assert!(message.contains("source `notes` has licence") && message.contains(named), "{message}");
    }
    work.config("licence = \"CC-BY-NC-4.0\"\n\n[licences]\nallow = [\"CC-BY-NC-4.0\"]");
    assert!(work.ingest("text").status.success(), "allowed by name is allowed");
    fs::remove_dir_all(work.path("text")).unwrap();
    let mut left: Vec<_> = fs::read_dir(work.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["docs.jsonl", "ingest.toml"]);
}

#[test]
fn s18_tokenizer_is_trained_on_text_not_parquet_bytes() {
    let work = Work::new();
    work.all("run");
    // The same text as Parquet shards or as lines gives the same tokenizer, so the container is not seen.
    let text = work.path("run/text/train");
    let records = TextFolder::open(&text).unwrap().records().unwrap();
    let direct = data_pipeline::tokenizer::train(records.iter().map(|r| &*r.text), 330, &SPECIAL_TOKENS).unwrap();
    assert_eq!(direct.json(), fs::read(work.path("run/tokenizer/tokenizer.json")).unwrap());
    // A raw file, Parquet or not, is no input for training.
    let shard = text.join("shard-00000.parquet");
    let args =
        |input: &str| refused(&["train-tokenizer", "--input", input, "--vocab-size", "330", "--out", &work.str("t")]);
    assert!(args(shard.to_str().unwrap()).contains("manifest.json"));
    assert!(args(&work.str("docs.jsonl")).contains("manifest.json"));
    // And Parquet given as text is recognised by its content.
    fs::copy(&shard, work.path("disguised.txt")).unwrap();
    let (input, out) = (work.str("disguised.txt"), work.str("t"));
    let message = refused(&["ingest", "--input", &input, "--source", "x", "--licence", "MIT", "--out", &out]);
    assert!(message.contains("expected plain text, found a Parquet file"), "{message}");
    assert!(!work.path("t").exists());
}

#[test]
fn bad_configurations_are_refused_by_key() {
    let work = Work::new();
    let good = fs::read_to_string(work.path("ingest.toml")).unwrap();
    let check = |config: String, want: &str| {
        fs::write(work.path("ingest.toml"), config).unwrap();
        let message = refused(&["ingest", "--config", &work.str("ingest.toml"), "--out", &work.str("text")]);
        assert!(message.contains(want), "{message}");
        assert!(!work.path("text").exists());
    };
    check(good.replace("heldout = 0.1", "held_out = 0.1"), "unknown field `held_out`");
    check(good.replace("seed = 1", "seed = 1\nseed = 2"), "duplicate key");
    check(good.replace("heldout = 0.1", "heldout = inf"), "`split.heldout`: expected a share from 0 to below 1");
    check(good.replace("heldout = 0.1", "heldout = 0.00001"), "holds no rows");
    check(good.replace("paths = [\"docs.jsonl\"]", "paths = [\"gone.jsonl\"]"), "gone.jsonl");
    check(good.replace("paths = [\"docs.jsonl\"]", "paths = []"), "at least one path");
    check(good.replace("[[source]]", "[source]"), "invalid type: map");
    check(good.replace("[quality]", "[quality]\nmin_words = -1"), "min_words");
    check(good.replace("[quality]", "[quality]\nmin_alpha_words = 2"), "`quality.min_alpha_words`");
    check(good.replace("name =", "hash = \"00\"\nname ="), "content hash");
    check("x = ".to_owned() + &"[".repeat(200_000), "max recursion depth");
    check("#".repeat((1 << 20) + 1), "the limit is 1048576");
    let message = refused(&["ingest", "--out", &work.str("text")]);
    assert!(message.contains("--config"), "{message}");
}

#[test]
fn bad_inputs_of_the_later_commands_are_refused() {
    let work = Work::new();
    work.all("run");
    let (text, tokens, tokenizer) = (work.str("run/text/train"), work.str("run/tokens"), work.str("run/tokenizer"));
    let out = work.str("out");
    let check = |args: &[&str], want: &str| {
        let message = refused(args);
        assert!(message.contains(want), "{message}");
        assert!(!work.path("out").exists());
    };
    check(&["pack", "--input", &tokens, "--seq-len", "1", "--out", &out], "`seq_len`: expected from 2");
    check(
        &["pack", "--input", &text, "--seq-len", "8", "--out", &out],
        "expected a tokenizer, since the input is text",
    );
    check(&["pack", "--input", &tokens, "--tokenizer", &tokenizer, "--seq-len", "8", "--out", &out], "tokens already");
    check(
        &["tokenize", "--input", &tokens, "--tokenizer", &tokenizer, "--out", &out],
        "expected firebrick-text version 1",
    );
    check(&["tokenize", "--input", &text, "--tokenizer", &text, "--out", &out], "tokenizer.json");
    check(&["train-tokenizer", "--input", &text, "--vocab-size", "100", "--out", &out], "vocab_size 100 is too small");
    check(&["train-tokenizer", "--input", &text, "--vocab-size", "9999", "--out", &out], "vocab_size asks for 9999");
    check(&["pack", "--input", &tokens, "--seq-len", "64", "--out", &work.str("run/rows")], "already exists");
    check(&["inspect", &tokens, "--row", "9999"], "a row that exists");
    ok(&["pack", "--input", &tokens, "--seq-len", "64", "--out", &work.str("run/rows"), "--overwrite"]);
    // A tokenizer that was exchanged is noticed.
    let mut json = fs::read_to_string(work.path("run/tokens/tokenizer.json")).unwrap();
    json.push('\n');
    fs::write(work.path("run/tokens/tokenizer.json"), json).unwrap();
    check(&["pack", "--input", &tokens, "--seq-len", "8", "--out", &out], "content hash");
}

#[test]
fn inspect_shows_counts_hashes_segments_and_what_is_trained() {
    let work = Work::new();
    work.all("run");
    let rows = ok(&["inspect", &work.str("run/rows/seq-64")]);
    for part in [
        "token rows",
        "kind             pretrain",
        "tokens per row   64",
        "notes (CC0-1.0)",
        "[segment 0, token 0, ",
        "⟦",
        "⟧",
    ] {
        assert!(rows.contains(part), "{rows}");
    }
    let set = RowSet::open(&work.path("run/rows/seq-64")).unwrap();
    let shared = set.rows().iter().position(|row| row.segment_ranges().len() > 1).unwrap();
    let row = ok(&["inspect", &work.str("run/rows/seq-64"), "--row", &shared.to_string()]);
    assert!(row.contains("<|endoftext|>⟧\n[segment 1, token "), "{row}");
    let tokens = ok(&["inspect", &work.str("run/tokens")]);
    assert!(tokens.contains("token documents") && tokens.contains("bytes per token"), "{tokens}");
    let text = ok(&["inspect", &work.str("run/text/heldout")]);
    assert!(text.contains("split            heldout") && text.contains("notes doc-"), "{text}");
}

#[test]
fn crates_are_judged_as_code_held_out_whole_and_kept_apart_from_what_is_measured() {
    let work = Work::new();
    let function = |name: &str| {
        format!(
            "/// Says the name twice, once for each reader.\npub fn {name}() -> String {{\n    \"{name}\".repeat(2)\n}}\n"
        )
    };
    for (krate, licence) in [("kept", "MIT"), ("apart", "Apache-2.0"), ("task", "MIT")] {
        let dir = work.path(&format!("vendor/{krate}-1.0.0"));
        fs::create_dir_all(dir.join("src")).unwrap();
        fs::write(dir.join("Cargo.toml"), format!("[package]\nname = \"{krate}\"\nlicense = \"{licence}\"\n")).unwrap();
        fs::write(dir.join("src/lib.rs"), function(krate).repeat(3)).unwrap();
    }
    let kept = work.path("vendor/kept-1.0.0/src");
    fs::write(kept.join("table.rs"), format!("// @generated\n{}", function("other").repeat(3))).unwrap();
    fs::write(kept.join("copy.rs"), format!("{}\n{}", function("own"), function("task").repeat(2))).unwrap();
    let config = |skip: &str, split: &str| {
        let text = format!(
            "[[source]]\nname = \"crates\"\npaths = [\"vendor\"]\ncrates = true\n{skip}\n[split]\nheldout = 0.0\n\
             sources = [{split}]\n[decontaminate]\nagainst = [\"vendor/task-1.0.0\"]\n"
        );
        fs::write(work.path("ingest.toml"), text).unwrap();
    };
    config("skip = [\"task\"]", "\"apart\"");
    assert!(work.ingest("text").status.success());
    let ids = |split: &str| -> Vec<String> {
        let folder = TextFolder::open(&work.path("text").join(split)).unwrap();
        folder.records().unwrap().into_iter().map(|r| format!("{} {} {}", r.source, r.licence, r.id)).collect()
    };
    assert_eq!(ids("train"), ["kept MIT kept-1.0.0/src/lib"]);
    assert_eq!(ids("heldout"), ["apart Apache-2.0 apart-1.0.0/src/lib"]);
    let report = fs::read_to_string(work.path("text/report.json")).unwrap();
    assert!(
        report.contains("\"generated\": 1") && report.contains("\"shares a run of words with a measured text\": 1")
    );
    for (skip, split, want) in [
        ("skip = [\"task\"]", "\"apart\", \"gone\"", "`split.sources`"),
        ("skip = [\"task\", \"gone\"]", "\"apart\"", "`source.skip`"),
        ("licence = \"MIT\"", "\"apart\"", "`source.hash, source.licence`"),
    ] {
        config(skip, split);
        let message = refused(&["ingest", "--config", &work.str("ingest.toml"), "--out", &work.str("again")]);
        assert!(message.contains(want), "{message}");
    }
}
