//! Tests of `clamp_sum`.

use clamp_sum::clamp_sum;

#[test]
fn inside() {
    assert_eq!(clamp_sum(2, 3, 0, 10), 5);
}

#[test]
fn below() {
    assert_eq!(clamp_sum(-9, 3, 0, 10), 0);
}

#[test]
fn above() {
    assert_eq!(clamp_sum(8, 7, 0, 10), 10);
    assert_eq!(clamp_sum(5, 5, 0, 10), 10);
}

#[test]
fn no_overflow() {
    assert_eq!(clamp_sum(i64::MAX, 1, 0, i64::MAX), i64::MAX);
}
