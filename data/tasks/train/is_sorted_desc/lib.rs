//! Whether no number is larger than the one before it.

/// Whether no number is larger than the one before it.
pub fn is_sorted_desc(numbers: &[i32]) -> bool {
    for i in 1..numbers.len() {
        if numbers[i] > numbers[i - 1] {
            return false;
        }
    }
    true
}
