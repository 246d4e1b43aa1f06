//! Tests of `zigzag`.

use zigzag::zigzag;

#[test]
fn range() {
    assert_eq!(zigzag(1, 4), [-1, 2, -3, 4]);
}

#[test]
fn one() {
    assert_eq!(zigzag(2, 2), [2]);
}

#[test]
fn none() {
    assert_eq!(zigzag(3, 2).len(), 0);
}

#[test]
fn bounded() {
    assert_eq!(zigzag(0, 500).len(), 100);
}
