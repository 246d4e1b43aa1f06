//! How many of the characters are one of `a`, `e`, `i`, `o` and `u`, in either case.

/// How many of the characters are one of `a`, `e`, `i`, `o` and `u`, in either case.
pub fn count_vowels(text: &str) -> usize {
    text.chars()
        .filter(|c| matches!(c.to_ascii_lowercase(), 'a' | 'e' | 'i' | 'o' | 'u'))
        .count()
}
