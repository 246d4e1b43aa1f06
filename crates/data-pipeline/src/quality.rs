//! Rules that tell prose from lists, menus, word salad and repetition; each can be configured.
//!
//! # Source
//! Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv 2112.11446,
//! appendix A: the quality filters and table A1 (repetition). The defaults are the paper's thresholds.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};

/// Thresholds of the rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QualityConfig {
    /// Whether the rules apply at all.
    pub enabled: bool,
    /// Fewest words.
    pub min_words: usize,
    /// Most words.
    pub max_words: usize,
    /// Shortest mean word, in characters.
    pub min_mean_word_len: f64,
    /// Longest mean word, in characters.
    pub max_mean_word_len: f64,
    /// Most `#` and `…` per word.
    pub max_symbol_ratio: f64,
    /// Largest share of lines that start with a bullet.
    pub max_bullet_lines: f64,
    /// Largest share of lines that end with an ellipsis.
    pub max_ellipsis_lines: f64,
    /// Smallest share of words with a letter.
    pub min_alpha_words: f64,
    /// Fewest different stop words (the, be, to, of, and, that, have, with).
    pub min_stop_words: usize,
    /// Largest share of lines that repeat an earlier line.
    pub max_duplicate_lines: f64,
    /// Largest share of characters in lines that repeat an earlier line.
    pub max_duplicate_line_chars: f64,
    /// Largest share of characters covered by the most frequent run of 2, 3 and 4 words.
    pub max_top_ngram: [f64; 3],
    /// Largest share of characters in repeated runs of 5 to 10 words.
    pub max_duplicate_ngrams: [f64; 6],
}

impl Default for QualityConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            min_words: 50,
            max_words: 100_000,
            min_mean_word_len: 3.0,
            max_mean_word_len: 10.0,
            max_symbol_ratio: 0.1,
            max_bullet_lines: 0.9,
            max_ellipsis_lines: 0.3,
            min_alpha_words: 0.8,
            min_stop_words: 2,
            max_duplicate_lines: 0.3,
            max_duplicate_line_chars: 0.2,
            max_top_ngram: [0.20, 0.18, 0.16],
            max_duplicate_ngrams: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10],
        }
    }
}

impl QualityConfig {
    /// Checks that counts and shares make sense together.
    ///
    /// # Errors
    /// [`DataError::BadConfig`] names the first key that does not.
    pub fn check(&self) -> Result<()> {
        let bad = |key, expected, found: String| Err(DataError::BadConfig { key, expected, found });
        if self.min_words > self.max_words {
            return bad("quality.min_words", "at most quality.max_words", self.min_words.to_string());
        }
        if !(self.min_mean_word_len >= 0.0 && self.min_mean_word_len <= self.max_mean_word_len) {
            let found = self.min_mean_word_len.to_string();
            return bad("quality.min_mean_word_len", "from 0 to quality.max_mean_word_len", found);
        }
        let single = [
            ("quality.max_bullet_lines", self.max_bullet_lines),
            ("quality.max_ellipsis_lines", self.max_ellipsis_lines),
            ("quality.min_alpha_words", self.min_alpha_words),
            ("quality.max_duplicate_lines", self.max_duplicate_lines),
            ("quality.max_duplicate_line_chars", self.max_duplicate_line_chars),
        ];
        let lists = self.max_top_ngram.iter().map(|&v| ("quality.max_top_ngram", v));
        let more = self.max_duplicate_ngrams.iter().map(|&v| ("quality.max_duplicate_ngrams", v));
        for (key, value) in single.into_iter().chain(lists).chain(more) {
            if !(0.0..=1.0).contains(&value) {
                return bad(key, "a share from 0 to 1", value.to_string());
            }
        }
        if self.max_symbol_ratio.is_nan() || self.max_symbol_ratio < 0.0 {
            return bad("quality.max_symbol_ratio", "0 or more", self.max_symbol_ratio.to_string());
        }
        Ok(())
    }
}

/// Why a document was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Fewer words than allowed.
    TooFewWords,
    /// More words than allowed.
    TooManyWords,
    /// The mean word is too short or too long.
    MeanWordLength,
    /// Too many `#` or `…`.
    Symbols,
    /// Too many bullets.
    BulletLines,
    /// Too many lines end with an ellipsis.
    EllipsisLines,
    /// Too few words have a letter.
    NotWords,
    /// Too few stop words.
    FewStopWords,
    /// Lines repeat.
    DuplicateLines,
    /// One run of words is everywhere.
    TopNgram,
    /// Runs of words repeat.
    DuplicateNgrams,
}

