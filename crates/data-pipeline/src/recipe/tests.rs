//! Tests on the committed sample: what the recipe promises, and what it refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::task::quoted;
use super::*;

const SMALL: Recipe = Recipe { seed: 5, sft: 600, preference: 300, heldout: 200 };

fn sample() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data")
}

fn derived(recipe: &Recipe) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sets");
    derive(&sample(), &out, recipe, false).unwrap();
    let names = ["sft/train", "sft/heldout", "answers/heldout", "preference/train", "preference/heldout"];
    let read = |name: &str| std::fs::read_to_string(out.join(name).with_extension("jsonl")).unwrap();
    let mut files: BTreeMap<_, _> = names.iter().map(|name| ((*name).to_owned(), read(name))).collect();
    files.insert("report".into(), std::fs::read_to_string(out.join("report.json")).unwrap());
    files
}

fn records<T: serde::de::DeserializeOwned>(text: &str) -> Vec<T> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Words of a question and its answer that the split is about.
fn words_of(question: &str, answer: &str) -> BTreeSet<String> {
    let closed = "zero one two three four five six noun verb adjective adverb singular plural present past";
    let letters = |text: &str| text.split(' ').all(|w| w.len() == 1).then(|| text.replace(' ', ""));
    let answer = letters(answer).unwrap_or_else(|| answer.to_lowercase());
    let all = quoted(question).into_iter().map(str::to_owned).chain([answer]);
    all.filter(|w| w.len() >= 4 && !closed.split(' ').any(|c| c == w)).collect()
}

#[test]
fn every_file_is_the_same_on_every_run_and_another_seed_draws_others() {
    let first = derived(&SMALL);
    assert_eq!(first, derived(&SMALL));
    let other = derived(&Recipe { seed: 6, ..SMALL });
    assert!(first.iter().filter(|(name, _)| *name != "report").all(|(name, text)| other[name] != *text));
}

#[test]
fn no_held_out_word_is_trained_on_and_no_trained_word_is_measured() {
    let files = derived(&SMALL);
    let mut by_part: BTreeMap<Part, BTreeSet<String>> = BTreeMap::new();
    for (name, part) in [("sft/train", Part::Sft), ("sft/heldout", Part::Heldout)] {
        for record in records::<SftRecord>(&files[name]) {
            by_part.entry(part).or_default().extend(words_of(&record.messages[0].content, &record.messages[1].content));
        }
    }
    for (name, part) in [("preference/train", Part::Preference), ("preference/heldout", Part::Heldout)] {
        for record in records::<PreferenceRecord>(&files[name]) {
            by_part.entry(part).or_default().extend(words_of(&record.prompt[0].content, &record.chosen));
        }
    }
    for (part, words) in &by_part {
        assert!(words.len() > 200, "{part:?}: {}", words.len());
        for word in words {
            assert_eq!(Part::of(word), *part, "{word}");
        }
    }
}

#[test]
fn chosen_is_right_and_rejected_is_wrong() {
    let lexicon = Lexicon::read(&sample()).unwrap();
    let files = derived(&SMALL);
    let task = |name: &str| Task::all().find(|t| t.name() == name).unwrap();
    for name in ["preference/train", "preference/heldout"] {
        for pair in records::<PreferenceRecord>(&files[name]) {
            let solved = task(&pair.task).solve(&pair.prompt[0].content, &lexicon);
            assert_eq!(solved.as_deref(), Some(pair.chosen.as_str()), "{pair:?}");
            assert_ne!(pair.chosen, pair.rejected);
            assert!(!pair.rejected.is_empty());
        }
    }
    for record in records::<AnswerRecord>(&files["answers/heldout"]) {
        let solved = task(&record.task).solve(&record.prompt[0].content, &lexicon);
        assert_eq!(solved, Some(record.answer));
    }
}

