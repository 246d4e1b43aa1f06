//! Tests of `spiral_sum`.

use spiral_sum::spiral_sum;

#[test]
fn small() {
    assert_eq!(spiral_sum(0), 0);
    assert_eq!(spiral_sum(1), 1);
    assert_eq!(spiral_sum(2), 10);
}

#[test]
fn hole() {
    assert_eq!(spiral_sum(3), 40);
}

#[test]
fn four() {
    assert_eq!(spiral_sum(4), 102);
}
