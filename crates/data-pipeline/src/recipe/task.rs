//! The kinds of exercise: how each is asked, how often, and who makes and solves it.

use super::lexicon::{Lexicon, View};
use super::rng::Rng;
use super::{grammar, letters, lists};

/// A kind of exercise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// Say a word again.
    Repeat,
    /// The first word of a list.
    First,
    /// The last word of a list.
    Last,
    /// The word after a given one.
    After,
    /// The word before a given one.
    Before,
    /// The word that a list holds twice.
    Twice,
    /// How many words a list has.
    Count,
    /// The letters of a word.
    Spell,
    /// The first letter.
    FirstLetter,
    /// The last letter.
    LastLetter,
    /// Whether a word begins with a vowel.
    Vowel,
    /// The word with given first letters.
    Begins,
    /// Which of two words comes first in the alphabet.
    Alphabet,
    /// The word with a capital letter.
    Capital,
    /// Two words written as one.
    Join,
    /// Plural of a noun.
    Plural,
    /// Noun of a plural.
    Singular,
    /// Past tense of a verb.
    Past,
    /// Verb of a past tense.
    Base,
    /// Present participle of a verb.
    Gerund,
    /// Adverb of an adjective.
    Adverb,
    /// Part of speech.
    Speech,
    /// Singular or plural.
    Number,
    /// Present or past.
    Tense,
    /// Which of two words a definition describes; it holds a relative of the right one.
    Definition,
}

/// How a task is asked and how large its share of each set is.
pub(super) struct Spec {
    task: Task,
    name: &'static str,
    /// `{a}` and `{b}` are quoted words or definitions, `{list}` is a list of quoted words, `{x}` plain text.
    /// What is quoted keeps its order in every wording, so that the solver can rely on it.
    wordings: &'static [&'static str],
    /// Shares of the SFT set and of the preference set, in parts of the sums. What a model of two million parameters
    /// learns from a few hundred steps has large ones: letters, counts and kinds of a word it never saw in training.
    /// Answers that copy a word of the question have small ones, since such a model has no heads for copying yet; they
    /// are asked all the same, so that reports show what it cannot do.
    weights: [u32; 2],
}

/// One exercise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) task: Task,
    pub(super) question: String,
    pub(super) answer: String,
    /// Answers that somebody could give by mistake; none is the answer.
    pub(super) wrong: Vec<String>,
}

const SPECS: &[Spec] = &[
    Spec {
        task: Task::Repeat,
        name: "repeat",
        wordings: &["Repeat the word {a}.", "Say {a} once more."],
        weights: [1, 1],
    },
    Spec {
        task: Task::First,
        name: "first",
        wordings: &["Which word comes first: {list}?", "First word of the list {list}?"],
        weights: [1, 1],
    },
    Spec {
        task: Task::Last,
        name: "last",
        wordings: &["Which word comes last: {list}?", "Last word of the list {list}?"],
        weights: [1, 1],
    },
    Spec {
        task: Task::After,
        name: "after",
        wordings: &["Which word comes after {a} in {list}?", "What follows {a} here: {list}?"],
        weights: [1, 1],
    },
    Spec {
        task: Task::Before,
        name: "before",
        wordings: &["Which word comes before {a} in {list}?", "What stands before {a} here: {list}?"],
        weights: [1, 1],
    },
    Spec {
        task: Task::Twice,
        name: "twice",
        wordings: &["Which word is there twice: {list}?", "Which word is repeated in {list}?"],
        weights: [1, 1],
    },
    Spec {
        task: Task::Count,
        name: "count",
        wordings: &["How many words are in {list}?", "Count the words: {list}."],
        weights: [9, 6],
    },
    Spec { task: Task::Spell, name: "spell", wordings: &["Spell {a}.", "How is {a} spelled?"], weights: [1, 2] },
    Spec {
        task: Task::FirstLetter,
        name: "first-letter",
        wordings: &["What is the first letter of {a}?", "{a} begins with which letter?"],
        weights: [9, 6],
    },
    Spec {
        task: Task::LastLetter,
        name: "last-letter",
        wordings: &["What is the last letter of {a}?", "{a} ends with which letter?"],
        weights: [9, 6],
    },
    Spec {
        task: Task::Vowel,
        name: "vowel",
        wordings: &["Does {a} begin with a vowel?", "Is the first letter of {a} a vowel?"],
        weights: [7, 4],
    },
    Spec {
        task: Task::Begins,
        name: "begins",
        wordings: &["Which word begins with {a}: {list}?", "Find the word that starts with {a} in {list}."],
        weights: [1, 1],
    },
    Spec {
        task: Task::Alphabet,
        name: "alphabet",
        wordings: &["Which comes first in the alphabet, {a} or {b}?", "Put {a} and {b} in order. Which is first?"],
        weights: [1, 2],
    },
    Spec {
        task: Task::Capital,
        name: "capital",
        wordings: &["Write {a} with a capital letter.", "Begin a sentence with {a}."],
        weights: [1, 1],
    },
    Spec {
        task: Task::Join,
        name: "join",
        wordings: &["Join {a} and {b}.", "Write {a} and {b} as one word."],
        weights: [1, 1],
    },
    Spec {
        task: Task::Plural,
        name: "plural",
        wordings: &["What is the plural of {a}?", "Make {a} more than one."],
        weights: [2, 5],
    },
    Spec {
        task: Task::Singular,
        name: "singular",
        wordings: &["What is the singular of {a}?", "Make {a} only one."],
        weights: [2, 4],
    },
    Spec {
        task: Task::Past,
        name: "past",
        wordings: &["What is the past tense of {a}?", "Put {a} into the past."],
        weights: [2, 5],
    },
    Spec {
        task: Task::Base,
        name: "base",
        wordings: &["Which verb has the past tense {a}?", "Put {a} into the present."],
        weights: [2, 4],
    },
    Spec {
        task: Task::Gerund,
        name: "gerund",
        wordings: &["What is the -ing form of {a}?", "Give the form of {a} that ends in -ing."],
        weights: [2, 5],
    },
    Spec {
        task: Task::Adverb,
        name: "adverb",
        wordings: &["What is the adverb of {a}?", "Make an adverb from {a}."],
        weights: [1, 1],
    },
    Spec {
        task: Task::Speech,
        name: "speech",
        wordings: &["Is {a} a noun, a verb, an adjective or an adverb?", "What part of speech is {a}?"],
        weights: [9, 6],
    },
    Spec {
        task: Task::Number,
        name: "number",
        wordings: &["Is {a} singular or plural?", "Is {a} one or more than one?"],
        weights: [7, 4],
    },
    Spec {
        task: Task::Tense,
        name: "tense",
        wordings: &["Is {a} present or past?", "Which tense is {a}, present or past?"],
        weights: [7, 4],
    },
    Spec {
        task: Task::Definition,
        name: "definition",
        wordings: &["Which word means {x}: {list}?", "Definition: {x}. Which word, {list}?"],
        weights: [1, 1],
    },
];

