//! Tests of `is_prime`.

use is_prime::is_prime;

#[test]
fn small() {
    assert!(!is_prime(0));
    assert!(!is_prime(1));
    assert!(is_prime(2));
    assert!(is_prime(3));
}

#[test]
fn square() {
    assert!(!is_prime(9));
    assert!(!is_prime(25));
}

#[test]
fn larger() {
    assert!(is_prime(97));
    assert!(!is_prime(91));
}
