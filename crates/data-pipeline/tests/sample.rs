//! The committed sample is what its manifest says, may be used, and holds out what it says it holds out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use data_pipeline::licence::LicencePolicy;
use data_pipeline::recipe::Part;
use data_pipeline::source::{SourceConfig, TextRecord};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    version: u32,
    file: Vec<ListedFile>,
    download: Vec<Download>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedFile {
    path: PathBuf,
    source: String,
    licence: String,
    documents: usize,
    text_bytes: usize,
    file_bytes: usize,
    blake3: String,
    sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Download {
    client: String,
    request: String,
    sha256: String,
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data")
}

fn manifest() -> Manifest {
    let text = std::fs::read_to_string(data().join("MANIFEST.toml")).expect("the sample is committed");
    toml::from_str(&text).expect("make_sample.py writes this form")
}

fn read(path: &Path) -> Vec<TextRecord> {
    let mut records = Vec::new();
    let source = SourceConfig::new("sample", vec![data().join(path)], None);
    let mut keep = |record| {
        records.push(record);
        Ok(())
    };
    source.read(&mut keep).expect("the sample is readable");
    records
}

#[test]
fn every_file_is_the_listed_one() {
    let manifest = manifest();
    assert_eq!((manifest.version, manifest.file.len(), manifest.download.len()), (1, 10, 6));
    for file in &manifest.file {
        let bytes = std::fs::read(data().join(&file.path)).unwrap();
        assert_eq!(bytes.len(), file.file_bytes, "{}", file.path.display());
        assert_eq!(blake3::hash(&bytes).to_hex().to_string(), file.blake3, "{}", file.path.display());
        assert_eq!(file.sha256.len(), 64);
        let records = read(&file.path);
        assert_eq!(records.len(), file.documents, "{}", file.path.display());
        assert_eq!(records.iter().map(|r| r.text.len()).sum::<usize>(), file.text_bytes);
        LicencePolicy::default().check(&file.source, &file.licence).unwrap();
        assert!(records.iter().all(|r| r.source == file.source && r.licence == file.licence));
    }
    let pinned = |d: &Download| ["apt", "pip"].contains(&d.client.as_str()) && d.sha256.len() == 64;
    assert!(manifest.download.iter().all(|d| pinned(d) && !d.request.is_empty()));
}

#[test]
fn no_document_and_no_long_paragraph_is_on_both_sides() {
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for file in manifest().file {
        let side = file.path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        for record in read(&file.path) {
            assert!(ids.insert(record.id.clone()), "{} is there twice", record.id);
            let paragraphs = record.text.split("\n\n").filter(|p| p.len() >= 60).map(str::to_owned);
            seen.entry(side.clone()).or_default().extend(paragraphs);
        }
    }
    let (train, heldout) = (&seen["train"], &seen["heldout"]);
    assert!(train.len() > 5_000 && heldout.len() > 150, "{} {}", train.len(), heldout.len());
    assert_eq!(train.intersection(heldout).next(), None);
}

#[test]
fn the_entries_of_held_out_words_stand_in_held_out_documents() {
    for (side, heldout) in [("train", false), ("heldout", true)] {
        let mut words = 0;
        for record in read(&Path::new("text").join(side).join("dictionary.parquet")) {
            for line in record.text.lines() {
                let word = line.split(' ').next().unwrap();
                assert_eq!(Part::of(word) == Part::Heldout, heldout, "{word}");
                words += 1;
            }
        }
        assert!(words > 500, "{words}");
    }
}
