//! The text without the characters `c` at its end, and how many they were.

/// The text without the characters `c` at its end, and how many they were.
pub fn trim_end_chars(text: &str, c: char) -> (String, usize) {
    let mut chars: Vec<char> = text.chars().collect();
    let mut removed = 0;
    while chars.last() == Some(&c) {
        chars.pop();
        removed += 1;
    }
    (chars.into_iter().collect(), removed)
}
