//! Exact deduplication: two documents are equal when their normalised texts are.

use std::collections::HashSet;

/// The documents seen so far, as 128 bits of BLAKE3 each.
#[derive(Debug, Default)]
pub struct Dedup {
    seen: HashSet<[u8; 16]>,
}

impl Dedup {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers a document by its [`content_key`]; false if an equal one was there before.
    pub fn insert(&mut self, key: [u8; 16]) -> bool {
        self.seen.insert(key)
    }
}

/// 128 bits of BLAKE3 over the text in lower case with every run of white space as one space.
///
/// Two different texts share a key with a probability of about n²/2¹²⁹ for n documents.
pub fn content_key(text: &str) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    let mut word = String::new();
    for part in text.split_whitespace() {
        word.clear();
        word.extend(part.chars().flat_map(char::to_lowercase));
        word.push(' ');
        hasher.update(word.as_bytes());
    }
    let mut key = [0; 16];
    key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_up_to_case_and_white_space_is_a_duplicate() {
        let mut dedup = Dedup::new();
        let mut is_new = |text: &str| dedup.insert(content_key(text));
        assert!(is_new("One two\nthree"));
        assert!(!is_new("  one TWO three "));
        assert!(is_new("one twothree"));
        assert!(is_new("onetwo three"));
        assert!(is_new(""));
    }
}