impl Reason {
    /// The name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooFewWords => "too few words",
            Self::TooManyWords => "too many words",
            Self::MeanWordLength => "mean word length",
            Self::Symbols => "symbols",
            Self::BulletLines => "bullet lines",
            Self::EllipsisLines => "ellipsis lines",
            Self::NotWords => "not words",
            Self::FewStopWords => "few stop words",
            Self::DuplicateLines => "duplicate lines",
            Self::TopNgram => "one frequent n-gram",
            Self::DuplicateNgrams => "duplicate n-grams",
        }
    }
}

const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];
const BULLETS: [char; 6] = ['•', '●', '○', '■', '‣', '*'];

/// The first rule that a text breaks, if any.
pub fn judge(text: &str, config: &QualityConfig) -> Option<Reason> {
    if !config.enabled {
        return None;
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    words_reason(text, &words, config)
        .or_else(|| line_shape_reason(text, config))
        .or_else(|| duplicate_lines(text, config).then_some(Reason::DuplicateLines))
        .or_else(|| ngram_reason(&words, config))
}

fn words_reason(text: &str, words: &[&str], config: &QualityConfig) -> Option<Reason> {
    if words.len() < config.min_words {
        return Some(Reason::TooFewWords);
    }
    if words.len() > config.max_words {
        return Some(Reason::TooManyWords);
    }
    let n = words.len().max(1) as f64;
    let mean = words.iter().map(|w| w.chars().count()).sum::<usize>() as f64 / n;
    if !(config.min_mean_word_len..=config.max_mean_word_len).contains(&mean) {
        return Some(Reason::MeanWordLength);
    }
    let symbols = text.matches('#').count() + text.matches('…').count() + text.matches("...").count();
    if symbols as f64 / n > config.max_symbol_ratio {
        return Some(Reason::Symbols);
    }
    let alpha = words.iter().filter(|w| w.chars().any(char::is_alphabetic)).count();
    if (alpha as f64) < config.min_alpha_words * n {
        return Some(Reason::NotWords);
    }
    let bare = |w: &&str| w.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let found: HashSet<String> = words.iter().map(bare).filter(|w| STOP_WORDS.contains(&w.as_str())).collect();
    (found.len() < config.min_stop_words).then_some(Reason::FewStopWords)
}

fn line_shape_reason(text: &str, config: &QualityConfig) -> Option<Reason> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let n = lines.len().max(1) as f64;
    let bullets = lines.iter().filter(|l| l.starts_with(BULLETS) || l.starts_with("- ")).count();
    if bullets as f64 / n > config.max_bullet_lines {
        return Some(Reason::BulletLines);
    }
    let ellipses = lines.iter().filter(|l| l.ends_with('…') || l.ends_with("...")).count();
    (ellipses as f64 / n > config.max_ellipsis_lines).then_some(Reason::EllipsisLines)
}

fn duplicate_lines(text: &str, config: &QualityConfig) -> bool {
    let mut seen = HashSet::new();
    let (mut n, mut chars, mut repeated, mut repeated_chars) = (0usize, 0usize, 0usize, 0usize);
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        n += 1;
        chars += line.len();
        if !seen.insert(line) {
            repeated += 1;
            repeated_chars += line.len();
        }
    }
    let share = |part: usize, all: usize| part as f64 / all.max(1) as f64;
    share(repeated, n) > config.max_duplicate_lines || share(repeated_chars, chars) > config.max_duplicate_line_chars
}

fn ngram_reason(words: &[&str], config: &QualityConfig) -> Option<Reason> {
    let chars: usize = words.iter().map(|w| w.len()).sum();
    let above = |part: usize, limit: f64| part as f64 / chars.max(1) as f64 > limit;
    for (n, &limit) in (2..).zip(&config.max_top_ngram) {
        if above(top_ngram_chars(words, n), limit) {
            return Some(Reason::TopNgram);
        }
    }
    for (n, &limit) in (5..).zip(&config.max_duplicate_ngrams) {
        if above(duplicate_ngram_chars(words, n), limit) {
            return Some(Reason::DuplicateNgrams);
        }
    }
    None
}

