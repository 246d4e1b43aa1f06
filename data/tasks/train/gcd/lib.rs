//! The greatest common divisor; that of 0 and `n` is `n`.

/// The greatest common divisor; that of 0 and `n` is `n`.
pub fn gcd(a: u64, b: u64) -> u64 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        let rest = a % b;
        a = b;
        b = rest;
    }
    a
}
