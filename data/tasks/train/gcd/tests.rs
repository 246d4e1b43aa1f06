//! Tests of `gcd`.

use gcd::gcd;

#[test]
fn common() {
    assert_eq!(gcd(12, 18), 6);
    assert_eq!(gcd(100, 75), 25);
}

#[test]
fn coprime() {
    assert_eq!(gcd(9, 28), 1);
}

#[test]
fn zero() {
    assert_eq!(gcd(0, 5), 5);
    assert_eq!(gcd(5, 0), 5);
    assert_eq!(gcd(0, 0), 0);
}
