//! Every place, in bytes, at which a word begins in a text; overlaps count.

/// Every place, in bytes, at which a word begins in a text; overlaps count.
pub fn find_all(text: &str, word: &str) -> Vec<usize> {
    let mut found = Vec::new();
    if word.is_empty() {
        return found;
    }
    for (at, _) in text.char_indices() {
        if text[at..].starts_with(word) {
            found.push(at);
        }
    }
    found
}
