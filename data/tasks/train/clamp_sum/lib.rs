//! The sum of two numbers, kept between `low` and `high`.

/// The sum of two numbers, kept between `low` and `high`.
pub fn clamp_sum(a: i64, b: i64, low: i64, high: i64) -> i64 {
    let sum = a.saturating_add(b);
    if sum < low {
        low
    } else if sum > high {
        high
    } else {
        sum
    }
}