#[test]
fn solvers_answer_questions_that_people_wrote() {
    let lexicon = Lexicon::read(&sample()).unwrap();
    let check = |task: Task, question: &str, want: &str| {
        assert_eq!(task.solve(question, &lexicon).as_deref(), Some(want), "{question}");
    };
    let list = r#""lamp", "river", "stone""#;
    check(Task::Repeat, r#"Repeat the word "lamp"."#, "lamp");
    check(Task::First, &format!("Which word comes first: {list}?"), "lamp");
    check(Task::Last, &format!("Which word comes last: {list}?"), "stone");
    check(Task::After, &format!(r#"Which word comes after "lamp" in {list}?"#), "river");
    check(Task::Before, &format!(r#"Which word comes before "stone" in {list}?"#), "river");
    check(Task::Twice, &format!(r#"Which word is there twice: {list}, "lamp"?"#), "lamp");
    check(Task::Count, &format!("How many words are in {list}?"), "three");
    check(Task::Spell, r#"Spell "lamp"."#, "l a m p");
    check(Task::FirstLetter, r#""lamp" begins with which letter?"#, "l");
    check(Task::LastLetter, r#"What is the last letter of "lamp"?"#, "p");
    check(Task::Vowel, r#"Does "lamp" begin with a vowel?"#, "no");
    check(Task::Vowel, r#"Is the first letter of "oak" a vowel?"#, "yes");
    check(Task::Begins, &format!(r#"Which word begins with "ri": {list}?"#), "river");
    check(Task::Alphabet, r#"Which comes first in the alphabet, "stone" or "river"?"#, "river");
    check(Task::Capital, r#"Write "lamp" with a capital letter."#, "Lamp");
    check(Task::Join, r#"Join "lamp" and "post"."#, "lamppost");
    check(Task::Plural, r#"What is the plural of "city"?"#, "cities");
    check(Task::Singular, r#"What is the singular of "cities"?"#, "city");
    check(Task::Past, r#"What is the past tense of "carry"?"#, "carried");
    check(Task::Base, r#"Which verb has the past tense "walked"?"#, "walk");
    check(Task::Gerund, r#"What is the -ing form of "move"?"#, "moving");
    check(Task::Adverb, r#"What is the adverb of "happy"?"#, "happily");
    check(Task::Number, r#"Is "cities" singular or plural?"#, "plural");
    check(Task::Tense, r#"Is "carry" present or past?"#, "present");
    check(Task::Speech, r#"Is "happily" a noun, a verb, an adjective or an adverb?"#, "adverb");
}

#[test]
fn every_task_has_its_share_in_every_set() {
    for n in [1, 28, 599, 30_000] {
        assert_eq!(shares(n, Task::sft_weight).iter().map(|s| s.1).sum::<usize>(), n);
        assert_eq!(shares(n, Task::preference_weight).iter().map(|s| s.1).sum::<usize>(), n);
    }
    let report: Report = serde_json::from_str(&derived(&SMALL)["report"]).unwrap();
    let rows: Vec<u64> = report.steps.iter().map(|s| s.rows_out).collect();
    assert_eq!(rows, [600, 200, 200, 300, 200]);
    assert!(report.steps[..3].iter().all(|s| s.notes.len() == Task::all().count()));
}

#[test]
fn a_sample_that_does_not_fit_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sets");
    let refused = |sample: &Path, recipe: &Recipe, want: &str| {
        let message = derive(sample, &out, recipe, false).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    };
    refused(&dir.path().join("nowhere"), &SMALL, "nowhere");
    refused(&sample(), &Recipe { sft: 3_000_000, ..SMALL }, "ask for fewer");
    let mut lexicon = Lexicon::default();
    let mut message = |line, heldout| lexicon.add(line, 7, heldout).unwrap_err().to_string();
    assert!(message("lamp: a light", false).starts_with("line 7: expected `word"));
    assert!(message("lamp (thing): a light", false).contains("lamp (thing)"));
    assert!(message("lamp (noun): a light", true).contains("`lamp` belongs to the training words"));
}
