//! The first of the longest words; empty where there is none.

/// The first of the longest words; empty where there is none.
pub fn longest_word(text: &str) -> String {
    let mut best = "";
    for word in text.split_whitespace() {
        if word.len() > best.len() {
            best = word;
        }
    }
    best.to_owned()
}