impl Task {
    /// Every task, in the order of the reports.
    pub fn all() -> impl Iterator<Item = Self> {
        SPECS.iter().map(|spec| spec.task)
    }

    /// The name in records and reports.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Share of the SFT set, in parts of the sum over all tasks.
    pub(super) fn sft_weight(self) -> u32 {
        self.spec().weights[0]
    }

    /// Share of the preference set, likewise.
    pub(super) fn preference_weight(self) -> u32 {
        self.spec().weights[1]
    }

    fn spec(self) -> &'static Spec {
        SPECS.iter().find(|spec| spec.task == self).expect("SPECS lists every task")
    }

    /// Makes an exercise from the words of one part; `None` when this draw did not give one.
    pub(super) fn make(self, view: &View, rng: &mut Rng) -> Option<Item> {
        use Task::*;
        let (slots, answer, wrong) = match self {
            Repeat | First | Last | After | Before | Twice | Count => lists::make(self, view, rng)?,
            Spell | FirstLetter | LastLetter | Vowel | Begins | Alphabet | Capital | Join => {
                letters::make(self, view, rng)?
            }
            Plural | Singular | Past | Base | Gerund | Adverb | Speech | Number | Tense | Definition => {
                grammar::make(self, view, rng)?
            }
        };
        let wording = rng.pick(self.spec().wordings)?;
        let mut wrong: Vec<String> = wrong.into_iter().filter(|w| *w != answer && !w.is_empty()).collect();
        wrong.sort();
        wrong.dedup();
        let question = slots.iter().fold((*wording).to_owned(), |text, (slot, value)| text.replacen(slot, value, 1));
        (!wrong.is_empty()).then_some(Item { task: self, question, answer, wrong })
    }

    /// Whether the solver may find more than one answer, so that the draw is thrown away: two verbs can share a past
    /// tense, two words a definition, and one word can be its own past.
    pub(super) fn may_be_ambiguous(self) -> bool {
        matches!(self, Self::Singular | Self::Base | Self::Definition | Self::Number | Self::Tense)
    }

    /// Answers an exercise from its question alone; `None` when the question is not one of this task's.
    pub(super) fn solve(self, question: &str, lexicon: &Lexicon) -> Option<String> {
        use Task::*;
        match self {
            Repeat | First | Last | After | Before | Twice | Count => lists::solve(self, question),
            Spell | FirstLetter | LastLetter | Vowel | Begins | Alphabet | Capital | Join => {
                letters::solve(self, question)
            }
            Plural | Singular | Past | Base | Gerund | Adverb | Speech | Number | Tense | Definition => {
                grammar::solve(self, question, lexicon)
            }
        }
    }
}

/// What fills a wording, the answer, and answers that are wrong.
pub(super) type Parts = (Vec<(&'static str, String)>, String, Vec<String>);

/// A word in quotation marks: the same letters, hence the same tokens, as the word alone in an answer.
pub(super) fn quote(word: &str) -> String {
    format!("\"{word}\"")
}

/// A list of quoted words.
pub(super) fn quote_all<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|w| quote(w.as_ref())).collect::<Vec<_>>().join(", ")
}

/// What a question quotes, in order.
pub(super) fn quoted(question: &str) -> Vec<&str> {
    question.split('"').skip(1).step_by(2).collect()
}

/// Some different words in random order.
pub(super) fn draw<'a>(words: &'a [String], rng: &mut Rng, n: usize) -> Option<Vec<&'a str>> {
    let mut found: Vec<&str> = Vec::with_capacity(n);
    for _ in 0..8 * n {
        let word = rng.pick(words)?.as_str();
        if !found.contains(&word) {
            found.push(word);
        }
        if found.len() == n {
            return Some(found);
        }
    }
    None
}
