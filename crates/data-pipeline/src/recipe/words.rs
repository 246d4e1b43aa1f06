//! Which words may be trained on and which are held out: decided by the word alone.

/// What a word is used for. No word serves two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Conversations for SFT.
    Sft,
    /// Pairs for preference training.
    Preference,
    /// Measuring, never training.
    Heldout,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 3] = [Self::Sft, Self::Preference, Self::Heldout];

    /// The part of a word: a pure function of its [`family`], whatever the seed of the recipe.
    ///
    /// About 12 % of the families are held out and 20 % are for preferences. The development script that cuts the
    /// sample has the same function, so that the dictionary entries of held-out words stand in held-out documents.
    pub fn of(word: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"firebrick word ");
        hasher.update(family(word).as_bytes());
        match hasher.finalize().as_bytes()[0] {
            0..31 => Self::Heldout,
            31..82 => Self::Preference,
            82.. => Self::Sft,
        }
    }

    /// Whether every one of the words belongs to this part.
    pub fn owns<S: AsRef<str>>(self, words: &[S]) -> bool {
        words.iter().all(|word| Self::of(word.as_ref()) == self)
    }
}

/// What related words share, roughly: the first four letters in lower case, `y` as `i`, so that `city` and `cities`,
/// `walk` and `walked` fall into one part.
pub fn family(word: &str) -> String {
    word.to_lowercase().chars().take(4).map(|c| if c == 'y' { 'i' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn related_words_share_a_part() {
        for (a, b) in [("city", "cities"), ("walk", "walked"), ("happy", "happily"), ("Lamp", "lamp")] {
            assert_eq!(family(a), family(b));
            assert_eq!(Part::of(a), Part::of(b));
        }
    }

    #[test]
    fn the_parts_have_their_shares() {
        let letters = || 'a'..='z';
        let mut counts = [0; 3];
        for a in letters() {
            for b in letters() {
                for c in letters() {
                    counts[Part::of(&format!("{a}{b}{c}x")) as usize] += 1;
                }
            }
        }
        let share = |i: usize| f64::from(counts[i]) / f64::from(counts.iter().sum::<i32>());
        assert!((share(0) - 0.68).abs() < 0.01, "{counts:?}");
        assert!((share(1) - 0.20).abs() < 0.01, "{counts:?}");
        assert!((share(2) - 0.12).abs() < 0.01, "{counts:?}");
    }

    #[test]
    fn the_function_is_the_one_that_cut_the_sample() {
        // Golden values of word_part in data/make_sample.py with blake3 1.0.11.
        let parts = ["abandon", "lamp", "river", "house", "window", "garden", "walk", "city"].map(Part::of);
        let want = [Part::Sft, Part::Sft, Part::Sft, Part::Sft, Part::Sft, Part::Sft, Part::Heldout, Part::Sft];
        assert_eq!(parts, want);
    }
}
