//! How many words a text has, and how many lines that are not blank.

/// How many words a text has, and how many lines that are not blank.
pub fn word_count(text: &str) -> (usize, usize) {
    let mut words = 0;
    let mut lines = 0;
    for line in text.lines() {
        let count = line.split_whitespace().count();
        if count > 0 {
            lines += 1;
            words += count;
        }
    }
    (words, lines)
}
