//! Regular English inflection: every spelling that a careless rule could give.
//!
//! Which spelling is right is not decided here but by the text: the one that writers used (see `lexicon`). So irregular
//! words drop out by themselves, since nobody wrote "goed".

/// An inflected form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Form {
    /// More than one: `lamp`, `lamps`.
    Plural,
    /// Past tense: `walk`, `walked`.
    Past,
    /// Present participle: `walk`, `walking`.
    Gerund,
    /// Adverb of an adjective: `quick`, `quickly`.
    Adverb,
}

impl Form {
    /// Every form.
    pub(super) const ALL: [Self; 4] = [Self::Plural, Self::Past, Self::Gerund, Self::Adverb];

    /// Spellings of the form of a lower-case word, right and wrong ones, without repeats.
    pub(super) fn candidates(self, base: &str) -> Vec<String> {
        let stem = |cut: usize, end: &str| format!("{}{end}", &base[..base.len() - cut]);
        let doubled = |end: &str| format!("{base}{}{end}", &base[base.len() - 1..]);
        let (drops_y, doubles, ends_in_e) = (ends_in_consonant_y(base), ends_short(base), base.ends_with('e'));
        let mut found = match self {
            Self::Plural => vec![stem(0, "s"), stem(0, "es")],
            Self::Past => vec![stem(0, "ed")],
            Self::Gerund => vec![stem(0, "ing")],
            Self::Adverb => vec![stem(0, "ly")],
        };
        match self {
            Self::Plural if drops_y => found.push(stem(1, "ies")),
            Self::Past if ends_in_e => found.push(stem(0, "d")),
            Self::Past if drops_y => found.push(stem(1, "ied")),
            Self::Past if doubles => found.push(doubled("ed")),
            Self::Gerund if ends_in_e => found.push(stem(1, "ing")),
            Self::Gerund if doubles => found.push(doubled("ing")),
            Self::Adverb if drops_y => found.push(stem(1, "ily")),
            Self::Adverb if base.ends_with("le") => found.push(stem(1, "y")),
            Self::Adverb if base.ends_with("ic") => found.push(stem(0, "ally")),
            _ => {}
        }
        found
    }
}

fn ends_in_consonant_y(word: &str) -> bool {
    word.ends_with('y') && !ends_with_vowel(&word[..word.len() - 1])
}

/// Vowel and consonant at the end, as in `stop`: where a final letter may double.
fn ends_short(word: &str) -> bool {
    let last = word.bytes().last().is_some_and(|c| !b"aeiouwxy".contains(&c));
    last && ends_with_vowel(&word[..word.len() - 1])
}

fn ends_with_vowel(word: &str) -> bool {
    word.bytes().last().is_some_and(|c| b"aeiou".contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(form: Form, base: &str, want: &[&str]) {
        assert_eq!(form.candidates(base), want, "{form:?} of {base}");
    }

    #[test]
    fn the_right_spelling_is_among_the_candidates() {
        check(Form::Plural, "lamp", &["lamps", "lampes"]);
        check(Form::Plural, "city", &["citys", "cityes", "cities"]);
        check(Form::Plural, "valley", &["valleys", "valleyes"]);
        check(Form::Past, "stop", &["stoped", "stopped"]);
        check(Form::Past, "walk", &["walked"]);
        check(Form::Past, "move", &["moveed", "moved"]);
        check(Form::Past, "carry", &["carryed", "carried"]);
        check(Form::Gerund, "move", &["moveing", "moving"]);
        check(Form::Adverb, "gentle", &["gentlely", "gently"]);
        check(Form::Adverb, "happy", &["happyly", "happily"]);
        check(Form::Adverb, "basic", &["basicly", "basically"]);
        check(Form::Adverb, "quick", &["quickly"]);
    }
}
