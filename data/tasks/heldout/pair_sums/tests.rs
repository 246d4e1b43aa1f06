//! Tests of `pair_sums`.

use pair_sums::pair_sums;

#[test]
fn pairs() {
    assert_eq!(pair_sums(&[1, 2, 3, 4], 5), 2);
}

#[test]
fn same_numbers() {
    assert_eq!(pair_sums(&[2, 2, 2], 4), 3);
}

#[test]
fn none() {
    assert_eq!(pair_sums(&[1, 2], 9), 0);
    assert_eq!(pair_sums(&[], 0), 0);
}
