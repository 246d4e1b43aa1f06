//! How many different numbers a list has.

/// How many different numbers a list has.
pub fn unique_count(list: &[i64]) -> usize {
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    let mut count = 0;
    for i in 0..sorted.len() {
        if i == 0 || sorted[i] != sorted[i - 1] {
            count += 1;
        }
    }
    count
}
