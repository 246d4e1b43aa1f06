//! Tests of `digit_sum`.

use digit_sum::digit_sum;

#[test]
fn one_digit() {
    assert_eq!(digit_sum(7), 7);
    assert_eq!(digit_sum(0), 0);
}

#[test]
fn many() {
    assert_eq!(digit_sum(12345), 15);
    assert_eq!(digit_sum(990), 18);
}