/// Characters covered by the most frequent run of `n` words that occurs at least twice.
fn top_ngram_chars(words: &[&str], n: usize) -> usize {
    let mut counts: BTreeMap<&[&str], usize> = BTreeMap::new();
    for gram in words.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    let covered = |(gram, count): (&&[&str], &usize)| count * gram.iter().map(|w| w.len()).sum::<usize>();
    let most = counts.values().copied().max().unwrap_or(0);
    counts.iter().filter(|(_, c)| **c == most && most > 1).map(covered).max().unwrap_or(0)
}

/// Characters of words that stand in a run of `n` words which occurred before; no word counts twice.
fn duplicate_ngram_chars(words: &[&str], n: usize) -> usize {
    let mut seen: HashMap<&[&str], ()> = HashMap::new();
    let (mut chars, mut counted_to) = (0, 0);
    for (i, gram) in words.windows(n).enumerate() {
        if seen.insert(gram, ()).is_some() {
            let from = counted_to.max(i);
            chars += words[from..i + n].iter().map(|w| w.len()).sum::<usize>();
            counted_to = i + n;
        }
    }
    chars
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of 14 words drawn by a linear congruential generator, with stop words among them.
    fn prose(n: usize) -> String {
        let words = "the river and a garden with old windows that letter to mountain of teacher morning market bridge have \
                     walked slowly under grey clouds while children sang about winter apples near wooden houses before \
                     evening lamps burned bright over quiet harbour streets where sailors told long stories again";
        let words: Vec<&str> = words.split_whitespace().collect();
        let mut state = 12345usize;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            words[(state >> 33) % words.len()]
        };
        (0..n).map(|_| (0..14).map(|_| next()).collect::<Vec<_>>().join(" ") + ".\n").collect()
    }

    fn check(text: &str, want: Option<Reason>) {
        assert_eq!(judge(text, &QualityConfig::default()), want, "{}", &text[..text.len().min(80)]);
    }

    #[test]
    fn prose_passes_and_every_rule_fires() {
        let good = prose(12);
        check(&good, None);
        check("Only a few words.", Some(Reason::TooFewWords));
        check(&prose(8000), Some(Reason::TooManyWords));
        check(&"a b c d e ".repeat(20), Some(Reason::MeanWordLength));
        check(&good.replace(".\n", " and # then # some # more.\n"), Some(Reason::Symbols));
        check(&good.replace(".\n", " 123 4567 890 1234 5678.\n"), Some(Reason::NotWords));
        let stop = |word: &str| STOP_WORDS.contains(&word.trim_end_matches('.'));
        let few: Vec<&str> = good.split_whitespace().map(|w| if stop(w) { "roses" } else { w }).collect();
        check(&few.join(" "), Some(Reason::FewStopWords));
        check(&good.lines().map(|l| format!("- {l}\n")).collect::<String>(), Some(Reason::BulletLines));
        check(&good.replacen(".\n", " so…\n", 4), Some(Reason::EllipsisLines));
        check(&prose(6).repeat(2), Some(Reason::DuplicateLines));
        check(&good.replace(".\n", " remarkable extraordinary.\n"), Some(Reason::TopNgram));
        let again = good.replace('\n', " ") + &prose(6).replace('\n', " ");
        check(&again, Some(Reason::DuplicateNgrams));
    }

    #[test]
    fn rules_can_be_switched_off_and_wrong_thresholds_are_refused() {
        let off = QualityConfig { enabled: false, ..QualityConfig::default() };
        assert_eq!(judge("x", &off), None);
        QualityConfig::default().check().unwrap();
        let check = |change: &dyn Fn(&mut QualityConfig), key: &str| {
            let mut config = QualityConfig::default();
            change(&mut config);
            let message = config.check().unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        };
        check(&|c| c.min_words = usize::MAX, "quality.min_words");
        check(&|c| c.min_mean_word_len = f64::NAN, "quality.min_mean_word_len");
        check(&|c| c.min_alpha_words = 1.5, "quality.min_alpha_words");
        check(&|c| c.max_top_ngram[1] = -0.1, "quality.max_top_ngram");
        check(&|c| c.max_symbol_ratio = f64::NAN, "quality.max_symbol_ratio");
    }
}
