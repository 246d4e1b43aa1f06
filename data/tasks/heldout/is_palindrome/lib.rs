//! Whether the letters and digits read the same backwards, whatever their case.

/// Whether the letters and digits read the same backwards, whatever their case.
pub fn is_palindrome(text: &str) -> bool {
    let letters: Vec<char> = text
        .chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let mut left = 0;
    let mut right = letters.len();
    while left < right {
        right -= 1;
        if letters[left] != letters[right] {
            return false;
        }
        left += 1;
    }
    true
}
