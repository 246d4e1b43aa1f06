//! The mean of the numbers, rounded down; `None` of none.

/// The mean of the numbers, rounded down; `None` of none.
pub fn mean_floor(numbers: &[i32]) -> Option<i64> {
    if numbers.is_empty() {
        return None;
    }
    let sum: i64 = numbers.iter().map(|n| i64::from(*n)).sum();
    Some(sum.div_euclid(numbers.len() as i64))
}
