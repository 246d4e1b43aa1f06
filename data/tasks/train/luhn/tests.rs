//! Tests of `luhn`.

use luhn::luhn;

#[test]
fn valid() {
    assert!(luhn("059"));
    assert!(luhn("4539 3195 0343 6467"));
}

#[test]
fn invalid() {
    assert!(!luhn("4539 3195 0343 6477"));
}

#[test]
fn letters() {
    assert!(!luhn("05a9"));
}

#[test]
fn short() {
    assert!(!luhn("0"));
    assert!(luhn("00"));
}
