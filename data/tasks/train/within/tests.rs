//! Tests of `within`.

use within::within;

#[test]
fn inside() {
    assert!(within((1, 1), (0, 0), (2, 2)));
}

#[test]
fn edge() {
    assert!(within((2, 0), (0, 0), (2, 2)));
    assert!(within((0, 2), (2, 2), (0, 0)));
}

#[test]
fn outside() {
    assert!(!within((3, 1), (0, 0), (2, 2)));
    assert!(!within((1, -1), (0, 0), (2, 2)));
    assert!(!within((-1, 1), (0, 0), (2, 2)));
    assert!(!within((1, 3), (0, 0), (2, 2)));
}
