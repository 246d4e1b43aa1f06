//! The words of the sample: dictionary entries, and the spellings that its writers used.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::RecipeProblem;
use super::grammar::is_telling;
use super::inflection::Form;
use super::words::Part;
use crate::error::{DataError, Result};
use crate::source::SourceConfig;

/// Length of the words that exercises use, in letters.
const WORD_LETTERS: std::ops::RangeInclusive<usize> = 4..=8;
/// Name of the dictionary's file in the folders of the sample.
const DICTIONARY: &str = "dictionary.parquet";

/// Part of speech.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Speech {
    Noun,
    Verb,
    Adjective,
    Adverb,
}

impl Speech {
    pub(super) const ALL: [Self; 4] = [Self::Noun, Self::Verb, Self::Adjective, Self::Adverb];

    /// The name in the dictionary and in answers.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Noun => "noun",
            Self::Verb => "verb",
            Self::Adjective => "adjective",
            Self::Adverb => "adverb",
        }
    }
}

/// A word's first sense for each part of speech.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sense {
    pub(super) speech: Speech,
    pub(super) gloss: String,
}

/// Dictionary and inflected forms of the whole sample.
#[derive(Debug, Default)]
pub(super) struct Lexicon {
    pub(super) senses: BTreeMap<String, Vec<Sense>>,
    /// For each form, the base words that the sample's text inflects, with the spelling used.
    pub(super) forms: BTreeMap<Form, BTreeMap<String, String>>,
}

/// What one part may use; every list is sorted.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Words for lists, spelling and the like.
    pub(super) words: Vec<String>,
    /// Words with one part of speech only.
    pub(super) tagged: Vec<(String, Speech)>,
    /// Words with a definition that holds a relative of the word.
    pub(super) defined: Vec<(String, String)>,
    /// Base words and inflected forms.
    pub(super) forms: BTreeMap<Form, Vec<(String, String)>>,
}

impl Lexicon {
    /// Reads `text/train` and `text/heldout` of a sample.
    ///
    /// # Errors
    /// Whatever is wrong with a file; [`RecipeProblem`] for a dictionary line of another form, an entry on the wrong
    /// side of the split, or a sample without words.
    pub(super) fn read(sample: &Path) -> Result<Self> {
        let mut lexicon = Self::default();
        let train = sample.join("text").join("train");
        let heldout = sample.join("text").join("heldout");
        for (dir, is_heldout) in [(&train, false), (&heldout, true)] {
            let path = dir.join(DICTIONARY);
            let mut number = 0;
            documents(vec![path.clone()], &mut |text| {
                for line in text.lines() {
                    number += 1;
                    let added = lexicon.add(line, number, is_heldout);
                    added.map_err(|problem| DataError::Recipe { path: path.clone(), problem })?;
                }
                Ok(())
            })?;
        }
        let counts = count_words(&train)?;
        lexicon.find_forms(&counts);
        if lexicon.senses.is_empty() {
            return Err(DataError::Empty { path: train.join(DICTIONARY) });
        }
        Ok(lexicon)
    }

    /// Adds a line `word (part of speech): gloss`.
    pub(super) fn add(&mut self, line: &str, number: usize, is_heldout: bool) -> Result<(), RecipeProblem> {
        let Some((word, sense)) = parse(line) else {
            return Err(RecipeProblem::Line(number, line.chars().take(60).collect()));
        };
        if (Part::of(&word) == Part::Heldout) != is_heldout {
            return Err(RecipeProblem::WrongSide(number, word, if is_heldout { "training" } else { "held-out" }));
        }
        self.senses.entry(word).or_default().push(sense);
        Ok(())
    }

    /// Of each word's possible spellings keeps the one used most, if any was used.
    fn find_forms(&mut self, counts: &HashMap<String, u32>) {
        for form in Form::ALL {
            let speech = match form {
                Form::Plural => Speech::Noun,
                Form::Past | Form::Gerund => Speech::Verb,
                Form::Adverb => Speech::Adjective,
            };
            let bases = self.senses.iter().filter(|(_, senses)| senses.iter().any(|s| s.speech == speech));
            let found = bases.filter_map(|(base, _)| {
                let used = form.candidates(base).into_iter().map(|c| (counts.get(&c).copied().unwrap_or(0), c));
                let (count, spelling) = used.max_by_key(|(count, _)| *count)?;
                (count > 0).then(|| (base.clone(), spelling))
            });
            self.forms.insert(form, found.collect());
        }
    }

    /// What a part may use: words of that part only.
    pub(super) fn view(&self, part: Part) -> View {
        let own = |word: &str| Part::of(word) == part;
        let short = |word: &str| WORD_LETTERS.contains(&word.len());
        let entries = || self.senses.iter().filter(|(word, _)| own(word));
        let pairs = |form: &Form| {
            let all = self.forms.get(form).into_iter().flatten();
            all.filter(|(base, used)| own(base) && own(used)).map(|(b, u)| (b.clone(), u.clone())).collect()
        };
        View {
            words: entries().map(|(word, _)| word.clone()).filter(|word| short(word)).collect(),
            tagged: entries().filter(|(_, s)| s.len() == 1).map(|(word, s)| (word.clone(), s[0].speech)).collect(),
            defined: entries()
                .filter_map(|(word, s)| Some((word, s.iter().find(|s| is_telling(word, &s.gloss))?)))
                .map(|(word, sense)| (word.clone(), sense.gloss.clone()))
                .collect(),
            forms: Form::ALL.into_iter().map(|form| (form, pairs(&form))).collect(),
        }
    }
}

/// Reads the documents of some files.
fn documents(paths: Vec<PathBuf>, use_text: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    SourceConfig::new("sample", paths, None).read(&mut |record| use_text(&record.text))
}

/// How often each lower-case word stands in the running text of a folder; the dictionary does not count.
fn count_words(dir: &Path) -> Result<HashMap<String, u32>> {
    let mut paths: Vec<PathBuf> =
        SourceConfig::new("sample", vec![dir.to_path_buf()], None).files()?.into_iter().map(|(path, _)| path).collect();
    paths.retain(|path| path.file_name().is_none_or(|name| name != DICTIONARY));
    let mut counts = HashMap::new();
    for path in paths {
        documents(vec![path], &mut |text| {
            for word in text.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()) {
                if word.bytes().all(|b| b.is_ascii_lowercase()) {
                    *counts.entry(word.to_owned()).or_default() += 1;
                }
            }
            Ok(())
        })?;
    }
    Ok(counts)
}

fn parse(line: &str) -> Option<(String, Sense)> {
    let (head, gloss) = line.split_once("): ")?;
    let (word, name) = head.split_once(" (")?;
    let speech = Speech::ALL.into_iter().find(|s| s.name() == name)?;
    let plain = word.len() >= 2 && word.bytes().all(|b| b.is_ascii_lowercase());
    (plain && !gloss.is_empty() && !gloss.contains('"')).then(|| (word.into(), Sense { speech, gloss: gloss.into() }))
}
