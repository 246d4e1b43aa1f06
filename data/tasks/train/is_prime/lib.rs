//! Whether a number has exactly two divisors.

/// Whether a number has exactly two divisors.
pub fn is_prime(number: u32) -> bool {
    if number < 2 {
        return false;
    }
    let number = u64::from(number);
    let mut divisor = 2;
    while divisor * divisor <= number {
        if number % divisor == 0 {
            return false;
        }
        divisor += 1;
    }
    true
}
