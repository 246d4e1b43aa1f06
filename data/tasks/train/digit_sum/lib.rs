//! The sum of the decimal digits.

/// The sum of the decimal digits.
pub fn digit_sum(number: u64) -> u64 {
    let mut rest = number;
    let mut sum = 0;
    while rest > 0 {
        sum += rest % 10;
        rest /= 10;
    }
    sum
}
